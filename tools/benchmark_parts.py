"""Rows of the benchmark about parts: operators (P5), masks to run lengths (P6), COCO evaluation (P7), the loader (P8)."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from benchmark_case import Case


def op_cases(quick: bool, device: str) -> Iterator[Case]:
    """P5: kernels against torchvision.ops."""
    import torchvision

    from maskrcnn_bench.layers import nms

    generator = torch.Generator().manual_seed(0)
    for count in (1000,) if quick else (1000, 10000):
        corner = (torch.rand(count, 2, generator=generator) * 600).to(device)
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator).to(device) * 100], dim=1)
        scores = torch.rand(count, generator=generator).to(device)

        def run_ours(boxes=boxes, scores=scores):
            return nms(boxes, scores, 0.5, pixel=0)

        def run_peer(boxes=boxes, scores=scores):
            return torchvision.ops.nms(boxes, scores, 0.5)

        yield Case(f"P5.nms_{count}", f"NMS of {count} boxes", run_ours, run_peer, torch.equal(run_ours(), run_peer()), device)
    yield roi_align_case(quick, device)
    if device == "cuda":  # on the CPU it is torchvision's operator
        yield roi_pool_case(quick, device)


def roi_pool_case(quick: bool, device: str) -> Case:
    import torchvision

    from maskrcnn_bench.layers import ROIPool

    generator = torch.Generator().manual_seed(0)
    height, width, channels = (20, 30, 32) if quick else (50, 84, 512)
    feature = torch.randn(2, channels, height, width, generator=generator).to(device)
    ours_in, peer_in = (feature.to(memory_format=layout).requires_grad_() for layout in (torch.channels_last, torch.contiguous_format))
    corner = torch.rand(256, 2, generator=generator) * torch.tensor([width, height]) * 10
    corners = torch.cat([corner, corner + 16 + torch.rand(256, 2, generator=generator) * height * 6], dim=1)
    rois = torch.cat([torch.arange(256)[:, None] % 2, corners], dim=1).to(device)
    pool, gradient = ROIPool((7, 7), 1 / 16), torch.randn(256, channels, 7, 7, generator=generator).to(device)

    def run_ours():
        return torch.autograd.grad(pool(ours_in, rois), ours_in, gradient)[0]

    def run_peer():
        return torch.autograd.grad(torchvision.ops.roi_pool(peer_in, rois, (7, 7), 1 / 16), peer_in, gradient)[0]

    equal = torch.allclose(run_ours(), run_peer(), rtol=1e-3, atol=1e-3)
    return Case("P5.roi_pool", f"RoI max pooling forward and backward, 256 boxes, {channels} channels", run_ours, run_peer, equal, device)


def roi_align_case(quick: bool, device: str) -> Case:
    from torchvision.ops import MultiScaleRoIAlign

    from maskrcnn_bench.modeling.poolers import Pooler, RoIs
    from maskrcnn_bench.structures.bounding_box import BoxListBatch

    generator = torch.Generator().manual_seed(0)
    side, channels = (256, 32) if quick else (800, 256)
    shapes = [side // s for s in (4, 8, 16, 32, 64)]
    features = [torch.randn(1, channels, s, s, generator=generator).to(device).requires_grad_() for s in shapes]
    ours_in = [f.detach().to(memory_format=torch.channels_last).requires_grad_() for f in features]
    corner = torch.rand(512, 2, generator=generator) * side * 0.6
    boxes = torch.cat([corner, corner + 8 + torch.rand(512, 2, generator=generator) ** 3 * side * 0.4], dim=1).to(device)
    peer = MultiScaleRoIAlign(["0", "1", "2", "3", "4"], 7, 2)
    pooler = Pooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64), 2, 0.0, 1.0, 1e-6)
    batch = BoxListBatch(boxes[None], torch.ones(1, 512, dtype=torch.bool), torch.tensor([[float(side), float(side)]]), pixel=0).to(device)
    rois = RoIs.flatten(batch, static=True)
    gradient = torch.randn(512, channels, 7, 7, generator=generator).to(device)

    def run_ours():
        return torch.autograd.grad(pooler(ours_in, rois), ours_in, gradient)

    def run_peer():
        named = {str(i): f for i, f in enumerate(features)}
        return torch.autograd.grad(peer(named, [boxes], [(side, side)]), features, gradient)

    equal = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(run_ours(), run_peer(), strict=True))
    return Case(
        "P5.roi_align", f"RoIAlign forward and backward, 5 levels, 512 boxes, {channels} channels", run_ours, run_peer, equal, device
    )


def mask_cases(quick: bool, device: str) -> Iterator[Case]:
    """P6: probabilities of 100 masks to COCO's strings, against pasting into full images and pycocotools' encoder."""
    from pycocotools import mask as coco_mask

    from maskrcnn_bench.structures.bounding_box import BoxList
    from maskrcnn_bench.structures.mask_paste import Masker, paste_rle

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(100, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bicubic").clamp(0, 1).to(device)
    corner = torch.rand(100, 2, generator=generator) * torch.tensor([640, 480]) * 0.6
    boxes = torch.cat([corner, corner + 20 + torch.rand(100, 2, generator=generator) ** 2 * torch.tensor([300, 220])], dim=1).to(device)
    for rule in ("expand_truncate", "pixel_centres"):

        def run_ours(rule=rule):
            return [rle["counts"] for rle in paste_rle(masks, boxes, (640, 480), 0.5, rule)]

        def run_peer(rule=rule):
            pasted = Masker(0.5, 1, rule)([masks], [BoxList(boxes, (640, 480))])[0].numpy()
            return [coco_mask.encode(np.asfortranarray(mask[0]))["counts"].decode() for mask in pasted]

        yield Case(f"P6.{rule}", f"100 masks to RLE, 640x480, {rule}", run_ours, run_peer, run_ours() == run_peer(), device)


def evaluation_cases(quick: bool, device: str) -> Iterator[Case]:
    """P7: detections in memory to COCO's 12 numbers, against pycocotools."""
    from maskrcnn_bench.evaluation.coco import evaluate_coco
    from maskrcnn_bench.evaluation.evaluators import FlatDetections, choose_evaluator

    evaluator = choose_evaluator("auto")[0]
    truth, rows = coco_world(50 if quick else 1000)
    found = FlatDetections.from_results(rows)
    for task in ("bbox", "segm"):

        def run_ours(task=task):
            return list(evaluate_coco(truth, found, task, evaluator)[0].values())

        def run_peer(task=task):
            return pycocotools_numbers(truth, rows, task)

        equal = np.allclose(run_ours()[:12], run_peer(), atol=1e-9)
        yield Case(
            f"P7.{task}", f"COCO evaluation, {task}, {len(truth['images'])} images, {len(rows)} detections", run_ours, run_peer, equal
        )


def coco_world(images: int) -> tuple[dict, list[dict]]:
    """Ground truth of 7 or 8 objects an image in 80 classes, and detections half as many again, boxes with masks."""
    from pycocotools import mask as coco_mask

    random = np.random.default_rng(0)
    truth = {"images": [], "annotations": [], "categories": [{"id": k, "name": str(k)} for k in range(1, 81)]}
    rows = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "width": 640, "height": 480})
        for _ in range(random.integers(6, 10)):
            x, y, w, h = (random.random(4) * (400, 300, 230, 170) + (0, 0, 8, 8)).tolist()
            kind, box = int(random.integers(1, 81)), [x, y, w, h]
            outline = [x, y, x + w, y, x + w, y + h * 0.6, x + w * 0.4, y + h, x, y + h]
            number = len(truth["annotations"]) + 1
            truth["annotations"].append(
                {
                    "id": number,
                    "image_id": image,
                    "category_id": kind,
                    "bbox": box,
                    "area": w * h * 0.8,
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
            for _ in range(random.integers(1, 3)):
                shift = (random.normal(0, 0.08, 10).reshape(5, 2) * (w, h)).ravel()
                moved = (np.array(outline) + shift).clip(0, 479)
                low, high = moved.reshape(5, 2).min(axis=0), moved.reshape(5, 2).max(axis=0)
                rle = coco_mask.merge(coco_mask.frPyObjects([moved.tolist()], 480, 640))
                rle = {"size": rle["size"], "counts": rle["counts"].decode()}
                found = {
                    "image_id": image,
                    "category_id": kind,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "score": float(random.random()),
                }
                rows.append(found | {"segmentation": rle})
    return truth, rows


def pycocotools_numbers(truth: dict, rows: list[dict], task: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    columns = ("image_id", "category_id", "score", "bbox" if task == "bbox" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([{key: row[key] for key in columns} for row in rows]), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def loader_cases(quick: bool, device: str) -> Iterator[Case]:
    """P8: from files to normalised batches of two, in one process, against torchvision's reference loader and its model's transform."""
    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.data import make_data_loader

    count = 4 if quick else 16
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), count)
        options = [
            "DATASETS.DATA",
            folder,
            "DATASETS.TRAIN",
            "()",
            "DATALOADER.NUM_WORKERS",
            "0",
            "MODEL.DEVICE",
            "cpu",
            "SOLVER.IMS_PER_BATCH",
            "2",
        ]
        options += ["SOLVER.MAX_ITER", str(count // 2), "MODEL.MASK_ON", "True", "INPUT.HORIZONTAL_FLIP_PROB_TRAIN", "0.5"]
        for name in ("fasterrcnn", "maskrcnn"):
            cfg = load_config(f"torchvision/{name}_resnet50_fpn.yaml", [*options, "MODEL.MASK_ON", str(name == "maskrcnn")])
            loader = make_data_loader(cfg)
            reference = reference_loader(Path(folder), cfg)

            def run_ours(loader=loader):
                return sum(len(images) for images, _, _ in loader)

            def run_peer(reference=reference):
                return sum(len(images.tensors) for images, _ in reference())

            what = (
                f"loader, {name}: decode, resize to {cfg.INPUT.MIN_SIZE_TRAIN[0]}, flip, batch; {count} photographs of 640x480, one process"
            )
            yield Case(f"P8.{name}", what, run_ours, run_peer, same_images(cfg, folder), images=count)


def write_photos(folder: Path, count: int) -> None:
    """A COCO folder of smooth pictures as JPEG, each with seven outlined objects."""
    from PIL import Image

    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    truth, _ = coco_world(count)
    random = np.random.default_rng(1)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.jpg"
        coarse = Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.BICUBIC).save(folder / "train2017" / image["file_name"], quality=90)
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))


def reference_loader(folder: Path, cfg, flips: bool = True):
    """Batches as torchvision's reference scripts make them: PIL, outlines to bitmaps, flip, float, then the model's transform."""
    from pycocotools import mask as coco_mask
    from torchvision.datasets import CocoDetection
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms.v2 import functional as F

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDetection(str(folder / "train2017"), str(folder / "annotations" / "instances_train2017.json"))
    transform = GeneralizedRCNNTransform(
        list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    )

    def one(index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, objects = dataset[index]
        boxes = torch.tensor([o["bbox"] for o in objects])
        boxes[:, 2:] += boxes[:, :2]
        target = {"boxes": boxes, "labels": torch.tensor([o["category_id"] for o in objects])}
        picture = F.pil_to_tensor(image)
        # The reference script does this for every model, also for one without masks (coco_utils.py, unless --use-v2).
        rles = [coco_mask.frPyObjects(o["segmentation"], *picture.shape[1:]) for o in objects]
        target["masks"] = torch.stack([torch.as_tensor(coco_mask.decode(rle)).any(dim=2) for rle in rles]).byte()
        if flips and index % 2:
            picture, width = F.horizontal_flip(picture), picture.shape[2]
            target["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            target["masks"] = target["masks"].flip(2)
        return F.to_dtype(picture, torch.float, scale=True), target

    def batches():
        for first in range(0, len(dataset), 2):
            pictures, targets = zip(one(first), one(first + 1), strict=True)
            yield transform(list(pictures), list(targets))

    return batches


def same_images(cfg, folder: str) -> bool:
    """Whether an image and its boxes come out of both as the same numbers, up to the 8 bits that pictures may travel in."""
    from maskrcnn_bench.data import make_data_loader

    still = cfg.clone()
    still.defrost()
    still.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.0
    images, targets, indices = next(iter(make_data_loader(still)))
    height, width = images.image_sizes[0]
    picture = images.tensors[0, :, :height, :width]
    if not picture.is_floating_point():
        mean, std = (torch.tensor(v)[:, None, None] for v in (still.INPUT.PIXEL_MEAN, still.INPUT.PIXEL_STD))
        picture = (picture / 255 - mean) / std
    batches = list(reference_loader(Path(folder), still, flips=False)())
    expected, expected_targets = batches[indices[0] // 2]
    place = indices[0] % 2
    close = (picture - expected.tensors[place][:, :height, :width]).abs().mean() < 0.01
    return bool(close) and torch.allclose(targets[0].bbox, expected_targets[place]["boxes"], atol=1e-2)
