"""The comparison of trainings: both libraries learn from the same start, and finished runs are not repeated."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
compare_training = importlib.import_module("compare_training")

SMALL = ["MODEL.BACKBONE.CONV_BODY", "timm:resnet18", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    from maskrcnn_bench.data.datasets.toy import generate

    folder = tmp_path_factory.mktemp("toy")
    generate(folder, num_train=4, num_test=2)
    return folder


def test_both_train_and_nothing_is_repeated(toy_folder, tmp_path, capsys):
    file = tmp_path / "runs.json"
    arguments = ["--data", f"toy={toy_folder}", "--iterations", "2", "--seeds", "1", "--json", str(file), *SMALL]
    assert compare_training.main(arguments) == 0
    runs = json.loads(file.read_text())["runs"]
    assert [run["library"] for run in runs] == ["maskrcnn_bench", "torchvision"] and all(run["seconds"] > 0 for run in runs)
    assert "| toy | 1 |" in capsys.readouterr().out
    file.write_text(json.dumps({"runs": [run | {"AP": 12.25} for run in runs]}))
    assert compare_training.main(arguments) == 0
    assert "| 12.2 ± 0.0 | 12.2 ± 0.0 |" in capsys.readouterr().out


def test_weights_of_the_first_version_become_those_of_timm(tmp_path):
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    foreign = {"_conv_stem.weight" if name == "conv_stem.weight" else f"_{name}": value for name, value in own.items()}
    torch.save(foreign, tmp_path / "old.pth")
    renamed = torch.load(compare_training.trunk_weights(str(tmp_path / "old.pth"), str(tmp_path)), weights_only=True)
    assert set(renamed) == set(own) and all(torch.equal(renamed[name], own[name]) for name in own)
    torch.save(own, tmp_path / "timm.pth")
    assert compare_training.trunk_weights(str(tmp_path / "timm.pth"), str(tmp_path)) == str(tmp_path / "timm.pth")
