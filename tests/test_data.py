"""Readers and loaders: what the files say is what the model gets, in any layout, process count and starting point."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from maskrcnn_bench.config import load_config
from maskrcnn_bench.config.paths_catalog import DatasetCatalog
from maskrcnn_bench.data import check_dataset, make_data_loader, make_dataset
from maskrcnn_bench.data.build import make_datasets
from maskrcnn_bench.data.check import require_sound
from maskrcnn_bench.data.datasets import COCODataset, ConcatDataset, PascalVOCDataset, toy
from maskrcnn_bench.data.datasets.photo import looks_wrong, photo_size, read_photo, to_rgb
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.evaluation.coco import ground_truth
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import PersonKeypoints
from maskrcnn_bench.utils.counter import counter_key

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    return toy.generate(tmp_path_factory.mktemp("data") / "toy", num_train=24, num_test=9, size=64)


def write_coco(folder, annotations, categories=((3, "cat"), (7, "dog"), (900, "emu")), images=3, split="train", size=(60, 40)):
    """A COCO folder with grey pictures; annotations are dicts without id."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    records = []
    for k in range(1, images + 1):
        Image.new("RGB", size, (40 * k, 90, 120)).save(folder / split / f"{k}.png")
        records.append({"id": 100 - k, "file_name": f"{k}.png", "width": size[0], "height": size[1]})
    content = {
        "images": records,
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [{"id": k + 1, "iscrowd": 0, **a} for k, a in enumerate(annotations)],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def annotate(image_id, category_id, box, **more):
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "area": w * h, "segmentation": polygon, **more}


def small_config(folder, *opts):
    base = ["DATASETS.DATA", str(folder), "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "9", "DATALOADER.NUM_WORKERS", "0"]
    base += ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64, 80)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.SIZE_DIVISIBILITY", "32"]
    return load_config(None, [*base, *opts])


# ------------------------------------------------------------------------------------------------------ photographs


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_kind_of_picture_becomes_rgb(tmp_path, mode):
    ramp = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (8, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    read = read_photo(str(path), "picture", image.size)
    assert read.mode == "RGB" and read.size == image.size
    expected = np.asarray(Image.fromarray(ramp).convert("1").convert("RGB") if mode == "1" else Image.fromarray(ramp).convert("RGB"))
    assert np.abs(np.asarray(read).astype(int) - expected).max() <= (4 if mode == "CMYK" else 1)


@pytest.mark.parametrize("mode,most", [("I;16", 10), ("I", 16)])
def test_pictures_of_16_bits_do_not_fill_the_memory(mode, most):
    image = Image.new(mode, (1000, 500), 4000)
    tracemalloc.start()
    assert np.asarray(to_rgb(image)).max() == 4000 >> 8
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * 500_000


def save_turned(path, orientation):
    """A picture of 32 x 20 pixels whose EXIF data ask for a turn; it as it should be seen, and as it is stored. [20, 32, 3] uint8"""
    upright = np.zeros((20, 32, 3), dtype=np.uint8)
    upright[:8, :12] = 255
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    return upright, stored


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    path = tmp_path / "x.png"
    upright, stored = save_turned(path, orientation)
    np.testing.assert_array_equal(np.asarray(read_photo(str(path), "picture", (32, 20))), upright)
    assert read_photo(str(path), "picture", stored.size, on_exif="ignore").size == stored.size
    if stored.size != (32, 20):
        unturned = read_photo(str(path), "picture", stored.size)
        np.testing.assert_array_equal(np.asarray(unturned), np.asarray(stored))
        with pytest.raises(ValueError, match="32 x 20"):
            read_photo(str(path), "picture", stored.size, on_exif="rotate")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("on_exif", ["auto", "rotate", "ignore"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_from_the_head_are_those_of_the_picture(tmp_path, orientation, suffix, on_exif, channels):
    """Else the check calls data sound that fail in the middle of an epoch."""
    path = tmp_path / f"x{suffix}"
    upright, stored = save_turned(path, orientation)
    size = photo_size(str(path), on_exif)
    read = read_photo(str(path), "picture", size, on_exif, channels)
    # Pillow turns TIFF files itself.
    expected = np.asarray(stored) if on_exif == "ignore" and suffix != ".tif" else upright
    assert size == read.size == expected.shape[1::-1]
    assert np.abs(np.asarray(read).astype(int)[..., :1] - expected[..., :1]).max() < 64
    assert not looks_wrong(str(path), size, on_exif)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("on_exif", ["auto", "rotate", "ignore"])
@pytest.mark.parametrize("kind", ["coco", "yolo", "labelme", "masks"])
def test_what_is_checked_is_what_is_read(tmp_path, kind, on_exif, channels):
    path = tmp_path / {"coco": "train", "yolo": "images/train", "labelme": "", "masks": "PNGImages"}[kind] / "1.png"
    if kind == "coco":
        annotations = write_coco(tmp_path, [annotate(99, 3, (2, 2, 9, 9))], images=1)
        annotations.write_text(annotations.read_text().replace('"width": 60, "height": 40', '"width": 0, "height": 0'))
    path.parent.mkdir(parents=True, exist_ok=True)
    upright, stored = save_turned(path, 6)
    size = stored.size if on_exif == "ignore" else (32, 20)
    if kind == "yolo":
        (tmp_path / "data.yaml").write_text("train: images/train\nnames: [a]\n")
        (tmp_path / "labels" / "train").mkdir(parents=True)
        (tmp_path / "labels" / "train" / "1.txt").write_text("0 .5 .5 .5 .5\n")
    elif kind == "labelme":
        shapes = [{"label": "a", "points": [[2, 2], [9, 2], [9, 9]], "shape_type": "polygon"}]
        path.with_suffix(".json").write_text(json.dumps({"version": "5", "flags": {}, "shapes": shapes, "imagePath": "1.png"}))
    elif kind == "masks":
        (tmp_path / "PedMasks").mkdir()
        Image.new("L", size, 1).save(tmp_path / "PedMasks" / "1_mask.png")
    dataset = make_dataset(str(tmp_path), on_exif=on_exif, channels=channels)
    assert [str(f) for f in check_dataset(dataset, deep=True) if f.severity != "note"] == []
    require_sound(dataset)
    image, target, _ = dataset[0]
    assert image.size == target.size == size and len(target) == 1


def test_files_that_were_made_for_another_frame_are_found_before_training(tmp_path):
    path = write_coco(tmp_path, [annotate(99, 3, (2, 2, 9, 9))], images=1, size=(32, 20))
    save_turned(tmp_path / "train" / "1.png", 6)
    assert check_dataset(COCODataset(path, tmp_path / "train")) == []
    for channels in (1, 3):
        dataset = COCODataset(path, tmp_path / "train", on_exif="ignore", channels=channels)
        with pytest.raises(ValueError, match="expected 32 x 20 pixels as its annotations say, got 20 x 32"):
            require_sound(dataset)


# -------------------------------------------------------------------------------------------------------------- COCO


def test_any_category_ids_become_labels_and_return(tmp_path):
    objects = [annotate(99, 900, (5, 5, 20, 10)), annotate(99, 3, (1, 2, 3, 4)), annotate(97, 7, (0, 0, 60, 40))]
    dataset = COCODataset(write_coco(tmp_path, objects), tmp_path / "train")
    assert dataset.class_names == ("__background__", "cat", "dog", "emu")
    assert dataset.categories == {1: "cat", 2: "dog", 3: "emu"}
    assert dataset.contiguous_category_id_to_json_id == {1: 3, 2: 7, 3: 900}
    assert [dataset.id_to_img_map[i] for i in range(3)] == [97, 98, 99], "images by ascending id"
    image, target, index = dataset[2]
    assert index == 2 and image.mode == "RGB" and target.mode == "xyxy" and target.size == (60, 40)
    assert target.get_field("labels").tolist() == [3, 1] and target.get_field("labels").dtype == torch.int64
    assert target.bbox.tolist() == [[5, 5, 24, 14], [1, 2, 3, 5]]
    assert len(dataset[1][1]) == 0 and len(dataset[1][1].get_field("masks")) == 0
    assert dataset.get_img_info(0) == {"height": 40, "width": 60, "file_name": "3.png", "id": 97}
    without_pixel = COCODataset(tmp_path / "annotations" / "instances_train.json", tmp_path / "train", pixel=0)
    assert without_pixel.get_groundtruth(2).bbox.tolist() == [[5, 5, 25, 15], [1, 2, 4, 6]]


def test_categories_in_any_order_of_the_file(tmp_path):
    path = write_coco(tmp_path, [annotate(99, 900, (5, 5, 20, 10))], categories=((900, "emu"), (3, "cat")))
    assert COCODataset(path, tmp_path / "train").categories == {1: "cat", 2: "emu"}


def test_boxes_are_clipped_and_empty_ones_leave_with_their_mask(tmp_path):
    objects = [annotate(99, 3, (50, 30, 10.6, 10.4)), annotate(99, 7, (20, 20, 1, 9)), annotate(99, 7, (3, 3, 9, 9))]
    target = COCODataset(write_coco(tmp_path, objects), tmp_path / "train").get_groundtruth(2)
    np.testing.assert_allclose(target.bbox, [[50, 30, 59, 39], [3, 3, 11, 11]], atol=1e-5)
    assert target.get_field("labels").tolist() == [1, 2] and len(target.get_field("masks")) == 2


def test_crowds_are_no_targets_but_stay_for_the_evaluation(tmp_path):
    crowd = annotate(98, 3, (2, 2, 20, 20), iscrowd=1) | {"segmentation": {"size": [40, 60], "counts": [100, 50, 2250]}}
    path = write_coco(tmp_path, [annotate(99, 3, (5, 5, 9, 9)), crowd])
    dataset = COCODataset(path, tmp_path / "train", remove_images_without_annotations=True)
    assert len(dataset) == 1 and len(dataset[0][1]) == 1
    truth = dataset.coco_json()
    assert [a["iscrowd"] for a in truth["annotations"]] == [1, 0] and len(truth["images"]) == 3


def test_empty_images_leave_or_stay_by_choice(tmp_path):
    write_coco(tmp_path, [annotate(99, 3, (5, 5, 9, 9)), annotate(97, 3, (5, 5, 1, 9))])
    assert len(make_dataset(str(tmp_path))) == 1
    assert len(make_dataset(str(tmp_path), keep_empty=True)) == 3
    batch = next(iter(make_data_loader(small_config(tmp_path, "DATASETS.KEEP_EMPTY", "True", "SOLVER.IMS_PER_BATCH", "3"))))
    assert batch[1].valid.sum() == 1 and batch[1].boxes.isfinite().all()


def test_chosen_classes_and_their_order(tmp_path):
    path = write_coco(tmp_path, [annotate(99, 900, (5, 5, 20, 10)), annotate(99, 3, (5, 5, 9, 9)), annotate(98, 7, (5, 5, 9, 9))])
    dataset = COCODataset(path, tmp_path / "train", True, classes=("emu", "cat"))
    assert dataset.categories == {1: "emu", 2: "cat"} and len(dataset) == 1
    assert dataset.get_groundtruth(0).get_field("labels").tolist() == [1, 2]
    with pytest.raises(ValueError, match="no class 'emus'.*Did you mean emu"):
        COCODataset(path, tmp_path / "train", classes=("emus",))
    with pytest.raises(ValueError, match="CLASSES: expected each class once.*leave out one 'emu'"):
        COCODataset(path, tmp_path / "train", classes=("emu", "cat", "emu"))


def test_categories_of_one_name_are_one_class_where_it_is_chosen(tmp_path):
    objects = [annotate(99, number, (5 + number, 5, 20, 10)) for number in (3, 7, 9)]
    path = write_coco(tmp_path, objects, categories=((3, "cat"), (7, "dog"), (9, "cat")))
    dataset = COCODataset(path, tmp_path / "train", True, classes=("cat",))
    assert dataset.get_groundtruth(0).get_field("labels").tolist() == [1, 1]
    assert dataset.contiguous_category_id_to_json_id == {1: 3} and dataset.class_names == ("__background__", "cat")
    truth = ground_truth(dataset)
    assert [a["category_id"] for a in truth["annotations"]] == [3, 3] and [c["id"] for c in truth["categories"]] == [3]


def test_mixed_masks_of_one_image(tmp_path):
    rle = {"size": [40, 60], "counts": [100, 20, 2280]}
    objects = [annotate(99, 3, (10, 10, 20, 20)), annotate(99, 3, (2, 20, 1.5, 20)) | {"segmentation": rle}]
    masks = COCODataset(write_coco(tmp_path, objects), tmp_path / "train", pixel=0).get_groundtruth(2).get_field("masks")
    assert masks.get_mask_tensor().sum(dim=(1, 2)).tolist() == [400, 20]


def test_boxes_without_masks_are_a_data_set_too(tmp_path):
    box_only = annotate(99, 3, (10, 10, 20, 20))
    del box_only["segmentation"], box_only["area"]
    dataset = COCODataset(write_coco(tmp_path, [box_only]), tmp_path / "train")
    assert not dataset.get_groundtruth(2).has_field("masks")
    assert dataset.coco_json()["annotations"][0]["area"] == 400


def test_sizes_missing_in_the_file_come_from_the_images(tmp_path):
    path = write_coco(tmp_path, [annotate(99, 3, (10, 10, 20, 20))])
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    path.write_text(json.dumps(content))
    assert COCODataset(path, tmp_path / "train").get_img_info(0)["width"] == 60


def test_the_store_gives_back_what_the_file_says(shared_dir):
    for name in ("instances_train", "instances_val", "person_keypoints_val"):
        path = shared_dir / "data" / "coco_mini" / "annotations" / f"{name}.json"
        given = {a["id"]: a for a in json.loads(path.read_text())["annotations"]}
        returned = AnnotationStore.from_json(path).coco_dict()["annotations"]
        assert len(returned) == len(given)
        for annotation in returned:
            assert {key: given[annotation["id"]][key] for key in annotation} == annotation


def test_all_coco_photographs_read(shared_dir):
    for is_train, count in ((True, 166), (False, 188)):
        dataset = make_dataset(str(shared_dir / "data" / "coco_mini"), is_train)
        assert len(dataset) == count and len(dataset.class_names) == 81 and "COCO layout" in dataset.described
        assert check_dataset(dataset, deep=True) == []
        boxes = 0
        for i in range(len(dataset)):
            image, target, _ = dataset[i]
            assert image.size == target.size and len(target.get_field("masks")) == len(target)
            assert (target.bbox >= 0).all() and (target.bbox[:, 2:] < torch.tensor(target.size)).all()
            boxes += len(target)
        assert boxes == {True: 1580 - 15, False: 1692 - 20}[is_train]


def test_person_keypoints_of_real_photographs(shared_dir):
    folder = shared_dir / "data" / "coco_mini"
    (dataset,) = make_datasets(load_config(None, ["DATASETS.DATA", str(folder), "MODEL.KEYPOINT_ON", "True"]))
    assert dataset.class_names == ("__background__", "person") and dataset.keypoint_kind.names == PersonKeypoints.NAMES
    for i in range(len(dataset)):
        target = dataset.get_groundtruth(i)
        points = target.get_field("keypoints")
        assert isinstance(points, PersonKeypoints) and points.keypoints.shape == (len(target), 17, 3)
        assert (points.keypoints[..., 2] > 0).sum() >= 10


# --------------------------------------------------------------------------------------------------------------- VOC

XML = "<annotation><filename>{name}.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>{objects}</annotation>"
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult>" + BOX + "</object>"


def write_voc(folder, images, splits):
    """images: {name: list of (class, difficult, xmin, ymin, xmax, ymax)}; splits: {split: names}"""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        (folder / "Annotations" / f"{name}.xml").write_text(XML.format(name=name, objects="".join(OBJECT.format(*o) for o in objects)))
        Image.new("RGB", (50, 40)).save(folder / "JPEGImages" / f"{name}.jpg")
    for split, names in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def test_voc_counts_from_one_and_names_pixels(tmp_path):
    write_voc(tmp_path, {"a": [("dog", 0, 1, 1, 50, 40), ("cat", 1, 3, 5, 10, 20)]}, {"train": ["a"]})
    dataset = PascalVOCDataset(tmp_path, "train", use_difficult=True)
    target = dataset.get_groundtruth(0)
    assert target.bbox.tolist() == [[0, 0, 49, 39], [2, 4, 9, 19]]
    assert target.get_field("labels").tolist() == [12, 8] and target.get_field("difficult").tolist() == [0, 1]
    assert dataset.map_class_id_to_class_name(12) == "dog" and len(dataset.class_names) == 21
    assert PascalVOCDataset(tmp_path, "train").get_groundtruth(0).get_field("labels").tolist() == [12]
    assert PascalVOCDataset(tmp_path, "train", pixel=0).get_groundtruth(0).bbox.tolist() == [[0, 0, 50, 40]]


def test_names_of_voc_lists(tmp_path):
    """Spaces in names, marks behind them, the byte-order mark of some editors, and folders below JPEGImages."""
    names = ["photo 1", "my dog", "b", "sub/c", "sub/d.e"]
    (tmp_path / "Annotations" / "sub").mkdir(parents=True)
    (tmp_path / "JPEGImages" / "sub").mkdir(parents=True)
    lines = ["\ufeffphoto 1", "my dog  1", "b -1", "sub/c", "sub/d.e 0"]
    write_voc(tmp_path, {name: [("dog", 0, 1, 1, 9, 9)] for name in names}, {"train": lines})
    for name in ("b", "sub/d.e"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").rename(tmp_path / "JPEGImages" / f"{name}.png")
    dataset = PascalVOCDataset(tmp_path, "train")
    assert [dataset.get_img_info(i)["file_name"] for i in range(5)] == ["photo 1.jpg", "my dog.jpg", "b.png", "sub/c.jpg", "sub/d.e.png"]
    assert dataset.names == names and check_dataset(dataset) == []


def test_lists_in_another_encoding_name_their_file(tmp_path):
    write_voc(tmp_path, {"a": [("dog", 0, 1, 1, 9, 9)]}, {})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match="train.txt: expected text in UTF-8.*save it in this encoding"):
        PascalVOCDataset(tmp_path, "train")


def test_other_classes_than_vocs_are_taken_from_all_files(tmp_path):
    images = {"a": [("RBC", 0, 1, 1, 9, 9)], "b": [("WBC", 0, 1, 1, 9, 9)]}
    write_voc(tmp_path / "deep" / "VOC2007", images, {"train": ["a"], "val": ["b"]})
    train, test = (make_dataset(str(tmp_path), is_train) for is_train in (True, False))
    assert train.class_names == test.class_names == ("__background__", "RBC", "WBC")
    assert test.get_groundtruth(0).get_field("labels").tolist() == [2]
    assert "VOC layout" in train.described and "train.txt" in train.described and "val.txt" in test.described


def test_all_blood_cells_read(shared_dir):
    folder = str(shared_dir / "data" / "bccd")
    train, test = (make_dataset(folder, is_train) for is_train in (True, False))
    assert (len(train), len(test)) == (292, 72) and train.class_names == ("__background__", "Platelets", "RBC", "WBC")
    counts = torch.zeros(4, dtype=torch.int64)
    for dataset in (train, test):
        for i in range(len(dataset)):
            image, target, _ = dataset[i]
            assert image.size == target.size == (640, 480)
            counts += torch.bincount(target.get_field("labels"), minlength=4)
    assert counts.tolist() == [0, 361, 4155 - 2, 372], "all boxes but the two empty ones"
    assert [finding.annotation is not None for finding in check_dataset(train)] == [True, True]


# ------------------------------------------------------------------------------------------------ finding a data set


def test_toy_folder_is_recognised(toy_folder):
    train, test = make_dataset(str(toy_folder)), make_dataset(str(toy_folder), is_train=False)
    assert (len(train), len(test)) == (24, 9) and "toy data set" in train.described and "test" in test.described
    assert make_dataset(str(toy_folder / "annotations" / "instances_test.json"), is_train=False).ann_file == test.ann_file


def test_a_folder_of_another_kind_says_what_is_expected(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="COCO layout.*VOC layout"):
        make_dataset(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        make_dataset(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="coco_2017_train"):
        make_dataset("coco_2017_tran")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annotations", "images/train"), ("annotations", "train2017"), (".", "images"), ("train", "train")],
)
def test_images_are_found_in_usual_places(tmp_path, annotations, images):
    path = write_coco(tmp_path / "made", [annotate(99, 3, (5, 5, 9, 9))])
    (tmp_path / "set" / annotations).mkdir(parents=True)
    shutil.copytree(tmp_path / "made" / "train", tmp_path / "set" / images, dirs_exist_ok=True)
    shutil.copy(path, tmp_path / "set" / annotations / ("_annotations.coco.json" if annotations == "train" else "instances_train.json"))
    assert len(make_dataset(str(tmp_path / "set"))) == 1


def test_catalog_entries_are_under_the_root(tmp_path):
    write_coco(tmp_path / "coco", [annotate(99, 3, (5, 5, 9, 9))], split="train2017")
    assert len(make_dataset("coco_2017_train", root=str(tmp_path))) == 1


CATALOG = """
from my_data import Pictures
class DatasetCatalog:
    DATASETS = {"mine": {}}
    @staticmethod
    def get(name):
        return {"factory": Pictures, "args": {"count": 6}}
"""
MY_DATA = """
import torch
from PIL import Image
from maskrcnn_bench.structures.bounding_box import BoxList
class Pictures(torch.utils.data.Dataset):
    class_names = ("__background__", "thing")
    def __init__(self, count, transforms=None):
        self.count, self.transforms = count, transforms
    def __getitem__(self, i):
        target = BoxList([[1, 1, 5 + i, 9]], (30, 20), mode="xyxy")
        target.add_field("labels", torch.tensor([1]))
        target.add_field("names", [f"thing {i}"])
        return Image.new("RGB", (30, 20)), target, i
    def __len__(self):
        return self.count
    def get_img_info(self, i):
        return {"height": 20, "width": 30}
"""


def test_users_own_data_set_and_catalog(tmp_path, monkeypatch):
    (tmp_path / "my_catalog.py").write_text(CATALOG)
    (tmp_path / "my_data.py").write_text(MY_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = small_config("", "PATHS_CATALOG", str(tmp_path / "my_catalog.py"), "DATASETS.TRAIN", "('mine',)", "SOLVER.MAX_ITER", "1")
    images, targets, indices = next(iter(make_data_loader(cfg)))
    assert images.tensors.shape[0] == 4 and targets.valid.sum() == 4
    assert targets.lists["names"] == [[f"thing {i}"] for i in indices]
    assert make_datasets(cfg)[0].categories == {1: "thing"}, "its evaluation asks for them"


class MaskrcnnBenchmarkDataset:
    """No more than what maskrcnn-benchmark's page on own data sets asks for."""

    def __init__(self, count, transforms=None):
        self.count, self.transforms = count, transforms

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = Image.new("RGB", (30 + 10 * (i % 2), 20), (9 * i, 90, 120))
        boxlist = BoxList([[0, 0, 10, 10], [10 + i, 5, 25, 15]], image.size, mode="xyxy")
        boxlist.add_field("labels", torch.tensor([2, 1]))
        boxlist.add_field("weather", {"rain": i})
        boxlist.add_field("words", [f"a{i}", f"b{i}"])
        if self.transforms:
            image, boxlist = self.transforms(image, boxlist)
        return image, boxlist, i

    def get_img_info(self, i):
        return {"height": 20, "width": 30 + 10 * (i % 2)}


def test_a_class_of_maskrcnn_benchmark_and_one_line(monkeypatch):
    entry = {"factory": MaskrcnnBenchmarkDataset, "args": {"count": 6}}
    monkeypatch.setitem(DatasetCatalog.DATASETS, "my_own", entry)
    options = ["DATASETS.TRAIN", "('my_own',)", "DATASETS.TEST", "('my_own',)", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "3"]
    cfg = small_config("", *options, "SOLVER.MAX_ITER", "3", "INPUT.HORIZONTAL_FLIP_PROB_TRAIN", "0.0", "DATALOADER.NUM_WORKERS", "2")
    loader = make_data_loader(cfg)
    assert loader.dataset.class_names == ("__background__", "class 1", "class 2")
    for images, targets, indices in loader:
        assert images.tensors.shape[0] == len(indices) == len(targets)
        for target, i in zip(targets, indices):
            assert target.get_field("labels").tolist() == [2, 1] and target.get_field("weather") == {"rain": i}
            assert target.get_field("words") == [f"a{i}", f"b{i}"]
            scale = target.size[1] / 20
            np.testing.assert_allclose(target.bbox, np.array([[0, 0, 10, 10], [10 + i, 5, 25, 15]]) * scale, rtol=0.02)
    (tested,) = make_data_loader(cfg, is_train=False)
    assert sorted(i for batch in tested for i in batch[-1]) == list(range(6))
    with pytest.raises(ValueError, match=r"my_own: MaskrcnnBenchmarkDataset does not say its classes; give it class_names"):
        make_data_loader(small_config("", *options[:4], "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "0"))


# ------------------------------------------------------------------------------------------------------------ loaders


def test_a_batch_is_what_its_images_are(toy_folder):
    cfg = small_config(toy_folder, "INPUT.HORIZONTAL_FLIP_PROB_TRAIN", "0.0", "INPUT.MIN_SIZE_TRAIN", "(90,)")
    loader = make_data_loader(cfg)
    images, targets, indices = next(iter(loader))
    assert images.tensors.dtype == torch.uint8 and images.tensors.shape == (4, 3, 96, 96)
    assert images.image_sizes == [(90, 90)] * 4 and len(indices) == 4
    assert images.keys.tolist() == [counter_key(cfg.SEED, 0, i) for i in indices]
    for n, i in enumerate(indices):
        picture, target, _ = loader.dataset.dataset[i]
        expected = np.asarray(picture.resize((90, 90), Image.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(images.tensors[n, :, :90, :90], expected)
        assert images.tensors[n, :, 90:].sum() == 0 and images.tensors[n, :, :, 90:].sum() == 0
        torch.testing.assert_close(targets[n].bbox, target.resize((90, 90)).bbox)
        assert targets[n].get_field("labels").tolist() == target.get_field("labels").tolist()
    assert targets.packed_masks.object_offsets.shape == (4 * targets.boxes.shape[1] + 1,)
    assert len(loader) == 9 and loader.dataset.class_names[1] == "circle"


def digest(loader) -> list:
    """Everything that a training step would see of every batch."""
    return [
        (i.tensors.sum(dim=(1, 2, 3)).tolist(), i.keys.tolist(), i.image_sizes, t.boxes.tolist(), t.packed_masks.vertices.sum().item(), ids)
        for i, t, ids in loader
    ]


def test_batches_do_not_depend_on_workers_cache_or_starting_point(toy_folder):
    reference = digest(make_data_loader(small_config(toy_folder)))
    assert len(reference) == 9
    assert digest(make_data_loader(small_config(toy_folder, "DATALOADER.CACHE", "ram"))) == reference
    assert digest(make_data_loader(small_config(toy_folder, "DATALOADER.NUM_WORKERS", "2"))) == reference
    assert digest(make_data_loader(small_config(toy_folder), start_iter=5)) == reference[5:]
    assert digest(make_data_loader(small_config(toy_folder, "SEED", "1"))) != reference


def test_the_same_image_is_augmented_anew_in_every_epoch(toy_folder):
    cfg = small_config(toy_folder, "SOLVER.MAX_ITER", "60", "INPUT.MIN_SIZE_TRAIN", "(64,)")
    sums: dict[int, set] = {}
    for _, targets, indices in make_data_loader(cfg):
        for n, i in enumerate(indices):
            sums.setdefault(i, set()).add(tuple(targets[n].bbox[0].tolist()))
    assert sum(len(seen) == 2 for seen in sums.values()) > 20, "mirrored and not mirrored"


def test_accumulation_splits_a_step_into_parts(toy_folder):
    whole = make_data_loader(small_config(toy_folder, "SOLVER.ACCUMULATE", "2"))
    batches = list(whole)
    assert len(batches) == 18 and all(len(images) == 2 for images, _, _ in batches)
    assert batches[4][0].keys.tolist() == [counter_key(0, 2, i) for i in batches[4][2]]
    with pytest.raises(ValueError, match="multiple of 3"):
        make_data_loader(small_config(toy_folder, "SOLVER.ACCUMULATE", "3"))


def test_testing_loads_every_image_once_without_chance(toy_folder):
    (loader,) = make_data_loader(small_config(toy_folder, "TEST.IMS_PER_BATCH", "4"), is_train=False)
    first, second = digest(loader), digest(loader)
    assert first == second and sorted(i for batch in first for i in batch[-1]) == list(range(9))


def test_several_training_sets_are_joined(toy_folder, tmp_path):
    test_json = str(toy_folder / "annotations" / "instances_test.json")
    cfg = small_config("", "DATASETS.TRAIN", repr((str(toy_folder), test_json)))
    loader = make_data_loader(cfg)
    joined = loader.dataset.dataset
    assert isinstance(joined, ConcatDataset) and len(joined) == 33
    assert joined.get_img_info(24)["id"] == toy.TEST_IDS_BEGIN + 1 and joined.get_idxs(24) == (1, 0) and joined.get_idxs(23) == (0, 23)
    assert len(list(loader)) == 9
    write_coco(tmp_path, [annotate(99, 3, (5, 5, 9, 9))])
    with pytest.raises(ValueError, match="different classes"):
        make_data_loader(small_config("", "DATASETS.TRAIN", repr((str(toy_folder), str(tmp_path)))))


def test_data_sets_that_are_joined_may_have_weights(toy_folder, tmp_path, caplog):
    other = toy.generate(tmp_path / "other", num_train=8, num_test=1, size=64, seed=9)
    opts = ["DATASETS.TRAIN", repr((str(toy_folder), str(other))), "SOLVER.IMS_PER_BATCH", "1", "MODEL.DEVICE", "cpu"]
    loader = make_data_loader(load_config(None, [*opts, "DATALOADER.DATASET_REPEATS", "(2, 0.25)"]))
    first = len(loader.dataset.datasets[0])
    epoch = [index for batch in loader.batch_sampler.batch_sampler.batches(0) for index in batch]
    assert sorted(index for index in epoch if index < first) == sorted([*range(first)] * 2) and len(epoch) == 2 * first + 2
    with pytest.raises(ValueError, match=r"DATASET_REPEATS: expected one number for each of 2 data set\(s\), got \(1,\)"):
        make_data_loader(load_config(None, [*opts, "DATALOADER.DATASET_REPEATS", "(1,)"]))


def test_upright_and_wide_images_do_not_meet_in_a_batch(shared_dir):
    loader = make_data_loader(small_config(shared_dir / "data" / "coco_mini", "INPUT.MIN_SIZE_TRAIN", "(32,)", "SOLVER.MAX_ITER", "41"))
    kinds = set()
    for _, _, indices in loader:
        infos = [loader.dataset.get_img_info(i) for i in indices]
        upright = {info["height"] >= info["width"] for info in infos}
        assert len(upright) == 1
        kinds |= upright
    assert kinds == {True, False}


def test_keypoints_of_the_toy_set_come_in_batches(toy_folder):
    cfg = small_config(toy_folder, "MODEL.KEYPOINT_ON", "True", "SOLVER.IMS_PER_BATCH", "2")
    loader = make_data_loader(cfg)
    _, targets, _ = next(iter(loader))
    assert loader.dataset.class_names == ("__background__", "triangle")
    assert targets.fields["keypoints"].shape[2:] == (3, 3)
    everything = make_dataset(str(toy_folder / "annotations" / "keypoints_train.json"), keep_empty=True)
    counts = [everything.get_groundtruth(i).get_field("keypoints").keypoints.shape for i in range(24)]
    assert (0, 3, 3) in counts and len({shape[1:] for shape in counts}) == 1


def test_points_that_change_places_in_a_mirror_may_be_told(tmp_path):
    """Names that do not say left and right need a category's `flip_pairs`."""
    folder = toy.generate(tmp_path / "toy", num_train=2, num_test=1, size=64)
    path = folder / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category |= {"keypoints": ["p0", "p1", "p2"], "flip_pairs": [["p0", "p2"]]}
    for annotation in content["annotations"]:
        annotation["keypoints"] = [10, 10, 2, 20, 10, 2, 30, 10, 2]
    path.write_text(json.dumps(content))
    points = make_dataset(str(folder)).get_groundtruth(0).get_field("keypoints")
    assert points.flip_inds() == [2, 1, 0]
    for category in content["categories"]:
        category["flip_pairs"] = [["p0", "nose"]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`flip_pairs` of a category: expected pairs of names such as \[\['p0', 'p1'\]\], got .*nose"):
        make_dataset(str(folder))


def test_no_data_set_is_said_so():
    with pytest.raises(ValueError, match="--data FOLDER"):
        make_data_loader(load_config(None, []))


class WorkerMemory(Dataset):
    """Reads all targets in 40 parts and tells how much memory the loading process has for itself alone, in kB."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 40

    def __getitem__(self, part):
        for i in range(part, len(self.dataset), 40):
            assert isinstance(self.dataset.get_groundtruth(i), BoxList)
        with open("/proc/self/smaps_rollup") as file:
            return part, sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory of processes is read from /proc")
def test_memory_of_loading_processes_does_not_grow(tmp_path):
    """Python objects that processes share are copied one by one as they are read; these annotations are arrays."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(12_000)]
    objects = [annotate(k // 5, 1, (k % 97 + 0.5, k % 89 + 0.5, 30, 40)) | {"id": k} for k in range(60_000)]
    path = tmp_path / "big.json"
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}))
    del images, objects
    dataset = COCODataset(path, tmp_path)
    loader = DataLoader(WorkerMemory(dataset), batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    first, second = ([int(own) for _, own in loader] for _ in range(2))
    # The first parts fill allocators; copying dicts and lists on read would add more than 25,000 kB.
    assert max(first + second) - min(first[8:]) < 10_000
