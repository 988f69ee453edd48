"""Masks and keypoints against dense pixels, pycocotools and hand-made numbers."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.keypoint import Keypoints, PersonKeypoints
from maskrcnn_bench.structures.mask_outline import decode_crop, decompress_counts, encode_runs, has_holes, outline, signed_area
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask, pack_masks

# The first example pays for imports.
timeless = settings(deadline=None)

LETTER_L = [2.0, 1.0, 5.0, 1.0, 5.0, 6.0, 9.0, 6.0, 9.0, 9.0, 2.0, 9.0]
SIZE = (12, 11)
bitmaps = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 1))


def dense(mask: SegmentationMask) -> np.ndarray:
    """All pixels, [n, H, W], also for a single object."""
    return mask.get_mask_tensor().numpy().reshape(len(mask), -1, int(mask.size[0])) if len(mask) else mask.get_mask_tensor().numpy()


def letter_pixels() -> np.ndarray:
    pixels = np.zeros(SIZE[::-1], dtype=np.uint8)
    pixels[1:9, 2:5] = 1
    pixels[6:9, 2:9] = 1
    return pixels


def spellings() -> dict:
    pixels = letter_pixels()
    compressed = coco_mask.encode(np.asfortranarray(pixels))
    return {
        "polygon": [LETTER_L],
        "compressed": compressed,
        "text": {"size": compressed["size"], "counts": compressed["counts"].decode()},
        "runs": encode_runs(pixels),
        "pixels": torch.from_numpy(pixels),
    }


# ------------------------------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize("name", spellings())
def test_every_spelling_gives_the_same_pixels(name):
    mask = SegmentationMask([spellings()[name]], SIZE)
    assert mask.get_mask_tensor().shape == (11, 12)
    np.testing.assert_array_equal(mask.get_mask_tensor(), letter_pixels())


def test_spellings_may_be_mixed_and_converted():
    mixed = SegmentationMask(list(spellings().values()), SIZE)
    for mode in ("auto", "mask", "poly"):
        np.testing.assert_array_equal(mixed.convert(mode).get_mask_tensor(), np.stack([letter_pixels()] * 5))
    assert SegmentationMask(torch.from_numpy(np.stack([letter_pixels()] * 3)), SIZE, mode="mask").get_mask_tensor().sum() == 3 * 36


@timeless
@given(bitmaps)
def test_run_lengths_are_those_of_pycocotools(pixels):
    reference = coco_mask.encode(np.asfortranarray(pixels))
    runs = encode_runs(pixels)
    assert decompress_counts(reference["counts"]).tolist() == runs["counts"]
    for rle in (reference, runs):
        x0, y0, part = decode_crop(rle)
        full = np.zeros_like(pixels)
        full[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        np.testing.assert_array_equal(full, pixels)
        assert part.size == 0 or (part.any(axis=0)[[0, -1]].all() and part.any(axis=1)[[0, -1]].all())


@timeless
@given(bitmaps)
def test_outlines_enclose_exactly_the_pixels(pixels):
    rings = outline(pixels)
    assert sum(signed_area(ring) for ring in rings) == pixels.sum()
    if not has_holes(pixels):
        traced = SegmentationMask([[ring.flatten() for ring in rings]], pixels.shape[::-1])
        np.testing.assert_array_equal(traced.get_mask_tensor(), pixels)


def test_hole_is_noticed():
    pixels = np.ones((3, 3), dtype=np.uint8)
    assert not has_holes(pixels)
    pixels[1, 1] = 0
    assert has_holes(pixels)


polygon_lists = st.lists(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=6), min_size=1, max_size=3)


@timeless
@given(polygon_lists)
def test_drawing_in_a_window_is_drawing_on_the_whole_image(points):
    rings = [np.array(ring, dtype=np.float32).flatten().tolist() for ring in points]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, 18, 20)))
    np.testing.assert_array_equal(SegmentationMask([rings], (20, 18)).get_mask_tensor(), whole)


# ------------------------------------------------------------------------------------------------- moving with the image


@timeless
@given(bitmaps, st.sampled_from([0, 1]))
def test_bitmaps_mirror_as_their_image(pixels, method):
    mirrored = SegmentationMask([pixels], pixels.shape[::-1]).transpose(method)
    np.testing.assert_array_equal(mirrored.get_mask_tensor(), pixels[:, ::-1] if method == 0 else pixels[::-1])


@timeless
@given(bitmaps, st.data())
def test_bitmaps_are_cut_as_their_image(pixels, data):
    height, width = pixels.shape
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    cut = SegmentationMask([pixels], (width, height)).crop((x0, y0, x1, y1))
    assert cut.size == (x1 - x0, y1 - y0)
    np.testing.assert_array_equal(dense(cut)[0], pixels[y0:y1, x0:x1])


@timeless
@given(bitmaps, st.integers(1, 40), st.integers(1, 40))
def test_bitmaps_are_scaled_as_their_image(pixels, width, height):
    scaled = dense(SegmentationMask([pixels], pixels.shape[::-1]).resize((width, height)))[0]
    whole = np.asarray(Image.fromarray(pixels * np.uint8(255)).resize((width, height), Image.BILINEAR)).astype(int)
    assert scaled.shape == whole.shape
    # PIL repeats the pixels at the border of an image, but a cut bitmap has zeros there: the outer frame may differ.
    inner = np.zeros(whole.shape, dtype=bool)
    margin = [-(-new // old) for new, old in zip((height, width), pixels.shape)]
    inner[margin[0] : height - margin[0], margin[1] : width - margin[1]] = True
    sure = inner & (abs(whole - 128) > 2)
    np.testing.assert_array_equal(scaled[sure], (whole >= 128)[sure])


def test_polygons_move_with_the_pixel_rule():
    mask = SegmentationMask([[LETTER_L]], SIZE)
    for pixel in (0, 1):
        mirrored = mask.transpose(0, pixel=pixel)
        assert mirrored.instances[0].rings[0][:, 0].tolist() == [12 - x - pixel for x in LETTER_L[0::2]]
        again = mirrored.transpose(0, pixel=pixel)
        np.testing.assert_allclose(again.instances[0].rings[0].flatten(), LETTER_L)
    down = mask.transpose(1)
    assert down.instances[0].rings[0][:, 1].tolist() == [11 - y - 1 for y in LETTER_L[1::2]]


def test_polygons_are_cut_by_moving_and_scaled_by_the_ratio():
    cut = SegmentationMask([[LETTER_L]], SIZE).crop((1.5, -3.0, 6.5, 40.0))
    assert cut.size == (5.0, 11.0)
    assert cut.instances[0].rings[0][:, 0].tolist() == [x - 1.5 for x in LETTER_L[0::2]]
    grown = cut.resize((10, 33))
    assert grown.size == (10, 33)
    np.testing.assert_allclose(grown.instances[0].rings[0], [[2 * (x - 1.5), 3 * y] for x, y in zip(LETTER_L[0::2], LETTER_L[1::2])])


def test_a_cut_is_at_least_one_pixel_and_inside():
    mask = SegmentationMask([[LETTER_L]], SIZE)
    assert mask.crop((50, 50, 60, 60)).size == (1, 1)
    assert mask.crop((3, 3, 3, 3)).size == (1, 1)
    with pytest.raises(ValueError, match="x1 <= x2"):
        mask.crop((5, 0, 4, 3))


def test_boxlist_takes_its_masks_along():
    boxes = BoxList(torch.tensor([[2.0, 1.0, 8.0, 8.0]]), SIZE)
    boxes.add_field("masks", SegmentationMask([letter_pixels()], SIZE))
    moved = boxes.transpose(0).resize((24, 22))
    pixels = moved.get_field("masks").get_mask_tensor().numpy()
    columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
    inclusive = [columns[0], rows[0], columns[-1], rows[-1]]
    assert np.abs(moved.bbox[0].numpy() - inclusive).max() <= 1


# ------------------------------------------------------------------------------------------------------- the container


def test_picking():
    masks = SegmentationMask([np.eye(4, dtype=np.uint8) * (k % 2) for k in range(6)], (4, 4))
    for index in (slice(1, 4), [3, 1], torch.tensor([5, 0]), np.array([True, False, True, True, False, True])):
        picked = dense(masks[index])
        np.testing.assert_array_equal(picked, dense(masks)[np.asarray(index) if not isinstance(index, slice) else index])
    assert len(masks[2]) == 1 and len(list(masks)) == 6
    assert len(masks[torch.zeros(6, dtype=torch.bool)]) == 0
    with pytest.raises(IndexError, match="6 entries"):
        masks[torch.ones(5, dtype=torch.bool)]


def test_empty_masks_are_legal_everywhere():
    none = SegmentationMask([], SIZE)
    for mask in (none, none.crop((0, 0, 3, 3)), none.resize((5, 5)), none.transpose(0), none.convert("mask"), none[:], none.to("cpu")):
        assert len(mask) == 0 and mask.get_mask_tensor().shape[0] == 0
    hollow = SegmentationMask([[], np.zeros((11, 12), np.uint8), encode_runs(np.zeros((11, 12)))], SIZE)
    moved = (hollow.crop((0, 0, 3, 3)), hollow.resize((5, 5)), hollow.transpose(1))
    for mask in (hollow, *moved, hollow.convert("poly"), hollow.convert("mask")):
        assert len(mask) == 3 and mask.get_mask_tensor().sum() == 0


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"size": [5, 5], "counts": [25]}, r"\(11, 12\) of the image"),
        ({"size": [11, 12], "counts": [25]}, "fill 11 x 12"),
        ([[1.0, 2.0, 3.0]], "even count"),
        (np.zeros((12, 11), np.uint8), r"\(11, 12\) of the image"),
    ],
)
def test_wrong_masks_are_refused(instance, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMask([instance], SIZE)


def test_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        SegmentationMask([], SIZE, mode="polygon")


# ----------------------------------------------------------------------------------------------------------- packing


def unpack(packed, g: int):
    """Object g again, from the flat tensors, the slow way."""
    first, last = packed.object_offsets[g : g + 2].tolist()
    rings = [packed.vertices[packed.ring_offsets[r] : packed.ring_offsets[r + 1]].tolist() for r in range(first, last)]
    bitmap = None
    if packed.geometry is not None and packed.geometry[g, 3] > 0:
        offset, x0, y0, width, height = packed.geometry[g].tolist()
        bitmap = (x0, y0, packed.bitmaps[offset : offset + width * height].reshape(height, width).tolist())
    return rings, bitmap


def test_packed_masks_hold_every_object():
    square = [0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]
    first = SegmentationMask([[LETTER_L, square], letter_pixels()], SIZE)
    second = SegmentationMask([[square]], SIZE)
    packed = pack_masks([first, SegmentationMask([], SIZE), second], slots=4)
    assert packed.object_offsets.shape == (13,) and packed.geometry.shape == (12, 5)
    expected = {0: first.instances[0], 1: first.instances[1], 8: second.instances[0]}
    for g in range(12):
        rings, bitmap = unpack(packed, g)
        assert rings == ([ring.tolist() for ring in expected[g].rings] if g in (0, 8) else [])
        assert bitmap == ((2, 1, letter_pixels()[1:9, 2:9].tolist()) if g == 1 else None)
    for length in (len(packed.vertices), len(packed.ring_offsets) - 1, len(packed.bitmaps)):
        assert length & (length - 1) == 0


def test_packed_masks_without_bitmaps_or_objects():
    packed = pack_masks([SegmentationMask([[LETTER_L]], SIZE)], slots=1)
    assert packed.bitmaps is None and packed.geometry is None
    nothing = pack_masks([SegmentationMask([], SIZE)] * 2, slots=2)
    assert nothing.object_offsets.tolist() == [0] * 5 and nothing.vertices.shape == (1, 2)
    assert nothing.to("cpu").ring_offsets.tolist() == [0, 0]
    with pytest.raises(ValueError, match="only 1 slots"):
        pack_masks([SegmentationMask([[LETTER_L]] * 2, SIZE)], slots=1)


def test_batch_packs_its_masks():
    boxes = BoxList(torch.tensor([[2.0, 1.0, 8.0, 8.0]]), SIZE)
    boxes.add_field("masks", SegmentationMask([[LETTER_L]], SIZE))
    empty = BoxList(torch.zeros(0, 4), SIZE)
    empty.add_field("masks", SegmentationMask([], SIZE))
    batch = BoxListBatch.pad([empty, boxes])
    assert batch.packed_masks.object_offsets.tolist() == [0, 0, 1]
    assert len(batch[1].get_field("masks")) == 1


def test_thousand_objects_on_a_huge_image_stay_small():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 7900, (1000, 1, 2)) + np.array([[0, 0], [90, 0], [90, 90], [0, 90]])
    starts = [int(x) * 8000 + int(y) for x, y in corners[:200, 0]]
    runs = [{"size": [8000, 8000], "counts": [start, 90, 64_000_000 - start - 90]} for start in starts]
    tracemalloc.start()
    mask = SegmentationMask([[c.flatten()] for c in corners] + runs, (8000, 8000)).transpose(0).resize((4000, 4000)).convert("mask")
    pack_masks([mask], slots=2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, f"{peak / 1e6:.0f} MB at the peak"


# --------------------------------------------------------------------------------------------------------- keypoints


def test_person_keypoints_change_sides_in_a_mirror():
    points = torch.zeros(1, 17, 3)
    points[0, 1], points[0, 2], points[0, 16] = torch.tensor([3.0, 4.0, 2.0]), torch.tensor([6.0, 5.0, 1.0]), torch.tensor([1.0, 9.0, 2.0])
    flipped = PersonKeypoints(points, (20, 10)).transpose(0).keypoints
    assert flipped[0, 2].tolist() == [16, 4, 2] and flipped[0, 1].tolist() == [13, 5, 1] and flipped[0, 15].tolist() == [18, 9, 2]
    assert flipped[0, 0].tolist() == [0, 0, 0], "what is not annotated stays at 0, 0, 0"
    assert PersonKeypoints(points, (20, 10)).transpose(0, pixel=0).keypoints[0, 2].tolist() == [17, 4, 2]


@timeless
@given(st.sampled_from([0, 1]), st.sampled_from([0, 1]), arrays(np.float32, (3, 17, 2), elements=st.floats(0, 9, width=32)))
def test_mirroring_twice_changes_nothing(method, pixel, xy):
    points = torch.cat([torch.from_numpy(xy), torch.full((3, 17, 1), 2.0)], dim=-1)
    twice = PersonKeypoints(points, (20, 10)).transpose(method, pixel).transpose(method, pixel)
    torch.testing.assert_close(twice.keypoints, points, atol=1e-5, rtol=0)


def test_keypoints_scale_crop_and_pick():
    points = Keypoints([[2.0, 4.0, 2.0, 8.0, 1.0, 1.0], [0.0, 0.0, 0.0, 9.0, 9.0, 2.0]], (10, 10))
    assert points.resize((20, 5)).keypoints[0].tolist() == [[4, 2, 2], [16, 0.5, 1]]
    cut = points.crop((1, 2, 8, 9))
    assert cut.size == (7, 7)
    assert cut.keypoints.tolist() == [[[1, 2, 2], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert points[torch.tensor([True, False])].keypoints.shape == (1, 2, 3) and len(points[1]) == 1
    assert points.transpose(0).keypoints[0, 0].tolist() == [7, 4, 2], "without names nothing changes places"


def test_no_keypoints_are_legal():
    none = PersonKeypoints(torch.zeros(0, 51), (10, 10))
    assert none.keypoints.shape == (0, 17, 3)
    assert len(none.transpose(0).resize((5, 5)).crop((0, 0, 2, 2)).to("cpu")) == 0


def test_flip_pairs_come_from_names():
    points = Keypoints(torch.arange(9.0).reshape(1, 3, 3), (20, 20), names=("apex", "left", "right"))
    assert points.flip_inds() == [0, 2, 1]
    assert PersonKeypoints(torch.zeros(0, 17, 3), (1, 1)).flip_inds() == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


@pytest.mark.parametrize("far", [1e9, -1e30, np.inf, np.nan])
def test_corners_far_away_are_drawn_as_far_as_the_image_goes(far):
    mask = SegmentationMask([[[1.0, 1.0, far, 1.0, 4.0, 8.0]]], SIZE).convert("mask")
    assert dense(mask).shape == (1, *SIZE[::-1])


def test_old_masks_of_bytes_pick_what_they_pick_of_boxes():
    boxlist = BoxList(torch.tensor([[0.0, 0, 4, 4], [1, 1, 6, 6], [2, 2, 9, 9]]), SIZE)
    boxlist.add_field("masks", SegmentationMask([[[0.0, 0, n, 0, n, n]] for n in (4.0, 6.0, 9.0)], SIZE))
    with pytest.warns(UserWarning, match="uint8"):
        picked = boxlist[torch.tensor([0, 1, 1], dtype=torch.uint8)]
    assert [mask.instances[0].rings[0].max() for mask in picked.get_field("masks")] == [6, 9] and len(picked) == 2
