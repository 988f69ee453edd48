"""Writes the notebooks beside this file, with what their cells print and draw: python demo/make_notebooks.py [NAME ...]

Needs pip install maskrcnn_bench[dev]. In the texts below `# %%` begins a cell of code and `# %% [markdown]` one of prose.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MOST_BYTES = 300_000
"""Of a notebook's file."""

COCO_DEMO = '''
# %% [markdown]
# # A trained Mask R-CNN at work
#
# `COCODemo` is a model with its weights as one object: images in, detections or pictures out. This notebook needs no network. Its model
# comes from `make demo`, which trains on generated scenes; where that has not been run yet, the next cell does it, in some minutes.
#
# With COCO's weights the same object is made so:
#
# ```python
# from maskrcnn_bench.config import load_config
# config = load_config("caffe2/e2e_mask_rcnn_R_50_FPN_1x_caffe2.yaml", ["MODEL.DEVICE", "cpu"])
# coco_demo = COCODemo(config, confidence_threshold=0.7, min_image_size=800)
# ```
# %%
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_bench.cli import main
from maskrcnn_bench.data.datasets import toy
from maskrcnn_bench.demo import COCODemo, draw_detections

trained = Path("../output/demo")
if not (trained / "model_final.pth").is_file():
    main(["demo", "--output", str(trained)])
coco_demo = COCODemo.from_weights(trained / "model_final.pth", confidence_threshold=0.7)
print("It knows:", ", ".join(coco_demo.CATEGORIES[1:]))
# %% [markdown]
# An image as OpenCV reads it: an array of blue, green, red. Paths, PIL images and tensors work as well. This scene was not in the
# training.
# %%
scenes = [toy.scene(0, "test", number)[0].resize((384, 384), Image.BICUBIC) for number in range(1, 9)]
image = np.ascontiguousarray(np.asarray(scenes[4])[:, :, ::-1])


def show(*images):
    """Arrays in blue, green, red, side by side."""
    return Image.fromarray(np.concatenate(images, axis=1)[:, :, ::-1])


show(image)
# %% [markdown]
# ## Everything in one call
# %%
show(coco_demo.run_on_opencv_image(image))
# %% [markdown]
# ## What was found, as numbers
#
# Boxes are in the image's own pixels; masks are as large as the image.
# %%
found = coco_demo.select_top_predictions(coco_demo.compute_prediction(image))
for box, label, score in zip(found.bbox.tolist(), found.get_field("labels").tolist(), found.get_field("scores").tolist()):
    print(f"{coco_demo.CATEGORIES[label]:<9} {score:.2f}   from ({box[0]:5.1f}, {box[1]:5.1f}) to ({box[2]:5.1f}, {box[3]:5.1f})")
print("masks:", tuple(found.get_field("mask").shape), found.get_field("mask").dtype)
# %% [markdown]
# ## One layer at a time
# %%
show(
    coco_demo.overlay_boxes(image, found),
    coco_demo.overlay_mask(image, found),
    coco_demo.overlay_class_names(coco_demo.overlay_boxes(image, found), found),
)
# %% [markdown]
# ## Heat maps of the masks
#
# With `show_mask_heatmaps` the probabilities are shown before they become masks.
# %%
with_heat_maps = COCODemo.from_weights(trained / "model_final.pth", show_mask_heatmaps=True, masks_per_dim=3)
show(with_heat_maps.run_on_opencv_image(image))
# %% [markdown]
# ## Many images
#
# `predict` takes any iterable, a folder or a pattern, and answers in the same order while it is still reading.
# %%
pictures = []
for scene, found in zip(scenes, coco_demo.predict(scenes, batch_size=4)):
    drawn = draw_detections(scene, found, coco_demo.CATEGORIES, score_thresh=0.7)
    pictures.append(np.asarray(drawn.resize((256, 256)))[:, :, ::-1])
show(*(np.concatenate(column) for column in zip(pictures[:4], pictures[4:])))
'''

SHAPES = '''
# %% [markdown]
# # Shapes from zero: your own scenes, your own training loop
#
# Nothing is read from a disk and nothing downloaded: scenes are drawn, a small Mask R-CNN learns them from random numbers in a plain
# loop of PyTorch, in about a minute on a laptop's CPU, and then looks at scenes it has never seen.
# %%
import numpy as np
import torch
from PIL import Image, ImageDraw

from maskrcnn_bench.config import load_config
from maskrcnn_bench.demo import draw_detections
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.solver import make_lr_scheduler, make_optimizer
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

torch.manual_seed(0)
ITERATIONS = 240
CLASSES = ("__background__", "square", "circle", "triangle")
SIDE = 96
# %% [markdown]
# ## A scene and its ground truth
#
# Ground truth of an image is a `BoxList`: boxes, and fields of the same length. Masks are polygons here; bitmaps and COCO's run lengths
# are taken as well. Label 0 is the background.
# %%
def outline(label, x, y, r):
    """Corners of a shape around (x, y)."""
    corners = {1: 4, 2: 24, 3: 3}[label]
    turn = {1: np.pi / 4, 2: 0, 3: -np.pi / 2}[label]
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    return np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1)


def scene(number):
    """A picture and its BoxList; the same number gives the same scene."""
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(60, 120, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.BICUBIC)
    pen, boxes, labels, polygons = ImageDraw.Draw(picture), [], [], []
    for cell in rng.permutation(4)[: rng.integers(1, 4)]:
        x, y = np.array([cell % 2, cell // 2]) * SIDE / 2 + SIDE / 4 + rng.uniform(-4, 4, 2)
        label, radius = int(rng.integers(1, 4)), rng.uniform(12, 19)
        corners = outline(label, x, y, radius)
        pen.polygon([tuple(corner) for corner in corners], fill=tuple(int(v) for v in rng.integers(130, 256, 3)))
        boxes.append([*corners.min(axis=0), *corners.max(axis=0)])
        labels.append(label)
        polygons.append([corners.flatten().tolist()])
    target = BoxList(torch.tensor(np.array(boxes), dtype=torch.float32), picture.size, pixel=0)
    target.add_field("labels", torch.tensor(labels))
    target.add_field("masks", SegmentationMask(polygons, picture.size))
    return picture, target


def sheet(pictures):
    """Pictures side by side."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))


sheet([draw_detections(*scene(number), CLASSES, enlarge=2) for number in range(5)])
# %% [markdown]
# ## The model
#
# A configuration is a YAML file and changes of it.
# %%
config = load_config(
    "toy/mask_rcnn_R_18_FPN.yaml",
    ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", len(CLASSES), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 10],
)
model = build_detection_model(config)
print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters")
# %% [markdown]
# ## The loop
#
# Images are RGB of 8 bits; the model normalises them. In training it answers the losses.
# %%
def as_images(pictures):
    return to_image_list([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures], size_divisible=32)


optimizer = make_optimizer(config, model)
scheduler = make_lr_scheduler(config, optimizer)
model.train()
history = []
for iteration in range(ITERATIONS):
    pictures, targets = zip(*(scene(1000 + 8 * iteration + k) for k in range(8)))
    losses = model(as_images(pictures), list(targets))
    loss = sum(losses.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    history.append(float(loss.detach()))
    if iteration % 40 == 0 or iteration == ITERATIONS - 1:
        print(f"{iteration:4}  " + "  ".join(f"{name} {float(value.detach()):.3f}" for name, value in losses.items()))
# %%
from matplotlib import pyplot

figure, axes = pyplot.subplots(figsize=(6, 2.5), layout="constrained")
axes.plot(history)
axes.set(xlabel="iteration", ylabel="sum of the losses")
axes.grid(alpha=0.3)
# %% [markdown]
# ## Scenes it has never seen
#
# In evaluation the model answers detections: BoxLists with scores, labels and masks.
# %%
model.eval()
pictures, truth = zip(*(scene(number) for number in range(5)))
with torch.no_grad():
    found = list(model(as_images(pictures)))
sheet([draw_detections(picture, boxlist, CLASSES, score_thresh=0.6, enlarge=2) for picture, boxlist in zip(pictures, found)])
'''

OWN_DATA = """
# %% [markdown]
# # Your own data in five minutes
#
# A folder in one of the usual layouts is all that training needs: COCO (`annotations/instances_train.json` and `train/`), PASCAL VOC, and
# others that `maskrcnn-bench data check` recognises. The number of classes and their names come from the data. This notebook makes a small
# folder of its own; put yours in its place. Each call of `main` is the command `maskrcnn-bench` with the same words.
# %%
from pathlib import Path

from PIL import Image

from maskrcnn_bench.cli import main

ITERATIONS = 600
folder, output = Path("../output/own_data/images"), Path("../output/own_data/run")
_ = main(["data", "toy", str(folder), "--train", "600", "--test", "24"])
print(*sorted(path.relative_to(folder).as_posix() for path in folder.iterdir()), sep="\\n")
# %% [markdown]
# ## 1. Is the data sound?
#
# Every fault would be named with its file and image; the exit code is 1 when training would be harmed.
# %%
_ = main(["data", "check", str(folder)])
# %%
_ = main(["data", "stats", str(folder)])
# %% [markdown]
# ## 2. Train
#
# Start from weights of COCO where you can: `--weights FILE`. Here a narrow model starts from random numbers, so that it runs anywhere.
# %%
%%capture log
code = main(
    [
        *("train", "--config-file", "toy/mask_rcnn_R_18_FPN.yaml", "--data", str(folder), "--output", str(output)),
        *(f"SOLVER.MAX_ITER={ITERATIONS}", f"SOLVER.TEST_PERIOD={ITERATIONS}", f"SOLVER.CHECKPOINT_PERIOD={ITERATIONS}"),
        *("SOLVER.IMS_PER_BATCH=8", "SOLVER.BASE_LR=0.002", "SOLVER.AUTO_SCALE=False", "MODEL.DEVICE=cpu"),
    ]
)
# %%
import json

results = json.loads((output / "results.json").read_text())
print("exit code", code)
for task, name in (("bbox", "boxes"), ("segm", "masks")):
    print(f"{name}: AP {results[task]['AP']:.2f}, AP50 {results[task]['AP50']:.2f}")
# %% [markdown]
# ## 3. Look at what it finds
#
# `predict` writes a picture of each image and one JSON file in COCO's form. The classes and their names travel in the checkpoint.
# %%
_ = main(["predict", str(folder / "test"), "--weights", str(output / "model_final.pth"), "--output", "../output/own_data/found"])
# %%
pictures = [Image.open(path).resize((256, 256)) for path in sorted(Path("../output/own_data/found").glob("*_det.jpg"))[:4]]
sheet = Image.new("RGB", (256 * len(pictures), 256))
for place, picture in enumerate(pictures):
    sheet.paste(picture, (256 * place, 0))
sheet
# %% [markdown]
# Or with a camera and your own pictures in a browser: `maskrcnn-bench demo --serve --weights ../output/own_data/run`.
"""

NOTEBOOKS = {"Mask_R-CNN_demo": COCO_DEMO, "shapes_from_zero": SHAPES, "own_data_in_five_minutes": OWN_DATA}


def parse(text: str) -> Any:
    """A notebook without results."""
    import nbformat

    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}})
    parts = re.split(r"^# %%( \[markdown\])?\n", text.strip("\n") + "\n", flags=re.MULTILINE)[1:]
    for number, (prose, body) in enumerate(zip(parts[::2], parts[1::2])):
        if prose:
            cell = nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE))
        else:
            cell = nbformat.v4.new_code_cell(body.strip("\n"))
        # Random names would change with every run.
        cell["id"] = f"cell-{number}"
        notebook.cells.append(cell)
    return notebook


def execute(notebook: Any, folder: Path, seconds: int = 1800) -> None:
    """Runs all cells in a folder; their results go into the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: when one fails.
    """
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(folder)}}, record_timing=False).execute()
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            cell["outputs"] = [shrunk(output) for output in cell["outputs"]]
    # The version of Python would change with every machine.
    notebook.metadata.pop("language_info", None)


def shrunk(output: dict[str, Any]) -> dict[str, Any]:
    """A result with its picture as a JPEG only."""
    from PIL import Image

    pictures = output.get("data", {})
    content = pictures.pop("image/png", None)
    if content:
        file = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB").save(file, "JPEG", quality=80)
        pictures["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Makes all notebooks, or those that are named."""
    import nbformat

    parser = argparse.ArgumentParser(description="Writes the notebooks of this folder with their results.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NOTEBOOKS))
    parser.add_argument("--folder", type=Path, default=HERE, help="where the cells run; they read and write ../output")
    args = parser.parse_args(argv)
    for name in args.names or NOTEBOOKS:
        notebook = parse(NOTEBOOKS[name])
        execute(notebook, args.folder)
        text = nbformat.writes(notebook) + "\n"
        if len(text) > MOST_BYTES:
            raise ValueError(f"{name} would have {len(text)} bytes; at most {MOST_BYTES} are wanted")
        (HERE / f"{name}.ipynb").write_text(text, encoding="utf-8")
        print(f"{name}: {len(text) // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
