"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads in a row, each starting from the boxes of the one before, at a higher overlap.

Boxes do not depend on the class. Of what the stages say of classes the mean counts, of their boxes the last. Projects differ in what
the later stages learn from: the boxes that came out of the first draw (`Relabel`), or a new draw (`Redraw`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch, fill_unused
from ..box_coder import BoxCoder, clip_boxes
from ..matcher import Matcher
from ..poolers import RoIs, is_static
from ..rpn.rpn import append_objects
from .box_head import BoxLoss, BoxTargets, DetectionSelector


class ScaleGradient(torch.autograd.Function):
    """The same values; their gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def mean_probability(logits: list[Tensor]) -> Tensor:
    """The mean of the stages' probabilities. logits of each stage [N, P, K]"""
    return torch.stack([x.softmax(dim=-1) for x in logits]).mean(dim=0)


def mean_logit(logits: list[Tensor]) -> Tensor:
    """The probabilities of the stages' mean logits. logits of each stage [N, P, K]"""
    return torch.stack(logits).mean(dim=0).softmax(dim=-1)


CASCADE_SCORES: dict[str, Callable[[list[Tensor]], Tensor]] = {"probability": mean_probability, "logit": mean_logit}
"""Scores of a cascade: logits of its stages [N, P, K] to probabilities [N, P, K]."""


class CascadeBoxHead(nn.Module):
    """Box heads in a row. Lists have one entry a stage.

    Args:
        feature_extractors, predictors: modules.
        targets: (boxes, ground truth, keys of the images) to samples as BoxTargets answers them.
        losses: with the box coders that decode the stages' regression.
        loss_weights: factors of the losses.
        gradient_factor: factor of the gradient into the features.
        scores: a function of CASCADE_SCORES.
        selector: chooses detections; its box coder is that of the last stage.
        static_shapes: "auto", True or False.
    """

    def __init__(
        self,
        feature_extractors: Sequence[nn.Module],
        predictors: Sequence[nn.Module],
        targets: Sequence[Callable[[BoxListBatch, BoxListBatch, Tensor | None], BoxListBatch]],
        losses: Sequence[BoxLoss],
        loss_weights: Sequence[float],
        gradient_factor: float,
        scores: Callable[[list[Tensor]], Tensor],
        selector: DetectionSelector,
        static_shapes: str | bool,
    ):
        super().__init__()
        self.feature_extractor = nn.ModuleList(feature_extractors)
        self.predictor = nn.ModuleList(predictors)
        self.targets, *self.later_targets = targets
        self.stage_losses = list(losses)
        self.loss_weights = list(loss_weights)
        self.gradient_factor = gradient_factor
        self.scores = scores
        self.selector = selector
        self.static_shapes = static_shapes

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """Features of the first stage, its samples or the detections, and the losses of every stage."""
        if targets is None:
            boxes, scores, x = self._refined(features, proposals)
            return x, self.selector.select(boxes, scores, proposals.sizes), {}
        x, samples, losses = self.learn(features, proposals, targets, keys)
        return x, samples[0], losses

    def learn(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch, keys: Tensor | None
    ) -> tuple[Tensor, list[BoxListBatch], dict[str, Tensor]]:
        """Features of the first stage, and samples and losses of every stage; arguments as for a call."""
        # Every stage speaks to the trunk.
        features = [ScaleGradient.apply(f, self.gradient_factor) for f in features]
        boxes, samples, losses, first = proposals, [], {}, None
        for stage, (label, loss) in enumerate(zip([self.targets, *self.later_targets], self.stage_losses, strict=True)):
            boxes = label(boxes, targets, keys)
            samples.append(boxes)
            rois, x, logits, regression = self._predictions(stage, features, boxes)
            for name, value in loss(logits, regression, rois, boxes, targets).items():
                losses[f"{name}_stage{stage}"] = self.loss_weights[stage] * value
            boxes = self._moved(loss.box_coder, boxes, rois.scatter(regression))
            first = x if first is None else first
        return first, samples, losses

    def candidates(self, features: list[Tensor], proposals: BoxListBatch) -> tuple[Tensor, Tensor]:
        """Boxes and scores before anything is selected, as `DetectionSelector.candidates` returns them."""
        return self._refined(features, proposals)[:2]

    def _refined(self, features: list[Tensor], proposals: BoxListBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes of the last stage, scores of all, and the first stage's features."""
        spoken, first, boxes, regression = [], None, proposals, None
        for stage in range(len(self.stage_losses)):
            if regression is not None:
                boxes = self._moved(self.stage_losses[stage - 1].box_coder, boxes, regression)
            rois, x, logits, regression = self._predictions(stage, features, boxes)
            regression = rois.scatter(regression)
            spoken.append(rois.scatter(logits.float()))
            first = x if first is None else first
        scores = self.scores(spoken)[..., 1:].transpose(1, 2)
        scores = torch.where(proposals.valid[:, None], scores, -1.0)
        return self.selector.class_boxes(regression, boxes, scores.shape[1]), scores, first

    def _predictions(self, stage: int, features: list[Tensor], boxes: BoxListBatch) -> tuple[RoIs, Tensor, Tensor, Tensor]:
        rois = RoIs.flatten(boxes, is_static(self.static_shapes, boxes.boxes.device))
        x = self.feature_extractor[stage](features, rois)
        return rois, x, *self.predictor[stage](x)

    @torch.no_grad()
    def _moved(self, box_coder: BoxCoder, boxes: BoxListBatch, regression: Tensor) -> BoxListBatch:
        """Where a stage says that its boxes should be, clipped; regression [N, S, 8], of which the second half is the objects'."""
        moved = clip_boxes(box_coder.decode(regression[..., 4:], boxes.boxes), boxes.sizes, boxes.pixel)
        out = BoxListBatch(fill_unused(moved, boxes.valid), boxes.valid, boxes.sizes, pixel=boxes.pixel)
        if "is_object" in boxes.fields:
            out.add_field("is_object", boxes.get_field("is_object"))
        return out


class Relabel:
    """The boxes of the stage before with new labels and nothing drawn: every box counts that did not become empty (detectron2).

    Args:
        matcher: boxes to objects.
    """

    def __init__(self, matcher: Matcher):
        self.matcher = matcher

    @torch.no_grad()
    def __call__(self, boxes: BoxListBatch, targets: BoxListBatch, _: Tensor | None) -> BoxListBatch:
        valid = boxes.valid & (boxes.boxes[..., 2:] - boxes.boxes[..., :2] + boxes.pixel > 0).all(dim=-1)
        out = BoxListBatch(fill_unused(boxes.boxes, valid), valid, boxes.sizes, pixel=boxes.pixel)
        matches = self.matcher(targets.boxes, targets.valid, out.boxes, out.pixel)
        positive = (matches >= 0) & valid
        objects = torch.where(positive, matches, 0)
        out.add_field("labels", torch.where(positive, targets.get_field("labels").gather(1, objects), 0))
        out.add_field("matched_inds", objects)
        out.add_field("positive", positive)
        return out


class Redraw:
    """A new draw from the boxes of the stage before, which the objects join; those that had joined there leave first (mmdetection).

    Args:
        targets: draws and labels; its samples keep the field `is_object`.
    """

    def __init__(self, targets: BoxTargets):
        self.targets = targets

    @torch.no_grad()
    def __call__(self, boxes: BoxListBatch, targets: BoxListBatch, keys: Tensor) -> BoxListBatch:
        valid = boxes.valid & ~boxes.get_field("is_object")
        boxes = BoxListBatch(fill_unused(boxes.boxes, valid), valid, boxes.sizes, pixel=boxes.pixel)
        return self.targets(append_objects(boxes, targets), targets, keys)
