"""Cityscapes' average precision: a case by hand, numbers of Cityscapes' own program, and the way through `evaluate`."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_bench.data.datasets import CityScapesDataset
from maskrcnn_bench.data.datasets.content import rle_of_mask
from maskrcnn_bench.evaluation import evaluate
from maskrcnn_bench.evaluation.cityscapes import evaluate_cityscapes
from maskrcnn_bench.evaluation.coco import ground_truth
from maskrcnn_bench.evaluation.evaluators import FlatDetections
from maskrcnn_bench.structures.bounding_box import BoxList

ROAD, STATIC, PERSON, CAR = 7, 4, 24, 26
SHAPE = (90, 160)


def write(folder, pictures):
    """A data set whose pictures of instances are given. pictures: list of [H, W] uint16"""
    for k, pixels in enumerate(pictures):
        stem = f"ulm_{k:06d}_000019"
        for part, ending, image in (
            ("leftImg8bit", "leftImg8bit", Image.new("RGB", pixels.shape[::-1])),
            ("gtFine", "gtFine_instanceIds", Image.fromarray(pixels)),
        ):
            path = folder / part / "val" / "ulm" / f"{stem}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return CityScapesDataset(folder / "leftImg8bit", folder / "gtFine", "val", pixel=0)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def detections(dataset, rows):
    """rows: place of the image, label id of Cityscapes, mask, score."""
    ids = dataset.id_to_img_map
    return FlatDetections.from_results(
        [{"image_id": ids[i], "category_id": c, "segmentation": rle_of_mask(mask), "score": score} for i, c, mask, score in rows]
    )


def by_hand(folder):
    """Two cars, a group of cars, a car too small to count, and a strip of void on a road."""
    pixels = np.full(SHAPE, ROAD, dtype=np.uint16)
    pixels[rectangle(0, 0, 20, 20)] = CAR * 1000
    pixels[rectangle(40, 0, 60, 20)] = CAR * 1000 + 1
    pixels[rectangle(80, 0, 120, 20)] = CAR
    pixels[rectangle(0, 40, 9, 50)] = CAR * 1000 + 2
    pixels[rectangle(100, 60, 106, 70)] = STATIC
    return write(folder, [pixels])


def test_a_case_by_hand(tmp_path):
    dataset = by_hand(tmp_path)
    rows = [
        (0, CAR, rectangle(0, 0, 20, 20), 0.90),  # the first car
        (0, CAR, rectangle(0, 0, 16, 20), 0.95),  # the same one, IoU 0.8
        (0, CAR, rectangle(0, 70, 20, 90), 0.50),  # nothing
        (0, CAR, rectangle(100, 60, 110, 70), 0.30),  # 60 % void
        (0, CAR, rectangle(90, 0, 110, 20), 0.80),  # within the group
        (0, CAR, rectangle(0, 40, 9, 50), 0.99),  # the small one
    ]
    numbers, per_class = evaluate_cityscapes(ground_truth(dataset), detections(dataset, rows), dataset.void_pixels)
    # One of two cars is found. Up to IoU 0.75 the surest detection is right: from recall 0.5 to 0, half by trapezia at precision 1.
    # From 0.8 on it is wrong, and the right one comes second: 0.25 at precision 1/2 and 0.25 at 0.
    assert numbers["AP50"] == pytest.approx(0.5)
    assert numbers["AP"] == pytest.approx((6 * 0.5 + 4 * 0.125) / 10)
    assert per_class["car"] == numbers and per_class["person"] == {"AP": -1.0, "AP50": -1.0}


def test_void_groups_and_small_objects_decide(tmp_path):
    """With a second car found by a less sure detection, each wrong one in between costs precision."""
    dataset = by_hand(tmp_path)
    sure = [(0, CAR, rectangle(0, 0, 20, 20), 0.9), (0, CAR, rectangle(40, 0, 60, 20), 0.1)]

    def ap50(*between, void=True):
        found = detections(dataset, sure + [(0, CAR, mask, 0.5) for mask in between])
        return evaluate_cityscapes(ground_truth(dataset), found, dataset.void_pixels if void else None)[0]["AP50"]

    assert ap50() == pytest.approx(1.0)
    wrong = ap50(rectangle(0, 70, 20, 90))
    assert wrong < 0.95
    assert ap50(rectangle(90, 0, 110, 20)) == ap50(rectangle(0, 40, 9, 50)) == pytest.approx(1.0)
    assert ap50(rectangle(100, 60, 110, 70)) == pytest.approx(1.0)
    assert ap50(rectangle(100, 60, 110, 70), void=False) == pytest.approx(wrong)
    assert ap50(rectangle(100, 60, 113, 70)) == pytest.approx(wrong), "less than half of it is void"


def random_case(seed):
    """Three images of rectangles, some of them groups, and detections that are more or less like them."""
    rng = np.random.default_rng(seed)
    pictures, rows = [], []
    for k in range(3):
        pixels = rng.choice([ROAD, 11, 0, 9], size=(9, 16)).repeat(10, 0).repeat(10, 1).astype(np.uint16)
        boxes = []
        for number in range(12):
            x, y, w, h = rng.integers(0, 130), rng.integers(0, 60), *rng.integers(6, 60, 2)
            label = int(rng.choice([24, 26, 26, 33, 29]))
            pixels[y : y + h, x : x + w] = label if rng.random() < 0.2 else label * 1000 + number
            boxes.append((label, x, y, w, h))
        for _ in range(20):
            label, *box = boxes[rng.integers(len(boxes))]
            x, y, w, h = np.maximum(np.array(box) + rng.integers(-4, 5, 4), (0, 0, 5, 5))
            mask = rectangle(x, y, x + w, y + h)
            if rng.random() < 0.5:
                values, counts = np.unique(pixels[mask], return_counts=True)
                mask &= (pixels == values[counts.argmax()]) | (rng.random(SHAPE) < 0.1)
            rows.append((k, CAR if label == 29 else label, mask, round(float(rng.random()), 1)))
        pictures.append(pixels)
    return pictures, rows


# AP and AP50 that cityscapesScripts 2.3.0 computes.
OFFICIAL = {
    0: (0.1288991138251245, 0.23919269327164064),
    1: (0.15782803787275942, 0.3791108743245257),
    2: (0.113441513933645, 0.26634009122399216),
}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_numbers_of_the_official_program(tmp_path, seed):
    pictures, rows = random_case(seed)
    dataset = write(tmp_path, pictures)
    numbers, _ = evaluate_cityscapes(ground_truth(dataset), detections(dataset, rows), dataset.void_pixels)
    assert (numbers["AP"], numbers["AP50"]) == pytest.approx(OFFICIAL[seed], abs=1e-12)


def test_evaluate_adds_them_for_cityscapes(tmp_path):
    pictures, _ = random_case(0)
    dataset = write(tmp_path, pictures)
    predictions = []
    for i in range(len(dataset)):
        target = dataset.get_groundtruth(i)
        masks = target.get_field("masks").get_mask_tensor().reshape(len(target), *SHAPE).numpy().astype(bool)
        found = BoxList(target.bbox, target.size, "xyxy", 0)
        found.add_field("scores", torch.linspace(0.9, 0.5, len(target)))
        found.add_field("labels", target.get_field("labels"))
        found.add_field("rle", [rle_of_mask(mask) for mask in masks])
        predictions.append(found)
    results = evaluate(dataset, predictions, tmp_path / "out", ("bbox", "segm"))
    assert results["cityscapes"] == {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)}
    assert results["per_class"]["cityscapes"]["car"]["AP"] == pytest.approx(1.0)
    assert "cityscapes" in (tmp_path / "out" / "per_class.csv").read_text()
    nothing = evaluate(dataset, [None] * len(dataset), None, ("bbox", "segm"))
    assert nothing["cityscapes"] == {"AP": 0.0, "AP50": 0.0}
    assert "cityscapes" not in evaluate(dataset, predictions, None, ("bbox",))
