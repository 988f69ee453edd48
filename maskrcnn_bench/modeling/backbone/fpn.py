"""Feature pyramid (Lin et al. 2016): features of all levels with the same channels."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import conv


class FPN(nn.Module):
    """Adds coarse features to fine ones, top down.

    Args:
        in_channels: channels of each input level, finest first.
        out_channels: channels of every output level.
        make_conv: (in_channels, out_channels, kernel_size) -> convolution, with norm and ReLU where wanted.
        top: answers the further, coarser levels from the coarsest input and output; None for none.
        first: number of the finest level in the names of the convolutions; RetinaNet leaves out the first and begins with 2.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        make_conv: Callable[[int, int, int], nn.Module],
        top: nn.Module | None = None,
        first: int = 1,
    ):
        super().__init__()
        self.first = first
        self.num_levels = len(in_channels)
        for level, channels in enumerate(in_channels, start=first):
            self.add_module(f"fpn_inner{level}", make_conv(channels, out_channels, 1))
            self.add_module(f"fpn_layer{level}", make_conv(out_channels, out_channels, 3))
        self.top_blocks = top

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Features [N, C_l, H_l, W_l] to [N, C, H_l, W_l], finest first; the top's levels come last."""
        inner = None
        results: list[Tensor] = []
        for level in range(self.first + self.num_levels - 1, self.first - 1, -1):
            lateral = getattr(self, f"fpn_inner{level}")(x[level - self.first])
            if inner is not None:
                lateral = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            inner = lateral
            results.insert(0, getattr(self, f"fpn_layer{level}")(inner))
        return results + (self.top_blocks(x[-1], results[-1]) if self.top_blocks is not None else [])


class LastLevelMaxPool(nn.Module):
    """One coarser level: every second cell of the coarsest."""

    def forward(self, _: Tensor, coarsest: Tensor) -> list[Tensor]:
        return [F.max_pool2d(coarsest, 1, 2, 0)]


class LastLevelP6P7(nn.Module):
    """Two coarser levels by convolutions of stride 2 (RetinaNet, section 4).

    Args:
        in_channels: channels of what P6 is made from.
        out_channels: channels of P6 and P7.
        use_c5: P6 is made from the trunk's last stage, or else from the pyramid's coarsest level.
        relu: whether P7 is made from P6 without its negative part.
    """

    def __init__(self, in_channels: int, out_channels: int, use_c5: bool, relu: bool = True):
        super().__init__()
        self.p6 = conv(in_channels, out_channels, 3, stride=2)
        self.p7 = conv(out_channels, out_channels, 3, stride=2)
        self.use_c5 = use_c5
        self.relu = relu

    def forward(self, c5: Tensor, coarsest: Tensor) -> list[Tensor]:
        p6 = self.p6(c5 if self.use_c5 else coarsest)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]
