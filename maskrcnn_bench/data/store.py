"""AnnotationStore: the annotations of a whole data set in a few flat arrays.

Python objects are copied into every loading process as soon as their reference counts move; arrays are not. So nothing
here stays a dict or a list after reading: I images and A annotations become numpy arrays with offsets, sorted by image.
Boxes, areas and polygons keep double precision, so that an evaluation sees exactly what the file said.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NO_MASK, POLYGONS, RLE_TEXT, RLE_RUNS = range(4)


class Strings:
    """Many strings as one array of bytes."""

    def __init__(self, strings: Iterable[str]):
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._offsets = np.cumsum([0] + [len(s) for s in encoded], dtype=np.int64)

    def __getitem__(self, i: int) -> str:
        return self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._offsets) - 1


class AnnotationStore:
    """Images, categories and annotations of one COCO file (or of anything brought into that form).

    Args:
        source: the file, for messages.
        content: a COCO dict with `images`, `categories` and, where known, `annotations`. Its annotations are emptied
            while they are read, to save memory. An image may name a file of its own in `source`. Faults that a reader met
            stand in `faults`, as tuples of the fields of `faults.Finding`.
        empty_extent: a box counts as empty when its width or height is no more than this, pixels.

    Attributes:
        image_ids: ascending. [I] int64
        widths, heights: pixels; 0 where the file does not say. [I] int64
        file_names: of each image. Strings of length I
        offsets: annotations of image i are offsets[i] : offsets[i + 1]. [I + 1] int64
        ids: annotation ids. [A] int64
        category_ids: ids of the file. [A] int64
        boxes: x, y, width, height, pixels, as in the file. [A, 4] float64
        areas: pixels squared. [A] float64
        crowd: [A] bool
        keypoints: x, y, v in turn, zeros where missing; None when no annotation has any. [A, 3 Kp] float64
        num_keypoints: as in the file, else the annotated points; -1 where an annotation has none. [A] int64
        orphans: annotations of images that the file does not list: (annotation id, image id). [O, 2] int64
        repeated: annotations whose id another one has already: (annotation id, image id). [D, 2] int64
        reader_faults: what the reader of the files found wrong.

    Raises:
        ValueError: when the content is not COCO, naming the file and the entry.
    """

    def __init__(self, source: str, content: Any, empty_extent: float = 0.0):
        self.source = source
        self.empty_extent = empty_extent
        _require_coco(source, content)
        images = sorted(content["images"], key=lambda image: image["id"])
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        _require_unique(source, self.image_ids)
        self.widths = np.array([image.get("width") or 0 for image in images], dtype=np.int64)
        self.heights = np.array([image.get("height") or 0 for image in images], dtype=np.int64)
        self.file_names = Strings(image["file_name"] for image in images)
        self.sources = Strings(image.get("source", "") for image in images)
        self.categories: list[dict] = sorted(content["categories"], key=lambda category: category["id"])
        annotations = content.get("annotations") or []
        self.has_annotations = "annotations" in content
        self.reader_faults: list[tuple[str, str, str, int | None, str]] = list(content.get("faults", ()))
        order = self._sort(annotations)
        self._read(annotations, order)

    def _sort(self, annotations: Sequence[dict]) -> np.ndarray:
        """Positions in the file by image, then as they stand; notes what belongs to no image or repeats an id."""
        image_ids = np.array([_integer(self.source, a, "image_id") for a in annotations], dtype=np.int64)
        ids = np.array([int(a.get("id", k + 1)) for k, a in enumerate(annotations)], dtype=np.int64)
        owner = np.searchsorted(self.image_ids, image_ids)
        owner_id = self.image_ids[np.minimum(owner, len(self.image_ids) - 1)] if len(self.image_ids) else np.full_like(owner, -1)
        known = owner_id == image_ids
        first = np.zeros(len(ids), dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        pairs = np.stack([ids, image_ids], axis=1).reshape(-1, 2)
        self.orphans, self.repeated = pairs[~known], pairs[known & ~first]
        kept = np.flatnonzero(known & first)
        order = kept[np.argsort(owner[kept], kind="stable")]
        self.ids = ids[order]
        self.offsets = np.searchsorted(owner[order], np.arange(len(self.image_ids) + 1)).astype(np.int64)
        return order

    def _read(self, annotations: list[dict], order: np.ndarray) -> None:
        source, count = self.source, len(order)
        self.category_ids = np.zeros(count, dtype=np.int64)
        self.boxes, self.areas = np.zeros((count, 4)), np.zeros(count)
        self.crowd = np.zeros(count, dtype=bool)
        self.num_keypoints = np.full(count, -1, dtype=np.int64)
        masks, points = _MaskReader(source, count), _PointReader(source)
        for row, place in enumerate(order.tolist()):
            annotation = annotations[place]
            self.category_ids[row] = _integer(source, annotation, "category_id")
            self.boxes[row] = _numbers(source, annotation, "bbox", 4)
            area = annotation.get("area")
            self.areas[row] = area if isinstance(area, (int, float)) else self.boxes[row, 2] * self.boxes[row, 3]
            self.crowd[row] = bool(annotation.get("iscrowd", 0))
            masks.add(row, annotation)
            self.num_keypoints[row] = points.add(row, annotation)
            annotations[place] = None
        masks.finish(self)
        self.keypoints = points.array(count)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> AnnotationStore:
        """Read a COCO JSON file.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it is no JSON, or not COCO.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no annotation file {path}; check the path, or DATASETS.ROOT for names of the catalog")
        try:
            content = json.loads(path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON file ({error}); it may be cut off: copy or download it again") from None
        return cls(str(path), content)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def annotation_images(self) -> np.ndarray:
        """Position of the image of each annotation. [A] int64"""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def source_of(self, image: int) -> str:
        """The file that holds the annotations of one image."""
        return self.sources[image] or self.source

    def image_label(self, image: int) -> str:
        """Name and id of an image, for messages."""
        return f"{self.file_names[image]} (id {self.image_ids[image]})"

    def rings(self, row: int) -> list[np.ndarray]:
        """Polygons of one annotation, x and y in turn, pixels; empty when it has none. list of [2 n] float64"""
        first, last = self.object_offsets[row], self.object_offsets[row + 1]
        return [self.coordinates[self.ring_offsets[r] : self.ring_offsets[r + 1]] for r in range(first, last)]

    def segmentation(self, row: int) -> list[np.ndarray] | dict:
        """The mask of one annotation as COCO has it: polygons, or an RLE dict."""
        if self.mask_kinds[row] in (NO_MASK, POLYGONS):
            return self.rings(row)
        first, last = self.rle_offsets[row], self.rle_offsets[row + 1]
        raw = self.rle_bytes[first:last].tobytes()
        counts = raw.decode() if self.mask_kinds[row] == RLE_TEXT else np.frombuffer(raw, dtype=np.int64)
        return {"size": self.rle_sizes[row].tolist(), "counts": counts}

    def coco_dict(self, keep: np.ndarray | None = None) -> dict:
        """A COCO dict again, for evaluators.

        Args:
            keep: which annotations; None takes all. [A] bool
        """
        images = [
            {"id": int(i), "width": int(w), "height": int(h), "file_name": self.file_names[k]}
            for k, (i, w, h) in enumerate(zip(self.image_ids, self.widths, self.heights, strict=True))
        ]
        rows = range(len(self.ids)) if keep is None else np.flatnonzero(keep).tolist()
        owners = self.image_ids[self.annotation_images]
        annotations = [self._annotation(row, int(owners[row])) for row in rows]
        return {"info": {}, "images": images, "annotations": annotations, "categories": self.categories}

    def _annotation(self, row: int, image_id: int) -> dict:
        out = {
            "id": int(self.ids[row]),
            "image_id": image_id,
            "category_id": int(self.category_ids[row]),
            "bbox": self.boxes[row].tolist(),
            "area": float(self.areas[row]),
            "iscrowd": int(self.crowd[row]),
        }
        if self.mask_kinds[row] != NO_MASK:
            mask = self.segmentation(row)
            if isinstance(mask, dict):
                counts = mask["counts"]
                out["segmentation"] = mask | {"counts": counts if isinstance(counts, str) else counts.tolist()}
            else:
                out["segmentation"] = [ring.tolist() for ring in mask]
        if self.num_keypoints[row] >= 0:
            out |= {"keypoints": self.keypoints[row].tolist(), "num_keypoints": int(self.num_keypoints[row])}
        return out


class _MaskReader:
    """Collects the masks of all annotations."""

    def __init__(self, source: str, count: int):
        self.source = source
        self.kinds = np.zeros(count, dtype=np.uint8)
        self.sizes = np.zeros((count, 2), dtype=np.int64)
        self.coordinates, self.rings, self.objects = array("d"), array("q", [0]), array("q", [0])
        self.rle_bytes, self.rle_ends = bytearray(), array("q", [0])

    def add(self, row: int, annotation: dict) -> None:
        mask = annotation.get("segmentation")
        try:
            if isinstance(mask, dict):
                self._add_rle(row, mask)
            elif isinstance(mask, list) and mask:
                self._add_polygons(row, mask)
            elif mask not in (None, [], ""):
                raise TypeError(f"got {type(mask).__name__}")
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            expected = "expected a list of polygons, or an RLE with `size` and `counts`"
            raise ValueError(_at(self.source, annotation, f"`segmentation`: {expected} ({error})")) from None
        self.objects.append(len(self.rings) - 1)
        self.rle_ends.append(len(self.rle_bytes))

    def _add_polygons(self, row: int, mask: list) -> None:
        self.kinds[row] = POLYGONS
        for ring in mask if isinstance(mask[0], (list, tuple)) else [mask]:
            self.coordinates.extend(ring)
            self.rings.append(len(self.coordinates))

    def _add_rle(self, row: int, mask: dict) -> None:
        self.sizes[row] = mask["size"]
        counts = mask["counts"]
        self.kinds[row] = RLE_TEXT if isinstance(counts, str) else RLE_RUNS
        self.rle_bytes += counts.encode("ascii") if isinstance(counts, str) else np.array(counts, dtype=np.int64).tobytes()

    def finish(self, store: AnnotationStore) -> None:
        store.mask_kinds = self.kinds
        store.coordinates = np.array(self.coordinates)
        store.ring_offsets, store.object_offsets = np.array(self.rings), np.array(self.objects)
        store.rle_bytes = np.frombuffer(bytes(self.rle_bytes), dtype=np.uint8)
        store.rle_offsets, store.rle_sizes = np.array(self.rle_ends), self.sizes


class _PointReader:
    """Collects the keypoints of all annotations."""

    def __init__(self, source: str):
        self.source = source
        self.rows: list[tuple[int, np.ndarray]] = []

    def add(self, row: int, annotation: dict) -> int:
        """The number of annotated points, -1 when the annotation has no keypoints."""
        if "keypoints" not in annotation:
            return -1
        length = len(self.rows[0][1]) if self.rows else 3 * (len(annotation["keypoints"]) // 3)
        points = np.array(_numbers(self.source, annotation, "keypoints", length))
        self.rows.append((row, points))
        return int(annotation.get("num_keypoints", (points[2::3] > 0).sum()))

    def array(self, count: int) -> np.ndarray | None:
        if not self.rows:
            return None
        out = np.zeros((count, len(self.rows[0][1])))
        for row, points in self.rows:
            out[row] = points
        return out


# ------------------------------------------------------------------------------------------------- what COCO requires


def _at(source: str, annotation: dict, what: str) -> str:
    return f"{source}: annotation {annotation.get('id', '?')} of image {annotation.get('image_id', '?')}: {what}"


def _require_coco(source: str, content: Any) -> None:
    remedy = "expected a COCO file: an object with the lists `images`, `categories` and `annotations`"
    if not isinstance(content, dict):
        raise ValueError(f"{source} is JSON but not COCO: {remedy}; got a {type(content).__name__}")
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key, [] if key == "annotations" else None), list):
            raise ValueError(f"{source} is JSON but not COCO: {remedy}; `{key}` is missing or no list, the keys are {sorted(content)}")
    for key, fields in (("images", {"id": int, "file_name": str}), ("categories", {"id": int, "name": str})):
        for place, entry in enumerate(content[key]):
            for field, kind in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                    raise ValueError(f"{source}: {key}[{place}]: expected `{field}` ({kind.__name__}), got {str(entry)[:120]}")
    if not all(isinstance(entry, dict) for entry in content.get("annotations", [])):
        raise ValueError(f"{source}: `annotations`: expected objects only")
    ids = [category["id"] for category in content["categories"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{source}: two categories have the same id; ids are {sorted(ids)[:20]}")


def _require_unique(source: str, image_ids: np.ndarray) -> None:
    repeated = image_ids[1:][image_ids[1:] == image_ids[:-1]]
    if len(repeated):
        raise ValueError(f"{source}: image id {repeated[0]} occurs more than once; every image needs an id of its own")


def _integer(source: str, annotation: dict, field: str) -> int:
    value = annotation.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(_at(source, annotation, f"`{field}`: expected an integer, got {value!r}"))


def _numbers(source: str, annotation: dict, field: str, count: int) -> list[float]:
    """Numbers of a field; null counts as not a number, which the check of boxes finds."""
    value = annotation.get(field)
    if isinstance(value, list) and len(value) == count:
        value = [math.nan if v is None else v for v in value]
        if all(isinstance(v, (int, float)) for v in value):
            return value
    raise ValueError(_at(source, annotation, f"`{field}`: expected {count} numbers, got {str(value)[:80]}"))
