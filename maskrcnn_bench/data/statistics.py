"""Counts of a data set, and how well anchors of given sizes cover its objects, as text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from maskrcnn_bench.data.datasets.channels import read_channels
from maskrcnn_bench.data.datasets.photo import UNREADABLE
from maskrcnn_bench.data.store import AnnotationStore

COVERED_IOU = 0.5
# COCO's limits of small and medium objects, square roots of areas, pixels of the original image.
SIDES = {"small": (0, 32), "medium": (32, 96), "large": (96, math.inf)}
CLASSES_LISTED = 5
# As many images tell the mean and deviation of the pixels.
IMAGES_LOOKED_AT = 200
# As many boxes tell which anchors fit, and a share of the objects that much larger is worth other ones.
BOXES_LOOKED_AT, WORTH_A_CHANGE = 2000, 0.01


def statistics(store: AnnotationStore) -> list[str]:
    """Counts of a data set as lines of text: images, objects, sizes, classes."""
    per_image = np.diff(store.offsets)
    lines = [
        f"{store.source}",
        f"  images       {len(store)}, {int((per_image == 0).sum())} without objects",
        f"  image sizes  {_spread(store.widths)} wide; {_spread(store.heights)} high (pixels)",
        f"  annotations  {len(store.ids)}, {int(store.crowd.sum())} of them crowds; {_spread(per_image)} an image",
        f"  box sides    {_spread(_sides(store))} (square root of the area, pixels)",
    ]
    counts = {c["id"]: int((store.category_ids == c["id"]).sum()) for c in store.categories}
    widest, most = max((len(c["name"]) for c in store.categories), default=0), max(counts.values(), default=0)
    absent = [c["name"] for c in store.categories if not counts[c["id"]]]
    shown = [c for c in store.categories if counts[c["id"]] or len(absent) <= CLASSES_LISTED]
    for category in sorted(shown, key=lambda c: -counts[c["id"]]):
        count = counts[category["id"]]
        lines.append(f"  {category['name']:{widest}}  {count:7d} {'#' * round(40 * count / max(most, 1))}")
    if len(absent) > CLASSES_LISTED:
        lines.append(f"  {len(absent)} classes without objects: {', '.join(absent[:CLASSES_LISTED])}, ...")
    return lines


def pixels(store: AnnotationStore, root: str) -> list[str]:
    """Mean and deviation of every channel as the keys of the configuration, from images that are evenly picked; nothing without images."""
    sums: dict[tuple[int, str], list[np.ndarray]] = {}
    for image in np.unique(np.linspace(0, len(store) - 1, min(len(store), IMAGES_LOOKED_AT)).round().astype(int)).tolist():
        with suppress(*UNREADABLE):
            found = read_channels(os.path.join(root, store.file_names[image]), "image", None).pixels
            values = found.reshape(-1, found.shape[2]).astype(np.float64)
            part = np.stack([np.full(len(values[0]), len(values)), values.sum(axis=0), (values**2).sum(axis=0)])
            sums.setdefault((found.shape[2], str(found.dtype)), []).append(part)
    if not sums:
        return []
    (channels, kind), parts = max(sums.items(), key=lambda item: len(item[1]))
    count, total, squares = np.sum(parts, axis=0)
    scale = 255 if (channels, kind) == (3, "uint8") else 1
    mean, std = total / count / scale, np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0)) / scale
    order = "INPUT.TO_BGR255 False" if channels == 3 else f"INPUT.CHANNELS {channels}"
    lists = [f"'[{', '.join(f'{v:.6g}' for v in values)}]'" for values in (mean, std)]
    looked = sum(map(len, sums.values()))
    return [
        f"  pixels       {channels} channels of {kind} in {len(parts)} of {looked} images that were opened:",
        f"    {order} INPUT.PIXEL_MEAN {lists[0]} INPUT.PIXEL_STD {lists[1]}",
    ]


def _spread(values: np.ndarray) -> str:
    if len(values) == 0:
        return "none"
    low, middle, high = np.nanmin(values), np.nanmedian(values), np.nanmax(values)
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"


def _sides(store: AnnotationStore) -> np.ndarray:
    return np.sqrt(np.clip(store.boxes[:, 2:].prod(axis=1), 0, None))


@dataclass(frozen=True)
class Anchors:
    """Anchors as the RPN has them, and the size that images are resized to. All lengths are pixels of the resized image.

    Attributes:
        sizes: square roots of their areas.
        strides: distance of neighbours: one value for each of `sizes`, or one for all of them.
        aspect_ratios: height divided by width; every size comes in each of them.
        min_size, max_size: length of an image's shorter side, and limit of its longer one.
    """

    sizes: Sequence[float] = (32, 64, 128, 256, 512)
    strides: Sequence[float] = (4, 8, 16, 32, 64)
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    min_size: float = 800
    max_size: float = 1333

    def shapes(self) -> list[tuple[float, float, float]]:
        """Width, height and stride of each kind of anchor."""
        if len(self.strides) not in (1, len(self.sizes)):
            raise ValueError(f"anchors: expected 1 or {len(self.sizes)} strides, as many as sizes, got {len(self.strides)}")
        strides = list(self.strides) * (len(self.sizes) if len(self.strides) == 1 else 1)
        pairs = [(size, stride, math.sqrt(ratio)) for size, stride in zip(self.sizes, strides) for ratio in self.aspect_ratios]
        return [(size / root, size * root, stride) for size, stride, root in pairs]


def best_anchor_iou(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, anchors: Anchors) -> np.ndarray:
    """The largest IoU of each box with an anchor; anchors stand in the middle of their cells.

    Args:
        boxes: x, y, width, height, pixels of the original image. [n, 4]
        widths, heights: of the original image of each box, pixels. [n]
    Returns:
        [n] float64
    """
    scale = np.minimum(anchors.min_size / np.minimum(widths, heights), anchors.max_size / np.maximum(widths, heights))
    x, y, w, h = (boxes * scale[:, None]).T
    best = np.zeros(len(boxes))
    for width, height, stride in anchors.shapes():
        # The nearest anchor of a shape is the best one, because overlap shrinks with the distance along either axis.
        shared = _overlap(x, w, widths * scale, width, stride) * _overlap(y, h, heights * scale, height, stride)
        best = np.maximum(best, shared / (w * h + width * height - shared))
    return best


def _overlap(start: np.ndarray, length: np.ndarray, extent: np.ndarray, side: float, stride: float) -> np.ndarray:
    """How much of `length` the nearest anchor covers along one axis, pixels. [n]"""
    centre = start + length / 2
    cell = np.floor(centre / stride).clip(0, np.maximum(np.ceil(extent / stride) - 1, 0))
    distance = np.abs(centre - (cell + 0.5) * stride)
    return np.minimum((length + side) / 2 - distance, np.minimum(length, side)).clip(0)


def coverage(store: AnnotationStore, anchors: Anchors) -> list[str]:
    """Which share of the objects has an anchor of IoU 0.5 or more: in all, by size, and the classes that fare worst."""
    rows, boxes, widths, heights = _anchored(store)
    covered = best_anchor_iou(boxes, widths, heights, anchors) >= COVERED_IOU
    sides, classes = _sides(store)[rows], store.category_ids[rows]
    by_size = [(name, covered[(sides >= low) & (sides < high)]) for name, (low, high) in SIDES.items()]
    by_class = [(category["name"], covered[classes == category["id"]]) for category in store.categories]
    worst = sorted((pair for pair in by_class if len(pair[1])), key=lambda pair: pair[1].mean())[:CLASSES_LISTED]
    return [
        f"  anchors of {', '.join(f'{size:g}' for size in anchors.sizes)} cover {_share(covered)} (IoU {COVERED_IOU} or more)",
        f"    by size    {'; '.join(f'{name} {_share(part)}' for name, part in by_size)}",
        f"    worst      {'; '.join(f'{name} {_share(part)}' for name, part in worst)}",
    ]


def _anchored(store: AnnotationStore) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Objects that anchors should cover: places in the store, boxes (x, y, width, height), widths and heights of their images, pixels."""
    images = store.annotation_images
    sound = np.isfinite(store.boxes).all(axis=1) & (store.boxes[:, 2:] > 0).all(axis=1)
    rows = np.flatnonzero(sound & ~store.crowd & (store.widths[images] > 0))
    return rows, store.boxes[rows], store.widths[images[rows]], store.heights[images[rows]]


def suggestion(store: AnnotationStore, anchors: Anchors) -> list[str]:
    """As many sizes and aspect ratios as `anchors` has, with which they would cover more objects, as keys of the configuration."""
    rows, *objects = _anchored(store)
    if not len(rows):
        return []
    objects = [values[:: math.ceil(len(rows) / BOXES_LOOKED_AT)] for values in objects]
    better = fit_anchors(*objects, anchors)
    before, after = ((best_anchor_iou(*objects, one) >= COVERED_IOU).mean() for one in (anchors, better))
    if after - before < WORTH_A_CHANGE:
        return ["    suggested  these: others of their number cover hardly more"]
    sizes, ratios = (f"'[{', '.join(f'{value:g}' for value in values)}]'" for values in (better.sizes, better.aspect_ratios))
    return [f"    suggested  MODEL.RPN.ANCHOR_SIZES {sizes} MODEL.RPN.ASPECT_RATIOS {ratios} cover {after:.1%}"]


def fit_anchors(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, anchors: Anchors) -> Anchors:
    """Anchors of the same number that cover more of the boxes; arguments as `best_anchor_iou` takes them.

    Begins with what the boxes have most, then tries each value larger and smaller, as long as it helps.
    """
    scale = np.minimum(anchors.min_size / np.minimum(widths, heights), anchors.max_size / np.maximum(widths, heights))
    sides, tall = np.log(np.sqrt(boxes[:, 2] * boxes[:, 3]) * scale), np.log(boxes[:, 3] / boxes[:, 2])
    starts = [
        np.exp(np.quantile(of, (np.arange(n) + 0.5) / n)) for of, n in ((sides, len(anchors.sizes)), (tall, len(anchors.aspect_ratios)))
    ]
    split = len(anchors.sizes)

    def made(values: np.ndarray) -> Anchors:
        sizes, ratios = np.maximum(np.rint(np.sort(values[:split])), 1), np.maximum(np.round(np.sort(values[split:]), 2), 0.01)
        return replace(anchors, sizes=tuple(sizes.tolist()), aspect_ratios=tuple(ratios.tolist()))

    def fit(values: np.ndarray) -> float:
        ious = best_anchor_iou(boxes, widths, heights, made(values))
        return (ious >= COVERED_IOU).mean() + 0.1 * ious.mean()

    best = max((np.concatenate(starts), np.array([*anchors.sizes, *anchors.aspect_ratios], dtype=float)), key=fit)
    for step in (1.6, 1.3, 1.1):
        for k in range(len(best)):
            tried = [best * np.where(np.arange(len(best)) == k, factor, 1.0) for factor in (1.0, step, 1 / step)]
            best = max(tried, key=fit)
    return made(best)


def _share(covered: np.ndarray) -> str:
    return f"{covered.mean():.1%} of {len(covered)}" if len(covered) else "none of 0"
