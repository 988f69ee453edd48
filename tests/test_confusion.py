"""The confusion matrix counts every object and detection once, and the pictures of an evaluation show what they should."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
from coco_worlds import JsonDataset, official, small_world, truth_as_results
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.evaluation import evaluate, pictures
from maskrcnn_bench.evaluation.coco import class_names, evaluate_coco, ground_truth
from maskrcnn_bench.evaluation.confusion import Confusion, confusion_matrix
from maskrcnn_bench.evaluation.evaluators import FlatDetections

CAT, DOG, BIRD = 3, 5, 8


def world(objects, images=2, classes=((CAT, "cat"), (DOG, "dog"), (BIRD, "bird"))) -> dict:
    """A COCO dict of (image, category, box xywh[, crowd])."""
    rows = [
        {"id": k + 1, "image_id": i, "category_id": c, "bbox": box, "iscrowd": int(bool(rest))}
        for k, (i, c, box, *rest) in enumerate(objects)
    ]
    shapes = [{"id": k + 1, "width": 200, "height": 150, "file_name": f"{k}.jpg"} for k in range(images)]
    return {"images": shapes, "categories": [{"id": c, "name": name} for c, name in classes], "annotations": rows}


def flat(detections) -> FlatDetections:
    """Detections of (image, category, box xywh, score)."""
    return FlatDetections.from_results([{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in detections])


def confusion(content, detections, **thresholds):
    truth = ground_truth(JsonDataset(content))
    return confusion_matrix(truth, detections, class_names(truth), **thresholds)


OBJECTS = [
    (1, CAT, [10, 10, 40, 40]),
    (1, CAT, [100, 10, 40, 40]),
    (1, DOG, [10, 80, 40, 40]),
    (2, BIRD, [10, 10, 20, 20]),
    (2, DOG, [100, 80, 40, 40]),
    (2, BIRD, [50, 50, 60, 60], "crowd"),
]
FOUND = [
    (1, CAT, [11, 10, 40, 40], 0.9),  # right
    (1, CAT, [10, 12, 40, 40], 0.8),  # the same cat once more: on nothing
    (1, DOG, [100, 11, 40, 40], 0.95),  # a cat taken for a dog
    (1, DOG, [10, 80, 40, 30], 0.7),  # right, IoU 0.75
    (1, BIRD, [150, 100, 20, 20], 0.6),  # on nothing
    (2, BIRD, [60, 60, 20, 20], 0.9),  # on the crowd: left out
    (2, CAT, [60, 60, 20, 20], 0.9),  # a cat on a crowd of birds: on nothing
    (2, DOG, [100, 80, 40, 40], 0.4),  # too unsure, so this dog is missed
]


def test_matrix_of_three_classes_by_hand():
    got = confusion(world(OBJECTS), flat(FOUND))
    assert got.names == ["background", "cat", "dog", "bird"]
    assert got.matrix.tolist() == [[0, 2, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert got.ignored == 1
    unsure = confusion(world(OBJECTS), flat(FOUND), score=0.3)
    assert unsure.matrix[2].tolist() == [0, 0, 2, 0]
    strict = confusion(world(OBJECTS), flat(FOUND), iou=0.8)
    assert strict.matrix.tolist() == [[0, 2, 1, 1], [0, 1, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0]]


def test_an_object_goes_to_its_own_class_first():
    """A surer detection of another class on the same object is a false one, not the object's name."""
    got = confusion(world([(1, CAT, [10, 10, 40, 40])]), flat([(1, DOG, [10, 10, 40, 40], 0.9), (1, CAT, [12, 10, 40, 40], 0.6)]))
    assert got.matrix.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_nothing_found_and_nothing_there():
    assert confusion(world(OBJECTS), flat([])).matrix.tolist() == [[0] * 4, [2, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]]
    assert confusion(world([]), flat(FOUND)).matrix[0].tolist() == [0, 3, 2, 2]
    assert confusion(world([], images=0), flat([])).matrix.sum() == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), score=st.sampled_from([0.0, 0.5]), iou=st.sampled_from([0.5, 0.75]))
def test_totals_are_those_of_the_data_and_the_diagonal_that_of_pycocotools(seed, score, iou):
    rng = np.random.default_rng(seed)

    def draw(count):
        corners = rng.integers(0, 6, (count, 2)) * 10
        boxes = np.column_stack((corners, rng.choice([30, 40], (count, 2)))).astype(float).tolist()
        return zip(rng.integers(1, 3, count).tolist(), rng.choice([CAT, DOG, BIRD], count).tolist(), boxes)

    objects = [(*row, "crowd") if rng.random() < 0.1 else row for row in draw(12)]
    found = [(*row, float(value)) for row, value in zip(draw(15), rng.permutation(15) / 15 + 0.01)]
    content = world(objects)
    got = confusion(content, flat(found), score=score, iou=iou)
    kept = [row for row in found if row[3] >= score]
    single = [a for a in content["annotations"] if not a["iscrowd"]]
    for place, category in enumerate((CAT, DOG, BIRD), start=1):
        assert got.matrix[place].sum() == sum(a["category_id"] == category for a in single)
    assert got.matrix[:, 1:].sum() + got.ignored == len(kept)
    assert got.matrix[0, 0] == 0
    for a in content["annotations"]:
        a["area"] = a["bbox"][2] * a["bbox"][3]
    run = official(content, [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in kept], "bbox")
    threshold = round((iou - 0.5) / 0.05)
    right = dict.fromkeys((CAT, DOG, BIRD), 0)
    for image in run.evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            right[image["category_id"]] += int(((image["dtMatches"][threshold] > 0) & ~image["dtIgnore"][threshold]).sum())
    assert np.diag(got.matrix)[1:].tolist() == list(right.values())


def test_files_of_an_evaluation(tmp_path, caplog):
    content = small_world()
    content["categories"][0]["name"] = "price $5$, _hidden 猫 with a name that is much too long"
    dataset = JsonDataset(content)
    with caplog.at_level(logging.INFO):
        evaluate(dataset, dataset.predictions(truth_as_results(content)), tmp_path, ("bbox",), pictures=True)
    with open(tmp_path / "confusion.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == ["background", content["categories"][0]["name"], "4"]
    assert [[int(value) for value in row[1:]] for row in rows[1:]] == [[0, 0, 0], [0, 4, 0], [0, 0, 3]]
    for name in ("confusion.png", "bbox_precision_recall.png"):
        assert min(Image.open(tmp_path / name).size) > 300
        assert str(tmp_path / name) in caplog.text
    assert not list(tmp_path.glob("*.part"))


def test_curves_show_the_numbers():
    content = world(OBJECTS)
    truth = ground_truth(JsonDataset(content))
    numbers, per_class, curves = evaluate_coco(truth, flat(FOUND), "bbox", "pycocotools")
    left, right = pictures.draw_precision_recall(curves, class_names(truth), "bbox").axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == [f"{n}: {row['AP50']:.3f}" for n, row in per_class.items()]
    assert left.get_legend().get_texts()[0].get_text() == f"0.5: AP {numbers['AP50']:.3f}"
    line = right.get_lines()[0]
    assert line.get_ydata().mean() == pytest.approx(per_class["cat"]["AP50"])


@pytest.mark.parametrize("count", [0, 30, 130])
def test_pictures_of_few_and_many_classes(count, tmp_path):
    classes = [(k, f"class {k}") for k in range(1, count + 1)]
    objects = [(1, k, [10 + k % 50, 10, 40, 40]) for k in range(1, count + 1)]
    content = world(objects, classes=classes or ((CAT, "cat"),))
    dataset = JsonDataset(content)
    found = [{"image_id": 1, "category_id": c, "bbox": box, "score": 0.9} for _, c, box in objects[::2]]
    evaluate(dataset, dataset.predictions(found), tmp_path, ("bbox",), pictures=True)
    for name in ("confusion.png", "bbox_precision_recall.png"):
        assert max(Image.open(tmp_path / name).size) < 2000


def test_without_matplotlib_one_line_says_what_to_do(monkeypatch, caplog):
    assert pictures.can_draw()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    assert not pictures.can_draw()
    assert "matplotlib is not installed; run: pip install matplotlib" in caplog.text


def test_words_beside_the_matrix_are_on_the_paper():
    backend = pytest.importorskip("matplotlib.backends.backend_agg", reason="no matplotlib; pip install matplotlib")
    names = ["background", "RBC", "WBC", "Platelets"]
    figure = pictures.draw_confusion(Confusion(np.ones((4, 4), dtype=np.int64), names, 0, 0.05, 0.5))
    canvas = backend.FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    assert axes.get_ylabel() == "actually"
    for words in (axes.yaxis.label, axes.xaxis.label, axes.title):
        box = words.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width and 0 <= box.y0 < box.y1 <= figure.bbox.height
