"""Annotation files read once: their arrays are kept as .npy files, which every later start and every process maps.

Nobody copies what is mapped: the processes of a machine share the pages, however they were started. An entry is found by a hash of
the annotation file's content, so a changed file is read anew, and the same file elsewhere is not. The hash of a file that did not
change since, as its size and times say, is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_bench.data.faults import Finding, check_annotations
from maskrcnn_bench.data.store import AnnotationStore, map_array
from maskrcnn_bench.utils.files import write_atomically

# Entries of other versions are not looked at. Raise it whenever a store's arrays, or what the check finds, change.
FORMAT = 2
# Smaller files are read faster than an entry is worth, bytes.
WORTH_KEEPING = 4 << 20
# Entries that nobody opened for that long make room for new ones, seconds.
KEPT_FOR = 90 * 24 * 3600
DESCRIPTION = "store.json"
NAME_LENGTH = 32
# After that long without a change, the stamp of a file tells whether its content is the same, nanoseconds.
SETTLED = 2 * 10**9

logger = logging.getLogger("maskrcnn_bench.data")


def read_annotations(path: str | os.PathLike) -> AnnotationStore:
    """The annotations of a COCO JSON file, checked; from the cache where it has them.

    A cache that cannot be written is done without.

    Raises:
        FileNotFoundError, ValueError: as `AnnotationStore.from_json`.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < WORTH_KEEPING:
        return AnnotationStore.from_json(path)
    folder = cache_folder() / entry_name(path)
    store = _open(folder, str(path))
    if store is not None:
        return store
    store = AnnotationStore.from_json(path)
    store.checked = check_annotations(store)
    try:
        _write(store, folder)
    except OSError as error:
        logger.info("%s: read anew at every start, since %s cannot be written (%s)", path, folder.parent, error.strerror)
        return store
    logger.info("%s: kept for later starts in %s", path, folder)
    return _open(folder, str(path)) or store


def cache_folder() -> Path:
    """`$MASKRCNN_BENCH_CACHE`, else a folder in the user's cache."""
    base = os.environ.get("MASKRCNN_BENCH_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) if base else Path(cache, "maskrcnn_bench")) / "annotations"


def entry_name(path: Path, empty_extent: float = 0.0) -> str:
    """The name of an entry: a hash of the file's content and of all else that the arrays depend on."""
    stamp = _stamp(path)
    note = cache_folder() / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:NAME_LENGTH]}.seen"
    with suppress(OSError, ValueError):
        seen = json.loads(note.read_text(encoding="utf-8"))
        if seen["stamp"] == stamp:
            return seen["entry"]
    found = hashlib.sha256(f"{FORMAT} {empty_extent} ".encode())
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found.update(content)
    name = found.hexdigest()[:NAME_LENGTH]
    # A file that changes again within a tick of the clock would look the same.
    if time.time_ns() - max(stamp[-2:]) > SETTLED and _stamp(path) == stamp:
        _write_note(note, {"stamp": stamp, "entry": name})
    return name


def _stamp(path: Path) -> list[int]:
    """What is another after every change of a file; nobody can set the last one back."""
    found = path.stat()
    return [FORMAT, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _write_note(note: Path, content: dict[str, Any]) -> None:
    with suppress(OSError):
        write_atomically(note, lambda file: file.write(json.dumps(content).encode()))


# ----------------------------------------------------------------------------------------------------------- entries


def _write(store: AnnotationStore, folder: Path) -> None:
    """Writes an entry as a whole: whoever else writes the same at the same time, one of them is there in the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(folder.parent)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unfinished-"))
    try:
        for name, array in (store.arrays() | {"dropped": store.checked[1]}).items():
            np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
        (unfinished / DESCRIPTION).write_text(json.dumps(_description(store)), encoding="utf-8")
        # An entry that could not be opened is in the way.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_old(cache: Path) -> None:
    for entry in cache.iterdir():
        description = entry / DESCRIPTION
        touched = description if description.is_file() else entry
        if entry.is_dir() and time.time() - touched.stat().st_mtime > KEPT_FOR:
            shutil.rmtree(entry, ignore_errors=True)


def _description(store: AnnotationStore) -> dict[str, Any]:
    """What is not an array. The file is not named, since another copy of it may be opened."""
    findings = [astuple(finding) for finding in store.checked[0]]
    return {
        "categories": store.categories,
        "reader_faults": [_renamed(fault, store.source, "") for fault in store.reader_faults],
        "findings": [_renamed(fault, store.source, "") for fault in findings],
    }


def _renamed(fault: Sequence, file: str, name: str) -> list:
    """The fields of a fault, with another name for a file."""
    return [fault[0], name if fault[1] == file else fault[1], *fault[2:]]


def _open(folder: Path, source: str) -> AnnotationStore | None:
    """The store of an entry; None when there is none, or it is damaged."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        store = AnnotationStore.of_entry(source, folder, described["categories"])
        store.reader_faults = [tuple(_renamed(fault, "", source)) for fault in described["reader_faults"]]
        store.checked = [Finding(*_renamed(fault, "", source)) for fault in described["findings"]], map_array(folder / "dropped.npy")
    except (OSError, ValueError, KeyError, EOFError):
        return None
    with suppress(OSError):
        os.utime(folder / DESCRIPTION)
    return store
