"""What the programs share: the wiring of model, data, solver and checkpoints. A border file.

`train_main` and `test_main`, which read the arguments first, are behind tools/train_net.py, tools/test_net.py and the verbs
`train` and `test`.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_bench.config import load_config, resolved
from maskrcnn_bench.config.dialect import get_dialect
from maskrcnn_bench.config.paths_catalog import DatasetCatalog
from maskrcnn_bench.data import make_data_loader
from maskrcnn_bench.engine.arguments import DEBUG, config_beside, test_main, train_main
from maskrcnn_bench.engine.board import make_board
from maskrcnn_bench.engine.graphs import CudaRecorder, Recordings, ReplayedModel
from maskrcnn_bench.engine.inference import Tester, UnexpectedResults
from maskrcnn_bench.engine.nonfinite import NonFiniteLoss
from maskrcnn_bench.engine.progress import Progress, cut_back
from maskrcnn_bench.engine.startup import Run, loading_workers, resolve_device, start_run
from maskrcnn_bench.engine.surroundings import StopRequest, without_traceback
from maskrcnn_bench.engine.trainer import AveragedWeights, LossScale, Step, do_train
from maskrcnn_bench.engine.tta import TestTimeAugmentation, make_passes
from maskrcnn_bench.evaluation.pictures import can_draw
from maskrcnn_bench.modeling.detector import GeneralizedRCNN, build_detection_model, compile_parts, set_class_thresholds
from maskrcnn_bench.solver import (
    changed,
    check_schedule,
    describe_length,
    make_lr_scheduler,
    make_optimizer,
    needs_epochs,
    scale_schedule,
    schedule_from_epochs,
)
from maskrcnn_bench.utils import comm
from maskrcnn_bench.utils.checkpoint import (
    DetectronCheckpointer,
    checkpoint_of,
    describe_checkpoint,
    last_checkpoint,
    read_checkpoint,
)
from maskrcnn_bench.utils.download import find_weights, require_weights
from maskrcnn_bench.utils.files import write_atomically
from maskrcnn_bench.utils.logger import FILE_ONLY, NAME, close_handlers, log_lines, spoken_by_first, take_back_log

__all__ = ["resolve_device", "run", "test", "test_main", "train", "train_main"]
_USER_ERRORS = (ValueError, OSError, ImportError, NonFiniteLoss, UnexpectedResults, comm.ProcessLost)


# ------------------------------------------------------------------------------------------------------- the programs


def run(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Turns errors that the user can do something about into one message."""
    close_handlers(logging.getLogger(NAME))
    try:
        # What has no phase of its own comes before the first step.
        with comm.during(lambda: "the start"):
            code = work(args)
    except torch.OutOfMemoryError as error:
        code = _fail(error, "; raise SOLVER.ACCUMULATE, which splits the batch, set DTYPE bfloat16, or lower INPUT.MIN_SIZE_TRAIN")
    except _USER_ERRORS as error:
        code = _fail(error)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        comm.leave_word(f"{type(error).__name__}: {error}")
        raise
    else:
        comm.stop()
    return code


def _fail(error: BaseException, advice: str = "") -> int:
    message = without_traceback(str(error))
    if not isinstance(error, comm.ProcessLost):
        comm.leave_word(message)
    if os.environ.get(DEBUG):
        raise error
    where = f" (rank {comm.get_rank()})" if comm.get_world_size() > 1 else ""
    # In one piece, beside those of the other processes.
    print(f"error{where}: {message}{advice}\n", end="", file=sys.stderr, flush=True)
    logger = logging.getLogger(NAME)
    if logger.handlers:
        logger.error("%s%s", message, advice, extra=FILE_ONLY)
        take_back_log(logger)
    return 1


# ------------------------------------------------------------------------------------------------------- the model and its classes


def _classes_key(cfg: Any) -> str:
    return "MODEL.RETINANET.NUM_CLASSES" if cfg.MODEL.RETINANET_ON else "MODEL.ROI_BOX_HEAD.NUM_CLASSES"


def _describe_model(model: nn.Module) -> list[str]:
    """A line for each part of the model with parameters: how many train, how many are frozen, and its norms."""
    parts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = parts.setdefault(_part_of(name), [0, 0])
        part[not parameter.requires_grad] += parameter.numel()
    norms: dict[str, dict[str, None]] = {}
    for name, module in model.named_modules():
        if "Norm" in (kind := type(module).__name__):
            trains = any(p.requires_grad for p in module.parameters())
            moves = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and not trains
            norms.setdefault(_part_of(name), {})[kind + " (its statistics move)" * moves] = None
    lines = [
        f"  {name:<24}{trains / 1e6:9.3f} M trainable {fixed / 1e6:9.3f} M frozen  {', '.join(norms.get(name, ()))}".rstrip()
        for name, (trains, fixed) in parts.items()
    ]
    total = [sum(part[k] for part in parts.values()) / 1e6 for k in (0, 1)]
    return [f"parameters: {total[0]:.3f} M trainable, {total[1]:.3f} M frozen", *lines]


def _part_of(name: str) -> str:
    """The part of the model that a parameter or module is listed under: a stage of the trunk, or a head."""
    words = name.split(".")
    return ".".join(words[: 3 if words[:2] == ["backbone", "body"] else 2])


def _describe_classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[1:13]) + (", ..." if len(names) > 13 else "")
    return f"{len(names) - 1} classes: {shown}"


# ------------------------------------------------------------------------------------------------------- training


def train(args: argparse.Namespace) -> int:
    """Trains, and tests at the end; returns the exit code."""
    run = start_run(args, check_schedule)
    _require_start(args, run.cfg)
    reference = load_config(args.config_file or None).SOLVER.IMS_PER_BATCH
    cfg, lines = scale_schedule(run.cfg, run.file_keys, run.command_keys, comm.get_world_size(), reference)
    log_lines(run.logger, lines)
    try:
        cfg, loader = _training_data(cfg, run)
    except FileNotFoundError as error:
        if not args.print_schedule or needs_epochs(cfg):
            raise
        run.logger.info("the schedule does not depend on the data, which is not there: %s", error)
    if args.print_schedule:
        run.logger.info("SOLVER: %s", _describe_schedule(cfg.SOLVER))
        return 0
    tester = None if args.skip_test else _make_tester(changed(cfg, {_classes_key(cfg): 0})[0], run)
    if tester is not None and not tester.options["box_only"]:
        _require_classes(tester, loader.dataset.class_names)
    model = _make_model(cfg, run, loader.dataset.class_names)
    checkpointer = DetectronCheckpointer(
        cfg, model, save_dir=cfg.OUTPUT_DIR, keep_last=cfg.SOLVER.KEEP_LAST, class_names=loader.dataset.class_names
    )
    saved = _start_weights(args, cfg, checkpointer, run.logger)
    step, scheduler = _make_step(cfg, model, run.device, checkpointer)
    arguments = {"iteration": 0}
    if saved:
        arguments |= {k: v for k, v in checkpointer.resume(saved).items() if k in ("iteration", "tested", "best")}
    _begin_files(cfg, run, arguments["iteration"])
    loader.batch_sampler.start_iter = arguments["iteration"]
    if tester is not None:
        tester.options["class_names"] = loader.dataset.class_names
        tester.model = step.ema.module if step.ema is not None else model
        tester.prepare = partial(_for_test, cfg, run.device)
    return _train_and_test(cfg, run, loader, step, scheduler, checkpointer, arguments, tester)


def _describe_schedule(solver: Any) -> str:
    shape = ("STEPS",) if solver.LR_SCHEDULE == "multistep" else ("LR_SCHEDULE",)
    return ", ".join(f"{key} {solver[key]}" for key in ("BASE_LR", "MAX_ITER", *shape, "WARMUP_ITERS"))


def _training_data(cfg: Any, run: Run) -> tuple[Any, Any]:
    """The config as the data completes it, and the loader."""
    key = _classes_key(cfg)
    if key not in run.file_keys | run.command_keys:
        cfg = changed(cfg, {key: 0})[0]
    loader = _make_loader(cfg, run.device, is_train=True)
    names = loader.dataset.class_names
    run.logger.info("%s", _describe_classes(names))
    cfg = _with_points(_with_classes(cfg, key, len(names), run), loader.dataset, run)
    cfg, lines = schedule_from_epochs(cfg, run.command_keys, _epoch_length(loader))
    log_lines(run.logger, lines)
    run.logger.info("%s", describe_length(cfg, len(loader.dataset), _epoch_length(loader)))
    if comm.is_main_process() and cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        said = "SOLVER.WARMUP_ITERS %d is not below SOLVER.MAX_ITER %d: the learning rate never gets to SOLVER.BASE_LR"
        run.logger.warning(said, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER)
    loader.batch_sampler.num_iterations = cfg.SOLVER.MAX_ITER
    return cfg, loader


def _make_loader(cfg: Any, device: torch.device, is_train: bool) -> Any:
    # Memory is pinned for a GPU, which "auto" does not tell.
    ours = {"MODEL.DEVICE": str(device), "DATALOADER.NUM_WORKERS": loading_workers(cfg)[0]}
    with spoken_by_first(logging.getLogger(NAME), comm.get_rank()):
        return make_data_loader(changed(cfg, ours)[0], is_train, comm.get_world_size() > 1)


def _epoch_length(loader: Any) -> int:
    return loader.batch_sampler.batch_sampler.epoch_length


def _with_classes(cfg: Any, key: str, count: int, run: Run) -> Any:
    """Takes the number of classes from the data where the config leaves it to them."""
    section, name = key.rsplit(".", 1)
    configured = cfg.MODEL[section.split(".")[1]][name]
    if configured == 0:
        run.logger.info("%s: %d, from the data (with background)", key, count)
        return changed(cfg, {key: count})[0]
    if configured > count:
        run.logger.info("%s is %d, the data has %d with background: the others are never learnt", key, configured, count)
    return cfg


def _with_points(cfg: Any, dataset: Any, run: Run) -> Any:
    """Takes what the keypoints are called, and how many there are, from the data where nobody said it."""
    kind, head = getattr(dataset, "keypoint_kind", None), "MODEL.ROI_KEYPOINT_HEAD"
    said = run.file_keys | run.command_keys
    if not cfg.MODEL.KEYPOINT_ON or kind is None or f"{head}.NAMES" in said:
        return cfg
    count = len(kind.names)
    if count != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES:
        # The loss names both numbers.
        if f"{head}.NUM_CLASSES" in said:
            return cfg
        run.logger.info("%s.NUM_CLASSES: %d, from the data", head, count)
    values = {"NUM_CLASSES": count, "NAMES": kind.names, "FLIP_PAIRS": tuple(kind.flip_map.items()), "SKELETON": kind.skeleton}
    return changed(cfg, {f"{head}.{name}": value for name, value in values.items()})[0]


def _make_model(cfg: Any, run: Run, class_names: Sequence[str]) -> nn.Module:
    model = build_detection_model(cfg).to(run.device, memory_format=torch.channels_last)
    set_class_thresholds(model, cfg.TEST.CLASS_SCORE_THRESH, class_names)
    log_lines(run.logger, _describe_model(model))
    return model


def _resume_file(args: argparse.Namespace, cfg: Any) -> str:
    """The checkpoint that the run goes on from; "" where it starts anew."""
    if comm.is_restart() and (last := last_checkpoint(cfg.OUTPUT_DIR)):
        return last
    named = "" if args.resume == "auto" else args.resume
    return named or ("" if args.weights is not None else last_checkpoint(cfg.OUTPUT_DIR))


def _require_start(args: argparse.Namespace, cfg: Any) -> None:
    """Finds out before the data is read that what the run starts from is missing."""
    require_weights(_resume_file(args, cfg) or cfg.MODEL.WEIGHT, cfg.PATHS_CATALOG)


def _start_weights(args: argparse.Namespace, cfg: Any, checkpointer: DetectronCheckpointer, logger: Any) -> dict[str, Any] | None:
    """Decides what the run starts from, and says so: the state of an earlier run is returned, weights are loaded."""
    path = _resume_file(args, cfg)
    if args.resume == "auto" and not checkpointer.has_checkpoint():
        logger.info("--resume: no checkpoint in %s yet", cfg.OUTPUT_DIR)
    if path:
        saved = read_checkpoint(path)
        other = "" if args.resume else "; for a new run give --weights, or another --output"
        logger.info("resuming %s after iteration %d%s", path, saved["iteration"], other)
        return saved
    if args.weights is not None and checkpointer.has_checkpoint():
        logger.info("--weights: a new run in %s, whose checkpoints will be replaced; --resume would go on with the old one", cfg.OUTPUT_DIR)
        checkpointer.forget_last_checkpoint()
    checkpointer.load(cfg.MODEL.WEIGHT, use_latest=False)
    return None


def _make_step(cfg: Any, model: nn.Module, device: torch.device, checkpointer: DetectronCheckpointer) -> tuple[Step, Any]:
    solver = cfg.SOLVER
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    scaler = LossScale(device) if cfg.DTYPE == "float16" else None
    ema = AveragedWeights(model, solver.EMA) if solver.EMA > 0 else None
    checkpointer.optimizer, checkpointer.scheduler, checkpointer.scaler, checkpointer.ema = optimizer, scheduler, scaler, ema
    dtype = getattr(torch, cfg.DTYPE)
    compile_parts(model, cfg.MODEL.COMPILE)
    recordings = _recordings(cfg, "SOLVER.CUDA_GRAPH", solver.CUDA_GRAPH, device)
    if recordings is None:
        model = _distributed(model, device)
    return Step(model, optimizer, device, dtype, solver.ACCUMULATE, solver.CLIP_GRADIENTS, scaler, ema, recordings), scheduler


def _recordings(cfg: Any, key: str, wanted: bool | str, device: torch.device) -> Recordings | None:
    """What records work on the device, where `key` wants it and it can be.

    Raises:
        ValueError: when it is wanted without "auto" and can't be.
    """
    if not wanted:
        return None
    obstacle = "" if device.type == "cuda" else f"the device is {device}, and only CUDA has graphs"
    if cfg.MODEL.STATIC_SHAPES is False:
        obstacle = "with MODEL.STATIC_SHAPES False shapes depend on what is in the images"
    if any(name == "SyncBN" for name in (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM)):
        obstacle = "SyncBN talks to other processes in the middle of a step"
    if obstacle and wanted is True:
        raise ValueError(f"{key} True, but {obstacle}; take auto or False")
    return None if obstacle else Recordings(CudaRecorder(), device, required=wanted is True)


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    if device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ValueError("SyncBN counts over several GPUs and not over processes of the CPU; set MODEL.RESNETS.NORM (or FPN.NORM) GN or BN")
    devices = [device.index] if device.type == "cuda" else None
    # Only batch norms have buffers that change. Newer versions of torch have another word for it.
    moving = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    option = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": moving}
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **option)


def _begin_files(cfg: Any, run: Run, iteration: int) -> None:
    """Cuts the logs back to the start of this run, and writes its config."""
    if comm.is_main_process():
        cut_back(cfg.OUTPUT_DIR, iteration, run.log_size)
        write_atomically(Path(cfg.OUTPUT_DIR, "config.yml"), lambda file: file.write(resolved(cfg).encode()))


def _train_and_test(
    cfg: Any, run: Run, loader: Any, step: Step, scheduler: Any, checkpointer: Any, arguments: dict[str, Any], tester: Tester | None
) -> int:
    solver = cfg.SOLVER
    if arguments["iteration"] >= solver.MAX_ITER:
        run.logger.info("nothing left to train: %d iterations are done, SOLVER.MAX_ITER is %d", arguments["iteration"], solver.MAX_ITER)
    progress = Progress(cfg.OUTPUT_DIR, solver.MAX_ITER, solver.LOG_PERIOD, solver.IMS_PER_BATCH, _epoch_length(loader))
    if solver.TENSORBOARD and (board := make_board(cfg.OUTPUT_DIR, arguments["iteration"])):
        progress.board = board
        if tester is not None:
            tester.options["show"] = board.shows(lambda: arguments["iteration"])
    if cfg.AMP_VERBOSE and step.scaler is not None:
        progress.loss_scale = step.scaler.scale
    with StopRequest() as stop, comm.during(lambda: f"the training, in iteration {arguments['iteration'] + 1}"):
        finished = do_train(
            step.model,
            loader,
            step.optimizer,
            scheduler,
            checkpointer,
            run.device,
            solver.CHECKPOINT_PERIOD,
            arguments,
            step=step,
            progress=progress,
            evaluate=tester,
            eval_period=solver.TEST_PERIOD,
            best_metric=solver.BEST_METRIC,
            patience=solver.PATIENCE,
            stop=stop,
        )
    if finished and tester is not None:
        tester.require_expected()
    return 0 if finished else 128 + (stop.signal or signal.SIGTERM)


# ------------------------------------------------------------------------------------------------------- testing


def _make_tester(cfg: Any, run: Run) -> Tester | None:
    """None where the config names no data to test on."""
    if not cfg.DATASETS.TEST and not cfg.DATASETS.DATA:
        run.logger.info("DATASETS.TEST is empty: nothing to test on")
        return None
    tasks = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    rules = get_dialect(cfg.MODEL.DIALECT)
    proposes = cfg.MODEL.RPN_ONLY and not cfg.MODEL.RETINANET_ON
    options = {
        "iou_types": tuple(task for task, on in tasks.items() if on),
        "box_only": proposes,
        "device": run.device,
        "dtype": getattr(torch, cfg.DTYPE),
        "clip": rules.clip_rescaled,
        "live": comm.is_main_process() and sys.stdout.isatty(),
        "evaluator": cfg.TEST.EVALUATOR,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMG,
        "mask_threshold": cfg.MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD,
        "mask_rule": rules.mask_paste,
        "confusion": (cfg.TEST.CONFUSION_SCORE, cfg.TEST.CONFUSION_IOU),
        "pictures": cfg.TEST.PICTURES and can_draw(),
        "class_agnostic_nms": 0.0 if proposes else cfg.TEST.CLASS_AGNOSTIC_NMS,
    }
    names = list(cfg.DATASETS.TEST) or [cfg.DATASETS.DATA]
    expected = (cfg.TEST.EXPECTED_RESULTS, cfg.TEST.EXPECTED_RESULTS_SIGMA_TOL)
    return Tester(names, _make_loader(cfg, run.device, is_train=False), cfg.OUTPUT_DIR, expected, options, losses=cfg.TEST.LOSSES)


def _for_test(cfg: Any, device: torch.device, model: nn.Module) -> nn.Module:
    """The model as it is tested: a faster copy, that looks several times at each image where the config asks for that."""
    if isinstance(model, GeneralizedRCNN):
        model = model.for_inference(getattr(torch, cfg.DTYPE))
    aug = cfg.TEST.BBOX_AUG
    if aug.ENABLED:
        return TestTimeAugmentation(model, make_passes(len(aug.SCALES), aug.H_FLIP, aug.SCALE_H_FLIP))
    compile_parts(model, cfg.MODEL.COMPILE)
    recordings = _recordings(cfg, "TEST.CUDA_GRAPH", cfg.TEST.CUDA_GRAPH, device)
    return model if recordings is None else ReplayedModel(model, recordings)


def test(args: argparse.Namespace) -> int:
    """Tests; returns the exit code."""
    run = start_run(args)
    cfg, key = run.cfg, _classes_key(run.cfg)
    weights = find_weights(_weights_to_test(args.ckpt, cfg), cfg.PATHS_CATALOG, run.logger)
    known = describe_checkpoint(weights).get("class_names", ())
    if known and key not in run.file_keys | run.command_keys:
        cfg = changed(cfg, {key: len(known)})[0]
    # Classes that are told apart by name need not have the numbers of the model.
    try:
        tester = _make_tester(changed(cfg, {key: 0})[0] if known else cfg, run)
    except (FileNotFoundError, ValueError) as error:
        if not (hint := _data_of_training(args, run)):
            raise
        raise FileNotFoundError(f"{error}. {hint}") from None
    if tester is None:
        raise ValueError("nothing to test on: give --data FOLDER, or set DATASETS.TEST")
    names = tester.loaders[0].dataset.class_names
    if known and not tester.options["box_only"]:
        _match_classes(weights, known, tester, run)
    cfg = _with_points(_with_classes(cfg, key, len(known or names), run), tester.loaders[0].dataset, run)
    model = _make_model(cfg, run, known or names)
    DetectronCheckpointer(cfg, model, save_to_disk=False).load_weights(weights)
    tester.model = _for_test(cfg, run.device, model)
    tester()
    tester.require_expected()
    return 0


def _data_of_training(args: argparse.Namespace, run: Run) -> str:
    """What to say where data is missing that nobody named now, but the config beside the checkpoint did."""
    keys, beside = run.cfg.DATASETS, config_beside(args.ckpt)
    names = list(keys.TEST) or [keys.DATA]
    if args.config_file is not None or not beside or {"DATASETS.TEST", "DATASETS.DATA"} & run.command_keys:
        return ""
    if all(name in DatasetCatalog.DATASETS or os.path.exists(name) for name in names):
        return ""
    return f"The name is from {beside}, as the training had it; --data FOLDER gives another"


def _require_classes(tester: Tester, known: Sequence[str]) -> None:
    """Finds out before a training whether it will be tested on classes that it does not learn."""
    for name, loader in zip(tester.names, tester.loaders):
        if more := [one for one in loader.dataset.class_names[1:] if one not in known]:
            raise ValueError(
                f"{name} has classes that the training data has not: {', '.join(more[:12])}. Name those to learn and to test in"
                " DATASETS.CLASSES, test on other data (DATASETS.TEST), or train with --skip-test"
            )


def _match_classes(weights: str, known: Sequence[str], tester: Tester, run: Run) -> None:
    """Has the labels of the weights become those of each data set by name, which must all be known."""
    tester.options["class_names"] = known
    for loader in tester.loaders:
        names = loader.dataset.class_names
        both = (_describe_classes(known), _describe_classes(names))
        if not set(names[1:]) <= set(known[1:]):
            raise ValueError(
                f"{weights} knows {both[0]}; the data has {both[1]}. Test on the data that the weights were trained on, "
                f"or train on this data first, beginning with them: --weights {weights}"
            )
        if tuple(known) != tuple(names):
            run.logger.info("the weights know %s; the data has %s: matched by name", *both)


def _weights_to_test(named: str, cfg: Any) -> str:
    if named:
        try:
            named = checkpoint_of(named)
            require_weights(named, cfg.PATHS_CATALOG)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--ckpt: {error}") from None
    name = named or last_checkpoint(cfg.OUTPUT_DIR) or cfg.MODEL.WEIGHT
    if not name:
        raise ValueError(f"no weights to test: give --ckpt FILE or MODEL.WEIGHT; {cfg.OUTPUT_DIR} has no checkpoint")
    return name
