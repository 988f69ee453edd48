"""Pictures of an evaluation: the confusion matrix and precision over recall. They need matplotlib, but no screen."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import write_atomically
from .confusion import Confusion
from .evaluators import Curves

logger = logging.getLogger(__name__)

# Apart for colour-blind people too; of Okabe and Ito, without the yellow that white paper swallows.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_DASHES = ("-", "--", ":")
_MOST_CURVES = len(_COLORS) * len(_DASHES)
_MOST_COUNTS = 25
"""More classes than this have no room for numbers in the matrix."""
_MOST_NAMES = 100
_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)


def can_draw() -> bool:
    """Whether there is matplotlib; if not, one line says what to do."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no pictures of the results (TEST.PICTURES): matplotlib is not installed; run: pip install matplotlib")
        return False
    return True


def draw_results(confusion: Confusion, curves: dict[str, Curves], names: dict[int, str], folder: str | os.PathLike) -> list[Path]:
    """Writes confusion.png and TASK_precision_recall.png of each task into a folder that is there.

    Args:
        curves: task -> its curves.
        names: of each category, by COCO id.
    Returns:
        What was written.
    """
    pictures = {"confusion.png": draw_confusion(confusion)}
    pictures |= {f"{task}_precision_recall.png": draw_precision_recall(curve, names, task) for task, curve in curves.items()}
    for name, figure in pictures.items():
        with warnings.catch_warnings():
            # Characters that the font lacks are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            write_atomically(Path(folder) / name, lambda file, figure=figure: figure.savefig(file, format="png", dpi=120))
    return [Path(folder) / name for name in pictures]


def _figure(width: float, height: float, layout: str = "constrained") -> Any:
    from matplotlib.figure import Figure

    # Without pyplot: nothing is kept, and no window system is asked for.
    return Figure(figsize=(width, height), layout=layout)


def _plain(name: str, most: int = 24) -> str:
    """A name as matplotlib shows it as it is: no formula, not hidden, not long."""
    name = name if len(name) <= most else name[: most - 3] + "..."
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_confusion(confusion: Confusion) -> Any:
    """The matrix as a matplotlib figure: colours are shares of a row, numbers are counts."""
    matrix, count = confusion.matrix, len(confusion.names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.42 * count, 5, 14))
    figure = _figure(side + 1.2, side, layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    axes.set(
        xlabel="found as", ylabel="actually", title=f"objects and detections, scores from {confusion.score:g}, IoU from {confusion.iou:g}"
    )
    if count <= _MOST_NAMES:
        names, size = [_plain(name) for name in confusion.names], 9 if count <= _MOST_COUNTS else 5
        axes.set_xticks(range(count), names, rotation=90 if count > 6 else 0, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    if count <= _MOST_COUNTS:
        for row, column in np.argwhere(matrix > 0).tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=8, color=color)
    return figure


def draw_precision_recall(curves: Curves, names: dict[int, str], task: str) -> Any:
    """Precision over recall as a matplotlib figure: the mean of the classes at several IoUs, and each class at 0.5.

    Args:
        names: of each category of `curves`.
        task: "bbox", "segm" or "keypoints".
    """
    # Of all sizes, with as many detections as count. [T, R, K]
    precision = curves.precision[:, :, :, 0, -1]
    known = np.flatnonzero((precision[0] > -1).all(axis=0))
    figure = _figure(12, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    if len(known):
        _draw_ious(left, precision[:, :, known].mean(axis=2), curves)
        _draw_classes(right, precision[0][:, known].T, [names[curves.category_ids[k]] for k in known])
    measure = "OKS" if task == "keypoints" else "IoU"
    left.set(title=f"{task}: mean of {len(known)} classes, by {measure}", ylabel="precision")
    right.set(title=f"{task}: each class at {measure} 0.5" if len(known) else f"{task}: no class has an object")
    for axes in (left, right):
        axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    return figure


def _draw_ious(axes: Any, precision: np.ndarray, curves: Curves) -> None:
    """Lines of the mean precision at `_IOUS`. precision: [T, R]"""
    import matplotlib

    recall = np.linspace(0, 1, precision.shape[1])
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(_IOUS)))
    for iou, color in zip(_IOUS, shades):
        axes.plot(recall, precision[round((iou - 0.5) / 0.05)], color=color, label=f"{iou:g}: AP {curves.ap(iou):.3f}")
    axes.legend(fontsize=9)


def _draw_classes(axes: Any, precision: np.ndarray, names: list[str]) -> None:
    """A line for each class; of many classes, the mean over grey lines. precision: [K, R]"""
    recall, many = np.linspace(0, 1, precision.shape[1]), len(names) > _MOST_CURVES
    for place, (name, line) in enumerate(zip(names, precision)):
        turn, color = divmod(place, len(_COLORS))
        look = {"color": "0.75", "linewidth": 0.6} if many else {"color": _COLORS[color], "linestyle": _DASHES[turn]}
        axes.plot(recall, line, label=None if many else f"{_plain(name)}: {line.mean():.3f}", **look)
    if many:
        axes.plot(recall, precision.mean(axis=0), color="black", linewidth=2, label=f"mean of {len(names)}: {precision.mean():.3f}")
    small = len(names) > 10 and not many
    axes.legend(loc="lower left" if many else "best", fontsize=7 if small else 9, ncols=2 if small else 1)
