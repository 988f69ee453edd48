"""`evaluate`: one call for every data set; which numbers come out follows from what the data set offers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from maskrcnn_bench.structures.bounding_box import BoxList

from .cityscapes import evaluate_cityscapes
from .coco import MaskRule, class_names, coco_results, evaluate_coco, flatten, ground_truth
from .confusion import confusion_matrix
from .diagnose import LOW_AP, diagnose
from .evaluators import FlatDetections, choose_evaluator
from .pictures import draw_results
from .proposals import evaluate_proposals
from .results import format_results, write_results
from .voc import evaluate_voc

logger = logging.getLogger(__name__)


def evaluate(
    dataset,
    predictions: Sequence[BoxList | None],
    output_folder: str | os.PathLike | None = None,
    iou_types: Sequence[str] = ("bbox", "segm"),
    evaluator: str = "auto",
    max_detections: int = 100,
    mask_threshold: float = 0.5,
    mask_rule: str = "expand_truncate",
    mask_padding: int = 1,
    box_only: bool = False,
    confusion: tuple[float, float] = (0.5, 0.5),
    pictures: bool = False,
) -> dict:
    """Evaluates the predictions of a data set, logs tables, and writes the files of `results.write_results` and confusion.csv.

    COCO's numbers come out for every data set; "voc" besides for one whose `get_groundtruth(i)` knows difficult objects, and
    "cityscapes" for one whose `void_pixels(i)` knows what is not evaluated.

    Args:
        dataset: what it must offer is said at the head of `coco.py`.
        predictions: one BoxList an image, in the data set's order, as `coco.flatten` describes; None where an image has none.
        output_folder: where the files go; None writes none.
        iou_types: of "bbox", "segm", "keypoints".
        evaluator: "auto", "hotcoco" or "pycocotools".
        max_detections: detections an image that the model may give; above 100 it replaces COCO's limit (see `evaluate_coco`).
        mask_threshold: probability that separates object from background.
        mask_rule: how masks are pasted, see `structures.mask_paste`.
        mask_padding: border of zeros of pasted masks, in mask pixels.
        box_only: the predictions are proposals with `objectness`; only their recall is measured.
        confusion: least score of a detection, and least IoU with an object, that count in the confusion matrix.
        pictures: draw the confusion matrix and the curves as well; needs matplotlib, see `pictures.can_draw`.
    Returns:
        Results as described at the head of `results.py`.
    """
    if box_only:
        results = {"box_proposal": evaluate_proposals(dataset, predictions)}
        return _finish(results, output_folder, {})
    name, version = choose_evaluator(evaluator)
    truth = ground_truth(dataset)
    detections = flatten(dataset, predictions, MaskRule(mask_threshold, mask_rule, mask_padding))
    if not len(detections):
        logger.warning("no detections in %d images: all numbers are 0", len(truth["images"]))
    results: dict = {"per_class": {}, "evaluator": {"name": name, "version": version}}
    results |= {"images": len(truth["images"]), "detections": len(detections)}
    curves = {}
    for iou_type in _with_truth(truth, iou_types):
        found = evaluate_coco(truth, detections, iou_type, name, max_detections)
        results[iou_type], results["per_class"][iou_type], curves[iou_type] = found
    if _knows_difficult(dataset):
        results["voc"], results["per_class"]["voc"] = evaluate_voc(dataset, predictions)
    if "segm" in results and hasattr(dataset, "void_pixels"):
        results["cityscapes"], results["per_class"]["cityscapes"] = evaluate_cityscapes(truth, detections, dataset.void_pixels)
    _add_diagnosis(results, truth, detections)
    _finish(results, output_folder, {task: coco_results(detections, task) for task in iou_types if task in results})
    if output_folder is not None:
        names = class_names(truth)
        table = confusion_matrix(truth, detections, names, *confusion)
        table.write(os.path.join(output_folder, "confusion.csv"))
        if pictures:
            logger.info("pictures: %s", ", ".join(map(str, draw_results(table, curves, names, output_folder))))
    return results


def _with_truth(truth: dict, iou_types: Sequence[str]) -> list[str]:
    """The IoU types that the ground truth knows; says which are left out."""
    needs = {"segm": "segmentation", "keypoints": "keypoints"}
    kept = [t for t in iou_types if t not in needs or not truth["annotations"] or any(needs[t] in a for a in truth["annotations"])]
    for left_out in set(iou_types) - set(kept):
        logger.warning("%s is not evaluated: no annotation of the data set has `%s`", left_out, needs[left_out])
    return kept


def _knows_difficult(dataset) -> bool:
    return hasattr(dataset, "get_groundtruth") and len(dataset) > 0 and dataset.get_groundtruth(0).has_field("difficult")


def _add_diagnosis(results: dict, truth: dict, detections: FlatDetections) -> None:
    if "bbox" in results and results["bbox"]["AP"] < LOW_AP:
        results["diagnosis"] = diagnose(truth, detections)
        for line in results["diagnosis"]:
            logger.warning("AP is near zero: %s", line)


def _finish(results: dict, output_folder: str | os.PathLike | None, predictions: dict[str, list[dict]]) -> dict:
    logger.info("results\n%s", format_results(results))
    if output_folder is not None:
        write_results(results, output_folder, predictions)
    return results
