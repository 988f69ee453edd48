"""Copy-paste: objects of another training image, cut out by their masks, over an image. (Ghiasi et al. 2021, Simple Copy-Paste.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_bench.data.crops import box_of_bitmap
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import Bitmap, Polygons, SegmentationMask, tight
from maskrcnn_bench.utils.counter import CounterRandom

HIDDEN, VISIBLE = 1, 2


class CopyPaste:
    """Pastes about half of the objects of another image where they stand there, both images beginning at the same corner.

    What is covered leaves the masks and boxes beneath, and objects of which nothing is left go; covered keypoints become hidden ones.

    Args:
        prob: share of the images that get objects.
    """

    def __init__(self, prob: float):
        if not 0 <= prob <= 1:
            raise ValueError(f"INPUT.COPY_PASTE: expected a probability from 0 to 1, got {prob}")
        self.prob = prob

    def partner(self, count: int, random: CounterRandom) -> int | None:
        """Which of `count` images gives objects to this one; None for none."""
        return random.randint("paste_image", count) if random.uniform("paste") < self.prob else None

    def __call__(
        self, image: Tensor, target: BoxList, other: Tensor, other_target: BoxList, random: CounterRandom
    ) -> tuple[Tensor, BoxList]:
        """The image and its target with objects of the other one. image, other: [C, H, W] of one dtype

        Raises:
            ValueError: when a target has no masks.
        """
        for boxes in (target, other_target):
            if not boxes.has_field("masks"):
                raise ValueError("INPUT.COPY_PASTE cuts objects out by their masks, but the data has none; set it 0")
        picked = [k for k in range(len(other_target)) if random.uniform("paste_object", k) < 0.5]
        pasted = _moved(other_target[picked], target)
        covered = np.zeros(image.shape[1:], dtype=bool)
        for bitmap in pasted.get_field("masks").instances:
            _part(covered, bitmap)[...] |= bitmap.pixels.astype(bool)
        height, width = min(image.shape[1], other.shape[1]), min(image.shape[2], other.shape[2])
        image = image.clone()
        inside = torch.from_numpy(covered[:height, :width])
        image[:, :height, :width] = torch.where(inside, other[:, :height, :width], image[:, :height, :width])
        return image, _joined(_beneath(target, covered), pasted)


def _moved(objects: BoxList, target: BoxList) -> BoxList:
    """Objects of another image in the frame of `target`, as bitmaps, with the boxes of what is inside."""
    width, height = target.size
    bitmaps = [item.to_bitmap(objects.size).crop((0, 0, width, height)) for item in objects.get_field("masks").instances]
    moved = objects.convert("xyxy").crop((0, 0, width, height))
    _set_masks(moved, bitmaps, target)
    kept = [k for k, bitmap in enumerate(bitmaps) if bitmap.pixels.size]
    moved = moved[kept]
    moved.bbox = torch.tensor([box_of_bitmap(bitmaps[k], target.pixel) for k in kept]).reshape(-1, 4)
    return moved


def _beneath(target: BoxList, covered: np.ndarray) -> BoxList:
    """The target without what is covered. covered: [H, W] bool"""
    out = target.convert("xyxy")[torch.arange(len(target))]
    items: list[Bitmap | Polygons] = list(out.get_field("masks").instances)
    kept = []
    for k, item in enumerate(items):
        bitmap = item.to_bitmap(out.size).crop((0, 0, *out.size))
        hidden = _part(covered, bitmap) & bitmap.pixels.astype(bool)
        if hidden.any():
            items[k] = bitmap = tight(bitmap.pixels * ~hidden, bitmap.x0, bitmap.y0)
            if not bitmap.pixels.size:
                continue
            out.bbox[k] = torch.tensor(box_of_bitmap(bitmap, out.pixel))
        kept.append(k)
    _set_masks(out, items, target)
    if out.has_field("keypoints"):
        out.add_field("keypoints", _hide(out.get_field("keypoints"), covered))
    return out[kept]


def _set_masks(boxes: BoxList, items: list, like: BoxList) -> None:
    boxes.add_field("masks", SegmentationMask(items, like.size, like.get_field("masks").mode))


def _part(canvas: np.ndarray, bitmap: Bitmap) -> np.ndarray:
    """The part of an image's pixels that a bitmap inside it takes."""
    height, width = bitmap.pixels.shape
    return canvas[bitmap.y0 : bitmap.y0 + height, bitmap.x0 : bitmap.x0 + width]


def _hide(points: Keypoints, covered: np.ndarray) -> Keypoints:
    """Visible points that are covered count as annotated but hidden."""
    out = points[torch.arange(len(points))]
    height, width = covered.shape
    x, y = out.keypoints[..., 0].floor().long().clamp(0, width - 1), out.keypoints[..., 1].floor().long().clamp(0, height - 1)
    hidden = torch.from_numpy(covered)[y, x] & (out.keypoints[..., 2] == VISIBLE)
    out.keypoints[..., 2] = torch.where(hidden, float(HIDDEN), out.keypoints[..., 2])
    return out


def _joined(first: BoxList, second: BoxList) -> BoxList:
    """The objects of both; what is no field of the objects comes from the first."""
    out = BoxList(torch.cat([first.bbox, second.bbox]), first.size, "xyxy", first.pixel)
    for name, value in first.extra_fields.items():
        other = second.extra_fields.get(name)
        out.add_field(name, value if other is None else _joined_field(value, other, (len(first), len(second))))
    return out


def _joined_field(value: Any, other: Any, counts: tuple[int, int]) -> Any:
    if isinstance(value, SegmentationMask):
        return SegmentationMask([*value.instances, *other.instances], value.size, value.mode)
    if isinstance(value, Keypoints):
        return value.like(torch.cat([value.keypoints, other.keypoints]))
    if isinstance(value, Tensor):
        return torch.cat([value, other])
    if isinstance(value, list) and (len(value), len(other)) == counts:
        return value + other
    return value
