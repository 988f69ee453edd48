"""Reading a parity fixture (what it is, its weights, its arrays), and pairing its boxes with ours."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MIN_IOU = 0.999  # of a detection with its counterpart

_D2_KEYS = {
    "MODEL.WEIGHTS": (),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": ("MODEL.RPN.PRE_NMS_TOP_N_TRAIN",),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("MODEL.RPN.PRE_NMS_TOP_N_TEST",),
    # One limit there, over all levels: no level alone reaches beyond it.
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": ("MODEL.RPN.POST_NMS_TOP_N_TRAIN", "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("MODEL.RPN.POST_NMS_TOP_N_TEST", "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("MODEL.ROI_HEADS.SCORE_THRESH",),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("MODEL.ROI_HEADS.NMS",),
    "MODEL.RETINANET.SCORE_THRESH_TEST": ("MODEL.RETINANET.INFERENCE_TH",),
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": ("MODEL.RETINANET.PRE_NMS_TOP_N",),
    "MODEL.RETINANET.NMS_THRESH_TEST": ("MODEL.RETINANET.NMS_TH",),
    "TEST.DETECTIONS_PER_IMAGE": ("MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "TEST.DETECTIONS_PER_IMG"),
}
_D2_LOSSES = {
    "loss_cls": "loss_classifier",
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
    "loss_keypoint": "loss_kp",
}
_D2_LOSSES |= {f"loss_cls_stage{k}": f"loss_classifier_stage{k}" for k in range(3)}
_D2_RETINANET_LOSSES = {"loss_cls": "loss_retina_cls", "loss_box_reg": "loss_retina_reg"}

_MM_KEYS = {
    "model.train_cfg.rpn.sampler.num": ("MODEL.RPN.BATCH_SIZE_PER_IMAGE",),
    "model.train_cfg.rpn.sampler.pos_fraction": ("MODEL.RPN.POSITIVE_FRACTION",),
    "model.train_cfg.rcnn.sampler.num": ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",),
    "model.train_cfg.rcnn.sampler.pos_fraction": ("MODEL.ROI_HEADS.POSITIVE_FRACTION",),
    "model.train_cfg.rpn_proposal.nms_pre": ("MODEL.RPN.PRE_NMS_TOP_N_TRAIN",),
    "model.train_cfg.rpn_proposal.max_per_img": ("MODEL.RPN.POST_NMS_TOP_N_TRAIN", "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN"),
    "model.test_cfg.rpn.nms_pre": ("MODEL.RPN.PRE_NMS_TOP_N_TEST",),
    "model.test_cfg.rpn.max_per_img": ("MODEL.RPN.POST_NMS_TOP_N_TEST", "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"),
    "model.test_cfg.rcnn.score_thr": ("MODEL.ROI_HEADS.SCORE_THRESH",),
    "model.test_cfg.rcnn.nms.iou_threshold": ("MODEL.ROI_HEADS.NMS",),
    "model.test_cfg.rcnn.max_per_img": ("MODEL.ROI_HEADS.DETECTIONS_PER_IMG",),
    "test_pipeline Resize.scale": ("INPUT.MAX_SIZE_TEST", "INPUT.MIN_SIZE_TEST"),
}
_MM_LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_bbox": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_bbox": "loss_box_reg",
}

_JW_KEYS = {
    "TEST.SCALES": ("INPUT.MIN_SIZE_TEST",),
    "TEST.MAX_SIZE": ("INPUT.MAX_SIZE_TEST",),
    "TEST.NMS": ("MODEL.ROI_HEADS.NMS",),
    "TEST.RPN_NMS_THRESH": ("MODEL.RPN.NMS_THRESH",),
    "TEST.RPN_PRE_NMS_TOP_N": ("MODEL.RPN.PRE_NMS_TOP_N_TEST",),
    "TEST.RPN_POST_NMS_TOP_N": ("MODEL.RPN.POST_NMS_TOP_N_TEST",),
    "TRAIN.RPN_BATCHSIZE": ("MODEL.RPN.BATCH_SIZE_PER_IMAGE",),
    "TRAIN.RPN_FG_FRACTION": ("MODEL.RPN.POSITIVE_FRACTION",),
    "TRAIN.RPN_PRE_NMS_TOP_N": ("MODEL.RPN.PRE_NMS_TOP_N_TRAIN",),
    "TRAIN.RPN_POST_NMS_TOP_N": ("MODEL.RPN.POST_NMS_TOP_N_TRAIN",),
    "TRAIN.BATCH_SIZE": ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",),
    "POOLING_MODE": ("MODEL.ROI_BOX_HEAD.POOLER_TYPE",),
    "USE_GPU_NMS": (),
    "CROP_RESIZE_WITH_MAX_POOL": (),
}
_JW_LOSSES = {"rpn_loss_cls": "loss_objectness", "rpn_loss_box": "loss_rpn_box_reg"}


def jw_pooler(mode: str, with_max_pool: bool) -> str:
    """Our POOLER_TYPE of faster-rcnn.pytorch's POOLING_MODE."""
    crop = "ROICropMax" if with_max_pool else "ROICrop"
    return {"align": "ROIAlignLegacy", "pool": "ROIPool", "crop": crop}[mode]


def _jw_settings(spec: dict) -> tuple[str, dict]:
    """The file of our configuration, and what it says besides its overrides: thresholds, and what the shapes of weights tell."""
    net = re.search(r"--net (\w+)", spec["config"])[1]
    shapes = {name: shape for name, shape, *_ in spec["tensors"]}
    scales = shapes["RCNN_rpn.RPN_cls_score.weight"][0] // 6
    options = {
        "MODEL.RPN.ANCHOR_SIZES": [128, 256, 512] if scales == 3 else [64, 128, 256, 512],
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES": shapes["RCNN_cls_score.weight"][0],
        "MODEL.CLS_AGNOSTIC_BBOX_REG": shapes["RCNN_bbox_pred.weight"][0] == 4,
        "MODEL.ROI_HEADS.SCORE_THRESH": spec["thresholds"]["score"],
        "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": spec["thresholds"]["detections_per_image"] or 10**4,
    }
    return f"{net}_voc07.yaml", options


@dataclass(frozen=True)
class Project:
    """How one reference implementation's fixtures are read.

    Args:
        configs: folder of its models below configs/.
        keys: {its configuration key: ours}; others have the same name.
        losses: {its name of a loss: ours}; others have the same name.
        retinanet_losses: the same for RetinaNet.
        first_label: what its first object class is called.
        background_last: logits of the background come last, and deltas and masks have none.
        appends_objects: recorded training proposals lack the ground truth.
        settings: spec to (file of our configuration, further {our key: value}), where the recorded name of the configuration is no file.
    """

    configs: str
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)
    retinanet_losses: dict[str, str] = field(default_factory=dict)
    first_label: int = 1
    background_last: bool = False
    appends_objects: bool = False
    settings: Callable[[dict], tuple[str, dict]] | None = None


PROJECTS = {
    "mm": Project("mmdetection", _MM_KEYS, _MM_LOSSES, first_label=0, background_last=True, appends_objects=True),
    "mb": Project(configs=""),
    "jw": Project("faster_rcnn_pytorch", _JW_KEYS, _JW_LOSSES, settings=_jw_settings),
    "d2": Project("detectron2", _D2_KEYS, _D2_LOSSES, _D2_RETINANET_LOSSES, first_label=0, background_last=True, appends_objects=True),
}


class Fixture:
    """One folder: what the model is, its weights, the recorded arrays."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "spec.json").is_file():
            raise FileNotFoundError(f"{folder}: expected a fixture folder with spec.json, stored.npz and expected.npz")
        self.spec = json.loads((self.folder / "spec.json").read_text())
        if self.spec["short"] not in PROJECTS:
            raise ValueError(f"{folder}: fixtures of {sorted(PROJECTS)} can be checked, got {self.spec['short']!r} ({self.spec['peer']})")
        self.project = PROJECTS[self.spec["short"]]
        with np.load(self.folder / "expected.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, in the project's names: drawn by name, stored, or the same as an earlier tensor."""
        out: dict[str, Tensor] = {}
        with np.load(self.folder / "stored.npz") as stored:
            for name, shape, dtype, kind, value in self.spec["tensors"]:
                if kind == "same":
                    out[name] = out[value]
                    continue
                array = stored[name] if kind == "stored" else _drawn(name, shape, value)
                if list(array.shape) != shape or str(array.dtype) != dtype:
                    raise ValueError(f"{self.folder}: {name} is {array.dtype} {array.shape}, spec.json says {dtype} {shape}")
                out[name] = torch.from_numpy(array)
        return out

    def image(self) -> Image.Image:
        """The photograph, RGB."""
        for root in self.folder.resolve().parents:
            if (root / self.spec["image"]).is_file():
                return Image.open(root / self.spec["image"]).convert("RGB")
        raise FileNotFoundError(f"{self.folder}: its photograph {self.spec['image']} is in no folder above it")

    def noise(self, key: str) -> float:
        """What float32 alone changes in an array; 0 where nothing, or an exchange of two detections, was recorded."""
        value = self.spec.get("noise", {}).get("max_abs", {}).get(key, 0.0)
        return value if isinstance(value, float) and value < 1 else 0.0

    def names(self, prefix: str) -> list[str]:
        """What stands for the star in the recorded arrays ``<prefix>.*.val``, in their order."""
        found = [re.fullmatch(rf"{re.escape(prefix)}\.(.+)\.val", key) for key in self.arrays]
        return [match[1] for match in found if match]

    def polygons(self) -> list[list[list[float]]]:
        """Ground-truth polygons by object, [x0, y0, x1, y1, ...] each."""
        out: list[list[list[float]]] = [[] for _ in self.arrays["gt.labels"]]
        start = 0
        for owner, length in self.arrays["gt.polygons.index"].tolist():
            out[owner].append(self.arrays["gt.polygons.xy"][start : start + length].tolist())
            start += length
        return out

    def options(self) -> list:
        """The recorded overrides in our keys, KEY VALUE."""
        out: list = []
        if self.project.settings:
            out += [word for pair in self.project.settings(self.spec)[1].items() for word in pair]
        for key, value in self.spec["overrides"].items():
            if key == "POOLING_MODE":
                value = jw_pooler(value, self.spec["overrides"].get("CROP_RESIZE_WITH_MAX_POOL", False))
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            keys = self.project.keys.get(key, (key,))
            values = value if isinstance(value, list) and len(value) == len(keys) > 1 else [value] * len(keys)
            out += [word for pair in zip(keys, values) for word in pair]
        return out

    def config_file(self) -> Path:
        """Our file of the fixture's configuration: in the same folder as there, or directly in the project's."""
        if self.project.settings:
            return CONFIGS / self.project.configs / self.project.settings(self.spec)[0]
        folder, name = CONFIGS / self.project.configs, Path(self.spec["config"]).with_suffix(".yaml")
        return folder / name if (folder / name).is_file() else folder / name.name


def _drawn(name: str, shape: list[int], std: float) -> np.ndarray:
    """Normal numbers whose generator is seeded by the tensor's name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std)


@dataclass
class Boxes:
    """Boxes to be paired: xyxy [n, 4], scores [n], labels [n], and what their width adds to x2 - x1."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    pixel: int

    def iou(self, other: Boxes) -> Tensor:
        """Overlap with each of the others, 0 where labels differ. [n, m]"""
        low = torch.maximum(self.boxes[:, None, :2], other.boxes[None, :, :2])
        high = torch.minimum(self.boxes[:, None, 2:], other.boxes[None, :, 2:])
        inter = (high - low + self.pixel).clamp(min=0).prod(-1)
        areas = [(b.boxes[:, 2:] - b.boxes[:, :2] + self.pixel).prod(-1) for b in (self, other)]
        iou = inter / (areas[0][:, None] + areas[1][None] - inter)
        return torch.where(self.labels[:, None] == other.labels[None], iou, 0.0)

    def describe(self, index: int) -> str:
        return f"{[round(v, 2) for v in self.boxes[index].tolist()]} score {self.scores[index]:.5f} label {int(self.labels[index])}"


@dataclass(frozen=True)
class Limits:
    """When two boxes are the same, and when noise decides whether one is there.

    Args:
        box_noise: what float32 alone changes in a box, pixels.
        score: how far the scores of a pair may differ.
        nms, score_thresh: thresholds of the selection.
    """

    box_noise: float
    score: float
    nms: float
    score_thresh: float


@dataclass
class Pairing:
    """Recorded boxes and ours, one to one.

    Args:
        theirs, ours: indices of pairs.
        swapped: in words, boxes without a counterpart that stand so close to a threshold that noise decides.
        lost: in words, the others.
    """

    theirs: list[int]
    ours: list[int]
    swapped: list[str]
    lost: list[str]


def pair(theirs: Boxes, ours: Boxes, limits: Limits, partial: bool = False) -> Pairing:
    """Pair boxes of equal label, the best overlap first, and explain what is left over; with `partial`, of theirs only."""
    left = _match(theirs, ours, limits)
    rest = {"recorded": sorted(set(range(len(theirs.boxes))) - set(left)), "ours": []}
    if not partial:
        rest["ours"] = sorted(set(range(len(ours.boxes))) - set(left.values()))
    sides = {"recorded": (theirs, ours), "ours": (ours, theirs)}
    reasons = {(word, i): _near_threshold(*sides[word], i, limits) for word in sides for i in rest[word]}
    _follow_exchanges(reasons, sides, limits.nms)
    out = Pairing(list(left), list(left.values()), [], [])
    for (word, i), why in reasons.items():
        text = f"{word} {sides[word][0].describe(i)}"
        (out.swapped if why else out.lost).append(f"{text}: {why}" if why else text)
    return out


def _match(theirs: Boxes, ours: Boxes, limits: Limits) -> dict[int, int]:
    """{index of theirs: index of ours}."""
    iou = theirs.iou(ours)
    distance = (theirs.boxes[:, None] - ours.boxes[None]).abs().amax(-1)
    close = ((iou > MIN_IOU) | (distance <= 10 * limits.box_noise)) & (theirs.labels[:, None] == ours.labels[None])
    close &= (theirs.scores[:, None] - ours.scores[None]).abs() <= limits.score
    order = torch.where(close, iou, -1.0).flatten().argsort(descending=True, stable=True)
    left: dict[int, int] = {}
    taken: set[int] = set()
    for index in order[: int(close.sum())].tolist():
        i, j = divmod(index, len(ours.boxes))
        if i not in left and j not in taken:
            left[i] = j
            taken.add(j)
    return left


def _near_threshold(side: Boxes, other: Boxes, index: int, limits: Limits) -> str:
    """Which threshold a box is so close to that noise decides about it; empty for none."""
    score = side.scores[index]
    if abs(score - limits.score_thresh) <= limits.score:
        return "at the score threshold"
    if len(other.scores) and score <= other.scores.min() + limits.score:
        return "at the end of the list"
    for boxes in (side, other):
        iou = side.iou(boxes)[index]
        if ((iou - limits.nms).abs() < 1 - MIN_IOU).any():
            return "at the overlap of suppression"
        # A rival is another box; a moved copy of this one would be an error, not an exchange.
        if ((iou > limits.nms) & (iou < 0.9) & ((boxes.scores - score).abs() <= limits.score)).any():
            return "scores as much as a rival that it overlaps"
    return ""


def _follow_exchanges(reasons: dict[tuple[str, int], str], sides: dict[str, tuple[Boxes, Boxes]], nms: float) -> None:
    """What an exchanged box suppresses on its own side lives on the other."""
    for (word, i), why in list(reasons.items()):
        side, other = sides[word]
        exchanged = [j for (word_of_j, j), known in reasons.items() if word_of_j != word and known]
        if not why and (side.iou(other)[i, exchanged] > nms).any():
            reasons[word, i] = "free of a box that was exchanged"
