"""Trained models at work: COCODemo, the command `predict`, and detections as pictures."""

import importlib
from typing import Any

# Imported when they are asked for: the command's help needs no torch.
_PLACES = {"COCODemo": "predictor", "draw_detections": "draw"}

__all__ = ["COCODemo", "draw_detections"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
