"""Files of proposals: this library's predictions.pth of a tested RPN, and the pickles of detectron2 and Detectron."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_bench.weights.reader import read_file

_EXPECTED = (
    "expected proposals: the predictions.pth that testing a model with MODEL.RPN_ONLY writes, or a pickle with `ids` (or `indexes`), "
    "`boxes`, and `objectness_logits` (or `scores`)"
)
# detectron2's numbers for kinds of boxes: two corners, or a corner and a size.
_XYXY, _XYWH = 0, 1


class Proposals(NamedTuple):
    """The proposals of one image.

    Attributes:
        boxes: xyxy, pixels of the original image, float32. [n, 4]
        objectness: higher is better, float32. [n]
        size: (width, height) of the image, pixels; None where the file does not say it.
    """

    boxes: np.ndarray
    objectness: np.ndarray
    size: tuple[int, int] | None


def read_proposals(path: str | os.PathLike) -> dict[str, Proposals]:
    """The proposals in a file, by image id as text; nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: when it holds no proposals, or faulty ones.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file; {_EXPECTED}")
    try:
        content = read_file(path)
    except ValueError as error:
        raise ValueError(f"proposals, read as files of weights are: {error}") from None
    rows = _of_predictions(path, content) if isinstance(content, list) else _of_pickle(path, content)
    found: dict[str, Proposals] = {}
    for image_id, boxes, objectness, size in rows:
        if str(image_id) in found:
            raise ValueError(f"{path}: two entries for image id {image_id}; each image must come once")
        found[str(image_id)] = _checked(f"{path}, image id {image_id}", boxes, objectness, size)
    return found


def _of_predictions(path: Any, rows: list) -> Iterator[tuple]:
    """(image id, boxes, objectness, size) of each image of a predictions.pth."""
    for place, row in enumerate(rows):
        if row is None:
            continue
        if not isinstance(row, dict) or not {"bbox", "size", "objectness"} <= row.keys():
            has = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}: entry {place} holds {has}; {_EXPECTED}")
        if row.get("image_id") is None:
            raise ValueError(f"{path}: entry {place} does not say of which image it is; test the RPN again, which writes `image_id`")
        yield row["image_id"], row["bbox"], row["objectness"], tuple(row["size"])


def _of_pickle(path: Any, content: Any) -> Iterator[tuple]:
    """The same of what detectron2 or Detectron wrote."""
    columns = [_column(content, names) for names in (("ids", "indexes"), ("boxes",), ("objectness_logits", "scores"))]
    if not all(isinstance(column, (list, np.ndarray)) for column in columns):
        has = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {has}; {_EXPECTED}")
    if len(set(map(len, columns))) != 1:
        raise ValueError(f"{path}: expected one entry an image everywhere, got {[len(column) for column in columns]} ids, boxes and scores")
    mode = content.get("bbox_mode", _XYXY)
    if mode not in (_XYXY, _XYWH):
        raise ValueError(f"{path}: bbox_mode: expected {_XYXY} (xyxy) or {_XYWH} (xywh), got {mode!r}")
    for image_id, boxes, scores in zip(*columns, strict=True):
        if mode == _XYWH:
            boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
        yield image_id, boxes, scores, None


def _column(content: Any, names: Sequence[str]) -> Any:
    return next((content[name] for name in names if name in content), None) if isinstance(content, dict) else None


def _checked(where: str, boxes: Any, objectness: Any, size: tuple[int, int] | None) -> Proposals:
    boxes, objectness = np.asarray(boxes, dtype=np.float32), np.asarray(objectness, dtype=np.float32).reshape(-1)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.shape != (len(objectness), 4):
        raise ValueError(f"{where}: expected boxes [n, 4] with a score each, got {list(boxes.shape)} and {len(objectness)} scores")
    if not (np.isfinite(boxes).all() and np.isfinite(objectness).all()):
        raise ValueError(f"{where}: values that are not finite; compute these proposals again")
    return Proposals(boxes, objectness, size)
