"""RoI max pooling (Fast R-CNN, section 2.1) over all levels of a feature pyramid.

Letters: L levels, N images, C channels, R boxes.
The corners of a box are rounded to map pixels, which both belong to it; its bins are cut at whole pixels and may overlap by one.
The operator also answers the place of each maximum, y * W_l + x in its map or -1 for none, which is all that the gradient needs.
Its kernel is for CUDA; elsewhere torchvision's operator runs, a level at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _ops
from .level_maps import check_rois
from .roi_align import _empty_maps, _empty_pooled, _wide


def roi_pool(
    features: Sequence[Tensor], boxes: Tensor, image_inds: Tensor, levels: Tensor, scales: Sequence[float], height: int, width: int
) -> Tensor:
    """The maximum of each bin of each box, on the level that the box belongs to.

    Args:
        features: one map a level, all of one dtype. L x [N, C, H_l, W_l]
        boxes: xyxy, pixels of the image. [R, 4]
        image_inds: which image each box is in. int64 [R]
        levels: which map each box is cut from; -1 is padding and gives zeros. int64 [R]
        scales: map pixels per image pixel. L
        height, width: bins of the output.
    Returns:
        In the dtype of the features; 0 for a bin outside the map. [R, C, height, width]
    """
    check_rois("roi_pool", features, boxes, image_inds, levels, scales)
    return torch.ops.maskrcnn_bench.roi_pool(list(features), boxes, image_inds, levels, list(scales), height, width)[0]


class ROIPool(nn.Module):
    """RoI max pooling of one map, with the arguments of maskrcnn-benchmark's layer.

    Args:
        output_size: bins, (height, width).
        spatial_scale: map pixels per image pixel.
    """

    def __init__(self, output_size: tuple[int, int], spatial_scale: float):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Map [N, C, H, W] and (image index, x1, y1, x2, y2) [R, 5], pixels of the image, to [R, C, height, width]."""
        _ops.check_shape("ROIPool", "rois", rois, "R", 5)
        image_inds = rois[:, 0].long()
        return roi_pool([input], rois[:, 1:], image_inds, torch.zeros_like(image_inds), [self.spatial_scale], *self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


# ------------------------------------------------------------------------------------------------ torchvision


def _roi_pool_torchvision(features, boxes, image_inds, levels, scales, height, width) -> tuple[Tensor, Tensor]:
    import torchvision  # noqa: F401  (defines torch.ops.torchvision)

    wide = _wide(features[0].dtype)
    rois = torch.cat([image_inds[:, None].to(wide), boxes.to(wide)], dim=1)
    out, places = _fake(features, boxes, image_inds, levels, scales, height, width)
    out.zero_()
    places.fill_(-1)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = levels == level
        # Boxes of other levels become one pixel, so that they cost next to nothing.
        own = torch.where(chosen[:, None], rois, 0.0)
        pooled, found = torch.ops.torchvision.roi_pool(feature.to(wide).contiguous(), own, scale, height, width)
        out.copy_(torch.where(chosen[:, None, None, None], pooled.to(out.dtype), out))
        places.copy_(torch.where(chosen[:, None, None, None], found, places))
    return out, places


def _backward_torchvision(grad, places, image_inds, levels, feature_shape) -> list[Tensor]:
    import torchvision  # noqa: F401  (defines torch.ops.torchvision)

    wide = _wide(grad.dtype)
    grads = _empty_maps(grad, feature_shape)
    for level, out in enumerate(grads):
        chosen = levels == level
        rois = torch.where(chosen, image_inds, 0).to(wide)[:, None].expand(-1, 5).contiguous()  # only the images are read
        own = torch.where(chosen[:, None, None, None], places, -1).contiguous()
        part = grad.to(wide).contiguous()
        out.copy_(torch.ops.torchvision._roi_pool_backward(part, rois, own, 1.0, *grad.shape[2:], *out.shape))
    return grads


# ---------------------------------------------------------------------------------------------- shapes, autograd


def _fake(features, boxes, image_inds, levels, scales, height, width) -> tuple[Tensor, Tensor]:
    out = _empty_pooled(features[0], boxes.shape[0], height, width)
    return out, torch.empty_like(out, dtype=torch.int32)


def _fake_backward(grad, places, image_inds, levels, feature_shape) -> list[Tensor]:
    return _empty_maps(grad, feature_shape)


def _setup_context(ctx, inputs, output) -> None:
    features, _, image_inds, levels, *_ = inputs
    ctx.save_for_backward(output[1], image_inds, levels)
    ctx.feature_shape = [*features[0].shape[:2], *(length for map_ in features for length in map_.shape[2:])]


def _backward(ctx, grad: Tensor, _):
    return torch.ops.maskrcnn_bench.roi_pool_backward(grad, *ctx.saved_tensors, ctx.feature_shape), *[None] * 6


_ops.register("roi_pool", _fake, float32=False, torchvision=_roi_pool_torchvision)
_ops.register("roi_pool_backward", _fake_backward, float32=False, torchvision=_backward_torchvision)
torch.library.register_autograd("maskrcnn_bench::roi_pool", _backward, setup_context=_setup_context, lib=_ops.LIBRARY)
