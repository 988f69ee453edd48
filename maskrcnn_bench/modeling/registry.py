"""The open lists of model parts, each with the contract of what it holds.

A part is a function or class, registered by the name that a configuration key gives:

    @registry.ROI_BOX_FEATURE_EXTRACTORS.register("MyExtractor")
    def make_my_extractor(cfg, in_channels): ...
"""

from __future__ import annotations

import difflib
from collections.abc import Callable


class Registry(dict):
    """Names and the parts they stand for.

    Args:
        key: the configuration key whose values are the names.
        contract: how a part is called, and what must come back.
    """

    def __init__(self, key: str, contract: str):
        super().__init__()
        self.key = key
        self.__doc__ = contract

    def register(self, name: str, part: Callable | None = None) -> Callable:
        """Adds a part under a name; without `part`, a decorator.

        The same part defined anew, by a notebook's cell that runs again, takes the place of the old one.

        Raises:
            ValueError: when the name stands for something else already.
        """

        def add(part: Callable) -> Callable:
            if name in self and _place(self[name]) != _place(part):
                raise ValueError(f"{self.key}: {name!r} is registered already, for {self[name]}")
            self[name] = part
            return part

        return add if part is None else add(part)

    def __missing__(self, name: str) -> Callable:
        near = difflib.get_close_matches(str(name), self, n=3)
        hint = f"; the nearest are {near}" if near else ""
        raise ValueError(f"{self.key}: no part named {name!r}{hint}. Registered: {sorted(self)}")


def _place(part: Callable) -> tuple:
    """Where a part is defined; only itself is there when nobody can tell."""
    place = getattr(part, "__module__", None), getattr(part, "__qualname__", "<")
    return (part,) if "<" in place[1] else place


META_ARCHITECTURES = Registry("MODEL.META_ARCHITECTURE", "part(cfg) -> the detector, called with (images, targets).")
BACKBONES = Registry(
    "MODEL.BACKBONE.CONV_BODY",
    "part(cfg) -> module; module(images [N, 3, H, W]) -> list of features, finest first; module.out_channels is their C.",
)
RPN_HEADS = Registry(
    "MODEL.RPN.RPN_HEAD",
    "part(cfg, in_channels, num_anchors) -> module; module(features) -> (objectness [N, A, H, W], regression [N, 4A, H, W]), a list each.",
)
ROI_BOX_FEATURE_EXTRACTORS = Registry(
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR",
    "part(cfg, in_channels) -> module; module(features, rois) -> [R, C] or [R, C, h, w]; module.out_channels is C.",
)
ROI_BOX_PREDICTOR = Registry(
    "MODEL.ROI_BOX_HEAD.PREDICTOR", "part(cfg, in_channels) -> module; module(x) -> (class logits [R, K], box regression [R, 4K])."
)
ROI_MASK_FEATURE_EXTRACTORS = Registry(
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR",
    "part(cfg, in_channels) -> module; module(features, rois) -> [R, C, h, w]; module.out_channels is C.",
)
ROI_MASK_PREDICTOR = Registry("MODEL.ROI_MASK_HEAD.PREDICTOR", "part(cfg, in_channels) -> module; module(x) -> mask logits [R, K, S, S].")
ROI_KEYPOINT_FEATURE_EXTRACTORS = Registry(
    "MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR",
    "part(cfg, in_channels) -> module; module(features, rois) -> [R, C, h, w]; module.out_channels is C.",
)
ROI_KEYPOINT_PREDICTOR = Registry(
    "MODEL.ROI_KEYPOINT_HEAD.PREDICTOR",
    "part(cfg, in_channels) -> module; module(x) -> a heat map (logits) of each keypoint [R, Kp, S, S].",
)
