"""Soft suppression (Bodla et al. 2017): boxes that overlap a better one lose score instead of going.

Letters: B independent rows (images, classes), R boxes a row.
"""

import math

import torch
from torch import Tensor

from . import _ops
from .nms import overlaps

METHODS = ("linear", "gaussian")


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    method: str,
    threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    pixel: float = 1,
    rounds: int = -1,
) -> Tensor:
    """Scores after the suppression; fixed shapes and a fixed number of rounds, no wait for the device.

    A round takes the best box that is left, and multiplies the scores of the others by 1 - IoU where the IoU with it is above
    `threshold` ("linear"), or by exp(-IoU^2 / sigma) ("gaussian"). So boxes are taken by descending score, and whoever wants the
    best n of a row needs no more than n rounds.

    Args:
        boxes: xyxy, pixels. [B, R, 4]
        scores: at least 0; of equal scores the lower index comes first. [B, R]
        valid: False for padding, which neither is taken nor lowers others. [B, R]
        min_score: boxes whose score falls to this or below are dropped.
        pixel: what the width of a box adds to x2 - x1 (1 or 0).
        rounds: boxes to take, a row; negative: all.
    Returns:
        The score of each box when it was taken, -inf of those that were not. float32 [B, R]
    """
    if method not in METHODS:
        raise ValueError(f"soft_nms: expected a method of {', '.join(METHODS)}, got {method!r}")
    _ops.check_shape("soft_nms", "scores", scores, "B", "R")
    rows, size = scores.shape
    _ops.check_shape("soft_nms", "boxes", boxes, rows, size, 4)
    _ops.check_shape("soft_nms", "valid", valid, rows, size)
    boxes = boxes.float()
    left = torch.where(valid, scores.float(), 0.0)
    taken = torch.full_like(left, -math.inf)
    for _ in range(size if rounds < 0 else min(rounds, size)):
        left = torch.where(left > min_score, left, 0.0)
        best, index = left.max(dim=1, keepdim=True)
        # Where nothing is left, the index is one that may have been taken before.
        taken.scatter_(1, index, torch.maximum(taken.gather(1, index), torch.where(best > 0, best, -math.inf)))
        left.scatter_(1, index, 0.0)
        overlap = overlaps(boxes.gather(1, index[..., None].expand(-1, -1, 4)), boxes, pixel)
        left = left * (torch.where(overlap > threshold, 1 - overlap, 1.0) if method == "linear" else torch.exp(-(overlap**2) / sigma))
    return taken


def class_thresholds(values: tuple[float, ...], usual: float, classes: int, like: Tensor) -> Tensor:
    """One threshold a class, the usual one for those behind `values`, made where `like` is, so that nothing travels there. [classes]"""
    return torch.stack([like.new_full((), value) for value in (*values, *[usual] * (classes - len(values)))])
