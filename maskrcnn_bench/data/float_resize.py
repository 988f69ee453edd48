"""Resizing of images that are normalised already, as faster-rcnn.pytorch and torchvision do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_bench.layers.resize import resize_looked_up
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
        self.bgr255 = bgr255
        numbers = torch.arange(256, dtype=torch.float32).expand(len(mean), 256)
        numbers = numbers if bgr255 else numbers / 255
        self.table = (numbers - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
        """What each byte stands for, in each channel of the network. [C, 256]"""

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
        resized = self._resized(image, self._across(image.width, factor), self._across(image.height, factor))
        return resized, None if target is None else self._follow(target, (resized.shape[2], resized.shape[1]), factor)

    def _resized(self, image: Image.Image, columns: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor]) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        return resize_looked_up(pixels.flip(2) if self.bgr255 else pixels, self.table, *columns, *rows)

    @staticmethod
    def _across(source: int, factor: float) -> tuple[Tensor, Tensor]:
        """Between which of `source` pixels the new ones lie, and how far: where the factor puts them, whatever the rounded size."""
        places = torch.arange(max(round(source * factor), 1), dtype=torch.float64)
        position = (places + 0.5) / factor - 0.5
        low = position.floor()
        share = torch.where((low >= 0) & (low < source - 1), position - low, 0.0).float()
        return torch.stack([low, low + 1]).clamp(0, source - 1).int(), share

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
    def _across(source: int, factor: float) -> tuple[Tensor, Tensor]:
        length = max(int(source * factor), 1)
        # torch's float32: the ratio is rounded, a place in the source once more, in one fused operation.
        ratio = torch.tensor(source, dtype=torch.float32) / length
        places = torch.arange(length, dtype=torch.float64) + 0.5
        position = (places * ratio.double() - 0.5).float().clamp(min=0)
        low = position.int().clamp(max=source - 1)
        share = (position - low).clamp(0, 1)
        return torch.stack([low, (low + 1).clamp(max=source - 1)]), share

    @staticmethod
    def _follow(target: BoxList, size: tuple[int, int], factor: float) -> BoxList:
        return target.resize(size)
