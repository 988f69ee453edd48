"""Checkpoints of every project: read without running them, renamed, reordered, put into a model with nothing lost unseen."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import narrow_model

from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.weights import Loaded, convert, load_into, load_weights, to_detectron2
from maskrcnn_bench.weights.classes import names_of
from maskrcnn_bench.weights.names import matches, translate
from maskrcnn_bench.weights.reader import read_file

FAMILIES = ["faster_fpn", "mask_fpn", "faster_c4", "mask_c4"]


@pytest.fixture(scope="module")
def model():
    return narrow_model("mask_fpn")


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Numbers that tell tensors apart, for everything but the anchors; shared tensors are shared."""
    generator = torch.Generator().manual_seed(5)
    shared: dict[int, torch.Tensor] = {}
    out = {}
    named = {name: value for name, value in model.state_dict(keep_vars=True).items() if "cell_anchors" not in name}
    for name, value in named.items():
        shared.setdefault(id(value), torch.rand(value.shape, generator=generator) + 0.1)
        out[name] = shared[id(value)]
    return out


def same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if "cell_anchors" not in name)


# Names


def test_templates_translate_both_ways():
    theirs, ours = "backbone.res2.#.conv#.norm.*", "body.layer1.#.bn#.*"
    assert translate("backbone.res2.10.conv3.norm.running_var", theirs, ours) == "body.layer1.10.bn3.running_var"
    assert translate("body.layer1.10.bn3.running_var", ours, theirs) == "backbone.res2.10.conv3.norm.running_var"
    assert translate("backbone.res2.10.conv3.norm.a.b", theirs, ours) is None
    assert translate("backbone.res2.x.conv3.norm.weight", theirs, ours) is None
    assert matches("_[mask]_fcn#_w", "_[mask]_fcn3_w") and not matches("_[mask]_fcn#_w", "m_fcn3_w")


@pytest.mark.parametrize("family", FAMILIES)
def test_own_checkpoint_with_and_without_prefix(family, tmp_path):
    state = state_of(narrow_model(family))
    for prefix in ("", "module.", "_orig_mod.", "module.module.", "module._orig_mod.", "_orig_mod.module."):
        averaged = {"n_averaged": torch.tensor(3)} if prefix.startswith("module.") else {}
        torch.save({"model": averaged | {prefix + k: v for k, v in state.items()}, "iteration": 7}, tmp_path / "own.pth")
        model = narrow_model(family)
        report = load_into(model, tmp_path / "own.pth", strict=True)
        assert same(model, state)
        assert len(report.loaded) == report.total and not report.renamed and not report.missing and not report.reinitialised


def test_anchors_come_from_the_configuration_not_from_the_checkpoint(model):
    name = "rpn.anchor_generator.cell_anchors.0"
    state = {**state_of(model), name: torch.full((3, 4), 9.0)}
    report = load_into(model, Loaded("own", state))
    assert not (model.state_dict()[name] == 9).any()
    assert (name, "anchors follow the configuration") in report.unused


# detectron2

D2_FIXTURES = {
    "e2e_mask_rcnn_R_50_FPN_1x.yaml": "d2/mask_rcnn_R_50_FPN_1x",
    "e2e_faster_rcnn_R_50_FPN_1x.yaml": "d2/faster_rcnn_R_50_FPN_1x",
    "e2e_faster_rcnn_R_50_C4_1x.yaml": "d2/faster_rcnn_R_50_C4_1x",
}


@pytest.mark.parametrize("config", D2_FIXTURES)
def test_names_and_shapes_are_detectron2s(config, shared_dir):
    from maskrcnn_bench.config import load_config

    with torch.device("meta"):
        state = build_detection_model(load_config(config)).state_dict()
    spec = json.loads((shared_dir / "parity" / D2_FIXTURES[config] / "spec.json").read_text())
    assert {name: list(value.shape) for name, value in to_detectron2(state).items()} == {t[0]: t[1] for t in spec["tensors"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_detectron2_there_and_back(family, tmp_path):
    state = state_of(narrow_model(family))
    for name in state:  # what detectron2 has no room for
        rows = 4 if "predictor.bbox_pred" in name else 1 if "mask_fcn_logits" in name else 0
        state[name][:rows] = 0
    anchors = {name: value for name, value in narrow_model(family).state_dict().items() if "cell_anchors" in name}
    arrays = {name: value.numpy() for name, value in to_detectron2(state | anchors).items()}
    with (tmp_path / "model_final.pkl").open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": False}, file)
    model = narrow_model(family)
    report = load_into(model, tmp_path / "model_final.pkl", strict=True)
    assert same(model, state)
    assert len(report.renamed) == report.total


def test_background_moves_from_the_end_to_the_front():
    theirs = {
        "backbone.bottom_up.stem.conv1.weight": torch.zeros(8, 3, 7, 7),
        "roi_heads.box_predictor.cls_score.weight": torch.tensor([[1.0], [2.0], [3.0], [0.0]]),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(1.0, 13.0),
        "roi_heads.mask_head.predictor.bias": torch.tensor([1.0, 2.0, 3.0]),
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    loaded = convert(theirs)
    assert loaded.state_dict["roi_heads.box.predictor.cls_score.weight"].flatten().tolist() == [0, 1, 2, 3]
    assert loaded.state_dict["roi_heads.box.predictor.bbox_pred.bias"].tolist() == [0, 0, 0, 0, *range(1, 13)]
    assert loaded.state_dict["roi_heads.mask.predictor.mask_fcn_logits.bias"].tolist() == [0, 1, 2, 3]
    assert loaded.meta["unused"] == {"pixel_mean": "normalisation follows the configuration"}


def test_class_agnostic_boxes_become_the_second_of_two():
    theirs = {"backbone.bottom_up.x": torch.zeros(1), "roi_heads.box_predictor.bbox_pred.weight": torch.ones(4, 2)}
    ours = convert(theirs).state_dict["roi_heads.box.predictor.bbox_pred.weight"]
    assert ours.tolist() == [[0, 0]] * 4 + [[1, 1]] * 4


# torchvision


@pytest.fixture(scope="module")
def torchvision_mask_rcnn():
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).state_dict()


def test_torchvision_detector_fills_every_tensor(torchvision_mask_rcnn):
    from maskrcnn_bench.config import load_config

    model = build_detection_model(load_config("e2e_mask_rcnn_R_50_FPN_1x.yaml", ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", 5]))
    report = load_into(model, convert(torchvision_mask_rcnn), strict=True)
    assert len(report.loaded) == report.total
    state = model.state_dict()
    for ours, theirs in {
        "backbone.body.stem.bn1.running_var": "backbone.body.bn1.running_var",
        "backbone.body.layer3.5.conv2.weight": "backbone.body.layer3.5.conv2.weight",
        "backbone.fpn.fpn_inner2.weight": "backbone.fpn.inner_blocks.1.0.weight",
        "backbone.fpn.fpn_layer4.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
        "roi_heads.box.feature_extractor.fc7.weight": "roi_heads.box_head.fc7.weight",
        "roi_heads.mask.feature_extractor.mask_fcn3.weight": "roi_heads.mask_head.2.0.weight",
        "roi_heads.mask.predictor.conv5_mask.bias": "roi_heads.mask_predictor.conv5_mask.bias",
    }.items():
        assert torch.equal(state[ours], torchvision_mask_rcnn[theirs]), ours


def test_old_torchvision_files_name_the_same_layers_otherwise(torchvision_mask_rcnn):
    old = {}
    for name, value in torchvision_mask_rcnn.items():
        name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        if "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if name.count(".") == 5 else name
        for number in range(4):
            name = name.replace(f"mask_head.{number}.0.", f"mask_head.mask_fcn{number + 1}.")
        old[name] = value
    assert "backbone.fpn.inner_blocks.3.weight" in old and "roi_heads.mask_head.mask_fcn4.bias" in old
    new, again = convert(torchvision_mask_rcnn).state_dict, convert(old).state_dict
    assert new.keys() == again.keys() and all(torch.equal(new[name], again[name]) for name in new)


@pytest.mark.parametrize("body, last", [("R-18-FPN", "backbone.body.layer4"), ("R-18-C4", "roi_heads.box.feature_extractor.head.layer4")])
def test_classifier_fills_the_trunk_wherever_its_last_stage_lives(body, last):
    from torchvision.models import resnet18

    from maskrcnn_bench.config import load_config

    theirs = resnet18(weights=None).state_dict()
    kind = body[-3:].strip("-")
    keys = ["MODEL.BACKBONE.CONV_BODY", body, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STRIDE_IN_1X1", False]
    keys += ["MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 256]
    model = build_detection_model(load_config(f"e2e_faster_rcnn_R_50_{kind}_1x.yaml", keys))
    report = load_into(model, convert(theirs), strict=True)
    assert torch.equal(model.state_dict()[f"{last}.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    assert ("fc.weight", "ImageNet classifier") in report.unused
    assert "RGB" in report.summary()


# Caffe2


LAST_BLOCK = {"1": 2, "2": 3, "3": 5, "4": 2}  # of the stages of a ResNet-50; laterals are called after them
RPN_BLOBS = {"conv": "conv_rpn_fpn2", "cls_logits": "rpn_cls_logits_fpn2", "bbox_pred": "rpn_bbox_pred_fpn2"}


def caffe2_name(name: str) -> str | None:
    """The name that Detectron gives to one of our tensors: blobs are called after their layer."""
    *layer, word = name.removeprefix("backbone.").removeprefix("body.").split(".")
    if word.startswith("running_") or "cell_anchors" in name:
        return None
    scale, letter = {"weight": ("s", "w"), "bias": ("b", "b")}[word]
    if layer[0] == "stem":
        return "conv1_w" if layer[1] == "conv1" else f"res_conv1_bn_{scale}"
    if layer[0].startswith("layer"):
        block = f"res{int(layer[0][5]) + 1}_{layer[1]}_"
        if layer[2] == "downsample":
            return block + ("branch1_w" if layer[3] == "0" else f"branch1_bn_{scale}")
        branch = f"{block}branch2{'abc'[int(layer[2][-1]) - 1]}_"
        return branch + (letter if layer[2].startswith("conv") else f"bn_{scale}")
    if layer[0] == "fpn":
        stage = layer[1][-1]
        inner = "inner_" if "inner" in layer[1] else ""
        lateral = "_lateral" if inner and stage != "4" else ""
        return f"fpn_{inner}res{int(stage) + 1}_{LAST_BLOCK[stage]}_sum{lateral}_{letter}"
    if layer[0] == "rpn":
        return f"{RPN_BLOBS[layer[-1]]}_{letter}"
    return f"_[mask]_{layer[-1][5:]}_{letter}" if layer[-1].startswith("mask_fcn") and layer[-1][-1].isdigit() else f"{layer[-1]}_{letter}"


def test_detectron_pickle_of_python_2(tmp_path):
    source = narrow_model("mask_fpn")
    state = state_of(source)
    blobs = {caffe2_name(n): v.numpy() for n, v in state.items() if caffe2_name(n)}
    assert {"res2_0_branch1_bn_s", "fpn_inner_res5_2_sum_w", "fpn_res4_5_sum_b", "_[mask]_fcn1_w", "conv5_mask_b", "fc6_w"} <= set(blobs)
    blobs |= {"conv1_w_momentum": np.ones(3, np.float32), "lr": np.float32(0.1)}
    with (tmp_path / "model_final.pkl").open("wb") as file:
        pickle.dump({"blobs": blobs, "cfg": "MODEL: {}"}, file, protocol=2)
    model = narrow_model("mask_fpn")
    report = load_into(model, tmp_path / "model_final.pkl", strict=True)
    assert ("conv1_w_momentum", "state of the optimizer") in report.unused
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            assert not value.any()
        elif name.endswith("running_var"):
            assert (value == 1).all()
        elif "cell_anchors" not in name:
            assert torch.equal(value, state[name]), name


def test_folded_norms_leave_room_for_the_models_epsilon():
    model = narrow_model("d2_mask_fpn")
    blobs = {caffe2_name(n): v for n, v in state_of(model).items() if n.startswith("backbone.body") and caffe2_name(n)}
    load_into(model, convert({**blobs, "pred_w": torch.ones(3)}))
    norm = model.backbone.body.stem.bn1
    assert norm.eps == 1e-5
    assert torch.allclose((norm.running_var + norm.eps).rsqrt(), torch.ones(1), atol=1e-7)
    assert torch.equal(norm.weight, blobs["res_conv1_bn_s"])


# Files


class Evil:
    """Leaves a file behind when a pickle of it is loaded carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_torch(path, content):
    torch.save(content, path)


def write_legacy_torch(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content))


def write_old_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=0))


WRITERS = [write_torch, write_legacy_torch, write_pickle, write_old_pickle]


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_in_a_file_is_executed(write, tmp_path):
    trap = tmp_path / "trap"
    write(tmp_path / "evil.pth", {"model": {}, "x": Evil(trap)})
    with pytest.raises(ValueError, match=r"evil.pth holds objects that are not weights: (posix|nt|os)\.mkdir.*Nothing in it was executed"):
        load_weights(tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize("write", WRITERS[:3])
def test_foreign_objects_are_refused_by_name(write, tmp_path):
    write(tmp_path / "old.pth", {"model": {"a": np.zeros(2)}, "args": argparse.Namespace(lr=1)})
    with pytest.raises(ValueError, match=r"argparse\.Namespace.*torch\.save\(checkpoint\['model'\]"):
        load_weights(tmp_path / "old.pth")


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_numbers_and_ordered_dictionaries_pass(write, tmp_path):
    content = collections.OrderedDict(a=np.arange(3.0), b=np.float32(0.5), c=["x", 1, 2.5, None, True])
    write(tmp_path / "fine", content)
    read = read_file(tmp_path / "fine")
    assert read["a"].tolist() == [0, 1, 2] and read["b"] == 0.5 and read["c"] == content["c"]


def safetensors(tensors: dict[str, np.ndarray], codes: dict[str, str]) -> bytes:
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        data = value.tobytes()
        header[name] = {"dtype": codes[name], "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_safetensors(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, -2], np.int64), "c": np.zeros((0, 4), np.float32)}
    (tmp_path / "x.safetensors").write_bytes(safetensors(arrays, {"a": "F32", "b": "I64", "c": "F32"}))
    read = read_file(tmp_path / "x.safetensors")
    assert {name: value.tolist() for name, value in read.items()} == {name: value.tolist() for name, value in arrays.items()}
    half = np.array([0x3F80, 0xC000], np.uint16)  # 1 and -2 in bfloat16
    (tmp_path / "y").write_bytes(safetensors({"h": half}, {"h": "BF16"}))
    assert read_file(tmp_path / "y")["h"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize("shape, length", [([4], 0), ([-1], 8), ([1], 5), ([3, 1 << 40], 0), ([2], 4)])
def test_safetensors_whose_bytes_do_not_fill_their_shape_are_damaged(shape, length, tmp_path):
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, length]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match=rf"x.safetensors .*a tensor of shape .* has {length} bytes"):
        read_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("write", WRITERS)
def test_lists_that_share_their_content_end(write, tmp_path):
    """Thirty-two lists, the first of which holds the last one 2 ** 32 times over."""
    content = ["x", "x"]
    for _ in range(32):
        content = [content, content]
    write(tmp_path / "shared", {"a": np.arange(3), "content": content})
    read = read_file(tmp_path / "shared")["content"]
    assert read[0] is read[1] and read[0][1][0] is read[1][0][1]
    content[1] = content
    write(tmp_path / "shared", {"content": content})
    with pytest.raises(ValueError, match="damaged .*recursion"):
        read_file(tmp_path / "shared")


def test_a_high_number_in_a_pickle_takes_no_memory(tmp_path):
    """The number 2 ** 31 - 2 of an object to be remembered, for which the usual reader makes a list of that length."""
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02]r\xfe\xff\xff\x7f.")
    code = (
        "import resource, sys\nfrom maskrcnn_bench.weights.reader import read_file\nbefore = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert read_file(sys.argv[1]) == []\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pkl")], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) < 100_000, done.stderr


@pytest.mark.parametrize("name", ["_codecs\nencode", "numpy.core.multiarray\nscalar", "numpy\nndarray"])
def test_a_file_cannot_change_how_others_are_read(name, tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n(N}X\x0c\x00\x00\x00__defaults__)stb.")
    with pytest.raises(ValueError, match="evil.pkl .*a state for something that has none"):
        read_file(path)
    write_pickle(path, {"a": np.float32(2), "b": np.arange(2.0)})
    assert read_file(path)["a"] == 2


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """One small file of each container."""
    folder = tmp_path_factory.mktemp("files")
    content = {"model": {"a": np.arange(40, dtype=np.float32), "b": np.float64(1)}, "iteration": 3}
    out = {"safetensors": safetensors({"a": content["model"]["a"]}, {"a": "F32"})}
    for write in WRITERS:
        write(folder / "f", content)
        out[write.__name__] = (folder / "f").read_bytes()
    return out


@pytest.mark.parametrize("container", ["safetensors", *(write.__name__ for write in WRITERS)])
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_named(container, files, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "cut.pth"
    whole = files[container]
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.pth.*(expected weights|are not weights)"):
        read_file(path)


@pytest.mark.parametrize("container", ["safetensors", *(write.__name__ for write in WRITERS)])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_end_in_one_kind_of_error(container, files, tmp_path_factory, data):
    content = bytearray(files[container])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("bad") / "bad.pth"
    path.write_bytes(content)
    try:
        read_file(path)
    except ValueError as error:
        assert "bad.pth" in str(error)


@pytest.mark.parametrize("changed", [b"N\x80NJ", b"NN)J", b"N}NJ", b"\x88\x88\x88J"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_numpy_type_does_not_take_the_process_down(changed, tmp_path):
    """numpy's own types crash on some states, so none of them is made while a file is read; the first of these did crash."""
    path = tmp_path / "bad.pth"
    torch.save({"model": {"a": torch.ones(2)}, "epoch": np.float64(3), "scores": np.arange(3)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    found = sum(content.count(b"NNNJ") for content in parts.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"NNNJ", changed))
    assert found
    try:
        assert read_file(path)["epoch"] == 3
    except ValueError as error:
        assert "bad.pth" in str(error)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\n <!DOCTYPE html><html>404 not found", "is a web page.*Download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer.*git lfs pull"),
        (b"", "is empty"),
        (b"hello, I am a text", "no known kind of file: it begins with b'hello"),
    ],
)
def test_files_that_are_no_weights(content, words, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path, word in ((tmp_path / "none.pth", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(FileNotFoundError, match=f"{word}.*MODEL.WEIGHT"):
            load_weights(path)


def test_arrays_of_the_other_order_of_bytes_and_texts_beside_weights(tmp_path):
    texts = {"names": np.array(["a", "bc"]), "bytes": np.array([b"a"]), "objects": np.array([{}, None]), "word": np.str_("x")}
    for content in ({"stem.conv1.weight": np.arange(3, dtype=">f4")}, {"stem.conv1.weight": np.arange(3.0), **texts}):
        write_pickle(tmp_path / "w.pkl", {"model": content})
        loaded = load_weights(tmp_path / "w.pkl")
        assert loaded.state_dict["backbone.body.stem.conv1.weight"].tolist() == [0, 1, 2] and not loaded.meta["unused"]


ODD = {
    "sparse_coo": lambda: torch.ones(3).to_sparse(),
    "no values": lambda: torch.ones(3, device="meta"),
    "complex64": lambda: torch.ones(3, dtype=torch.complex64),
    "float8_e4m3fn": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_tensors_that_are_no_ordinary_numbers_are_named(what, tmp_path):
    torch.save({"stem.conv1.weight": ODD[what](), "b": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w.pth: expected dense tensors .* 1 are others: stem.conv1.weight \({what}\)"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_another_pickle_protocol_is_named(zipped, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="w.pth was pickled by another protocol than 2.*pickle_protocol=2"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("extra", [{"meta": {"dataset_meta": "coco"}}, {"class_names": torch.ones(2)}, {"meta": {"classes": 5}}])
def test_class_names_that_are_none_are_not_taken(extra):
    assert names_of(Loaded("own", {}, {"extra": extra})) == ()


def test_no_tensors_unknown_names_and_values_that_are_not_finite(tmp_path, model):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="w.pth: expected named tensors.*epoch"):
        load_weights(path)
    torch.save({"blocks.0.attn.qkv.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="w.pth: 1 tensors of an unknown kind.*qkv.*detectron2"):
        load_weights(path)
    state = state_of(model)
    state["rpn.head.conv.bias"][0] = torch.nan
    torch.save(state, path)
    with pytest.raises(ValueError, match="w.pth.*1 tensors hold NaN or infinity: rpn.head.conv.bias"):
        load_weights(path)


# Into a model


def test_other_classes_keep_their_initial_values_and_are_listed(model):
    state = state_of(model)
    other = narrow_model("mask_fpn", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 3, seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_into(other, convert(state))
    layers = ("box.predictor.cls_score", "box.predictor.bbox_pred", "mask.predictor.mask_fcn_logits")
    heads = {f"roi_heads.{layer}.{word}" for layer in layers for word in ("weight", "bias")}
    assert {name for name, _, _ in report.reinitialised} == heads
    assert ("roi_heads.box.predictor.cls_score.weight", (3, 32), (5, 32)) in report.reinitialised
    for name, value in other.state_dict().items():
        if "cell_anchors" not in name:
            assert torch.equal(value, before[name] if name in heads else state[name]), name
    assert report.summary().startswith(f"loaded {report.total - 6}/{report.total} tensors")
    assert "re-initialised 6: roi_heads.box.predictor.cls_score.weight (model 3x32, file 5x32)" in str(report)


def test_strict_lists_everything_and_leaves_the_model_alone(model):
    state = state_of(model)
    state["roi_heads.box.predictor.cls_score.bias"] = torch.ones(7)
    state["roi_heads.box.feature_extractor.fc8.bias"] = torch.ones(7)
    del state["rpn.head.conv.bias"]
    other = narrow_model("mask_fpn", seed=2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="3 tensors") as caught:
        load_into(other, convert(state), strict=True)
    for line in ("cls_score.bias: model 5, file 7", "rpn.head.conv.bias: missing", "fc8.bias: the model has no such tensor"):
        assert line in str(caught.value)
    assert same(other, before)
    report = load_into(other, convert(state))
    assert report.missing == ["rpn.head.conv.bias"]
    assert report.unused == [("roi_heads.box.feature_extractor.fc8.bias", "the model has no such tensor")]


def test_weights_of_another_architecture_are_an_error():
    state = state_of(narrow_model("faster_c4"))
    model = narrow_model("mask_fpn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"only \d+% of the model's parameters.*at least 50%.*another architecture"):
        load_into(model, convert(state))
    assert same(model, before)


def test_classifier_of_another_depth_is_an_error():
    from torchvision.models import resnet18

    from maskrcnn_bench.config import load_config

    keys = ["MODEL.BACKBONE.CONV_BODY", "R-34-FPN", "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STRIDE_IN_1X1", False]
    model = build_detection_model(load_config("e2e_faster_rcnn_R_50_FPN_1x.yaml", keys))
    with pytest.raises(ValueError, match=r"only \d+% of the backbone's parameters.*at least 90%"):
        load_into(model, convert(resnet18(weights=None).state_dict()))


@pytest.mark.parametrize("written", ["both", "box only", "mask only"])
def test_heads_that_share_a_module_need_it_once(written):
    model = narrow_model("mask_c4")
    twins = ("roi_heads.box.feature_extractor.", "roi_heads.mask.feature_extractor.")
    assert all(any(name.startswith(twin) for name in model.state_dict()) for twin in twins)
    state = state_of(model)
    left_out = {"both": (), "box only": twins[1], "mask only": twins[0]}[written]
    report = load_into(model, convert({n: v for n, v in state.items() if not n.startswith(left_out)}), strict=True)
    assert same(model, state)
    assert len(report.loaded) == report.total and not report.unused


def test_a_shared_module_with_two_values_is_reported():
    model = narrow_model("mask_c4")
    state = {name: value.clone() for name, value in state_of(model).items()}
    name = "roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight"
    state[name] += 1
    report = load_into(model, convert(state))
    assert [unused for unused, _ in report.unused] == [name]
    assert torch.equal(model.state_dict()[name], state[name.replace("mask", "box", 1)])
    with pytest.raises(ValueError, match="whose values differ"):
        load_into(model, convert(state), strict=True)


def test_duplicates_of_a_shared_module_fit_a_model_without_masks():
    state = state_of(narrow_model("mask_c4"))
    report = load_into(narrow_model("faster_c4"), convert(state))
    reasons = {why for name, why in report.unused if name.startswith("roi_heads.mask.feature_extractor.")}
    assert reasons and all(why.startswith("the same as roi_heads.box.feature_extractor.head.") for why in reasons)


def test_dtype_follows_the_model(model):
    state = {name: value.half() for name, value in state_of(model).items()}
    load_into(model, convert(state))
    assert model.rpn.head.conv.weight.dtype == torch.float32
    assert torch.equal(model.rpn.head.conv.weight, state["rpn.head.conv.weight"].float())


def test_two_models_in_one_file_are_an_error():
    tensors = {name: torch.zeros(1) for name in ("conv_rpn_w", "conv_rpn_fpn2_w")}
    with pytest.raises(ValueError, match="conv_rpn_w and conv_rpn_fpn2_w both stand for rpn.head.conv.weight"):
        convert(tensors)
