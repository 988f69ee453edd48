"""Detections as a picture: masks, boxes, keypoints, names and scores. Needs Pillow and numpy, no window and no OpenCV.

A class has the same colour in every picture. The colours are told apart by people who do not see red, green or blue as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..structures.bounding_box import BoxList
from ..structures.keypoint import Keypoints, keypoint_kind
from ..structures.mask_paste import paste_rle
from ..structures.segmentation_mask import Bitmap, SegmentationMask
from .labels import font_for, place_labels, shorten, writable

# The first seven are those of Okabe and Ito. Each further one is the most distant of all colours to those before it, seen
# with normal eyes and through the simulations of Machado et al. 2009 of the three kinds of colour blindness; dark and dull
# ones were left out.
_HEX = "E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7 9030FC CCFCC0 E40048 00FCF0 9078FC A8C060 90CC90 9CFC90 A84884"
PALETTE = np.array([tuple(bytes.fromhex(color)) for color in _HEX.split()], dtype=np.uint8)
"""RGB. [16, 3]"""
"""Pairs of points that a line joins, of the 17 points of a person."""

KEYPOINT_LOGIT = 2.0
"""Least logit of a detected point that is drawn."""
_RIM = 0.55
"""Opacity of the rim, one pixel of black or white, that parts a line from a background of its own colour."""


def draw_detections(
    image: Image.Image | np.ndarray,
    boxlist: BoxList,
    class_names: Sequence[str] = (),
    score_thresh: float = 0.0,
    show_masks: bool = True,
    *,
    mask_opacity: float = 0.45,
    skeleton: Sequence[tuple[int, int]] | None = None,
    enlarge: int = 1,
) -> Image.Image:
    """Draws detections, or ground truth, on a copy of an image.

    Args:
        image: RGB. [H, W, 3] uint8
        boxlist: in pixels of the image. Its fields are all optional: `labels`; `scores`; `masks` (SegmentationMask), or `mask`:
            pasted into the image [n, 1, H, W] uint8, or probabilities [n, 1, S, S]; `keypoints`.
        class_names: by label, background first.
        score_thresh: only objects with a higher score are drawn.
        mask_opacity: 0 to 1.
        skeleton: pairs of keypoints to join; None joins those that the keypoints name.
        enlarge: whole factor by which the picture grows first, so that names in a small one can be read.
    """
    picture = to_picture(image)
    boxlist = _finite(boxlist.convert("xyxy"))
    if boxlist.has_field("scores"):
        boxlist = boxlist[boxlist.get_field("scores") > score_thresh]
    if show_masks:
        boxlist = with_masks(boxlist)
    if enlarge > 1:
        picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.BICUBIC)
        boxlist = boxlist.resize(picture.size)
    if show_masks:
        picture = draw_masks(picture, boxlist, mask_opacity)
    picture = draw_boxes(picture, boxlist)
    picture = draw_keypoints(picture, boxlist, skeleton)
    return draw_labels(picture, boxlist, class_names)


def to_picture(image: Image.Image | np.ndarray) -> Image.Image:
    """A copy of an RGB image to draw on."""
    if isinstance(image, Image.Image):
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected RGB of shape [H, W, 3] and type uint8, got {list(image.shape)} {image.dtype}")
    return Image.fromarray(np.ascontiguousarray(image))


def _finite(boxlist: BoxList) -> BoxList:
    """Without boxes that a broken model could give."""
    finite = torch.isfinite(boxlist.bbox).all(dim=1)
    return boxlist if bool(finite.all()) else boxlist[finite]


def colors_of(labels: torch.Tensor | Sequence[int]) -> np.ndarray:
    """The colour of each label, RGB. [n, 3] uint8"""
    return PALETTE[(np.asarray(labels, dtype=np.int64) - 1) % len(PALETTE)]


def text_color(background: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out more from a background (RGB); the contrast is 4.5 or better."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (float(v) / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 >= 0.05 * 1.05 else (255, 255, 255)


def line_width(size: tuple[int, int]) -> int:
    """Of boxes and contours in a picture of (width, height), pixels."""
    return max(2, round(math.sqrt(size[0] * size[1]) / 280))


def text_size(size: tuple[int, int]) -> int:
    """Height of the font in a picture of (width, height), pixels: 15 in 640 x 480. It grows more slowly than the picture."""
    return max(12, round(math.sqrt(size[0] * size[1]) ** 0.85 / 14.5))


def _labels(boxlist: BoxList) -> list[int]:
    return boxlist.get_field("labels").tolist() if boxlist.has_field("labels") else [1] * len(boxlist)


def _by_score(boxlist: BoxList) -> list[int]:
    """Places of the boxes, the highest score first."""
    if not boxlist.has_field("scores"):
        return list(range(len(boxlist)))
    return torch.argsort(boxlist.get_field("scores"), descending=True, stable=True).tolist()


# masks


def with_masks(boxlist: BoxList, threshold: float = 0.5, rule: str = "expand_truncate") -> BoxList:
    """The same boxes with a field `masks` (SegmentationMask) when they have a field `mask` only.

    Args:
        threshold, rule: how probabilities become pixels, as `paste_rle` has them.
    """
    if boxlist.has_field("masks") or not boxlist.has_field("mask"):
        return boxlist
    out = boxlist.copy_with_fields([name for name in boxlist.fields() if name != "mask"])
    mask = boxlist.get_field("mask")
    if mask.is_floating_point():
        instances = paste_rle(mask, boxlist.bbox, boxlist.size, threshold, rule)
    else:
        instances = mask.cpu()[:, 0]
    out.add_field("masks", SegmentationMask(instances, boxlist.size))
    return out


def draw_masks(picture: Image.Image, boxlist: BoxList, opacity: float = 0.45) -> Image.Image:
    """Objects as translucent areas with a contour; small ones lie above large ones."""
    if not boxlist.has_field("masks"):
        return picture
    canvas = np.array(picture)
    width = line_width(picture.size)
    colors = colors_of(_labels(boxlist))
    bitmaps = [item.to_bitmap(boxlist.size) for item in boxlist.get_field("masks").instances]
    for index in sorted(range(len(bitmaps)), key=lambda i: -bitmaps[i].pixels.size):
        _fill(canvas, bitmaps[index], colors[index], opacity, width)
    return Image.fromarray(canvas)


def _fill(canvas: np.ndarray, bitmap: Bitmap, color: np.ndarray, opacity: float, width: int) -> None:
    """Paints one object into `canvas` [H, W, 3]: its outermost pixels are the rim, the next ones, `width` deep, the contour."""
    x0, y0 = max(bitmap.x0, 0), max(bitmap.y0, 0)
    pixels = bitmap.pixels[y0 - bitmap.y0 :, x0 - bitmap.x0 :].astype(bool)
    region = canvas[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]]
    pixels = pixels[: region.shape[0], : region.shape[1]]
    line = _shrunk(pixels, 1)
    inner = _shrunk(line, width)
    region[inner] = region[inner] * (1 - opacity) + color * opacity
    region[line & ~inner] = color
    rim = pixels & ~line
    region[rim] = region[rim] * (1 - _RIM) + np.array(text_color(color)) * _RIM


def _shrunk(pixels: np.ndarray, steps: int) -> np.ndarray:
    """A mask without the pixels that are at most `steps` away from its edge. [h, w] bool"""
    for _ in range(steps):
        padded = np.pad(pixels, 1)
        pixels = pixels & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return pixels


# boxes and keypoints


def draw_boxes(picture: Image.Image, boxlist: BoxList) -> Image.Image:
    """Boxes in the colours of their classes, with a rim that parts them from a background of the same colour."""
    pen = ImageDraw.Draw(picture, "RGBA")
    width = line_width(picture.size)
    colors = colors_of(_labels(boxlist))
    corners = _corners(boxlist, picture.size)
    for index in reversed(_by_score(boxlist)):
        x1, y1, x2, y2 = corners[index]
        color = tuple(colors[index].tolist())
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(*text_color(color), round(255 * _RIM)), width=1)
        pen.rectangle((x1, y1, x2, y2), outline=color, width=width)
    return picture


def _corners(boxlist: BoxList, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """First and last pixel of each box, inside a picture of (width, height) `size`."""
    boxes = boxlist.convert("xyxy").bbox.double().cpu().numpy() - np.array([0, 0, 1 - boxlist.pixel, 1 - boxlist.pixel])
    limit = np.array([size[0] - 1, size[1] - 1] * 2)
    boxes = np.floor(boxes + 0.5).clip(0, limit).astype(np.int64)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    return [tuple(box) for box in boxes.tolist()]


def seen_points(field: Keypoints | torch.Tensor) -> torch.Tensor:
    """Which points pictures show: annotated ones, or those that a model is sure of. [n, Kp] bool"""
    if not isinstance(field, torch.Tensor) and "logits" in field.extra_fields:
        return field.get_field("logits") > KEYPOINT_LOGIT
    return (field if isinstance(field, torch.Tensor) else field.keypoints)[..., 2] > 0


def draw_keypoints(picture: Image.Image, boxlist: BoxList, skeleton: Sequence[tuple[int, int]] | None = None) -> Image.Image:
    """Points, and the lines between those that belong together."""
    if not boxlist.has_field("keypoints"):
        return picture
    pen = ImageDraw.Draw(picture)
    width = line_width(picture.size) + 1
    field = boxlist.get_field("keypoints")
    points = field if isinstance(field, torch.Tensor) else field.keypoints
    seen = seen_points(field)
    if skeleton is None:
        skeleton = (keypoint_kind(points.shape[1]) if isinstance(field, torch.Tensor) else field).joined()
    for person, visible, color in zip(points[..., :2].tolist(), seen.tolist(), colors_of(_labels(boxlist)).tolist()):
        for a, b in skeleton:
            if visible[a] and visible[b]:
                pen.line((*person[a], *person[b]), fill=tuple(color), width=width)
        for x, y in (point for point, shown in zip(person, visible) if shown):
            pen.ellipse((x - width - 1, y - width - 1, x + width + 1, y + width + 1), fill=(255, 255, 255))
            pen.ellipse((x - width, y - width, x + width, y + width), fill=tuple(color))
    return picture


# names and scores


def label_texts(boxlist: BoxList, class_names: Sequence[str] = ()) -> list[str]:
    """Name and score of each object."""
    names = [class_names[label] if 0 <= label < len(class_names) else f"class {label}" for label in _labels(boxlist)]
    if not boxlist.has_field("scores"):
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, boxlist.get_field("scores").tolist())]


def draw_labels(picture: Image.Image, boxlist: BoxList, class_names: Sequence[str] = ()) -> Image.Image:
    """Names and scores at the boxes. Where there is no place for all of them, those with the lowest scores are left out."""
    order = _by_score(boxlist)
    texts = [label_texts(boxlist, class_names)[index] for index in order]
    colors = colors_of(_labels(boxlist))[order]
    font, source = font_for("".join(texts), text_size(picture.size))
    pad = max(1, round(font.size / 6))
    texts = [shorten(writable(text, source), font, picture.width - 2 * pad) for text in texts]
    corners = _corners(boxlist, picture.size)
    ascent, descent = font.getmetrics()
    sizes = [(math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + pad) for text in texts]
    boxes = [(x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in (corners[index] for index in order)]
    pen = ImageDraw.Draw(picture)
    for text, place, size, color in zip(texts, place_labels(boxes, sizes, picture.size), sizes, colors.tolist()):
        if place is None or not text:
            continue
        pen.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), fill=tuple(color))
        pen.text((place[0] + pad, place[1] + pad // 2), text, font=font, fill=text_color(color))
    return picture
