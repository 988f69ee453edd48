"""The best anchors of a level to boxes, in one go.

Letters: N images, A anchors of one level, R of them chosen in each image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops


def decode_boxes(
    regression: Tensor,
    anchors: Tensor,
    inds: Tensor,
    sizes: Tensor,
    weights: tuple[float, float, float, float],
    log_size_range: tuple[float, float],
    pixel: float,
    decode_pixel: float,
    clip: bool = True,
    min_size: float = 0.0,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gathers, decodes, clips and measures; no gradients.

    Args:
        regression: (dx, dy, dw, dh) of each anchor, times `weights`. [N, A, 4]
        anchors: xyxy, pixels, of positive size. [A, 4]
        inds: which anchors become boxes. int64 [N, R]
        sizes: (width, height) of each image, same pixels. [N, 2]
        weights: factors of dx, dy, dw, dh.
        log_size_range: clamp of dw and dh before the exponential.
        pixel: what a width adds to x2 - x1.
        decode_pixel: what x2 and y2 lose against centre + size / 2.
        clip: whether boxes are clamped to 0 .. size - pixel.
        min_size: least width and height, pixels.
        strict: whether boxes of exactly `min_size` are too small.
    Returns:
        Boxes, xyxy, same pixels, float32 [N, R, 4], and whether they are large enough, bool [N, R].
    """
    _ops.check_shape("decode_boxes", "anchors", anchors, "A", 4)
    _ops.check_shape("decode_boxes", "inds", inds, "N", "R")
    _ops.check_shape("decode_boxes", "regression", regression, inds.shape[0], anchors.shape[0], 4)
    _ops.check_shape("decode_boxes", "sizes", sizes, inds.shape[0], 2)
    return torch.ops.maskrcnn_bench.decode_boxes(
        regression, anchors, inds, sizes, weights, log_size_range, pixel, decode_pixel, clip, min_size, strict
    )


def _decode_boxes_torch(
    regression, anchors, inds, sizes, weights, log_size_range, pixel, decode_pixel, clip, min_size, strict
) -> tuple[Tensor, Tensor]:
    codes = regression.float().gather(1, inds[..., None].expand(-1, -1, 4))
    references = anchors.float()[inds]
    size = references[..., 2:] - references[..., :2] + pixel
    centre = references[..., :2] + 0.5 * size
    corners: list[Tensor] = []
    for axis in (0, 1):
        middle = codes[..., axis] / weights[axis] * size[..., axis] + centre[..., axis]
        half = 0.5 * (torch.exp((codes[..., 2 + axis] / weights[2 + axis]).clamp(*log_size_range)) * size[..., axis])
        corners += [middle - half, middle + half - decode_pixel]
    boxes = torch.stack([corners[0], corners[2], corners[1], corners[3]], dim=-1)
    if clip:
        limit = (sizes.float() - pixel).repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limit)
    side = boxes[..., 2:] - boxes[..., :2] + pixel
    return boxes, (side > min_size if strict else side >= min_size).all(dim=-1)


def _fake(regression, anchors, inds, sizes, *rule) -> tuple[Tensor, Tensor]:
    boxes = torch.empty((*inds.shape, 4), dtype=torch.float32, device=inds.device)
    return boxes, torch.empty(inds.shape, dtype=torch.bool, device=inds.device)


_ops.register("decode_boxes", _fake, float32=True, torch=_decode_boxes_torch)
