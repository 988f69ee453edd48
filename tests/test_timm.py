"""Trunks of timm: their maps, what is frozen, weights from a file, and what is said when something is missing."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from models import narrow_config, narrow_model, scene

from maskrcnn_bench.layers.blocks import fold_norms
from maskrcnn_bench.modeling.backbone.timm import TimmBody
from maskrcnn_bench.modeling.detector import build_detection_model

timm = pytest.importorskip("timm")
SMALL = ["MODEL.BACKBONE.CONV_BODY", "timm:resnet18", "MODEL.STATIC_SHAPES", True]


def test_a_detector_on_a_trunk_of_timm_trains():
    model = narrow_model("mask_fpn", *SMALL)
    images, targets = scene()
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values()) and not [n for n, p in model.named_parameters() if p.grad is None]
    assert model.backbone.fpn.fpn_inner4.weight.shape[1] == 512
    with torch.no_grad():
        assert "mask" in model.eval()(images).fields


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, []), (1, ["conv1", "bn1"]), (2, ["conv1", "bn1", "layer1"])])
def test_frozen_parts_keep_their_statistics(freeze_at, frozen):
    body = TimmBody("resnet18", freeze_at=freeze_at).train()
    fixed = [n for n, m in body.model.named_children() if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())]
    assert fixed == frozen
    before = body.model.bn1.running_mean.clone()
    features = body(torch.randn(2, 3, 64, 64))
    assert [f.shape[-1] for f in features] == [16, 8, 4, 2]
    assert torch.equal(before, body.model.bn1.running_mean) == bool(freeze_at)


def test_weights_come_from_a_file(tmp_path):
    trunk = timm.create_model("resnet18", pretrained=False)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    body = TimmBody("resnet18", str(tmp_path / "resnet18.pth"))
    assert torch.equal(body.model.layer4[1].conv2.weight, trunk.layer4[1].conv2.weight)


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match="has no model 'resnet51'; it has .*resnet"):
        TimmBody("resnet51")
    with pytest.raises(ValueError, match="needs maps at strides"):
        TimmBody("vit_tiny_patch16_224")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_detection_model(narrow_config("mask_fpn", *SMALL))


@pytest.mark.parametrize("name", ["regnetx_002", "cspdarknet53"])
def test_folding_keeps_the_activations_inside_norms(name):
    torch.manual_seed(0)
    body = TimmBody(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = body(x)
        for mine, theirs in zip(fold_norms(copy.deepcopy(body))(x), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
