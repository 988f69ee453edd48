"""`maskrcnn-bench doctor`: what this installation consists of, what is broken, and the command that repairs it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from . import __version__

OPS = ("nms", "roi_align", "roi_align_backward", "polygon_targets", "bitmap_targets", "match", "decode_boxes")
CUDA_OPS = ("roi_pool", "roi_pool_backward", "deform_psroi_pool", "deform_psroi_pool_backward")
CUDA_OPS += ("sigmoid_focal_loss", "sigmoid_focal_loss_backward")
"""Operators whose kernel is for CUDA alone; torch and torchvision do as well on the CPU."""
_OLDEST = {"torch": (2, 11), "torchvision": (0, 26)}
_MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}
_COLOURS = {"ok": "\033[32m", "note": "\033[33m", "broken": "\033[31m"}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    state: str = "ok"
    """ "ok"; "note": works, but slower or with less; "broken": training or testing will fail."""
    fix: str = ""


def doctor_main(argv: Sequence[str]) -> int:
    """Prints the report; `argv` is what follows the word `doctor`. Returns 1 when something essential is broken."""
    parser = argparse.ArgumentParser(description="Report versions, devices and operators, and how to repair what is broken.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    checks = examine()
    broken = sum(check.state == "broken" for check in checks)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print("\n".join(_lines(checks, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)))
        print(f"\n{broken} broken." if broken else "\nNothing essential is broken.")
    return 1 if broken else 0


def examine() -> list[Check]:
    """Runs every check; a check that fails itself becomes a broken line."""
    checks: list[Check] = []
    for part in (_python, _packages, _torch_pair, _device, _compiler, _ops, _evaluator, _shared_memory):
        try:
            checks.extend(part())
        # Whatever an examined library raises is what the report is for.
        except Exception as error:
            checks.append(Check(part.__name__.strip("_"), f"{type(error).__name__}: {error}", "broken", "pip install -e . again"))
    return checks


def _lines(checks: list[Check], colour: bool) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = f"{_COLOURS[check.state]}{_MARKS[check.state]}\033[0m" if colour else _MARKS[check.state]
        yield f"{mark} {check.name:<{width}}  {check.value}"
        if check.fix:
            yield f"       {'':<{width}}  -> {check.fix}"


def _python() -> Iterator[Check]:
    yield Check("maskrcnn_bench", __version__)
    value = f"{platform.python_version()}, {platform.platform()}"
    old = sys.version_info < (3, 10)
    yield Check("python", value, "broken", "install Python 3.10 or newer") if old else Check("python", value)


def _packages() -> Iterator[Check]:
    for name in ("torch", "torchvision", "yacs", "numpy", "pillow", "pycocotools", "hotcoco", "matplotlib", "tqdm"):
        yield _package(name)


def _package(name: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # Without the fast evaluator pycocotools does its work.
        state = "note" if name == "hotcoco" else "broken"
        return Check(name, "not installed", state, f"pip install {name}")
    oldest = _OLDEST.get(name, ())
    if _numbers(version) < oldest:
        needed = ".".join(map(str, oldest))
        return Check(name, f"{version}, older than {needed}", "broken", f"pip install --upgrade '{name}>={needed}'")
    return Check(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _torch_pair() -> Iterator[Check]:
    """A torchvision that was built for another torch imports, but has no operators."""
    import torch

    fix = "install the pair that constraints.txt names: pip install -c constraints.txt torch torchvision"
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Check("torch + torchvision", str(error).splitlines()[0], "broken", fix)
    else:
        yield Check("torch + torchvision", "fit together")


def _device() -> Iterator[Check]:
    import torch

    yield Check("threads", f"{torch.get_num_threads()} for torch, {os.cpu_count()} processors")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    elif torch.version.cuda is None:
        yield Check("cuda", "torch is built without CUDA: everything runs on the CPU", "note", "for a GPU, install torch with CUDA")
    else:
        fix = "MODEL.DEVICE auto takes the CPU; for a GPU, see that nvidia-smi lists one in this environment"
        yield Check("cuda", f"torch is built for CUDA {torch.version.cuda}, but sees no GPU", "note", fix)


def _compiler() -> Iterator[Check]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)
    fix = "apt-get install g++ (or set CXX); until then slower operators run"
    yield Check("compiler", compiler) if compiler else Check("compiler", "no C++ compiler", "note", fix)
    ninja = shutil.which("ninja") or _find_spec("ninja")
    yield Check("ninja", ninja) if ninja else Check("ninja", "not installed", "note", "pip install ninja")


def _find_spec(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return spec.origin if spec else None


def _ops() -> Iterator[Check]:
    """What runs each operator, on each device that is there."""
    import torch

    from .layers import _ops

    _ops.load()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for name in (*OPS, *CUDA_OPS):
        used = {device: _ops.implementation(name, device) for device in devices}
        slow = [
            device for device, implementation in used.items() if implementation != "csrc" and not (name in CUDA_OPS and device == "cpu")
        ]
        fix = {
            (): "",
            ("cuda",): "the compiled CUDA operator is faster: it needs nvcc of the CUDA version of torch (CUDA_HOME names its folder)",
        }.get(tuple(slow), "the compiled operator is faster: it needs a compiler and ninja, see above")
        shown = ", ".join(f"{device} {implementation}" for device, implementation in used.items())
        yield Check(f"op {name}", shown if "cuda" in used else f"{shown}, cuda no device", "note" if slow else "ok", fix)


def _evaluator() -> Iterator[Check]:
    from .evaluation.evaluators import choose_evaluator, hotcoco_fault

    fault = hotcoco_fault()
    fix = "pip install --upgrade hotcoco; pycocotools gives the same numbers, slower" if fault else ""
    value = " ".join(choose_evaluator("pycocotools" if fault else "hotcoco"))
    yield Check("evaluator", f"{value} (hotcoco {fault})" if fault else value, "note" if fault else "ok", fix)


def _shared_memory(path: str = "/dev/shm", usage: Callable = shutil.disk_usage) -> Iterator[Check]:
    """Loading processes hand images over through /dev/shm; containers often have 64 MiB of it."""
    if not os.path.isdir(path):
        return
    free = usage(path).free / 2**30
    fix = "" if free >= 1 else "docker run --shm-size 8g ..., or DATALOADER.NUM_WORKERS 0"
    yield Check("shared memory", f"{free:.1f} GiB free in {path}", "note" if fix else "ok", fix)


if __name__ == "__main__":
    sys.exit(doctor_main(sys.argv[1:]))
