"""Trains the same trunk with the same budget here and in torchvision, and puts their AP side by side.

    python tools/compare_training.py --data FOLDER --data NAME=FOLDER [--trunk FILE] [--iterations 200] [--json FILE] [KEY VALUE ...]

Both train from the same trunk weights on the same batches with the same optimizer and schedule, each with its own heads, and are
measured by the same evaluation. Runs that FILE already holds are not repeated, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.engine.inference import inference
from maskrcnn_bench.engine.progress import Progress
from maskrcnn_bench.engine.trainer import Step, do_train
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.solver import make_lr_scheduler, make_optimizer
from maskrcnn_bench.structures.bounding_box import BoxList, BoxListBatch, Detections
from maskrcnn_bench.structures.image_list import ImageList

CONFIG = "transfer/faster_rcnn_efficientnet_lite0_FPN.yaml"
LIBRARIES = ("maskrcnn_bench", "torchvision")


# ------------------------------------------------------------------------------------------------------- the peer


class TorchvisionTrunk(nn.Module):
    """A trunk of ours below torchvision's own FPN."""

    def __init__(self, body: nn.Module, channels: list[int], out_channels: int):
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(k): level for k, level in enumerate(self.body(x))})


class Torchvision(nn.Module):
    """torchvision's Faster R-CNN with the numbers of the config, which takes and gives what models do here."""

    def __init__(self, cfg, body: nn.Module):
        super().__init__()
        self.mean, self.std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
        self.model = torchvision_model(cfg, TorchvisionTrunk(body, body.out_channels_of_stages, cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS))

    def forward(self, images: ImageList, targets: BoxListBatch | None = None) -> dict[str, Tensor] | Detections:
        pictures = [self._normalised(t[:, :h, :w]) for t, (h, w) in zip(images.tensors, images.image_sizes, strict=True)]
        if self.training:
            return self.model(pictures, [{"boxes": b.bbox, "labels": b.get_field("labels")} for b in targets])
        found = []
        for answer, (height, width) in zip(self.model(pictures), images.image_sizes, strict=True):
            boxlist = BoxList(answer["boxes"], (width, height), pixel=0)
            boxlist.add_field("scores", answer["scores"])
            boxlist.add_field("labels", answer["labels"])
            found.append(boxlist)
        return Detections.pad(found)

    def _normalised(self, picture: Tensor) -> Tensor:
        if picture.is_floating_point():  # the loader has done it
            return picture
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (picture / 255 - mean) / std


def torchvision_model(cfg, trunk: nn.Module) -> nn.Module:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    rpn, heads, width = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM
    sizes = tuple((size,) for size in rpn.ANCHOR_SIZES)
    return FasterRCNN(
        trunk,
        # The loader has resized: in training this is left out, in testing it finds nothing to do.
        _skip_resize=True,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        image_mean=(0.0,) * 3,
        image_std=(1.0,) * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(rpn.ASPECT_RATIOS),) * len(sizes)),
        rpn_pre_nms_top_n_train=rpn.PRE_NMS_TOP_N_TRAIN,
        rpn_pre_nms_top_n_test=rpn.PRE_NMS_TOP_N_TEST,
        rpn_post_nms_top_n_train=rpn.FPN_POST_NMS_TOP_N_TRAIN,
        rpn_post_nms_top_n_test=rpn.FPN_POST_NMS_TOP_N_TEST,
        box_head=TwoMLPHead(trunk.out_channels * cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2, width),
        box_predictor=FastRCNNPredictor(width, cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES),
        box_batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        box_positive_fraction=heads.POSITIVE_FRACTION,
    )


# ------------------------------------------------------------------------------------------------------- one run


def train_one(library: str, config_file: str, folder: str, seed: int, options: list[str]) -> dict[str, float]:
    """Trains and tests once; returns AP and AP50 in percent, and the processor's seconds of training."""
    cfg = load_config(config_file, [*options, "DATASETS.DATA", folder, "SEED", str(seed), "MODEL.DEVICE", "cpu"])
    torch.manual_seed(seed)
    loader = make_data_loader(cfg)
    cfg = load_config(config_file, [*options, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", str(len(loader.dataset.class_names))])
    model = build_detection_model(cfg)
    if library == "torchvision":
        model = Torchvision(cfg, model.backbone.body)
    model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(cfg, model)
    with tempfile.TemporaryDirectory() as output:
        progress = Progress(output, cfg.SOLVER.MAX_ITER, 50, cfg.SOLVER.IMS_PER_BATCH, len(loader.dataset))
        begin = time.process_time()
        do_train(
            model, loader, optimizer, make_lr_scheduler(cfg, optimizer), Forgetful(), "cpu", 10**9, {},
            step=Step(model, optimizer, "cpu"), progress=progress,
        )  # fmt: skip
        seconds = time.process_time() - begin
        test = load_config(config_file, [*options, "DATASETS.DATA", folder, "MODEL.DEVICE", "cpu"])
        results = inference(model, make_data_loader(test, is_train=False)[0], folder, device="cpu")
    return {"AP": 100 * results["bbox"]["AP"], "AP50": 100 * results["bbox"]["AP50"], "seconds": seconds}


class Forgetful:
    """A checkpointer that keeps nothing: only the numbers at the end matter."""

    save_dir = ""

    def save(self, name: str, **state) -> None:
        pass


# ------------------------------------------------------------------------------------------------------- the table


def table(runs: list[dict]) -> str:
    """Mean and standard deviation over the seeds as Markdown."""
    lines = [
        "| data | seeds | AP here | AP torchvision | AP50 here | AP50 torchvision | training time, torchvision / here |",
        "|" + "---|" * 7,
    ]
    for name in dict.fromkeys(run["data"] for run in runs):
        ours, peers = ([r for r in runs if r["data"] == name and r["library"] == library] for library in LIBRARIES)
        if ours and peers:
            cells = [f"{_spread(rows, key)}" for key in ("AP", "AP50") for rows in (ours, peers)]
            ratio = statistics.mean(r["seconds"] for r in peers) / statistics.mean(r["seconds"] for r in ours)
            lines.append(f"| {name} | {len(ours)} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def _spread(rows: list[dict], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def trunk_weights(path: str, folder: str) -> str:
    """A file of timm's names for EfficientNet-Lite0 from one with the names of its first PyTorch version; others stay as they are.

    The two have the same tensors, called and ordered by block alike, so that each finds its partner by place.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "_conv_stem.weight" not in state:
        return path
    import timm

    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = dict(zip(own, state.values(), strict=True))
    out = Path(folder, "tf_efficientnet_lite0.pth")
    torch.save(renamed, out)
    return str(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="[NAME=]FOLDER", help="a data set with its own split; may repeat")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help=f"a Faster R-CNN on a trunk of timm ({CONFIG})")
    parser.add_argument("--trunk", default="", metavar="FILE", help="weights of the trunk; without, both begin from random ones")
    parser.add_argument("--iterations", type=int, default=200, help="steps of each run (200)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--json", default="", metavar="FILE", help="keeps every run; those in it are not repeated")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config, for both")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    kept = Path(args.json) if args.json else None
    runs = json.loads(kept.read_text())["runs"] if kept and kept.exists() else []
    model = {"config": args.config_file, "trunk": Path(args.trunk).name, "opts": args.opts}
    with tempfile.TemporaryDirectory() as folder:
        options = [*args.opts, "SOLVER.MAX_ITER", str(args.iterations)]
        if args.trunk:
            options += ["MODEL.BACKBONE.TIMM_WEIGHT", trunk_weights(args.trunk, folder)]
        for seed in range(args.seeds):
            for named in args.data:
                name, _, path = named.rpartition("=")
                for library in LIBRARIES:
                    key = {"data": name or Path(path).name, "seed": seed, "library": library, "iterations": args.iterations, **model}
                    if any(key.items() <= run.items() for run in runs):
                        continue
                    runs.append(key | train_one(library, args.config_file, path, seed, options))
                    print(json.dumps(runs[-1]), flush=True)
                    if kept:
                        kept.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    print("\n" + table([run for run in runs if model.items() <= run.items()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
