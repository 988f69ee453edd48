"""Data loaders from the configuration. This is the border: nothing else under `data` sees it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from maskrcnn_bench.config.dialect import get_dialect
from maskrcnn_bench.config.paths_catalog import DatasetCatalog, import_file
from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.check import require_sound
from maskrcnn_bench.data.collate import BatchCollator, TransformedDataset, one_thread
from maskrcnn_bench.data.crops import CropToAspectRatio, ScaleJitter
from maskrcnn_bench.data.datasets.concat import ConcatDataset, aspect_ratios, image_labels
from maskrcnn_bench.data.datasets.source import Source, find_source, read_dataset
from maskrcnn_bench.data.float_resize import NormalizeAndResize
from maskrcnn_bench.data.samplers import (
    GroupedBatchSampler,
    IterationBasedBatchSampler,
    ShardedBatchSampler,
    group_by_ratio,
    repeat_factors,
    repeat_report,
)

logger = logging.getLogger("maskrcnn_bench.data")


def make_dataset(
    name: str, is_train: bool = True, *, root: str | None = None, keep_empty: bool = False, masks: bool = False, **options: Any
) -> Dataset:
    """The data set that a name of the catalog, a folder or a COCO JSON file means; arguments as `read_dataset` has them."""
    return read_dataset(name, DatasetCatalog, is_train, root=root, keep_empty=keep_empty, masks=masks, options=options)


def locate(name: str, is_train: bool, root: str | None = None, masks: bool = False) -> Source:
    """What a name of the catalog, a folder or a file means, without reading annotations."""
    return find_source(name, DatasetCatalog, is_train, root, masks=masks)


def make_transforms(cfg, is_train: bool = True) -> T.Compose:
    """What is done to every image: colours, size, mirrors, tensor."""
    d = get_dialect(cfg.MODEL.DIALECT)
    if not is_train:
        usual = make_resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        aug = cfg.TEST.BBOX_AUG
        if not aug.ENABLED:
            return T.Compose([usual, T.ToTensor()])
        return T.Compose([T.ResizeToEach([usual, *(make_resize(cfg, s, aug.MAX_SIZE) for s in aug.SCALES)])])
    resize_last = d.resize_rounding == "one_factor"  # it makes pictures to numbers, which no other transform takes
    bitmaps = [T.MasksToBitmaps()] if cfg.MODEL.MASK_ON and d.mask_target in ("half_covered", "soft_cover") else []
    return T.Compose(
        [
            T.ColorJitter(cfg.INPUT.BRIGHTNESS, cfg.INPUT.CONTRAST, cfg.INPUT.SATURATION, cfg.INPUT.HUE),
            *([CropToAspectRatio(*cfg.INPUT.ASPECT_RATIO_RANGE)] if cfg.INPUT.ASPECT_RATIO_RANGE else []),
            *([] if resize_last else [_train_size(cfg, d)]),
            T.RandomHorizontalFlip(cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN),
            T.RandomVerticalFlip(cfg.INPUT.VERTICAL_FLIP_PROB_TRAIN),
            *bitmaps,
            *([_train_size(cfg, d)] if resize_last else []),
            T.ToTensor(),
        ]
    )


def make_resize(cfg, shorter: int | Sequence[int], longest: int) -> Any:
    """What makes images their size, given the lengths of the shorter side and the largest one of the longer side, pixels."""
    d = get_dialect(cfg.MODEL.DIALECT)
    if d.resize_rounding == "one_factor":
        return NormalizeAndResize(shorter, longest, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255)
    return T.Resize(shorter, longest, d.resize_rounding, d.interpolation)


def _train_size(cfg, d) -> Any:
    """What makes training images their size."""
    if cfg.INPUT.SCALE_JITTER:
        if d.interpolation not in T.INTERPOLATIONS:
            raise ValueError(
                f"INPUT.SCALE_JITTER: MODEL.DIALECT {d.name} resizes images by one factor, to one of MIN_SIZE_TRAIN; leave it empty"
            )
        return ScaleJitter(*cfg.INPUT.SCALE_JITTER, cfg.INPUT.MAX_SIZE_TRAIN, T.INTERPOLATIONS[d.interpolation])
    return make_resize(cfg, _shorter_sides(cfg), cfg.INPUT.MAX_SIZE_TRAIN)


def _shorter_sides(cfg) -> tuple[int, ...]:
    """The lengths of which each training image draws one, pixels.

    Raises:
        ValueError: when a range has not two ascending ends.
    """
    sizes = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "choice":
        return sizes
    if len(sizes) != 2 or sizes[0] > sizes[1]:
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN: MIN_SIZE_TRAIN_SAMPLING 'range' needs two ascending values, got {sizes}")
    return tuple(range(sizes[0], sizes[1] + 1))


def make_datasets(cfg, is_train: bool = True) -> list[Dataset]:
    """The data sets of DATASETS.TRAIN (joined into one) or DATASETS.TEST, checked.

    Raises:
        ValueError: when none is configured, one is unusable, or its labels do not fit the model.
    """
    names = (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST) or ((cfg.DATASETS.DATA,) if cfg.DATASETS.DATA else ())
    if not names:
        raise ValueError(f"no data set: give --data FOLDER, or set DATASETS.{'TRAIN' if is_train else 'TEST'}")
    datasets = [_make_one(cfg, name, is_train) for name in names]
    for name, dataset in zip(names, datasets):
        logger.info("%s: %d images", getattr(dataset, "described", type(dataset).__name__), len(dataset))
        require_sound(dataset, _num_classes(cfg))
        if is_train and cfg.MODEL.MASK_ON and not getattr(dataset, "has_masks", True):
            raise ValueError(f"{name}: MODEL.MASK_ON needs masks, but no object of the data has one; set it False to train boxes")
    return [ConcatDataset(datasets)] if is_train and len(datasets) > 1 else datasets


def _make_one(cfg, name: str, is_train: bool) -> Dataset:
    catalog = import_file("maskrcnn_bench.paths_catalog", cfg.PATHS_CATALOG).DatasetCatalog
    options = {
        "pixel": get_dialect(cfg.MODEL.DIALECT).pixel,
        "on_fault": cfg.DATASETS.ON_FAULT,
        "on_exif": cfg.INPUT.ON_EXIF,
        "classes": tuple(cfg.DATASETS.CLASSES),
    }
    return read_dataset(
        name,
        catalog,
        is_train,
        root=cfg.DATASETS.ROOT,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        keep_empty=cfg.DATASETS.KEEP_EMPTY,
        masks=cfg.MODEL.MASK_ON,
        options=options,
    )


def _num_classes(cfg) -> int:
    """Classes of the model with background; 0 when they are taken from the data or do not matter."""
    if cfg.MODEL.RPN_ONLY and not cfg.MODEL.RETINANET_ON:
        return 0
    return cfg.MODEL.RETINANET.NUM_CLASSES if cfg.MODEL.RETINANET_ON else cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES


def make_data_loader(cfg, is_train: bool = True, is_distributed: bool = False, start_iter: int = 0) -> Any:
    """Loaders of (ImageList uint8, BoxListBatch, indices).

    Args:
        cfg: the configuration.
        is_train: training (shuffled, augmented, endless until MAX_ITER) or testing (each image once).
        is_distributed: take this process's share of the images.
        start_iter: first training iteration; the batches are those an uninterrupted run would see.
    Returns:
        One loader in training, which yields SOLVER.ACCUMULATE batches an iteration; a list of loaders, one a data set, in
        testing. `loader.dataset` has the attributes of the data set.
    """
    rank, num_ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_distributed else (0, 1)
    loaders = []
    for dataset in make_datasets(cfg, is_train):
        samples = TransformedDataset(dataset, make_transforms(cfg, is_train), cfg.SEED, cfg.DATALOADER.CACHE == "ram")
        groups = group_by_ratio(aspect_ratios(dataset)) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else [0] * len(dataset)
        grouped = GroupedBatchSampler(groups, _batch_size(cfg, is_train, num_ranks), cfg.SEED, is_train, _repeats(cfg, dataset, is_train))
        if is_train:
            sampler = IterationBasedBatchSampler(grouped, cfg.SOLVER.MAX_ITER, start_iter, rank, num_ranks, cfg.SOLVER.ACCUMULATE)
        else:
            sampler = ShardedBatchSampler(grouped, rank, num_ranks)
        loaders.append(_loader(cfg, samples, sampler))
    return loaders[0] if is_train else loaders


def _repeats(cfg, dataset: Dataset, is_train: bool) -> Any:
    """How often each training image occurs in an epoch; None for once."""
    if not is_train or cfg.DATALOADER.REPEAT_THRESHOLD <= 0:
        return None
    images, labels = image_labels(dataset)
    factors = repeat_factors(images, labels, len(dataset), cfg.DATALOADER.REPEAT_THRESHOLD)
    names = getattr(dataset, "class_names", None) or [f"class {k}" for k in range(int(labels.max(initial=0)) + 1)]
    logger.info("\n".join(repeat_report(images, labels, factors, names)))
    return factors


def _batch_size(cfg, is_train: bool, num_ranks: int) -> int:
    """Images of one batch of one process."""
    if not is_train:
        return max(cfg.TEST.IMS_PER_BATCH // num_ranks, 1)
    total, parts = cfg.SOLVER.IMS_PER_BATCH, num_ranks * cfg.SOLVER.ACCUMULATE
    if total % parts:
        why = f"{num_ranks} processes x SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}"
        raise ValueError(f"SOLVER.IMS_PER_BATCH: expected a multiple of {parts} ({why}), got {total}")
    return total // parts


def _loader(cfg, samples: TransformedDataset, sampler: Any) -> DataLoader:
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=BatchCollator(cfg.DATALOADER.SIZE_DIVISIBILITY),
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
        # A forked process shares the annotations and starts at once; elsewhere there is no fork.
        multiprocessing_context="fork" if workers > 0 and sys.platform.startswith("linux") else None,
    )
