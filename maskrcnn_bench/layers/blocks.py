"""Convolutions, linear layers and norms with the initialisation that the reference models use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NormFactory = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants.

    Args:
        num_features: channels C.
        eps: added to the variance. Detectron's models were trained with 0 here.
    """

    def __init__(self, num_features: int, eps: float = 0.0):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + bias.to(x.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def group_norm(num_channels: int, num_groups: int = 32, channels_per_group: int = -1, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm by the number of groups, or by the channels of a group when that is positive.

    Raises:
        ValueError: when the channels do not divide.
    """
    groups = num_channels // channels_per_group if channels_per_group > 0 else num_groups
    if groups < 1 or num_channels % groups:
        raise ValueError(f"group norm: {num_channels} channels do not divide into {groups} groups (MODEL.GROUP_NORM)")
    return nn.GroupNorm(groups, num_channels, eps)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    norm: NormFactory | None = None,
    relu: bool = False,
) -> nn.Module:
    """A same-size convolution, drawn from Kaiming's uniform distribution, with an optional norm and ReLU behind it."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, dilation * (kernel_size - 1) // 2, dilation, bias=norm is None)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    parts = [layer] + ([norm(out_channels)] if norm else []) + ([nn.ReLU(inplace=True)] if relu else [])
    return nn.Sequential(*parts) if len(parts) > 1 else layer


def linear(in_features: int, out_features: int, norm: NormFactory | None = None) -> nn.Module:
    """A fully connected layer, drawn from Kaiming's uniform distribution, with an optional norm behind it."""
    layer = nn.Linear(in_features, out_features, bias=norm is None)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, norm(out_features)) if norm else layer


def init_normal(layer: nn.Module, std: float) -> nn.Module:
    """Weights from a normal distribution of width `std`, zero bias."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
