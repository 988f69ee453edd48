"""Deformable convolution (Dai et al. 2017; with modulation Zhu et al. 2018): each tap of the kernel reads where an offset moves it.

The sampling is torchvision's op; the names `offset` and `conv` are those of maskrcnn-benchmark's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class _Weight(nn.Module):
    """Holds the kernel under the name that checkpoints have."""

    def __init__(self, out_channels: int, in_channels_per_group: int, kernel_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels_per_group, kernel_size, kernel_size))
        nn.init.uniform_(self.weight, -self.reach, self.reach)

    @property
    def reach(self) -> float:
        """One over the root of the values that a kernel sums."""
        return self.weight[0].numel() ** -0.5


class DFConv2d(nn.Module):
    """A same-size convolution whose offsets, and weights of the samples where it is modulated, come from a plain convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: of the convolution, without bias.
        modulated: every sample has a weight from 0 to 1 (v2).
        deformable_groups: groups of input channels that have offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        modulated: bool = False,
        deformable_groups: int = 1,
    ):
        super().__init__()
        self.stride, self.dilation, self.padding = stride, dilation, dilation * (kernel_size - 1) // 2
        self.modulated = modulated
        self.offset_channels = 2 * deformable_groups * kernel_size**2
        predicted = self.offset_channels * 3 // 2 if modulated else self.offset_channels
        self.offset = nn.Conv2d(in_channels, predicted, kernel_size, stride, self.padding, dilation)
        nn.init.kaiming_uniform_(self.offset.weight, a=1)
        nn.init.zeros_(self.offset.bias)
        self.conv = _Weight(out_channels, in_channels // groups, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, out_channels, H / stride, W / stride]"""
        predicted = self.offset(x)
        offset, mask = predicted[:, : self.offset_channels], None
        if self.modulated:
            mask = predicted[:, self.offset_channels :].sigmoid()
        # The operator has no half precision on the CPU; on the GPU autocast does the same.
        wide = torch.promote_types(x.dtype, torch.float32)
        x_, offset, weight = x.to(wide), offset.to(wide), self.conv.weight.to(wide)
        mask = None if mask is None else mask.to(wide)
        return deform_conv2d(x_, offset, weight, None, self.stride, self.padding, self.dilation, mask).to(x.dtype)
