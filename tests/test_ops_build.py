"""Where the operators come from: the sources, the compiled library and its cache, what replaces it, and what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest

from maskrcnn_bench.layers import _build, _ops


def test_kernels_never_wait_for_the_device(repository):
    text = {path.name: path.read_text() for path in (repository / "csrc").rglob("*.*")}
    names = ("nms", "roi_align", "polygon_targets", "bitmap_targets", "match", "decode_boxes")
    alone = ("roi_align_backward.cu", "roi_pool.cu", "deform_psroi_pool.cu", "mask_paste.cu", "sigmoid_focal_loss.cu")
    assert {"ops.cpp", *alone, *(f"{name}.{ending}" for name in names for ending in ("cpp", "cu"))} <= set(text)
    for name, source in text.items():
        waits = re.search(r"\bitem\b|[mM]emcpy|[sS]ynchronize|nonzero|\.cpu\(|kCPU|is_nonzero|masked_select", source)
        assert not waits, (name, waits)


def test_schemas_are_the_same_in_both_languages(repository):
    source = (repository / "csrc" / "ops.cpp").read_text()
    strings = ["".join(re.findall(r'"(.*?)"', call)) for call in source.split("m.def(")[1:]]
    assert tuple(strings) == _ops.SCHEMAS


SCRIPT = """
import sys, torch
from maskrcnn_bench.layers import _ops, nms, polygon_targets
print(_ops.load(), *(_ops.implementation(name) for name in ("nms", "roi_align", "roi_align_backward", "polygon_targets", "bitmap_targets")))
print(nms(torch.tensor([[0., 0, 9, 9], [1, 0, 9, 9], [20, 0, 29, 9]]), torch.tensor([1., 2, 3]), .5).tolist())
square = torch.tensor([[1., 1], [3, 1], [3, 3], [1, 3]])
frames = torch.tensor([[0., 0, 1, 1]])
for _ in range(2):
    print(int(polygon_targets(square, torch.tensor([0, 4]), torch.tensor([0, 1]), frames, torch.tensor([0]), 5).sum()))
tests = ("test_schema", "test_autograd_registration", "test_faketensor")
boxes, scores = torch.rand(1, 3, 4), torch.rand(1, 3)
torch.library.opcheck(torch.ops.maskrcnn_bench.nms.default, (boxes, scores, scores > .5, .5, 1., 2), test_utils=tests)
features = [torch.rand(1, 2, 5, 5, requires_grad=True)]
inds = torch.zeros(2, dtype=torch.int64)
arguments = (features, boxes[0, :2], inds, inds, [1.], 2, 2, 0, .5, 0.)
torch.library.opcheck(torch.ops.maskrcnn_bench.roi_align.default, arguments, test_utils=tests)
with torch.autocast("cpu", torch.bfloat16):
    inside = torch.ops.maskrcnn_bench.roi_align(*arguments)
assert torch.equal(inside, torch.ops.maskrcnn_bench.roi_align(*arguments))
"""


def run_script(repository, **environment):
    variables = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True, timeout=300)


def spoken(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("maskrcnn_bench:")]


PYCOCOTOOLS = "maskrcnn_bench: mask targets from polygons are drawn by pycocotools on the CPU, one object after the other"


def test_plain_torch_has_the_same_operators(repository):
    done = run_script(repository, MASKRCNN_BENCH_OPS="torch")
    assert spoken(done) == [PYCOCOTOOLS]
    assert done.stdout.splitlines() == ["torch torch torch torch pycocotools torch", "[2, 1]", "4", "4"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere csrc/ is compiled only when asked")
def test_without_a_compiler_torchvision_runs_and_the_reason_is_said(repository, tmp_path):
    done = run_script(repository, PATH=str(tmp_path), CXX="", MASKRCNN_BENCH_OPS="", MASKRCNN_BENCH_CACHE=str(tmp_path))
    reason = "no C++ compiler was found (c++, g++ or clang++; the variable CXX names another)"
    slower = f"maskrcnn_bench: running on torchvision's operators, slower than the compiled kernels: {reason}"
    assert spoken(done) == [slower, PYCOCOTOOLS]
    assert done.stdout.splitlines() == ["torchvision torchvision torchvision torchvision pycocotools torch", "[2, 1]", "4", "4"]


def test_forced_csrc_that_cannot_be_compiled_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_BENCH_OPS", "csrc")
    monkeypatch.setattr(_build, "HERE", tmp_path / "package" / "layers" / "_build.py")
    with pytest.raises(RuntimeError, match="MASKRCNN_BENCH_OPS=csrc, but the C.. sources were not found in .*package/csrc"):
        _ops.load.__wrapped__()


def test_unknown_way(monkeypatch):
    monkeypatch.setenv("MASKRCNN_BENCH_OPS", "cuda")
    with pytest.raises(ValueError, match="expected one of csrc, torchvision, torch or nothing, got 'cuda'"):
        _ops.load.__wrapped__()


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that notes each call in `calls` and writes its own arguments instead of machine code; cache in `cache`."""
    script = tmp_path / "fake c++"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1 && exit\necho "$@" >> "{tmp_path}/calls"\n'
        f'[ -e "{tmp_path}/broken" ] && echo "ops.cpp: something is wrong" && exit 1\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built > "$2"; shift; done\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    found = _build.find_compiler.__wrapped__()
    assert found == (str(script), "fake 1")
    monkeypatch.setattr(_build, "find_compiler", lambda: found)
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_many_starters_build_once(fake_compiler):
    lines, found = [], []
    starters = [threading.Thread(target=lambda: found.append(_build.cached_library(lines.append))) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert found[0].read_text() == "built\n"
    assert lines == [f"compiling CPU kernels once (~1 min), cached in {fake_compiler / 'cache'}"]
    calls = (fake_compiler / "calls").read_text().splitlines()
    assert len(calls) == len(_build.source_files(_build.find_sources())) + 1
    assert all("-march" not in call for call in calls)
    assert sorted(path.suffix for path in (fake_compiler / "cache").iterdir()) == [".lock", ".so"]


def test_a_failing_build_is_told_once_and_leaves_its_log(fake_compiler):
    (fake_compiler / "broken").touch()
    with pytest.raises(_build.BuildError, match="the build failed; .*failed.log says why"):
        _build.cached_library(lambda line: None)
    (log,) = (fake_compiler / "cache").glob("*.failed.log")
    assert "something is wrong" in log.read_text()
    with pytest.raises(_build.BuildError, match="an earlier build failed"):
        _build.cached_library(pytest.fail)
    (fake_compiler / "broken").unlink()
    log.unlink()
    assert _build.cached_library(lambda line: None).exists()


def test_key_follows_sources_and_compiler(fake_compiler, monkeypatch, tmp_path):
    first = _build.cached_library(lambda line: None)
    monkeypatch.setattr(_build, "FLAGS", (*_build.FLAGS, "-g"))
    second = _build.cached_library(lambda line: None)
    monkeypatch.setattr(_build, "find_compiler", lambda: (os.environ["CXX"], "fake 2"))
    third = _build.cached_library(lambda line: None)
    assert len({first, second, third}) == 3


def test_a_cache_that_cannot_be_written_is_replaced(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(_build.tempfile, "tempdir", str(tmp_path))
    spare = _build.cache_folder()
    assert spare.parent == tmp_path and spare.stat().st_mode & 0o777 == 0o700
    spare.chmod(0o777)
    with pytest.raises(_build.BuildError, match="a folder that only you can write"):
        _build.cache_folder()


def test_a_library_built_ahead_is_used(monkeypatch, tmp_path, repository):
    (tmp_path / "any.so").write_text("library")
    monkeypatch.setattr(_build, "cached_library", lambda announce: tmp_path / "any.so")
    monkeypatch.setattr(_build, "HERE", tmp_path / "_build.py")
    sources = repository / "csrc"
    monkeypatch.setattr(_build, "find_sources", lambda: sources)
    assert _ops._prebuilt() is None
    placed = _ops.build_ahead(tmp_path)
    assert placed.name.startswith("_C_") and _ops._prebuilt() == placed
    monkeypatch.setattr(_build, "FLAGS", ("-O0",))
    assert _ops._prebuilt() is None


def test_only_the_first_rank_speaks(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    _ops.say("hello")
    monkeypatch.setenv("LOCAL_RANK", "0")
    _ops.say("hello")
    assert capsys.readouterr().err == "maskrcnn_bench: hello\n"
