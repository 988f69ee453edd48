"""Keypoints: named points of each object of one image, following what happens to the image.

n objects, Kp points an object. A point is (x, y, v): pixels, and v = 0 not annotated, 1 annotated but hidden, 2 visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def flip_map_from_names(names: Sequence[str]) -> dict[str, str]:
    """Pairs that change places in a mirror, read from names that say left and right: {"left_eye": "right_eye", ...}."""
    pairs = {name: name.replace("left", "right") for name in names if "left" in name}
    return {left: right for left, right in pairs.items() if right in names}


class Keypoints:
    """The keypoints of the objects of one image.

    Args:
        keypoints: (x, y, v) of every point. [n, Kp, 3] (or flat, [n, 3 Kp])
        size: (width, height) of the image, pixels.
        mode: accepted as in maskrcnn-benchmark, not used.
        names: name of each point; without names no points change places in a mirror.
        flip_map: which name takes which other's place in a mirror; None reads left and right in the names.
    """

    NAMES: tuple[str, ...] = ()
    FLIP_MAP: dict[str, str] | None = None

    def __init__(
        self,
        keypoints: Any,
        size: tuple[float, float],
        mode: str | None = None,
        names: Sequence[str] | None = None,
        flip_map: dict[str, str] | None = None,
    ):
        device = keypoints.device if isinstance(keypoints, Tensor) else None
        keypoints = torch.as_tensor(keypoints, dtype=torch.float32, device=device)
        self.names = tuple(self.NAMES if names is None else names)
        self.flip_map = self.FLIP_MAP if flip_map is None else flip_map
        if self.flip_map is None:
            self.flip_map = flip_map_from_names(self.names)
        if keypoints.dim() != 3:
            count = len(self.names) if keypoints.numel() == 0 else -1
            keypoints = keypoints.reshape(keypoints.shape[0], count, 3)
        self.keypoints = keypoints
        self.size = (size[0], size[1])
        self.mode = mode
        self.extra_fields: dict[str, Any] = {}

    def _like(self, keypoints: Tensor, size: tuple[float, float] | None = None) -> Keypoints:
        out = type(self)(keypoints, size or self.size, self.mode, self.names, self.flip_map)
        out.extra_fields = dict(self.extra_fields)
        return out

    def add_field(self, field: str, field_data: Any) -> None:
        self.extra_fields[field] = field_data

    def get_field(self, field: str) -> Any:
        return self.extra_fields[field]

    def flip_inds(self) -> list[int]:
        """For each place, the point that stands there in the mirrored image."""
        both = {**self.flip_map, **{right: left for left, right in self.flip_map.items()}}
        inds = list(range(self.keypoints.shape[1]))
        return [self.names.index(both[n]) if n in both else i for i, n in enumerate(self.names)] if self.names else inds

    def resize(self, size: tuple[int, int]) -> Keypoints:
        """The points on the image scaled to `size` (width, height)."""
        ratio = [size[0] / self.size[0], size[1] / self.size[1], 1.0]
        return self._like(self.keypoints * self.keypoints.new_tensor(ratio), (size[0], size[1]))

    def transpose(self, method: int, pixel: int = 1) -> Keypoints:
        """The points on the mirrored image; left and right points change places in either mirror.

        Args:
            method: FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1).
            pixel: the boxes' pixel rule; x goes to width - x - pixel.
        """
        if method not in (0, 1):
            raise ValueError(f"transpose: expected FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1), got {method!r}")
        flipped = self.keypoints[:, self.flip_inds()].clone()
        flipped[..., method] = self.size[method] - flipped[..., method] - pixel
        # COCO writes 0, 0, 0 for a point that is not annotated.
        flipped[flipped[..., 2] == 0] = 0
        return self._like(flipped)

    def crop(self, box: Sequence[float]) -> Keypoints:
        """The points on the part `box` (xyxy, pixels) of the image; those outside it count as not annotated."""
        x1, y1, x2, y2 = (float(v) for v in box)
        moved = self.keypoints - self.keypoints.new_tensor([x1, y1, 0.0])
        x, y = moved[..., 0], moved[..., 1]
        outside = (x < 0) | (y < 0) | (x > x2 - x1) | (y > y2 - y1) | (moved[..., 2] == 0)
        return self._like(torch.where(outside[..., None], 0.0, moved), (x2 - x1, y2 - y1))

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        out = self._like(self.keypoints.to(*args, **kwargs))
        out.extra_fields = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self.extra_fields.items()}
        return out

    def __getitem__(self, item: Any) -> Keypoints:
        picked = self.keypoints[item]
        out = self._like(picked if picked.dim() == 3 else picked[None])
        out.extra_fields = {k: v[item] if isinstance(v, Tensor) else v for k, v in self.extra_fields.items()}
        return out

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def __repr__(self) -> str:
        width, height = self.size
        return f"{type(self).__name__}(num_instances={len(self)}, image_width={width}, image_height={height})"


class PersonKeypoints(Keypoints):
    """The 17 points of a person in COCO's order."""

    NAMES = (
        "nose",
        *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")),
    )
    FLIP_MAP = flip_map_from_names(NAMES)
