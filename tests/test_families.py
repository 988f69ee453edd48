"""Every architecture family on real photographs: one training step and one test, with few RoIs; with --full every shipped YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import objects_as_proposals

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.data.build import make_dataset
from maskrcnn_bench.engine.launch import _for_test as for_test
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.solver import make_lr_scheduler, make_optimizer

CONFIGS = Path(__file__).parent.parent / "configs"
FAMILIES = [
    "e2e_faster_rcnn_R_50_C4_1x.yaml",
    "e2e_mask_rcnn_R_50_FPN_1x.yaml",
    "rpn_R_50_FPN_1x.yaml",
    "detectron2/mask_rcnn_R_50_C4_1x.yaml",
    "torchvision/fasterrcnn_resnet50_fpn.yaml",
]
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHT", "", "INPUT.MIN_SIZE_TRAIN", "(120, 128)", "INPUT.MAX_SIZE_TRAIN", "160",
    "INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "160", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1",
    "SOLVER.BASE_LR", "0.00001", "SOLVER.ACCUMULATE", "1", "TEST.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()",
    "MODEL.RPN.POST_NMS_TOP_N_TRAIN", "50", "MODEL.RPN.POST_NMS_TOP_N_TEST", "20",
]  # fmt: skip


def every_config() -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.full) for name in every_config() if name not in FAMILIES)]
)
def test_one_step_on_photographs(name, shared_dir, tmp_path):
    data = shared_dir / "data" / "coco_mini"
    options = [*SMALL, "DATASETS.DATA", str(data)]
    given = load_config(str(CONFIGS / name)).MODEL
    dataset = make_dataset(str(data), is_train=True)
    count = (given.RETINANET if given.RETINANET_ON else given.ROI_BOX_HEAD).NUM_CLASSES
    if 0 < count < len(dataset.class_names):
        options += ["DATASETS.CLASSES", str(dataset.class_names[1:count])]
    if given.LOAD_PROPOSALS:
        for split, is_train in (("TRAIN", True), ("TEST", False)):
            file = objects_as_proposals(make_dataset(str(data), is_train), tmp_path / split)
            options += [f"DATASETS.PROPOSAL_FILES_{split}", f"('{file}',)"]
    cfg = load_config(str(CONFIGS / name), options)
    images, targets, _ = next(iter(make_data_loader(cfg)))
    torch.manual_seed(0)
    model = build_detection_model(cfg)
    model.train()
    optimizer = make_optimizer(cfg, model)
    make_lr_scheduler(cfg, optimizer).step(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = model(images, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved and moved <= trained
    model = for_test(cfg, torch.device("cpu"), model.eval())
    loader = make_data_loader(cfg, is_train=False)[0]
    with torch.no_grad():
        detections = model(next(iter(loader))[0])
    assert len(detections) == 2 and torch.isfinite(detections.boxes).all()
