"""Box head: class and refined box of each proposal (Fast R-CNN)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import NormFactory, conv, init_normal, linear
from ...layers.linear import Linear
from ...layers.masked_norm import MaskedSequential
from ...layers.nms import batched_nms_keep, move_apart
from ...layers.soft_nms import class_thresholds
from ...structures.bounding_box import BoxListBatch, Detections, fill_unused
from ..box_coder import BoxCoder, clip_boxes
from ..losses import RegressionLoss, count, cross_entropy
from ..matcher import Matcher
from ..poolers import Pooler, RoIs, is_static
from ..sampler import BalancedSampler


class Conv5FeatureExtractor(nn.Module):
    """Pooled features through the trunk's last stage (C4 models).

    Args:
        pooler: pools the RoIs.
        head: the stage.
    """

    def __init__(self, pooler: Pooler, head: nn.Module):
        super().__init__()
        self.pooler = pooler
        self.head = head
        self.out_channels = head.out_channels

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, C, h, w]"""
        return self.head(self.pooler(features, rois))


class MLPFeatureExtractor(nn.Module):
    """Pooled features through two fully connected layers (FPN models).

    Args:
        pooler: pools the RoIs.
        in_channels: channels of the features.
        hidden: width of both layers.
        norm: group norm behind each layer, or None.
    """

    def __init__(self, pooler: Pooler, in_channels: int, hidden: int, norm: NormFactory | None = None):
        super().__init__()
        self.pooler = pooler
        self.fc6 = linear(in_channels * pooler.output_size**2, hidden, norm)
        self.fc7 = linear(hidden, hidden, norm)
        self.out_channels = hidden

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, hidden]"""
        x = self.pooler(features, rois).flatten(1)
        return F.relu(self.fc7(F.relu(self.fc6(x))))


class XConvFeatureExtractor(nn.Module):
    """Pooled features through several 3x3 convolutions and one fully connected layer (Group Normalization, section 4.2).

    Args:
        pooler: pools the RoIs.
        in_channels: channels of the features.
        conv_channels, num_convs, dilation: of the convolutions.
        hidden: width of the fully connected layer.
        norm: norm behind each convolution, or None.
    """

    def __init__(
        self,
        pooler: Pooler,
        in_channels: int,
        conv_channels: int,
        num_convs: int,
        dilation: int,
        hidden: int,
        norm: NormFactory | None = None,
    ):
        super().__init__()
        self.pooler = pooler
        layers: list[nn.Module] = []
        for i in range(num_convs):
            block = conv(in_channels if i == 0 else conv_channels, conv_channels, 3, dilation=dilation, norm=norm, relu=True)
            nn.init.normal_(block[0].weight, std=0.01)
            layers.extend(block)
        self.xconvs = MaskedSequential(*layers)
        self.fc6 = linear(conv_channels * pooler.output_size**2, hidden)
        self.out_channels = hidden

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, hidden]"""
        return F.relu(self.fc6(self.xconvs(self.pooler(features, rois), rois.valid).flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits and box regression; features with a height and width are averaged first.

    Args:
        in_channels: channels of the features.
        num_classes: K, background included.
        box_classes: classes that have boxes of their own: K, or 2 when boxes don't depend on the class.
    """

    def __init__(self, in_channels: int, num_classes: int, box_classes: int):
        super().__init__()
        self.cls_score = init_normal(Linear(in_channels, num_classes), 0.01)
        self.bbox_pred = init_normal(Linear(in_channels, box_classes * 4), 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C] or [R, C, h, w] to class logits [R, K] and regression [R, 4 * box_classes]."""
        if x.dim() == 4:
            x = x.mean(dim=(2, 3))
        return self.cls_score(x), self.bbox_pred(x)


class BoxTargets:
    """Proposals to samples with labels: which to learn from, and what.

    Args:
        matcher: proposals to objects.
        sampler: draws the proposals that count.
        pixel: the pixel rule.
        kept: fields of the proposals that the samples have too.
    """

    def __init__(self, matcher: Matcher, sampler: BalancedSampler, pixel: int, kept: tuple[str, ...] = ()):
        self.matcher = matcher
        self.sampler = sampler
        self.pixel = pixel
        self.kept = kept

    @torch.no_grad()
    def __call__(self, proposals: BoxListBatch, targets: BoxListBatch, keys: Tensor) -> BoxListBatch:
        """Samples, positives first, with fields `labels` [N, S] (0 background), `matched_inds` [N, S] (object, 0 for background) and
        `positive` [N, S]; the first `positive_slots` can be positive.
        """
        rivals = proposals.valid
        if "is_object" in proposals.fields:
            rivals = rivals & ~proposals.get_field("is_object")
        matches = self.matcher(targets.boxes, targets.valid, proposals.boxes, self.pixel, rivals)
        objects = matches.clamp(min=0)
        labels = targets.get_field("labels").gather(1, objects)
        labels = torch.where(matches == Matcher.BELOW_LOW_THRESHOLD, 0, labels)
        labels = torch.where((matches == Matcher.BETWEEN_THRESHOLDS) | ~proposals.valid, -1, labels)
        samples = self.sampler(labels, keys)
        boxes = proposals.boxes.gather(1, samples.inds[..., None].expand(-1, -1, 4))
        out = BoxListBatch(fill_unused(boxes, samples.valid), samples.valid, proposals.sizes, pixel=proposals.pixel)
        out.add_field("labels", torch.where(samples.valid, labels.gather(1, samples.inds), 0))
        out.add_field("matched_inds", torch.where(samples.positive, objects.gather(1, samples.inds), 0))
        out.add_field("positive", samples.positive)
        for name in self.kept:
            out.add_field(name, proposals.get_field(name).gather(1, samples.inds))
        return out

    def positive_slots(self, samples: BoxListBatch) -> int:
        """How many of the first slots of an image can be positive."""
        return self.sampler.quota(samples.valid.shape[1])


class BoxLoss:
    """Cross-entropy of the class, and a loss of the box of the object's class.

    Args:
        box_coder: between regression and boxes.
        box_loss: of the regression.
        class_agnostic: whether boxes don't depend on the class.
    """

    def __init__(self, box_coder: BoxCoder, box_loss: RegressionLoss, class_agnostic: bool):
        self.box_coder = box_coder
        self.box_loss = box_loss
        self.class_agnostic = class_agnostic

    def __call__(self, logits: Tensor, regression: Tensor, rois: RoIs, samples: BoxListBatch, targets: BoxListBatch) -> dict[str, Tensor]:
        """Both losses, divided by all samples.

        Args:
            logits: [R, K]
            regression: [R, 4 * box classes]
            rois: the samples in one list.
            samples: with fields `labels`, `matched_inds`, `positive`.
            targets: ground truth.
        """
        labels, positive = rois.take(samples.get_field("labels")), rois.take(samples.get_field("positive"))
        objects = targets.boxes[rois.image_inds, rois.take(samples.get_field("matched_inds"))]
        box_class = torch.ones_like(labels) if self.class_agnostic else labels
        own = box_class[:, None] * 4 + torch.arange(4, device=labels.device)
        normalizer = count(rois.valid)
        return {
            "loss_classifier": cross_entropy(logits, labels, rois.valid) / normalizer,
            "loss_box_reg": self.box_loss(self.box_coder, regression.gather(1, own), rois.boxes, objects, positive) / normalizer,
        }


class DetectionSelector:
    """Logits and regression to detections: decoded, clipped, thresholded, suppressed by class, the best of all classes.

    Args:
        box_coder: decodes the regression.
        score_thresh: detections score above it.
        nms_thresh: overlap above which the box of the same class with the lower score goes.
        detections_per_img: how many an image.
        ties: extra slots for detections that score as much as the last.
        min_size: least width and height, pixels.
        pixel: the pixel rule.
        nms_offset: whether classes are kept apart in the suppression by moving their boxes.
        nms_original: whether overlaps are those in pixels of the original image, where proposals have a field `scale`.
        soft_nms: (boxes, scores, valid, rounds=) to lower scores, instead of the suppression; None for the suppression.

    Attributes:
        class_thresholds: what detections of each class score above, background left out; () for `score_thresh`.
    """

    def __init__(
        self,
        box_coder: BoxCoder,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        ties: int,
        min_size: float,
        pixel: int,
        nms_offset: bool = False,
        nms_original: bool = False,
        soft_nms: Callable[..., Tensor] | None = None,
    ):
        self.box_coder = box_coder
        self.soft_nms = soft_nms
        self.class_thresholds: tuple[float, ...] = ()
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.ties = ties
        self.min_size = min_size
        self.pixel = pixel
        self.nms_offset = nms_offset
        self.nms_original = nms_original

    def __call__(self, logits: Tensor, regression: Tensor, proposals: BoxListBatch) -> Detections:
        """Selects detections.

        Args:
            logits: [N, P, K]
            regression: [N, P, 4 * box classes]
            proposals: P slots an image.
        """
        scale = proposals.fields.get("scale") if self.nms_original else None
        return self.select(*self.candidates(logits, regression, proposals), proposals.sizes, scale)

    def candidates(self, logits: Tensor, regression: Tensor, proposals: BoxListBatch) -> tuple[Tensor, Tensor]:
        """Box and score of every class of every proposal; arguments as for a call.

        Returns:
            Boxes, clipped, [N, K - 1, P, 4], and scores, -1 in slots that are not in use, [N, K - 1, P].
        """
        scores = logits.float().softmax(dim=-1)[..., 1:].transpose(1, 2)
        boxes = self.class_boxes(regression, proposals, scores.shape[1])
        return boxes, torch.where(proposals.valid[:, None], scores, -1.0)

    def select(self, boxes: Tensor, scores: Tensor, sizes: Tensor, scale: Tensor | None = None) -> Detections:
        """Candidates to detections.

        Args:
            boxes, scores: what `candidates` returns.
            sizes: (width, height) of the images. [N, 2]
            scale: of the image on which each box suppresses others; None for the image as it is. [N, P]
        """
        large_enough = (boxes[..., 2:] - boxes[..., :2] + self.pixel >= self.min_size).all(dim=-1)
        least = self.score_thresh
        if self.class_thresholds:
            least = class_thresholds(self.class_thresholds, least, scores.shape[1], scores)[:, None]
        valid = (scores > least) & large_enough
        rivals = boxes if scale is None else boxes / scale[:, None, :, None]
        if self.soft_nms is not None:
            rows = (rivals.flatten(0, 1), scores.flatten(0, 1), valid.flatten(0, 1))
            lowered = self.soft_nms(*rows, rounds=self.detections_per_img + self.ties)
            return self._best_of_all(boxes, lowered.view_as(scores), sizes)
        rivals = move_apart(rivals, valid) if self.nms_offset else rivals
        keep = batched_nms_keep(rivals.flatten(0, 1), scores.flatten(0, 1), valid.flatten(0, 1), self.nms_thresh, self.pixel)
        return self._best_of_all(boxes, torch.where(keep.view_as(valid), scores, -torch.inf), sizes)

    def class_boxes(self, regression: Tensor, proposals: BoxListBatch, classes: int) -> Tensor:
        """The box of every object class of every proposal, clipped. [N, K - 1, P, 4]"""
        boxes = self.box_coder.decode(regression, proposals.boxes).unflatten(-1, (-1, 4))
        boxes = clip_boxes(boxes, proposals.sizes, self.pixel).transpose(1, 2)[:, 1:]
        return boxes.expand(-1, classes, -1, -1)

    def _best_of_all(self, boxes: Tensor, scores: Tensor, sizes: Tensor) -> Detections:
        num_proposals = scores.shape[2]
        candidates = scores.shape[1] * num_proposals
        slots = min(self.detections_per_img + self.ties, candidates)
        scores, inds = scores.flatten(1).topk(slots, dim=1)
        limit = min(self.detections_per_img, slots)
        valid = (scores > -torch.inf) & (scores >= scores[:, limit - 1 : limit])
        chosen = boxes.flatten(1, 2).gather(1, inds[..., None].expand(-1, -1, 4))
        out = Detections(fill_unused(chosen, valid), valid, sizes, pixel=self.pixel)
        out.add_field("scores", torch.where(valid, scores, 0.0))
        out.add_field("labels", torch.where(valid, inds // num_proposals + 1, 0))
        out.truncated = valid[:, -1] & (limit < slots < candidates)
        return out


class ROIBoxHead(nn.Module):
    """The box head: features of the RoIs, predictions, and what follows from them.

    Args:
        feature_extractor, predictor: modules.
        targets: chooses what to learn from.
        loss: the losses.
        selector: chooses detections.
        static_shapes: "auto", True or False.
    """

    def __init__(
        self,
        feature_extractor: nn.Module,
        predictor: nn.Module,
        targets: BoxTargets,
        loss: BoxLoss,
        selector: DetectionSelector,
        static_shapes: str | bool,
    ):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.predictor = predictor
        self.targets = targets
        self.loss = loss
        self.selector = selector
        self.static_shapes = static_shapes

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """Features of the RoIs, samples or detections, and losses; without targets detections and no losses."""
        if targets is not None:
            proposals = self.targets(proposals, targets, keys)
        rois, x, logits, regression = self._predictions(features, proposals, keys)
        if targets is not None:
            return x, proposals, self.loss(logits, regression, rois, proposals, targets)
        return x, self.selector(rois.scatter(logits), rois.scatter(regression), proposals), {}

    def _predictions(
        self, features: list[Tensor], proposals: BoxListBatch, keys: Tensor | None = None
    ) -> tuple[RoIs, Tensor, Tensor, Tensor]:
        rois = RoIs.flatten(proposals, is_static(self.static_shapes, proposals.boxes.device))
        rois.keys = keys
        x = self.feature_extractor(features, rois)
        return rois, x, *self.predictor(x)

    def candidates(self, features: list[Tensor], proposals: BoxListBatch) -> tuple[Tensor, Tensor]:
        """Boxes and scores before anything is selected, as `DetectionSelector.candidates` returns them."""
        rois, _, logits, regression = self._predictions(features, proposals)
        return self.selector.candidates(rois.scatter(logits), rois.scatter(regression), proposals)
