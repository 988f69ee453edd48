"""The CUDA kernels: when they are compiled, what is said when they can't be, and that they compile where nvcc is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskrcnn_bench.layers import _build, _ops

OPS = ("nms", "roi_align", "roi_align_backward", "polygon_targets", "bitmap_targets", "match", "decode_boxes")
CUDA_ALONE = ("sigmoid_focal_loss", "sigmoid_focal_loss_backward", "roi_pool", "roi_pool_backward")
CUDA_ALONE += ("deform_psroi_pool", "deform_psroi_pool_backward", "mask_edge_counts", "mask_edges")
RELEASE = f"release {torch.version.cuda}, V{torch.version.cuda}.1"


@pytest.fixture
def fake_tools(tmp_path, monkeypatch):
    """Compilers that note each call in `calls` and write a word instead of machine code; the toolkit is in `toolkit`."""
    script = (
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, {RELEASE}" && exit\n'
        f'echo "$(basename $0) $@" >> "{tmp_path}/calls"\n'
        f'[ "$(basename $0)" = nvcc ] && [ -e "{tmp_path}/broken" ] && echo "nvcc is unhappy" && exit 1\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built > "$2"; shift; done\n'
    )
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    for path in (tmp_path / "toolkit" / "bin" / "nvcc", tmp_path / "c++"):
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setattr(_build, "find_compiler", lambda: (str(tmp_path / "c++"), "fake 1"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return tmp_path


@pytest.fixture
def two_cards(monkeypatch):
    """An A100 and two H100 in sight."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0), (9, 0)][index])


needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA")


def test_architectures_are_those_in_sight_unless_named(two_cards, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert _build.visible_architectures() == ("8.0", "9.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX;8.6")
    assert _build.visible_architectures() == ("8.6", "9.0+PTX")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _build.visible_architectures() == ()


def test_a_process_that_cannot_start_cuda_sees_no_architectures(two_cards, monkeypatch):
    def refuse(index):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    assert _build.visible_architectures() == ()


@needs_cuda_torch
def test_with_a_gpu_all_kernels_are_compiled_once(fake_tools, two_cards, capfd):
    library = _ops._with_cuda()
    assert library == _ops._with_cuda() and library.read_text() == "built\n"
    cache = fake_tools / "cache"
    assert capfd.readouterr().err == f"maskrcnn_bench: compiling CPU and CUDA kernels (8.0, 9.0) once (~2 min), cached in {cache}\n"
    calls = (fake_tools / "calls").read_text().splitlines()
    by_nvcc = [call for call in calls if call.startswith("nvcc")]
    sources = _build.source_files(_build.find_sources(), _build.find_cuda(("9.0",)))
    kernels = [path for path in sources if path.suffix == ".cu"]
    assert len(calls) == len(sources) + 1 and len(by_nvcc) == len(kernels) + 1
    for path in kernels:
        (call,) = [call for call in by_nvcc if str(path) in call]
        assert "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90" in call and "-fmad=false" in call
    assert "-shared" in by_nvcc[-1] and "-ltorch_cuda" in by_nvcc[-1]


@needs_cuda_torch
def test_the_key_follows_the_cards_and_the_toolkit(fake_tools):
    sources, cuda = _build.find_sources(), _build.find_cuda(("9.0",))
    others = [None, cuda, cuda._replace(version="release 99.9"), cuda._replace(architectures=("8.0",))]
    assert len({_build.base_key(sources, other) for other in others}) == 4


@needs_cuda_torch
def test_ptx_is_added_when_asked(fake_tools):
    cuda = _build.find_cuda(("9.0+PTX",))
    assert _build._code_flags(cuda) == ["-gencode=arch=compute_90,code=sm_90", "-gencode=arch=compute_90,code=compute_90"]


SLOWER = "maskrcnn_bench: CUDA tensors run on torchvision's and torch's operators, slower than the compiled kernels: "


def test_without_nvcc_the_reason_is_said(fake_tools, two_cards, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_HOME", str(fake_tools / "elsewhere"))
    assert _ops._with_cuda() is None
    assert capfd.readouterr().err == f"{SLOWER}nvcc was not found (CUDA_HOME is {fake_tools / 'elsewhere'})\n"


def test_another_toolkit_is_refused(fake_tools, two_cards, capfd):
    nvcc = fake_tools / "toolkit" / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 7.5, V7.5.17'\n")
    assert _ops._with_cuda() is None
    wanted = f"{nvcc} answers 'release 7.5, V7.5.17', but this torch needs the toolkit of CUDA {torch.version.cuda}"
    assert capfd.readouterr().err == f"{SLOWER}{wanted}\n"


@needs_cuda_torch
def test_when_nvcc_fails_the_cpu_kernels_remain(fake_tools, two_cards, capfd):
    (fake_tools / "broken").touch()
    assert _ops._with_cuda() is None
    (log,) = (fake_tools / "cache").glob("*.failed.log")
    assert "nvcc is unhappy" in log.read_text()
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == f"{SLOWER}the build failed; {log} says why, delete it to try again"
    assert _build.cached_library(lambda line: None).exists()


def real_cuda(*architectures: str) -> _build.Cuda:
    try:
        _build.find_compiler()
        _build.find_ninja()
        return _build.find_cuda(architectures)
    except _build.BuildError as error:
        pytest.skip(str(error))


def test_one_kernel_compiles_for_hopper(tmp_path):
    cuda = real_cuda("9.0")
    (tmp_path / "build.ninja").write_text(_build._ninja_file(_build.find_sources(), _build.find_compiler()[0], cuda))
    done = subprocess.run([_build.find_ninja(), "-C", tmp_path, "bitmap_targets.cu.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout
    assert (tmp_path / "bitmap_targets.cu.o").stat().st_size > 10_000


LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
alone = sys.argv[2].split(",")
for name in (*alone, *sys.argv[3:]):
    for key in ("CUDA",) if name in alone else ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("maskrcnn_bench::" + name, key), (name, key)
boxes = torch.tensor([[[0., 0, 9, 9], [1, 0, 9, 9], [20, 0, 29, 9]]])
print(torch.ops.maskrcnn_bench.nms(boxes, torch.tensor([[1., 2, 3]]), torch.ones(1, 3, dtype=torch.bool), .5, 0., -1).tolist())
"""


@pytest.mark.full
def test_all_kernels_compile_and_link_for_ampere_and_hopper(tmp_path):
    cuda = real_cuda("8.0", "9.0")
    library = Path(tmp_path) / "ops.so"
    try:
        _build.build(_build.find_sources(), library, _build.find_compiler()[0], _build.find_ninja(), cuda)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout[-3000:])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(library), ",".join(CUDA_ALONE), *OPS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[[False, True, True]]\n", done.stderr
