"""Masks pasted straight into run lengths equal masks pasted into the image and encoded by pycocotools, and the references' own."""

from __future__ import annotations

import platform
import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn_bench.layers import mask_rle
from maskrcnn_bench.structures import mask_paste
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.mask_paste import Masker, encode_counts, paste_rle

RULES = ("expand_truncate", "pixel_centres")
WAYS = ("compiled", "strips") if mask_rle.is_compiled() else ("strips",)
compiled_only = pytest.mark.skipif("compiled" not in WAYS, reason="csrc/ is not compiled")


def paste(way: str, *arguments, **named) -> list[dict]:
    """`paste_rle` by the compiled kernel, or without it."""
    if way == "compiled":
        return paste_rle(*arguments, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_paste, "_arithmetic", lambda rule: None)
        return paste_rle(*arguments, **named)


@compiled_only
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="on other processors torch's arithmetic may be neither of the two")
def test_the_compiled_kernel_is_used(rule, monkeypatch):
    assert mask_paste._arithmetic(rule) is not None
    monkeypatch.setattr(mask_paste, "_paste_strips", lambda *_: pytest.fail("not compiled"))
    assert paste_rle(torch.ones(1, 4, 4), torch.tensor([[2.0, 2, 8, 8]]), (10, 10), rule=rule)[0]["size"] == [10, 10]


def slow_expand_truncate(prob: torch.Tensor, box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The rule of maskrcnn-benchmark, pixel by pixel of the whole image: float values, 0 outside. [h, w]"""
    width, height = size
    small = prob.shape[-1]
    padded = torch.zeros(small + 2, small + 2)
    padded[1:-1, 1:-1] = prob
    scale = (small + 2) / small
    centre_x, centre_y = (box[0] + box[2]) * 0.5, (box[1] + box[3]) * 0.5
    half_w, half_h = (box[2] - box[0]) * 0.5 * scale, (box[3] - box[1]) * 0.5 * scale
    x1, y1, x2, y2 = (int(v) for v in (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h))
    shape = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
    resized = torch.nn.functional.interpolate(padded[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
    image = torch.zeros(height, width)
    for y in range(max(y1, 0), min(y1 + shape[0], height)):
        for x in range(max(x1, 0), min(x1 + shape[1], width)):
            image[y, x] = resized[y - y1, x - x1]
    return image


def slow_pixel_centres(prob: torch.Tensor, box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The rule of detectron2 on the whole image, of which it looks at the box and one pixel around it. [h, w]"""
    width, height = size
    image = torch.zeros(height, width)
    if box[2] <= box[0] or box[3] <= box[1]:
        return image
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    sampled = torch.nn.functional.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]
    low, high = (box[:2].floor() - 1).clamp(min=0).int().tolist(), (box[2:].ceil() + 1).clamp(min=0).int().tolist()
    image[low[1] : high[1], low[0] : high[0]] = sampled[low[1] : high[1], low[0] : high[0]]
    return image


def slow_paste(prob: torch.Tensor, box: torch.Tensor, size: tuple[int, int], threshold: float, rule: str) -> np.ndarray:
    if rule == "expand_truncate":
        return (slow_expand_truncate(prob, box, size) > threshold).numpy()
    return (slow_pixel_centres(prob, box, size) >= threshold).numpy()


def encode(pasted: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(pasted.astype(np.uint8)))["counts"].decode()


def random_masks(generator: torch.Generator, count: int, resolution: int) -> torch.Tensor:
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bicubic").clamp(0, 1)[:, 0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resolution=st.sampled_from([7, 14, 28]),
    rule=st.sampled_from(RULES),
    reach=st.sampled_from([0.0, 0.4, 2.0]),
    whole=st.booleans(),
    way=st.sampled_from(WAYS),
)
def test_run_lengths_equal_pasting_and_encoding(seed, width, height, resolution, rule, reach, whole, way):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float32)
    corners = (torch.rand(6, 2, 2, generator=generator) * (1 + 2 * reach) - reach) * size
    boxes = corners.sort(dim=1).values.reshape(6, 4)
    boxes = boxes.round() if whole else boxes
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    probs = random_masks(generator, 6, resolution)
    threshold = float(torch.randint(1, 8, (), generator=generator)) / 8
    probs[1] = threshold
    probs[2] = 1.0
    expected = [encode(slow_paste(prob, box, (width, height), threshold, rule)) for prob, box in zip(probs, boxes)]
    got = paste(way, probs, boxes, (width, height), threshold, rule)
    assert [rle["counts"] for rle in got] == expected
    assert all(rle["size"] == [height, width] for rle in got)


@compiled_only
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 250), st.integers(1, 250)),
    resolution=st.sampled_from([1, 2, 14, 28]),
    rule=st.sampled_from(RULES),
    padding=st.integers(0, 2),
    threshold=st.sampled_from([0.25, 0.3, 0.5, 0.7]),
    reach=st.sampled_from([0.0, 0.5]),
)
def test_both_ways_round_alike(seed, size, resolution, rule, padding, threshold, reach):
    """Most values equal the threshold, so that the last bit of each pixel decides."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(5, 2, 2, generator=generator) * (1 + 2 * reach) - reach) * torch.tensor(size)
    probs = torch.rand(5, resolution, resolution, generator=generator)
    probs = torch.where(torch.rand(probs.shape, generator=generator) < 0.8, threshold, probs)
    probs[0, 0, 0] = torch.nan
    arguments = (probs, corners.sort(dim=1).values.reshape(5, 4), size, threshold, rule, padding)
    assert paste("compiled", *arguments) == paste("strips", *arguments)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_boxes_larger_than_a_strip_and_partly_outside(rule, way, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    probs = random_masks(generator, 4, 28)
    boxes = torch.tensor(
        [[0.0, 0.0, 300.0, 200.0], [-150.3, -90.7, 200.2, 320.9], [100.5, 10.25, 400.0, 180.75], [150.0, -400.0, 151.0, 900.0]]
    )
    monkeypatch.setattr(mask_paste, "STRIP_PIXELS", 5000)
    got = paste(way, probs, boxes, (300, 200), 0.5, rule)
    expected = [encode(slow_paste(prob, box, (300, 200), 0.5, rule)) for prob, box in zip(probs, boxes)]
    assert [rle["counts"] for rle in got] == expected


@pytest.mark.parametrize("rule", RULES)
def test_masker_equals_the_slow_paste(rule):
    generator = torch.Generator().manual_seed(0)
    probs = random_masks(generator, 5, 28)[:, None]
    boxes = torch.tensor([[1.5, 2, 30, 40], [-9, -5, 12, 80], [50, 50, 50.4, 50.6], [90, 0, 130, 20], [200, 0, 210, 9]])
    boxlist = BoxList(boxes, (100, 60))
    (hard,) = Masker(0.5, 1, rule)([probs], [boxlist])
    (soft,) = Masker(-1, 1, rule)(probs[None], boxlist)
    assert hard.shape == soft.shape == (5, 1, 60, 100)
    assert hard.dtype == soft.dtype == torch.uint8
    slow = {"expand_truncate": slow_expand_truncate, "pixel_centres": slow_pixel_centres}[rule]
    for k in range(5):
        np.testing.assert_array_equal(hard[k, 0].numpy(), slow_paste(probs[k, 0], boxes[k], (100, 60), 0.5, rule))
        assert torch.equal(soft[k, 0], (slow(probs[k, 0], boxes[k], (100, 60)) * 255).to(torch.uint8))
    assert soft.float().max() > 200


@pytest.mark.parametrize("way", WAYS)
def test_no_masks_and_no_boxes(way):
    assert paste(way, torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 20)) == []
    assert Masker()([torch.zeros(0, 1, 28, 28)], [BoxList(torch.zeros(0, 4), (10, 20))])[0].shape == (0, 1, 20, 10)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 10**7), min_size=1, max_size=12), max_size=5), st.booleans())
def test_text_of_run_lengths_equals_pycocotools(masks, begins_inside):
    counts = [np.array([0, *runs] if begins_inside else runs) for runs in masks]
    expected = [coco_mask.frPyObjects({"size": [int(runs.sum()), 1], "counts": runs.tolist()}, int(runs.sum()), 1) for runs in counts]
    assert encode_counts(counts) == [rle["counts"].decode() for rle in expected]


@pytest.mark.parametrize(
    ("fixture", "rule"), [("mb/e2e_mask_rcnn_R_50_FPN_1x", "expand_truncate"), ("d2/mask_rcnn_R_50_FPN_1x", "pixel_centres")]
)
@pytest.mark.parametrize("way", WAYS)
def test_pasted_masks_of_the_reference_implementations(shared_dir, fixture, rule, way):
    path = shared_dir / "parity" / fixture / "expected.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as stored:
        probs, boxes, texts = (stored[key] for key in ("mask.prob", "det.boxes_original", "mask.rle"))
        height, width = stored["mask.rle_hw"].tolist()
    got = paste(way, torch.from_numpy(probs[: len(texts)]), torch.from_numpy(boxes[: len(texts)]), (width, height), 0.5, rule)
    assert [rle["counts"] for rle in got] == [str(text) for text in texts]


@pytest.mark.parametrize("rule", RULES)
def test_memory_is_bounded_whatever_the_image(rule, monkeypatch):
    """A mask that fills an image of 64 million pixels (256 MB as floats) is made in strips of 16 MB."""
    sizes = []
    strips, inside = mask_paste.RULES[rule]
    resize = mask_paste._resize

    def watched(*arguments):
        for strip in strips(*arguments):
            sizes.append(strip[3].numel())
            yield strip

    monkeypatch.setattr(mask_paste, "_resize", lambda *a: (sizes.append(a[1] * a[2]), resize(*a))[1])
    monkeypatch.setitem(mask_paste.RULES, rule, (watched, inside))
    boxes = torch.tensor([[100.0, 50.0, 7900.0, 7990.0], [3000.0, 4000.0, 3100.0, 4100.0]])
    probs = random_masks(torch.Generator().manual_seed(1), 2, 28)
    tracemalloc.start()
    try:
        rles = paste("strips", probs, boxes, (8000, 8000), 0.5, rule)
        numpy_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(sizes) <= mask_paste.STRIP_PIXELS
    assert sum(sizes) > 7800 * 7940
    assert numpy_peak < 30e6
    assert all(paste(way, probs, boxes, (8000, 8000), 0.5, rule) == rles for way in WAYS)
    assert abs(coco_mask.area(rles[0]) / (7800 * 7940) - float((probs[0] > 0.5).float().mean())) < 0.05


def test_edges_of_columns_give_the_same_strings():
    """What surrounds the CUDA kernels, with slow stand-ins for them; runs that go on in the next column are joined."""
    size, probs = (23, 17), random_masks(torch.Generator().manual_seed(5), 4, 14)
    probs[3] = 1
    boxes = torch.tensor([[2.0, 3, 20, 15], [-9, -9, 40, 30], [50, 50, 60, 60], [0, 0, 23, 17]])
    pasted = np.stack([slow_paste(prob, box, size, 0.5, "pixel_centres") for prob, box in zip(probs, boxes)])

    def of_columns(mask):
        return [mask_paste._edges(x, 0, mask[:, x : x + 1].T, size[1]) for x in range(size[0])]

    def counts(probs, boxes, *_):
        return torch.tensor([[len(edges) for edges in of_columns(mask)] for mask in pasted], dtype=torch.int32)

    def edges(probs, boxes, ends, total, *_):
        assert ends.dtype == torch.int64 and ends.shape == (4, 23) and ends[-1, -1] == total
        return torch.from_numpy(np.concatenate([edges for mask in pasted for edges in of_columns(mask)]))

    with torch.library._scoped_library("maskrcnn_bench", "IMPL") as library:
        library.impl("mask_edge_counts", counts, "CPU")
        library.impl("mask_edges", edges, "CPU")
        found = mask_rle.mask_edges(probs, boxes, size, 0.5, "pixel_centres", 1, True)
    assert encode_counts([mask_paste._run_lengths([part], 23 * 17) for part in found]) == [encode(mask) for mask in pasted]


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_cuda_gives_the_strings_of_the_cpu(rule):
    """Most values equal the threshold, so that the last bit of each pixel decides; nothing of the size of an image is made."""
    if not mask_rle.is_compiled("cuda"):
        pytest.skip("the CUDA kernels are not compiled; the first line on stderr says why")
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        size = tuple(torch.randint(1, 1500 if seed % 4 == 0 else 250, (2,), generator=generator).tolist())
        corners = (torch.rand(20, 2, 2, generator=generator) * (1 + seed % 2) - seed % 2 / 2) * torch.tensor(size)
        resolution, threshold, padding = (1, 2, 14, 28)[seed % 4], (0.25, 0.3, 0.5)[seed % 3], seed % 3
        probs = torch.rand(20, resolution, resolution, generator=generator)
        probs = torch.where(torch.rand(probs.shape, generator=generator) < 0.8, threshold, probs)
        probs[0, 0, 0] = torch.nan
        arguments = (size, threshold, rule, padding)
        boxes = corners.sort(dim=1).values.reshape(20, 4)
        assert paste_rle(probs.cuda(), boxes.cuda(), *arguments) == paste_rle(probs, boxes, *arguments), seed
    assert paste_rle(probs[:0].cuda(), boxes[:0].cuda(), size) == []
    probs, boxes = random_masks(generator, 20, 28).cuda(), torch.tensor([[100.0, 50.0, 7900.0, 7990.0]]).expand(20, 4).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    paste_rle(probs, boxes, (8000, 8000), 0.5, rule)
    assert torch.cuda.max_memory_allocated() - before < 64e6  # an image of bytes for each would be 1.3e9


@compiled_only
def test_the_kernel_needs_boxes_and_masks_that_fit():
    for probs, boxes, rule, message in (
        (torch.zeros(2, 3, 4), torch.zeros(2, 4), "pixel_centres", r"probs: expected shape \[2, 3, 3\]"),
        (torch.zeros(2, 3, 3), torch.zeros(1, 4), "pixel_centres", r"boxes: expected shape \[2, 4\]"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 4).double(), "pixel_centres", "boxes: expected Float, got Double"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 4), "paste", "rule: expected expand_truncate or pixel_centres, got paste"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_rle.mask_rle(probs, boxes, (5, 5), 0.5, rule, 1, True)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=re.escape("paste rule expand_truncate or pixel_centres expected, got 'paste'")):
        Masker(rule="paste")
    with pytest.raises(ValueError, match="masks of 1 and boxes of 2"):
        Masker()([torch.zeros(0, 1, 2, 2)], [BoxList(torch.zeros(0, 4), (5, 5))] * 2)
    with pytest.raises(ValueError, match=re.escape("expected in an array [2, 4], got [3, 4]")):
        paste_rle(torch.zeros(2, 28, 28), torch.zeros(3, 4), (5, 5))
    with pytest.raises(ValueError, match="finite boxes expected"):
        paste_rle(torch.zeros(1, 28, 28), torch.tensor([[0, 0, float("nan"), 1]]), (5, 5))
