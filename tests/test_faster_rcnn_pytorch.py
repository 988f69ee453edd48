"""faster-rcnn.pytorch: its result rows and settings, its checkpoints, and the small numbers that only it has."""

from __future__ import annotations

import ast
import importlib
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from models import narrow_model, scene
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data.build import make_data_loader, make_transforms
from maskrcnn_bench.data.collate import BatchCollator
from maskrcnn_bench.data.float_resize import NormalizeAndResize
from maskrcnn_bench.engine.inference import to_original
from maskrcnn_bench.modeling.box_coder import BoxCoder
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.modeling.pooler_types import POOLERS
from maskrcnn_bench.modeling.roi_heads.box_head import DetectionSelector
from maskrcnn_bench.modeling.rpn.rpn import RPN_BOX_NORMALIZERS, RPN_NORMALIZERS
from maskrcnn_bench.modeling.rpn.two_way_head import TwoWayRPNHead
from maskrcnn_bench.modeling.sampler import ReplacementSampler, Samples
from maskrcnn_bench.solver import learning_rate
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.utils.data_dependent import StaticGraphRecorder
from maskrcnn_bench.weights import Loaded, load_into
from maskrcnn_bench.weights.convert import convert

FOLDER = "faster_rcnn_pytorch"
IMAGES = {"voc07": 5011, "coco": 117266}  # that have objects; each comes with its mirror image
VG_EPOCH = 48612  # of 4 images; the released file's name ends with its last iteration, 48611

# Our file of each result row of document A, by (data, network, batch, epochs).
ROWS = {
    ("voc07", "VGG-16", 1, 6): "vgg16_voc07",
    ("voc07", "VGG-16", 4, 9): "vgg16_voc07_bs4",
    ("voc07", "VGG-16", 16, 10): "vgg16_voc07_bs16",
    ("voc07", "VGG-16", 24, 11): "vgg16_voc07_bs24",
    ("voc07", "Res-101", 1, 7): "res101_voc07",
    ("voc07", "Res-101", 4, 10): "res101_voc07_bs4",
    ("voc07", "Res-101", 16, 10): "res101_voc07_bs16",
    ("voc07", "Res-101", 24, 12): "res101_voc07_bs24",
    ("coco_ls", "VGG-16", 16, 6): "vgg16_coco_ls",
    ("coco_ls", "Res-101", 16, 6): "res101_coco_ls",
    ("coco_ls", "Res-101", 16, 10): "res101_coco_ls_10e",
    ("coco", "Res-101", 24, 6): "res101_coco",
    ("coco", "Res-101", 24, 10): "res101_coco_10e",
    ("vg", "VGG-16", 4, 20): "vgg16_vg",
}
TABLES = {"1)": "voc07", "2)": "coco_ls", "3)": "coco", "4)": "vg"}
# One cell of the document's text is empty: the decay of VGG-16 with 4 images on VOC. Its neighbours decay one epoch before the end.
LOST = {("voc07", "VGG-16", 4, 9): 8}


def rows(document: str):
    """(row, learning rate, decay in epochs) of every line of the document's four tables."""
    found, table = {}, None
    for line in document.splitlines():
        table = TABLES.get(line[:2], table)
        match = re.match(r"(VGG-16|Res-101)\s+\d+ (?:P100 )?\s*(\d+)\s+(\d+e-\d)\s*((?:\d+ +)?\d+) +[\d.]+ hr", line.replace("\xa0", " "))
        if match:
            numbers = [int(n) for n in match[4].split()]
            row = (table, match[1], int(match[2]), numbers[-1])
            found[row] = (float(match[3]), numbers[0] if len(numbers) == 2 else LOST[row])
    return found


def test_each_result_row_has_its_rate_steps_and_iterations(shared_dir):
    found = rows((shared_dir / "documents" / "A_faster-rcnn.pytorch.txt").read_text())
    assert set(found) == set(ROWS)
    for (data, net, batch, epochs), (rate, decay) in found.items():
        cfg = load_config(f"{FOLDER}/{ROWS[data, net, batch, epochs]}.yaml")
        epoch = VG_EPOCH if data == "vg" else 2 * IMAGES[data.removesuffix("_ls")] // batch
        solver = cfg.SOLVER
        assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MAX_ITER) == (rate, batch, epochs * epoch)
        shape = (solver.MAX_ITER, solver.STEPS, solver.GAMMA, solver.WARMUP_FACTOR, solver.WARMUP_ITERS)
        # The rate falls when an epoch begins whose number is a multiple of decay + 1.
        expected = rate
        for number in range(1, epochs + 1):
            expected *= 0.1 if number % (decay + 1) == 0 else 1
            for iteration in ((number - 1) * epoch, number * epoch - 1):
                assert learning_rate(iteration, rate, *shape) == pytest.approx(expected), (data, net, number)
        assert cfg.MODEL.BACKBONE.CONV_BODY == ("VGG-16" if net == "VGG-16" else "R-101-C4")
        assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlignLegacy"
        assert cfg.INPUT.MIN_SIZE_TEST == (800 if data == "coco_ls" else 600)
        assert cfg.INPUT.MAX_SIZE_TEST == (1200 if data == "coco_ls" else 1000)
        assert cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES == {"voc07": 21, "coco": 81, "coco_ls": 81, "vg": 2501}[data]
        assert len(cfg.MODEL.RPN.ANCHOR_SIZES) == (3 if data == "voc07" else 4)
        assert cfg.INPUT.ASPECT_RATIO_RANGE == (0.5, 2.0)


def test_imagenet_det_has_its_classes_and_reader(tmp_path):
    classes = "".join(f"n{number:08d} {number} thing {number}\n" for number in range(1, 201))
    xml = "<annotation><size><width>50</width><height>40</height></size><object><name>n00000200</name><bndbox><xmin>3</xmin><ymin>4</ymin>"
    for split in ("train", "val"):
        for folder in ("Annotations", "Data"):
            (tmp_path / "imagenet/ILSVRC" / folder / "DET" / split).mkdir(parents=True)
        (tmp_path / "imagenet/ILSVRC/ImageSets/DET").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"imagenet/ILSVRC/ImageSets/DET/{split}.txt").write_text("a 1\n")
        end = "<xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
        (tmp_path / f"imagenet/ILSVRC/Annotations/DET/{split}/a.xml").write_text(xml + end)
        Image.new("RGB", (50, 40)).save(tmp_path / f"imagenet/ILSVRC/Data/DET/{split}/a.JPEG")
    (tmp_path / "imagenet/map_det.txt").write_text(classes)
    cfg = load_config(f"{FOLDER}/res101_imagenet.yaml", ["DATASETS.ROOT", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"])
    images, targets, _ = next(iter(make_data_loader(cfg)))
    assert targets.fields["labels"].tolist() == [[200]] and cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES == 201
    assert images.image_sizes == [(600, 750)] and len(make_data_loader(cfg, is_train=False)[0].dataset) == 1


@pytest.mark.parametrize("net", ["vgg16", "res50", "res101", "res152"])
@pytest.mark.parametrize("data", ["voc07", "voc0712", "coco", "vg"])
def test_every_network_comes_with_every_data_set(net, data):
    cfg = load_config(f"{FOLDER}/{net}_{data}.yaml")
    assert cfg.MODEL.DIALECT == FOLDER and len(cfg.DATASETS.TRAIN) == {"voc07": 2, "voc0712": 4, "coco": 2, "vg": 1}[data]
    with torch.device("meta"):
        model = build_detection_model(cfg)
    frozen = {name.rsplit(".", 2)[0] for name, p in model.named_parameters() if not p.requires_grad}
    if net == "vgg16":
        assert {name for name, p in model.named_parameters() if not p.requires_grad and name.endswith("weight")} == {
            f"backbone.body.features.{n}.weight" for n in (0, 2, 5, 7)
        }
    else:
        assert {name.split(".")[2] for name in frozen | {"backbone.body.stem"}} == {"stem", "layer1"}


def test_settings_are_those_of_its_files(shared_dir):
    facts = json.loads((shared_dir / "facts" / "faster_rcnn_pytorch.json").read_text())
    modes = {"align": "ROIAlignLegacy", "crop": "ROICropMax"}
    for file, ours in (("vgg16", "vgg16_voc07"), ("res101", "res101_voc07"), ("res50", "res50_voc07"), ("res101_ls", "res101_coco_ls")):
        theirs = {f"TRAIN.{k}": v for k, v in facts["yml"][f"{file}.yml"]["TRAIN"].items()}
        theirs |= {f"TEST.{k}": v for k, v in facts["yml"][f"{file}.yml"]["TEST"].items()}
        theirs |= {k: v for k, v in facts["yml"][f"{file}.yml"].items() if not isinstance(v, dict)}

        def value(key, theirs=theirs):
            return theirs[key] if key in theirs else ast.literal_eval(facts["defaults"][key])

        cfg = load_config(f"{FOLDER}/{ours}.yaml")
        assert value("TRAIN.WEIGHT_DECAY") == cfg.SOLVER.WEIGHT_DECAY and cfg.SOLVER.WEIGHT_DECAY_BIAS == 0
        assert cfg.SOLVER.BIAS_LR_FACTOR == (2 if value("TRAIN.DOUBLE_BIAS") else 1)
        assert value("TRAIN.BATCH_SIZE") == cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        assert value("TRAIN.RPN_BATCHSIZE") == cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE
        assert modes[value("POOLING_MODE")] == cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE
        assert value("POOLING_SIZE") == cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        assert value("TEST.RPN_POST_NMS_TOP_N") == cfg.MODEL.RPN.POST_NMS_TOP_N_TEST
        assert value("TRAIN.RPN_POST_NMS_TOP_N") == cfg.MODEL.RPN.POST_NMS_TOP_N_TRAIN
        assert value("TEST.NMS") == cfg.MODEL.ROI_HEADS.NMS and value("TRAIN.MOMENTUM") == cfg.SOLVER.MOMENTUM
        assert cfg.SOLVER.CLIP_GRADIENTS == (10.0 if file == "vgg16" else 0.0)


# Checkpoints


def their_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of one of our models as faster-rcnn.pytorch calls them, written apart from the converter's table."""
    stages = {"stem.conv1": "RCNN_base.0", "stem.bn1": "RCNN_base.1"}
    stages |= {f"layer{stage}": f"RCNN_base.{stage + 3}" for stage in (1, 2, 3)}
    words = {f"backbone.body.{ours}.": f"{theirs}." for ours, theirs in stages.items()}
    words |= {"roi_heads.box.feature_extractor.head.layer4.": "RCNN_top.0.", "backbone.body.features.": "RCNN_base."}
    words |= {"roi_heads.box.feature_extractor.fc6.": "RCNN_top.0.", "roi_heads.box.feature_extractor.fc7.": "RCNN_top.3."}
    words |= {"rpn.head.conv.": "RCNN_rpn.RPN_Conv.", "rpn.head.cls_logits.": "RCNN_rpn.RPN_cls_score."}
    words |= {"rpn.head.bbox_pred.": "RCNN_rpn.RPN_bbox_pred.", "roi_heads.box.predictor.cls_score.": "RCNN_cls_score."}
    words |= {"roi_heads.box.predictor.bbox_pred.": "RCNN_bbox_pred."}
    out = {}
    for name, value in model.state_dict().items():
        start = next((word for word in words if name.startswith(word)), None)
        if start:
            out[words[start] + name.removeprefix(start)] = value.clone()
    return out


@pytest.mark.parametrize("family", ["jw_vgg", "jw_r50"])
def test_its_checkpoints_load_completely(family):
    first, second = narrow_model(family, seed=1), narrow_model(family, seed=2)
    report = load_into(second, convert(their_names(first)), strict=True)
    assert "faster-rcnn.pytorch" in report.source and "BGR" in report.expects and not report.missing
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_one_box_for_all_classes_gets_its_unused_half():
    first, second = (narrow_model("jw_vgg", "MODEL.CLS_AGNOSTIC_BBOX_REG", True, seed=seed) for seed in (1, 2))
    state = their_names(first)
    state["RCNN_bbox_pred.weight"], state["RCNN_bbox_pred.bias"] = state["RCNN_bbox_pred.weight"][4:], state["RCNN_bbox_pred.bias"][4:]
    load_into(second, convert(state), strict=True)
    ours, theirs = second.roi_heads.box.predictor.bbox_pred, first.roi_heads.box.predictor.bbox_pred
    assert torch.equal(ours.weight[4:], theirs.weight[4:]) and not ours.weight[:4].any()


CAFFE = ("True", [102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0])
PYTORCH = ("False", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("bgr, mean, std", [CAFFE, PYTORCH], ids=["caffe", "pytorch"])
@pytest.mark.parametrize("net", ["vgg16", "res101"])
def test_classifiers_give_the_features_of_their_reference(net, bgr, mean, std):
    """The weights go through a converter, the photograph through our normalisation; the reference has both written out."""
    torch.manual_seed(0)
    reference = torchvision.models.vgg16().features[:-1] if net == "vgg16" else torchvision.models.resnet101()
    state = {f"features.{k}": v for k, v in reference.state_dict().items()} if net == "vgg16" else reference.state_dict()
    opts = ["INPUT.TO_BGR255", bgr, "INPUT.PIXEL_MEAN", str(mean), "INPUT.PIXEL_STD", str(std), "MODEL.WEIGHT", ""]
    stride_in_1x1 = net == "res101" and bgr == "True"
    opts += ["MODEL.RESNETS.STRIDE_IN_1X1", str(stride_in_1x1), "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM", "8"]
    model = build_detection_model(load_config(f"{FOLDER}/{net}_voc07.yaml", opts)).eval()
    report = load_into(model, Loaded(**vars(convert(state))))
    assert not [name for name in report.missing if name.startswith("backbone.") or ".head.layer4" in name]
    image = torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = image.flip(1).float() if bgr == "True" else image.float() / 255
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        ours = model.backbone(model.normalizer(to_image_list(image)))[0]
        theirs = reference(pixels) if net == "vgg16" else resnet_features(reference.eval(), pixels, stride_in_1x1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def resnet_features(net, x, stride_in_1x1):
    """torchvision's ResNet up to its third stage, with the pooling of faster-rcnn.pytorch, and Caffe's place for strides."""
    for stage in (net.layer2, net.layer3):
        if stride_in_1x1:
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    x = F.max_pool2d(F.relu(net.bn1(net.conv1(x))), 3, 2, 0, ceil_mode=True)
    return net.layer3(net.layer2(net.layer1(x)))


@pytest.mark.parametrize(
    "config, overrides, expected",
    [
        ("cfgs/vgg16.yml, --net vgg16", {}, ("ROIAlignLegacy", 300, 1000)),
        ("cfgs/res50.yml, --net res50", {}, ("ROICropMax", 300, 1000)),
        ("cfgs/res50.yml, --net res50", {"CROP_RESIZE_WITH_MAX_POOL": False}, ("ROICrop", 300, 1000)),
        ("cfgs/res101.yml, --net res101", {"POOLING_MODE": "crop"}, ("ROICrop", 300, 1000)),
        ("cfgs/res101.yml, --net res101", {"POOLING_MODE": "pool", "TEST.SCALES": [200]}, ("ROIPool", 300, 1000)),
        ("cfgs/res101_ls.yml, --net res101", {"TEST.RPN_POST_NMS_TOP_N": 1000}, ("ROIAlignLegacy", 1000, 1200)),
        ("cfgs/res101_ls.yml", {"EXP_DIR": "x", "CUDA": False, "MAX_NUM_GT_BOXES": 50}, ("ROIAlignLegacy", 300, 1200)),
    ],
)
def test_recorded_settings_become_ours(recorded, config, overrides, expected):
    """The pooler follows from its file and the overrides together; classes, scales and the kind of boxes from the weights."""
    cfg = recorded(config, overrides)
    assert (cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, cfg.MODEL.RPN.POST_NMS_TOP_N_TEST, cfg.INPUT.MAX_SIZE_TEST) == expected
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES, len(cfg.MODEL.RPN.ANCHOR_SIZES), cfg.MODEL.CLS_AGNOSTIC_BBOX_REG) == (81, 4, True)
    assert cfg.INPUT.MIN_SIZE_TEST == (200 if "TEST.SCALES" in overrides else 600)


def test_what_its_programs_set_for_coco_and_visual_genome_becomes_ours(recorded):
    programs = {"ANCHOR_SCALES": [2, 8, 16, 32], "ANCHOR_RATIOS": [0.5, 1, 4], "MAX_NUM_GT_BOXES": 50, "TRAIN.RPN_NMS_THRESH": 0.6}
    rpn = {"TRAIN.RPN_POSITIVE_OVERLAP": 0.6, "TRAIN.RPN_NEGATIVE_OVERLAP": 0.2, "TEST.RPN_NMS_THRESH": 0.8, "TEST.RPN_MIN_SIZE": 16}
    cfg = recorded("cfgs/vgg16.yml, --net vgg16", {**programs, **rpn, "POOLING_SIZE": 5, "TRAIN.FG_FRACTION": 0.5})
    keys = cfg.MODEL.RPN
    assert (keys.ANCHOR_SIZES, keys.ASPECT_RATIOS) == ((32, 128, 256, 512), (0.5, 1, 4))
    assert (keys.FG_IOU_THRESHOLD, keys.BG_IOU_THRESHOLD, keys.NMS_THRESH, keys.MIN_SIZE) == (0.6, 0.2, 0.8, 0)
    assert (cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION) == (5, 0.5)


def test_settings_without_a_network_are_named(recorded):
    with pytest.raises(ValueError, match='expected "cfgs/FILE.yml" or "--net NET" in it, got .pascal_voc.'):
        recorded("pascal_voc", {})


@pytest.fixture
def recorded(repository, monkeypatch, tmp_path):
    """(what it records of its configuration, overrides) to our configuration."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    return partial(configuration_of, tmp_path)


def configuration_of(folder, config, overrides):
    shapes = {"RCNN_rpn.RPN_cls_score.weight": [24, 512, 1, 1], "RCNN_cls_score.weight": [81, 8], "RCNN_bbox_pred.weight": [4, 8]}
    thresholds = {"score": 0.05, "rpn_post_nms_test": 300, "detections_per_image": None}
    tensors = [[name, shape, "float32", "normal", 1.0] for name, shape in shapes.items()]
    spec = {"short": "jw", "peer": "", "config": config, "overrides": overrides, "thresholds": thresholds, "tensors": tensors}
    (folder / "spec.json").write_text(json.dumps(spec))
    np.savez(folder / "expected.npz")
    fixture = importlib.import_module("parity_fixture").Fixture(folder)
    return load_config(fixture.config_file(), fixture.options())


# Numbers


def test_two_scores_and_their_difference_are_one_loss():
    """Softmax cross entropy over (background, object) against the sigmoid of the difference: values and gradients."""
    torch.manual_seed(0)
    head = TwoWayRPNHead(4, 3, 8)
    feature, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 2, (2, 3, 5, 6))
    (objectness,), _ = head([feature])
    F.binary_cross_entropy_with_logits(objectness, labels.float()).backward()
    gradients = [p.grad.clone() for p in (head.cls_logits.weight, head.conv.weight)]
    head.zero_grad()
    scores = head.scores([feature])[0]
    loss = F.cross_entropy(scores.unflatten(1, (2, 3)).transpose(1, 2).flatten(0, 1), labels.flatten(0, 1))
    loss.backward()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(objectness, labels.float()))
    torch.testing.assert_close([head.cls_logits.weight.grad, head.conv.weight.grad], gradients)
    probability = scores.unflatten(1, (2, 3)).softmax(1)[:, 1]
    torch.testing.assert_close(objectness.sigmoid(), probability)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=1, max_size=40), st.integers(0, 2**40))
def test_sampling_with_replacement(labels, key):
    sampler = ReplacementSampler(12, 0.25, "box")
    samples = sampler(torch.tensor([labels]), torch.tensor([key]))
    positives, negatives = [i for i, v in enumerate(labels) if v > 0], [i for i, v in enumerate(labels) if v == 0]
    inds, chosen = samples.inds[0].tolist(), samples.positive[0].tolist()
    assert len(inds) == 12 and samples.valid.all() == samples.valid.any() == bool(positives or negatives)
    if not positives and not negatives:
        return
    first = [i for i, p in zip(inds, chosen, strict=True) if p]
    rest = [i for i, p in zip(inds, chosen, strict=True) if not p]
    assert set(first) <= set(positives) and set(rest) <= set(negatives) and chosen == sorted(chosen, reverse=True)
    if negatives:
        assert len(first) == min(3, len(positives)) == len(set(first))
    else:
        assert len(first) == 12


def test_every_negative_has_its_chance():
    sampler = ReplacementSampler(64, 0.25, "box")
    labels = torch.tensor([[1, 0, 0, -1, 0, 0]]).expand(50, -1)
    samples = sampler(labels, torch.arange(50) * 7919)
    counts = torch.bincount(samples.inds[~samples.positive], minlength=6)
    assert counts[[0, 3]].tolist() == [0, 0] and counts[[1, 2, 4, 5]].min() > 0.8 * counts.max()


def test_losses_of_the_boxes_are_divided_by_the_last_image():
    valid = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    samples = Samples(torch.zeros(2, 6, dtype=torch.int64), valid & False, valid)
    assert RPN_NORMALIZERS["last_image"](samples, 6) == 8 and RPN_BOX_NORMALIZERS["last_image"](samples, 6) == 2 * 2


def test_suppression_counts_pixels_of_the_original():
    """Two boxes of 4 x 4 and 4 x 8 pixels overlap more when a pixel more counts for less."""
    boxes = torch.tensor([[[[0.0, 0, 3, 3], [0, 0, 3, 7]]]])
    scores = torch.tensor([[[0.9, 0.8]]])
    select = DetectionSelector(BoxCoder((1, 1, 1, 1), 1, 0.0, (-1, 1)), 0.0, 0.45, 10, 0, 0.0, pixel=1, nms_original=True).select
    sizes = torch.tensor([[50.0, 50.0]])
    assert select(boxes, scores, sizes).counts == [1]  # 16 / 32
    assert select(boxes, scores, sizes, torch.tensor([[0.1, 0.1]])).counts == [2]  # 31 * 31 / (31 * 71)


def test_missing_proposals_are_boxes_of_zeros_in_testing_only():
    model = narrow_model("jw_vgg", "MODEL.RPN.POST_NMS_TOP_N_TEST", 300)
    images, targets = scene()
    with torch.no_grad():
        features = model.backbone(model.normalizer(images))
        tested, _ = model.rpn(images, features)
        trained, _ = model.rpn(images, features, targets, images.keys)
    assert tested.boxes.shape == (2, 300, 4) and tested.valid.all() and not tested.boxes[:, -1].any()
    assert not trained.valid.all()


def test_dropout_follows_image_and_iteration():
    images, targets = scene()
    model = narrow_model("jw_vgg")
    once, again = model(images, targets), model(images, targets)
    assert torch.equal(once["loss_classifier"], again["loss_classifier"])
    extractor = model.roi_heads.box.feature_extractor
    extractor.dropout = 0.0
    assert not torch.equal(once["loss_classifier"], model(images, targets)["loss_classifier"])
    extractor.dropout = 1 - 1e-6
    assert model(images, targets)["loss_box_reg"].isfinite()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images, targets, True)[0].get_field("scores"), model(images).get_field("scores"))


@pytest.mark.parametrize("kind", POOLERS)
@pytest.mark.parametrize("family", ["faster_fpn", "jw_r50"])
def test_every_pooler_trains_in_one_static_graph(family, kind):
    model = narrow_model(family, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", kind, "MODEL.STATIC_SHAPES", True)
    assert type(model.roi_heads.box.feature_extractor.pooler) is POOLERS[kind]
    images, targets = scene()
    with StaticGraphRecorder() as recorder:
        losses = model(images, targets)
        sum(losses.values()).backward()
    assert not recorder.data_dependent and all(v.isfinite() for v in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if kind == "DeformPSROIPool":
        assert model.roi_heads.box.feature_extractor.pooler.offset_fc[4].weight.grad.any()


@pytest.mark.parametrize("kind", POOLERS)
def test_nothing_crosses_between_host_and_device(kind):
    """Losses and detections of tensors that pretend to be on a GPU, and raise on whatever depends on their values."""
    images, targets = scene()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = narrow_model("jw_vgg", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", kind, "MODEL.STATIC_SHAPES", True)
        images, targets = (x._map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda")) for x in (images, targets))
        images.scales = torch.empty(2, device="cuda")
        with StaticGraphRecorder() as recorder:
            losses = model(images, targets)
            model.eval()
            with torch.no_grad():
                detections = model(images)
    assert not recorder.copies and not recorder.data_dependent
    assert {loss.device.type for loss in losses.values()} == {"cuda"} and detections.boxes.device.type == "cuda"


def test_unknown_poolers_are_named():
    with pytest.raises(ValueError, match="POOLER_TYPE"):
        narrow_model("faster_fpn", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIWarp")


# Images


@pytest.mark.parametrize("size, factor", [((640, 423), 200 / 423), ((90, 300), 400 / 300), ((31, 57), 200 / 31)])
def test_resizing_is_bilinear_at_the_places_of_the_factor(size, factor):
    """OpenCV's answer is among the recorded outputs of the reference; this one is numpy's, side by side."""
    mean = [102.9801, 115.9465, 122.7717]
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    resize = NormalizeAndResize(200, 400, mean, [1.0, 1.0, 1.0], bgr255=True)
    assert resize.factor(size) == pytest.approx(factor)
    ours, _ = resize(Image.fromarray(pixels))
    theirs = pixels[:, :, ::-1].astype("float64") - np.asarray(mean)
    for axis in (0, 1):
        places = (np.arange(round(size[1 - axis] * factor)) + 0.5) / factor - 0.5
        theirs = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, theirs)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).permute(2, 0, 1).float(), rtol=0, atol=5e-5)


def test_boxes_go_there_and_back_by_one_factor():
    cfg = load_config(f"{FOLDER}/vgg16_voc07.yaml", ["INPUT.MIN_SIZE_TEST", "200"])
    target = BoxList([[10.0, 20, 630, 400]], (640, 423))
    target.add_field("labels", torch.ones(1, dtype=torch.int64))
    image, resized = make_transforms(cfg, is_train=False)(Image.new("RGB", (640, 423)), target)
    assert image.shape == (3, 200, 303) and image.dtype == torch.float32
    torch.testing.assert_close(resized.bbox, target.bbox * (200 / 423))
    images, batch, _ = BatchCollator()([(image, resized, 0, 5)])
    assert images.scales.tolist() == pytest.approx([200 / 423]) and "resize_factor" not in batch.lists
    back = to_original(next(iter(batch)), {"width": 640, "height": 423}, scale=images.scales[0].item())
    torch.testing.assert_close(back.bbox, target.bbox, rtol=1e-5, atol=1e-3)
    assert back.size == (640, 423)
