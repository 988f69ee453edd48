"""The model's parts against slow references, and the model against itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, narrow_model, scene, scene_of

from maskrcnn_bench.config import load_config
from maskrcnn_bench.config.dialect import DIALECTS, get_dialect
from maskrcnn_bench.modeling import build, registry
from maskrcnn_bench.modeling.box_coder import BoxCoder, clip_boxes
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.modeling.matcher import Matcher
from maskrcnn_bench.modeling.poolers import Pooler, RoIs
from maskrcnn_bench.modeling.roi_heads.box_head import DetectionSelector
from maskrcnn_bench.modeling.roi_heads.mask_head import clamped_frames, exact_frames
from maskrcnn_bench.modeling.rpn.anchor_generator import AnchorGenerator
from maskrcnn_bench.modeling.rpn.rpn import ProposalSelector
from maskrcnn_bench.modeling.sampler import BalancedSampler
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch, fill_unused
from maskrcnn_bench.structures.boxlist_ops import box_iou, boxlist_nms
from maskrcnn_bench.structures.image_list import ImageList

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "state_dict_shapes.json"


def random_boxes(generator, *shape, extent=100.0, least=2.0):
    corner = torch.rand(*shape, 2, generator=generator) * extent
    return torch.cat([corner, corner + least + torch.rand(*shape, 2, generator=generator) * extent / 2], dim=-1)


# Boxes


@pytest.mark.parametrize("name", DIALECTS)
def test_encoding_and_decoding_are_inverse(name):
    d = get_dialect(name)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), d.pixel, d.decode_pixel, d.log_size_range)
    generator = torch.Generator().manual_seed(0)
    boxes, references = random_boxes(generator, 50), random_boxes(generator, 50)
    # faster-rcnn.pytorch counts the last pixel when it encodes, and leaves it out when it decodes: its boxes grow by one.
    grown = torch.tensor([0, 0, 1, 1]) * (d.pixel - d.decode_pixel)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, references), references), boxes + grown, rtol=1e-4, atol=1e-3)


def test_decoding_clamps_the_growth_and_clipping_follows_the_pixel_rule():
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0), 1, 1.0, DIALECTS["maskrcnn_benchmark"].log_size_range)
    grown = coder.decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([[0.0, 0.0, 15.0, 15.0]]))
    assert (grown[0, 2] - grown[0, 0] + 1).item() == pytest.approx(1000, rel=1e-5)
    clipped = clip_boxes(grown[None], torch.tensor([[64.0, 48.0]]), pixel=1)
    assert clipped.tolist() == [[[0, 0, 63, 47]]]


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="MODEL.DIALECT.*detectron2.*'caffe'"):
        get_dialect("caffe")
    with pytest.raises(ValueError, match="nearest are .*FPN2MLPFeatureExtractor"):
        registry.ROI_BOX_FEATURE_EXTRACTORS["FPN2MLPFeatureExtracter"]
    with pytest.raises(ValueError, match="registered already"):
        registry.RPN_HEADS.register("SingleConvRPNHead", object())
    assert registry.RPN_HEADS["SingleConvRPNHead"] is build.build_single_conv_rpn_head


def test_a_notebooks_cell_may_run_again():
    cell = "class Mine: pass\nparts.register('Mine', Mine)"
    parts, place = registry.Registry("KEY", "a part"), {"__name__": "__main__"}
    for _ in range(2):
        exec(cell, place | {"parts": parts})
    with pytest.raises(ValueError, match="'Mine' is registered already"):
        parts.register("Mine", lambda: None)


# Anchors


def test_anchors_of_both_rules():
    rounded = AnchorGenerator(((32, 64),), (0.5, 1.0, 2.0), (16,), "rounded_corner", "ratio_major")
    cells = next(iter(rounded.cell_anchors))
    assert cells[0].tolist() == [-15, -4, 30, 19] and cells[2].tolist() == [-8, -8, 23, 23]  # 46 x 24 and 32 x 32 around 7.5
    exact = AnchorGenerator(((32, 64),), (0.5, 1.0, 2.0), (16,), "exact_centre", "size_major")
    assert next(iter(exact.cell_anchors))[1].tolist() == [-16, -16, 16, 16]
    grid = exact([torch.zeros(1, 8, 2, 3)])[0]
    assert grid.shape == (2 * 3 * 6, 4)
    assert grid[6 * 4 + 1].tolist() == [0, 0, 32, 32]  # row 1, column 1
    visible = AnchorGenerator(((8,),), (1.0,), (16,), "exact_centre", "size_major", 0).visible(
        torch.tensor([[0.0, 0, 9, 9], [0, 0, 10, 9]]), torch.tensor([[10.0, 10.0]])
    )
    assert visible.tolist() == [[True, False]]
    with pytest.raises(ValueError, match="2 levels .* need as many ANCHOR_SIZES, got 1"):
        AnchorGenerator(((8,),), (1.0,), (16, 32), "exact_centre", "size_major")


# Matching and sampling


def slow_match(objects, boxes, high, low, low_quality):
    if len(objects) == 0:
        return torch.full((len(boxes),), -1)
    iou = box_iou(objects, boxes, 1)
    best, matches = iou.max(dim=0)
    out = matches.clone()
    out[best < high] = -2
    out[best < low] = -1
    if low_quality:
        for row in iou:
            held = row == row.max()
            out[held] = matches[held]
    return out


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 40), st.booleans())
def test_matching_in_chunks_equals_the_whole_matrix(seed, count, low_quality):
    """Integer boxes on a small grid, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    objects = random_boxes(generator, count, extent=20).round()
    boxes = random_boxes(generator, 60, extent=20).round()
    batch = BoxListBatch.pad([BoxList(objects, (50, 50)), BoxList(objects[:1], (50, 50))])
    out = Matcher(0.5, 0.3, low_quality)(batch.boxes, batch.valid, boxes, pixel=1)
    assert torch.equal(out[0], slow_match(objects, boxes, 0.5, 0.3, low_quality))
    assert torch.equal(out[1], slow_match(objects[:1], boxes, 0.5, 0.3, low_quality))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 80), st.floats(0.1, 0.9), st.integers(1, 100))
def test_sampling_keeps_its_quotas(seed, batch_size, fraction, candidates):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (2, candidates), generator=generator)
    keys = torch.randint(2**62, (2,), generator=generator)
    sampler = BalancedSampler(batch_size, fraction, "test")
    samples = sampler(labels, keys)
    for n in range(2):
        drawn = samples.inds[n][samples.valid[n]]
        assert len(set(drawn.tolist())) == len(drawn)
        positives = min(int((labels[n] > 0).sum()), int(batch_size * fraction))
        negatives = min(int((labels[n] == 0).sum()), batch_size - positives)
        assert samples.positive[n].sum() == positives and len(drawn) == positives + negatives
        assert samples.positive[n][:positives].all()
        assert (labels[n][samples.inds[n][samples.positive[n]]] > 0).all()
        assert (labels[n][drawn[positives:]] == 0).all()
    alone = sampler(labels[1:], keys[1:])
    assert torch.equal(alone.inds[0][alone.valid[0]], samples.inds[1][samples.valid[1]])


def test_every_candidate_is_drawn_equally_often():
    labels = torch.tensor([[1] * 10 + [0] * 30]).repeat(4000, 1)
    samples = BalancedSampler(8, 0.5, "test")(labels, torch.arange(4000) * 7919)
    hits = torch.bincount(samples.inds.flatten(), minlength=40).float()
    assert (hits[:10] / 1600 - 1).abs().max() < 0.1 and (hits[10:] / (4000 * 4 / 30) - 1).abs().max() < 0.2


# Selection of proposals and detections


def selector(per_batch, **changes):
    pixel = changes.get("pixel", 1)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0), pixel, float(pixel), DIALECTS["maskrcnn_benchmark"].log_size_range)
    values = dict(pre_nms_top_n=30, post_nms_top_n=20, fpn_post_nms_top_n=25, per_batch=per_batch, nms_thresh=0.5)
    values.update(min_size=0, drop_empty=False, rank_by="probability", pixel=1)
    return ProposalSelector(coder, **(values | changes))


def slow_proposals(select, anchors, objectness, regression, sizes):
    per_image = []
    for n, size in enumerate(sizes.tolist()):
        found = []
        for a, o, r in zip(anchors, objectness, regression, strict=True):
            scores, order = o[n].sigmoid().sort(descending=True)
            order = order[: select.pre_nms_top_n]
            boxlist = BoxList(select.box_coder.decode(r[n][order], a[order]), size).clip_to_image(remove_empty=False)
            boxlist.add_field("objectness", scores[: select.pre_nms_top_n])
            found.append(boxlist_nms(boxlist, select.nms_thresh, select.post_nms_top_n, "objectness"))
        per_image.append([torch.cat([f.bbox for f in found]), torch.cat([f.get_field("objectness") for f in found])])
    if select.per_batch:
        floor = torch.cat([s for _, s in per_image]).sort(descending=True).values[: select.fpn_post_nms_top_n].min()
        return [(b[s >= floor], s[s >= floor]) for b, s in per_image]
    return [
        (b[s.argsort(descending=True)[: select.fpn_post_nms_top_n]], s.sort(descending=True).values[: select.fpn_post_nms_top_n])
        for b, s in per_image
    ]


@pytest.mark.parametrize("per_batch", [True, False])
def test_proposals_of_two_images_of_unequal_scores(per_batch):
    """The better image takes the batch's total with per-batch selection, and its own share without."""
    generator = torch.Generator().manual_seed(3)
    anchors = [random_boxes(generator, 60), random_boxes(generator, 12)]
    objectness = [torch.randn(2, len(a), generator=generator) + torch.tensor([[1.5], [-1.5]]) for a in anchors]
    regression = [torch.randn(2, len(a), 4, generator=generator) * 0.2 for a in anchors]
    sizes = torch.tensor([[120.0, 100.0], [90.0, 130.0]])
    select = selector(per_batch)
    batch = select(anchors, objectness, regression, sizes)
    counts = batch.valid.sum(dim=1).tolist()
    slow = slow_proposals(select, anchors, objectness, regression, sizes)
    assert counts == [len(s) for _, s in slow] and (sum(counts) == 25) == per_batch
    assert counts[0] > counts[1] if per_batch else counts == [25, 25] or sum(counts) > 25
    for boxlist, (boxes, scores) in zip(batch, slow, strict=True):
        order = scores.argsort(descending=True)
        torch.testing.assert_close(boxlist.get_field("objectness"), scores[order])
        torch.testing.assert_close(boxlist.bbox, boxes[order])


@pytest.mark.parametrize(("drop_empty", "kept"), [(False, 3), (True, 2)])
def test_empty_proposals_go_where_they_went(drop_empty, kept):
    """A box outside the image is clipped to a line: zero wide exclusive, one wide inclusive."""
    anchors = [torch.tensor([[0.0, 0, 19, 19], [40, 40, 59, 59], [200, 0, 220, 20]])]
    select = selector(False, drop_empty=drop_empty, pixel=0 if drop_empty else 1)
    batch = select(anchors, [torch.zeros(1, 3)], [torch.zeros(1, 3, 4)], torch.tensor([[100.0, 100.0]]))
    assert batch.valid.sum().item() == kept


def test_ties_with_the_last_detection():
    """Twelve far apart boxes of one score and a limit of 8: all 12 with room for ties, 8 without."""
    corner = torch.arange(12.0) * 20
    boxes = torch.stack([corner, corner, corner + 10, corner + 10], dim=1)[None]
    proposals = BoxListBatch(boxes, torch.ones(1, 12, dtype=torch.bool), torch.tensor([[300.0, 300.0]]))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), 1, 1.0, DIALECTS["maskrcnn_benchmark"].log_size_range)
    counts = []
    for ties in (0, 2, 28):
        select = DetectionSelector(coder, 0.05, 0.5, 8, ties, min_size=0.0, pixel=1)
        out = select(torch.tensor([0.0, 1.0]).repeat(1, 12, 1), torch.zeros(1, 12, 8), proposals)
        counts.append((out.counts[0], bool(out.truncated)))
    assert counts == [(8, False), (10, True), (12, False)]


def test_class_agnostic_boxes_serve_every_class():
    images, targets = scene()
    model = narrow_model("faster_fpn", "MODEL.CLS_AGNOSTIC_BBOX_REG", True)
    assert model.roi_heads.box.predictor.bbox_pred.weight.shape[0] == 8
    sum(model(images, targets).values()).backward()
    gradient = model.roi_heads.box.predictor.bbox_pred.weight.grad
    assert gradient[:4].abs().max() == 0 and gradient[4:].abs().max() > 0
    model.eval()
    with torch.no_grad():
        assert set(model(images)[0].get_field("labels").tolist()) <= {1, 2, 3, 4}


# Pooling


def test_the_level_follows_the_size():
    pooler = Pooler(7, (0.25, 0.125, 0.0625, 0.03125), 2, 0.0, 1.0, 1e-6)
    boxes = torch.tensor([[0.0, 0, s - 1, s - 1] for s in (10, 111, 112, 223, 224, 447, 448, 4000)])
    every = torch.ones(1, 8, dtype=torch.bool)
    rois = RoIs.flatten(BoxListBatch(boxes[None], every, torch.tensor([[5000.0, 5000.0]])), static=True)
    assert pooler.levels(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    unused = RoIs.flatten(BoxListBatch(boxes[None], ~every, torch.tensor([[5000.0, 5000.0]])), static=True)
    assert set(pooler.levels(unused).tolist()) == {-1}


def test_flattening_and_scattering_are_inverse():
    batch = BoxListBatch(torch.rand(2, 3, 4), torch.tensor([[True, False, True], [False, True, False]]), torch.ones(2, 2))
    for static in (True, False):
        rois = RoIs.flatten(batch, static)
        back = rois.scatter(torch.where(rois.valid[:, None], rois.boxes, 0.0))
        torch.testing.assert_close(back, torch.where(batch.valid[..., None], batch.boxes, 0.0))


def test_unused_slots_are_filled_whatever_they_hold():
    boxes = torch.tensor([[[1.0, 2, 3, 4], [float("nan"), 0, float("inf"), 5]]])
    assert fill_unused(boxes, torch.tensor([[True, False]])).tolist() == [[[1, 2, 3, 4], [0, 0, 10, 10]]]


# Masks


def test_where_polygons_move():
    boxes, sizes = torch.tensor([[-10.0, 5, 29, 24], [3, 3, 3, 3]]), torch.tensor([[20.0, 40.0], [20.0, 40.0]])
    torch.testing.assert_close(clamped_frames(boxes, sizes, 28), torch.tensor([[0, 5, 28 / 20, 28 / 19], [3, 3, 28, 28]]))
    torch.testing.assert_close(exact_frames(boxes, sizes, 28), torch.tensor([[-10, 5, 28 / 39, 28 / 19], [3, 3, 280, 280]]))


def test_a_mask_head_without_masks_says_so():
    images, targets = scene()
    targets.packed_masks = None
    with pytest.raises(ValueError, match="MODEL.MASK_ON False"):
        narrow_model("mask_fpn")(images, targets)


# The whole model


@pytest.mark.parametrize("family", FAMILIES)
def test_no_objects_are_a_normal_case(family):
    """A batch of empty images: finite losses, and zero where there is nothing to learn."""
    for counts in ((0, 0), (2, 0)):
        images, targets = scene_of(family, counts=counts)
        model = narrow_model(family)
        losses = model(images, targets)
        assert all(torch.isfinite(v) for v in losses.values())
        if counts == (0, 0):
            assert all(
                losses[name] == 0
                for name in ("loss_rpn_box_reg", "loss_box_reg", "loss_mask", "loss_kp", "loss_retina_reg")
                if name in losses
            )
        sum(losses.values()).backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, "DDP needs a gradient for every parameter"


@pytest.mark.parametrize("family", ["faster_fpn", "mask_fpn", "mask_c4", "d2_mask_fpn"])
def test_a_batch_of_four_gives_what_four_batches_give(family):
    images, _ = scene(((96, 128),) * 4, (1,) * 4)
    model = narrow_model(family).eval()
    with torch.no_grad():
        together = model(images)
        for n in range(4):
            alone = model(images.tensors[n])
            assert alone.counts[0] == together.counts[n]
            torch.testing.assert_close(alone.boxes[0], together.boxes[n], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(alone.get_field("scores")[0], together.get_field("scores")[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "norm"), [("mask_fpn", "FrozenBN"), ("mask_c4", "BN"), ("mask_fpn", "GN")])
def test_the_copy_for_inference_finds_the_same(family, norm):
    images, _ = scene()
    model = narrow_model(family, "MODEL.RESNETS.NORM", norm, "MODEL.GROUP_NORM.NUM_GROUPS", 4).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var", "weight", "bias")):
            buffer.uniform_(0.5, 1.5)
    fast = model.for_inference()
    assert any(isinstance(m, torch.nn.Identity) for m in fast.modules()) == (norm != "GN")
    with torch.no_grad():
        slow, quick = model(images), fast(images)
    assert slow.counts == quick.counts
    torch.testing.assert_close(slow.boxes, quick.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(slow.get_field("scores"), quick.get_field("scores"), rtol=1e-3, atol=1e-4)
    assert all(p.requires_grad for p in model.rpn.parameters()), "the model itself stays as it is"


def test_losses_in_evaluation_equal_those_in_training():
    images, targets = scene()
    model = narrow_model("mask_fpn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model(images, targets)
    model.eval()
    with torch.no_grad():
        detections, losses = model(images, targets, return_losses=True)
    for name, value in training.items():
        torch.testing.assert_close(losses[name], value)
    assert len(detections) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="targets are needed"):
        model.train()(images)


def test_plain_lists_of_images_and_boxlists_work_too():
    images, targets = scene(((96, 128), (96, 128)))
    model = narrow_model("mask_fpn")
    plain = [images.tensors[0], images.tensors[1]]
    assert set(model(plain, list(targets))) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    model.eval()
    with torch.no_grad():
        first = model(plain)[0]
    assert first.get_field("mask").shape[1:] == (1, 28, 28) and first.size == (128, 96)


@pytest.mark.parametrize("depth", [18, 34, 101, 152])
def test_other_depths(depth):
    model = narrow_model("faster_fpn", "MODEL.BACKBONE.CONV_BODY", f"R-{depth}-FPN", "MODEL.RESNETS.NORM", "BN")
    images, targets = scene()
    assert all(torch.isfinite(v) for v in model(images, targets).values())
    with pytest.raises(ValueError, match="expected a depth of"):
        narrow_model("faster_fpn", "MODEL.BACKBONE.CONV_BODY", "R-51-FPN")


def shapes_of(path: Path) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = build_detection_model(load_config(str(path)))
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def shipped() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", shipped(), ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_shipped_configs_build_with_the_names_and_shapes_on_record(path):
    """To renew: `python tests/test_modeling.py`."""
    golden = json.loads(GOLDEN.read_text())
    structure = golden["configs"][str(path.relative_to(ROOT / "configs"))]
    assert shapes_of(path) == golden["structures"][structure]


def renew() -> None:
    configs, structures = {}, {}
    for path in shipped():
        shapes = shapes_of(path)
        same = [name for name, other in structures.items() if other == shapes]
        name = same[0] if same else path.stem
        structures.setdefault(name, shapes)
        configs[str(path.relative_to(ROOT / "configs"))] = name
    lines = [
        f"  {json.dumps(name)}: {{\n" + ",\n".join(f"   {json.dumps(k)}: {v}" for k, v in shapes.items()) + "\n  }"
        for name, shapes in structures.items()
    ]
    GOLDEN.write_text('{\n "configs": ' + json.dumps(configs, indent=2) + ',\n "structures": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    renew()


@pytest.mark.parametrize("family", ["mask_fpn", "keypoint_fpn", "faster_c4", "retinanet", "mm_cascade_mask_fpn"])
def test_models_can_be_copied_and_sent(family):
    model = narrow_model(family).eval()
    images = scene_of(family)[0]
    with torch.no_grad():
        expected, found = model(images), pickle.loads(pickle.dumps(model))(images)
    assert torch.equal(expected.boxes, found.boxes) and torch.equal(expected.fields["scores"], found.fields["scores"])


@pytest.mark.parametrize("family", ["mask_fpn", "faster_c4", "retinanet", "keypoint_fpn", "mm_cascade_mask_fpn"])
def test_a_batch_of_no_images_has_no_detections(family):
    images = scene_of(family)[0]
    none = ImageList(images.tensors[:0], [], None if images.keys is None else images.keys[:0], images.sizes[:0])
    with torch.no_grad():
        assert len(narrow_model(family).eval()(none)) == 0


@pytest.mark.parametrize("family", ["mask_fpn", "retinanet", "keypoint_fpn", "d2_cascade_mask_fpn"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.uint8])
def test_targets_as_data_sets_of_others_make_them(family, dtype):
    """Labels of any type, and images without objects that have no fields, or empty ones of another type."""
    images, targets = scene_of(family)
    model = narrow_model(family)
    lists = [targets[i] for i in range(2)]
    lists[1] = BoxList(torch.zeros(0, 4), lists[1].size, pixel=lists[1].pixel)
    expected = model(images, BoxListBatch.pad([lists[0], lists[1]]))
    lists[0].add_field("labels", lists[0].get_field("labels").to(dtype))
    lists[1].add_field("labels", torch.tensor([]))
    found = model(images, BoxListBatch.pad(lists))
    assert {name: value.item() for name, value in found.items()} == {name: value.item() for name, value in expected.items()}
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize("train", [True, False])
def test_deformable_convolutions_in_bfloat16(train):
    images, targets = scene()
    model = narrow_model("faster_dcn").train(train)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(train):
        out = model(images, targets) if train else model(images)
    assert all(torch.isfinite(value) for value in out.values()) if train else torch.isfinite(out.boxes).all()


def test_no_threshold_suppresses_nothing_where_the_original_does_so():
    images = scene()[0]
    scores = {}
    for threshold in (0.0, 0.01, 1.0):
        model = narrow_model("faster_fpn", "MODEL.ROI_HEADS.NMS", threshold, "MODEL.ROI_HEADS.SCORE_THRESH", 0.0).eval()
        with torch.no_grad():
            scores[threshold] = model(images).fields["scores"]
    assert (scores[0.0] >= scores[1.0]).all() and scores[0.0].sum() > scores[0.01].sum()


def test_undefined_boxes_have_a_level():
    pooler = Pooler(2, (0.25, 0.125), 2, 0.0, 1.0, 0.0)
    boxes = torch.tensor([[[float("nan"), 0, 4, 4], [0, 0, float("inf"), 9], [0, 0, 4, 4]]])
    batch = BoxListBatch(boxes, torch.tensor([[True, True, False]]), torch.tensor([[9.0, 9.0]]))
    assert pooler.levels(RoIs.flatten(batch, True)).tolist() == [0, 1, -1]


def test_a_model_of_the_background_alone_is_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES: expected 2 or more, one of them the background, got 1"):
        narrow_model("faster_fpn", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 1)
