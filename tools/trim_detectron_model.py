"""Weights of Detectron without their last layers, as a start for other classes.

    python tools/trim_detectron_model.py --pretrained_path model_final.pkl --save_path trimmed.pth --heads box mask

The outputs of the named heads are left out, everything else stays; `MODEL.WEIGHT trimmed.pth` then starts from it. Without this
program the same happens wherever the number of classes differs: such layers are re-initialised and listed in the log.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from maskrcnn_bench.utils.files import write_atomically  # noqa: E402
from maskrcnn_bench.weights import load_weights  # noqa: E402
from maskrcnn_bench.weights.names import matches  # noqa: E402

LAST_LAYERS = {
    "box": tuple(f"roi_heads.box.predictor.{stage}{layer}.*" for stage in ("", "#.") for layer in ("cls_score", "bbox_pred")),
    "mask": ("roi_heads.mask.predictor.mask_fcn_logits.*", "roi_heads.mask.stages.#.predictor.mask_fcn_logits.*"),
    "keypoint": ("roi_heads.keypoint.predictor.kps_score_lowres.*",),
    "rpn": ("rpn.head.cls_logits.*", "rpn.head.bbox_pred.*"),
}


def trim(source: str, target: str, heads: Sequence[str]) -> list[str]:
    """Writes the weights without the last layers of `heads`; returns the names that were cut.

    Raises:
        ValueError: when the file is no weights, or a head is not in it.
    """
    loaded = load_weights(source)
    cut = []
    for head in heads:
        found = [name for name in loaded.state_dict if any(matches(template, name) for template in LAST_LAYERS[head])]
        if not found:
            raise ValueError(f"{source} ({loaded.kind}) has no {head} head to cut")
        cut += found
    content = {"model": {name: value for name, value in loaded.state_dict.items() if name not in cut}}
    write_atomically(target, lambda file: torch.save(content, file), durable=True)
    return cut


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cut the last layers off weights, to train other classes.")
    parser.add_argument(
        "--pretrained_path", "--pretrained-path", required=True, metavar="FILE", help="weights of Detectron (.pkl), or any known project"
    )
    parser.add_argument("--save_path", "--save-path", required=True, metavar="FILE", help="the new file, .pth")
    parser.add_argument("--heads", nargs="+", choices=list(LAST_LAYERS), default=["box"], help="whose last layers to cut (default: box)")
    parser.add_argument("--cfg", default="", help="not needed any more: the file itself tells what it is")
    args = parser.parse_args(argv)
    try:
        cut = trim(args.pretrained_path, args.save_path, args.heads)
    except (ValueError, OSError) as error:
        print(f"trim_detectron_model: {error}", file=sys.stderr)
        return 1
    print(f"cut {', '.join(cut)}; wrote {args.save_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
