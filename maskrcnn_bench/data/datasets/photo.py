"""Reading a photograph as RGB in the frame its annotations were drawn in, or saying which file cannot be read."""

from __future__ import annotations

import os
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskrcnn_bench.data.datasets.channels import ARRAY_SUFFIX, ChannelImage, WrongChannels, array_size, read_channels
from maskrcnn_bench.data.datasets.orientation import turned, turned_size

AGAIN = "copy it again, or take it out of the annotations"
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)
"""What Pillow and numpy raise for files that are no images, are damaged or too large."""
# Grey values of 8 bits that nobody tells from black end below this: those of 12 bits, taken for 16.
BLACK = 16


def read_photo(
    path: str, what: str, size: tuple[int, int] | None = None, on_exif: str = "auto", channels: int | None = 3
) -> Image.Image | ChannelImage:
    """Read an image file.

    Args:
        path: the file.
        what: the image's name and id, for messages.
        size: (width, height) the annotations give, pixels; None when they give none.
        on_exif: what to do when EXIF data asks for a turn: "rotate" turns; "ignore" does not; "auto" turns unless
            `size` is that of the unturned picture.
        channels: 3 makes any picture RGB, another number reads the channels as they are stored; None takes any file.
    Returns:
        With 3 channels an RGB image of 8 bits; grey, palette, CMYK, 16-bit and alpha are converted, alpha is dropped.
    Raises:
        FileNotFoundError: when there is no such file.
        OSError: when it cannot be decoded.
        ValueError: when it has another size than its annotations say.
    """
    as_stored = channels not in (3, None) or path.endswith(ARRAY_SUFFIX)
    try:
        if as_stored:
            image = read_channels(path, what, channels, size, on_exif)
        else:
            with Image.open(path) as image:
                image.load()
                image = to_rgb(turned(image, size, on_exif))
    except WrongChannels:
        raise
    except FileNotFoundError:
        remedy = "check the image folder, or take the image out of the annotations"
        raise FileNotFoundError(f"no image file {path} for {what}; {remedy}") from None
    except UnidentifiedImageError as error:
        raise OSError(f"{path} ({what}) cannot be read (no kind of image that is known); {AGAIN}") from error
    except UNREADABLE as error:
        raise OSError(f"{path} ({what}) cannot be read ({error}); {AGAIN}") from error
    if size and image.size != tuple(size):
        found, expected = "{} x {}".format(*image.size), "{} x {}".format(*size)
        raise ValueError(f"{path} ({what}): expected {expected} pixels as its annotations say, got {found}; use their own image")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB of 8 bits."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        shift = 8 if pixels.size and pixels.max() > 255 else 0
        image = Image.fromarray((pixels >> shift).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def photo_size(path: str, on_exif: str = "auto") -> tuple[int, int]:
    """(width, height) as `read_photo` gives it where annotations say none, read from the head of the file, pixels.

    Raises:
        UNREADABLE: when the file is no image, or none that can be opened.
    """
    if path.endswith(ARRAY_SUFFIX):
        return array_size(path)
    with Image.open(path) as image:
        return turned_size(image, on_exif)


def looks_cut_off(path: str) -> bool:
    """Whether a JPEG or PNG file lacks its end mark; a cheap test, the end may also be hidden behind other bytes."""
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(max(length - 64, 0))
        tail = file.read()
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in tail
    return length == 0 or (head.startswith(b"\x89PNG") and b"IEND" not in tail)


def looks_wrong(path: str, size: tuple[int, int], on_exif: str = "auto") -> bool:
    """Whether a file lacks its end, is no image, or is not of the expected (width, height); reads its head and end only."""
    try:
        return looks_cut_off(path) or (min(size) > 0 and photo_size(path, on_exif) != size)
    except UNREADABLE:
        return True


def lost_range(path: str) -> float:
    """The largest value of a picture of more than 8 bits that becomes black as RGB; 0 for all others, which are not decoded."""
    with Image.open(path) as image:
        if not image.mode.startswith(("I", "F")):
            return 0.0
        largest, left = np.asarray(image).max(initial=0), np.asarray(to_rgb(image)).max(initial=0)
    return float(largest) if left < BLACK else 0.0
