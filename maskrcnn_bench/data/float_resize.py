"""Resizing of images that are normalised already, as faster-rcnn.pytorch and torchvision do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.utils.counter import CounterRandom


class NormalizeAndResize:
    """An RGB picture to a float32 tensor: mean and deviation first, then bilinear between four neighbours.

    Both sides are multiplied by one factor and rounded, and boxes by exactly that factor; the target's field `resize_factor` tells it. No
    transform of pictures can follow.

    Args:
        min_size: lengths of the shorter side, one of which is drawn for each image, pixels.
        max_size: longest allowed longer side, pixels; None for no limit.
        mean, std: of each channel, in the order and range that the network sees.
        bgr255: blue first and 0 to 255 (Caffe); otherwise red first and 0 to 1.
    """

    def __init__(self, min_size: int | Sequence[int], max_size: int | None, mean: Sequence[float], std: Sequence[float], bgr255: bool):
        self.min_size = tuple(min_size) if isinstance(min_size, (list, tuple)) else (min_size,)
        self.max_size = max_size
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.bgr255 = bgr255

    def factor(self, size: tuple[int, int], shorter: int | None = None) -> float:
        """By how much an image of `size` (width, height) is enlarged."""
        factor = (self.min_size[0] if shorter is None else shorter) / min(size)
        if self.max_size is not None and round(factor * max(size)) > self.max_size:
            return self.max_size / max(size)
        return factor

    def get_size(self, size: tuple[int, int], shorter: int) -> tuple[int, int]:
        """The new (width, height) of an image of `size` (width, height), pixels."""
        factor = self.factor(size, shorter)
        width, height = (max(self._whole(side * factor), 1) for side in size)
        return width, height

    @staticmethod
    def _whole(side: float) -> int:
        return round(side)

    def __call__(self, image: Image.Image, target: BoxList | None = None, random: CounterRandom | None = None):
        choice = random.randint("resize", len(self.min_size)) if random and len(self.min_size) > 1 else 0
        factor = self.factor(image.size, self.min_size[choice])
        resized = self._resize(self._normalized(image), factor)
        return resized, None if target is None else self._follow(target, (resized.shape[2], resized.shape[1]), factor)

    def _normalized(self, image: Image.Image) -> Tensor:
        # Channels first while they are bytes: arithmetic with three numbers in the innermost dimension takes five times as long.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        pixels = pixels.flip(0).float() if self.bgr255 else pixels.float().div_(255)
        return pixels.sub_(self.mean).div_(self.std)

    @staticmethod
    def _resize(image: Tensor, factor: float) -> Tensor:
        """Output pixels lie where the factor puts them, not where the rounded sizes would. [3, H, W]"""
        left, right, share = _neighbours(image.shape[2], factor)
        first, second = image[:, :, left], image[:, :, right]
        image = first + (second - first) * share
        top, bottom, share = _neighbours(image.shape[1], factor)
        first, second = image[:, top], image[:, bottom]
        return first + (second - first) * share[:, None]

    @staticmethod
    def _follow(target: BoxList, size: tuple[int, int], factor: float) -> BoxList:
        """The target on the resized image; fields without boxes follow the ratio of the sizes, which differs by rounding."""
        out = target.resize(size).convert("xyxy")
        out.bbox = target.convert("xyxy").bbox * factor
        for name, field in target.extra_fields.items():
            if isinstance(field, BoxList):
                out.add_field(name, NormalizeAndResize._follow(field, size, factor))
        out.add_field("resize_factor", factor)
        return out


class NormalizeAndInterpolate(NormalizeAndResize):
    """The same as torchvision does it: both sides lose their fraction, and pixels and boxes follow the ratio of the sizes.

    The shorter side may come out a pixel short, since one factor that is rounded multiplies it.
    """

    @staticmethod
    def _whole(side: float) -> int:
        return int(side)

    def factor(self, size: tuple[int, int], shorter: int | None = None) -> float:
        factor = (self.min_size[0] if shorter is None else shorter) / min(size)
        return factor if self.max_size is None else min(factor, self.max_size / max(size))

    @staticmethod
    def _resize(image: Tensor, factor: float) -> Tensor:
        return F.interpolate(image[None], scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=True)[0]

    @staticmethod
    def _follow(target: BoxList, size: tuple[int, int], factor: float) -> BoxList:
        return target.resize(size)


def _neighbours(source: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The two of `source` pixels between which each pixel of the resized side lies, and the share of the second."""
    places = torch.arange(max(round(source * factor), 1), dtype=torch.float64)
    position = (places + 0.5) / factor - 0.5
    low = position.floor()
    share = torch.where((low >= 0) & (low < source - 1), position - low, 0.0).float()
    low = low.long()
    return low.clamp(0, source - 1), (low + 1).clamp(0, source - 1), share
