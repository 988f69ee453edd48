"""The toy data set is as difficult as its description says, and its annotations fit its pictures."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.data.datasets.toy_scene import CLASSES
from maskrcnn_bench.demo.toy import demo_main

SIDE = 128


@pytest.fixture(scope="module")
def scenes():
    """Shapes of 250 pictures."""
    return [toy.scene(0, "test", number, SIDE)[1] for number in range(1, 251)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.generate(tmp_path_factory.mktemp("toy") / "shapes", num_train=12, num_test=40)


def sides(shape):
    return float(np.sqrt(np.prod(shape.outline.max(axis=0) - shape.outline.min(axis=0))))


def test_description_holds_for_what_is_generated(scenes):
    shapes = [shape for scene in scenes for shape in scene]
    assert len(shapes) / len(scenes) >= 3
    assert all(1 <= len(scene) <= toy.OBJECTS[1] for scene in scenes)
    lengths = np.array([sides(shape) for shape in shapes]) / SIDE
    assert 1 / 6 - 1e-6 <= lengths.min() < 0.175 and 0.47 < lengths.max() <= 0.5 + 1e-6
    # Evenly in logarithm: the middle lies near the geometric mean; the largest find a place less often.
    assert 0.25 < np.median(lengths) < 0.30
    overlapped = np.mean([shape.hidden > 0 for shape in shapes])
    assert 0.12 <= overlapped <= 0.18
    hidden = np.array([shape.hidden for shape in shapes if shape.hidden > 0])
    assert hidden.min() >= 0.1 and hidden.max() <= 0.4
    counts = [sum(shape.name == name for shape in shapes) / len(shapes) for name in CLASSES]
    assert min(counts) > 0.12, "classes are about equally frequent"


def test_defaults_are_those_described():
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(toy.generate).parameters.items()}
    assert defaults["num_test"] >= 150 and defaults["size"] == 128
    assert re.search(r"(\d+) of them are held out", toy.__doc__)[1] == str(defaults["num_test"])


def test_an_object_touches_at_most_one_other(scenes):
    for scene in scenes:
        total = sum(shape.visible.astype(int) for shape in scene)
        assert total.max() <= 1, "a pixel shows one object"
        assert sum(shape.hidden > 0 for shape in scene) <= len(scene) // 2


def test_brightness_and_colour_vary(scenes):
    pictures = np.stack([np.asarray(toy.scene(0, "test", n)[0]) for n in range(1, 61)]).astype(float)
    means = pictures.mean(axis=(1, 2))
    assert means.mean(axis=1).std() > 20 and (means - means.mean(axis=1, keepdims=True)).std() > 12
    texture = np.abs(np.diff(pictures, axis=2)).mean(axis=(1, 2, 3))
    assert texture.min() > 2, "no flat areas: every picture has texture and grain"


def test_objects_differ_from_their_ground():
    gaps = []
    for number in range(1, 61):
        picture, shapes = toy.scene(0, "train", number)
        pixels = np.asarray(picture).astype(float)
        ground = ~np.any([shape.visible for shape in shapes], axis=0)
        gaps += [np.abs(pixels[shape.visible].mean(axis=0) - pixels[ground].mean(axis=0)).max() for shape in shapes]
    assert np.quantile(gaps, 0.05) > 8 and np.median(gaps) > 30


def test_annotations_are_those_of_the_visible_pixels(folder):
    coco = COCO(str(folder / "annotations" / "instances_test.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for number in range(1, 41):
        shapes = toy.scene(0, "test", number)[1]
        annotations = coco.imgToAnns[toy.TEST_IDS_BEGIN + number]
        assert len(annotations) == len(shapes)
        for shape, annotation in zip(shapes, annotations):
            pixels = coco.annToMask(annotation).astype(bool)
            iou = (pixels & shape.visible).sum() / (pixels | shape.visible).sum()
            assert iou > (0.999 if shape.hidden or shape.name == "ring" else 0.88), (shape.name, iou)
            columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
            x, y, w, h = annotation["bbox"]
            assert np.abs([columns[0] - x, rows[0] - y, columns[-1] + 1 - x - w, rows[-1] + 1 - y - h]).max() <= 1
            assert annotation["area"] == shape.visible.sum()
            assert isinstance(annotation["segmentation"], dict) == (shape.name == "ring")


def test_rings_have_their_hole(folder):
    content = json.loads((folder / "annotations" / "instances_test.json").read_text())
    ring = next(a for a in content["annotations"] if isinstance(a["segmentation"], dict))
    rle = coco_mask.frPyObjects(ring["segmentation"], *ring["segmentation"]["size"])
    x, y, w, h = (int(v) for v in ring["bbox"])
    assert coco_mask.decode(rle)[y + h // 2, x + w // 2] == 0 and coco_mask.area(rle) == ring["area"]


def test_keypoints_are_the_corners_of_triangles(folder):
    content = json.loads((folder / "annotations" / "keypoints_test.json").read_text())
    assert [c["keypoints"] for c in content["categories"]] == [["apex", "left", "right"]]
    boxes = {a["id"]: a for a in json.loads((folder / "annotations" / "instances_test.json").read_text())["annotations"]}
    assert len(content["annotations"]) == sum(a["category_id"] == 3 for a in boxes.values()) >= 10
    for annotation in content["annotations"]:
        assert annotation["bbox"] == boxes[annotation["id"]]["bbox"]
        (ax, ay, _), (lx, ly, _), (rx, ry, _) = np.reshape(annotation["keypoints"], (3, 3))
        assert ay < max(ly, ry) and lx < rx
        assert {v for v in annotation["keypoints"][2::3]} <= {1, 2}


def test_files_are_there_and_of_the_size_they_say(folder):
    for split, count in (("train", 12), ("test", 40)):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert len(content["images"]) == count == len(list((folder / split).iterdir()))
        for image in content["images"]:
            with Image.open(folder / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (SIDE, SIDE) and picture.mode == "RGB"


def test_pictures_depend_on_seed_split_and_number_alone():
    def pixels(*where):
        return np.asarray(toy.scene(*where)[0])

    reference = pixels(0, "train", 3)
    np.testing.assert_array_equal(reference, pixels(0, "train", 3))
    for other in ((1, "train", 3), (0, "test", 3), (0, "train", 4)):
        assert (pixels(*other) != reference).any()
    assert toy.scene(0, "train", 3, size=200)[0].size == (200, 200)


def test_generating_again_changes_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert toy.generate(folder, 12, 40) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_an_interrupted_folder_is_finished_and_a_foreign_one_left_alone(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(toy, "_write_split", lambda *a: calls.append(a) or (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        toy.generate(tmp_path / "toy", 2, 2)
    assert toy.read_marker(tmp_path / "toy") == {}
    monkeypatch.undo()
    toy.generate(tmp_path / "toy", 2, 2)
    assert toy.read_marker(tmp_path / "toy")["train"] == 2

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="thesis|mine"):
        toy.generate(tmp_path / "mine", 2, 2)


def test_scenes_of_the_demo_are_new_ones(repository):
    """The pictures that the first command of the README looks at: plain scenes, of another seed than those of training."""
    paths = sorted((repository / "demo" / "scenes").iterdir())
    assert [path.name for path in paths] == ["1.jpg", "2.jpg"]
    for path, number in zip(paths, (4, 12)):
        made = np.asarray(toy.scene(7, "test", number)[0]).astype(int)
        assert np.abs(np.asarray(Image.open(path)) - made).mean() < 4


def test_the_demo_without_masks_and_what_it_says_of_mistakes(tmp_path, capsys):
    small = ["--train-images", "8", "--test-images", "4", "SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "MODEL.MASK_ON", "False"]
    assert demo_main(["--output", str(tmp_path / "demo"), *small]) == 0
    said = capsys.readouterr().out
    assert "boxes  AP" in said and "masks  AP" not in said
    (tmp_path / "file").touch()
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "mine.txt").touch()
    for folder, words in (("file", "file"), ("other", "no finished toy data set")):
        assert demo_main(["--output", str(tmp_path / folder), *small]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert demo_main([*small, "OUTPUT_DIR", "elsewhere"]) == 1 and "--output names" in capsys.readouterr().err
