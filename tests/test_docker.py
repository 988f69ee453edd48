"""The Dockerfiles, without Docker: what they copy, what they run, and how; with --full their commands are run."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import runpy
import shlex
import shutil
import string
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted((REPOSITORY / "docker").glob("Dockerfile*"))
INSTRUCTIONS = {"FROM", "SHELL", "RUN", "ENV", "ARG", "COPY", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
# What the wheel is made of.
NEEDED = {"constraints.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "configs", "maskrcnn_bench"}

dockerfiles = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


class Line(NamedTuple):
    """One instruction, its lines joined as Docker joins them."""

    name: str
    value: str


def read(file: Path) -> list[Line]:
    """The instructions of a Dockerfile; comments go, also those between the lines of one instruction."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    text = re.sub(r"\\\n", "", text)
    return [Line(*line.split(None, 1)) for line in text.splitlines() if line.strip()]


def values(lines: list[Line], name: str) -> list[str]:
    return [line.value for line in lines if line.name == name]


def copied(lines: list[Line]) -> list[str]:
    """What comes from the checkout."""
    words = [value.split() for value in values(lines, "COPY") if not value.startswith("--from=")]
    return [source for row in words for source in row[:-1] if not source.startswith("--")]


def faults(lines: list[Line]) -> list[str]:
    """What hadolint would say, as far as this project's files go."""
    found = [f"unknown instruction {line.name}" for line in lines if line.name not in INSTRUCTIONS]
    stages: set[str] = set()
    for value in values(lines, "FROM"):
        image, _, stage = value.partition(" AS ")
        if image not in stages and not re.search(r":[\w.-]*\d", image):
            found.append(f"image without a version: {image}")
        stages.add(stage)
    found += [f"no stage {name}" for name in re.findall(r"--from=(\w+)", "\n".join(values(lines, "COPY"))) if name not in stages]
    environment = " ".join(values(lines, "ENV"))
    for command in values(lines, "RUN"):
        if subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode:
            found.append(f"no shell code: {command}")
        found += _apt_faults(command) if "apt-get" in command else []
        pinned = "--constraint constraints.txt" in command and "PIP_NO_CACHE_DIR=1" in environment
        if re.search(r"\bpip install\b", command) and not pinned:
            found.append(f"versions or cache of pip: {command}")
        if re.search(r"\b(sudo|cd|nvidia-smi)\b|torch\.cuda", command):
            found.append(f"sudo, cd, or a GPU while building: {command}")
    found += [f"relative {value}" for value in values(lines, "WORKDIR") if not value.startswith("/")]
    shells = [k for k, line in enumerate(lines) if line.name in ("SHELL", "FROM")]
    if any("pipefail" not in lines[k + 1].value for k in shells if lines[k].name == "FROM"):
        found.append("no pipefail")
    users = values(lines, "USER")
    if not users or users[-1] in ("root", "0"):
        found.append("runs as root")
    return found


def _apt_faults(command: str) -> list[str]:
    wanted = ("apt-get update", "apt-get install -y --no-install-recommends", "rm -rf /var/lib/apt/lists/*")
    found = [f"{words!r} missing: {command}" for words in wanted if words not in command]
    packages = shlex.split(command.split("--no-install-recommends")[-1].split("&&")[0])
    return found + [f"no version of package {package}" for package in packages if "=" not in package]


@dockerfiles
def test_follows_the_rules(file):
    assert faults(read(file)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM python:3.12-slim-bookworm\n", "FROM python\n"),
        ("--from=build", "--from=nowhere"),
        (" && rm -rf /var/lib/apt/lists/*", ""),
        ("libgomp1=12.2.*", "libgomp1"),
        (" --no-install-recommends", ""),
        ("--constraint constraints.txt . av", ". av"),
        ("PIP_NO_CACHE_DIR=1 ", ""),
        ("USER bench\n", ""),
        ("WORKDIR /workspace", "WORKDIR workspace"),
        ('SHELL ["/bin/bash", "-o", "pipefail", "-c"]\n', ""),
        ("RUN python3 -m venv", "RUN (python3 -m venv"),
        ("RUN python3", "RUN sudo python3"),
        ("EXPOSE 8080", "EXPORT 8080"),
    ],
)
def test_the_rules_notice(old, new, tmp_path):
    text = re.sub(r" *\\\n *", " ", (REPOSITORY / "docker" / "Dockerfile.cpu").read_text())
    assert old in text
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace(old, new))
    assert faults(read(broken)) != []


@dockerfiles
def test_all_that_is_needed_is_copied_and_nothing_is_kept_back(file):
    sources = copied(read(file))
    assert set(sources) == NEEDED
    assert [source for source in sources if not (REPOSITORY / source).exists() or ignored(source)] == []
    assert ignored("output") and ignored(".git") and ignored("tests/conftest.py")
    assert ignored("maskrcnn_bench/data/__pycache__") and not ignored("maskrcnn_bench/cli.py")


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file of the checkout away; as Docker has it, the last pattern that fits decides."""
    result = False
    for pattern in (REPOSITORY / ".dockerignore").read_text().split("\n"):
        body = pattern.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        if not body or body.startswith("#"):
            continue
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else ["/".join(parts[: k + 1]) for k in range(len(parts))]
        if any(fnmatch.fnmatch(name, body) for name in names):
            result = not pattern.startswith("!")
    return result


@dockerfiles
def test_starts_our_program_and_keeps_weights_where_they_can_be_mounted(file):
    lines = read(file)
    program, (words,) = json.loads(values(lines, "ENTRYPOINT")[0])[0], [json.loads(value) for value in values(lines, "CMD")]
    assert f'"{program} = ' in (REPOSITORY / "setup.py").read_text() and words == ["doctor"]
    assert "MODEL_DIR=/workspace/weights" in " ".join(values(lines, "ENV")) and "--shm-size=8g" in file.read_text()


def test_cuda_of_the_image_is_that_of_torch():
    (image,) = values(read(REPOSITORY / "docker" / "Dockerfile"), "FROM")
    major, minor = re.match(r"nvidia/cuda:(\d+)\.(\d+)\.\d+-devel-", image).groups()
    assert f"cuda-toolkit=={major}.{minor}." in (REPOSITORY / "constraints.txt").read_text()


def test_kernels_compiled_ahead_are_those_that_a_gpu_then_finds(monkeypatch):
    torch = pytest.importorskip("torch")
    from maskrcnn_bench.layers import _build

    lines = read(REPOSITORY / "docker" / "Dockerfile")
    (command,) = [shlex.split(value) for value in values(lines, "RUN") if value.startswith("python -c")]
    (default,) = re.findall(r'CUDA_ARCHITECTURES="(.+)"', "\n".join(values(lines, "ARG")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", default)
    monkeypatch.setattr(_build, "find_cuda", lambda architectures: architectures)
    built = []
    monkeypatch.setattr(_build, "cached_library", lambda say, cuda: built.append(cuda))
    exec(command[2], {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert built == [_build.visible_architectures()] and len(built[0]) >= 5


def test_operators_compiled_while_installing_are_looked_for_where_they_lie(monkeypatch, tmp_path):
    import setuptools

    from maskrcnn_bench.layers import _build, _ops

    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    setup = runpy.run_path(str(REPOSITORY / "setup.py"))
    monkeypatch.setattr(_build, "HERE", tmp_path / "layers" / "_build.py")
    monkeypatch.setattr(_build, "find_sources", lambda: REPOSITORY / "csrc")
    (tmp_path / "layers").mkdir()
    assert _ops._prebuilt() is None
    library = setup["library_place"](tmp_path, _build)
    library.touch()
    assert _ops._prebuilt() == library


# ------------------------------------------------------------------------------------------------------- running them


# All architectures take minutes each.
BUILD_ARGUMENTS = {"CUDA_ARCHITECTURES": "9.0"}


@pytest.mark.full
@dockerfiles
def test_commands_run(file, tmp_path):
    """What needs the base image or a net is left out: packages of the system, users, nvcc; torch is lent by this environment."""
    root = tmp_path / "root"
    environment = {**os.environ, "HOME": str(root / "home"), "PIP_NO_INDEX": "0"}
    environment.pop("PYTHONPATH", None)
    lent, place = lend_packages(tmp_path / "lent"), root
    (root / "home").mkdir(parents=True)
    for name, value in read(file):
        value = inside(value, root)
        if name == "WORKDIR":
            place = Path(value)
            place.mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            pairs = (word.split("=", 1) for word in shlex.split(value))
            environment |= {key: string.Template(text).substitute(environment) for key, text in pairs}
        elif name == "ARG":
            key, _, text = value.partition("=")
            environment[key] = BUILD_ARGUMENTS.get(key, text.strip('"'))
        elif name == "COPY" and not value.startswith("--from="):
            copy(value.split()[:-1], place / value.split()[-1])
        elif name == "RUN":
            run(value, place, environment)
            if "-m venv" in value:
                (next((root / "opt/venv/lib").glob("python3*")) / "site-packages" / "lent.pth").write_text(f"{lent}\n")
    assert_works(root, environment, has_compiler=file.name == "Dockerfile")


def inside(value: str, root: Path) -> str:
    """A command with the places of the image below a folder."""
    return re.sub(r"(?<![\w./])/(opt|workspace)\b", rf"{root}/\1", value)


def lend_packages(folder: Path) -> Path:
    """The packages of this environment but the project's own."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(__editable__|maskrcnn|_?_?pycache|pip\b|distutils-precedence)", path.name):
            (folder / path.name).symlink_to(path)
    return folder


def copy(sources: list[str], target: Path) -> None:
    for source in sources:
        skip = shutil.ignore_patterns("__pycache__", "*.so")
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, target, ignore=skip)
        else:
            shutil.copy(REPOSITORY / source, target)


def run(command: str, place: Path, environment: dict[str, str]) -> None:
    """One RUN; commands of the system are left out."""
    if re.match(r"(apt-get|useradd)", command) or (command.startswith("python -c") and not shutil.which("nvcc")):
        return
    words = command.replace("python3 -m venv", f"{sys.executable} -m venv")
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words], cwd=place, env=environment, capture_output=True, text=True)
    logs = "".join(path.read_text()[-3000:] for path in Path(environment.get("MASKRCNN_BENCH_CACHE", "none")).glob("*.log"))
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}{logs}"


def assert_works(root: Path, environment: dict[str, str], has_compiler: bool) -> None:
    """The program that was installed runs, on compiled kernels: those of the wheel, or those that it compiles."""
    environment.setdefault("MASKRCNN_BENCH_CACHE", str(root / "kernels"))
    if not has_compiler:
        environment |= {"PATH": str(root / "opt" / "venv" / "bin"), "CXX": "none"}
    program = root / "opt" / "venv" / "bin" / "maskrcnn-bench"
    done = subprocess.run([program, "doctor", "--json"], cwd=root / "workspace", env=environment, capture_output=True, text=True)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0 and "csrc" in checks["op nms"]["value"], done.stdout + done.stderr
    code = "import maskrcnn_bench, sys; print(maskrcnn_bench.__file__)"
    where = subprocess.run([program.with_name("python"), "-c", code], cwd=root, env=environment, capture_output=True, text=True).stdout
    assert Path(where.strip()).is_relative_to(root)
