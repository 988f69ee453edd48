"""AnnotationStore: the annotations of a whole data set in a few flat arrays.

Python objects are copied into every loading process as soon as their reference counts move; arrays are not. So nothing
here stays a dict or a list after reading: I images and A annotations become numpy arrays with offsets, sorted by image.
Boxes, areas and polygons keep double precision, so that an evaluation sees exactly what the file said.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_bench.data.coco_form import Fault, Form, image_words, numbers
from maskrcnn_bench.data.datasets.photo import UNREADABLE, photo_size

NO_MASK, POLYGONS, RLE_TEXT, RLE_RUNS = range(4)


def map_array(path: Path) -> np.ndarray:
    """An array that stays in its .npy file; it cannot be written."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class Strings:
    """Many strings as one array of bytes."""

    def __init__(self, strings: Iterable[str]):
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._offsets = np.cumsum([0] + [len(s) for s in encoded], dtype=np.int64)

    @classmethod
    def of_arrays(cls, text: np.ndarray, offsets: np.ndarray) -> Strings:
        """What `arrays` gave."""
        out = cls.__new__(cls)
        out._bytes, out._offsets = text, offsets
        return out

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All bytes, and where each string begins in them. [b] uint8, [n + 1] int64"""
        return self._bytes, self._offsets

    def __getitem__(self, i: int) -> str:
        return self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._offsets) - 1


class AnnotationStore:
    """Images, categories and annotations of one COCO file (or of anything brought into that form).

    Args:
        source: the file, for messages.
        content: a COCO dict with `images`, `categories` and, where known, `annotations`. Its annotations are emptied
            while they are read, to save memory.
        empty_extent: a box counts as empty when its width or height is no more than this, pixels.
        sources: for images that have an annotation file of their own: this file, by image id.
        faults: what a reader met before, as tuples of the fields of `faults.Finding`.
        corners_from: number of the first pixel of a row where the files name a box by its first and last pixel (VOC), for
            messages; None where they give x, y, width, height.

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
        reader_faults: what is wrong with the form of the files, so that some entries were left out.
        checked: what `faults.check_annotations` found, once it looked; None before.

    Raises:
        ValueError: when the content is not COCO at all, naming the file.
    """

    ARRAYS = (
        *("image_ids", "widths", "heights", "offsets", "ids", "category_ids", "boxes", "areas", "crowd", "num_keypoints", "orphans"),
        *("repeated", "mask_kinds", "coordinates", "ring_offsets", "object_offsets", "rle_bytes", "rle_offsets", "rle_sizes"),
    )
    STRINGS = ("file_names", "sources")

    def __init__(
        self,
        source: str,
        content: Any,
        empty_extent: float = 0.0,
        sources: Mapping[int, str] | None = None,
        faults: Sequence[Fault] = (),
        corners_from: int | None = None,
    ):
        self.source = source
        self.empty_extent = empty_extent
        self.corners_from = corners_from
        self.checked: tuple[list, np.ndarray] | None = None
        self._entry, self._mapped = "", {}
        form = Form(source, content)
        self.image_ids = np.array([image["id"] for image in form.images], dtype=np.int64)
        self.widths = np.array([image.get("width") or 0 for image in form.images], dtype=np.int64)
        self.heights = np.array([image.get("height") or 0 for image in form.images], dtype=np.int64)
        self.file_names = Strings(image["file_name"] for image in form.images)
        self.sources = Strings((sources or {}).get(image["id"], "") for image in form.images)
        self.categories: list[dict] = form.categories
        content.pop("annotations", None)
        order = self._sort(form.annotations)
        self._read(form, order)
        self.reader_faults: list[Fault] = [*faults, *form.faults]

    def _sort(self, annotations: Sequence[dict]) -> np.ndarray:
        """Positions in the file by image, then as they stand; notes what belongs to no image or repeats an id."""
        image_ids = np.array([a["image_id"] for a in annotations], dtype=np.int64)
        ids = np.array([a.get("id", k + 1) for k, a in enumerate(annotations)], dtype=np.int64)
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

    def _read(self, form: Form, order: np.ndarray) -> None:
        annotations, count = form.annotations, len(order)
        self.category_ids = np.zeros(count, dtype=np.int64)
        self.boxes, self.areas = np.zeros((count, 4)), np.zeros(count)
        self.crowd = np.zeros(count, dtype=bool)
        self.num_keypoints = np.full(count, -1, dtype=np.int64)
        masks, points = _MaskReader(count), _PointReader()
        for row, place in enumerate(order.tolist()):
            annotation = annotations[place]
            self.category_ids[row] = annotation["category_id"]
            self.boxes[row] = numbers(annotation["bbox"])
            area = annotation.get("area")
            self.areas[row] = area if isinstance(area, (int, float)) else self.boxes[row, 2] * self.boxes[row, 3]
            self.crowd[row] = bool(annotation.get("iscrowd"))
            self.num_keypoints[row] = points.count(annotation)
            for reason in (masks.add(row, annotation.get("segmentation")), points.add(row, annotation)):
                if reason:
                    form.add(image_words(annotation), int(self.ids[row]), reason)
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
        store = cls(str(path), content)
        store._note_missing_sizes()
        return store

    def fill_sizes(self, root: str, on_exif: str = "auto") -> None:
        """Takes sizes that the annotations do not give from the images in a folder, as far as these can be read.

        `on_exif` is what `read_photo` has under this name.
        """
        missing = np.flatnonzero((self.widths <= 0) | (self.heights <= 0)).tolist()
        if not missing:
            return
        self.widths, self.heights, self.checked = self.widths.copy(), self.heights.copy(), None
        for i in missing:
            with suppress(*UNREADABLE):
                self.widths[i], self.heights[i] = photo_size(os.path.join(root, self.file_names[i]), on_exif)

    def _note_missing_sizes(self) -> None:
        missing = np.flatnonzero((self.widths <= 0) | (self.heights <= 0))
        if len(missing):
            reason = f"`width` or `height` is missing or 0, for {len(missing)} of {len(self)} images: the image files are asked instead"
            self.reader_faults.append(("note", self.source, self.image_label(missing[0]), None, reason))

    @classmethod
    def of_entry(cls, source: str, folder: str | os.PathLike, categories: list[dict]) -> AnnotationStore:
        """A store whose arrays stay in the .npy files of a folder, as `arrays` named them, until they are looked at."""
        store = cls.__new__(cls)
        store.source, store.categories = source, categories
        store.empty_extent, store.corners_from, store.reader_faults, store.checked = 0.0, None, [], None
        store._attach(os.fspath(folder))
        return store

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        arrays = {name: getattr(self, name) for name in self.ARRAYS}
        for name in self.STRINGS:
            arrays[f"{name}.text"], arrays[f"{name}.offsets"] = getattr(self, name).arrays()
        return arrays if self.keypoints is None else arrays | {"keypoints": self.keypoints}

    def _attach(self, folder: str) -> None:
        arrays = {path.stem: map_array(path) for path in Path(folder).glob("*.npy")}
        self._mapped: dict[str, Any] = {name: arrays[name] for name in self.ARRAYS} | {"keypoints": arrays.get("keypoints")}
        for name in self.STRINGS:
            self._mapped[name] = Strings.of_arrays(arrays[f"{name}.text"], arrays[f"{name}.offsets"])
        self._entry = folder
        self.__dict__.update(self._mapped)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: another process maps it again instead of being sent a copy."""
        mapped = self._mapped
        return {k: v for k, v in self.__dict__.items() if k != "_mapped" and not (k in mapped and mapped[k] is v)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._mapped = {}
        if state["_entry"]:
            self._attach(state["_entry"])
        self.__dict__.update(state)

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

    def __init__(self, count: int):
        self.kinds = np.zeros(count, dtype=np.uint8)
        self.sizes = np.zeros((count, 2), dtype=np.int64)
        self.coordinates, self.rings, self.objects = array("d"), array("q", [0]), array("q", [0])
        self.rle_bytes, self.rle_ends = bytearray(), array("q", [0])

    def add(self, row: int, mask: Any) -> str:
        """Takes the mask of the next annotation; what is wrong with it, or ""."""
        before = len(self.rings)
        reason = ""
        try:
            if isinstance(mask, dict):
                self._add_rle(row, mask)
            elif isinstance(mask, list) and mask:
                self._add_polygons(row, mask)
            elif mask not in (None, [], ""):
                raise TypeError(f"got {type(mask).__name__}")
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            reason = f"`segmentation`: expected a list of polygons, or an RLE with `size` and `counts` ({error})"
            self.kinds[row] = NO_MASK
            del self.rings[before:]
            del self.coordinates[self.rings[-1] :]
        self.objects.append(len(self.rings) - 1)
        self.rle_ends.append(len(self.rle_bytes))
        return reason

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

    def __init__(self) -> None:
        self.rows: list[tuple[int, np.ndarray]] = []

    @staticmethod
    def count(annotation: dict) -> int:
        """The number of annotated points, -1 when the annotation has no keypoints."""
        if not annotation.get("keypoints"):
            return -1
        counted = annotation.get("num_keypoints")
        return counted if isinstance(counted, int) else sum(bool(v) for v in annotation["keypoints"][2::3])

    def add(self, row: int, annotation: dict) -> str:
        """Takes the points of an annotation; what is wrong with them, or ""."""
        if not annotation.get("keypoints"):
            return ""
        points = np.array(numbers(annotation["keypoints"]))
        expected = len(self.rows[0][1]) if self.rows else len(points)
        if len(points) != expected:
            return f"`keypoints`: expected {expected // 3} points as the others have, got {len(points) // 3}"
        self.rows.append((row, points))
        return ""

    def array(self, count: int) -> np.ndarray | None:
        if not self.rows:
            return None
        out = np.zeros((count, len(self.rows[0][1])))
        for row, points in self.rows:
            out[row] = points
        return out
