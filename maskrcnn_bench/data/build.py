"""Data loaders from the configuration. This is the border: nothing else under `data` sees it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import DataLoader, Dataset

from maskrcnn_bench.config.dialect import get_dialect
from maskrcnn_bench.config.paths_catalog import DatasetCatalog, import_file
from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.check import require_sound
from maskrcnn_bench.data.collate import BatchCollator, TransformedDataset, one_thread
from maskrcnn_bench.data.copy_paste import CopyPaste
from maskrcnn_bench.data.crops import CropToAspectRatio, ScaleJitter
from maskrcnn_bench.data.datasets.concat import ConcatDataset, aspect_ratios, image_labels
from maskrcnn_bench.data.datasets.source import Source, find_source, read_dataset
from maskrcnn_bench.data.float_resize import NormalizeAndInterpolate, NormalizeAndResize
from maskrcnn_bench.data.proposals import GivenProposals, ProposalSlots
from maskrcnn_bench.data.samplers import (
    GroupedBatchSampler,
    IterationBasedBatchSampler,
    ShardedBatchSampler,
    group_by_ratio,
    group_by_size,
    repeat_factors,
    repeat_report,
)
from maskrcnn_bench.utils.download import find_weights
from maskrcnn_bench.utils.proposal_files import read_proposals

logger = logging.getLogger("maskrcnn_bench.data")

GB = 1e9


def make_dataset(
    name: str,
    is_train: bool = True,
    *,
    root: str | None = None,
    keep_empty: bool = False,
    masks: bool = False,
    catalog: str | None = None,
    **options: Any,
) -> Dataset:
    """The data set that a name of the catalog, a folder or a COCO JSON file means; arguments as `read_dataset` has them.

    `catalog` is a Python file with a DatasetCatalog, as the key PATHS_CATALOG names one.
    """
    return read_dataset(name, _catalog(catalog), is_train, root=root, keep_empty=keep_empty, masks=masks, options=options)


def locate(name: str, is_train: bool, root: str | None = None, masks: bool = False, catalog: str | None = None) -> Source:
    """What a name of the catalog, a folder or a file means, without reading annotations."""
    return find_source(name, _catalog(catalog), is_train, root, masks=masks)


def _catalog(file: str | None) -> Any:
    return import_file("maskrcnn_bench.paths_catalog", file).DatasetCatalog if file else DatasetCatalog


def make_transforms(cfg, is_train: bool = True) -> T.Compose:
    """What is done to every image: colours, size, mirrors, tensor."""
    d = get_dialect(cfg.MODEL.DIALECT)
    if not is_train:
        usual = make_resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        aug = cfg.TEST.BBOX_AUG
        if not aug.ENABLED:
            return T.Compose([usual, T.ToTensor()])
        return T.Compose([T.ResizeToEach([usual, *(make_resize(cfg, s, aug.MAX_SIZE) for s in aug.SCALES)])])
    colours = [cfg.INPUT.BRIGHTNESS, cfg.INPUT.CONTRAST, cfg.INPUT.SATURATION, cfg.INPUT.HUE]
    if cfg.INPUT.CHANNELS != 3 and any(colours):
        raise ValueError(f"INPUT.BRIGHTNESS, CONTRAST, SATURATION and HUE are for RGB; with INPUT.CHANNELS {cfg.INPUT.CHANNELS} set them 0")
    resize_last = d.resize_rounding in _FLOAT_RESIZES and not cfg.INPUT.SCALE_JITTER  # it makes numbers, which no other transform takes
    bitmaps = [T.MasksToBitmaps()] if cfg.MODEL.MASK_ON and d.mask_target in ("half_covered", "soft_cover") else []
    return T.Compose(
        [
            T.ColorJitter(*colours),
            *([CropToAspectRatio(*cfg.INPUT.ASPECT_RATIO_RANGE)] if cfg.INPUT.ASPECT_RATIO_RANGE else []),
            *_named_transforms(cfg),
            *([] if resize_last else [_train_size(cfg, d)]),
            T.RandomHorizontalFlip(cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN),
            T.RandomVerticalFlip(cfg.INPUT.VERTICAL_FLIP_PROB_TRAIN),
            *bitmaps,
            *([_train_size(cfg, d)] if resize_last else []),
            T.ToTensor(),
        ]
    )


def _named_transforms(cfg) -> list[Any]:
    if not cfg.INPUT.TRANSFORMS:
        return []
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError("INPUT.TRANSFORMS does not move the proposals of MODEL.LOAD_PROPOSALS; set one of them off")
    # Here, since torchvision's transforms take a moment to import, and few trainings use them.
    from maskrcnn_bench.data.named_transforms import NamedTransform

    return [NamedTransform(text, slot) for slot, text in enumerate(cfg.INPUT.TRANSFORMS)]


_FLOAT_RESIZES = {"one_factor": NormalizeAndResize, "both_truncated": NormalizeAndInterpolate}
"""By the dialect's resize_rounding: those that answer normalised numbers, without rounding to 8 bits."""


def make_resize(cfg, shorter: int | Sequence[int], longest: int) -> Any:
    """What makes images their size, given the lengths of the shorter side and the largest one of the longer side, pixels."""
    d = get_dialect(cfg.MODEL.DIALECT)
    if cfg.INPUT.CHANNELS != 3:
        return T.Resize(shorter, longest)
    if d.resize_rounding in _FLOAT_RESIZES:
        return _FLOAT_RESIZES[d.resize_rounding](shorter, longest, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255)
    return T.Resize(shorter, longest, d.resize_rounding, d.interpolation)


def _train_size(cfg, d) -> Any:
    """What makes training images their size."""
    if cfg.INPUT.SCALE_JITTER:
        if d.resize_rounding == "one_factor":
            raise ValueError(
                f"INPUT.SCALE_JITTER: MODEL.DIALECT {d.name} resizes images by one factor, to one of MIN_SIZE_TRAIN; leave it empty"
            )
        return ScaleJitter(*cfg.INPUT.SCALE_JITTER, cfg.INPUT.MAX_SIZE_TRAIN, T.INTERPOLATIONS.get(d.interpolation, T.resize_antialiased))
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
        _name_classes(dataset, name, _num_classes(cfg))
        logger.info("%s: %d images", getattr(dataset, "described", type(dataset).__name__), len(dataset))
        if not len(dataset):
            raise ValueError(f"{name}: the data set has no images")
        if is_train and cfg.MODEL.MASK_ON and not getattr(dataset, "has_masks", True):
            raise ValueError(f"{name}: MODEL.MASK_ON needs masks, but no object of the data has one; set it False to train boxes")
        if is_train and cfg.INPUT.COPY_PASTE and not getattr(dataset, "has_masks", True):
            raise ValueError(f"{name}: INPUT.COPY_PASTE cuts objects out by their masks, but the data has none; set it 0")
        require_sound(dataset, _num_classes(cfg))
    return [ConcatDataset(datasets)] if is_train and len(datasets) > 1 else datasets


def _make_one(cfg, name: str, is_train: bool) -> Dataset:
    catalog = _catalog(cfg.PATHS_CATALOG)
    options = {
        "pixel": get_dialect(cfg.MODEL.DIALECT).pixel,
        "on_fault": cfg.DATASETS.ON_FAULT,
        "on_exif": cfg.INPUT.ON_EXIF,
        "classes": tuple(cfg.DATASETS.CLASSES),
        "channels": cfg.INPUT.CHANNELS,
        "cache_bytes": cfg.DATALOADER.CACHE_GB * GB if cfg.DATALOADER.CACHE == "disk" else 0,
    }
    dataset = read_dataset(
        name,
        catalog,
        is_train,
        root=cfg.DATASETS.ROOT,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        keep_empty=cfg.DATASETS.KEEP_EMPTY,
        masks=cfg.MODEL.MASK_ON,
        options=options,
    )
    if cfg.DATALOADER.CACHE == "disk" and not hasattr(dataset, "image_cache"):
        what = f"{name}: {type(dataset).__name__} reads its images itself"
        logger.warning("DATALOADER.CACHE disk does nothing for %s; DATALOADER.CACHE ram would keep them in memory", what)
    return dataset


def _name_classes(dataset: Dataset, name: str, num_classes: int) -> None:
    """Gives a user's data set `class_names` and `categories` where it lacks one of them, or both."""
    if not hasattr(dataset, "class_names"):
        dataset.class_names = _class_names(dataset, name, num_classes)
    if getattr(dataset, "categories", None) is None:
        dataset.categories = dict(enumerate(dataset.class_names[1:], start=1))


def _class_names(dataset: Dataset, name: str, num_classes: int) -> tuple[str, ...]:
    """The names of a user's classes from its `categories`, or numbers as names."""
    known = getattr(dataset, "categories", None)
    if not known and not num_classes:
        what = f"{name}: {type(dataset).__name__} does not say its classes"
        raise ValueError(f"{what}; give it class_names = ('__background__', 'name of label 1', ...), or set MODEL.ROI_BOX_HEAD.NUM_CLASSES")
    labels = range(1, max(known) + 1) if known else range(1, num_classes)
    return ("__background__", *((known or {}).get(label, f"class {label}") for label in labels))


def make_proposals(cfg, datasets: Sequence[Dataset], is_train: bool = True) -> list[Dataset | None]:
    """The given proposals of what `make_datasets` made; None each where the model finds its own.

    Raises:
        ValueError: when there is not one file a data set, or a file does not fit its data set.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return [None] * len(datasets)
    if is_train and cfg.INPUT.COPY_PASTE:
        raise ValueError("INPUT.COPY_PASTE puts objects where MODEL.LOAD_PROPOSALS has no proposals for them; set one of them off")
    key = f"DATASETS.PROPOSAL_FILES_{'TRAIN' if is_train else 'TEST'}"
    files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if is_train else cfg.DATASETS.PROPOSAL_FILES_TEST
    parts = datasets[0].datasets if isinstance(datasets[0], ConcatDataset) else datasets
    if len(files) != len(parts):
        names = ", ".join(str(getattr(part, "described", type(part).__name__)) for part in parts)
        raise ValueError(f"{key}: MODEL.LOAD_PROPOSALS needs one file for each of {len(parts)} data set(s) ({names}), got {len(files)}")
    given = [_read_given(cfg, key, file, part) for file, part in zip(files, parts, strict=True)]
    return [TorchConcatDataset(given)] if isinstance(datasets[0], ConcatDataset) else given


def _read_given(cfg, key: str, file: str, dataset: Dataset) -> GivenProposals:
    try:
        path = find_weights(file, cfg.PATHS_CATALOG, logger)
        given = GivenProposals(dataset, read_proposals(path), path, get_dialect(cfg.MODEL.DIALECT).pixel)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    logger.info("proposals of %d images from %s", len(given), path)
    return given


def _make_proposal_slots(cfg, is_train: bool) -> ProposalSlots | None:
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    keys = cfg.DATASETS
    slots = keys.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if is_train else keys.PRECOMPUTED_PROPOSAL_TOPK_TEST
    return ProposalSlots(slots, cfg.MODEL.RPN.MIN_SIZE, get_dialect(cfg.MODEL.DIALECT).drop_empty)


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
    datasets = make_datasets(cfg, is_train)
    for dataset, proposals in zip(datasets, make_proposals(cfg, datasets, is_train), strict=True):
        paste = CopyPaste(cfg.INPUT.COPY_PASTE) if is_train and cfg.INPUT.COPY_PASTE else None
        samples = TransformedDataset(dataset, make_transforms(cfg, is_train), cfg.SEED, _memory(cfg), paste, proposals)
        grouped = GroupedBatchSampler(
            _groups(cfg, dataset, is_train), _batch_size(cfg, is_train, num_ranks), cfg.SEED, is_train, _repeats(cfg, dataset, is_train)
        )
        if is_train:
            sampler = IterationBasedBatchSampler(grouped, cfg.SOLVER.MAX_ITER, start_iter, rank, num_ranks, cfg.SOLVER.ACCUMULATE)
        else:
            sampler = ShardedBatchSampler(grouped, rank, num_ranks)
        loaders.append(_loader(cfg, samples, sampler, _make_proposal_slots(cfg, is_train)))
    return loaders[0] if is_train else loaders


def _memory(cfg) -> float:
    """What a loading process may keep of its images, bytes."""
    return cfg.DATALOADER.CACHE_GB * GB / max(cfg.DATALOADER.NUM_WORKERS, 1) if cfg.DATALOADER.CACHE == "ram" else 0


def _groups(cfg, dataset: Dataset, is_train: bool) -> Sequence[int]:
    """Images with one number may share a batch.

    In training these are the upright and the wide ones. In testing they are as large as each other after padding, so that no
    result depends on which images share a batch, or how many.
    """
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return [0] * len(dataset)
    if is_train:
        return group_by_ratio(aspect_ratios(dataset))
    resize = make_resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    infos = (dataset.get_img_info(i) for i in range(len(dataset)))
    sizes = [resize.get_size((info["width"], info["height"]), cfg.INPUT.MIN_SIZE_TEST) for info in infos]
    return group_by_size(sizes, cfg.DATALOADER.SIZE_DIVISIBILITY)


def _repeats(cfg, dataset: Dataset, is_train: bool) -> Any:
    """How often each training image occurs in an epoch; None for once."""
    keys = cfg.DATALOADER
    if not is_train or (keys.REPEAT_THRESHOLD <= 0 and not keys.DATASET_REPEATS):
        return None
    images, labels = image_labels(dataset)
    factors = _dataset_repeats(cfg, dataset)
    if keys.REPEAT_THRESHOLD > 0:
        factors = factors * repeat_factors(images, labels, len(dataset), keys.REPEAT_THRESHOLD, keys.REPEAT_EXPONENT)
    names = getattr(dataset, "class_names", None) or [f"class {k}" for k in range(int(labels.max(initial=0)) + 1)]
    logger.info("\n".join(repeat_report(images, labels, factors, names)))
    return factors


def _dataset_repeats(cfg, dataset: Dataset) -> np.ndarray:
    """How often the images of each of several data sets occur in an epoch. [len(dataset)]"""
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    repeats = cfg.DATALOADER.DATASET_REPEATS or (1.0,) * len(parts)
    if len(repeats) != len(parts):
        raise ValueError(f"DATALOADER.DATASET_REPEATS: expected one number for each of {len(parts)} data set(s), got {repeats}")
    return np.repeat(np.array(repeats, dtype=np.float64), [len(part) for part in parts])


def _batch_size(cfg, is_train: bool, num_ranks: int) -> int:
    """Images of one batch of one process."""
    if not is_train:
        return max(cfg.TEST.IMS_PER_BATCH // num_ranks, 1)
    total, parts = cfg.SOLVER.IMS_PER_BATCH, num_ranks * cfg.SOLVER.ACCUMULATE
    if total % parts:
        why = f"{num_ranks} processes x SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}"
        raise ValueError(f"SOLVER.IMS_PER_BATCH: expected a multiple of {parts} ({why}), got {total}")
    return total // parts


def _loader(cfg, samples: TransformedDataset, sampler: Any, proposals: ProposalSlots | None) -> DataLoader:
    workers, keys = cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=BatchCollator(keys.SIZE_DIVISIBILITY, keys.SHAPE_BUCKETS, keys.TARGET_SLOTS, proposals),
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
        # A forked process shares the annotations and starts at once; elsewhere there is no fork.
        multiprocessing_context="fork" if workers > 0 and sys.platform.startswith("linux") else None,
    )
