"""Convolutions, linear layers and norms with the initialisation that the reference models use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .linear import Linear
from .masked_norm import MaskedBatchNorm2d

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
        # One pass over x instead of two.
        return torch.addcmul(bias.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def freeze_norms(module: nn.Module) -> nn.Module:
    """The module with constants in place of its batch norms, whose values stay; itself, but for a lone norm."""
    if isinstance(module, FixedStatisticsBatchNorm2d):
        return module  # constant already
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict({name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"})
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are constants while its weights and biases learn, as in mmdetection's `norm_eval`."""

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps)
        self.training = False

    def train(self, mode: bool = True) -> FixedStatisticsBatchNorm2d:
        """Stays in evaluation mode."""
        return super().train(False)


class GroupNorm(nn.GroupNorm):
    """torch's group norm on contiguous input: its CPU kernel for channels-last input loses digits where a mean outweighs the deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


def group_norm(num_channels: int, num_groups: int = 32, channels_per_group: int = -1, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm by the number of groups, or by the channels of a group when that is positive.

    Raises:
        ValueError: when the channels do not divide.
    """
    groups = num_channels // channels_per_group if channels_per_group > 0 else num_groups
    if groups < 1 or num_channels % groups:
        raise ValueError(f"group norm: {num_channels} channels do not divide into {groups} groups (MODEL.GROUP_NORM)")
    return GroupNorm(groups, num_channels, eps)


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


def share_channels(weight: Tensor, channels: int) -> Tensor:
    """The kernel of a convolution for images of other channels: its sum over the old ones, in equal parts.

    What is the same in all channels gives the same as before. [O, C, k, k] -> [O, channels, k, k]
    """
    return (weight.sum(dim=1, keepdim=True) / channels).expand(-1, channels, -1, -1).contiguous()


def with_input_channels(trunk: nn.Module, channels: int) -> nn.Module:
    """The same trunk with its first convolution, for RGB, made one for `channels`.

    Raises:
        ValueError: when it does not begin with a convolution of three channels.
    """
    if channels == 3:
        return trunk
    first = next((module for module in trunk.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise ValueError(f"INPUT.CHANNELS {channels}: this backbone does not begin with a convolution for RGB; take another, or 3 channels")
    trained = first.weight.requires_grad
    first.in_channels = channels
    first.weight = nn.Parameter(share_channels(first.weight.detach(), channels), requires_grad=trained)
    return trunk


def linear(in_features: int, out_features: int, norm: NormFactory | None = None) -> nn.Module:
    """A fully connected layer, drawn from Kaiming's uniform distribution, with an optional norm behind it."""
    layer = Linear(in_features, out_features, bias=norm is None)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, norm(out_features)) if norm else layer


def init_normal(layer: nn.Module, std: float) -> nn.Module:
    """Weights from a normal distribution of width `std`, zero bias."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


FOLDABLE_NORMS = (FrozenBatchNorm2d, FixedStatisticsBatchNorm2d, MaskedBatchNorm2d, nn.BatchNorm2d)


def fold_norms(module: nn.Module) -> nn.Module:
    """Merges every norm with constant statistics into the convolution before it, in place; for inference only.

    Pairs are `convN` with `bnN`, and neighbours in a Sequential. The result computes the same up to rounding.
    """
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        pairs = [(name, name.replace("conv", "bn", 1)) for name in children if name.startswith("conv")]
        if isinstance(parent, nn.Sequential):
            names = list(children)
            pairs = list(zip(names, names[1:], strict=False))
        for first, second in pairs:
            # Exact types: a norm of another library may have an activation inside, a convolution its own padding.
            if type(children.get(first)) is nn.Conv2d and type(children.get(second)) in FOLDABLE_NORMS:
                setattr(parent, first, _folded(children[first], children[second]))
                setattr(parent, second, nn.Identity())
    return module


@torch.no_grad()
def _folded(layer: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> nn.Conv2d:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    out = nn.Conv2d(
        *(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups),
        device="meta",
    )
    out.weight = nn.Parameter(layer.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    before = layer.bias if layer.bias is not None else 0.0
    out.bias = nn.Parameter((before - norm.running_mean) * scale + norm.bias, requires_grad=False)
    return out
