"""RoIAlign over all levels of a feature pyramid at once.

Letters: L levels, N images, C channels, R boxes, S samples along an axis of a bin.
A box (x1, y1, x2, y2) on a level of scale s starts at x1 * s - shift and is max((x2 - x1) * s, min_size) wide; shift
0 with min_size 1 is the original RoIAlign, shift .5 with min_size 0 the "aligned" one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import _ops

_CHUNK = 1 << 24  # numbers that the plain implementation gathers at once


def roi_align(
    features: list[Tensor],
    boxes: Tensor,
    image_inds: Tensor,
    levels: Tensor,
    scales: list[float],
    height: int,
    width: int,
    sampling_ratio: int,
    shift: float,
    min_size: float,
) -> Tensor:
    """Averages bilinear samples of each bin of each box, on the level that the box belongs to.

    Args:
        features: one map a level, all of one dtype. L x [N, C, H_l, W_l]
        boxes: xyxy, pixels of the image. [R, 4]
        image_inds: which image each box is in. int64 [R]
        levels: which map each box is cut from; -1 is padding and gives zeros. int64 [R]
        scales: map pixels per image pixel. L
        height: bins of the output.
        width: bins of the output.
        sampling_ratio: samples along each axis of a bin; 0: about one a map pixel.
        shift: subtracted from the corners, map pixels.
        min_size: least width and height of a box, map pixels; 0: none.

    Returns:
        In the dtype of the features, summed in float32, channels-last. [R, C, height, width]
    """
    _check("roi_align", features, boxes, image_inds, levels, scales)
    return torch.ops.maskrcnn_bench.roi_align(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size)


def _check(op_name, features, boxes, image_inds, levels, scales) -> None:
    if not features or len(features) != len(scales):
        raise ValueError(f"{op_name}: expected one scale a level, got {len(features)} levels, {len(scales)} scales")
    for level, feature in enumerate(features):
        _ops.check_shape(op_name, f"features[{level}]", feature, *features[0].shape[:2], f"H{level}", f"W{level}")
    _ops.check_shape(op_name, "boxes", boxes, "R", 4)
    _ops.check_shape(op_name, "image_inds", image_inds, boxes.shape[0])
    _ops.check_shape(op_name, "levels", levels, boxes.shape[0])


class ROIAlign(nn.Module):
    """RoIAlign of one map, with the arguments of maskrcnn-benchmark's layer.

    Args:
        output_size: bins, (height, width).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: samples along each axis of a bin; 0: about one a map pixel.
        aligned: half a pixel to the left and no least size, as in detectron2.
    """

    def __init__(self, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = False):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: map. [N, C, H, W]
            rois: (image index, x1, y1, x2, y2), pixels of the image. [R, 5]

        Returns:
            [R, C, height, width]
        """
        _ops.check_shape("ROIAlign", "rois", rois, "R", 5)
        image_inds = rois[:, 0].long()
        shift, min_size = (0.5, 0.0) if self.aligned else (0.0, 1.0)
        return roi_align(
            [input],
            rois[:, 1:],
            image_inds,
            torch.zeros_like(image_inds),
            [self.spatial_scale],
            *self.output_size,
            self.sampling_ratio,
            shift,
            min_size,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


# ------------------------------------------------------------------------------------------------ plain torch


class _Rois(NamedTuple):
    """The arguments that say what is cut out, in the dtype of the sums; `bins` is (height, width)."""

    boxes: Tensor
    image_inds: Tensor
    levels: Tensor
    scales: list[float]
    bins: tuple[int, int]
    sampling_ratio: int
    shift: float
    min_size: float

    def part(self, some: slice) -> _Rois:
        return self._replace(boxes=self.boxes[some], image_inds=self.image_inds[some], levels=self.levels[some])

    def on_level(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Upper left corners and sizes (both x, y), pixels of each box's own map; padding is the point 0. [R, 2] both"""
        scale = torch.tensor(self.scales, device=self.boxes.device, dtype=self.boxes.dtype)[level]
        corners = torch.where((self.levels >= 0)[:, None], self.boxes * scale[:, None], 0) - self.shift
        sizes = corners[:, 2:] - corners[:, :2]
        return corners[:, :2], sizes.clamp(min=self.min_size) if self.min_size > 0 else sizes


class _Gather:
    """The pixels that some boxes read, as rows of one table of all levels, and their weights.

    The table holds the pixels of level 0, image 0, row by row, then image 1, ..., then level 1. [pixels, C]
    """

    def __init__(self, rois: _Rois, frames: list[tuple[int, int]], num_images: int):
        shapes = torch.tensor(frames, device=rois.boxes.device)
        pixels = shapes.prod(1)
        starts = (pixels * num_images).cumsum(0) - pixels * num_images
        level = rois.levels.clamp(min=0)
        self.first = starts[level] + rois.image_inds.clamp(0, num_images - 1) * pixels[level]
        self.widths = shapes[level, 1]
        corners, sizes = rois.on_level(level)
        height, width = rois.bins
        self.rows, row_weights = _axis(corners[:, 1], sizes[:, 1], height, rois.sampling_ratio, shapes[level, 0])
        self.columns, self.column_weights = _axis(corners[:, 0], sizes[:, 0], width, rois.sampling_ratio, self.widths)
        self.row_weights = row_weights * (rois.levels >= 0)[:, None, None]

    def inds(self) -> Tensor:
        """Rows of the table. [R, rows, columns]"""
        lines = self.first[:, None] + self.rows.flatten(1) * self.widths[:, None]
        return lines[:, :, None] + self.columns.flatten(1)[:, None, :]

    def pool(self, table: Tensor) -> Tensor:
        """[pixels, C] -> [R, C, height, width]"""
        values = table[self.inds()].unflatten(2, self.columns.shape[1:]).unflatten(1, self.rows.shape[1:])
        return torch.einsum("rhaxbc,rha,rxb->rchx", values, self.row_weights, self.column_weights)

    def spread(self, grad: Tensor, table: Tensor) -> None:
        """Adds the transposed of `pool`: [R, C, height, width] into [pixels, C]."""
        values = torch.einsum("rchx,rha,rxb->rhaxbc", grad, self.row_weights, self.column_weights)
        table.index_add_(0, self.inds().flatten(), values.reshape(-1, table.shape[1]))


def _axis(start: Tensor, size: Tensor, bins: int, sampling_ratio: int, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis: pixels read and their weights, two neighbours for each sample. [R, bins, 2S] both"""
    bin_size = size / bins
    counts = torch.full_like(bin_size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    # About one sample a pixel is a number that depends on the boxes: only here the host has to wait.
    most = sampling_ratio if sampling_ratio > 0 else int(counts.max().clamp(min=1)) if len(counts) else 1
    sample = torch.arange(most, device=start.device, dtype=start.dtype)
    per_sample = (sample + 0.5)[None] * bin_size[:, None] / counts.clamp(min=1)[:, None]
    origins = start[:, None] + torch.arange(bins, device=start.device) * bin_size[:, None]
    positions = origins[:, :, None] + per_sample[:, None, :]
    last = (extent - 1)[:, None, None]
    used = (sample < counts[:, None])[:, None, :] & (positions >= -1) & (positions <= extent[:, None, None])
    positions = torch.minimum(positions.clamp(min=0), last.to(positions.dtype))
    low = positions.floor().long()
    fraction = positions - low
    weights = torch.cat([1 - fraction, fraction], 2) * (used.repeat(1, 1, 2) / counts.clamp(min=1)[:, None, None])
    return torch.cat([low, torch.minimum(low + 1, last)], 2), weights


def _chunks(rois: _Rois, frames: list[tuple[int, int]], num_images: int, channels: int) -> Iterator[tuple[slice, _Gather]]:
    """Some boxes at a time, so that no step gathers more than `_CHUNK` numbers."""
    whole = _Gather(rois, frames, num_images)
    step = max(1, _CHUNK // max(1, whole.rows[:1].numel() * whole.columns[:1].numel() * channels))
    for begin in range(0, rois.boxes.shape[0], step):
        some = slice(begin, begin + step)
        yield some, _Gather(rois.part(some), frames, num_images)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _roi_align_torch(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size) -> Tensor:
    num_images, channels = features[0].shape[:2]
    wide = _wide(features[0].dtype)
    rois = _Rois(boxes.to(wide), image_inds, levels, scales, (height, width), sampling_ratio, shift, min_size)
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels).to(wide) for feature in features])
    out = _empty_pooled(features[0], boxes.shape[0], height, width)
    for some, gather in _chunks(rois, [feature.shape[2:] for feature in features], num_images, channels):
        out[some] = gather.pool(table).to(out.dtype)
    return out


def _roi_align_backward_torch(grad, boxes, image_inds, levels, scales, feature_shape, sampling_ratio, shift, min_size) -> list[Tensor]:
    num_images, channels, *lengths = feature_shape
    wide = _wide(grad.dtype)
    rois = _Rois(boxes.to(wide), image_inds, levels, scales, grad.shape[2:], sampling_ratio, shift, min_size)
    frames = list(zip(lengths[::2], lengths[1::2], strict=True))
    pixels = [num_images * frame_h * frame_w for frame_h, frame_w in frames]
    table = grad.new_zeros(sum(pixels), channels, dtype=wide)
    for some, gather in _chunks(rois, frames, num_images, channels):
        gather.spread(grad[some].to(wide), table)
    grads = _empty_maps(grad, feature_shape)
    for out, part in zip(grads, table.split(pixels), strict=True):
        out.copy_(part.view(num_images, *out.shape[2:], channels).permute(0, 3, 1, 2))
    return grads


# ------------------------------------------------------------------------------------------------ torchvision


def _torchvision_rois(boxes: Tensor, image_inds: Tensor, chosen: Tensor) -> Tensor:
    """(image index, box) of every box; those of other levels become tiny, which costs one sample a bin. [R, 5]"""
    rois = torch.cat([image_inds[:, None].to(boxes), boxes], 1)
    return torch.where(chosen[:, None], rois, 0)


def _roi_align_torchvision(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size) -> Tensor:
    if (shift, min_size) not in ((0.0, 1.0), (0.5, 0.0)):
        return _roi_align_torch(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size)
    import torchvision  # noqa: F401  (defines torch.ops.torchvision)

    out = _empty_pooled(features[0], boxes.shape[0], height, width)
    out.zero_()
    wide = _wide(features[0].dtype)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = levels == level
        pooled = torch.ops.torchvision.roi_align(
            feature.to(wide).contiguous(),
            _torchvision_rois(boxes.to(wide), image_inds, chosen),
            scale,
            height,
            width,
            sampling_ratio,
            shift == 0.5,
        )
        out += torch.where(chosen[:, None, None, None], pooled, 0).to(out.dtype)
    return out


def _roi_align_backward_torchvision(
    grad, boxes, image_inds, levels, scales, feature_shape, sampling_ratio, shift, min_size
) -> list[Tensor]:
    if (shift, min_size) not in ((0.0, 1.0), (0.5, 0.0)):
        return _roi_align_backward_torch(grad, boxes, image_inds, levels, scales, feature_shape, sampling_ratio, shift, min_size)
    import torchvision  # noqa: F401  (defines torch.ops.torchvision)

    wide = _wide(grad.dtype)
    grads = _empty_maps(grad, feature_shape)
    for level, (out, scale) in enumerate(zip(grads, scales, strict=True)):
        chosen = levels == level
        part = torch.where(chosen[:, None, None, None], grad.to(wide), 0).contiguous()
        rois = _torchvision_rois(boxes.to(wide), image_inds, chosen)
        out.copy_(torch.ops.torchvision._roi_align_backward(part, rois, scale, *grad.shape[2:], *out.shape, sampling_ratio, shift == 0.5))
    return grads


# ---------------------------------------------------------------------------------- shapes, autograd, autocast


def _empty_pooled(like: Tensor, count: int, height: int, width: int) -> Tensor:
    shape = (count, like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _empty_maps(like: Tensor, feature_shape) -> list[Tensor]:
    num_images, channels, *lengths = feature_shape
    shapes = [(num_images, channels, *frame) for frame in zip(lengths[::2], lengths[1::2], strict=True)]
    return [torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last) for shape in shapes]


def _fake(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size) -> Tensor:
    return _empty_pooled(features[0], boxes.shape[0], height, width)


def _fake_backward(grad, boxes, image_inds, levels, scales, feature_shape, sampling_ratio, shift, min_size) -> list[Tensor]:
    return _empty_maps(grad, feature_shape)


def _setup_context(ctx, inputs, output) -> None:
    features, boxes, image_inds, levels, scales, _, _, sampling_ratio, shift, min_size = inputs
    ctx.save_for_backward(boxes, image_inds, levels)
    ctx.scales = scales
    ctx.feature_shape = [*features[0].shape[:2], *(length for map_ in features for length in map_.shape[2:])]
    ctx.rule = (sampling_ratio, shift, min_size)


def _backward(ctx, grad: Tensor):
    grads = torch.ops.maskrcnn_bench.roi_align_backward(grad, *ctx.saved_tensors, ctx.scales, ctx.feature_shape, *ctx.rule)
    return grads, *[None] * 9


# Under autocast the features stay what the convolutions made of them, and boxes stay float32: no rule is the rule.
_ops.register("roi_align", _fake, float32=False, torchvision=_roi_align_torchvision, torch=_roi_align_torch)
_ops.register(
    "roi_align_backward",
    _fake_backward,
    float32=False,
    torchvision=_roi_align_backward_torchvision,
    torch=_roi_align_backward_torch,
)


def _no_second_derivative(ctx, *grads: Tensor):
    # Nobody trains through one. Without this, autograd would take it for 0 and only warn.
    raise NotImplementedError("roi_align: second derivatives are not implemented")


torch.library.register_autograd("maskrcnn_bench::roi_align_backward", _no_second_derivative, lib=_ops.LIBRARY)
torch.library.register_autograd("maskrcnn_bench::roi_align", _backward, setup_context=_setup_context, lib=_ops.LIBRARY)
