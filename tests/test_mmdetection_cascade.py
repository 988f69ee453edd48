"""Cascade Mask R-CNN as mmdetection computes it: its own numbers on narrow heads, and the parts that only it has."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from models import narrow_model

from maskrcnn_bench.modeling.losses import RegressionLoss
from maskrcnn_bench.modeling.matcher import Matcher
from maskrcnn_bench.modeling.roi_heads.box_head import BoxTargets
from maskrcnn_bench.modeling.roi_heads.cascade import CASCADE_SCORES, Redraw
from maskrcnn_bench.modeling.rpn.rpn import append_objects
from maskrcnn_bench.modeling.sampler import BalancedSampler
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.weights import convert

WIDTH, HEIGHT = 128, 96
OBJECTS = [[20.0, 15, 70, 60], [60, 30, 120, 90], [5, 50, 40, 92]]
EVERY = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5]


def drawn(name: str, shape: list[int], std: float = 1.0) -> torch.Tensor:
    """Normal numbers that follow from a name, as they were drawn for mmdetection."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std))


@pytest.fixture(scope="module")
def golden():
    """What mmdetection 3 answered."""
    return json.loads((Path(__file__).parent / "golden" / "mmdetection_cascade.json").read_text())


@pytest.fixture
def model(golden):
    """The heads with the weights that mmdetection had, through the converter."""
    model = narrow_model("mm_cascade_mask_fpn", *EVERY)
    stds = {name: 0.3 if "logits" in name or "fc_cls" in name else 0.1 for name in golden["shapes"]}
    state = {name: drawn(name, shape, stds[name]) for name, shape in golden["shapes"].items()}
    loaded = convert(state | {"rpn_head.rpn_conv.weight": torch.zeros(16, 16, 3, 3)})
    missing, unexpected = model.load_state_dict(loaded.state_dict, strict=False)
    assert not [name for name in missing if name.startswith("roi_heads.")] and not unexpected and not loaded.meta["unused"]
    return model


def scene_of_the_golden(golden):
    """Features, proposals and ground truth; an object is the left half of its box."""
    features = [drawn(f"feature{i}", [1, 16, 24 >> i, 32 >> i]).requires_grad_() for i in range(4)]
    target = BoxList(torch.tensor(OBJECTS), (WIDTH, HEIGHT), pixel=0)
    target.add_field("labels", torch.tensor([2, 4, 1]))
    halves = [[[x1, y1, (x1 + x2) // 2, y1, (x1 + x2) // 2, y2, x1, y2]] for x1, y1, x2, y2 in OBJECTS]
    target.add_field("masks", SegmentationMask(halves, (WIDTH, HEIGHT)).convert("mask"))
    proposals = BoxListBatch.pad([BoxList(torch.tensor(golden["proposals"]), (WIDTH, HEIGHT), pixel=0)])
    return features, proposals, BoxListBatch.pad([target])


def test_losses_and_gradients_are_those_of_mmdetection(model, golden):
    features, proposals, targets = scene_of_the_golden(golden)
    keys = torch.zeros(1, dtype=torch.int64)
    losses = model.roi_heads(features, append_objects(proposals, targets), targets, keys)[2]
    words = {"loss_cls": "loss_classifier", "loss_bbox": "loss_box_reg", "loss_mask": "loss_mask"}
    theirs = {f"{words[name[3:]]}_stage{name[1]}": value for name, value in golden["losses"].items()}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(theirs, rel=1e-5)
    sum(losses.values()).backward()
    assert features[0].grad.norm().item() == pytest.approx(golden["gradients"][0], rel=1e-4)


def test_detections_and_masks_are_those_of_mmdetection(model, golden):
    features, proposals, _ = scene_of_the_golden(golden)
    with torch.no_grad():
        found = model.eval().roi_heads(features, proposals)[1][0]
    assert len(found) == golden["count"]
    shown = len(golden["scores"])
    np.testing.assert_allclose(found.bbox[:shown], golden["boxes"], atol=2e-3)
    np.testing.assert_allclose(found.get_field("scores")[:shown], golden["scores"], atol=1e-5)
    assert (found.get_field("labels")[:shown] - 1).tolist() == golden["labels"]
    np.testing.assert_allclose(found.get_field("mask")[:3, 0].mean(dim=(1, 2)), golden["masks"], atol=1e-5)


def test_objects_join_each_draw_anew():
    """A stage's objects leave with their moved boxes; the objects themselves come instead."""
    targets = BoxListBatch.pad([BoxList(torch.tensor(OBJECTS), (WIDTH, HEIGHT), pixel=0)])
    targets.add_field("labels", torch.tensor([[2, 4, 1, 0]]))
    proposals = BoxListBatch.pad([BoxList(torch.tensor([[20.0, 15, 70, 58], [0, 0, 9, 9]]), (WIDTH, HEIGHT), pixel=0)])
    keys = torch.zeros(1, dtype=torch.int64)
    draw = BoxTargets(Matcher(0.5, 0.5), BalancedSampler(100, 0.5, "box"), 0, ("is_object",))
    first = draw(append_objects(proposals, targets), targets, keys)
    assert sorted(first.get_field("is_object")[0, :5].tolist()) == [False, False, True, True, True]
    moved = BoxListBatch(first.boxes + 1, first.valid, first.sizes, {"is_object": first.get_field("is_object")}, pixel=0)
    again = Redraw(draw)(moved, targets, keys)[0]
    assert sorted(again.bbox.tolist()) == sorted([*OBJECTS, [21, 16, 71, 59], [1, 1, 10, 10]])
    assert sorted(again.get_field("labels").tolist()) == [0, 1, 2, 2, 4]


def test_means_of_probabilities_and_of_logits_differ():
    logits = [torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[-2.0, 0.0]]])]
    sigmoid = torch.tensor([4.0, -2.0, 1.0]).sigmoid()
    assert CASCADE_SCORES["probability"](logits)[0, 0, 0].item() == pytest.approx(sigmoid[:2].mean().item())
    assert CASCADE_SCORES["logit"](logits)[0, 0, 0].item() == pytest.approx(sigmoid[2].item())


def test_losses_of_boxes_are_the_configured_ones():
    box = narrow_model("mm_cascade_mask_fpn").roi_heads.box
    assert [loss.box_loss for loss in box.stage_losses] == [RegressionLoss("smooth_l1", 1.0)] * 3
    assert box.loss_weights == [1.0, 0.5, 0.25] and box.gradient_factor == 1.0


def test_contradictions_are_named():
    with pytest.raises(ValueError, match="3 IOUS need as many LOSS_WEIGHTS, got 2"):
        narrow_model("mm_cascade_mask_fpn", "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS", (1.0, 1.0))
    with pytest.raises(ValueError, match="each stage of this cascade pools its masks"):
        narrow_model("mm_cascade_mask_fpn", "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", True)
