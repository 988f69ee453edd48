"""Region proposal network (Faster R-CNN, section 3.1): anchors to proposals, and their losses.

Everything is batched over images and levels and has fixed shapes; A anchors of all levels together, L levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import init_normal
from ...layers.nms import batched_nms_keep, move_apart
from ...structures.bounding_box import BoxListBatch, fill_unused
from ...structures.image_list import ImageList
from ..box_coder import BoxCoder
from ..losses import RegressionLoss, binary_cross_entropy, count
from ..matcher import Matcher
from ..sampler import BalancedSampler, Samples
from .anchor_generator import AnchorGenerator


class RPNHead(nn.Module):
    """One or more 3x3 convolutions, then objectness and box regression of every anchor.

    The convolutions are `conv`, `conv2`, `conv3`, ...

    Args:
        in_channels: channels of the features.
        num_anchors: anchors at one location.
        conv_channels: channels of each convolution.
        num_convs: how many convolutions.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_channels: int, num_convs: int = 1):
        super().__init__()
        self.convs = ["conv", *(f"conv{i}" for i in range(2, num_convs + 1))]
        for name in self.convs:
            self.add_module(name, init_normal(nn.Conv2d(in_channels, conv_channels, 3, padding=1), 0.01))
            in_channels = conv_channels
        self.cls_logits = init_normal(nn.Conv2d(conv_channels, num_anchors, 1), 0.01)
        self.bbox_pred = init_normal(nn.Conv2d(conv_channels, num_anchors * 4, 1), 0.01)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features to objectness logits L x [N, A_l, H, W] and regression L x [N, 4 A_l, H, W]."""
        hidden = [self._hidden(f) for f in features]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]

    def _hidden(self, x: Tensor) -> Tensor:
        for name in self.convs:
            x = F.relu_(getattr(self, name)(x))
        return x


def flatten_level(x: Tensor, entries: int) -> Tensor:
    """[N, A * entries, H, W] to [N, H * W * A, entries], in the order of the anchors, float32."""
    n, channels, height, width = x.shape
    anchors = channels // entries
    return x.float().view(n, anchors, entries, height, width).permute(0, 3, 4, 1, 2).reshape(n, height * width * anchors, entries)


class ProposalSelector:
    """Objectness and regression to proposals: the best of each level, decoded, clipped, suppressed, the best of all levels.

    Args:
        box_coder: decodes the regression.
        pre_nms_top_n: anchors a level and image that enter the suppression.
        post_nms_top_n: boxes a level and image that leave it, at most.
        fpn_post_nms_top_n: proposals of all levels, an image or, with `per_batch`, all images of the batch together.
        per_batch: whether the images of a batch compete.
        nms_thresh: overlap above which the box with the lower score goes.
        min_size: least width and height, pixels.
        score_thresh: least probability.
        drop_empty: whether boxes of exactly `min_size` go too.
        rank_by: "probability" or "logit".
        pixel: the pixel rule.
        nms_offset: whether levels are kept apart in the suppression by moving their boxes.
        zero_boxes: whether slots without a proposal hold boxes of zeros that are in use.
    """

    def __init__(
        self,
        box_coder: BoxCoder,
        pre_nms_top_n: int,
        post_nms_top_n: int,
        fpn_post_nms_top_n: int,
        per_batch: bool,
        nms_thresh: float,
        min_size: float,
        drop_empty: bool,
        rank_by: str,
        pixel: int,
        nms_offset: bool = False,
        zero_boxes: bool = False,
        score_thresh: float = 0.0,
    ):
        self.box_coder = box_coder
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.fpn_post_nms_top_n = fpn_post_nms_top_n
        self.per_batch = per_batch
        self.nms_thresh = nms_thresh
        self.min_size = min_size
        self.score_thresh = score_thresh
        self.drop_empty = drop_empty
        self.rank_by = rank_by
        self.pixel = pixel
        self.nms_offset = nms_offset
        self.zero_boxes = zero_boxes

    def __call__(self, anchors: list[Tensor], objectness: list[Tensor], regression: list[Tensor], sizes: Tensor) -> BoxListBatch:
        """Selects proposals.

        Args:
            anchors: of each level, xyxy, pixels. L x [A_l, 4]
            objectness: logits of each level. L x [N, A_l]
            regression: of each level. L x [N, A_l, 4]
            sizes: (width, height) of the images. [N, 2]
        Returns:
            Proposals by descending score, with their score in the field `objectness`.
        """
        levels = [self._best_of_level(a, o, r, sizes) for a, o, r in zip(anchors, objectness, regression, strict=True)]
        slots = max(scores.shape[1] for _, scores in levels)
        boxes = torch.stack([_pad_slots(b, slots, 0.0) for b, _ in levels], dim=1)  # [N, L, slots, 4]
        scores = torch.stack([_pad_slots(s, slots, -torch.inf) for _, s in levels], dim=1)
        valid = self._probable(scores)
        rivals = move_apart(boxes, valid) if self.nms_offset else boxes
        keep = batched_nms_keep(
            rivals.flatten(0, 1), scores.flatten(0, 1), valid.flatten(0, 1), self.nms_thresh, self.pixel, self.post_nms_top_n
        )
        scores = torch.where(keep.view_as(valid), scores, -torch.inf).flatten(1)
        return self._best_of_all(boxes.flatten(1, 2), scores, sizes, num_levels=len(levels))

    def _best_of_level(self, anchors: Tensor, objectness: Tensor, regression: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        ranked = objectness.sigmoid() if self.rank_by == "probability" else objectness
        scores, inds = ranked.topk(min(self.pre_nms_top_n, ranked.shape[1]), dim=1)
        boxes, large_enough = self.box_coder.decode_chosen(
            regression, anchors, inds, sizes, clip=True, min_size=self.min_size, strict=self.drop_empty
        )
        return boxes, torch.where(large_enough, scores, -torch.inf)

    def _probable(self, scores: Tensor) -> Tensor:
        """Which slots hold a box of at least the lowest probability; an empty slot has minus infinity."""
        if not self.score_thresh:
            return scores > -torch.inf
        return (scores if self.rank_by == "probability" else scores.sigmoid()) >= self.score_thresh

    def _best_of_all(self, boxes: Tensor, scores: Tensor, sizes: Tensor, num_levels: int) -> BoxListBatch:
        limit = self.post_nms_top_n * num_levels
        if num_levels > 1:
            limit = min(limit, self.fpn_post_nms_top_n)
            if self.per_batch:
                scores = self._best_of_batch(scores)
        scores, inds = scores.sort(dim=1, descending=True, stable=True)
        scores, inds = scores[:, :limit], inds[:, :limit]
        valid = scores > -torch.inf
        chosen = boxes.gather(1, inds[..., None].expand(-1, -1, 4))
        scores = torch.where(valid, scores, 0.0)
        if self.zero_boxes:
            chosen = _pad_slots(torch.where(valid[..., None], chosen, 0.0), limit, 0.0)
            scores = _pad_slots(scores, limit, 0.0)
            valid = torch.ones_like(scores, dtype=torch.bool)
        batch = BoxListBatch(fill_unused(chosen, valid), valid, sizes, pixel=self.pixel)
        batch.add_field("objectness", scores)
        return batch

    def _best_of_batch(self, scores: Tensor) -> Tensor:
        """Scores of the best `fpn_post_nms_top_n` boxes of all images, minus infinity for the rest. [N, L * slots]"""
        order = scores.flatten().argsort(descending=True, stable=True)[: self.fpn_post_nms_top_n]
        chosen = torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill(0, order, True)
        return torch.where(chosen.view_as(scores), scores, -torch.inf)


def _pad_slots(x: Tensor, slots: int, value: float) -> Tensor:
    missing = slots - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=value) if missing else x


def append_objects(proposals: BoxListBatch, targets: BoxListBatch) -> BoxListBatch:
    """Proposals with the ground truth behind them, so that there is something to learn from at the start; the field `is_object` tells."""
    out = BoxListBatch(
        torch.cat([proposals.boxes, targets.boxes], dim=1),
        torch.cat([proposals.valid, targets.valid], dim=1),
        proposals.sizes,
        pixel=proposals.pixel,
    )
    if "objectness" in proposals.fields:
        ones = torch.ones_like(targets.boxes[..., 0])
        out.add_field("objectness", torch.cat([proposals.get_field("objectness"), ones], dim=1))
    out.add_field("is_object", torch.cat([torch.zeros_like(proposals.valid), torch.ones_like(targets.valid)], dim=1))
    return out


def count_one_of_each(samples: Samples, _: int) -> Tensor:
    """The anchors drawn; an image without positives, or without negatives, counts one of them."""
    positive = samples.positive.sum(dim=1).clamp(min=1)
    return (positive + (samples.valid & ~samples.positive).sum(dim=1).clamp(min=1)).sum()


def count_drawn(samples: Samples, _: int) -> Tensor:
    return count(samples.valid)


def count_configured(samples: Samples, batch_size_per_image: int) -> int:
    return batch_size_per_image * len(samples.valid)


def count_of_last_image(samples: Samples, _: int) -> Tensor:
    return len(samples.valid) * count(samples.valid[-1])


RPN_NORMALIZERS: dict[str, Callable[[Samples, int], Tensor | int]] = {
    "sampled": count_drawn,
    "configured": count_configured,
    "one_of_each": count_one_of_each,
    "last_image": count_drawn,
}
"""What the losses of the RPN are divided by: (samples, configured anchors an image) -> number."""
RPN_BOX_NORMALIZERS = RPN_NORMALIZERS | {"last_image": count_of_last_image}
"""The same for the loss of the boxes."""


class RPNLoss:
    """Losses of objectness and regression over sampled anchors.

    Args:
        matcher: anchors to objects.
        sampler: draws the anchors that count.
        box_coder: encodes the regression's targets.
        normalizer: a key of RPN_NORMALIZERS.
        box_loss: of the regression.
        pixel: the pixel rule.
        only_visible_compete: whether the best anchor of an object is looked for among the anchors that may be used, or among all.
    """

    def __init__(
        self,
        matcher: Matcher,
        sampler: BalancedSampler,
        box_coder: BoxCoder,
        normalizer: str,
        box_loss: RegressionLoss,
        pixel: int,
        only_visible_compete: bool = False,
    ):
        self.matcher = matcher
        self.sampler = sampler
        self.box_coder = box_coder
        self.normalizer, self.box_normalizer = RPN_NORMALIZERS[normalizer], RPN_BOX_NORMALIZERS[normalizer]
        self.box_loss = box_loss
        self.pixel = pixel
        self.only_visible_compete = only_visible_compete

    def __call__(
        self, anchors: Tensor, visible: Tensor, objectness: Tensor, regression: Tensor, targets: BoxListBatch, keys: Tensor
    ) -> dict[str, Tensor]:
        """The two losses, scalars.

        Args:
            anchors: all levels, xyxy, pixels. [A, 4]
            visible: anchors that may be used, an image. [N, A]
            objectness: logits. [N, A]
            regression: [N, A, 4]
            targets: ground truth.
            keys: random key of each image. [N]
        """
        rivals = visible if self.only_visible_compete else None
        matches = self.matcher(targets.boxes, targets.valid, anchors, self.pixel, rivals)
        labels = torch.where(matches >= 0, 1, torch.where(matches == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
        samples = self.sampler(torch.where(visible, labels, -1), keys)
        inds = samples.inds[..., None].expand(-1, -1, 4)
        drawn = samples.inds[:, : self.sampler.quota(labels.shape[1])]
        positive = samples.positive[:, : drawn.shape[1]]
        objects = matches.gather(1, drawn).clamp(min=0)
        own = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
        codes = regression.gather(1, inds[:, : drawn.shape[1]])
        box_loss = self.box_loss(self.box_coder, codes, anchors[drawn], own, positive)
        normalizer, box_normalizer = (n(samples, self.sampler.batch_size_per_image) for n in (self.normalizer, self.box_normalizer))
        loss = binary_cross_entropy(objectness.gather(1, samples.inds), samples.positive, samples.valid)
        return {"loss_objectness": loss / normalizer, "loss_rpn_box_reg": box_loss / box_normalizer}


class RPNModule(nn.Module):
    """Proposals from features.

    Args:
        anchor_generator, head: modules.
        train_selector, test_selector: choose proposals, for training and for testing.
        loss: the losses.
    """

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: nn.Module,
        train_selector: ProposalSelector,
        test_selector: ProposalSelector,
        loss: RPNLoss,
    ):
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.train_selector = train_selector
        self.test_selector = test_selector
        self.loss = loss

    def forward(
        self, images: ImageList, features: list[Tensor], targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[BoxListBatch, dict[str, Tensor]]:
        """Proposals and losses; without targets the test settings and no losses, with them the ground truth is among the proposals."""
        objectness, regression = self.head(features)
        anchors = self.anchor_generator(features)
        objectness = [flatten_level(o, 1).squeeze(-1) for o in objectness]
        regression = [flatten_level(r, 4) for r in regression]
        selector = self.test_selector if targets is None else self.train_selector
        with torch.no_grad():
            proposals = selector(anchors, [o.detach() for o in objectness], [r.detach() for r in regression], images.sizes)
        if targets is None:
            return proposals, {}
        every = torch.cat(anchors)
        visible = self.anchor_generator.visible(every, images.sizes)
        losses = self.loss(every, visible, torch.cat(objectness, dim=1), torch.cat(regression, dim=1), targets, keys)
        return append_objects(proposals, targets), losses
