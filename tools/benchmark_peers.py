"""Rows P13 of the benchmark: a training step of Mask R-CNN R-50-FPN against detectron2 and mmdetection, where they can be imported.

Both learn from the same weights, images and objects; their losses are compared with every anchor and proposal sampled.
"""

from __future__ import annotations

import copy
import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmark_case import Case, compared, peak_bytes
from benchmark_models import ROOT, in_new_process, objects, pictures, stepping

CONFIGS = {"detectron2": "detectron2/mask_rcnn_R_50_FPN_1x.yaml", "mmdetection": "mmdetection/mask-rcnn_r50_fpn_1x_coco.yaml"}
MODULES = {"detectron2": "detectron2", "mmdetection": "mmdet"}


def peer_rows(quick: bool, device: str) -> Iterator[Case | dict]:
    """P13; a peer that is not installed has a row that says so."""
    size, batch = ((128, 160), 2) if quick else ((416, 544), 2) if device == "cpu" else ((800, 1344), 4)
    for name, module in MODULES.items():
        what = f"training step, mask R-CNN R-50-FPN against {name}, {size[1]}x{size[0]}, batch {batch}"
        try:
            importlib.import_module(module)
        except ImportError as error:
            yield {"id": f"P13.{name}", "what": what, "not_run": f"{module} cannot be imported: {error}"}
            continue
        equal = same_losses(name, (128, 160), device)
        yield Case(f"P13.{name}", what, *steps(name, size, batch, device), equal, device, batch)
        values = {who: [in_new_process(step_peak, name, who, size, batch, device)] for who in ("ours", "peer")}
        yield compared(values) | {"id": f"P13.{name}_memory", "what": f"peak memory of the {what}", "unit": "B", "equal": equal}


def steps(name: str, size: tuple[int, int], batch: int, device: str) -> list[Callable[[], None]]:
    """Our step, and the peer's."""
    ours, peer = model_pair(name, exhaustive=False, device=device)
    mine, theirs = batches(name, size, batch, device)
    return [stepping(ours, mine, torch.float32, device, ours=True), stepping(peer, theirs, torch.float32, device)]


def step_peak(name: str, who: str, size: tuple[int, int], batch: int, device: str) -> int:
    """Bytes that a training step of "ours" or the "peer" takes on top of the weights."""
    return peak_bytes(dict(zip(("ours", "peer"), steps(name, size, batch, device), strict=True))[who], device)


def same_losses(name: str, size: tuple[int, int], device: str) -> bool:
    ours, peer = model_pair(name, exhaustive=True, device=device)
    mine, theirs = batches(name, size, 2, device)
    with torch.no_grad():
        totals = [sum(model.train()(*arguments).values()) for model, arguments in ((ours, mine), (peer, theirs))]
    return bool(torch.isclose(*totals, rtol=1e-3))


def model_pair(name: str, exhaustive: bool, device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our model and the peer's with the same random weights."""
    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.modeling.detector import build_detection_model
    from maskrcnn_bench.weights import load_into

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    peer = {"detectron2": Detectron2, "mmdetection": MMDetection}[name](exhaustive)
    # detectron2 divides the RPN's losses by this number.
    options = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "40000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000000"]
    options += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"]
    ours = build_detection_model(load_config(str(ROOT / "configs" / CONFIGS[name]), options if exhaustive else ()))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.saved(), Path(folder) / "peer.pth")
        load_into(ours, str(Path(folder) / "peer.pth"), strict=False)
    return ours.to(device, memory_format=torch.channels_last), peer.to(device)


def batches(name: str, size: tuple[int, int], batch: int, device: str) -> tuple[tuple, tuple]:
    """Images and targets as we take them, and as the peer does."""
    from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
    from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

    images, targets, boxlists = pictures(batch, size), objects(batch, size), []
    for target in targets:
        target["labels"] = target["labels"].clamp(max=80)
        x1, y1, x2, y2 = target["boxes"].double().unbind(1)
        middle = (x1 + x2) / 2
        target["polygons"] = torch.stack([x1, y1, middle, y1, middle, y2, x1, y2], dim=1)
        boxlist = BoxList(target["boxes"], (size[1], size[0]), pixel=0)
        boxlist.add_field("labels", target["labels"])
        masks = SegmentationMask([[polygon.tolist()] for polygon in target["polygons"]], (size[1], size[0]))
        boxlist.add_field("masks", masks.convert("mask") if name == "mmdetection" else masks)
        boxlists.append(boxlist)
    ours = ([image.to(device) for image in images], BoxListBatch.pad(boxlists).to(device))
    return ours, (images, targets, size)


class Detectron2(torch.nn.Module):
    """detectron2's Mask R-CNN R-50-FPN 1x, called with images and targets as `objects` makes them."""

    def __init__(self, exhaustive: bool):
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        super().__init__()
        cfg = get_cfg()
        cfg.merge_from_list(
            ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.MASK_ON", True]
            + ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
            + ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]], "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]]
            + ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2000, "MODEL.RPN.PRE_NMS_TOPK_TEST", 1000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 1000]
            + ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]]
            + ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7]
            + ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 4]
            + ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14]
        )
        if exhaustive:
            cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 40000, 10**6
            cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.5
        self.model = build_model(cfg)

    def saved(self) -> dict:
        return {"model": self.model.state_dict(), "__author__": "detectron2"}

    def forward(self, images: list[torch.Tensor], targets: list[dict], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        from detectron2.structures import Boxes, Instances, PolygonMasks
        from detectron2.utils.events import EventStorage

        batch = []
        for image, target in zip(images, targets, strict=True):
            polygons = PolygonMasks([[polygon.numpy()] for polygon in target["polygons"]])
            instances = Instances(size, gt_boxes=Boxes(target["boxes"]), gt_classes=target["labels"] - 1, gt_masks=polygons)
            batch.append({"image": image.flip(0), "instances": instances})
        with EventStorage():
            return self.model(batch)


class MMDetection(torch.nn.Module):
    """mmdetection's Mask R-CNN R-50-FPN 1x, called with images and targets as `objects` makes them."""

    def __init__(self, exhaustive: bool):
        import mmdet
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        super().__init__()
        register_all_modules(init_default_scope=True)
        cfg = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / "mask_rcnn" / "mask-rcnn_r50_fpn_1x_coco.py")).model
        cfg.backbone.init_cfg = None
        if exhaustive:
            cfg.train_cfg.rpn.sampler.num = cfg.train_cfg.rcnn.sampler.num = 10**6
            cfg.train_cfg.rcnn.sampler.pos_fraction = 0.5
        self.model = MODELS.build(copy.deepcopy(cfg))
        self.model.init_weights()

    def saved(self) -> dict:
        return {"state_dict": self.model.state_dict(), "meta": {"mmdet_version": "3.0.0"}}

    def forward(self, images: list[torch.Tensor], targets: list[dict], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks, PolygonMasks
        from mmengine.structures import InstanceData

        samples = []
        for target in targets:
            polygons = PolygonMasks([[polygon.numpy()] for polygon in target["polygons"]], *size)
            sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
            masks = BitmapMasks(polygons.to_ndarray(), *size)
            sample.gt_instances = InstanceData(bboxes=target["boxes"], labels=target["labels"] - 1, masks=masks)
            samples.append(sample)
        batch = self.model.data_preprocessor({"inputs": [image.flip(0) for image in images], "data_samples": samples}, True)
        losses = self.model.loss(batch["inputs"], batch["data_samples"])
        return {k: sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k}
