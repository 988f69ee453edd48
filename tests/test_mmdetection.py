"""mmdetection's configurations as it resolves them, and the small numbers that only it has."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from models import narrow_model, scene_of
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.config.loader import diff
from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.modeling.detector import Normalizer, build_detection_model
from maskrcnn_bench.modeling.matcher import Matcher
from maskrcnn_bench.modeling.rpn.anchor_generator import AnchorGenerator
from maskrcnn_bench.modeling.rpn.rpn import RPN_NORMALIZERS
from maskrcnn_bench.modeling.sampler import Samples
from maskrcnn_bench.solver import learning_rate, make_optimizer
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.boxlist_ops import box_iou
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask, pack_masks
from maskrcnn_bench.weights import Loaded, load_into
from maskrcnn_bench.weights.classes import names_of
from maskrcnn_bench.weights.convert import convert

IMAGES = 117266  # of COCO's train2017 that have objects
LOSSES = {"L1Loss": "l1", "IoULoss": "iou", "GIoULoss": "giou", "BoundedIoULoss": "bounded_iou"}


@pytest.fixture(scope="module")
def facts(shared_dir):
    return json.loads((shared_dir / "facts" / "mmdetection_faster_rcnn.json").read_text())


@pytest.fixture(scope="module")
def linked(shared_dir):
    """The configurations that mmdetection's page of Faster R-CNN links; one of its links has a typing error."""
    text = (shared_dir / "documents" / "C_mmdetection_faster_rcnn.txt").read_text()
    names = sorted(set(re.findall(r"\(\./(faster-rcnn_\S+?)\.py\)", text)))
    return names


def pairs(facts, linked, further=()):
    """(name, our config, their resolved values) of every linked configuration and the plain Mask R-CNNs; `further` folders as well."""
    names = [f"faster_rcnn/{name}" for name in linked] + [name[:-3] for name in facts if name.split("/")[0] in ("mask_rcnn", *further)]
    return [(name, load_config(f"mmdetection/{name.split('/')[1]}.yaml"), facts[f"{name}.py"]) for name in names]


BEYOND = ("cascade_rcnn", "retinanet")  # not on the page


def epochs_and_steps(name, theirs):
    """Length and milestones in iterations of 16 images."""
    repeats = 3 if "RandomResize" in str(theirs["train_pipeline"]) else 1  # these passes see the data three times
    epoch = math.ceil(repeats * IMAGES / 16)
    return epoch * theirs["train_cfg"]["max_epochs"], tuple(epoch * m for m in theirs["param_scheduler"][1]["milestones"])


def test_every_linked_configuration_is_shipped(facts, linked):
    assert len(linked) == 30
    assert len(pairs(facts, linked)) == 33 and len(pairs(facts, linked, BEYOND)) == 36


def test_schedules_are_those_of_mmdetection(facts, linked):
    for name, ours, theirs in pairs(facts, linked, BEYOND):
        solver, optimizer = ours.SOLVER, theirs["optim_wrapper"]["optimizer"]
        warmup, steps = theirs["param_scheduler"]
        if solver.MAX_EPOCHS:
            assert solver.MAX_EPOCHS == theirs["train_cfg"]["max_epochs"], name
            assert np.allclose(np.array(solver.STEPS) / solver.MAX_ITER * 12, steps["milestones"]), name
        else:
            assert (solver.MAX_ITER, tuple(solver.STEPS)) == epochs_and_steps(name, theirs), name
        assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_BIAS) == (optimizer["lr"], *[optimizer["weight_decay"]] * 2), name
        assert (solver.OPTIMIZER, solver.GAMMA, solver.BIAS_LR_FACTOR) == (optimizer["type"].lower(), steps["gamma"], 1), name
        assert (solver.WARMUP_FACTOR, solver.WARMUP_ITERS) == (warmup["start_factor"], warmup["end"]), name
        assert (ours.DTYPE == "float16") == (theirs["optim_wrapper"]["type"] == "AmpOptimWrapper"), name
        if optimizer["type"] == "SGD":
            assert solver.MOMENTUM == optimizer["momentum"], name


def test_the_rate_falls_where_the_milestones_are():
    solver = load_config("mmdetection/faster-rcnn_r50_fpn_ms-3x_coco.yaml").SOLVER
    shape = solver.BASE_LR, solver.MAX_ITER, solver.STEPS, 0.1, solver.WARMUP_FACTOR, solver.WARMUP_ITERS
    rate = [learning_rate(i, *shape) for i in (0, 250, 500, 197891, 197892, 241868)]
    assert np.allclose(rate, [2e-5, 0.01001, 0.02, 0.02, 0.002, 0.0002])


def test_networks_are_those_of_mmdetection(facts, linked):
    for name, ours, theirs in pairs(facts, linked):
        model, trunk = theirs["model"], theirs["model"]["backbone"]
        keys = ours.MODEL
        shape = "C4" if trunk["num_stages"] == 3 else "FPN" if "neck" in model else "C5"
        assert keys.BACKBONE.CONV_BODY == f"R-{trunk['depth']}-{shape}", name
        resnets = keys.RESNETS
        assert (resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP) == (trunk.get("groups", 1), trunk.get("base_width", 64)), name
        assert resnets.STRIDE_IN_1X1 == (trunk["style"] == "caffe"), name
        assert resnets.NORM == ("FixedStatisticsBN" if trunk["norm_cfg"]["requires_grad"] else "FrozenBN"), name
        assert resnets.RES5_DILATION == trunk.get("dilations", [1])[-1], name
        assert resnets.BACKBONE_OUT_CHANNELS == model["rpn_head"]["in_channels"], name
        anchors = model["rpn_head"]["anchor_generator"]
        assert keys.RPN.ANCHOR_STRIDE == tuple(anchors["strides"]), name
        assert set(keys.RPN.ANCHOR_SIZES) == {scale * stride for stride in anchors["strides"] for scale in anchors["scales"]}, name
        head, pooler = model["roi_head"]["bbox_head"], model["roi_head"]["bbox_roi_extractor"]
        assert keys.ROI_BOX_HEAD.NUM_CLASSES == head["num_classes"] + 1, name
        assert [1 / s for s in keys.ROI_BOX_HEAD.POOLER_SCALES] == pooler["featmap_strides"], name
        assert keys.ROI_BOX_HEAD.POOLER_RESOLUTION == pooler["roi_layer"]["output_size"], name
        assert np.allclose(1 / np.array(keys.ROI_HEADS.BBOX_REG_WEIGHTS), head["bbox_coder"]["target_stds"]), name
        assert keys.MASK_ON == (model["type"] == "MaskRCNN"), name


def test_training_and_testing_settings_are_those_of_mmdetection(facts, linked):
    for name, ours, theirs in pairs(facts, linked):
        train, test, keys = theirs["model"]["train_cfg"], theirs["model"]["test_cfg"], ours.MODEL
        rpn, heads, assigner, proposals = keys.RPN, keys.ROI_HEADS, train["rpn"]["assigner"], train["rpn_proposal"]
        assert (rpn.FG_IOU_THRESHOLD, rpn.BG_IOU_THRESHOLD) == (assigner["pos_iou_thr"], assigner["neg_iou_thr"]), name
        assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION) == (256, 0.5) and train["rpn"]["sampler"]["num"] == 256, name
        assert rpn.STRADDLE_THRESH == train["rpn"]["allowed_border"], name
        assert (rpn.PRE_NMS_TOP_N_TRAIN, rpn.POST_NMS_TOP_N_TRAIN) == (proposals["nms_pre"], proposals["max_per_img"]), name
        assert (rpn.PRE_NMS_TOP_N_TEST, rpn.POST_NMS_TOP_N_TEST) == (test["rpn"]["nms_pre"], test["rpn"]["max_per_img"]), name
        assert not rpn.FPN_POST_NMS_PER_BATCH and rpn.NMS_THRESH == test["rpn"]["nms"]["iou_threshold"], name
        assert heads.MATCH_BEST_PROPOSALS == train["rcnn"]["assigner"]["match_low_quality"], name
        assert (heads.SCORE_THRESH, heads.NMS, heads.DETECTIONS_PER_IMG) == (0.05, 0.5, test["rcnn"]["max_per_img"]), name
        loss, model = theirs["model"]["roi_head"]["bbox_head"]["loss_bbox"], keys.ROI_BOX_HEAD
        kind = "l1" if model.BOX_REG_LOSS == "smooth_l1" else model.BOX_REG_LOSS  # L1 is what this dialect's smooth L1 is
        assert (kind, model.BOX_REG_LOSS_WEIGHT) == (LOSSES[loss["type"]], loss["loss_weight"]), name
        if keys.MASK_ON:
            assert keys.ROI_MASK_HEAD.RESOLUTION == train["rcnn"]["mask_size"], name


def test_images_are_prepared_as_in_mmdetection(facts, linked):
    for name, ours, theirs in pairs(facts, linked, BEYOND):
        given = theirs["model"]["data_preprocessor"]
        scale = 255 if given["bgr_to_rgb"] else 1
        assert np.allclose(np.array(ours.INPUT.PIXEL_MEAN) * scale, given["mean"]), name
        assert np.allclose(np.array(ours.INPUT.PIXEL_STD) * scale, given["std"]), name
        assert ours.INPUT.TO_BGR255 == (not given["bgr_to_rgb"]), name
        assert ours.DATALOADER.SIZE_DIVISIBILITY == given["pad_size_divisor"], name
        resize = next(step for step in theirs["train_pipeline"] if "Resize" in step["type"])
        sizes = resize.get("scales") or ([resize["scale"]] if isinstance(resize["scale"][0], int) else resize["scale"])
        assert {long for long, _ in sizes} == {ours.INPUT.MAX_SIZE_TRAIN}, name
        assert tuple(ours.INPUT.MIN_SIZE_TRAIN) == tuple(short for _, short in sizes), name
        assert (ours.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range") == (resize["type"] == "RandomResize"), name
    resize = make_transforms(load_config("mmdetection/faster-rcnn_r50_fpn_ms-3x_coco.yaml")).transforms[1]
    assert resize.min_size == tuple(range(640, 801))


def test_soft_suppression_is_that_of_mmdetection(facts):
    ours, plain = (load_config(f"mmdetection/faster-rcnn_r50_fpn_{kind}1x_coco.yaml") for kind in ("soft-nms_", ""))
    theirs = facts["faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py"]["model"]["test_cfg"]["rcnn"]
    assert theirs["nms"] == {"type": "soft_nms", "iou_threshold": ours.MODEL.ROI_HEADS.NMS}
    # What the operator takes where nothing is said.
    assert dict(ours.TEST.SOFT_NMS) == {"METHOD": "linear", "SIGMA": 0.5, "MIN_SCORE": 1e-3}
    assert [key for key, _, _ in diff(ours) if key not in {key for key, _, _ in diff(plain)}] == ["TEST.SOFT_NMS.METHOD"]


@pytest.mark.parametrize("name", ["cascade-rcnn_r50_fpn_1x_coco", "cascade-mask-rcnn_r50_fpn_1x_coco"])
def test_cascades_are_those_of_mmdetection(facts, name):
    keys, theirs = load_config(f"mmdetection/{name}.yaml").MODEL, facts[f"cascade_rcnn/{name}.py"]["model"]
    heads, stages, proposals = theirs["roi_head"], theirs["train_cfg"]["rcnn"], theirs["train_cfg"]["rpn_proposal"]
    cascade, rpn = keys.ROI_BOX_CASCADE_HEAD, keys.RPN
    assert cascade.ENABLED and keys.CLS_AGNOSTIC_BBOX_REG and keys.MASK_ON == ("mask_head" in heads)
    assert tuple(cascade.LOSS_WEIGHTS) == tuple(heads["stage_loss_weights"])
    assert tuple(cascade.IOUS) == tuple(stage["assigner"]["pos_iou_thr"] for stage in stages)
    assert np.allclose(1 / np.array(cascade.BBOX_REG_WEIGHTS), [head["bbox_coder"]["target_stds"] for head in heads["bbox_head"]])
    assert {head["loss_bbox"]["beta"] for head in heads["bbox_head"]} == {keys.ROI_BOX_HEAD.SMOOTH_L1_BETA}
    assert (rpn.SMOOTH_L1_BETA, rpn.STRADDLE_THRESH) == (
        theirs["rpn_head"]["loss_bbox"]["beta"],
        theirs["train_cfg"]["rpn"]["allowed_border"],
    )
    assert (rpn.PRE_NMS_TOP_N_TRAIN, rpn.POST_NMS_TOP_N_TRAIN) == (proposals["nms_pre"], proposals["max_per_img"])
    assert rpn.FPN_POST_NMS_TOP_N_TRAIN == rpn.POST_NMS_TOP_N_TRAIN


def test_retinanet_is_that_of_mmdetection(facts):
    cfg, theirs = load_config("mmdetection/retinanet_r50_fpn_1x_coco.yaml"), facts["retinanet/retinanet_r50_fpn_1x_coco.py"]["model"]
    keys, head, test = cfg.MODEL.RETINANET, theirs["bbox_head"], theirs["test_cfg"]
    anchors, assigner = head["anchor_generator"], theirs["train_cfg"]["assigner"]
    assert keys.ANCHOR_SIZES == tuple(anchors["octave_base_scale"] * stride for stride in anchors["strides"])
    assert keys.ANCHOR_STRIDES == tuple(anchors["strides"]) and keys.SCALES_PER_OCTAVE == anchors["scales_per_octave"]
    assert (keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD) == (assigner["pos_iou_thr"], assigner["neg_iou_thr"])
    assert (keys.LOSS_ALPHA, keys.LOSS_GAMMA) == (head["loss_cls"]["alpha"], head["loss_cls"]["gamma"])
    assert (keys.BOX_REG_LOSS, keys.BBOX_REG_WEIGHT, keys.USE_C5) == ("l1", 1.0, theirs["neck"]["add_extra_convs"] == "on_input")
    assert (keys.INFERENCE_TH, keys.NMS_TH, keys.PRE_NMS_TOP_N) == (test["score_thr"], test["nms"]["iou_threshold"], test["nms_pre"])
    assert cfg.TEST.DETECTIONS_PER_IMG == test["max_per_img"] and keys.NUM_CLASSES == head["num_classes"] + 1


@pytest.mark.parametrize("name", ["r50-caffe-dc5_1x_coco", "x101-64x4d_fpn_1x_coco", "r50-caffe_c4-1x_coco"])
def test_shapes_are_those_of_the_checkpoints(name):
    """Built without memory; a row of the trunk's widest convolution tells groups and width."""
    with torch.device("meta"):
        model = build_detection_model(load_config(f"mmdetection/faster-rcnn_{name}.yaml"))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if "x101" in name:
        assert shapes["backbone.body.layer4.0.conv2.weight"] == (2048, 32, 3, 3)
    if "dc5" in name:
        assert shapes["rpn.head.conv.weight"] == (2048, 2048, 3, 3)
        assert shapes["roi_heads.box.feature_extractor.fc6.weight"] == (1024, 2048 * 7 * 7)
    if "c4" in name:
        assert shapes["roi_heads.box.predictor.cls_score.weight"] == (81, 2048)


def test_new_recipe_weights_train_without_pull_on_norms():
    model = narrow_model("mm_faster_giou")
    groups = make_optimizer(load_config("mmdetection/faster-rcnn_r50-tnr-pre_fpn_1x_coco.yaml"), model).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay["backbone.body.layer2.0.bn1.weight"] == decay["backbone.body.layer2.0.bn1.bias"] == 0
    assert decay["backbone.body.layer2.0.conv1.weight"] == decay["rpn.head.conv.bias"] == 0.1


# Norms that learn while their statistics stay


def test_scales_learn_and_statistics_stay():
    model = narrow_model("mm_mask_fpn").train()
    images, targets = scene_of("mm_mask_fpn")
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(model(images, targets).values()).backward()
    norm = model.backbone.body.layer2[0].bn1
    assert not norm.training and norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


# Images


def test_resizing_equals_opencv():
    cv2 = pytest.importorskip("cv2", reason="opencv-python is not installed")
    random = np.random.default_rng(0)
    sizes = [(423, 640, 300, 454), (480, 640, 800, 1067), (100, 100, 50, 50), (1, 1, 5, 5), (1, 7, 4, 3)]
    sizes += [tuple(random.integers(1, 150, 4)) for _ in range(60)]
    for height, width, new_height, new_width in ((int(v) for v in size) for size in sizes):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        ours = T.resize_four_neighbours(Image.fromarray(pixels), (new_width, new_height))
        assert np.array_equal(np.asarray(ours), theirs), (height, width, new_height, new_width)


def test_resizing_gives_what_opencv_gave():
    """Recorded from OpenCV 5.0."""
    pixels = (np.arange(5 * 4 * 3).reshape(5, 4, 3) * 37 % 251).astype(np.uint8)
    assert np.asarray(T.resize_four_neighbours(Image.fromarray(pixels), (3, 7)))[..., 0].tolist() == [
        [18, 166, 105],
        [105, 133, 72],
        [165, 128, 90],
        [153, 176, 199],
        [112, 135, 157],
        [71, 147, 134],
        [37, 185, 124],
    ]


def test_the_input_is_that_of_mmdetection_to_the_last_bit():
    """Mean and deviation are multiplied by 255, where others divide the pixels."""
    cfg = load_config("mmdetection/faster-rcnn_r50_fpn_1x_coco.yaml")
    normalizer = narrow_model("mm_faster_giou").normalizer
    values = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    wanted = (values.float() - mean) / std
    assert torch.equal(normalizer(to_image_list([values]))[0], wanted)
    assert not torch.equal(Normalizer(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, False)(to_image_list([values]))[0], wanted)


# Anchors, matching, normalisers


def test_anchors_beyond_an_image_s_own_padding_do_not_train():
    generator = AnchorGenerator(((32,),), (0.5, 1.0, 2.0), (16,), "exact_centre", "ratio_major", -1, own_padding=32)
    anchors = generator([torch.zeros(1, 1, 8, 10)])[0]
    visible = generator.visible(anchors, torch.tensor([[160.0, 128.0], [97.0, 64.0], [96.0, 65.0]])).view(3, 8, 10, 3)
    assert visible[0].all()
    assert visible[1, :4, :8].all() and visible[1].sum() == 4 * 8 * 3, "97 pixels are padded to 128, 64 stay"
    assert visible[2, :6, :6].all() and visible[2].sum() == 6 * 6 * 3


def slow_matches(objects, boxes, high, low, least, rivals):
    """mmdetection's rule, a box and an object at a time."""
    iou = box_iou(boxes, objects, 0).tolist()
    out = []
    for row in iou:
        best = max(row)
        out.append(row.index(best) if best >= high else Matcher.BELOW_LOW_THRESHOLD if best < low else Matcher.BETWEEN_THRESHOLDS)
    for m in range(len(objects)):
        column = [row[m] for row, rival in zip(iou, rivals, strict=True) if rival]
        top = max(column, default=-1)
        for a, row in enumerate(iou):
            if rivals[a] and row[m] == top and top >= least:
                out[a] = m
    return out


@pytest.mark.parametrize("seed", range(6))
def test_the_best_boxes_of_an_object_are_its_own(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (120, 2), generator=generator).float() * 4
    boxes = torch.cat([corner, corner + 8 * torch.randint(1, 4, (120, 2), generator=generator)], dim=1)
    objects = boxes[torch.randperm(120, generator=generator)[:20]] + torch.randint(-1, 2, (20, 4), generator=generator) * 2.0
    rivals = torch.rand(120, generator=generator) < 0.7
    valid = torch.ones(1, 20, dtype=torch.bool)
    ours = Matcher(0.7, 0.3, True, 0.3, to_best_object=False)(objects[None], valid, boxes, 0, rivals[None])[0]
    assert ours.tolist() == slow_matches(objects, boxes, 0.7, 0.3, 0.3, rivals.tolist())


def test_one_of_each_kind_is_counted():
    positive = torch.tensor([[True, True, False, False], [False] * 4, [True, False, False, False]])
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    assert RPN_NORMALIZERS["one_of_each"](Samples(torch.zeros(3, 4), positive, valid), 256) == (2 + 2) + (1 + 2) + (1 + 1)


# Masks


def test_training_images_come_with_bitmaps():
    transforms = make_transforms(load_config("mmdetection/mask-rcnn_r50_fpn_1x_coco.yaml"))
    target = BoxList(torch.tensor([[10.0, 10, 40, 40]]), (60, 50), pixel=0)
    target.add_field("masks", SegmentationMask([[[10, 10, 40, 10, 40, 40]]], (60, 50)))
    _, out = transforms(Image.new("RGB", (60, 50)), target)
    masks = out.get_field("masks")
    assert masks.mode == "mask" and masks.size == out.size
    packed = BoxListBatch.pad([out]).packed_masks
    assert packed.bitmaps is not None and abs(int(packed.bitmaps.sum()) / (450 * 16 * 16) - 1) < 0.02, "16 times as long"


def test_images_without_objects_look_as_others():
    empty = pack_masks([SegmentationMask([], (60, 50), mode="mask")], 2)
    assert empty.bitmaps is not None and not empty.geometry.any()


# Checkpoints


def test_names_of_both_generations_are_known(shared_dir):
    spec = json.loads((shared_dir / "parity" / "mm" / "mask-rcnn_r50_fpn_1x" / "spec.json").read_text())
    with torch.device("meta"):
        model = build_detection_model(load_config("mmdetection/mask-rcnn_r50_fpn_1x_coco.yaml"))
    loaded = convert({name: torch.zeros(shape) for name, shape, *_ in spec["tensors"]})
    assert loaded.kind == "mmdetection" and not loaded.meta["unused"]
    ours = {name: value.shape for name, value in model.state_dict().items() if "cell_anchors" not in name}
    assert {name: value.shape for name, value in loaded.state_dict.items()} == ours


def test_names_of_retinanet_are_known():
    with torch.device("meta"):
        ours = build_detection_model(load_config("mmdetection/retinanet_r50_fpn_1x_coco.yaml")).state_dict()
    shapes = {f"neck.lateral_convs.{k}.conv": (256, channels, 1, 1) for k, channels in enumerate((512, 1024, 2048))}
    shapes |= {f"neck.fpn_convs.{k}.conv": (256, 2048 if k == 3 else 256, 3, 3) for k in range(5)}
    shapes |= {f"bbox_head.{tower}_convs.{k}.conv": (256, 256, 3, 3) for tower in ("cls", "reg") for k in range(4)}
    shapes |= {"bbox_head.retina_cls": (9 * 80, 256, 3, 3), "bbox_head.retina_reg": (9 * 4, 256, 3, 3)}
    theirs = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    loaded = convert(theirs | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()})
    assert loaded.kind == "mmdetection (RetinaNet)" and not loaded.meta["unused"]
    beyond_the_trunk = {name: value.shape for name, value in ours.items() if not name.startswith("backbone.body.")}
    assert {name: value.shape for name, value in loaded.state_dict.items()} == {
        name: shape for name, shape in beyond_the_trunk.items() if "cell_anchors" not in name
    }
    assert loaded.meta["source"]["backbone.fpn.top_blocks.p7.bias"] == "neck.fpn_convs.4.conv.bias"
    assert loaded.meta["source"]["backbone.fpn.fpn_layer2.bias"] == "neck.fpn_convs.0.conv.bias"


def test_background_moves_to_the_front():
    rows = torch.arange(4.0)[:, None]
    names = {"rpn_head.rpn_conv.weight": torch.zeros(1), "roi_head.bbox_head.fc_cls.weight": rows}
    names |= {"roi_head.bbox_head.fc_reg.bias": torch.ones(12), "roi_head.mask_head.conv_logits.bias": torch.ones(3)}
    names |= {"roi_head.shared_head.layer4.0.bn1.weight": torch.zeros(2)}
    state = convert(names).state_dict
    assert state["roi_heads.box.predictor.cls_score.weight"][:, 0].tolist() == [3, 0, 1, 2]
    assert state["roi_heads.box.predictor.bbox_pred.bias"].tolist() == [0] * 4 + [1] * 12
    assert state["roi_heads.mask.predictor.mask_fcn_logits.bias"].tolist() == [0, 1, 1, 1]
    assert "roi_heads.box.feature_extractor.head.layer4.0.bn1.weight" in state


# Some of a checkpoint's classes


COCO_HEADS = {
    "roi_heads.box.predictor.cls_score.weight": 1,
    "roi_heads.box.predictor.bbox_pred.bias": 4,
    "roi_heads.mask.predictor.mask_fcn_logits.weight": 1,
}


def trained_on_coco(family, **meta):
    """A checkpoint of 80 classes whose head rows are their class's number."""
    state = dict(narrow_model(family, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 81, seed=1).state_dict())
    for name in COCO_HEADS.keys() & state.keys():
        rows = torch.arange(len(state[name])) // COCO_HEADS[name]
        state[name] = rows.float().view(-1, *[1] * (state[name].dim() - 1)).expand_as(state[name]).contiguous()
    return Loaded("a test", state, meta)


def test_rows_of_equal_classes_come_over():
    names = ("__background__", "car", "person", "unicorn", "toothbrush")
    model = narrow_model("mm_mask_fpn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_into(model, trained_on_coco("mm_mask_fpn"), class_names=names)
    assert report.classes == ["car", "person", "toothbrush"] and not report.reinitialised
    assert "taken over by name 3: car, person, toothbrush" in str(report)
    for name, per_class in COCO_HEADS.items():
        rows, initial = model.state_dict()[name].unflatten(0, (-1, per_class)), before[name].unflatten(0, (-1, per_class))
        assert [rows[i].unique().tolist() for i in (0, 1, 2, 4)] == [[0.0], [3.0], [1.0], [80.0]], name
        assert torch.equal(rows[3], initial[3]), "nobody knows a unicorn"


def test_names_in_the_checkpoint_win_and_unknown_classes_start_anew():
    names = ("__background__", "nut", "bolt", "screw", "nail")
    others = [f"other {i}" for i in range(78)]
    for meta in ({"extra": {"meta": {"CLASSES": ("nail", *others, "bolt")}}}, {"class_names": ("", "nail", *others, "bolt")}):
        model = narrow_model("mm_faster_giou")
        report = load_into(model, trained_on_coco("mm_faster_giou", **meta), class_names=names)
        rows = model.roi_heads.box.predictor.cls_score.weight
        assert report.classes == ["bolt", "nail"] and (rows[4] == 1).all() and (rows[2] == 80).all()
    for given in (names, ()):
        report = load_into(narrow_model("mm_faster_giou"), trained_on_coco("mm_faster_giou"), class_names=given)
        assert report.classes == [] and len(report.reinitialised) == 4


def test_coco_s_own_numbers_are_known():
    heads = {"roi_heads.box.predictor.cls_score.weight": torch.zeros(91, 2)}
    names = names_of(Loaded("torchvision", heads))
    assert (names[1], names[3], names[13], names[90], len(names)) == ("person", "car", "stop sign", "toothbrush", 91)
