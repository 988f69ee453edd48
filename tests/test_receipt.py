"""`convert --receipt`: every stage of a converted model against the one before, a saved receipt, and another project's recorded values."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from models import FAMILIES, NARROW, narrow_config, narrow_model
from PIL import Image

from maskrcnn_bench import cli
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.weights.receipt import Expectation, Found, Observation, Rules, Sampled, compare, observe
from maskrcnn_bench.weights.receipt_files import generated_picture, picture_digest, read_expected

SMALL = ["INPUT.MIN_SIZE_TEST", "128"]


def words(family: str) -> list[str]:
    """The configuration of a narrow model, as the command line takes it."""
    path, width = FAMILIES[family]
    return ["--config-file", path, *map(str, [*NARROW, *width]), *SMALL]


def saved(family: str, folder, seed: int = 0):
    torch.save({"model": narrow_model(family, seed=seed).state_dict()}, folder / "ours.pth")
    return str(folder / "ours.pth")


@pytest.mark.parametrize(
    ("family", "to"), [("d2_mask_fpn", "detectron2"), ("d2_keypoint_fpn", "torchvision"), ("retinanet", "maskrcnn_bench")]
)
def test_a_receipt_is_written_and_met_again(family, to, tmp_path, capsys):
    source, target, receipt = saved(family, tmp_path), str(tmp_path / "theirs.pth"), str(tmp_path / "receipt.json")
    assert cli.main(["convert", source, target, "--to", to, "--save-receipt", receipt, *words(family)]) == 0
    out = capsys.readouterr().out
    assert "tensors                  0.00e+00" in out and "0 outside the tolerance" in out and "FAIL" not in out
    content = json.loads(open(receipt).read())
    assert content["image"]["size"] == [320, 240] and len(content["weights"]["sha256"]) == 64
    assert content["config"]["INPUT.MIN_SIZE_TEST"] == 128 and set(content["sets"]) == (
        {"det"} if family == "retinanet" else {"prop", "det"}
    )
    assert len(content["arrays"]["feat.0"]["values"]) == 64 and len(open(receipt).readlines()) < 120
    # The receipt knows the configuration, and the file in the other project's form gives the same numbers.
    assert cli.main(["convert", target, str(tmp_path / "back.pth"), "--receipt", receipt]) == 0
    out = capsys.readouterr().out
    assert f"back.pth against {receipt}" in out and "the receipt is of another file of weights" in out
    assert {"d2_mask_fpn": "det.mask", "d2_keypoint_fpn": "det.keypoints", "retinanet": "det.scores"}[family] in out


def test_without_a_file_before_and_after_are_compared(tmp_path, capsys):
    source = saved("faster_c4", tmp_path)
    assert cli.main(["convert", source, str(tmp_path / "b.pth"), *words("faster_c4"), "--receipt"]) == 0
    out = capsys.readouterr().out
    assert "ours.pth against" in out and "rpn.reg.0" in out and "prop.unmatched" in out and "det.scores" in out


def test_other_weights_fail_from_the_stage_on_that_they_change(tmp_path, capsys):
    source, receipt = saved("faster_fpn", tmp_path), str(tmp_path / "receipt.json")
    assert cli.main(["convert", source, str(tmp_path / "b.pth"), "--save-receipt", receipt, *words("faster_fpn")]) == 0
    state = torch.load(source)["model"]
    state["roi_heads.box.predictor.cls_score.bias"][2] += 0.5
    torch.save({"model": state}, source)
    capsys.readouterr()
    assert cli.main(["convert", source, str(tmp_path / "b.pth"), "--receipt", receipt]) == 1
    out = capsys.readouterr().out
    failed = [line.split()[0] for line in out.splitlines() if "FAIL" in line]
    assert failed and all(stage.startswith("det.") for stage in failed)
    assert "the receipt is of another file of weights" in out and "det UNMATCHED" in out
    # A failing conversion leaves no receipt to trust.
    again = str(tmp_path / "again.json")
    assert cli.main(["convert", source, str(tmp_path / "b.pth"), "--receipt", receipt, "--save-receipt", again]) == 1
    assert not (tmp_path / "again.json").exists()


def test_faults_are_one_line_before_anything_is_written(tmp_path, capsys):
    source, receipt = saved("faster_fpn", tmp_path), str(tmp_path / "receipt.json")
    target = str(tmp_path / "b.pth")
    assert cli.main(["convert", source, target, "--save-receipt", receipt, *words("faster_fpn")]) == 0
    (tmp_path / "b.pth").unlink()
    picture = tmp_path / "other.png"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(picture)
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text(open(receipt).read()[:500])
    (tmp_path / "half.json").write_text('{"format": "maskrcnn_bench receipt 1", "arrays": {}}')
    for extra, message in {
        ("--receipt",): "it needs its configuration: --config-file FILE",
        ("--receipt", str(tmp_path / "none.json")): "does not exist; expected a receipt",
        ("--receipt", str(tmp_path / "list.json")): "expected a receipt with",
        ("--receipt", str(tmp_path / "cut.json")): "not a receipt, or damaged",
        ("--receipt", str(tmp_path / "half.json")): "not a receipt, or damaged",
        ("--receipt", str(tmp_path)): "expected a folder with expected.npz and spec.json",
        ("--receipt", receipt, "--image", str(picture)): "has other pixels; name that image with --image",
        ("--receipt", receipt, "--image", str(tmp_path / "page.html")): "expected an image",
        ("--receipt", receipt, "MODEL.RPN.NMS_TRESH", "0.5"): "MODEL.RPN.NMS_THRESH",
    }.items():
        capsys.readouterr()
        assert cli.main(["convert", source, target, *extra]) == 1, extra
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "b.pth").exists()
    # Weights of a part of the model would leave the rest to chance.
    torch.save({"model": narrow_model("faster_fpn", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 3).state_dict()}, source)
    assert cli.main(["convert", source, target, "--receipt", receipt]) == 1
    assert "so a receipt would compare random numbers" in capsys.readouterr().err


def test_an_image_of_ones_own(tmp_path, capsys):
    source, receipt, picture = saved("faster_fpn", tmp_path), str(tmp_path / "r.json"), tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(picture)
    base = ["convert", source, str(tmp_path / "b.pth")]
    assert cli.main([*base, "--save-receipt", receipt, "--image", str(picture), *words("faster_fpn")]) == 0
    Image.open(picture).save(tmp_path / "same_pixels.bmp")
    assert cli.main([*base, "--receipt", receipt, "--image", str(tmp_path / "same_pixels.bmp")]) == 0
    assert cli.main([*base, "--receipt", receipt]) == 1
    assert "the generated one (320 x 240) has other pixels" in capsys.readouterr().err


def test_the_generated_picture_is_the_same_everywhere():
    assert picture_digest(generated_picture()) == "96610427901fea20667e3f7e59a0bd75387b4df71e8a404e153d037810f5345a"


# Recorded values of another implementation


def test_a_folder_of_recorded_values(tmp_path, capsys):
    """In the form of other implementations' recordings: arrays, and a description beside them."""
    model, picture = narrow_model("mm_mask_fpn", *SMALL), generated_picture()
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    found = observation_of(model, "mm_mask_fpn", picture)
    arrays = {"input": found.arrays["input"].numpy(), "prop.count": found.sets["prop"].count}
    for name, array in found.arrays.items():
        if name.startswith(("feat", "rpn")):
            few = Sampled.of(array, 500)
            arrays |= {f"{name}.shape": few.shape, f"{name}.pos": few.positions, f"{name}.val": few.values, f"{name}.stat": few.statistics}
        if name.startswith("anchor"):
            rows = torch.arange(min(5, len(array))) * (len(array) // min(5, len(array)))
            arrays |= {f"{name}.count": len(array), f"{name}.pos": rows, f"{name}.val": array[rows]}
    for name, boxes in found.sets.items():
        arrays |= {f"{name}.boxes": boxes.boxes, f"{name}.scores": boxes.scores}
    arrays["det.labels"] = found.sets["det"].labels - 1  # its first class is 0
    arrays["mask.prob"] = found.fields["mask"][:3].reshape(3, 28, 28)
    np.savez(tmp_path / "expected.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    picture.save(tmp_path / "p.png")
    spec = {"image": "p.png", "short": "mm", "overrides": {"a": 1}, "noise": {"max_abs": {"feat.0.val": 1e-5}}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    base = ["convert", str(tmp_path / "ours.pth"), str(tmp_path / "b.pth"), *words("mm_mask_fpn")]
    for name in ("", "expected.npz", "spec.json"):
        assert cli.main([*base, "--receipt", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert 'recorded with {"a": 1}' in out and out.count("0 outside the tolerance") == 2 and "det.mask" in out
    # The same weights under another project's rules are not that project's model.
    assert cli.main([*base, "--receipt", str(tmp_path), "MODEL.DIALECT", "maskrcnn_benchmark"]) == 1
    failed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}
    assert "anchor.0" in failed and "det.unmatched" in failed


def observation_of(model, family: str, picture: Image.Image) -> Observation:
    transforms = make_transforms(narrow_config(family, *SMALL), is_train=False)
    return observe(model, to_image_list([transforms(picture, BoxList([], picture.size))[0]], model.size_divisible))


@pytest.mark.full
@pytest.mark.parametrize("name", ["mm/faster-rcnn_r50_fpn_1x", "d2/faster_rcnn_R_50_C4_1x", "jw/vgg16", "mb/e2e_mask_rcnn_R_50_FPN_1x"])
def test_the_recorded_values_of_a_reference(name, shared_dir, repository, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    from parity_fixture import Fixture

    fixture = Fixture(shared_dir / "parity" / name)
    torch.save({"model": fixture.state_dict()}, tmp_path / "theirs.pth")
    base = ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth"), "--config-file", str(fixture.config_file())]
    base += ["--receipt", str(fixture.folder), *map(str, fixture.options())]
    assert cli.main(base) == 0
    out = capsys.readouterr().out
    assert "the expectations were recorded with" in out and out.count("0 outside the tolerance") == 2
    sys.modules.pop("parity_fixture", None)


def test_a_folder_without_its_picture_is_named(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({"image": "images/none.png", "short": "mb", "overrides": {}}))
    np.savez(tmp_path / "expected.npz", input=np.zeros((3, 2, 2), np.float32))
    with pytest.raises(FileNotFoundError, match="its picture images/none.png is in no folder above it"):
        read_expected(tmp_path)
    (tmp_path / "expected.npz").write_bytes(b"PK half")
    with pytest.raises(ValueError, match="not a file of arrays, or damaged"):
        read_expected(tmp_path / "spec.json")


# The comparison


def observation(**arrays) -> Observation:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 60.0, 50.0]])
    found = Found(boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.4]), 2)
    return Observation({name: torch.as_tensor(value) for name, value in arrays.items()}, {"det": found})


RULES = Rules(0, 0.7, 0.5, 0.05)


def failing(expected: Expectation, ours: Observation) -> list[str]:
    return [row.stage for row in compare(expected, ours, RULES)[0] if not row.ok]


@pytest.mark.parametrize("samples", [None, 8])
def test_what_a_comparison_sees(samples):
    torch.manual_seed(0)
    values = torch.randn(3, 40)
    expected = observation(feat=values).expectation(samples)
    assert failing(expected, observation(feat=values.clone())) == []
    assert failing(expected, observation(feat=values + 2e-4)) == ["feat"]
    assert failing(expected, observation(feat=values.T)) == ["feat"]
    assert failing(expected, observation(other=values)) == ["feat"]
    # One wrong value that was not sampled shows in the statistics.
    changed = values.clone()
    changed[1, 3] = 50.0
    assert failing(expected, observation(feat=changed)) == ["feat"]
    changed[1, 3] = torch.nan
    assert failing(expected, observation(feat=changed)) == ["feat"]


def test_a_lost_and_a_moved_box_are_seen():
    moved, fewer = observation(), observation()
    assert failing(observation().expectation(), observation()) == []
    moved.sets["det"].boxes[0] += 3
    assert failing(observation().expectation(), moved) == ["det.unmatched"]
    fewer.sets["det"] = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0)
    assert "det.count" in failing(observation().expectation(), fewer)


def test_all_values_or_a_few():
    array = torch.arange(12.0).reshape(3, 4)
    assert Sampled.of(array, None).values.tolist() == array.flatten().tolist()
    few = Sampled.of(array, 5)
    assert len(few.values) == 5 and torch.equal(array.flatten()[few.positions], few.values) and few.statistics[2] == 11
    assert Sampled.of(torch.zeros(0, 4), 5).statistics == [0, 0, 0]
