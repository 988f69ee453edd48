"""RetinaNet's parts against slow references."""

from __future__ import annotations

import pytest
import torch
from models import narrow_model, scene

from maskrcnn_bench.config.dialect import DIALECTS
from maskrcnn_bench.layers import SigmoidFocalLoss, sigmoid_focal_loss
from maskrcnn_bench.modeling.backbone.fpn import LastLevelP6P7
from maskrcnn_bench.modeling.box_coder import BoxCoder
from maskrcnn_bench.modeling.rpn.retinanet import NORMALIZERS, MovingAverage, RetinaNetSelector
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.boxlist_ops import boxlist_nms
from maskrcnn_bench.weights import convert, load_into, recognise, to_detectron2, to_torchvision

# Focal loss


def slow_focal_loss(logits, labels, gamma, alpha):
    """The paper's formula, number by number."""
    out = torch.zeros_like(logits)
    for i, label in enumerate(labels.tolist()):
        for k in range(logits.shape[1]):
            p = torch.sigmoid(logits[i, k])
            if label == k + 1:
                out[i, k] = -alpha * (1 - p) ** gamma * torch.log(p)
            elif label >= 0:
                out[i, k] = -(1 - alpha) * p**gamma * torch.log(1 - p)
    return out


def test_focal_loss_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(12, 4, generator=generator) * 3).requires_grad_()
    labels = torch.randint(-1, 5, (12,), generator=generator)
    exact = logits.detach().double().requires_grad_()
    fast, slow = sigmoid_focal_loss(logits, labels, 2.0, 0.25), slow_focal_loss(exact, labels, 2.0, 0.25)
    torch.testing.assert_close(fast, slow.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(SigmoidFocalLoss(2.0, 0.25)(logits, labels), slow.sum().float())
    fast.sum().backward()
    slow.sum().backward()
    torch.testing.assert_close(logits.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)


def test_focal_loss_at_the_ends_is_finite_in_half_precision_too():
    logits = torch.tensor([[200.0, -200.0]], dtype=torch.float16, requires_grad=True)
    for label, expected in ((1, 0.0), (2, 0.75 * 200 + 0.25 * 200)):
        loss = SigmoidFocalLoss(2.0, 0.25)(logits, torch.tensor([label]))
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


# What the losses are divided by


def test_divisors():
    positives = torch.tensor([6, 0])
    numbers = {name: [d.tolist() for d in make()(positives)] for name, make in NORMALIZERS.items()}
    assert numbers.pop("moving_average") == [pytest.approx(90.6)] * 2  # .9 * 100 + .1 * 6
    assert numbers == {"positives_and_images": [8, 6], "positives": [7, 7], "positives_of_image": [[12, 2], [12, 2]]}


def test_the_average_moves_in_training_only_and_travels_with_the_weights():
    average = MovingAverage()
    average(torch.tensor([0, 0]))
    assert average.average.item() == pytest.approx(90.1)
    average.eval()(torch.tensor([50, 50]))
    assert average.state_dict()["average"].item() == pytest.approx(90.1)


# Selection


def slow_detections(select, anchors, logits, regression, size):
    """As the reference does it: all pairs of a level ranked at once, one class after the other suppressed."""
    found = []
    for a, x, r in zip(anchors, logits, regression, strict=True):
        scores, order = x.sigmoid().flatten().sort(descending=True, stable=True)
        order = order[scores > select.score_thresh][: select.pre_nms_top_n]
        inds, classes = order // x.shape[1], order % x.shape[1]
        boxlist = BoxList(select.box_coder.decode(r[inds], a[inds]), size).clip_to_image(remove_empty=False)
        boxlist.add_field("scores", x.sigmoid().flatten()[order])
        boxlist.add_field("labels", classes + 1)
        found.append(boxlist)
    boxes = torch.cat([f.bbox for f in found])
    scores, labels = (torch.cat([f.get_field(name) for f in found]) for name in ("scores", "labels"))
    kept = []
    for label in labels.unique():
        boxlist = BoxList(boxes[labels == label], size)
        boxlist.add_field("scores", scores[labels == label])
        boxlist.add_field("labels", labels[labels == label])
        kept.append(boxlist_nms(boxlist, select.nms_thresh, score_field="scores"))
    boxes = torch.cat([k.bbox for k in kept])
    scores, labels = (torch.cat([k.get_field(name) for k in kept]) for name in ("scores", "labels"))
    order = scores.argsort(descending=True)[: select.detections_per_img]
    return boxes[order], scores[order], labels[order]


@pytest.mark.parametrize("seed", range(3))
def test_selection_equals_the_ranking_of_all_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(90, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + 5 + torch.rand(90, 2, generator=generator) * 40], dim=1)
    anchors = [boxes[:80], boxes[80:]]
    logits = [torch.randn(2, len(a), 6, generator=generator) * 2 - 2 for a in anchors]
    regression = [torch.randn(2, len(a), 4, generator=generator) for a in anchors]
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), 1, 1.0, DIALECTS["maskrcnn_benchmark"].log_size_range)
    select = RetinaNetSelector(coder, 1, 0.05, 40, 0.4, 15, ties=3, clip=True, drop_empty=False, pixel=1)
    sizes = torch.tensor([[100.0, 90.0], [70.0, 110.0]])
    out = select(anchors, logits, regression, sizes)
    for n, boxlist in enumerate(out):
        slow = slow_detections(select, anchors, [x[n] for x in logits], [r[n] for r in regression], tuple(sizes[n].tolist()))
        torch.testing.assert_close(boxlist.bbox, slow[0])
        torch.testing.assert_close(boxlist.get_field("scores"), slow[1])
        assert torch.equal(boxlist.get_field("labels"), slow[2])


def test_nothing_above_the_threshold_is_no_detection():
    model = narrow_model("retinanet", "MODEL.RETINANET.INFERENCE_TH", 0.9).eval()
    with torch.no_grad():
        assert model(scene()[0]).counts == [0, 0]


# The model


def test_the_classifier_starts_at_its_prior():
    head = narrow_model("retinanet").rpn.head
    logits = head([torch.zeros(1, 16, 4, 4)])[0][0]
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))


def test_levels_from_c5_and_from_p5():
    c5, p5 = torch.randn(1, 6, 5, 5), torch.randn(1, 4, 5, 5)
    for use_c5, source in ((True, c5), (False, p5)):
        top = LastLevelP6P7(source.shape[1], 4, use_c5)
        p6, p7 = top(c5, p5)
        assert torch.equal(p6, top.p6(source)) and torch.equal(p7, top.p7(p6.relu()))
    plain = LastLevelP6P7(6, 4, True, relu=False)
    assert torch.equal(plain(c5, p5)[1], plain.p7(plain.p6(c5)))


@pytest.mark.parametrize("write", [to_detectron2, to_torchvision])
def test_weights_go_to_other_projects_and_back(write):
    model = narrow_model("d2_retinanet", seed=1)
    theirs = write(model.state_dict())
    assert "RetinaNet" in recognise(theirs).kind
    other = narrow_model("d2_retinanet", seed=2)
    report = load_into(other, convert(theirs), strict=True)
    assert not report.missing
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
