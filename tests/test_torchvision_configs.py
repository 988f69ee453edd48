"""torchvision's configurations here: files in both directions, classifiers for trunks, MobileNetV3, mixed precision."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision import models
from torchvision.models import detection

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data.datasets.toy import generate
from maskrcnn_bench.engine.launch import train_main
from maskrcnn_bench.modeling.backbone.mobilenet import MobileNetV3Body
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.utils.checkpoint import read_checkpoint
from maskrcnn_bench.weights import convert, to_torchvision

CONFIG = "configs/torchvision/{}.yaml"


# Files


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_models_go_to_torchvision_and_back(name):
    ours = build_detection_model(load_config(CONFIG.format(name)))
    kind = convert(to_torchvision(ours.state_dict()))
    assert kind.kind.startswith("torchvision (FPN")
    peer = getattr(detection, name)(weights=None, weights_backbone=None)
    missing, unexpected = peer.load_state_dict(to_torchvision(ours.state_dict()), strict=False)
    assert not unexpected and all(entry.endswith("num_batches_tracked") for entry in missing)
    for key, value in ours.state_dict().items():
        if "cell_anchors" not in key:
            assert torch.equal(kind.state_dict[key], value), key


@pytest.mark.parametrize(
    ("classifier", "config"),
    [
        ("mobilenet_v3_large", "torchvision/fasterrcnn_mobilenet_v3_large_fpn.yaml"),
        ("resnet50", "torchvision/fasterrcnn_resnet50_fpn_v2.yaml"),
        ("resnext101_32x8d", "mmdetection/faster-rcnn_x101-32x8d_fpn_ms-3x_coco.yaml"),
        ("vgg16", "faster_rcnn_pytorch/vgg16_voc07.yaml"),
    ],
)
def test_classifiers_start_trunks(classifier, config):
    with torch.device("meta"):
        theirs = getattr(models, classifier)().state_dict()
        ours = build_detection_model(load_config(f"configs/{config}")).state_dict()
    loaded = convert({name: torch.zeros(()).expand(value.shape) for name, value in theirs.items()})
    trunk = {name: value.shape for name, value in ours.items() if name.startswith("backbone.body.") and "tracked" not in name}
    found = {name: value.shape for name, value in loaded.state_dict.items() if name.startswith("backbone.body.") and "tracked" not in name}
    assert loaded.meta["backbone_only"] and found == trunk
    assert set(loaded.meta["unused"].values()) <= {"ImageNet classifier"}


def test_an_unknown_norm_of_the_trunk_is_named():
    with pytest.raises(ValueError, match="MODEL.RESNETS.NORM: MobileNetV3 has one of .*got 'GN'"):
        MobileNetV3Body("GN")


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, 0), (1, 2), (3, 7), (6, 17)])
def test_the_first_stages_of_mobilenet_stay_fixed(freeze_at, frozen):
    """torchvision trains the last 3 of 6 stages, which are layers 7 to 16."""
    body = MobileNetV3Body("BN", freeze_at)
    fixed = [not any(p.requires_grad for p in layer.parameters()) for layer in body.features]
    assert fixed == [i < frozen for i in range(17)]


NARROW = """
_BASE_: {base}
MODEL:
  DEVICE: cpu
  WEIGHT: ""
  BACKBONE: {{FREEZE_CONV_BODY_AT: 0}}
  RESNETS: {{NORM: GN, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 32, BACKBONE_OUT_CHANNELS: 16}}
  GROUP_NORM: {{NUM_GROUPS: 4}}
  RPN: {{PRE_NMS_TOP_N_TRAIN: 100, POST_NMS_TOP_N_TRAIN: 50}}
  ROI_BOX_HEAD: {{MLP_HEAD_DIM: 16}}
INPUT: {{MIN_SIZE_TRAIN: [64]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 4, STEPS: [3], WARMUP_ITERS: 2, LOG_PERIOD: 1}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repository):
    """The recipe in mixed precision for four steps on the CPU, once a DTYPE: {DTYPE: the lines of the log, the weights}."""
    folder = tmp_path_factory.mktemp("amp")
    generate(folder / "toy", 12, 5, 64)
    base = repository / CONFIG.format("fasterrcnn_resnet50_fpn_amp")
    (folder / "narrow.yaml").write_text(NARROW.format(base=base))
    out = {}
    for dtype in ("", "float32", "float16"):
        words = ["--config-file", str(folder / "narrow.yaml"), "--data", str(folder / "toy"), "--output", str(folder / f"run{dtype}")]
        assert train_main([*words, "--skip-test", *(["DTYPE", dtype] if dtype else [])]) == 0
        log = [json.loads(line) for line in (folder / f"run{dtype}" / "metrics.jsonl").read_text().splitlines()]
        out[dtype] = [line["loss"] for line in log if "loss" in line], read_checkpoint(folder / f"run{dtype}" / "model_final.pth")
    return out


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_mixed_precision_trains(runs, dtype):
    """bfloat16 is the configuration's own; float16 brings a loss scale, whose first steps overflow and are skipped."""
    losses, checkpoint = runs[dtype]
    exact = runs["float32"][0]
    assert losses[0] == pytest.approx(exact[0], rel=0.01) and losses[0] != exact[0] and losses[-1] < losses[0]
    if dtype:
        assert 0 < checkpoint["scaler"]["scale"] < 65536
    else:
        assert losses == pytest.approx(exact, rel=0.05) and not checkpoint.get("scaler")
    assert {value.dtype for value in checkpoint["model"].values()} <= {torch.float32, torch.int64}
    assert load_config(CONFIG.format("fasterrcnn_resnet50_fpn_amp")).DTYPE == "bfloat16"
