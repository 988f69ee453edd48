"""Counts the operations that keep a model from being one static graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES = re.compile(
    r"aten\.(nonzero|_local_scalar_dense|item|masked_select|unique|_unique2|unique_dim|unique_consecutive|equal|is_nonzero|"
    r"repeat_interleave\.Tensor|histc|bincount)|torchvision\.nms"
)


def is_data_dependent(func: Any, args: Sequence[Any]) -> bool:
    """Whether the shape of an operation's output, or a value that it brings to the host, depends on data."""
    if str(func).startswith("aten.index"):
        indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return bool(_NAMES.match(str(func)) or tags & set(func.tags))


class StaticGraphRecorder(TorchDispatchMode):
    """Counts, by operation, what happens under it.

    Attributes:
        data_dependent: operations whose output shape or host value depends on data.
        copies: operations that carry an array from one device to another.
        own: the library's own operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data_dependent: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.own: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if is_data_dependent(func, args):
            self.data_dependent[str(func)] += 1
        if func.namespace == "maskrcnn_bench":
            self.own[func._schema.name.split("::")[1]] += 1
        out = func(*args, **(kwargs or {}))
        devices = {a.device.type for a in args if isinstance(a, torch.Tensor) and a.dim()}
        if isinstance(out, torch.Tensor) and devices and devices != {out.device.type}:
            self.copies[str(func)] += 1
        return out
