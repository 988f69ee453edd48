"""From a set of pixels to closed polygons along its pixel edges, and to run lengths and back: the COCO spellings of a mask."""

from __future__ import annotations

import numpy as np

FARTHEST = float(1 << 20)
"""Corners of polygons beyond it, pixels, are drawn there."""


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Every unit edge between inside and outside, start -> ends, with the inside on its right (y points down)."""
    padded = np.pad(mask, 1).astype(np.int8)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across, down = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(across).tolist():
        start, end = ((x, y), (x + 1, y)) if across[y, x] > 0 else ((x + 1, y), (x, y))
        edges.setdefault(start, []).append(end)
    for y, x in np.argwhere(down).tolist():
        start, end = ((x, y + 1), (x, y)) if down[y, x] > 0 else ((x, y), (x, y + 1))
        edges.setdefault(start, []).append(end)
    return edges


def _turn(before: tuple[int, int] | None, here: tuple[int, int], there: tuple[int, int]) -> int:
    """1 for a turn to the right (y points down), 0 straight on, -1 to the left."""
    if before is None:
        return 0
    return (here[0] - before[0]) * (there[1] - here[1]) - (here[1] - before[1]) * (there[0] - here[0])


def _loop(edges: dict, start: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow edges from `start`, which must be a corner, until they close; only corners are returned."""
    corners, before, here = [start], None, start
    while True:
        ends = edges[here]
        # Where two pixels touch at a corner only, turning right keeps them apart.
        ends.sort(key=lambda end: _turn(before, here, end))
        there = ends.pop()
        if not ends:
            del edges[here]
        if _turn(before, here, there) != 0:
            corners.append(here)
        before, here = here, there
        if here == start:
            return corners


def signed_area(ring: np.ndarray) -> float:
    """Area enclosed by a ring, pixels squared; positive when it runs clockwise on the screen. ring: [n, 2]"""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed rings along the pixel edges of a mask; outer ones have positive `signed_area`, holes negative.

    Args:
        mask: pixels of one object. [H, W] bool or 0/1
    Returns:
        Corners, xy, pixels (pixel (i, j) covers [i, i + 1) x [j, j + 1)). list of [n, 2] float32
    """
    edges, rings = _edges(mask), []
    while edges:
        # The smallest point of what is left is the left-most of its ring, therefore a corner.
        rings.append(np.array(_loop(edges, min(edges)), dtype=np.float32))
    return rings


def has_holes(mask: np.ndarray) -> bool:
    """Whether the mask encloses pixels that do not belong to it, which COCO polygons cannot say."""
    return any(signed_area(ring) < 0 for ring in outline(mask))


def encode_runs(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: lengths of runs of 0 and 1 in turn, column by column. mask: [H, W] bool or 0/1"""
    flat = np.concatenate([[0], np.asarray(mask).astype(np.int8).flatten(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [flat.size - 1]]))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts.tolist()}


def decompress_counts(text: str | bytes) -> np.ndarray:
    """Run lengths from COCO's compressed `counts`: five bits a character, from the third on as a difference to two before."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return np.array(counts, dtype=np.int64)


def run_counts(rle: dict) -> np.ndarray:
    """Run lengths of an RLE dict, compressed or not, checked against its size.

    Raises:
        ValueError: when the runs do not fill `size` (height, width) exactly.
    """
    counts = rle["counts"]
    counts = decompress_counts(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, dtype=np.int64)
    height, width = rle["size"]
    if counts.sum() != height * width or (counts < 0).any():
        raise ValueError(f"RLE: expected runs that fill {height} x {width} = {height * width} pixels, got {int(counts.sum())}")
    return counts


def decode_crop(rle: dict) -> tuple[int, int, np.ndarray]:
    """The smallest box of an RLE that holds all its pixels, without building the whole picture when it can be avoided.

    Returns:
        x0, y0 (pixels) and the pixels of the box [h, w] uint8; [0, 0] when the mask is empty.
    """
    counts, height = run_counts(rle), int(rle["size"][0])
    ends = np.cumsum(counts)
    starts, ends = (ends - counts)[1::2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    first, last = int(starts[0]) // height, int(ends[-1] - 1) // height
    steps = np.zeros((last - first + 1) * height + 1, dtype=np.int8)
    np.add.at(steps, starts - first * height, 1)
    np.add.at(steps, ends - first * height, -1)
    columns = np.cumsum(steps[:-1], dtype=np.int8).reshape(-1, height).T
    rows = np.flatnonzero(columns.any(axis=1))
    return first, int(rows[0]), np.ascontiguousarray(columns[rows[0] : rows[-1] + 1]).view(np.uint8)
