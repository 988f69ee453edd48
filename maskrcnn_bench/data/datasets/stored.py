"""What COCO and VOC data sets have in common: photographs in a folder and annotations in an AnnotationStore."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from maskrcnn_bench.data.datasets.photo import read_photo
from maskrcnn_bench.data.faults import apply_policy, check_annotations, missing_masks
from maskrcnn_bench.data.image_cache import ImageCache
from maskrcnn_bench.data.store import NO_MASK, AnnotationStore
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints, PersonKeypoints, flip_map_from_names, keypoint_kind
from maskrcnn_bench.structures.mask_outline import FARTHEST
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

BACKGROUND = "__background__"
# maskrcnn-benchmark trains keypoints of persons on images with at least this many annotated points.
MIN_PERSON_POINTS = 10

logger = logging.getLogger("maskrcnn_bench.data")


class StoredDataset(Dataset):
    """Photographs of a folder with the annotations of a store.

    `dataset[i]` is (PIL image, BoxList, i); the BoxList is xyxy with `labels` (1..K-1) and, where annotated, `masks` and
    `keypoints`. Crowds are left out of it; the store keeps them for the evaluation.

    Args:
        store: all annotations.
        root: folder of the images.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        pixel: what a box's width adds to x2 - x1: 1 or 0.
        on_fault: "fix", "error" or "ignore" faulty annotations.
        on_exif: "auto", "rotate" or "ignore", as `read_photo` has it.
        classes: names of the classes to use, in this order; () takes all, by ascending category id.
        channels: of the images: 3 makes any picture RGB of 8 bits, another number takes them as they are stored.
        require_masks: an object without a mask is faulty where others have one.
        cache_bytes: what decoded images of all data sets may take on the disk; 0 keeps none.
    Raises:
        ValueError: when a class is unknown, the annotations are unusable, or no image is left.
    """

    def __init__(
        self,
        store: AnnotationStore,
        root: str,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        *,
        pixel: int = 1,
        on_fault: str = "fix",
        on_exif: str = "auto",
        classes: Sequence[str] = (),
        require_masks: bool = False,
        channels: int = 3,
        cache_bytes: float = 0,
    ):
        self.annotations = store
        self.root = os.fspath(root)
        self.transforms = transforms
        self.pixel = pixel
        self.on_exif, self.channels = on_exif, channels
        store.fill_sizes(self.root, on_exif)
        self.findings, faulty = check_annotations(store)
        if require_masks:
            findings, missing = missing_masks(store, faulty)
            self.findings, faulty = self.findings + findings, faulty | missing
        message = apply_policy(self.findings, on_fault, store.source)
        if message:
            logger.warning(message)
        self.faulty = faulty if on_fault == "fix" else np.zeros_like(faulty)
        self._name_classes(classes)
        self._require_sizes()
        self.usable = ~self.faulty & ~store.crowd & (self.labels > 0) & self._wanted()
        self.has_masks = bool((store.mask_kinds[self.usable] != NO_MASK).any())
        self._name_points()
        self.images = self._select(remove_images_without_annotations)
        self.image_cache = self._make_cache(cache_bytes) if cache_bytes and len(self) else None

    def _make_cache(self, cache_bytes: float) -> ImageCache:
        store = self.annotations
        names = [store.file_names[k] for k in self.images.tolist()]
        sizes = np.stack([store.widths, store.heights], axis=1)[self.images]
        dataset = f"{self.on_exif} {os.path.abspath(self.root)} {os.path.abspath(store.source)}"
        return ImageCache(dataset, names, sizes, self.channels, cache_bytes)

    def _wanted(self) -> np.ndarray:
        """Annotations a kind of data set trains on. [A] bool"""
        return np.ones(len(self.annotations.ids), dtype=bool)

    def _name_classes(self, classes: Sequence[str]) -> None:
        categories = self.annotations.categories
        names: dict[str, list[int]] = {}
        for category in categories:
            names.setdefault(category["name"], []).append(category["id"])
        self._require_names(classes, names)
        # Categories of one name are one class for those who ask for it by name; the first is what its label means outside.
        groups = [names[name] for name in classes] or [[category["id"]] for category in categories]
        by_id = {category["id"]: category["name"] for category in categories}
        self.json_category_id_to_contiguous_id = {json_id: k + 1 for k, ids in enumerate(groups) for json_id in ids}
        self.contiguous_category_id_to_json_id = {k + 1: ids[0] for k, ids in enumerate(groups)}
        self.categories = {k: by_id[json_id] for k, json_id in self.contiguous_category_id_to_json_id.items()}
        self.class_names = (BACKGROUND, *self.categories.values())
        table = np.array(sorted(self.json_category_id_to_contiguous_id.items()), dtype=np.int64).reshape(-1, 2)
        place = np.searchsorted(table[:, 0], self.annotations.category_ids).clip(max=max(len(table) - 1, 0))
        known = table[place, 0] == self.annotations.category_ids if len(table) else np.zeros(len(place), dtype=bool)
        self.labels = np.where(known, table[place, 1], 0) if len(table) else np.zeros(len(place), dtype=np.int64)

    def _require_names(self, classes: Sequence[str], names: Collection[str]) -> None:
        repeated = next((name for name in classes if list(classes).count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"DATASETS.CLASSES: expected each class once, got {tuple(classes)}; leave out one {repeated!r}")
        unknown = [name for name in classes if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"DATASETS.CLASSES: no class {unknown[0]!r} in {self.annotations.source}.{hint} It has: {', '.join(names)}.")

    def _require_sizes(self) -> None:
        store = self.annotations
        for i in np.flatnonzero((store.widths <= 0) | (store.heights <= 0)).tolist():
            path = os.path.join(self.root, store.file_names[i])
            why = "cannot be read" if os.path.isfile(path) else "does not exist"
            raise FileNotFoundError(f"{path} {why}, and the annotations of image {store.image_label(i)} do not say its size")

    def _name_points(self) -> None:
        """Sets `keypoint_kind`: no points, with the names, pairs and lines that a category gives; None without keypoints."""
        self.keypoint_kind = None
        if self.annotations.keypoints is None:
            return
        mine = [c for c in self.annotations.categories if c["name"] in self.class_names]
        count = self.annotations.keypoints.shape[1] // 3
        names = next((c["keypoints"] for c in mine if "keypoints" in c), ())
        if names and (len(names) != count or len(set(names)) != count):
            logger.warning("%s: %d keypoints need as many different names, not %s; they get numbers", self.annotations.source, count, names)
            names = ()
        pairs = next((c["flip_pairs"] for c in mine if "flip_pairs" in c), None)
        flips = [*flip_map_from_names(names).items()] if pairs is None or not names else self._read_flips(pairs, names)
        self.keypoint_kind = keypoint_kind(
            count, names, flips, _read_lines(next((c["skeleton"] for c in mine if "skeleton" in c), ()), names)
        )

    def _read_flips(self, pairs: Any, names: Sequence[str]) -> list[list[str]]:
        """Keypoints that change places in a mirror, from a category's `flip_pairs`, where names do not say left and right."""
        if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 and set(names).issuperset(p) for p in pairs):
            what = f"`flip_pairs` of a category: expected pairs of names such as {[list(names[:2])]}, got {pairs!r}"
            raise ValueError(f"{self.annotations.source}: {what}; its keypoints are {', '.join(names)}")
        return pairs

    def _select(self, remove_empty: bool) -> np.ndarray:
        """Positions in the store of the images to use. [len(self)] int64"""
        store = self.annotations
        everything = np.arange(len(store))
        if not remove_empty:
            return everything
        wide = self.usable & (store.boxes[:, 2:] > 1).all(axis=1)
        kept = np.bincount(store.annotation_images[wide], minlength=len(store)) > 0
        if store.keypoints is not None:
            least = MIN_PERSON_POINTS if isinstance(self.keypoint_kind, PersonKeypoints) else 1
            points = (store.keypoints[:, 2::3] > 0).sum(axis=1) * self.usable
            kept &= np.bincount(store.annotation_images, weights=points, minlength=len(store)) >= least
        if not kept.any():
            raise ValueError(self._nothing_left())
        logger.info("%s: %d of %d images have objects to train on", store.source, kept.sum(), len(store))
        return everything[kept]

    def _nothing_left(self) -> str:
        store, left = self.annotations, np.ones(len(self.annotations.ids), dtype=bool)
        counts = [f"{len(store)} images, {len(store.ids)} annotations"]
        reasons = {"crowd": store.crowd, "faulty": self.faulty, "of other classes": self.labels == 0, "not wanted": ~self._wanted()}
        for reason, out in reasons.items():
            counts.append(f"{int((left & out).sum())} {reason}")
            left &= ~out
        names = ", ".join(category["name"] for category in store.categories)
        return f"{store.source}: no image with a usable object to train on ({'; '.join(counts)}). Its classes: {names}."

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Image.Image, BoxList, int]:
        image, target = self.read_image(i), self.get_groundtruth(i)
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target, i

    def image_path(self, i: int) -> str:
        return os.path.join(self.root, self.annotations.file_names[self.images[i]])

    def read_image(self, i: int) -> Any:
        """The photograph in the frame of its annotations: an RGB image, or a ChannelImage where `channels` is not 3."""
        info = self.get_img_info(i)
        what = f"image id {info['id']} of {self.annotations.source_of(self.images[i])}"
        path, size = self.image_path(i), (info["width"], info["height"])
        if self.image_cache is None:
            return read_photo(path, what, size, self.on_exif, self.channels)
        return self.image_cache.get(i, path, lambda: read_photo(path, what, size, self.on_exif, self.channels))

    def get_img_info(self, i: int) -> dict[str, Any]:
        """Height and width (pixels), file name and id of an image, without opening it."""
        store, k = self.annotations, self.images[i]
        return {
            "height": int(store.heights[k]),
            "width": int(store.widths[k]),
            "file_name": store.file_names[k],
            "id": int(store.image_ids[k]),
        }

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Height over width of every image. [len(self)]"""
        return self.annotations.heights[self.images] / self.annotations.widths[self.images]

    @property
    def id_to_img_map(self) -> dict[int, int]:
        """Image id of the file for each index."""
        return dict(enumerate(self.annotations.image_ids[self.images].tolist()))

    def image_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (as index of the data set) and the label of every object that is trained on. [n], [n] int64"""
        place = np.full(len(self.annotations), -1)
        place[self.images] = np.arange(len(self))
        owners = place[self.annotations.annotation_images]
        kept = self.usable & (owners >= 0)
        return owners[kept], self.labels[kept]

    def rows(self, i: int) -> np.ndarray:
        """Annotations an image is trained on, as places in the store."""
        first, last = self.annotations.offsets[self.images[i] : self.images[i] + 2]
        return first + np.flatnonzero(self.usable[first:last])

    def get_groundtruth(self, i: int) -> BoxList:
        """The objects of an image, clipped to it, without those that are empty then."""
        store, rows = self.annotations, self.rows(i)
        info = self.get_img_info(i)
        size = (info["width"], info["height"])
        target = BoxList(torch.from_numpy(store.boxes[rows].astype(np.float32)), size, "xywh", self.pixel).convert("xyxy")
        target.add_field("labels", torch.from_numpy(self.labels[rows]))
        if self.has_masks:
            target.add_field("masks", SegmentationMask([self._mask(row) for row in rows.tolist()], size))
        if store.keypoints is not None:
            target.add_field("keypoints", self._points(rows, size))
        self._add_fields(target, rows)
        return target.clip_to_image(remove_empty=True)

    def _add_fields(self, target: BoxList, rows: np.ndarray) -> None:
        """Fields that only one kind of data set has."""

    def _mask(self, row: int) -> Any:
        mask = self.annotations.segmentation(row)
        if isinstance(mask, dict):
            return mask
        return [ring for ring in mask if len(ring) >= 6 and len(ring) % 2 == 0 and (np.abs(ring) < FARTHEST).all()]

    def _points(self, rows: np.ndarray, size: tuple[int, int]) -> Keypoints:
        points = torch.from_numpy(self.annotations.keypoints[rows].astype(np.float32))
        return self.keypoint_kind.like(points, size)

    def coco_json(self) -> dict:
        """All sound annotations as COCO has them, crowds and every image of the file included, for evaluators."""
        return self.annotations.coco_dict(~self.faulty)


def _read_lines(skeleton: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that a category's `skeleton` joins: pairs of places, counted from 1. Others, which pictures can do without, are left out."""
    places = range(1, len(names) + 1)
    pairs = [pair for pair in skeleton if len(pair) == 2 and all(place in places for place in pair)] if isinstance(skeleton, list) else []
    return [(names[a - 1], names[b - 1]) for a, b in pairs]
