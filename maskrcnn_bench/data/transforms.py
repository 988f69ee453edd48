"""What happens to an image and its target between the disk and the batch.

The image stays a PIL image until `ToTensor`, and 8 bits a channel until the model normalises it on its device. A transform is
called as (image, target, random), where `random` is the CounterRandom of this image in this iteration; a user's own
transform that takes (image, target) works too. Targets are BoxLists, so masks, keypoints and own fields follow the boxes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from maskrcnn_bench.layers.resize import resize_fixed_point, resize_means
from maskrcnn_bench.structures.bounding_box import FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM, BoxList
from maskrcnn_bench.utils.counter import CounterRandom


class Compose:
    """Transforms one after the other, each with the randomness of the image where it takes any."""

    def __init__(self, transforms: Sequence[Callable]):
        self.transforms = list(transforms)
        self._takes_random = [_parameters(transform) >= 3 for transform in self.transforms]

    def __call__(self, image: Any, target: BoxList | None = None, random: CounterRandom | None = None) -> tuple[Any, BoxList | None]:
        for transform, takes_random in zip(self.transforms, self._takes_random, strict=True):
            image, target = transform(image, target, random) if takes_random else transform(image, target)
        return image, target

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


def _parameters(transform: Callable) -> int:
    """How many positional arguments a transform takes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(transform).parameters.values())


class Resize:
    """Scale the shorter side to a given length, unless the longer one would become too long.

    Args:
        min_size: lengths of the shorter side, one of which is drawn for each image, pixels.
        max_size: longest allowed longer side, pixels; None for no limit.
        rounding: how the other side becomes whole: "truncate" or "round".
        interpolation: a key of INTERPOLATIONS.
    """

    def __init__(self, min_size: int | Sequence[int], max_size: int | None, rounding: str = "truncate", interpolation: str = "antialiased"):
        if rounding not in ("truncate", "round"):
            raise ValueError(f"rounding: expected 'truncate' or 'round', got {rounding!r}")
        self.resize_image = INTERPOLATIONS[interpolation]
        self.min_size = tuple(min_size) if isinstance(min_size, (list, tuple)) else (min_size,)
        self.max_size = max_size
        self.rounding = rounding

    def get_size(self, size: tuple[int, int], shorter: int) -> tuple[int, int]:
        """The new (width, height) of an image of `size` (width, height), pixels."""
        rule = _truncated_size if self.rounding == "truncate" else _rounded_size
        width, height = rule(size, shorter, self.max_size)
        return max(width, 1), max(height, 1)

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        choice = random.randint("resize", len(self.min_size)) if random and len(self.min_size) > 1 else 0
        size = self.get_size(image.size, self.min_size[choice])
        if size == image.size:
            return image, target
        return self.resize_image(image, size), None if target is None else target.resize(size)


def _truncated_size(size: tuple[int, int], shorter: int, longest: int | None) -> tuple[int, int]:
    """maskrcnn-benchmark: the limit first lowers the shorter side, rounded; then the longer side loses its fraction."""
    width, height = size
    low, high = float(min(size)), float(max(size))
    if longest is not None and high / low * shorter > longest:
        shorter = int(round(longest * low / high))
    if min(size) == shorter:
        return size
    if width < height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _rounded_size(size: tuple[int, int], shorter: int, longest: int | None) -> tuple[int, int]:
    """detectron2: both sides are scaled, then rounded to the nearest pixel."""
    ratio = shorter / min(size)
    width, height = (shorter if side == min(size) else side * ratio for side in size)
    if longest is not None and max(width, height) > longest:
        ratio = longest / max(width, height)
        width, height = width * ratio, height * ratio
    return int(width + 0.5), int(height + 0.5)


def resize_antialiased(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear; when shrinking, every pixel is an average over all that it covers, as Pillow does it. `size` is (width, height)."""
    # Where the height shrinks, it is Pillow's secret which axis comes first, and bytes in between round differently.
    if getattr(image, "mode", None) != "RGB" or size[1] < image.height:
        return image.resize(size, Image.BILINEAR)
    return Image.fromarray(resize_means(torch.from_numpy(np.array(image)), size[1], size[0]).numpy())


def resize_four_neighbours(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear between the four nearest pixels even when shrinking, in the fixed-point numbers of OpenCV. `size` is (width, height)."""
    columns, column_weights = _neighbours(size[0], image.width)
    rows, row_weights = _neighbours(size[1], image.height)
    # Past the border a column is the border's; a row is the border's twice, each half cut off by itself.
    outside = columns[0] == columns[1]
    column_weights[:, outside] = np.array([[_ONE], [0]], dtype=np.int32)
    tables = (torch.from_numpy(table) for table in (columns, column_weights, rows, row_weights))
    return Image.fromarray(resize_fixed_point(torch.from_numpy(np.array(image)), *tables).numpy())


_ONE = 2048  # weights are multiples of 1 / _ONE


def _neighbours(length: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    """The two source pixels of each of `length` pixels that cover `source` ones, and their weights. int32 [2, length] each"""
    position = ((np.arange(length) + 0.5) * (source / length) - 0.5).astype(np.float32)
    low = np.floor(position)
    share = position - low
    weights = [np.rint(part * np.float32(_ONE)) for part in (1 - share, share)]
    return np.stack([low, low + 1]).clip(0, source - 1).astype(np.int32), np.stack(weights).astype(np.int32)


INTERPOLATIONS: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "antialiased": resize_antialiased,
    "four_neighbours": resize_four_neighbours,
}
"""How an image of 8 bits a channel is resized: (image, (width, height)) -> image."""


class RandomHorizontalFlip:
    """Mirror left and right with probability `prob`."""

    stage, image_method, target_method = "flip_horizontal", Image.FLIP_LEFT_RIGHT, FLIP_LEFT_RIGHT

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        if random is None or random.uniform(self.stage) >= self.prob:
            return image, target
        return image.transpose(self.image_method), None if target is None else target.transpose(self.target_method)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirror top and bottom with probability `prob`."""

    stage, image_method, target_method = "flip_vertical", Image.FLIP_TOP_BOTTOM, FLIP_TOP_BOTTOM


class ColorJitter:
    """Change brightness, contrast, saturation and hue by random amounts, in random order; the target stays.

    Args:
        brightness, contrast, saturation: largest relative change: the factor comes from [max(0, 1 - x), 1 + x].
        hue: largest turn, as a share of the colour circle, 0 to 0.5.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        self.factors = {ImageEnhance.Brightness: brightness, ImageEnhance.Contrast: contrast, ImageEnhance.Color: saturation}
        self.hue = hue

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        if random is None:
            return image, target
        steps: list[Callable[[Image.Image], Image.Image]] = []
        for slot, (enhancer, change) in enumerate(self.factors.items()):
            if change > 0:
                low = max(0.0, 1 - change)
                factor = low + (1 + change - low) * random.uniform("color", slot)
                steps.append(lambda picture, enhancer=enhancer, factor=factor: enhancer(picture).enhance(factor))
        if self.hue > 0:
            turn = self.hue * (2 * random.uniform("color", len(self.factors)) - 1)
            steps.append(lambda picture: turn_hue(picture, turn))
        while steps:
            image = steps.pop(random.randint("color_order", len(steps), len(steps)))(image)
        return image, target


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn all hues by a share of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int64) + round(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


class MasksToBitmaps:
    """Draw polygons as pixels of the image, for mask targets that are resampled from bitmaps."""

    def __call__(self, image: Image.Image, target: BoxList | None = None) -> tuple[Image.Image, BoxList | None]:
        if target is not None and target.has_field("masks"):
            target.add_field("masks", target.get_field("masks").convert("mask"))
        return image, target


class ResizeToEach:
    """One image at several sizes, as a tuple of tensors; the target follows the first of them.

    Args:
        resizes: one a size.
    """

    def __init__(self, resizes: Sequence[Resize]):
        self.resizes = list(resizes)

    def __call__(self, image: Image.Image, target: BoxList | None = None) -> tuple[tuple[Tensor, ...], BoxList | None]:
        pairs = [resize(image, target) for resize in self.resizes]
        return tuple(ToTensor()(resized)[0] for resized, _ in pairs), pairs[0][1]


class ToTensor:
    """A PIL image as a uint8 tensor, RGB, not scaled; a ChannelImage as uint8 or uint16; a tensor stays. [C, H, W]"""

    def __call__(self, image: Image.Image | Tensor, target: BoxList | None = None) -> tuple[Tensor, BoxList | None]:
        if isinstance(image, Tensor):
            return image, target
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), target
