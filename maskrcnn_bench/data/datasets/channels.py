"""Images that are no RGB pictures of 8 bits: any number of channels, 8 or 16 bits each, as a model with INPUT.CHANNELS sees them.

A ChannelImage takes the place of a Pillow image in transforms: it has the methods by which these move pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from maskrcnn_bench.data.datasets.orientation import turned

ARRAY_SUFFIX = ".npy"
KINDS = (np.uint8, np.uint16)


class WrongChannels(OSError):
    """An image that has other channels than the model."""


class ChannelImage:
    """Pixels of any number of channels.

    Args:
        pixels: uint8 or uint16. [H, W, C]
    """

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    @property
    def channels(self) -> int:
        return self.pixels.shape[2]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype) if copy is not False else self.pixels

    def resize(self, size: tuple[int, int], resample: int = Image.BILINEAR) -> ChannelImage:
        """Each channel as Pillow resizes it: grey pictures of 8 bits exactly so, 16 bits as floats that are rounded."""
        return ChannelImage(np.stack([_resized(self.pixels[:, :, c], size, resample) for c in range(self.channels)], axis=2))

    def transpose(self, method: int) -> ChannelImage:
        """Mirrored as `Image.transpose` does: FLIP_LEFT_RIGHT or FLIP_TOP_BOTTOM."""
        return ChannelImage(self.pixels[:, ::-1] if method == Image.FLIP_LEFT_RIGHT else self.pixels[::-1])

    def crop(self, box: Sequence[int]) -> ChannelImage:
        """The part `box` (x1, y1, x2, y2) of the image, pixels."""
        x1, y1, x2, y2 = box
        return ChannelImage(self.pixels[y1:y2, x1:x2])

    def convert(self, mode: str) -> Image.Image:
        """A picture of 8 bits to look at: the first three channels, or the first one as grey, each from its darkest to its brightest."""
        shown = self.pixels[:, :, [0, 1, 2] if self.channels >= 3 else [0, 0, 0]].astype(np.float32)
        low, high = shown.min(axis=(0, 1)), shown.max(axis=(0, 1))
        return Image.fromarray(((shown - low) * (255 / np.maximum(high - low, 1))).astype(np.uint8)).convert(mode)


def _resized(channel: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    if channel.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size, resample))
    exact = np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, resample))
    return np.rint(exact).clip(0, np.iinfo(channel.dtype).max).astype(channel.dtype)


def read_channels(path: str, what: str, channels: int | None, size: tuple[int, int] | None = None, on_exif: str = "auto") -> ChannelImage:
    """Read an image as it is stored.

    Args:
        path: a .npy file with an array [H, W] or [H, W, C], a TIFF with a page for each channel, or any image that Pillow reads.
        what: the image's name and id, for messages.
        channels: how many are expected; a coloured picture becomes grey where that is 1. None takes what is there.
        size, on_exif: as `photo.read_photo` has them.
    Raises:
        OSError: when there is no such file, or it cannot be read.
        WrongChannels: when it has other channels, or numbers of another kind.
    """
    pixels = _read_array(path, what) if path.endswith(ARRAY_SUFFIX) else _read_picture(path, channels, size, on_exif)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.dtype not in KINDS:
        raise WrongChannels(f"{path} ({what}): expected [H, W] or [H, W, C] of uint8 or uint16, got {list(pixels.shape)} of {pixels.dtype}")
    if channels is not None and pixels.shape[2] != channels:
        raise WrongChannels(f"{path} ({what}): expected {channels} channels as INPUT.CHANNELS says, got {pixels.shape[2]}")
    return ChannelImage(np.ascontiguousarray(pixels))


def _read_array(path: str, what: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise OSError(f"{path} ({what}) cannot be read ({error}); write it again with numpy.save") from error


def _read_picture(path: str, channels: int | None, size: tuple[int, int] | None, on_exif: str) -> np.ndarray:
    with Image.open(path) as image:
        if image.format == "TIFF" and image.n_frames > 1:
            return np.stack([_numbers(page) for page in ImageSequence.Iterator(image)], axis=2)
        image.load()
        image = turned(image, size, on_exif)
    grey = channels == 1 and len(image.getbands()) > 1
    return _numbers(image.convert("RGB").convert("L") if grey or image.mode in ("1", "P") and channels == 1 else image)


def _numbers(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image; its names for 16 bits are several, and one of them has 32."""
    pixels = np.asarray(image)
    fits = image.mode.startswith("I") and pixels.size and 0 <= pixels.min() and pixels.max() < 1 << 16
    return pixels.astype(np.uint16) if fits else pixels


def array_size(path: str) -> tuple[int, int]:
    """(width, height) of a .npy file from its head, pixels."""
    height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
    return width, height
