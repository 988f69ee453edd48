"""Finding and reading images of any kind: as a path, a PIL image, an array or a tensor they become RGB pictures of 8 bits."""

from __future__ import annotations

import glob
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.datasets.orientation import turned
from ..data.datasets.photo import UNREADABLE, to_rgb

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm", ".jp2")
_MAGIC = re.compile(r"[*?[]")
OVERLAY = "_det"
"""Ends the names of the pictures that `predict` makes; they are not taken for images when a folder is read."""


class Found(NamedTuple):
    """An image file.

    Attributes:
        path: as it can be opened.
        name: relative to the folder that was asked for, or to the part of a pattern that names a folder, with `/`; of a file that was
            named itself, its name.
    """

    path: str
    name: str


def find_images(sources: Sequence[str | os.PathLike], suffixes: Sequence[str] = SUFFIXES) -> list[Found]:
    """The images that files, folders (with all below them) and patterns such as `shots/*.png` mean.

    Files come in the order given, those of a folder by name with numbers in order; nothing comes twice.

    Args:
        suffixes: what the names of files in folders, and of those that match a pattern, end with.
    Raises:
        FileNotFoundError: when a source does not exist or matches nothing, or there is no image at all.
    """
    found: dict[str, Found] = {}
    for source in map(os.fspath, sources):
        for image in _of_source(source, tuple(suffixes)):
            found.setdefault(os.path.abspath(image.path), image)
    if not found:
        places = ", ".join(map(os.fspath, sources)) or "nothing"
        raise FileNotFoundError(f"no images in {places}; expected files that end with {' '.join(suffixes)}")
    return list(found.values())


def _of_source(source: str, suffixes: tuple[str, ...]) -> list[Found]:
    if os.path.isdir(source):
        inside = (path for path in _files_below(source) if _is_wanted(path, suffixes))
        return [Found(str(path), path.relative_to(source).as_posix()) for path in sorted(inside, key=natural_order)]
    if os.path.lexists(source):
        # A file that was named is tried whatever its name ends with.
        return [Found(source, os.path.basename(source))]
    matches = sorted(glob.glob(source, recursive=True), key=natural_order)
    if not matches:
        what = "matches nothing" if glob.has_magic(source) else "does not exist"
        raise FileNotFoundError(f"{source} {what}; expected an image, a folder of images, or a pattern such as 'folder/*.jpg'")
    folders = [image.path for path in matches if os.path.isdir(path) for image in _of_source(path, suffixes)]
    wanted = [path for path in matches if _is_wanted(Path(path), suffixes)]
    return [Found(path, _name_in_pattern(path, source)) for path in wanted + folders]


def _files_below(folder: str) -> Iterator[Path]:
    """The files in a folder and in all below it, links to folders after the others; none is entered twice."""
    starts, seen = [folder], set()
    for start in starts:
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            starts += sorted(path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path))
            yield from (Path(place, name) for name in names)


def _name_in_pattern(path: str, pattern: str) -> str:
    fixed = os.path.dirname(_MAGIC.split(pattern)[0])
    name = Path(path).relative_to(fixed)
    # No picture goes to a place above the output folder.
    return name.name if ".." in name.parts else name.as_posix()


def _is_wanted(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and not path.stem.endswith(OVERLAY) and path.is_file()


def natural_order(path: str | os.PathLike) -> list[tuple[int, str]]:
    """A key that sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() and part.isascii() else (0, part) for part in re.split(r"([0-9]+)", os.fspath(path))]


class ImageTooLarge(OSError):
    """An image with more pixels than are welcome."""


def read_image(path: str | os.PathLike) -> Image.Image:
    """Reads a file as RGB, turned upright by its EXIF data; of an animation the first frame.

    Raises:
        OSError: when there is no such file, or it cannot be decoded whole.
    """
    try:
        return decode_image(path, os.fspath(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise OSError(f"{path} is a folder, not an image") from None


def decode_image(
    file: str | os.PathLike | IO[bytes], name: str, formats: Sequence[str] | None = None, most_pixels: float = math.inf
) -> Image.Image:
    """What `read_image` does, for open files too.

    Args:
        file: a path, or a file that can be searched.
        name: of the image in messages.
        formats: names that Pillow has for the formats to try; None tries all.
        most_pixels: an image with more of them is not decoded. Pillow has a limit of its own besides.
    Raises:
        ImageTooLarge: when it has too many pixels.
        OSError: when it cannot be opened or decoded whole.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, and refuses those twice as large; the first are welcome here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > most_pixels:
                    raise ImageTooLarge(f"{name} is too large ({image.width} x {image.height} pixels); scale it down")
                image.load()
                # Tags that cannot be read are an error only now.
                return to_rgb(turned(image, None, "rotate"))
    except (FileNotFoundError, IsADirectoryError, ImageTooLarge):
        raise
    except UnidentifiedImageError:
        raise OSError(f"{name} is not an image that Pillow can read{_empty(file)}") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{name} is too large ({error}); scale it down, or cut it into tiles") from None
    except UNREADABLE as error:
        raise OSError(f"{name} cannot be read ({error or type(error).__name__}); copy it again from its source") from error


def _empty(file: str | os.PathLike | IO[bytes]) -> str:
    size = os.path.getsize(file) if isinstance(file, (str, os.PathLike)) else file.seek(0, os.SEEK_END)
    return ": the file is empty" if size == 0 else ""


def as_picture(image: Any, channels: str = "BGR") -> Image.Image:
    """An image in any form as RGB.

    Args:
        image: a path; a PIL image (as it is, EXIF data change nothing); an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with
            the order of `channels`; or a tensor [1, H, W], [3, H, W] or [4, H, W] in RGB. Numbers are uint8, uint16, or floats
            from 0 to 1; a fourth channel is opacity and is left out.
        channels: "BGR", as OpenCV has it, or "RGB": order in arrays.
    Raises:
        ValueError, TypeError: when it is none of these.
        OSError: when the file cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if hasattr(image, "detach"):
        pixels, channels = _channels_last(image.detach().cpu()), "RGB"
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise TypeError(f"image: expected a path, a PIL image, a numpy array or a tensor, got {type(image).__name__}")
    return Image.fromarray(_rgb_pixels(pixels, channels))


def _channels_last(tensor: Any) -> np.ndarray:
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ValueError(f"image: expected a tensor of shape [3, H, W], got {list(tensor.shape)}")
    return tensor.permute(1, 2, 0).numpy()


def _rgb_pixels(pixels: np.ndarray, channels: str) -> np.ndarray:
    """[H, W, 3] uint8 from any array that `as_picture` takes."""
    if channels not in ("BGR", "RGB"):
        raise ValueError(f"channels: expected 'BGR' or 'RGB', got {channels!r}")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"image: expected an array of shape [H, W, 3] or [H, W] with at least one pixel, got {list(pixels.shape)}")
    pixels = _eight_bits(pixels[..., :3])
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., ::-1] if channels == "BGR" else pixels)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        return np.rint(pixels * 255).astype(np.uint8)
    raise ValueError(f"image: expected numbers of type uint8 or uint16, or floats from 0 to 1; got {_range(pixels)}")


def _range(pixels: np.ndarray) -> str:
    return f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}" if pixels.dtype.kind in "iuf" else str(pixels.dtype)
