"""Names of this package that are imported when they are asked for: the command's help needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"COCODemo": "predictor", "draw_detections": "draw"}


def get(name: str) -> Any:
    """What a module calls for a name that it does not have yet."""
    if name not in _HOMES:
        raise AttributeError(f"module {__package__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __package__), name)
