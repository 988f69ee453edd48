"""Transforms that cut: the limit of the aspect ratio and large-scale jitter, with boxes, masks and keypoints that follow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.data.crops import CropToAspectRatio, ScaleJitter
from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.utils.counter import CounterRandom


def scene(size, boxes, pixel):
    """A black picture with rectangles of brightness 1, 2, ..., their masks, and their middles as keypoints. boxes: xyxy, ends excluded"""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    masks = []
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = k + 1
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        masks.append(pixels == k + 1 if k % 2 else [[x1, y1, x2, y1, x2, y2, x1, y2]])
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = BoxList(corners - torch.tensor([0, 0, pixel, pixel]), size, "xyxy", pixel)
    target.add_field("labels", torch.arange(len(boxes)) + 1)
    target.add_field("masks", SegmentationMask(masks, size))
    middles = torch.stack([(corners[:, 0] + corners[:, 2]) / 2, (corners[:, 1] + corners[:, 3]) / 2, torch.full((len(boxes),), 2.0)], dim=1)
    target.add_field("keypoints", Keypoints(middles[:, None], size, names=("middle",)))
    return Image.fromarray(np.stack([pixels] * 3, axis=2)), target


def check_follows(image, target, pixel):
    """Boxes, masks and keypoints lie where the picture shows their objects."""
    pixels = np.asarray(image)[:, :, 0]
    assert tuple(target.size) == image.size
    masks = target.get_field("masks").get_mask_tensor().reshape(len(target), *pixels.shape)
    for k, label in enumerate(target.get_field("labels").tolist()):
        rows, columns = np.nonzero(pixels == label)
        expected = [columns.min(), rows.min(), columns.max() + 1 - pixel, rows.max() + 1 - pixel]
        assert target.bbox[k].tolist() == expected
        np.testing.assert_array_equal(masks[k].numpy(), pixels == label)
        x, y, seen = target.get_field("keypoints").keypoints[k, 0].tolist()
        assert seen == 0 or pixels[min(int(y), pixels.shape[0] - 1), min(int(x), pixels.shape[1] - 1)] == label


@st.composite
def long_scenes(draw):
    """(width, height) with one side much longer, boxes that stand beside each other along it, a pixel rule, a key."""
    long, short = draw(st.integers(100, 400)), draw(st.integers(8, 40))
    ends = sorted(draw(st.lists(st.integers(0, long), min_size=0, max_size=6, unique=True)))
    spans = [(a, b) for a, b in zip(ends[::2], ends[1::2]) if b - a >= 3]
    boxes = [(a, 2, b, short - 2) for a, b in spans]
    if draw(st.booleans()):
        return (long, short), boxes, draw(st.sampled_from([0, 1])), draw(st.integers(0, 10**6))
    return (short, long), [(y1, x1, y2, x2) for x1, y1, x2, y2 in boxes], draw(st.sampled_from([0, 1])), draw(st.integers(0, 10**6))


@settings(max_examples=120, deadline=None)
@given(long_scenes())
def test_ratio_is_kept_and_targets_follow(case):
    size, boxes, pixel, key = case
    image, target = scene(size, boxes, pixel)
    cut, kept = CropToAspectRatio(0.5, 2.0)(image, target, CounterRandom(key))
    assert min(cut.size) == min(size) and max(cut.size) == min(max(size), 2 * min(size)), "the shorter side stays"
    check_follows(cut, kept, pixel)
    axis = 0 if size[0] > size[1] else 1
    if boxes:
        first, end = min(box[axis] for box in boxes), max(box[axis + 2] for box in boxes)
        if end - first <= max(cut.size):
            assert len(kept) == len(boxes) and sorted(kept.area().tolist()) == sorted(target.area().tolist()), "all fit, so all are whole"


def test_image_of_4000_by_200():
    boxes = [(100, 20, 180, 120), (3000, 50, 3300, 190), (3250, 10, 3390, 40)]
    image, target = scene((4000, 200), boxes[1:], 1)
    starts = set()
    for key in range(40):
        cut, kept = CropToAspectRatio(0.5, 2.0)(image, target, CounterRandom(key))
        assert cut.size == (400, 200) and len(kept) == 2
        check_follows(cut, kept, 1)
        starts.add(int(kept.bbox[0, 0]))
    assert starts <= set(range(11)) and len(starts) > 5, "the window begins at 2990 to 3000"
    image, target = scene((4000, 200), boxes, 1)
    for key in range(40):
        cut, kept = CropToAspectRatio(0.5, 2.0)(image, target, CounterRandom(key))
        assert cut.size == (400, 200)
        check_follows(cut, kept, 1)
    upright = CropToAspectRatio(0.5, 2.0)(image.transpose(Image.TRANSPOSE), None, CounterRandom(1))[0]
    assert upright.size == (200, 400)


def test_images_within_the_range_stay():
    image, target = scene((80, 40), [(5, 5, 10, 10)], 1)
    assert CropToAspectRatio(0.5, 2.0)(image, target, CounterRandom(0)) == (image, target)
    with pytest.raises(ValueError, match="lowest <= highest"):
        CropToAspectRatio(2.0, 0.5)


def test_window_is_that_of_document_a_when_objects_do_not_fit():
    """It begins in the first half of what the objects reach beyond the window."""
    image, target = scene((1000, 100), [(100, 10, 900, 90)], 1)
    starts = []
    for key in range(400):
        kept = CropToAspectRatio(0.5, 2.0)(image, target, CounterRandom(key))[1]
        assert kept.bbox.tolist()[0][2] == 199
        starts.append(kept.get_field("masks").instances[0].rings[0][0, 0])
    # 100 less the beginning of the window: polygons are moved, not cut.
    assert -299 <= min(starts) < -280 and -20 < max(starts) <= 0 and len(set(starts)) > 150


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(6, 60), st.integers(6, 60)),
    st.integers(16, 90),
    st.sampled_from([0, 1]),
    st.integers(0, 10**6),
)
def test_scale_jitter_keeps_objects_on_their_pixels(size, corner, square, pixel, key):
    x, y = min(corner[0], size[0] - 6), min(corner[1], size[1] - 6)
    box = (x, y, min(x + corner[2], size[0]), min(y + corner[3], size[1]))
    image, target = scene(size, [box], pixel)
    random = CounterRandom(key)
    out, kept = ScaleJitter(0.5, 2.0, square)(image.point(lambda v: v * 255), target, random)
    factor = 0.5 + 1.5 * random.uniform("scale_jitter")
    ratio = factor * square / max(size)
    assert max(out.size) == min(square, max(round(max(size) * ratio), 1)) and tuple(kept.size) == out.size
    bright = np.asarray(out)[:, :, 0] > 127
    if bright.any():
        rows, columns = np.nonzero(bright)
        if len(kept):
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(kept.bbox[0] + torch.tensor([0, 0, pixel, pixel]), expected, atol=1.0 + pixel * (1 + abs(1 - ratio)))
        else:
            assert min(np.ptp(rows), np.ptp(columns)) <= 1 + pixel, "only slivers are dropped"


def test_scale_jitter_without_chance_and_wrong_range():
    image, target = scene((100, 50), [(10, 10, 40, 40)], 0)
    out, kept = ScaleJitter(0.1, 2.0, 200)(image, target)
    assert out.size == (200, 100) and kept.bbox.tolist() == [[20, 20, 80, 80]]
    with pytest.raises(ValueError, match="low <= high"):
        ScaleJitter(0, 1, 100)


def test_keys_switch_them_on(tmp_path):
    folder = toy.generate(tmp_path / "toy", num_train=8, num_test=1, size=64)
    opts = ["DATASETS.DATA", str(folder), "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", "0"]
    opts += ["MODEL.DEVICE", "cpu", "INPUT.MAX_SIZE_TRAIN", "96", "MODEL.MASK_ON", "True"]
    names = [type(t).__name__ for t in make_transforms(load_config(None, opts)).transforms]
    assert "ScaleJitter" not in names and "CropToAspectRatio" not in names
    config = load_config(None, [*opts, "INPUT.SCALE_JITTER", "(0.5, 2.0)", "INPUT.ASPECT_RATIO_RANGE", "(0.5, 2.0)"])
    names = [type(t).__name__ for t in make_transforms(config).transforms]
    assert "ScaleJitter" in names and names.index("CropToAspectRatio") < names.index("ScaleJitter") and "Resize" not in names
    assert "ScaleJitter" not in [type(t).__name__ for t in make_transforms(config, is_train=False).transforms]
    sizes = set()
    for images, targets, _ in make_data_loader(config):
        sizes |= set(images.image_sizes)
        assert max(images.tensors.shape[2:]) <= 96 and len(targets) == 4
    assert len(sizes) > 3
