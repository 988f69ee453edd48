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
        skeleton: pairs of names that a line joins in pictures.
    """

    NAMES: tuple[str, ...] = ()
    FLIP_MAP: dict[str, str] | None = None
    SKELETON: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        keypoints: Any,
        size: tuple[float, float],
        mode: str | None = None,
        names: Sequence[str] | None = None,
        flip_map: dict[str, str] | None = None,
        skeleton: Sequence[tuple[str, str]] | None = None,
    ):
        device = keypoints.device if isinstance(keypoints, Tensor) else None
        keypoints = torch.as_tensor(keypoints, dtype=torch.float32, device=device)
        self.names = tuple(self.NAMES if names is None else names)
        self.flip_map = self.FLIP_MAP if flip_map is None else flip_map
        if self.flip_map is None:
            self.flip_map = flip_map_from_names(self.names)
        self.skeleton = tuple(self.SKELETON if skeleton is None else skeleton)
        if keypoints.dim() != 3:
            count = len(self.names) if keypoints.numel() == 0 else -1
            keypoints = keypoints.reshape(keypoints.shape[0], count, 3)
        self.keypoints = keypoints
        self.size = (size[0], size[1])
        self.mode = mode
        self.extra_fields: dict[str, Any] = {}

    def like(self, keypoints: Any, size: tuple[float, float] | None = None) -> Keypoints:
        """Other points of the same kind: with these names, pairs and lines."""
        return type(self)(keypoints, size or self.size, self.mode, self.names, self.flip_map, self.skeleton)

    def _moved(self, keypoints: Tensor, size: tuple[float, float] | None = None) -> Keypoints:
        out = self.like(keypoints, size)
        out.extra_fields = dict(self.extra_fields)
        return out

    def joined(self) -> list[tuple[int, int]]:
        """The places of the points that a line joins."""
        return [(self.names.index(a), self.names.index(b)) for a, b in self.skeleton]

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
        return self._moved(self.keypoints * self.keypoints.new_tensor(ratio), (size[0], size[1]))

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
        return self._moved(flipped)

    def crop(self, box: Sequence[float]) -> Keypoints:
        """The points on the part `box` (xyxy, pixels) of the image; those outside it count as not annotated."""
        x1, y1, x2, y2 = (float(v) for v in box)
        moved = self.keypoints - self.keypoints.new_tensor([x1, y1, 0.0])
        x, y = moved[..., 0], moved[..., 1]
        outside = (x < 0) | (y < 0) | (x > x2 - x1) | (y > y2 - y1) | (moved[..., 2] == 0)
        return self._moved(torch.where(outside[..., None], 0.0, moved), (x2 - x1, y2 - y1))

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        out = self._moved(self.keypoints.to(*args, **kwargs))
        out.extra_fields = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self.extra_fields.items()}
        return out

    def __getitem__(self, item: Any) -> Keypoints:
        picked = self.keypoints[item]
        out = self._moved(picked if picked.dim() == 3 else picked[None])
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
    SKELETON = (
        *(("left_eye", "right_eye"), ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear")),
        *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (("ear", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"))),
        *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"))),
        *(("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")),
    )


def keypoint_kind(
    count: int, names: Sequence[str] = (), flip_pairs: Sequence[Sequence[str]] = (), skeleton: Sequence[Sequence[str]] = ()
) -> Keypoints:
    """No points of a kind, to make others `like` it.

    Args:
        count: Kp.
        names: of the points; () are a person's where there are 17, and numbers else.
        flip_pairs: of names that change places in a mirror, where names are given.
        skeleton: pairs of names that a line joins, where names are given.
    Raises:
        ValueError: when there are not as many names as points, one is given twice, or a pair has another name.
    """
    none, size = torch.zeros(0, count, 3), (1, 1)
    if tuple(names) == PersonKeypoints.NAMES or (not names and count == len(PersonKeypoints.NAMES)):
        return PersonKeypoints(none, size)
    if not names:
        return Keypoints(none, size, names=[f"point_{k}" for k in range(count)], flip_map={})
    if len(set(names)) != count or len(names) != count:
        raise ValueError(f"expected {count} different names of keypoints, got {len(names)}: {', '.join(names)}")
    unknown = [name for pair in (*flip_pairs, *skeleton) for name in pair if name not in names]
    if unknown or any(len(pair) != 2 for pair in (*flip_pairs, *skeleton)):
        raise ValueError(f"expected pairs of the keypoints {', '.join(names)}; got {[*flip_pairs, *skeleton]}")
    return Keypoints(none, size, names=names, flip_map=dict(flip_pairs), skeleton=[tuple(pair) for pair in skeleton])
