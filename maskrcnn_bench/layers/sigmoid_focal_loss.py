"""Sigmoid focal loss (Focal Loss for Dense Object Detection, equation 5), in plain torch and float32.

K is the number of outputs here; none of them is the background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    outputs = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
    positive = labels[..., None] == outputs
    # With the sign of a positive turned, p_t is sigmoid(-wrong): one expression for both, stable at both ends.
    wrong = torch.where(positive, -logits.float(), logits.float())
    loss = wrong.sigmoid().pow(gamma) * F.softplus(wrong) * torch.where(positive, alpha, 1 - alpha)
    return torch.where(labels[..., None] >= 0, loss, 0.0)


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
