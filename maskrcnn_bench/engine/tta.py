"""Test-time augmentation: one answer from several sizes of an image, mirrored and not.

As in maskrcnn-benchmark the boxes of all passes are candidates together: they move to the first pass's image, and there one
suppression chooses. Masks and keypoints' heat maps are computed for the chosen boxes in every pass and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskrcnn_bench.structures.bounding_box import BoxListBatch, Detections, fill_unused
from maskrcnn_bench.structures.image_list import ImageList, ImageVersions

MAPS = {"mask": "mask", "keypoint": "heat_maps"}  # the field that each further head answers


class Pass(NamedTuple):
    """One look at the images.

    Attributes:
        version: which of the sizes.
        mirrored: left and right exchanged.
    """

    version: int
    mirrored: bool


def make_passes(num_scales: int, mirror: bool, mirror_scales: bool) -> list[Pass]:
    """The passes: the usual size first, then `num_scales` others, and the mirrored ones that are asked for."""
    passes = [Pass(0, False)] + [Pass(0, True)] * mirror
    for version in range(1, num_scales + 1):
        passes += [Pass(version, False)] + [Pass(version, True)] * mirror_scales
    return passes


class TestTimeAugmentation(nn.Module):
    """A detector that looks several times; called like the detector it wraps, in evaluation only.

    Args:
        model: a detector with a box head.
        passes: what to look at; the first gives the frame of the detections.
    Raises:
        ValueError: when the model has no box head.
    """

    __test__ = False  # the name is no test's

    def __init__(self, model: nn.Module, passes: Sequence[Pass]):
        super().__init__()
        box = getattr(getattr(model, "roi_heads", None), "box", None)
        if not hasattr(box, "candidates"):
            raise ValueError("TEST.BBOX_AUG needs a model with a box head (no RPN_ONLY, no RETINANET_ON); set TEST.BBOX_AUG.ENABLED False")
        self.model = model
        self.passes = list(passes)
        self.train(model.training)

    def forward(self, images: ImageVersions | ImageList) -> Detections:
        """Detections in pixels of the first version of the images."""
        versions = images.versions if isinstance(images, ImageVersions) else [images]
        sizes = versions[0].sizes
        found = [self._candidates(versions[p.version], p.mirrored, sizes) for p in self.passes]
        boxes, scores = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
        detections = self.model.roi_heads.box.selector.select(boxes, scores, sizes)
        seen = [self._maps(versions[p.version], p.mirrored, detections) for p in self.passes] if self.model.roi_heads.further else []
        for name in self.model.roi_heads.further:
            detections.add_field(MAPS[name], torch.stack([maps.get_field(MAPS[name]) for maps in seen]).mean(dim=0))
        if seen:
            detections.at_handover = seen[0].at_handover
        return detections

    def _features(self, images: ImageList, mirrored: bool) -> tuple[ImageList, list[Tensor]]:
        images = mirror_images(images) if mirrored else images
        return images, self.model.backbone(self.model.normalizer(images))

    def _candidates(self, images: ImageList, mirrored: bool, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, K - 1, P, 4] in the frame of `sizes`, and their scores [N, K - 1, P]."""
        images, features = self._features(images, mirrored)
        proposals, _ = self.model.rpn(images, features)
        boxes, scores = self.model.roi_heads.box.candidates(features, proposals)
        if mirrored:
            boxes = mirror_boxes(boxes, images.sizes, proposals.pixel)
        return rescale_boxes(boxes, images.sizes, sizes), scores

    def _maps(self, images: ImageList, mirrored: bool, detections: Detections) -> Detections:
        """The detections as this pass sees them, with masks and heat maps turned back."""
        # The features are computed again: kept, those of all passes would need many times the memory of a test without passes.
        images, features = self._features(images, mirrored)
        boxes = rescale_boxes(detections.boxes, detections.sizes, images.sizes)
        if mirrored:
            boxes = mirror_boxes(boxes, images.sizes, detections.pixel)
        # By the inclusive rule a box less than a pixel wide has x2 < x1, and enlarged it would have a negative width.
        low, high = boxes[..., :2], boxes[..., 2:]
        boxes = torch.cat([low, torch.where(high - low + detections.pixel < 0, low, high)], dim=-1)
        seen = Detections(fill_unused(boxes, detections.valid), detections.valid, images.sizes, detections.fields, pixel=detections.pixel)
        for name in self.model.roi_heads.further:
            head = getattr(self.model.roi_heads, name)
            seen = head(features, seen)
            if mirrored:
                places = head.kind.flip_inds() if name == "keypoint" else [0]
                seen.add_field(MAPS[name], mirror_maps(seen.get_field(MAPS[name]), places))
        return seen


def mirror_images(images: ImageList) -> ImageList:
    """The images, and the proposals given with them, with left and right exchanged; padding stays on the right."""
    x = torch.arange(images.tensors.shape[3], device=images.tensors.device)
    width = images.sizes[:, :1].long()
    source = torch.where(x < width, width - 1 - x, x)  # [N, W]
    tensors = images.tensors.gather(3, source[:, None, None].expand_as(images.tensors))
    mirrored = ImageList(tensors, images.image_sizes, images.keys, images.sizes)
    if images.proposals is not None:
        given = images.proposals
        boxes = fill_unused(mirror_boxes(given.boxes, images.sizes, given.pixel), given.valid)
        mirrored.proposals = BoxListBatch(boxes, given.valid, given.sizes, given.fields, pixel=given.pixel)
    return mirrored


def mirror_boxes(boxes: Tensor, sizes: Tensor, pixel: int) -> Tensor:
    """Boxes [N, ..., 4], xyxy, on the mirrored images of (width, height) `sizes` [N, 2]."""
    width = sizes[:, 0].view(-1, *[1] * (boxes.dim() - 2))
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([width - x2 - pixel, y1, width - x1 - pixel, y2], dim=-1)


def rescale_boxes(boxes: Tensor, sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Boxes [N, ..., 4], xyxy, after their images of (width, height) `sizes` [N, 2] got `new_sizes`."""
    ratio = (new_sizes / sizes).repeat(1, 2)
    return boxes * ratio.view(-1, *[1] * (boxes.dim() - 2), 4)


def mirror_maps(maps: Tensor, places: Sequence[int]) -> Tensor:
    """Masks or heat maps [N, D, Kp, S, S] as a mirror shows them: at each place the map of `places` there, of left for right."""
    # A stack of slices: an index list would be copied to the device.
    return torch.stack([maps[:, :, k] for k in places], dim=2).flip(-1)
