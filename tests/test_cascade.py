"""Cascade R-CNN against its definition, one image and one stage at a time, and the names of detectron2's checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import narrow_model, scene

from maskrcnn_bench.modeling.poolers import RoIs
from maskrcnn_bench.modeling.roi_heads import cascade
from maskrcnn_bench.modeling.roi_heads.cascade import ScaleGradient
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch, Detections
from maskrcnn_bench.structures.boxlist_ops import box_iou
from maskrcnn_bench.weights import convert, load_into, to_detectron2

IOUS, WEIGHTS = (0.5, 0.6, 0.7), ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))


@pytest.fixture
def model():
    """Box predictors that move boxes noticeably and know all classes."""
    model = narrow_model("d2_cascade_mask_fpn", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000000)
    for stage, predictor in enumerate(model.roi_heads.box.predictor):
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3, generator=torch.Generator().manual_seed(stage))
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.05, generator=torch.Generator().manual_seed(9 + stage))
    return model


def stage_outputs(model, features, boxes, image, stage):
    """Logits and deltas of one stage for exact boxes of one image."""
    box = model.roi_heads.box
    rois = RoIs.flatten(BoxListBatch.pad([BoxList(boxes, (1, 1), pixel=0)], bucket=False), static=False)
    return box.predictor[stage](box.feature_extractor[stage]([f[image : image + 1] for f in features], rois))


def moved(boxes, deltas, weights, width, height):
    """Boxes where the deltas want them, inside the image."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2
    d = deltas / torch.tensor(weights, dtype=torch.float32)
    centre, size = centre + d[:, :2] * size, size * d[:, 2:].clamp(max=4.135166556742356).exp()
    limit = torch.tensor([width, height], dtype=torch.float32)
    low, high = (torch.minimum((centre + s * size / 2).clamp(min=0), limit) for s in (-1, 1))
    return torch.cat([low, high], dim=1)


def test_detections_are_those_of_the_definition(model):
    images, _ = scene(pixel=0)
    model.eval()
    with torch.no_grad():
        features = model.backbone(model.normalizer(images))
        proposals = model.rpn(images, features)[0]
        candidates, scores = model.roi_heads.box.candidates(features, proposals)
        found = model(images)
    for n, boxlist in enumerate(proposals):
        (width, height), boxes, probabilities = boxlist.size, boxlist.bbox, []
        with torch.no_grad():
            for stage in range(3):
                logits, deltas = stage_outputs(model, features, boxes, n, stage)
                probabilities.append(logits.softmax(dim=1))
                boxes = moved(boxes, deltas[:, 4:], WEIGHTS[stage], width, height)
        mean = sum(probabilities) / 3
        used = proposals.valid[n]
        torch.testing.assert_close(scores[n][:, used], mean[:, 1:].T, rtol=1e-4, atol=1e-5)
        for label in range(4):
            torch.testing.assert_close(candidates[n, label][used], boxes, rtol=1e-4, atol=1e-3)
        assert (scores[n][:, ~used] == -1).all() and (boxes - boxlist.bbox).abs().max() > 5
    assert isinstance(found, Detections) and min(found.counts) > 0 and "mask" in found.fields


def test_losses_are_those_of_the_definition(model):
    """Every stage labels the boxes of the one before anew; boxes that became empty are left out."""
    images, targets = scene(pixel=0)
    with torch.no_grad():  # little moves, so that the objects among the proposals stay positive
        for predictor in model.roi_heads.box.predictor:
            predictor.bbox_pred.weight *= 0.01
    losses = model(images, targets)
    with torch.no_grad():
        features = model.backbone(model.normalizer(images))
        proposals = model.rpn(images, features, targets, images.keys)[0]
    boxes = [b.bbox for b in proposals]
    for stage in range(3):
        total_class = total_box = count = 0
        following = []
        for n, (ground, size) in enumerate(zip(targets, images.image_sizes, strict=True)):
            if stage:
                boxes[n] = boxes[n][((boxes[n][:, 2:] - boxes[n][:, :2]) > 0).all(dim=1)]
            with torch.no_grad():
                logits, deltas = stage_outputs(model, features, boxes[n], n, stage)
            overlap, matched = box_iou(ground.bbox, boxes[n], 0).max(dim=0)
            positive = overlap >= IOUS[stage]
            labels = torch.where(positive, ground.get_field("labels")[matched], 0)
            coder = model.roi_heads.box.stage_losses[stage].box_coder
            codes = coder.encode(ground.bbox[matched], boxes[n])
            total_class += F.cross_entropy(logits, labels, reduction="sum")
            total_box += (deltas[:, 4:] - codes)[positive].abs().sum()
            count += len(labels)
            following.append(moved(boxes[n], deltas[:, 4:], WEIGHTS[stage], size[1], size[0]))
        torch.testing.assert_close(losses[f"loss_classifier_stage{stage}"], total_class / count, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[f"loss_box_reg_stage{stage}"], total_box / count, rtol=1e-4, atol=1e-5)
        boxes = following
    assert losses["loss_box_reg_stage2"] > 0 and "loss_mask" in losses


def test_a_third_of_each_stages_gradient_reaches_the_trunk(model, monkeypatch):
    x = torch.randn(5, requires_grad=True)
    y = ScaleGradient.apply(x, 1 / 3)
    assert torch.equal(x, y)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((5,), 1 / 3))
    images, targets = scene(pixel=0)
    with torch.no_grad():
        features = model.backbone(model.normalizer(images))
        proposals = model.rpn(images, features, targets, images.keys)[0]
    gradients = []
    for scaling in (ScaleGradient, Unscaled):
        monkeypatch.setattr(cascade, "ScaleGradient", scaling)
        leaves = [f.clone().requires_grad_() for f in features[:4]]
        sum(model.roi_heads.box(leaves, proposals, targets, images.keys)[2].values()).backward()
        gradients.append(leaves[0].grad)
    torch.testing.assert_close(gradients[1], 3 * gradients[0], rtol=1e-4, atol=1e-6)


class Unscaled:
    @staticmethod
    def apply(x, factor):
        return x


def test_names_are_detectron2s(model):
    theirs = to_detectron2(model.state_dict())
    assert {f"roi_heads.box_head.{k}.fc{i}.weight" for k in range(3) for i in (1, 2)} <= set(theirs)
    assert theirs["roi_heads.box_predictor.2.bbox_pred.weight"].shape[0] == 4 and theirs[
        "roi_heads.box_predictor.0.cls_score.bias"
    ].shape == (5,)
    other = narrow_model("d2_cascade_mask_fpn", seed=7)
    report = load_into(other, convert(theirs), strict=True)
    assert len(report.loaded) == report.total
    for own, same in zip(model.roi_heads.box.predictor, other.roi_heads.box.predictor, strict=True):
        assert torch.equal(own.cls_score.weight, same.cls_score.weight) and torch.equal(own.bbox_pred.weight[4:], same.bbox_pred.weight[4:])


def test_contradictions_are_named():
    with pytest.raises(ValueError, match="set MODEL.CLS_AGNOSTIC_BBOX_REG True"):
        narrow_model("d2_cascade_mask_fpn", "MODEL.CLS_AGNOSTIC_BBOX_REG", False)
    with pytest.raises(ValueError, match="2 IOUS need as many BBOX_REG_WEIGHTS, got 3"):
        narrow_model("d2_cascade_mask_fpn", "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6))
