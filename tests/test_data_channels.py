"""Images of any number of channels, 8 or 16 bits: from the file to features, in training, testing and prediction."""

import json

import numpy as np
import pytest
import torch
from models import narrow_config
from PIL import Image

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data import check_dataset, make_data_loader, make_dataset
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.data.check import main, require_sound
from maskrcnn_bench.data.datasets.channels import ChannelImage
from maskrcnn_bench.data.datasets.photo import photo_size, read_photo
from maskrcnn_bench.demo.predict import predict_main
from maskrcnn_bench.demo.predictor import COCODemo
from maskrcnn_bench.modeling.detector import build_detection_model
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.weights import load_into
from maskrcnn_bench.weights.load import Loaded

WIDTH, HEIGHT = 60, 44


def ramp(channels, dtype, seed=0):
    """Smooth pixels that use the whole range. [H, W, C]"""
    phases = np.random.default_rng(seed).uniform(0, 6, channels)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 9
    unit = 0.5 + 0.5 * np.sin(x[..., None] + phases) * np.cos(y[..., None] + phases)
    return (unit * np.iinfo(dtype).max).astype(dtype)


def save(path, pixels):
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif pixels.shape[2] == 1:
        Image.fromarray(pixels[:, :, 0]).save(path)
    else:
        pages = [Image.fromarray(pixels[:, :, c]) for c in range(pixels.shape[2])]
        pages[0].save(path, save_all=True, append_images=pages[1:])


FILES = [
    (1, np.uint16, ".tif"),
    (1, np.uint16, ".png"),
    (1, np.uint8, ".png"),
    (5, np.uint8, ".npy"),
    (5, np.uint16, ".npy"),
    (5, np.uint16, ".tif"),
]


def write_set(folder, channels, dtype, suffix, images=3):
    """A COCO folder of images with one box and one mask each."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        records = [{"id": k + 1, "file_name": f"{k}{suffix}", "width": WIDTH, "height": HEIGHT} for k in range(images)]
        box = {"category_id": 1, "bbox": [5, 6, 20, 30], "area": 600, "iscrowd": 0, "segmentation": [[5, 6, 25, 6, 25, 36, 5, 36]]}
        for k, record in enumerate(records):
            save(folder / split / record["file_name"], ramp(channels, dtype, k))
        content = {"images": records, "categories": [{"id": 1, "name": "cell"}]}
        content["annotations"] = [box | {"id": k + 1, "image_id": k + 1} for k in range(images)]
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def configured(folder, channels, *more):
    numbers = [1000.0] * channels
    opts = [
        "DATASETS.TRAIN",
        (str(folder),),
        "DATASETS.TEST",
        (str(folder),),
        "INPUT.CHANNELS",
        channels,
        "INPUT.PIXEL_MEAN",
        numbers,
        "INPUT.PIXEL_STD",
        numbers,
    ]
    opts += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 2]
    return narrow_config("faster_fpn", *opts, "INPUT.MIN_SIZE_TRAIN", (64, 80), "INPUT.MIN_SIZE_TEST", 64, *more)


@pytest.mark.parametrize(("channels", "dtype", "suffix"), FILES)
def test_files_are_read_as_they_are_stored(tmp_path, channels, dtype, suffix):
    pixels = ramp(channels, dtype)
    path = tmp_path / f"x{suffix}"
    save(path, pixels)
    image = read_photo(str(path), "picture", (WIDTH, HEIGHT), channels=channels)
    assert image.size == (WIDTH, HEIGHT) == photo_size(str(path)) and np.asarray(image).dtype == dtype
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert image.convert("RGB").mode == "RGB"
    with pytest.raises(OSError, match=f"x{suffix}.*expected 2 channels as INPUT.CHANNELS says, got {channels}"):
        read_photo(str(path), "picture", channels=2)


@pytest.mark.parametrize(
    ("dtype", "largest", "suffix", "black"),
    [
        (np.uint16, 4095, ".png", True),
        (np.float32, 1, ".tif", True),
        (np.uint16, 65535, ".png", False),
        (np.uint16, 255, ".png", False),
        (np.uint16, 0, ".png", False),
        (np.float32, 255, ".tif", False),
        (np.uint8, 9, ".png", False),
    ],
)
def test_pictures_that_become_black_are_noted(tmp_path, dtype, largest, suffix, black, capsys, caplog):
    folder = write_set(tmp_path, 1, np.uint16, suffix)
    unit = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1)
    for path in folder.glob(f"*/*{suffix}"):
        save(path, (unit * largest).astype(dtype))
    assert main(["check", str(folder)]) == black
    assert (f"as RGB the pictures are black, since the values of those looked at end at {largest}:" in capsys.readouterr().out) == black
    dataset = make_dataset(str(folder))
    require_sound(dataset)
    assert ("the pictures are black" in caplog.text) == black == (0 < largest and dtype != np.uint8 and np.max(dataset[0][0]) < 16)
    if dtype == np.uint16:
        assert check_dataset(make_dataset(str(folder), channels=1), deep=True) == []


def test_colours_become_grey_and_alpha_a_channel(tmp_path):
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 4), dtype=np.uint8), "RGBA")
    colours.save(tmp_path / "x.png")
    grey = read_photo(str(tmp_path / "x.png"), "picture", channels=1)
    np.testing.assert_array_equal(np.asarray(grey)[:, :, 0], np.asarray(colours.convert("RGB").convert("L")))
    np.testing.assert_array_equal(np.asarray(read_photo(str(tmp_path / "x.png"), "picture", channels=4)), np.asarray(colours))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 5, 1), np.float32), "uint8 or uint16, got .* of float32"),
        (np.zeros(4, np.uint8), r"\[H, W\]"),
        (b"no array", "numpy.save"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, content, message):
    path = tmp_path / "x.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(OSError, match=f"x.npy.*{message}"):
        read_photo(str(path), "picture", channels=1)
    with pytest.raises(OSError, match="x.npy"):
        read_photo(str(path), "picture")


def test_pixels_move_as_those_of_pillow():
    """8 bits exactly; 16 bits as 8 bits times 257, but for the rounding."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 1), dtype=np.uint8)
    grey, small, large = Image.fromarray(pixels[:, :, 0]), ChannelImage(pixels), ChannelImage(pixels.astype(np.uint16) * 257)
    moves = [lambda i: i.transpose(Image.FLIP_LEFT_RIGHT), lambda i: i.transpose(Image.FLIP_TOP_BOTTOM), lambda i: i.crop((3, 4, 20, 30))]
    for move in [*moves, lambda i: i.resize((70, 31), Image.BILINEAR), lambda i: i.resize((20, 15), Image.BILINEAR)]:
        expected = np.asarray(move(grey))
        np.testing.assert_array_equal(np.asarray(move(small))[:, :, 0], expected)
        assert np.abs(np.asarray(move(large))[:, :, 0] / 257 - expected).max() <= 1 and move(large).size == move(grey).size


@pytest.mark.parametrize(("channels", "dtype", "suffix"), [FILES[0], FILES[2], FILES[4]])
def test_train_test_and_predict(tmp_path, channels, dtype, suffix):
    folder = write_set(tmp_path / "set", channels, dtype, suffix)
    cfg = configured(folder, channels)
    torch.manual_seed(0)
    model = build_detection_model(cfg)
    loader = make_data_loader(cfg)
    for images, targets, _ in loader:
        assert images.tensors.dtype == getattr(torch, np.dtype(dtype).name) and images.tensors.shape[1] == channels
        losses = model(images, targets)
        total = sum(losses.values())
        total.backward()
        assert total.isfinite() and model.backbone.body.stem.conv1.in_channels == channels
    picture = loader.dataset.dataset.read_image(0)
    (tested,) = make_data_loader(cfg, is_train=False)
    images = next(iter(tested))[0]
    expected, _ = make_transforms(cfg, is_train=False)(picture)
    assert torch.equal(images.tensors[0, :, : expected.shape[1], : expected.shape[2]].int(), expected.int())
    model.eval()
    assert len(model(images)) == len(images)

    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    demo = COCODemo(cfg, 0.0, min_image_size=64, weight_loading=str(tmp_path / "model.pth"))
    path = str(folder / "val" / f"0{suffix}")
    (found,) = demo.predict([path])
    assert found.size == (WIDTH, HEIGHT) and demo.run_on_opencv_image(path).shape == (HEIGHT, WIDTH, 3)
    if channels == 5:
        (tmp_path / "config.yml").write_text(cfg.dump())
        weights = ["--weights", str(tmp_path / "model.pth"), "--config-file", str(tmp_path / "config.yml")]
        assert predict_main([path, *weights, "--output", str(tmp_path / "out")]) == 0 and any((tmp_path / "out").glob("*.jpg"))


def test_grey_copy_of_rgb_weights_gives_the_features_of_replicated_grey(tmp_path):
    torch.manual_seed(0)
    colour = build_detection_model(configured("", 3, "INPUT.PIXEL_MEAN", [90.0] * 3, "INPUT.PIXEL_STD", [50.0] * 3)).eval()
    for channels in (1, 5):
        numbers = ["INPUT.PIXEL_MEAN", [90.0] * channels, "INPUT.PIXEL_STD", [50.0] * channels]
        other = build_detection_model(configured("", channels, *numbers)).eval()
        report = load_into(other, Loaded("maskrcnn_benchmark", colour.state_dict(), {}))
        assert report.inflated == ["backbone.body.stem.conv1.weight"] and "for RGB, shared" in str(report) and not report.reinitialised
        grey = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8)
        with torch.no_grad():
            expected = colour.backbone(colour.normalizer(to_image_list(grey.expand(-1, 3, -1, -1))))
            got = other.backbone(other.normalizer(to_image_list(grey.expand(-1, channels, -1, -1))))
        for a, b in zip(expected, got):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_statistics_of_channels(tmp_path, capsys):
    folder = write_set(tmp_path / "set", 5, np.uint16, ".npy")
    assert main(["stats", str(folder)]) == 0
    out = capsys.readouterr().out
    pixels = np.concatenate([ramp(5, np.uint16, k).reshape(-1, 5) for k in range(3)]).astype(np.float64)
    line = next(line for line in out.splitlines() if "PIXEL_MEAN" in line)
    words = line.split("PIXEL_MEAN")[1].split("INPUT.PIXEL_STD")
    mean, std = (json.loads(part.strip().strip("'\"")) for part in words)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-4)
    assert "INPUT.CHANNELS 5" in line and "uint16" in out


def test_values_that_do_not_fit_the_channels_say_so(tmp_path):
    with pytest.raises(ValueError, match="expected 1 values each, got 3 and 3; `maskrcnn-bench data stats`"):
        build_detection_model(load_config(None, ["INPUT.CHANNELS", "1"]))
    with pytest.raises(ValueError, match="BRIGHTNESS.*are for RGB"):
        make_transforms(configured("", 1, "INPUT.BRIGHTNESS", 0.1))
    folder = write_set(tmp_path / "set", 5, np.uint8, ".npy")
    assert main(["check", str(folder), "--deep"]) == 0
    with pytest.raises(OSError, match=r"0\.npy .image id 1 of .*expected 3 channels as INPUT.CHANNELS says, got 5"):
        make_dataset(str(folder))[0]
