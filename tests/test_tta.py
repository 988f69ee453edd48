"""Test-time augmentation: nothing to add gives the plain answer, mirrors are mirrors, and the whole way through the loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import narrow_config, narrow_model, scene
from PIL import Image

from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.data.collate import BatchCollator
from maskrcnn_bench.engine.tta import Pass, TestTimeAugmentation, make_passes, mirror_boxes, mirror_images, rescale_boxes
from maskrcnn_bench.structures.bounding_box import BoxList, Detections
from maskrcnn_bench.structures.boxlist_ops import box_iou
from maskrcnn_bench.structures.image_list import ImageList, ImageVersions, to_image_list
from maskrcnn_bench.structures.keypoint import PersonKeypoints

SHARP = ["MODEL.ROI_HEADS.SCORE_THRESH", 0.1, "MODEL.RPN.POST_NMS_TOP_N_TEST", 30]


def detector(family="mask_fpn", *overrides):
    """Predictors with enough spread that thresholds and suppression have something to do."""
    model = narrow_model(family, *SHARP, *overrides).eval()
    box = model.roi_heads.box.predictor
    torch.nn.init.normal_(box.cls_score.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(box.bbox_pred.weight, std=0.02, generator=torch.Generator().manual_seed(2))
    return model


def symmetric_images() -> ImageList:
    images, _ = scene()
    halves = [images.tensors[n, :, : size[0], : size[1] // 2] for n, size in enumerate(images.image_sizes)]
    return to_image_list([torch.cat([half, half.flip(-1)], dim=-1) for half in halves], 32)


def test_the_passes_are_those_of_the_reference():
    assert make_passes(0, False, True) == [Pass(0, False)]
    assert make_passes(2, True, False) == [Pass(0, False), Pass(0, True), Pass(1, False), Pass(2, False)]
    assert make_passes(1, False, True) == [Pass(0, False), Pass(1, False), Pass(1, True)]


@pytest.mark.parametrize("family", ["mask_fpn", "d2_mask_fpn", "mask_c4", "keypoint_fpn"])
def test_one_pass_equals_the_plain_answer(family):
    images, _ = scene()
    model = detector(family)
    with torch.no_grad():
        plain, augmented = model(images), TestTimeAugmentation(model, make_passes(0, False, False))(ImageVersions([images]))
    assert min(plain.counts) > 3 and plain.counts == augmented.counts
    assert torch.equal(plain.boxes, augmented.boxes)
    for name, value in plain.fields.items():
        torch.testing.assert_close(augmented.fields[name], value)


def test_the_mirrored_image_keeps_its_padding_and_comes_back():
    images, _ = scene()
    mirrored = mirror_images(images)
    for n, (height, width) in enumerate(images.image_sizes):
        assert torch.equal(mirrored.tensors[n, :, :height, :width], images.tensors[n, :, :height, :width].flip(-1))
        assert not mirrored.tensors[n, :, :, width:].any()
    assert torch.equal(mirror_images(mirrored).tensors, images.tensors)


@pytest.mark.parametrize("pixel", [0, 1])
def test_boxes_move_as_those_of_a_boxlist(pixel):
    boxes = torch.tensor([[[[2.0, 3, 20, 30]]], [[[0.0, 0, 5, 6]]]])
    sizes, new_sizes = torch.tensor([[50.0, 40], [30.0, 60]]), torch.tensor([[75.0, 61], [30.0, 60]])
    for n in range(2):
        boxlist = BoxList(boxes[n, 0], sizes[n].tolist(), pixel=pixel)
        torch.testing.assert_close(mirror_boxes(boxes, sizes, pixel)[n, 0], boxlist.transpose(0).bbox)
        torch.testing.assert_close(rescale_boxes(boxes, sizes, new_sizes)[n, 0], boxlist.resize(new_sizes[n].tolist()).bbox)


def test_with_its_mirror_a_symmetric_image_has_a_symmetric_answer():
    """Each detection has its mirror image among the detections, or a better one of its class that suppressed it."""
    images = symmetric_images()
    model = detector("mask_fpn", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 1000)
    with torch.no_grad():
        plain, both = model(images), TestTimeAugmentation(model, make_passes(0, True, False))(images)

    def asymmetric(detections):
        lonely = 0
        for boxlist in detections:
            mirrored = boxlist.transpose(0)
            scores, labels = boxlist.get_field("scores"), boxlist.get_field("labels")
            rivals = (labels[:, None] == labels) & (scores[None] >= scores[:, None] - 1e-5)
            overlap = box_iou(mirrored.bbox, boxlist.bbox, 1)
            lonely += int((torch.where(rivals, overlap, 0.0).max(dim=1).values < 0.499).sum())
        return lonely

    assert sum(both.counts) > sum(plain.counts) > 10
    assert asymmetric(both) == 0 < asymmetric(plain)


def test_boxes_are_those_of_a_plain_loop():
    """maskrcnn-benchmark's way, one image and one class at a time: all passes in the first one's frame, threshold, suppression, limit."""
    images, _ = scene()
    half = ImageList(images.tensors[:, :, ::2, ::2].contiguous(), [(h // 2, w // 2) for h, w in images.image_sizes])
    versions, passes = [images, half], make_passes(1, True, True)
    model = detector("faster_fpn", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 20)
    for layer in (model.roi_heads.box.predictor.cls_score, model.roi_heads.box.predictor.bbox_pred):
        layer.weight.data.mul_(0.01)  # so that no two scores are 1
    found = [[] for _ in images.image_sizes]
    with torch.no_grad():
        augmented = TestTimeAugmentation(model, passes)(ImageVersions(versions))
        for p in passes:
            seen = mirror_images(versions[p.version]) if p.mirrored else versions[p.version]
            features = model.backbone(model.normalizer(seen))
            boxes, scores = model.roi_heads.box.candidates(features, model.rpn(seen, features)[0])
            for n, (height, width) in enumerate(seen.image_sizes):
                for k in range(boxes.shape[1]):
                    boxlist = BoxList(boxes[n, k], (width, height))
                    boxlist = (boxlist.transpose(0) if p.mirrored else boxlist).resize(images.image_sizes[n][::-1])
                    rows = zip(scores[n, k].tolist(), boxlist.bbox.tolist())
                    found[n] += [(score, k + 1, box) for score, box in rows if score > 0.1]
    for boxlist, candidates in zip(augmented, found, strict=True):
        kept: list[tuple[float, int, list[float]]] = []
        for score, label, box in sorted(candidates, key=lambda c: -c[0]):
            rivals = [other for _, other_label, other in kept if other_label == label]
            if not rivals or box_iou(torch.tensor([box]), torch.tensor(rivals), 1).max() < 0.5:
                kept.append((score, label, box))
        assert len(kept) > 20 == len(boxlist)
        torch.testing.assert_close(boxlist.get_field("scores"), torch.tensor([score for score, _, _ in kept[:20]]))
        torch.testing.assert_close(boxlist.bbox, torch.tensor([box for _, _, box in kept[:20]]), rtol=1e-4, atol=1e-3)
        assert boxlist.get_field("labels").tolist() == [label for _, label, _ in kept[:20]]


def test_averaged_masks_of_mirrored_boxes_are_mirrored():
    images = symmetric_images()
    model = detector()
    augmented = TestTimeAugmentation(model, make_passes(0, True, False))
    boxes = torch.tensor([[10.0, 12, 50, 70], [60.0, 20, 90, 80]]).expand(2, 2, 4)
    masks = []
    for seen in (boxes, mirror_boxes(boxes, images.sizes, 1)):
        detections = Detections(seen, torch.ones(2, 2, dtype=torch.bool), images.sizes, {"labels": torch.tensor([[1, 3], [2, 4]])})
        with torch.no_grad():
            masks.append(torch.stack([augmented._maps(images, mirrored, detections).get_field("mask") for mirrored in (False, True)]))
    torch.testing.assert_close(masks[0].mean(dim=0), masks[1].mean(dim=0).flip(-1), rtol=1e-4, atol=1e-5)
    assert (masks[0][0] - masks[1][0].flip(-1)).abs().max() > 1e-3


def test_other_sizes_add_candidates_and_average_masks():
    images, _ = scene()
    doubled = torch.nn.functional.interpolate(images.tensors.float(), scale_factor=2, mode="bilinear").round().to(torch.uint8)
    versions = ImageVersions([images, ImageList(doubled, [(2 * h, 2 * w) for h, w in images.image_sizes])])
    model = detector()
    with torch.no_grad():
        candidates = [
            TestTimeAugmentation(model, make_passes(1, True, True))._candidates(v, False, images.sizes) for v in versions.versions
        ]
        out = TestTimeAugmentation(model, make_passes(1, True, True))(versions)
        passes = make_passes(1, True, True)
        masks = [TestTimeAugmentation(model, [p])._maps(versions.versions[p.version], p.mirrored, out).get_field("mask") for p in passes]
    assert torch.equal(out.sizes, images.sizes)
    limits = images.sizes.repeat(1, 2)[:, None, None]
    assert (candidates[1][0] <= limits).all() and candidates[1][0].max() > 60
    torch.testing.assert_close(out.get_field("mask"), sum(masks) / 4)


def test_the_loader_gives_every_size():
    cfg = narrow_config(
        *("mask_fpn", "TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.SCALES", (40, 80), "TEST.BBOX_AUG.MAX_SIZE", 100),
        *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 1000),
    )
    items = []
    for key, (width, height) in enumerate(((60, 50), (50, 100))):
        picture = Image.fromarray(np.random.default_rng(key).integers(0, 256, (height, width, 3), dtype=np.uint8))
        images, target = make_transforms(cfg, is_train=False)(picture, BoxList([[5.0, 5, 20, 20]], (width, height)))
        items.append((images, target, key, key))
    versions, targets, indices = BatchCollator(32)(items)
    sizes = [v.image_sizes for v in versions.versions]
    assert sizes == [[(64, 76), (128, 64)], [(40, 48), (80, 40)], [(80, 96), (100, 50)]]  # the longer side may have 100 pixels
    assert targets.sizes.tolist() == [[76, 64], [64, 128]] and indices == (0, 1) and len(versions) == 2
    assert versions.versions[2].tensors.shape == (2, 3, 128, 96) and versions.to("cpu").versions[1].keys.tolist() == [0, 1]
    with torch.no_grad():
        out = TestTimeAugmentation(detector(), make_passes(2, True, True))(versions)
    assert len(out) == 2 and out.get_field("mask").shape[:2] == out.valid.shape


def test_a_model_without_box_head_is_refused():
    with pytest.raises(ValueError, match="TEST.BBOX_AUG needs a model with a box head"):
        TestTimeAugmentation(narrow_model("rpn_fpn"), make_passes(0, True, False))


OWN = {"NUM_CLASSES": 3, "NAMES": ("port", "starboard", "bow"), "FLIP_PAIRS": (("port", "starboard"),)}


@pytest.mark.parametrize("keys", [{"NUM_CLASSES": 17}, OWN], ids=["person", "own"])
def test_averaged_keypoints_of_mirrored_boxes_are_mirrored_with_left_and_right_exchanged(keys):
    images = symmetric_images()
    model = detector("keypoint_fpn", *[word for key, value in keys.items() for word in (f"MODEL.ROI_KEYPOINT_HEAD.{key}", value)])
    augmented = TestTimeAugmentation(model, make_passes(0, True, False))
    boxes = torch.tensor([[10.0, 12, 50, 70]]).expand(2, 1, 4)
    maps = []
    for seen in (boxes, mirror_boxes(boxes, images.sizes, 1)):
        detections = Detections(seen, torch.ones(2, 1, dtype=torch.bool), images.sizes, {"labels": torch.ones(2, 1, dtype=torch.int64)})
        with torch.no_grad():
            passes = [augmented._maps(images, mirrored, detections).get_field("heat_maps") for mirrored in (False, True)]
        maps.append(torch.stack(passes).mean(dim=0))
    names = keys.get("NAMES", PersonKeypoints.NAMES)
    other_side = dict(zip(("left", "right", "port", "starboard"), ("right", "left", "starboard", "port")))
    for k, name in enumerate(names):
        other = names.index("_".join(other_side.get(word, word) for word in name.split("_")))
        torch.testing.assert_close(maps[0][:, :, k], maps[1][:, :, other].flip(-1), rtol=1e-3, atol=1e-4)
    assert (maps[0] - maps[1].flip(-1)).abs().max() > 1e-3
    with torch.no_grad():
        out = augmented(images)
    assert out[0].get_field("keypoints").keypoints.shape[1:] == (len(names), 3)
