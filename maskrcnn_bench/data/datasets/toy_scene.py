"""One picture of the toy data set: where its shapes lie, what is visible of each, and how light falls on them.

`toy.py` says how difficult the scenes are and writes them to disk. Everything here is a function of one numpy generator,
so a scene depends on nothing but its seed. Coordinates are pixels of the picture, pixel (i, j) covers [i, i + 1) x [j, j + 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from maskrcnn_bench.structures.mask_outline import has_holes

CLASSES = ("circle", "square", "triangle", "star", "ring", "cross")
KEYPOINT_NAMES = ("apex", "left", "right")

SUPERSAMPLING = 4
HIDDEN_SHARE = (0.10, 0.40)
MARGIN = 1.5
TRIES = 30


@dataclass
class Shape:
    """One object of a scene.

    Attributes:
        name: class name.
        outline: corners of the shape, xy, pixels. [n, 2]
        hole: corners of the ring's opening, xy, pixels, or None. [n, 2]
        corners: keypoints of a triangle (apex, left, right), xy, pixels, or None. [3, 2]
        window: the part of the picture the shape is drawn in: x0, y0, x1, y1, pixels.
        coverage: how much of each pixel of the window the shape covers, 0 to 1. [h, w]
        visible: pixels of the whole picture that show this shape. [H, W] bool
        hidden: share of the shape that another shape covers, 0 to 1.
    """

    name: str
    outline: np.ndarray
    hole: np.ndarray | None = None
    corners: np.ndarray | None = None
    window: tuple[int, int, int, int] = (0, 0, 0, 0)
    coverage: np.ndarray | None = None
    visible: np.ndarray | None = field(default=None, repr=False)
    hidden: float = 0.0


# ---------------------------------------------------------------------------------------------------- outlines


def _circle(points: int = 40) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(points: int = 5, waist: float = 0.45) -> np.ndarray:
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, waist)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _cross(arm: float = 0.32) -> np.ndarray:
    quarter = np.array([[arm, -arm], [1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_OUTLINES = {
    "circle": _circle(),
    "ring": _circle(),
    "square": np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
    "triangle": np.array([[0.0, -1.0], [-0.8, 0.8], [0.8, 0.8]]),
    "star": _star(),
    "cross": _cross(),
}
RING_OPENING = 0.55
# A triangle is turned by less than a quarter, so that "left" and "right" keep their meaning.
_TURN = {"triangle": np.pi / 5}


def unit_shape(name: str, rng: np.random.Generator) -> Shape:
    """A turned and slightly stretched shape around (0, 0) whose box has area 1."""
    limit = _TURN.get(name, np.pi)
    angle, stretch = rng.uniform(-limit, limit), np.exp(rng.uniform(-0.12, 0.12))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = (_OUTLINES[name] * [stretch, 1 / stretch]) @ turn
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline = (outline - (low + high) / 2) / np.sqrt(np.prod(high - low))
    hole = outline * RING_OPENING if name == "ring" else None
    return Shape(name, outline, hole, outline if name == "triangle" else None)


def placed(shape: Shape, centre: np.ndarray, size: float) -> Shape:
    """The shape at a centre (xy, pixels) with the square root of its box's area `size` (pixels)."""
    parts = (shape.outline, shape.hole, shape.corners)
    return Shape(shape.name, *(None if points is None else points * size + centre for points in parts))


def rasterise(shape: Shape, picture: int) -> None:
    """Fill in `window`, `coverage` and `visible` (nothing hidden yet)."""
    low = np.maximum(np.floor(shape.outline.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(shape.outline.max(axis=0)).astype(int) + 1, picture)
    width, height = high - low
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for points, value in ((shape.outline, 255), (shape.hole, 0)):
        if points is not None:
            draw.polygon([tuple(p) for p in (points - low) * SUPERSAMPLING - 0.5], fill=value)
    shape.window = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    shape.coverage = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    shape.visible = np.zeros((picture, picture), dtype=bool)
    shape.visible[low[1] : high[1], low[0] : high[0]] = shape.coverage >= 0.5


# --------------------------------------------------------------------------------------------------- placement


def _circle_of(shape: Shape) -> tuple[np.ndarray, float]:
    """Centre (xy) and radius of a circle around a shape, pixels."""
    centre = (shape.outline.min(axis=0) + shape.outline.max(axis=0)) / 2
    return centre, float(np.linalg.norm(shape.outline - centre, axis=1).max())


def _room(unit: Shape, size: float, picture: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest centre (xy, pixels) that keeps the shape inside the picture."""
    return 1 - unit.outline.min(axis=0) * size, picture - 1 - unit.outline.max(axis=0) * size


def _touches(shape: Shape, others: list[Shape]) -> bool:
    centre, radius = _circle_of(shape)
    circles = (_circle_of(other) for other in others)
    return any(np.linalg.norm(centre - c) < radius + r + MARGIN for c, r in circles)


def cover(upper: Shape, lower: Shape) -> bool:
    """Lay one shape over another if that hides a part, but not most, of it and leaves no hole in it."""
    shared = lower.visible & upper.visible
    hidden = float(shared.sum() / lower.visible.sum())
    if not HIDDEN_SHARE[0] <= hidden <= HIDDEN_SHARE[1]:
        return False
    rest = lower.visible & ~shared
    if lower.hole is None and has_holes(rest):
        return False
    lower.visible, lower.hidden = rest, hidden
    return True


def _place_apart(unit: Shape, size: float, picture: int, shapes: list[Shape], rng: np.random.Generator) -> Shape | None:
    for centre in rng.uniform(*_room(unit, size, picture), (TRIES, 2)):
        shape = placed(unit, centre, size)
        if not _touches(shape, shapes):
            rasterise(shape, picture)
            return shape
    return None


def _place_over(
    unit: Shape, size: float, picture: int, shapes: list[Shape], partner: Shape, rng: np.random.Generator
) -> tuple[Shape, bool] | None:
    """A shape that hides a part of `partner` or is partly hidden by it, and touches no other; and whether it lies on top."""
    low, high = _room(unit, size, picture)
    others = [shape for shape in shapes if shape is not partner]
    centre, radius = _circle_of(partner)
    radius += _circle_of(unit)[1] * size
    on_top = bool(rng.random() < 0.5)
    for angle, reach in zip(rng.uniform(0, 2 * np.pi, TRIES), rng.uniform(0.45, 0.85, TRIES), strict=True):
        spot = centre + reach * radius * np.array([np.cos(angle), np.sin(angle)])
        shape = placed(unit, spot, size)
        if (spot < low).any() or (spot > high).any() or _touches(shape, others):
            continue
        rasterise(shape, picture)
        if cover(shape, partner) if on_top else cover(partner, shape):
            return shape, on_top
    return None


def arrange(rng: np.random.Generator, picture: int, sizes: np.ndarray, overlap: float) -> list[Shape]:
    """Place shapes of the given sizes; in the list, what lies below comes first.

    Args:
        picture: side of the picture, pixels.
        sizes: square root of the area of each object's box, pixels. [n]
        overlap: probability that an object after the first overlaps an earlier one.
    Returns:
        The shapes that found a place, in no more than pairs that overlap.
    """
    shapes: list[Shape] = []
    single: list[Shape] = []
    for size in sorted(sizes, reverse=True):
        unit = unit_shape(CLASSES[rng.integers(len(CLASSES))], rng)
        pair = None
        if single and rng.random() < overlap:
            partner = single[rng.integers(len(single))]
            pair = _place_over(unit, size, picture, shapes, partner, rng)
        if pair is not None:
            shape, on_top = pair
            single = [other for other in single if other is not partner]
            # Only the two of a pair touch, so the lower one may as well lie below everything.
            shapes.insert(len(shapes) if on_top else 0, shape)
        elif (shape := _place_apart(unit, size, picture, shapes, rng)) is not None:
            shapes.append(shape)
            single.append(shape)
    return shapes


# ---------------------------------------------------------------------------------------------- colour and light


def cloud(rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int = 3) -> np.ndarray:
    """Smooth noise around 0, standard deviation near 1. [h, w]"""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(octaves):
        side = cells * 2**octave + 2
        grid = Image.fromarray(rng.standard_normal((side, side), dtype=np.float32))
        total += np.asarray(grid.resize(shape[::-1], Image.BICUBIC)) / 1.6**octave
    return total


def palette(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A random colour, RGB, 0 to 1. [3]"""
    hue, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s + s * ramp)).astype(np.float32)


def _stripes(rng: np.random.Generator, shape: tuple[int, int], period: float, warp: float) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    phase = (x * np.cos(angle) + y * np.sin(angle)) / period
    return np.sin(2 * np.pi * phase + warp * cloud(rng, shape, 2, 2))


def _checks(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.tanh(4 * np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period))


def pattern(rng: np.random.Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """One of four textures, around 0, about -1 to 1: clouds, grain (wood), stripes or checks. [h, w]"""
    kind = rng.integers(4)
    if kind == 0:
        return cloud(rng, shape, max(2, int(shape[0] / period)), 3) * 0.6
    if kind == 1:
        return _stripes(rng, shape, period * 0.6, 1.2) * 0.7 + cloud(rng, shape, 4, 2) * 0.3
    if kind == 2:
        return np.tanh(3 * _stripes(rng, shape, period, 0.3))
    return _checks(rng, shape, period * 1.6)


def _blend(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * np.clip(share * 0.5 + 0.5, 0, 1)[..., None]


def background(rng: np.random.Generator, picture: int) -> np.ndarray:
    """A textured ground in muted colours, RGB, 0 to 1. [H, W, 3]"""
    first = palette(rng, (0.05, 0.45), (0.35, 0.85))
    second = np.clip(first + rng.uniform(-0.16, 0.16, 3), 0, 1).astype(np.float32)
    ground = _blend(first, second, pattern(rng, (picture, picture), rng.uniform(0.08, 0.3) * picture))
    return ground * (1 + 0.05 * cloud(rng, (picture, picture), 12, 2))[..., None]


def material(rng: np.random.Generator, shape: tuple[int, int], size: float, ground: np.ndarray) -> np.ndarray:
    """The unlit surface of an object, unlike the mean colour of the ground behind it, RGB, 0 to 1. [h, w, 3]"""
    for _ in range(8):
        base = palette(rng, (0.35, 0.95), (0.3, 0.95))
        if np.abs(base - ground).max() > 0.3:
            break
    other = np.clip(base * rng.uniform(0.55, 0.8) + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)
    surface = _blend(base, other, pattern(rng, shape, rng.uniform(0.18, 0.45) * size))
    return surface * (1 + 0.06 * cloud(rng, shape, 10, 1))[..., None]


def _blurred(coverage: np.ndarray, radius: float) -> np.ndarray:
    soft = Image.fromarray((coverage * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, dtype=np.float32) / 255


def lit(surface: np.ndarray, coverage: np.ndarray, light: np.ndarray, gloss: float, size: float) -> np.ndarray:
    """Light a surface as if the object bulged: its blurred silhouette is taken for its height.

    Args:
        surface: unlit colours, RGB, 0 to 1. [h, w, 3]
        coverage: silhouette, 0 to 1. [h, w]
        light: direction to the lamp, a unit vector (x, y, z towards the camera).
        gloss: strength of the highlight.
    """
    padded = np.pad(coverage, 2)
    height = 0.6 * _blurred(padded, size * 0.14) + 0.4 * _blurred(padded, size * 0.05)
    dy, dx = np.gradient(height * size * 0.75)
    normal = np.stack([-dx, -dy, np.ones_like(dx)], axis=-1)[2:-2, 2:-2]
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    facing = np.clip(normal @ light, 0, 1)
    halfway = light + np.array([0, 0, 1], dtype=np.float32)
    shine = np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    return surface * (0.35 + 0.85 * facing)[..., None] + gloss * shine[..., None]


def cast_shadow(canvas: np.ndarray, shape: Shape, light: np.ndarray, size: float) -> None:
    """Darken what lies below an object, on the side away from the lamp."""
    x0, y0, x1, y1 = shape.window
    reach = 0.10 * size / light[2]
    pad = int(size * 0.2) + 3
    soft = _blurred(np.pad(shape.coverage, pad), 0.05 * size + 0.6)
    x, y = x0 - pad - round(light[0] * reach), y0 - pad - round(light[1] * reach)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + soft.shape[1], canvas.shape[1]), min(y + soft.shape[0], canvas.shape[0])
    canvas[top:bottom, left:right] *= 1 - 0.55 * soft[top - y : bottom - y, left - x : right - x, None]


def paint(rng: np.random.Generator, picture: int, shapes: list[Shape]) -> Image.Image:
    """Draw the scene: ground, shadows, lit objects from bottom to top, then lamp fall-off, lens and sensor."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
    flat = np.cos(elevation)
    light = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], dtype=np.float32)
    canvas = background(rng, picture)
    ground = canvas.mean(axis=(0, 1))
    for shape in shapes:
        x0, y0, x1, y1 = shape.window
        size = float(np.sqrt((x1 - x0) * (y1 - y0)))
        surface = material(rng, shape.coverage.shape, size, ground)
        surface = lit(surface, shape.coverage, light, rng.uniform(0.0, 0.45), size)
        cast_shadow(canvas, shape, light, size)
        alpha = shape.coverage[..., None]
        canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - alpha) + surface * alpha
    return _photograph(rng, canvas, light)


def _photograph(rng: np.random.Generator, canvas: np.ndarray, light: np.ndarray) -> Image.Image:
    """Fall-off of the lamp, exposure, white balance, a slightly soft lens, and sensor noise."""
    side = canvas.shape[0]
    y, x = (np.mgrid[:side, :side].astype(np.float32) + 0.5) / side - 0.5
    fall = 1 + rng.uniform(0.1, 0.5) * (x * light[0] + y * light[1]) - rng.uniform(0.1, 0.5) * (x * x + y * y)
    balance = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    exposed = np.clip(canvas * fall[..., None] * balance, 0, 1)
    image = Image.fromarray((exposed * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.25, 0.6)))
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(1.0, 4.0)
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255).astype(np.uint8))
