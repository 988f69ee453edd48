"""Reading a parity fixture: what it is, its weights, its arrays."""

from __future__ import annotations

import difflib
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

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
    "MODEL.PIXEL_MEAN": ("INPUT.PIXEL_MEAN",),
    "MODEL.PIXEL_STD": ("INPUT.PIXEL_STD",),
    "MODEL.BACKBONE.FREEZE_AT": ("MODEL.BACKBONE.FREEZE_CONV_BODY_AT",),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ("MODEL.RESNETS.STAGE_WITH_DCN",),
    "MODEL.RESNETS.DEFORM_MODULATED": ("MODEL.RESNETS.WITH_MODULATED_DCN",),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": ("MODEL.RESNETS.DEFORMABLE_GROUPS",),
    "MODEL.FPN.OUT_CHANNELS": ("MODEL.RESNETS.BACKBONE_OUT_CHANNELS",),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": ("MODEL.RPN.MIN_SIZE",),
    "MODEL.RPN.IOU_THRESHOLDS": ("MODEL.RPN.BG_IOU_THRESHOLD", "MODEL.RPN.FG_IOU_THRESHOLD"),
    "MODEL.RPN.BOUNDARY_THRESH": ("MODEL.RPN.STRADDLE_THRESH",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("MODEL.RPN.BOX_REG_LOSS",),
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": ("MODEL.RPN.BOX_REG_LOSS_WEIGHT",),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": ("MODEL.ROI_HEADS.BG_IOU_THRESHOLD", "MODEL.ROI_HEADS.FG_IOU_THRESHOLD"),
    "MODEL.ROI_HEADS.NUM_CLASSES": ("MODEL.ROI_BOX_HEAD.NUM_CLASSES",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("MODEL.ROI_BOX_HEAD.BOX_REG_LOSS",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": ("MODEL.ROI_BOX_HEAD.BOX_REG_LOSS_WEIGHT",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ("MODEL.ROI_HEADS.BBOX_REG_WEIGHTS",),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": ("MODEL.CLS_AGNOSTIC_BBOX_REG",),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM",),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": ("MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM",),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": ("MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS",),
    "MODEL.RETINANET.IOU_THRESHOLDS": ("MODEL.RETINANET.BG_IOU_THRESHOLD", "MODEL.RETINANET.FG_IOU_THRESHOLD"),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ("MODEL.RETINANET.BOX_REG_LOSS",),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ("MODEL.RETINANET.LOSS_ALPHA",),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ("MODEL.RETINANET.LOSS_GAMMA",),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": ("MODEL.RETINANET.BBOX_REG_BETA",),
}
_D2_FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "Misc", "PascalVOC-Detection", "Cityscapes")


def _d2_value(key: str, value: Any) -> Any:
    """What our key gets for theirs."""
    if key in ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"):
        return value + 1  # counted without the background there
    if key in ("MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"):
        return {"SyncBN": "BN"}.get(value, value)  # one process has nobody to share statistics with
    if key.endswith(".POOLER_TYPE"):
        return {"ROIAlign": "ROIAlignV1"}.get(value, value)  # by its name there, by the dialect here
    return value


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
    "model.train_cfg.rpn_proposal.nms.iou_threshold": ("MODEL.RPN.NMS_THRESH",),
    "model.test_cfg.rpn.nms.iou_threshold": ("MODEL.RPN.NMS_THRESH",),
    "model.train_cfg.rpn_proposal.min_bbox_size": ("MODEL.RPN.MIN_SIZE",),
    "model.test_cfg.rpn.min_bbox_size": ("MODEL.RPN.MIN_SIZE",),
    "model.test_cfg.rpn.nms_pre": ("MODEL.RPN.PRE_NMS_TOP_N_TEST",),
    "model.test_cfg.rpn.max_per_img": ("MODEL.RPN.POST_NMS_TOP_N_TEST", "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST"),
    "model.test_cfg.rcnn.score_thr": ("MODEL.ROI_HEADS.SCORE_THRESH",),
    "model.test_cfg.rcnn.nms.iou_threshold": ("MODEL.ROI_HEADS.NMS",),
    "model.test_cfg.rcnn.max_per_img": ("MODEL.ROI_HEADS.DETECTIONS_PER_IMG",),
    "model.test_cfg.nms_pre": ("MODEL.RETINANET.PRE_NMS_TOP_N",),
    "model.test_cfg.score_thr": ("MODEL.RETINANET.INFERENCE_TH",),
    "model.test_cfg.nms.iou_threshold": ("MODEL.RETINANET.NMS_TH",),
    "model.test_cfg.max_per_img": ("TEST.DETECTIONS_PER_IMG",),
    "test_pipeline Resize.scale": ("INPUT.MAX_SIZE_TEST", "INPUT.MIN_SIZE_TEST"),
}
_MM_FOLDERS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet")


def _mm_value(key: str, value: Any) -> Any:
    """What our key gets for theirs."""
    # The longer side is the larger number there, wherever it stands.
    return sorted(value, reverse=True) if key == "test_pipeline Resize.scale" and isinstance(value, list) else value


_MM_LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_bbox": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_bbox": "loss_box_reg",
}
_MM_LOSSES |= {
    f"s{stage}.{theirs}": f"{ours}_stage{stage}"
    for stage in range(3)
    for theirs, ours in (("loss_cls", "loss_classifier"), ("loss_bbox", "loss_box_reg"), ("loss_mask", "loss_mask"))
}
_MM_RETINANET_LOSSES = {"loss_cls": "loss_retina_cls", "loss_bbox": "loss_retina_reg"}

_JW_KEYS = {
    "ANCHOR_SCALES": (),  # _jw_settings
    "ANCHOR_RATIOS": ("MODEL.RPN.ASPECT_RATIOS",),
    "POOLING_SIZE": ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",),
    "MAX_NUM_GT_BOXES": (),
    "EXP_DIR": (),
    "CUDA": (),
    "TEST.SCALES": ("INPUT.MIN_SIZE_TEST",),
    "TEST.MAX_SIZE": ("INPUT.MAX_SIZE_TEST",),
    "TEST.NMS": ("MODEL.ROI_HEADS.NMS",),
    "TEST.RPN_NMS_THRESH": ("MODEL.RPN.NMS_THRESH",),
    "TEST.RPN_MIN_SIZE": (),  # read, but no proposal is dropped for it
    "TRAIN.RPN_MIN_SIZE": (),
    "TEST.RPN_PRE_NMS_TOP_N": ("MODEL.RPN.PRE_NMS_TOP_N_TEST",),
    "TEST.RPN_POST_NMS_TOP_N": ("MODEL.RPN.POST_NMS_TOP_N_TEST",),
    "TRAIN.RPN_NMS_THRESH": (),  # nothing recorded depends on training proposals
    "TRAIN.RPN_POSITIVE_OVERLAP": ("MODEL.RPN.FG_IOU_THRESHOLD",),
    "TRAIN.RPN_NEGATIVE_OVERLAP": ("MODEL.RPN.BG_IOU_THRESHOLD",),
    "TRAIN.RPN_BATCHSIZE": ("MODEL.RPN.BATCH_SIZE_PER_IMAGE",),
    "TRAIN.RPN_FG_FRACTION": ("MODEL.RPN.POSITIVE_FRACTION",),
    "TRAIN.RPN_PRE_NMS_TOP_N": ("MODEL.RPN.PRE_NMS_TOP_N_TRAIN",),
    "TRAIN.RPN_POST_NMS_TOP_N": ("MODEL.RPN.POST_NMS_TOP_N_TRAIN",),
    "TRAIN.BATCH_SIZE": ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",),
    "TRAIN.FG_FRACTION": ("MODEL.ROI_HEADS.POSITIVE_FRACTION",),
    "TRAIN.FG_THRESH": ("MODEL.ROI_HEADS.FG_IOU_THRESHOLD",),
    "TRAIN.BG_THRESH_HI": ("MODEL.ROI_HEADS.BG_IOU_THRESHOLD",),
    "POOLING_MODE": (),  # _jw_settings
    "USE_GPU_NMS": (),
    "CROP_RESIZE_WITH_MAX_POOL": (),
}
_JW_LOSSES = {"rpn_loss_cls": "loss_objectness", "rpn_loss_box": "loss_rpn_box_reg"}


_JW_ALIGNED = ("vgg16", "res101", "res101_ls")  # of its cfgs/; the others leave POOLING_MODE crop, with maxima


def _jw_pooler(file: str, overrides: dict) -> str:
    """Our POOLER_TYPE of what a file of cfgs/ and the overrides say."""
    mode = overrides.get("POOLING_MODE", "align" if file in _JW_ALIGNED else "crop")
    crop = "ROICropMax" if overrides.get("CROP_RESIZE_WITH_MAX_POOL", file not in _JW_ALIGNED) else "ROICrop"
    return {"align": "ROIAlignLegacy", "pool": "ROIPool", "crop": crop}[mode]


def _jw_net(config: str) -> tuple[str, str]:
    """The network, and the file of cfgs/: each is the other's where only one is said."""
    net, file = re.search(r"--net (\w+)", config), re.match(r"(?:cfgs/)?(\w+)\.yml", config)
    if not net and not file:
        raise ValueError(f'config: expected "cfgs/FILE.yml" or "--net NET" in it, got {config!r}')
    return net[1] if net else file[1].removesuffix("_ls"), file[1] if file else net[1]


def _jw_settings(spec: dict) -> tuple[str, dict]:
    """The file of our configuration, and what it says besides its overrides: thresholds, and what the shapes of weights tell."""
    net, file = _jw_net(spec["config"])
    thresholds, overrides = spec["thresholds"], spec["overrides"]
    shapes = {name: shape for name, shape, *_ in spec["tensors"]}
    kinds = shapes["RCNN_rpn.RPN_cls_score.weight"][0] // 2
    sizes = [16 * scale for scale in overrides["ANCHOR_SCALES"]] if "ANCHOR_SCALES" in overrides else [64, 128, 256, 512][-(kinds // 3) :]
    options = {
        "MODEL.RPN.ANCHOR_SIZES": sizes,
        "MODEL.ROI_BOX_HEAD.NUM_CLASSES": shapes["RCNN_cls_score.weight"][0],
        "MODEL.CLS_AGNOSTIC_BBOX_REG": shapes["RCNN_bbox_pred.weight"][0] == 4,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _jw_pooler(file, overrides),
        "MODEL.ROI_HEADS.SCORE_THRESH": thresholds["score"],
        "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": thresholds["detections_per_image"] or 10**4,
        "MODEL.RPN.POST_NMS_TOP_N_TEST": thresholds["rpn_post_nms_test"],
        "INPUT.MAX_SIZE_TEST": 1200 if file.endswith("_ls") else 1000,
    }
    return f"{net}_voc07.yaml", options


def _same_value(key: str, value: Any) -> Any:
    return value


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
        value: (its key, its value) to the value of our keys.
        one_here: pairs of its keys that are one key of ours.
        folders: below its configs, those whose files are told apart by their names alone.
        settings: spec to (file of our configuration, further {our key: value}), where the recorded name of the configuration is no file.
    """

    configs: str
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)
    retinanet_losses: dict[str, str] = field(default_factory=dict)
    first_label: int = 1
    background_last: bool = False
    appends_objects: bool = False
    value: Callable[[str, Any], Any] = _same_value
    one_here: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()
    settings: Callable[[dict], tuple[str, dict]] | None = None


PROJECTS = {
    "mm": Project(
        "mmdetection",
        *(_MM_KEYS, _MM_LOSSES, _MM_RETINANET_LOSSES),
        first_label=0,
        background_last=True,
        appends_objects=True,
        value=_mm_value,
        one_here=(
            ("model.train_cfg.rpn_proposal.nms.iou_threshold", "model.test_cfg.rpn.nms.iou_threshold"),
            ("model.train_cfg.rpn_proposal.min_bbox_size", "model.test_cfg.rpn.min_bbox_size"),
        ),
        folders=_MM_FOLDERS,
    ),
    "mb": Project(configs=""),
    "jw": Project("faster_rcnn_pytorch", _JW_KEYS, _JW_LOSSES, settings=_jw_settings),
    "d2": Project(
        "detectron2",
        *(_D2_KEYS, _D2_LOSSES, _D2_RETINANET_LOSSES),
        first_label=0,
        background_last=True,
        appends_objects=True,
        value=_d2_value,
        folders=_D2_FOLDERS,
    ),
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
        try:
            with np.load(self.folder / "expected.npz") as arrays:
                self.arrays = {key: arrays[key] for key in arrays.files}
        except (BadZipFile, EOFError) as error:
            raise ValueError(f"{folder}: expected.npz is damaged ({error}); copy it again") from None

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
        settings = self.project.settings(self.spec)[1] if self.project.settings else {}
        return [word for pair in (settings | self.overrides()).items() for word in pair]

    def overrides(self) -> dict[str, Any]:
        """{our key: value} of {their key: value}.

        Raises:
            ValueError: two of their keys are one of ours and have different values.
        """
        theirs: dict[str, Any] = self.spec["overrides"]
        for pair in self.project.one_here:
            if len({json.dumps(theirs.get(key, "the default")) for key in pair}) > 1:
                raise ValueError(f"{self.folder}: {' and '.join(pair)} are one key here; expected overrides of both, to one value")
        out: dict[str, Any] = {}
        for key, value in theirs.items():
            for ours, said in self.translated(_stageless(key), value):
                if out.setdefault(ours, said) != said:
                    raise ValueError(f"{self.folder}: {key} says {said} for {ours}, another override {out[ours]}; expected one value")
        return out

    def translated(self, key: str, value: Any) -> list[tuple[str, Any]]:
        """(our key, value) of one override."""
        # Keys of the same name have the same type here; those with other names may take one number for a list of one.
        value = value[0] if key in self.project.keys and isinstance(value, list) and len(value) == 1 else value
        value = self.project.value(key, value)
        keys = self.project.keys.get(key, (key,))
        values = value if isinstance(value, list) and len(value) == len(keys) > 1 else [value] * len(keys)
        return list(zip(keys, values))

    def config_file(self) -> Path:
        """Our file of the fixture's configuration: in the same folder as there, or directly in the project's.

        Where that has no file of this name, one that differs in the schedule alone serves as well: nothing compared depends on it.
        """
        if self.project.settings:
            return CONFIGS / self.project.configs / self.project.settings(self.spec)[0]
        folder, name = CONFIGS / self.project.configs, Path(self.spec["config"]).with_suffix(".yaml")
        if (folder / name).is_file():
            return folder / name
        if name.parent.name not in ("", *self.project.folders):
            raise ValueError(f"{self.folder}: {name} is not in {folder}, and files of {name.parent} are no others' namesakes; add the file")
        known = sorted(path.name for path in folder.glob("*.yaml"))
        found = name.name if name.name in known else next((k for k in known if _unscheduled(k) == _unscheduled(name.name)), None)
        if found is None:
            near = ", ".join(difflib.get_close_matches(name.name, known, 3, 0)) or "none at all"
            raise ValueError(f"{self.folder}: expected {name.name} or another schedule of it in {folder}, which has {near}; add the file")
        return folder / found


def _unscheduled(name: str) -> str:
    """A configuration's name without the length of its training, and one of its projects' data set."""
    return re.sub(r"_(ms-)?\d+[xk](?=[_.])", "", name)


def _stageless(key: str) -> str:
    """A key without the number of a cascade's stage, `rcnn.0.`, `rcnn[0]`, `rcnn[*]`: all are sampled alike."""
    return re.sub(r"\[[^\]]*\]|\.(\d+|\*)(?=\.)", "", key)


def _drawn(name: str, shape: list[int], std: float) -> np.ndarray:
    """Normal numbers whose generator is seeded by the tensor's name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std)
