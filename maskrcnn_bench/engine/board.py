"""What a training shows in TensorBoard: its numbers, and some detections beside the ground truth."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.utils.comm import is_main_process

logger = logging.getLogger("maskrcnn_bench.trainer")
FOLDER = "tensorboard"
PICTURES = 4
LEAST_SCORE = 0.3
"""Of the detections that are drawn."""
_NO_NUMBERS = ("iteration", "epoch")


def make_board(output_dir: str, iteration: int) -> Board | None:
    """The board of a run that goes on after `iteration`; None, with one message, where torch finds no TensorBoard."""
    if not is_main_process():
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("SOLVER.TENSORBOARD: tensorboard is not installed (pip install tensorboard); metrics.jsonl has the same numbers")
        return None
    # What an interrupted run wrote after its checkpoint is taken back.
    return Board(SummaryWriter(os.path.join(output_dir, FOLDER), purge_step=iteration + 1))


class Board:
    """Writes events.

    Args:
        writer: torch's SummaryWriter, or what looks like it.
    """

    def __init__(self, writer: Any):
        self.writer = writer

    def scalars(self, row: Mapping[str, Any]) -> None:
        """Writes the numbers of a line of metrics.jsonl; those without a group of their own are of the training."""
        for name, value in row.items():
            if name not in _NO_NUMBERS and isinstance(value, (int, float)):
                self.writer.add_scalar(name if "/" in name else f"train/{name}", value, row["iteration"])
        self.writer.flush()

    def pictures(self, dataset: Any, predictions: Sequence[BoxList | None], iteration: int) -> None:
        """Writes some images twice: on the left with the ground truth, on the right with what was found.

        Args:
            dataset: items are (image, BoxList, ...), in pixels of the original images, or a wrapper of such a `dataset`.
            predictions: in the same pixels; one an image.
        """
        raw = getattr(dataset, "dataset", dataset)
        for index in np.linspace(0, len(raw) - 1, min(PICTURES, len(raw))).round().astype(int).tolist():
            picture = _beside(raw, index, predictions[index])
            self.writer.add_image(f"detections/{index}", np.asarray(picture), iteration, dataformats="HWC")
        self.writer.flush()

    def shows(self, iteration: Callable[[], int]) -> Callable[[Any, Sequence[BoxList | None]], None]:
        """`pictures` for whoever does not know the iteration."""
        return lambda dataset, predictions: self.pictures(dataset, predictions, iteration())


def _beside(dataset: Any, index: int, found: BoxList | None) -> Image.Image:
    from maskrcnn_bench.demo.draw import draw_detections

    image, target = dataset[index][:2]
    image = image.convert("RGB")
    truth = draw_detections(image, target, dataset.class_names)
    guess = image if found is None else draw_detections(image, found, dataset.class_names, LEAST_SCORE)
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(truth, (0, 0))
    both.paste(guess, (image.width, 0))
    return both
