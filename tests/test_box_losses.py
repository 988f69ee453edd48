"""Losses of box regression: values and gradients in float64 against references that take one box, and one number, at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from models import narrow_config, narrow_model, scene_of

from maskrcnn_bench.modeling.box_coder import BoxCoder
from maskrcnn_bench.modeling.losses import DECODED_LOSSES, RegressionLoss, binary_cross_entropy, cross_entropy

LOG_MAX = math.log(1000 / 16)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
KINDS = ["smooth_l1", "l1", "iou", "giou", "bounded_iou"]


def decoded(code, box, pixel):
    """One box from one code, by the equations of Fast R-CNN."""
    width, height = box[2] - box[0] + pixel, box[3] - box[1] + pixel
    x, y = box[0] + width / 2 + code[0] / WEIGHTS[0] * width, box[1] + height / 2 + code[1] / WEIGHTS[1] * height
    w = width * torch.exp(torch.clamp(code[2] / WEIGHTS[2], -LOG_MAX, LOG_MAX))
    h = height * torch.exp(torch.clamp(code[3] / WEIGHTS[3], -LOG_MAX, LOG_MAX))
    return x - w / 2, y - h / 2, x + w / 2 - pixel, y + h / 2 - pixel


def encoded(box, reference, pixel):
    width, height = reference[2] - reference[0] + pixel, reference[3] - reference[1] + pixel
    w, h = box[2] - box[0] + pixel, box[3] - box[1] + pixel
    dx = (box[0] + w / 2 - reference[0] - width / 2) / width
    dy = (box[1] + h / 2 - reference[1] - height / 2) / height
    return [v * f for v, f in zip((dx, dy, torch.log(w / width), torch.log(h / height)), WEIGHTS, strict=True)]


def smooth(x, beta):
    """Parabola up to beta, line beyond."""
    x = abs(x)
    return x * x / (2 * beta) if beta and x < beta else x - beta / 2


def areas(a, b, pixel):
    """Intersection, union, and the smallest box around both."""
    zero = torch.zeros((), dtype=torch.float64)
    w = torch.maximum(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]) + pixel, zero)
    h = torch.maximum(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]) + pixel, zero)
    area = [(box[2] - box[0] + pixel) * (box[3] - box[1] + pixel) for box in (a, b)]
    hull_w = torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0]) + pixel
    hull_h = torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1]) + pixel
    return w * h, area[0] + area[1] - w * h, hull_w * hull_h


def bounded(a, b, pixel):
    """Each of the four numbers on its own, while the other three are right."""
    total = 0
    for axis in (0, 1):
        size, wanted = a[axis + 2] - a[axis] + pixel, b[axis + 2] - b[axis] + pixel
        off = abs((b[axis] + b[axis + 2]) / 2 - (a[axis] + a[axis + 2]) / 2)
        share = (wanted - 2 * off) / (wanted + 2 * off + 1e-3)
        total = total + smooth(1 - (share if share > 0 else 0 * share), 0.2)
        ratio = torch.minimum(wanted / (size + 1e-3), size / (wanted + 1e-3))
        total = total + smooth(1 - ratio, 0.2)
    return total


def reference(kind, code, box, wanted, pixel, beta):
    """The loss of one box."""
    if kind in ("smooth_l1", "l1"):
        return sum(smooth(c - t, beta if kind == "smooth_l1" else 0) for c, t in zip(code, encoded(wanted, box, pixel), strict=True))
    found = decoded(code, box, pixel)
    inter, union, hull = areas(found, wanted, pixel)
    iou = inter / union
    if kind == "iou":
        return -torch.log(iou) if iou > 1e-6 else 0 * iou - math.log(1e-6)
    return 1 - iou + (hull - union) / hull if kind == "giou" else bounded(found, wanted, pixel)


def problem(n=40, seed=0):
    """Codes, references, objects near most of them, and which count."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 200
    size = 5 + torch.rand(n, 2, generator=generator, dtype=torch.float64) * 80
    boxes = torch.cat([corner, corner + size], dim=1)
    wanted = boxes + torch.randn(n, 4, generator=generator, dtype=torch.float64) * size.repeat(1, 2) * 0.1
    wanted[-4:] += 900  # no overlap
    codes = torch.randn(n, 4, generator=generator, dtype=torch.float64) * 2
    codes[:3, 2:] = torch.tensor([60.0, -60.0], dtype=torch.float64)  # beyond the clamp
    return codes, boxes, wanted, torch.rand(n, generator=generator) < 0.8


@pytest.mark.parametrize("pixel", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_slow_reference(kind, pixel):
    codes, boxes, wanted, mask = problem()
    coder = BoxCoder(WEIGHTS, pixel, float(pixel), (-LOG_MAX, LOG_MAX))
    ours = codes.clone().requires_grad_()
    loss = RegressionLoss(kind, 0.7, 2.5)(coder, ours, boxes, wanted, mask)
    loss.backward()
    theirs = codes.clone().requires_grad_()
    slow = sum(2.5 * reference(kind, theirs[i], boxes[i], wanted[i], pixel, 0.7) for i in mask.nonzero()[:, 0].tolist())
    slow.backward()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    assert (ours.grad[~mask] == 0).all() and ours.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", sorted(DECODED_LOSSES))
def test_gradients_are_those_of_small_steps(kind):
    codes, boxes, wanted, mask = problem(12, seed=3)
    coder = BoxCoder(WEIGHTS, 0, 0.0, (-LOG_MAX, LOG_MAX))
    assert torch.autograd.gradcheck(lambda c: RegressionLoss(kind, 0.0)(coder, c, boxes, wanted, mask), (codes.requires_grad_(),))


@pytest.mark.parametrize("kind", sorted(DECODED_LOSSES))
def test_a_perfect_box_costs_nothing_and_a_far_one_most(kind):
    box = torch.tensor([[10.0, 20.0, 50.0, 80.0]])
    loss = DECODED_LOSSES[kind]
    perfect, near, far = (loss(box + shift, box, 0).sum().item() for shift in (0.0, 3.0, 500.0))
    assert abs(perfect) < 1e-4 and perfect < near < far and math.isfinite(far)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_that_do_not_count_may_hold_anything(kind):
    """Padding of the batch holds numbers that no box has; neither loss nor gradient may notice."""
    codes, boxes, wanted, mask = (x.float() if x.is_floating_point() else x for x in problem(8))
    coder = BoxCoder(WEIGHTS, 0, 0.0, (-LOG_MAX, LOG_MAX))
    results = []
    for garbage in (0.0, 1e30):
        dirty = torch.where(mask[:, None], codes, garbage).requires_grad_()
        loss = RegressionLoss(kind, 0.0)(coder, dirty, boxes, wanted, mask)
        results.append((loss.detach(), torch.autograd.grad(loss, dirty)[0][mask]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    none = RegressionLoss(kind, 0.0)(coder, codes.requires_grad_(), boxes, wanted, torch.zeros_like(mask))
    assert none == 0 and (torch.autograd.grad(none, codes)[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_keys_reach_both_stages(kind):
    keys = [w for part in ("RPN", "ROI_BOX_HEAD") for w in (f"MODEL.{part}.BOX_REG_LOSS", kind, f"MODEL.{part}.BOX_REG_LOSS_WEIGHT", 4.0)]
    model = narrow_model("mm_mask_fpn", *keys)
    assert model.rpn.loss.box_loss == model.roi_heads.box.loss.box_loss == RegressionLoss(kind, 0.0, 4.0)
    images, targets = scene_of("mm_mask_fpn")
    losses = model(images, targets)
    torch.autograd.backward(losses["loss_rpn_box_reg"] + losses["loss_box_reg"])
    for layer in (model.rpn.head.bbox_pred, model.roi_heads.box.predictor.bbox_pred):
        assert torch.isfinite(layer.weight.grad).all() and layer.weight.grad.abs().sum() > 0


def test_the_dialect_decides_what_smooth_means_unless_a_key_does():
    betas = {family: narrow_model(family).roi_heads.box.loss.box_loss.beta for family in ("mm_faster_dc5", "faster_fpn", "d2_mask_fpn")}
    assert betas == {"mm_faster_dc5": 0.0, "faster_fpn": 1.0, "d2_mask_fpn": 0.0}
    keys = ["MODEL.RPN.SMOOTH_L1_BETA", 0.25, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.5]
    model = narrow_model("mm_faster_dc5", *keys)
    assert (model.rpn.loss.box_loss.beta, model.roi_heads.box.loss.box_loss.beta) == (0.25, 0.5)
    with pytest.raises(ValueError, match="BOX_REG_LOSS"):
        narrow_config("faster_fpn", "MODEL.RPN.BOX_REG_LOSS", "diou")


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
)
def test_losses_of_classes_are_as_exact_as_their_logits(given, expected):
    logits, mask = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(given), torch.ones(4, dtype=torch.bool)
    one, several = binary_cross_entropy(logits[:, 0], mask, mask), cross_entropy(logits, torch.arange(4) % 3, mask)
    assert one.dtype == several.dtype == expected
    torch.testing.assert_close(several, F.cross_entropy(logits.to(expected), torch.arange(4) % 3, reduction="sum"))
