"""Large pictures in tiles: every pixel is seen, whatever a border cuts comes back once and whole, and small pictures stay as they are."""

import json

import numpy as np
import pytest
import torch
from demo_models import photo, save_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.demo import tiling
from maskrcnn_bench.demo.predict import predict_main
from maskrcnn_bench.demo.predictor import COCODemo
from maskrcnn_bench.demo.tiling import detect_tiled, tile_windows
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.mask_paste import paste_rle

SIDE = 28
RULES = ("pixel_centres", "expand_truncate")


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 1500), st.floats(0, 0.3))
@example(5000, 900, 200, 0.8)
def test_tiles_cover_the_picture_and_overlap(width, height, tile, overlap):
    whole, *tiles = tile_windows((width, height), tile, overlap)
    assert whole == (0, 0, width, height) and bool(tiles) == (max(width, height) > tile)
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(window[axis], window[axis + 2]) for window in tiles})
        assert all(high - low == min(tile, length) for low, high in spans)
        assert not spans or (spans[0][0], spans[-1][1]) == (0, length)
        assert all(a[1] - b[0] >= overlap * tile - 1 for a, b in zip(spans, spans[1:]))


def test_more_tiles_than_anybody_waits_for_are_an_error(tmp_path, monkeypatch, capsys):
    with pytest.raises(
        ValueError, match="tiles of 1 pixels that overlap by 0.9 would be 100000000, more than 5000, for a picture of 10000 x"
    ):
        tile_windows((10_000, 10_000), 1, 0.9)
    weights = save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    photo(100, 80).save("large.png")
    photo(40, 20).save("small.png")
    tiles = ["--tile", "40", "--overlap", "0.98", "--score", "0"]
    monkeypatch.setattr(tiling, "MOST_TILES", 20)
    assert predict_main(["large.png", "small.png", "--weights", str(weights), *tiles]) == 1
    assert "skipped: large.png: tiles of 40 pixels" in capsys.readouterr().err
    assert {row["file_name"] for row in json.loads((tmp_path / "output/predict/predictions.json").read_text())} == {"small.png"}


class Ovals:
    """A detector of ovals, each of a colour of its own: it sees what a crop shows of them, but on the whole picture nothing small.

    Args:
        boxes: xyxy, pixels. [n, 4]
        least: shorter sides that it sees on the whole picture, pixels.
    """

    def __init__(self, size, boxes, pixel, least=0):
        self.pixel, self.least, self.looks = pixel, least, 0
        drawn = np.zeros((size[1], size[0]), dtype=np.uint8)
        self.truth = []
        for k, (x1, y1, x2, y2) in enumerate(boxes, start=1):
            xs, ys = np.arange(x1, x2) + 0.5, np.arange(y1, y2) + 0.5
            oval = ((xs[None] * 2 - x1 - x2) / (x2 - x1)) ** 2 + ((ys[:, None] * 2 - y1 - y2) / (y2 - y1)) ** 2 <= 1
            drawn[y1:y2, x1:x2][oval] = k
        self.picture = Image.fromarray(drawn)
        self.shown = drawn

    def __call__(self, pictures):
        return [self.look(np.asarray(picture)) for picture in pictures]

    def look(self, pixels):
        self.looks += 1
        boxes, masks, labels, points = [], [], [], []
        for k in np.unique(pixels[pixels > 0]).tolist():
            rows, columns = np.flatnonzero((pixels == k).any(axis=1)), np.flatnonzero((pixels == k).any(axis=0))
            x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            if min(x2 - x1, y2 - y1) < (max(self.least, 4) if pixels.shape == self.shown.shape else 4):
                continue
            part = Image.fromarray(((pixels[y1:y2, x1:x2] == k) * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.BILINEAR)
            masks.append(torch.from_numpy(np.asarray(part) / 255).float()[None])
            boxes.append([x1, y1, x2 - self.pixel, y2 - self.pixel])
            labels.append(1 + k % 2)
            points.append([[(x1 + x2) / 2, (y1 + y2) / 2, 1]])
        out = BoxList(torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4), pixels.shape[::-1], "xyxy", self.pixel)
        out.add_field("labels", torch.tensor(labels, dtype=torch.int64))
        out.add_field("scores", torch.linspace(0.9, 0.6, len(boxes)))
        out.add_field("mask", torch.stack(masks) if masks else torch.zeros(0, 1, SIDE, SIDE))
        out.add_field("keypoints", Keypoints(torch.tensor(points, dtype=torch.float32).reshape(-1, 1, 3), pixels.shape[::-1]))
        return out


def iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def assert_each_once(detector, found, least_mask_iou):
    from pycocotools import mask as coco_mask

    expected = detector.look(detector.shown)
    assert len(found) == len(expected)
    masks = coco_mask.decode(paste_rle(found.get_field("mask"), found.bbox, found.size, rule=RULES[detector.pixel]))
    for k, box in enumerate(expected.bbox):
        nearest = int((found.bbox - box).abs().amax(dim=1).argmin())
        assert (found.bbox[nearest] - box).abs().max() <= 1 and found.get_field("labels")[nearest] == expected.get_field("labels")[k]
        assert iou(masks[:, :, nearest] > 0, detector.shown == np.unique(detector.shown)[k + 1]) >= least_mask_iou
    scores = found.get_field("scores")
    assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.parametrize("pixel", [0, 1])
def test_objects_that_a_border_cuts_come_back_once(pixel):
    """A picture of 4096 x 3000 pixels: objects inside of a tile, at a border, at a crossing, and larger than an overlap."""
    boxes = [
        *[(100, 100, 160, 150), (1000, 300, 1060, 380), (990, 990, 1080, 1050), (3000, 2900, 3090, 2999), (4000, 10, 4095, 90)],
        *[(700, 1700, 1350, 1800), (2600, 600, 2680, 1350), (2000, 2000, 2500, 2500), (2400, 1400, 3300, 1480)],
    ]
    detector = Ovals((4096, 3000), boxes, pixel, least=90)
    small = sum(min(x2 - x1, y2 - y1) < 90 for x1, y1, x2, y2 in boxes)
    assert small >= 6 and len(detector.look(detector.shown)) <= 3, "most are too small for the picture as a whole"
    found = detect_tiled(detector, detector.picture, 1024, 0.2, 0.5)
    detector.least = 0
    assert_each_once(detector, found, 0.9)
    points = found.get_field("keypoints")
    assert points.size == (4096, 3000) and len(points) == len(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1]), st.integers(60, 140), st.floats(0.1, 0.5), st.sampled_from([0, 60]))
def test_random_objects_come_back_once(seed, pixel, tile, overlap, least):
    random = np.random.default_rng(seed)
    boxes = []
    for row in range(4):
        for column in range(5):
            width, height = random.integers(12, 60, 2)
            x, y = column * 64 + random.integers(0, 64 - width), row * 64 + random.integers(0, 64 - height)
            boxes.append((x, y, x + width, y + height))
    detector = Ovals((320, 256), boxes, pixel, least)
    found = detect_tiled(detector, detector.picture, tile, overlap, 0.5)
    detector.least = 0
    assert_each_once(detector, found, 0.75)


def test_nothing_found_is_a_result():
    detector = Ovals((300, 200), [], 0)
    found = detect_tiled(detector, detector.picture, 100, 0.2, 0.5)
    assert len(found) == 0 and found.size == (300, 200) and found.get_field("mask").shape == (0, 1, SIDE, SIDE)


def test_small_pictures_are_seen_as_without_tiles(tmp_path):
    weights = save_model(tmp_path)
    picture = photo(80, 64)
    plain, tiled = (COCODemo.from_weights(weights, confidence_threshold=0.0, tile=tile).detect([picture])[0] for tile in (0, 80))
    assert torch.equal(plain.bbox, tiled.bbox) and torch.equal(plain.get_field("mask"), tiled.get_field("mask"))
    with pytest.raises(ValueError, match="overlap: expected a share from 0 to below 1"):
        COCODemo.from_weights(weights, tile=64, overlap=1.0)


def test_predict_in_tiles(tmp_path, monkeypatch):
    weights = save_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    photo(200, 150).save("a.png")
    assert predict_main(["a.png", "--weights", str(weights), "--tile", "96", "--overlap", "0.3", "--score", "0", "--output", "tiled"]) == 0
    assert predict_main(["a.png", "--weights", str(weights), "--score", "0", "--output", "whole"]) == 0
    tiled, whole = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("tiled", "whole"))
    assert len(tiled) > len(whole) > 0
    assert all(0 <= x and 0 <= y and x + w <= 200 and y + h <= 150 for x, y, w, h in (row["bbox"] for row in tiled))
