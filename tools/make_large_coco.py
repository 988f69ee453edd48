"""A COCO file of any size with random objects, for measuring how reading, memory and start-up grow.

    python tools/make_large_coco.py --out large.json                                     # as large as COCO's train2017
    python tools/make_large_coco.py --out small.json --images 2000 --objects 15000
    python tools/make_large_coco.py --out large.json --measure                           # start-up and memory with that file

Counts, polygons and crowds are about as frequent and as long as COCO's. There are no pictures. The same arguments write the same
bytes, and what is written is never held in memory as a whole.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CATEGORIES = 80
CROWD_EVERY = 83  # COCO: 10,388 of 860,001 objects
WIDTHS, HEIGHTS = (640, 500, 427, 480), (480, 375, 640, 640)
CHUNK = 1000


def images(count: int) -> Iterator[dict[str, Any]]:
    """Records of images, ids in steps that leave gaps."""
    for k in range(count):
        name = f"{3 * k + 1:012d}.jpg"
        size = {"width": WIDTHS[k % 4], "height": HEIGHTS[k % 4]}
        links = {"license": k % 8, "coco_url": f"http://images.example.org/train/{name}", "date_captured": "2013-11-14 11:18:45"}
        yield {**links, "file_name": name, **size, "id": 3 * k + 1}


def annotations(count: int, num_images: int, seed: int) -> Iterator[dict[str, Any]]:
    """Records of objects in a random order of images."""
    for first in range(0, count, CHUNK):
        random = np.random.default_rng((seed, first))
        owners = random.integers(0, num_images, CHUNK)
        points = np.clip(random.lognormal(3.1, 0.6, CHUNK), 3, 400).astype(int)
        for k in range(min(CHUNK, count - first)):
            yield annotation(first + k, int(owners[k]), int(points[k]), random)


def annotation(number: int, owner: int, points: int, random: np.random.Generator) -> dict[str, Any]:
    """One object: a ring of `points` corners around a random centre, or every now and then a crowd with run lengths."""
    width, height = WIDTHS[owner % 4], HEIGHTS[owner % 4]
    radius = random.uniform(4, 120, 2)
    centre = random.uniform(radius + 1, np.maximum((width, height) - radius - 1, radius + 2))
    angles = np.sort(random.uniform(0, 2 * np.pi, points))
    wobble = random.uniform(0.6, 1.0, points)[:, None]
    ring = (centre + radius * wobble * np.stack([np.cos(angles), np.sin(angles)], axis=1)).clip(0, (width, height)).round(2)
    low, side = ring.min(axis=0), np.ptp(ring, axis=0)
    crowd = number % CROWD_EVERY == CROWD_EVERY - 1
    mask = run_lengths(width * height, points, random, height, width) if crowd else [ring.flatten().tolist()]
    box = [round(float(v), 2) for v in (*low, *side)]
    ids = {"image_id": 3 * owner + 1, "category_id": number % CATEGORIES + 1, "id": number + 1}
    return {"segmentation": mask, "area": round(box[2] * box[3] * 0.7, 4), "iscrowd": int(crowd), "bbox": box, **ids}


def run_lengths(pixels: int, runs: int, random: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """An uncompressed RLE of all pixels of an image."""
    ends = np.sort(random.integers(0, pixels, 2 * runs))
    return {"counts": np.diff(ends, prepend=0, append=pixels).tolist(), "size": [height, width]}


def write(path: Path, num_images: int, num_objects: int, seed: int) -> None:
    """Writes the file, entry by entry."""
    categories = [{"supercategory": "thing", "id": k + 1, "name": f"class {k + 1}"} for k in range(CATEGORIES)]
    with open(path, "w", encoding="ascii") as file:
        file.write('{"info": {}, "licenses": [], "categories": ' + json.dumps(categories))
        for key, entries in (("images", images(num_images)), ("annotations", annotations(num_objects, num_images, seed))):
            file.write(f', "{key}": [')
            for k, entry in enumerate(entries):
                file.write(("," if k else "") + json.dumps(entry))
            file.write("]")
        file.write("}")


# -------------------------------------------------------------------------------------------------------- measuring


def start(path: Path) -> Any:
    """The data set, ready to give its first target, and the seconds that took."""
    from maskrcnn_bench.data import make_dataset

    begin, cpu = time.perf_counter(), time.process_time()
    dataset = make_dataset(str(path))
    dataset.get_groundtruth(0)
    print(f"  ready after {time.perf_counter() - begin:.2f} s ({time.process_time() - cpu:.2f} s of one processor)", flush=True)
    return dataset


def touch(dataset: Any, done: Any, leave: Any) -> None:
    """A loading process that makes all targets once and then waits."""
    for i in range(len(dataset)):
        dataset.get_groundtruth(i)
    done.release()
    leave.wait()


def memory(dataset: Any, method: str, workers: int) -> float:
    """By how much each loading process raises the memory of all of them, the first included (shared pages count once), MB."""
    context = multiprocessing.get_context(method)
    done, leave = context.Semaphore(0), context.Event()
    for i in range(len(dataset)):
        dataset.get_groundtruth(i)
    before = proportional(os.getpid())
    processes = [context.Process(target=touch, args=(dataset, done, leave)) for _ in range(workers)]
    for process in processes:
        process.start()
    for _ in processes:
        done.acquire()
    after = sum(proportional(pid) for pid in (os.getpid(), *(process.pid for process in processes)))
    leave.set()
    for process in processes:
        process.join()
    return (after - before) / workers


def proportional(pid: int) -> float:
    """Memory of a process; what n processes share counts as an n-th (PSS), MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def measure(path: Path, workers: int) -> None:
    """Prints how long a start takes, and what each loading process adds beside what it needs for a data set of ten images."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import make_large_coco as m; m.start(m.Path(sys.argv[1]))"
    print("a process that starts now:", flush=True)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    tiny = path.with_name(f"{path.stem}_tiny.json")
    write(tiny, 10, 80, 0)
    size = path.stat().st_size / 1e6
    datasets = [start(tiny), start(path)]
    for method in ("fork", "spawn"):
        usual, large = (memory(dataset, method, workers) for dataset in datasets)
        print(f"{method}: each of {workers} processes adds {large - usual:.1f} MB, {(large - usual) / size:.1%} of the file", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a COCO file with random objects.")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--images", type=int, default=118_287, help="default 118287, as COCO's train2017 has")
    parser.add_argument("--objects", type=int, default=860_001, help="default 860001, as COCO's train2017 has")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--measure", action="store_true", help="afterwards measure start-up and memory (Linux)")
    parser.add_argument("--workers", type=int, default=2, help="loading processes to measure with; default 2")
    args = parser.parse_args(argv)
    write(args.out, args.images, args.objects, args.seed)
    print(f"{args.out}: {args.images} images, {args.objects} objects, {args.out.stat().st_size / 1e6:.1f} MB", flush=True)
    if args.measure:
        logging.basicConfig(level=logging.WARNING)
        measure(args.out, args.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
