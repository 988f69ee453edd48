"""The verb `demo`: a Mask R-CNN on the toy data set, from nothing to pictures, in minutes on a CPU; with `--serve` a page instead."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = "toy/mask_rcnn_R_18_FPN.yaml"
COLUMNS, ROWS, ENLARGE = 4, 3, 3
SCORE = 0.5
SERVE = "--serve"


def demo_main(argv: Sequence[str] | None = None) -> int:
    """Generates the data, trains, tests, draws; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if SERVE in words:
        from .serve import serve_main

        return serve_main([word for word in words if word != SERVE])
    try:
        return _make(_parser().parse_args(words))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _make(args: argparse.Namespace) -> int:
    if any(word.startswith("OUTPUT_DIR") for word in args.opts):
        raise ValueError("OUTPUT_DIR: --output names the folder of the demo")
    begun = time.monotonic()
    folder = Path(args.output)
    data = _generate(folder / "data", args)
    from ..engine.launch import train_main
    from ..evaluation.pictures import can_draw

    given = ["OUTPUT_DIR", str(folder), "SEED", str(args.seed), "TEST.PICTURES", "True"]
    code = train_main(["--config-file", CONFIG, "--data", str(data), *given, *args.opts])
    if code:
        return code
    sheet, hint = _draw_pictures(folder, data)
    made = [sheet, *([_draw_curve(folder)] if can_draw() else []), *sorted((folder / "inference" / data.name).glob("*.png"))]
    _tell(folder, made, time.monotonic() - begun, hint)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Trains a Mask R-CNN on generated scenes, tests it and draws what it finds.")
    output = "where everything goes (%(default)s); a run begun there goes on"
    parser.add_argument("--output", default="output/demo", metavar="DIR", help=output)
    parser.add_argument("--train-images", type=int, default=2000, metavar="N", help="scenes to train on (2000)")
    parser.add_argument("--test-images", type=int, default=200, metavar="N", help="held-out scenes (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and the flips; the scenes stay (0)")
    serve = "instead, show a trained model on a page, for the camera and for pictures; `demo --serve --help` explains it"
    parser.add_argument(SERVE, action="store_true", help=serve)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration: SOLVER.MAX_ITER 100")
    return parser


def _generate(folder: Path, args: argparse.Namespace) -> Path:
    from ..data.datasets.toy import generate

    print(f"scenes: {args.train_images} to train on, {args.test_images} held out, in {folder}", flush=True)
    return generate(folder, args.train_images, args.test_images)


def _draw_pictures(folder: Path, data: Path) -> tuple[Path, str]:
    """Detections on the first test scenes, one picture each, and all on one sheet; and what to say where there are none."""
    from PIL import Image

    from .draw import draw_detections
    from .predict import nothing_above, save_picture
    from .predictor import COCODemo

    demo = COCODemo.from_weights(folder / "model_final.pth", opts=["MODEL.DEVICE", "cpu"], confidence_threshold=SCORE)
    paths = sorted((data / "test").glob("*.jpg"))[: COLUMNS * ROWS]
    scenes = [Image.open(path).convert("RGB") for path in paths]
    tiles, best = [], 0.0
    for path, scene, found in zip(paths, scenes, demo.detect(scenes), strict=True):
        best = max([best, *found.get_field("scores").tolist()])
        picture = draw_detections(scene, demo.select_top_predictions(found), demo.CATEGORIES, enlarge=ENLARGE)
        (folder / "pictures").mkdir(exist_ok=True)
        save_picture(picture, str(folder / "pictures" / f"{path.stem}.png"))
        tiles.append(picture)
    sheet = Image.new("RGB", (COLUMNS * (tiles[0].width + 8) - 8, ROWS * (tiles[0].height + 8) - 8), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * (tile.width + 8), i // COLUMNS * (tile.height + 8)))
    save_picture(sheet, str(folder / "pictures.png"))
    return folder / "pictures.png", "" if best > SCORE else nothing_above(SCORE, best)


def _draw_curve(folder: Path) -> Path:
    """Loss and AP by iteration, from metrics.jsonl."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness"):
        left.plot(*_series(rows, name), label=name)
    for name in ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"):
        right.plot(*_series(rows, name), marker="o", label=name)
    left.set(title="training loss", xlabel="iteration", ylabel="loss")
    right.set(title="AP on held-out scenes", xlabel="iteration", ylim=(0, 1))
    for axes in (left, right):
        # A single test is a single point, about which matplotlib would lay an axis of hundredths of iterations.
        axes.set_xlim(0, 1.02 * rows[-1]["iteration"])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "curve.png", dpi=110)
    return folder / "curve.png"


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(row["iteration"], row[name]) for row in rows if name in row]
    return [i for i, _ in found], [v for _, v in found]


def _tell(folder: Path, made: list[Path], seconds: float, hint: str) -> None:
    results = json.loads((folder / "results.json").read_text())
    print(f"\nDone in {seconds / 60:.1f} minutes. On scenes it has never seen:")
    for task, what in (("bbox", "boxes"), ("segm", "masks")):
        if task in results:
            print(f"  {what:<6} AP {results[task]['AP']:.3f}   AP50 {results[task]['AP50']:.3f}")
    if hint:
        print(f"The pictures are empty: {hint}. Train longer, or look with `predict` (below) and a lower --score.")
    print("What it made:")
    for path in (*made, folder / "model_final.pth", folder / "results.json", folder / "metrics.jsonl", folder / "config.yml"):
        print(f"  {path}")
    print("What to try next:")
    print(f"  maskrcnn-bench predict {folder}/data/test --weights {folder}/model_final.pth     pictures and COCO JSON of any images")
    print("  maskrcnn-bench train --config-file e2e_mask_rcnn_R_50_FPN_1x.yaml --data FOLDER  your own COCO or VOC folder")
    print("  maskrcnn-bench doctor                                                            what this machine runs on")
