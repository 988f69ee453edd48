"""COCODemo: a trained model as one object that takes images and answers detections or pictures. A border file.

The name and the methods are those of maskrcnn-benchmark's demo; images may be paths, PIL images, arrays or tensors here. The class
is not tied to COCO: names come from the checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ..config import explicit_keys, get_defaults, load_config
from ..config.dialect import get_dialect
from ..config.node import leaves
from ..data.build import make_resize
from ..data.datasets.channels import ChannelImage
from ..data.datasets.photo import read_photo
from ..data.transforms import Compose, ToTensor
from ..engine.arguments import config_beside
from ..engine.inference import to_original
from ..engine.launch import resolve_device
from ..modeling.detector import GeneralizedRCNN, build_detection_model, set_class_thresholds
from ..solver import changed
from ..structures.bounding_box import BoxList
from ..structures.boxlist_ops import boxlist_nms
from ..structures.image_list import to_image_list
from ..structures.mask_paste import Masker, paste_rle
from ..utils.checkpoint import DetectronCheckpointer, checkpoint_of, describe_checkpoint, find_weights, last_checkpoint
from ..weights import load_into
from ..weights.classes import BACKGROUND, COCO, coco_names
from . import draw
from .images import as_picture, find_images
from .tiling import detect_tiled

logger = logging.getLogger("maskrcnn_bench.demo")

# From cold to hot in even steps of brightness, so that it can be read without seeing colours. RGB, dark to light.
_HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])


class COCODemo:
    """A model with its weights, ready for images.

    Args:
        cfg: the configuration; its weights are those of the last checkpoint in OUTPUT_DIR, else MODEL.WEIGHT.
        confidence_threshold: least score of what is shown.
        show_mask_heatmaps: show masks as a montage of heat maps instead of overlays.
        masks_per_dim: the montage has this many masks in a row, and rows.
        min_image_size: length that the shorter side of an image is brought to, pixels. The longer one stays below
            INPUT.MAX_SIZE_TEST.
        weight_loading: weights to take instead: a file, an address, or a catalog:// name.
        tile: side of the tiles in which larger images are looked at, besides as a whole, pixels; 0 only looks at the whole.
        overlap: least share of a tile that its neighbour sees as well; objects that are larger may be put together from parts.
    Raises:
        ValueError: when the weights leave a part of the model without values, or the configuration cannot be built.
    """

    CATEGORIES: Sequence[str] = (BACKGROUND, *COCO)
    """Names of the labels, background first. A checkpoint's own names take their place, unless a subclass has set them. Where a
    checkpoint has none and the number of classes is not COCO's, an instance has "class 1" and so on."""

    def __init__(
        self,
        cfg: Any,
        confidence_threshold: float = 0.7,
        show_mask_heatmaps: bool = False,
        masks_per_dim: int = 2,
        min_image_size: int = 224,
        weight_loading: str | os.PathLike | None = None,
        tile: int = 0,
        overlap: float = 0.2,
    ):
        if tile < 0:
            raise ValueError(f"tile: expected a side in pixels, or 0 for no tiles, got {tile}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap: expected a share from 0 to below 1, got {overlap}")
        if cfg.MODEL.RPN_ONLY and not cfg.MODEL.RETINANET_ON:
            raise ValueError("MODEL.RPN_ONLY: such a model proposes boxes but knows no classes, so there is nothing to show")
        self.cfg = cfg.clone()
        self.confidence_threshold = confidence_threshold
        self.show_mask_heatmaps = show_mask_heatmaps
        self.masks_per_dim = masks_per_dim
        self.min_image_size = min_image_size
        self.tile, self.overlap = tile, overlap
        rules = get_dialect(cfg.MODEL.DIALECT)
        self.mask_rule, self._clip = rules.mask_paste, rules.clip_rescaled
        self.has_masks = bool(cfg.MODEL.MASK_ON)
        self.mask_threshold = cfg.MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD
        self.masker = Masker(-1 if show_mask_heatmaps else self.mask_threshold, padding=1, rule=self.mask_rule)
        self.device = resolve_device(cfg.MODEL.DEVICE)
        self.model = build_detection_model(cfg)
        self.keypoint_kind = self.model.roi_heads.keypoint.kind if cfg.MODEL.KEYPOINT_ON and not cfg.MODEL.RPN_ONLY else None
        weights = weight_loading or last_checkpoint(cfg.OUTPUT_DIR) or cfg.MODEL.WEIGHT
        names = _load_trained(cfg, self.model, os.fspath(weights)).get("class_names", ())
        if type(self).CATEGORIES is COCODemo.CATEGORIES:
            self.CATEGORIES = _names(names, _num_classes(cfg)[1])
        set_class_thresholds(self.model, cfg.TEST.CLASS_SCORE_THRESH, self.CATEGORIES)
        self.model.eval()
        if isinstance(self.model, GeneralizedRCNN):
            self.model = self.model.for_inference()
        self.model.to(self.device, memory_format=torch.channels_last)
        self.transforms = self.build_transform()

    @classmethod
    def from_weights(
        cls, weights: str | os.PathLike, config_file: str = "", opts: Sequence[str] = (), confidence_threshold: float = 0.7, **options: Any
    ) -> COCODemo:
        """A demo from a trained model alone, at the image size of its tests.

        Args:
            weights: a file, an address, a catalog:// name, or the output folder of a training.
            config_file: needed for weights of other projects, which do not carry their configuration.
            opts: changes of the configuration, KEY VALUE or KEY=VALUE.
            options: further arguments of the class.
        Raises:
            FileNotFoundError: when a file is missing.
            ValueError: when the configuration is not known, or does not fit the weights.
        """
        path = find_weights(checkpoint_of(os.fspath(weights)), get_defaults().PATHS_CATALOG, logger)
        cfg = _config_of(path, config_file, opts)
        return cls(cfg, confidence_threshold, **{"min_image_size": cfg.INPUT.MIN_SIZE_TEST, "weight_loading": path, **options})

    def build_transform(self) -> Compose:
        """What is done to an image before the model sees it: RGB picture to tensor, uint8 where the model normalises it."""
        return Compose([make_resize(self.cfg, self.min_image_size, self.cfg.INPUT.MAX_SIZE_TEST), ToTensor()])

    # detections

    def predict(self, images: Any, batch_size: int = 4, channels: str = "BGR") -> Iterator[BoxList]:
        """Detections of one image after the other, in the order given, while images are still being read.

        Args:
            images: any iterable of images as `as_picture` takes them, or one image, or the path of a folder or a pattern.
            batch_size: how many images are in memory, and at most go through the model, at once.
            channels: order of the channels in arrays, "BGR" or "RGB".
        Yields:
            All detections of an image, best first, in its own pixels, with fields `labels`, `scores` and, from a model with
            masks, `mask`: probabilities [n, 1, S, S].
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        if isinstance(images, (str, os.PathLike)):
            images = [found.path for found in find_images([images])]
        if isinstance(images, (Image.Image, np.ndarray, Tensor)) and getattr(images, "ndim", 3) <= 3:
            images = [images]
        pictures = (self.read(image, channels) for image in images)
        while batch := list(islice(pictures, batch_size)):
            yield from self.detect(batch)

    def read(self, image: Any, channels: str = "BGR") -> Any:
        """An image as the model sees it: RGB, or with INPUT.CHANNELS channels as its file stores them.

        Args:
            image: as `as_picture` takes it; for a model with other channels than 3 the path of a file, or an array [H, W, C].
            channels: order of the channels in arrays of colours.
        """
        if self.cfg.INPUT.CHANNELS == 3:
            return as_picture(image, channels)
        if isinstance(image, (str, os.PathLike)):
            return read_photo(os.fspath(image), "image", on_exif="rotate", channels=self.cfg.INPUT.CHANNELS)
        return image if isinstance(image, ChannelImage) else ChannelImage(np.atleast_3d(np.asarray(image)))

    def require_colours(self, what: str) -> None:
        """Raises ValueError, for a source of coloured pictures, when the model takes images of another kind."""
        if self.cfg.INPUT.CHANNELS != 3:
            raise ValueError(f"{what} gives pictures in colours, but this model takes images with INPUT.CHANNELS {self.cfg.INPUT.CHANNELS}")

    def detect(self, pictures: Sequence[Image.Image]) -> list[BoxList]:
        """Detections of RGB pictures, as `predict` yields them."""
        if not self.tile:
            return self._detect(pictures)
        nms = self.cfg.MODEL.RETINANET.NMS_TH if self.cfg.MODEL.RETINANET_ON else self.cfg.MODEL.ROI_HEADS.NMS
        found = [detect_tiled(self._detect, picture, self.tile, self.overlap, nms) for picture in pictures]
        return [boxlist_nms(boxlist, self.cfg.TEST.CLASS_AGNOSTIC_NMS) for boxlist in found]

    @torch.no_grad()
    def _detect(self, pictures: Sequence[Image.Image]) -> list[BoxList]:
        """Detections of whole pictures.

        Only pictures of one padded size share a run of the model, so that no result depends on what else is in the list.
        """
        if not pictures:
            return []
        tensors, frames = zip(*[self.transforms(picture, BoxList([], picture.size)) for picture in pictures], strict=True)
        scales = [frame.extra_fields.get("resize_factor") for frame in frames]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, tensor in enumerate(tensors):
            groups.setdefault(_padded(tensor.shape[1:], self.model.size_divisible), []).append(index)
        found: dict[int, BoxList] = {}
        for inds in groups.values():
            for index, boxlist in zip(inds, self._run([tensors[i] for i in inds], [scales[i] for i in inds]), strict=True):
                width, height = pictures[index].size
                boxlist = to_original(boxlist, {"width": width, "height": height}, self._clip, scales[index])
                found[index] = boxlist_nms(boxlist, self.cfg.TEST.CLASS_AGNOSTIC_NMS)
        return [found[index] for index in range(len(pictures))]

    def _run(self, tensors: list[Tensor], scales: list[float | None]) -> list[BoxList]:
        """Detections in pixels of the resized images, on the CPU; `scales` as ImageList has them, or None for each."""
        images = to_image_list(tensors, self.model.size_divisible)
        images.scales = None if None in scales else torch.tensor(scales)
        images = images.to(self.device)
        dtype = getattr(torch, self.cfg.DTYPE)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return list(self.model(images).to("cpu"))

    def compute_prediction(self, original_image: Any) -> BoxList:
        """All detections of one image (arrays in BGR), in its pixels, with masks pasted into it: `mask` [n, 1, H, W] uint8."""
        (predictions,) = self.detect([self.read(original_image)])
        if predictions.has_field("mask"):
            predictions.add_field("mask", self.masker([predictions.get_field("mask")], [predictions])[0])
        return predictions

    def select_top_predictions(self, predictions: BoxList) -> BoxList:
        """Those above the confidence threshold, best first."""
        predictions = predictions[predictions.get_field("scores") > self.confidence_threshold]
        return predictions[predictions.get_field("scores").argsort(descending=True, stable=True)]

    def run_lengths(self, predictions: BoxList) -> list[dict] | None:
        """The masks in COCO's run lengths, from probabilities, in the image's pixels; None from a model without masks."""
        if not predictions.has_field("mask"):
            return None
        return paste_rle(predictions.get_field("mask"), predictions.bbox, predictions.size, self.mask_threshold, self.mask_rule)

    # pictures: arrays in BGR, [H, W, 3] uint8

    def run_on_opencv_image(self, image: Any) -> np.ndarray:
        """The image with what was found on it.

        Args:
            image: as OpenCV reads it (BGR), or another form that `as_picture` takes.
        Returns:
            A new image. BGR, [H, W, 3] uint8
        """
        picture = self.read(image)
        top_predictions = self.select_top_predictions(self.detect([picture])[0])
        result = _bgr(picture.convert("RGB"))
        if self.show_mask_heatmaps:
            return self.create_mask_montage(result, top_predictions)
        for overlay in (self.overlay_mask, self.overlay_boxes, self.overlay_keypoints, self.overlay_class_names):
            result = overlay(result, top_predictions)
        return result

    def compute_colors_for_labels(self, labels: Tensor) -> np.ndarray:
        """The colour of each label. BGR, [n, 3] uint8"""
        return draw.colors_of(labels)[:, ::-1]

    def overlay_boxes(self, image: np.ndarray, predictions: BoxList) -> np.ndarray:
        """A new image with the boxes drawn on it."""
        return _bgr(draw.draw_boxes(as_picture(image), predictions))

    def overlay_mask(self, image: np.ndarray, predictions: BoxList) -> np.ndarray:
        """A new image with the masks drawn on it, translucent with contours."""
        return _bgr(draw.draw_masks(as_picture(image), draw.with_masks(predictions, self.mask_threshold, self.mask_rule)))

    def overlay_keypoints(self, image: np.ndarray, predictions: BoxList) -> np.ndarray:
        """A new image with the keypoints drawn on it."""
        return _bgr(draw.draw_keypoints(as_picture(image), predictions))

    def overlay_class_names(self, image: np.ndarray, predictions: BoxList) -> np.ndarray:
        """A new image with names and scores drawn on it."""
        return _bgr(draw.draw_labels(as_picture(image), predictions, self.CATEGORIES))

    def create_mask_montage(self, image: np.ndarray, predictions: BoxList) -> np.ndarray:
        """A grid with the heat maps of the first masks, about as large as the image.

        Raises:
            ValueError: when the model has no masks.
        """
        if not predictions.has_field("mask"):
            raise ValueError("a montage of masks needs a model with masks: MODEL.MASK_ON True, or show_mask_heatmaps=False")
        side = self.masks_per_dim
        first = predictions[: side * side]
        masks = first.get_field("mask")
        if masks.is_floating_point():
            masks = self.masker([masks], [first])[0]
        height, width = image.shape[0] // side, image.shape[1] // side
        grid = np.zeros((max(height, 1) * side, max(width, 1) * side), dtype=np.uint8)
        for place, mask in enumerate(masks[:, 0].numpy()):
            row, column = divmod(place, side)
            tile = Image.fromarray(mask if mask.max(initial=0) > 1 else mask * 255).resize((max(width, 1), max(height, 1)), Image.BILINEAR)
            grid[row * tile.height : (row + 1) * tile.height, column * tile.width : (column + 1) * tile.width] = tile
        table = np.stack([np.interp(np.arange(256), np.linspace(0, 255, len(_HEAT)), channel) for channel in _HEAT.T], axis=1)
        return np.ascontiguousarray(np.rint(table).astype(np.uint8)[grid][..., ::-1])


def _bgr(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])


def _padded(shape: Sequence[int], divisible: int) -> tuple[int, ...]:
    """(height, width) after padding to multiples, pixels."""
    step = max(divisible, 1)
    return tuple(math.ceil(side / step) * step for side in shape)


def _load_trained(cfg: Any, model: nn.Module, weights: str) -> dict[str, Any]:
    """Loads the weights of a trained detector; returns what the checkpoint says besides.

    Raises:
        ValueError: when a part of the model would keep the random numbers it was made with.
    """
    if not weights:
        logger.warning("no weights given (MODEL.WEIGHT): the model has random numbers, and so are its detections")
        return {}
    checkpointer = DetectronCheckpointer(cfg, model, save_to_disk=False)
    path = checkpointer.find(weights)
    report = load_into(model, path)
    if report.missing or report.reinitialised:
        raise ValueError(
            f"{path} does not hold all of the model: are these only pretrained weights of a backbone, or is the configuration (number of "
            f"classes, heads) another one?\n{report.summary()}"
        )
    # Our own checkpoints may hold averaged weights besides, which were the ones tested.
    return checkpointer.load_weights(path)


def _config_of(path: str, config_file: str, opts: Sequence[str]) -> Any:
    """The configuration of weights: a file that is named, else what the checkpoint carries, else config.yml beside it."""
    about = describe_checkpoint(path)
    beside = config_beside(path)
    if config_file:
        return _with_classes(load_config(config_file, opts), config_file, opts, len(about.get("class_names", ())))
    if not about.get("config") and not beside:
        example = "--config-file e2e_mask_rcnn_R_50_FPN_1x.yaml"
        raise ValueError(f"{path} does not say which model its weights belong to; name the configuration, for example {example}")
    cfg = get_defaults()
    if about.get("config"):
        cfg.merge_leaves(leaves(yaml.safe_load(about["config"])), path)
    else:
        cfg.merge_from_file(beside)
    # The device was that of the training.
    cfg.MODEL.DEVICE = get_defaults().MODEL.DEVICE
    cfg.merge_from_list(opts)
    cfg.freeze()
    return cfg


def _with_classes(cfg: Any, config_file: str, opts: Sequence[str], count: int) -> Any:
    """The number of classes is the checkpoint's, where nobody wrote another one down. count: with background, 0 if not known."""
    key, _ = _num_classes(cfg)
    written = set().union(*explicit_keys(config_file, opts))
    return changed(cfg, {key: count})[0] if count and key not in written else cfg


def _num_classes(cfg: Any) -> tuple[str, int]:
    """The key that says how many classes there are, and how many, with background."""
    if cfg.MODEL.RETINANET_ON:
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    return "MODEL.ROI_BOX_HEAD.NUM_CLASSES", cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES


def _names(known: Sequence[str], count: int) -> tuple[str, ...]:
    """A name for each of `count` labels: those of the weights; of weights without any COCO's where the number of classes says so."""
    names = tuple(known) or tuple(name or "unused" for name in coco_names(count)) or (BACKGROUND,)
    return (*names, *(f"class {label}" for label in range(len(names), count)))
