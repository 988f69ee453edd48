"""Readers of YOLO, PNG masks, VOC masks, Visual Genome, ImageNet DET and Cityscapes: what their files say, and what is wrong in them."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import check_dataset, make_data_loader, make_dataset
from maskrcnn_bench.data.check import main
from maskrcnn_bench.data.datasets import CityScapesDataset, COCODataset, ImageNetDETDataset, VisualGenomeDataset, YOLODataset
from maskrcnn_bench.data.datasets.cityscapes import INSTANCE_CLASSES, draw_instances
from maskrcnn_bench.data.datasets.visual_genome import frequent_names, read_vocabulary
from maskrcnn_bench.evaluation import evaluate


def both(folder, **options):
    return [make_dataset(str(folder), is_train, **options) for is_train in (True, False)]


def reports(dataset):
    return [str(finding) for finding in check_dataset(dataset)]


def image(path, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- YOLO


def test_real_yolo_boxes_and_known_faults(shared_dir):
    train, test = both(shared_dir / "data" / "yolo_coco128", keep_empty=True)
    assert "YOLO layout, config.yaml" in train.described and "split val" in test.described
    assert (len(train), len(test)) == (42, 44) and len(train.annotations.ids) == 317 and len(test.annotations.ids) == 293
    assert train.categories[1] == "person" and len(train.class_names) == 81
    faults = reports(train)
    assert len(faults) == 4 and check_dataset(test) == []
    for stem in ("000000000250", "000000000508"):
        assert any(stem + ".jpg" in fault and "no label file" in fault for fault in faults)
    for stem in ("000000000656", "000000000659"):
        assert any(stem + ".txt" in fault and "no image belongs" in fault for fault in faults)
    assert {train[i][0].mode for i in range(len(train))} == {"RGB"}


def test_yolo_boxes_are_cocos(shared_dir):
    """Six of the images are also in coco_mini, with COCO's own annotations."""
    yolo = make_dataset(str(shared_dir / "data" / "yolo_coco128"), is_train=False)
    coco = make_dataset(str(shared_dir / "data" / "coco_mini"), is_train=False)
    places = {coco.get_img_info(i)["file_name"]: i for i in range(len(coco))}
    shared = [(i, places[name]) for i in range(len(yolo)) if (name := yolo.get_img_info(i)["file_name"]) in places]
    assert len(shared) == 6
    for i, k in shared:
        ours, theirs = yolo.get_groundtruth(i), coco.get_groundtruth(k)
        names = [[d.class_names[label] for label in t.get_field("labels")] for d, t in ((yolo, ours), (coco, theirs))]
        distance = (ours.bbox[:, None] - theirs.bbox[None]).abs().amax(dim=2)
        assert len(ours) == len(theirs) and [names[1][j] for j in distance.argmin(dim=1)] == names[0]
        # The numbers have six digits.
        assert distance.min(dim=1).values.max() < 2e-3


def test_real_yolo_polygons(shared_dir, capsys):
    train, test = both(shared_dir / "data" / "yolo_coco128", masks=True, keep_empty=True)
    assert "config_seg.yaml" in train.described and train.has_masks
    assert (len(train.annotations.ids), len(test.annotations.ids)) == (317, 292)
    assert sorted(set(reports(test))) == reports(test) and len(reports(test)) == 2
    ids = train.contiguous_category_id_to_json_id
    assert ids[1] == 1 and max(ids.values()) == 90, "the file's own numbers"
    for i in range(0, len(test), 5):
        target = test.get_groundtruth(i)
        for box, mask in zip(target.bbox.tolist(), target.get_field("masks").instances):
            corners = np.concatenate(mask.rings)
            extent = [*corners.min(axis=0), *(corners.max(axis=0) - 1)]
            np.testing.assert_allclose(box, extent, atol=1.01)
    assert main(["check", str(shared_dir / "data" / "yolo_coco128"), "--masks"]) == 1
    assert "2 to note" in capsys.readouterr().out


YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


def test_yolo_lines(tmp_path):
    text(tmp_path / "data.yaml", YAML)
    for split in ("train", "val"):
        image(tmp_path / "images" / split / "a.png")
    lines = ["1 0.5 0.5 0.5 0.5", "0 .1 .1 .5 .1 .5 .5", "1 0.5 0.5 0.5 0.5", "0 .5 .5", "x 1 1 1 1", "0.5 .5 .5 .1 .1", "", "0 .5 .5 0 .1"]
    text(tmp_path / "labels" / "train" / "a.txt", "\n".join(lines))
    text(tmp_path / "labels" / "val" / "a.txt", "0 0.9 0.9 0.4 0.4\n")
    train, test = both(tmp_path, pixel=0)
    assert train.class_names == ("__background__", "cat", "dog")
    assert train.get_groundtruth(0).bbox.tolist() == [[15, 10, 45, 30], [6, 4, 30, 20]]
    assert train.get_groundtruth(0).get_field("labels").tolist() == [2, 1]
    assert [k for k in range(1, 9) if any(f"line {k}" in fault for fault in reports(train))] == [3, 4, 5, 6]
    assert any("box is empty" in fault for fault in reports(train)) and all("a.p" in fault for fault in reports(train))
    np.testing.assert_allclose(test.get_groundtruth(0).bbox, [[42, 28, 60, 40]], atol=1e-4)
    assert "reaches out of the image" in reports(test)[0]


def test_yolo_files_of_other_tools(tmp_path, monkeypatch):
    """A mark of the byte order in every file, lists of classes beside the labels, absolute and relative paths in one list."""
    monkeypatch.chdir(tmp_path)
    for stem in ("a", "b"):
        image(tmp_path / "set" / "images" / f"{stem}.png")
        text(tmp_path / "set" / "labels" / f"{stem}.txt", "\ufeff1 .5 .5 .5 .5\n")
    for name in ("classes.txt", "predefined_classes.txt"):
        text(tmp_path / "set" / "labels" / name, "cat\ndog\n")
    text(tmp_path / "set" / "data.yaml", "\ufefftrain: list.txt\nnames: names.txt\n")
    text(tmp_path / "set" / "names.txt", "\ufeffcat\ndog\n")
    text(tmp_path / "set" / "list.txt", f"\ufeffimages/a.png\n{tmp_path}/set/images/b.png\n")
    for folder in ("set", str(tmp_path / "set")):
        dataset = make_dataset(folder)
        assert dataset.class_names == ("__background__", "cat", "dog") and reports(dataset) == []
        assert sorted(dataset.get_img_info(i)["file_name"] for i in range(2)) == ["a.png", "b.png"]
        assert [dataset[i][1].get_field("labels").tolist() for i in range(2)] == [[2], [2]]


@pytest.mark.parametrize("pixels", [None, 100])
def test_pictures_that_are_too_large_stop(tmp_path, pixels, monkeypatch, capsys):
    write_png_masks(tmp_path, count=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert main(["check", str(tmp_path)]) == bool(pixels)
    said = re.findall(r"the (\w+) cannot be read \(Image size", capsys.readouterr().out)
    assert sorted(said) == (["image", "mask"] if pixels else [])


def test_yolo_class_that_has_no_name_stops(tmp_path):
    text(tmp_path / "data.yaml", YAML)
    image(tmp_path / "images" / "train" / "a.png")
    text(tmp_path / "labels" / "train" / "a.txt", "2 .5 .5 .1 .1")
    with pytest.raises(ValueError, match=r"a\.txt, image a\.png.*category id 2 is not among `categories` \[0, 1\]"):
        make_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [("train: images/train\nnames: 3\n", "expected `names`"), ("names: [a]\ntrain: elsewhere\n", "elsewhere"), ("names: [a", "no YAML")],
)
def test_yolo_data_files_that_say_too_little(tmp_path, yaml, message):
    text(tmp_path / "data.yaml", yaml)
    image(tmp_path / "images" / "train" / "a.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        YOLODataset(tmp_path / "data.yaml", "train")


def test_yolo_image_that_cannot_be_read_stops(tmp_path):
    text(tmp_path / "data.yaml", YAML)
    text(tmp_path / "images" / "train" / "a.png", "no picture")
    text(tmp_path / "labels" / "train" / "a.txt", "1 .5 .5 .1 .1")
    with pytest.raises(ValueError, match=r"a\.png.*cannot be read"):
        make_dataset(str(tmp_path))


@pytest.mark.parametrize("layout", ["roboflow", "names", "darknet", "list"])
def test_other_places_of_yolo_files(tmp_path, layout):
    folder = {"roboflow": "train/images", "names": "images/train", "darknet": "obj_train_data", "list": "pictures/images"}[layout]
    image(tmp_path / folder / "a.png")
    text(tmp_path / folder.replace("images", "labels") / "a.txt", "1 .5 .5 .5 .5")
    if layout == "roboflow":
        text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: {0: cat, 1: dog}\n")
    elif layout == "names":
        text(tmp_path / "classes.txt", "cat\ndog\n")
    elif layout == "darknet":
        text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
        text(tmp_path / "obj.names", "cat\ndog\n")
        text(tmp_path / "train.txt", "data/obj_train_data/a.png\n")
    else:
        text(tmp_path / "data.yaml", "train: lists/train.txt\nnames: [cat, dog]\n")
        text(tmp_path / "lists" / "train.txt", f"{tmp_path / folder / 'a.png'}\n")
    dataset = make_dataset(str(tmp_path))
    assert dataset.categories == {1: "cat", 2: "dog"} and dataset.get_groundtruth(0).get_field("labels").tolist() == [2]
    assert dataset[0][0].size == (60, 40)


def test_yolo_trains_and_loads_in_batches(shared_dir):
    opts = ["DATASETS.DATA", str(shared_dir / "data" / "yolo_coco128"), "SOLVER.IMS_PER_BATCH", "4", "MODEL.DEVICE", "cpu"]
    opts += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(100,)", "MODEL.MASK_ON", "True"]
    for images, targets, _ in make_data_loader(load_config(None, opts)):
        assert images.tensors.shape[0] == 4 and targets.packed_masks is not None and targets.valid.any(dim=1).all()


# --------------------------------------------------------------------------------------------------------- PNG masks


def test_real_pedestrians(shared_dir):
    train, test = both(shared_dir / "data" / "pennfudan", pixel=1)
    assert "PNGImages and PedMasks" in train.described and len(train) == len(test) == 1
    target = train[0][1]
    # As the set's own text file has them, which counts from 1.
    assert (target.bbox + 1).tolist() == [[97, 135, 182, 418], [287, 114, 358, 332], [364, 121, 437, 329]]
    stored = np.asarray(Image.open(shared_dir / "data/pennfudan/PedMasks/FudanPed00054_mask.png"))
    masks = target.get_field("masks").get_mask_tensor().numpy()
    assert all((masks[k] == (stored == k + 1)).all() for k in range(3))
    assert train.class_names == ("__background__", "person") and check_dataset(train) == []
    assert train.annotations.areas.tolist() == [(stored == k).sum() for k in (1, 2, 3)]


def write_png_masks(folder, count=10):
    for k in range(count):
        image(folder / "images" / f"{k:02d}.jpg")
        pixels = np.zeros((40, 60), dtype=np.uint16)
        pixels[5 : 10 + k, 5:30], pixels[20:30, 31:50] = 300, 7
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "masks" / f"{k:02d}.png")


def test_every_fifth_image_is_tested(tmp_path):
    write_png_masks(tmp_path)
    train, test = both(tmp_path, pixel=0)
    names = [[d.get_img_info(i)["file_name"] for i in range(len(d))] for d in (train, test)]
    assert names[1] == ["04.jpg", "09.jpg"] and sorted(sum(names, [])) == [f"{k:02d}.jpg" for k in range(10)]
    assert "every fifth" in train.described
    assert train.get_groundtruth(0).bbox.tolist() == [[31, 20, 50, 30], [5, 5, 30, 10]], "numbers of 16 bits, in ascending order"


def test_faulty_png_masks(tmp_path, capsys):
    write_png_masks(tmp_path, 4)
    (tmp_path / "masks" / "00.png").unlink()
    Image.new("L", (30, 30)).save(tmp_path / "masks" / "01.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "masks" / "02.png")
    text(tmp_path / "masks" / "03.png", "nothing")
    Image.new("L", (60, 40)).save(tmp_path / "masks" / "other.png")
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for expected in ("00.jpg: there is no mask", "01.jpg: the mask has 30 x 30 pixels", "02.jpg: expected a PNG of one channel"):
        assert expected in out
    assert "03.jpg: the mask cannot be read" in out and "other.png: no image belongs to this mask" in out
    assert "3 to stop" in out and "1 to note" in out and "1 to drop" in out
    with pytest.raises(ValueError, match=r"01\.png.*30 x 30"):
        make_dataset(str(tmp_path))


# ----------------------------------------------------------------------------------------------------------- VOC masks


def test_real_voc_masks(shared_dir):
    folder = shared_dir / "data" / "voc_mini"
    train, test = both(folder, masks=True)
    assert "ImageSets/Segmentation/train.txt" in train.described and (len(train), len(test)) == (20, 24)
    assert len(train.annotations.ids) + len(test.annotations.ids) == 115 and check_dataset(train) == check_dataset(test) == []
    root = folder / "VOCdevkit" / "VOC2007"
    for i in range(len(test)):
        target = test.get_groundtruth(i)
        stored = np.asarray(Image.open(root / "SegmentationObject" / f"{test.names[test.images[i]]}.png"))
        classes = np.asarray(Image.open(root / "SegmentationClass" / f"{test.names[test.images[i]]}.png"))
        drawn = target.get_field("masks").get_mask_tensor().reshape(len(target), *stored.shape).numpy()
        for k, label in enumerate(target.get_field("labels").tolist(), start=1):
            assert (drawn[k - 1] == (stored == k)).all(), "the k-th object; the void border belongs to none"
            assert (classes[stored == k] == label).all()
    assert not make_dataset(str(folder)).has_masks and len(make_dataset(str(folder))) == 121, "without masks all images are there"


def test_masks_follow_the_key(shared_dir):
    opts = ["DATASETS.DATA", str(shared_dir / "data" / "voc_mini"), "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
    assert len(make_data_loader(load_config(None, [*opts, "MODEL.MASK_ON", "True"])).dataset) == 20
    assert len(make_data_loader(load_config(None, opts)).dataset) == 121


def test_voc_without_masks_says_so(shared_dir, tmp_path):
    with pytest.raises(ValueError, match="Segmentation.*without MODEL.MASK_ON"):
        make_dataset(str(shared_dir / "data" / "bccd"), masks=True)


def test_faulty_voc_masks(shared_dir, tmp_path):
    source = shared_dir / "data/voc_mini/VOCdevkit/VOC2007"
    name = "000032"
    for part, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{name}.{ending}").write_bytes((source / part / f"{name}.{ending}").read_bytes())
    pixels = np.asarray(Image.open(source / "SegmentationObject" / f"{name}.png")).copy()
    pixels[pixels == 2] = 9
    (tmp_path / "SegmentationObject").mkdir()
    Image.fromarray(pixels).save(tmp_path / "SegmentationObject" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        text(tmp_path / "ImageSets" / kind / "train.txt", name + "\n")
    dataset = make_dataset(str(tmp_path), masks=True)
    assert len(dataset.get_groundtruth(0)) == 3
    faults = reports(dataset)
    assert len(faults) == 2 and all("000032.png, image 000032.jpg" in fault for fault in faults)
    assert "object 2 (aeroplane) has no pixels" in faults[0] and "an object 9, but the XML file only 4" in faults[1]


# ------------------------------------------------------------------------------------------------------- Visual Genome


@pytest.fixture
def genome(shared_dir, tmp_path):
    """The real objects of two images, with grey pictures of the right size."""
    (tmp_path / "objects.json").write_bytes((shared_dir / "data/visual_genome_snippet/objects.json").read_bytes())
    image(tmp_path / "VG_100K" / "1.jpg", (800, 600))
    image(tmp_path / "VG_100K_2" / "2.jpg", (800, 600))
    return tmp_path


def test_real_objects_with_a_vocabulary(genome):
    text(genome / "objects_vocab.txt", "\ufefftree,trees\ncar\nno such thing\nbuilding,street\n")
    dataset = make_dataset(str(genome), pixel=0)
    assert "objects_vocab.txt" in dataset.described and "every fifth" in dataset.described
    assert dataset.class_names == ("__background__", "tree", "car", "no such thing", "building"), "a class for every line"
    entries = json.loads((genome / "objects.json").read_text())
    wanted = {"tree": 1, "trees": 1, "car": 2, "building": 4, "street": 4}
    for i, entry in enumerate(entries):
        things = [(thing, wanted[thing["names"][0]]) for thing in entry["objects"] if thing["names"][0] in wanted]
        target = dataset[i][1]
        assert dataset[i][0].size == (800, 600) and target.get_field("labels").tolist() == [label for _, label in things]
        expected = [[t["x"], t["y"], min(t["x"] + t["w"], 800), min(t["y"] + t["h"], 600)] for t, _ in things]
        np.testing.assert_allclose(target.bbox, expected)
    assert check_dataset(dataset) == []


def test_real_objects_without_a_vocabulary(genome):
    dataset = make_dataset(str(genome))
    assert len(dataset) == 2 and len(dataset.annotations.ids) == 31 + 25
    assert dataset.class_names[1] == frequent_names(json.loads((genome / "objects.json").read_text()))[0]


def test_large_vocabularies_and_lists(genome):
    lines = [f"thing {k}" for k in range(2499)] + ["Tree, Trees"]
    text(genome / "400-20" / "objects_vocab.txt", "car\n")
    text(genome / "2500-20" / "objects_vocab.txt", "\n".join(lines))
    text(genome / "train.txt", "\ufeffVG_100K_2/2.jpg xml/2.xml\n")
    text(genome / "val.txt", "VG_100K/1.jpg xml/1.xml\n")
    train, test = both(genome)
    assert "2500-20/objects_vocab.txt" in train.described and "train.txt" in train.described
    assert len(train.class_names) == 2501 and train.get_img_info(0)["file_name"] == "VG_100K_2/2.jpg"
    assert test.get_img_info(0)["id"] == 1 and set(test.get_groundtruth(0).get_field("labels").tolist()) == {2500}


def test_vocabulary_rules():
    names, numbers = read_vocabulary(["tree,trees", "", "Plant, tree", "car"])
    assert names == {1: "tree", 2: "plant", 3: "car"}
    assert numbers == {"tree": 2, "trees": 1, "plant": 2, "car": 3}, "the later line wins, and the earlier class stays"


def test_genome_catalog_and_faults(genome, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "vg").symlink_to(genome)
    text(genome / "objects_vocab.txt", "tree,trees\n")
    text(genome / "train.txt", "VG_100K/1.jpg xml/1.xml\n")
    assert len(make_dataset("vg_train", root=str(root))) == 1
    (genome / "VG_100K" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.jpg .*do not say its size"):
        make_dataset("vg_train", root=str(root))
    text(genome / "image_data.json", json.dumps([{"image_id": 1, "width": 800, "height": 600}]))
    assert "no such image file" in reports(make_dataset("vg_train", root=str(root)))[0]
    content = json.loads((genome / "objects.json").read_text())
    content[0]["objects"][0]["w"] = None
    (genome / "objects.json").write_text(json.dumps(content))
    assert "expected numbers x, y, w, h" in reports(make_dataset("vg_train", root=str(root)))[0]
    text(genome / "objects.json", '{"images": []}')
    with pytest.raises(ValueError, match="expected Visual Genome's objects.json"):
        VisualGenomeDataset(genome / "objects.json", genome)


# ------------------------------------------------------------------------------------------------------------ ImageNet

XML = "<annotation><size><width>60</width><height>40</height></size>{}</annotation>"
BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def imagenet(tmp_path):
    text(tmp_path / "devkit" / "data" / "map_det.txt", "\ufeffn02672831 2 accordion\nn02691156 1 airplane\nn02219486 3 ant or bee\n")
    root = tmp_path / "ILSVRC"
    boxes = {"train/part/n1": [("n02219486", 0, 0, 59, 39), ("n02672831", 2, 3, 10, 20)], "val/v1": [("n99999999", 1, 1, 5, 5)]}
    for name, objects in boxes.items():
        text(root / "Annotations/DET" / f"{name}.xml", XML.format("".join(BOX.format(*o) for o in objects)))
    for name in ("train/part/n1", "train/part/empty", "train/part/lost", "val/v1"):
        image(root / "Data/DET" / f"{name}.JPEG")
    text(root / "ImageSets/DET/train_1.txt", "\ufeffpart/n1 1\npart/empty -1\n")
    text(root / "ImageSets/DET/train_2.txt", "part/n1 -1\npart/lost 1\n")
    text(root / "ImageSets/DET/val.txt", "v1 1\n")
    return tmp_path


def test_imagenet_layout(imagenet):
    train, test = both(imagenet, keep_empty=True, pixel=1)
    assert "ImageNet DET layout" in train.described and train.categories == {1: "airplane", 2: "accordion", 3: "ant or bee"}
    assert [train.get_img_info(i)["file_name"] for i in range(3)] == ["part/n1.JPEG", "part/empty.JPEG", "part/lost.JPEG"]
    assert train.get_groundtruth(0).bbox.tolist() == [[0, 0, 59, 39], [2, 3, 10, 20]]
    assert train.get_groundtruth(0).get_field("labels").tolist() == [3, 2] and train[1][0].size == (60, 40)
    assert len(reports(train)) == 1 and "lost.xml" in reports(train)[0] and "no such annotation file" in reports(train)[0]
    assert "n99999999 is not in the class list" in reports(test)[0] and "v1.xml, image v1.JPEG" in reports(test)[0]


def test_imagenet_lists_that_are_wrong(imagenet):
    (imagenet / "devkit" / "data" / "map_det.txt").write_text("accordion\n")
    with pytest.raises(ValueError, match="line 1: expected `n02672831 1 accordion`"):
        make_dataset(str(imagenet))
    (imagenet / "devkit" / "data" / "map_det.txt").unlink()
    with pytest.raises(FileNotFoundError, match="map_det.txt.*development kit"):
        make_dataset(str(imagenet))
    with pytest.raises(FileNotFoundError, match="lists there: train_1, train_2, val"):
        text(imagenet / "m.txt", "n02672831 accordion")
        ImageNetDETDataset(imagenet / "ILSVRC", "nothing", imagenet / "m.txt")


# ---------------------------------------------------------------------------------------------------------- Cityscapes

SIZE = (64, 32)


def square(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


SCENE = [
    ("road", square(0, 0, 63, 31)),
    ("car", square(4, 4, 23, 23)),
    ("cargroup", square(40, 4, 59, 13)),
    ("person", square(10, 10, 15, 29)),
    ("license plate", square(5, 20, 8, 22)),
    ("pole", square(12, 0, 13, 31)),
    ("rider", square(30, 20, 39, 29)),
]


def write_city(folder, split="train", city="aachen", frames=1, scene=SCENE, pictures=False):
    for k in range(frames):
        stem = f"{city}_{k:06d}_000019"
        image(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", SIZE)
        objects = [{"label": label, "polygon": polygon} for label, polygon in scene]
        content = {"imgWidth": SIZE[0], "imgHeight": SIZE[1], "objects": objects}
        text(folder / "gtFine" / split / city / f"{stem}_gtFine_polygons.json", json.dumps(content))
        if pictures:
            drawn = draw_instances([(label, [tuple(corner) for corner in polygon]) for label, polygon in scene], SIZE)
            Image.fromarray(drawn.astype(np.uint16)).save(folder / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png")
    return folder


def test_cityscapes_polygons_and_masks(tmp_path):
    write_city(tmp_path / "cityscapes")
    poly, mask = (make_dataset(f"cityscapes_{mode}_instance_train", root=str(tmp_path), pixel=0) for mode in ("poly", "mask"))
    assert poly.class_names[1:] == mask.class_names[1:] == tuple(INSTANCE_CLASSES.values())
    whole, seen = poly.get_groundtruth(0), mask.get_groundtruth(0)
    assert whole.bbox.tolist() == [[4, 4, 23, 23], [10, 10, 15, 29], [30, 20, 39, 29]], "as the polygons say; no road, no group"
    assert sorted(seen.bbox.tolist()) == [[4, 4, 24, 24], [10, 10, 16, 30], [30, 20, 40, 30]], "pixels that are drawn"
    assert whole.get_field("labels").tolist() == [3, 1, 2] and seen.get_field("labels").tolist() == [1, 2, 3]
    assert poly.annotations.crowd.sum() == mask.annotations.crowd.sum() == 1
    person, _, car = (item.pixels.sum() for item in seen.get_field("masks").instances)
    # The pole covers two columns of both; the person covers 6 x 14 pixels of the car; the plate is not drawn.
    assert person == 4 * 20 and car == 20 * 20 - 6 * 14 - 2 * 6
    assert mask.coco_json()["annotations"][-1]["iscrowd"] + mask.coco_json()["annotations"][0]["iscrowd"] == 1


def test_cityscapes_pictures_of_instances_are_preferred(tmp_path):
    drawn = CityScapesDataset(tmp_path / "a/leftImg8bit", write_city(tmp_path / "a") / "gtFine", "train")
    read = CityScapesDataset(tmp_path / "b/leftImg8bit", write_city(tmp_path / "b", pictures=True) / "gtFine", "train")
    assert "instanceIds" in read.annotations.source_of(0) and "polygons" in drawn.annotations.source_of(0)
    assert drawn.coco_json()["annotations"] == read.coco_json()["annotations"]


def test_cityscapes_folder_mini_and_splits(tmp_path):
    write_city(tmp_path / "cityscapes", frames=3)
    write_city(tmp_path / "cityscapes", "val", "ulm", frames=25)
    train, test = both(tmp_path / "cityscapes")
    assert "Cityscapes layout, gtFine/train" in train.described and (len(train), len(test)) == (3, 25)
    mini = make_dataset("cityscapes_mask_instance_minival", is_train=False, root=str(tmp_path))
    assert [mini.get_img_info(i)["file_name"].split("_")[1] for i in range(len(mini))] == ["000000", "000011", "000022"]
    assert mini[1][0].size == SIZE


def test_faulty_cityscapes_files(tmp_path):
    scene = [("car", [[1, 1], [5, 5]]), ("person", square(10, 10, 15, 29)), ("bus", square(100, 10, 120, 20))]
    write_city(tmp_path, scene=scene)
    dataset = CityScapesDataset(tmp_path / "leftImg8bit", tmp_path / "gtFine", "train", "poly")
    assert len(dataset.get_groundtruth(0)) == 1
    faults = reports(dataset)
    assert len(faults) == 2 and all("aachen_000000_000019" in fault for fault in faults)
    assert "car: 3 corners or more" in faults[0] and "outside the image of 64 x 32" in faults[1]
    path = tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json"
    for broken in ("{", "[]", '{"imgWidth": 3}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match="aachen_000000_000019_gtFine_polygons.json.*expected imgWidth"):
            CityScapesDataset(tmp_path / "leftImg8bit", tmp_path / "gtFine", "train", "poly")
    with pytest.raises(FileNotFoundError, match="polygons.json or"):
        CityScapesDataset(tmp_path / "leftImg8bit", tmp_path / "gtFine", "val")


def test_foreign_cityscapes_pictures(shared_dir):
    """Tiny files of another library's tests, which have pictures of instances only."""
    train, test = both(shared_dir / "data/formats_samples/datumaro/cityscapes_dataset/train_dataset", keep_empty=True)
    for dataset in (train, test):
        assert "Cityscapes layout" in dataset.described and len(dataset) == 1 and dataset[0][0].size == dataset[0][1].size


@pytest.mark.parametrize("mode", ["poly", "mask"])
def test_cityscapes_converter(tmp_path, repository, mode):
    folder = write_city(tmp_path, frames=2)
    command = [sys.executable, str(repository / "tools/cityscapes/convert_cityscapes_to_coco.py"), "--datadir", str(folder), "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = folder / "annotations" / "instancesonly_filtered_gtFine_train.json"
    assert f"{path}: 2 images, 8 objects" in done.stdout
    converted = COCODataset(path, folder / "leftImg8bit")
    direct = CityScapesDataset(folder / "leftImg8bit", folder / "gtFine", "train", mode)
    assert converted.class_names == direct.class_names and len(converted) == 2
    for i in range(2):
        ours, theirs = converted[i][1], direct[i][1]
        assert torch.equal(ours.bbox, theirs.bbox) and torch.equal(ours.get_field("labels"), theirs.get_field("labels"))
        assert torch.equal(ours.get_field("masks").get_mask_tensor(), theirs.get_field("masks").get_mask_tensor())


# ------------------------------------------------------------------------------------------------------------- classes


def test_classes_by_name(shared_dir):
    folder = str(shared_dir / "data" / "yolo_coco128")
    opts = ["DATASETS.DATA", folder, "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "DATASETS.CLASSES"]
    dataset = make_data_loader(load_config(None, [*opts, "('car', 'person')"])).dataset
    assert dataset.class_names == ("__background__", "car", "person")
    full = make_dataset(folder)
    for i in range(len(dataset)):
        image_id = dataset.get_img_info(i)["id"]
        k = next(k for k in range(len(full)) if full.get_img_info(k)["id"] == image_id)
        expected = [full.class_names[label] for label in full.get_groundtruth(k).get_field("labels")]
        got = [dataset.class_names[label] for label in dataset.get_groundtruth(i).get_field("labels")]
        assert got == [name for name in expected if name in ("car", "person")] and got
    with pytest.raises(ValueError, match="no class 'persn'.*Did you mean person"):
        make_data_loader(load_config(None, [*opts, "('persn',)"]))
    with pytest.raises(ValueError, match="317 annotations.*317 of other classes.*Its classes: person"):
        make_data_loader(load_config(None, [*opts, "('toaster',)"]))


def test_masks_that_no_object_has_are_asked_for_at_once(tmp_path):
    text(tmp_path / "data.yaml", YAML)
    image(tmp_path / "images" / "train" / "a.png")
    text(tmp_path / "labels" / "train" / "a.txt", "1 .5 .5 .5 .5")
    opts = ["DATASETS.DATA", str(tmp_path), "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "True"]
    with pytest.raises(ValueError, match="MODEL.MASK_ON needs masks"):
        make_data_loader(load_config(None, opts))


@pytest.mark.parametrize(
    ("name", "options"), [("yolo_coco128", {}), ("yolo_coco128", {"masks": True}), ("pennfudan", {}), ("voc_mini", {"masks": True})]
)
@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_ground_truth_as_predictions_is_perfect(shared_dir, name, options, evaluator):
    dataset = make_dataset(str(shared_dir / "data" / name), is_train=False, **options)
    predictions = []
    for i in range(len(dataset)):
        found = dataset.get_groundtruth(i)
        found.add_field("scores", torch.ones(len(found)))
        predictions.append(found)
    results = evaluate(dataset, predictions, None, ("bbox",), evaluator)
    assert results["bbox"]["AP"] == pytest.approx(1.0), "class 0 of a YOLO file counts too"
    assert len(results["per_class"]["bbox"]) == len(dataset.categories)
