"""Losses over slots of which only some count, in float32; float64 stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .box_coder import BoxCoder


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the values whose slot counts; values of the others are not looked at. values [..., D*], mask [...]"""
    mask = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    return torch.where(mask, values, 0.0).sum()


def count(mask: Tensor) -> Tensor:
    """How many slots count, at least 1, so that nothing to learn from gives a loss of 0."""
    return mask.sum().clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x if x.dtype == torch.float64 else x.float()


def smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 loss (Fast R-CNN, equation 3) over the slots that count; `beta` 0 is L1.

    Args:
        prediction, target: [..., 4]
        mask: slots that count. [...]
    """
    prediction = _wide(prediction)
    target = torch.where(mask[..., None], target, prediction.detach())
    return masked_sum(F.smooth_l1_loss(prediction, target, reduction="none", beta=beta), mask)


def iou_loss(prediction: Tensor, target: Tensor, pixel: int, eps: float = 1e-6) -> Tensor:
    """-log(IoU) of boxes with their targets (UnitBox), the IoU at least `eps`.

    Args:
        prediction, target: xyxy, pixels. [R, 4]
        pixel: what a width adds to x2 - x1.
    Returns:
        [R]
    """
    inter, union, _ = _overlap(prediction, target, pixel)
    return -(inter / union.clamp(min=eps)).clamp(min=eps).log()


def giou_loss(prediction: Tensor, target: Tensor, pixel: int, eps: float = 1e-6) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019). Arguments and result as `iou_loss`."""
    inter, union, hull = _overlap(prediction, target, pixel)
    union, hull = union.clamp(min=eps), hull.clamp(min=eps)
    return 1 - (inter / union - (hull - union) / hull)


def bounded_iou_loss(prediction: Tensor, target: Tensor, pixel: int, beta: float = 0.2, eps: float = 1e-3) -> Tensor:
    """Smooth L1 of what each of x, y, width, height alone lets the IoU fall short of 1 (Tychsen-Smith and Petersson 2018, equation 12).

    Arguments as `iou_loss`; `beta` is where the parabola ends. [R, 4]
    """
    size, target_size = (b[..., 2:] - b[..., :2] + pixel for b in (prediction, target))
    distance = (target[..., :2] + target[..., 2:] - prediction[..., :2] - prediction[..., 2:]).abs()  # twice that of the centres
    ratio = (target_size - distance) / (target_size + distance + eps)
    moved = 1 - torch.maximum(ratio, torch.zeros_like(ratio))
    scaled = 1 - torch.minimum(target_size / (size + eps), size / (target_size + eps))
    short = torch.cat([moved, scaled], dim=-1)
    return torch.where(short < beta, 0.5 * short * short / beta, short - 0.5 * beta)


def _overlap(boxes1: Tensor, boxes2: Tensor, pixel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and smallest common box, pair by pair. [R, 4] x 2 -> 3 x [R]"""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    inter = _area((high - low + pixel).clamp(min=0))
    area1, area2 = (_area(b[..., 2:] - b[..., :2] + pixel) for b in (boxes1, boxes2))
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2]) + pixel
    return inter, area1 + area2 - inter, _area(hull.clamp(min=0))


def _area(sides: Tensor) -> Tensor:
    # Not prod(), whose gradient asks the device whether a factor is 0.
    return sides[..., 0] * sides[..., 1]


DECODED_LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "iou": iou_loss,
    "giou": giou_loss,
    "bounded_iou": bounded_iou_loss,
}
"""Losses between boxes instead of codes: (prediction xyxy [R, 4], target [R, 4], pixel) -> [R] or [R, 4]."""


@dataclass(frozen=True)
class RegressionLoss:
    """What a box regression should have answered, as a sum over the boxes that count.

    Args:
        kind: "smooth_l1" and "l1" compare codes, a key of DECODED_LOSSES the boxes that they mean.
        beta: where smooth L1 turns from a parabola to a line; 0 is L1.
        weight: factor of the loss.
    """

    kind: str
    beta: float
    weight: float = 1.0

    def __call__(self, box_coder: BoxCoder, codes: Tensor, references: Tensor, objects: Tensor, mask: Tensor) -> Tensor:
        """The sum.

        Args:
            box_coder: between codes and boxes.
            codes: predicted. [..., 4]
            references: anchors or proposals, xyxy, pixels. [..., 4]
            objects: ground truth, xyxy, same pixels. [..., 4]
            mask: boxes that count. [...]
        """
        if self.kind not in DECODED_LOSSES:
            beta = 0.0 if self.kind == "l1" else self.beta
            return self.weight * smooth_l1(codes, box_coder.encode(objects, references), mask, beta)
        # A box that does not count is its own target, so that no gradient of it is NaN.
        boxes = box_coder.decode(torch.where(mask[..., None], _wide(codes), 0.0), references)
        objects = torch.where(mask[..., None], objects, boxes.detach())
        return self.weight * masked_sum(DECODED_LOSSES[self.kind](boxes, objects, box_coder.pixel), mask)


def binary_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of the binary cross-entropy with logits over the slots that count. All [...]; mask may lack the last dimensions."""
    logits = _wide(logits)
    return masked_sum(F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none"), mask)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cross-entropy over the slots that count. logits [R, K], labels [R], mask [R]"""
    return masked_sum(F.cross_entropy(_wide(logits), torch.where(mask, labels, 0), reduction="none"), mask)
