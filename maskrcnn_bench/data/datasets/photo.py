"""Reading a photograph as RGB in the frame its annotations were drawn in, or saying which file cannot be read."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskrcnn_bench.data.datasets.channels import ARRAY_SUFFIX, ChannelImage, WrongChannels, array_size, read_channels

EXIF_ORIENTATION = 0x0112
AGAIN = "copy it again, or take it out of the annotations"


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
            image = read_channels(path, what, channels)
        else:
            with Image.open(path) as image:
                image.load()
    except WrongChannels:
        raise
    except FileNotFoundError:
        remedy = "check the image folder, or take the image out of the annotations"
        raise FileNotFoundError(f"no image file {path} for {what}; {remedy}") from None
    except UnidentifiedImageError as error:
        raise OSError(f"{path} ({what}) cannot be read (no kind of image that is known); {AGAIN}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} ({what}) cannot be read ({error}); {AGAIN}") from error
    if not as_stored:
        image = to_rgb(_turned(image, size, on_exif))
    if size and image.size != tuple(size):
        found, expected = "{} x {}".format(*image.size), "{} x {}".format(*size)
        raise ValueError(f"{path} ({what}): expected {expected} pixels as its annotations say, got {found}; use their own image")
    return image


def _turned(image: Image.Image, size: tuple[int, int] | None, on_exif: str) -> Image.Image:
    if on_exif == "ignore" or image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    # A square picture, or one only mirrored or upside down, has the same size both ways: it is turned.
    unturned = on_exif == "auto" and size and turned.size != tuple(size) and image.size == tuple(size)
    return image if unturned else turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB of 8 bits."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image, dtype=np.int64)
        shift = 8 if pixels.size and pixels.max() > 255 else 0
        image = Image.fromarray((pixels >> shift).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def photo_size(path: str) -> tuple[int, int]:
    """(width, height) after the turn that EXIF data asks for, read from the head of the file, pixels."""
    if path.endswith(ARRAY_SUFFIX):
        return array_size(path)
    with Image.open(path) as image:
        width, height = image.size
        swapped = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if swapped else (width, height)


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


def looks_wrong(path: str, size: tuple[int, int]) -> bool:
    """Whether a file lacks its end, is no image, or is not of the expected (width, height); reads its head and end only."""
    if looks_cut_off(path):
        return True
    try:
        found = photo_size(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True
    return min(size) > 0 and found != size
