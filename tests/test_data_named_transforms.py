"""Transforms of torchvision by name: boxes, masks and points follow, chance is that of the image, and what is wrong is told at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oval_scenes import assert_sees_what_it_says, mask_loader, scene, sums, tight_box
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import named_transforms as named
from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.data.datasets.channels import ChannelImage
from maskrcnn_bench.data.named_transforms import NamedTransform
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import PersonKeypoints
from maskrcnn_bench.utils.counter import CounterRandom

degrees = st.floats(-180, 180).map(lambda v: round(v, 2))
TEXTS = st.one_of(
    st.builds("RandomRotation(degrees=({0}, {0}), expand={1})".format, degrees, st.booleans()),
    st.builds("RandomAffine(degrees=30, translate=(0.2, 0.2), scale=(0.8, 1.5), shear={0})".format, st.integers(0, 15)),
    st.builds(
        "RandomPerspective(distortion_scale={0}, p=1.0, interpolation='nearest')".format, st.floats(0, 0.3).map(lambda v: round(v, 2))
    ),
    st.sampled_from(
        ["RandomHorizontalFlip(p=1)", "RandomVerticalFlip(1.0)", "RandomZoomOut(side_range=(1.0, 2.0), p=1.0)", "RandomIoUCrop()"]
    ),
    st.builds("RandomCrop(({0}, {1}), pad_if_needed=True)".format, st.integers(30, 90), st.integers(30, 90)),
    st.sampled_from(["RandomChannelPermutation()", "Pad(padding=[3, 5, 7, 9])", "RandomErasing(p=0)", "Identity"]),
)


def as_picture(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(30, 100), st.integers(30, 100)),
    TEXTS,
    st.sampled_from([0, 1]),
    st.integers(0, 10**6),
    st.sampled_from(["auto", "mask"]),
)
def test_boxes_masks_and_points_are_those_of_the_picture(size, text, pixel, key, mode):
    """The transforms take the nearest pixel, so that the picture itself says where each object is."""
    image, target = scene(size, 1, pixel, key, mode)
    before = target.bbox.clone()
    picture, out = NamedTransform(text)(as_picture(image), target, CounterRandom(key))
    assert out.size == picture.size and out.pixel == pixel and torch.equal(target.bbox, before)
    shown = np.array(picture)
    for label in set(shown[shown > 0].tolist()) - set(out.get_field("labels").tolist()):
        rows, columns = np.nonzero(shown[:, :, 0] == label)
        # An object of one pixel's width has no extent in the rule that counts this pixel to the box; a crop drops by the centres of boxes.
        assert "IoUCrop" in text or (pixel == 1 and min(np.ptp(rows), np.ptp(columns)) == 0)
        shown[shown == label] = 0
    assert_sees_what_it_says(torch.from_numpy(shown).permute(2, 0, 1), out)


@pytest.mark.parametrize("pixel", [0, 1])
@pytest.mark.parametrize(("text", "method"), [("RandomHorizontalFlip(1.0)", 0), ("RandomVerticalFlip(p=1.0)", 1)])
def test_mirrors_are_the_projects_own(pixel, text, method):
    points = torch.rand(2, 17, 3) * 30 + 1
    points[..., 2] = 2
    points[0, 3] = 0
    target = BoxList([[5.5, 4, 20, 18], [1, 2, 30.25, 31]], (50, 40), "xyxy", pixel)
    target.add_field("keypoints", PersonKeypoints(points, (50, 40)))
    out = NamedTransform(text)(Image.new("RGB", (50, 40)), target, CounterRandom(0))[1]
    expected = target.transpose(method)
    assert torch.allclose(out.bbox, expected.bbox) and isinstance(out.get_field("keypoints"), PersonKeypoints)
    assert torch.allclose(out.get_field("keypoints").keypoints, expected.get_field("keypoints").keypoints, atol=1e-4)


def test_half_a_turn_keeps_left_and_right():
    points = torch.zeros(1, 17, 3)
    points[0, 1], points[0, 2] = torch.tensor([10.0, 20, 2]), torch.tensor([30.0, 20, 2])
    target = BoxList([[5, 5, 40, 30]], (50, 40), "xyxy", 0)
    target.add_field("keypoints", PersonKeypoints(points, (50, 40)))
    out = NamedTransform("RandomRotation((180, 180))")(Image.new("RGB", (50, 40)), target, CounterRandom(0))[1]
    assert torch.allclose(out.get_field("keypoints").keypoints[0, 1:3], torch.tensor([[40.0, 20, 2], [20, 20, 2]]), atol=1e-4)
    assert torch.allclose(out.bbox, torch.tensor([[10.0, 10, 45, 35]]), atol=1e-4), "without masks, the box around the turned box"


def test_what_only_changes_colours_leaves_the_target():
    image, target = scene((60, 50), 1, 1, 5)
    picture, out = NamedTransform("ColorJitter(brightness=(0.5, 0.5))")(as_picture(image), target, CounterRandom(0))
    assert out is target and picture.getpixel((0, 0)) == (0, 0, 0)
    assert np.array(picture).max() < image.max()


def test_chance_is_a_function_of_the_key_and_the_place():
    image, target = scene((60, 50), 1, 1, 5)
    generator = torch.default_generator.get_state()
    turn = NamedTransform("RandomRotation(90)")
    boxes = [turn(as_picture(image), target, CounterRandom(key))[1].bbox.tolist() for key in (1, 1, 2)]
    other_place = NamedTransform("RandomRotation(90)", 1)(as_picture(image), target, CounterRandom(1))[1].bbox.tolist()
    assert boxes[0] == boxes[1] != boxes[2] and other_place != boxes[0]
    assert torch.equal(torch.default_generator.get_state(), generator), "nobody else's numbers change"
    assert turn(image, target)[1] is target, "without chance, nothing happens"


def test_masks_that_do_not_fit_into_memory_at_once(monkeypatch):
    image, target = scene((96, 96), 1, 0, 4)
    turn = NamedTransform("RandomRotation(90)")
    at_once = turn(as_picture(image), target, CounterRandom(3))[1]
    monkeypatch.setattr(named, "MASK_BYTES", 2 * 96 * 96)
    in_parts = turn(as_picture(image), target, CounterRandom(3))[1]
    assert len(target) > 4 and torch.equal(at_once.bbox, in_parts.bbox)
    assert torch.equal(at_once.get_field("masks").get_mask_tensor(), in_parts.get_field("masks").get_mask_tensor())


def test_images_of_other_channels_turn_too():
    pixels = np.random.default_rng(0).integers(0, 60000, (20, 30, 5)).astype(np.uint16)
    out, _ = NamedTransform("RandomRotation((180, 180))")(ChannelImage(pixels), None, CounterRandom(0))
    assert out.pixels.dtype == np.uint16 and np.array_equal(out.pixels, pixels[::-1, ::-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RandomRotatoin(10)", "no transform 'RandomRotatoin' in torchvision.transforms.v2; did you mean RandomRotation"),
        ("Zzz()", "no transform 'Zzz' in torchvision.transforms.v2; it has AugMix"),
        ("functional()", "no transform 'functional'"),
        ("RandomRotation(degree=10)", r"unexpected keyword argument 'degree'; it takes \(degrees"),
        ("RandomRotation()", "missing 1 required positional argument"),
        ("RandomRotation(degrees=__import__('os').getpid())", "expected a transform of torchvision.transforms.v2 with plain values"),
        ("Compose([RandomRotation(10)])", "with plain values"),
        ("__import__('os').getpid()", "with plain values"),
        ("RandomRotation(", "with plain values"),
        ("3", "with plain values"),
        ("RandomAffine(10, interpolation='cubist')", "'cubist' is not a valid InterpolationMode"),
    ],
)
def test_what_is_no_transform_is_told_before_the_training(text, message):
    with pytest.raises(ValueError, match=message):
        make_transforms(load_config(None, ["INPUT.TRANSFORMS", repr((text,))]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Normalize((0, 0, 0), (1, 1, 1))", "Normalize.* of an image of 30 x 20 pixels: .*float"),
        ("Grayscale(1)", r"Grayscale.* makes torch.uint8 \[1, H, W\] of torch.uint8 \[3, H, W\]"),
        ("ToPILImage()", "ToPILImage.* makes Image of torch.uint8"),
        ("RandomCrop(64)", "RandomCrop.* of an image of 30 x 20 pixels: .*larger than input"),
    ],
)
def test_what_cannot_be_done_to_an_image_names_the_transform(text, message):
    with pytest.raises(ValueError, match=f"INPUT.TRANSFORMS: {message}"):
        NamedTransform(text)(Image.new("RGB", (30, 20)), BoxList([[1, 2, 9, 9]], (30, 20)), CounterRandom(0))


def test_the_loader_does_the_same_in_every_process(tmp_path):
    folder = toy.generate(tmp_path / "toy", num_train=8, num_test=1, size=64)
    opts = ["MODEL.KEYPOINT_ON", "True"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.TRANSFORMS", "('RandomRotation(20, interpolation=\"bilinear\")', 'GaussianBlur(3)')"]

    def seen(*more):
        return sums(mask_loader(folder, *opts, *more))

    alone = seen("DATALOADER.NUM_WORKERS", "0")
    assert alone == seen("DATALOADER.NUM_WORKERS", "2", "DATALOADER.CACHE", "ram") != seen("INPUT.TRANSFORMS", "()")
    assert isinstance(make_transforms(load_config(None, opts)).transforms[1], NamedTransform)
    assert not any(isinstance(one, NamedTransform) for one in make_transforms(load_config(None, opts), is_train=False).transforms)
    faulty = ["DATALOADER.NUM_WORKERS", "0", "INPUT.TRANSFORMS", "('RandomCrop(999)',)"]
    with pytest.raises(ValueError, match=r"toy/train/00000\d.jpg: INPUT.TRANSFORMS: RandomCrop\(999\)"):
        seen(*faulty)
    with pytest.raises(ValueError, match="INPUT.TRANSFORMS does not move the proposals"):
        make_transforms(load_config(None, [*opts, "MODEL.LOAD_PROPOSALS", "True"]))
    assert isinstance(make_transforms(load_config(None, opts)).transforms[-1], T.ToTensor)


def test_an_object_without_pixels_keeps_its_box():
    image, target = scene((60, 50), 1, 0, 5)
    target = target[:2]
    target.get_field("masks").instances[0] = named.EMPTY_BITMAP
    out = NamedTransform("RandomHorizontalFlip(1)")(as_picture(image), target, CounterRandom(0))[1]
    assert torch.equal(out.bbox, target.transpose(0).bbox) and tight_box(np.ones((2, 3)), 0) == [0, 0, 3, 2]
