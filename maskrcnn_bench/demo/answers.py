"""What the server of the page answers: a body becomes a picture, the model looks at it, and what it finds becomes JSON or a JPEG."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from ..structures.bounding_box import BoxList
    from .predictor import COCODemo

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
TYPES = tuple(f"image/{name.lower()}" for name in FORMATS)
MOST_BYTES = 20 << 20
"""Of an image's file."""
MOST_PIXELS = 50_000_000
"""Of an image; it takes three bytes for each."""
_LONGEST_JPEG = 65500


class Refusal(Exception):
    """An answer that says why there is no better one."""

    def __init__(self, status: HTTPStatus, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class Turns:
    """Work for a thread of its own, one piece at a time.

    All calls of the model come from one thread: PyTorch keeps a pool of threads for each one that calls it.
    """

    def __init__(self, waiting: int):
        self._places = threading.BoundedSemaphore(1 + waiting)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")

    def __enter__(self) -> ThreadPoolExecutor:
        if not self._places.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the model is busy; try again in a moment", {"Retry-After": "1"})
        return self._worker

    def __exit__(self, *error: Any) -> None:
        self._places.release()

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)


def read_picture(content: bytes) -> Image.Image:
    """The RGB picture that a body holds."""
    from .images import ImageTooLarge, decode_image

    try:
        return decode_image(io.BytesIO(content), "the image", FORMATS, MOST_PIXELS)
    except ImageTooLarge as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except OSError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None


def find(demo: COCODemo, picture: Image.Image, score: float) -> BoxList:
    """Objects with a higher score, best first, with `masks` in run lengths from a model with masks."""
    from ..structures.segmentation_mask import SegmentationMask

    (found,) = demo.detect([picture])
    found = found[found.get_field("scores") > score]
    masks = demo.run_lengths(found)
    if masks is not None:
        found.add_field("masks", SegmentationMask(masks, found.size))
        found.add_field("run_lengths", masks)
    return found


def as_json(demo: COCODemo, picture: Image.Image, score: float) -> bytes:
    """The answer of /detect."""
    from .predict import result_rows

    begin = time.perf_counter()
    found = find(demo, picture, score)
    milliseconds = (time.perf_counter() - begin) * 1000
    masks = found.get_field("run_lengths") if found.has_field("run_lengths") else None
    rows = result_rows(found, masks, 1, "", demo.CATEGORIES)
    for row in rows:
        del row["image_id"], row["file_name"]
    if found.has_field("keypoints"):
        from .draw import seen_points

        for row, seen in zip(rows, seen_points(found.get_field("keypoints")).tolist(), strict=True):
            row["seen"] = seen
    answer = {"width": picture.width, "height": picture.height, "milliseconds": round(milliseconds, 1), "detections": rows}
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


def as_jpeg(demo: COCODemo, picture: Image.Image, score: float, opacity: float) -> bytes:
    """The answer of /draw."""
    from .draw import draw_detections
    from .predict import enlargement

    if max(picture.size) > _LONGEST_JPEG:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the image is longer than a JPEG can be, {_LONGEST_JPEG} pixels; cut it")
    found = find(demo, picture, score)
    drawn = draw_detections(picture, found, demo.CATEGORIES, mask_opacity=opacity, enlarge=enlargement(picture.size))
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def description(demo: COCODemo) -> dict[str, Any]:
    """The answer of /model."""
    from .draw import colors_of

    colors = colors_of(range(len(demo.CATEGORIES))).tolist()
    return {
        "classes": list(demo.CATEGORIES),
        "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in colors],
        "skeleton": [] if demo.keypoint_kind is None else demo.keypoint_kind.joined(),
        "score": demo.confidence_threshold,
        "masks": demo.has_masks,
        "device": str(demo.device),
        "types": TYPES,
        "most_bytes": MOST_BYTES,
    }
