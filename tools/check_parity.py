#!/usr/bin/env python
"""Compare this library with recorded outputs of a reference implementation, stage by stage.

    python tools/check_parity.py FIXTURE_DIR... [--opts KEY VALUE ...]

A fixture is a folder ``<root>/<project>/<model>`` with ``spec.json``, ``stored.npz`` and ``expected.npz``; the photograph it names
lies below ``<root>``. Its weights follow from a formula; they are written to a temporary file in the project's own names and read
by the ordinary converter. Every stage gives one row: the largest difference, its tolerance, and ok or FAIL. The first FAIL is where to
look. Exit code 1 when there is any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

# A checkout works without being installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from parity_fixture import Fixture  # noqa: E402

from maskrcnn_bench.config import load_config  # noqa: E402
from maskrcnn_bench.config.dialect import get_dialect  # noqa: E402
from maskrcnn_bench.data.build import make_transforms  # noqa: E402
from maskrcnn_bench.engine.inference import to_original  # noqa: E402
from maskrcnn_bench.modeling.build import make_pooler  # noqa: E402
from maskrcnn_bench.modeling.detector import build_detection_model  # noqa: E402
from maskrcnn_bench.modeling.poolers import RoIs  # noqa: E402
from maskrcnn_bench.modeling.rpn.rpn import append_objects  # noqa: E402
from maskrcnn_bench.modeling.rpn.two_way_head import TwoWayRPNHead  # noqa: E402
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch, Detections  # noqa: E402
from maskrcnn_bench.structures.boxlist_ops import box_iou  # noqa: E402
from maskrcnn_bench.structures.image_list import ImageList, to_image_list  # noqa: E402
from maskrcnn_bench.structures.keypoint import PersonKeypoints  # noqa: E402
from maskrcnn_bench.structures.mask_paste import paste_rle  # noqa: E402
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask  # noqa: E402
from maskrcnn_bench.weights import load_into, recognise  # noqa: E402
from maskrcnn_bench.weights.pairing import MIN_IOU, Boxes, Limits, Pairing, pair  # noqa: E402
from maskrcnn_bench.weights.receipt import FEATURES, INPUT, KEYPOINTS, MAX_SWAPPED, Row  # noqa: E402

LOSSES = 1e-5  # relative
GRADIENTS = 1e-4  # relative
ROUNDING = 1e-8  # of the norm over all gradients
POOLERS_RECORDED = {"align": "ROIAlignLegacy", "crop": "ROICrop", "crop_max": "ROICropMax", "pool": "ROIPool"}
PIXELS = 1e-3  # of an image, that may differ in a pasted mask


class Check:
    """One fixture, our model with its weights, and the rows found so far."""

    def __init__(self, fixture: Fixture, opts: list[str]):
        self.fixture = fixture
        self.cfg = load_config(fixture.config_file(), [*fixture.options(), *opts])
        if self.cfg.TEST.BBOX_AUG.ENABLED:
            raise ValueError("TEST.BBOX_AUG.ENABLED: expected False; detections joined from several versions of an image are not checked")
        self.dialect = get_dialect(self.cfg.MODEL.DIALECT)
        self.model = build_detection_model(self.cfg).eval()
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def run(self) -> list[Row]:
        """All stages in the order of the network."""
        self.load()
        self.prepare_input()
        with torch.no_grad():
            self.check_features()
            if "fixed.boxes" in self.fixture:
                self.check_box_head()
            if "prop.boxes" in self.fixture:
                self.check_proposals()
            if "det.boxes" in self.fixture:
                self.check_detections()
            self.check_batch()
        self.check_training()
        return self.rows

    def add(self, stage: str, difference: float, tolerance: float, note: str = "") -> None:
        self.rows.append(Row(stage, float(difference), tolerance, note))

    def tolerance(self, key: str, stated: float = FEATURES) -> float:
        return max(stated, 10 * self.fixture.noise(key))

    def compare(self, stage: str, key: str, ours: Tensor, stated: float = FEATURES) -> None:
        """A row for an array that is recorded whole."""
        theirs = self.fixture[key]
        if theirs.shape != ours.shape:
            self.add(stage, torch.inf, 0, f"shape {list(ours.shape)}, recorded {list(theirs.shape)}")
            return
        self.add(stage, (theirs - ours).abs().max(), self.tolerance(key, stated))

    def compare_sampled(self, stage: str, key: str, ours: Tensor) -> None:
        """A row for an array of which some values and the statistics are recorded."""
        shape = self.fixture[f"{key}.shape"].tolist()
        if shape != list(ours.shape):
            self.add(stage, torch.inf, 0, f"shape {list(ours.shape)}, recorded {shape}")
            return
        mean, std, largest = self.fixture[f"{key}.stat"].tolist()
        values = ours.flatten()[self.fixture[f"{key}.pos"].long()]
        whole = ours.double()
        differences = [
            (values - self.fixture[f"{key}.val"]).abs().max().item(),
            abs(whole.mean().item() - mean),
            abs(whole.std(unbiased=False).item() - std),
            abs(whole.abs().max().item() - largest),
        ]
        self.add(stage, max(differences) / max(1.0, std), self.tolerance(f"{key}.val"))

    def load(self) -> None:
        """The fixture's weights, through a file and the ordinary converter."""
        state = self.fixture.state_dict()
        self.naming = recognise(state)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth"
            torch.save({"model": state}, path)
            report = load_into(self.model, path, strict=True)
        self.our_names = {theirs: ours for theirs, ours in report.renamed}
        missing = report.total - len(report.loaded)
        self.add("weights", missing, 0, f"loaded {len(report.loaded)}/{report.total}, {len(report.renamed)} renamed")

    def prepare_input(self) -> None:
        """The photograph through our transforms and the model's normalisation."""
        photograph = self.fixture.image()
        self.image, frame = make_transforms(self.cfg, is_train=False)(photograph, BoxList([], photograph.size))
        self.resize_factor = frame.extra_fields.get("resize_factor")
        self.images = self.image_list([self.image])
        padded = self.model.normalizer(self.images)
        height, width = self.images.image_sizes[0]
        self.compare("input", "input", padded[0, :, :height, :width], stated=INPUT)
        self.add("input.padded_hw", _most(self.fixture["input.padded_hw"], padded.shape[-2:]), 0)
        padding = max(_most(padded[..., height:, :]), _most(padded[..., width:]))
        self.add("input.padding", padding, 0)

    def image_list(self, tensors: list[Tensor]) -> ImageList:
        """Images with the factor that they were enlarged by, where there is one."""
        images = to_image_list(tensors, self.model.size_divisible)
        if self.resize_factor is not None:
            images.scales = torch.full((len(tensors),), self.resize_factor)
        return images

    def check_features(self) -> None:
        """Backbone, RPN head, anchors."""
        self.features = self.model.backbone(self.model.normalizer(self.images))
        names = self.fixture.names("feat")
        objectness, regression = self.model.rpn.head(self.features)
        if isinstance(self.model.rpn.head, TwoWayRPNHead):
            objectness = self.model.rpn.head.scores(self.features)
        self.add("levels", abs(len(names) - len(self.features)) + abs(len(self.fixture.names("rpn.cls")) - len(objectness)), 0)
        for name, feature in zip(names, self.features):
            self.compare_sampled(f"feat.{name}", f"feat.{name}", feature)
        for kind, levels in (("cls", objectness), ("reg", regression)):
            for level, values in enumerate(levels):
                self.compare_sampled(f"rpn.{kind}.{level}", f"rpn.{kind}.{level}", values)
        for level, anchors in enumerate(self.model.rpn.anchor_generator(self.features)):
            self.check_anchors(level, anchors)

    def check_anchors(self, level: int, anchors: Tensor) -> None:
        key = f"anchor.{level}"
        self.add(f"{key}.count", abs(int(self.fixture[f"{key}.count"]) - len(anchors)), 0)
        self.compare(key, f"{key}.val", anchors[self.fixture[f"{key}.pos"].long()])
        if f"{key}.visible" in self.fixture:
            visible = self.model.rpn.anchor_generator.visible(anchors, self.images.sizes).sum()
            self.add(f"{key}.visible", abs(int(self.fixture[f"{key}.visible"]) - int(visible)), 0)

    def boxlist(self, boxes: Tensor, labels: Tensor | None = None) -> BoxList:
        """Boxes in pixels of the prepared image."""
        height, width = self.images.image_sizes[0]
        out = BoxList(boxes, (width, height), "xyxy", self.dialect.pixel)
        if labels is not None:
            out.add_field("labels", labels)
        return out

    def check_box_head(self) -> None:
        """The box head on recorded boxes, free of what the RPN proposes."""
        boxes = self.fixture["fixed.boxes"]
        rois = RoIs.flatten(BoxListBatch.pad([self.boxlist(boxes)], len(boxes), bucket=False), static=False)
        box = self.model.roi_heads.box
        stages = {"": (box.feature_extractor, box.predictor)}
        if self.cfg.MODEL.ROI_BOX_CASCADE_HEAD.ENABLED:
            stages = {f".{k}": parts for k, parts in enumerate(zip(box.feature_extractor, box.predictor, strict=True))}
        for stage, (extractor, predictor) in stages.items():
            logits, deltas = predictor(extractor(self.features, rois))
            if self.fixture.project.background_last:
                logits, deltas = logits.roll(-1, 1), deltas[:, 4:]
            elif self.fixture[f"fixed.deltas{stage}"].shape[1] == 4:
                deltas = deltas[:, 4:]  # one box for all classes, and there none for the background
            self.compare(f"fixed.logits{stage}", f"fixed.logits{stage}", logits)
            self.compare(f"fixed.deltas{stage}", f"fixed.deltas{stage}", deltas)
        for name, kind in POOLERS_RECORDED.items():
            if f"fixed.pooled.{name}.val" in self.fixture:
                pooler = make_pooler(self.cfg, self.cfg.MODEL.ROI_BOX_HEAD, self.features[0].shape[1], kind)
                self.compare_sampled(f"fixed.pooled.{name}", f"fixed.pooled.{name}", pooler(self.features, rois))

    def check_proposals(self) -> None:
        proposals = self.model.rpn(self.images, self.features)[0][0]
        self.add("prop.count", abs(int(self.fixture["prop.count"]) - len(proposals)), 0)
        if "prop.scores" not in self.fixture:
            self.check_unscored("prop", proposals)
            return
        boxes, scores = self.fixture["prop.boxes"], self.fixture["prop.scores"]
        theirs = Boxes(boxes, scores, torch.zeros(len(boxes)), self.dialect.pixel)
        ours = Boxes(proposals.bbox, proposals.get_field("objectness"), torch.zeros(len(proposals)), self.dialect.pixel)
        self.check_pairs("prop", theirs, ours, self.cfg.MODEL.RPN.NMS_THRESH, -torch.inf, partial=True)

    def check_unscored(self, key: str, proposals: BoxList) -> None:
        """Proposals that were recorded without their scores: by position, or else by the best counterpart among the next ones."""
        theirs = self.fixture[f"{key}.boxes"]
        distance = (theirs[:, None] - proposals.bbox[None]).abs().amax(-1)
        distance += torch.where((torch.arange(len(theirs))[:, None] - torch.arange(len(proposals))).abs() <= 2, 0.0, torch.inf)
        self.add(f"{key}.boxes", distance.amin(1).max(), self.tolerance(f"{key}.boxes"), f"pixels, {len(theirs)} proposals")

    def check_pairs(self, key: str, theirs: Boxes, ours: Boxes, nms: float, score_thresh: float, partial: bool = False) -> Pairing:
        """Rows for a set of scored boxes, paired one to one."""
        score_tolerance = self.tolerance(f"{key}.scores")
        box_noise = self.fixture.noise(f"{key}.boxes")
        found = pair(theirs, ours, Limits(box_noise, score_tolerance, nms, score_thresh), partial)
        self.notes += [f"{key} swapped, {text}" for text in found.swapped] + [f"{key} UNMATCHED, {text}" for text in found.lost]
        self.add(f"{key}.unmatched", len(found.lost), 0, f"{len(found.theirs)} of {len(theirs.boxes)} paired")
        candidates = len(theirs.boxes) + (0 if partial else len(ours.boxes))
        self.add(f"{key}.swapped", len(found.swapped), MAX_SWAPPED * candidates)
        a, b = theirs.boxes[found.theirs], ours.boxes[found.ours]
        iou = theirs.iou(ours)[found.theirs, found.ours]
        # Small boxes lose more overlap to the same noise.
        within = (a - b).abs().amax(-1) <= 10 * box_noise
        self.add(f"{key}.boxes", _most(1 - iou[~within]), 1 - MIN_IOU, f"1 - IoU; {_most(a, b):.1e} pixels")
        self.add(f"{key}.scores", _most(theirs.scores[found.theirs], ours.scores[found.ours]), score_tolerance)
        return found

    def detections(self, key: str) -> Boxes:
        """Recorded detections with our labels."""
        labels = self.fixture[f"{key}.labels"] + 1 - self.fixture.project.first_label
        return Boxes(self.fixture[f"{key}.boxes"], self.fixture[f"{key}.scores"], labels, self.dialect.pixel)

    def check_boxlist(self, key: str, boxlist: BoxList) -> Pairing:
        ours = Boxes(boxlist.bbox, boxlist.get_field("scores"), boxlist.get_field("labels"), self.dialect.pixel)
        heads, dense = self.cfg.MODEL.ROI_HEADS, self.cfg.MODEL.RETINANET
        nms, score = (dense.NMS_TH, dense.INFERENCE_TH) if self.cfg.MODEL.RETINANET_ON else (heads.NMS, heads.SCORE_THRESH)
        return self.check_pairs(key, self.detections(key), ours, nms, score)

    def check_detections(self) -> None:
        """Detections in the network's image and in the photograph, and their masks."""
        found = self.model(self.images)[0]
        pairs = self.check_boxlist("det", found)
        original = self.in_photograph(found)
        theirs = self.fixture["det.boxes_original"]
        places = places_among(self.in_photograph(self.boxlist(self.fixture["det.boxes"])).bbox, len(theirs))
        self.add("det.count_original", abs(int(places.max()) + 1 - len(theirs)), 0)
        shared = [(i, j) for i, j in zip(pairs.theirs, pairs.ours) if 0 <= places[i] < len(theirs)]
        inds, ours = torch.tensor(shared, dtype=torch.int64).reshape(-1, 2).unbind(1)
        # Pixels, so the tolerance is that of the boxes which were paired above, enlarged with the image.
        scale = max(a / b for a, b in zip(original.size, found.size))
        limit = scale * _most(self.fixture["det.boxes"][inds], found.bbox[ours]) + FEATURES
        self.add("det.boxes_original", _most(theirs[places[inds]], original.bbox[ours]), limit, "pixels")
        if "mask.prob" in self.fixture:
            self.check_masks(original, dict(zip(pairs.theirs, pairs.ours)))
        if "kp.heat.val" in self.fixture:
            self.check_keypoints()

    def in_photograph(self, boxlist: BoxList) -> BoxList:
        """Boxes moved to the photograph, clipped where the project clips once more; those without extent stay."""
        width, height = self.fixture.image().size
        original = to_original(boxlist, {"width": width, "height": height}, False, self.resize_factor)
        return original.clip_to_image(remove_empty=False) if self.dialect.clip_rescaled else original

    def check_keypoints(self) -> None:
        """Heat maps in the recorded detections, and the points read off them."""
        boxes = self.fixture["det.boxes"][: int(self.fixture["kp.heat.shape"][0])]
        found = self.model.roi_heads.keypoint(self.features, Detections.pad([self.boxlist(boxes)], len(boxes), bucket=False))
        self.compare_sampled("kp.heat", "kp.heat", found.get_field("heat_maps")[0])
        keypoints = found[0].get_field("keypoints")
        key = "kp.xys" if "kp.xys" in self.fixture else "kp.xyv"
        difference = (self.fixture[key] - keypoints.keypoints).abs()
        self.add("kp.points", difference[..., :2].max(), KEYPOINTS, "pixels")
        if key == "kp.xys":
            self.add("kp.scores", difference[..., 2].max(), FEATURES)
        else:
            self.compare("kp.scores", "kp.score", keypoints.get_field("logits").to(self.fixture["kp.score"].dtype))

    def check_masks(self, ours: BoxList, pairs: dict[int, int]) -> None:
        """Mask probabilities, pasting of the recorded ones, and both together."""
        theirs = self.fixture["mask.prob"]
        shared = [i for i in range(len(theirs)) if i in pairs]
        mine = ours.get_field("mask")[[pairs[i] for i in shared], 0]
        self.add("mask.prob", _most(theirs[shared], mine), self.tolerance("mask.prob"), f"{len(shared)} of {len(theirs)} masks")
        texts = self.fixture.arrays["mask.rle"].tolist()
        boxes = self.fixture["det.boxes_original"][: len(texts)]
        rule = self.dialect.mask_paste
        pasted = paste_rle(theirs[: len(texts)], boxes, ours.size, 0.5, rule)
        strings = sum(rle["counts"] != text for rle, text in zip(pasted, texts))
        self.add("mask.rle", strings, 0, "strings that differ, pasted from mask.prob")
        shared = [i for i in shared if i < len(texts)]
        chosen = [pairs[i] for i in shared]
        pasted = paste_rle(ours.get_field("mask")[chosen, 0], ours.bbox[chosen], ours.size, 0.5, rule)
        differ = [_pixels_that_differ(rle["counts"], texts[i], rle["size"]) for rle, i in zip(pasted, shared)]
        self.add("mask.pixels", max(differ, default=0.0), PIXELS, "share of the image, end to end")

    def check_batch(self) -> None:
        """Two images of different sizes at once."""
        if "batch.crop" not in self.fixture:
            return
        y, x, height, width = self.fixture["batch.crop"].tolist()
        images = self.image_list([self.image, self.image[:, y : y + height, x : x + width]])
        if images.scales is not None:
            images.scales[1] = 1.0  # cut out of the resized image, the crop is an original
        self.add("batch.padded_hw", _most(self.fixture["batch.padded_hw"], images.tensors.shape[-2:]), 0)
        if "batch.det0.boxes" in self.fixture:
            for index, boxlist in enumerate(self.model(images)):
                self.check_boxlist(f"batch.det{index}", boxlist)
        if "batch.prop0.boxes" in self.fixture:
            for index, proposals in enumerate(self.model.rpn(images, self.model.backbone(self.model.normalizer(images)))[0]):
                self.check_unscored(f"batch.prop{index}", proposals)

    def targets(self) -> BoxListBatch:
        """The recorded ground truth."""
        target = self.boxlist(self.fixture["gt.boxes"], self.fixture["gt.labels"] + 1)
        if self.cfg.MODEL.MASK_ON:
            mode = "poly" if self.dialect.mask_target in ("clamped", "exact") else "mask"
            target.add_field("masks", SegmentationMask(self.fixture.polygons(), target.size, mode=mode))
        if self.cfg.MODEL.KEYPOINT_ON:
            target.add_field("keypoints", PersonKeypoints(self.fixture["gt.keypoints"], target.size))
        return BoxListBatch.pad([target])

    def check_training(self) -> None:
        """Losses and gradients of one image, and what follows from recorded proposals alone."""
        model, targets = self.model.train(), self.targets()
        losses = model(self.images, targets)
        names = [self.our_loss(name) for name in self.fixture.arrays["loss.names"].tolist()]
        self.check_losses("loss", losses)
        sum(losses[name] for name in names).backward()
        self.check_gradients()
        with torch.no_grad():
            if "loss_fixed.names" in self.fixture:
                self.check_fixed_losses(targets)
            if "mask_target.value" in self.fixture:
                self.check_mask_targets(targets)
            if "roi_target.value" in self.fixture:
                self.check_roi_targets(targets)

    def check_roi_targets(self, targets: BoxListBatch) -> None:
        """Which object recorded boxes belong to, and what their regression should answer."""
        boxes, objects = self.fixture["roi_target.boxes"], self.fixture["roi_target.object"]
        overlap = box_iou(boxes, targets.boxes[0][targets.valid[0]], self.dialect.pixel)
        self.compare("roi_target.iou", "roi_target.iou", overlap.amax(1))
        self.add("roi_target.object", (overlap.argmax(1) != objects).sum(), 0)
        codes = self.model.roi_heads.box.loss.box_coder.encode(targets.boxes[0][objects], boxes)
        self.compare("roi_target.value", "roi_target.value", codes)

    def our_loss(self, name: str) -> str:
        project = self.fixture.project
        return (project.retinanet_losses if self.cfg.MODEL.RETINANET_ON else project.losses).get(name, name)

    def check_losses(self, key: str, losses: dict[str, Tensor]) -> None:
        noise = 10 * self.fixture.noise(f"{key}.values")
        for name, theirs in zip(self.fixture.arrays[f"{key}.names"].tolist(), self.fixture[f"{key}.values"].tolist()):
            ours = losses[self.our_loss(name)].item()
            stage = f"{key}.{name.removeprefix('loss_')}"
            self.add(stage, abs(ours - theirs), max(LOSSES * abs(theirs), noise), f"of {theirs:.4g}, {abs(ours / theirs - 1):.1e} of it")

    def check_gradients(self) -> None:
        # A layer that two heads share has two names.
        norms = {p: p.grad.double().norm().item() for p in self.model.parameters() if p.grad is not None}
        gradients = {name: norms[p] for name, p in self.model.named_parameters(remove_duplicate=False) if p in norms}
        total, theirs = np.linalg.norm(list(norms.values())), float(self.fixture["grad.total"])
        # Some gradients are nothing but rounding: that of a bias before a softmax over places is 0.
        noise = max(10 * self.fixture.noise("grad.norms"), ROUNDING * theirs)
        worst = Row("grad.norms", -1.0, 0.0)
        for name, norm in zip(self.fixture.arrays["grad.names"].tolist(), self.fixture["grad.norms"].tolist()):
            ours = self.our_names.get(name, name)
            difference = abs(gradients.get(ours, torch.inf) - norm)
            row = Row("grad.norms", difference, max(GRADIENTS * norm, noise), f"of {norm:.4g}, {ours}")
            if row.difference / row.tolerance > worst.difference / max(worst.tolerance, 1e-30):
                worst = row
        self.rows.append(worst)
        self.add("grad.total", abs(total - theirs), max(GRADIENTS * theirs, 10 * self.fixture.noise("grad.total")), f"of {theirs:.4g}")

    def check_fixed_losses(self, targets: BoxListBatch) -> None:
        """Losses of the heads when the recorded boxes are the proposals."""
        proposals = BoxListBatch.pad([self.boxlist(self.fixture["train.proposals"])])
        if self.fixture.project.appends_objects:
            proposals.add_field("objectness", torch.zeros_like(proposals.boxes[..., 0]))
            proposals = append_objects(proposals, targets)
        keys = torch.zeros(1, dtype=torch.int64)  # every box is drawn, so no choice depends on it
        self.check_losses("loss_fixed", self.model.roi_heads(self.features, proposals, targets, keys)[2])

    def check_mask_targets(self, targets: BoxListBatch) -> None:
        boxes = self.fixture["mask_target.boxes"]
        rois = RoIs.flatten(BoxListBatch.pad([self.boxlist(boxes)], len(boxes), bucket=False), static=False)
        ours = self.model.roi_heads.mask.loss.targets(rois, self.fixture["mask_target.object"], targets)
        theirs = self.fixture["mask_target.value"]
        self.add("mask_target", (ours != theirs).sum(), 0, f"pixels of {theirs.numel()}")


def places_among(boxes: Tensor, count: int) -> Tensor:
    """Which row of a project's `count` rescaled boxes belongs to each of all; -1 where it dropped a box without extent. [n, 4] -> [n]"""
    if count == len(boxes):
        return torch.arange(count)
    shown = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return torch.where(shown, shown.cumsum(0) - 1, -1)


def _most(a: Tensor | tuple, b: Tensor | tuple = (0.0,)) -> float:
    """The largest absolute difference; 0 of nothing."""
    difference = (torch.as_tensor(a) - torch.as_tensor(b)).abs()
    return difference.max().item() if difference.numel() else 0.0


def _pixels_that_differ(first: str, second: str, size: list[int]) -> float:
    """The share of the image on which two run-length masks differ."""
    from pycocotools import mask as coco_mask

    a, b = (coco_mask.decode({"size": size, "counts": text}) for text in (first, second))
    return float((a != b).mean())


def main(argv: list[str] | None = None) -> int:
    """Check every folder; 1 when a row fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", nargs="+", metavar="FIXTURE_DIR")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="configuration overrides, e.g. MODEL.STATIC_SHAPES True")
    args = parser.parse_args(argv)
    try:
        fixtures = [Fixture(folder) for folder in args.fixtures]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    failed = [fixture for fixture in fixtures if not check_fixture(fixture, args.opts)]
    return int(bool(failed))


def check_fixture(fixture: Fixture, opts: list[str]) -> bool:
    """Print one fixture's table, or why there is none; whether all of its rows are within their tolerances."""
    try:
        check = Check(fixture, opts)
        rows = check.run()
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, OSError, EOFError, BadZipFile) as error:
        print(f"{fixture.folder}: ERROR {type(error).__name__}: {error}")
        return False
    print(f"{fixture.folder}  ({fixture.spec['peer']} {fixture.spec['config']})")
    print(f"  {'stage':22} {'difference':>10} {'tolerance':>10}")
    print("".join(f"{row}\n" for row in rows) + "".join(f"    {note}\n" for note in check.notes), end="")
    failures = [row.stage for row in rows if not row.ok]
    print(f"  {len(rows)} stages, {len(failures)} outside the tolerance{': ' + ', '.join(failures) if failures else ''}")
    return not failures


if __name__ == "__main__":
    sys.exit(main())
