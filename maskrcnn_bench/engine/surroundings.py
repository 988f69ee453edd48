"""What a program meets outside of itself: folders it may not write into, processors, errors of its workers, signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def require_writable(folder: str) -> None:
    """Makes sure, before anything is made, that a run can write into its folder."""
    if not folder:
        raise ValueError("OUTPUT_DIR is empty; name a folder, e.g. --output output/mine")
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    why = ""
    if not there.is_dir():
        why = f"{there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"no permission to write into {there}"
    if why:
        raise OSError(f"OUTPUT_DIR {folder} cannot be written ({why}); name another")


def at_most_processors(workers: int) -> int:
    """Processes that load data: no more than there are processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, processors)


def fitting_workers(workers: int, batch_bytes: int, folder: str = "/dev/shm", usage: Callable = shutil.disk_usage) -> tuple[int, str]:
    """How many loading processes fit into shared memory, through which they hand batches over; and what to say if it is fewer.

    Args:
        workers: processes that are wanted.
        batch_bytes: of one batch; torch asks each process for two batches ahead of the one that is used.
        folder: where shared memory is; systems without it have no such limit.
    """
    if workers == 0 or not os.path.isdir(folder):
        return workers, ""
    free, each = usage(folder).free, 3 * batch_bytes
    if workers * each <= free:
        return workers, ""
    fitting, needed = min(free // each, workers), max(workers * each // 2**30 + 1, 8)
    return fitting, (
        f"{folder} has {free / 2**20:.0f} MB free, {workers} loading processes may need {workers * each / 2**20:.0f} MB: {fitting} of them "
        f"work. In Docker, start the container with --shm-size={needed}g (or --ipc=host)"
    )


def without_traceback(message: str) -> str:
    """What an error of a DataLoader's worker says; torch puts the worker's traceback before it."""
    if "Original Traceback" not in message:
        return message
    return re.split(r"^[A-Za-z_][\w.]*: ", message, flags=re.MULTILINE)[-1].strip()


class StopRequest:
    """Turns the first SIGTERM or Ctrl-C into a wish that the loop can see; a second one ends at once."""

    # A launcher passes on a signal that its whole group got already: that is still the first.
    ECHO = 1.0

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    def __enter__(self) -> StopRequest:
        # Python lets only its main thread listen to signals.
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.signal and now - self._since > self.ECHO:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if not self.signal:
            self.signal, self._since = number, now

    def __call__(self) -> bool:
        return self.signal != 0
