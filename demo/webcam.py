"""What a model finds in a camera's pictures, in a window of OpenCV. `q` or Esc ends it.

    python demo/webcam.py --config-file caffe2/e2e_mask_rcnn_R_50_FPN_1x_caffe2.yaml
    python demo/webcam.py --weights output/demo MODEL.DEVICE cpu

On a machine without a screen, or for the camera of a phone: maskrcnn-bench demo --serve
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from maskrcnn_bench.demo.options import count, share

DEFAULT_CONFIG = "caffe2/e2e_mask_rcnn_R_50_FPN_1x_caffe2.yaml"
WINDOW = "maskrcnn_bench"
PATIENCE = 10
"""Pictures in a row that a camera may fail to give; some do while they wake up."""
_KEYS_THAT_END = (ord("q"), ord("Q"), 27)


class CameraError(Exception):
    """A camera or window that does not work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the camera until a key ends it; returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    try:
        cv2 = _opencv()
        camera = open_camera(cv2, args.camera)
        try:
            demo = build_demo(args)
            show(cv2, camera, demo, args.camera)
        except cv2.error as error:
            reason = str(error).strip().splitlines()[0]
            remedy = "it needs a screen and opencv-python, not -headless; in a browser: maskrcnn-bench demo --serve"
            raise CameraError(f"OpenCV cannot open a window ({reason}); {remedy}") from None
        finally:
            camera.release()
            _close_windows(cv2)
    except (CameraError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Shows what a model finds in a camera's pictures; q or Esc ends it.")
    config = f"YAML file, or the name of a shipped one; without it what --weights carry, else {DEFAULT_CONFIG}"
    parser.add_argument("--config-file", default="", metavar="FILE", help=config)
    weights = "a trained model: a file, an address, or the output folder of a training; without it MODEL.WEIGHT of the configuration"
    parser.add_argument("--weights", default="", metavar="FILE", help=weights)
    parser.add_argument("--camera", type=int, default=0, metavar="N", help="which camera; %(default)s is the first")
    score = "least score of what is shown, 0 to 1; %(default)s"
    parser.add_argument("--confidence-threshold", type=share, default=0.7, metavar="S", help=score)
    size = "shorter side that pictures are brought to, pixels; less is faster; %(default)s"
    parser.add_argument("--min-image-size", type=count, default=224, metavar="N", help=size)
    heat = "show the masks' probabilities in a grid instead of the picture"
    parser.add_argument("--show-mask-heatmaps", action="store_true", help=heat)
    parser.add_argument("--masks-per-dim", type=count, default=2, metavar="N", help="heat maps in a row of the grid; %(default)s")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration: MODEL.DEVICE cpu")
    return parser


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        remedy = 'pip install -e ".[demo]" in the checkout, or use the page in a browser, which needs none: maskrcnn-bench demo --serve'
        raise ImportError(f"the camera's window needs OpenCV ({error}): {remedy}") from None


def open_camera(cv2: Any, number: int) -> Any:
    """The camera, before the model is loaded: a missing one is told at once."""
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        camera.release()
        remedy = "is it plugged in, free, and may you read /dev/video*? --camera takes another"
        raise CameraError(f"camera {number} cannot be opened; {remedy}")
    return camera


def build_demo(args: argparse.Namespace) -> Any:
    """The model that the command line means."""
    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.demo import COCODemo

    options = {
        "show_mask_heatmaps": args.show_mask_heatmaps,
        "masks_per_dim": args.masks_per_dim,
        "min_image_size": args.min_image_size,
    }
    if args.weights:
        return COCODemo.from_weights(args.weights, args.config_file, args.opts, args.confidence_threshold, **options)
    return COCODemo(load_config(args.config_file or DEFAULT_CONFIG, args.opts), args.confidence_threshold, **options)


def show(cv2: Any, camera: Any, demo: Any, number: int) -> None:
    """Shows pictures until a key is pressed or the window closed.

    Raises:
        CameraError: when the camera gives no more pictures.
    """
    begin, frames, failed = time.perf_counter(), 0, 0
    while failed < PATIENCE:
        given, image = camera.read()
        if given:
            frames += 1
            cv2.imshow(WINDOW, demo.run_on_opencv_image(image))
        failed = 0 if given else failed + 1
        # Windows are painted, and keys taken, while waiting, milliseconds.
        if cv2.waitKey(1 if given else 50) & 0xFF in _KEYS_THAT_END or _closed(cv2, frames):
            seconds = time.perf_counter() - begin
            print(f"{frames} pictures in {seconds:.1f} s, {frames / seconds:.1f} a second on {demo.device}")
            return
    raise CameraError(f"camera {number} gives no more pictures, after {frames}; was it unplugged, or does another program use it?")


def _closed(cv2: Any, frames: int) -> bool:
    """Whether somebody closed the window that the first picture opened."""
    return frames > 0 and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1


def _close_windows(cv2: Any) -> None:
    try:
        cv2.destroyAllWindows()
    except cv2.error:
        # Builds of OpenCV without windows have none to close.
        return


if __name__ == "__main__":
    sys.exit(main())
