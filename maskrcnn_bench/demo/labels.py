"""Names on pictures: a font that can write them, and places where they do not cover one another."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

BUILT_IN = ""
_SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc", "arialuni.ttf")
_NO_CHARACTER = "\uffff"


def font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """A font and what to write with it.

    Pillow's own font knows little more than ASCII. Where that is not enough, matplotlib's DejaVu Sans and usual fonts of systems
    are asked.

    Args:
        text: all that is to be written with it.
        size: pixels.
    Returns:
        The first font that knows all characters, and the source of it for `writable`; if none does, the one that lacks the fewest.
    """
    characters = set(text)
    missing = {source: sum(not has_glyph(source, c) for c in characters) for source in _sources()}
    source = min(missing, key=missing.__getitem__)
    return load_font(source, size), source


def writable(text: str, source: str) -> str:
    """The text with characters that the font lacks taken apart into known ones, or else replaced by "?"."""
    return "".join(_known(character, source) for character in text)


def _known(character: str, source: str) -> str:
    if has_glyph(source, character):
        return character
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return base if base and all(has_glyph(source, c) for c in base) else "?"


@cache
def has_glyph(source: str, character: str) -> bool:
    """Whether a font can draw a character; white space counts as drawn, line ends do not."""
    if character.isspace() or not character.isprintable():
        return character == " "
    return _drawing(source, character) != _drawing(source, _NO_CHARACTER)


@cache
def _drawing(source: str, character: str) -> tuple[tuple[int, int], bytes]:
    mask = load_font(source, 20).getmask(character)
    return mask.size, bytes(mask)


@cache
def load_font(source: str, size: int) -> ImageFont.FreeTypeFont:
    """The font of a file, or Pillow's own for BUILT_IN."""
    return ImageFont.truetype(source, size) if source else ImageFont.load_default(size)


@cache
def _sources() -> tuple[str, ...]:
    """The fonts that this machine has, in order of preference."""
    matplotlib = importlib.util.find_spec("matplotlib")
    folder = Path(matplotlib.origin).parent if matplotlib and matplotlib.origin else Path()
    candidates = (str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), "DejaVuSans.ttf", *_SYSTEM_FONTS)
    return (BUILT_IN, *(source for source in candidates if _loads(source)))


def _loads(source: str) -> bool:
    try:
        ImageFont.truetype(source, 20)
    except OSError:
        return False
    return True


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as fits, followed by dots. width: pixels."""
    if font.getlength(text) <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        shorter = text[:end].rstrip() + "..."
        if font.getlength(shorter) <= width:
            return shorter
    return ""


def place_labels(
    boxes: Sequence[tuple[int, int, int, int]], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """Finds a place for each label, those of the first boxes first, at or in its box.

    Args:
        boxes: x1, y1, x2, y2 of each object, pixels of the picture.
        sizes: (width, height) of each label, pixels.
        picture: (width, height), pixels.
    Returns:
        The upper left corner of each label, pixels; None where no place is left. Labels with a place lie inside the picture
        and do not overlap.
    """
    taken = np.zeros((0, 4), dtype=np.int64)
    places: list[tuple[int, int] | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        corners = _candidates(box, size, picture)
        rectangles = np.concatenate((corners, corners + size), axis=1)
        free = np.flatnonzero(~_overlap(rectangles, taken).any(axis=1))
        if not len(free):
            places.append(None)
            continue
        taken = np.concatenate((taken, rectangles[free[:1]]))
        places.append((int(corners[free[0], 0]), int(corners[free[0], 1])))
    return places


def _candidates(box: tuple[int, int, int, int], size: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
    """Upper left corners where a label may stand, the best first: on the box, in its corner, under it; then all along. [c, 2]"""
    (x1, y1, x2, y2), (width, height) = box, size
    room_x, room_y = picture[0] - width, picture[1] - height
    if room_x < 0 or room_y < 0:
        return np.zeros((0, 2), dtype=np.int64)
    right = max(x2 - width, x1)
    rows = [y1 - height, y1, y2, y2 - height, *range(y1 + height, y2 - 2 * height, height), y1 - 2 * height, y2 + height]
    columns = [x1, right, *np.linspace(x1, right, 7, dtype=np.int64)[1:-1].tolist(), x1 - width // 2, right + width // 2]
    best = [(x, y) for y in rows[:3] for x in columns[:1]]
    corners = np.array(best + [(x, y) for y in rows for x in columns], dtype=np.int64)
    return corners.clip(0, (room_x, room_y))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which rectangles of two lists (xyxy, right and lower end exclusive) share pixels. [a, b]"""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high > low).all(axis=2)
