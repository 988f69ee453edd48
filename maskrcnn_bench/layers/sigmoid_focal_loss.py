"""Sigmoid focal loss (Focal Loss for Dense Object Detection, equation 5), in float32. Its kernel is for CUDA; the CPU runs torch.

K is the number of outputs here; none of them is the background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _ops


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """The loss of every output, in float32 whatever comes in.

    Args:
        logits: [..., K]
        labels: 0 background, c the class of output c - 1, below 0 not counted. [...]
        gamma: exponent that quietens easy examples.
        alpha: weight of positives; negatives weigh 1 - alpha.
    Returns:
        Not summed; zero where not counted. [..., K]
    """
    _ops.check_shape("sigmoid_focal_loss", "labels", labels, *logits.shape[:-1])
    return torch.ops.maskrcnn_bench.sigmoid_focal_loss(logits.float(), labels, gamma, alpha)


def _positive(logits: Tensor, labels: Tensor) -> Tensor:
    """Which outputs are those of their label. [..., K]"""
    return labels[..., None] == torch.arange(1, logits.shape[-1] + 1, device=logits.device)


def _loss_torch(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = _positive(logits, labels)
    # With the sign of a positive turned, p_t is sigmoid(-wrong): one expression for both, stable at both ends.
    wrong = torch.where(positive, -logits, logits)
    loss = wrong.sigmoid().pow_(gamma).mul_(F.softplus(wrong)).mul_(torch.where(positive, alpha, 1 - alpha))
    return torch.where(labels[..., None] >= 0, loss, 0.0)


def _backward_torch(grad: Tensor, logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = _positive(logits, labels)
    wrong = torch.where(positive, -logits, logits)
    p = wrong.sigmoid()
    slope = p.pow(gamma) * (gamma * (1 - p) * F.softplus(wrong) + p) * torch.where(positive, -alpha, 1 - alpha)
    return torch.where(labels[..., None] >= 0, grad * slope, 0.0)


def _fake(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _fake_backward(grad: Tensor, logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    return _fake(logits, labels, gamma, alpha)


def _setup_context(ctx, inputs, output) -> None:
    logits, labels, *ctx.rule = inputs
    ctx.save_for_backward(logits, labels)


def _backward(ctx, grad: Tensor):
    return torch.ops.maskrcnn_bench.sigmoid_focal_loss_backward(grad, *ctx.saved_tensors, *ctx.rule), None, None, None


_ops.register("sigmoid_focal_loss", _fake, float32=False, torch=_loss_torch)
_ops.register("sigmoid_focal_loss_backward", _fake_backward, float32=False, torch=_backward_torch)
torch.library.register_autograd("maskrcnn_bench::sigmoid_focal_loss", _backward, setup_context=_setup_context, lib=_ops.LIBRARY)


class SigmoidFocalLoss(nn.Module):
    """The sum of the loss over all anchors and outputs.

    Args:
        gamma, alpha: as in `sigmoid_focal_loss`.
    """

    def __init__(self, gamma: float, alpha: float):
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [..., K], targets [...] as the labels of `sigmoid_focal_loss`; a scalar."""
        return sigmoid_focal_loss(logits, targets, self.gamma, self.alpha).sum()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}"
