"""Trained models at work: COCODemo, the command `predict`, and detections as pictures."""

from ._lazy import get as __getattr__  # noqa: F401

__all__ = ["COCODemo", "draw_detections"]
