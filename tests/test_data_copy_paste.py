"""Copy-paste and its neighbours: whatever happens to an image, a box is that of the object's pixels, and points stay on them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oval_scenes import assert_sees_what_it_says, mask_loader, scene, sums, tight_box
from PIL import Image

from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.copy_paste import CopyPaste
from maskrcnn_bench.data.crops import ScaleJitter, crop
from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import PersonKeypoints
from maskrcnn_bench.utils.counter import CounterRandom

sizes = st.tuples(st.integers(20, 100), st.integers(20, 100))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([0, 1]), st.integers(0, 10**6), st.sampled_from(["auto", "mask"]))
def test_pasted_objects_cover_what_is_beneath(size, other_size, pixel, key, mode):
    image, target = scene(size, 1, pixel, key, mode)
    other, other_target = scene(other_size, 101, pixel, key + 1, mode)
    before = (image.clone(), target.bbox.clone(), target.get_field("keypoints").keypoints.clone(), other.clone(), other_target.bbox.clone())
    out, joined = CopyPaste(1.0)(image, target, other, other_target, CounterRandom(key))
    assert out.shape == image.shape and joined.size == target.size and joined.pixel == pixel and joined.get_field("masks").mode == mode
    assert_sees_what_it_says(out, joined)
    after = (image, target.bbox, target.get_field("keypoints").keypoints, other, other_target.bbox)
    assert all(torch.equal(a, b) for a, b in zip(before, after)), "what may be kept in memory does not change"
    pasted = out[0] > 100
    assert torch.equal(out[:, ~pasted], image[:, ~pasted]), "nothing else changes"
    height, width = min(size[1], other_size[1]), min(size[0], other_size[0])
    taken = pasted[:height, :width]
    assert taken.sum() == pasted.sum() and torch.equal(out[:, :height, :width][:, taken], other[:, :height, :width][:, taken])


def test_about_half_of_the_objects_and_the_wanted_share_of_images():
    image, target = scene((96, 96), 1, 0, 3)
    other, other_target = scene((96, 96), 101, 0, 4)
    paste = CopyPaste(0.3)
    counts = [int((paste(image, target, other, other_target, CounterRandom(key))[1].get_field("labels") > 100).sum()) for key in range(200)]
    assert abs(np.mean(counts) / len(other_target) - 0.5) < 0.05 and min(counts) < len(other_target) / 3
    partners = [paste.partner(7, CounterRandom(key)) for key in range(500)]
    assert 110 < sum(partner is not None for partner in partners) < 190 and set(partners) == {None, *range(7)}
    with pytest.raises(ValueError, match="from 0 to 1"):
        CopyPaste(1.5)


def test_objects_without_masks_cannot_be_cut_out():
    image, target = scene((48, 48), 1, 0, 0)
    with pytest.raises(ValueError, match="INPUT.COPY_PASTE cuts objects out by their masks"):
        CopyPaste(1.0)(image, target, image, target.copy_with_fields("labels"), CounterRandom(0))


def test_the_loader_pastes_the_same_in_every_process(tmp_path):
    folder = toy.generate(tmp_path / "toy", num_train=12, num_test=1, size=64)
    opts = ["INPUT.MAX_SIZE_TRAIN", "96", "INPUT.SCALE_JITTER", "(0.3, 2.0)"]

    def seen(*more):
        return sums(mask_loader(folder, *opts, *more))

    alone = seen("DATALOADER.NUM_WORKERS", "0", "INPUT.COPY_PASTE", "1.0")
    assert alone == seen("DATALOADER.NUM_WORKERS", "2", "INPUT.COPY_PASTE", "1.0", "DATALOADER.CACHE", "ram")
    without = seen("DATALOADER.NUM_WORKERS", "0")
    assert sum(batch[2] for batch in alone) > sum(batch[2] for batch in without)
    for mask in folder.glob("annotations/instances_train.json"):
        mask.write_text(mask.read_text().replace('"segmentation"', '"outline"'))
    with pytest.raises(ValueError, match="INPUT.COPY_PASTE.*set it 0"):
        seen("INPUT.COPY_PASTE", "1.0", "MODEL.MASK_ON", "False")


# --------------------------------------------------------------------------------------------- cutting, scaling, mirrors


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([0, 1]), st.integers(0, 10**6), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_cut_leaves_the_boxes_of_what_is_left(size, pixel, key, window):
    image, target = scene(size, 1, pixel, key)
    x1, x2 = sorted(round(v * size[0]) for v in window[:2])
    y1, y2 = sorted(round(v * size[1]) for v in window[2:])
    x2, y2 = min(x1 + max(x2 - x1, 8), size[0]), min(y1 + max(y2 - y1, 8), size[1])
    picture, kept = crop(Image.fromarray(image.permute(1, 2, 0).numpy()), target, (x1, y1, x2, y2))
    shown = np.asarray(picture)[:, :, 0].copy()
    for label in set(shown[shown > 0].tolist()) - set(kept.get_field("labels").tolist()):
        rows, columns = np.nonzero(shown == label)
        # A box of one pixel's width has no extent in the rule that counts this pixel to the box.
        assert pixel == 1 and min(np.ptp(rows), np.ptp(columns)) == 0
        shown[shown == label] = 0
    masks = kept.get_field("masks").get_mask_tensor().reshape(len(kept), *shown.shape).numpy()
    for k, label in enumerate(kept.get_field("labels").tolist()):
        assert kept.bbox[k].tolist() == tight_box(shown == label, pixel)
        assert np.abs(np.array(tight_box(masks[k] > 0, pixel)) - tight_box(shown == label, pixel)).max() <= 1


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 10**6), st.tuples(st.booleans(), st.booleans()))
def test_boxes_are_those_of_the_masks_after_jitter_and_mirrors(size, key, flips):
    image, target = scene(size, 1, 0, key)
    chain = [ScaleJitter(0.4, 2.5, 90), T.RandomHorizontalFlip(float(flips[0])), T.RandomVerticalFlip(float(flips[1]))]
    picture, out = T.Compose(chain)(Image.fromarray(image.permute(1, 2, 0).numpy()), target, CounterRandom(key))
    assert out.size == picture.size and max(out.size) <= 90
    masks = out.get_field("masks").get_mask_tensor().reshape(len(out), picture.height, picture.width).numpy()
    # The boxes were drawn around whole pixels, which grow with the image; polygons end inside of these.
    grown = (0.4 + 2.1 * CounterRandom(key).uniform("scale_jitter")) * 90 / max(size)
    for k in range(len(out)):
        if masks[k].any():
            assert np.abs(out.bbox[k].numpy() - tight_box(masks[k] > 0, 0)).max() <= 1 + grown
    points = out.get_field("keypoints").keypoints[:, 0]
    inside = (points[:, 2] == 0) | ((points[:, 0] <= out.size[0]) & (points[:, 1] <= out.size[1]) & (points[:, :2] >= 0).all(dim=1))
    assert inside.all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0, 1]), st.integers(1, 4), st.integers(0, 10**6))
def test_left_and_right_points_change_places_in_a_mirror(pixel, count, key):
    random = np.random.default_rng(key)
    points = torch.from_numpy(random.integers(1, 40, (count, 17, 3)).astype(np.float32))
    points[..., 2] = torch.from_numpy(random.integers(0, 3, (count, 17)))
    points[points[..., 2] == 0] = 0
    target = BoxList(torch.tensor([[5.0, 5.0, 20.0, 20.0]] * count), (50, 45), pixel=pixel)
    target.add_field("keypoints", PersonKeypoints(points, (50, 45)))
    flip = T.RandomHorizontalFlip(1.0)
    picture = Image.new("RGB", (50, 45))
    once = flip(picture, target, CounterRandom(key))[1]
    moved, names = once.get_field("keypoints").keypoints, PersonKeypoints.NAMES
    for k, name in enumerate(names):
        swapped = name.replace("left", "#").replace("right", "left").replace("#", "right")
        partner = points[:, names.index(swapped)]
        expected = torch.stack([50 - pixel - partner[:, 0], partner[:, 1], partner[:, 2]], dim=1)
        assert torch.equal(moved[:, k], torch.where(partner[:, 2:] > 0, expected, 0.0))
    twice = flip(picture, once, CounterRandom(key))[1]
    assert torch.equal(twice.get_field("keypoints").keypoints, points) and torch.equal(twice.bbox, target.bbox)
