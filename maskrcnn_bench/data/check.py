"""Is a data set fit for training? The checks before a run, and the command that lists every fault."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from maskrcnn_bench.data.datasets.photo import UNREADABLE, looks_wrong, lost_range, read_photo
from maskrcnn_bench.data.faults import Finding, apply_policy, check_annotations, missing_masks, summary
from maskrcnn_bench.data.statistics import Anchors, coverage, pixels, statistics, suggestion
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.data.view import view

logger = logging.getLogger("maskrcnn_bench.data")

# Before a run, the ends of that many image files are looked at; of more files only the names.
FILES_OPENED_AT_START = 5000
# Of pictures with more than 8 bits, as many are decoded.
PICTURES_DECODED = 5
MISSING = "there is no such image file"


def check_dataset(dataset: Any, deep: bool = False) -> list[Finding]:
    """All faults of a data set: its annotations, then its image files.

    Args:
        dataset: any data set; only those with an AnnotationStore can be looked into.
        deep: decode every image.
    """
    if not hasattr(dataset, "annotations"):
        return []
    return list(dataset.findings) + _check_own_images(dataset, deep)


def require_sound(dataset: Any, num_classes: int = 0) -> None:
    """Stop before the first step when images are missing or cut off, or labels do not fit the model.

    Args:
        dataset: any data set; only those with an AnnotationStore can be looked into.
        num_classes: of the model, with background; 0 when the model takes them from the data.
    Raises:
        ValueError: naming file, image and what to do.
    """
    if not hasattr(dataset, "annotations"):
        return
    store = dataset.annotations
    findings = _check_own_images(dataset)
    message = apply_policy(findings, "fix", f"images of {store.source}", "Put the images right, or DATASETS.ROOT")
    if message:
        logger.warning(message)
    too_high = np.flatnonzero(dataset.labels * dataset.usable >= num_classes) if num_classes else np.zeros(0, dtype=np.int64)
    if len(too_high):
        row, count = too_high[0], len(dataset.class_names)
        image, label = store.annotation_images[row], dataset.labels[row]
        where = f"annotation {store.ids[row]} of image {store.image_label(image)}"
        raise ValueError(
            f"{store.source_of(image)}: {where} has label {label} ({dataset.class_names[label]}), but NUM_CLASSES is {num_classes};"
            f" the data has {count} with background: set MODEL.ROI_BOX_HEAD.NUM_CLASSES {count}, or 0 to take it from the data"
        )


def _check_own_images(dataset: Any, deep: bool = False) -> list[Finding]:
    """The images of a data set, read as it reads them."""
    return check_images(dataset.annotations, dataset.root, dataset.images.tolist(), deep, dataset.on_exif, dataset.channels)


def check_images(
    store: AnnotationStore, root: str, images: Sequence[int], deep: bool = False, on_exif: str = "auto", channels: int | None = None
) -> list[Finding]:
    """Image files that are missing, cut off, unreadable, or of another size than their annotations say.

    Args:
        store: the annotations.
        root: folder of the images.
        images: which of them, as places in the store.
        deep: decode every image; otherwise only those whose head or end looks wrong.
        on_exif, channels: as `read_photo` has them.
    """
    there: dict[str, set[str]] = {}
    findings = []
    for image in images:
        path = os.path.join(root, store.file_names[image])
        folder, name = os.path.split(path)
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        reason = "" if name in there[folder] else f"{MISSING}; check the folder, or take it out of the annotations"
        size = (int(store.widths[image]), int(store.heights[image]))
        if not reason and (deep or (len(images) <= FILES_OPENED_AT_START and looks_wrong(path, size, on_exif))):
            reason = _why_unreadable(store, image, path, on_exif, channels)
        if reason:
            findings.append(Finding("stop", path, store.image_label(image), None, reason))
    if len(findings) == len(images) > 1 and all(finding.reason.startswith(MISSING) for finding in findings):
        reason = f"none of the {len(images)} images is here, such as {store.file_names[images[0]]}; check the folder, or copy them there"
        return [Finding("stop", root, "", None, reason)]
    return findings or (_black_pictures(store, root, images) if channels in (3, None) else [])


def _black_pictures(store: AnnotationStore, root: str, images: Sequence[int]) -> list[Finding]:
    """A note where of all pictures that have more than 8 bits, as far as some are looked at, nothing is left as RGB."""
    largest = {}
    for place in np.unique(np.linspace(0, len(images) - 1, min(len(images), PICTURES_DECODED)).round().astype(int)).tolist():
        image = images[place]
        with suppress(*UNREADABLE):
            largest[image] = lost_range(os.path.join(root, store.file_names[image]))
    if not largest or not all(largest.values()):
        return []
    image, value = max(largest.items(), key=lambda pair: pair[1])
    remedy = "scale them to 0..255, or to 0..65535 as integers; INPUT.CHANNELS 1 reads integers as they are"
    reason = f"as RGB the pictures are black, since the values of those looked at end at {value:g}: {remedy}"
    return [Finding("note", os.path.join(root, store.file_names[image]), store.image_label(image), None, reason)]


def _why_unreadable(store: AnnotationStore, image: int, path: str, on_exif: str, channels: int | None) -> str:
    size = (int(store.widths[image]), int(store.heights[image]))
    what = f"image id {store.image_ids[image]}"
    try:
        read_photo(path, what, size if min(size) > 0 else None, on_exif, channels)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{path} ({what})").lstrip(": ")
    return ""


# ------------------------------------------------------------------------------------------------------- the command


KNOWN = "a folder in a known layout (COCO, VOC, YOLO, ...), a name of the catalog, or a COCO JSON file"


def main(argv: Sequence[str] | None = None) -> int:
    """`maskrcnn-bench data check|stats|view SOURCE`, `data toy FOLDER`; the exit code is 1 when there are faults."""
    parser = argparse.ArgumentParser(prog="maskrcnn-bench data", description="Look into a data set before training on it.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    abouts = {
        "check": "list every fault; exit code 1 when there is one",
        "stats": "count images, objects, classes and sizes, the mean of the pixels, the objects that anchors cover; suggest anchors",
        "view": "draw images with their ground truth",
    }
    subs = {verb: verbs.add_parser(verb, help=about, description=about) for verb, about in abouts.items()}
    for sub in subs.values():
        sub.add_argument("source", help=KNOWN)
        sub.add_argument("--root", default=None, help="folder that paths of the catalog start from")
        sub.add_argument("--catalog", metavar="FILE", help="Python file with a DatasetCatalog, as the key PATHS_CATALOG names one")
        sub.add_argument("--masks", action="store_true", help="annotations with masks, where a data set has both kinds")
    subs["check"].add_argument("--deep", action="store_true", help="decode every image")
    _add_anchors(subs["stats"])
    subs["view"].add_argument("--output", default="data_view", metavar="DIR", help="where the pictures go; default data_view")
    subs["view"].add_argument("--count", type=int, default=16, metavar="N", help="pictures of each split; default 16")
    subs["view"].add_argument("--faulty", action="store_true", help="only images with faults, faulty boxes included")
    toy = verbs.add_parser("toy", help="generate the toy data set", description="generate the toy data set")
    toy.add_argument("folder", help="an empty or new folder")
    for option, default in (("train", 600), ("test", 150), ("size", 128), ("seed", 0)):
        toy.add_argument(f"--{option}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args(argv)
    try:
        return {"check": _check, "stats": _stats, "view": _view, "toy": _toy}[args.verb](args)
    except (OSError, ValueError) as error:
        print(error)
        return 1


def _add_anchors(parser: argparse.ArgumentParser) -> None:
    default = Anchors()
    numbers = {
        "sizes": "square roots of their areas, as MODEL.RPN.ANCHOR_SIZES",
        "strides": "distance of neighbours, one value a size or one for all, as ANCHOR_STRIDE",
        "aspect_ratios": "height divided by width, as ASPECT_RATIOS",
    }
    for field, about in numbers.items():
        values = getattr(default, field)
        option = f"--anchor-{field}" if field != "aspect_ratios" else "--aspect-ratios"
        parser.add_argument(option, dest=field, type=float, nargs="+", default=values, help=f"{about}; default {values}")
    for field in ("min_size", "max_size"):
        value, option = getattr(default, field), f"--{field.replace('_', '-')}"
        parser.add_argument(option, type=float, default=value, help=f"as INPUT.{field.upper()}_TEST; default {value}")


def _view(args: argparse.Namespace) -> int:
    print("\n".join(view(args.source, args.output, args.count, args.root, args.masks, args.faulty, args.catalog)))
    return 0


def _toy(args: argparse.Namespace) -> int:
    from maskrcnn_bench.data.datasets.toy import generate

    print(f"{generate(args.folder, args.train, args.test, args.size, args.seed)}: {args.train} pictures to train on, {args.test} to test")
    return 0


def read_sources(
    name: str, root: str | None = None, masks: bool = False, catalog: str | None = None
) -> tuple[list[tuple[AnnotationStore, str]], list[str], list[Finding]]:
    """Training and test annotations that a name or path means; one of the two is enough.

    Returns:
        Each store with its folder of images; what was recognised; and faults that kept a file from being read.
    """
    from maskrcnn_bench.data.build import locate
    from maskrcnn_bench.data.datasets.layout import NOTHING, NoSplitError

    stores, described, findings, seen, missing = [], [], [], [], []
    for is_train in (True, False):
        try:
            source = locate(name, is_train, root, masks, catalog)
        except NoSplitError as error:
            missing.append(_stop(name, error))
            continue
        except (OSError, ValueError) as error:
            findings.append(_stop(name, error))
            continue
        arguments = source.arguments
        if arguments in seen:
            continue
        seen.append(arguments)
        described.append(source.described)
        if not hasattr(source.factory, "read_store"):
            findings.append(Finding("stop", name, "", None, f"{source.factory.__name__} has no `read_store`: it cannot be looked into"))
            continue
        try:
            store, folder = source.factory.read_store(**arguments)
            stores.append((store, folder))
            findings += _without_purpose(store, is_train)
        except (OSError, ValueError) as error:
            findings.append(_stop(str(next(iter(arguments.values()), name)), error))
    if not stores and not findings:
        # Where nothing was recognised, both splits say the same.
        findings = missing[:1] if NOTHING in missing[0].reason else missing
    return stores, list(dict.fromkeys(described)), list(dict.fromkeys(findings))


def _stop(name: str, error: Exception) -> Finding:
    """An error about a file, or about `name`, as a finding."""
    file, colon, reason = str(error).partition(": ")
    return Finding("stop", file, "", None, reason) if colon and file.startswith(name) else Finding("stop", name, "", None, str(error))


def _without_purpose(store: AnnotationStore, is_train: bool) -> list[Finding]:
    """What makes a file useless that has no other fault."""
    if not len(store):
        return [Finding("stop", store.source, "", None, "`images` is empty")]
    if len(store.ids) or store.reader_faults:
        return []
    if is_train:
        return [Finding("stop", store.source, "", None, "there are no annotations: nothing can be learnt from it")]
    return [Finding("note", store.source, "", None, "there are no annotations: a model can be run on it, but not measured")]


def _check(args: argparse.Namespace) -> int:
    stores, described, findings = read_sources(args.source, args.root, args.masks, args.catalog)
    for store, root in stores:
        store.fill_sizes(root)
        faults, dropped = check_annotations(store)
        without_mask = missing_masks(store, dropped)[0] if args.masks else []
        findings = findings + faults + without_mask + check_images(store, root, range(len(store)), args.deep)
    findings = list(dict.fromkeys(findings))
    for line in [*described, *map(str, findings)]:
        print(line)
    images, objects = sum(len(store) for store, _ in stores), sum(len(store.ids) for store, _ in stores)
    verdict = summary(findings).splitlines()[0] if findings else "no faults"
    print(f"{images} images, {objects} annotations: {verdict}")
    return 1 if findings else 0


def _stats(args: argparse.Namespace) -> int:
    stores, described, findings = read_sources(args.source, args.root, args.masks, args.catalog)
    for line in [*described, *map(str, findings)]:
        print(line)
    anchors = Anchors(args.sizes, args.strides, args.aspect_ratios, args.min_size, args.max_size)
    for store, root in stores:
        store.fill_sizes(root)
        print("\n".join([*statistics(store), *pixels(store, root), *coverage(store, anchors), *suggestion(store, anchors)]))
    return 1 if findings else 0
