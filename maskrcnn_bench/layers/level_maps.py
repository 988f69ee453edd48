"""Reading points from the maps of all images and levels at once, in fixed shapes and plain torch.

Letters: L levels, N images, C channels, R boxes, Q points of a box.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import _ops


def of_level(values: Sequence[float], levels: Tensor) -> Tensor:
    """The value of each box's level; padding gets that of level 0. An int64 or float32 tensor, as the values are. [R]"""
    out = torch.full_like(levels, values[0], dtype=torch.float32 if isinstance(values[0], float) else torch.int64)
    for level, value in enumerate(values[1:], start=1):
        out = torch.where(levels == level, value, out)
    return out


class LevelMaps:
    """The pixels of all maps as rows of one table: level 0, image 0, row by row, then image 1, ..., then level 1.

    Args:
        features: one map a level. L x [N, C, H_l, W_l]
        image_inds: which image each box is in. [R]
        levels: which map each box reads; -1 is padding. [R]
    Attributes:
        heights, widths: of each box's map, pixels. [R, 1]
        table: in float32, or float64 for features in float64. [pixels, C]
    """

    def __init__(self, features: Sequence[Tensor], image_inds: Tensor, levels: Tensor):
        wide = torch.float64 if features[0].dtype == torch.float64 else torch.float32
        self.table = torch.cat([f.permute(0, 2, 3, 1).flatten(0, 2) for f in features]).to(wide)
        shapes = [(int(f.shape[2]), int(f.shape[3])) for f in features]
        sizes = [features[0].shape[0] * height * width for height, width in shapes]
        self.heights = of_level([height for height, _ in shapes], levels)[:, None]
        self.widths = of_level([width for _, width in shapes], levels)[:, None]
        first = of_level([sum(sizes[:level]) for level in range(len(sizes))], levels)[:, None]
        self._first = first + image_inds[:, None] * self.heights * self.widths

    def with_table(self, table: Tensor) -> LevelMaps:
        """The same maps with other channels. [pixels, c]"""
        out = copy.copy(self)
        out.table = table
        return out

    def bilinear(self, x: Tensor, y: Tensor, left: Tensor, top: Tensor) -> Tensor:
        """Values between four neighbours, of which those outside the map count as 0.

        Args:
            x, y: points, pixels of each box's map. [R, Q]
            left, top: the upper left neighbour, int64. The other is one further; a point beyond it is extrapolated. [R, Q]
        Returns:
            [R, Q, C]
        """
        out = 0.0
        for inds, weights in self.corners(x, y, left, top):
            values = self.table.index_select(0, inds.flatten()).unflatten(0, inds.shape)
            out = out + values * weights[..., None]
        return out

    def corners(self, x: Tensor, y: Tensor, left: Tensor, top: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The four neighbours as rows of the table, and their weights; arguments as those of `bilinear`. [R, Q] both"""
        columns = self._neighbours(x, left, self.widths)
        for row, row_weight in self._neighbours(y, top, self.heights):
            for column, column_weight in columns:
                yield self._first + row * self.widths + column, row_weight * column_weight

    @staticmethod
    def _neighbours(at: Tensor, low: Tensor, extent: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Two (index, weight) along one axis."""
        fraction = at - low
        pairs = []
        for ind, weight in ((low, 1 - fraction), (low + 1, fraction)):
            inside = (ind >= 0) & (ind < extent)
            pairs.append((torch.minimum(ind.clamp(min=0), extent - 1), torch.where(inside, weight, 0.0)))
        return pairs


def grid_points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [R, a] and rows [R, b] as all their crossings, row by row. [R, b * a] both"""
    rows, columns = y.shape[1], x.shape[1]
    return x[:, None, :].expand(-1, rows, -1).flatten(1), y[:, :, None].expand(-1, -1, columns).flatten(1)


def as_pooled(values: Tensor, levels: Tensor, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Values [R, h * w, C] as pooled features in the dtype of `like`, zeros for padding. [R, C, h, w], channels-last"""
    values = torch.where((levels >= 0)[:, None, None], values, 0.0).to(like.dtype)
    return values.unflatten(1, shape).permute(0, 3, 1, 2)


def check_rois(
    op_name: str, features: Sequence[Tensor], boxes: Tensor, image_inds: Tensor, levels: Tensor, scales: Sequence[float]
) -> None:
    """Raises ValueError with what was expected when shapes do not fit each other."""
    if not features or len(features) != len(scales):
        raise ValueError(f"{op_name}: expected one scale a level, got {len(features)} levels, {len(scales)} scales")
    for level, feature in enumerate(features):
        _ops.check_shape(op_name, f"features[{level}]", feature, *features[0].shape[:2], f"H{level}", f"W{level}")
    _ops.check_shape(op_name, "boxes", boxes, "R", 4)
    _ops.check_shape(op_name, "image_inds", image_inds, boxes.shape[0])
    _ops.check_shape(op_name, "levels", levels, boxes.shape[0])
