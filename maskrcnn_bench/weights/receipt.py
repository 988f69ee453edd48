"""What a model computes on one image, stage by stage, against what is expected: the receipt of a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..modeling.rpn.two_way_head import TwoWayRPNHead
from ..structures.bounding_box import BoxList
from ..structures.image_list import ImageList
from .pairing import MIN_IOU, Boxes, Limits, pair

SAMPLES = 64  # values of an array that are kept
FIELD_SAMPLES = 16  # values of each detection's mask
INPUT = 2e-5  # one step of float32 between 128 and 256
FEATURES = 1e-4  # in units of the array's standard deviation where that is above 1
KEYPOINTS = 1e-2  # pixels
TENSORS = 1e-6  # relative, where a value is above 1; folding norms rounds
BOX_NOISE = 5e-4  # what float32 changes in a box from one machine to the next, pixels
MAX_SWAPPED = 0.05  # of the boxes of both sides, may be exchanged at a threshold
TOLERANCES = {"input": INPUT, "keypoints": KEYPOINTS}


@dataclass
class Sampled:
    """Some values of an array, and what summarises all of them.

    Args:
        shape: of the array.
        positions: of the values in the flattened array. [n]
        values: those values. [n]
        statistics: mean, standard deviation and largest magnitude of the whole array; None where nobody recorded them.
    """

    shape: list[int]
    positions: Tensor
    values: Tensor
    statistics: list[float] | None

    @classmethod
    def of(cls, array: Tensor, samples: int | None) -> Sampled:
        """Values at equal distances; all of them with `samples` None."""
        count = array.numel()
        positions = torch.arange(count)
        if samples is not None and count > samples:
            positions = torch.arange(samples) * count // samples
        return cls(list(array.shape), positions, array.flatten()[positions], _statistics(array))


def _statistics(array: Tensor) -> list[float]:
    if not array.numel():
        return [0.0, 0.0, 0.0]
    whole = array.double()
    return [whole.mean().item(), whole.std(unbiased=False).item(), whole.abs().max().item()]


@dataclass
class Found:
    """A set of boxes: xyxy [n, 4] in pixels of the resized image, labels [n], and scores [n] where they are known."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None
    count: int
    """How many there were; `boxes` may be the first of them only."""


@dataclass
class Expectation:
    """What one image should give.

    Args:
        arrays: input, features, outputs of the RPN and anchors, by stage.
        sets: `prop` and `det`.
        fields: of the detections, {name: (positions in the flattened value of one detection, values [n, positions])}.
    """

    arrays: dict[str, Sampled]
    sets: dict[str, Found]
    fields: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Observation:
    """What one image gives: as `Expectation`, with whole arrays, and {name: values [n, ...]} of the detections."""

    arrays: dict[str, Tensor]
    sets: dict[str, Found]
    fields: dict[str, Tensor] = field(default_factory=dict)

    def expectation(self, samples: int | None = None) -> Expectation:
        """What another run should give; of each array, `samples` values are kept, or all."""
        fields = {}
        for name, values in self.fields.items():
            count = values[:1].numel()
            kept = count if samples is None or name != "mask" else min(count, FIELD_SAMPLES)
            positions = torch.arange(kept) * count // max(kept, 1)
            fields[name] = positions, values.flatten(1)[:, positions]
        return Expectation({name: Sampled.of(array, samples) for name, array in self.arrays.items()}, self.sets, fields)


@dataclass(frozen=True)
class Rules:
    """How a model selects boxes: what a width adds to x2 - x1, thresholds of the suppression, least score."""

    pixel: int
    rpn_nms: float
    nms: float
    score_thresh: float


@dataclass
class Row:
    """The largest difference of a stage."""

    stage: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # NaN is not

    def __str__(self) -> str:
        return f"  {self.stage:22} {self.difference:10.2e} {self.tolerance:10.2e}  {'ok' if self.ok else 'FAIL'}  {self.note}".rstrip()


@torch.no_grad()
def observe(model: nn.Module, images: ImageList) -> Observation:
    """Runs one image through every stage of a model, which is in evaluation mode afterwards.

    Args:
        model: a detector of this library.
        images: one image, not normalised.
    """
    model.eval()
    features = model.backbone(model.normalizer(images))
    found = model(images)[0]
    labels = found.get_field("labels") if found.has_field("labels") else torch.zeros(len(found))
    sets = {"det": Found(found.bbox, labels, found.get_field("scores"), len(found))}
    if model.roi_heads is not None:
        proposals = model.rpn(images, features)[0][0]
        sets["prop"] = Found(proposals.bbox, torch.zeros(len(proposals)), proposals.get_field("objectness"), len(proposals))
    return Observation(dict(_arrays(model, images, features)), sets, _fields(found))


def _arrays(model: nn.Module, images: ImageList, features: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(stage, array) in the order of the network."""
    height, width = images.image_sizes[0]
    yield "input", model.normalizer(images)[0, :, :height, :width]
    head = model.rpn.head
    objectness, regression = head(features)
    if isinstance(head, TwoWayRPNHead):
        objectness = head.scores(features)
    for stage, levels in (("feat", features), ("rpn.cls", objectness), ("rpn.reg", regression)):
        yield from ((f"{stage}.{level}", array) for level, array in enumerate(levels))
    yield from ((f"anchor.{level}", anchors) for level, anchors in enumerate(model.rpn.anchor_generator(features)))


def _fields(found: BoxList) -> dict[str, Tensor]:
    """Masks and keypoints of the detections."""
    out = {}
    if found.has_field("mask"):
        out["mask"] = found.get_field("mask").flatten(1)
    if found.has_field("keypoints"):
        out["keypoints"] = found.get_field("keypoints").keypoints[..., :2].flatten(1)
    return out


def compare(expected: Expectation, ours: Observation, rules: Rules, noise: dict[str, float] | None = None) -> tuple[list[Row], list[str]]:
    """A row for each stage, and in words the boxes without a counterpart.

    Args:
        noise: {stage: what float32 alone changes in it}; ten times that is allowed where it is more than the tolerance.
    """
    noise = noise or {}
    missing = sorted(set(expected.arrays) - set(ours.arrays), key=list(expected.arrays).index)
    rows = [Row(stage, torch.inf, 0.0, "the model has no such stage") for stage in missing]
    rows += [_array_row(stage, expected.arrays[stage], array, noise) for stage, array in ours.arrays.items() if stage in expected.arrays]
    notes: list[str] = []
    for stage in ("prop", "det"):
        if stage in expected.sets and stage in ours.sets:
            more, pairs, said = _set_rows(stage, expected.sets[stage], ours.sets[stage], rules, noise)
            rows += more
            notes += said
            if stage == "det":
                rows += _field_rows(expected, ours, pairs, noise)
    return rows, notes


def _tolerance(stage: str, noise: dict[str, float]) -> float:
    return max(TOLERANCES.get(stage, FEATURES), 10 * noise.get(stage, 0.0))


def _array_row(stage: str, expected: Sampled, ours: Tensor, noise: dict[str, float]) -> Row:
    if expected.shape != list(ours.shape):
        return Row(stage, torch.inf, 0.0, f"shape {list(ours.shape)}, expected {expected.shape}")
    differences = [_most(ours.flatten()[expected.positions] - expected.values)]
    if expected.statistics is not None:
        differences += [abs(a - b) for a, b in zip(expected.statistics, _statistics(ours), strict=True)]
    spread = expected.statistics[1] if expected.statistics is not None and stage != "input" else 1.0
    # The largest by torch, as Python's may lose a NaN.
    return Row(stage, torch.tensor(differences, dtype=torch.float64).max().item() / max(1.0, spread), _tolerance(stage, noise))


def _set_rows(
    stage: str, expected: Found, ours: Found, rules: Rules, noise: dict[str, float]
) -> tuple[list[Row], dict[int, int], list[str]]:
    """Rows of a set of boxes, the pairs, and words about boxes without a counterpart."""
    rows = [
        Row(f"{stage}.count", abs(expected.count - ours.count), MAX_SWAPPED * expected.count, f"{ours.count}, expected {expected.count}")
    ]
    if expected.scores is None:
        return [*rows, _unscored_row(stage, expected.boxes, ours.boxes, noise)], {}, []
    score = _tolerance(f"{stage}.scores", noise)
    nms, least = (rules.rpn_nms, -torch.inf) if stage == "prop" else (rules.nms, rules.score_thresh)
    limits = Limits(max(BOX_NOISE, noise.get(f"{stage}.boxes", 0.0)), score, nms, least)
    partial = len(expected.boxes) < expected.count
    sides = [Boxes(side.boxes, side.scores, side.labels, rules.pixel) for side in (expected, ours)]
    found = pair(*sides, limits, partial)
    a, b = sides[0].boxes[found.theirs], sides[1].boxes[found.ours]
    iou = sides[0].iou(sides[1])[found.theirs, found.ours]
    far = (a - b).abs().amax(-1) > 10 * limits.box_noise if len(a) else torch.zeros(0, dtype=torch.bool)
    candidates = len(a) if partial else len(sides[0].boxes) + len(sides[1].boxes)
    rows += [
        Row(f"{stage}.unmatched", len(found.lost), 0.0, f"{len(found.theirs)} of {len(sides[0].boxes)} paired"),
        Row(f"{stage}.swapped", len(found.swapped), MAX_SWAPPED * candidates),
        Row(f"{stage}.boxes", _most(1 - iou[far]), 1 - MIN_IOU, f"1 - IoU; {_most(a - b):.1e} pixels"),
        Row(f"{stage}.scores", _most(sides[0].scores[found.theirs] - sides[1].scores[found.ours]), score),
    ]
    notes = [f"{stage} {word}, {text}" for word, texts in (("swapped", found.swapped), ("UNMATCHED", found.lost)) for text in texts]
    return rows, dict(zip(found.theirs, found.ours, strict=True)), notes


def _unscored_row(stage: str, expected: Tensor, ours: Tensor, noise: dict[str, float]) -> Row:
    """Boxes recorded without scores: each against the best of those at its place and the two before and after."""
    distance = (expected[:, None] - ours[None]).abs().amax(-1)
    near = (torch.arange(len(expected))[:, None] - torch.arange(len(ours))).abs() <= 2
    nearest = torch.where(near, distance, torch.inf).amin(1) if len(ours) else torch.full((len(expected),), torch.inf)
    return Row(f"{stage}.boxes", _most(nearest), max(10 * BOX_NOISE, _tolerance(f"{stage}.boxes", noise)), "pixels")


def _field_rows(expected: Expectation, ours: Observation, pairs: dict[int, int], noise: dict[str, float]) -> list[Row]:
    rows = []
    for name in sorted(expected.fields.keys() & ours.fields.keys()):
        positions, values = expected.fields[name]
        known = [i for i in pairs if i < len(values)]
        mine = ours.fields[name][[pairs[i] for i in known]][:, positions]
        rows.append(Row(f"det.{name}", _most(values[known] - mine), _tolerance(name, noise), f"{len(known)} detections"))
    return rows


def _most(difference: Tensor) -> float:
    """The largest magnitude; 0 of nothing."""
    return difference.abs().max().item() if difference.numel() else 0.0


def tensor_row(before: dict[str, Tensor], after: dict[str, Tensor], lost: dict[str, int]) -> Row:
    """The largest difference, relative where values are above 1, of tensors that went to another form and back.

    Args:
        lost: {end of a name below `roi_heads`: its first rows, which that form does not keep}.
    """
    rows = []
    for name in before.keys() & after.keys():
        start = next((count for end, count in lost.items() if name.startswith("roi_heads.") and name.endswith(end)), 0)
        old, new = before[name], after[name]
        if start:
            old, new = old[start:], new[start:]
        difference = _most(old.double() - new.double()) / max(1.0, _most(old.double())) if old.shape == new.shape else torch.inf
        rows.append(Row("tensors", difference, TENSORS, name))
    failed = [row for row in rows if not row.ok]
    worst = failed[0] if failed else max(rows, key=lambda row: row.difference, default=Row("tensors", 0.0, TENSORS))
    worst.note = f"{len(rows)} tensors, {worst.note}" if worst.difference else f"{len(rows)} tensors, all equal"
    return worst
