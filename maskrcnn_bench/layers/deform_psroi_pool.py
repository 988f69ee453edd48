"""Deformable position-sensitive RoI pooling (Deformable Convolutional Networks, section 2.2).

Letters: L levels, N images, C channels, R boxes, T parts along a side, S samples along a side of a bin.
Each bin averages S x S bilinear samples, moved by an offset of its part of the box; samples outside the map do not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _ops
from .level_maps import LevelMaps, as_pooled, check_rois, of_level


def deform_psroi_pool(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_inds: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    offsets: Tensor | None,
    output_size: int,
    output_channels: int,
    group_size: int = 1,
    samples: int = 4,
    offset_scale: float = 0.1,
) -> Tensor:
    """Pools each box with moved bins, on the level that the box belongs to.

    Args:
        features: one map a level, all of one dtype; C is output_channels * group_size ** 2. L x [N, C, H_l, W_l]
        boxes: xyxy, pixels of the image. [R, 4]
        image_inds: which image each box is in. int64 [R]
        levels: which map each box is cut from; -1 is padding and gives zeros. int64 [R]
        scales: map pixels per image pixel. L
        offsets: (x, y) of each part in sizes of the box over `offset_scale`, one set for each of G equal shares of the channels;
            None moves nothing. [R, 2G, T, T]
        output_size: bins along a side.
        output_channels: channels of the output.
        group_size: a bin reads the channels of its cell on a grid of so many cells a side (R-FCN); 1 reads all.
        samples: S.
        offset_scale: factor of the offsets.
    Returns:
        In the dtype of the features, summed in float32. [R, output_channels, output_size, output_size]
    Raises:
        ValueError: when channels do not divide as described.
    """
    check_rois("deform_psroi_pool", features, boxes, image_inds, levels, scales)
    if features[0].shape[1] != output_channels * group_size**2:
        expected = f"output_channels * group_size ** 2 = {output_channels * group_size**2}"
        raise ValueError(f"deform_psroi_pool: features: expected {expected} channels, got {features[0].shape[1]}")
    shares = 1 if offsets is None else offsets.shape[1] // 2
    if output_channels % shares:
        raise ValueError(f"deform_psroi_pool: {output_channels} channels do not divide among {shares} sets of offsets")
    maps = LevelMaps(features, image_inds, levels)
    bins = _Bins(boxes, levels, scales, output_size, samples, maps)
    parts = []
    for share, table in enumerate(maps.table.chunk(shares, dim=1)):
        moved = None if offsets is None else offsets[:, 2 * share : 2 * share + 2].to(maps.table.dtype) * offset_scale
        parts.append(_own_group(bins.average(maps, table, moved), output_size, group_size))
    return as_pooled(torch.cat(parts, dim=2), levels, (output_size, output_size), features[0])


class _Bins:
    """Where the bins of each box lie on its map; the corners are rounded to image pixels, which both belong to the box."""

    def __init__(self, boxes: Tensor, levels: Tensor, scales: Sequence[float], side: int, samples: int, maps: LevelMaps):
        scale = of_level([float(s) for s in scales], levels)[:, None]
        boxes = torch.where((levels >= 0)[:, None], (boxes.to(maps.table.dtype) + 0.5).floor(), 0.0)
        self.corners = boxes[:, :2] * scale - 0.5
        self.sizes = ((boxes[:, 2:] + 1) * scale - 0.5 - self.corners).clamp(min=0.1)
        self.side, self.samples = side, samples
        cell = torch.arange(side * side, device=boxes.device)
        self.columns, self.rows = cell % side, cell // side

    def average(self, maps: LevelMaps, table: Tensor, offsets: Tensor | None) -> Tensor:
        """Mean of the samples inside the map, 0 where there is none. table [pixels, c] -> [R, side * side, c]"""
        x, y = self._origins(offsets)
        part = maps.with_table(table)
        total, count = 0.0, 0.0
        for row in range(self.samples):
            for column in range(self.samples):
                values, inside = self._sample(part, x, y, column, row)
                total, count = total + values, count + inside
        return total / count.clamp(min=1)[..., None]

    def _origins(self, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Upper left corner of every bin, map pixels. [R, side * side] both"""
        width, height = self.sizes[:, :1], self.sizes[:, 1:]
        x = self.corners[:, :1] + width * self.columns / self.side
        y = self.corners[:, 1:] + height * self.rows / self.side
        if offsets is None:
            return x, y
        parts = offsets.shape[-1]
        moved = offsets.flatten(2)[:, :, self.rows * parts // self.side * parts + self.columns * parts // self.side]
        return x + moved[:, 0] * width, y + moved[:, 1] * height

    def _sample(self, maps: LevelMaps, x: Tensor, y: Tensor, column: int, row: int) -> tuple[Tensor, Tensor]:
        """One sample of every bin, 0 outside the map, and whether it is inside. [R, side * side, c], [R, side * side]"""
        step = self.sizes / (self.side * self.samples)
        x, y = x + column * step[:, :1], y + row * step[:, 1:]
        inside = (x >= -0.5) & (x <= maps.widths - 0.5) & (y >= -0.5) & (y <= maps.heights - 0.5)
        x = torch.minimum(x.clamp(min=0), (maps.widths - 1).to(x.dtype))
        y = torch.minimum(y.clamp(min=0), (maps.heights - 1).to(y.dtype))
        values = maps.bilinear(x, y, x.detach().floor().long(), y.detach().floor().long())
        return torch.where(inside[..., None], values, 0.0), inside.to(values.dtype)


def _own_group(values: Tensor, side: int, group_size: int) -> Tensor:
    """Of the channels [R, side * side, c * group_size ** 2], those of each bin's cell. [R, side * side, c]"""
    if group_size == 1:
        return values
    cell = torch.arange(side, device=values.device) * group_size // side
    group = (cell[:, None] * group_size + cell[None, :]).flatten()
    values = values.unflatten(2, (-1, group_size**2))
    return values.gather(3, group[None, :, None, None].expand(*values.shape[:3], 1)).squeeze(3)


class DeformPSROIPool(nn.Module):
    """Deformable RoI pooling of one map, with the arguments of maskrcnn-benchmark's `DeformRoIPooling`.

    Args:
        spatial_scale: map pixels per image pixel.
        out_size: bins along a side.
        out_channels: channels of the output.
        no_trans: bins do not move.
        group_size, part_size, sample_per_part, trans_std: see `deform_psroi_pool`; part_size must be that of the offsets.
    """

    def __init__(
        self,
        spatial_scale: float,
        out_size: int,
        out_channels: int,
        no_trans: bool,
        group_size: int = 1,
        part_size: int | None = None,
        sample_per_part: int = 4,
        trans_std: float = 0.0,
    ):
        super().__init__()
        self.spatial_scale = spatial_scale
        self.out_size = out_size
        self.out_channels = out_channels
        self.no_trans = no_trans
        self.group_size = group_size
        self.part_size = part_size or out_size
        self.sample_per_part = sample_per_part
        self.trans_std = trans_std

    def forward(self, data: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        """Map [N, C, H, W], (image index, x1, y1, x2, y2) [R, 5] and offsets [R, 2G, T, T] to [R, out_channels, out_size, out_size]."""
        _ops.check_shape("DeformPSROIPool", "rois", rois, "R", 5)
        if not self.no_trans:
            if offset is None:
                raise ValueError("DeformPSROIPool: expected offsets, or no_trans True")
            _ops.check_shape("DeformPSROIPool", "offset", offset, rois.shape[0], "2G", self.part_size, self.part_size)
        image_inds = rois[:, 0].long()
        return deform_psroi_pool(
            [data],
            rois[:, 1:],
            image_inds,
            torch.zeros_like(image_inds),
            [self.spatial_scale],
            None if self.no_trans else offset,
            self.out_size,
            self.out_channels,
            self.group_size,
            self.sample_per_part,
            self.trans_std,
        )
