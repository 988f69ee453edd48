"""Packaging. The wheel is pure Python; `BUILD_OPS=1 pip install --no-build-isolation .` adds the compiled operators."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD_OPS = os.environ.get("BUILD_OPS", "0") not in ("", "0")


class BuildPackage(build_py):
    """Also copies csrc/ and configs/, which stand beside the package in a checkout, into it."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "maskrcnn_bench"
        for folder in ("csrc", "configs"):
            shutil.rmtree(package / folder, ignore_errors=True)
            shutil.copytree(ROOT / folder, package / folder)
        if BUILD_OPS:
            build_ops(package)


class PlatformDistribution(Distribution):
    """With compiled operators the wheel fits one platform only."""

    def has_ext_modules(self):
        return BUILD_OPS


def build_ops(package):
    """Compiles the operators into the package that is being built."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemExit("BUILD_OPS=1 needs torch while building: pip install torch, then pip install --no-build-isolation .") from error
    # This file alone: the package would compile its operators into the user's cache on import.
    spec = importlib.util.spec_from_file_location("_build", ROOT / "maskrcnn_bench" / "layers" / "_build.py")
    ops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ops)
    try:
        ops.build(ROOT / "csrc", library_place(package, ops), ops.find_compiler()[0], ops.find_ninja())
    except ops.BuildError as error:
        raise SystemExit(f"BUILD_OPS=1: {error}") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"BUILD_OPS=1: compiling csrc/ failed:\n{error.stdout}") from error


def library_place(package, ops):
    """Where layers/_ops.py looks for operators that were compiled while installing."""
    return package.resolve() / "layers" / f"_C_{ops.base_key(ROOT / 'csrc')}.so"


def version():
    """The version that the package states, read without importing it."""
    text = (ROOT / "maskrcnn_bench" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def readme():
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="maskrcnn_bench",
    version=version(),
    description="Faster and Mask R-CNN on PyTorch 2, with the configs and the numbers of maskrcnn-benchmark and its relatives",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="maskrcnn_bench contributors",
    python_requires=">=3.10",
    packages=find_packages(include=["maskrcnn_bench", "maskrcnn_bench.*"]),
    package_data={"maskrcnn_bench": ["py.typed", "demo/page.html"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "yacs>=0.1.8",
        "pyyaml>=6.0",
        "pycocotools>=2.0.8",
        "hotcoco>=1.3",
        "numpy>=1.26",
        "pillow>=10.1",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "ninja>=1.11",
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "setuptools>=70.1",
            "av>=12",
            "nbclient>=0.9",
            "nbformat>=5.9",
            "ipykernel>=6.29",
            "timm>=1.0",
            "tensorboard>=2.18",
        ],
        "demo": ["opencv-python>=4.9", "av>=12"],
    },
    entry_points={"console_scripts": ["maskrcnn-bench = maskrcnn_bench.cli:main"]},
    cmdclass={"build_py": BuildPackage},
    distclass=PlatformDistribution,
    zip_safe=False,
)
