"""torchvision's detectors with random weights, and the same as ours: what the tests beside torchvision share."""

from __future__ import annotations

from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_large, resnet50
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn_bench.config import load_config
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.keypoint import PersonKeypoints
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.weights import convert, load_into

LOSSES = {"classification": "loss_retina_cls", "bbox_regression": "loss_retina_reg", "loss_keypoint": "loss_kp"}
# Few proposals, all of which train: (torchvision's argument, our key, value).
EXHAUSTIVE = (
    ("rpn_post_nms_top_n_train", "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", 40),
    ("rpn_post_nms_top_n_test", "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST", 40),
    ("box_detections_per_img", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 20),
    ("rpn_batch_size_per_image", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6),
    ("box_batch_size_per_image", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**6),
    ("box_positive_fraction", "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5),
)


def _frozen_resnet(**options):
    return lambda: _resnet_fpn_extractor(resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0)), 3, **options)


def _frozen_mobilenet():
    return _mobilenet_extractor(mobilenet_v3_large(norm_layer=FrozenBatchNorm2d), True, 3)


# Trunks as those of the released weights; without weights torchvision's functions give them norms that learn.
BACKBONES = {
    "fasterrcnn_resnet50_fpn": _frozen_resnet(),
    "fasterrcnn_resnet50_fpn_v2": None,
    "fasterrcnn_mobilenet_v3_large_fpn": _frozen_mobilenet,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _frozen_mobilenet,
    "maskrcnn_resnet50_fpn": _frozen_resnet(),
    "maskrcnn_resnet50_fpn_v2": None,
    "keypointrcnn_resnet50_fpn": _frozen_resnet(),
    "retinanet_resnet50_fpn": _frozen_resnet(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)),
    "retinanet_resnet50_fpn_v2": None,
}


def photographs(shared_dir, count: int, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """The first photographs of coco_mini, at `size` (width, height) or their own."""
    paths = sorted((shared_dir / "data" / "coco_mini").rglob("*.jpg"))[:count]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    return [picture.resize(size) for picture in pictures] if size else pictures


def as_tensor(picture: Image.Image) -> Tensor:
    """uint8. [3, H, W]"""
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3).permute(2, 0, 1)


def peer_model(name: str, images: list[Tensor], shorter: int, longer: int, settings=EXHAUSTIVE):
    """torchvision's model with weights whose outputs vary as a trained model's do; detections stay in pixels of the resized image."""
    torch.manual_seed(0)
    options = {} if name.startswith("retinanet") else {argument: value for argument, _, value in settings}
    peer = getattr(detection, name)(weights=None, weights_backbone=None, min_size=shorter, max_size=longer, **options)
    if BACKBONES[name]:
        peer.backbone = BACKBONES[name]()
    peer.transform.postprocess = lambda result, *_: result
    # Channels last as ours: convolutions of another memory format round otherwise, by up to 3 % of a gradient.
    padded = peer.transform.batch_images
    peer.transform.batch_images = lambda *args, **kwargs: padded(*args, **kwargs).contiguous(memory_format=torch.channels_last)
    peer.eval()
    with torch.no_grad():
        _calibrate(peer, images)
        _spread(peer, images)
    return peer


def _calibrate(peer, images: list[Tensor]) -> None:
    """Statistics of every norm from what it sees, so that activations keep their size from layer to layer.

    Channels that hardly vary are not blown up, and blocks add little to their input: else rounding grows with every layer.
    """

    def follow(norm, inputs):
        x = inputs[0]
        if len(x):
            norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
            norm.running_var.copy_(torch.maximum(x.var(dim=(0, 2, 3)), 0.3 * norm.running_mean.square()).clamp(min=1e-3))

    norms = {name: m for name, m in peer.named_modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))}
    for name, norm in norms.items():
        if name.endswith("bn3"):
            norm.weight.fill_(0.35)
    hooks = [norm.register_forward_pre_hook(follow) for norm in norms.values()]
    peer([image / 255 for image in images[:4]])
    for hook in hooks:
        hook.remove()


def _spread(peer, images: list[Tensor]) -> None:
    """Scales the last layers by their outputs, so that there are detections of many scores."""
    for last in _last_layers(peer):
        seen = {}
        # What comes first: of several levels the finest.
        hooks = [layer.register_forward_hook(lambda m, _, out, seen=seen: seen.update({m: seen.get(m, out.std())})) for layer in last]
        peer([image / 255 for image in images[:4]])
        for hook in hooks:
            hook.remove()
        for layer, width in last.items():
            layer.weight.mul_(width / seen[layer])


def _last_layers(peer) -> list[dict[nn.Module, float]]:
    """Layers and the widths of their outputs: first those of proposals, on which the others depend."""
    if hasattr(peer, "head"):
        for layer in peer.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        return [{peer.head.classification_head.cls_logits: 1.0, peer.head.regression_head.bbox_reg: 0.2}]
    heads = peer.roi_heads
    out = [{peer.rpn.head.cls_logits: 2.0, peer.rpn.head.bbox_pred: 0.2}]
    out.append({heads.box_predictor.cls_score: 2.0, heads.box_predictor.bbox_pred: 0.5})
    if heads.mask_predictor is not None:
        out.append({heads.mask_predictor.mask_fcn_logits: 2.0})
    if heads.keypoint_predictor is not None:
        out.append({heads.keypoint_predictor.kps_score_lowres: 1.0})
    return out


def our_model(name: str, peer, *overrides, settings=EXHAUSTIVE):
    """The shipped configuration's model with the peer's weights; without weights torchvision trains all of a trunk whose norms learn."""
    options = ["MODEL.DEVICE", "cpu", *(str(word) for _, key, value in settings for word in (key, value)), *overrides]
    options += [] if BACKBONES[name] else ["MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "0"]
    ours = build_detection_model(load_config(f"configs/torchvision/{name}.yaml", options))
    report = load_into(ours, convert(peer.state_dict()), strict=True)
    assert len(report.loaded) == report.total
    return ours.eval()


def objects(count: int, classes: int, size: tuple[int, int], seed: int = 1):
    """torchvision's targets on images of `size` (width, height), and the same as ours."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(size)
    theirs, ours = [], []
    for _ in range(count):
        corner = torch.rand(6, 2, generator=generator) * extent * 0.6
        side = 12 + torch.rand(6, 2, generator=generator) * extent * 0.3
        boxes = torch.cat([corner, corner + side], dim=1)
        labels = torch.randint(1, classes, (6,), generator=generator)
        points = corner[:, None] + side[:, None] * (torch.rand(6, 17, 2, generator=generator) * 1.2 - 0.1)
        keypoints = torch.cat([points, torch.randint(0, 3, (6, 17, 1), generator=generator)], dim=2)
        triangles = [[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in boxes.tolist()]
        masks = SegmentationMask(triangles, size).convert("mask")
        theirs.append({"boxes": boxes, "labels": labels, "keypoints": keypoints, "masks": masks.get_mask_tensor().to(torch.uint8)})
        target = BoxList(boxes, size, pixel=0)
        target.add_field("labels", labels)
        target.add_field("keypoints", PersonKeypoints(keypoints, size))
        target.add_field("masks", masks)
        ours.append(target)
    return theirs, BoxListBatch.pad(ours)


def partners(mine: BoxList, theirs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Index of our detection for each of theirs, and whether there is one: same label, score within 1e-4, corners within .05 pixels."""
    same = (mine.get_field("labels")[None] == theirs["labels"][:, None]) & (
        (mine.get_field("scores")[None] - theirs["scores"][:, None]).abs() < 1e-4
    )
    same &= (mine.bbox[None] - theirs["boxes"][:, None]).abs().amax(dim=-1) < 0.05
    return same.float().argmax(dim=1), same.any(dim=1)
