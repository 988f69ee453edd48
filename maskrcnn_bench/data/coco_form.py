"""What a COCO file must look like. Entries that do are handed on; each one that does not becomes a fault that stops."""

from __future__ import annotations

import math
from typing import Any

Fault = tuple[str, str, str, int | None, str]
"""Severity, file, image, annotation and reason, as `faults.Finding` has them."""

EXPECTED = "expected a COCO file: an object with the lists `images`, `categories` and `annotations`"

MOST = 1 << 63
"""The first integer that has no place in 64 bits."""


class Form:
    """The entries of a COCO dict that have the fields they need.

    Args:
        source: the file, for messages.
        content: what was read from it.

    Attributes:
        images: ascending by id.
        categories: ascending by id.
        annotations: in the order of the file.
        faults: what is wrong with the others.

    Raises:
        ValueError: when it is no dict, or lacks the lists.
    """

    def __init__(self, source: str, content: Any):
        _require_lists(source, content)
        self.source = source
        self.faults: list[Fault] = []
        self.images = self._entries(content["images"], "images", "file_name")
        self.categories = self._entries(content["categories"], "categories", "name")
        self._note_repeated_files()
        self.annotations = [entry for k, entry in enumerate(content.get("annotations") or []) if self._sound(k, entry)]

    def _entries(self, entries: list, key: str, name: str) -> list[dict]:
        kept: dict[int, dict] = {}
        for place, entry in enumerate(entries):
            reason = _entry_fault(entry, name)
            if not reason and entry["id"] in kept:
                reason = f"id {entry['id']} occurs more than once; every entry needs an id of its own"
            if reason:
                self.add("", None, f"{key}[{place}]: {reason}")
            else:
                kept[entry["id"]] = entry
        return [kept[number] for number in sorted(kept)]

    def _note_repeated_files(self) -> None:
        owners: dict[str, int] = {}
        for image in self.images:
            first = owners.setdefault(image["file_name"], image["id"])
            if first != image["id"]:
                label = f"{image['file_name']} (id {image['id']})"
                self.faults.append(("note", self.source, label, None, f"image id {first} is the same file"))

    def _sound(self, place: int, entry: Any) -> bool:
        if not isinstance(entry, dict):
            self.add("", None, f"annotations[{place}]: expected an object, got {_shown(entry)}")
            return False
        reason = _annotation_fault(entry)
        if reason:
            number = entry.get("id")
            where = "" if _is_integer(number) else f"annotations[{place}]: "
            self.add(image_words(entry), number if _is_integer(number) else None, where + reason)
        return not reason

    def add(self, image: str, annotation: int | None, reason: str) -> None:
        """Notes a fault that stops."""
        self.faults.append(("stop", self.source, image, annotation, reason))


def image_words(annotation: dict) -> str:
    """The image of an annotation, for messages."""
    return f"id {annotation['image_id']}" if "image_id" in annotation else ""


def _require_lists(source: str, content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{source} is JSON but not COCO: {EXPECTED}; got a {type(content).__name__}")
    missing = [key for key in ("images", "categories", "annotations") if not isinstance(content.get(key, _default(key)), list)]
    if missing:
        said = ", ".join(f"`{key}` is missing or no list" for key in missing)
        raise ValueError(f"{source} is JSON but not COCO: {EXPECTED}; {said}, the keys are {sorted(content)}")


def _default(key: str) -> list | None:
    """Files for tests may have no annotations."""
    return [] if key == "annotations" else None


def _entry_fault(entry: Any, name: str) -> str:
    if not isinstance(entry, dict):
        return f"expected an object, got {_shown(entry)}"
    if not _is_integer(entry.get("id")):
        return f"expected `id` (an integer of 64 bits), got {_shown(entry)}"
    if not isinstance(entry.get(name), str):
        return f"expected `{name}` (str), got {_shown(entry)}"
    for side in ("width", "height") if name == "file_name" else ():
        value = entry.get(side)
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < MOST):
            return f"`{side}`: expected pixels, got {value!r} (image id {entry['id']})"
    return ""


def _annotation_fault(entry: dict) -> str:
    for field in ("image_id", "category_id"):
        if not _is_integer(entry.get(field)):
            return f"`{field}`: expected an integer of 64 bits, got {_shown(entry.get(field))}"
    if "id" in entry and not _is_integer(entry["id"]):
        return f"`id`: expected an integer of 64 bits, got {_shown(entry['id'])}"
    if not _is_numbers(entry.get("bbox"), 4):
        return f"`bbox`: expected 4 numbers, got {_shown(entry.get('bbox'))}"
    if entry.get("iscrowd") not in (0, 1, None):
        return f"`iscrowd`: expected 0 or 1, got {_shown(entry['iscrowd'])}"
    points = entry.get("keypoints", [])
    if not isinstance(points, list) or len(points) % 3 or not _is_numbers(points, len(points)):
        return f"`keypoints`: expected numbers, x, y and v of each point, got {_shown(points)}"
    return ""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -MOST <= value < MOST


def _is_numbers(value: Any, count: int) -> bool:
    """Numbers of a field; null counts as not a number, which the check of boxes finds."""
    return isinstance(value, list) and len(value) == count and all(isinstance(v, (int, float)) or v is None for v in value)


def numbers(values: list) -> list[float]:
    """The numbers of a field, with NaN for null."""
    return [math.nan if v is None else v for v in values]


def _shown(value: Any) -> str:
    return repr(value)[:120]
