"""Small models and batches that several tests share."""

from __future__ import annotations

import torch

from maskrcnn_bench.config import load_config
from maskrcnn_bench.config.dialect import get_dialect
from maskrcnn_bench.engine.inference import PREDICTIONS, save_predictions
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.image_list import ImageList, to_image_list
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

NARROW = [
    "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 0, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM", 32, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 5,
    "MODEL.ROI_MASK_HEAD.CONV_LAYERS", (16, 16), "MODEL.RPN.PRE_NMS_TOP_N_TRAIN", 200, "MODEL.RPN.PRE_NMS_TOP_N_TEST", 200,
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", 100, "MODEL.RPN.POST_NMS_TOP_N_TRAIN", 100, "MODEL.RPN.POST_NMS_TOP_N_TEST", 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64, "MODEL.ROI_HEADS.SCORE_THRESH", 0.0,
]  # fmt: skip
FPN_WIDTH = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 16]
C4_WIDTH = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 64]

DC5_WIDTH = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 128]
GN_WIDTH = [*FPN_WIDTH, "MODEL.GROUP_NORM.NUM_GROUPS", 4, "MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM", 16, "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS", 2]
JW_WIDTH = [*C4_WIDTH, "MODEL.RPN.ANCHOR_SIZES", (32, 64), "MODEL.RPN.CONV_CHANNELS", 32]
FBNET_WIDTH = ["MODEL.FBNET.SCALE_FACTOR", 0.25]
RETINANET_WIDTH = [*FPN_WIDTH, "MODEL.RETINANET.NUM_CLASSES", 5, "MODEL.RETINANET.NUM_CONVS", 2, "MODEL.RETINANET.INFERENCE_TH", 0.0]
KEYPOINT_WIDTH = [*FPN_WIDTH, "MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS", (16, 16), "MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", 3]

FAMILIES = {
    "faster_fpn": ("e2e_faster_rcnn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "mask_fpn": ("e2e_mask_rcnn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "faster_c4": ("e2e_faster_rcnn_R_50_C4_1x.yaml", C4_WIDTH),
    "mask_c4": ("e2e_mask_rcnn_R_50_C4_1x.yaml", C4_WIDTH),
    "rpn_fpn": ("rpn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "retinanet": ("retinanet/retinanet_R-50-FPN_1x.yaml", RETINANET_WIDTH),
    "d2_retinanet": ("detectron2/retinanet_R_50_FPN_1x.yaml", RETINANET_WIDTH),
    "keypoint_fpn": ("e2e_keypoint_rcnn_R_50_FPN_1x.yaml", KEYPOINT_WIDTH),
    "d2_keypoint_fpn": ("detectron2/keypoint_rcnn_R_50_FPN_1x.yaml", KEYPOINT_WIDTH),
    "d2_mask_fpn": ("detectron2/mask_rcnn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "d2_fast_fpn": ("detectron2/fast_rcnn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "d2_mask_c4": ("detectron2/mask_rcnn_R_50_C4_1x.yaml", C4_WIDTH),
    "tv_mask_v2": ("torchvision/maskrcnn_resnet50_fpn_v2.yaml", [*FPN_WIDTH, "MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM", 16]),
    "tv_mobilenet": ("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn.yaml", ["MODEL.RESNETS.BACKBONE_OUT_CHANNELS", 16]),
    "mm_mask_fpn": ("mmdetection/mask-rcnn_r50_fpn_1x_coco.yaml", FPN_WIDTH),
    "mm_faster_giou": ("mmdetection/faster-rcnn_r50_fpn_giou_1x_coco.yaml", FPN_WIDTH),
    "mm_faster_dc5": ("mmdetection/faster-rcnn_r50-caffe-dc5_1x_coco.yaml", DC5_WIDTH),
    "mm_retinanet": ("mmdetection/retinanet_r50_fpn_1x_coco.yaml", RETINANET_WIDTH),
    "mm_cascade_mask_fpn": ("mmdetection/cascade-mask-rcnn_r50_fpn_1x_coco.yaml", FPN_WIDTH),
    "d2_mask_agnostic": ("detectron2/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml", FPN_WIDTH),
    "d2_cascade_mask_fpn": ("detectron2/cascade_mask_rcnn_R_50_FPN_1x.yaml", FPN_WIDTH),
    "jw_vgg": ("faster_rcnn_pytorch/vgg16_voc07.yaml", JW_WIDTH),
    "jw_r50": ("faster_rcnn_pytorch/res50_voc07.yaml", JW_WIDTH),
    "mask_gn": ("gn_baselines/scratch_e2e_mask_rcnn_R_50_FPN_Xconv1fc_3x_gn.yaml", GN_WIDTH),
    "faster_dcn": ("dcn/e2e_faster_rcnn_dconv_R_50_FPN_1x.yaml", FPN_WIDTH),
    "mask_dcn2": ("dcn/e2e_mask_rcnn_mdconv_R_50_FPN_1x.yaml", FPN_WIDTH),
    "mask_fbnet": ("e2e_mask_rcnn_fbnet_xirb16d_dsmask.yaml", FBNET_WIDTH),
}


def narrow_config(family: str, *overrides):
    """The configuration of a family, narrow enough to run in a moment."""
    path, width = FAMILIES[family]
    return load_config("configs/" + path, [*map(str, [*NARROW, *width, *overrides])])


def narrow_model(family: str, *overrides, seed: int = 0):
    torch.manual_seed(seed)
    return build_detection_model(narrow_config(family, *overrides))


def scene_of(family: str, **options):
    """`scene` with the boxes and masks that a family learns from, and proposals where it is given some."""
    model = narrow_config(family).MODEL
    rules = get_dialect(model.DIALECT)
    masks = "mask" if rules.mask_target in ("half_covered", "soft_cover") else "poly"
    images, targets = scene(pixel=rules.pixel, masks=masks, **options)
    if model.LOAD_PROPOSALS:
        images.proposals = given_proposals(images, rules.pixel, options.get("seed", 0))
    return images, targets


def given_proposals(images: ImageList, pixel: int, seed: int = 0) -> BoxListBatch:
    """Random boxes, best first: 40 on the first image, 33 on the second, ..."""
    generator = torch.Generator().manual_seed(seed)
    given = []
    for n, (height, width) in enumerate(images.image_sizes):
        corner = torch.rand(40 - 7 * n, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 4 + torch.rand(len(corner), 2, generator=generator) * torch.tensor([width, height]) * 0.35
        given.append(BoxList(torch.cat([corner, corner + side], dim=1), (width, height), pixel=pixel))
        given[-1].add_field("objectness", torch.linspace(1, 0, len(corner)))
    return BoxListBatch.pad(given, slots=50)


def scene(sizes=((96, 128), (112, 96)), counts=(3, 2), seed: int = 0, pixel: int = 1, divisible: int = 32, masks: str = "poly"):
    """Random images with random objects: (ImageList uint8 with keys, BoxListBatch). `sizes` are (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for (height, width), count in zip(sizes, counts, strict=True):
        images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.5
        side = 10 + torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.35
        boxes = torch.cat([corner, corner + side], dim=1).reshape(-1, 4)
        target = BoxList(boxes, (width, height), pixel=pixel)
        target.add_field("labels", torch.randint(1, 5, (count,), generator=generator))
        target.add_field(
            "masks",
            SegmentationMask([[[x1, y1, x2, y1, x2, y2, x1, (y1 + y2) / 2]] for x1, y1, x2, y2 in boxes.tolist()], (width, height)).convert(
                masks
            ),
        )
        points = corner[:, None] + side[:, None] * torch.rand(count, 3, 2, generator=generator)
        visible = torch.randint(0, 3, (count, 3, 1), generator=generator).float()
        target.add_field("keypoints", Keypoints(torch.cat([points, visible], dim=2), (width, height)))
        targets.append(target)
    batch = to_image_list(images, divisible)
    keys = torch.arange(len(images), dtype=torch.int64) * 977 + 13
    return ImageList(batch.tensors, batch.image_sizes, keys), BoxListBatch.pad(targets)


def objects_as_proposals(dataset, folder) -> str:
    """Writes a predictions.pth whose proposals are the objects, the first one the best, in another order; answers its path."""
    places = range(len(dataset) - 1, -1, -1)
    found = [dataset.get_groundtruth(i).copy_with_fields([]) for i in places]
    for boxes in found:
        boxes.add_field("objectness", torch.linspace(1, 0.5, len(boxes)))
    save_predictions([*found, None], str(folder), [*(dataset.get_img_info(i)["id"] for i in places), 0])
    return f"{folder}/{PREDICTIONS}"
