"""The log of a run: one logger for the package, to the console and to a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

NAME = "maskrcnn_bench"
FILE_ONLY = {"file_only": True}
"""`extra=FILE_ONLY` keeps a line off the console, where a live line says the same."""
_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


class ConsoleHandler(logging.StreamHandler):
    """Writes above a live progress line instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is None or not getattr(tqdm, "_instances", None):
            super().emit(record)
        else:
            tqdm.write(self.format(record), file=self.stream)


class LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written, and that can be taken back with the folders made for it."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.is_new = not self.path.exists()
        self.new_folders = [folder for folder in self.path.absolute().parents if not folder.exists()]
        self.failed = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(self.path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"cannot write {self.path}: {sys.exc_info()[1]}; the log stays on the console", file=sys.stderr)
        self.failed = True

    def take_back(self) -> None:
        """Removes the file when it is new and alone in its folder, and the folders that were made."""
        self.close()
        if not self.is_new or [p.name for p in self.path.parent.iterdir()] != [self.path.name]:
            return
        self.path.unlink()
        for folder in self.new_folders:
            if any(folder.iterdir()):
                return
            folder.rmdir()


def setup_logger(
    name: str = NAME,
    save_dir: str | os.PathLike | None = None,
    distributed_rank: int = 0,
    filename: str = "log.txt",
    stream: TextIO | None = None,
) -> logging.Logger:
    """Sends a logger to the console and, with a folder, to a file in it that grows from run to run.

    Args:
        name: logger; those whose names begin with it and a dot follow.
        save_dir: folder of the file; created when missing.
        distributed_rank: only process 0 logs; the others say warnings and errors on the console.
        stream: the console; None takes stdout.
    """
    logger = logging.getLogger(name)
    close_handlers(logger)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    _add(logger, ConsoleHandler(stream or sys.stdout), logging.INFO if distributed_rank == 0 else logging.WARNING)
    if save_dir and distributed_rank == 0:
        _add(logger, LogFile(os.path.join(save_dir, filename)), logging.INFO)
    return logger


@contextmanager
def spoken_by_first(logger: logging.Logger, rank: int) -> Iterator[None]:
    """Keeps warnings to process 0 while all processes do the same; errors come from each."""
    levels = [(handler, handler.level) for handler in logger.handlers] if rank else []
    for handler, _ in levels:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)


def _add(logger: logging.Logger, handler: logging.Handler, level: int) -> None:
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


def close_handlers(logger: logging.Logger) -> None:
    """Takes a logger's handlers away and closes their files."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def take_back_log(logger: logging.Logger) -> None:
    """Ends the log of a run that never began, and leaves nothing of it behind."""
    for handler in [h for h in logger.handlers if isinstance(h, LogFile)]:
        logger.removeHandler(handler)
        handler.take_back()


def log_lines(logger: Any, lines: list[str]) -> None:
    """Logs each line as one record."""
    for line in lines:
        logger.info("%s", line)
