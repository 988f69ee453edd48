"""Expectations on disk: receipts of this library (JSON), and folders that hold what another implementation computed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .receipt import SAMPLES, Expectation, Found, Observation, Sampled

FORMAT = "maskrcnn_bench receipt 1"
PROPOSALS = 100  # the first ones are kept
FIELD_ROWS = 20  # detections whose masks and keypoints are kept
LABELS_FROM_ZERO = ("d2", "mm")  # projects without a label for the background


@dataclass
class Expected:
    """What a file expects.

    Args:
        path: the file or folder.
        stages: values by stage.
        noise: {stage: what float32 alone changes in it}.
        image: the picture's file, where it belongs to the expectations.
        about: of a receipt, what it says of image, weights and configuration.
    """

    path: Path
    stages: Expectation
    noise: dict[str, float] = field(default_factory=dict)
    image: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)


def read_expected(path: str | Path) -> Expected:
    """Reads a receipt, or a folder with expected.npz and spec.json (either may be named).

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is something else, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a receipt (--save-receipt writes one) or a folder with expected.npz")
    try:
        return _read_receipt(path) if path.suffix == ".json" and path.name != "spec.json" else _read_fixture(path)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a receipt, or damaged ({type(error).__name__}: {error}); write it again with --save-receipt"
        ) from None


# Receipts


def write_receipt(path: str | Path, observation: Observation, about: dict[str, Any]) -> None:
    """Writes what was observed as JSON that people can read: a line a stage."""
    stages, keep = observation.expectation(SAMPLES), {"prop": PROPOSALS}
    content = {
        "format": FORMAT,
        **about,
        "arrays": {name: _array_text(array) for name, array in stages.arrays.items()},
        "sets": {name: _set_text(found, keep.get(name)) for name, found in stages.sets.items()},
        "fields": {
            name: {"positions": positions.tolist(), "values": _numbers(values[:FIELD_ROWS])}
            for name, (positions, values) in stages.fields.items()
        },
    }
    Path(path).write_text(_lines(content) + "\n", encoding="utf-8")


def _lines(content: dict[str, Any]) -> str:
    """JSON with one line for each entry of the second level."""
    parts = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, dict) and value:
            text = "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _numbers(array: Tensor) -> list:
    """Shortest decimals that give the same float32."""
    flat = [float(np.format_float_positional(value, unique=True, trim="0")) for value in array.float().flatten().numpy()]
    return torch.tensor(flat, dtype=torch.float64).reshape(array.shape).tolist()


def _array_text(array: Sampled) -> dict[str, Any]:
    mean, std, largest = array.statistics or (0.0, 0.0, 0.0)
    values = {"positions": array.positions.tolist(), "values": _numbers(array.values)}
    return {"shape": array.shape, "mean": mean, "std": std, "largest": largest, **values}


def _set_text(found: Found, keep: int | None) -> dict[str, Any]:
    scores = _numbers(found.scores[:keep]) if found.scores is not None else None
    return {"count": found.count, "scores": scores, "labels": found.labels[:keep].tolist(), "boxes": _numbers(found.boxes[:keep])}


def _read_receipt(path: Path) -> Expected:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'{path}: expected a receipt with "format": {FORMAT!r}; write one with --save-receipt')
    arrays = {
        name: Sampled(
            array["shape"], torch.tensor(array["positions"]), torch.tensor(array["values"]), [array[k] for k in ("mean", "std", "largest")]
        )
        for name, array in content["arrays"].items()
    }
    sets = {
        name: Found(_boxes(found["boxes"]), torch.tensor(found["labels"]), torch.tensor(found["scores"]), found["count"])
        for name, found in content["sets"].items()
    }
    fields = {name: (torch.tensor(f["positions"]), torch.tensor(f["values"])) for name, f in content["fields"].items()}
    return Expected(path, Expectation(arrays, sets, fields), about={key: content[key] for key in ("image", "weights", "config")})


def _boxes(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


# Folders of another implementation's values


def _read_fixture(path: Path) -> Expected:
    file = path / "expected.npz" if path.is_dir() else path.with_name("expected.npz") if path.suffix == ".json" else path
    spec_file = file.with_name("spec.json")
    if not file.is_file() or not spec_file.is_file():
        raise FileNotFoundError(f"{path}: expected a folder with expected.npz and spec.json, or a receipt (.json)")
    spec = json.loads(spec_file.read_text(encoding="utf-8"))
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a file of arrays, or damaged ({error})") from None
    noise = spec.get("noise", {}).get("max_abs", {})
    usable = {_stage(key): value for key, value in noise.items() if isinstance(value, float) and value < 1}
    image = next((root / spec["image"] for root in file.resolve().parents if (root / spec["image"]).is_file()), None)
    if image is None:
        raise FileNotFoundError(f"{file}: its picture {spec['image']} is in no folder above it")
    return Expected(path, _expectation(arrays, spec), usable, image, {"recorded with": spec["overrides"]})


def _stage(key: str) -> str:
    return "mask" if key == "mask.prob" else key.removesuffix(".val")


def _expectation(arrays: dict[str, np.ndarray], spec: dict) -> Expectation:
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items() if np.asarray(value).dtype.kind in "fiub"}
    out = {"input": Sampled.of(tensors["input"], None)}
    for stage in ("feat", "rpn.cls", "rpn.reg"):
        names = [match[1] for key in tensors if (match := re.fullmatch(rf"({re.escape(stage)}\.[^.]+)\.val", key))]
        for level, name in enumerate(names):
            parts = [tensors[f"{name}.{part}"] for part in ("shape", "pos", "val", "stat")]
            out[f"{stage}.{level}"] = Sampled(parts[0].tolist(), parts[1].long(), parts[2], parts[3].tolist())
    for level in range(sum(bool(re.fullmatch(r"anchor\.\d+\.val", key)) for key in tensors)):
        rows, values = tensors[f"anchor.{level}.pos"].long(), tensors[f"anchor.{level}.val"]
        shape = [int(tensors[f"anchor.{level}.count"]), 4]
        out[f"anchor.{level}"] = Sampled(shape, (rows[:, None] * 4 + torch.arange(4)).flatten(), values.flatten(), None)
    first = 1 if spec["short"] in LABELS_FROM_ZERO else 0
    sets = {"det": Found(tensors["det.boxes"], tensors["det.labels"] + first, tensors["det.scores"], len(tensors["det.boxes"]))}
    if "prop.boxes" in tensors:
        boxes = tensors["prop.boxes"]
        sets["prop"] = Found(boxes, torch.zeros(len(boxes)), tensors.get("prop.scores"), int(tensors["prop.count"]))
    masks = tensors.get("mask.prob")
    fields = {} if masks is None else {"mask": (torch.arange(masks[0].numel()), masks.flatten(1))}
    return Expectation(out, sets, fields)


# Pictures


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 of the pixels, whatever file they came from."""
    return hashlib.sha256(np.asarray(picture.convert("RGB")).tobytes()).hexdigest()


def generated_picture() -> Image.Image:
    """Shapes on a waving ground, 320 x 240, RGB; the same on every machine."""
    y, x = np.mgrid[:240, :320]
    ground = np.stack([(x * 3 + y * (k + 1)) % 256 // 2 + 40 * ((x // 16 + y // (12 + k)) % 2) for k in range(3)], axis=-1)
    picture = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for k, colour in enumerate(((230, 40, 30), (30, 200, 60), (40, 60, 220), (240, 220, 30), (250, 250, 250), (10, 10, 10))):
        left, top, side = 12 + 50 * k, 20 + 31 * (k * 3 % 5), 30 + 13 * (k % 4)
        (draw.rectangle if k % 2 else draw.ellipse)((left, top, left + side, top + side * 3 // 2), fill=colour)
    return picture
