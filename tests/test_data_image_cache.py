"""Decoded images that are kept, in memory or as files: nothing is decoded twice, nothing changes, and no more than the budget is taken."""

import json
import os
import time

import numpy as np
import pytest
import torch
from oval_scenes import mask_loader
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import image_cache, make_data_loader, make_dataset
from maskrcnn_bench.data.datasets import stored, toy
from maskrcnn_bench.data.image_cache import USED, ImageCache

COUNT, SIDE = 12, 64
EACH = SIDE * SIDE * 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    return toy.generate(tmp_path / "toy", num_train=COUNT, num_test=2, size=SIDE)


@pytest.fixture
def decoded(monkeypatch):
    """The image files that were decoded, in order."""
    opened = []
    read = stored.read_photo
    monkeypatch.setattr(stored, "read_photo", lambda path, *args: opened.append(os.path.basename(path)) or read(path, *args))
    return opened


def epochs(folder, *more):
    """The batches of two epochs: sums of pixels, boxes, and the images' numbers."""
    for images, targets, indices in mask_loader(folder, "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64, 80)", *more):
        yield images.tensors.sum().item(), targets.boxes.sum().item(), indices


def kept_files(tmp_path):
    return [path for path in (tmp_path / "cache/images").glob("*/*") if path.name != USED]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_the_second_epoch_decodes_nothing_and_sees_the_same(folder, decoded, kind):
    plain = list(epochs(folder))
    assert len(decoded) == 2 * COUNT
    del decoded[:]
    kept = epochs(folder, "DATALOADER.CACHE", kind)
    first = [next(kept) for _ in range(3)]
    assert len(decoded) == len(set(decoded)) == COUNT
    assert first + list(kept) == plain and len(decoded) == COUNT
    assert plain[0][1] != plain[3][1], "augmentation goes on"
    # A later run has the files, and no other memory.
    assert list(epochs(folder, "DATALOADER.CACHE", kind)) == plain and len(decoded) == COUNT * (1 if kind == "disk" else 2)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_no_more_than_the_budget_is_kept(folder, decoded, tmp_path, kind):
    budget = 5.5 * EACH
    limit = ["DATALOADER.CACHE", kind, "DATALOADER.CACHE_GB", str(budget / 1e9)]
    batches = list(epochs(folder, *limit))
    assert len(decoded) == COUNT + (COUNT - 5) and batches == list(epochs(folder))
    if kind == "disk":
        assert len(kept_files(tmp_path)) == 5 and sum(path.stat().st_size for path in kept_files(tmp_path)) <= budget
        list(epochs(folder, "DATALOADER.CACHE", kind, "DATALOADER.CACHE_GB", str(2.5 * EACH / 1e9)))
        assert len(kept_files(tmp_path)) == 2, "a smaller budget removes what is too much"


def test_loading_processes_share_the_memory_that_is_allowed(folder, decoded):
    def bytes_of(workers):
        opts = ["DATASETS.DATA", str(folder), "DATALOADER.CACHE", "ram", "DATALOADER.CACHE_GB", "2", "MODEL.DEVICE", "cpu"]
        return make_data_loader(load_config(None, [*opts, "DATALOADER.NUM_WORKERS", str(workers)])).dataset.cache_bytes

    assert (bytes_of(0), bytes_of(1), bytes_of(4)) == (2e9, 2e9, 5e8)


def test_several_processes_write_and_read_the_same_files(folder, tmp_path):
    plain = list(epochs(folder))
    assert list(epochs(folder, "DATALOADER.CACHE", "disk", "DATALOADER.NUM_WORKERS", "2")) == plain
    assert len(kept_files(tmp_path)) == COUNT and not any("unfinished" in path.name for path in kept_files(tmp_path))


@pytest.mark.parametrize("damage", [b"", b"{", b"{}\nxyz", b"[1]\n"])
def test_damaged_files_are_made_anew(folder, decoded, tmp_path, damage):
    plain = list(epochs(folder, "DATALOADER.CACHE", "disk"))
    cut, changed, *_ = kept_files(tmp_path)
    whole = cut.read_bytes(), changed.read_bytes()
    cut.write_bytes(damage)
    changed.write_bytes(whole[1][:-1] + bytes([whole[1][-1] ^ 1]))
    del decoded[:]
    assert list(epochs(folder, "DATALOADER.CACHE", "disk")) == plain and len(decoded) == 2
    assert (cut.read_bytes(), changed.read_bytes()) == whole


def test_an_image_that_changed_is_read_anew(folder, decoded):
    dataset = make_dataset(str(folder), cache_bytes=1e9)
    assert np.array(dataset.read_image(3)).any()
    Image.new("RGB", (SIDE, SIDE)).save(dataset.image_path(3))
    for again in (dataset, dataset, make_dataset(str(folder), cache_bytes=1e9)):
        assert not np.array(again.read_image(3)).any() and len(decoded) == 2


def test_what_a_killed_process_left_goes_when_it_is_old(folder, tmp_path):
    dataset = make_dataset(str(folder), cache_bytes=1e9)
    young, old, stranger = (dataset.image_cache.folder / name for name in ("unfinished-a", "unfinished-b", "0" * 32))
    for path in (young, old, stranger):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * image_cache.KEPT_FOR,) * 2)
    make_dataset(str(folder), cache_bytes=1e9)
    assert [path.exists() for path in (young, old, stranger)] == [True, False, False]


def test_other_data_sets_count_and_leave_when_nobody_used_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path))
    sizes = np.full((10, 2), SIDE)
    budget = 12 * (EACH + image_cache.HEAD)

    def cache(dataset):
        return ImageCache(dataset, [f"{k}.jpg" for k in range(10)], sizes, 3, budget)

    first = cache("first")
    assert len(first.names) == 10 and len(cache("second").names) == 2, "what is in use stays"
    assert len(cache("first").names) == 10
    os.utime(first.folder / USED, (time.time() - 2 * image_cache.KEPT_FOR,) * 2)
    assert len(cache("third").names) == 10 and not first.folder.exists()
    assert json.loads((cache("third").folder / USED).read_text())["bytes"] <= budget


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, decoded, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "file"))
    dataset = make_dataset(str(folder), cache_bytes=1e9)
    assert dataset.read_image(0).size == dataset.read_image(0).size and len(decoded) == 2
    assert "cannot be written" in caplog.text
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    dataset = make_dataset(str(folder), cache_bytes=1e9)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert dataset.read_image(0).size == (SIDE, SIDE) and "No space left" in caplog.text
    assert not [path for path in kept_files(tmp_path) if "unfinished" in path.name]


def test_images_of_other_channels_are_kept_too(tmp_path, monkeypatch, decoded):
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    (tmp_path / "set/annotations").mkdir(parents=True)
    (tmp_path / "set/train").mkdir()
    pixels = random.integers(0, 60000, (20, 30, 1)).astype(np.uint16)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "set/train/a.tif")
    content = {
        "images": [{"id": 1, "file_name": "a.tif", "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 9, 8]}],
    }
    (tmp_path / "set/annotations/instances_train.json").write_text(json.dumps(content))
    dataset = make_dataset(str(tmp_path / "set"), channels=1, cache_bytes=1e6)
    for _ in range(2):
        image, target, _ = dataset[0]
        assert np.array_equal(image.pixels, pixels) and image.pixels.dtype == np.uint16
    assert len(decoded) == 1 and torch.equal(target.bbox, torch.tensor([[2.0, 3.0, 10.0, 10.0]]))


def test_an_own_data_set_is_told_that_it_reads_its_images_itself(folder, monkeypatch, caplog):
    class Own(torch.utils.data.Dataset):
        class_names = ("__background__", "cup")

        def __init__(self, folder):
            self.inner = make_dataset(folder)

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, i):
            return self.inner[i]

        def get_img_info(self, i):
            return self.inner.get_img_info(i)

    from maskrcnn_bench.config.paths_catalog import DatasetCatalog

    monkeypatch.setitem(DatasetCatalog.DATASETS, "own", {"factory": Own, "args": {"folder": str(folder)}})
    opts = ["DATASETS.TRAIN", "('own',)", "DATALOADER.CACHE", "disk", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    make_data_loader(load_config(None, opts))
    assert "DATALOADER.CACHE disk does nothing for own: Own reads its images itself" in caplog.text
