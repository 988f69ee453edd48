"""Sampling of positives and negatives into a fixed number of slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.counter import stage_number, uniform


@dataclass
class Samples:
    """The boxes drawn from each image, positives first.

    Args:
        inds: which boxes. [N, S]
        positive: slots that hold a positive. [N, S]
        valid: slots that hold anything. [N, S]
    """

    inds: Tensor
    positive: Tensor
    valid: Tensor


class BalancedSampler:
    """Draws positives up to a quota and fills up with negatives (Faster R-CNN, section 3.1.3).

    Args:
        batch_size_per_image: how many boxes an image.
        positive_fraction: the largest part of them that are positive.
        stage: name of this choice for the random numbers.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stage: str):
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.stage = stage_number(stage)

    def quota(self, candidates: int) -> int:
        """How many positives an image has at most, and so how many slots can be positive."""
        return min(int(self.batch_size_per_image * self.positive_fraction), candidates)

    def __call__(self, labels: Tensor, keys: Tensor) -> Samples:
        """Draws without replacement; which boxes depends on the images' keys alone.

        Args:
            labels: above 0 positive, 0 negative, below 0 neither. [N, A]
            keys: random key of each image. [N]
        """
        candidates = labels.shape[1]
        slots = min(self.batch_size_per_image, candidates)
        chance = uniform(keys, self.stage, candidates)
        positives, num_positive = _draw(labels > 0, chance, slots)
        negatives, num_negative = _draw(labels == 0, chance, slots)
        num_positive = num_positive.clamp(max=self.quota(candidates))
        slot = torch.arange(slots, device=labels.device)[None]
        num_negative = torch.minimum(num_negative, self.batch_size_per_image - num_positive)
        positive = slot < num_positive
        # Slot i is the i-th positive, or the (i - positives)-th negative.
        inds = torch.where(positive, positives, negatives.gather(1, (slot - num_positive).clamp(min=0)))
        return Samples(inds, positive, slot < num_positive + num_negative)


def _draw(eligible: Tensor, chance: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Up to `slots` of the eligible, by largest chance: their indices [N, slots] and how many they are [N, 1]."""
    inds = torch.where(eligible, chance, -1.0).topk(slots, dim=1).indices
    return inds, eligible.sum(dim=1, keepdim=True).clamp(max=slots)
