"""The two programs that match detections with ground truth: hotcoco (fast) and pycocotools (the reference), behind one function.

Both get the same ground truth and the same flat detections and give the same `Curves`; `choose_evaluator` decides which one runs.

Letters: T IoU thresholds, R recall points, K categories, A area ranges, D detection limits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import metadata

import numpy as np

logger = logging.getLogger(__name__)

EVALUATORS = ("hotcoco", "pycocotools")

COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""Spread of the annotators' clicks for COCO's 17 points of a person, in square roots of the object's area. [17]"""


@dataclass
class FlatDetections:
    """The detections of a whole data set in flat arrays; one row a detection, images in the data set's order.

    Attributes:
        image_ids: COCO image ids. [n] int64
        category_ids: COCO category ids. [n] int64
        boxes: xywh, pixels of the original image. [n, 4] float64
        scores: [n] float64
        segmentations: one compressed RLE (or list of polygons) a detection; None without masks.
        keypoints: (x, y, v), pixels of the original image; None without keypoints. [n, P, 3] float64
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    segmentations: list | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_results(cls, rows: Sequence[dict]) -> FlatDetections:
        """Detections from COCO's result format, a list of dicts."""
        keypoints = [np.reshape(row["keypoints"], (-1, 3)) for row in rows if "keypoints" in row]
        return cls(
            np.array([row["image_id"] for row in rows], dtype=np.int64),
            np.array([row["category_id"] for row in rows], dtype=np.int64),
            np.array([row.get("bbox", (0, 0, 0, 0)) for row in rows], dtype=np.float64).reshape(-1, 4),
            np.array([row["score"] for row in rows], dtype=np.float64),
            [row["segmentation"] for row in rows] if any("segmentation" in row for row in rows) else None,
            np.stack(keypoints).astype(np.float64) if keypoints else None,
        )


@dataclass(frozen=True)
class Curves:
    """Precision and recall as COCO's evaluation accumulates them; -1 where a category has no ground truth.

    Attributes:
        precision: [T, R, K, A, D]
        scores: score at which that precision and recall are reached. [T, R, K, A, D]
        recall: [T, K, A, D]
        category_ids: COCO ids, ascending. [K]
        limits: detections counted an image and category, ascending. [D]
    """

    precision: np.ndarray
    scores: np.ndarray
    recall: np.ndarray
    category_ids: list[int]
    limits: list[int]

    def ap(self, iou: float | None = None, area: int = 0, limit: int = -1, category: int | slice = slice(None)) -> float:
        """Average precision: of one IoU threshold or all, an area range, a place in `limits`, a place in `category_ids` or all."""
        return _mean(self.precision[_thresholds(iou), :, category, area, limit])

    def ar(self, iou: float | None = None, area: int = 0, limit: int = -1, category: int | slice = slice(None)) -> float:
        """Average recall, with the arguments of `ap`."""
        return _mean(self.recall[_thresholds(iou), category, area, limit])


def _thresholds(iou: float | None) -> slice:
    """The place of an IoU threshold in COCO's 0.50, 0.55 ... 0.95, or all places."""
    if iou is None:
        return slice(None)
    place = round((iou - 0.5) / 0.05)
    return slice(place, place + 1)


def _mean(values: np.ndarray) -> float:
    """Mean over what has ground truth; -1 when nothing has."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def summarize(curves: Curves, iou_type: str) -> dict[str, float]:
    """COCO's numbers of boxes and masks (12) or keypoints (10), 0 to 1; -1 where there is no ground truth.

    All but AR1, AR10 ... count as many detections as the largest limit allows. With a largest limit above 100, the numbers that
    others report follow as AP@100, AP50@100 and AP75@100.
    """
    if iou_type == "keypoints":
        sizes = {"m": 1, "l": 2}
        recalls = {"AR": curves.ar(), "AR50": curves.ar(0.5), "AR75": curves.ar(0.75)}
    else:
        sizes = {"s": 1, "m": 2, "l": 3}
        recalls = {f"AR{count}": curves.ar(limit=place) for place, count in enumerate(curves.limits)}
    numbers = {"AP": curves.ap(), "AP50": curves.ap(0.5), "AP75": curves.ap(0.75)}
    numbers |= {f"AP{size}": curves.ap(area=area) for size, area in sizes.items()}
    numbers |= recalls | {f"AR{size}": curves.ar(area=area) for size, area in sizes.items()}
    if curves.limits[-1] > 100 and 100 in curves.limits:
        standard = curves.limits.index(100)
        numbers |= {f"AP{name}@100": curves.ap(iou, limit=standard) for name, iou in (("", None), ("50", 0.5), ("75", 0.75))}
    return numbers


@dataclass(frozen=True)
class Request:
    """What to evaluate: "bbox", "segm" or "keypoints", the limits of `Curves`, and the spread of each keypoint. [P]"""

    iou_type: str
    limits: tuple[int, ...] = (1, 10, 100)
    sigmas: np.ndarray = field(default_factory=lambda: COCO_SIGMAS)


def accumulate(ground_truth: dict, detections: FlatDetections, request: Request, evaluator: str) -> Curves:
    """Matches detections with the ground truth and accumulates precision and recall.

    Args:
        ground_truth: in the form of COCO's JSON, complete as `coco.ground_truth` makes it; left unchanged.
        detections: of its images and categories.
        request: what to evaluate.
        evaluator: "hotcoco" or "pycocotools".
    """
    run: Callable = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[evaluator]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # Limits and keypoint spreads of one's own are announced as deviations from COCO's; here they are the caller's wish.
        warnings.simplefilter("ignore")
        done = run(ground_truth, detections, request)
    arrays = (np.asarray(done.eval[name], dtype=np.float64) for name in ("precision", "scores", "recall"))
    return Curves(*arrays, sorted(category["id"] for category in ground_truth["categories"]), sorted(request.limits))


def choose_evaluator(name: str = "auto") -> tuple[str, str]:
    """Name and version of the evaluator to use.

    Args:
        name: "auto" (hotcoco when it is installed and passes its self-test, else pycocotools), "hotcoco" or "pycocotools".
    Raises:
        ValueError: for an unknown name.
        ModuleNotFoundError: when the evaluator asked for is not installed.
    """
    if name not in ("auto", *EVALUATORS):
        raise ValueError(f"TEST.EVALUATOR auto, hotcoco or pycocotools expected, got {name!r}")
    if name == "auto":
        fault = hotcoco_fault()
        if fault:
            logger.warning("COCO evaluation with pycocotools, because hotcoco %s", fault)
        name = "pycocotools" if fault else "hotcoco"
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"the evaluator {name} is not installed; run: pip install {name}") from None


@lru_cache(maxsize=1)
def hotcoco_fault() -> str:
    """Why hotcoco can't be used here ("" if it can): it must repeat stored numbers of pycocotools on a small example."""
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        return f"cannot be imported ({error})"
    from . import self_test

    detections = self_test.detections()
    for iou_type, expected in self_test.EXPECTED.items():
        curves = accumulate(self_test.ground_truth(), detections, Request(iou_type), "hotcoco")
        got = list(summarize(curves, iou_type).values())
        if not np.allclose(got, expected, rtol=0, atol=1e-12):
            return f"{metadata.version('hotcoco')} gives other {iou_type} numbers than pycocotools in the self-test"
    return ""


def _pycocotools(ground_truth: dict, detections: FlatDetections, request: Request):
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    # pycocotools writes into the annotations it is given.
    truth.dataset = {**ground_truth, "annotations": [dict(a) for a in ground_truth["annotations"]]}
    found.dataset = {**ground_truth, "annotations": _as_annotations(detections, request.iou_type, mask.area)}
    truth.createIndex()
    found.createIndex()
    evaluation = COCOeval(truth, found, request.iou_type)
    evaluation.params.maxDets = sorted(request.limits)
    evaluation.params.kpt_oks_sigmas = np.asarray(request.sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _hotcoco(ground_truth: dict, detections: FlatDetections, request: Request):
    import hotcoco

    ground_truth, detections = _with_small_ids(ground_truth, detections)
    truth = hotcoco.COCO(ground_truth)
    if request.iou_type == "keypoints":
        found = hotcoco.COCO({**ground_truth, "annotations": _as_annotations(detections, "keypoints", None)})
    else:
        table = np.column_stack((detections.image_ids, detections.boxes, detections.scores, detections.category_ids))
        masks = detections.segmentations if request.iou_type == "segm" and len(detections) else None
        found = truth.load_res(table, segmentation=masks)
        if masks:
            found.update_anns(ids=np.arange(len(masks)) + 1, area=np.asarray(hotcoco.mask.area(masks), dtype=np.float64))
    evaluation = hotcoco.COCOeval(truth, found, request.iou_type)
    evaluation.params.max_dets = sorted(request.limits)
    if request.iou_type == "keypoints":
        evaluation.params.kpt_oks_sigmas = [float(sigma) for sigma in request.sigmas]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


_NUMBERED = ("images", "categories")
_LARGEST_ID = 2**53
"""That goes through float64 unchanged."""


def _with_small_ids(ground_truth: dict, detections: FlatDetections) -> tuple[dict, FlatDetections]:
    """Numbers images and categories from 1 in the order of their ids where hotcoco would refuse or round them."""
    ids = [entry["id"] for key in _NUMBERED for entry in ground_truth[key]]
    if 0 <= min(ids, default=0) and max(ids, default=0) <= _LARGEST_ID:
        return ground_truth, detections
    tables = {key: {old: new for new, old in enumerate(sorted(entry["id"] for entry in ground_truth[key]), start=1)} for key in _NUMBERED}
    renumbered = {key: [entry | {"id": tables[key][entry["id"]]} for entry in ground_truth[key]] for key in _NUMBERED}
    images, categories = tables.values()
    annotations = [
        a | {"image_id": images[a["image_id"]], "category_id": categories[a["category_id"]]} for a in ground_truth["annotations"]
    ]
    image_ids, category_ids = (
        np.array([table.get(old, 0) for old in ids.tolist()], dtype=np.int64)
        for table, ids in ((images, detections.image_ids), (categories, detections.category_ids))
    )
    out = {**ground_truth, **renumbered, "annotations": annotations}
    return out, replace(detections, image_ids=image_ids, category_ids=category_ids)


def _as_annotations(detections: FlatDetections, iou_type: str, mask_area: Callable | None) -> list[dict]:
    """Detections as annotations with a score, the form in which pycocotools keeps them; areas as its `loadRes` takes them."""
    columns = {
        "image_id": detections.image_ids.tolist(),
        "category_id": detections.category_ids.tolist(),
        "score": detections.scores.tolist(),
        "bbox": detections.boxes.tolist(),
        "area": np.prod(detections.boxes[:, 2:], axis=1).tolist(),
    }
    if iou_type == "segm":
        columns["segmentation"] = detections.segmentations or []
        # One by one: with numpy 2, pycocotools fails on lists of more than 255 masks.
        columns["area"] = [float(mask_area(mask)) for mask in columns["segmentation"]]
    if iou_type == "keypoints":
        low, high = detections.keypoints[..., :2].min(axis=1), detections.keypoints[..., :2].max(axis=1)
        columns["keypoints"] = detections.keypoints.reshape(len(detections), 3 * detections.keypoints.shape[1]).tolist()
        columns["bbox"] = np.concatenate((low, high - low), axis=1).tolist()
        columns["area"] = np.prod(high - low, axis=1).tolist()
    rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
    return [{"id": number, "iscrowd": 0, **row} for number, row in enumerate(rows, start=1)]
