"""Classes by name: the rows of a head that learnt other classes, picked for those that a model has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .names import Loaded, matches

BACKGROUND = "__background__"
COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant"),
    *("stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat"),
    *("baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave"),
    *("oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_COCO_IDS_WITHOUT_CLASS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_ROWS_PER_CLASS = {
    "roi_heads.box.predictor.cls_score.*": 1,
    "roi_heads.box.predictor.#.cls_score.*": 1,
    "roi_heads.box.predictor.bbox_pred.*": 4,
    "roi_heads.mask.predictor.mask_fcn_logits.*": 1,
    "roi_heads.mask.stages.#.predictor.mask_fcn_logits.*": 1,
}


def names_of(loaded: Loaded) -> tuple[str, ...]:
    """The classes of a checkpoint, background first: as it says, or COCO's where their number tells; () when nobody knows."""
    extra = loaded.meta.get("extra", {})
    about = extra.get("meta") if isinstance(extra.get("meta"), dict) else {}
    about = about | about["dataset_meta"] if isinstance(about.get("dataset_meta"), dict) else about
    said = _words(loaded.meta.get("class_names")) or _words(extra.get("class_names"))
    if said:
        return said
    theirs = _words(about.get("classes")) or _words(about.get("CLASSES"))
    if theirs:
        return (BACKGROUND, *theirs)
    names = ("roi_heads.box.predictor.cls_score.weight", "roi_heads.box.predictor.0.cls_score.weight")
    rows = next((loaded.state_dict[name] for name in names if name in loaded.state_dict), None)
    return coco_names(0 if rows is None else len(rows))


def _words(value: Any) -> tuple[str, ...]:
    """One name or several, as a file says them; () of anything else."""
    several = (value,) if isinstance(value, str) else value
    good = isinstance(several, (list, tuple)) and all(isinstance(name, str) for name in several)
    return tuple(several) if good else ()


def coco_names(count: int) -> tuple[str, ...]:
    """COCO's classes in order, or by the numbers of its file, where ten are not in use and have no name; () for any other count.

    Args:
        count: of classes, with the background.
    """
    if count == len(COCO) + 1:
        return (BACKGROUND, *COCO)
    if count != len(COCO) + 1 + len(_COCO_IDS_WITHOUT_CLASS):
        return ()
    names = iter(COCO)
    return (BACKGROUND, *("" if i in _COCO_IDS_WITHOUT_CLASS else next(names) for i in range(1, count)))


def pick_classes(loaded: Loaded, model: dict[str, Tensor], class_names: Sequence[str]) -> tuple[Loaded, list[str]]:
    """A checkpoint whose heads have the model's classes: rows of equal names from the checkpoint, the others as the model began.

    Args:
        loaded: the checkpoint.
        model: the model's tensors.
        class_names: the model's classes, background first; () leaves the checkpoint as it is.
    Returns:
        The checkpoint, and the classes that it had; heads of as many rows as the model's stay as they are.
    """
    theirs = names_of(loaded)
    places = {name: place for place, name in enumerate(theirs) if place and name}
    found = [name for name in class_names[1:] if name in places]
    state = dict(loaded.state_dict)
    picked = False
    for name, rows in loaded.state_dict.items():
        per_class = next((n for template, n in _ROWS_PER_CLASS.items() if matches(template, name)), 0)
        own = model.get(name)
        if not found or not per_class or own is None or own.shape == rows.shape:
            continue
        if len(rows) == per_class * len(theirs) and len(own) == per_class * len(class_names) and own.shape[1:] == rows.shape[1:]:
            state[name] = _rows(rows, own, per_class, [0, *(places.get(c, -1) for c in class_names[1:])])
            picked = True
    return (Loaded(loaded.kind, state, loaded.meta), found) if picked else (loaded, [])


def _rows(rows: Tensor, own: Tensor, per_class: int, places: list[int]) -> Tensor:
    """Each class's rows from its place in `rows`, or its own at -1. [per_class * len(places), ...]"""
    source, initial = rows.unflatten(0, (-1, per_class)), own.detach().cpu().to(rows.dtype).unflatten(0, (-1, per_class))
    parts = [initial[row] if place < 0 else source[place] for row, place in enumerate(places)]
    return torch.stack(parts).flatten(0, 1)
