"""Soft suppression against the loop of the paper, and scores that detections of each class must have; both with fixed shapes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, narrow_model, scene_of
from torch._subclasses.fake_tensor import FakeTensorMode

from maskrcnn_bench.layers.soft_nms import soft_nms
from maskrcnn_bench.modeling.detector import set_class_thresholds
from maskrcnn_bench.utils.data_dependent import StaticGraphRecorder

METHODS = pytest.mark.parametrize("method", ["linear", "gaussian"])
NAMES = ("__background__", "cat", "dog", "cow", "bird")


def overlap(a, b, pixel):
    areas = [(x2 - x1 + pixel) * (y2 - y1 + pixel) for x1, y1, x2, y2 in (a, b)]
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + pixel for k in (0, 1))
    inter = max(width, 0) * max(height, 0)
    return inter / (sum(areas) - inter)


def slow(boxes, scores, method, threshold, sigma, min_score, pixel):
    """Figure 2 of the paper: {index: score at which it was taken}."""
    left, taken = dict(enumerate(scores)), {}
    while left := {index: score for index, score in left.items() if score > min_score}:
        best = max(left, key=lambda index: (left[index], -index))
        taken[best] = left.pop(best)
        for index in left:
            iou = overlap(boxes[best], boxes[index], pixel)
            left[index] *= math.exp(-(iou**2) / sigma) if method == "gaussian" else (1 - iou if iou > threshold else 1)
    return taken


def crowd(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(rows, size, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 10 + torch.rand(rows, size, 2, generator=generator) * 30], dim=2)
    return boxes, torch.rand(rows, size, generator=generator), torch.rand(rows, size, generator=generator) > 0.2


@METHODS
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(0, 20), pixel=st.sampled_from([0, 1]), min_score=st.sampled_from([0.0, 0.05, 0.3]))
def test_scores_are_those_of_the_paper_s_loop(method, seed, size, pixel, min_score):
    boxes, scores, valid = crowd(3, size, seed)
    options = {"method": method, "threshold": 0.3, "sigma": 0.5, "min_score": min_score, "pixel": pixel}
    found = soft_nms(boxes, scores, valid, **options)
    for row in range(3):
        inds = [index for index in range(size) if valid[row, index]]
        expected = slow([boxes[row, i].tolist() for i in inds], [scores[row, i].item() for i in inds], **options)
        wanted = torch.full((size,), -math.inf)
        for place, score in expected.items():
            wanted[inds[place]] = score
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-6)


@METHODS
def test_the_best_need_no_more_rounds_than_there_are_of_them(method):
    boxes, scores, valid = crowd(4, 40, 1)
    whole, part = (soft_nms(boxes, scores, valid, method, rounds=rounds) for rounds in (-1, 7))
    assert ((part > -math.inf).sum(dim=1) == 7).all()
    assert torch.equal(part.topk(7, dim=1).values, whole.topk(7, dim=1).values)
    with pytest.raises(ValueError, match="expected a method of linear, gaussian"):
        soft_nms(boxes, scores, valid, "hard")


@METHODS
@pytest.mark.parametrize("family", ["mask_fpn", "retinanet", "d2_retinanet", "d2_cascade_mask_fpn"])
def test_detections_keep_company_with_a_lower_score(family, method):
    images, _ = scene_of(family)
    many = (
        "TEST.DETECTIONS_PER_IMG",
        300,
        "MODEL.ROI_HEADS.DETECTIONS_PER_IMG",
        300,
        "MODEL.ROI_HEADS.NMS",
        0.2,
        "MODEL.RETINANET.NMS_TH",
        0.2,
    )
    usual = narrow_model(family, *many).eval()
    soft = narrow_model(family, *many, "TEST.SOFT_NMS.METHOD", method, "TEST.SOFT_NMS.MIN_SCORE", 0).eval()
    with torch.no_grad():
        hard, lowered = usual(images), soft(images)
    for before, after in zip(hard, lowered, strict=True):
        scores = after.get_field("scores")
        assert len(after) >= len(before) > 0 and (scores[1:] <= scores[:-1]).all()
        # What nothing better overlaps keeps its score: the very best.
        assert scores[0] == before.get_field("scores")[0] and torch.equal(after.bbox[0], before.bbox[0])
    assert not torch.equal(hard.get_field("scores"), lowered.get_field("scores"))


@pytest.mark.parametrize("family", ["mask_fpn", "retinanet", "d2_retinanet"])
def test_each_class_has_its_threshold(family):
    images, _ = scene_of(family)
    model = narrow_model(family, "TEST.DETECTIONS_PER_IMG", 1000, "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 1000).eval()
    with torch.no_grad():
        usual = model(images)
        scores, labels = usual.get_field("scores"), usual.get_field("labels")
        limits = {name: scores[usual.valid & (labels == label)].median().item() for label, name in ((2, "dog"), (4, "bird"))}
        set_class_thresholds(model, [[name, limit] for name, limit in limits.items()], NAMES)
        limited = model(images)
    for before, after in zip(usual, limited, strict=True):
        least = torch.tensor([0.0, 0.0, limits["dog"], 0.0, limits["bird"]])[before.get_field("labels")]
        kept = before[before.get_field("scores") > least]
        assert torch.equal(kept.bbox, after.bbox) and torch.equal(kept.get_field("labels"), after.get_field("labels"))
    assert limited.valid.sum() < usual.valid.sum()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([["horse", 0.5]], "no class 'horse'; the model knows cat, dog, cow, bird"),
        ([["cat", 1.5]], "expected .*scores of 0 to 1"),
        (["cat", 0.5], "expected .*name of a class"),
        ([["cat", 0.5], ["dog", 0.1], ["cat", 0.2]], "expected each class once, got 'cat' more often"),
    ],
)
def test_wrong_thresholds_are_explained(wanted, message):
    with pytest.raises(ValueError, match=message):
        set_class_thresholds(narrow_model("faster_fpn"), wanted, NAMES)
    with pytest.raises(ValueError, match="does not choose detections by class"):
        set_class_thresholds(narrow_model("rpn_fpn"), wanted, NAMES)


@pytest.mark.parametrize("family", ["mask_fpn", "retinanet"])
def test_shapes_stay_fixed_and_nothing_waits(family):
    options = ("MODEL.STATIC_SHAPES", True, "TEST.SOFT_NMS.METHOD", "gaussian", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 5)
    images, _ = scene_of(family)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = narrow_model(family, *options, "TEST.DETECTIONS_PER_IMG", 5).eval()
        set_class_thresholds(model, [["dog", 0.3]], NAMES)
        images = images._map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"))
        with StaticGraphRecorder() as recorder, torch.no_grad():
            assert model(images).boxes.device.type == "cuda"
    assert not recorder.copies and not recorder.data_dependent


def test_off_it_is_not_there():
    assert all(narrow_model(family).roi_heads.box.selector.soft_nms is None for family in FAMILIES if family.endswith("mask_fpn"))
