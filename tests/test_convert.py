"""The verb `convert` and the program that cuts heads: what they write, what they report, and that faults leave nothing behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch
from models import C4_WIDTH, NARROW, RETINANET_WIDTH, narrow_model
from test_weights import caffe2_name, state_of

from maskrcnn_bench import cli
from maskrcnn_bench.weights import load_into, load_weights, to_detectron2, to_torchvision
from maskrcnn_bench.weights.anchor_order import AnchorGrid, anchor_grid, in_order, several_anchors
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


# Anchors

MM_RETINANET = "mmdetection/retinanet_r50_fpn_1x_coco.yaml"


def rows_by_anchor(model) -> dict[tuple, torch.Tensor]:
    """{(shape, size) of an anchor, roughly: its rows}, for a model with several of both."""
    head, state = model.rpn.head, model.state_dict()
    cells = [value for name, value in state.items() if ".cell_anchors." in name][-1]
    width, height = (cells[:, 2:] - cells[:, :2]).unbind(1)
    keys = zip((2 * (height / width).log2()).round().tolist(), (2 * (height * width).log2()).round().tolist())
    rows = [layer.weight.detach().unflatten(0, (len(cells), -1)) for layer in (head.cls_logits, head.bbox_pred)]
    return {key: torch.cat([part[n] for part in rows]) for n, key in enumerate(keys)}


def same_rows(a, b) -> bool:
    first, second = rows_by_anchor(a), rows_by_anchor(b)
    return len(first) > 3 and first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("theirs, ours", [("d2_retinanet", "mm_retinanet"), ("mm_retinanet", "d2_retinanet"), ("d2_mask_c4", "mask_c4")])
def test_rows_follow_their_anchors_between_projects(theirs, ours, tmp_path):
    """From a checkpoint with its anchors; from detectron2's without them; from what either becomes here without a configuration."""
    source = narrow_model(theirs, seed=1)
    torch.save({"model": source.state_dict()}, tmp_path / "own.pth")
    names = ["own.pth"]
    if theirs.startswith("d2"):
        torch.save({"model": to_detectron2(source.state_dict())}, tmp_path / "d2.pth")
        convert_file(tmp_path / "d2.pth", tmp_path / "without.pth")
        names += ["d2.pth", "without.pth"]
    for name in names:
        model = narrow_model(ours, seed=2)
        report = load_into(model, tmp_path / name)
        assert same_rows(model, source), name
        assert "rpn.head.cls_logits.weight" in report.reordered and "put in the model's order of anchors 4: rpn.head" in report.summary()
        again = narrow_model(theirs, seed=3)
        assert not load_into(again, tmp_path / name).reordered and same_rows(again, source), name


def test_a_conversion_counts_anchors_as_the_other_project_does(tmp_path):
    source = narrow_model("mm_retinanet", seed=1)
    torch.save({"model": source.state_dict()}, tmp_path / "own.pth")
    bare = {name: value for name, value in source.state_dict().items() if "cell_anchors" not in name}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    words = [str(word) for word in [*NARROW, *RETINANET_WIDTH]]
    for name, config in (("own.pth", ""), ("own.pth", MM_RETINANET), ("bare.pth", MM_RETINANET)):
        convert_file(tmp_path / name, tmp_path / "d2.pth", "detectron2", config_file=config, opts=words if config else ())
        model = narrow_model("d2_retinanet", seed=2)
        assert not load_into(model, tmp_path / "d2.pth").reordered and same_rows(model, source)
    with pytest.raises(ValueError, match=r"bare.pth .*: 9 anchors a cell, which detectron2 may count .* --config-file FILE"):
        convert_file(tmp_path / "bare.pth", tmp_path / "d2.pth", "detectron2")


def test_anchors_tell_their_order():
    ratio, size = (anchor_grid(narrow_model(family).state_dict()) for family in ("mask_c4", "d2_mask_c4"))
    assert (ratio, size) == (AnchorGrid("ratio_major", 5, 3), AnchorGrid("size_major", 5, 3))
    without = (
        {},
        narrow_model("mask_fpn").state_dict(),
        *({"rpn.cell_anchors.0": value} for value in (None, torch.ones(3), torch.ones(0, 4))),
    )
    assert [anchor_grid(state) for state in without] == [None] * 5
    one_ratio = narrow_model("mask_c4", "MODEL.RPN.ASPECT_RATIOS", (1.0,)).state_dict()
    assert anchor_grid(one_ratio) is None and not several_anchors(one_ratio)
    rows = torch.arange(30).view(30, 1)
    turned = in_order({"rpn.head.bbox_pred.bias": rows}, AnchorGrid("ratio_major", 5, 3), "size_major")["rpn.head.bbox_pred.bias"]
    assert turned[:6].flatten().tolist() == [0, 1, 10, 11, 20, 21]
    back = in_order({"rpn.head.bbox_pred.bias": turned}, AnchorGrid("size_major", 5, 3), "ratio_major")
    assert torch.equal(back["rpn.head.bbox_pred.bias"], rows)


@pytest.mark.parametrize("family, word", [("mm_faster_dc5", "pyramid"), ("jw_vgg", "pyramid"), ("faster_dcn", "deformable")])
def test_models_that_torchvision_lacks_are_refused(family, word):
    with pytest.raises(ValueError, match=f"torchvision: .*{word}"):
        to_torchvision(narrow_model(family).state_dict())


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


def test_trimming_cuts_every_stage_of_a_cascade(tmp_path, repository):
    torch.save({"model": narrow_model("mm_cascade_mask_fpn").state_dict()}, tmp_path / "cascade.pth")
    command = [sys.executable, str(repository / "tools" / "trim_detectron_model.py"), "--pretrained_path", str(tmp_path / "cascade.pth")]
    done = subprocess.run([*command, "--save_path", str(tmp_path / "t.pth"), "--heads", "box", "mask"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing = load_into(narrow_model("mm_cascade_mask_fpn"), tmp_path / "t.pth").missing
    stages = [f"roi_heads.box.predictor.{k}.{layer}" for k in range(3) for layer in ("cls_score", "bbox_pred")]
    stages += [f"roi_heads.mask.stages.{k}.predictor.mask_fcn_logits" for k in range(3)]
    assert sorted(missing) == sorted(f"{layer}.{kind}" for layer in stages for kind in ("weight", "bias"))


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
