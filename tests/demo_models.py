"""A checkpoint and photographs that the tests of the demo share."""

from __future__ import annotations

import json
import os

import numpy as np
from models import narrow_config, narrow_model
from PIL import Image

from maskrcnn_bench.demo.predict import predict_main
from maskrcnn_bench.utils.checkpoint import DetectronCheckpointer

SMALL = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 6, "OUTPUT_DIR", "nowhere"]
NAMES = ("__background__", "cat", "dog", "bird", "猫")


def save_model(folder, family="mask_fpn", names=NAMES, opts=(), **extra):
    """A checkpoint of a model with random numbers."""
    cfg, model = narrow_config(family, *SMALL, *opts), narrow_model(family, *SMALL, *opts)
    checkpointer = DetectronCheckpointer(cfg, model, save_dir=str(folder), class_names=names)
    checkpointer.save("model_final", training_state=False, **extra)
    return folder / "model_final.pth"


def photo(width=80, height=64, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.BICUBIC)


def run(*words):
    """The exit code of `maskrcnn-bench predict`."""
    return predict_main([str(word) for word in words])


def results(folder="output/predict"):
    """What it wrote."""
    with open(os.path.join(folder, "predictions.json"), encoding="utf-8") as file:
        return json.load(file)
