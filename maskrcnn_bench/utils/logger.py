"""The log of a run: one logger for the package, to the console and to a file."""

from __future__ import annotations

import logging
import os
import sys
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
        os.makedirs(save_dir, exist_ok=True)
        _add(logger, logging.FileHandler(os.path.join(save_dir, filename), encoding="utf-8"), logging.INFO)
    return logger


def _add(logger: logging.Logger, handler: logging.Handler, level: int) -> None:
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)


def close_handlers(logger: logging.Logger) -> None:
    """Takes a logger's handlers away and closes their files."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def log_lines(logger: Any, lines: list[str]) -> None:
    """Logs each line as one record."""
    for line in lines:
        logger.info("%s", line)
