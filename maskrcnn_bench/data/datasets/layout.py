"""What it means to recognise a data set in a folder: the words that all layouts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

TRAIN_SPLITS = ("train",)
TEST_SPLITS = ("val", "valid", "test")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NOTHING = "no data set recognised"
NO_SPLITS = "without splits: every fifth image by name is for testing, the others for training (fewer than five: all for both)"


class NoSplitError(ValueError):
    """A folder that holds no data set of the wanted split."""


@dataclass(frozen=True)
class Source:
    """A data set that was recognised: its class, its arguments, and what to tell the user."""

    factory: Callable[..., Dataset]
    arguments: dict[str, Any]
    described: str


def splits(is_train: bool) -> tuple[str, ...]:
    """What the split of training, or that of testing, may be called; the best name first."""
    return TRAIN_SPLITS if is_train else TEST_SPLITS


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a text file in UTF-8, without the mark that some editors begin it with.

    Args:
        path: the file.
        errors: what becomes of other bytes, as `bytes.decode` has it.
    Raises:
        ValueError: when the file has another encoding and `errors` is "strict".
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}; save it in this encoding") from None


def every_fifth(count: int, split: str) -> list[int]:
    """Which of `count` images, in the order of their names, belong to a split ("train", "test", "all") where a data set has none.

    Every fifth is tested and the others are trained on; of fewer than five, all are in both.
    """
    return [i for i in range(count) if split == "all" or count < 5 or (i % 5 == 4) == (split == "test")]
