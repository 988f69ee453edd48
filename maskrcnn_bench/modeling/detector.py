"""GeneralizedRCNN: images to losses, or images to detections. A border file: `build_detection_model` takes a cfg."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.blocks import fold_norms
from ..layers.linear import Linear
from ..structures.bounding_box import BoxList, BoxListBatch, Detections
from ..structures.image_list import ImageList, to_image_list
from . import registry


class Normalizer(nn.Module):
    """uint8 RGB images to what the network was trained on; the padding becomes 0.

    Args:
        mean, std: of each channel, in the order and range that the network sees.
        bgr255: blue first and 0 to 255 (Caffe); otherwise red first and 0 to 1.
        unit: red-first pixels are divided by 255; otherwise mean and std are multiplied by it, which rounds less.
        channels: other than 3, they keep order and range, whatever the last two say; 16 bits are welcome then.
    Raises:
        ValueError: when there is not one mean and deviation a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], bgr255: bool, unit: bool = True, channels: int = 3):
        super().__init__()
        if not len(mean) == len(std) == channels:
            remedy = "`maskrcnn-bench data stats` prints them" if channels != 3 else "or set INPUT.CHANNELS"
            raise ValueError(f"INPUT.PIXEL_MEAN, PIXEL_STD: expected {channels} values each, got {len(mean)} and {len(std)}; {remedy}")
        if channels != 3:
            bgr255, unit = False, False
        self.divisor = 255 if unit and not bgr255 else 1
        factor = 1 if unit or bgr255 or channels != 3 else 255
        mean, std = ([factor * v for v in values] for values in (mean, std))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.bgr255 = bgr255

    def forward(self, images: ImageList) -> Tensor:
        """float32, channels-last; images that are float already pass as they are. [N, C, H, W]"""
        x = images.tensors
        if x.is_floating_point():
            return x
        x = x.flip(1).float() if self.bgr255 else x.float() / self.divisor
        inside = _inside(images.sizes, x.shape[-2], x.shape[-1])
        return torch.where(inside[:, None], (x - self.mean) / self.std, 0.0).contiguous(memory_format=torch.channels_last)


def _inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels of a padded batch belong to an image of (width, height) `sizes` [N, 2]. [N, H, W]"""
    x = torch.arange(width, device=sizes.device) < sizes[:, 0:1]
    y = torch.arange(height, device=sizes.device) < sizes[:, 1:2]
    return y[:, :, None] & x[:, None, :]


_ROUNDED_BY_AUTOCAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Linear)


class GeneralizedRCNN(nn.Module):
    """A two-stage detector: backbone, proposals, heads.

    Args:
        normalizer: images to the network's input.
        backbone: images to features.
        rpn: features to proposals.
        roi_heads: proposals to detections; None answers the proposals.
        size_divisible: lists of images are padded to a multiple of it.
    """

    def __init__(self, normalizer: nn.Module, backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module | None, size_divisible: int = 0):
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.size_divisible = size_divisible

    def forward(
        self,
        images: ImageList | Tensor | Sequence[Tensor],
        targets: BoxListBatch | Sequence[BoxList] | None = None,
        return_losses: bool = False,
    ) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: uint8 RGB or normalised float.
            targets: ground truth in the images' pixels, with fields `labels` and, for a mask head, `masks`.
            return_losses: in evaluation, answer (detections, losses).
        Returns:
            Training: {name: scalar}. Evaluation: Detections in the images' pixels; a model without heads answers its proposals.
        Raises:
            ValueError: when targets are needed and missing.
        """
        images = to_image_list(images, self.size_divisible)
        if targets is None and (self.training or return_losses):
            raise ValueError("targets are needed in training mode and for losses; call model.eval() for detections alone")
        features = self.backbone(self.normalizer(images))
        if self.training:
            return self._losses(images, features, targets)
        detections = self._detections(images, features)
        return (detections, self._losses(images, features, targets)) if return_losses else detections

    def for_inference(self, dtype: torch.dtype = torch.float32) -> GeneralizedRCNN:
        """A copy in evaluation mode that computes the same detections, up to rounding, faster: norms merged into convolutions.

        Args:
            dtype: of the weights that autocast would round to it in every call. Where it is not float32, call the copy
                under `torch.autocast` of the same dtype; boxes and scores stay float32.
        """
        fast = fold_norms(copy.deepcopy(self)).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        for module in fast.modules() if dtype != torch.float32 else ():
            if type(module) in _ROUNDED_BY_AUTOCAST:
                module.to(dtype)
        return fast

    def _losses(self, images: ImageList, features: list[Tensor], targets: BoxListBatch | Sequence[BoxList]) -> dict[str, Tensor]:
        if not isinstance(targets, BoxListBatch):
            targets = BoxListBatch.pad(list(targets)).to(images.sizes.device)
        keys = images.keys
        if keys is None:
            keys = torch.randint(2**62, (len(images),), device=images.sizes.device)
        proposals, losses = self.rpn(images, features, targets, keys)
        if self.roi_heads is not None:
            losses = losses | self.roi_heads(features, proposals, targets, keys)[2]
        return losses

    def _detections(self, images: ImageList, features: list[Tensor]) -> BoxListBatch:
        proposals, _ = self.rpn(images, features)
        if images.scales is not None:
            proposals.add_field("scale", images.scales[:, None].expand(proposals.valid.shape))
        if self.roi_heads is not None:
            return self.roi_heads(features, proposals)[1]
        if isinstance(proposals, Detections):
            return proposals
        out = Detections(proposals.boxes, proposals.valid, proposals.sizes, proposals.fields, pixel=proposals.pixel)
        out.add_field("scores", proposals.get_field("objectness"))
        return out


def set_class_thresholds(model: nn.Module, wanted: Sequence[Sequence[Any]], class_names: Sequence[str]) -> None:
    """Has a model answer detections of some classes above other scores than it was built with.

    Args:
        wanted: (name of the class, score) each; none leaves the model as it is.
        class_names: of the model's labels, background first.
    Raises:
        ValueError: for a name that the model does not know, or a model without classes.
    """
    if not wanted:
        return
    head = getattr(getattr(model, "roi_heads", None), "box", None) or getattr(model, "rpn", None)
    selector = getattr(head, "selector", None)
    if not hasattr(selector, "class_thresholds"):
        raise ValueError("TEST.CLASS_SCORE_THRESH: this model's head does not choose detections by class; leave it empty")
    thresholds, given = [selector.score_thresh] * (len(class_names) - 1), set()
    for pair in wanted:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[1], (int, float)) or not 0 <= pair[1] <= 1:
            raise ValueError(f'TEST.CLASS_SCORE_THRESH: expected [["name of a class", 0.3], ...] with scores of 0 to 1, got {wanted!r}')
        if pair[0] not in class_names[1:]:
            known = ", ".join(class_names[1:20]) + (", ..." if len(class_names) > 20 else "")
            raise ValueError(f"TEST.CLASS_SCORE_THRESH: no class {pair[0]!r}; the model knows {known}")
        if pair[0] in given:
            raise ValueError(f"TEST.CLASS_SCORE_THRESH: expected each class once, got {pair[0]!r} more often")
        given.add(pair[0])
        thresholds[class_names[1:].index(pair[0])] = float(pair[1])
    selector.class_thresholds = tuple(thresholds)


def compile_parts(model: nn.Module, part: str, backend: str = "inductor") -> None:
    """Has torch.compile speed up a model, in place; names of weights stay, and copies of the model are plain.

    Args:
        part: "backbone", "model", or "" for nothing.
        backend: of torch.compile.
    """
    if part:
        # One compiled graph a shape, as few as DATALOADER.SHAPE_BUCKETS makes them: sizes that vary make slower code.
        (model.backbone if part == "backbone" else model).compile(dynamic=False, backend=backend)


def build_detection_model(cfg: Any) -> nn.Module:
    """The model that a configuration describes, with weights drawn at random, on the CPU.

    Raises:
        ValueError: when the configuration names a part that is not registered, or its values contradict each other.
    """
    from . import build  # noqa: F401  registers the parts

    return registry.META_ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE](cfg)
