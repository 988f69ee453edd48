"""Large pictures in overlapping tiles: where the tiles are, and how what is found in them becomes one list.

The whole picture is looked at too, for objects that are larger than a tile. A tile's detection that ends at an inner border is a part: it
joins the whole object that another view has, or else the parts of its neighbours. Boxes are compared inside of what both views see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.nms import nms
from ..structures.bounding_box import BoxList
from ..structures.keypoint import Keypoints

Window = tuple[int, int, int, int]
"""A part of a picture: xyxy, pixels, the last ones not included."""

# Two whole objects are one from this IoU on, and a part belongs to what covers this share of it.
SAME_OBJECT, PART_INSIDE = 0.5, 0.6
# A box that ends so near to the border of its tile is cut off there, as a share of the tile's side.
AT_BORDER = 0.01
MOST_TILES = 5000
"""Of a picture; more are a mistake that would take hours."""


class TooManyTiles(ValueError):
    """Tiles so small, or a picture so large, that nobody waits for the end."""


def tile_windows(size: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """The whole picture, then the tiles that cover it evenly; nothing but the whole where it is no larger than a tile.

    Args:
        size: (width, height) of the picture, pixels.
        tile: side of a tile, pixels.
        overlap: least share of a tile that its neighbour sees as well.
    Raises:
        TooManyTiles: when there would be more than `MOST_TILES`.
    """
    width, height = size
    count = _count(width, tile, overlap) * _count(height, tile, overlap)
    if count > MOST_TILES:
        many = f"tiles of {tile} pixels that overlap by {overlap:g} would be {count}, more than {MOST_TILES}"
        raise TooManyTiles(f"{many}, for a picture of {width} x {height} pixels; take larger tiles or a smaller overlap")
    columns, rows = _starts(width, tile, overlap), _starts(height, tile, overlap)
    tiles = [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]
    return [(0, 0, width, height), *(tiles if len(tiles) > 1 else [])]


def _count(length: int, tile: int, overlap: float) -> int:
    step = max(tile * (1 - overlap), 1.0)
    return int(-(-max(length - tile, 0) // step)) + 1


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    count = _count(length, tile, overlap)
    return [round(k * (length - tile) / (count - 1)) for k in range(count)] if count > 1 else [0]


def detect_tiled(
    detect: Callable[[list[Any]], list[BoxList]], picture: Any, tile: int, overlap: float, nms_threshold: float, at_once: int = 4
) -> BoxList:
    """The detections of a picture from its tiles, best first.

    Args:
        detect: answers a BoxList with `labels` and `scores` for each of some pictures, in pixels of each.
        picture: with `size` and `crop`.
        tile, overlap: as `tile_windows` has them.
        nms_threshold: IoU above which the better one of two detections of a class stays.
        at_once: tiles that go to `detect` together.
    """
    windows = tile_windows(picture.size, tile, overlap)
    found: list[BoxList] = []
    for start in range(0, len(windows), at_once):
        part = windows[start : start + at_once]
        crops = [picture if window == windows[0] else picture.crop(window) for window in part]
        found += [_placed(boxlist, window, picture.size) for boxlist, window in zip(detect(crops), part, strict=True)]
    return found[0] if len(windows) == 1 else merge_tiles(found, windows, nms_threshold)


def merge_tiles(found: Sequence[BoxList], windows: Sequence[Window], nms_threshold: float) -> BoxList:
    """One list of what was found in each window of a picture, best first; all boxes are in pixels of the picture."""
    together = _joined(found)
    views = torch.repeat_interleave(torch.arange(len(found)), torch.tensor([len(boxlist) for boxlist in found]))
    cut = torch.cat([_is_cut(boxlist, window) for boxlist, window in zip(found, windows, strict=True)])
    labels, scores = together.get_field("labels"), together.get_field("scores")
    seen = torch.tensor(windows, dtype=torch.float32)[views]
    kept: list[int] = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten()
        same = _same_object(together.bbox[rows], views[rows], seen[rows], cut[rows], together.pixel)
        order = sorted(range(len(rows)), key=lambda k: (bool(cut[rows[k]]), -float(scores[rows[k]])))
        heads = [_unite(together, rows[members]) for members in _groups(same, cut[rows].tolist(), order)]
        boxes = together.bbox[heads]
        kept += [heads[k] for k in nms(boxes, scores[heads], nms_threshold, pixel=together.pixel).tolist()]
    picked = torch.tensor(kept, dtype=torch.int64)
    return together[picked[scores[picked].argsort(descending=True, stable=True)]]


def _placed(boxlist: BoxList, window: Window, size: tuple[int, int]) -> BoxList:
    """Detections of a window in pixels of the picture of (width, height) `size`."""
    x, y = window[:2]
    out = BoxList(boxlist.convert("xyxy").bbox + torch.tensor([x, y, x, y]), size, "xyxy", boxlist.pixel)
    for name, value in boxlist.extra_fields.items():
        out.add_field(name, value.crop((-x, -y, size[0] - x, size[1] - y)) if isinstance(value, Keypoints) else value)
    return out


def _joined(found: Sequence[BoxList]) -> BoxList:
    first = found[0]
    out = BoxList(torch.cat([boxlist.bbox for boxlist in found]), first.size, "xyxy", first.pixel)
    for name, value in first.extra_fields.items():
        values = [boxlist.get_field(name) for boxlist in found]
        out.add_field(name, _joined_points(values) if isinstance(value, Keypoints) else torch.cat(values))
    return out


def _joined_points(values: Sequence[Keypoints]) -> Keypoints:
    first = values[0]
    out = first.like(torch.cat([one.keypoints for one in values]))
    for name in first.extra_fields:
        out.add_field(name, torch.cat([one.get_field(name) for one in values]))
    return out


def _is_cut(boxlist: BoxList, window: Window) -> Tensor:
    """Which boxes end at a border of the window that is none of the picture. [n] bool"""
    width, height = boxlist.size
    left, top, right, bottom = window
    x1, y1, x2, y2 = boxlist.bbox.unbind(dim=1)
    near_x, near_y = AT_BORDER * (right - left), AT_BORDER * (bottom - top)
    horizontal = ((x1 < left + near_x) & (left > 0)) | ((x2 + boxlist.pixel > right - near_x) & (right < width))
    return horizontal | ((y1 < top + near_y) & (top > 0)) | ((y2 + boxlist.pixel > bottom - near_y) & (bottom < height))


def _same_object(boxes: Tensor, views: Tensor, seen: Tensor, cut: Tensor, pixel: int) -> Tensor:
    """How well the boxes of one object agree inside of what both views see; 0 for boxes of two objects, or of one view. [n, n]

    Args:
        boxes: xyxy, pixels. [n, 4]
        views: number of the window of each. [n]
        seen: these windows. [n, 4]
        cut: which boxes are parts. [n]
        pixel: what a width adds to x2 - x1.
    """
    edges = boxes + torch.tensor([0.0, 0.0, pixel, pixel])
    # Each box as each other view sees it. [n, n, 2]
    low = torch.maximum(edges[:, None, :2], torch.maximum(seen[:, None, :2], seen[None, :, :2]))
    high = torch.minimum(edges[:, None, 2:], torch.minimum(seen[:, None, 2:], seen[None, :, 2:]))
    areas = (high - low).clamp(min=0).prod(dim=2)
    sides = torch.minimum(high, high.transpose(0, 1)) - torch.maximum(low, low.transpose(0, 1))
    inter, smaller = sides.clamp(min=0).prod(dim=2), torch.minimum(areas, areas.t())
    one_is_cut = cut[:, None] | cut[None]
    share = inter / torch.where(one_is_cut, smaller, areas + areas.t() - inter).clamp(min=1e-6)
    least = torch.where(one_is_cut, PART_INSIDE, SAME_OBJECT)
    return share * ((share >= least) & (views[:, None] != views[None]))


def _groups(same: Tensor, cut: Sequence[bool], order: Sequence[int]) -> list[list[int]]:
    """Detections of one object each, what its box is made of: one whole detection, or all parts.

    Args:
        same: as `_same_object` answers. [n, n]
        cut: which detections are parts.
        order: whole ones first, then parts, each by descending score.
    """
    whole: list[int] = []
    parts: list[list[int]] = []
    for k in order:
        if whole and float(same[k, whole].max()) > 0:
            continue
        if not cut[k]:
            whole.append(k)
            continue
        touched = [group for group in parts if float(same[k, group].max()) > 0]
        parts = [group for group in parts if group not in touched] + [[member for group in touched for member in group] + [k]]
    return [[k] for k in whole] + parts


def _unite(found: BoxList, members: Tensor) -> int:
    """Makes the best one of some parts the whole object, in place: box, mask and score; answers which one that is."""
    scores = found.get_field("scores")
    best = int(members[scores[members].argmax()])
    if len(members) == 1:
        return best
    parts = found.bbox[members]
    union = torch.cat([parts[:, :2].amin(dim=0), parts[:, 2:].amax(dim=0)])
    if found.has_field("mask"):
        found.get_field("mask")[best] = _united_mask(found.get_field("mask")[members], parts, union, found.pixel)
    found.bbox[best] = union
    return best


def _united_mask(masks: Tensor, parts: Tensor, union: Tensor, pixel: int) -> Tensor:
    """The largest of the parts' probabilities at each place of a mask over the union. masks: [m, 1, S, S] -> [1, S, S]"""
    side = masks.shape[-1]
    share = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    grids = []
    for low, high in ((0, 2), (1, 3)):
        place = union[low] + share * (union[high] + pixel - union[low])
        grids.append((place[None] - parts[:, low, None]) / (parts[:, high, None] + pixel - parts[:, low, None]) * 2 - 1)
    grid = torch.stack([grids[0][:, None].expand(-1, side, -1), grids[1][:, :, None].expand(-1, -1, side)], dim=3)
    # The border of a cut mask goes on to the border of its part.
    inside = (grid.abs() <= 1).all(dim=3)[:, None]
    return (F.grid_sample(masks, grid, padding_mode="border", align_corners=False) * inside).amax(dim=0)
