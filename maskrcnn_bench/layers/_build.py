"""Compiles csrc/ with ninja into a cached library: the CPU's kernels, and those for CUDA where there is a GPU.

Knows torch's folders and the compilers' flags, but no operator.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).resolve()
# -ffp-contract=off: the same sums on every processor, and the rounding of the COCO API in polygon_targets.
# -fno-trapping-math: nobody reads the floating-point flags, and without it the division in nms stays scalar before AVX-512.
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden", "-Wall")


# -fmad=false: the decisions of the CPU's kernels, to the bit.
CUDA_FLAGS = ("-O3", "-std=c++20", "-fmad=false", "--expt-relaxed-constexpr")


class BuildError(RuntimeError):
    """The kernels can't be compiled here; the message says why in one line."""


class Cuda(NamedTuple):
    """What compiles the CUDA kernels: path of nvcc, the line with its version, architectures such as "9.0" or "9.0+PTX"."""

    nvcc: str
    version: str
    architectures: tuple[str, ...]


def find_sources() -> Path:
    """Folder of the C++ sources: inside an installed package, or beside it in a checkout."""
    package = HERE.parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise BuildError(f"the C++ sources were not found in {package / 'csrc'} or {package.parent / 'csrc'}")


def source_files(folder: Path, cuda: Cuda | None = None) -> list[Path]:
    files = [folder / "ops.cpp", *sorted((folder / "cpu").glob("*.cpp"))]
    return files if cuda is None else [*files, *sorted((folder / "cuda").glob("*.cu"))]


def base_key(folder: Path, cuda: Cuda | None = None) -> str:
    """Hash of all that decides whether a library fits this torch and this machine, the compiler aside."""
    digest = hashlib.sha256()
    headers = [*folder.glob("*.h"), *folder.glob("cpu/*.h"), *(folder.glob("cuda/*.cuh") if cuda else ())]
    for path in sorted([*source_files(folder, cuda), *headers]):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    cuda_parts = () if cuda is None else (*CUDA_FLAGS, cuda.version, *cuda.architectures)
    for part in (torch.__version__, *FLAGS, *cuda_parts, platform.machine(), sys.platform):
        digest.update(f"\0{part}".encode())
    return digest.hexdigest()[:16]


@cache
def find_compiler() -> tuple[str, str]:
    """Path of the C++ compiler (`CXX`, or the first of c++, g++, clang++) and the first line of its version."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True)
            if shown.returncode == 0:
                return path, shown.stdout.splitlines()[0]
    raise BuildError("no C++ compiler was found (c++, g++ or clang++; the variable CXX names another)")


def find_cuda(architectures: tuple[str, ...]) -> Cuda:
    """nvcc of `CUDA_HOME`, else on PATH, else of /usr/local/cuda, if it fits this torch.

    Raises:
        BuildError: no nvcc, or one of another CUDA version than torch's.
    """
    home = os.environ.get("CUDA_HOME")
    candidates = [os.path.join(home, "bin", "nvcc")] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next((path for path in map(shutil.which, candidates) if path), None)
    if nvcc is None:
        raise BuildError(f"nvcc was not found ({f'CUDA_HOME is {home}' if home else 'CUDA_HOME names the folder of the CUDA toolkit'})")
    shown = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.\d+.*", shown)
    if release is None or torch.version.cuda is None or release[1] != torch.version.cuda.split(".")[0]:
        found = release[0] if release else "no version"
        raise BuildError(f"{nvcc} answers {found!r}, but this torch needs the toolkit of CUDA {torch.version.cuda}")
    return Cuda(nvcc, release[0], architectures)


def visible_architectures() -> tuple[str, ...]:
    """Architectures of the GPUs in sight, or `TORCH_CUDA_ARCH_LIST` in their place; empty without a GPU."""
    try:
        if not torch.cuda.is_available():
            return ()
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
        cards = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    except RuntimeError:  # a process forked after CUDA was started: it can't use the GPU anyway
        return ()
    return tuple(sorted(wanted or {f"{major}.{minor}" for major, minor in cards}))


def find_ninja() -> str:
    """Path of ninja: beside this Python (the `ninja` wheel), else on PATH."""
    beside = Path(sys.executable).with_name("ninja")
    path = str(beside) if beside.is_file() else shutil.which("ninja")
    if path is None:
        raise BuildError("ninja was not found (`pip install ninja` brings it)")
    return path


def cache_folder() -> Path:
    """`$MASKRCNN_BENCH_CACHE`, else ~/.cache/maskrcnn_bench, else (neither can be written) one in the temporary folder."""
    wanted = os.environ.get("MASKRCNN_BENCH_CACHE")
    folder = Path(wanted) if wanted else Path.home() / ".cache" / "maskrcnn_bench"
    if _writable(folder):
        return folder
    user = os.getuid()
    spare = Path(tempfile.gettempdir()) / f"maskrcnn_bench-{user}"
    # Another user could have made this folder first, and we run what lies in it.
    if not _writable(spare) or spare.stat().st_uid != user or spare.stat().st_mode & 0o022:
        raise BuildError(f"neither {folder} nor {spare} is a folder that only you can write (set MASKRCNN_BENCH_CACHE)")
    return spare


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cached_library(announce: Callable[[str], None], cuda: Cuda | None = None) -> Path:
    """The compiled library of this machine, compiled now if it isn't in the cache.

    Whoever comes first builds, everybody else waits for the lock and finds the result, a failed one included: the
    ranks of a machine therefore always agree.

    Args:
        announce: called with one line before the compiler starts.
        cuda: with the CUDA kernels, compiled by this.

    Raises:
        BuildError: no compiler, no ninja, no place to write, or the build failed (now or before).
    """
    if os.name != "posix":
        raise BuildError(f"csrc/ is not compiled on {sys.platform}")
    sources = find_sources()
    compiler, version = find_compiler()
    key = hashlib.sha256(f"{base_key(sources, cuda)} {version}".encode()).hexdigest()[:16]
    folder = cache_folder()
    library, log = folder / f"ops_{key}.so", folder / f"ops_{key}.failed.log"
    if not library.exists():
        with _locked(folder / f"ops_{key}.lock"):
            if not library.exists():
                _build_once(sources, compiler, library, log, announce, cuda)
    return library


def _build_once(sources: Path, compiler: str, library: Path, log: Path, announce: Callable[[str], None], cuda: Cuda | None) -> None:
    if log.exists():
        raise BuildError(f"an earlier build failed; {log} says why, delete it to try again")
    ninja = find_ninja()
    what = f"CPU and CUDA kernels ({', '.join(cuda.architectures)}) once (~2 min)" if cuda else "CPU kernels once (~1 min)"
    announce(f"compiling {what}, cached in {library.parent}")
    try:
        build(sources, library, compiler, ninja, cuda)
    except subprocess.CalledProcessError as error:
        log.write_text(error.stdout)
        raise BuildError(f"the build failed; {log} says why, delete it to try again") from error


def build(sources: Path, library: Path, compiler: str, ninja: str, cuda: Cuda | None = None) -> None:
    """Compiles `sources` in a temporary folder and moves the library to its place in one step.

    Raises:
        subprocess.CalledProcessError: the compiler's words are in `stdout`.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build_") as scratch:
        (Path(scratch) / "build.ninja").write_text(_ninja_file(sources, compiler, cuda))
        command = [ninja, "-C", scratch, "ops.so"]
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.replace(Path(scratch) / "ops.so", library)


def _ninja_file(sources: Path, compiler: str, cuda: Cuda | None) -> str:
    torch_folder = Path(torch.__file__).parent
    includes = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", "-isystem", str(torch_folder / "include")]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    # The OpenMP runtime that torch brings, where it brings one: a second runtime wouldn't know torch.set_num_threads.
    gomp = [str(path) for path in sorted((torch_folder / "lib").glob("libgomp*.so*"))[:1]]
    lines = _rule("compile", [compiler, *FLAGS, *includes, "-c"])
    if cuda is None:
        lines += _rule("link", [compiler, "-shared", "-fopenmp"], [*libraries, *gomp])
    else:
        nvcc = [cuda.nvcc, "-ccbin", compiler]
        host = ",".join(flag for flag in FLAGS if flag not in CUDA_FLAGS)
        lines += _rule("compile_cuda", [*nvcc, *CUDA_FLAGS, *_code_flags(cuda), "-Xcompiler", host, *includes, "-c"])
        # One nvcc takes up to 2 GB, and two processes at times.
        lines += ["  pool = cuda", "pool cuda", f"  depth = {max(1, (os.cpu_count() or 2) // 2)}"]
        # nvcc knows where the CUDA runtime lies; it must be the shared one, which torch has loaded.
        runtime = ["-ltorch_cuda", "-lc10_cuda", *(word for path in gomp for word in ("-Xlinker", path))]
        lines += _rule("link", [*nvcc, "-shared", "-cudart=shared", "-Xcompiler", "-fopenmp"], [*libraries, *runtime])
    objects = {f"{path.name}.o": path for path in source_files(sources, cuda)}
    for name, path in objects.items():
        lines.append(f"build {name}: {'compile_cuda' if path.suffix == '.cu' else 'compile'} {_ninja_path(path)}")
    return "\n".join([*lines, f"build ops.so: link {' '.join(objects)}"]) + "\n"


def _rule(name: str, before: list[str], after: Iterable[str] = ()) -> list[str]:
    """A ninja rule: the words of its command before the inputs, and those behind them."""
    return [f"rule {name}", f"  command = {_dollars(shlex.join(before))} $in {_dollars(shlex.join(after))} -o $out"]


def _code_flags(cuda: Cuda) -> list[str]:
    """Machine code for each architecture, and PTX for those that end in +PTX."""
    flags = []
    for architecture in cuda.architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _dollars(text: str) -> str:
    return text.replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return _dollars(str(path)).replace(" ", "$ ").replace(":", "$:")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # POSIX only; nothing is compiled elsewhere

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
