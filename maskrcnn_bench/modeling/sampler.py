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


class ReplacementSampler(BalancedSampler):
    """Draws positives up to a quota and fills up with negatives, of which each may come several times (faster-rcnn.pytorch).

    Every slot is in use as long as there is anything to draw; without negatives, positives fill all slots and repeat.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stage: str):
        super().__init__(batch_size_per_image, positive_fraction, stage)
        self.repeat_stage = stage_number(f"{stage}_repeat")

    def quota(self, candidates: int) -> int:
        return min(max(round(self.batch_size_per_image * self.positive_fraction), 1), candidates)

    def __call__(self, labels: Tensor, keys: Tensor) -> Samples:
        candidates, slots = labels.shape[1], self.batch_size_per_image
        slot = torch.arange(slots, device=labels.device)[None]
        chance = uniform(keys, self.stage, candidates)
        positives = torch.where(labels > 0, chance, -1.0).argsort(dim=1, descending=True)
        negatives = (labels != 0).to(torch.int64).argsort(dim=1, stable=True)
        num_positives, num_negatives = ((labels > 0).sum(dim=1, keepdim=True), (labels == 0).sum(dim=1, keepdim=True))
        any_one = uniform(keys, self.repeat_stage, slots)
        once = slot.clamp(max=candidates - 1).expand(len(labels), -1)
        positive_place = torch.where(num_negatives > 0, once, _place(any_one, num_positives))
        drawn = torch.where(num_negatives > 0, num_positives.clamp(max=self.quota(candidates)), num_positives.clamp(max=1) * slots)
        inds = torch.where(slot < drawn, positives.gather(1, positive_place), negatives.gather(1, _place(any_one, num_negatives)))
        valid = (num_positives + num_negatives > 0).expand(-1, slots)
        return Samples(inds, (slot < drawn) & valid, valid)


def _place(chance: Tensor, count: Tensor) -> Tensor:
    """One of `count` places [N, 1] for each chance in [0, 1) [N, slots]; 0 where there is none."""
    return torch.minimum((chance * count).long(), (count - 1).clamp(min=0))
