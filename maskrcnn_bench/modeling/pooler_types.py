"""The kinds of RoI pooling by the names of POOLER_TYPE; all take the levels of a feature pyramid as `Pooler` does."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.deform_psroi_pool import deform_psroi_pool
from ..layers.roi_crop import legacy_roi_align, roi_crop
from ..layers.roi_pool import roi_pool
from .poolers import Pooler, RoIs


class ROIPoolPooler(Pooler):
    """The maximum of each bin."""

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        return roi_pool(features, rois.boxes, rois.image_inds, levels, self.scales, self.output_size, self.output_size)


class ROICropPooler(Pooler):
    """Samples of a grid between the edges of the box."""

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        return roi_crop(features, rois.boxes, rois.image_inds, levels, self.scales, self.output_size, self.output_size)


class ROICropMaxPooler(Pooler):
    """The maxima of 2 x 2 samples of a grid between the edges of the box."""

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        side = 2 * self.output_size
        return F.max_pool2d(roi_crop(features, rois.boxes, rois.image_inds, levels, self.scales, side, side), 2)


class ROIAlignLegacyPooler(Pooler):
    """The RoIAlign of faster-rcnn.pytorch."""

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        return legacy_roi_align(features, rois.boxes, rois.image_inds, levels, self.scales, self.output_size, self.output_size)


class DeformPSROIPooler(Pooler):
    """Bins moved by offsets that two fully connected layers read from the unmoved bins (Deformable ConvNets, figure 3).

    Args:
        in_channels: channels of the features.
        hidden: width of both layers.
        rule: arguments of `Pooler`.
    """

    def __init__(self, *rule: float, in_channels: int, hidden: int = 1024):
        super().__init__(*rule)
        bins = self.output_size**2
        last = nn.Linear(hidden, 2 * bins)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers = [nn.Linear(bins * in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, hidden), nn.ReLU(inplace=True), last]
        self.offset_fc = nn.Sequential(*layers)

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        offsets = self.offset_fc(self._moved(features, rois, levels, None).flatten(1))
        return self._moved(features, rois, levels, offsets.unflatten(1, (2, self.output_size, self.output_size)))

    def _moved(self, features: list[Tensor], rois: RoIs, levels: Tensor, offsets: Tensor | None) -> Tensor:
        channels = features[0].shape[1]
        return deform_psroi_pool(features, rois.boxes, rois.image_inds, levels, self.scales, offsets, self.output_size, channels)


POOLERS: dict[str, Callable[..., Pooler]] = {
    "ROIAlign": Pooler,
    "ROIAlignV1": Pooler,
    "ROIAlignV2": Pooler,
    "ROIAlignLegacy": ROIAlignLegacyPooler,
    "ROIPool": ROIPoolPooler,
    "ROICrop": ROICropPooler,
    "ROICropMax": ROICropMaxPooler,
    "DeformPSROIPool": DeformPSROIPooler,
}
"""(output_size, scales, sampling_ratio, shift, min_size, level_epsilon) -> pooler; those that learn take `in_channels` as well."""


_FIXED = {"ROIAlignV1": (0.0, 1.0), "ROIAlignV2": (0.5, 0.0)}
"""The shift and the least size, in cells, of kinds that follow no rule."""


def make_pooler(kind: str, rule: tuple, in_channels: int) -> Pooler:
    """A pooler by its POOLER_TYPE.

    Args:
        kind: a key of POOLERS; "ROIAlignV1" is not shifted and a region has at least one cell, "ROIAlignV2" is shifted by half a cell
            and has no least size, whatever the rule says.
        rule: the arguments of `Pooler`, in their order.
        in_channels: channels of the features.
    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in POOLERS:
        raise ValueError(f"POOLER_TYPE: expected one of {sorted(POOLERS)}, got {kind!r}")
    rule = (*rule[:3], *_FIXED.get(kind, rule[3:5]), *rule[5:])
    return POOLERS[kind](*rule, in_channels=in_channels) if kind == "DeformPSROIPool" else POOLERS[kind](*rule)
