"""What heads that learn from positive samples alone share: their convolutions, and the way from samples to a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import NormFactory, conv
from ...layers.masked_norm import MaskedSequential
from ...structures.bounding_box import BoxListBatch
from ..poolers import Pooler, RoIs, is_static


class PooledConvolutions(nn.Module):
    """Pooled features through several 3x3 convolutions.

    Args:
        pooler: pools the RoIs.
        in_channels: channels of the features.
        channels: of each convolution.
        prefix: of the convolutions' names, which checkpoints have; a number from 1 follows.
        dilation: of each convolution.
        norm: norm behind each convolution, or None.
    """

    def __init__(
        self,
        pooler: Pooler,
        in_channels: int,
        channels: tuple[int, ...],
        prefix: str,
        dilation: int = 1,
        norm: NormFactory | None = None,
    ):
        super().__init__()
        self.pooler = pooler
        self.blocks = [f"{prefix}{i}" for i in range(1, len(channels) + 1)]
        for name, before, after in zip(self.blocks, (in_channels, *channels), channels, strict=False):
            layer = conv(before, after, 3, dilation=dilation, norm=norm)
            nn.init.kaiming_normal_((layer[0] if norm else layer).weight, mode="fan_out", nonlinearity="relu")
            self.add_module(name, MaskedSequential(*layer) if norm else layer)
        self.out_channels = channels[-1]

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, C, h, w]"""
        x = self.pooler(features, rois)
        for name in self.blocks:
            layer = getattr(self, name)
            x = F.relu_(layer(x, rois.valid) if isinstance(layer, MaskedSequential) else layer(x))
        return x


class PositivesHead(nn.Module):
    """A head whose loss is that of the positive samples.

    Args:
        feature_extractor, predictor: modules.
        loss: called as (predictions, RoIs of the positives, their BoxListBatch, ground truth).
        share_box_features: whether the features come from the box head.
        static_shapes: "auto", True or False.
    """

    def __init__(
        self,
        feature_extractor: nn.Module,
        predictor: nn.Module,
        loss: Callable[[Tensor, RoIs, BoxListBatch, BoxListBatch], dict[str, Tensor]],
        share_box_features: bool,
        static_shapes: str | bool,
    ):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.predictor = predictor
        self.loss = loss
        self.share_box_features = share_box_features
        self.static_shapes = static_shapes

    def losses(
        self, features: list[Tensor], samples: BoxListBatch, positive_slots: int, targets: BoxListBatch, box_features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss over the positives among the samples.

        Args:
            features: of the images, finest first.
            samples: as the box head drew them, positives first.
            positive_slots: how many of the first slots can be positive.
            targets: ground truth with what the head learns.
            box_features: the box head's features in all slots, [N, S, C, h, w], when they are shared.
        """
        positives = keep_slots(samples, positive_slots, samples.get_field("positive"))
        rois = RoIs.flatten(positives, is_static(self.static_shapes, positives.boxes.device))
        if self.share_box_features:
            x = rois.take(box_features[:, :positive_slots])
        else:
            x = self.feature_extractor(features, rois)
        return self.loss(self.predictor(x), rois, positives, targets)


def keep_slots(batch: BoxListBatch, slots: int, valid: Tensor) -> BoxListBatch:
    """The first slots of a batch, those in use that `valid` [N, P] says."""
    fields = {name: value[:, :slots] for name, value in batch.fields.items()}
    return BoxListBatch(batch.boxes[:, :slots], valid[:, :slots], batch.sizes, fields, pixel=batch.pixel)


def require_side(logits: Tensor, resolution: int, key: str) -> None:
    """Has maps [..., S, S] be as large as the targets that they are compared with.

    Raises:
        ValueError: naming the `key` that says how large targets are.
    """
    height, width = logits.shape[-2:]
    if (height, width) != (resolution, resolution):
        pooled = key.replace("RESOLUTION", "POOLER_RESOLUTION")
        raise ValueError(f"{key} is {resolution}, but the head makes maps of {height} x {width}; set it {height}, or change {pooled}")


def init_fan_out(module: nn.Module) -> nn.Module:
    """The module with weights drawn for ReLU by their outputs, and zero biases."""
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    return module
