"""Names of published weights: where they lead, and what a download keeps, refuses and remembers; against a server in this process."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlparse

import pytest
import torch
from models import narrow_config, narrow_model

from maskrcnn_bench.config import get_defaults, load_config
from maskrcnn_bench.config.paths_catalog import ModelCatalog, foreign_address
from maskrcnn_bench.config.yaml_files import shipped_configs
from maskrcnn_bench.utils.checkpoint import DetectronCheckpointer
from maskrcnn_bench.utils.download import find_weights, require_weights

LOGGER = logging.getLogger("test_catalog")
CATALOG = get_defaults().PATHS_CATALOG


# Names and addresses


def test_every_project_has_its_weights():
    names = ModelCatalog.names()
    count = {group: sum(name.startswith(group + "/") for name in names) for group in {name.partition("/")[0] for name in names}}
    assert count == {
        "ImageNetPretrained": 5, "Caffe2Detectron": 10, "MaskRCNNBenchmark": 8, "Detectron2": 48, "MMDetection": 42, "OpenXLab": 21,
        "OpenMMLab": 11, "TorchVision": 26, "FasterRCNNPytorch": 15,
    }  # fmt: skip
    for name, address in names.items():
        parts = urlparse(address)
        assert parts.scheme in ("http", "https") and parts.netloc and " " not in address and "{" not in address, name
        assert parts.path.endswith((".pth", ".pkl")) or name.startswith("OpenXLab/"), name
    assert len(set(names.values())) == len(names)


def test_addresses_as_the_projects_write_them():
    base = "https://dl.fbaipublicfiles.com/detectron2/"
    assert ModelCatalog.get("Detectron2/COCO-Detection/faster_rcnn_R_50_FPN_1x") == (
        base + "COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba.pkl"
    )
    assert ModelCatalog.get("catalog://MMDetection/faster-rcnn_r50_fpn_1x_coco") == (
        "https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/"
        "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth"
    )
    assert ModelCatalog.get("MaskRCNNBenchmark/e2e_mask_rcnn_R_50_FPN_1x").endswith("/maskrcnn/e2e_mask_rcnn_R_50_FPN_1x.pth")
    assert ModelCatalog.get("FasterRCNNPytorch/vgg16_vg").endswith("/faster_rcnn_1_19_48611.pth")
    for written, address in {
        "detectron2://ImageNetPretrained/MSRA/R-50.pkl": base + "ImageNetPretrained/MSRA/R-50.pkl",
        "open-mmlab://detectron2/resnet50_caffe": "https://download.openmmlab.com/pretrain/third_party/resnet50_msra-5891d200.pth",
        "torchvision://resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
        "https://host/x.pth": "https://host/x.pth",
        "some/file.pth": "some/file.pth",
    }.items():
        assert foreign_address(written) == address


def test_torchvision_s_own_addresses():
    from torchvision import models

    for name, address in ModelCatalog.names().items():
        if name.startswith("TorchVision/"):
            _, model, weights = name.split("/")
            assert models.get_model_weights(model)[weights].url == address
    known = {str(name).split("/")[1] for name in ModelCatalog.names() if name.startswith("TorchVision/")}
    ours = {name for name in models.list_models(module=models.detection) if not name.startswith(("ssd", "fcos"))}
    assert ours <= known


def test_every_link_of_the_documents(shared_dir):
    addresses = set(ModelCatalog.names().values())
    text = (shared_dir / "documents" / "C_mmdetection_faster_rcnn.txt").read_text()
    links = set(re.findall(r"\[model\]\((\S+?)\)", text))
    assert len(links) == 30 and links <= addresses
    facts = (shared_dir / "facts" / "mmdetection_faster_rcnn.json").read_text()
    for written in set(re.findall(r'"((?:open-mmlab|torchvision)://[^"]+)"', facts)):
        assert foreign_address(written) in addresses
    for written in set(re.findall(r"detectron2://[^\"]+\.pkl", (shared_dir / "facts" / "detectron2_configs.json").read_text())):
        address = foreign_address(written)
        assert "ImageNet" in written or "proposals" in written or address in addresses


def test_our_configurations_have_the_weights_that_were_published_for_them():
    names = ModelCatalog.names()
    shipped = {str(path.relative_to(shipped_configs()).with_suffix("")) for path in shipped_configs().rglob("*.yaml")}
    for name in names:
        group, _, model = name.partition("/")
        if group == "MMDetection":
            assert f"mmdetection/{model}" in shipped, name
        if group == "FasterRCNNPytorch" and not model.endswith("_caffe"):
            assert f"faster_rcnn_pytorch/{model}" in shipped, name
        if group == "MaskRCNNBenchmark":
            assert model in shipped, name
    released = {name.rpartition("/")[2] for name in names if name.startswith("Detectron2/")}
    ours = {name.partition("/")[2] for name in shipped if name.startswith("detectron2/")}
    assert len(ours & released) > 12


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean .*Detectron2/COCO-Detection/faster_rcnn_R_50_FPN_1x"):
        ModelCatalog.get("catalog://Detectron2/COCO-Detection/faster_rcnn_R50_FPN_1x")
    with pytest.raises(ValueError, match=r"It has: Caffe2Detectron/\.\.\., .*TorchVision/\.\.\.\.$"):
        ModelCatalog.get("qqq")
    for name in ("torchvision://resnet51", "open-mmlab://resnext", "catalog://R-50"):
        with pytest.raises(ValueError, match="no weights catalog://"):
            require_weights(name, CATALOG)
    require_weights("detectron2://any/path.pkl", CATALOG)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        require_weights("none.pth", CATALOG)


# Downloads


class Server:
    """Answers every request with one body; `cut` bytes more are announced than sent."""

    def __init__(self, body: bytes = b"", status: int = 200, cut: int = 0):
        outer = self
        self.body, self.status, self.cut, self.count = body, status, cut, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.count += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body) + outer.cut))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *arguments):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("MODEL_DIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TORCH_HOME", "TORCH_MODEL_ZOO", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def find(address: str) -> str:
    return find_weights(address, CATALOG, LOGGER)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    torch.save({"model": narrow_model("faster_fpn").state_dict()}, path)
    return path.read_bytes()


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_good_file_is_fetched_once_and_loads(cache, weights, caplog):
    model = narrow_model("faster_fpn", seed=5)
    with Server(weights) as server:
        address = server.address(f"a/model-{digest(weights)[:8]}.pth?dl=1")
        checkpointer = DetectronCheckpointer(narrow_config("faster_fpn"), model, logger=LOGGER)
        checkpointer.load(address)
        checkpointer.load(address)
        assert server.count == 1
    name = f"model-{digest(weights)[:8]}.pth"
    assert files(cache) == [name, name + ".sha256"]
    assert torch.equal(model.state_dict()["rpn.head.conv.bias"], narrow_model("faster_fpn").state_dict()["rpn.head.conv.bias"])
    # The server is gone; the file stays.
    assert find(address).endswith(name)


def test_an_own_catalog_names_addresses(cache, tmp_path):
    with Server(b"PK some weights") as server:
        address = server.address("mine.pth")
        catalog = tmp_path / "catalog.py"
        catalog.write_text(f"class ModelCatalog:\n    @staticmethod\n    def get(name):\n        return {{'mine': {address!r}}}[name]\n")
        path = find_weights("catalog://mine", str(catalog), LOGGER)
        assert find(address) == path and server.count == 1
    assert open(path, "rb").read() == b"PK some weights"


def test_a_path_is_a_path():
    assert find("some/file.pth") == "some/file.pth"


def test_without_a_network_the_error_names_the_place_for_the_file(cache):
    with Server() as server:
        address = server.address("weights.pth")
    with pytest.raises(OSError, match="Without a network, put the file there yourself: .*weights.pth"):
        find(address)


@pytest.mark.parametrize(
    ("answer", "name", "said"),
    [
        (Server(b"PK\x03\x04 half", cut=99), "a.pth", "only 9 of 108 bytes came|IncompleteRead"),
        (Server(b"<!DOCTYPE html><html><head><title>Sign &amp; in</title>"), "a.pth", r"a web page \('Sign & in'\), not weights"),
        (Server(b'{"error": "quota exceeded"}'), "a.pth", "a text .*quota exceeded.*, not weights"),
        (Server(b"not here", status=404), "a.pth", "HTTP Error 404"),
        (Server(b"", status=500), "a.pth", "HTTP Error 500"),
        (Server(b""), "a.pth", "the answer is empty"),
        (Server(b"PK\x03\x04 other"), "resnet50-0676ba61.pth", "its SHA256 begins with .*, but its name says 0676ba61"),
    ],
    ids=["truncated", "page", "json", "404", "500", "empty", "hash"],
)
def test_bad_answers_name_the_address_and_leave_nothing(cache, answer, name, said):
    with answer as server:
        address = server.address(name)
        with pytest.raises(OSError, match=said) as caught:
            find(address)
        assert address in str(caught.value) and "put the file there yourself" in str(caught.value)
        assert files(cache) == []
        # A later, good answer is taken as if nothing had been.
        server.body, server.status, server.cut = b"PK\x03\x04 whole", 200, 0
        if "-" not in name:
            assert open(find(address), "rb").read() == server.body and files(cache) == [name, name + ".sha256"]


def test_an_unknown_hash_is_written_down_and_compared(cache):
    with Server(b"PK\x03\x04 first") as server:
        address = server.address("weights.pth")
        path = find(address)
    note = path + ".sha256"
    assert open(note).read().split() == [digest(b"PK\x03\x04 first"), "weights.pth"]
    with open(path, "ab") as file:
        file.write(b"!")
    with pytest.raises(ValueError, match=r"weights\.pth changed since its first use .*delete both"):
        find(address)
    # A note that says nothing is no permission either.
    open(path, "wb").write(b"PK\x03\x04 first")
    open(note, "w").close()
    with pytest.raises(ValueError, match="changed since its first use"):
        find(address)


def test_model_dir_works_offline_with_files_under_their_own_names(cache, monkeypatch, tmp_path):
    cache.mkdir()
    body = b"PK\x03\x04 by hand"
    (cache / "R-50.pkl").write_bytes(body)
    assert find("catalog://ImageNetPretrained/MSRA/R-50") == str(cache / "R-50.pkl")
    (cache / "R-50.pkl").write_bytes(b"PK other")
    with pytest.raises(ValueError, match="changed since its first use"):
        find("catalog://ImageNetPretrained/MSRA/R-50")
    # All of Detectron's files have one name; the model zoo of torch puts the path in front.
    (cache / "model_final.pkl").write_bytes(body)
    name = "catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x"
    long = urlparse(ModelCatalog.get(name)).path.replace("/", "_")
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / long).write_bytes(body)
    monkeypatch.setenv("TORCH_MODEL_ZOO", str(zoo))
    assert find(name) == str(zoo / long) and files(zoo) == [long]
    # A file that torchvision fetched before.
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    wrong = hub / "resnet50-0676ba61.pth"
    wrong.write_bytes(body)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ValueError, match=r"resnet50-0676ba61\.pth: its SHA256 begins with .*delete it to download it again"):
        find("torchvision://resnet50")


def test_a_hash_in_a_name_is_recognised_but_no_date(cache):
    body = b"PK\x03\x04 x"
    with Server(body) as server:
        for name in (
            "faster_rcnn_r50_fpn_1x_coco_20200130_204655.pth",
            "vgg16_features-amdegroot.pth",
            "R-50.pkl",
            "model_final_b275ba.pkl",
        ):
            find(server.address(name))
        find(server.address(f"x_coco_20200130-{digest(body)[:8]}.pth"))
        with pytest.raises(OSError, match="its name says 12345678"):
            find(server.address("x_coco_20200130-12345678.pth"))
        # detectron2 writes another hash, and shorter.
        find(server.address(f"detectron2/a/1/model_final_{hashlib.md5(body).hexdigest()[:6]}.pkl"))
        with pytest.raises(OSError, match="its MD5 begins with .*, but its name says b275ba"):
            find(server.address("detectron2/a/1/model_final_b275ba.pkl"))
        assert server.count == 8


def test_addresses_with_one_file_name_stay_apart(cache):
    with Server(b"PK one") as server:
        first = find(server.address("one/model_final.pkl"))
        server.body = b"PK two"
        second = find(server.address("two/model_final.pkl"))
    assert (open(first, "rb").read(), open(second, "rb").read()) == (b"PK one", b"PK two")


def test_every_shipped_configuration_names_weights_that_exist():
    for path in shipped_configs().rglob("*.yaml"):
        require_weights(load_config(path).MODEL.WEIGHT, CATALOG)


def test_own_catalogs_may_build_on_this_one(tmp_path, cache):
    path = tmp_path / "mine.py"
    path.write_text(open(CATALOG, encoding="utf-8").read())
    require_weights("catalog://TorchVision/maskrcnn_resnet50_fpn/COCO_V1", str(path))
