"""Detections as pictures: colours, text, places of labels, masks, boxes, keypoints."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.demo import draw, labels
from maskrcnn_bench.demo.draw import draw_detections
from maskrcnn_bench.demo.labels import place_labels
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints, PersonKeypoints, keypoint_kind
from maskrcnn_bench.structures.mask_paste import Masker
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

NAMES = ("__background__", "person", "traffic light", "Straßenbahn", "猫", "")

# Linear RGB as protanopes, deuteranopes and tritanopes see it: Machado, Oliveira and Fernandes 2009, severity 1.
SIMULATIONS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(rgb):
    share = np.asarray(rgb, dtype=np.float64) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb, simulation):
    """CIELAB of sRGB colours as somebody sees them. [n, 3]"""
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])
    seen = np.clip(linear(rgb) @ np.array(simulation).T, 0, 1) @ to_xyz.T / (0.95047, 1, 1.08883)
    x, y, z = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def contrast(a, b):
    """WCAG 2 contrast of two sRGB colours."""
    bright, dark = sorted((float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (a, b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def boxlist(boxes, size, labels=None, scores=None, pixel=1):
    out = BoxList(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), size, pixel=pixel)
    if labels is not None:
        out.add_field("labels", torch.tensor(labels, dtype=torch.int64))
    if scores is not None:
        out.add_field("scores", torch.tensor(scores))
    return out


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# colours


@pytest.mark.parametrize("eyes", SIMULATIONS)
def test_colors_differ_for_all_eyes(eyes):
    seen = lab(draw.PALETTE, SIMULATIONS[eyes])
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 1e3 * np.eye(len(seen))
    # 2.3 is what can just be noticed side by side.
    assert distance.min() > 15


def test_color_belongs_to_the_class_alone():
    alone = draw.colors_of(torch.tensor([3]))
    among = draw.colors_of(torch.tensor([1, 80, 3, 7]))
    assert (among[2] == alone[0]).all()
    assert len({tuple(c) for c in draw.colors_of(range(1, 17)).tolist()}) == 16
    assert draw.colors_of([]).shape == (0, 3)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_can_be_read_on_any_color(background):
    assert contrast(draw.text_color(background), background) >= 4.5


# text


@pytest.mark.parametrize("text", ["person 0.98", "Straße café Ångström", "машина", "γάτα"])
def test_font_knows_the_letters(text):
    font, source = labels.font_for(text, 14)
    assert labels.writable(text, source) == text
    assert font.size == 14 and all(labels.has_glyph(source, c) for c in text)
    assert (source == labels.BUILT_IN) == text.isascii()


def test_letters_without_a_font_are_taken_apart_or_replaced(monkeypatch):
    monkeypatch.setattr(labels, "_sources", lambda: (labels.BUILT_IN,))
    _, source = labels.font_for("é猫", 12)
    assert labels.writable("éclair 猫 1\n2", source) == "eclair ? 1?2"


@given(st.text(max_size=30), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_shortened_text_fits(text, width):
    font = labels.load_font(labels.BUILT_IN, 12)
    text = labels.writable(text, labels.BUILT_IN)
    shorter = labels.shorten(text, font, width)
    assert font.getlength(shorter) <= width
    assert shorter == text or shorter == "" or (shorter.endswith("...") and text.startswith(shorter[:-3]))


# places

SIDE = st.lists(st.integers(0, 119), min_size=2, max_size=2).map(sorted)
BOXES = st.lists(st.tuples(SIDE, SIDE).map(lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1])), max_size=25)


@given(BOXES, st.data())
@settings(deadline=None)
def test_labels_lie_inside_and_apart(boxes, data):
    sizes = [data.draw(st.tuples(st.integers(1, 60), st.integers(1, 20))) for _ in boxes]
    places = place_labels(boxes, sizes, (120, 90))
    covered = np.zeros((90, 120), dtype=int)
    for place, (width, height) in zip(places, sizes, strict=True):
        if place is not None:
            x, y = place
            assert x >= 0 and y >= 0 and x + width <= 120 and y + height <= 90
            covered[y : y + height, x : x + width] += 1
    assert covered.max(initial=0) <= 1
    assert not boxes or places[0] is not None, "the first label has the whole picture"


def test_label_stands_on_its_box_when_there_is_place():
    assert place_labels([(30, 40, 80, 70)], [(20, 10)], (120, 90)) == [(30, 30)]


def test_label_of_a_box_at_the_border_moves_inside():
    assert place_labels([(110, 0, 120, 30)], [(30, 10)], (120, 90)) == [(90, 0)]


def test_label_too_large_for_the_picture_has_no_place():
    assert place_labels([(0, 0, 10, 10)], [(30, 10)], (20, 90)) == [None]


def test_all_objects_of_one_place_keep_readable_labels():
    boxes = [(100, 100, 300, 260)] * 12
    assert None not in place_labels(boxes, [(80, 16)] * 12, (640, 480))


# the whole


def test_nothing_found_leaves_the_image_as_it_is():
    image = noise(50, 40)
    picture = draw_detections(image, boxlist([], (50, 40), [], []), NAMES)
    assert (np.asarray(picture) == image).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5), (2000, 30)])
def test_any_size_of_image(size):
    objects = boxlist([[0, 0, size[0] - 1, size[1] - 1]] * 3, size, [1, 3, 99], [0.9, 0.8, 0.7])
    objects.add_field("mask", torch.rand(3, 1, 28, 28))
    assert draw_detections(noise(*size), objects, NAMES).size == size


def test_the_input_stays_and_the_result_is_the_same_again():
    image, objects = noise(200, 150), boxlist([[10.0, 20, 90, 110], [60, 40, 190, 140]], (200, 150), [1, 4], [0.6, 0.9])
    objects.add_field("mask", torch.rand(2, 1, 14, 14, generator=torch.Generator().manual_seed(1)))
    before, fields = image.copy(), sorted(objects.fields())
    first = draw_detections(image, objects, NAMES)
    assert (image == before).all() and sorted(objects.fields()) == fields and len(objects) == 2
    again = draw_detections(Image.fromarray(image), objects, NAMES)
    assert (np.asarray(first) == np.asarray(again)).all()
    assert (np.asarray(first) != before).any()


def test_boxes_of_a_broken_model_are_left_out():
    objects = boxlist([[float("nan"), 0, 10, 10], [0, 0, float("inf"), 10]], (50, 40), [1, 1], [0.9, 0.8])
    assert (np.asarray(draw_detections(noise(50, 40), objects, NAMES)) == noise(50, 40)).all()


def test_score_threshold_hides_objects():
    both = boxlist([[5, 5, 30, 30], [60, 50, 90, 80]], (100, 90), [1, 2], [0.9, 0.3])
    shown = draw_detections(noise(100, 90), both, NAMES, score_thresh=0.3)
    assert (np.asarray(shown) == np.asarray(draw_detections(noise(100, 90), both[:1], NAMES))).all()


def test_ground_truth_has_names_without_scores():
    target = boxlist([[5, 5, 30, 30]] * 3, (100, 90), [2, 4, 7])
    assert draw.label_texts(target, NAMES) == ["traffic light", "猫", "class 7"]
    assert draw.label_texts(boxlist([[0, 0, 3, 3]], (9, 9), [1], [0.756]), NAMES) == ["person 0.76"]


def test_small_pictures_can_be_enlarged():
    objects = boxlist([[10, 10, 49, 39]], (64, 48), [1], [0.9])
    objects.add_field("mask", torch.ones(1, 1, 28, 28))
    large = draw_detections(np.full((48, 64, 3), 40, np.uint8), objects, NAMES, enlarge=3)
    assert large.size == (192, 144)
    color = np.array(draw.PALETTE[0]) * 0.45 + 40 * 0.55
    assert np.abs(np.asarray(large)[75, 90] - color).max() <= 1, "the mask lies where the object went"


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"\[H, W, 3\].*uint8.*\[4, 5\] float64"):
        draw_detections(np.zeros((4, 5)), boxlist([], (5, 4)))


# masks


def test_masks_in_every_spelling_give_one_picture():
    size, box = (90, 70), [[10.3, 8.1, 61.7, 55.2], [40, 30, 85, 66]]
    probs = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    pasted = Masker()([probs], [boxlist(box, size)])[0]
    pictures = []
    for name, value in (("mask", probs), ("mask", pasted), ("masks", SegmentationMask(pasted[:, 0], size))):
        objects = boxlist(box, size, [1, 2], [0.9, 0.8])
        objects.add_field(name, value)
        pictures.append(np.asarray(draw_detections(noise(*size), objects, NAMES)))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()


def test_mask_is_translucent_inside_and_has_a_contour_and_a_rim():
    image = np.full((60, 80, 3), 100, dtype=np.uint8)
    objects = boxlist([[20, 10, 59, 49]], (80, 60), [1])
    pixels = np.zeros((1, 60, 80), dtype=np.uint8)
    pixels[0, 10:50, 20:60] = 1
    objects.add_field("masks", SegmentationMask(torch.from_numpy(pixels), (80, 60)))
    drawn = np.asarray(draw.draw_masks(Image.fromarray(image), objects, opacity=0.5)).astype(int)
    color = draw.PALETTE[0].astype(int)
    assert (drawn[pixels[0] == 0] == 100).all()
    assert np.abs(drawn[30, 40] - (color + 100) / 2).max() <= 1
    assert (drawn[30, 21] == color).all() and (drawn[11, 40] == color).all()
    assert (drawn[30, 20] != color).any() and (drawn[30, 20] != 100).any()


def test_small_masks_lie_above_large_ones():
    pixels = torch.zeros(2, 60, 80, dtype=torch.uint8)
    pixels[1], pixels[0, 20:40, 20:40] = 1, 1
    objects = boxlist([[20, 20, 39, 39], [0, 0, 79, 59]], (80, 60), [2, 1])
    objects.add_field("masks", SegmentationMask(pixels, (80, 60)))
    drawn = np.asarray(draw.draw_masks(Image.new("RGB", (80, 60)), objects))
    assert (drawn[30, 21] == draw.PALETTE[1]).all(), "the contour of the small one is whole"


def test_masks_can_be_left_out():
    objects = boxlist([[20, 10, 59, 49]], (80, 60), [1], [0.5])
    plain = draw_detections(noise(80, 60), objects, NAMES)
    objects.add_field("mask", torch.ones(1, 1, 28, 28))
    assert (np.asarray(draw_detections(noise(80, 60), objects, NAMES, show_masks=False)) == np.asarray(plain)).all()
    assert (np.asarray(draw_detections(noise(80, 60), objects, NAMES)) != np.asarray(plain)).any()


# boxes, labels and keypoints


@pytest.mark.parametrize("pixel,last", [(1, 60), (0, 59)])
def test_box_ends_where_the_pixel_rule_says(pixel, last):
    image = Image.new("RGB", (100, 80))
    drawn = np.asarray(draw.draw_boxes(image, boxlist([[20, 10, 60, 50]], (100, 80), [1], pixel=pixel)))
    columns = np.flatnonzero((drawn == draw.PALETTE[0]).all(axis=2).any(axis=0))
    assert (columns.min(), columns.max()) == (20, last)


def test_boxes_in_xywh_are_the_same_boxes():
    objects = boxlist([[20, 10, 60, 50]], (100, 80), [1], [0.9])
    a, b = (np.asarray(draw_detections(noise(100, 80), o, NAMES)) for o in (objects, objects.convert("xywh")))
    assert (a == b).all()


def test_label_is_text_on_the_color_of_its_class():
    picture = draw.draw_labels(Image.new("RGB", (200, 100), (90, 90, 90)), boxlist([[20, 40, 150, 80]], (200, 100), [2]), NAMES)
    pixels = np.asarray(picture)[:40].reshape(-1, 3)
    background = draw.PALETTE[1]
    assert draw.text_color(background) == (0, 0, 0)
    assert (pixels == background).all(axis=1).sum() > 300
    assert sum(contrast(pixel, background) > 4.5 and (pixel <= background).all() for pixel in pixels) > 40


def test_best_label_wins_the_only_place():
    objects = boxlist([[0, 0, 69, 19]] * 2, (70, 20), [1, 2], [0.2, 0.9])
    drawn = np.asarray(draw.draw_labels(Image.new("RGB", (70, 20)), objects, ["", "cat", "dog"]))
    assert (drawn == draw.PALETTE[1]).all(axis=2).any() and not (drawn == draw.PALETTE[0]).all(axis=2).any()


def person(visible):
    points = torch.tensor([[[10.0 + 9 * k, 20 + 5 * (k % 3), float(k in visible)] for k in range(17)]])
    objects = boxlist([[5, 5, 170, 60]], (180, 70), [1])
    objects.add_field("keypoints", PersonKeypoints(points, (180, 70)))
    return objects, points


def test_keypoints_are_drawn_where_they_are_seen():
    objects, points = person({0, 1, 16})
    drawn = np.asarray(draw.draw_keypoints(Image.new("RGB", (180, 70)), objects)).any(axis=2)
    for k in range(17):
        x, y = points[0, k, :2].int().tolist()
        assert drawn[y, x] == (k in {0, 1, 16}), k
    middle = (points[0, 0] + points[0, 1]).int() // 2
    assert drawn[middle[1], middle[0]], "nose and eye are joined"


def test_keypoints_of_a_model_are_judged_by_their_logits():
    objects, points = person(set(range(17)))
    objects.get_field("keypoints").add_field("logits", torch.full((1, 17), -5.0))
    assert not np.asarray(draw.draw_keypoints(Image.new("RGB", (180, 70)), objects)).any()


def test_own_keypoints_have_their_own_skeleton():
    objects = boxlist([[5, 5, 90, 60]], (100, 70), [1])
    objects.add_field("keypoints", Keypoints(torch.tensor([[[10.0, 30, 2], [90, 30, 2], [50, 60, 2]]]), (100, 70)))
    plain = np.asarray(draw.draw_keypoints(Image.new("RGB", (100, 70)), objects))
    joined = np.asarray(draw.draw_keypoints(Image.new("RGB", (100, 70)), objects, skeleton=[(0, 1)]))
    assert not plain[30, 50].any() and joined[30, 50].any()
    kind = keypoint_kind(3, ("a", "b", "c"), skeleton=[("a", "b")])
    objects.add_field("keypoints", kind.like(objects.get_field("keypoints").keypoints, (100, 70)))
    assert np.array_equal(np.asarray(draw.draw_keypoints(Image.new("RGB", (100, 70)), objects)), joined)


def test_skeleton_of_a_person_joins_sides_that_belong_together():
    names = PersonKeypoints.SKELETON
    assert ("left_hip", "left_knee") in names and ("right_elbow", "right_wrist") in names
    crossing = [pair for pair in names if {p.split("_")[0] for p in pair} == {"left", "right"}]
    assert all(a.split("_")[1] == b.split("_")[1] for a, b in crossing)
    assert len(names) == len(set(names)) == 19
