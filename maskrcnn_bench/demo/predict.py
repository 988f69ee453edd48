"""`maskrcnn-bench predict`: images in, pictures with what was found and one JSON file out."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..config import get_defaults

if TYPE_CHECKING:
    from PIL import Image

    from ..structures.bounding_box import BoxList
    from .images import Found
    from .predictor import COCODemo

RESULTS = "predictions.json"
_LARGEST_JPEG = 65500
_READABLE_SIDE = 384
"""Shorter side below which pictures are enlarged, since names in them could not be read, pixels."""
_MOST_ENLARGED = 4


def predict_main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; `argv` is what follows the word `predict`.

    Returns:
        0; 1 when an image or the whole could not be done, 130 after Ctrl-C.
    """
    args = _parse(sys.argv[1:] if argv is None else argv)
    # Only now, so that --help does not wait for torch.
    import torch

    from ..engine.arguments import DEBUG

    try:
        return _predict(args)
    except torch.OutOfMemoryError as error:
        message = f"{error}; lower --batch-size, or INPUT.MIN_SIZE_TEST"
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        if os.environ.get(DEBUG):
            raise
    except KeyboardInterrupt:
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 1


# ------------------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Find objects in images: writes a picture of each, NAME_det.jpg, and predictions.json with all of them.",
        usage="%(prog)s IMAGE|FOLDER|PATTERN ... --weights FILE [options] [KEY VALUE ...]",
        epilog="Ends with 1 when an image could not be read; the others are done all the same.",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help="files, folders with all below them, patterns such as 'shots/*.png'")
    weights = "a trained model: a file, an address, or the output folder of a training"
    parser.add_argument("--weights", required=True, metavar="FILE", help=weights)
    config = "configuration, for weights that do not carry one: a YAML file, or the name of a shipped one"
    parser.add_argument("--config-file", default="", metavar="FILE", help=config)
    parser.add_argument("--output", default=os.path.join("output", "predict"), metavar="FOLDER", help="where to write; %(default)s")
    parser.add_argument("--beside", action="store_true", help="write each picture beside its image; predictions.json goes to --output")
    score = "least score of what is drawn and written, 0 to 1; %(default)s"
    parser.add_argument("--score", type=_share, default=0.5, metavar="S", help=score)
    parser.add_argument("--batch-size", type=_count, default=4, metavar="N", help="images at once; %(default)s")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with changes of the configuration told apart from images as `args.opts` and `args.images`."""
    parser = _parser()
    args = parser.parse_intermixed_args(list(argv))
    args.images, args.opts = [], []
    words = iter(args.words)
    for word in words:
        if not is_override(word):
            args.images.append(word)
        else:
            args.opts += [word] if "=" in word else [word, *(value for value in [next(words, None)] if value is not None)]
    if not args.images:
        parser.error("expected at least one image, folder or pattern")
    return args


def is_override(word: str) -> bool:
    """Whether a word is a key of the configuration (or KEY=VALUE) and not an image."""
    section, dot, _ = word.split("=")[0].partition(".")
    known = get_defaults()
    return section in known and bool(dot) == isinstance(known[section], dict) and not os.path.exists(word)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return value


# ------------------------------------------------------------------------------------------------------- the work


def _predict(args: argparse.Namespace) -> int:
    from .images import find_images
    from .predictor import COCODemo

    found = find_images(args.images)
    demo = COCODemo.from_weights(args.weights, args.config_file, args.opts, args.score)
    results = Results(demo, overlay_paths(found, None if args.beside else args.output))
    # A place that cannot be written to is an error before the work.
    os.makedirs(args.output, exist_ok=True)
    begin = time.perf_counter()
    with _Progress(len(found)) as progress:
        for start in range(0, len(found), args.batch_size):
            numbered = range(start, min(start + args.batch_size, len(found)))
            _one_batch(results, [(index, found[index]) for index in numbered], progress)
    seconds = time.perf_counter() - begin
    path = os.path.join(args.output, RESULTS)
    content = json.dumps(results.rows, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(content.encode()))
    pictures = "beside the images" if args.beside else f"in {args.output}"
    print(_summary(results, len(found), seconds) + f"; pictures {pictures}, numbers in {path}")
    return 1 if results.failed else 0


def _one_batch(results: Results, batch: Sequence[tuple[int, Found]], progress: _Progress) -> None:
    """Reads, detects and writes some images; those that fail are told and left out."""
    from .images import read_image

    pictures = []
    for index, found in batch:
        try:
            pictures.append((index, found, read_image(found.path)))
        except OSError as error:
            results.failed.append(found.path)
            progress.tell(f"skipped: {error}")
    if pictures:
        boxlists = results.demo.detect([picture for _, _, picture in pictures])
        for (index, found, picture), boxlist in zip(pictures, boxlists, strict=True):
            results.add(index, found, picture, boxlist)
    progress.advance(len(batch))


class Results:
    """What was found so far.

    Args:
        demo: the model.
        overlays: path of the picture of each image.
    Attributes:
        rows: one a detection, in the form of COCO's results. `image_id` is the image's place in the list, from 1.
        failed: paths that could not be read.
    """

    def __init__(self, demo: COCODemo, overlays: Sequence[str]):
        self.demo = demo
        self.overlays = overlays
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def add(self, index: int, found: Found, picture: Image.Image, boxlist: BoxList) -> None:
        """Keeps the detections of one image above the threshold, and writes its picture."""
        from ..structures.segmentation_mask import SegmentationMask
        from .draw import draw_detections

        boxlist = self.demo.select_top_predictions(boxlist)
        masks = self.demo.run_lengths(boxlist)
        if masks is not None:
            boxlist.add_field("masks", SegmentationMask(masks, boxlist.size))
        factor = min(max(_READABLE_SIDE // min(picture.size), 1), _MOST_ENLARGED)
        overlay = draw_detections(picture, boxlist, self.demo.CATEGORIES, enlarge=factor)
        save_picture(overlay, self.overlays[index])
        self.rows += result_rows(boxlist, masks, index + 1, found.name, self.demo.CATEGORIES)


def result_rows(
    boxlist: BoxList, masks: Sequence[dict] | None, image_id: int, file_name: str, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The detections of an image in the form of COCO's results, with names: plain numbers and texts.

    Args:
        boxlist: in pixels of the image, with fields `labels`, `scores` and maybe `keypoints`.
        masks: run lengths of each mask, as COCO writes them; None without masks.
        image_id: number of the image.
        class_names: by label, background first.
    """
    labels, scores = boxlist.get_field("labels").tolist(), boxlist.get_field("scores").tolist()
    points = boxlist.get_field("keypoints").keypoints.flatten(1).tolist() if boxlist.has_field("keypoints") else None
    rows = []
    for i, bbox in enumerate(boxlist.convert("xywh").bbox.tolist()):
        name = class_names[labels[i]] if labels[i] < len(class_names) else f"class {labels[i]}"
        row = {"image_id": image_id, "file_name": file_name, "category_id": labels[i], "category_name": name}
        row |= {"bbox": [round(value, 2) for value in bbox], "score": round(scores[i], 5)}
        row |= {"segmentation": masks[i]} if masks is not None else {}
        row |= {"keypoints": [round(value, 2) for value in points[i]]} if points is not None else {}
        rows.append(row)
    return rows


def _summary(results: Results, total: int, seconds: float) -> str:
    done = total - len(results.failed)
    skipped = f", {len(results.failed)} skipped" if results.failed else ""
    return f"{done} of {total} images{skipped}: {len(results.rows)} objects in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f} images/s)"


class _Progress:
    """A bar on a terminal, and lines that do not run into it."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="image", dynamic_ncols=True, leave=False, disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def tell(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)

    def advance(self, images: int) -> None:
        self.bar.update(images)


# ------------------------------------------------------------------------------------------------------- files


def overlay_paths(found: Sequence[Found], folder: str | None) -> list[str]:
    """Where the picture of each image goes; no two of them to the same file, and none over an image.

    Args:
        folder: the folders below the one that was asked for are kept in it; None puts pictures beside their images.
    """
    taken = {_place(image.path) for image in found}
    paths = []
    for image in found:
        path = _free_path(image.path if folder is None else os.path.join(folder, image.name), taken)
        taken.add(_place(path))
        paths.append(path)
    return paths


def _place(path: str) -> str:
    """The same for two names of one file; file systems may take upper and lower case for the same."""
    return os.path.abspath(path).lower()


def _free_path(path: str, taken: set[str]) -> str:
    from .images import OVERLAY

    base = os.path.splitext(path)[0]
    names = (f"{base}{f'_{number}' if number > 1 else ''}{OVERLAY}.jpg" for number in itertools.count(1))
    return next(name for name in names if _place(name) not in taken)


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG when the name ends with .png, else a JPEG; one too large for a JPEG becomes NAME.png."""
    base, suffix = os.path.splitext(path)
    if suffix.lower() == ".png" or max(picture.size) > _LARGEST_JPEG:
        write_atomically(base + ".png", lambda file: picture.save(file, "PNG"))
    else:
        write_atomically(path, lambda file: picture.save(file, "JPEG", quality=92, subsampling=0))


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes beside the file and renames, so that nobody ever sees half of it."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)
