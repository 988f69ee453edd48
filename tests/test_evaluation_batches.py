"""Detections of a test do not depend on the batch, and those of all classes compete where that is asked for."""

from __future__ import annotations

import json

import pytest
import torch
from demo_models import photo
from models import narrow_config, narrow_model

from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.data.samplers import group_by_size
from maskrcnn_bench.engine.inference import predict
from maskrcnn_bench.structures.boxlist_ops import boxlist_iou

SIZES = ((120, 90), (90, 120), (128, 96), (70, 64), (120, 91), (64, 70), (300, 50), (90, 120), (40, 40), (121, 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A COCO folder whose images have many sizes."""
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "annotations").mkdir()
    (folder / "val").mkdir()
    images = []
    for number, (width, height) in enumerate(SIZES, start=1):
        photo(width, height, number).save(folder / "val" / f"{number}.png")
        images.append({"id": number, "width": width, "height": height, "file_name": f"{number}.png"})
    annotations = [
        {"id": k, "image_id": k, "category_id": 1 + k % 4, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0} for k in range(1, 11)
    ]
    for a in annotations:
        a["segmentation"] = [[5, 5, 35, 5, 35, 35, 5, 35]]
    content = {"images": images, "annotations": annotations, "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 5)]}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return folder


def test_sizes_that_are_equal_after_padding_share_a_group():
    assert group_by_size([(64, 33), (60, 64), (65, 64), (64, 65)], 32).tolist() == [0, 0, 2, 1]
    assert group_by_size([(64, 33), (60, 64), (64, 33)]).tolist() == [1, 0, 1]
    assert group_by_size([]).tolist() == []


@pytest.mark.parametrize("family", ["mask_fpn", "faster_c4", "jw_r50", "tv_mask_v2"])
def test_detections_do_not_depend_on_the_batch(family, folder):
    small = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 100, "DATASETS.TEST", f"({str(folder)!r},)", "DATALOADER.NUM_WORKERS", 0]
    small += ["MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 10]
    model = narrow_model(family, *small)
    found, shared = {}, 0
    for batch in (1, 4, 8):
        (loader,) = make_data_loader(narrow_config(family, *small, "TEST.IMS_PER_BATCH", batch), is_train=False)
        for images, _, _ in loader:
            divisible = max(model.size_divisible, 1)
            padded = {tuple(-(-side // divisible) for side in size) for size in images.image_sizes}
            assert len(padded) == 1, "all of a batch are of one size after padding"
            shared += len(images.image_sizes) > 1
        found[batch] = predict(model, loader, "cpu")
        assert sorted(found[batch]) == list(range(len(SIZES)))
    assert shared, "some batches have more than one image"
    for batch in (4, 8):
        for index, alone in found[1].items():
            together = found[batch][index]
            assert len(alone) == len(together)
            torch.testing.assert_close(together.bbox, alone.bbox, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(together.get_field("scores"), alone.get_field("scores"), rtol=1e-4, atol=1e-5)
            assert together.get_field("labels").tolist() == alone.get_field("labels").tolist()


def test_classes_compete_where_asked(folder):
    small = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 100, "DATASETS.TEST", f"({str(folder)!r},)", "DATALOADER.NUM_WORKERS", 0]
    model = narrow_model("faster_fpn", *small)
    (loader,) = make_data_loader(narrow_config("faster_fpn", *small), is_train=False)
    usual, alone = predict(model, loader, "cpu"), predict(model, loader, "cpu", class_agnostic_nms=0.5)
    twins = 0
    for index, found in alone.items():
        overlaps = boxlist_iou(found, found).fill_diagonal_(0)
        assert overlaps.max() <= 0.5
        scores = usual[index].get_field("scores")
        assert found.get_field("scores")[0] == scores.max()
        # What is missing lies on a better one that stayed.
        better = scores[:, None] <= found.get_field("scores")[None]
        assert ((boxlist_iou(usual[index], found) > 0.5) & better).sum(dim=1).bool().sum() >= len(usual[index]) - len(found)
        twins += len(usual[index]) - len(found)
    assert twins
