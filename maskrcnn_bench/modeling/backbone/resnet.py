"""ResNet and ResNeXt trunks (He et al. 2015; Xie et al. 2016), with the names of maskrcnn-benchmark's checkpoints.

`ResNet` is the trunk up to the stage that a detector reads, `ResNetHead` the last stage applied to pooled features (C4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers.blocks import NormFactory, freeze_norms
from ...layers.deform_conv import DFConv2d

BLOCK_COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel_size - 1) // 2
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return layer


def _downsample(in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> nn.Module | None:
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), norm(out_channels))


class Stem(nn.Module):
    """The first convolution and pooling: a quarter of the image's size.

    Args:
        pool_padding: of the pooling; without any, its last window may reach beyond the border.
    """

    def __init__(self, out_channels: int, norm: NormFactory, pool_padding: int = 1):
        super().__init__()
        self.pool_padding = pool_padding
        self.conv1 = _conv(3, out_channels, 7, stride=2)
        self.bn1 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=self.pool_padding, ceil_mode=self.pool_padding == 0)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut.

    Args:
        stride_in_1x1: whether the first 1x1 convolution has the stride, as in the original models, or the 3x3.
        groups, dilation: of the 3x3 convolution; a dilated block keeps its size.
        deformable: makes the 3x3 convolution from (in_channels, out_channels, 3, stride, dilation, groups) when it is not a plain one.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int,
        norm: NormFactory,
        stride_in_1x1: bool = True,
        groups: int = 1,
        dilation: int = 1,
        deformable: Callable[..., nn.Module] | None = None,
    ):
        super().__init__()
        stride = 1 if dilation > 1 else stride
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.downsample = _downsample(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, mid_channels, 1, stride1)
        self.bn1 = norm(mid_channels)
        self.conv2 = (deformable or _conv)(mid_channels, mid_channels, 3, stride3, dilation, groups)
        self.bn2 = norm(mid_channels)
        self.conv3 = _conv(mid_channels, out_channels, 1)
        self.bn3 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu_(out.add_(identity))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (R-18, R-34)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: NormFactory):
        super().__init__()
        self.downsample = _downsample(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride)
        self.bn1 = norm(out_channels)
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.bn2 = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)).add_(identity))


class StageBuilder:
    """Makes the stages of one trunk.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stem_channels: channels of the stem.
        res2_channels: channels of the first stage; they double with each stage.
        width_per_group, groups: inner width of a bottleneck and groups of its 3x3.
        stride_in_1x1: see Bottleneck.
        res5_dilation: dilation of the last stage; above 1 it keeps the size.
        norm: makes the norm of so many channels.
        stages_with_dcn: which of the stages 1 to 4 have deformable 3x3 convolutions.
        modulated_dcn, deformable_groups: see DFConv2d.
        stem_pool_padding: see Stem.
        freeze_statistics: whether batch norms of a frozen stage keep their statistics too.
    """

    def __init__(
        self,
        depth: int,
        stem_channels: int,
        res2_channels: int,
        width_per_group: int,
        groups: int,
        stride_in_1x1: bool,
        res5_dilation: int,
        norm: NormFactory,
        stages_with_dcn: Sequence[bool] = (False, False, False, False),
        modulated_dcn: bool = False,
        deformable_groups: int = 1,
        stem_pool_padding: int = 1,
        freeze_statistics: bool = False,
    ):
        if depth not in BLOCK_COUNTS:
            raise ValueError(f"ResNet: expected a depth of {sorted(BLOCK_COUNTS)}, got {depth}")
        if depth < 50 and any(stages_with_dcn):
            raise ValueError(f"deformable convolutions need a ResNet of 50 layers or more, got {depth}: its blocks have no 3x3 bottleneck")
        self.stages_with_dcn = tuple(stages_with_dcn)
        self.make_deformable = partial(DFConv2d, modulated=modulated_dcn, deformable_groups=deformable_groups)
        self.stem_pool_padding = stem_pool_padding
        self.freeze_statistics = freeze_statistics
        self.depth = depth
        self.stem_channels = stem_channels
        self.res2_channels = res2_channels
        self.width_per_group = width_per_group
        self.groups = groups
        self.stride_in_1x1 = stride_in_1x1
        self.res5_dilation = res5_dilation
        self.norm = norm

    def out_channels(self, stage: int) -> int:
        """Channels of stage 1 (the finest) to 4; of the stem for 0."""
        return self.res2_channels * 2 ** (stage - 1) if stage else self.stem_channels

    def stem(self) -> Stem:
        return Stem(self.stem_channels, self.norm, self.stem_pool_padding)

    def stage(self, stage: int, blocks: int | None = None) -> nn.Sequential:
        """Stage 1 to 4; the first has stride 1, the others 2."""
        count = blocks or BLOCK_COUNTS[self.depth][stage - 1]
        channels = [self.out_channels(stage - 1)] + [self.out_channels(stage)] * (count - 1)
        strides = [1 if stage == 1 else 2] + [1] * (count - 1)
        return nn.Sequential(*[self._block(c, stage, s) for c, s in zip(channels, strides, strict=True)])

    def freeze(self, part: nn.Module) -> nn.Module:
        """The stem or a stage, not to be trained."""
        part.requires_grad_(False)
        return freeze_norms(part) if self.freeze_statistics else part

    def _block(self, in_channels: int, stage: int, stride: int) -> nn.Module:
        out_channels = self.out_channels(stage)
        if self.depth < 50:
            return BasicBlock(in_channels, out_channels, stride, self.norm)
        mid_channels = self.groups * self.width_per_group * 2 ** (stage - 1)
        dilation = self.res5_dilation if stage == 4 else 1
        deformable = self.make_deformable if self.stages_with_dcn[stage - 1] else None
        return Bottleneck(in_channels, mid_channels, out_channels, stride, self.norm, self.stride_in_1x1, self.groups, dilation, deformable)


class ResNet(nn.Module):
    """A trunk that answers the features of some of its stages.

    Args:
        builder: makes the stages.
        return_stages: which of the stages 1 to 4 to answer, ascending; later stages are not built.
        freeze_at: the stem (1) and the stages before this number are not trained; 0 trains all.
        checkpoint: whether the inside of a stage is computed again in the backward pass instead of being kept.
    """

    def __init__(self, builder: StageBuilder, return_stages: tuple[int, ...], freeze_at: int, checkpoint: bool = False):
        super().__init__()
        self.return_stages = return_stages
        self.checkpoint = checkpoint
        self.stem = builder.stem()
        for stage in range(1, return_stages[-1] + 1):
            setattr(self, f"layer{stage}", builder.stage(stage))
        self.out_channels_of_stages = [builder.out_channels(s) for s in return_stages]
        for name in ["stem", *(f"layer{s}" for s in range(1, return_stages[-1] + 1))][:freeze_at]:
            setattr(self, name, builder.freeze(getattr(self, name)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to the features of `return_stages`, finest first."""
        x = self.stem(x)
        features = []
        for stage in range(1, self.return_stages[-1] + 1):
            x = self._stage(getattr(self, f"layer{stage}"), x)
            if stage in self.return_stages:
                features.append(x)
        return features

    def _stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint and self.training):
            return stage(x)
        # Nothing is drawn at random inside; reading the generator of a GPU would wait for it.
        return checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False)


class ResNetHead(nn.Module):
    """Stage 4 applied to pooled features."""

    def __init__(self, builder: StageBuilder):
        super().__init__()
        self.layer4 = builder.stage(4)
        self.out_channels = builder.out_channels(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x)
