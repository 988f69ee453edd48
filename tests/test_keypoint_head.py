"""Keypoint head: targets, loss and reading of heat maps against slow references, and a few steps on the toy data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import narrow_config, narrow_model, scene

from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.engine.inference import predict
from maskrcnn_bench.evaluation import evaluate
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.modeling.poolers import RoIs
from maskrcnn_bench.modeling.roi_heads.keypoint_head import KeypointLoss, any_point_in_box, heat_map_cells, locate
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.keypoint import PersonKeypoints

# Targets


def slow_cell(point, box, side):
    """Detectron's rule for one point: (cell, whether it counts)."""
    (x, y, v), (x1, y1, x2, y2) = point, box
    column = side - 1 if x == x2 else math.floor(np.float32(x - x1) * np.float32(side / (x2 - x1)))
    row = side - 1 if y == y2 else math.floor(np.float32(y - y1) * np.float32(side / (y2 - y1)))
    counts = v > 0 and 0 <= column < side and 0 <= row < side
    return (row * side + column if counts else 0), counts


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_cells_of_points(seed):
    """Whole coordinates on boxes of few pixels, so that edges are met often."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randint(0, 10, (6, 2), generator=generator).repeat(1, 2).float()
    boxes[:, 2:] += torch.tensor([1.0, 2, 4, 8])[torch.randint(0, 4, (6, 2), generator=generator)]
    points = torch.cat(
        [torch.randint(-1, 20, (6, 5, 2), generator=generator), torch.randint(0, 3, (6, 5, 1), generator=generator)], dim=2
    ).float()
    cells, inside = heat_map_cells(points, boxes, 56)
    for r in range(6):
        slow = [slow_cell(p, boxes[r].tolist(), 56) for p in points[r].tolist()]
        assert cells[r].tolist() == [c for c, _ in slow] and inside[r].tolist() == [i for _, i in slow]


def test_points_in_their_box():
    points = torch.tensor([[[5.0, 5, 0], [20, 5, 2]], [[10.0, 10, 1], [0, 0, 0]]])
    assert any_point_in_box(points, torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])).tolist() == [False, True]


# Loss


@pytest.mark.parametrize("points_in_object", [False, True])
def test_loss_is_the_mean_over_points_that_count(points_in_object):
    generator = torch.Generator().manual_seed(0)
    target = BoxList([[10, 10, 50, 50], [20, 20, 60, 60]], (100, 100))
    points = torch.rand(2, 17, 3, generator=generator) * 50
    points[1, :, :2] += 60  # all of the second object's points lie outside its box
    target.add_field("labels", torch.ones(2, dtype=torch.int64))
    target.add_field("keypoints", PersonKeypoints(points, (100, 100)))
    targets = BoxListBatch.pad([target])
    boxes = torch.tensor([[[8.0, 8, 48, 52], [30, 30, 90, 95], [0, 0, 40, 40], [0, 0, 9, 9]]])
    samples = BoxListBatch(boxes, torch.tensor([[True, True, True, False]]), torch.tensor([[100.0, 100]]))
    samples.add_field("matched_inds", torch.tensor([[0, 1, 0, 0]]))
    logits = torch.randn(4, 17, 8, 8, generator=generator)
    loss = KeypointLoss(8, points_in_object)(logits, RoIs.flatten(samples, static=True), samples, targets)["loss_kp"]
    values = []
    for r, obj in ((0, 0), (1, 1), (2, 0)):
        if points_in_object and obj == 1:
            continue
        for k, point in enumerate(points[obj].tolist()):
            cell, counts = slow_cell(point, boxes[0, r].tolist(), 8)
            if counts:
                values.append(F.cross_entropy(logits[r, k].flatten(), torch.tensor(cell)))
    torch.testing.assert_close(loss, torch.stack(values).mean())


def test_ground_truth_that_does_not_fit_is_named():
    images, targets = scene()
    with pytest.raises(ValueError, match="NUM_CLASSES is 17, but the objects of the data have 3 keypoints"):
        narrow_model("keypoint_fpn", "MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", 17)(images, targets)
    del targets.fields["keypoints"]
    with pytest.raises(ValueError, match="MODEL.KEYPOINT_ON False"):
        narrow_model("keypoint_fpn")(images, targets)


@pytest.mark.parametrize(("family", "head", "made"), [("keypoint_fpn", "KEYPOINT", 56), ("mask_fpn", "MASK", 28), ("mask_c4", "MASK", 14)])
def test_maps_of_another_size_than_their_targets_are_named(family, head, made):
    images, targets = scene()
    key = f"MODEL.ROI_{head}_HEAD.RESOLUTION"
    said = f"{key} is 20, but the head makes maps of {made} x {made}; set it {made}, or change MODEL.ROI_{head}_HEAD.POOLER_RESOLUTION"
    with pytest.raises(ValueError, match=said):
        narrow_model(family, key, 20)(images, targets)


# Reading heat maps


def test_maps_are_enlarged_as_opencv_does():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 3, 56, 56, generator=generator)
    boxes = torch.tensor([[3.0, 4, 103.3, 90], [0, 0, 20.5, 31], [5, 5, 5.2, 60], [1, 1, 300, 70]])
    points, largest, _ = locate(maps, boxes)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        width, height = max(x2 - x1, 1), max(y2 - y1, 1)
        size = (math.ceil(width), math.ceil(height))
        enlarged = cv2.resize(maps[i].permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_CUBIC).reshape(size[1], size[0], 3)
        for k in range(3):
            row, column = np.unravel_index(enlarged[:, :, k].argmax(), size[::-1])
            expected = (x1 + (column + 0.5) * width / size[0], y1 + (row + 0.5) * height / size[1])
            assert points[i, k].tolist() == pytest.approx(expected, abs=1e-4)
            assert largest[i, k].item() == pytest.approx(enlarged[row, column, k], abs=1e-5)


@pytest.mark.parametrize(("family", "third"), [("keypoint_fpn", "one"), ("d2_keypoint_fpn", "share")])
def test_handing_over_reads_the_maps(family, third):
    images, _ = scene()
    model = narrow_model(family).eval()
    with torch.no_grad():
        detections = model(images)
    maps = detections.get_field("heat_maps")
    assert maps.shape[2:] == (3, 56, 56)
    for n, boxlist in enumerate(detections.to("cpu")):
        keypoints = boxlist.get_field("keypoints")
        assert len(keypoints) == len(boxlist) > 0 and not boxlist.has_field("heat_maps")
        points, largest, share = locate(maps[n, : len(boxlist)], boxlist.bbox)
        assert torch.equal(keypoints.keypoints[..., :2], points) and torch.equal(keypoints.get_field("logits"), largest)
        assert torch.equal(keypoints.keypoints[..., 2], torch.ones_like(share) if third == "one" else share)
    enlarged = boxlist.resize((boxlist.size[0] * 2, boxlist.size[1] * 2)).get_field("keypoints")
    torch.testing.assert_close(enlarged.keypoints[..., :2], points * 2)


# Training


def test_triangles_of_the_toy_data_are_learnt(tmp_path):
    """A few steps bring the loss of the corners well below that of guessing, and the result is evaluated."""
    folder = generate(tmp_path / "toy", num_train=16, num_test=12, size=64)
    options = [
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 2, "MODEL.RESNETS.NORM", "GN", "MODEL.GROUP_NORM.NUM_GROUPS", 4, "MODEL.WEIGHT", "",
        "DATASETS.DATA", folder, "DATASETS.TRAIN", (), "DATASETS.TEST", (), "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64,
        "INPUT.MAX_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_ITER", 12, "DATALOADER.NUM_WORKERS", 0, "TEST.IMS_PER_BATCH", 4,
    ]  # fmt: skip
    torch.manual_seed(0)
    cfg = narrow_config("keypoint_fpn", *options)
    model = build_detection_model(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for images, targets, _ in make_data_loader(cfg):
        found = model(images, targets)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        losses.append(found["loss_kp"].item())
    assert losses[0] == pytest.approx(math.log(56 * 56), rel=0.1) and losses[-1] < losses[0] - 1
    loader = make_data_loader(cfg, is_train=False)[0]
    predictions = predict(model, loader, "cpu")
    results = evaluate(loader.dataset, [predictions[i] for i in range(12)], None, ("bbox", "keypoints"))
    assert 0 <= results["keypoints"]["AP"] <= 1
