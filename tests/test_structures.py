"""BoxList, its padded batch, ImageList and the counter random numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch, Detections
from maskrcnn_bench.structures.boxlist_ops import box_iou, boxlist_iou, boxlist_nms, cat_boxlist, remove_small_boxes
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.utils.counter import CounterRandom, counter_key, stage_number, uniform

RPN = stage_number("rpn")
coordinate = st.floats(0, 90, width=32)


@st.composite
def boxlists(draw, pixel=None, most=6):
    n = draw(st.integers(0, most))
    corners = np.array(
        [[draw(coordinate), draw(coordinate), draw(st.floats(1, 60, width=32)), draw(st.floats(1, 60, width=32))] for _ in range(n)]
    )
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    out = BoxList(boxes, (160, 150), pixel=draw(st.integers(0, 1)) if pixel is None else pixel)
    out.add_field("labels", torch.arange(n) + 1)
    return out


@given(boxlists())
def test_convert_flip_and_crop_keep_the_boxes(boxlist):
    xywh = boxlist.convert("xywh")
    assert torch.allclose(xywh.convert("xyxy").bbox, boxlist.bbox, atol=1e-4)
    assert torch.allclose(xywh.bbox[:, 2:].prod(1), boxlist.area(), rtol=1e-4)
    for method in (0, 1):
        flipped = boxlist.transpose(method)
        assert torch.allclose(flipped.transpose(method).bbox, boxlist.bbox, atol=1e-4)
        assert torch.allclose(flipped.area(), boxlist.area(), rtol=1e-3)
    whole = boxlist.crop((0, 0, 160, 150))
    assert torch.equal(whole.bbox, boxlist.bbox) and whole.size == (160, 150)
    assert {b.pixel for b in (xywh, flipped, whole)} == {boxlist.pixel}


def test_the_pixel_rule_shows_in_area_flip_and_clip():
    inclusive, exclusive = (BoxList([[10, 20, 29, 39]], (100, 50), pixel=p) for p in (1, 0))
    assert inclusive.area().item() == 400 and exclusive.area().item() == 361
    assert inclusive.transpose(0).bbox.tolist() == [[70, 20, 89, 39]]
    assert exclusive.transpose(0).bbox.tolist() == [[71, 20, 90, 39]]
    wide = BoxList([[-5, -5, 200, 200]], (100, 50), pixel=1).clip_to_image()
    assert wide.bbox.tolist() == [[0, 0, 99, 49]]
    assert len(BoxList([[120, 5, 130, 9]], (100, 50)).clip_to_image(remove_empty=True)) == 0


def test_fields_follow_indexing_resizing_and_unknown_ones_stay():
    class Colour:
        def resize(self, size):
            self.resized = size
            return self

    boxlist = BoxList([[0, 0, 9, 9], [5, 5, 19, 19], [1, 2, 3, 4]], (40, 20))
    boxlist.add_field("labels", torch.tensor([1, 2, 3]))
    boxlist.add_field("names", ["a", "b", "c"])
    boxlist.add_field("colour", Colour())
    assert boxlist[torch.tensor([2, 0])].get_field("labels").tolist() == [3, 1]
    assert boxlist[torch.tensor([True, False, True])].get_field("names") == ["a", "c"]
    assert boxlist[1].bbox.tolist() == [[5, 5, 19, 19]] and boxlist[1].get_field("labels").tolist() == [2]
    assert boxlist.resize((80, 20)).bbox[1].tolist() == [10, 5, 38, 19]
    assert boxlist.get_field("colour").resized == (80, 20)
    assert boxlist.copy_with_fields("labels").fields() == ["labels"]
    with pytest.raises(KeyError, match="no field 'scores'.*labels"):
        boxlist.get_field("scores")
    with pytest.raises(ValueError, match=r"expected shape \[n, 4\], got \[2, 3\]"):
        BoxList(torch.zeros(2, 3), (1, 1))


@settings(deadline=None)
@given(st.lists(boxlists(pixel=1), min_size=1, max_size=4))
def test_a_batch_gives_its_boxlists_back(originals):
    batch = BoxListBatch.pad(originals)
    assert batch.boxes.shape[1] & (batch.boxes.shape[1] - 1) == 0
    assert torch.isfinite(batch.boxes).all()
    for before, after in zip(originals, batch, strict=True):
        assert torch.equal(before.bbox, after.bbox) and before.size == after.size
        assert torch.equal(before.get_field("labels"), after.get_field("labels"))


def test_a_batch_keeps_masks_packed_and_foreign_fields_as_lists():
    first, second = BoxList([[0, 0, 9, 9]], (20, 20)), BoxList(torch.zeros(0, 4), (30, 20))
    first.add_field("masks", SegmentationMask([[[0, 0, 9, 0, 9, 9]]], (20, 20)))
    second.add_field("masks", SegmentationMask([], (30, 20)))
    first.add_field("caption", "one")
    second.add_field("caption", "none")
    batch = BoxListBatch.pad([first, second], slots=4)
    assert batch.packed_masks.object_offsets.tolist()[:2] == [0, 1]
    assert [b.get_field("caption") for b in batch] == ["one", "none"]
    assert len(batch[1]) == 0 and len(batch[0].get_field("masks")) == 1
    with pytest.raises(ValueError, match="3 boxes in one image, but only 2 slots"):
        BoxListBatch.pad([BoxList(torch.zeros(3, 4), (9, 9))], slots=2)


def test_detections_know_their_counts():
    out = Detections(torch.zeros(2, 3, 4), torch.tensor([[True, True, False], [False] * 3]), torch.tensor([[9.0, 8.0], [7.0, 6.0]]))
    out.truncated = torch.tensor([False, True])
    assert out.counts == [2, 0]
    assert [len(b) for b in out] == [2, 0] and out[1].size == (7, 6)
    assert out.to("cpu").truncated.tolist() == [False, True]


@given(boxlists(), boxlists())
def test_iou_equals_a_pixel_count(a, b):
    a, b = (BoxList(x.bbox.round(), x.size, pixel=1) for x in (a, b))
    grid = [[_pixels(box) for box in x.bbox.tolist()] for x in (a, b)]
    slow = [[len(p & q) / len(p | q) for q in grid[1]] for p in grid[0]]
    assert torch.allclose(box_iou(a.bbox, b.bbox, 1), torch.tensor(slow).reshape(len(a), len(b)), atol=1e-5)


def _pixels(box):
    x1, y1, x2, y2 = (int(v) for v in box)
    return {(x, y) for x in range(x1, x2 + 1, 1) for y in range(y1, y2 + 1)}


def test_boxlist_functions():
    boxlist = BoxList([[0, 0, 9, 9], [1, 1, 9, 9], [30, 30, 31, 31]], (50, 50))
    boxlist.add_field("scores", torch.tensor([0.5, 0.9, 0.1]))
    assert boxlist_nms(boxlist, 0.5).get_field("scores").tolist() == pytest.approx([0.9, 0.1])
    assert len(boxlist_nms(boxlist, 0.5, max_proposals=1)) == 1
    assert len(remove_small_boxes(boxlist, 3)) == 2
    assert len(cat_boxlist([boxlist, boxlist])) == 6
    assert boxlist_iou(boxlist, boxlist).diagonal().tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="pixel differs"):
        cat_boxlist([boxlist, BoxList(boxlist.bbox, boxlist.size, pixel=0)])
    with pytest.raises(ValueError, match="image sizes"):
        boxlist_iou(boxlist, BoxList(boxlist.bbox, (1, 2)))


def test_image_list_pads_to_a_multiple_and_remembers_sizes():
    images = to_image_list([torch.ones(3, 30, 50), torch.ones(3, 40, 20)], size_divisible=32)
    assert list(images.tensors.shape) == [2, 3, 64, 64]
    assert images.image_sizes == [(30, 50), (40, 20)] and images.sizes.tolist() == [[50, 30], [20, 40]]
    assert images.tensors.sum().item() == 3 * (30 * 50 + 40 * 20)
    assert to_image_list(images) is images and len(to_image_list(torch.zeros(3, 4, 5))) == 1
    with pytest.raises(TypeError, match="to_image_list"):
        to_image_list("picture.jpg")


def test_random_numbers_depend_on_the_key_alone():
    keys = torch.tensor([counter_key(1, 2, 3), counter_key(1, 2, 4)])
    both, alone = uniform(keys, RPN, 5000), uniform(keys[1:], RPN, 5000)
    assert torch.equal(both[1:], alone)
    assert torch.equal(both[:, :100], uniform(keys, RPN, 100))
    assert not torch.equal(both[0], both[1]) and not torch.equal(both, uniform(keys, stage_number("box"), 5000))
    assert abs(both.mean().item() - 0.5) < 0.01 and abs(both.std().item() - 12**-0.5) < 0.01
    correlation = np.corrcoef(both[0].numpy()[:-1], both[0].numpy()[1:])[0, 1]
    assert abs(correlation) < 0.05


def test_outside_the_graph_too():
    draws = [CounterRandom(counter_key(0, i, 7)).uniform("flip") for i in range(2000)]
    assert abs(np.mean(draws) - 0.5) < 0.03 and len(set(draws)) == 2000
    assert CounterRandom(5).uniform("a", 1) == CounterRandom(5).uniform("a", 1) != CounterRandom(5).uniform("a", 2)
    assert {CounterRandom(i).randint("size", 3) for i in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("value", ["cat", {"a": 1, "b": 2, "c": 3}, torch.tensor(3.0), np.array(3.0), 7, None])
def test_what_belongs_to_the_image_stays_with_it(value):
    boxlist = BoxList([[0, 0, 4, 4], [1, 1, 6, 6], [2, 2, 9, 9]], (20, 20))
    boxlist.add_field("about", value)
    for item in (torch.tensor([True, False, True]), [0, 2], slice(1), 1):
        assert boxlist[item].get_field("about") is value


def test_lists_and_numbers_of_one_entry_a_box_are_picked_with_them():
    boxlist = BoxList([[0, 0, 4, 4], [1, 1, 6, 6], [2, 2, 9, 9]], (20, 20))
    boxlist.add_field("pair", ("a", "b", "c"))
    boxlist.add_field("labels", torch.tensor([1, 2, 3]))
    assert boxlist[torch.tensor([True, False, True])].get_field("pair") == ("a", "c")
    for one in (2, -1, np.int64(2), torch.tensor(2)):
        picked = boxlist[one]
        assert picked.get_field("labels").tolist() == [3] and picked.get_field("pair") == ("c",) and len(picked) == 1
