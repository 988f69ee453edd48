"""`benchmark.py --table`: VGG-16 and R-101 trained on a VOC folder, 1 and 4 images a step, in the columns of faster-rcnn.pytorch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import torch
from benchmark_case import peak_bytes, seconds
from benchmark_models import in_new_process

MODELS = {"VGG-16": "vgg16_voc07", "Res-101": "res101_voc07"}


def rows(data: str, device: str, steps: int, opts: Sequence[str]) -> Iterable[dict]:
    """A row for each model and batch size; every one in a process of its own, whose memory is measured.

    Args:
        data: a folder of a data set with a split of its own.
        steps: of training, 3 or more; those from the third on are timed, and the mAP is that of the model after all of them.
        opts: KEY VALUE changes of the configurations.
    """
    for name, config in MODELS.items():
        for batch in (1, 4):
            options = ["DATASETS.DATA", data, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.DEVICE", device, *opts]
            yield {"model": name, "batch": batch} | in_new_process(train_and_test, config, batch, device, steps, options)


def train_and_test(config: str, batch: int, device: str, steps: int, options: list[str]) -> dict:
    """Seconds an epoch, bytes that training takes (weights, gradients, momentum, activations), and mAP."""
    from maskrcnn_bench.config import load_config
    from maskrcnn_bench.data import make_data_loader
    from maskrcnn_bench.engine.inference import inference
    from maskrcnn_bench.engine.trainer import Step
    from maskrcnn_bench.modeling.detector import build_detection_model
    from maskrcnn_bench.solver import make_optimizer
    from maskrcnn_bench.utils.checkpoint import DetectronCheckpointer

    name = f"faster_rcnn_pytorch/{config}{'' if batch == 1 else f'_bs{batch}'}.yaml"
    cfg = load_config(name, [*options, "SOLVER.MAX_ITER", str(steps)])
    loader = make_data_loader(cfg)
    model = build_detection_model(cfg).to(device, memory_format=torch.channels_last)
    DetectronCheckpointer(cfg, model, save_to_disk=False).load(cfg.MODEL.WEIGHT)
    step = Step(model.train(), make_optimizer(cfg, model), device, getattr(torch, cfg.DTYPE))
    batches = iter(loader)
    # The first step makes room for the momentum, the second has it from the beginning.
    first = [one_step(step, batches, iteration) for iteration in (1, 2)]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    memory = weights + peak_bytes(lambda: [run() for run in first], device)
    times = [seconds(one_step(step, batches, iteration), device) for iteration in range(3, steps + 1)]
    # As there, an epoch is the images and their mirror images.
    epoch = statistics.median(times) * 2 * len(loader.dataset) / batch
    results = inference(model, make_data_loader(cfg, is_train=False)[0], cfg.DATASETS.DATA, device=device)
    return {"lr": cfg.SOLVER.BASE_LR, "epoch": epoch, "bytes": memory, "mAP": 100 * results["voc"]["mAP07"], "steps": steps}


def one_step(step, batches, iteration: int):
    """A call that does the next step, loading included."""
    return lambda: step([next(batches)], iteration)


def lines(found: Iterable[dict]) -> Iterable[str]:
    """The rows as lines of Markdown, each as soon as it is known."""
    yield "| model | devices | batch size | lr | steps trained | time/epoch | memory/device | mAP |"
    yield "|" + "---|" * 8
    for row in found:
        hours = f"{row['epoch'] / 3600:.2f} h"
        cells = (
            row["model"],
            1,
            row["batch"],
            f"{row['lr']:g}",
            row["steps"],
            hours,
            f"{row['bytes'] / 2**20:.0f} MiB",
            f"{row['mAP']:.1f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"
