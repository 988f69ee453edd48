"""Annotation files that were read before: the same arrays as from the file, without reading it, and never those of another file."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from maskrcnn_bench.data import make_dataset, store_cache
from maskrcnn_bench.data.faults import check_annotations
from maskrcnn_bench.data.store import AnnotationStore


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "cache"))
    # Processes that start anew would compile the operators into that folder too.
    monkeypatch.setenv("MASKRCNN_BENCH_OPS", "torchvision")
    return tmp_path / "cache" / "annotations"


@pytest.fixture(scope="module")
def large(tmp_path_factory, repository):
    """2,000 images with faults of every kind among 15,000 objects."""
    path = tmp_path_factory.mktemp("large") / "instances_train.json"
    tool = repository / "tools" / "make_large_coco.py"
    command = [sys.executable, str(tool), "--out", str(path), "--images", "2000", "--objects", "15000"]
    subprocess.run(command, check=True, capture_output=True)
    content = json.loads(path.read_text())
    objects = content["annotations"]
    objects[5]["bbox"][2], objects[6]["bbox"][0], objects[7]["image_id"], objects[8]["id"] = 0, float("nan"), 2, objects[9]["id"]
    objects[10]["segmentation"] = {"size": [2, 2], "counts": [4]}
    objects[11]["iscrowd"] = "yes"
    for entry in objects[100:300]:
        entry["keypoints"] = [1, 2, 2, 0, 0, 0]
    path.write_text(json.dumps(content))
    return path


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


def assert_same(one: AnnotationStore, two: AnnotationStore):
    first, second = one.arrays(), two.arrays()
    assert first.keys() == second.keys() and "keypoints" in first
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert one.categories == two.categories and one.reader_faults == two.reader_faults
    (findings, dropped), (expected, expected_dropped) = check_annotations(one), check_annotations(two)
    assert [str(f) for f in findings] == [str(f) for f in expected]
    np.testing.assert_array_equal(dropped, expected_dropped)


def no_json(*args, **kwargs):
    raise AssertionError("the annotations were parsed again")


def test_kept_annotations_are_those_of_the_file(large, cache, monkeypatch):
    fresh = AnnotationStore.from_json(large)
    first = store_cache.read_annotations(large)
    monkeypatch.setattr(AnnotationStore, "from_json", no_json)
    monkeypatch.setattr("maskrcnn_bench.data.store.json", SimpleNamespace(loads=no_json))
    second = store_cache.read_annotations(large)
    for store in (first, second, pickle.loads(pickle.dumps(second))):
        assert_same(store, fresh)
    assert sum(f.severity == "stop" for f in check_annotations(second)[0]) == 1 and len(check_annotations(second)[0]) == 6
    assert len(entries(cache)) == 1
    assert len(pickle.dumps(second)) < large.stat().st_size / 300, "another process maps the arrays instead of being sent them"


def test_a_copy_elsewhere_is_known_and_named_as_itself(large, cache, tmp_path, monkeypatch):
    store_cache.read_annotations(large)
    other = tmp_path / "other.json"
    other.write_bytes(large.read_bytes())
    monkeypatch.setattr(AnnotationStore, "from_json", no_json)
    store = store_cache.read_annotations(other)
    assert store.source == str(other) and {f.file for f in check_annotations(store)[0]} == {str(other)}
    assert {fault[1] for fault in store.reader_faults} == {str(other)}


def test_a_changed_file_is_read_anew(large, cache, tmp_path):
    path = tmp_path / "changing.json"
    text = large.read_text()
    assert '"name": "class 7"' in text
    for k in range(3):
        # As long as before, within one tick of the clock, and with the old time of change.
        path.write_text(text.replace('"name": "class 7"', f'"name": "class {k}"'))
        os.utime(path, (10**9, 10**9))
        assert store_cache.read_annotations(path).categories[6]["name"] == f"class {k}"
    assert len(entries(cache)) == 3


def test_the_content_is_not_hashed_again_while_the_file_stays(large, cache, monkeypatch):
    monkeypatch.setattr(store_cache, "SETTLED", -1)
    store_cache.read_annotations(large)
    with monkeypatch.context() as patch:
        patch.setattr(store_cache, "mmap", SimpleNamespace(mmap=no_json))
        store_cache.read_annotations(large)
    next(cache.glob("*.seen")).write_text("{cut off")
    assert len(store_cache.read_annotations(large)) == 2000


def test_a_damaged_entry_is_replaced(large, cache):
    store_cache.read_annotations(large)
    (entry,) = entries(cache)
    boxes = entry / "boxes.npy"
    boxes.write_bytes(boxes.read_bytes()[:5000])
    assert_same(store_cache.read_annotations(large), AnnotationStore.from_json(large))
    boxes.write_bytes(b"")
    assert_same(store_cache.read_annotations(large), AnnotationStore.from_json(large))
    (entry / "ids.npy").unlink()
    assert_same(store_cache.read_annotations(large), AnnotationStore.from_json(large))
    assert boxes.stat().st_size > 5000 and entries(cache) == [entry]


def test_a_cache_that_cannot_be_written_is_done_without(large, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MASKRCNN_BENCH_CACHE", str(tmp_path / "file"))
    with caplog.at_level("INFO", "maskrcnn_bench.data"):
        assert_same(store_cache.read_annotations(large), AnnotationStore.from_json(large))
    assert "cannot be written" in caplog.text and "read anew at every start" in caplog.text


def test_old_entries_leave(large, cache, monkeypatch):
    for name in ("old", "recent", "unfinished-x"):
        (cache / name).mkdir(parents=True)
        (cache / name / store_cache.DESCRIPTION).write_text("{}")
    for name in ("old", "unfinished-x"):
        os.utime(cache / name / store_cache.DESCRIPTION, (10**9, 10**9))
    store_cache.read_annotations(large)
    assert len(entries(cache)) == 2 and (cache / "recent").is_dir()


def test_small_files_are_not_kept(tmp_path, cache):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"images": [], "categories": [], "annotations": []}))
    assert len(store_cache.read_annotations(path)) == 0 and not cache.exists()


def targets(dataset):
    return [dataset.get_groundtruth(i).bbox.tolist() for i in (0, 700, 1400)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_see_the_same(large, tmp_path, method):
    content = json.loads(large.read_text())
    del content["annotations"][11]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    make_dataset(str(path))
    dataset = make_dataset(str(path), keep_empty=True)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(targets, (dataset,)).get(60) == targets(dataset)
