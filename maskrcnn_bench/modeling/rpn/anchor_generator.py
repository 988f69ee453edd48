"""Anchors: reference boxes of a few sizes and shapes at every cell of every level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def _rounded_corner(stride: int, sizes: tuple[float, ...], ratios: tuple[float, ...], order: str) -> np.ndarray:
    """Detectron's anchors: sides rounded at the size of the stride, then scaled; centred on the inclusive cell."""
    widths = np.round(np.sqrt(stride * stride / np.asarray(ratios, dtype=np.float64)))
    heights = np.round(widths * np.asarray(ratios, dtype=np.float64))
    sides = _pairs(widths, heights, np.asarray(sizes, dtype=np.float64) / stride, order)
    centre = 0.5 * (stride - 1)
    return np.concatenate([centre - 0.5 * (sides - 1), centre + 0.5 * (sides - 1)], axis=1)


def _exact_centre(stride: int, sizes: tuple[float, ...], ratios: tuple[float, ...], order: str) -> np.ndarray:
    """Unrounded anchors around 0: the centre of the cell's top left pixel corner."""
    root = np.sqrt(np.asarray(ratios, dtype=np.float64))
    sides = _pairs(1 / root, root, np.asarray(sizes, dtype=np.float64), order)
    return np.concatenate([-0.5 * sides, 0.5 * sides], axis=1)


def _rounded_centre(stride: int, sizes: tuple[float, ...], ratios: tuple[float, ...], order: str) -> np.ndarray:
    """Anchors around 0 with corners rounded to whole pixels."""
    return np.round(_exact_centre(stride, sizes, ratios, order))


def _pairs(widths: np.ndarray, heights: np.ndarray, scales: np.ndarray, order: str) -> np.ndarray:
    """(width, height) of every ratio and scale. [len(widths) * len(scales), 2]"""
    sides = np.stack([widths, heights], axis=1)
    if order == "ratio_major":
        return (sides[:, None] * scales[None, :, None]).reshape(-1, 2)
    return (sides[None] * scales[:, None, None]).reshape(-1, 2)


ANCHOR_RULES: dict[str, Callable[..., np.ndarray]] = {
    "rounded_corner": _rounded_corner,
    "exact_centre": _exact_centre,
    "rounded_centre": _rounded_centre,
}


class _Buffers(nn.Module):
    """A list of buffers, named by number in checkpoints."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(str(i), tensor)

    def __iter__(self):
        return iter(self._buffers.values())


class AnchorGenerator(nn.Module):
    """Makes the anchors of all levels.

    Args:
        sizes: anchor sizes (square root of the area) of each level, pixels. One tuple a level.
        aspect_ratios: height over width.
        strides: pixels per cell of each level.
        rule: how a cell's anchors are placed and rounded, a key of ANCHOR_RULES.
        order: "ratio_major" or "size_major".
        straddle_thresh: how far anchors may cross the border in training, pixels; below 0 as far as they like.
        own_padding: in training, anchors are left out whose centre lies beyond their image padded to a multiple of this, pixels; 0: none.
        measured_strides: whether the distance of anchors follows the sizes of the features, whose finest level divides the padded image.
    Raises:
        ValueError: when there are not as many size tuples as strides.
    """

    def __init__(
        self,
        sizes: tuple[tuple[float, ...], ...],
        aspect_ratios: tuple[float, ...],
        strides: tuple[int, ...],
        rule: str,
        order: str,
        straddle_thresh: float = -1,
        own_padding: int = 0,
        measured_strides: bool = False,
    ):
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(
                f"anchors: {len(strides)} levels (ANCHOR_STRIDE {strides}) need as many ANCHOR_SIZES, got {len(sizes)}: {sizes}"
            )
        cells = [ANCHOR_RULES[rule](stride, s, aspect_ratios, order) for stride, s in zip(strides, sizes, strict=True)]
        self.cell_anchors = _Buffers([torch.tensor(c, dtype=torch.float32) for c in cells])
        self.strides = strides
        self.straddle_thresh = straddle_thresh
        self.own_padding = own_padding
        self.measured_strides = measured_strides

    def num_anchors_per_location(self) -> list[int]:
        return [len(cell) for cell in self.cell_anchors]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The anchors of each level, xyxy, pixels of the padded image, by row, column, anchor. L x [H * W * A, 4]"""
        strides = [(stride, stride) for stride in self.strides]
        if self.measured_strides:
            padded = [side * self.strides[0] for side in features[0].shape[-2:]]
            strides = [(padded[0] // f.shape[-2], padded[1] // f.shape[-1]) for f in features]
        return [self._grid(f, cell, stride) for f, cell, stride in zip(features, self.cell_anchors, strides, strict=True)]

    @staticmethod
    def _grid(feature: Tensor, cell: Tensor, stride: tuple[int, int]) -> Tensor:
        height, width = feature.shape[-2:]
        y = torch.arange(height, device=feature.device, dtype=torch.float32) * stride[0]
        x = torch.arange(width, device=feature.device, dtype=torch.float32) * stride[1]
        shift_x, shift_y = x[None, :].expand(height, -1), y[:, None].expand(-1, width)
        shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)
        return (shifts[:, :, None] + cell).reshape(-1, 4)

    def visible(self, anchors: Tensor, sizes: Tensor) -> Tensor:
        """Which anchors may be used in training, given each image's (width, height) [N, 2]. [N, A]"""
        out = torch.ones((len(sizes), len(anchors)), dtype=torch.bool, device=anchors.device)
        if self.own_padding:
            # A larger image of the batch may pad further. Centres are multiples of the stride, so half a pixel separates them.
            end = (sizes / self.own_padding).ceil() * self.own_padding - 0.5
            out = out & ((anchors[:, :2] + anchors[:, 2:]) / 2 < end[:, None]).all(dim=2)
        if self.straddle_thresh < 0:
            return out
        low = (anchors[:, :2] >= -self.straddle_thresh).all(dim=1)
        return out & low & (anchors[None, :, 2:] < sizes[:, None] + self.straddle_thresh).all(dim=2)
