"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads in a row, each starting from the boxes of the one before, at a higher overlap.

As in detectron2 proposals are drawn once, for the first stage; the later ones learn from the boxes that came out of them. Boxes do
not depend on the class. Of the stages' class probabilities the mean counts, of their boxes the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch, fill_unused
from ..box_coder import BoxCoder, clip_boxes
from ..matcher import Matcher
from ..poolers import RoIs, is_static
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


class CascadeBoxHead(nn.Module):
    """Box heads in a row. Lists have one entry a stage.

    Args:
        feature_extractors, predictors: modules.
        targets: draws and labels the proposals of the first stage.
        matchers: of all stages; the first is not used again.
        losses: of all stages, with the box coders that decode their regression.
        selector: chooses detections; its box coder is that of the last stage.
        static_shapes: "auto", True or False.
    """

    def __init__(
        self,
        feature_extractors: Sequence[nn.Module],
        predictors: Sequence[nn.Module],
        targets: BoxTargets,
        matchers: Sequence[Matcher],
        losses: Sequence[BoxLoss],
        selector: DetectionSelector,
        static_shapes: str | bool,
    ):
        super().__init__()
        self.feature_extractor = nn.ModuleList(feature_extractors)
        self.predictor = nn.ModuleList(predictors)
        self.targets = targets
        self.matchers = list(matchers)
        self.stage_losses = list(losses)
        self.selector = selector
        self.static_shapes = static_shapes

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """Features of the first stage, its samples or the detections, and the losses of every stage."""
        # Every stage speaks to the trunk; together they are as loud as one.
        features = [ScaleGradient.apply(f, 1.0 / len(self.stage_losses)) for f in features]
        if targets is None:
            boxes, scores, x = self._refined(features, proposals)
            return x, self.selector.select(boxes, scores, proposals.sizes), {}
        samples = boxes = self.targets(proposals, targets, keys)
        losses, first = {}, None
        for stage, loss in enumerate(self.stage_losses):
            if stage:
                boxes = relabel(boxes, targets, self.matchers[stage])
            rois, x, logits, regression = self._predictions(stage, features, boxes)
            losses |= {f"{name}_stage{stage}": value for name, value in loss(logits, regression, rois, boxes, targets).items()}
            boxes = self._moved(loss.box_coder, boxes, rois.scatter(regression), drop_empty=True)
            first = x if first is None else first
        return first, samples, losses

    def candidates(self, features: list[Tensor], proposals: BoxListBatch) -> tuple[Tensor, Tensor]:
        """Boxes and scores before anything is selected, as `DetectionSelector.candidates` returns them."""
        return self._refined(features, proposals)[:2]

    def _refined(self, features: list[Tensor], proposals: BoxListBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes of the last stage, mean scores of all, and the first stage's features."""
        probabilities, first, boxes, regression = [], None, proposals, None
        for stage in range(len(self.stage_losses)):
            if regression is not None:
                boxes = self._moved(self.stage_losses[stage - 1].box_coder, boxes, regression, drop_empty=False)
            rois, x, logits, regression = self._predictions(stage, features, boxes)
            regression = rois.scatter(regression)
            probabilities.append(rois.scatter(logits.float().softmax(dim=-1)))
            first = x if first is None else first
        scores = torch.stack(probabilities).mean(dim=0)[..., 1:].transpose(1, 2)
        scores = torch.where(proposals.valid[:, None], scores, -1.0)
        return self.selector.class_boxes(regression, boxes, scores.shape[1]), scores, first

    def _predictions(self, stage: int, features: list[Tensor], boxes: BoxListBatch) -> tuple[RoIs, Tensor, Tensor, Tensor]:
        rois = RoIs.flatten(boxes, is_static(self.static_shapes, boxes.boxes.device))
        x = self.feature_extractor[stage](features, rois)
        return rois, x, *self.predictor[stage](x)

    @torch.no_grad()
    def _moved(self, box_coder: BoxCoder, boxes: BoxListBatch, regression: Tensor, drop_empty: bool) -> BoxListBatch:
        """Where a stage says that its boxes should be, clipped; regression [N, S, 8], of which the second half is the objects'."""
        moved = clip_boxes(box_coder.decode(regression[..., 4:], boxes.boxes), boxes.sizes, boxes.pixel)
        valid = boxes.valid
        if drop_empty:
            valid = valid & (moved[..., 2:] - moved[..., :2] + boxes.pixel > 0).all(dim=-1)
        return BoxListBatch(fill_unused(moved, valid), valid, boxes.sizes, pixel=boxes.pixel)


@torch.no_grad()
def relabel(boxes: BoxListBatch, targets: BoxListBatch, matcher: Matcher) -> BoxListBatch:
    """The boxes with `labels`, `matched_inds` and `positive`, as BoxTargets gives them, and nothing drawn: every box counts."""
    matches = matcher(targets.boxes, targets.valid, boxes.boxes, boxes.pixel)
    positive = (matches >= 0) & boxes.valid
    objects = torch.where(positive, matches, 0)
    out = BoxListBatch(boxes.boxes, boxes.valid, boxes.sizes, pixel=boxes.pixel)
    out.add_field("labels", torch.where(positive, targets.get_field("labels").gather(1, objects), 0))
    out.add_field("matched_inds", objects)
    out.add_field("positive", positive)
    return out
