"""`maskrcnn-bench predict`: images and videos in, pictures and videos with what was found and one JSON file out."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config import get_defaults
from ..utils.files import write_atomically
from .export import labelme_paths, require_folder, require_new_file, write_annotations, write_labelme
from .files import encoded, overlay_paths, require_apart, save_picture
from .options import count, share, share_below_one

if TYPE_CHECKING:
    from PIL import Image

    from ..structures.bounding_box import BoxList
    from .images import Found
    from .predictor import COCODemo
    from .video import Frame

WEIGHTS = "a trained model: a file, an address, or the output folder of a training"
RESULTS = "predictions.json"
TABLE = "predictions.csv"
_COLUMNS = ("image_id", "file_name", "frame", "seconds", "category_id", "category_name", "score", "x", "y", "width", "height")
_READABLE_SIDE = 384
"""Shorter side below which pictures are enlarged, since names in them could not be read, pixels."""
_MOST_ENLARGED = 4
_LARGEST_SIDE = 16_000
"""That pictures are enlarged to, since larger ones do not fit into a video, pixels."""
OVERLAP = 0.2
"""Of tiles."""


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
        description="Find objects in images and videos: writes NAME_det.jpg or NAME_det.mp4 of each, and predictions.json of all.",
        usage="%(prog)s IMAGE|VIDEO|FOLDER|PATTERN ... --weights FILE [options] [KEY VALUE ...]",
        epilog="Ends with 1 when an image or video could not be read whole; the others are done all the same. Videos need PyAV.",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help="files, folders with all below them, patterns such as 'shots/*.png'")
    parser.add_argument("--weights", metavar="FILE", help=WEIGHTS)
    config = "configuration, for weights that do not carry one: a YAML file, or the name of a shipped one"
    parser.add_argument("--config-file", default="", metavar="FILE", help=config)
    parser.add_argument("--output", default=os.path.join("output", "predict"), metavar="FOLDER", help="where to write; %(default)s")
    parser.add_argument("--beside", action="store_true", help="write each picture beside its image; predictions.json goes to --output")
    parser.add_argument("--csv", action="store_true", help="write predictions.csv as well: a line for each object, without masks")
    annotations = "write what was found in images as a COCO data set too, to correct it or to train on it: photos/instances_train.json"
    parser.add_argument("--annotations", default="", metavar="FILE", help=annotations)
    labelme = "write a file of LabelMe for each image too, NAME.json; in the images' own folder, `--data` and LabelMe find both"
    parser.add_argument("--labelme", default="", metavar="FOLDER", help=labelme)
    score = "least score of what is drawn and written, 0 to 1; %(default)s"
    parser.add_argument("--score", type=share, default=0.5, metavar="S", help=score)
    tile = "look at images larger than N pixels in tiles of that side as well: for small objects in large images"
    parser.add_argument("--tile", type=count, default=0, metavar="N", help=tile)
    overlap = f"with --tile: share of a tile that its neighbour sees as well, from 0 to below 1; {OVERLAP}"
    parser.add_argument("--overlap", type=share_below_one, metavar="S", help=overlap)
    parser.add_argument("--batch-size", type=count, default=4, metavar="N", help="images at once; %(default)s")
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
    if not args.weights:
        parser.error(f"--weights is missing: {WEIGHTS}. `maskrcnn-bench demo` makes one in minutes: --weights output/demo")
    if args.overlap is not None and not args.tile:
        parser.error("--overlap is that of tiles; give their side as well, such as --tile 1024")
    return args


def is_override(word: str) -> bool:
    """Whether a word is a key of the configuration (or KEY=VALUE) and not an image."""
    section, dot, _ = word.split("=")[0].partition(".")
    known = get_defaults()
    return section in known and bool(dot) == isinstance(known[section], dict) and not os.path.exists(word)


# ------------------------------------------------------------------------------------------------------- the work


def _predict(args: argparse.Namespace) -> int:
    from . import images, video
    from .predictor import COCODemo

    found = images.find_images(args.images, images.SUFFIXES + video.SUFFIXES)
    photos = [(index, one) for index, one in enumerate(found) if not video.is_video(one.path)]
    videos = [(index, one) for index, one in enumerate(found) if video.is_video(one.path)]
    # A place that cannot be written to is an error before the work.
    require_folder("--output", args.output)
    require_new_file("--annotations", args.annotations)
    labelme = labelme_paths(photos, args.labelme)
    tables = [os.path.join(args.output, name) for name in ((RESULTS, TABLE) if args.csv else (RESULTS,))]
    require_apart([*tables, *([args.annotations] if args.annotations else []), *labelme.values()])
    if videos:
        video.pyav()
    overlap = OVERLAP if args.overlap is None else args.overlap
    demo = COCODemo.from_weights(args.weights, args.config_file, args.opts, args.score, tile=args.tile, overlap=overlap)
    if videos:
        demo.require_colours("a video")
    results = Results(demo, overlay_paths(found, None if args.beside else args.output))
    os.makedirs(args.output, exist_ok=True)
    os.makedirs(os.path.dirname(args.annotations) or ".", exist_ok=True)
    begin = time.perf_counter()
    with _Progress(len(photos)) as progress:
        for start in range(0, len(photos), args.batch_size):
            _one_batch(results, photos[start : start + args.batch_size], progress)
        for index, one in videos:
            _one_video(results, index, one, args.batch_size, progress)
    seconds = time.perf_counter() - begin
    numbers = _write_numbers(results.rows, args.output, args.csv)
    if args.annotations:
        write_annotations(args.annotations, results.images, results.rows, demo.CATEGORIES, demo.keypoint_kind)
        numbers += f", annotations in {args.annotations}"
    if args.labelme:
        write_labelme(labelme, results.images, results.rows, demo.keypoint_kind)
        numbers += f", LabelMe's files in {args.labelme}"
    pictures = "beside the images" if args.beside else f"in {args.output}"
    print(_summary(results, len(photos), len(videos), seconds) + f"; pictures {pictures}, numbers in {numbers}")
    if not results.rows and results.looked_at:
        print(f"{nothing_above(args.score, results.best)}; lower --score to see what the model is less sure of")
    return 1 if results.failed else 0


def nothing_above(score: float, best: float) -> str:
    """In words, that no detection reached a score.

    Args:
        best: the highest score of all detections; 0 without any.
    """
    return f"nothing scored above {score:g}, " + (f"the best was {best:.2f}" if best else "and nothing below it either")


def _write_numbers(rows: Sequence[dict[str, Any]], folder: str, table: bool) -> str:
    """Writes the results as files; answers where they are, in words."""
    path = os.path.join(folder, RESULTS)
    content = json.dumps(rows, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(encoded(content)))
    if not table:
        return path
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, _COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows({**row, **dict(zip(("x", "y", "width", "height"), row["bbox"]))} for row in rows)
    write_atomically(os.path.join(folder, TABLE), lambda file: file.write(encoded(lines.getvalue())))
    return f"{path} and {TABLE}"


def _one_batch(results: Results, batch: Sequence[tuple[int, Found]], progress: _Progress) -> None:
    """Reads, detects and writes some images; those that fail are told and left out."""
    pictures = []
    for index, found in batch:
        try:
            pictures.append((index, found, _read(results.demo, found.path)))
        except OSError as error:
            results.failed.append(found.path)
            progress.tell(f"skipped: {error}")
    if pictures:
        boxlists = results.demo.detect([picture for _, _, picture in pictures])
        for (index, found, picture), boxlist in zip(pictures, boxlists, strict=True):
            results.add(index, found, picture, boxlist)
    progress.advance(len(batch))


def _read(demo: COCODemo, path: str) -> Any:
    """An image as the model sees it; OSError where it cannot be read, or not be looked at in tiles."""
    from .images import ImageTooLarge
    from .tiling import TooManyTiles, tile_windows

    picture = demo.read(path)
    try:
        if demo.tile:
            tile_windows(picture.size, demo.tile, demo.overlap)
    except TooManyTiles as error:
        raise ImageTooLarge(f"{path}: {error}") from None
    return picture


def _one_video(results: Results, index: int, found: Found, batch_size: int, progress: _Progress) -> None:
    """Writes a video of what is found in another; one that is cut short becomes as long as what can be read."""
    from .tiling import TooManyTiles
    from .video import VideoReader, VideoWriter, pyav

    try:
        with VideoReader(found.path) as reader, VideoWriter(results.overlays[index], reader.rate) as writer:
            progress.expect(reader.expected)
            frames = iter(reader)
            while batch := list(itertools.islice(frames, batch_size)):
                boxlists = results.demo.detect([frame.picture for frame in batch])
                for frame, boxlist in zip(batch, boxlists, strict=True):
                    writer.add(results.add_frame(found, frame, boxlist), frame.seconds)
                progress.advance(len(batch))
    except (OSError, TooManyTiles, pyav().error.FFmpegError) as error:
        results.failed.append(found.path)
        known = found.path in str(error)
        progress.tell(f"skipped: {error}" if known else f"skipped: {found.path}: no video can be made of its pictures ({error})")
        return
    if reader.fault:
        results.failed.append(found.path)
        progress.tell(reader.fault)


class Results:
    """What was found so far.

    Args:
        demo: the model.
        overlays: path of the picture of each image.
    Attributes:
        rows: one a detection, in the form of COCO's results. `image_id` is the image's place in the list, from 1; pictures of
            videos are numbered on after the list, and have `frame` and `seconds` besides.
        images: `id`, `path`, `width` and `height` of each image that was read.
        failed: paths that could not be read whole.
        best: the highest score of all detections, also of those below the threshold.
        looked_at: number of pictures.
        frames: number of pictures of videos.
    """

    def __init__(self, demo: COCODemo, overlays: Sequence[str]):
        self.demo = demo
        self.overlays = overlays
        self.rows: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.best = 0.0
        self.looked_at = 0
        self.frames = 0

    def add(self, index: int, found: Found, picture: Image.Image, boxlist: BoxList) -> None:
        """Keeps the detections of one image above the threshold, and writes its picture."""
        self.images.append({"id": index + 1, "path": found.path, "width": picture.width, "height": picture.height})
        overlay, rows = self._found(boxlist, picture, index + 1, found.name)
        save_picture(overlay, self.overlays[index])
        self.rows += rows

    def add_frame(self, found: Found, frame: Frame, boxlist: BoxList) -> Image.Image:
        """Keeps the detections of a video's picture; answers the picture with what was found."""
        self.frames += 1
        overlay, rows = self._found(boxlist, frame.picture, len(self.overlays) + self.frames, found.name)
        self.rows += [{**row, "frame": frame.index, "seconds": round(frame.seconds, 3)} for row in rows]
        return overlay

    def _found(self, boxlist: BoxList, picture: Image.Image, image_id: int, name: str) -> tuple[Image.Image, list[dict[str, Any]]]:
        """What is above the threshold, drawn and in rows."""
        from ..structures.segmentation_mask import SegmentationMask
        from .draw import draw_detections

        self.looked_at += 1
        self.best = max([self.best, *boxlist.get_field("scores").tolist()])
        boxlist = self.demo.select_top_predictions(boxlist)
        masks = self.demo.run_lengths(boxlist)
        if masks is not None:
            boxlist.add_field("masks", SegmentationMask(masks, boxlist.size))
        overlay = draw_detections(picture.convert("RGB"), boxlist, self.demo.CATEGORIES, enlarge=enlargement(picture.size))
        return overlay, result_rows(boxlist, masks, image_id, name, self.demo.CATEGORIES)


def enlargement(size: tuple[int, int]) -> int:
    """Factor that makes the names in a picture of (width, height) readable."""
    return max(min(_READABLE_SIDE // min(size), _MOST_ENLARGED, _LARGEST_SIDE // max(size)), 1)


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


def _summary(results: Results, photos: int, videos: int, seconds: float) -> str:
    from .video import is_video

    faulty = sum(map(is_video, results.failed))
    skipped = len(results.failed) - faulty
    done = [f"{photos - skipped} of {photos} images" + (f", {skipped} skipped" if skipped else "")] if photos else []
    if videos:
        frames = f"{_counted(results.frames, 'picture')} of {_counted(videos, 'video')}"
        done.append(frames + (f", {faulty} of them not whole" if faulty else ""))
    rate = (photos - skipped + results.frames) / max(seconds, 1e-9)
    return f"{' and '.join(done)}: {_counted(len(results.rows), 'object')} in {seconds:.1f} s ({rate:.1f} images/s)"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


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

    def expect(self, images: int) -> None:
        self.bar.total += images
        self.bar.refresh()

    def advance(self, images: int) -> None:
        self.bar.update(images)
