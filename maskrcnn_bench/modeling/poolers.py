"""RoIs of a batch in one flat list, and the pooling of their features from one or more levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.roi_align import roi_align
from ..structures.bounding_box import BoxListBatch


@dataclass
class RoIs:
    """Boxes of all images in one list.

    Args:
        boxes: xyxy, pixels of each image. [R, 4]
        image_inds: the image of each. [R]
        valid: which are in use; the rest gives zeros. [R]
        slots: where each came from, n * P + p. [R]
        shape: (N, P) of the batch they came from.
        pixel: the pixel rule of the boxes.
        keys: random key of each image, in training. [N]
    """

    boxes: Tensor
    image_inds: Tensor
    valid: Tensor
    slots: Tensor
    shape: tuple[int, int]
    pixel: int
    keys: Tensor | None = None

    @classmethod
    def flatten(cls, batch: BoxListBatch, static: bool) -> RoIs:
        """All slots when `static`; otherwise only those in use, which costs a wait for the device and saves the heads' work on padding."""
        num_images, num_slots = batch.valid.shape
        slots = torch.arange(num_images * num_slots, device=batch.boxes.device)
        valid = batch.valid.flatten()
        if not static:
            slots = valid.nonzero().squeeze(1)
            valid = valid[slots]
        image_inds = slots // max(num_slots, 1)
        return cls(batch.boxes.flatten(0, 1)[slots], image_inds, valid, slots, (num_images, num_slots), batch.pixel)

    def take(self, field: Tensor) -> Tensor:
        """A field of the batch, [N, P, ...], for these RoIs. [R, ...]"""
        return field.flatten(0, 1)[self.slots]

    def scatter(self, values: Tensor) -> Tensor:
        """Values of these RoIs, [R, ...], back in the batch's slots; zero elsewhere. [N, P, ...]"""
        if values.shape[0] == self.shape[0] * self.shape[1]:
            return values.unflatten(0, self.shape)
        out = values.new_zeros((self.shape[0] * self.shape[1], *values.shape[1:]))
        return out.index_copy(0, self.slots, values).unflatten(0, self.shape)


def is_static(static_shapes: str | bool, device: torch.device) -> bool:
    """Whether shapes stay fixed: as the setting says, or for `auto` everywhere but on the CPU, where dropping padding is free."""
    return device.type != "cpu" if static_shapes == "auto" else bool(static_shapes)


class Pooler(nn.Module):
    """RoIAlign over the levels of a feature pyramid; the level follows the size of the box (FPN, equation 1).

    Args:
        output_size: height and width of the pooled features, cells.
        scales: cell per pixel of each level, finest first.
        sampling_ratio: samples per cell and axis; 0 takes as many as the box is cells large.
        shift: subtracted from scaled corners, cells.
        min_size: least size of a scaled box, cells.
        level_epsilon: added to sqrt(area) / 224 before the logarithm.
    """

    def __init__(
        self, output_size: int, scales: tuple[float, ...], sampling_ratio: int, shift: float, min_size: float, level_epsilon: float
    ):
        super().__init__()
        self.output_size = output_size
        self.scales = [float(s) for s in scales]
        self.sampling_ratio = sampling_ratio
        self.shift = shift
        self.min_size = min_size
        self.level_epsilon = level_epsilon
        self.coarsest = -math.log2(self.scales[-1])
        self.finest = -math.log2(self.scales[0])

    def levels(self, rois: RoIs) -> Tensor:
        """The level of each RoI, 0 the finest; -1 for slots not in use. [R]"""
        if len(self.scales) == 1:
            return torch.where(rois.valid, 0, -1)
        side = (rois.boxes[:, 2:] - rois.boxes[:, :2] + rois.pixel).prod(dim=1).sqrt()
        level = torch.floor(4 + torch.log2(side / 224 + self.level_epsilon)).clamp(self.finest, self.coarsest).nan_to_num(self.finest)
        return torch.where(rois.valid, level.to(torch.int64) - int(self.finest), -1)

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """Pooled features of each RoI. [R, C, output_size, output_size]"""
        return self.pool(list(features[: len(self.scales)]), rois, self.levels(rois))

    def pool(self, features: list[Tensor], rois: RoIs, levels: Tensor) -> Tensor:
        """What `forward` returns, from one map a scale and the level of each RoI, -1 for slots not in use."""
        size, rule = self.output_size, (self.sampling_ratio, self.shift, self.min_size)
        return roi_align(features, rois.boxes, rois.image_inds, levels, self.scales, size, size, *rule)
