"""Transforms that cut a part out of an image: a limit for its aspect ratio, and large-scale jitter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image

from maskrcnn_bench.data.transforms import resize_antialiased
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.segmentation_mask import Bitmap
from maskrcnn_bench.utils.counter import CounterRandom


class CropToAspectRatio:
    """Shorten the longer side of an image that is too wide or too high; the place of the cut is drawn so that objects stay.

    Where all objects fit into the part, all are in it. Else it begins in the first half of what the objects reach beyond it, as in
    faster-rcnn.pytorch; objects outside the part leave, and what sticks out of it is cut off.

    Args:
        lowest, highest: allowed width divided by height.
    """

    def __init__(self, lowest: float, highest: float):
        if not 0 < lowest <= highest:
            raise ValueError(f"aspect ratios: expected 0 < lowest <= highest (width / height), got {(lowest, highest)}")
        self.lowest, self.highest = lowest, highest

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        width, height = image.size
        if self.lowest <= width / height <= self.highest:
            return image, target
        axis = 0 if width / height > self.highest else 1
        length = max(math.floor(height * self.highest if axis == 0 else width / self.lowest), 1)
        low, high = _window_starts(target, axis, image.size[axis], min(length, image.size[axis]))
        start = low + (random.randint("aspect_crop", high - low + 1) if random else 0)
        box = (start, 0, start + length, height) if axis == 0 else (0, start, width, start + length)
        return crop(image, target, box)


def _window_starts(target: BoxList | None, axis: int, extent: int, length: int) -> tuple[int, int]:
    """First and last place where a window of `length` may begin on a side of `extent`, pixels."""
    if target is None or not len(target):
        return 0, extent - length
    boxes = target.convert("xyxy").bbox
    first = max(math.floor(float(boxes[:, axis].min())), 0)
    end = min(math.ceil(float(boxes[:, axis + 2].max()) + target.pixel), extent)
    if end - first <= length:
        return max(end - length, 0), min(first, extent - length)
    return first, first + max((end - first - length) // 2 - 1, 0)


def crop(image: Image.Image, target: BoxList | None, box: tuple[int, int, int, int]) -> tuple[Image.Image, BoxList | None]:
    """The part `box` (xyxy, pixels) of an image, and the objects that reach into it."""
    return image.crop(box), None if target is None else _tightened(target.convert("xyxy"), box).clip_to_image(remove_empty=True)


def _tightened(target: BoxList, box: tuple[int, int, int, int]) -> BoxList:
    """The objects in the part `box`; where it cuts one that has a mask, its box is that of what is left of the mask."""
    cut = target.crop(box)
    if not target.has_field("masks"):
        return cut
    x1, y1, x2, y2 = target.bbox.unbind(dim=1)
    reaches_out = (x1 < box[0]) | (y1 < box[1]) | (x2 + target.pixel > box[2]) | (y2 + target.pixel > box[3])
    for k in torch.nonzero(reaches_out).flatten().tolist():
        drawn = target.get_field("masks").instances[k].to_bitmap(target.size)
        if drawn.pixels.size:
            # Without any pixel left the box is empty, and the object goes.
            cut.bbox[k] = torch.tensor(box_of_bitmap(drawn.crop(box), target.pixel))
    return cut


def box_of_bitmap(bitmap: Bitmap, pixel: int) -> list[float]:
    """The box (xyxy, pixels) around a bitmap by a pixel rule; zeros around none."""
    height, width = bitmap.pixels.shape
    if not bitmap.pixels.size:
        return [0.0] * 4
    return [float(v) for v in (bitmap.x0, bitmap.y0, bitmap.x0 + width - pixel, bitmap.y0 + height - pixel)]


class ScaleJitter:
    """Large-scale jitter: scale an image by a factor that is drawn, and keep a part that is drawn of what becomes too large.

    The image first fits a square; the factor is one of that size. (Ghiasi et al. 2021, Simple Copy-Paste.)

    Args:
        low, high: the factor's range.
        size: side of the square, and longest side of the result, pixels.
        resize_image: as in `transforms.INTERPOLATIONS`.
    """

    def __init__(self, low: float, high: float, size: int, resize_image: Callable = resize_antialiased):
        if not 0 < low <= high:
            raise ValueError(f"scale jitter: expected 0 < low <= high, got {(low, high)}")
        self.low, self.high, self.size = low, high, size
        self.resize_image = resize_image

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        factor = self.low + (self.high - self.low) * random.uniform("scale_jitter") if random else 1.0
        ratio = factor * self.size / max(image.size)
        size = tuple(max(round(side * ratio), 1) for side in image.size)
        image, target = self.resize_image(image, size), None if target is None else target.resize(size)
        kept = [min(side, self.size) for side in size]
        if tuple(kept) == size:
            return image, target
        x, y = (random.randint("scale_crop", size[k] - kept[k] + 1, k) if random else 0 for k in (0, 1))
        return crop(image, target, (x, y, x + kept[0], y + kept[1]))
