"""RoI pooling, crop, faster-rcnn.pytorch's RoIAlign and deformable pooling: slow references, gradients, padding, levels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from maskrcnn_bench.layers import DeformPSROIPool, ROIPool
from maskrcnn_bench.layers.deform_psroi_pool import deform_psroi_pool
from maskrcnn_bench.layers.roi_crop import legacy_roi_align, roi_crop
from maskrcnn_bench.layers.roi_pool import roi_pool
from maskrcnn_bench.modeling.pooler_types import make_pooler
from maskrcnn_bench.modeling.poolers import RoIs

SCALES = [1 / 4, 1 / 8]
SIZE = 3


def deformed(features, boxes, image_inds, levels, scales, height, width):
    """Deformable pooling with the arguments of the others; the offsets follow from the boxes."""
    offsets = (
        torch.sin(boxes.sum(1)[:, None] + torch.arange(2 * SIZE * SIZE, dtype=torch.float64)).view(-1, 2, SIZE, SIZE).to(features[0].dtype)
    )
    return deform_psroi_pool(features, boxes, image_inds, levels, scales, offsets, height, features[0].shape[1])


OPS = {"pool": roi_pool, "crop": roi_crop, "align": legacy_roi_align, "deform": deformed}


def world(dtype=torch.float64, seed=0):
    """Two levels of two images and boxes on them: across the border, degenerate, outside, and padding."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(2, 4, 12, 16, generator=generator, dtype=dtype), torch.randn(2, 4, 6, 8, generator=generator, dtype=dtype)]
    boxes = torch.tensor(
        [
            [3.0, 5, 40, 33],
            [-6, -9, 20, 25],
            [30, 20, 70, 60],
            [10, 10, 10, 10],
            [90, 80, 120, 99],
            [0, 0, 63, 47],
            [7, 7, 30, 30],
            [1, 2, 50, 40],
        ],
        dtype=dtype,
    )
    return features, boxes + 0.3, torch.tensor([0, 1, 1, 0, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 0, 1, 1, -1, 1])


# Slow references: one number at a time. `at` reads a map [H, W], 0 outside.


def at(plane, y, x):
    return plane[y, x].item() if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1] else 0.0


def between(plane, y, x, top=None, left=None):
    """Bilinear value whose upper left neighbour may be given."""
    top, left = math.floor(y) if top is None else top, math.floor(x) if left is None else left
    dy, dx = y - top, x - left
    weights = {(0, 0): (1 - dy) * (1 - dx), (0, 1): (1 - dy) * dx, (1, 0): dy * (1 - dx), (1, 1): dy * dx}
    return sum(weight * at(plane, top + i, left + j) for (i, j), weight in weights.items())


def half_up(value):
    return math.floor(value + 0.5)


def slow_pool(plane, box, scale, i, j):
    x1, y1, x2, y2 = (half_up(v * scale) for v in box)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    rows = range(max(math.floor(i * height / SIZE) + y1, 0), min(math.ceil((i + 1) * height / SIZE) + y1, plane.shape[0]))
    columns = range(max(math.floor(j * width / SIZE) + x1, 0), min(math.ceil((j + 1) * width / SIZE) + x1, plane.shape[1]))
    return max((plane[y, x].item() for y in rows for x in columns), default=0.0)


def slow_crop(plane, box, scale, i, j):
    x1, y1, x2, y2 = (v * scale for v in box)
    return between(plane, y1 + (y2 - y1) * i / (SIZE - 1), x1 + (x2 - x1) * j / (SIZE - 1))


def slow_align(plane, box, scale, i, j):
    x1, y1, x2, y2 = (v * scale for v in box)
    height, width = plane.shape
    total = 0.0
    for a in (i, i + 1):
        for b in (j, j + 1):
            y, x = y1 + a * (y2 - y1 + 1) / SIZE, x1 + b * (x2 - x1 + 1) / SIZE
            if 0 <= y < height and 0 <= x < width:
                total += between(plane, y, x, min(math.floor(y), height - 2), min(math.floor(x), width - 2))
    return total / 4


def slow_deform(plane, box, scale, i, j, offset=None, samples=4):
    x1, y1 = (half_up(v) * scale - 0.5 for v in box[:2])
    x2, y2 = ((half_up(v) + 1) * scale - 0.5 for v in box[2:])
    width, height = max(x2 - x1, 0.1), max(y2 - y1, 0.1)
    dx, dy = (0.0, 0.0) if offset is None else (0.1 * offset[0, i, j].item(), 0.1 * offset[1, i, j].item())
    values = []
    for a in range(samples):
        for b in range(samples):
            y = y1 + (i + a / samples) * height / SIZE + dy * height
            x = x1 + (j + b / samples) * width / SIZE + dx * width
            if -0.5 <= y <= plane.shape[0] - 0.5 and -0.5 <= x <= plane.shape[1] - 0.5:
                values.append(between(plane, min(max(y, 0), plane.shape[0] - 1), min(max(x, 0), plane.shape[1] - 1)))
    return sum(values) / max(len(values), 1)


def deform_with_offsets(plane, box, scale, i, j):
    offset = torch.sin(sum(box) + torch.arange(2 * SIZE * SIZE, dtype=torch.float64)).view(2, SIZE, SIZE)
    return slow_deform(plane, box, scale, i, j, offset)


SLOW = {"pool": slow_pool, "crop": slow_crop, "align": slow_align, "deform": deform_with_offsets}


@pytest.mark.parametrize("name", OPS)
def test_every_number_is_that_of_the_slow_reference(name):
    features, boxes, image_inds, levels = world()
    out = OPS[name](features, boxes, image_inds, levels, SCALES, SIZE, SIZE)
    assert out.shape == (8, 4, SIZE, SIZE) and out.dtype == torch.float64
    for r, (box, image, level) in enumerate(zip(boxes.tolist(), image_inds.tolist(), levels.tolist(), strict=True)):
        for c in range(0, 4, 3):
            plane = features[level][image, c]
            slow = [[0.0 if level < 0 else SLOW[name](plane, box, SCALES[level], i, j) for j in range(SIZE)] for i in range(SIZE)]
            torch.testing.assert_close(out[r, c], torch.tensor(slow, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_gradients_of_the_features(name):
    features, boxes, image_inds, levels = world()
    small = [f[:, :2, :7, :9].clone().requires_grad_() for f in features]
    scales = [1 / 8, 1 / 8]

    def pool(*maps):
        return OPS[name](list(maps), boxes, image_inds, levels, scales, SIZE, SIZE)

    assert torch.autograd.gradcheck(pool, small)


def test_gradients_of_the_offsets():
    features, boxes, image_inds, levels = world()
    offsets = torch.rand(8, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def pool(moved):
        return deform_psroi_pool(features, boxes, image_inds, levels, SCALES, moved, SIZE, 4, samples=2)

    # Samples that cross the edge of the map would jump; these boxes keep away from it.
    chosen = [0, 5]
    boxes = boxes[chosen] * 0.5 + 8
    image_inds, levels = image_inds[chosen], torch.zeros(2, dtype=torch.int64)
    assert torch.autograd.gradcheck(pool, offsets[chosen].detach().requires_grad_())


def test_crop_is_what_grid_sample_reads():
    feature = torch.randn(1, 4, 9, 13, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[-8.0, 4, 100, 90], [20, 30, 160, 200]])
    x1, y1, x2, y2 = (boxes / 16).unbind(1)
    zero = torch.zeros(2)
    theta = torch.stack([(x2 - x1) / 12, zero, (x1 + x2 - 12) / 12, zero, (y2 - y1) / 8, (y1 + y2 - 8) / 8], dim=1).view(2, 2, 3)
    grid = F.affine_grid(theta, [2, 1, 7, 7], align_corners=True)
    theirs = F.grid_sample(feature.expand(2, -1, -1, -1), grid, align_corners=True)
    ours = roi_crop([feature], boxes, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), [1 / 16], 7, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_position_sensitive_bins_read_their_own_channels():
    """R-FCN: channel (c * 3 + i) * 3 + j belongs to bin (i, j)."""
    constant = torch.arange(18.0).view(1, 18, 1, 1).expand(1, 18, 20, 20).contiguous()
    zero = torch.zeros(1, dtype=torch.int64)
    out = deform_psroi_pool([constant], torch.tensor([[8.0, 8, 60, 60]]), zero, zero, [0.25], None, 3, 2, group_size=3)
    torch.testing.assert_close(out, torch.arange(18.0).view(1, 2, 3, 3))


def test_each_share_of_the_channels_has_its_own_offsets():
    features, boxes, image_inds, levels = world(torch.float32)
    offsets = torch.randn(8, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    both = deform_psroi_pool(features, boxes, image_inds, levels, SCALES, offsets, SIZE, 4)
    for share in (0, 1):
        some = [f[:, 2 * share : 2 * share + 2] for f in features]
        alone = deform_psroi_pool(some, boxes, image_inds, levels, SCALES, offsets[:, 2 * share : 2 * share + 2], SIZE, 2)
        torch.testing.assert_close(both[:, 2 * share : 2 * share + 2], alone)


@pytest.mark.parametrize("name", OPS)
def test_no_boxes_and_half_precision(name):
    features, boxes, image_inds, levels = world(torch.float32)
    none = OPS[name](features, boxes[:0], image_inds[:0], levels[:0], SCALES, SIZE, SIZE)
    assert none.shape == (0, 4, SIZE, SIZE)
    exact = OPS[name]([f.bfloat16().float() for f in features], boxes, image_inds, levels, SCALES, SIZE, SIZE)
    half = OPS[name]([f.bfloat16() for f in features], boxes, image_inds, levels, SCALES, SIZE, SIZE)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", OPS)
def test_memory_layout_does_not_matter(name):
    features, *rest = world()
    turned = [f.contiguous(memory_format=torch.channels_last) for f in features]
    assert torch.equal(OPS[name](features, *rest, SCALES, SIZE, SIZE), OPS[name](turned, *rest, SCALES, SIZE, SIZE))


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_cuda_gives_what_the_cpu_gives(name):
    """Forward and backward, without waiting for the host."""
    features, boxes, image_inds, levels = world(torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        maps = [f.to(device, copy=True).requires_grad_() for f in features]
        rest = [t.to(device) for t in (boxes, image_inds, levels)]
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            out = OPS[name](maps, *rest, SCALES, SIZE, SIZE) if name != "deform" else deform_psroi_pool(maps, *rest, SCALES, None, SIZE, 4)
            out.square().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append([out.detach().cpu(), *(m.grad.cpu() for m in maps)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_modules_with_one_map():
    features, boxes, image_inds, _ = world(torch.float32)
    rois = torch.cat([image_inds[:, None].float(), boxes], dim=1)
    zeros = torch.zeros(8, dtype=torch.int64)
    assert torch.equal(ROIPool((3, 3), 0.25)(features[0], rois), roi_pool(features[:1], boxes, image_inds, zeros, [0.25], 3, 3))
    offsets = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = DeformPSROIPool(0.25, 3, 4, no_trans=False, trans_std=0.1)
    assert torch.equal(layer(features[0], rois, offsets), deform_psroi_pool(features[:1], boxes, image_inds, zeros, [0.25], offsets, 3, 4))
    assert not torch.equal(layer(features[0], rois, offsets), DeformPSROIPool(0.25, 3, 4, no_trans=True)(features[0], rois))


@pytest.mark.parametrize("kind, aligned", [("ROIAlignV1", False), ("ROIAlignV2", True)])
def test_the_two_versions_of_roi_align_follow_no_rule(kind, aligned):
    (feature, _), boxes, image_inds, _ = world()
    rois = RoIs(boxes, image_inds, torch.ones(8, dtype=torch.bool), torch.arange(8), (2, 4), 0)
    rule = (SIZE, (0.25,), 2, 0.25, 3.0, 1e-6)
    theirs = torchvision.ops.roi_align(feature, torch.cat([image_inds[:, None].double(), boxes], 1), SIZE, 0.25, 2, aligned)
    torch.testing.assert_close(make_pooler(kind, rule, 4)([feature], rois), theirs)
    assert not torch.allclose(make_pooler("ROIAlign", rule, 4)([feature], rois), theirs)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda f, *rest: roi_pool(f, *rest, [0.25], 3, 3), "one scale a level, got 2 levels, 1 scales"),
        (lambda f, b, i, n: roi_crop(f, b[:, :3], i, n, SCALES, 3, 3), r"boxes: expected shape \[R, 4\], got \[8, 3\]"),
        (lambda f, *rest: deform_psroi_pool(f, *rest, SCALES, None, 3, 2, 3), "= 18 channels, got 4"),
        (lambda f, *rest: deform_psroi_pool(f, *rest, SCALES, torch.zeros(8, 6, 3, 3), 3, 4), "do not divide among 3"),
        (lambda f, b, i, n: DeformPSROIPool(0.25, 3, 4, False)(f[0], torch.zeros(8, 5)), "expected offsets, or no_trans"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(*world())
