"""Speed against torchvision, side by side: results are compared first, then both are timed in turns.

    python tools/benchmark.py                      every row, as a table
    python tools/benchmark.py --only P3,P5 --json benchmark.json
    python tools/benchmark.py --quick              small images and few repeats: does it run at all

A row whose results differ prints no ratio. Ratios are peer's median / our median; the spread is the range of the ratios of
single turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Case:
    """One comparison: `ours` and `peer` do the same work; `equal` says whether they give the same (None: checked elsewhere)."""

    id: str
    what: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    equal: bool
    note: str = ""


def take_turns(case: Case, repeats: int) -> dict:
    """Times A B A B ... and answers a row of the table."""
    for warm in (case.ours, case.peer):
        warm()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name in times:
            start = time.perf_counter()
            getattr(case, name)()
            times[name].append(time.perf_counter() - start)
    ours, peer = (statistics.median(times[name]) for name in ("ours", "peer"))
    ratios = [p / o for o, p in zip(times["ours"], times["peer"], strict=True)]
    return {"id": case.id, "what": case.what, "ours": ours, "peer": peer, "ratio": peer / ours, "spread": [min(ratios), max(ratios)]}


# Models with the same weights


def model_pair(kind: str, exhaustive: bool, size: tuple[int, int]):
    """Our model and torchvision's with the same random weights, `kind` "faster" or "mask"; `size` is (height, width)."""
    from torchvision.models import detection

    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.modeling.detector import build_detection_model
    from maskrcnn_bench.weights import load_into

    torch.manual_seed(0)
    factory = {"faster": detection.fasterrcnn_resnet50_fpn, "mask": detection.maskrcnn_resnet50_fpn}[kind]
    every = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6, "box_positive_fraction": 0.5} if exhaustive else {}
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=frozen_norm, trainable_layers=3
    )
    peer = factory(weights=None, weights_backbone=None, min_size=min(size), max_size=max(size), **every)
    peer.backbone = backbone
    spread_outputs(peer, size)
    options = ["MODEL.DEVICE", "cpu"]
    if exhaustive:
        options += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000000"]
        options += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"]
    ours = build_detection_model(load_config(str(ROOT / f"configs/torchvision/{kind}rcnn_resnet50_fpn.yaml"), options))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), Path(folder) / "peer.pth")
        load_into(ours, str(Path(folder) / "peer.pth"), strict=False)
    return ours.to(memory_format=torch.channels_last), peer


def frozen_norm(channels: int) -> torch.nn.Module:
    from torchvision.ops.misc import FrozenBatchNorm2d

    return FrozenBatchNorm2d(channels, eps=0.0)


@torch.no_grad()
def spread_outputs(model: torch.nn.Module, size: tuple[int, int]) -> None:
    """Random weights whose class scores and boxes vary as a trained model's do, so that there are detections."""
    for name, buffer in model.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.35)
    model.eval()
    predictor = model.roi_heads.box_predictor
    seen = []
    hook = predictor.register_forward_hook(lambda module, inputs, outputs: seen.extend(outputs))
    model([pictures(1, size)[0] / 255])
    hook.remove()
    predictor.cls_score.weight.mul_(2.5 / seen[0].std())
    predictor.bbox_pred.weight.mul_(0.5 / seen[1].std())


def pictures(count: int, size: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return list((smooth * 255).to(torch.uint8))


def objects(count: int, size: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """Boxes, labels and rectangular masks for torchvision."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    targets = []
    for _ in range(count):
        corner = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 20 + torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.35
        boxes = torch.cat([corner, corner + side], dim=1).round()
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        targets.append({"boxes": boxes, "labels": torch.randint(1, 91, (8,), generator=generator), "masks": masks})
    return targets


def our_targets(targets: list[dict[str, torch.Tensor]], size: tuple[int, int]):
    from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch
    from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

    out = []
    for target in targets:
        boxlist = BoxList(target["boxes"], (size[1], size[0]), pixel=0)
        boxlist.add_field("labels", target["labels"])
        boxlist.add_field("masks", SegmentationMask([m.numpy() for m in target["masks"]], (size[1], size[0])))
        out.append(boxlist)
    return BoxListBatch.pad(out)


def same_detections(ours, peer: list[dict[str, torch.Tensor]]) -> bool:
    """Whether labels are equal, boxes within a tenth of a pixel and scores within 1e-3."""
    for mine, theirs in zip(ours, peer, strict=True):
        if len(mine) != len(theirs["boxes"]) or len(mine) == 0:
            return False
        if not torch.equal(mine.get_field("labels"), theirs["labels"]):
            return False
        if (mine.bbox - theirs["boxes"]).abs().max() > 0.1 or (mine.get_field("scores") - theirs["scores"]).abs().max() > 1e-3:
            return False
    return True


# Rows


def inference_cases(quick: bool) -> Iterator[Case]:
    size = (128, 160) if quick else (608, 800)
    for kind in ("faster", "mask"):
        ours, peer = model_pair(kind, exhaustive=False, size=size)
        ours = ours.for_inference()
        peer.eval()
        images = pictures(1, size)
        scaled = [image / 255 for image in images]
        with torch.inference_mode():
            equal = same_detections(ours(images), peer(scaled))
        # torchvision pastes masks inside the model; we leave that to whoever needs it, so it is left out on both sides.
        if kind == "mask":
            peer.transform.postprocess = lambda result, *_: result

        def run_ours(ours=ours, images=images):
            with torch.inference_mode():
                return list(ours(images))

        def run_peer(peer=peer, scaled=scaled):
            with torch.inference_mode():
                return peer(scaled)

        yield Case(f"P3.{kind}_fp32", f"inference, {kind} R-CNN R-50-FPN, {size[1]}x{size[0]}, batch 1", run_ours, run_peer, equal)


def training_cases(quick: bool) -> Iterator[Case]:
    size = (128, 160) if quick else (416, 544)
    for kind in ("faster", "mask"):
        images, targets = pictures(2, size), objects(2, size)
        scaled, boxlists = [image / 255 for image in images], our_targets(targets, size)
        equal = same_losses(*model_pair(kind, exhaustive=True, size=size), images, boxlists, scaled, targets)
        ours, peer = model_pair(kind, exhaustive=False, size=size)
        steps = [make_step(ours, (images, boxlists)), make_step(peer, (scaled, targets))]
        yield Case(f"P4.{kind}_fp32", f"training step, {kind} R-CNN R-50-FPN, {size[1]}x{size[0]}, batch 2", *steps, equal)


def same_losses(ours, peer, images, boxlists, scaled, targets) -> bool:
    ours.train()
    peer.train()
    with torch.no_grad():
        mine, theirs = ours(images, boxlists), peer(scaled, targets)
    return set(mine) == set(theirs) and all(torch.isclose(mine[k], theirs[k], rtol=1e-3, atol=1e-5) for k in mine)


def make_step(model: torch.nn.Module, arguments: tuple) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)

    def step() -> None:
        sum(model(*arguments).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def op_cases(quick: bool) -> Iterator[Case]:
    import torchvision

    from maskrcnn_bench.layers import nms

    generator = torch.Generator().manual_seed(0)
    for count in (1000,) if quick else (1000, 10000):
        corner = torch.rand(count, 2, generator=generator) * 600
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 100], dim=1)
        scores = torch.rand(count, generator=generator)

        def run_ours(boxes=boxes, scores=scores):
            return nms(boxes, scores, 0.5, pixel=0)

        def run_peer(boxes=boxes, scores=scores):
            return torchvision.ops.nms(boxes, scores, 0.5)

        yield Case(f"P5.nms_{count}", f"NMS of {count} boxes", run_ours, run_peer, torch.equal(run_ours(), run_peer()))
    yield roi_align_case(quick)


def roi_align_case(quick: bool) -> Case:
    from torchvision.ops import MultiScaleRoIAlign

    from maskrcnn_bench.modeling.poolers import Pooler, RoIs
    from maskrcnn_bench.structures.bounding_box import BoxListBatch

    generator = torch.Generator().manual_seed(0)
    side, channels = (256, 32) if quick else (800, 256)
    shapes = [side // s for s in (4, 8, 16, 32)]
    features = [torch.randn(1, channels, s, s, generator=generator).requires_grad_() for s in shapes]
    ours_in = [f.detach().to(memory_format=torch.channels_last).requires_grad_() for f in features]
    corner = torch.rand(512, 2, generator=generator) * side * 0.6
    boxes = torch.cat([corner, corner + 8 + torch.rand(512, 2, generator=generator) ** 3 * side * 0.4], dim=1)
    peer = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    pooler = Pooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 2, 0.0, 1.0, 1e-6)
    batch = BoxListBatch(boxes[None], torch.ones(1, 512, dtype=torch.bool), torch.tensor([[float(side), float(side)]]), pixel=0)
    rois = RoIs.flatten(batch, static=True)
    gradient = torch.randn(512, channels, 7, 7, generator=generator)

    def run_ours():
        return torch.autograd.grad(pooler(ours_in, rois), ours_in, gradient)

    def run_peer():
        named = {str(i): f for i, f in enumerate(features)}
        return torch.autograd.grad(peer(named, [boxes], [(side, side)]), features, gradient)

    equal = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(run_ours(), run_peer(), strict=True))
    return Case("P5.roi_align", f"RoIAlign forward and backward, 4 levels, 512 boxes, {channels} channels", run_ours, run_peer, equal)


def count_data_dependent(quick: bool) -> list[dict]:
    """P0: operations of a step whose shape or host value depends on data; Mask R-CNN R-50-FPN, two images of 160 pixels."""
    from maskrcnn_bench.utils.data_dependent import StaticGraphRecorder

    size = (160, 160)
    ours, peer = model_pair("mask", exhaustive=False, size=size)
    for module in ours.modules():
        if hasattr(module, "static_shapes"):
            module.static_shapes = True
    images, targets = pictures(2, size), objects(2, size)
    scaled, boxlists = [image / 255 for image in images], our_targets(targets, size)
    rows = []
    for mode in ("training", "inference"):
        counts = []
        for model, arguments in ((ours, (images, boxlists)), (peer, (scaled, targets))):
            model.train(mode == "training")
            with StaticGraphRecorder() as recorder:
                out = model(*arguments) if mode == "training" else model(arguments[0])
                if mode == "training":
                    sum(out.values()).backward()
            counts.append(sum(recorder.data_dependent.values()))
        rows.append({"id": f"P0.{mode}", "what": f"data-dependent operations, {mode}", "ours": counts[0], "peer": counts[1]})
    return rows


GROUPS: dict[str, Callable[[bool], Iterator[Case]]] = {"P3": inference_cases, "P4": training_cases, "P5": op_cases}


def machine() -> dict[str, str]:
    import torchvision

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "threads": str(torch.get_num_threads()), "commit": commit or "unknown", **versions}


def table(rows: list[dict]) -> str:
    lines = ["| id | what | ours | torchvision | ratio | spread | equal |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']:.2f}x" if row["equal"] else "none"
        spread = f"{row['spread'][0]:.2f}-{row['spread'][1]:.2f}" if row["equal"] else ""
        times = f"{row['ours'] * 1e3:.1f} ms | {row['peer'] * 1e3:.1f} ms"
        lines.append(f"| {row['id']} | {row['what']} | {times} | {ratio} | {spread} | {'yes' if row['equal'] else 'NO'} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose id begins with one of these, separated by commas: P3,P5.nms")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--quick", action="store_true", help="small inputs, two turns")
    parser.add_argument("--json", metavar="FILE", help="write the rows with machine, versions, commit and command")
    args = parser.parse_args(argv)
    wanted = tuple(w for w in args.only.split(",") if w) or tuple(GROUPS)
    command = "python tools/benchmark.py " + " ".join(sys.argv[1:] if argv is None else argv)
    rows = []
    for group, cases in GROUPS.items():
        if not any(w.startswith(group) for w in wanted):
            continue
        for case in cases(args.quick):
            if case.id.startswith(wanted):
                row = take_turns(case, 2 if args.quick else args.repeats)
                row.update(equal=case.equal, command=command)
                if not case.equal:
                    row["ratio"] = None
                rows.append(row)
                print(f"{row['id']}: done", file=sys.stderr)
    facts = machine()
    if any(w.startswith("P0") for w in wanted) or not args.only:
        counted = [row | {"command": command} for row in count_data_dependent(args.quick)]
        print("\n".join(f"{row['id']}: {row['what']}: ours {row['ours']}, torchvision {row['peer']}" for row in counted) + "\n")
    else:
        counted = []
    print(", ".join(f"{k} {v}" for k, v in facts.items()) + "\n\n" + table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "rows": counted + rows}, indent=1) + "\n")
    return 0 if all(row["equal"] for row in rows) and all(row["ours"] == 0 for row in counted) else 1


if __name__ == "__main__":
    raise SystemExit(main())
