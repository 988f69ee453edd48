"""The verb `convert` and the program that cuts heads: what they write, what they report, and that faults leave nothing behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch
from models import C4_WIDTH, NARROW, narrow_model
from test_weights import caffe2_name, state_of

from maskrcnn_bench import cli
from maskrcnn_bench.weights import load_into, load_weights, to_detectron2, to_torchvision
from maskrcnn_bench.weights.command import convert_file


@pytest.fixture
def detectron(tmp_path):
    """A narrow Mask R-CNN as Detectron wrote it, with a tensor that nobody knows."""
    blobs = {caffe2_name(n): v.numpy() for n, v in state_of(narrow_model("mask_fpn")).items() if caffe2_name(n)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": {**blobs, "fc7_w_momentum": blobs["fc7_w"], "odd_w": blobs["fc7_b"]}}, protocol=2))
    return path


def overrides() -> list[str]:
    width = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 16]
    return [str(word) for word in [*NARROW, *width]]


def test_detectron_to_our_file_with_a_report(detectron, tmp_path, capsys):
    target = tmp_path / "ours.pth"
    assert cli.main(["convert", str(detectron), str(target)]) == 0
    out = capsys.readouterr().out
    assert "Detectron (FPN)" in out and "odd_w (no counterpart in this library)" in out and "fc7_w_momentum (state of the optimizer)" in out
    assert "images as BGR" in out and f"wrote {target}" in out
    first, second = narrow_model("mask_fpn", seed=1), narrow_model("mask_fpn", seed=2)
    load_into(first, detectron)
    assert not load_into(second, target, strict=True).renamed
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_strict_refuses_what_has_no_place_and_writes_nothing(detectron, tmp_path, capsys):
    assert cli.main(["convert", str(detectron), str(tmp_path / "ours.pth"), "--strict"]) == 1
    assert "1 tensors have no place (strict):\n  odd_w: no counterpart" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model_final.pkl"]


def test_with_a_config_shapes_are_checked_and_heads_re_initialised(detectron, tmp_path, capsys):
    target = tmp_path / "ours.pth"
    words = ["convert", str(detectron), str(target), "--config-file", "e2e_mask_rcnn_R_50_FPN_1x.yaml", *overrides()]
    assert cli.main([*words, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "3"]) == 0
    assert "re-initialised 6: roi_heads.box.predictor.cls_score.weight (model 3x32, file 5x32)" in capsys.readouterr().out
    report = load_into(narrow_model("mask_fpn", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 3), target, strict=True)
    assert len(report.loaded) == report.total
    assert cli.main([*words, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "3", "--strict"]) == 1


@pytest.mark.parametrize("family", ["mask_fpn", "faster_dcn"])
def test_to_detectron2_and_back(family, tmp_path):
    model = narrow_model(family)
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    convert_file(tmp_path / "ours.pth", tmp_path / "theirs.pth", "detectron2")
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert set(content) == {"model", "__author__", "matching_heuristics"} and set(content["model"]) == set(
        to_detectron2(model.state_dict())
    )
    if family == "faster_dcn":
        assert (
            "backbone.bottom_up.res3.0.conv2_offset.bias" in content["model"]
            and "backbone.bottom_up.res3.0.conv2.weight" in content["model"]
        )
    other = narrow_model(family, seed=9)
    assert not load_into(other, tmp_path / "theirs.pth").reinitialised
    for name, value in other.state_dict().items():  # the background has neither boxes nor masks there
        rows = 4 if "predictor.bbox_pred" in name else 1 if "mask_fcn_logits" in name else 0
        assert torch.equal(value[rows:] if rows else value, model.state_dict()[name][rows:] if rows else model.state_dict()[name]), name


def test_to_torchvision_loads_in_torchvision(tmp_path):
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    torch.save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    convert_file(tmp_path / "theirs.pth", tmp_path / "ours.pth")
    convert_file(tmp_path / "ours.pth", tmp_path / "back.pth", "torchvision")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back)
    assert to_torchvision(load_weights(tmp_path / "ours.pth").state_dict).keys() == back.keys()


def test_faults_are_one_line_and_leave_nothing(detectron, tmp_path, capsys):
    for words, message in {
        (str(detectron), str(tmp_path / "a.pkl")): "expected a name that ends in .pth",
        (str(detectron), str(tmp_path / "none" / "a.pth")): "there is no folder",
        (str(tmp_path / "missing.pkl"), str(tmp_path / "a.pth")): "does not exist",
    }.items():
        assert cli.main(["convert", *words]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    torch.save({"model": narrow_model("mask_gn").state_dict()}, tmp_path / "gn.pth")
    assert cli.main(["convert", str(tmp_path / "gn.pth"), str(tmp_path / "a.pth"), "--to", "torchvision"]) == 1
    assert "has no name for" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "gn.pth"), str(tmp_path / "gn.pth")]) == 1
    assert "would replace the one it is made from" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gn.pth", "model_final.pkl"]


class Trap:
    """A pickle of it makes a folder where it is loaded without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_bad_weights_are_one_message_and_nothing_is_written(tmp_path, capsys):
    """With and without a configuration, for every kind of bad input."""
    state = narrow_model("faster_fpn").state_dict()
    nan = {**state, "rpn.head.conv.weight": torch.full_like(state["rpn.head.conv.weight"], torch.nan)}
    trap = tmp_path / "trap"
    sources = {
        "nan.pth": ({"model": nan}, "1 tensors hold NaN or infinity: rpn.head.conv.weight"),
        "unknown.pth": ({"encoder.0.qkv": torch.ones(3)}, "1 tensors of an unknown kind (encoder.0.qkv"),
        "empty.pth": ({"model": {}, "epoch": 3}, "expected named tensors"),
        "trap.pth": ({"model": state, "x": Trap(trap)}, "holds objects that are not weights"),
    }
    for name, (content, _) in sources.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"model": {}, "x": Trap(trap)}, protocol=2))
    (tmp_path / "page.pth").write_bytes(b"<html><body>Quota exceeded")
    torch.save({"model": state}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-900])
    said = {name: words for name, (_, words) in sources.items()}
    said |= {"trap.pkl": "mkdir", "page.pth": "is a web page, not weights", "cut.pth": "is truncated or damaged"}
    before = sorted(p.name for p in tmp_path.iterdir())
    config = ["--config-file", "e2e_faster_rcnn_R_50_FPN_1x.yaml", *overrides()]
    for name, words in said.items():
        for extra in ([], config):
            assert cli.main(["convert", str(tmp_path / name), str(tmp_path / "out.pth"), *extra]) == 1
            error = capsys.readouterr().err
            assert words in error and name in error and error.count("\n") <= 2, error
    # Whole weights of another architecture than the configuration's.
    other = ["--config-file", "e2e_faster_rcnn_R_50_C4_1x.yaml", *map(str, [*NARROW, *C4_WIDTH])]
    assert cli.main(["convert", str(tmp_path / "whole.pth"), str(tmp_path / "out.pth"), *other]) == 1
    assert "Do the weights belong to another architecture than the configuration?" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before and not trap.exists()


def test_trimming_cuts_the_named_heads(detectron, tmp_path, repository):
    target = tmp_path / "trimmed.pth"
    command = [
        sys.executable,
        str(repository / "tools" / "trim_detectron_model.py"),
        "--pretrained_path",
        str(detectron),
        "--save_path",
        str(target),
    ]
    done = subprocess.run([*command, "--heads", "box", "mask"], capture_output=True, text=True)
    assert done.returncode == 0 and "cut roi_heads.box.predictor" in done.stdout
    model = narrow_model("mask_fpn", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 3)
    report = load_into(model, target)
    assert not report.reinitialised and not report.unused
    assert {name.rsplit(".", 1)[0] for name in report.missing} == {
        "roi_heads.box.predictor.cls_score", "roi_heads.box.predictor.bbox_pred", "roi_heads.mask.predictor.mask_fcn_logits",
    }  # fmt: skip
    assert torch.equal(model.backbone.body.stem.conv1.weight, load_weights(detectron).state_dict["backbone.body.stem.conv1.weight"])
    done = subprocess.run([*command, "--heads", "keypoint"], capture_output=True, text=True)
    assert done.returncode == 1 and "has no keypoint head to cut" in done.stderr
