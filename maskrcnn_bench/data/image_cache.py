"""Decoded images kept as files, where decoding takes longer than reading.

A data set has a folder, each of its images a file: one line of JSON (the image file's size and times, shape, checksum), then the pixels.
A file is written under another name and moved, so whoever is killed, or writes the same at the same time, leaves a whole one or none; one
that is damaged, or of an image file that changed since, is made anew. Which images are kept follows from their sizes, in the order of the
data set, so that all processes keep the same without asking each other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_bench.data.datasets.channels import ARRAY_SUFFIX, ChannelImage
from maskrcnn_bench.data.store_cache import cache_folder

# Entries of other versions are not looked at.
FORMAT = 2
# The first line of a file, at most, bytes.
HEAD = 512
# Folders that nobody opened for that long make room for others, seconds.
KEPT_FOR = 24 * 3600
USED, UNFINISHED = "used.json", "unfinished-"

logger = logging.getLogger("maskrcnn_bench.data")


class ImageCache:
    """The decoded images of one data set, in a folder beside those of others.

    Args:
        dataset: what the pixels depend on beside the image files: another text is another data set.
        names: the images' file names, each once. [n]
        sizes: (width, height) of the images, pixels. [n, 2]
        channels: of the images; 3 means RGB of 8 bits.
        budget: what all data sets together may take, bytes.
    """

    def __init__(self, dataset: str, names: Sequence[str], sizes: np.ndarray, channels: int, budget: float):
        cache = cache_folder().with_name("images")
        self.folder = cache / _hash(f"{FORMAT} {channels} {dataset}")
        self.sizes, self.channels = sizes, channels
        # Other channels than three may have 16 bits each.
        needed = np.cumsum(np.prod(sizes, axis=1, dtype=np.int64) * channels * (1 if channels == 3 else 2) + HEAD)
        self.names: list[str] = []
        try:
            cache.mkdir(parents=True, exist_ok=True)
            kept = int((needed <= budget - _taken_by_others(self.folder, budget - int(needed[-1]))).sum())
            self.names = [_hash(name) for name in names[:kept]]
            self._prepare(int(needed[kept - 1]) if kept else 0)
        except OSError as error:
            self.names = []
            logger.warning("DATALOADER.CACHE disk: %s cannot be written (%s), so no image is kept", cache, error.strerror)
            return
        what = (kept, len(needed), budget / 1e9, needed[-1] / 1e9, self.folder)
        logger.info("DATALOADER.CACHE disk: %d of %d images fit (DATALOADER.CACHE_GB %g, all need %.3g GB); kept in %s", *what)

    def _prepare(self, taken: int) -> None:
        """Makes the folder, says what it may take, and removes what does not belong there."""
        self.folder.mkdir(exist_ok=True)
        self._write(USED, json.dumps({"bytes": taken}).encode())
        known = {USED, *self.names}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                # What another process is writing right now is young.
                unfinished = path.name.startswith(UNFINISHED) and time.time() - path.stat().st_mtime < KEPT_FOR
                if path.name not in known and not unfinished:
                    path.unlink()

    def get(self, i: int, path: str, read: Callable[[], Image.Image | ChannelImage]) -> Image.Image | ChannelImage:
        """Image i from the cache, or else as `read` decodes the image file `path`; then it is kept. Arrays need no decoding."""
        if i >= len(self.names) or path.endswith(ARRAY_SUFFIX):
            return read()
        try:
            found = os.stat(path)
        except OSError:
            # `read` says it better.
            return read()
        stamp = [*self.sizes[i].tolist(), found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        pixels = self._load(self.names[i], stamp)
        if pixels is not None:
            return Image.fromarray(pixels) if self.channels == 3 else ChannelImage(pixels)
        image = read()
        self._keep(self.names[i], stamp, np.ascontiguousarray(image))
        return image

    def _load(self, name: str, stamp: list[int]) -> np.ndarray | None:
        """The pixels of an entry; None when there is none, or it is damaged, or of another state of the image file. [H, W, C]"""
        with suppress(OSError, ValueError, KeyError, TypeError):
            head, _, raw = (self.folder / name).read_bytes().partition(b"\n")
            said = json.loads(head)
            if said["stamp"] == stamp and said["sum"] == zlib.crc32(raw):
                return np.frombuffer(raw, dtype=said["type"]).reshape(said["shape"])
        return None

    def _keep(self, name: str, stamp: list[int], pixels: np.ndarray) -> None:
        said = {"stamp": stamp, "type": str(pixels.dtype), "shape": pixels.shape, "sum": zlib.crc32(pixels)}
        try:
            self._write(name, json.dumps(said).encode(), b"\n", pixels)
        except OSError as error:
            # A full disk: the others are read as if there were no cache.
            self.names = []
            logger.warning(
                "DATALOADER.CACHE disk: %s cannot be written (%s); this process keeps no more images", self.folder, error.strerror
            )

    def _write(self, name: str, *parts: Any) -> None:
        """Writes a file as a whole, or not at all."""
        with tempfile.NamedTemporaryFile("wb", dir=self.folder, prefix=UNFINISHED, delete=False) as file:
            try:
                for part in parts:
                    file.write(part)
                file.close()
                os.replace(file.name, self.folder / name)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _taken_by_others(mine: Path, room: float) -> int:
    """Bytes that the folders of other data sets may take; the longest unused ones go until no more than `room` is taken."""
    others = []
    for folder in mine.parent.iterdir():
        with suppress(OSError, ValueError, KeyError):
            if folder != mine:
                used = folder / USED
                others.append((used.stat().st_mtime, json.loads(used.read_text())["bytes"], folder))
    taken = sum(size for _, size, _ in others)
    for opened, size, folder in sorted(others):
        if taken > room and time.time() - opened > KEPT_FOR:
            shutil.rmtree(folder, ignore_errors=True)
            taken -= size
    return taken
