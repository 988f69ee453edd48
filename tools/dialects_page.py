#!/usr/bin/env python
"""Write docs/dialects.md: what each column of the table of dialects does, as a number that this library computes for all five rows.

    python tools/dialects_page.py            rewrites the page
    python tools/dialects_page.py --check    exit code 1 when the page is not what would be written

A column has an example when EXAMPLES knows its name; the words of all columns and the reference's file of each value are read from
`config/dialect.py`, so the page cannot disagree with the table.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout works without being installed

from maskrcnn_bench.config import load_config  # noqa: E402
from maskrcnn_bench.config.dialect import DIALECTS, Dialect  # noqa: E402
from maskrcnn_bench.data.build import make_resize  # noqa: E402
from maskrcnn_bench.data.transforms import Compose, ToTensor  # noqa: E402
from maskrcnn_bench.layers.blocks import FrozenBatchNorm2d  # noqa: E402
from maskrcnn_bench.layers.nms import nms  # noqa: E402
from maskrcnn_bench.layers.roi_align import roi_align  # noqa: E402
from maskrcnn_bench.modeling import build  # noqa: E402
from maskrcnn_bench.modeling.backbone.resnet import Stem  # noqa: E402
from maskrcnn_bench.modeling.box_coder import BoxCoder  # noqa: E402
from maskrcnn_bench.modeling.detector import Normalizer  # noqa: E402
from maskrcnn_bench.modeling.losses import smooth_l1  # noqa: E402
from maskrcnn_bench.modeling.matcher import Matcher  # noqa: E402
from maskrcnn_bench.modeling.poolers import Pooler, RoIs  # noqa: E402
from maskrcnn_bench.modeling.roi_heads.cascade import CASCADE_SCORES  # noqa: E402
from maskrcnn_bench.modeling.roi_heads.keypoint_head import KEYPOINT_RESULTS, locate  # noqa: E402
from maskrcnn_bench.modeling.roi_heads.mask_head import MASK_TARGETS  # noqa: E402
from maskrcnn_bench.modeling.rpn.retinanet import NORMALIZERS  # noqa: E402
from maskrcnn_bench.modeling.rpn.rpn import RPN_BOX_NORMALIZERS  # noqa: E402
from maskrcnn_bench.modeling.sampler import BalancedSampler, ReplacementSampler, Samples  # noqa: E402
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch  # noqa: E402
from maskrcnn_bench.structures.boxlist_ops import box_iou  # noqa: E402
from maskrcnn_bench.structures.image_list import to_image_list  # noqa: E402
from maskrcnn_bench.structures.mask_paste import paste_rle  # noqa: E402
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask, pack_masks  # noqa: E402

PAGE = ROOT / "docs" / "dialects.md"
TABLE = ROOT / "maskrcnn_bench" / "config" / "dialect.py"
BOX = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
EXAMPLES: dict[str, tuple[str, Callable[[Dialect], str]]] = {}


def example(field: str, caption: str) -> Callable:
    """Registers a function (row of the table -> text) as the example of a column."""

    def register(function: Callable[[Dialect], str]) -> Callable[[Dialect], str]:
        EXAMPLES[field] = caption, function
        return function

    return register


def number(value: float, digits: int = 4) -> str:
    """At most `digits` decimals, without zeros at the end."""
    text = f"{float(value):.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def numbers(values: torch.Tensor, digits: int = 4) -> str:
    return "(" + ", ".join(number(v, digits) for v in values.flatten().tolist()) + ")"


def configured(d: Dialect, *opts: object):
    return load_config(None, ["MODEL.DIALECT", d.name, *map(str, opts)])


def coder(d: Dialect, weights: tuple = (1.0, 1.0, 1.0, 1.0)) -> BoxCoder:
    return BoxCoder(weights, d.pixel, d.decode_pixel, d.log_size_range)


# Boxes


@example("pixel", "area of the box (10, 20, 50, 60)")
def _area(d: Dialect) -> str:
    return number(BoxList(BOX, (640, 480), pixel=d.pixel).area())


@example("decode_pixel", "the box (10, 20, 50, 60) decoded with the codes (0.1, -0.1, 0.2, 0)")
def _decoded(d: Dialect) -> str:
    return numbers(coder(d).decode(torch.tensor([[0.1, -0.1, 0.2, 0.0]]), BOX))


@example("log_size_range", "width and height that the box (10, 20, 50, 60) gets from dw = 5 and dh = -5")
def _clamped(d: Dialect) -> str:
    box = coder(d).decode(torch.tensor([[0.0, 0.0, 5.0, -5.0]]), BOX)[0]
    return numbers(box[2:] - box[:2] + d.decode_pixel)


# Anchors


@example("anchor_rule", "anchor at cell 0 of stride 8: size 32, height half of the width")
def _first_anchor(d: Dialect) -> str:
    generator = build.make_anchor_generator(configured(d, "MODEL.RPN.ANCHOR_SIZES", (32,), "MODEL.RPN.ANCHOR_STRIDE", (8,)))
    return numbers(generator([torch.zeros(1, 1, 1, 1)])[0][0], 2)


@example("anchor_order", "(width, height) of the second anchor for sizes 32, 64 and ratios 0.5, 1, to whole pixels")
def _second_anchor(d: Dialect) -> str:
    sizes = ("MODEL.RPN.ANCHOR_SIZES", (32, 64), "MODEL.RPN.ASPECT_RATIOS", (0.5, 1.0))
    box = build.make_anchor_generator(configured(d, *sizes))([torch.zeros(1, 1, 1, 1)])[0][1]
    return numbers((box[2:] - box[:2] + d.pixel).round())


@example("measured_strides", "distance of anchors on a level of stride 64 with 13 cells, in an image padded to 800 pixels")
def _distance(d: Dialect) -> str:
    opts = ("MODEL.RPN.USE_FPN", True, "MODEL.RPN.ANCHOR_STRIDE", (4, 64), "MODEL.RPN.ANCHOR_SIZES", (32, 64))
    generator = build.make_anchor_generator(configured(d, *opts, "MODEL.RPN.ASPECT_RATIOS", (1.0,)))
    boxes = generator([torch.zeros(1, 1, 200, 200), torch.zeros(1, 1, 13, 13)])[1]
    return number(boxes[1, 0] - boxes[0, 0])


@example("truncate_octaves", "side of RetinaNet's second anchor of 32 pixels, an octave's third larger, before it is rounded")
def _octave(d: Dialect) -> str:
    generator = build.make_retinanet_anchor_generator(configured(d, "MODEL.RETINANET.ASPECT_RATIOS", (1.0,)))
    box = list(generator.cell_anchors)[0][1]
    return number(box[2] - box[0] + (1 if d.anchor_rule == "rounded_corner" else 0), 3)


@example("anchors_of_padding", "anchors that train in a row of 40 cells of stride 16, for an image 300 wide in a batch 640 wide")
def _padded_anchors(d: Dialect) -> str:
    opts = ("MODEL.RPN.ANCHOR_SIZES", (32,), "MODEL.RPN.ASPECT_RATIOS", (1.0,), "MODEL.RPN.STRADDLE_THRESH", -1)
    generator = build.make_anchor_generator(configured(d, *opts, "DATALOADER.SIZE_DIVISIBILITY", 32))
    return str(int(generator.visible(generator([torch.zeros(1, 1, 1, 40)])[0], torch.tensor([[300.0, 300.0]])).sum()))


# Matching

NAMES = {-1: "background", -2: "neither"}


def matched(d: Dialect, objects: list, boxes: list, rivals: list | None = None) -> list[str]:
    matcher = Matcher(0.7, 0.3, True, d.low_quality_overlap, d.low_quality_to_best)
    targets = torch.tensor([objects], dtype=torch.float32)
    rivals = None if rivals is None or not d.only_visible_compete else torch.tensor([rivals])
    found = matcher(targets, torch.ones(1, len(objects), dtype=torch.bool), torch.tensor(boxes, dtype=torch.float32), 0, rivals)[0]
    return [NAMES.get(index, f"object {index + 1}") for index in found.tolist()]


@example("low_quality_overlap", "label of the only anchor near an object, overlap 0.25")
def _weak(d: Dialect) -> str:
    return matched(d, [[0, 0, 10, 10]], [[0, 0, 10, 2.5]])[0]


@example(
    "low_quality_to_best", "owner of an anchor with overlap 0.31 with object 1, its best, and 0.47 with object 2, which another anchor fits"
)
def _owner(d: Dialect) -> str:
    return matched(d, [[0, 0, 10, 10], [5, 0, 20, 10]], [[6, 0, 13, 10], [5, 0, 20, 10]])[0]


@example("only_visible_compete", "label of a usable anchor, overlap 0.5, when one beyond the border fits the object exactly")
def _rival(d: Dialect) -> str:
    return matched(d, [[0, 0, 10, 10]], [[0, 0, 10, 5], [0, 0, 10, 10]], [True, False])[0]


# Proposals


@example("rank_by", "are the logits 20 and 30 told apart?")
def _ranked(d: Dialect) -> str:
    logits = torch.tensor([20.0, 30.0])
    scores = logits.sigmoid() if d.rank_by == "probability" else logits
    return "no, both are 1" if scores[0] == scores[1] else "yes"


@example("drop_empty", "is a proposal kept that is exactly as wide as RPN.MIN_SIZE?")
def _kept(d: Dialect) -> str:
    selector = build.make_proposal_selector(configured(d, "MODEL.RPN.MIN_SIZE", 4), coder(d), train=False)
    anchors, unmoved, first = torch.tensor([[0.0, 0.0, 4.0 - d.pixel, 40.0]]), torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64)
    size, exact = torch.tensor([[99.0, 99.0]]), BoxCoder((1.0,) * 4, d.pixel, d.pixel, (-1.0, 1.0))
    kept = exact.decode_chosen(unmoved, anchors, first, size, True, selector.min_size, selector.drop_empty)[1]
    return "yes" if kept else "no"


@example("nms_inclusive", "boxes left of two that overlap by exactly 0.5, at that threshold")
def _suppressed(d: Dialect) -> str:
    side = 10.0 - d.pixel
    boxes = torch.tensor([[0.0, 0.0, side, side], [0.0, 0.0, side, 5.0 - d.pixel]])
    return str(len(nms(boxes, torch.tensor([0.9, 0.8]), build._nms_thresh(0.5, d), d.pixel)))


@example("nms_offset", "x1 = 0.1 in class 80, while boxes reach to 800: what the suppression sees of it")
def _moved(d: Dialect) -> str:
    offset = torch.tensor(80 * 801.0) if d.nms_offset else torch.tensor(0.0)
    return number((torch.tensor(0.1) + offset) - offset, 6)


@example("zero_proposals", "boxes that go through the heads when an image has 120 proposals of POST_NMS_TOP_N_TEST 300")
def _filled(d: Dialect) -> str:
    return "300" if build.make_proposal_selector(configured(d), coder(d), train=False).zero_boxes else "120"


# Detections


@example("nms_original", "overlap of (0, 0, 19, 9) and (0, 0, 9, 9) in an image that was enlarged twice")
def _overlap(d: Dialect) -> str:
    boxes = torch.tensor([[0.0, 0.0, 19.0, 9.0], [0.0, 0.0, 9.0, 9.0]]) / (2 if d.nms_original else 1)
    return number(box_iou(boxes[:1], boxes[1:], d.pixel))


@example("detection_ties", "most detections of an image with DETECTIONS_PER_IMG 100, when the last ones score the same")
def _slots(d: Dialect) -> str:
    return str(100 + d.detection_ties)


@example("cascade_mean", "score of a class from logits (4, 0, -2) against 0 in three stages")
def _cascade(d: Dialect) -> str:
    stages = [torch.tensor([[[x, 0.0]]]) for x in (4.0, 0.0, -2.0)]
    return number(CASCADE_SCORES[d.cascade_mean](stages)[0, 0, 0])


# Pooling


def sample_place(d: Dialect, box: torch.Tensor, cells: int) -> float:
    """Column of the first sample, read off a map that holds its own columns."""
    ramp = torch.arange(64.0).expand(1, 1, 64, 64).contiguous()
    index = torch.zeros(1, dtype=torch.int64)
    return roi_align([ramp], box, index, index, [1 / 16], cells, cells, 1, d.roi_shift, d.roi_min_size)[0, 0, 0, 0].item()


@example("roi_shift", "first sample of (10, 20, 50, 60) at stride 16, 2 x 2 cells, in columns of the map")
def _sample(d: Dialect) -> str:
    return number(sample_place(d, BOX, 2))


@example("roi_min_size", "the same for a box of 4 pixels, (40, 40, 44, 44)")
def _small_sample(d: Dialect) -> str:
    return number(sample_place(d, torch.tensor([[40.0, 40.0, 44.0, 44.0]]), 2))


@example("level_epsilon", "level (2 the finest) of a box of 223.9998 pixels, where 224 begin level 4")
def _level(d: Dialect) -> str:
    pooler = Pooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 2, d.roi_shift, d.roi_min_size, d.level_epsilon)
    box = BoxList(torch.tensor([[0.0, 0.0, 223.9998, 223.9998]]), (640, 480), pixel=0)
    rois = RoIs.flatten(BoxListBatch.pad([box]), static=False)
    return str(int(pooler.levels(rois)[0]) + 2)


# Backbone and input


@example("frozen_norm_eps", "0.01 after a frozen norm of mean 0 and variance 0.0001")
def _normed(d: Dialect) -> str:
    norm = FrozenBatchNorm2d(1, eps=d.frozen_norm_eps)
    norm.running_var.fill_(1e-4)
    return number(norm(torch.full((1, 1, 1, 1), 0.01)))


@example("stem_pool_padding", "columns after the stem of an image 450 wide, and how many of the convolution the first one pools")
def _stem(d: Dialect) -> str:
    stem = Stem(4, FrozenBatchNorm2d, d.stem_pool_padding)
    out = stem(torch.zeros(1, 3, 64, 450)).shape[-1]
    return f"{out}, {'2' if d.stem_pool_padding else '3'}"


def resized(d: Dialect, picture: Image.Image) -> torch.Tensor:
    cfg = configured(d, "INPUT.PIXEL_MEAN", (0, 0, 0), "INPUT.PIXEL_STD", (1, 1, 1), "INPUT.TO_BGR255", True)
    return Compose([make_resize(cfg, 300, 1000), ToTensor()])(picture, BoxList([], picture.size))[0]


@example("resize_rounding", "size of a 640 x 423 image whose shorter side becomes 300")
def _resized(d: Dialect) -> str:
    height, width = resized(d, Image.new("RGB", (640, 423))).shape[-2:]
    return f"{width} x {height}"


@example("interpolation", "the third column of that image when its columns are 0 and 255 in turns")
def _interpolated(d: Dialect) -> str:
    columns = np.where(np.arange(640) % 2, 255, 0).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(columns[None, :, None], (423, 640, 3)).copy())
    return number(resized(d, picture)[0, 150, 2], 1)


@example("unit_pixels", "a red value of 8 after mean 0.485 and deviation 0.229, to the last bit")
def _pixel(d: Dialect) -> str:
    images = to_image_list([torch.full((3, 1, 1), 8, dtype=torch.uint8)])
    value = Normalizer((0.485,) * 3, (0.229,) * 3, False, d.unit_pixels)(images)[0, 0, 0, 0]
    return f"{value.item():.9g}"


# Masks


@example("mask_target", "sum of the 28 x 28 target of the triangle (12, 22), (48, 22), (48, 58) in the box (10.5, 20, 50, 60)")
def _target(d: Dialect) -> str:
    mode = "mask" if d.mask_target in ("half_covered", "soft_cover") else "poly"
    masks = SegmentationMask([[[12, 22, 48, 22, 48, 58]]], (100, 80), mode=mode)
    box, size = torch.tensor([[10.5, 20.0, 50.0, 60.0]]), torch.tensor([[100.0, 80.0]])
    return number(MASK_TARGETS[d.mask_target](pack_masks([masks], 1), box, size, torch.zeros(1, dtype=torch.int64), 28).sum(), 2)


@example("mask_paste", "pixels of a full 28 x 28 mask pasted into the box (10.3, 20.6, 50.2, 60.8)")
def _pasted(d: Dialect) -> str:
    from pycocotools import mask as coco_mask

    rle = paste_rle(torch.ones(1, 28, 28), torch.tensor([[10.3, 20.6, 50.2, 60.8]]), (100, 80), 0.5, d.mask_paste)
    return str(int(coco_mask.area(rle[0])))


# Keypoints


@example("keypoint_score", "score of a point whose heat map is 5 in one of 4 x 4 cells and 0 elsewhere, in a box of 4 pixels")
def _score(d: Dialect) -> str:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 2] = 5.0
    points, largest, share = locate(maps, torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
    return number(KEYPOINT_RESULTS["share"](points, largest, share)[0, 0, 2] if d.keypoint_score == "share" else largest[0, 0])


# RetinaNet


@example("retinanet_weights", "code of an object 4 pixels to the right of the anchor (10, 20, 50, 60), 41 wide with the pixel rule 1")
def _code(d: Dialect) -> str:
    return number(coder(d, d.retinanet_weights).encode(BOX + torch.tensor([4.0, 0.0, 4.0, 0.0]), BOX)[0, 0])


@example("retinanet_normalizer", "divisors (classes, boxes) of two images with 3 and 5 positives; of each image where they differ")
def _divisors(d: Dialect) -> str:
    found = NORMALIZERS[d.retinanet_normalizer]()(torch.tensor([3, 5]))
    return "; ".join(numbers(torch.as_tensor(x, dtype=torch.float32)) for x in found)


# Losses


@example("roi_sampling", "slots in use of 512, when an image has 10 positives and 100 negatives")
def _drawn(d: Dialect) -> str:
    kind = ReplacementSampler if d.roi_sampling == "repeated" else BalancedSampler
    labels = torch.where(torch.arange(110) < 10, 1, 0)[None]
    return str(int(kind(512, 0.25, "box")(labels, torch.zeros(1, dtype=torch.int64)).valid.sum()))


@example(
    "rpn_normalizer",
    "divisor of the boxes' loss, two images with 256 and 200 anchors drawn of 256, none positive in the second",
)
def _divisor(d: Dialect) -> str:
    valid = torch.arange(256)[None] < torch.tensor([[256], [200]])
    positive = torch.arange(256)[None] < torch.tensor([[20], [0]])
    return number(RPN_BOX_NORMALIZERS[d.rpn_normalizer](Samples(torch.zeros(2, 256, dtype=torch.int64), positive, valid), 256))


def parabola(beta: float) -> str:
    ones = torch.ones(1, dtype=torch.bool)
    return number(smooth_l1(torch.tensor([[0.05]]), torch.zeros(1, 1), ones, beta))


@example("rpn_beta", "loss of a code that is 0.05 off")
def _rpn_loss(d: Dialect) -> str:
    return parabola(d.rpn_beta)


@example("box_beta", "loss of a code that is 0.05 off")
def _box_loss(d: Dialect) -> str:
    return parabola(d.box_beta)


# The page


def columns() -> list[tuple[str, str, str]]:
    """(section, field, its words) of the table, in its order."""
    source = TABLE.read_text(encoding="utf-8")
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Dialect").body
    headings = {i: line.strip("# \n") for i, line in enumerate(source.splitlines(), 1) if re.match(r"    # [A-Z]\w*( and \w+)?$", line)}
    found = []
    for node, text in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(text, ast.Expr):
            section = headings[max(line for line in headings if line < node.lineno)]
            found.append((section, node.target.id, " ".join(text.value.value.split())))
    return found


def sources() -> dict[tuple[str, str], str]:
    """{(project, field): the comment behind its value}."""
    found, name = {}, ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = re.match(r"            (\w+)=(.*?),(?:  # (.*))?$", line)
        if match:
            name = ast.literal_eval(match[2]) if match[1] == "name" else name
            found[name, match[1]] = match[3] or ""
    return found


def value_text(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(value_text(v) for v in value) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def page() -> str:
    """The whole page."""
    torch.set_num_threads(1)
    said, rows = sources(), list(DIALECTS.values())
    lines = [HEAD.format(projects=", ".join(d.name for d in rows))]
    section = ""
    for title, field, words in columns():
        lines += [f"## {title}\n"] if title != section else []
        section = title
        caption, function = EXAMPLES.get(field, ("", None))
        lines += [f"### `{field}`\n", f"{words}\n"]
        lines += [f"Example: {caption}{'' if caption[-1:] in '.?' else '.'}\n"] if function else []
        lines += [
            f"| project | value |{' example |' if function else ''} the reference's file |",
            f"|---|---|{'---|' if function else ''}---|",
        ]
        for d in rows:
            shown = f" **{function(d)}** |" if function else ""
            lines.append(f"| {d.name} | {value_text(getattr(d, field))} |{shown} {said.get((d.name, field)) or '-'} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


HEAD = """# Dialects: what each difference does

The five projects ({projects}) compute slightly different networks from the same weights. `maskrcnn_bench/config/dialect.py` names every
difference once; a configuration picks a row with `MODEL.DIALECT`. This page shows what each column does, on one small example, and in
which file of the reference it stands (folders as that table's introduction says; `-` where the project leaves it to torch, or has no such
step and the value is what the step would do). The examples are computed by this library: `python tools/dialects_page.py` writes the page,
and a test compares it.
"""


def main(argv: list[str] | None = None) -> int:
    """Writes the page, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the page is out of date")
    args = parser.parse_args(argv)
    text = page()
    if args.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE} is {'up to date' if same else 'out of date; run python tools/dialects_page.py'}")
        return 0 if same else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
