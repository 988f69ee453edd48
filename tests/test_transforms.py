"""Transforms: sizes and pixels of the reference implementations, and boxes, masks and keypoints that follow the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.utils.counter import CounterRandom

BGR_MEANS = {"mb": (102.9801, 115.9465, 122.7717), "d2": (103.53, 116.28, 123.675)}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "truncated", "rounded"),
    [
        ((640, 423), 300, 500, (453, 300), (454, 300)),
        ((423, 640), 300, 500, (300, 453), (300, 454)),
        ((640, 480), 800, 1333, (1066, 800), (1067, 800)),
        ((640, 427), 800, 1333, (1199, 800), (1199, 800)),
        ((1000, 300), 800, 1333, (1333, 400), (1333, 400)),
        ((500, 111), 800, 1333, (1333, 296), (1333, 296)),
        ((300, 800), 600, 1000, (375, 1000), (375, 1000)),
        ((800, 600), 600, 1000, (800, 600), (800, 600)),
        ((512, 512), 800, None, (800, 800), (800, 800)),
        ((4000, 2), 10, 100, (1, 1), (100, 1)),
    ],
)
def test_sizes_of_both_rules(size, shorter, longest, truncated, rounded):
    assert T.Resize(shorter, longest, "truncate").get_size(size, shorter) == truncated
    assert T.Resize(shorter, longest, "round").get_size(size, shorter) == rounded


def test_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match="truncate"):
        T.Resize(300, 500, "floor")


@pytest.mark.parametrize(("fixture", "rounding"), [("mb/e2e_faster_rcnn_R_50_FPN_1x", "truncate"), ("d2/faster_rcnn_R_50_FPN_1x", "round")])
def test_pixels_are_those_of_the_reference(shared_dir, fixture, rounding):
    folder = shared_dir / "parity"
    if not (folder / fixture).is_dir():
        pytest.skip(f"no fixture {fixture}")
    with np.load(folder / fixture / "expected.npz") as arrays:
        expected = arrays["input"]
    photo = Image.open(folder / "images" / "000000229358.png").convert("RGB")
    image, _ = T.Compose([T.Resize(300, 1333, rounding), T.ToTensor()])(photo)
    assert image.dtype == torch.uint8
    bgr = image.flip(0).float() - torch.tensor(BGR_MEANS[fixture[:2]])[:, None, None]
    np.testing.assert_allclose(bgr.numpy(), expected, atol=1e-4)


def test_one_of_several_sizes_is_drawn_evenly():
    resize = T.Resize((20, 30, 40), 100)
    widths = [resize(noise(50, 50), None, CounterRandom(key))[0].width for key in range(300)]
    counts = np.bincount(widths)[[20, 30, 40]]
    assert counts.sum() == 300 and counts.min() > 70


# --------------------------------------------------------------------------------------------------- targets follow


def scene(points: np.ndarray, size: tuple[int, int], pixel: int) -> tuple[Image.Image, BoxList]:
    """A white polygon on black with its box, mask (as polygon and as pixels) and corners as keypoints."""
    polygon = SegmentationMask([[points.flatten()]], size)
    image = Image.fromarray(polygon.get_mask_tensor().numpy() * np.uint8(255)).convert("RGB")
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    target = BoxList(torch.tensor([[x0, y0, x1 - x0, y1 - y0]]), size, "xywh", pixel).convert("xyxy")
    target.add_field("masks", polygon)
    target.add_field("bitmaps", polygon.convert("mask"))
    target.add_field("keypoints", Keypoints(torch.tensor(np.concatenate([points, np.full((len(points), 1), 2)], axis=1)[None]), size))
    return image, target


def tight_box(pixels: np.ndarray) -> np.ndarray:
    """Edges of the set pixels: x0, y0, x1, y1."""
    columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@settings(deadline=None, max_examples=60)
@given(
    corner=st.tuples(st.integers(5, 60), st.integers(5, 40)),
    side=st.tuples(st.integers(25, 60), st.integers(25, 50)),
    shorter=st.integers(60, 240),
    flips=st.tuples(st.booleans(), st.booleans()),
    pixel=st.sampled_from([0, 1]),
    rounding=st.sampled_from(["truncate", "round"]),
)
def test_box_mask_and_keypoints_stay_on_the_object(corner, side, shorter, flips, pixel, rounding):
    (x, y), (w, h) = corner, side
    cut = min(w, h) // 3
    corners = [[x, y], [x + w - cut, y], [x + w, y + cut], [x + w, y + h], [x + cut, y + h], [x, y + h - cut]]
    points = np.array(corners, dtype=np.float64)
    image, target = scene(points, (140, 110), pixel)
    chain = T.Compose([T.Resize(shorter, 300, rounding), T.RandomHorizontalFlip(float(flips[0])), T.RandomVerticalFlip(float(flips[1]))])
    image, target = chain(image, target, CounterRandom(1))
    assert target.size == image.size and target.pixel == pixel

    seen = np.asarray(image.convert("L")) >= 128
    ratio = max(image.width / 140, image.height / 110)
    # In the inclusive rule x2 = x1 + width - 1 is scaled as it is, and corners of polygons are mirrored to width - x - 1.
    tolerance = 1 + pixel * (abs(ratio - 1) + any(flips))
    edges = target.bbox[0].numpy() + np.array([0, 0, pixel, pixel])
    assert np.abs(edges - tight_box(seen)).max() <= 1 + pixel * abs(ratio - 1)
    # Where a pixel is exactly half covered, the image and its bitmap may round to different sides.
    assert np.abs(tight_box(target.get_field("bitmaps").get_mask_tensor().numpy()) - tight_box(seen)).max() <= 1
    assert np.abs(tight_box(target.get_field("masks").get_mask_tensor().numpy()) - tight_box(seen)).max() <= tolerance
    keypoints = target.get_field("keypoints").keypoints[0, :, :2].numpy()
    assert np.abs(np.concatenate([keypoints.min(axis=0), keypoints.max(axis=0)]) - tight_box(seen)).max() <= tolerance


def test_flip_is_exact_in_both_pixel_rules():
    image = noise(10, 6)
    for pixel, expected in ((1, [4, 1, 7, 4]), (0, [5, 1, 8, 4])):
        target = BoxList(torch.tensor([[2.0, 1.0, 5.0, 4.0]]), (10, 6), pixel=pixel)
        flipped, moved = T.RandomHorizontalFlip(1.0)(image, target, CounterRandom(0))
        assert moved.bbox[0].tolist() == expected
        np.testing.assert_array_equal(np.asarray(flipped), np.asarray(image)[:, ::-1])


def test_no_objects_and_no_target_are_legal():
    flips = [T.RandomHorizontalFlip(1.0), T.RandomVerticalFlip(1.0)]
    chain = T.Compose([T.ColorJitter(0.1, 0.1, 0.1, 0.1), T.Resize(40, 80), *flips, T.ToTensor()])
    image, target = chain(noise(20, 30), BoxList(torch.zeros(0, 4), (20, 30)), CounterRandom(3))
    assert image.shape == (3, 60, 40) and len(target) == 0 and target.size == (40, 60)
    assert chain(noise(20, 30))[1] is None


# -------------------------------------------------------------------------------------------------------- randomness


def test_chance_is_a_function_of_the_key():
    flips = [T.RandomHorizontalFlip(), T.RandomVerticalFlip()]
    chain = T.Compose([T.ColorJitter(0.4, 0.4, 0.4, 0.2), T.Resize((30, 40, 50), 100), *flips, T.ToTensor()])
    results = [chain(noise(33, 44), None, CounterRandom(key))[0] for key in (5, 6, 5, 7)]
    assert torch.equal(results[0], results[2])
    assert any(r.shape != results[0].shape or not torch.equal(r, results[0]) for r in results[1::2])


def test_flips_have_their_probability_and_do_not_depend_on_each_other():
    image = noise(3, 3)
    both = np.zeros((2, 2), dtype=int)
    for key in range(400):
        across = T.RandomHorizontalFlip(0.5)(image, None, CounterRandom(key))[0] is not image
        down = T.RandomVerticalFlip(0.5)(image, None, CounterRandom(key))[0] is not image
        both[int(across), int(down)] += 1
    assert both.min() > 70
    assert all(T.RandomHorizontalFlip(0.0)(image, None, CounterRandom(key))[0] is image for key in range(50))


def test_colours_change_within_their_limits():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [np.asarray(T.ColorJitter(brightness=0.5)(grey, None, CounterRandom(key))[0]).max() for key in range(200)]
    assert 50 <= min(values) < 60 and 140 < max(values) <= 150
    image = noise(4, 4)
    assert T.ColorJitter()(image, None, CounterRandom(0))[0] is image


def test_hue_turns_the_colour_circle():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for turn, expected in ((1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.0, (255, 0, 0))):
        assert np.abs(np.asarray(T.turn_hue(red, turn))[0, 0].astype(int) - expected).max() <= 8


def test_users_own_transforms_work():
    class Invert:
        def __call__(self, image, target):
            return Image.fromarray(255 - np.asarray(image)), target

    def mark(image, target):
        target.add_field("seen", torch.ones(len(target)))
        return image, target

    image = noise(5, 7)
    out, target = T.Compose([Invert(), mark, T.RandomHorizontalFlip(1.0)])(image, BoxList(torch.ones(2, 4), (5, 7)), CounterRandom(0))
    np.testing.assert_array_equal(np.asarray(out), 255 - np.asarray(image)[:, ::-1])
    assert target.get_field("seen").tolist() == [1, 1]
