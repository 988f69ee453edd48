"""`data view` draws what is annotated; `data stats` says which objects anchors cover."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_faults import GOOD, OBJECT_FAULTS, write

from maskrcnn_bench.data.check import main
from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.data.statistics import Anchors, best_anchor_iou, coverage
from maskrcnn_bench.data.store import AnnotationStore


def pictures(folder):
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).astype(int) for path in sorted(folder.rglob("*.jpg"))}


def test_pictures_of_both_splits(tmp_path, capsys):
    folder = toy.generate(tmp_path / "toy", num_train=9, num_test=2, size=64)
    assert main(["view", str(folder), "--output", str(tmp_path / "out"), "--count", "3"]) == 0
    drawn = pictures(tmp_path / "out")
    assert [name[:11] for name in drawn] == ["test/00000_", "test/00001_", "train/00000", "train/00004", "train/00008"], "evenly picked"
    assert all(picture.shape == (576, 576, 3) for picture in drawn.values()), "enlarged"
    out = capsys.readouterr().out
    assert "toy data set" in out and all(name in out for name in drawn)
    plain = Image.open(next((folder / "train").glob("*"))).convert("RGB").resize((576, 576), Image.BICUBIC)
    assert any(0 < np.mean(np.abs(picture - np.asarray(plain)).max(axis=2) > 60) < 0.7 for picture in drawn.values())


def test_only_faulty_images(tmp_path, capsys):
    folder = toy.generate(tmp_path / "toy", num_train=5, num_test=1, size=64)
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [40, 40, 50, 10]
    path.write_text(json.dumps(content))
    assert main(["view", str(folder), "--output", str(tmp_path / "out"), "--faulty"]) == 0
    drawn = pictures(tmp_path / "out")
    wrong = next(i["file_name"] for i in content["images"] if i["id"] == content["annotations"][0]["image_id"])
    assert len(drawn) == 1 and wrong.rsplit("/")[-1].rsplit(".")[0] in next(iter(drawn))
    out = capsys.readouterr().out
    assert "box reaches out of the image" in out and "nothing to draw" in out


@pytest.mark.parametrize("name", OBJECT_FAULTS)
def test_faulty_images_that_cannot_be_drawn_say_why(tmp_path, capsys, name):
    change, severity, _ = OBJECT_FAULTS[name]
    write(tmp_path / "set", [GOOD | change])
    code = main(["view", str(tmp_path / "set"), "--output", str(tmp_path / "out"), "--faulty"])
    out = capsys.readouterr().out
    assert code == (severity == "stop") and ("rle" in name) == ("1.jpg: not drawn: " in out)
    assert re.search(OBJECT_FAULTS[name][2], out) or name in ("unknown image", "repeated id"), "the fault stands there as well"


def test_what_cannot_be_viewed(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["view", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 1
    assert "no data set recognised" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_pictures_of_real_voc_masks(shared_dir, tmp_path):
    folder = str(shared_dir / "data" / "voc_mini")
    for name, options in (("boxes", []), ("masks", ["--masks"])):
        assert main(["view", folder, "--output", str(tmp_path / name), "--count", "1", *options]) == 0
    assert {name.split("/")[0] for name in pictures(tmp_path / "masks")} == {"train", "test"}
    assert "train/00000_000032.jpg" in pictures(tmp_path / "masks")


# ------------------------------------------------------------------------------------------------------------ anchors


def slow_best_iou(box, width, height, anchors):
    """All anchors of an image, one by one."""
    scale = min(anchors.min_size / min(width, height), anchors.max_size / max(width, height))
    x, y, w, h = (value * scale for value in box)
    best = 0.0
    for aw, ah, stride in anchors.shapes():
        for row in range(int(np.ceil(height * scale / stride))):
            for column in range(int(np.ceil(width * scale / stride))):
                ax, ay = (column + 0.5) * stride - aw / 2, (row + 0.5) * stride - ah / 2
                iw, ih = min(x + w, ax + aw) - max(x, ax), min(y + h, ay + ah) - max(y, ay)
                if min(iw, ih) > 0:
                    best = max(best, iw * ih / (w * h + aw * ah - iw * ih))
    return best


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 60), min_size=4, max_size=4),
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([Anchors((16, 40), (8, 16), (0.5, 1.0), 64, 100), Anchors((20, 50), (16,), (1.0, 3.0), 80, 90)]),
)
def test_best_anchor_equals_a_slow_reference(numbers, width, height, anchors):
    box = [numbers[0], numbers[1], numbers[2] + 1, numbers[3] + 1]
    fast = best_anchor_iou(np.array([box]), np.array([width]), np.array([height]), anchors)[0]
    assert fast == pytest.approx(slow_best_iou(box, width, height, anchors), abs=1e-9)


def test_coverage_by_hand(capsys, tmp_path):
    """Cells of 32 pixels: an anchor of 64 stands at every odd multiple of 16."""
    boxes = {1: [[16, 16, 64, 64], [16, 16, 64, 46]], 2: [[16, 16, 8, 8], [16, 16, 640, 30]]}
    annotations = [{"image_id": 1, "category_id": c, "bbox": box} for c, group in boxes.items() for box in group]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 800, "height": 800}], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    lines = coverage(AnnotationStore.from_json(path), Anchors((64,), (32,), (1.0,)))
    assert "cover 50.0% of 4" in lines[0] and "small 0.0% of 1; medium 100.0% of 2; large 0.0% of 1" in lines[1]
    assert "dog 0.0% of 2; cat 100.0% of 2" in lines[2]
    assert main(["stats", str(path), "--anchor-sizes", "64", "--anchor-strides", "32", "--aspect-ratios", "1"]) == 0
    assert lines[0] in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected 1 or 3 strides"):
        Anchors((1, 2, 3), (1, 2)).shapes()


@pytest.mark.parametrize(("tall", "strides", "least"), [(6.0, (4, 8, 16, 32, 64), 0.9), (0.15, (16,), 0.5)])
def test_suggested_anchors_cover_elongated_boxes(tmp_path, capsys, tall, strides, least):
    random = np.random.default_rng(0)
    annotations = []
    for _ in range(300):
        side, ratio = np.exp(random.uniform(np.log(15), np.log(80))), tall * np.exp(random.normal(0, 0.1))
        width, height = side / ratio**0.5, side * ratio**0.5
        corner = [random.uniform(0, 800 - width), random.uniform(0, 800 - height)]
        annotations.append({"image_id": 1, "category_id": 1, "bbox": [*corner, width, height]})
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 800, "height": 800}], "annotations": annotations}
    (tmp_path / "x.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": "pen"}]}))
    given = ["stats", str(tmp_path / "x.json"), "--anchor-strides", *map(str, strides)]
    assert main(given) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "  suggested  " in line)
    sizes, ratios = (re.search(rf"{key} '\[(.*?)\]'", line)[1].split(", ") for key in ("ANCHOR_SIZES", "ASPECT_RATIOS"))
    boxes, extent = np.array([a["bbox"] for a in annotations]), np.full(300, 800)
    shares = [
        (best_anchor_iou(boxes, extent, extent, anchors) >= 0.5).mean()
        for anchors in (Anchors(strides=strides), Anchors([float(v) for v in sizes], strides, [float(v) for v in ratios]))
    ]
    assert len(sizes) == 5 and len(ratios) == 3 and shares[0] == 0 and shares[1] > least and f"cover {shares[1]:.1%}" in line
    main([*given, "--anchor-sizes", *sizes, "--aspect-ratios", *ratios])
    assert "suggested  these" in capsys.readouterr().out
