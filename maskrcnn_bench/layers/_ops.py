"""Finds, compiles or replaces the operators `torch.ops.maskrcnn_bench.*`, and says which implementation is in use.

Three ways to run: the compiled kernels of csrc/ ("csrc"), torchvision's operators ("torchvision"), plain torch
("torch"). The signatures exist in each of them, so traces, fake tensors and the model look the same. The pages beside
this file (nms.py, roi_align.py, mask_targets.py) register what replaces a kernel; a device that has no kernel in
csrc/ uses the replacement as well.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from . import _build

NAMESPACE = "maskrcnn_bench"
CHOICES = ("csrc", "torchvision", "torch")
SCHEMAS = (
    "nms(Tensor boxes, Tensor scores, Tensor valid, float threshold, float pixel, int max_keep) -> Tensor",
    "roi_align(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, int height, "
    "int width, int sampling_ratio, float shift, float min_size) -> Tensor",
    "roi_align_backward(Tensor grad, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, "
    "SymInt[] feature_shape, int sampling_ratio, float shift, float min_size) -> Tensor[]",
    "roi_pool(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, int height, "
    "int width) -> (Tensor, Tensor)",
    "roi_pool_backward(Tensor grad, Tensor places, Tensor image_inds, Tensor levels, SymInt[] feature_shape) -> Tensor[]",
    "deform_psroi_pool(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, "
    "Tensor? offsets, int side, int group_size, int samples) -> Tensor",
    "deform_psroi_pool_backward(Tensor[] features, Tensor grad, Tensor boxes, Tensor image_inds, Tensor levels, "
    "float[] scales, Tensor? offsets, int group_size, int samples) -> (Tensor[], Tensor)",
    "polygon_targets(Tensor vertices, Tensor ring_offsets, Tensor object_offsets, Tensor frames, "
    "Tensor object_inds, int resolution) -> Tensor",
    "bitmap_targets(Tensor bitmaps, Tensor geometry, Tensor boxes, Tensor object_inds, int resolution) -> Tensor",
    "mask_rle(Tensor probs, Tensor boxes, int height, int width, float threshold, str rule, int padding, bool fused) -> str[]",
    "mask_edge_counts(Tensor probs, Tensor boxes, int height, int width, float threshold, str rule, int padding, bool fused) -> Tensor",
    "mask_edges(Tensor probs, Tensor boxes, Tensor ends, int total, int height, int width, float threshold, str rule, "
    "int padding, bool fused) -> Tensor",
    "match(Tensor objects, Tensor valid, Tensor boxes, Tensor? rivals, float pixel, float high, float low, "
    "bool low_quality, float least_overlap, bool to_best) -> Tensor",
    "decode_boxes(Tensor regression, Tensor anchors, Tensor inds, Tensor sizes, float[] weights, "
    "float[] log_size_range, float pixel, float decode_pixel, bool clip, float min_size, bool strict) -> (Tensor, Tensor)",
    "sigmoid_focal_loss(Tensor logits, Tensor labels, float gamma, float alpha) -> Tensor",
    "sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, float gamma, float alpha) -> Tensor",
    "resize_means(Tensor image, int height, int width) -> Tensor",
    "resize_fixed_point(Tensor image, Tensor columns, Tensor column_weights, Tensor rows, Tensor row_weights) -> Tensor",
    "resize_looked_up(Tensor image, Tensor table, Tensor columns, Tensor column_shares, Tensor rows, Tensor row_shares) -> Tensor",
)
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_replacements: dict[str, dict[str, Callable]] = {}


def say(line: str) -> None:
    """One line on stderr, from one process a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _print(line)


def _print(line: str) -> None:
    print(f"maskrcnn_bench: {line}", file=sys.stderr, flush=True)


@cache
def load() -> str:
    """Makes the operators exist: compiled when possible, else by their signatures alone.

    Returns:
        The way in use: "csrc", "torchvision" or "torch".

    Raises:
        ValueError: `MASKRCNN_BENCH_OPS` holds an unknown word.
        RuntimeError: `MASKRCNN_BENCH_OPS=csrc`, and csrc/ can't be compiled or loaded.
    """
    forced = os.environ.get("MASKRCNN_BENCH_OPS", "")
    if forced not in ("", *CHOICES):
        raise ValueError(f"MASKRCNN_BENCH_OPS: expected one of {', '.join(CHOICES)} or nothing, got {forced!r}")
    if forced == "csrc" or (not forced and sys.platform.startswith("linux")):
        try:
            torch.ops.load_library(str(_with_cuda() or _prebuilt() or _build.cached_library(_print)))
            return "csrc"
        except (_build.BuildError, OSError) as error:
            if forced:
                raise RuntimeError(f"MASKRCNN_BENCH_OPS=csrc, but {error}") from error
            reason = str(error)
    else:
        reason = f"MASKRCNN_BENCH_OPS={forced}" if forced else f"csrc/ is not compiled on {sys.platform} unless asked"
    return _define_schemas(forced, reason)


def _with_cuda() -> Path | None:
    """The library with kernels for the GPUs in sight; None without a GPU, or when they can't be compiled (which is said)."""
    architectures = _build.visible_architectures()
    if not architectures:
        return None
    try:
        return _build.cached_library(_print, _build.find_cuda(architectures))
    except _build.BuildError as error:
        say(f"CUDA tensors run on torchvision's and torch's operators, slower than the compiled kernels: {error}")
        return None


def _prebuilt() -> Path | None:
    """The library of `BUILD_OPS=1 pip install`, if it was built from these sources for this torch."""
    return next(_build.HERE.parent.glob(f"_C_{_build.base_key(_build.find_sources())}.so"), None)


def build_ahead(folder: Path) -> Path:
    """Puts the compiled library into a package that is being built; `folder` is its layers/.

    Raises:
        BuildError: csrc/ can't be compiled here.
    """
    return Path(shutil.copy2(_build.cached_library(_print), folder / f"_C_{_build.base_key(_build.find_sources())}.so"))


def _define_schemas(forced: str, reason: str) -> str:
    for schema in SCHEMAS:
        LIBRARY.define(schema)
    way = forced or ("torchvision" if _has_torchvision() else "torch")
    if not forced:
        say(f"running on {way}'s operators, slower than the compiled kernels: {reason}")
    return way


@cache
def _has_torchvision() -> bool:
    try:
        import torchvision.ops
    except (ImportError, OSError, RuntimeError):  # torchvision of another torch fails in any of these ways
        return False
    return hasattr(torchvision.ops, "nms")


def implementation(op_name: str, device: str = "cpu") -> str:
    """What runs an operator on a device ("cpu" or "cuda"): "csrc", "torchvision", "torch", or (polygon_targets) "pycocotools"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    compiled = load() == "csrc" and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op_name}", key)
    return "csrc" if compiled else _replacement(op_name)


@cache
def _replacement(op_name: str) -> str:
    """What stands in for a kernel that is missing: with csrc, that of another device than the CPU."""
    way = load()
    if way == "csrc":
        way = "torchvision" if _has_torchvision() else "torch"
    choices = _replacements[op_name]
    return way if way in choices else list(choices)[-1]


def register(op_name: str, fake: Callable, float32: bool, **replacements: Callable) -> None:
    """Completes an operator: what stands in for a missing kernel, its fake, its rule under autocast.

    Args:
        op_name: name in `SCHEMAS`, without arguments.
        fake: gives empty outputs of the right shape, dtype and strides.
        float32: under autocast, floating inputs become float32; otherwise they keep their dtype.
        replacements: same arguments as the operator, by what they use (`torchvision`, `torch`, ...). The way in use
            decides; the last one is taken when none has its name.
    """
    load()
    _replacements[op_name] = replacements
    name = f"{NAMESPACE}::{op_name}"
    LIBRARY.impl(op_name, partial(_stand_in, op_name), "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if float32:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(name, device, torch.float32, lib=LIBRARY)


def _stand_in(op_name: str, *args):
    # A kernel doesn't know autocast; without this the products in a replacement would run in half precision.
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    with torch.autocast(device.type, enabled=False):
        return _replacements[op_name][_replacement(op_name)](*args)


def check_shape(op_name: str, name: str, tensor: torch.Tensor, *expected: int | str) -> None:
    """Compares a shape with numbers and letters; a letter stands for any length.

    Raises:
        ValueError: with the expected and the given shape.
    """
    fits = tensor.dim() == len(expected) and all(
        isinstance(wanted, str) or wanted == length for wanted, length in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(wanted) for wanted in expected)
        raise ValueError(f"{op_name}: {name}: expected shape [{shape}], got {list(tensor.shape)}")
