"""Pictures whose pixels say which object they belong to, with targets that say the same; and what the tests of loading share."""

import numpy as np
import torch

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data.build import make_data_loader
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.keypoint import Keypoints
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask

CELL = 24


def scene(size, first, pixel, seed, mode="auto"):
    """Ovals of brightness `first`, `first` + 1, ... in cells of a grid, as polygons and as bitmaps, with a point in their middle."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    masks, middles = [], []
    for row in range(size[1] // CELL):
        for column in range(size[0] // CELL):
            if random.random() < 0.4:
                continue
            radius = random.uniform(3, CELL / 2 - 1, 2)
            centre = np.array([column, row]) * CELL + CELL / 2
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            ring = (centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).flatten()
            drawn = SegmentationMask([[ring]], size).get_mask_tensor().numpy() > 0
            pixels[drawn] = first + len(masks)
            masks.append([ring] if len(masks) % 2 else drawn)
            middles.append([*centre, 2.0])
    boxes = [tight_box(pixels == first + k, pixel) for k in range(len(masks))]
    target = BoxList(torch.tensor(boxes).reshape(-1, 4), size, "xyxy", pixel)
    target.add_field("labels", torch.arange(len(masks)) + first)
    target.add_field("masks", SegmentationMask(masks, size, mode))
    target.add_field("keypoints", Keypoints(torch.tensor(middles).reshape(-1, 1, 3), size, names=("middle",)))
    target.add_field("words", [f"object {first + k}" for k in range(len(masks))])
    return torch.from_numpy(pixels)[None].expand(3, -1, -1).contiguous(), target


def tight_box(pixels, pixel):
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1 - pixel, rows[-1] + 1 - pixel)]


def assert_sees_what_it_says(image, target):
    """The picture shows exactly the objects of the target, with their masks, boxes, points and words."""
    shown = np.asarray(image[0])
    assert sorted(target.get_field("labels").tolist()) == sorted(set(shown[shown > 0].tolist()))
    masks = target.get_field("masks").get_mask_tensor().reshape(len(target), *shown.shape).numpy()
    for k, label in enumerate(target.get_field("labels").tolist()):
        np.testing.assert_array_equal(masks[k] > 0, shown == label)
        assert target.bbox[k].tolist() == tight_box(shown == label, target.pixel)
        x, y, seen = target.get_field("keypoints").keypoints[k, 0].tolist()
        assert (seen == 2) == bool(seen and shown[min(int(y), shown.shape[0] - 1), min(int(x), shown.shape[1] - 1)] == label)
        assert target.get_field("words")[k] == f"object {label}"


def mask_loader(folder, *opts):
    """The loader of a training with masks on the CPU: six steps of four images."""
    given = {"DATASETS.DATA": folder, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 6, "MODEL.DEVICE": "cpu", "MODEL.MASK_ON": True}
    return make_data_loader(load_config(None, [*(str(word) for pair in given.items() for word in pair), *opts]))


def sums(loader):
    """What tells the batches of a loader apart."""
    return [(images.tensors.sum().item(), targets.boxes.sum().item(), int(targets.valid.sum())) for images, targets, _ in loader]
