"""Deformable position-sensitive RoI pooling (Deformable Convolutional Networks, section 2.2).

Letters: L levels, N images, C channels, R boxes, T parts along a side, S samples along a side of a bin.
Each bin averages S x S bilinear samples, moved by an offset of its part of the box; samples outside the map do not count.
The operator has its kernel for CUDA; elsewhere torch runs, one sample of all bins at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _ops
from .level_maps import LevelMaps, as_pooled, check_rois, of_level
from .roi_align import _empty_maps, _wide


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
    moved = None if offsets is None else _of_bins(offsets.to(_wide(features[0].dtype)), output_size) * offset_scale
    return torch.ops.maskrcnn_bench.deform_psroi_pool(
        list(features), boxes, image_inds, levels, list(scales), moved, output_size, group_size, samples
    )


def _of_bins(offsets: Tensor, side: int) -> Tensor:
    """The offsets of the part that each bin lies in. [R, 2G, T, T] -> [R, 2G, side, side]"""
    parts = offsets.shape[-1]
    if parts == side:
        return offsets
    part = torch.arange(side, device=offsets.device) * parts // side
    return offsets.index_select(2, part).index_select(3, part)


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


# ------------------------------------------------------------------------------------------------ plain torch


class _Bins:
    """Where the bins of each box lie on its map; the corners are rounded to image pixels, which both belong to the box.

    Args:
        maps: of the boxes' images and levels.
        offsets: of each bin, for one share of the channels; None moves nothing. [R, 2, side, side]
        side, samples: of the bins of a box, and of the samples of a bin, along an axis.
    """

    def __init__(self, maps: LevelMaps, boxes, levels, scales, offsets: Tensor | None, side: int, samples: int):
        scale = of_level([float(s) for s in scales], levels)[:, None]
        boxes = torch.where((levels >= 0)[:, None], (boxes.to(maps.table.dtype) + 0.5).floor(), 0.0)
        corners = boxes[:, :2] * scale - 0.5
        self.maps = maps
        self.sizes = ((boxes[:, 2:] + 1) * scale - 0.5 - corners).clamp(min=0.1)
        self.step = self.sizes / (side * samples)
        cell = torch.arange(side * side, device=boxes.device)
        moved = torch.zeros_like(boxes[:, :2, None]) if offsets is None else offsets.flatten(2)
        places = torch.stack([cell % side, cell // side])
        self.origins = corners[..., None] + self.sizes[..., None] * places / side + moved * self.sizes[..., None]
        self.samples = [(row, column) for row in range(samples) for column in range(samples)]

    def sample(self, row: int, column: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one sample of every bin: x and y on the map, whether it counts, and whether the value follows x and y.

        Returns:
            [R, side * side] thrice, and [R, 2, side * side]
        """
        at = self.origins + torch.stack([self.step[:, 0] * column, self.step[:, 1] * row], dim=1)[..., None]
        extent = torch.stack([self.maps.widths, self.maps.heights], dim=1)
        inside = ((at >= -0.5) & (at <= extent - 0.5)).all(dim=1)
        moves = (at >= 0) & (at < extent - 1) & inside[:, None]
        x, y = torch.minimum(at.clamp(min=0), (extent - 1).to(at.dtype)).nan_to_num(0).unbind(1)
        return x, y, inside, moves

    def count(self) -> Tensor:
        """Samples of each bin that count, at least 1. [R, side * side]"""
        return sum(self.sample(*which)[2].to(self.sizes.dtype) for which in self.samples).clamp(min=1)

    def average(self) -> Tensor:
        """Mean of the samples inside the map, 0 where there is none. [R, side * side, c]"""
        total = 0.0
        for which in self.samples:
            x, y, inside, _ = self.sample(*which)
            values = self.maps.bilinear(x, y, x.floor().long(), y.floor().long())
            total = total + torch.where(inside[..., None], values, 0.0)
        return total / self.count()[..., None]

    def spread(self, grad: Tensor, table: Tensor) -> Tensor:
        """Adds what `average` reads, weighted by `grad` [R, side * side, c], into a table [pixels, c]; the gradient of the offsets.

        Returns:
            [R, 2, side * side]
        """
        grad = grad / self.count()[..., None]
        slopes = torch.zeros_like(self.origins)
        for which in self.samples:
            x, y, inside, moves = self.sample(*which)
            left, top = x.floor().long(), y.floor().long()
            for inds, weights in self.maps.corners(x, y, left, top):
                part = torch.where(inside[..., None], grad * weights[..., None], 0.0)
                table.index_add_(0, inds.flatten(), part.flatten(0, 1))
            over_x = self.maps.bilinear(left + 1.0, y, left, top) - self.maps.bilinear(left.to(y.dtype), y, left, top)
            over_y = self.maps.bilinear(x, top + 1.0, left, top) - self.maps.bilinear(x, top.to(x.dtype), left, top)
            slopes += torch.where(moves, torch.stack([(grad * over_x).sum(2), (grad * over_y).sum(2)], dim=1), 0.0)
        return slopes * self.sizes[..., None]


def _shares(features, boxes, image_inds, levels, scales, offsets, side: int, samples: int) -> list[_Bins]:
    """The bins of each share of the channels, on maps of those channels."""
    maps = LevelMaps(features, image_inds, levels)
    sets = [None] if offsets is None else offsets.split(2, dim=1)
    tables = maps.table.chunk(len(sets), dim=1)
    return [_Bins(maps.with_table(t), boxes, levels, scales, moved, side, samples) for t, moved in zip(tables, sets, strict=True)]


def _groups(side: int, group_size: int, device: torch.device) -> Tensor:
    """Which of the group_size ** 2 neighbouring channels each bin reads. [1, side * side, 1, 1]"""
    cell = torch.arange(side, device=device) * group_size // side
    return (cell[:, None] * group_size + cell[None, :]).view(1, -1, 1, 1)


def _pool_torch(features, boxes, image_inds, levels, scales, offsets, side, group_size, samples) -> Tensor:
    shares = _shares(features, boxes, image_inds, levels, scales, offsets, side, samples)
    values = torch.cat([bins.average() for bins in shares], dim=2).unflatten(2, (-1, group_size**2))
    groups = _groups(side, group_size, values.device).expand(*values.shape[:3], 1)
    return as_pooled(values.gather(3, groups).squeeze(3), levels, (side, side), features[0])


def _backward_torch(features, grad, boxes, image_inds, levels, scales, offsets, group_size, samples) -> tuple[list[Tensor], Tensor]:
    side = grad.shape[-1]
    values = torch.where((levels >= 0)[:, None, None], grad.flatten(2), 0.0).transpose(1, 2).to(_wide(features[0].dtype))
    all_groups = values.new_zeros(*values.shape, group_size**2)
    all_groups.scatter_(3, _groups(side, group_size, grad.device).expand(*values.shape, 1), values[..., None])
    shares = _shares(features, boxes, image_inds, levels, scales, offsets, side, samples)
    tables = [torch.zeros_like(bins.maps.table) for bins in shares]
    parts = all_groups.flatten(2).chunk(len(shares), dim=2)
    slopes = [bins.spread(part, table) for bins, part, table in zip(shares, parts, tables, strict=True)]
    grads, offset_grad = _fake_backward(features, grad, boxes, image_inds, levels, scales, offsets, group_size, samples)
    pixels = [map_.shape[0] * map_.shape[2] * map_.shape[3] for map_ in grads]
    for out, rows in zip(grads, torch.cat(tables, dim=1).split(pixels), strict=True):
        out.copy_(rows.view(out.shape[0], *out.shape[2:], out.shape[1]).permute(0, 3, 1, 2))
    return grads, offset_grad if offsets is None else torch.cat(slopes, dim=1).view_as(offset_grad)


# ---------------------------------------------------------------------------------------------- shapes, autograd


def _fake(features, boxes, image_inds, levels, scales, offsets, side, group_size, samples) -> Tensor:
    channels = features[0].shape[1] // group_size**2
    return features[0].new_empty(boxes.shape[0], side, side, channels).permute(0, 3, 1, 2)


def _fake_backward(features, grad, boxes, image_inds, levels, scales, offsets, group_size, samples) -> tuple[list[Tensor], Tensor]:
    shape = [*features[0].shape[:2], *(length for map_ in features for length in map_.shape[2:])]
    count = 0 if offsets is None else offsets.shape[1]
    slopes = grad.new_empty(boxes.shape[0], count, *grad.shape[2:], dtype=_wide(features[0].dtype))
    return _empty_maps(features[0], shape), slopes


def _setup_context(ctx, inputs, output) -> None:
    features, boxes, image_inds, levels, scales, offsets, _, *rule = inputs
    ctx.save_for_backward(*features, boxes, image_inds, levels, *([] if offsets is None else [offsets]))
    ctx.levels, ctx.scales, ctx.rule = len(features), scales, rule


def _backward(ctx, grad: Tensor):
    features, (boxes, image_inds, levels, *rest) = ctx.saved_tensors[: ctx.levels], ctx.saved_tensors[ctx.levels :]
    offsets = rest[0] if rest else None
    maps, slopes = torch.ops.maskrcnn_bench.deform_psroi_pool_backward(
        list(features), grad, boxes, image_inds, levels, ctx.scales, offsets, *ctx.rule
    )
    return maps, None, None, None, None, None if offsets is None else slopes, None, None, None


_ops.register("deform_psroi_pool", _fake, float32=False, torch=_pool_torch)
_ops.register("deform_psroi_pool_backward", _fake_backward, float32=False, torch=_backward_torch)
torch.library.register_autograd("maskrcnn_bench::deform_psroi_pool", _backward, setup_context=_setup_context, lib=_ops.LIBRARY)
