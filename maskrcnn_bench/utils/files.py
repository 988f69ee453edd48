"""Writing files so that nobody sees half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], Any], durable: bool = False) -> None:
    """Writes beside the file and renames, so that `path` is at any time the old content or the new one.

    Args:
        path: its folder is made when it is missing.
        write: is given the file, open for bytes.
        durable: waits until the content is on the disk, for what a power cut must not take.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)
