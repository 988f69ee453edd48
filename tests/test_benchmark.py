"""The benchmark's and the comparison's own behaviour: what they refuse, what they write, what they do not repeat."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import benchmark
from benchmark_case import Case, compared, peak_bytes, take_turns

needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


def pretended(equal: bool):
    return lambda quick, device: iter([Case("P5.x", "nothing", lambda: None, lambda: None, equal)])


def test_results_that_differ_have_no_ratio(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "GROUPS", {"P5": pretended(False)})
    assert benchmark.main(["--quick", "--json", str(tmp_path / "rows.json")]) == 1
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["ratio"] is None and row["equal"] is False
    assert "| NO |" in capsys.readouterr().out


def test_the_file_holds_machine_and_rows(tmp_path, capsys):
    assert benchmark.main(["--quick", "--only", "P6.pixel", "--json", str(tmp_path / "rows.json")]) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert {"cpu", "threads", "commit", "torch", "torchvision"} <= set(content["machine"])
    (row,) = content["rows"]
    assert row["id"] == "P6.pixel_centres" and row["equal"] and row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    assert row["spread"][0] <= row["spread"][1] and row["command"].endswith("--only P6.pixel --json " + str(tmp_path / "rows.json"))
    assert "P6.pixel_centres" in capsys.readouterr().out


def test_an_unknown_row_and_a_missing_gpu_are_said(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "P99"])
    assert "no such row" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "torch sees no GPU" in capsys.readouterr().err


def test_turns_alternate_and_ratios_are_of_medians():
    order = []
    row = take_turns(Case("x", "", lambda: order.append("ours"), lambda: order.append("peer"), True, images=2), repeats=3)
    assert order == ["ours", "peer"] * 4
    assert row["images_per_second"][0] == 2 / row["ours"]
    assert compared({"ours": [1.0, 2.0, 9.0], "peer": [4.0, 4.0, 9.0]}) == {"ours": 2.0, "peer": 4.0, "ratio": 2.0, "spread": [1.0, 4.0]}


@needs_linux
def test_peak_memory_sees_what_is_gone_again():
    size = 96 * 2**20
    # Memory is counted in pages, and some pages were there before.
    assert 0.9 * size <= peak_bytes(lambda: torch.ones(size, dtype=torch.uint8).max(), "cpu") < 2 * size
