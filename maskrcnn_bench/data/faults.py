"""What can be wrong with annotations, found on the flat arrays of an AnnotationStore in one pass.

Four severities: "stop" makes a data set unusable (the file itself is damaged, or means something else than it says);
"drop" is one object that cannot be learnt from; "clip" is a box that reaches out of its image; "note" is odd, but nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from maskrcnn_bench.data.store import NO_MASK, POLYGONS, RLE_RUNS, RLE_TEXT, AnnotationStore
from maskrcnn_bench.structures.mask_outline import FARTHEST, run_counts

POLICIES = ("fix", "error", "ignore")
# Rounded annotations of real data sets reach this far out of their images, pixels.
BORDER_TOLERANCE = 1.0
LISTED = 20


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        severity: "stop", "drop", "clip" or "note".
        file: the file to look into.
        image: name and id of the image, "" when the fault concerns the file as a whole.
        annotation: id of the annotation, or None.
        reason: what is wrong, and with which values.
    """

    severity: str
    file: str
    image: str
    annotation: int | None
    reason: str

    def __str__(self) -> str:
        where = [self.file, f"image {self.image}" if self.image else "", "" if self.annotation is None else f"annotation {self.annotation}"]
        return f"[{self.severity}] {', '.join(part for part in where if part)}: {self.reason}"


def check_annotations(store: AnnotationStore) -> tuple[list[Finding], np.ndarray]:
    """Look for faulty annotations.

    Returns:
        Findings in the order of the images, and which annotations are to be dropped. [A] bool
    """
    if store.checked is not None:
        return store.checked
    found: list[tuple[int, Finding]] = []
    dropped = np.zeros(len(store.ids), dtype=bool)
    image_of = store.annotation_images
    for severity, row, reason in chain(_box_faults(store, image_of), _category_faults(store, dropped), _mask_faults(store, image_of)):
        if dropped[row]:
            continue
        dropped[row] = severity == "drop"
        found.append((row, _finding(store, severity, row, reason)))
    found.sort(key=lambda pair: pair[0])
    return [Finding(*fault) for fault in store.reader_faults] + [finding for _, finding in found] + _id_faults(store), dropped


def missing_masks(store: AnnotationStore, dropped: np.ndarray) -> tuple[list[Finding], np.ndarray]:
    """Objects without a mask in a store where others have one; nothing where none has.

    Args:
        dropped: annotations that are left out already. [A] bool
    Returns:
        A finding for each, and which they are. [A] bool
    """
    missing = ~dropped & ~store.crowd & (store.mask_kinds == NO_MASK) & bool((store.mask_kinds != NO_MASK).any())
    reason = "it has no `segmentation`, which a mask head learns from; draw it, or set MODEL.MASK_ON False"
    return [_finding(store, "drop", row, reason) for row in np.flatnonzero(missing).tolist()], missing


def _finding(store: AnnotationStore, severity: str, row: int, reason: str) -> Finding:
    image = int(np.searchsorted(store.offsets, row, side="right")) - 1
    return Finding(severity, store.source_of(image), store.image_label(image), int(store.ids[row]), reason)


def _box_faults(store: AnnotationStore, image_of: np.ndarray) -> list[tuple[str, int, str]]:
    hint = "(are its values x1, y1, x2, y2?)" if store.corners_from is None else "(it ends before it begins)"
    x, y, w, h = store.boxes.T
    width, height = store.widths[image_of], store.heights[image_of]
    sized = width > 0
    with np.errstate(invalid="ignore"):
        x2, y2 = x + w, y + h
        excess = np.maximum(-np.minimum(x, y), np.maximum(x2 - width, y2 - height))
        rules = [
            ("drop", ~np.isfinite(store.boxes).all(axis=1), "box has a value that is not a number"),
            ("drop", (w < 0) | (h < 0), f"box has a negative width or height {hint}"),
            ("drop", (w <= store.empty_extent) | (h <= store.empty_extent), "box is empty"),
            ("drop", sized & ((x >= width) | (y >= height) | (x2 <= 0) | (y2 <= 0)), "box lies outside the image"),
            ("clip", sized & (excess > BORDER_TOLERANCE), "box reaches out of the image"),
        ]
    faults, seen = [], np.zeros(len(x), dtype=bool)
    for severity, wrong, what in rules:
        for row in np.flatnonzero(wrong & ~seen).tolist():
            size = f" of {width[row]} x {height[row]}" if "image" in what else ""
            faults.append((severity, row, f"{what}{size}: {_box_words(store, row)}"))
        seen |= wrong
    return faults


def _box_words(store: AnnotationStore, row: int) -> str:
    """The numbers of a box as they stand in its file."""
    x, y, w, h = store.boxes[row].tolist()
    if store.corners_from is None:
        return f"x, y, width, height = {[x, y, w, h]}"
    first, last = store.corners_from, store.corners_from - 1
    return "xmin, ymin, xmax, ymax = " + ", ".join(f"{value:g}" for value in (x + first, y + first, x + w + last, y + h + last))


def _category_faults(store: AnnotationStore, dropped: np.ndarray) -> Iterator[tuple[str, int, str]]:
    """One for each unknown category, at its first annotation."""
    known = [category["id"] for category in store.categories]
    unknown = np.flatnonzero(~np.isin(store.category_ids, known) & ~dropped)
    numbers, first, counts = np.unique(store.category_ids[unknown], return_index=True, return_counts=True)
    for number, row, count in zip(numbers.tolist(), unknown[first].tolist(), counts.tolist()):
        more = f" (nor in {count - 1} more annotations)" if count > 1 else ""
        yield "stop", row, f"category id {number} is not among `categories` {_short(known)}{more}"


def _mask_faults(store: AnnotationStore, image_of: np.ndarray) -> Iterator[tuple[str, int, str]]:
    lengths = np.diff(store.ring_offsets)
    bad = (lengths < 6) | (lengths % 2 == 1)
    broken = np.flatnonzero(~(np.abs(store.coordinates) < FARTHEST))
    bad[np.searchsorted(store.ring_offsets, broken, side="right") - 1] = True
    owner = np.repeat(np.arange(len(store.ids)), np.diff(store.object_offsets))
    good_rings = np.bincount(owner[~bad], minlength=len(store.ids))
    for row in np.unique(owner[bad]).tolist():
        if store.mask_kinds[row] == POLYGONS and good_rings[row] == 0:
            counts = lengths[store.object_offsets[row] : store.object_offsets[row + 1]].tolist()
            yield (
                "drop",
                row,
                f"no usable polygon: 3 points or more, as x, y in turn, near the image, are needed; its polygons have {counts} numbers",
            )
    for row in np.flatnonzero(np.isin(store.mask_kinds, (RLE_TEXT, RLE_RUNS))).tolist():
        reason = _rle_fault(store, row, int(image_of[row]))
        if reason:
            yield "drop", row, reason


def _rle_fault(store: AnnotationStore, row: int, image: int) -> str:
    expected = [int(store.heights[image]), int(store.widths[image])]
    if min(expected) > 0 and store.rle_sizes[row].tolist() != expected:
        return f"RLE has size {store.rle_sizes[row].tolist()}, but (height, width) of the image is {expected}"
    try:
        run_counts(store.segmentation(row))
    except (ValueError, IndexError) as error:
        return str(error)
    return ""


def _id_faults(store: AnnotationStore) -> list[Finding]:
    orphans = [
        Finding("drop", store.source, "", int(a), f"belongs to image id {i}, which `images` does not list") for a, i in store.orphans
    ]
    repeated = [Finding("drop", store.source, f"id {i}", int(a), "another annotation has this id already") for a, i in store.repeated]
    return orphans + repeated


def _short(values: Sequence[int]) -> str:
    return f"{list(values)}" if len(values) <= 12 else f"{values[0]}..{values[-1]} ({len(values)} of them)"


def summary(findings: Sequence[Finding]) -> str:
    """Findings as text: how many of each kind, and the first of them."""
    kinds = Counter(finding.severity for finding in findings)
    lines = [str(finding) for finding in findings[:LISTED]]
    if len(findings) > LISTED:
        lines.append(f"... and {len(findings) - LISTED} more; `maskrcnn-bench data check` lists all")
    return "\n".join([", ".join(f"{count} to {kind}" for kind, count in kinds.items()), *lines])


def apply_policy(findings: Sequence[Finding], on_fault: str, what: str, remedy: str = "Correct the file") -> str:
    """Decide what faults mean for a data set.

    Args:
        findings: all faults found.
        on_fault: "fix" or "ignore" stop for severity "stop" only, "error" for every fault.
        what: the data set, for messages.
        remedy: what to do about a fault that stops.
    Returns:
        A message to log, "" when there is nothing to say.
    Raises:
        ValueError: when the faults forbid the use of the data set.
    """
    if on_fault not in POLICIES:
        raise ValueError(f"DATASETS.ON_FAULT: expected one of {POLICIES}, got {on_fault!r}")
    fatal = [finding for finding in findings if on_fault == "error" or finding.severity == "stop"]
    if fatal:
        remedy += "" if any(f.severity == "stop" for f in fatal) else ", or set DATASETS.ON_FAULT to fix"
        raise ValueError(f"{what}: {summary(fatal)}\n{remedy}; `maskrcnn-bench data check` lists all faults.")
    if not findings or on_fault == "ignore":
        return ""
    return f"{what}: {summary(findings)}"
