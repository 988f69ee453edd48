"""Pairing two sets of boxes one to one, and telling which of the rest stand so close to a threshold that noise decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_IOU = 0.999  # of a box with its counterpart


@dataclass
class Boxes:
    """Boxes to be paired: xyxy [n, 4], scores [n], labels [n], and what their width adds to x2 - x1."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    pixel: int

    def iou(self, other: Boxes) -> Tensor:
        """Overlap with each of the others, 0 where labels differ. [n, m]"""
        low = torch.maximum(self.boxes[:, None, :2], other.boxes[None, :, :2])
        high = torch.minimum(self.boxes[:, None, 2:], other.boxes[None, :, 2:])
        inter = (high - low + self.pixel).clamp(min=0).prod(-1)
        areas = [(b.boxes[:, 2:] - b.boxes[:, :2] + self.pixel).prod(-1) for b in (self, other)]
        iou = inter / (areas[0][:, None] + areas[1][None] - inter)
        return torch.where(self.labels[:, None] == other.labels[None], iou, 0.0)

    def describe(self, index: int) -> str:
        return f"{[round(v, 2) for v in self.boxes[index].tolist()]} score {self.scores[index]:.5f} label {int(self.labels[index])}"


@dataclass(frozen=True)
class Limits:
    """When two boxes are the same, and when noise decides whether one is there.

    Args:
        box_noise: what float32 alone changes in a box, pixels.
        score: how far the scores of a pair may differ.
        nms, score_thresh: thresholds of the selection.
    """

    box_noise: float
    score: float
    nms: float
    score_thresh: float


@dataclass
class Pairing:
    """Recorded boxes and ours, one to one.

    Args:
        theirs, ours: indices of pairs.
        swapped: in words, boxes without a counterpart that stand so close to a threshold that noise decides.
        lost: in words, the others.
    """

    theirs: list[int]
    ours: list[int]
    swapped: list[str]
    lost: list[str]


def pair(theirs: Boxes, ours: Boxes, limits: Limits, partial: bool = False) -> Pairing:
    """Pair boxes of equal label, the best overlap first, and explain what is left over; with `partial`, of theirs only."""
    left = _match(theirs, ours, limits)
    rest = {"recorded": sorted(set(range(len(theirs.boxes))) - set(left)), "ours": []}
    if not partial:
        rest["ours"] = sorted(set(range(len(ours.boxes))) - set(left.values()))
    sides = {"recorded": (theirs, ours), "ours": (ours, theirs)}
    reasons = {(word, i): _near_threshold(*sides[word], i, limits) for word in sides for i in rest[word]}
    _follow_exchanges(reasons, sides, limits.nms)
    out = Pairing(list(left), list(left.values()), [], [])
    for (word, i), why in reasons.items():
        text = f"{word} {sides[word][0].describe(i)}"
        (out.swapped if why else out.lost).append(f"{text}: {why}" if why else text)
    return out


def _match(theirs: Boxes, ours: Boxes, limits: Limits) -> dict[int, int]:
    """{index of theirs: index of ours}."""
    iou = theirs.iou(ours)
    distance = (theirs.boxes[:, None] - ours.boxes[None]).abs().amax(-1)
    close = ((iou > MIN_IOU) | (distance <= 10 * limits.box_noise)) & (theirs.labels[:, None] == ours.labels[None])
    close &= (theirs.scores[:, None] - ours.scores[None]).abs() <= limits.score
    order = torch.where(close, iou, -1.0).flatten().argsort(descending=True, stable=True)
    left: dict[int, int] = {}
    taken: set[int] = set()
    for index in order[: int(close.sum())].tolist():
        i, j = divmod(index, len(ours.boxes))
        if i not in left and j not in taken:
            left[i] = j
            taken.add(j)
    return left


def _near_threshold(side: Boxes, other: Boxes, index: int, limits: Limits) -> str:
    """Which threshold a box is so close to that noise decides about it; empty for none."""
    score = side.scores[index]
    if abs(score - limits.score_thresh) <= limits.score:
        return "at the score threshold"
    if len(other.scores) and score <= other.scores.min() + limits.score:
        return "at the end of the list"
    for boxes in (side, other):
        iou = side.iou(boxes)[index]
        if ((iou - limits.nms).abs() < 1 - MIN_IOU).any():
            return "at the overlap of suppression"
        # A rival is another box; a moved copy of this one would be an error, not an exchange.
        if ((iou > limits.nms) & (iou < 0.9) & ((boxes.scores - score).abs() <= limits.score)).any():
            return "scores as much as a rival that it overlaps"
    return ""


def _follow_exchanges(reasons: dict[tuple[str, int], str], sides: dict[str, tuple[Boxes, Boxes]], nms: float) -> None:
    """What an exchanged box suppresses on its own side lives on the other."""
    for (word, i), why in list(reasons.items()):
        side, other = sides[word]
        exchanged = [j for (word_of_j, j), known in reasons.items() if word_of_j != word and known]
        if not why and (side.iou(other)[i, exchanged] > nms).any():
            reasons[word, i] = "free of a box that was exchanged"
