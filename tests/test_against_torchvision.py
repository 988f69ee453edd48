"""torchvision's RetinaNets and its Keypoint R-CNN beside ours: the same random weights, the same photographs, the same numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import detection, resnet50
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from maskrcnn_bench.config import load_config
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
from maskrcnn_bench.structures.keypoint import PersonKeypoints
from maskrcnn_bench.weights import convert, load_into, to_torchvision

HEIGHT, WIDTH = 128, 160
LOSSES = {"classification": "loss_retina_cls", "bbox_regression": "loss_retina_reg", "loss_keypoint": "loss_kp"}
EXHAUSTIVE = {
    "rpn_post_nms_top_n_train": 200,
    "box_detections_per_img": 20,
    "rpn_batch_size_per_image": 10**6,
    "box_batch_size_per_image": 10**6,
    "box_positive_fraction": 0.5,
}
MODELS = {
    "retinanet_resnet50_fpn": ((2, 3, 4), partial(LastLevelP6P7, 256, 256), {}),
    "retinanet_resnet50_fpn_v2": ((2, 3, 4), partial(LastLevelP6P7, 2048, 256), {}),
    "keypointrcnn_resnet50_fpn": ((1, 2, 3, 4), LastLevelMaxPool, EXHAUSTIVE),
}


def photographs(shared_dir, count):
    paths = sorted((shared_dir / "data" / "coco_mini").rglob("*.jpg"))[:count]
    pictures = [Image.open(path).convert("RGB").resize((WIDTH, HEIGHT)) for path in paths]
    return [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(HEIGHT, WIDTH, 3).permute(2, 0, 1) for p in pictures]


def peer_model(name):
    """torchvision's model with frozen norms, and weights whose outputs vary as a trained model's do."""
    torch.manual_seed(0)
    stages, top, options = MODELS[name]
    peer = getattr(detection, name)(weights=None, weights_backbone=None, min_size=HEIGHT, max_size=WIDTH, **options)
    trunk = resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
    peer.backbone = _resnet_fpn_extractor(trunk, 3, returned_layers=list(stages), extra_blocks=top())
    for module_name, buffer in peer.named_buffers():
        if module_name.endswith("bn3.weight"):
            buffer.fill_(0.35)
    return peer.eval()


@torch.no_grad()
def spread(peer, images):
    """Scales the last layers by their outputs on the finest level, so that there are detections of many scores."""
    retinanet = hasattr(peer, "head")
    if retinanet:
        towers = [m for m in peer.head.modules() if isinstance(m, nn.Conv2d)]
        for layer in towers:
            nn.init.kaiming_normal_(layer.weight)
        last = {peer.head.classification_head.cls_logits: 1.0, peer.head.regression_head.bbox_reg: 0.2}
    else:
        last = {peer.roi_heads.box_predictor.cls_score: 2.0, peer.roi_heads.box_predictor.bbox_pred: 0.5}
        last[peer.roi_heads.keypoint_predictor.kps_score_lowres] = 1.0
    seen = {}
    hooks = [layer.register_forward_hook(lambda m, _, out: seen.update({m: seen.get(m, out.std())})) for layer in last]
    peer([images[0] / 255])
    for hook in hooks:
        hook.remove()
    for layer, width in last.items():
        layer.weight.mul_(width / seen[layer])


def our_model(name, peer):
    options = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000"]
    options += ["MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", "200", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "20"]
    options += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"]
    ours = build_detection_model(load_config(f"configs/torchvision/{name}.yaml", options))
    report = load_into(ours, convert(peer.state_dict()), strict=True)
    assert len(report.loaded) == report.total
    return ours.eval()


def objects(count, classes, seed=1):
    """torchvision's targets, and the same as ours."""
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = [], []
    for _ in range(count):
        corner = torch.rand(6, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.6
        side = 12 + torch.rand(6, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.3
        boxes = torch.cat([corner, corner + side], dim=1)
        labels = torch.randint(1, classes, (6,), generator=generator)
        points = corner[:, None] + side[:, None] * (torch.rand(6, 17, 2, generator=generator) * 1.2 - 0.1)
        keypoints = torch.cat([points, torch.randint(0, 3, (6, 17, 1), generator=generator)], dim=2)
        theirs.append({"boxes": boxes, "labels": labels, "keypoints": keypoints})
        target = BoxList(boxes, (WIDTH, HEIGHT), pixel=0)
        target.add_field("labels", labels)
        target.add_field("keypoints", PersonKeypoints(keypoints, (WIDTH, HEIGHT)))
        ours.append(target)
    return theirs, BoxListBatch.pad(ours)


def partners(mine, theirs):
    """Index of our detection for each of theirs: same label, score within 1e-4, corners within .05 pixels."""
    same = (mine.get_field("labels")[None] == theirs["labels"][:, None]) & (
        (mine.get_field("scores")[None] - theirs["scores"][:, None]).abs() < 1e-4
    )
    same &= (mine.bbox[None] - theirs["boxes"][:, None]).abs().amax(dim=-1) < 0.05
    return same.float().argmax(dim=1), same.any(dim=1)


@pytest.fixture(params=MODELS, scope="module")
def pair(request, shared_dir):
    images = photographs(shared_dir, 2)
    peer = peer_model(request.param)
    spread(peer, images)
    return request.param, our_model(request.param, peer), peer, images


def compare_detections(pair, images):
    name, ours, peer, _ = pair
    for image in images:  # alone, as exchanges of neighbours in score are few then
        with torch.no_grad():
            mine, theirs = ours([image])[0], peer([image / 255])[0]
        assert len(mine) == len(theirs["boxes"]) >= 20
        inds, found = partners(mine, theirs)
        assert found.float().mean() >= 0.98, f"{int((~found).sum())} of {len(found)} have no partner"
        if "keypoint" in name:
            keypoints = mine.get_field("keypoints")
            distance = (keypoints.keypoints[inds] - theirs["keypoints"])[found].abs().amax(dim=-1)
            assert (distance < 0.05).float().mean() >= 0.99  # two cells of a map may be equally large
            torch.testing.assert_close(keypoints.get_field("logits")[inds][found], theirs["keypoints_scores"][found], rtol=1e-3, atol=1e-3)


def test_anchors_are_the_same(pair):
    """The coarsest levels of 160 pixels have 3 and 2 columns, which torchvision puts 53 and 80 pixels apart."""
    _, ours, peer, images = pair
    with torch.no_grad():
        batch = peer.transform([images[0] / 255])[0]
        features = list(peer.backbone(batch.tensors).values())
        theirs = getattr(peer, "rpn", peer).anchor_generator(batch, features)[0]
    torch.testing.assert_close(torch.cat(ours.rpn.anchor_generator(features)), theirs)


def test_detections_are_the_same(pair):
    compare_detections(pair, pair[3])


@pytest.mark.full
def test_detections_on_twenty_photographs_are_the_same(pair, shared_dir):
    compare_detections(pair, photographs(shared_dir, 20))


def test_losses_and_gradients_are_the_same(pair):
    name, ours, peer, images = pair
    theirs, mine = objects(2, 2 if "keypoint" in name else 91)
    ours.train()
    peer.train()
    my_losses, their_losses = ours(images, mine), peer([image / 255 for image in images], theirs)
    for key, value in their_losses.items():
        torch.testing.assert_close(my_losses[LOSSES.get(key, key)], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    sum(my_losses.values()).backward()
    sum(their_losses.values()).backward()
    gradients = {n: p.grad for n, p in peer.named_parameters() if p.grad is not None}
    named = to_torchvision({n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    assert set(named) == set(gradients)
    for key, value in gradients.items():
        difference = (named[key] - value).norm() / max(value.norm(), 1e-4 * torch.stack([g.norm() for g in gradients.values()]).max())
        assert difference < 5e-3, f"{key}: {difference}"
    ours.zero_grad()
    ours.eval()
    peer.eval()
