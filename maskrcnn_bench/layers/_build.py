"""Compiles csrc/ with ninja into a cached library. Knows torch's folders and the compiler's flags, but no operator."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
# -ffp-contract=off: the same sums on every processor, and the rounding of the COCO API in polygon_targets.
# -fno-trapping-math: nobody reads the floating-point flags, and without it the division in nms stays scalar before AVX-512.
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden", "-Wall")


class BuildError(RuntimeError):
    """The kernels can't be compiled here; the message says why in one line."""


def find_sources() -> Path:
    """Folder of the C++ sources: inside an installed package, or beside it in a checkout."""
    package = HERE.parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise BuildError(f"the C++ sources were not found in {package / 'csrc'} or {package.parent / 'csrc'}")


def source_files(folder: Path) -> list[Path]:
    return [folder / "ops.cpp", *sorted((folder / "cpu").glob("*.cpp"))]


def base_key(folder: Path) -> str:
    """Hash of all that decides whether a library fits this torch and this machine, the compiler aside."""
    digest = hashlib.sha256()
    for path in sorted([*source_files(folder), *folder.glob("cpu/*.h")]):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    for part in (torch.__version__, *FLAGS, platform.machine(), sys.platform):
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


def cached_library(announce: Callable[[str], None]) -> Path:
    """The compiled library of this machine, compiled now if it isn't in the cache.

    Whoever comes first builds, everybody else waits for the lock and finds the result, a failed one included: the
    ranks of a machine therefore always agree.

    Args:
        announce: called with one line before the compiler starts.

    Raises:
        BuildError: no compiler, no ninja, no place to write, or the build failed (now or before).
    """
    if os.name != "posix":
        raise BuildError(f"csrc/ is not compiled on {sys.platform}")
    sources = find_sources()
    compiler, version = find_compiler()
    key = hashlib.sha256(f"{base_key(sources)} {version}".encode()).hexdigest()[:16]
    folder = cache_folder()
    library, log = folder / f"ops_{key}.so", folder / f"ops_{key}.failed.log"
    if not library.exists():
        with _locked(folder / f"ops_{key}.lock"):
            if not library.exists():
                _build_once(sources, compiler, library, log, announce)
    return library


def _build_once(sources: Path, compiler: str, library: Path, log: Path, announce: Callable[[str], None]) -> None:
    if log.exists():
        raise BuildError(f"an earlier build failed; {log} says why, delete it to try again")
    ninja = find_ninja()
    announce(f"compiling CPU kernels once (~40 s), cached in {library.parent}")
    try:
        build(sources, library, compiler, ninja)
    except subprocess.CalledProcessError as error:
        log.write_text(error.stdout)
        raise BuildError(f"the build failed; {log} says why, delete it to try again") from error


def build(sources: Path, library: Path, compiler: str, ninja: str) -> None:
    """Compiles `sources` in a temporary folder and moves the library to its place in one step.

    Raises:
        subprocess.CalledProcessError: the compiler's words are in `stdout`.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build_") as scratch:
        (Path(scratch) / "build.ninja").write_text(_ninja_file(sources, compiler))
        command = [ninja, "-C", scratch, "ops.so"]
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.replace(Path(scratch) / "ops.so", library)


def _ninja_file(sources: Path, compiler: str) -> str:
    torch_folder = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    # The OpenMP runtime that torch brings, where it brings one: a second runtime wouldn't know torch.set_num_threads.
    gomp = [str(path) for path in sorted((torch_folder / "lib").glob("libgomp*.so*"))[:1]]
    compile_command = shlex.join([compiler, *FLAGS, abi, "-isystem", str(torch_folder / "include"), "-c"])
    link_command = shlex.join([compiler, "-shared", "-fopenmp"])
    libraries = shlex.join([f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", *gomp])
    files = source_files(sources)
    lines = [
        "rule compile",
        f"  command = {_dollars(compile_command)} $in -o $out",
        "rule link",
        f"  command = {_dollars(link_command)} $in {_dollars(libraries)} -o $out",
        *(f"build {path.stem}.o: compile {_ninja_path(path)}" for path in files),
        f"build ops.so: link {' '.join(path.stem + '.o' for path in files)}",
    ]
    return "\n".join(lines) + "\n"


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
