"""`maskrcnn-bench convert SRC DST`: weights of any known project as a file of this library, of detectron2 or of torchvision."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.download import hash_of
from ..utils.files import write_atomically
from .anchor_order import RATIO_MAJOR, SIZE_MAJOR, anchor_grid, several_anchors
from .convert import load_weights
from .detectron2 import to_detectron2
from .load import SERIOUS, Report, load_into
from .names import Loaded
from .torchvision import to_torchvision

FORMATS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "maskrcnn_bench": lambda state: {"model": state},
    "detectron2": lambda state: {"model": to_detectron2(state), "__author__": "maskrcnn_bench", "matching_heuristics": False},
    "torchvision": to_torchvision,
}
"""What each project's loader wants to find in a file, made of tensors in our names."""
ORDERS = {"detectron2": SIZE_MAJOR, "torchvision": RATIO_MAJOR}
"""In which order the projects count anchors."""


def convert_main(argv: Sequence[str]) -> int:
    """Runs the verb; `argv` is what follows the word `convert`."""
    args = _parser().parse_intermixed_args(argv)
    try:
        # What a receipt needs is read first: a wrong name should not cost a conversion.
        receipt = Receipt(args) if args.receipt is not None or args.save_receipt else None
        print(convert_file(args.source, args.target, args.to, args.strict, args.config_file, args.opts).summary(args.limit))
        print(f"wrote {args.target}")
        return 0 if receipt is None or receipt.run() else 1
    except (ValueError, OSError) as error:
        print(f"maskrcnn-bench convert: {error}", file=sys.stderr)
        return 1


# Rows that detectron2 does not keep: the background has neither boxes nor masks there.
LOST_ROWS = {
    "detectron2": {f"{name}.{kind}": rows for name, rows in (("bbox_pred", 4), ("mask_fcn_logits", 1)) for kind in ("weight", "bias")}
}


class Receipt:
    """One image through the model before and after the conversion, and against what a file expects.

    Args:
        args: the command line's.
    Raises:
        ValueError: no configuration, or another image than the expectations are for.
    """

    def __init__(self, args: argparse.Namespace):
        from .receipt_files import generated_picture, picture_digest, read_expected

        self.args = args
        self.expected = read_expected(args.receipt) if args.receipt else None
        self.cfg = self._config()
        file = args.image or (self.expected.image if self.expected else None)
        self.picture = _picture(file) if file else generated_picture()
        size = list(self.picture.size)
        self.image_about = {"file": str(file or "generated"), "size": size, "sha256": picture_digest(self.picture)}
        wanted = self.expected.about.get("image", self.image_about) if self.expected else self.image_about
        if wanted["sha256"] != self.image_about["sha256"]:
            raise ValueError(
                f"{args.receipt} is of the image {wanted['file']} ({wanted['size'][0]} x {wanted['size'][1]}), but "
                f"{file or 'the generated one'} ({size[0]} x {size[1]}) has other pixels; name that image with --image"
            )

    def _config(self) -> Any:
        from ..config import get_defaults, load_config

        if self.args.config_file:
            return load_config(self.args.config_file, list(self.args.opts))
        stored = self.expected.about.get("config") if self.expected else None
        if stored is None:
            raise ValueError("a receipt runs the model, so it needs its configuration: --config-file FILE")
        cfg = get_defaults()
        cfg.merge_leaves(stored.items(), str(self.args.receipt))
        cfg.merge_from_list(list(self.args.opts))
        cfg.freeze()
        return cfg

    def run(self) -> bool:
        """Prints all rows; whether every one is within its tolerance."""
        from .receipt import compare, observe, tensor_row

        args, images = self.args, self._images()
        rules, source = self._rules(), load_weights(args.source)
        before, after = self._model(source), self._model(load_weights(args.target))
        ours = observe(after, images(after))
        rows = [tensor_row(_floats(before), _floats(after), LOST_ROWS.get(args.to, {}))]
        more, notes = compare(observe(before, images(before)).expectation(), ours, rules)
        good = _print_rows(f"{args.source} against {args.target}", rows + more, notes)
        if self.expected:
            for line in self._differences():
                print(f"  {line}")
            good &= _print_rows(f"{args.target} against {args.receipt}", *compare(self.expected.stages, ours, rules, self.expected.noise))
        if args.save_receipt and good:
            self._save(ours)
        return good

    def _model(self, loaded: Loaded) -> torch.nn.Module:
        """The configuration's model with all of its weights."""
        from ..modeling.detector import build_detection_model

        model = build_detection_model(self.cfg)
        report = load_into(model, loaded)
        left = report.missing + [name for name, *_ in report.reinitialised]
        if left:
            raise ValueError(
                f"{report.source} has no values for {len(left)} tensors of the model ({', '.join(left[:3])}, ...), so a receipt would "
                "compare random numbers. Does the configuration (number of classes, heads) belong to these weights?"
            )
        return model

    def _images(self) -> Callable[[torch.nn.Module], Any]:
        """Model to the picture as the model takes it."""
        from ..data.build import make_resize
        from ..data.transforms import Compose, ToTensor
        from ..structures.bounding_box import BoxList
        from ..structures.image_list import to_image_list

        resize = make_resize(self.cfg, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        tensor, frame = Compose([resize, ToTensor()])(self.picture, BoxList([], self.picture.size))

        def padded(model: torch.nn.Module) -> Any:
            images = to_image_list([tensor], model.size_divisible)
            factor = frame.extra_fields.get("resize_factor")
            images.scales = None if factor is None else torch.tensor([factor])
            return images

        return padded

    def _rules(self) -> Any:
        from ..config.dialect import get_dialect
        from .receipt import Rules

        dense, heads, rpn = self.cfg.MODEL.RETINANET, self.cfg.MODEL.ROI_HEADS, self.cfg.MODEL.RPN
        nms, least = (dense.NMS_TH, dense.INFERENCE_TH) if self.cfg.MODEL.RETINANET_ON else (heads.NMS, heads.SCORE_THRESH)
        if self.cfg.MODEL.RPN_ONLY:
            nms, least = rpn.NMS_THRESH, -float("inf")
        return Rules(get_dialect(self.cfg.MODEL.DIALECT).pixel, rpn.NMS_THRESH, nms, least)

    def _differences(self) -> list[str]:
        """What the receipt's run had otherwise, in words."""
        about, lines = self.expected.about, []
        if "recorded with" in about:
            return [f"the expectations were recorded with {json.dumps(about['recorded with'])}"]
        if about["weights"]["sha256"] != hash_of(self.args.source):
            lines.append(f"the receipt is of another file of weights, {about['weights']['file']}")
        now = _changed_keys(self.cfg)
        names = [name for name in {**about["config"], **now} if about["config"].get(name) != now.get(name)]
        return lines + [f"the receipt's configuration had {name}: {about['config'].get(name, 'its default')}" for name in names]

    def _save(self, observation: Any) -> None:
        from .receipt_files import write_receipt

        weights = {"file": str(self.args.source), "sha256": hash_of(self.args.source)}
        about = {"weights": weights, "image": self.image_about, "config": _changed_keys(self.cfg)}
        write_receipt(self.args.save_receipt, observation, about)
        print(f"wrote {self.args.save_receipt}")


def _changed_keys(cfg: Any) -> dict[str, Any]:
    """{key: value} that is not at its default, as JSON reads it back."""
    from ..config.loader import diff

    return json.loads(json.dumps({key: value for key, _, value in diff(cfg) if key != "PATHS_CATALOG"}))


def _picture(file: str | Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file}: expected an image ({error})") from None


def _floats(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point() and ".cell_anchors." not in name}


def _print_rows(title: str, rows: list[Any], notes: list[str]) -> bool:
    """Prints a table; whether all of it is within its tolerances."""
    failed = [row.stage for row in rows if not row.ok]
    print(f"{title}\n  {'stage':22} {'difference':>10} {'tolerance':>10}")
    print("\n".join([*map(str, rows), *(f"    {note}" for note in notes)]))
    print(f"  {len(rows)} stages, {len(failed)} outside the tolerance{': ' + ', '.join(failed) if failed else ''}")
    return not failed


def convert_file(
    source: str | Path,
    target: str | Path,
    to: str = "maskrcnn_bench",
    strict: bool = False,
    config_file: str = "",
    opts: Sequence[str] = (),
) -> Report:
    """Reads weights, writes them in another project's form, and says what became of every tensor.

    Args:
        source: a file of any known project.
        target: the new file, written in one step: it is whole or not there.
        to: a key of FORMATS.
        strict: tensors without a place are an error, and nothing is written.
        config_file: with a configuration, the weights go through its model: what does not fit keeps the model's initial values, and
            the new file has exactly the model's tensors.
        opts: overrides of the configuration, KEY VALUE.
    Raises:
        ValueError: unreadable or unknown weights, or weights that do not fit.
    """
    _check_target(source, target)
    loaded = load_weights(source)
    if config_file:
        model = _build(config_file, opts)
        report = load_into(model, loaded, strict)
        state = model.state_dict()
    else:
        report, state = _report(loaded, strict), loaded.state_dict
    content = FORMATS[to](dict(state)) | _anchors_said(loaded, state, to)
    write_atomically(target, lambda file: torch.save(content, file), durable=True)
    return report


def _anchors_said(loaded: Loaded, state: dict[str, Tensor], to: str) -> dict[str, str]:
    """What a file of ours says of the order of anchors that are not in it.

    Raises:
        ValueError: the other project counts them otherwise, or may do so, and how many sizes and ratios there are nobody knows.
    """
    order, theirs = loaded.meta.get("anchor_order"), ORDERS.get(to)
    if anchor_grid(state) or not several_anchors(state) or order == theirs:
        return {}
    if to not in ORDERS:
        return {"anchor_order": order}
    count = len(state["rpn.head.bbox_pred.weight"]) // 4
    raise ValueError(
        f"{loaded.meta['file']} ({loaded.kind}): {count} anchors a cell, which {to} may count in another order; expected the configuration "
        "that says how many sizes and ratios they have: --config-file FILE"
    )


def _check_target(source: str | Path, target: str | Path) -> None:
    if Path(target).suffix not in (".pth", ".pt"):
        raise ValueError(f"{target}: expected a name that ends in .pth or .pt")
    if not Path(target).absolute().parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {Path(target).absolute().parent}")
    if Path(target).exists() and Path(source).exists() and Path(target).samefile(source):
        raise ValueError(f"{target}: the new file would replace the one it is made from")


def _build(config_file: str, opts: Sequence[str]) -> torch.nn.Module:
    from ..config import load_config
    from ..modeling.detector import build_detection_model

    return build_detection_model(load_config(config_file, list(opts)))


def _report(loaded: Loaded, strict: bool) -> Report:
    """What the names alone tell: no model says whether shapes fit or tensors are missing."""
    source = loaded.meta["source"]
    unused = list(loaded.meta["unused"].items())
    report = Report(
        f"{loaded.meta['file']} ({loaded.kind})", loaded.meta["expects"], len(source) + len(unused), list(source), unused=unused
    )
    report.renamed = [(theirs, ours) for ours, theirs in source.items() if theirs != ours]
    lost = [f"{name}: {why}" for name, why in unused if why in SERIOUS]
    if strict and lost:
        raise ValueError(f"{report.source}: {len(lost)} tensors have no place (strict):\n  " + "\n  ".join(lost))
    return report


_RECEIPT_HELP = (
    "afterwards run one image through the model before and after, and, with FILE (a saved receipt, or a folder with expected.npz and "
    "spec.json), compare with what it expects; prints the largest difference of every stage, and fails beyond the tolerance"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Convert weights between projects. Nothing in a file is executed.")
    parser.add_argument("source", metavar="SRC", help="weights of maskrcnn-benchmark, Detectron, detectron2, torchvision, mmdetection, ...")
    parser.add_argument("target", metavar="DST", help="the new file, .pth")
    parser.add_argument("--to", choices=list(FORMATS), default="maskrcnn_bench", help="whose names and layout (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="tensors without a place are an error")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="the model that the weights are for: checks shapes, fills what is missing"
    )
    parser.add_argument("--receipt", nargs="?", const="", metavar="FILE", help=_RECEIPT_HELP)
    parser.add_argument("--save-receipt", default="", metavar="FILE", help="write what the stages gave as a receipt, JSON")
    parser.add_argument("--image", default="", metavar="FILE", help="the image of the receipt (default: a generated one)")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="names shown of each list (default: %(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser
