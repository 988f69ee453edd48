"""Pascal VOC's average precision equals published numbers, a slow reference, and pencil-and-paper cases."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_bench.data.datasets.voc import PascalVOCDataset
from maskrcnn_bench.evaluation import evaluate
from maskrcnn_bench.evaluation.voc import ImageBoxes, average_precision, evaluate_voc, match_class
from maskrcnn_bench.structures.bounding_box import BoxList


def image(boxes, scores=None, difficult=None, label=1) -> ImageBoxes:
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    scores = None if scores is None else np.array(scores, dtype=np.float64)
    return ImageBoxes(boxes, np.full(count, label), scores, None if difficult is None else np.array(difficult, dtype=bool))


def average_precisions(truths, found, iou_threshold=0.5, pixel=1) -> tuple[float, float]:
    """11-point and area rule."""
    matches = match_class(truths, found, 1, iou_threshold, pixel)
    return average_precision(*matches, True), average_precision(*matches, False)


# published data


@pytest.fixture(scope="module")
def reference(shared_dir):
    folder = shared_dir / "data" / "coco_eval_reference"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def read_rows(path) -> np.ndarray:
    return np.array([line.split()[1:] for line in path.read_text().splitlines() if line.strip()], dtype=np.float64)


def corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)


def test_published_numbers_with_ties(reference):
    folder = reference / "voc_ap_small"
    truths, found = [], []
    for path in sorted((folder / "gts").glob("*.txt")):
        truths.append(image(corners(read_rows(path).reshape(-1, 4))))
        rows = read_rows(folder / "dets" / path.name).reshape(-1, 5)
        found.append(image(corners(rows[:, 1:]), rows[:, 0]))
    expected = json.loads((folder / "expected.json").read_text())["published_review_object_detection_metrics"]
    for threshold in ("0.1", "0.3", "0.5", "0.75"):
        eleven_points, area = average_precisions(truths, found, float(threshold))
        assert eleven_points == pytest.approx(expected["11_point"][threshold], abs=1e-9)
        assert area == pytest.approx(expected["every_point"][threshold], abs=1e-9)


@pytest.mark.parametrize("pixel", [0, 1])
def test_published_numbers_of_the_cats(reference, pixel):
    folder = reference / "voc_toy"
    truths, found = [], []
    for path in sorted((folder / "gts_vocpascal_format").glob("*.xml")):
        boxes = [[float(box.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")] for box in ElementTree.parse(path).iter("bndbox")]
        truths.append(image(boxes))
        rows = read_rows(folder / "dets_classid_abs_xyx2y2" / f"{path.stem}.txt")
        found.append(image(rows[:, 1:], rows[:, 0]))
    expected = json.loads((folder / "expected.json").read_text())["published_review_object_detection_metrics_percent"]
    for threshold in ("0.5", "0.75"):
        eleven_points, area = average_precisions(truths, found, float(threshold), pixel)
        assert 100 * eleven_points == pytest.approx(expected["11_point"][threshold], abs=0.0051)
        assert 100 * area == pytest.approx(expected["every_point"][threshold], abs=0.0051)


# rules


def test_a_second_detection_of_an_object_is_a_miss():
    hits, misses, objects = match_class([image([[0, 0, 9, 9]])], [image([[0, 0, 9, 9], [0, 0, 9, 8]], [0.8, 0.9])], 1)
    assert hits.tolist() == [True, False] and misses.tolist() == [False, True] and objects == 1


def test_difficult_objects_count_neither_way():
    truths = [image([[0, 0, 9, 9], [50, 50, 59, 59]], difficult=[True, False])]
    found = [image([[0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 59, 59]], [0.9, 0.8, 0.7])]
    hits, misses, objects = match_class(truths, found, 1)
    assert hits.tolist() == [False, False, True] and not misses.any() and objects == 1
    assert average_precisions(truths, found) == (1.0, 1.0)


def test_the_threshold_itself_is_enough_and_pixels_count_inclusively():
    truths, found = [image([[0, 0, 9, 9]])], [image([[0, 0, 9, 4]], [0.5])]
    assert average_precisions(truths, found, pixel=1) == (1.0, 1.0)
    assert average_precisions(truths, found, pixel=0) == (0.0, 0.0)


def test_the_two_rules_on_paper():
    """Hit, miss, hit of two objects: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1."""
    hits, misses = np.array([True, False, True]), np.array([False, True, False])
    assert average_precision(hits, misses, 2, eleven_points=False) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(hits, misses, 2, eleven_points=True) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_nothing_to_find_and_nothing_found():
    none = image([], [])
    assert average_precisions([none], [image([[0, 0, 5, 5]], [0.5])]) == (-1.0, -1.0)
    assert average_precisions([image([[0, 0, 5, 5]])], [none]) == (0.0, 0.0)
    assert average_precisions([], []) == (-1.0, -1.0)


def slow_average_precisions(truths, found, threshold: float, pixel: int) -> tuple[float, float]:
    """VOC's rules in plain loops over one sorted list of detections."""

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0]) + pixel
        h = min(a[3], b[3]) - max(a[1], b[1]) + pixel
        inter = max(w, 0) * max(h, 0)
        areas = [(c[2] - c[0] + pixel) * (c[3] - c[1] + pixel) for c in (a, b)]
        return inter / (areas[0] + areas[1] - inter)

    rows = [(score, n, box) for n, one in enumerate(found) for score, box in zip(one.scores, one.boxes)]
    taken, true, false, curve = set(), 0, 0, []
    objects = sum(int((~one.difficult).sum()) for one in truths)
    for _, n, box in sorted(rows, key=lambda row: -row[0]):
        ious = [iou(box, other) for other in truths[n].boxes]
        best = int(np.argmax(ious)) if ious else -1
        if best >= 0 and ious[best] >= threshold:
            if truths[n].difficult[best]:
                continue
            fresh = (n, best) not in taken
            taken.add((n, best))
        else:
            fresh = False
        true, false = true + fresh, false + (not fresh)
        curve.append((true / objects if objects else 0, true / (true + false)))
    if not objects:
        return -1.0, -1.0
    eleven = np.mean([max((p for r, p in curve if r >= t), default=0.0) for t in np.linspace(0, 1, 11)])
    recalls = sorted({r for r, _ in curve})
    area = sum((r - before) * max(p for q, p in curve if q >= r) for before, r in zip([0, *recalls], recalls))
    return float(eleven), float(area)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pixel=st.sampled_from([0, 1]), threshold=st.sampled_from([0.3, 0.5, 0.75]))
def test_random_cases_equal_plain_loops(seed, pixel, threshold):
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(rng.integers(1, 5)):
        boxes = corners(np.concatenate((rng.integers(0, 40, (5, 2)), rng.integers(5, 30, (5, 2))), axis=1))[: rng.integers(0, 6)]
        truths.append(image(boxes, difficult=rng.random(len(boxes)) < 0.3))
        near = boxes.repeat(2, axis=0) + rng.integers(-3, 4, (2 * len(boxes), 4))
        far = corners(rng.integers(1, 40, (rng.integers(0, 4), 4)))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        both = np.concatenate((near, far))
        found.append(image(both, rng.permutation(len(both)) / 100 + rng.integers(0, 20) / 10000))
    expected = slow_average_precisions(truths, found, threshold, pixel)
    assert average_precisions(truths, found, threshold, pixel) == pytest.approx(expected, abs=1e-12)


# data sets

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"
PICTURE = "<annotation><size><width>100</width><height>80</height></size>{}</annotation>"


def write_voc(folder, objects: dict[str, list]) -> None:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/val.txt").write_text("\n".join(objects))
    for name, rows in objects.items():
        boxes = [
            OBJECT.format(kind, hard, "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box)))
            for kind, hard, *box in rows
        ]
        (folder / f"Annotations/{name}.xml").write_text(PICTURE.format("".join(boxes)))


def test_a_voc_folder_gets_both_kinds_of_numbers(tmp_path):
    objects = {"a": [("cat", 0, 11, 11, 40, 50), ("dog", 1, 60, 20, 90, 70)], "b": [("dog", 0, 21, 1, 80, 60)], "c": []}
    write_voc(tmp_path, objects)
    dataset = PascalVOCDataset(tmp_path, "val", use_difficult=True)
    labels = {name: label for label, name in dataset.categories.items()}
    rows = [
        ([[10, 10, 39, 49], [62, 22, 88, 70]], ["cat", "dog"], [0.9, 0.8]),
        ([[20, 0, 79, 59], [0, 0, 9, 9]], ["dog", "dog"], [0.7, 0.95]),
    ]
    predictions: list[BoxList | None] = []
    for boxes, names, scores in rows:
        boxlist = BoxList(boxes, (100, 80))
        boxlist.add_field("labels", torch.tensor([labels[name] for name in names]))
        boxlist.add_field("scores", torch.tensor(scores))
        predictions.append(boxlist)
    results = evaluate(dataset, [*predictions, None], tmp_path / "out", ("bbox",))
    # Cat: 1. Dog: a miss at .95, the difficult one ignored, then a hit: precision 1/2 at recall 1.
    assert results["voc"] == pytest.approx({"mAP": 0.75, "mAP07": 0.75})
    assert results["per_class"]["voc"]["dog"] == {"AP": 0.5, "AP07": pytest.approx(0.5), "gt": 1, "detections": 3}
    assert results["per_class"]["voc"]["bird"]["AP"] == -1.0
    assert results["bbox"]["AP50"] == pytest.approx(0.75, abs=0.005)
    assert results["per_class"]["bbox"]["dog"]["gt"] == 1
    assert evaluate_voc(dataset, [None] * 3)[0] == {"mAP": 0.0, "mAP07": 0.0}
