"""Losses over slots of which only some count, all in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the values whose slot counts; values of the others are not looked at. values [..., D*], mask [...]"""
    mask = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    return torch.where(mask, values, 0.0).sum()


def count(mask: Tensor) -> Tensor:
    """How many slots count, at least 1, so that nothing to learn from gives a loss of 0."""
    return mask.sum().clamp(min=1)


def smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 loss (Fast R-CNN, equation 3) over the slots that count; `beta` 0 is L1.

    Args:
        prediction, target: [..., 4]
        mask: slots that count. [...]
    """
    target = torch.where(mask[..., None], target, prediction.detach().float())
    return masked_sum(F.smooth_l1_loss(prediction.float(), target, reduction="none", beta=beta), mask)


def binary_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of the binary cross-entropy with logits over the slots that count. All [...]; mask may lack the last dimensions."""
    return masked_sum(F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none"), mask)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cross-entropy over the slots that count. logits [R, K], labels [R], mask [R]"""
    return masked_sum(F.cross_entropy(logits.float(), torch.where(mask, labels, 0), reduction="none"), mask)
