"""Keypoint head: a heat map for each keypoint of an object (Mask R-CNN, section 5).

Kp keypoints an object; S is the side of a heat map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...structures.bounding_box import BoxList, BoxListBatch, Detections
from ...structures.keypoint import Keypoints
from ..losses import count, cross_entropy
from ..poolers import RoIs, is_static
from .positives import PositivesHead, init_fan_out, require_side


class KeypointPredictor(nn.Module):
    """Doubles the size with a transposed convolution, and again between pixels.

    Args:
        in_channels: channels of the features.
        num_keypoints: Kp.
    """

    def __init__(self, in_channels: int, num_keypoints: int):
        super().__init__()
        self.kps_score_lowres = init_fan_out(nn.ConvTranspose2d(in_channels, num_keypoints, 4, stride=2, padding=1))
        self.num_keypoints = num_keypoints

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, h, w] to logits [R, Kp, 4h, 4w]"""
        return F.interpolate(self.kps_score_lowres(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def heat_map_cells(keypoints: Tensor, boxes: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Where keypoints fall on their box's heat map.

    Args:
        keypoints: (x, y, v), pixels. [R, Kp, 3]
        boxes: xyxy, same pixels. [R, 4]
        resolution: S.
    Returns:
        The cell, row * S + column, and whether the point is annotated and falls on the map; points on the right and bottom edge of a box
        belong to the last cell. [R, Kp] each
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    points = keypoints[..., :2]
    cell = ((points - low) * (resolution / (high - low))).floor()
    cell = torch.where(points == high, resolution - 1, cell)
    inside = ((cell >= 0) & (cell < resolution)).all(dim=-1) & (keypoints[..., 2] > 0)
    cell = torch.where(inside[..., None], cell, 0).to(torch.int64)
    return cell[..., 1] * resolution + cell[..., 0], inside


def any_point_in_box(keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Whether any annotated point (x, y, v) [..., Kp, 3] lies in the box xyxy [..., 4]. [...]"""
    points = keypoints[..., :2]
    inside = ((points >= boxes[..., None, :2]) & (points <= boxes[..., None, 2:])).all(dim=-1)
    return (inside & (keypoints[..., 2] > 0)).any(dim=-1)


class KeypointLoss:
    """Cross-entropy over the cells of a heat map, for the annotated points inside a positive RoI.

    Args:
        resolution: side S of the heat maps.
        points_in_object: objects count only when one of their points lies in their own box.
    """

    def __init__(self, resolution: int, points_in_object: bool):
        self.resolution = resolution
        self.points_in_object = points_in_object

    def __call__(self, logits: Tensor, rois: RoIs, samples: BoxListBatch, targets: BoxListBatch) -> dict[str, Tensor]:
        """The loss, divided by the points that count.

        Args:
            logits: [R, Kp, S, S]
            rois: the positive samples in one list.
            samples: with the field `matched_inds`.
            targets: ground truth with keypoints.
        Raises:
            ValueError: when the ground truth has no keypoints or another number of them, or the logits are not as large as its targets.
        """
        require_side(logits, self.resolution, "MODEL.ROI_KEYPOINT_HEAD.RESOLUTION")
        keypoints = self._keypoints(targets, logits.shape[1])
        objects = rois.take(samples.get_field("matched_inds"))
        points = keypoints[rois.image_inds, objects]
        cells, inside = heat_map_cells(points, rois.boxes, self.resolution)
        counts = inside & rois.valid[:, None]
        if self.points_in_object:
            counts = counts & any_point_in_box(points, targets.boxes[rois.image_inds, objects])[:, None]
        counts = counts.flatten()
        return {"loss_kp": cross_entropy(logits.flatten(0, 1).flatten(1), cells.flatten(), counts) / count(counts)}

    @staticmethod
    def _keypoints(targets: BoxListBatch, expected: int) -> Tensor:
        keypoints = targets.fields.get("keypoints")
        if keypoints is None:
            raise ValueError("the keypoint head needs ground truth with keypoints; set MODEL.KEYPOINT_ON False for a data set without them")
        if keypoints.shape[2] != expected:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES is {expected}, but the objects of the data have {keypoints.shape[2]} keypoints"
            )
        return keypoints


def locate(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The points where heat maps, enlarged to whole pixels of their boxes by bicubic interpolation, are largest.

    Args:
        maps: logits. [n, Kp, S, S]
        boxes: xyxy, pixels. [n, 4]
    Returns:
        The points (x, y), pixels [n, Kp, 2]; the largest value [n, Kp]; its part of the softmax, whose sum goes over the cells
        of the map that was not enlarged [n, Kp].
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    whole = size.ceil()
    points, largest = maps.new_zeros(*maps.shape[:2], 2), maps.new_zeros(maps.shape[:2])
    for i, (width, height) in enumerate(whole.long().tolist()):
        enlarged = F.interpolate(maps[i : i + 1].float(), size=(height, width), mode="bicubic", align_corners=False)[0]
        largest[i], inds = enlarged.flatten(1).max(dim=1)
        cell = torch.stack([inds % width, inds // width], dim=1)
        points[i] = (cell + 0.5) * (size[i] / whole[i]) + boxes[i, :2]
    share = 1 / (maps.float() - largest[..., None, None]).exp().sum(dim=(2, 3))
    return points, largest, share


def _logit_result(points: Tensor, largest: Tensor, share: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(largest)[..., None]], dim=-1)


def _share_result(points: Tensor, largest: Tensor, share: Tensor) -> Tensor:
    return torch.cat([points, share[..., None]], dim=-1)


KEYPOINT_RESULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"logit": _logit_result, "share": _share_result}
"""The third number of a found point, from what `locate` answers: 1 (the score stands in the field `logits`), or its share. -> [n, Kp, 3]"""


def read_heat_maps(boxlist: BoxList, result: Callable[[Tensor, Tensor, Tensor], Tensor], kind: Keypoints) -> BoxList:
    """Replaces the field `heat_maps` of detections by `keypoints` of a kind, with the field `logits` [n, Kp]."""
    maps = boxlist.extra_fields.pop("heat_maps")
    found = locate(maps, boxlist.bbox)
    keypoints = kind.like(result(*found), boxlist.size)
    keypoints.add_field("logits", found[1])
    boxlist.add_field("keypoints", keypoints)
    return boxlist


class ROIKeypointHead(PositivesHead):
    """The keypoint head.

    Args:
        result: an entry of KEYPOINT_RESULTS.
        kind: no points, with the names, pairs and lines of those that are found.
        others: arguments of PositivesHead.
    """

    def __init__(self, result: Callable[[Tensor, Tensor, Tensor], Tensor], kind: Keypoints, **others: Any):
        super().__init__(**others)
        self.result, self.kind = result, kind

    def forward(self, features: list[Tensor], detections: Detections) -> Detections:
        """Detections with the field `heat_maps`, logits [N, D, Kp, S, S], which the hand-over turns into `keypoints`."""
        rois = RoIs.flatten(detections, is_static(self.static_shapes, detections.boxes.device))
        logits = self.predictor(self.feature_extractor(features, rois)).float()
        detections.add_field("heat_maps", rois.scatter(torch.where(rois.valid[:, None, None, None], logits, 0.0)))
        detections.at_handover.append(partial(read_heat_maps, result=self.result, kind=self.kind))
        return detections
