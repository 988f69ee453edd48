"""Checkpoints of torchvision: its R-CNNs and RetinaNets, and ResNet, ResNeXt and MobileNetV3 classifiers.

Class order, deltas and masks are laid out as here. Older files call the same layers without the inner ``.0``.
"""

from __future__ import annotations

from torch import Tensor

from .anchor_order import anchor_grid, in_order
from .names import Naming, to_theirs

_INPUT = "RGB, 0..1, minus (0.485, 0.456, 0.406) over (0.229, 0.224, 0.225); stride in the 3x3 convolution"


def _trunk(theirs: str) -> list[tuple[str, str]]:
    """torchvision's ResNet lacks only our name for the stem."""
    return [
        (f"{theirs}conv1.weight", "backbone.body.stem.conv1.weight"),
        (f"{theirs}bn1.*", "backbone.body.stem.bn1.*"),
        (f"{theirs}layer#.#.**", "backbone.body.layer#.#.**"),
    ]


def _pyramid(first: int = 1, norms: bool = False) -> list[tuple[str, str]]:
    """The pyramid's levels, the finest of which we call `first`, and whether norms follow the convolutions."""
    pairs = []
    for level in range(5 - first):
        for theirs, ours in (("inner_blocks", "fpn_inner"), ("layer_blocks", "fpn_layer")):
            theirs, ours = f"backbone.fpn.{theirs}.{level}", f"backbone.fpn.{ours}{level + first}"
            pairs += [(f"{theirs}.#.*", f"{ours}.#.*")] if norms else [(f"{theirs}.0.*", f"{ours}.*"), (f"{theirs}.*", f"{ours}.*")]
    return pairs


def _retinanet_heads(layers: int) -> list[tuple[str, str]]:
    """Our towers are flat; a convolution, its norm where it has one, and ReLU are `layers` of them. Older files are flat too."""
    pairs = []
    for theirs, ours in (("classification_head", "cls_tower"), ("regression_head", "bbox_tower")):
        for n in range(4):
            pairs += [(f"head.{theirs}.conv.{n}.{i}.*", f"rpn.head.{ours}.{layers * n + i}.*") for i in range(layers - 1)]
        pairs.append((f"head.{theirs}.conv.#.*", f"rpn.head.{ours}.#.*"))
    pairs.append(("backbone.fpn.extra_blocks.p#.*", "backbone.fpn.top_blocks.p#.*"))
    last = [("head.classification_head.cls_logits.*", "rpn.head.cls_logits.*"), ("head.regression_head.bbox_reg.*", "rpn.head.bbox_pred.*")]
    return pairs + last


_HEADS = [
    ("rpn.head.conv.0.0.*", "rpn.head.conv.*"),
    ("rpn.head.conv.1.0.*", "rpn.head.conv2.*"),
    ("rpn.head.conv.*", "rpn.head.conv.*"),
    ("rpn.head.cls_logits.*", "rpn.head.cls_logits.*"),
    ("rpn.head.bbox_pred.*", "rpn.head.bbox_pred.*"),
    ("roi_heads.box_head.fc#.*", "roi_heads.box.feature_extractor.fc#.*"),
    ("roi_heads.box_predictor.*.*", "roi_heads.box.predictor.*.*"),
    ("roi_heads.mask_head.mask_fcn#.*", "roi_heads.mask.feature_extractor.mask_fcn#.*"),
    ("roi_heads.mask_predictor.*.*", "roi_heads.mask.predictor.*.*"),
    ("roi_heads.keypoint_predictor.kps_score_lowres.*", "roi_heads.keypoint.predictor.kps_score_lowres.*"),
]
# The heads are Sequentials: masks have a block for each convolution, keypoints a ReLU after each. Files are written with these names.
_ROWS = [(f"roi_heads.mask_head.{n}.0.*", f"roi_heads.mask.feature_extractor.mask_fcn{n + 1}.*") for n in range(4)]
_ROWS += [(f"roi_heads.keypoint_head.{2 * n}.*", f"roi_heads.keypoint.feature_extractor.conv_fcn{n + 1}.*") for n in range(8)]
# Of the second versions: convolution and norm in a block; our box head is flat, with convolution, norm and ReLU in a row.
_NORMED_ROWS = [(f"roi_heads.mask_head.{n}.#.*", f"roi_heads.mask.feature_extractor.mask_fcn{n + 1}.#.*") for n in range(4)]
_NORMED_ROWS += [
    (f"roi_heads.box_head.{n}.{i}.*", f"roi_heads.box.feature_extractor.xconvs.{3 * n + i}.*") for n in range(4) for i in range(2)
]
_NORMED_ROWS.append(("roi_heads.box_head.5.*", "roi_heads.box.feature_extractor.fc6.*"))
_MOBILENET = ("backbone.body.#.**", "backbone.body.features.#.**")

DETECTION_V2 = Naming(
    kind="torchvision (FPN with batch norm)",
    marks=("roi_heads.box_head.0.1.weight",),
    names=tuple(_trunk("backbone.body.") + _pyramid(norms=True) + _NORMED_ROWS + _HEADS),
    expects=_INPUT,
)
DETECTION = Naming(
    kind="torchvision (FPN)",
    marks=("backbone.fpn.inner_blocks.**",),
    names=(*_trunk("backbone.body."), _MOBILENET, *_pyramid(), *_ROWS, *_HEADS),
    expects=_INPUT,
)
RETINANET = Naming(
    kind="torchvision (RetinaNet)",
    marks=("head.classification_head.conv.0.0.bias", "head.classification_head.conv.0.weight"),
    names=tuple(_trunk("backbone.body.") + _pyramid(2) + _retinanet_heads(2)),
    expects=_INPUT,
)
RETINANET_GN = Naming(
    kind="torchvision (RetinaNet with group norm)",
    marks=("head.classification_head.conv.0.1.weight",),
    names=tuple(_trunk("backbone.body.") + _pyramid(2) + _retinanet_heads(3)),
    expects=_INPUT,
)
CLASSIFICATION = Naming(
    kind="ImageNet (torchvision)",
    marks=("layer1.0.conv1.weight",),
    names=tuple(_trunk("")),
    dropped=(("fc.*", "ImageNet classifier"),),
    backbone_only=True,
    expects=_INPUT,
)
MOBILENET_CLASSIFICATION = Naming(
    kind="ImageNet (torchvision's MobileNetV3)",
    marks=("features.1.block.0.0.weight",),
    names=(("features.#.**", "backbone.body.features.#.**"),),
    dropped=(("classifier.**", "ImageNet classifier"),),
    backbone_only=True,
    expects=_INPUT,
)


def to_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One of our models in torchvision's names and order of anchors, as its `load_state_dict` reads them.

    Args:
        state: ``model.state_dict()`` of an FPN model with a ResNet or MobileNetV3 trunk. Its anchors tell in which order they are
            counted; without them it is taken to be torchvision's.
    Raises:
        ValueError: a tensor has no counterpart there, or it has no such model.
    """
    if not any(name.startswith("backbone.fpn.") for name in state):
        raise ValueError("torchvision: expected a model with a feature pyramid, backbone.fpn; it has no others")
    deformable = [name for name in state if ".conv2.offset." in name]
    if deformable:
        raise ValueError(f"torchvision: expected plain convolutions; it has no model with deformable ones ({deformable[0]}, ...)")
    naming = DETECTION_V2 if "backbone.fpn.fpn_inner1.1.running_mean" in state else DETECTION
    if "rpn.head.cls_tower.0.weight" in state:
        naming = RETINANET_GN if "rpn.head.cls_tower.1.weight" in state else RETINANET
    state = in_order(state, anchor_grid(state), naming.anchor_order)
    # Anchors and the average of a loss are no weights there.
    kept = {name: value for name, value in state.items() if ".cell_anchors" not in name and not name.startswith("rpn.normalizer.")}
    return to_theirs(naming, kept)
