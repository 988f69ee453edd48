"""COCO evaluation of boxes, masks and keypoints: a data set and its predictions become ground truth and flat detections.

What a data set must offer: `__len__`, `get_img_info(i)` and `categories`. Its ground truth comes from `annotations` if that is an
AnnotationStore (with `coco_dict(keep)`; the data set's `faulty` and `difficult`, [A] bool, are heeded), from `coco_json()` (a dict or the
path of a file), or else, box list by box list, from `get_groundtruth(i)`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.mask_paste import paste_rle

from .evaluators import COCO_SIGMAS, Curves, FlatDetections, Request, accumulate, summarize

logger = logging.getLogger(__name__)

IOU_TYPES = ("bbox", "segm", "keypoints")
KEYPOINT_DETECTIONS = 20
"""Detections an image that COCO counts for keypoints."""


@dataclass(frozen=True)
class MaskRule:
    """How mask probabilities become pixels: see `structures.mask_paste`."""

    threshold: float = 0.5
    rule: str = "expand_truncate"
    padding: int = 1


# ground truth


def image_ids(dataset) -> list[int]:
    """COCO image id of each image of the data set, in its order; a data set whose ids are no integers is numbered from 1."""
    ids = _own_ids(dataset)
    if all(isinstance(image_id, (int, np.integer)) for image_id in ids):
        return [int(image_id) for image_id in ids]
    return list(range(1, len(dataset) + 1))


def _own_ids(dataset) -> list:
    """What the data set itself calls its images, which need not be numbers."""
    id_map = getattr(dataset, "id_to_img_map", None)
    return [id_map[i] if id_map is not None else dataset.get_img_info(i).get("id", i + 1) for i in range(len(dataset))]


def category_ids(dataset) -> dict[int, int]:
    """COCO category id of each label (1 .. K-1) of the data set."""
    labels = {label: label for label in dataset.categories if label != 0}
    return dict(getattr(dataset, "contiguous_category_id_to_json_id", labels))


def ground_truth(dataset) -> dict:
    """The data set's ground truth in the form of COCO's JSON, complete and limited to its images and categories.

    Annotations are numbered from 1, since pycocotools takes a match with annotation 0 for none. Missing areas are those of the boxes;
    where some annotations have masks, the others get their boxes as masks.

    Raises:
        ValueError: for a run-length mask that does not fit its image, naming annotation and image.
    """
    images = [
        {"id": image_id, **{key: dataset.get_img_info(i).get(key, "") for key in ("width", "height", "file_name")}}
        for i, image_id in enumerate(image_ids(dataset))
    ]
    content = _stored_content(dataset)
    categories = _categories(dataset, content)
    shapes = {image["id"]: (image["height"], image["width"]) for image in images}
    wanted = {category["id"] for category in categories}
    annotations = [a for a in content["annotations"] if a["image_id"] in shapes and a["category_id"] in wanted]
    with_masks = any(a.get("segmentation") for a in annotations)
    annotations = [_complete(a, number, shapes[a["image_id"]], with_masks) for number, a in enumerate(annotations, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _stored_content(dataset) -> dict:
    """Categories and annotations as the data set has them."""
    if hasattr(getattr(dataset, "annotations", None), "coco_dict"):
        return _from_store(dataset)
    if hasattr(dataset, "coco_json"):
        return _from_json(dataset)
    if hasattr(dataset, "get_groundtruth"):
        label_ids = category_ids(dataset)
        images = (_target_rows(dataset.get_groundtruth(i), image_id, label_ids) for i, image_id in enumerate(image_ids(dataset)))
        return {"annotations": [row for rows in images for row in rows]}
    raise TypeError(
        f"{type(dataset).__name__} cannot be evaluated: expected a method coco_json() that returns COCO annotations, an AnnotationStore as "
        "`annotations`, or a method get_groundtruth(i) that returns the BoxList of image i"
    )


def _from_json(dataset) -> dict:
    """What `coco_json()` says of the images of the data set, with their numbers in place of the ids it knows them by."""
    content = dataset.coco_json()
    content = content if isinstance(content, dict) else json.loads(Path(content).read_bytes())
    numbers = dict(zip(_own_ids(dataset), image_ids(dataset)))
    annotations = [{**a, "image_id": numbers[a["image_id"]]} for a in content["annotations"] if a["image_id"] in numbers]
    return {**content, "annotations": annotations}


def _from_store(dataset) -> dict:
    """Annotations of an AnnotationStore without those the data set calls faulty; difficult ones are ignored as crowds are.

    Where several categories of the file have one label, they become the first of them.
    """
    kept = ~dataset.faulty if hasattr(dataset, "faulty") else np.ones(len(dataset.annotations.ids), dtype=bool)
    content = dataset.annotations.coco_dict(kept)
    if hasattr(dataset, "difficult"):
        for annotation, hard in zip(content["annotations"], np.asarray(dataset.difficult)[kept]):
            annotation["iscrowd"] = int(annotation["iscrowd"] or hard)
    labels, numbers = getattr(dataset, "json_category_id_to_contiguous_id", {}), category_ids(dataset)
    for annotation in content["annotations"]:
        number = annotation["category_id"]
        annotation["category_id"] = numbers.get(labels.get(number), number)
    return content


def _categories(dataset, content: dict) -> list[dict]:
    """One entry a label, with the file's own entry (keypoint names, sigmas) where there is one."""
    stored = {category["id"]: category for category in content.get("categories", ())}
    return [{**stored.get(number, {}), "id": number, "name": dataset.categories[label]} for label, number in category_ids(dataset).items()]


def _complete(annotation: dict, number: int, shape: tuple[int, int], with_masks: bool) -> dict:
    x, y, w, h = annotation["bbox"]
    out = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    out |= {"id": number, "iscrowd": int(annotation.get("iscrowd", 0)), "area": annotation.get("area", w * h)}
    if with_masks:
        out["segmentation"] = _segmentation(annotation, shape) or [[x, y, x, y + h, x + w, y + h, x + w, y]]
    points = annotation.get("keypoints", ())
    if len(points):
        out |= {"keypoints": points, "num_keypoints": annotation.get("num_keypoints", sum(v > 0 for v in points[2::3]))}
    return out


def _segmentation(annotation: dict, shape: tuple[int, int]) -> dict | list:
    """The annotation's mask if it has a usable one: polygons of three points or more, all numbers, or run lengths that fill the image."""
    mask = annotation.get("segmentation") or []
    if not isinstance(mask, dict):
        return [ring for ring in mask if len(ring) >= 6 and len(ring) % 2 == 0 and np.isfinite(ring).all()]
    fills = not isinstance(mask["counts"], list) or sum(mask["counts"]) == shape[0] * shape[1]
    if tuple(mask["size"]) != tuple(shape) or not fills:
        raise ValueError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']}: a run-length mask of [height, width] {list(shape)} "
            f"expected, got size {list(mask['size'])}{'' if fills else ' with runs of another length'}; correct the annotation file"
        )
    return mask


def _target_rows(target: BoxList, image_id: int, label_ids: dict[int, int]) -> list[dict]:
    """COCO annotations of the ground truth of one image; what VOC calls difficult is ignored as crowds are."""
    boxes = target.convert("xywh").bbox.double().tolist()
    difficult = target.get_field("difficult").tolist() if target.has_field("difficult") else [0] * len(boxes)
    labels = target.get_field("labels").tolist()
    rows = [
        {"image_id": image_id, "category_id": label_ids[label], "bbox": box, "iscrowd": int(hard)}
        for box, label, hard in zip(boxes, labels, difficult)
    ]
    if target.has_field("masks"):
        _add_masks(rows, target.get_field("masks"))
    if target.has_field("keypoints"):
        for row, points in zip(rows, _keypoint_array(target)):
            row["keypoints"] = points.ravel().tolist()
    return rows


def _add_masks(rows: list[dict], masks) -> None:
    from pycocotools import mask as coco_mask

    width, height = masks.size
    for row, mask in zip(rows, masks):
        pixels = mask.get_mask_tensor().reshape(height, width).numpy().astype(np.uint8)
        rle = coco_mask.encode(np.asfortranarray(pixels))
        row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        row["area"] = float(coco_mask.area(rle))


def _keypoint_array(boxlist: BoxList) -> np.ndarray:
    """(x, y, v) of each object's points, pixels. [n, P, 3]"""
    points = boxlist.get_field("keypoints")
    points = getattr(points, "keypoints", points)
    return torch.as_tensor(points).detach().cpu().double().reshape(len(boxlist), -1, 3).numpy()


# detections


def flatten(dataset, predictions: Sequence[BoxList | None], mask_rule: MaskRule | None = None) -> FlatDetections:
    """The predictions of a data set as flat arrays.

    Args:
        dataset: see the head of this file.
        predictions: one an image, in the data set's order; None where an image has none. Boxes of an image of another size are brought
            to the original's. Fields: `scores` [n], `labels` [n], and where there are such heads `mask` (probabilities) [n, 1, S, S] or
            `rle` (a list of run-length dicts), and `keypoints` [n, P, 3].
        mask_rule: how probabilities become masks.
    Raises:
        ValueError: when the number of predictions or a label does not fit the data set.
    """
    if len(predictions) != len(dataset):
        raise ValueError(f"{len(dataset)} predictions expected, one an image (None where there is none), got {len(predictions)}")
    label_ids, parts = category_ids(dataset), []
    for i, (image_id, boxlist) in enumerate(zip(image_ids(dataset), predictions)):
        if boxlist is not None and len(boxlist):
            parts.append(_flatten_image(boxlist, dataset.get_img_info(i), image_id, label_ids, mask_rule or MaskRule()))
    return _concatenate(parts)


def _flatten_image(boxlist: BoxList, info: dict, image_id: int, label_ids: dict[int, int], mask_rule: MaskRule) -> FlatDetections:
    size = (info["width"], info["height"])
    if tuple(boxlist.size) != size:
        boxlist = boxlist.resize(size)
    boxlist = _finite(boxlist, info)
    labels = boxlist.get_field("labels").tolist()
    unknown = set(labels) - set(label_ids)
    if unknown:
        raise ValueError(
            f"image {info.get('file_name', image_id)}: labels {sorted(label_ids)} expected, got {sorted(unknown)}; were the predictions "
            "made with the classes of another data set?"
        )
    return FlatDetections(
        np.full(len(boxlist), image_id, dtype=np.int64),
        np.array([label_ids[label] for label in labels], dtype=np.int64),
        boxlist.convert("xywh").bbox.detach().cpu().double().numpy(),
        boxlist.get_field("scores").detach().cpu().double().numpy(),
        _masks(boxlist, size, mask_rule),
        _keypoint_array(boxlist) if boxlist.has_field("keypoints") else None,
    )


def _finite(boxlist: BoxList, info: dict) -> BoxList:
    finite = torch.isfinite(boxlist.bbox).all(dim=1) & torch.isfinite(boxlist.get_field("scores"))
    if finite.all():
        return boxlist
    logger.warning("image %s: %d detections with NaN or infinite numbers left out", info.get("file_name"), int((~finite).sum()))
    kept = torch.nonzero(finite).flatten()
    out = boxlist[kept]
    if boxlist.has_field("rle"):
        out.add_field("rle", [boxlist.get_field("rle")[k] for k in kept.tolist()])
    return out


def _masks(boxlist: BoxList, size: tuple[int, int], mask_rule: MaskRule) -> list[dict] | None:
    if boxlist.has_field("rle"):
        return list(boxlist.get_field("rle"))
    if not boxlist.has_field("mask"):
        return None
    return paste_rle(boxlist.get_field("mask"), boxlist.convert("xyxy").bbox, size, mask_rule.threshold, mask_rule.rule, mask_rule.padding)


def _concatenate(parts: list[FlatDetections]) -> FlatDetections:
    if not parts:
        return FlatDetections.from_results([])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("image_ids", "category_ids", "boxes", "scores")}
    masks, points = [part.segmentations for part in parts], [part.keypoints for part in parts]
    return FlatDetections(
        **columns,
        segmentations=None if None in masks else [mask for part in masks for mask in part],
        keypoints=None if any(part is None for part in points) else np.concatenate(points),
    )


def coco_results(detections: FlatDetections, iou_type: str) -> list[dict]:
    """Detections in COCO's result format; masks come without boxes, whose area would otherwise count."""
    columns = {"image_id": detections.image_ids.tolist(), "category_id": detections.category_ids.tolist()}
    if iou_type == "bbox":
        columns["bbox"] = detections.boxes.tolist()
    if iou_type == "segm":
        columns["segmentation"] = detections.segmentations or []
    if iou_type == "keypoints":
        columns["keypoints"] = [] if detections.keypoints is None else [points.ravel().tolist() for points in detections.keypoints]
    columns["score"] = detections.scores.tolist()
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


# numbers


def class_names(truth: dict) -> dict[int, str]:
    """The name of each category by ascending id; names that several have get the id besides."""
    names = {category["id"]: category["name"] for category in sorted(truth["categories"], key=lambda category: category["id"])}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {number: f"{name} ({number})" if name in repeated else name for number, name in names.items()}


def evaluate_coco(
    truth: dict, detections: FlatDetections, iou_type: str, evaluator: str, max_detections: int = 100
) -> tuple[dict, dict, Curves]:
    """COCO's numbers of one kind.

    Args:
        truth: from `ground_truth`.
        detections: from `flatten`.
        iou_type: "bbox", "segm" or "keypoints".
        evaluator: "hotcoco" or "pycocotools".
        max_detections: detections an image that the model may give. Above 100, this is the limit of all numbers, and the usual ones
            follow with "@100".
    Returns:
        The numbers of `evaluators.summarize`, those of each class by name, and the curves they come from.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"IoU type {', '.join(IOU_TYPES)} expected, got {iou_type!r}")
    limits = (KEYPOINT_DETECTIONS,) if iou_type == "keypoints" else tuple(sorted({1, 10, 100, max(max_detections, 100)}))
    sigmas = COCO_SIGMAS
    if iou_type == "keypoints":
        truth, detections = _with_keypoints(truth, detections)
        sigmas = _sigmas(truth)
    elif iou_type == "segm" and len(detections) and detections.segmentations is None:
        raise ValueError("evaluation of masks asked for, but the predictions have neither a field `mask` nor `rle`")
    curves = accumulate(truth, detections, Request(iou_type, limits, sigmas), evaluator)
    return summarize(curves, iou_type), _per_class(curves, truth, detections), curves


def _with_keypoints(truth: dict, detections: FlatDetections) -> tuple[dict, FlatDetections]:
    """The part of the categories that have keypoints; an annotation of theirs without points counts as one with none visible."""
    lengths = {len(a["keypoints"]) for a in truth["annotations"] if "keypoints" in a}
    if len(lengths) != 1:
        raise ValueError(f"keypoint annotations of one length expected, got {sorted(lengths) or 'none'}")
    wanted = {a["category_id"] for a in truth["annotations"] if "keypoints" in a}
    empty = {"keypoints": [0] * lengths.pop(), "num_keypoints": 0}
    annotations = [{**empty, **a} for a in truth["annotations"] if a["category_id"] in wanted]
    categories = [category for category in truth["categories"] if category["id"] in wanted]
    keep = np.flatnonzero(np.isin(detections.category_ids, list(wanted)))
    if len(keep) and detections.keypoints is None:
        raise ValueError("evaluation of keypoints asked for, but the predictions have no field `keypoints`")
    points = np.zeros((0, len(empty["keypoints"]) // 3, 3)) if detections.keypoints is None else detections.keypoints[keep]
    columns = (detections.image_ids, detections.category_ids, detections.boxes, detections.scores)
    return {**truth, "annotations": annotations, "categories": categories}, FlatDetections(*(c[keep] for c in columns), keypoints=points)


def _sigmas(truth: dict) -> np.ndarray:
    """Spread of each keypoint: the category's own `sigmas`, COCO's for 17 points, else their mean for all, with a warning."""
    count = len(truth["annotations"][0]["keypoints"]) // 3
    stored = [category["sigmas"] for category in truth["categories"] if len(category.get("sigmas", ())) == count]
    if stored:
        return np.asarray(stored[0], dtype=np.float64)
    if count == len(COCO_SIGMAS):
        return COCO_SIGMAS
    sigma = round(float(COCO_SIGMAS.mean()), 3)
    logger.warning("%d keypoints without `sigmas` in their category: %.3f is used for each", count, sigma)
    return np.full(count, sigma)


def _per_class(curves: Curves, truth: dict, detections: FlatDetections) -> dict[str, dict]:
    names = class_names(truth)
    objects = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    found = Counter(detections.category_ids.tolist())
    table = {}
    for place, number in enumerate(curves.category_ids):
        table[names[number]] = {
            **{key: curves.ap(iou, category=place) for key, iou in (("AP", None), ("AP50", 0.5), ("AP75", 0.75))},
            f"AR{curves.limits[-1]}": curves.ar(category=place),
            **_best_f1(curves, place),
            "gt": objects[number],
            "detections": found[number],
        }
    return table


def _best_f1(curves: Curves, place: int) -> dict[str, float]:
    """Largest F1 at IoU 0.5 on COCO's 101 points of recall, with the score threshold that reaches it; -1 without ground truth."""
    precision = curves.precision[0, :, place, 0, -1]
    if precision[0] < 0:
        return dict.fromkeys(("F1", "precision", "recall", "threshold"), -1.0)
    recall = np.linspace(0, 1, len(precision))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    numbers = f1[best], precision[best], recall[best], curves.scores[0, best, place, 0, -1]
    return {key: float(number) for key, number in zip(("F1", "precision", "recall", "threshold"), numbers)}
