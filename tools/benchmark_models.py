"""Rows of the benchmark about models: shapes (P0), on a GPU (P1, P2), inference (P3), training (P4), memory (P10), growth (P12)."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmark_case import Case, compared, peak_bytes, seconds

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------------------------------- models with the same weights


def model_pair(kind: str, exhaustive: bool, size: tuple[int, int], device: str = "cpu"):
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
    options = []
    if exhaustive:
        options += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000000"]
        options += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"]
    ours = build_detection_model(load_config(str(ROOT / f"configs/torchvision/{kind}rcnn_resnet50_fpn.yaml"), options))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), Path(folder) / "peer.pth")
        load_into(ours, str(Path(folder) / "peer.pth"), strict=False)
    return ours.to(device, memory_format=torch.channels_last), peer.to(device)


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


def objects(count: int, size: tuple[int, int], each: int = 8) -> list[dict[str, torch.Tensor]]:
    """Boxes, labels and rectangular masks of `each` objects an image, for torchvision."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    targets = []
    for _ in range(count):
        corner = torch.rand(each, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        side = 20 + torch.rand(each, 2, generator=generator) * torch.tensor([width, height]) * 0.35
        boxes = torch.cat([corner, corner + side], dim=1).round()
        masks = torch.zeros(each, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        targets.append({"boxes": boxes, "labels": torch.randint(1, 91, (each,), generator=generator), "masks": masks})
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
    """Whether each detection has its own counterpart: the same label, box within a tenth of a pixel, score within 1e-3.

    Not by place, since scores that differ in the last digit alone may change places.
    """
    for mine, theirs in zip(ours, peer, strict=True):
        if len(mine) != len(theirs["boxes"]) or len(mine) == 0:
            return False
        apart = (mine.bbox[:, None] - theirs["boxes"][None]).abs().amax(dim=2)
        apart[mine.get_field("labels")[:, None] != theirs["labels"][None]] = torch.inf
        distance, partner = apart.min(dim=1)
        close = (mine.get_field("scores") - theirs["scores"][partner]).abs() <= 1e-3
        if distance.max() > 0.1 or not close.all() or len(partner.unique()) < len(partner):
            return False
    return True


# ------------------------------------------------------------------------------------------------------- the rows


def inference_cases(quick: bool, device: str) -> Iterator[Case]:
    """P3 on the CPU, P2 on a GPU."""
    size = (128, 160) if quick else (608, 800) if device == "cpu" else (800, 1344)
    for kind in ("faster", "mask"):
        ours, peer = model_pair(kind, exhaustive=False, size=size, device=device)
        peer.eval()
        plain, ours = ours.eval(), ours.for_inference()
        # torchvision pastes masks inside the model; we leave that to whoever needs it, so it is left out on both sides.
        peer.transform.postprocess = lambda result, *_: result
        for batch in (1,) if device == "cpu" else (1, 8):
            images = [image.to(device) for image in pictures(batch, size)]
            scaled = [image / 255 for image in images]
            # What is timed may use TF32 on a GPU, on both sides; results are compared without it.
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                equal = all(same_detections(model(images), peer(scaled)) for model in (plain, ours))
            for dtype in (torch.float32, torch.bfloat16):
                name = f"{'P3' if device == 'cpu' else 'P2'}.{kind}_{'fp32' if dtype == torch.float32 else 'bf16'}"
                what = f"inference, {kind} R-CNN R-50-FPN, {size[1]}x{size[0]}, batch {batch}"
                mine = ours if device == "cpu" else replaying(plain.for_inference(dtype))
                runs = [answering(mine, images, dtype, device), answering(peer, scaled, dtype, device)]
                yield Case(name if batch == 1 else f"{name}_batch{batch}", what, *runs, equal, device, batch)


def replaying(model: torch.nn.Module) -> Callable[[list[torch.Tensor]], object]:
    """The model as it is tested on a GPU with TEST.CUDA_GRAPH."""
    from maskrcnn_bench.engine.graphs import CudaRecorder, Recordings, ReplayedModel
    from maskrcnn_bench.structures.image_list import to_image_list

    replayed = ReplayedModel(model, Recordings(CudaRecorder(), "cuda", required=True)).eval()
    return lambda images: replayed(to_image_list(images, 32))


def answering(model: Callable, images: list[torch.Tensor], dtype: torch.dtype, device: str) -> Callable[[], object]:
    """Detections with everything on the host, as whoever asked for them wants it."""

    def run() -> object:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return list(model(images))

    return run


def training_cases(quick: bool, device: str) -> Iterator[Case]:
    """P4 on the CPU, P1 on a GPU."""
    size, batch = ((128, 160), 2) if quick else ((416, 544), 2) if device == "cpu" else ((800, 1344), 12)
    for kind in ("faster", "mask"):
        small = size if device == "cpu" else (416, 544)
        equal = same_losses(kind, small, device)
        ours, peer = model_pair(kind, exhaustive=False, size=size, device=device)
        mine, theirs = training_batch(batch, size, device)
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{'P4' if device == 'cpu' else 'P1'}.{kind}_{'fp32' if dtype == torch.float32 else 'bf16'}"
            what = f"training step, {kind} R-CNN R-50-FPN, {size[1]}x{size[0]}, batch {batch}"
            step = stepping(ours, mine, dtype, device, ours=True) if device == "cpu" else recorded_stepping(ours, mine, dtype)
            yield Case(name, what, step, stepping(peer, theirs, dtype, device), equal, device, batch)


def recorded_stepping(model: torch.nn.Module, arguments: tuple, dtype: torch.dtype) -> Callable[[], object]:
    """A step as the programs do it on a GPU with SOLVER.CUDA_GRAPH."""
    from maskrcnn_bench.engine.graphs import CudaRecorder, Recordings
    from maskrcnn_bench.engine.trainer import Step
    from maskrcnn_bench.structures.image_list import to_image_list

    images, targets = to_image_list(arguments[0], 32), arguments[1]
    images.keys = torch.arange(len(images), device="cuda")
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, fused=True)
    step = Step(model, optimizer, "cuda", dtype, recordings=Recordings(CudaRecorder(), "cuda", required=True))
    return lambda: step([(images, targets)], 1)


def training_batch(batch: int, size: tuple[int, int], device: str, each: int = 8) -> tuple[tuple, tuple]:
    """Images and targets as we take them, and as torchvision does."""
    images, targets = [image.to(device) for image in pictures(batch, size)], objects(batch, size, each)
    ours = (images, our_targets(targets, size).to(device))
    return ours, ([image / 255 for image in images], [{k: v.to(device) for k, v in target.items()} for target in targets])


def same_losses(kind: str, size: tuple[int, int], device: str) -> bool:
    """Whether the losses of one step are equal when every anchor and proposal is sampled."""
    ours, peer = model_pair(kind, exhaustive=True, size=size, device=device)
    mine, theirs = training_batch(2, size, device)
    with torch.no_grad():
        ours, peer = ours.train()(*mine), peer.train()(*theirs)
    return set(ours) == set(peer) and all(torch.isclose(ours[k], peer[k], rtol=1e-3, atol=1e-5) for k in ours)


def stepping(model: torch.nn.Module, arguments: tuple, dtype: torch.dtype, device: str, ours: bool = False) -> Callable[[], None]:
    """A step of training: forward, backward, update. Our programs take torch's fused SGD, those of the peers its usual one."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9, fused=ours)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = sum(model(*arguments).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def memory_rows(quick: bool, device: str) -> Iterator[dict]:
    """P10: how much memory a training step takes, with few and with 1,000 objects an image."""
    size = (128, 160) if quick else (416, 544)
    for name, each in (("step", 8), ("objects_1000", 1000)):
        values = {who: [in_new_process(training_peak, who, each, size, device)] for who in ("ours", "peer")}
        what = f"peak memory of a training step, mask R-CNN R-50-FPN, {size[1]}x{size[0]}, batch 2, {each} objects an image"
        yield compared(values) | {"id": f"P10.{name}", "what": what, "unit": "B", "equal": same_losses("mask", size, device)}


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function answers in a process of its own, whose memory nobody has used before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def training_peak(who: str, each: int, size: tuple[int, int], device: str) -> int:
    """Bytes that a training step of "ours" or the "peer" takes on top of the weights."""
    models = dict(zip(("ours", "peer"), model_pair("mask", exhaustive=False, size=size, device=device), strict=True))
    batch = dict(zip(("ours", "peer"), training_batch(2, size, device, each), strict=True))[who]
    return peak_bytes(stepping(models[who], batch, torch.float32, device, who == "ours"), device)


def growth_rows(quick: bool, device: str) -> Iterator[dict]:
    """P12: time against images, objects, classes and processes; `exponent` is the slope between logarithms.

    1 is linear; for processes, each of which has images and a thread of its own, 0 is the best.
    """
    size, repeats = ((96, 128), 2) if quick else ((192, 256), 5)
    measures = {
        "images": ((1, 2, 4, 8), lambda n: least_seconds(growing("images", n, size, device), repeats, device)),
        "objects": ((10, 100, 1000), lambda n: least_seconds(growing("objects", n, size, device), repeats, device)),
        "classes": ((10, 100, 1000), lambda n: least_seconds(growing("classes", n, size, device), repeats, device)),
    }
    if device == "cpu":
        measures["ranks"] = ((1, 2), lambda n: seconds_on_ranks(n, size, repeats))
    for name, (values, measure) in measures.items():
        times = [measure(value) for value in values]
        exponent = math.log(times[-1] / times[-2]) / math.log(values[-1] / values[-2])
        what = f"time of a {'detection' if name == 'classes' else 'training step'} against {name}"
        what += f", faster R-CNN R-50-FPN, {size[1]}x{size[0]}"
        yield {"id": f"P12.{name}", "what": what, name: list(values), "ours": times, "exponent": exponent, "equal": True}


def least_seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    run()
    return min(seconds(run, device) for _ in range(repeats))


def growing(name: str, value: int, size: tuple[int, int], device: str) -> Callable[[], object]:
    """A call whose work grows with `value` images, objects or classes."""
    model = faster_rcnn(value if name == "classes" else 91).to(device)
    images, targets = training_batch(value if name == "images" else 2, size, device, value if name == "objects" else 8)[0]
    if name == "classes":
        return answering(model.eval(), images, torch.float32, device)
    return stepping(model, (images, of_one_class(targets)), torch.float32, device, ours=True)


def faster_rcnn(classes: int) -> torch.nn.Module:
    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.modeling.detector import build_detection_model

    torch.manual_seed(0)
    config = load_config(str(ROOT / "configs/torchvision/fasterrcnn_resnet50_fpn.yaml"), ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", str(classes)])
    return build_detection_model(config).to(memory_format=torch.channels_last)


def of_one_class(targets):
    targets.fields.pop("labels").clamp_(max=1)
    targets.add_field("labels", targets.valid.long())
    return targets


def seconds_on_ranks(ranks: int, size: tuple[int, int], repeats: int) -> float:
    """Seconds of a step of the slowest of several processes, with two images each."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(ranks, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(seconds_of_rank, rank, ranks, f"file://{folder}/meeting", size, repeats) for rank in range(ranks)]
        return max(job.result() for job in jobs)


def seconds_of_rank(rank: int, ranks: int, meeting: str, size: tuple[int, int], repeats: int) -> float:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    images, targets = training_batch(2, size, "cpu")[0]
    model = torch.nn.parallel.DistributedDataParallel(faster_rcnn(91))
    found = least_seconds(stepping(model, (images, of_one_class(targets)), torch.float32, "cpu", ours=True), repeats, "cpu")
    torch.distributed.destroy_process_group()
    return found


def shape_rows(quick: bool, device: str) -> Iterator[dict]:
    """P0: operations of a step whose shape or host value depends on data; Mask R-CNN R-50-FPN, two images of 160 pixels."""
    from maskrcnn_bench.utils.data_dependent import StaticGraphRecorder

    ours, peer = model_pair("mask", exhaustive=False, size=(160, 160))
    for module in ours.modules():
        if hasattr(module, "static_shapes"):
            module.static_shapes = True
    mine, theirs = training_batch(2, (160, 160), "cpu")
    for mode in ("training", "inference"):
        counts = []
        for model, arguments in ((ours, mine), (peer, theirs)):
            model.train(mode == "training")
            with StaticGraphRecorder() as recorder:
                out = model(*arguments) if mode == "training" else model(arguments[0])
                if mode == "training":
                    sum(out.values()).backward()
            counts.append(sum(recorder.data_dependent.values()))
        what = f"data-dependent operations, {mode}"
        yield {"id": f"P0.{mode}", "what": what, "unit": "", "ours": counts[0], "peer": counts[1], "equal": counts[0] == 0}
