"""Batch norm over a batch with unused rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the rows in use, so that padding changes nothing.

    Without `valid`, and in evaluation, it is `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[R, C, H, W] to the same shape.

        Args:
            valid: rows in use; with none of them the output is finite and the running statistics stay. [R]
        """
        if valid is None or not self.training:
            return super().forward(x)
        weight = valid.float()[:, None, None, None]
        count = weight.sum() * (x.shape[2] * x.shape[3])
        # Rows that are not in use may hold anything finite; their share of the sums is 0.
        mean = (x.float() * weight).sum(dim=(0, 2, 3)) / count.clamp(min=1)
        centred = x.float() - mean[:, None, None]
        variance = (centred.square() * weight).sum(dim=(0, 2, 3)) / count.clamp(min=1)
        self._follow(mean.detach(), variance.detach(), count)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        # The running variance is the unbiased one, and one value has none.
        share = torch.where(count > 1, self.momentum, 0.0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


class MaskedSequential(nn.Sequential):
    """Layers one after the other; batch norms among them hear which rows are in use."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[R, C, H, W]; `valid` as in MaskedBatchNorm2d. [R]"""
        for layer in self:
            x = layer(x, valid) if isinstance(layer, MaskedBatchNorm2d) else layer(x)
        return x
