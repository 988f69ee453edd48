"""From a file of any project to tensors in this library's names: recognise the kind, rename, reorder, check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import caffe2, detectron2, faster_rcnn_pytorch, maskrcnn_benchmark, mmdetection, torchvision
from .anchor_order import ORDERS
from .names import Loaded, Naming, to_ours
from .reader import read_file

# In this order: the ones with the most particular names first.
KINDS: tuple[Naming, ...] = (
    torchvision.RETINANET,
    torchvision.RETINANET_GN,
    torchvision.DETECTION_V2,
    torchvision.DETECTION,
    mmdetection.RETINANET,
    mmdetection.DETECTION,
    detectron2.RETINANET,
    detectron2.FPN_NORMS,
    detectron2.FPN_HEAD_NORMS,
    detectron2.FPN,
    detectron2.C4,
    detectron2.IMAGENET,
    caffe2.FPN,
    caffe2.C4,
    caffe2.IMAGENET,
    maskrcnn_benchmark.MASKRCNN_BENCHMARK,
    faster_rcnn_pytorch.VGG,
    faster_rcnn_pytorch.RESNET,
    faster_rcnn_pytorch.VGG_CLASSIFICATION,
    torchvision.MOBILENET_CLASSIFICATION,
    torchvision.CLASSIFICATION,
)
_ORDINARY = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_CONTAINERS = ("model", "state_dict", "blobs", "model_state_dict")


def load_weights(path: str | Path) -> Loaded:
    """Read a checkpoint of any project that this library knows.

    Args:
        path: a local file: .pth, .pt, .pkl or safetensors. Its kind is recognised from its content, of which nothing is executed.
    Returns:
        Its tensors in our names and layout (background first), on the CPU.
    Raises:
        FileNotFoundError: no such file.
        ValueError: not weights, of an unknown kind, damaged, or with values that are not finite.
    """
    tensors, extra = _unwrap(read_file(path), path)
    loaded = convert(tensors, path)
    loaded.meta.update(file=str(path), extra=extra)
    if not loaded.meta["anchor_order"] and extra.get("anchor_order") in ORDERS:
        loaded.meta["anchor_order"] = extra["anchor_order"]
    return loaded


def convert(tensors: dict[str, Tensor], origin: str | Path = "these tensors") -> Loaded:
    """Tensors in any known project's names -> our names; ``origin`` is the word for them in errors.

    Raises:
        ValueError: an unknown kind, or values that are not finite.
    """
    _check_ordinary(tensors, origin)
    _check_finite(tensors, origin)
    naming = recognise(tensors)
    if naming is None:
        some = ", ".join(list(tensors)[:4])
        known = ", ".join(kind.kind for kind in KINDS)
        raise ValueError(f"{origin}: {len(tensors)} tensors of an unknown kind ({some}, ...); expected one of: {known}.")
    loaded = to_ours(naming, tensors)
    return caffe2.with_statistics(loaded) if naming in (caffe2.FPN, caffe2.C4, caffe2.IMAGENET) else loaded


def recognise(names: Any) -> Naming | None:
    """The kind of checkpoint that has tensors of these names."""
    return next((naming for naming in KINDS if naming.recognises(names)), None)


def _unwrap(content: Any, path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors inside a file, and the small values beside them (iteration, author, class names).

    Raises:
        ValueError: the file has no dictionary of named tensors.
    """
    extra = {}
    while isinstance(content, dict):
        inner = next((key for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        extra.update({key: value for key, value in content.items() if key != inner})
        content = content[inner]
    tensors = _tensors(content) if isinstance(content, dict) else {}
    if not tensors:
        keys = ", ".join(map(str, content))[:200] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected named tensors, or a dictionary with them under one of {_CONTAINERS}; got {keys or 'nothing'}.")
    return tensors, extra


def _tensors(content: dict) -> dict[str, Tensor]:
    """The tensors and arrays of a dictionary, by names without what the wrappers of torch leave in them."""
    named = {
        str(name): _tensor(value) for name, value in content.items() if isinstance(value, (Tensor, np.ndarray)) and not _is_text(value)
    }
    named.pop("n_averaged", None)  # AveragedModel's
    named = {name.replace("_orig_mod.", ""): value for name, value in named.items()}  # compile's
    while named and all(name.startswith("module.") for name in named):  # (Distributed)DataParallel's, in AveragedModel's
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return named


def _is_text(value: Tensor | np.ndarray) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "fiub"


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    # A copy, of this machine's order of bytes: the pickle's arrays are read-only or not contiguous.
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))


def _check_ordinary(tensors: dict[str, Tensor], origin: str | Path) -> None:
    odd = {name: what for name, tensor in tensors.items() if (what := _oddity(tensor))}
    if odd:
        some = ", ".join(f"{name} ({what})" for name, what in list(odd.items())[:5])
        raise ValueError(
            f"{origin}: expected dense tensors of integers or of floats of 16 to 64 bits, but {len(odd)} are others: {some}. "
            "Convert them where they were written, such as by tensor.to_dense().float(), and save again."
        )


def _oddity(tensor: Tensor) -> str:
    """What keeps a tensor from being weights; empty for nothing."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return "no values" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
    return "" if tensor.dtype in _ORDINARY else str(tensor.dtype).removeprefix("torch.")


def _check_finite(tensors: dict[str, Tensor], origin: str | Path) -> None:
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(
            f"{origin}: expected finite weights, but {len(bad)} tensors hold NaN or infinity: {', '.join(bad[:5])}. "
            "The training that wrote them diverged; take an earlier checkpoint."
        )
