"""Where the pictures of images go."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..utils.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    from .images import Found

_LARGEST_JPEG = 65500
"""Side, pixels."""


def overlay_paths(found: Sequence[Found], folder: str | None) -> list[str]:
    """Where the picture of each image goes; no two of them to the same file, and none over an image.

    Args:
        folder: the folders below the one that was asked for are kept in it; None puts pictures beside their images.
    """
    taken = {_place(image.path) for image in found}
    paths = []
    for image in found:
        path = _free_path(image.path if folder is None else os.path.join(folder, image.name), taken)
        taken.add(_place(path))
        paths.append(path)
    return paths


def _place(path: str) -> str:
    """The same for two names of one file; file systems may take upper and lower case for the same."""
    return os.path.abspath(path).lower()


def _free_path(path: str, taken: set[str]) -> str:
    from .images import OVERLAY
    from .video import is_video

    base = os.path.splitext(path)[0]
    suffix = ".mp4" if is_video(path) else ".jpg"
    names = (f"{base}{f'_{number}' if number > 1 else ''}{OVERLAY}{suffix}" for number in itertools.count(1))
    return next(name for name in names if _place(name) not in taken)


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG when the name ends with .png, else a JPEG; one too large for a JPEG becomes NAME.png."""
    base, suffix = os.path.splitext(path)
    if suffix.lower() == ".png" or max(picture.size) > _LARGEST_JPEG:
        write_atomically(base + ".png", lambda file: picture.save(file, "PNG"))
    else:
        write_atomically(path, lambda file: picture.save(file, "JPEG", quality=92, subsampling=0))
