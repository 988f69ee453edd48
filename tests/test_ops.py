"""The operators against slow references, each other and torchvision, with every way to run them."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from maskrcnn_bench.layers import ROIAlign, _ops, batched_nms_keep, bitmap_targets, nms, polygon_targets, roi_align, sigmoid_focal_loss
from maskrcnn_bench.layers import mask_targets as mask_page
from maskrcnn_bench.modeling.box_coder import BoxCoder, clip_boxes
from maskrcnn_bench.structures.boxlist_ops import box_iou

# `layers.nms` and `layers.roi_align` are the functions; their pages have the same names.
nms_page = sys.modules["maskrcnn_bench.layers.nms"]
roi_page = sys.modules["maskrcnn_bench.layers.roi_align"]
OPS = torch.ops.maskrcnn_bench
RULES = [(0.0, 1.0), (0.5, 0.0), (0.25, 2.0)]  # (shift, min_size): the original, the aligned, neither
unsafe_only = pytest.mark.skipif(_ops.load() != "csrc", reason="only the compiled kernels read memory without torch's checks")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(seed: int, *shape: int, frame: float = 60.0, largest: float = 30.0) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=generator(seed)) * frame - 5
    side = torch.rand(*shape, 2, generator=generator(seed + 1)) * largest
    return torch.cat([corner, corner + side], -1)


# --------------------------------------------------------------------------------------------------------- nms

NMS = {"op": OPS.nms, "torch": nms_page._nms_torch, "torchvision": nms_page._nms_torchvision}


def slow_nms(boxes, scores, valid, threshold, pixel, max_keep):
    """One pair of boxes after the other, in float32."""
    keep = np.zeros(valid.shape, bool)
    for row in range(valid.shape[0]):
        box = boxes[row].numpy()
        order = sorted(np.flatnonzero(valid[row].numpy()), key=lambda i: -scores[row, i].item())  # sorted() is stable
        kept = []
        for i in order:
            if len(kept) == max_keep:
                break
            if all(float(slow_iou(box[i], box[j], np.float32(pixel))) <= threshold for j in kept):
                kept.append(i)
        keep[row, kept] = True
    return torch.from_numpy(keep)


def slow_iou(a, b, pixel):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + pixel, np.float32(0))
    inter = sides[0] * sides[1]
    union = np.prod(a[2:] - a[:2] + pixel) + np.prod(b[2:] - b[:2] + pixel) - inter
    return inter / union if union > 0 else np.float32(0)


@pytest.mark.parametrize("name", NMS)
@pytest.mark.parametrize("pixel", [0.0, 1.0])
@pytest.mark.parametrize("max_keep", [-1, 0, 3])
def test_nms_equals_slow_reference(name, pixel, max_keep):
    boxes = random_boxes(0, 4, 90)
    scores = torch.rand(4, 90, generator=generator(2)).mul(8).round()  # many ties
    valid = torch.rand(4, 90, generator=generator(3)) < torch.tensor([[1.0], [0.6], [0.1], [0.0]])
    for threshold in (0.3, 0.5, 0.7):
        args = (boxes, scores, valid, threshold, pixel, max_keep)
        torch.testing.assert_close(NMS[name](*args), slow_nms(*args))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4, st.integers(0, 3), st.booleans()), min_size=0, max_size=25),
    st.sampled_from([0.25, 1 / 3, 0.5, 0.6]),
    st.sampled_from([0.0, 1.0]),
)
def test_nms_on_grid_boxes(rows, threshold, pixel):
    """Whole numbers give overlaps equal to the threshold, boxes without area and boxes turned inside out."""
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).view(1, -1, 4)
    scores = torch.tensor([[float(row[4]) for row in rows]]).view(1, -1)
    valid = torch.tensor([[row[5] for row in rows]], dtype=torch.bool).view(1, -1)
    args = (boxes, scores, valid, threshold, pixel, -1)
    expected = slow_nms(*args)
    assert torch.equal(OPS.nms(*args), expected)
    assert torch.equal(nms_page._nms_torch(*args), expected)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1500, 4000])
def test_nms_equals_torchvision(count):
    boxes = random_boxes(count, count, frame=600, largest=90)
    scores = torch.rand(count, generator=generator(4))
    assert torch.equal(nms(boxes, scores, 0.5, pixel=0), torchvision.ops.nms(boxes, scores, 0.5))


def test_nms_does_not_depend_on_threads_or_neighbours():
    boxes, scores = random_boxes(7, 3, 6000, frame=4000, largest=60), torch.rand(3, 6000, generator=generator(8))
    valid = torch.ones_like(scores, dtype=torch.bool)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([batched_nms_keep(boxes[i : i + 1], scores[i : i + 1], valid[i : i + 1], 0.5, 1.0) for i in range(3)])
        torch.set_num_threads(4)
        assert torch.equal(batched_nms_keep(boxes, scores, valid, 0.5, 1.0), alone)
        assert torch.equal(batched_nms_keep(boxes[1:2], scores[1:2], valid[1:2], 0.5, 1.0), alone[1:2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["op", "torch"])
def test_nms_padding_infinite_scores_and_nan(name):
    boxes = random_boxes(9, 1, 4)
    boxes[0, 1:] = boxes[0, :1] + torch.tensor([100.0, 0, 100, 0]) * torch.arange(1, 4)[:, None]  # apart from each other
    boxes[0, 3] = torch.nan
    scores = torch.tensor([[-math.inf, math.nan, -0.0, math.inf]])
    valid = torch.tensor([[True, True, True, False]])
    assert NMS[name](boxes, scores, valid, 0.5, 0.0, -1).tolist() == [[True, True, True, False]]
    assert NMS[name](boxes, scores, valid, 0.5, 0.0, 1).tolist() == [[False, True, False, False]]  # NaN first, as torch.sort


def test_nms_threshold_is_compared_as_a_double():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 3]]])  # their IoU is the float32 next to .3, which is above .3
    args = (boxes, torch.tensor([[2.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    above = float(np.float32(0.3))
    for name, run in NMS.items():
        assert run(*args, 0.3, 0.0, -1).tolist() == [[True, False]], name
        assert run(*args, above, 0.0, -1).tolist() == [[True, True]], name
        assert run(*args, math.nextafter(above, 0), 0.0, -1).tolist() == [[True, False]], name


# --------------------------------------------------------------------------------------------------- roi align

ROI = {"op": OPS.roi_align, "torch": roi_page._roi_align_torch, "torchvision": roi_page._roi_align_torchvision}
ROI_BACKWARD = {
    "op": OPS.roi_align_backward,
    "torch": roi_page._roi_align_backward_torch,
    "torchvision": roi_page._roi_align_backward_torchvision,
}


def slow_roi_align(features, boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size):
    """One bilinear sample after the other, in float64."""
    out = torch.zeros(len(boxes), features[0].shape[1], height, width, dtype=torch.float64)
    for r, level in enumerate(levels.tolist()):
        if level < 0:
            continue
        x1, y1, x2, y2 = (boxes[r].double() * scales[level] - shift).tolist()
        bin_h, bin_w = max(y2 - y1, min_size or -math.inf) / height, max(x2 - x1, min_size or -math.inf) / width
        num_y, num_x = (sampling_ratio or max(0, math.ceil(size)) for size in (bin_h, bin_w))
        image = features[level][image_inds[r]].double()
        for i, j, a, b in itertools.product(range(height), range(width), range(num_y), range(num_x)):
            y = y1 + (i + (a + 0.5) / num_y) * bin_h
            x = x1 + (j + (b + 0.5) / num_x) * bin_w
            out[r, :, i, j] += slow_sample(image, y, x) / (num_y * num_x)
    return out


def slow_sample(image, y, x):
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def roi_case(rule=RULES[0], sampling_ratio=2, dtype=torch.float64, count=14, channels=3):
    """Two levels, two images; boxes inside, across and beyond the border, without area, and padding."""
    features = [torch.randn(2, channels, h, w, generator=generator(h), dtype=torch.float64).to(dtype) for h, w in ((12, 15), (6, 8))]
    boxes = random_boxes(11, count)
    boxes[:4] = torch.tensor([[5.0, 5, 5, 5], [-300, -300, -200, -200], [-20, -20, 90, 90], [7, 9, 8, 40]])[: min(count, 4)]
    image_inds = torch.randint(0, 2, (count,), generator=generator(12))
    levels = torch.randint(-1, 2, (count,), generator=generator(13))
    levels[:4] = torch.tensor([0, 0, 1, 1])[: min(count, 4)]
    return [features, boxes, image_inds, levels, [0.25, 0.125], 3, 2, sampling_ratio, *rule]


@pytest.mark.parametrize("name", ROI)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 20])
def test_roi_align_equals_slow_reference(name, rule, sampling_ratio):
    args = roi_case(rule, sampling_ratio)
    torch.testing.assert_close(ROI[name](*args), slow_roi_align(*args), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["torch", "torchvision"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_backward_of_all_ways_agree(name, rule, sampling_ratio):
    features, *rest, height, width, _, _, _ = roi_case(rule, sampling_ratio)
    grad = torch.randn(14, 3, height, width, generator=generator(14), dtype=torch.float64)
    args = (grad, *rest, [2, 3, 12, 15, 6, 8], sampling_ratio, *rule)
    for mine, other in zip(OPS.roi_align_backward(*args), ROI_BACKWARD[name](*args), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("rule", RULES)
def test_roi_align_gradcheck(rule, sampling_ratio):
    (a, b), *rest = roi_case(rule, sampling_ratio, count=5, channels=1)
    assert torch.autograd.gradcheck(lambda a, b: roi_align([a, b], *rest), (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_equals_torchvision_at_real_size(rule, sampling_ratio):
    feature = torch.randn(2, 80, 50, 68, generator=generator(15)).requires_grad_()
    boxes = random_boxes(16, 60, frame=1000, largest=600)
    image_inds = torch.randint(0, 2, (60,), generator=generator(17))
    rois = torch.cat([image_inds[:, None].float(), boxes], 1)
    ours = ROIAlign((7, 7), 1 / 16, sampling_ratio, aligned=rule[0] == 0.5)(feature, rois)
    theirs = torchvision.ops.roi_align(feature, rois, 7, 1 / 16, sampling_ratio, rule[0] == 0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grad = torch.randn(theirs.shape, generator=generator(18))
    (mine,), (other,) = (torch.autograd.grad(out, feature, grad) for out in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_roi_align_of_a_level_alone_equals_the_pyramid():
    features, boxes, inds, levels, scales, *rest = roi_case()
    together = roi_align(features, boxes, inds, levels, scales, *rest)
    for level in (0, 1):
        alone = roi_align([features[level]], boxes, inds, torch.where(levels == level, 0, -1), [scales[level]], *rest)
        assert torch.equal(alone[levels == level], together[levels == level])
        assert not alone[levels != level].any()


@pytest.mark.parametrize("name", ROI)
def test_roi_align_reads_any_layout_and_answers_channels_last(name):
    (a, b), boxes, *rest = roi_case(dtype=torch.float32)
    expected = ROI[name]([a, b], boxes, *rest)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    strided = torch.stack([a, a], -1)[..., 0]
    spread_boxes = torch.stack([boxes, boxes], -1)[..., 1]
    assert torch.equal(ROI[name]([strided, b.to(memory_format=torch.channels_last)], spread_boxes, *rest), expected)


@pytest.mark.parametrize("name", ROI)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_align_half_precision_is_summed_in_float32(name, dtype):
    features, *rest = roi_case(dtype=dtype)
    exact = ROI[name]([feature.float() for feature in features], *rest)
    out = ROI[name](features, *rest)
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))
    grad = torch.randn(out.shape, generator=generator(19)).to(dtype)
    (height, width), tail = out.shape[2:], rest[6:]
    assert (height, width) == (rest[4], rest[5])
    args = (*rest[:4], [2, 3, 12, 15, 6, 8], *tail)
    for half, full in zip(ROI_BACKWARD[name](grad, *args), ROI_BACKWARD[name](grad.float(), *args), strict=True):
        assert torch.equal(half, full.to(dtype))


def test_roi_align_does_not_depend_on_threads():
    features = [torch.randn(2, 40, 30, 30, generator=generator(20))]
    boxes = random_boxes(21, 200, frame=120)
    inds, levels = torch.arange(200) % 2, torch.zeros(200, dtype=torch.int64)
    grad = torch.randn(200, 40, 7, 7, generator=generator(22))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = roi_align(features, boxes, inds, levels, [0.25], 7, 7, 2, 0.5, 0.0)
            maps = OPS.roi_align_backward(grad, boxes, inds, levels, [0.25], [2, 40, 30, 30], 2, 0.5, 0.0)
            results.append((out, maps[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result[i], results[0][i]) for result in results for i in (0, 1))


@pytest.mark.parametrize("name", ["op", "torch"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_padding_holds_anything(name, sampling_ratio):
    args = roi_case(RULES[1], sampling_ratio)
    clean = ROI[name](*args)
    args[1], args[2] = args[1].clone(), args[2].clone()
    padding = args[3] < 0
    assert padding.any()
    args[1][padding] = torch.tensor([1e4, -1e4, 3.0, 7.0])
    args[2][padding] = 77
    assert torch.equal(ROI[name](*args), clean)


@unsafe_only
def test_roi_align_survives_boxes_without_sense():
    args = roi_case(RULES[1], 0)
    args[1][:3] = torch.tensor([[0, 0, 1e30, 1e30], [0, 0, math.inf, 5], [math.nan] * 4])
    args[1][3:6] = torch.tensor([[9, 9, 2, 2], [-1e30, 0, 1e30, 9], [1e9, 0, 1e9, 5]])
    args[3][:6] = 0
    assert OPS.roi_align(*args).shape == (14, 3, 3, 2)


# ------------------------------------------------------------------------------------------------ mask targets


def pack_polygons(objects, dtype=torch.float64):
    """objects: lists of rings of (x, y) -> vertices, ring_offsets, object_offsets."""
    rings = [ring for rings in objects for ring in rings]
    vertices = torch.tensor([point for ring in rings for point in ring], dtype=dtype).view(-1, 2)
    ring_offsets = torch.tensor([0, *itertools.accumulate(len(ring) for ring in rings)])
    object_offsets = torch.tensor([0, *itertools.accumulate(len(rings) for rings in objects)])
    return vertices, ring_offsets, object_offsets


def random_objects(seed, count):
    """Polygons inside, across and far outside the frame; whole, half and fine coordinates; points that repeat."""
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(count):
        rings = []
        for _ in range(rng.integers(1, 4)):
            centre, spread = rng.uniform(-20, 60, 2), rng.choice([1, 8, 30, 300])
            ring = centre + rng.normal(size=(rng.integers(2, 12), 2)) * spread
            ring = np.round(ring * (step := rng.choice([1, 2, 5, 10, 1000]))) / step
            if rng.random() < 0.3:
                ring = ring[rng.integers(0, len(ring), len(ring) + 2)]
            if rng.random() < 0.2:
                ring[:, rng.integers(0, 2)] = ring[0, 0]
            rings.append(ring.tolist())
        objects.append(rings)
    return objects


@pytest.mark.parametrize("resolution", [1, 14, 28, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_polygon_targets_equal_pycocotools(resolution, dtype):
    packed = pack_polygons(random_objects(resolution, 600), dtype)
    rng = np.random.default_rng(5)
    frames = torch.from_numpy(np.concatenate([rng.uniform(-5, 20, (600, 2)), rng.uniform(0.1, 3, (600, 2))], 1)).to(dtype)
    frames[::3] = torch.tensor([0, 0, 1, 1])
    args = (*packed, frames, torch.arange(600), resolution)
    expected = mask_page._polygon_targets_pycocotools(*args)
    assert 0.02 < expected.float().mean() < 0.98
    assert torch.equal(polygon_targets(*args), expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-60, 150), st.integers(-60, 150)), min_size=3, max_size=9), min_size=1, max_size=3))
def test_polygon_targets_on_tenths_of_a_pixel(rings):
    packed = pack_polygons([rings])
    args = (*packed, torch.tensor([[0, 0, 0.1, 0.1]], dtype=torch.float64), torch.tensor([0]), 9)
    assert torch.equal(polygon_targets(*args), mask_page._polygon_targets_pycocotools(*args))


def test_polygon_targets_odd_inputs():
    square = [(2.0, 2.0), (8.0, 2.0), (8.0, 8.0), (2.0, 8.0)]
    packed = pack_polygons([[square], [], [square[:2]], [square[:2], square]])
    frames = torch.tensor([[0.0, 0, 1, 1]]).repeat(5, 1)
    out = polygon_targets(*packed, frames, torch.tensor([0, 1, 2, 3, -1]), 10)
    assert out.flatten(1).sum(1).tolist() == [36, 0, 0, 36, 0]
    far = polygon_targets(*packed, torch.tensor([[math.nan, 0, 1, 1], [0, 0, math.inf, 1], [-1e9, 0, 1e9, 1]]), torch.tensor([0, 0, 0]), 10)
    assert far.shape == (3, 10, 10)


def random_crops(seed, count):
    """bitmaps and geometry as the operator wants them, and the same crops on canvases of 160 x 160 pixels."""
    rng = np.random.default_rng(seed)
    flat, geometry, canvases, offset = [], [], np.zeros((count, 160, 160), np.float32), 0
    for g in range(count):
        x0, y0, width, height = *rng.integers(30, 90, 2), *rng.integers(1, 40, 2)
        crop = (rng.random((height, width)) < 0.6).astype(np.uint8)
        canvases[g, y0 : y0 + height, x0 : x0 + width] = crop
        flat.append(crop.ravel())
        geometry.append((offset, x0, y0, width, height))
        offset += crop.size
    return torch.from_numpy(np.concatenate(flat)), torch.tensor(geometry), torch.from_numpy(canvases)


def test_bitmap_targets_equal_torchvision():
    bitmaps, geometry, canvases = random_crops(0, 80)
    boxes = random_boxes(30, 80, frame=60, largest=60) + 30
    boxes[::2, :2] = boxes[::2, :2].round()
    boxes[::2, 2:] = boxes[::2, :2] + 28  # averages of four pixels, many of exactly one half
    inds = torch.arange(80)
    expected = torchvision.ops.roi_align(canvases[:, None], torch.cat([inds[:, None].float(), boxes], 1), 14, 1.0, 0, True)[:, 0]
    assert (expected == 0.5).sum() > 50
    out = bitmap_targets(bitmaps, geometry, boxes, inds, 14)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    if _ops.load() == "csrc":
        assert torch.equal(out, expected)
    slow = mask_page._bitmap_targets_torch(bitmaps, geometry, boxes, inds, 14)
    torch.testing.assert_close(slow, expected, rtol=0, atol=1e-4)


def test_bitmap_targets_move_with_the_object():
    bitmaps, geometry, _ = random_crops(2, 20)
    boxes = (random_boxes(31, 20, frame=60, largest=60) + 30).round()
    there = bitmap_targets(bitmaps, geometry, boxes, torch.arange(20), 8)
    here = bitmap_targets(bitmaps, geometry - torch.tensor([0, 64, 64, 0, 0]), boxes - 64, torch.arange(20), 8)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


@pytest.mark.parametrize("run", [OPS.bitmap_targets, mask_page._bitmap_targets_torch])
def test_bitmap_targets_odd_inputs(run):
    bitmaps = torch.ones(12, dtype=torch.uint8)
    geometry = torch.tensor([[0, 10, 20, 4, 3], [0, 0, 0, 0, 0]])
    boxes = torch.tensor([[10.0, 20, 14, 23], [0, 0, 5, 5], [10, 20, 14, 23], [12, 22, 11, 21], [10, 20, 14, 23]])
    out = run(bitmaps, geometry, boxes, torch.tensor([0, 0, 1, 0, -1]), 2)
    assert out.dtype == torch.float32
    assert (out.flatten(1) > 0.4).all(1).tolist() == [True, False, False, False, False]
    assert not out[1:].any()


# ---------------------------------------------------------------------------------------------- matching, decoding

match_page = sys.modules["maskrcnn_bench.layers.match"]
decode_page = sys.modules["maskrcnn_bench.layers.decode_boxes"]
MATCH_RULES = [(True, 0.0, True), (True, 0.0, False), (True, 0.3, True), (False, 0.0, True)]  # (low_quality, least_overlap, to_best)


def match_of(images, slots, count, rule=MATCH_RULES[0], shared=True, rivals=False, whole=False, pixel=1.0):
    """Objects, some slots of which are not in use, and boxes; whole coordinates, and objects among the boxes, make ties."""
    seed = images + slots + count
    objects = random_boxes(seed, images, slots)
    boxes = random_boxes(seed + 2, *(() if shared else (images,)), count)
    if whole:
        objects, boxes = objects.round(), boxes.round()
        boxes.view(-1, count, 4)[:, : min(slots, count)] = objects[:1, : min(slots, count)]
    valid = torch.rand(images, slots, generator=generator(seed + 4)) < 0.7
    competing = torch.rand(images, count, generator=generator(seed + 5)) < 0.8 if rivals else None
    return objects, valid, boxes, competing, pixel, 0.5, 0.3, *rule


def matrix_match(objects, valid, boxes, rivals, pixel, high, low, low_quality, least_overlap, to_best):
    """By the whole matrix of overlaps of each image, one object after the other."""
    out = []
    for n in range(len(objects)):
        own = boxes if boxes.dim() == 2 else boxes[n]
        iou = box_iou(own, objects[n], pixel).masked_fill(~valid[n], -1.0)
        best = [max(row) if row else -1.0 for row in iou.tolist()]
        first = [row.index(max(row)) if row and max(row) > -1 else 0 for row in iou.tolist()]
        answer = [-1 if b < np.float32(low) else -2 if b < np.float32(high) else m for b, m in zip(best, first, strict=True)]
        seen = iou if rivals is None else torch.where(rivals[n, :, None], iou, -1.0)
        for m in range(len(objects[n])) if low_quality and len(own) else ():
            for a in ((seen[:, m] == seen[:, m].max()) & (seen[:, m] >= least_overlap)).nonzero()[:, 0].tolist():
                answer[a] = first[a] if to_best else m
        out.append(answer)
    return torch.tensor(out, dtype=torch.int64).view(len(objects), boxes.shape[-2])


@pytest.mark.parametrize("rule", MATCH_RULES)
@pytest.mark.parametrize("whole", [False, True])
def test_match_equals_the_whole_matrix(rule, whole):
    for (images, slots, count), shared, rivals in itertools.product(((2, 0, 5), (1, 1, 1), (3, 20, 300)), (True, False), (True, False)):
        args = match_of(images, slots, count, rule, shared, rivals, whole)
        expected = matrix_match(*args)
        assert torch.equal(OPS.match(*args), expected)
        assert torch.equal(match_page._match_torch(*args), expected)


def test_match_does_not_depend_on_threads():
    args = match_of(2, 40, 5000, rivals=True, whole=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = OPS.match(*args)
        torch.set_num_threads(4)
        assert torch.equal(OPS.match(*args), alone)
    finally:
        torch.set_num_threads(threads)


def decode_of(images, count, chosen, clip=True, min_size=4.0, strict=False, decode_pixel=1.0):
    regression = torch.randn(images, count, 4, generator=generator(60)) * 3
    inds = torch.randint(0, count, (images, chosen), generator=generator(61))
    sizes = torch.tensor([[60.0, 40], [33, 50], [80, 80]])[:images]
    anchors = random_boxes(62, count)
    return regression, anchors, inds, sizes, (10.0, 10.0, 5.0, 5.0), (-math.inf, 2.0), 1.0, decode_pixel, clip, min_size, strict


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("min_size", "strict"), [(0.0, False), (4.0, False), (1.0, True)])
def test_decode_boxes_equals_the_coder_to_the_bit(clip, min_size, strict):
    args = decode_of(3, 50, 90, clip, min_size, strict)
    regression, anchors, inds, sizes, weights, size_range, pixel, decode_pixel, *_ = args
    coder = BoxCoder(weights, pixel, decode_pixel, size_range)
    expected = coder.decode(regression.gather(1, inds[..., None].expand(-1, -1, 4)), anchors[inds])
    expected = clip_boxes(expected, sizes, pixel) if clip else expected
    side = expected[..., 2:] - expected[..., :2] + pixel
    large = (side > min_size if strict else side >= min_size).all(-1)
    for run in (OPS.decode_boxes, decode_page._decode_boxes_torch):
        boxes, is_large = run(*args)
        assert torch.equal(boxes, expected) and torch.equal(is_large, large)
    assert not clip or min_size == 0 or 0 < large.float().mean() < 1


def test_focal_loss_and_its_gradient():
    """By autograd through the formula of the paper, in float64."""
    grad, logits, labels, gamma, alpha = focal_case(True, (3, 50, 4))
    p = logits.double().sigmoid()
    positive = labels[..., None] == torch.arange(1, 5)
    p_t = torch.where(positive, p, 1 - p)
    expected = -torch.where(positive, alpha, 1 - alpha) * (1 - p_t) ** gamma * p_t.log() * (labels[..., None] >= 0)
    loss = sigmoid_focal_loss(logits, labels, gamma, alpha)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    mine, other = (torch.autograd.grad(out, logits, grad.to(out.dtype))[0] for out in (loss, expected))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_decode_boxes_keeps_nan():
    args = list(decode_of(1, 3, 3))
    args[0][0, 1] = math.nan
    args[2] = torch.tensor([[0, 1, 2]])
    boxes, large = OPS.decode_boxes(*args)
    assert boxes[0].isnan().any(-1).tolist() == [False, True, False] and not large[0, 1]


# ---------------------------------------------------------------------------------------------- all operators


def nms_case(device="cpu"):
    return random_boxes(40, 2, 9).to(device), torch.rand(2, 9).to(device), torch.ones(2, 9, dtype=torch.bool, device=device), 0.5, 1.0, 4


def polygon_case():
    return *pack_polygons(random_objects(1, 3), torch.float32), torch.tensor([[0.0, 0, 1, 1]] * 2), torch.tensor([2, -1]), 7


def bitmap_case():
    bitmaps, geometry, _ = random_crops(1, 3)
    return bitmaps, geometry, random_boxes(41, 2), torch.tensor([1, -1]), 7


def backward_case():
    _, *rest, height, width, ratio, shift, min_size = roi_case()
    return torch.randn(14, 3, height, width), *rest, [2, 3, 12, 15, 6, 8], ratio, shift, min_size


def focal_case(wants_grad, shape=(2, 5, 4)):
    """Gradient, logits, labels, gamma, alpha."""
    logits = torch.randn(shape, generator=generator(70)) * 6
    labels = torch.randint(-1, shape[-1] + 1, shape[:-1], generator=generator(71))
    return torch.randn(shape, generator=generator(72)), logits.requires_grad_(wants_grad), labels, 2.0, 0.25


def roi_case_with_grad():
    features, *rest = roi_case(dtype=torch.float32)
    return [feature.requires_grad_() for feature in features], *rest


def pool_case(wants_grad=True, dtype=torch.float32, count=14, channels=3):
    """Bins of 3 rows and 4 columns."""
    features, *rest = roi_case(dtype=dtype, count=count, channels=channels)[:5]
    return [feature.requires_grad_(wants_grad) for feature in features], *rest, 3, 4


def pool_backward_case(dtype=torch.float32, count=14, channels=3):
    args = pool_case(False, dtype, count, channels)
    grad = torch.randn(count, channels, 3, 4, generator=generator(73), dtype=torch.float64).to(dtype)
    return grad, OPS.roi_pool(*args)[1], args[2], args[3], [2, channels, 12, 15, 6, 8]


def deform_case(wants_grad=True, dtype=torch.float32, count=14, channels=3, shares=1, group_size=1):
    """4 x 4 bins of 2 x 2 samples; `shares` 0 moves nothing."""
    features, *rest = roi_case(dtype=dtype, count=count, channels=channels)[:5]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    offsets = torch.randn(count, 2 * shares, 4, 4, generator=generator(74), dtype=torch.float64).to(wide) * 0.3
    moved = offsets.requires_grad_(wants_grad) if shares else None
    return [feature.requires_grad_(wants_grad) for feature in features], *rest, moved, 4, group_size, 2


def deform_backward_case(*args, channels=3, group_size=1, **named):
    features, *rest, _, group_size, samples = deform_case(False, *args, channels=channels, group_size=group_size, **named)
    shape = (len(rest[0]), channels // group_size**2, 4, 4)
    grad = torch.randn(shape, generator=generator(75), dtype=torch.float64).to(features[0].dtype)
    return features, grad, *rest, group_size, samples


CASES = {
    "nms": nms_case,
    "roi_align": roi_case_with_grad,
    "roi_align_backward": backward_case,
    "polygon_targets": polygon_case,
    "bitmap_targets": bitmap_case,
    "match": lambda: match_of(2, 3, 9, rivals=True),
    "decode_boxes": lambda: decode_of(2, 7, 5),
    "sigmoid_focal_loss": lambda: focal_case(True)[1:],
    "sigmoid_focal_loss_backward": lambda: focal_case(False),
    "roi_pool": pool_case,
    "roi_pool_backward": pool_backward_case,
    "deform_psroi_pool": deform_case,
    "deform_psroi_pool_backward": deform_backward_case,
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name).default, CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_no_boxes(name):
    inds = torch.zeros(0, dtype=torch.int64)
    bitmaps = [torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64)]
    empty = {
        "nms": [torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0.5, 0.0, -1],
        "roi_align": roi_case(count=0, dtype=torch.float32),
        "roi_align_backward": [torch.zeros(0, 3, 2, 2), *roi_case(count=0)[1:5], [2, 3, 12, 15, 6, 8], 2, 0.0, 1.0],
        "polygon_targets": [*pack_polygons([]), torch.zeros(0, 4), inds, 5],
        "bitmap_targets": [*bitmaps, torch.zeros(0, 4), inds, 5],
        "match": match_of(2, 3, 0),
        "decode_boxes": decode_of(2, 7, 0),
        "sigmoid_focal_loss": focal_case(False, (2, 0, 4))[1:],
        "sigmoid_focal_loss_backward": focal_case(False, (2, 0, 4)),
        "roi_pool": pool_case(count=0),
        "roi_pool_backward": pool_backward_case(count=0),
        "deform_psroi_pool": deform_case(count=0),
        "deform_psroi_pool_backward": deform_backward_case(count=0),
    }[name]
    choices = [getattr(OPS, name), *_ops._replacements[name].values()]
    shapes = {
        "nms": [(2, 0)],
        "match": [(2, 0)],
        "decode_boxes": [(2, 0, 4), (2, 0)],
        "sigmoid_focal_loss": [(2, 0, 4)],
        "sigmoid_focal_loss_backward": [(2, 0, 4)],
        "roi_align": [(0, 3, 3, 2)],
        "roi_align_backward": [(2, 3, 12, 15), (2, 3, 6, 8)],
        "roi_pool": [(0, 3, 3, 4), (0, 3, 3, 4)],
        "roi_pool_backward": [(2, 3, 12, 15), (2, 3, 6, 8)],
        "deform_psroi_pool": [(0, 3, 4, 4)],
        "deform_psroi_pool_backward": [(2, 3, 12, 15), (2, 3, 6, 8), (0, 2, 4, 4)],
    }
    for run in choices:
        out = tree_leaves(run(*empty))
        assert [tuple(tensor.shape) for tensor in out] == shapes.get(name, [(0, 5, 5)])
        assert not any(tensor.any() for tensor in out)


def test_nms_without_rows():
    assert OPS.nms(torch.zeros(0, 5, 4), torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool), 0.5, 0.0, -1).shape == (0, 5)
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


def test_autocast():
    boxes, scores, valid, *rest = nms_case()
    features, *roi = roi_case(dtype=torch.bfloat16)
    vertices, *polygon = polygon_case()
    bitmaps, geometry, targets_boxes, *bitmap = bitmap_case()
    half, wide = (boxes.half(), scores.half(), valid, *rest), (boxes.half().float(), scores.half().float(), valid, *rest)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batched_nms_keep(*half), batched_nms_keep(*wide))
        assert roi_align(features, *roi).dtype == torch.bfloat16
        assert roi_align([feature.float() for feature in features], *roi).dtype == torch.float32
        assert torch.equal(polygon_targets(vertices, *polygon), OPS.polygon_targets(vertices, *polygon))
        assert polygon_targets(vertices.half(), *polygon).dtype == torch.uint8
        assert bitmap_targets(bitmaps, geometry, targets_boxes.bfloat16(), *bitmap).dtype == torch.float32


def test_compiles_into_one_graph():
    features, *roi = roi_case(dtype=torch.float32)
    boxes, scores, valid, *rest = nms_case()

    def step(features, boxes):
        return roi_align(features, *roi), batched_nms_keep(boxes, scores, valid, *rest)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for mine, other in zip(compiled(features, boxes), step(features, boxes), strict=True):
        assert torch.equal(mine, other)


def wrong(case, position, value):
    args = list(case)
    args[position] = value
    return args


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        (batched_nms_keep, wrong(nms_case(), 0, torch.zeros(2, 9, 5)), r"boxes: expected shape \[2, 9, 4\], got \[2, 9, 5\]"),
        (batched_nms_keep, wrong(nms_case(), 2, torch.ones(9)), r"valid: expected shape \[2, 9\], got \[9\]"),
        (OPS.nms, wrong(nms_case(), 2, torch.ones(2, 9)), "valid: expected Bool, got Float"),
        (roi_align, wrong(roi_case(), 2, torch.zeros(3)), r"image_inds: expected shape \[14\], got \[3\]"),
        (roi_align, wrong(roi_case(), 4, [0.25]), "one scale a level, got 2 levels, 1 scales"),
        (roi_align, wrong(roi_case(), 0, [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)]), r"features\[1\]: expected shape \[2, 3, H1"),
        (polygon_targets, wrong(polygon_case(), 3, torch.zeros(2, 3)), r"frames: expected shape \[R, 4\], got \[2, 3\]"),
        (bitmap_targets, wrong(bitmap_case(), 1, torch.zeros(2, 4)), r"geometry: expected shape \[G, 5\], got \[2, 4\]"),
        (OPS.match, wrong(match_of(2, 3, 9), 1, torch.ones(2, 3)), "valid: expected Bool, got Float"),
        (match_page.match, wrong(match_of(2, 3, 9), 2, torch.zeros(9, 5)), r"boxes: expected shape \[A, 4\], got \[9, 5\]"),
        (match_page.match, wrong(match_of(2, 3, 9), 3, torch.ones(2, 8) > 0), r"rivals: expected shape \[2, 9\], got \[2, 8\]"),
        (decode_page.decode_boxes, wrong(decode_of(2, 7, 5), 3, torch.zeros(3, 2)), r"sizes: expected shape \[2, 2\], got \[3, 2\]"),
        (OPS.decode_boxes, wrong(decode_of(2, 7, 5), 4, (1.0, 2.0)), "weights: expected 4 numbers, got 2"),
        (ROIAlign((7, 7), 1.0, 2), [torch.zeros(1, 1, 4, 4), torch.zeros(3, 4)], r"rois: expected shape \[R, 5\], got \[3, 4\]"),
    ],
)
def test_wrong_shapes(run, args, message):
    if not isinstance(run, torch._ops.OpOverloadPacket) or _ops.load() == "csrc":
        with pytest.raises(ValueError, match=message):
            run(*args)


@unsafe_only
@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        (roi_align, wrong(roi_case(), 2, torch.full((14,), 2)), r"image_inds\[\d+\]: expected 0 to 1, got 2"),
        (roi_align, wrong(roi_case(), 3, torch.full((14,), 2)), r"levels\[0\]: expected -1 \(padding\) to 1, got 2"),
        (decode_page.decode_boxes, wrong(decode_of(2, 7, 5), 2, torch.full((2, 5), 7)), r"inds\[0\]: expected 0 to 6, got 7"),
        (polygon_targets, wrong(polygon_case(), 4, torch.tensor([0, 3])), r"object_inds\[1\]: expected -1 \(none\) to 2, got 3"),
        (polygon_targets, wrong(polygon_case(), 2, torch.tensor([0, 2, 1, 99])), r"object_offsets\[2\]: expected ascending"),
        (bitmap_targets, wrong(bitmap_case(), 3, torch.tensor([7, 0])), r"object_inds\[0\]: expected -1 \(none\) to 2, got 7"),
        (bitmap_targets, wrong(bitmap_case(), 0, torch.zeros(3, dtype=torch.uint8)), r"geometry\[0\]: expected .* inside 3 pixels"),
    ],
)
def test_wrong_indices_never_leave_the_tensors(run, args, message):
    with pytest.raises(IndexError, match=message):
        run(*args)


# ---------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def cuda():
    """The device; its tests ask for compiled kernels, and say why there are none."""
    if _ops.implementation("nms", "cuda") != "csrc":
        pytest.skip("the CUDA kernels are not compiled; the first line on stderr says why")
    return torch.device("cuda")


def move(args, device):
    """Arguments of an operator on another device; a tensor that wants a gradient stays a leaf."""
    if isinstance(args, torch.Tensor):
        return args.detach().to(device).requires_grad_(args.requires_grad)
    return [move(arg, device) for arg in args] if isinstance(args, (list, tuple)) else args


def big_nms_case(rows, size, threshold, pixel, max_keep):
    boxes = random_boxes(size, rows, size, frame=8.0 * size**0.5, largest=60)
    scores = torch.rand(rows, size, generator=generator(50)).mul(size).round()  # ties
    scores[0, :1], scores[0, 1:2] = math.nan, -math.inf
    valid = torch.rand(rows, size, generator=generator(51)) < torch.linspace(0, 1, rows + 1)[1:, None]
    return boxes, scores, valid, threshold, pixel, max_keep


def grad_case(dtype, channels, rule, sampling_ratio):
    _, *rest, height, width, ratio, shift, min_size = roi_case(rule, sampling_ratio, count=40)
    grad = torch.randn(40, channels, height, width, generator=generator(52), dtype=torch.float64).to(dtype)
    return grad, *rest, [2, channels, 12, 15, 6, 8], ratio, shift, min_size


def big_polygon_case(resolution, dtype):
    packed = pack_polygons(random_objects(resolution, 300), dtype)
    frames = torch.rand(300, 4, generator=generator(53), dtype=torch.float64) * torch.tensor([25, 25, 2.9, 2.9]) + 0.1
    inds = torch.arange(300)
    inds[::7] = -1
    return *packed, frames.to(dtype), inds, resolution


def big_bitmap_case():
    bitmaps, geometry, _ = random_crops(3, 80)
    return bitmaps, geometry, random_boxes(54, 80, frame=60, largest=60) + 30, torch.arange(80) - 1, 28


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEFORMED = ((3, 1, 1), (16, 2, 1), (24, 3, 1), (16, 0, 1), (18, 2, 3))  # channels, sets of offsets, groups along a side
GPU_CASES = {
    "nms": lambda: [
        *(big_nms_case(rows, size, 0.5, 1.0, -1) for rows, size in ((3, 1), (3, 63), (3, 64), (5, 65), (40, 900), (1, 9000))),
        *(big_nms_case(4, 700, threshold, 0.0, limit) for threshold, limit in ((0.3, 0), (0.5, 3), (0.7, 100))),
    ],
    "roi_align": lambda: [
        roi_case(rule, ratio, dtype, 40, channels) for rule, ratio, dtype, channels in itertools.product(RULES, (0, 2, 20), FLOATS, (3, 16))
    ],
    "roi_align_backward": lambda: [
        grad_case(dtype, channels, rule, ratio) for rule, ratio, dtype, channels in itertools.product(RULES, (0, 2), FLOATS, (3, 16))
    ],
    "polygon_targets": lambda: [
        big_polygon_case(resolution, dtype) for resolution, dtype in itertools.product((1, 14, 28, 112), (torch.float32, torch.float64))
    ],
    "bitmap_targets": lambda: [big_bitmap_case()],
    "match": lambda: [
        match_of(images, slots, count, rule, shared, rivals, whole)
        for (images, slots, count), rule, shared, rivals, whole in itertools.product(
            ((1, 0, 9), (2, 1, 256), (3, 127, 257), (2, 300, 5000)), MATCH_RULES, (True, False), (True, False), (True, False)
        )
    ],
    "roi_pool": lambda: [pool_case(False, dtype, 40, channels) for dtype, channels in itertools.product(FLOATS, (3, 16))],
    "roi_pool_backward": lambda: [pool_backward_case(dtype, 40, channels) for dtype, channels in itertools.product(FLOATS, (3, 16))],
    "deform_psroi_pool": lambda: [deform_case(False, dtype, 40, *rest) for dtype, rest in itertools.product(FLOATS, DEFORMED)],
    "deform_psroi_pool_backward": lambda: [
        deform_backward_case(dtype, 40, channels=channels, shares=shares, group_size=group_size)
        for dtype, (channels, shares, group_size) in itertools.product(FLOATS, DEFORMED)
    ],
    "sigmoid_focal_loss": lambda: [focal_case(False, shape)[1:] for shape in ((70, 80), (3, 999, 4))],
    "sigmoid_focal_loss_backward": lambda: [focal_case(False, shape) for shape in ((70, 80), (3, 999, 4))],
    "decode_boxes": lambda: [
        decode_of(3, 2000, 1000, clip, min_size, strict, decode_pixel)
        for clip, min_size, strict, decode_pixel in itertools.product((True, False), (0.0, 4.0), (True, False), (0.0, 1.0))
    ],
}


def assert_same(mine, other):
    """To the bit for whole numbers and masks; sums in another order otherwise."""
    if isinstance(mine, torch.Tensor):
        close = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(mine.dtype, 0)
        torch.testing.assert_close(mine.cpu(), other.cpu(), rtol=close, atol=close)
        assert mine.stride() == other.stride()
    else:
        for a, b in zip(mine, other, strict=True):
            assert_same(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_equals_cpu(name, cuda):
    for args in [*GPU_CASES[name](), CASES[name]()]:
        run = getattr(OPS, name)
        assert_same(run(*move(args, cuda)), run(*args))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_opcheck(name, cuda):
    torch.library.opcheck(getattr(OPS, name).default, tuple(move(CASES[name](), cuda)))


@pytest.mark.gpu
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("rule", RULES)
def test_cuda_gradcheck(rule, sampling_ratio, cuda):
    (a, b), *rest = move(roi_case(rule, sampling_ratio, count=5, channels=1), cuda)
    # Additions come in any order.
    run = torch.autograd.gradcheck
    assert run(lambda a, b: roi_align([a, b], *rest), (a.requires_grad_(), b.requires_grad_()), nondet_tol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_backward_can_be_deterministic(dtype, channels, cuda):
    args = grad_case(dtype, channels, RULES[0], 0)
    boxes = args[1]
    boxes[:] = boxes[:1] + torch.rand(boxes.shape, generator=generator(55))  # all on the same pixels
    there = move(args, cuda)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [OPS.roi_align_backward(*there) for _ in range(5)]
        wrong_grad = there[0].clone()
        wrong_grad[3, 0] = math.inf
        infinite = OPS.roi_align_backward(wrong_grad, *there[1:])
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(first, OPS.roi_align_backward(*args))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    assert all(map_.isnan().all() for map_ in infinite)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["roi_pool_backward", "deform_psroi_pool_backward"])
def test_cuda_pooling_gradients_can_be_deterministic(name, cuda):
    for args in GPU_CASES[name]():
        there = move(args, cuda)
        torch.use_deterministic_algorithms(True)
        try:
            first, *others = [tree_leaves(getattr(OPS, name)(*there)) for _ in range(5)]
        finally:
            torch.use_deterministic_algorithms(False)
        assert_same(first, tree_leaves(getattr(OPS, name)(*args)))
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
def test_cuda_pooling_gradcheck(cuda):
    (a, b), *rest = move(pool_case(dtype=torch.float64, count=8), cuda)
    assert torch.autograd.gradcheck(lambda a, b: OPS.roi_pool([a, b], *rest)[0], (a, b), nondet_tol=1e-12)
    (a, b), *rois, offsets, side, groups, samples = move(deform_case(dtype=torch.float64, count=8, channels=4, shares=2), cuda)

    def pool(a, b, moved):
        return OPS.deform_psroi_pool([a, b], *rois, moved, side, groups, samples)

    # Where a sample crosses a pixel or the edge, the offset's slope jumps; that of these numbers stays clear of it.
    assert torch.autograd.gradcheck(pool, (a, b, offsets), nondet_tol=1e-12)


@pytest.mark.gpu
def test_cuda_pooling_of_unaligned_and_sliced_maps(cuda):
    """Maps that begin at any number, or of which some channels are left out, are read as their copies."""
    for name, case in (("roi_pool", pool_case), ("deform_psroi_pool", deform_case), ("roi_align", None)):
        features, *rest = case(False, channels=16) if case else roi_case(dtype=torch.float32, channels=16)
        rest = move(rest, cuda)
        for parts in ([f[1:, 4:12] for f in move(features, cuda)], [shifted(f) for f in move(features, cuda)]):
            inds = [torch.zeros_like(rest[1]), *rest[2:]]
            whole = [part.clone(memory_format=torch.contiguous_format) for part in parts]
            assert_same(tree_leaves(getattr(OPS, name)(parts, rest[0], *inds)), tree_leaves(getattr(OPS, name)(whole, rest[0], *inds)))


def shifted(feature):
    """The same map, channels-last, one number behind an aligned address."""
    room = torch.empty(feature.numel() + 1, dtype=feature.dtype, device=feature.device)[1:]
    n, c, h, w = feature.shape
    return room.view(n, h, w, c).permute(0, 3, 1, 2).copy_(feature)


@pytest.mark.gpu
def test_cuda_survives_boxes_and_indices_without_sense(cuda):
    args = roi_case(RULES[1], 0)
    args[1][:3] = torch.tensor([[0, 0, 1e30, 1e30], [0, 0, math.inf, 5], [math.nan] * 4])
    args[3][:3] = 0
    args[3][5], args[2][6] = 9, 77
    out = OPS.roi_align(*move(args, cuda))
    assert not out[5:7].any()
    for pooled in (OPS.roi_pool(*move([*args[:5], 3, 4], cuda))[0], OPS.deform_psroi_pool(*move([*args[:5], None, 4, 1, 2], cuda))):
        assert not pooled[5:7].any() and not pooled.isnan().any()
    polygons = wrong(polygon_case(), 4, torch.tensor([99, -5]))
    assert not OPS.polygon_targets(*move(polygons, cuda)).any()
    assert not OPS.bitmap_targets(*move(wrong(bitmap_case(), 3, torch.tensor([99, -5])), cuda)).any()
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_never_waits(name, cuda):
    for args in GPU_CASES[name]()[:: len(FLOATS)]:
        there = move(args, cuda)
        torch.cuda.set_sync_debug_mode("error")
        try:
            getattr(OPS, name)(*there)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def change(args):
    """Other numbers of the same shapes: boxes and frames move, the rest stays."""
    return [arg + 0.75 if torch.is_tensor(arg) and arg.is_floating_point() and arg.shape[-1] == 4 else arg for arg in args]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_graph_replays(name, cuda):
    run = getattr(OPS, name)
    args = move(GPU_CASES[name]()[-1], cuda)
    other = change(args)
    assert any(a is not b for a, b in zip(args, other, strict=True))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        run(*args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = run(*args)
    for mine, theirs in zip(args, other, strict=True):
        if mine is not theirs:
            mine.copy_(theirs)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(out, run(*other))


def test_gradients_of_no_images():
    for way in (OPS.roi_align_backward, roi_page._roi_align_backward_torch):
        grad, boxes, inds = torch.zeros(0, 4, 2, 2), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        assert way(grad, boxes, inds, inds, [0.5], [0, 4, 8, 8], 2, 0.0, 1.0)[0].shape == (0, 4, 8, 8)


def test_second_derivatives_of_roi_align_are_refused():
    features = torch.rand(1, 2, 6, 6, requires_grad=True)
    one = torch.zeros(1, dtype=torch.int64)
    out = roi_align([features], torch.tensor([[1.0, 1, 5, 5]]), one, one, [1.0], 2, 2, 2, 0.0, 1.0)
    (first,) = torch.autograd.grad(out.square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.square().sum().backward()
