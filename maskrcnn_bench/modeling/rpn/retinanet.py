"""RetinaNet (Lin et al. 2017): classes and boxes of all anchors at once, without proposals.

A anchors of all levels together, L levels; K here counts the outputs of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...layers.blocks import NormFactory, init_normal
from ...layers.nms import batched_nms_keep, move_apart
from ...layers.sigmoid_focal_loss import sigmoid_focal_loss
from ...layers.soft_nms import class_thresholds
from ...structures.bounding_box import BoxListBatch, Detections, fill_unused
from ...structures.image_list import ImageList
from ..box_coder import BoxCoder
from ..losses import RegressionLoss
from ..matcher import Matcher
from .anchor_generator import AnchorGenerator
from .rpn import flatten_level


class RetinaNetHead(nn.Module):
    """Two towers of convolutions, one for classes and one for boxes, shared by all levels.

    Args:
        in_channels: channels of the features and of the towers.
        num_anchors: anchors at one location.
        num_outputs: K, classes that are told apart.
        num_convs: 3x3 convolutions of each tower.
        prior: probability of an object with which the classifier starts.
        norm: norm behind each convolution of the towers, or None.
    """

    def __init__(self, in_channels: int, num_anchors: int, num_outputs: int, num_convs: int, prior: float, norm: NormFactory | None = None):
        super().__init__()
        self.num_outputs = num_outputs
        self.cls_tower = _tower(in_channels, num_convs, norm)
        self.bbox_tower = _tower(in_channels, num_convs, norm)
        self.cls_logits = init_normal(nn.Conv2d(in_channels, num_anchors * num_outputs, 3, padding=1), 0.01)
        self.bbox_pred = init_normal(nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1), 0.01)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features to class logits L x [N, A_l * K, H, W] and regression L x [N, A_l * 4, H, W]."""
        return [self.cls_logits(self.cls_tower(f)) for f in features], [self.bbox_pred(self.bbox_tower(f)) for f in features]


def _tower(channels: int, num_convs: int, norm: NormFactory | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None)
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        layers += [layer, *([norm(channels)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class RetinaNetSelector:
    """Logits and regression to detections: the best (anchor, class) pairs of each level, decoded, suppressed by class.

    Args:
        box_coder: decodes the regression.
        first_label: label of the head's first output.
        score_thresh: pairs score above it.
        pre_nms_top_n: pairs a level and image that enter the suppression.
        nms_thresh: overlap above which the box of the same class with the lower score goes.
        detections_per_img: how many an image.
        ties: extra slots for detections that score as much as the last.
        clip: whether boxes are clipped to the image.
        drop_empty: whether boxes without extent go.
        pixel: the pixel rule.
        nms_offset: whether classes are kept apart in the suppression by moving their boxes.
        soft_nms: (boxes, scores, valid, rounds=) to lower scores, instead of the suppression; None for the suppression.

    Attributes:
        class_thresholds: what pairs of each class score above, background left out; () for `score_thresh`.
    """

    def __init__(
        self,
        box_coder: BoxCoder,
        first_label: int,
        score_thresh: float,
        pre_nms_top_n: int,
        nms_thresh: float,
        detections_per_img: int,
        ties: int,
        clip: bool,
        drop_empty: bool,
        pixel: int,
        nms_offset: bool = False,
        soft_nms: Callable[..., Tensor] | None = None,
    ):
        self.box_coder = box_coder
        self.soft_nms = soft_nms
        self.class_thresholds: tuple[float, ...] = ()
        self.first_label = first_label
        self.score_thresh = score_thresh
        self.pre_nms_top_n = pre_nms_top_n
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.ties = ties
        self.clip = clip
        self.drop_empty = drop_empty
        self.pixel = pixel
        self.nms_offset = nms_offset

    def __call__(self, anchors: list[Tensor], logits: list[Tensor], regression: list[Tensor], sizes: Tensor) -> Detections:
        """Selects detections.

        Args:
            anchors: of each level, xyxy, pixels. L x [A_l, 4]
            logits: of each level. L x [N, A_l, K]
            regression: of each level. L x [N, A_l, 4]
            sizes: (width, height) of the images. [N, 2]
        """
        levels = [self._best_of_level(*level, sizes) for level in zip(anchors, logits, regression, strict=True)]
        boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        least = self.score_thresh
        if self.class_thresholds:
            background = (least,) * (1 - self.first_label)
            least = class_thresholds((*background, *self.class_thresholds), least, logits[0].shape[-1], scores)[classes]
        valid = scores > least
        if self.drop_empty:
            valid = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        return self._best_of_all(boxes, self._suppressed(boxes, scores, classes, valid, logits[0].shape[-1]), classes, sizes)

    def _best_of_level(self, anchors: Tensor, logits: Tensor, regression: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs: boxes [N, R, 4], probabilities [N, R], outputs [N, R].

        The anchors of the best n pairs are among the n anchors with the best classes, so only these are ranked pair by pair.
        """
        num_outputs = logits.shape[-1]
        best = logits.amax(dim=-1)
        _, anchor_inds = best.topk(min(self.pre_nms_top_n, best.shape[1]), dim=1)
        pairs = logits.gather(1, anchor_inds[..., None].expand(-1, -1, num_outputs)).sigmoid().flatten(1)
        scores, pair_inds = pairs.topk(min(self.pre_nms_top_n, pairs.shape[1]), dim=1)
        inds = anchor_inds.gather(1, pair_inds // num_outputs)
        boxes, _ = self.box_coder.decode_chosen(regression, anchors, inds, sizes, self.clip)
        return boxes, scores, pair_inds % num_outputs

    def _suppressed(self, boxes: Tensor, scores: Tensor, classes: Tensor, valid: Tensor, num_outputs: int) -> Tensor:
        """The scores of pairs that stay, -inf of the others; a row of the suppression is one class of one image. [N, R]"""
        n, r = scores.shape
        own = classes[:, None] == torch.arange(num_outputs, device=classes.device)[:, None]  # [N, K, R]
        own = own & valid[:, None]
        rivals = boxes[:, None].expand(-1, num_outputs, -1, -1)
        rows = (n * num_outputs, r)
        scores_of_rows = scores[:, None].expand(-1, num_outputs, -1).reshape(rows)
        if self.soft_nms is not None:
            lowered = self.soft_nms(rivals.reshape(*rows, 4), scores_of_rows, own.view(rows), rounds=self.detections_per_img + self.ties)
            return lowered.view_as(own).amax(dim=1)
        rivals = move_apart(rivals, own) if self.nms_offset else rivals
        keep = batched_nms_keep(rivals.reshape(*rows, 4), scores_of_rows, own.view(rows), self.nms_thresh, self.pixel)
        return torch.where(keep.view_as(own).any(dim=1), scores, -torch.inf)

    def _best_of_all(self, boxes: Tensor, scores: Tensor, classes: Tensor, sizes: Tensor) -> Detections:
        candidates = scores.shape[1]
        slots = min(self.detections_per_img + self.ties, candidates)
        scores, inds = scores.topk(slots, dim=1)
        limit = min(self.detections_per_img, slots)
        valid = (scores > -torch.inf) & (scores >= scores[:, limit - 1 : limit])
        chosen = boxes.gather(1, inds[..., None].expand(-1, -1, 4))
        out = Detections(fill_unused(chosen, valid), valid, sizes, pixel=self.pixel)
        out.add_field("scores", torch.where(valid, scores, 0.0))
        out.add_field("labels", torch.where(valid, classes.gather(1, inds) + self.first_label, 0))
        out.truncated = valid[:, -1] & (limit < slots < candidates)
        return out


# What the losses are divided by: (classes, boxes), for all images together or for each image, from the number of positives [N].


def _positives_and_images(positives: Tensor) -> tuple[Tensor, Tensor]:
    total = positives.sum()
    return total + len(positives), total.clamp(min=1)


def _positives(positives: Tensor) -> tuple[Tensor, Tensor]:
    total = positives.clamp(min=1).sum()
    return total, total


def _positives_of_image(positives: Tensor) -> tuple[Tensor, Tensor]:
    share = positives.clamp(min=1) * len(positives)
    return share, share


class MovingAverage(nn.Module):
    """Positives of a batch, averaged over the steps of a training; the average travels with checkpoints.

    Args:
        start: the average before the first step.
        momentum: what a step keeps of it.
    """

    def __init__(self, start: float = 100.0, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(start))

    def forward(self, positives: Tensor) -> tuple[Tensor, Tensor]:
        average = self.average * self.momentum + positives.sum().clamp(min=1) * (1 - self.momentum)
        if self.training:
            self.average.copy_(average)
        return average, average


Normalizer = Callable[[Tensor], tuple[Tensor, Tensor]]
NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "positives_and_images": lambda: _positives_and_images,
    "positives": lambda: _positives,
    "positives_of_image": lambda: _positives_of_image,
    "moving_average": MovingAverage,
}


class RetinaNetLoss:
    """Focal loss of the classes and a loss of the boxes, over all anchors.

    Args:
        matcher: anchors to objects.
        box_coder: encodes the regression's targets.
        first_label: label of the head's first output.
        gamma, alpha: of the focal loss.
        box_loss: of the regression.
        box_divisor: the box loss is divided by it as well.
        pixel: the pixel rule.
    """

    def __init__(
        self,
        matcher: Matcher,
        box_coder: BoxCoder,
        first_label: int,
        gamma: float,
        alpha: float,
        box_loss: RegressionLoss,
        box_divisor: float,
        pixel: int,
    ):
        self.matcher = matcher
        self.box_coder = box_coder
        self.first_label = first_label
        self.gamma = gamma
        self.alpha = alpha
        self.box_loss = box_loss
        self.box_divisor = box_divisor
        self.pixel = pixel

    def __call__(
        self, anchors: Tensor, visible: Tensor, logits: Tensor, regression: Tensor, targets: BoxListBatch, normalizer: Normalizer
    ) -> dict[str, Tensor]:
        """The two losses, scalars.

        Args:
            anchors: all levels, xyxy, pixels. [A, 4]
            visible: anchors that may be used, an image. [N, A]
            logits: [N, A, K]
            regression: [N, A, 4]
            targets: ground truth with labels.
            normalizer: number of positives of each image [N] to the divisors of the losses.
        """
        matches = self.matcher(targets.boxes, targets.valid, anchors, self.pixel, visible)
        matches = torch.where(visible, matches, Matcher.BETWEEN_THRESHOLDS)
        positive = matches >= 0
        objects = matches.clamp(min=0)
        outputs = targets.get_field("labels").gather(1, objects) - self.first_label + 1
        outputs = torch.where(matches == Matcher.BETWEEN_THRESHOLDS, -1, torch.where(positive, outputs, 0))
        focal = sigmoid_focal_loss(logits, outputs, self.gamma, self.alpha).sum(dim=(1, 2))
        boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
        images = zip(regression, boxes, positive, strict=True)
        box = torch.stack([self.box_loss(self.box_coder, codes, anchors, own, learns) for codes, own, learns in images])
        class_divisor, box_divisor = normalizer(positive.sum(dim=1))
        return {
            "loss_retina_cls": (focal / class_divisor).sum(),
            "loss_retina_reg": (box / (box_divisor * self.box_divisor)).sum(),
        }


class RetinaNetModule(nn.Module):
    """Detections from features.

    Args:
        anchor_generator, head: modules.
        selector: chooses detections.
        loss: the losses.
        normalizer: what they are divided by, made by an entry of NORMALIZERS.
    """

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: RetinaNetHead,
        selector: RetinaNetSelector,
        loss: RetinaNetLoss,
        normalizer: Normalizer,
    ):
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.selector = selector
        self.loss = loss
        self.normalizer = normalizer

    def forward(
        self, images: ImageList, features: list[Tensor], targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Detections | None, dict[str, Tensor]]:
        """Detections and no losses without targets; with them losses alone. Nothing is drawn at random, so keys are not used."""
        logits, regression = self.head(features)
        anchors = self.anchor_generator(features)
        logits = [flatten_level(x, self.head.num_outputs) for x in logits]
        regression = [flatten_level(x, 4) for x in regression]
        if targets is None:
            return self.selector(anchors, logits, regression, images.sizes), {}
        every = torch.cat(anchors)
        visible = self.anchor_generator.visible(every, images.sizes)
        return None, self.loss(every, visible, torch.cat(logits, dim=1), torch.cat(regression, dim=1), targets, self.normalizer)
