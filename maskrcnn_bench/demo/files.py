"""Where the pictures of images go."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..utils.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    from .images import Found

_LARGEST_JPEG = 65500
"""Side, pixels."""
MARK = "made by maskrcnn_bench predict"
"""A comment in the pictures and videos that `predict` makes: only these are written over."""


def overlay_paths(found: Sequence[Found], folder: str | None) -> list[str]:
    """Where the picture of each image goes; no two of them to the same file, and none over an image or what others made.

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
    return next(name for name in names if _place(name) not in taken and _may_be_written(name))


def _may_be_written(path: str) -> bool:
    """Whether a file is not there, or was made by an earlier run."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return not os.path.lexists(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARK.encode()) >= 0


def require_apart(paths: Iterable[str]) -> None:
    """Raises ValueError when two of the files that are to be written are one."""
    seen = set()
    for path in paths:
        if _place(path) in seen:
            raise ValueError(f"{path} would be written twice, with different content; name another --output, --labelme or --annotations")
        seen.add(_place(path))


def encoded(text: str) -> bytes:
    """UTF-8; the bytes of a file name that is none become escapes, which JSON reads as the same name."""
    return text.encode("utf-8", "backslashreplace")


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG when the name ends with .png, else a JPEG; one too large for a JPEG becomes NAME.png."""
    from PIL.PngImagePlugin import PngInfo

    base, suffix = os.path.splitext(path)
    if suffix.lower() == ".png" or max(picture.size) > _LARGEST_JPEG:
        notes = PngInfo()
        notes.add_text("Comment", MARK)
        write_atomically(base + ".png", lambda file: picture.save(file, "PNG", pnginfo=notes))
    else:
        write_atomically(path, lambda file: picture.save(file, "JPEG", quality=92, subsampling=0, comment=MARK.encode()))
