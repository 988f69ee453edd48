"""detectron2's models: its names of their tensors, its norms, and heads that do not look at the class."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from models import narrow_model
from torch import nn

from maskrcnn_bench.config import load_config
from maskrcnn_bench.layers.blocks import FrozenBatchNorm2d, freeze_norms, group_norm
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.modeling.roi_heads.mask_head import own_masks
from maskrcnn_bench.weights import Loaded, convert, load_into, to_detectron2

# Of detectron2's own models: sha256 over the sorted lines "name (shape)".
NAMES = json.loads((Path(__file__).parent / "golden" / "detectron2_names.json").read_text())


@pytest.mark.parametrize("model", NAMES)
def test_every_tensor_is_called_and_shaped_as_there(model):
    with torch.device("meta"):
        ours = build_detection_model(load_config(f"detectron2/{model}.yaml")).state_dict()
        theirs = {name: tuple(value.shape) for name, value in to_detectron2(ours).items()}
    lines = sorted(f"{name} {shape}" for name, shape in theirs.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == NAMES[model], "\n".join(lines)


# Norms

HEAD_NORMS = [
    *("MODEL.GROUP_NORM.NUM_GROUPS", 4, "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR", "FPNXconv1fcFeatureExtractor"),
    *("MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM", 16, "MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
]


@pytest.mark.parametrize("family", ["d2_mask_fpn", "d2_cascade_mask_fpn"])
@pytest.mark.parametrize("pyramid", ["GN", ""])
def test_norms_in_pyramid_and_heads_there_and_back(family, pyramid):
    options = [*HEAD_NORMS, "MODEL.FPN.NORM", pyramid]
    state = narrow_model(family, *options, seed=1).state_dict()
    theirs = to_detectron2(state)
    stage = "2." if "cascade" in family else ""
    wanted = {
        f"roi_heads.box_head.{stage}conv4.norm.bias",
        f"roi_heads.box_head.{stage}fc1.weight",
        "roi_heads.mask_head.mask_fcn2.norm.weight",
    }
    assert wanted <= set(theirs) and ("backbone.fpn_output3.norm.weight" in theirs) == bool(pyramid)
    model = narrow_model(family, *options, seed=2)
    load_into(model, convert(theirs), strict=True)
    again = model.state_dict()
    for name, value in state.items():
        rows = 4 if "bbox_pred" in name else 1 if "mask_fcn_logits" in name else 0  # the background's, which it has no room for
        torch.testing.assert_close(again[name][rows:] if rows else again[name], value[rows:] if rows else value, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_keeps_its_digits_where_the_mean_outweighs_the_deviation(layout):
    torch.manual_seed(0)
    x = 3 + 0.1 * torch.randn(1, 8, 200, 300)
    norm = group_norm(8, 4)
    expected = nn.functional.group_norm(x.double(), 4)
    assert (norm(x.contiguous(memory_format=layout)) - expected).abs().max() < 2e-5


def test_a_frozen_norm_computes_what_the_norm_did_in_evaluation():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()))
    x = torch.randn(4, 3, 8, 8)
    layers(x)  # moves the statistics
    expected = layers.eval()(x)
    frozen = freeze_norms(layers).train()
    torch.testing.assert_close(frozen(x), expected)
    assert isinstance(frozen[1][0], FrozenBatchNorm2d)


@pytest.mark.parametrize(("dialect", "keeps"), [("detectron2", True), ("maskrcnn_benchmark", False)])
def test_frozen_stages_keep_their_statistics_where_the_project_does(dialect, keeps):
    options = ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 2, "MODEL.DIALECT", dialect]
    model = narrow_model("d2_mask_fpn", *options).train()
    body = model.backbone.body
    before = [norm.running_mean.clone() for norm in (body.stem.bn1, body.layer1[0].bn1, body.layer2[0].bn1)]
    model.backbone(torch.randn(2, 3, 64, 64))
    kept = [torch.equal(b, norm.running_mean) for b, norm in zip(before, (body.stem.bn1, body.layer1[0].bn1, body.layer2[0].bn1))]
    assert kept == [keeps, keeps, False]


# Masks of no class


def test_the_mask_of_each_class_or_of_any():
    labels = torch.tensor([1, 3])
    assert own_masks(torch.arange(8.0).view(2, 4, 1, 1), labels).flatten().tolist() == [1, 7]
    assert own_masks(torch.arange(4.0).view(2, 2, 1, 1), labels).flatten().tolist() == [1, 3]


def test_masks_of_no_class_have_one_output_in_detectron2():
    model = narrow_model("d2_mask_fpn", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True", "MODEL.CLS_AGNOSTIC_BBOX_REG", "True")
    state = model.state_dict()
    theirs = to_detectron2(state)
    name = "roi_heads.mask.predictor.mask_fcn_logits.weight"
    assert theirs["roi_heads.mask_head.predictor.weight"].shape[0] == 1 and theirs["roi_heads.box_predictor.bbox_pred.bias"].shape == (4,)
    again = convert(theirs)
    assert isinstance(again, Loaded) and torch.equal(again.state_dict[name][1], state[name][1])
