"""FBNet trunks and heads (Wu et al. 2018; ChamNet, Dai et al. 2018): rows of inverted residual blocks, with the names of
maskrcnn-benchmark's checkpoints.

An architecture is a table: for each stage its rows (expansion, channels, repeats, stride) and the kind of every block. One
trunk, the RPN and the heads each take some of the stages. A negative stride doubles the size.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import init_normal
from ...layers.masked_norm import MaskedBatchNorm2d
from ..poolers import Pooler, RoIs
from .fbnet_table import ARCHITECTURES

Norm = Callable[[int], nn.Module]


def divisible(channels: float, divisor: int) -> int:
    """Channels as a whole multiple of `divisor`, the nearest but at least one time it; 0 stays 0."""
    channels = int(channels)
    return channels if divisor < 1 or channels % divisor == 0 else max(math.floor(channels / divisor + 0.5), 1) * divisor


@dataclass(frozen=True)
class BlockSpec:
    """One block.

    Args:
        stage, index: its place in the architecture, which its name tells.
        kind: "ir_k3", "ir_k5" or "ir_k7": the size of the depthwise kernel; with "_se" a squeeze and excitation behind.
        expansion: factor of the inner channels.
        channels: of the output, before scaling.
        stride: 1, 2, 4, or -2, -4 to enlarge.
    """

    stage: int
    index: int
    kind: str
    expansion: float
    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """A parsed table.

    Args:
        first: channels, stride and, where given, kernel size of the first convolution.
        last_channels: channels behind a head, before scaling; 0 for none.
        blocks: of all stages in order.
        parts: which stages make up "backbone", "rpn", "bbox", "mask", "kpts".
    """

    first: tuple[int, ...]
    last_channels: int
    blocks: tuple[BlockSpec, ...]
    parts: dict[str, list[int]]

    def part(self, name: str) -> list[BlockSpec]:
        """The blocks of one part.

        Raises:
            ValueError: when the architecture has no such part.
        """
        stages = self.parts.get(name) or self.parts.get("head")
        if name == "backbone" and not stages:
            stages = range(max(b.stage for b in self.blocks))
        if not stages:
            raise ValueError(f"MODEL.FBNET.ARCH: this architecture has no stages for {name!r}; it has some for {sorted(self.parts)}")
        return [b for b in self.blocks if b.stage in stages]


def architecture(name: str, definition: str = "") -> Architecture:
    """The architecture of a name, or of a definition in JSON.

    Raises:
        ValueError: for an unknown name, or a definition that does not hang together.
    """
    if definition:
        return parse(json.loads(definition))
    if name not in ARCHITECTURES:
        raise ValueError(f"MODEL.FBNET.ARCH: expected one of {sorted(ARCHITECTURES)} or a table in MODEL.FBNET.ARCH_DEF, got {name!r}")
    return parse(ARCHITECTURES[name])


def parse(table: dict) -> Architecture:
    """A table of maskrcnn-benchmark's form: `block_cfg` with `stages`, and `block_op_type` with the kind of every block."""
    config = table["block_cfg"]
    blocks = []
    for stage, (rows, kinds) in enumerate(zip(config["stages"], table["block_op_type"], strict=True)):
        expanded = [(e, c, s if i == 0 else 1) for e, c, repeats, s in rows for i in range(repeats)]
        if len(expanded) != len(kinds):
            raise ValueError(f"FBNet stage {stage}: its rows make {len(expanded)} blocks, but {len(kinds)} kinds are named")
        for index, ((expansion, channels, stride), kind) in enumerate(zip(expanded, kinds, strict=True)):
            blocks.append(BlockSpec(stage, index, kind, expansion, channels, stride))
    parts = {name: stages for name, stages in config.items() if name not in ("first", "last", "stages")}
    return Architecture(tuple(config["first"]), config.get("last", [0, 0.0])[0], tuple(blocks), parts)


class ConvNorm(nn.Module):
    """Convolution, norm and ReLU, the latter two where wanted."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        norm: Norm | None = None,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = norm(out_channels) if norm else None
        self.relu = relu

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x, valid) if isinstance(self.bn, MaskedBatchNorm2d) else self.bn(x)
        return F.relu_(x) if self.relu else x


class SqueezeExcite(nn.Module):
    """Scales every channel by what the mean of all channels says."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 8)
        self.op = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.op(x)


class InvertedResidual(nn.Module):
    """1x1 to more channels, a depthwise convolution, 1x1 to the output; a shortcut where the shape stays.

    Args:
        in_channels, mid_channels, out_channels: channels.
        kernel_size, stride: of the depthwise convolution; a negative stride enlarges first.
        norm: behind every convolution.
        depthwise_norm, depthwise_relu: whether the depthwise convolution has norm and ReLU.
        squeeze: whether squeeze and excitation follows.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        norm: Norm | None,
        depthwise_norm: bool,
        depthwise_relu: bool,
        squeeze: bool,
    ):
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        self.enlarge = max(-stride, 1)
        self.pw = ConvNorm(in_channels, mid_channels, 1, norm=norm)
        self.dw = ConvNorm(
            mid_channels, mid_channels, kernel_size, max(stride, 1), mid_channels, norm if depthwise_norm else None, depthwise_relu
        )
        self.pwl = ConvNorm(mid_channels, out_channels, 1, norm=norm, relu=False)
        self.se4 = SqueezeExcite(out_channels) if squeeze else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        y = self.pw(x, valid)
        if self.enlarge > 1:
            y = F.interpolate(y, scale_factor=float(self.enlarge), mode="nearest")
        y = self.pwl(self.dw(y, valid), valid)
        return self.se4(y + x if self.shortcut else y)


class Blocks(nn.Sequential):
    """Blocks one after the other, which all hear what rows are in use."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, valid)
        return x


@dataclass(frozen=True)
class FBNetBuilder:
    """Makes the parts of one architecture.

    Args:
        architecture: the table.
        norm: makes the norm of so many channels.
        scale: factor of all channels.
        divisor: channels are multiples of it.
        depthwise_norm, depthwise_relu: see InvertedResidual.
    """

    architecture: Architecture
    norm: Norm
    scale: float
    divisor: int
    depthwise_norm: bool
    depthwise_relu: bool

    def width(self, channels: float) -> int:
        return divisible(int(channels * self.scale), self.divisor)

    def blocks(self, specs: Sequence[BlockSpec], in_channels: int) -> tuple[Blocks, int]:
        """A row of blocks and its output channels."""
        named: OrderedDict[str, nn.Module] = OrderedDict()
        for spec in specs:
            named[f"xif{spec.stage}_{spec.index}"] = self._block(spec, in_channels)
            in_channels = self.width(spec.channels)
        return Blocks(named), in_channels

    def _block(self, spec: BlockSpec, in_channels: int) -> InvertedResidual:
        kernel_sizes = {"ir_k3": 3, "ir_k5": 5, "ir_k7": 7}
        kind = spec.kind.removesuffix("_se")
        if kind not in kernel_sizes:
            raise ValueError(
                f"FBNet block xif{spec.stage}_{spec.index}: expected {sorted(kernel_sizes)}, with _se behind or not, got {spec.kind!r}"
            )
        mid_channels = divisible(in_channels * spec.expansion, self.divisor)
        return InvertedResidual(
            in_channels,
            mid_channels,
            self.width(spec.channels),
            kernel_sizes[kind],
            spec.stride,
            self.norm,
            self.depthwise_norm,
            self.depthwise_relu,
            squeeze=kind != spec.kind,
        )

    def last(self, last_scale: float, in_channels: int) -> tuple[nn.Module, int]:
        """The 1x1 convolution behind a head, where it has one: `last_scale` times the table's channels, or if negative, its input's."""
        wide = self.architecture.last_channels * max(self.scale, 1.0)
        channels = divisible(int(wide) * last_scale if last_scale > 0 else in_channels * -last_scale, self.divisor)
        if channels == 0:
            return Blocks(), in_channels
        return ConvNorm(in_channels, channels, 1, norm=self.norm), channels


class FBNetTrunk(nn.Module):
    """The trunk: one map, a sixteenth of the image's size in the tables here."""

    def __init__(self, builder: FBNetBuilder):
        super().__init__()
        channels, stride, *kernel = builder.architecture.first
        first_channels = builder.width(channels)
        self.first = ConvNorm(3, first_channels, kernel[0] if kernel else 3, stride, norm=builder.norm)
        self.stages, self.out_channels = builder.blocks(builder.architecture.part("backbone"), first_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to one level [N, C, H / 16, W / 16]."""
        return [self.stages(self.first(x))]


class _RPNFeature(nn.Module):
    def __init__(self, head: Blocks):
        super().__init__()
        self.head = head


class _RPNRegressor(nn.Module):
    def __init__(self, in_channels: int, num_anchors: int):
        super().__init__()
        self.cls_logits = init_normal(nn.Conv2d(in_channels, num_anchors, 1), 0.01)
        self.bbox_pred = init_normal(nn.Conv2d(in_channels, num_anchors * 4, 1), 0.01)


class FBNetRPNHead(nn.Sequential):
    """Blocks of the architecture's RPN stages, then objectness and regression.

    Args:
        builder: makes the blocks.
        in_channels: channels of the features.
        num_anchors: anchors at one location.
        num_blocks: how many blocks to take, from the end; 0 takes all.
    """

    def __init__(self, builder: FBNetBuilder, in_channels: int, num_anchors: int, num_blocks: int = 0):
        specs = builder.architecture.part("rpn")
        if num_blocks > len(specs):
            raise ValueError(f"MODEL.FBNET.RPN_HEAD_BLOCKS: expected at most {len(specs)}, got {num_blocks}")
        blocks, channels = builder.blocks(specs[-num_blocks:], in_channels)
        super().__init__(_RPNFeature(blocks), _RPNRegressor(channels, num_anchors))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features to objectness logits L x [N, A_l, H, W] and regression L x [N, 4 A_l, H, W]."""
        feature, regressor = self
        hidden = [feature.head(f) for f in features]
        return [regressor.cls_logits(h) for h in hidden], [regressor.bbox_pred(h) for h in hidden]


class FBNetROIHead(nn.Module):
    """Pooled features through the blocks of one head.

    Args:
        pooler: pools the RoIs.
        builder: makes the blocks.
        in_channels: channels of the features.
        part: "bbox", "mask" or "kpts".
        block_inds: which blocks of each stage to take; empty takes all.
        first_stride: stride of the first block; 0 keeps the table's.
        last_scale: see `FBNetBuilder.last`.
    """

    def __init__(
        self,
        pooler: Pooler,
        builder: FBNetBuilder,
        in_channels: int,
        part: str,
        block_inds: Sequence[int],
        first_stride: int,
        last_scale: float,
    ):
        super().__init__()
        self.pooler = pooler
        specs = [s for s in builder.architecture.part(part) if not block_inds or s.index in block_inds]
        if first_stride:
            specs[0] = replace(specs[0], stride=first_stride)
        blocks, channels = builder.blocks(specs, in_channels)
        last, self.out_channels = builder.last(last_scale, channels)
        self.head = Blocks(OrderedDict(blocks=blocks, last=last))

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, C, h, w]"""
        return self.head(self.pooler(features, rois), rois.valid)
