"""The verb `predict`: which images it finds, images of every kind, what it writes, and what it says to faults."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from demo_models import NAMES, photo, results, run, save_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pycocotools import mask as coco_mask

from maskrcnn_bench.cli import main
from maskrcnn_bench.data.build import make_dataset
from maskrcnn_bench.data.datasets.photo import read_photo
from maskrcnn_bench.demo import predict
from maskrcnn_bench.demo.files import MARK, overlay_paths, save_picture
from maskrcnn_bench.demo.images import Found, find_images, read_image
from maskrcnn_bench.demo.predictor import COCODemo
from maskrcnn_bench.utils.files import write_atomically


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The test's folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def forged_png(width, height):
    """The head of a PNG of any size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, body, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# finding images


def test_folders_patterns_and_files_in_order(place):
    for name in ("a/10.jpg", "a/9.JPG", "a/sub/1.png", "a/9_det.jpg", "a/notes.txt", "b/x.webp", "photo"):
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).touch()
    assert [found.name for found in find_images(["a"])] == ["9.JPG", "10.jpg", "sub/1.png"]
    assert [found.name for found in find_images(["b", "a/*.jpg", "photo", "a/9_det.jpg"])] == ["x.webp", "10.jpg", "photo", "9_det.jpg"]
    assert [found.path for found in find_images(["a/10.jpg", "a", place / "a" / "10.jpg"])] == ["a/10.jpg", "a/9.JPG", "a/sub/1.png"]
    assert [found.name for found in find_images(["a/**/*.png"])] == ["sub/1.png"]
    assert [found.name for found in find_images(["[ab]/*.*[gp]"])] == ["a/10.jpg", "b/x.webp"]
    assert [found.name for found in find_images([f"{place}/?"])] == ["a/9.JPG", "a/10.jpg", "a/sub/1.png", "b/x.webp"]
    assert [found.name for found in find_images(["a/*/../../b/*"])] == ["x.webp"], "pictures stay in the output folder"


def test_linked_folders_are_folders_too(place):
    for name in ("far/sub/1.png", "in/2.png"):
        (place / name).parent.mkdir(parents=True)
        (place / name).touch()
    for link, target in {"in/a": "far/sub", "in/b": "far", "in/loop": "in", "in/lost": "gone"}.items():
        (place / link).symlink_to(place / target)
    assert [found.name for found in find_images(["in"])] == ["2.png", "a/1.png"]


def test_names_with_the_characters_of_patterns_are_files_too(place):
    (place / "shot[1].png").touch()
    assert [found.name for found in find_images(["shot[1].png"])] == ["shot[1].png"]


@pytest.mark.parametrize(
    "source,message",
    [("missing.jpg", "missing.jpg does not exist"), ("*.jpg", r"\*.jpg matches nothing"), ("empty", "no images in empty; expected files")],
)
def test_nothing_found_is_one_clear_error(place, source, message, weights, capsys):
    (place / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_images([source])
    assert run(source, "--weights", weights) == 1
    assert capsys.readouterr().err.startswith("error: ") and files(place) == []


# reading images of every kind


def test_all_modes_become_rgb(place):
    picture = photo()
    rgb = np.asarray(picture).astype(int)
    translucent = Image.merge("RGBA", (*picture.split(), Image.new("L", picture.size, 128)))
    sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    grey, ink = picture.convert("L"), picture.convert("CMYK")
    cases = {"rgba.png": translucent, "16.png": sixteen, "16.tif": sixteen, "grey.jpg": grey, "cmyk.jpg": ink, "cmyk.tif": ink}
    cases |= {"palette.gif": picture.quantize(256), "la.png": picture.convert("LA"), "bit.png": picture.convert("1"), "rgb.webp": picture}
    for name, image in cases.items():
        image.save(place / name, **({"lossless": True} if name.endswith("webp") else {"quality": 98} if name.endswith("jpg") else {}))
        read = read_image(place / name)
        assert (read.mode, read.size) == ("RGB", picture.size)
        expected = np.asarray(image.convert("RGB") if name[:2] != "16" else grey.convert("RGB")).astype(int)
        assert np.abs(np.asarray(read) - expected).mean() < 4, name
    assert (np.asarray(read_image(place / "rgba.png")) == rgb).all()
    assert (np.asarray(read_image(place / "16.png")) == np.asarray(grey)[..., None]).all()


def test_first_frame_of_an_animation(place):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue", "green")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(place / name, save_all=True, append_images=frames[1:])
        assert np.asarray(read_image(place / name))[5, 5, 0] > 240, name


def test_exif_turns_the_image(place):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(80, 64).save(place / "turned.jpg", exif=exif, quality=98)
    read = read_image(place / "turned.jpg")
    assert read.size == (64, 80)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(photo(80, 64).rotate(-90, expand=True))).mean() < 4


def test_exif_data_of_a_wrong_type_do_not_hide_a_photo(place):
    """The width as a text, and the orientation, which is 6."""
    tags = struct.pack("<HHI4sHHI4s", 0x0100, 2, 4, b"40\0\0", 0x0112, 3, 1, b"\6\0\0\0")
    photo(80, 64).save("a.jpg", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    for read in (read_image("a.jpg"), read_photo("a.jpg", "image", on_exif="rotate")):
        assert read.size == (64, 80) and read.getexif().get(0x0112, 1) == 1, "nobody turns it again"


@pytest.mark.parametrize("error", [struct.error("bad tag"), RuntimeError("damaged"), NotImplementedError("DXT9")])
def test_any_error_of_a_decoder_is_one_of_the_file(place, monkeypatch, error):
    def fail(self):
        raise error

    photo().save("a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    for read in (read_image, lambda path: read_photo(path, "image")):
        with pytest.raises(OSError, match="a.png .*cannot be read"):
            read("a.png")


FAULTS = {
    "empty.jpg": (b"", "is not an image that Pillow can read: the file is empty"),
    "page.png": (b"<html>404</html>", "is not an image that Pillow can read"),
    "huge.png": (forged_png(60000, 60000), "is too large .*scale it down"),
    "short.png": (forged_png(40, 40), "cannot be read"),
}


@pytest.fixture
def faulty(place):
    folder = place / "faulty"
    folder.mkdir()
    for name, (content, _) in FAULTS.items():
        (folder / name).write_bytes(content)
    photo(300, 200).save(place / "whole.jpg")
    content = (place / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (place / "whole.jpg").unlink()
    return folder


def test_faulty_images_are_errors_with_names(faulty):
    for name, (_, message) in {**FAULTS, "truncated.jpg": ("", "cannot be read .*truncated.*copy it again")}.items():
        with pytest.raises(OSError, match=f"{name} {message}"):
            read_image(faulty / name)
    with pytest.raises(FileNotFoundError, match="gone.jpg does not exist"):
        read_image(faulty / "gone.jpg")
    with pytest.raises(OSError, match="faulty is a folder"):
        read_image(faulty)


# the run


def test_pictures_and_results(place, weights, capsys):
    for index, size in enumerate([(80, 64), (64, 80), (90, 64)]):
        (place / "in" / "sub").mkdir(parents=True, exist_ok=True)
        photo(*size, seed=index).save(place / "in" / ("sub/é.png" if index == 2 else f"{index}.png"))
    assert run("in", "--weights", weights, "--score", 0, "--batch-size", 2, "--output", "out", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 3) == 0
    assert files(place / "out") == ["0_det.jpg", "1_det.jpg", "predictions.json", "sub/é_det.jpg"]
    rows = results("out")
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(1, "0.png"), (2, "1.png"), (3, "sub/é.png")}
    demo = COCODemo.from_weights(weights, opts=["MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 3], confidence_threshold=0.0)
    boxlist = demo.select_top_predictions(next(demo.predict("in/1.png")))
    mine = [row for row in rows if row["image_id"] == 2]
    assert len(mine) == len(boxlist) == 3
    for row, box, label, score in zip(mine, boxlist.convert("xywh").bbox, boxlist.get_field("labels"), boxlist.get_field("scores")):
        assert row["bbox"] == pytest.approx(box.tolist(), abs=0.02)
        assert row["score"] == pytest.approx(float(score), abs=1e-4)
        assert (row["category_id"], row["category_name"]) == (int(label), NAMES[label])
    drawn = demo.compute_prediction("in/1.png")
    pasted = demo.select_top_predictions(drawn).get_field("mask")[:, 0].numpy()
    masks = np.stack([np.array(coco_mask.decode([row["segmentation"]]))[..., 0] for row in mine])
    assert masks.shape == (3, 80, 64) and (masks != pasted).mean() < 1e-3
    out = capsys.readouterr().out
    assert "3 of 3 images: 9 objects in" in out and "pictures in out, numbers in" in out
    assert Image.open(place / "out" / "0_det.jpg").size == (320, 256), "small pictures are enlarged to be readable"


def test_score_is_the_least_that_is_written(place, weights, capsys):
    photo().save("a.png")
    assert run("a.png", "--weights", weights, "--score", 0) == 0
    scores = sorted(row["score"] for row in results())
    middle = (scores[-1] + scores[-2]) / 2
    assert run("a.png", "--weights", weights, "--score", middle) == 0
    assert [row["score"] for row in results()] == scores[-1:]
    assert run("a.png", "--weights", weights, "--score", 1) == 0
    assert results() == [], "nothing found is a result too"
    said = f"nothing scored above 1, the best was {scores[-1]:.2f}; lower --score to see what the model is less sure of\n"
    assert capsys.readouterr().out.endswith(said)


@pytest.mark.parametrize("family", ["mask_fpn", "faster_fpn"])
def test_model_that_finds_nothing(place, tmp_path_factory, family, capsys):
    path = save_model(tmp_path_factory.mktemp("model"), family)
    photo().save("a.png")
    assert run("a.png", "--weights", path, "--score", 0, "MODEL.ROI_HEADS.SCORE_THRESH", 1.0) == 0
    assert results() == [] and (place / "output" / "predict" / "a_det.jpg").is_file()
    assert "nothing scored above 0, and nothing below it either" in capsys.readouterr().out


def test_half_precision(place, weights):
    photo().save("a.png")
    assert run("a.png", "--weights", weights, "--score", 0, "DTYPE", "bfloat16") == 0
    assert results() and all(row["segmentation"]["size"] == [64, 80] for row in results())


def test_faulty_images_are_told_and_the_others_done(faulty, place, weights, capsys):
    photo(70, 50).save(faulty / "good.jpg")
    photo(70, 50).convert("CMYK").save(faulty / "print.jpg")
    assert run(faulty, "--weights", weights, "--score", 0, "--batch-size", 2) == 1
    captured = capsys.readouterr()
    for name in (*FAULTS, "truncated.jpg"):
        assert captured.err.count(f"{name} ") == 1 and name not in {row["file_name"] for row in results()}
    assert {row["file_name"] for row in results()} == {"good.jpg", "print.jpg"}
    assert "2 of 7 images, 5 skipped" in captured.out and "Traceback" not in captured.err
    assert files(place / "output") == ["predict/good_det.jpg", "predict/predictions.json", "predict/print_det.jpg"]


def test_image_ids_do_not_move_when_an_image_fails(place, weights):
    (place / "1.png").write_bytes(b"")
    photo().save("2.png")
    assert run("1.png", "2.png", "--weights", weights, "--score", 0) == 1
    assert {row["image_id"] for row in results()} == {2}


def test_pictures_beside_the_images(place, weights):
    (place / "in").mkdir()
    photo().save("in/a.png")
    for _ in range(2):
        assert run("in", "--beside", "--weights", weights) == 0
        assert files(place) == ["in/a.png", "in/a_det.jpg", "output/predict/predictions.json"], "its own pictures are not images"


def test_pictures_of_others_are_not_written_over(place, weights):
    photo().save("a.png")
    photo().save("a_det.jpg")
    (place / "a_2_det.jpg").touch()
    before = (place / "a_det.jpg").read_bytes()
    for _ in range(2):
        assert run("a.png", "--beside", "--weights", weights) == 0
        assert [name for name in files(place) if "_det" in name] == ["a_2_det.jpg", "a_3_det.jpg", "a_det.jpg"]
    assert (place / "a_det.jpg").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names of any bytes")
def test_names_that_are_not_utf8(place, weights):
    name = os.fsdecode(b"caf\xe9.png")
    photo().save("a.png")
    os.rename("a.png", name)
    words = ["--csv", "--annotations", "out/instances_train.json", "--labelme", ".", "--output", "out"]
    assert run(".", "--weights", weights, "--score", 0, *words) == 0
    assert {row["file_name"] for row in results("out")} == {name}, "JSON keeps the bytes"
    assert "caf\\udce9.png" in (place / "out" / "predictions.csv").read_text(encoding="utf-8")
    for source in (".", "out/instances_train.json"):
        assert make_dataset(source, keep_empty=True)[0][0].size == (80, 64)


@pytest.mark.parametrize(
    "words", [["--labelme", "out"], ["--annotations", "out/predictions.json"], ["--annotations", "out/Predictions.csv"]]
)
def test_two_outputs_in_one_file_are_refused(place, weights, capsys, words):
    photo().save("predictions.jpg")
    assert run("predictions.jpg", "--weights", weights, "--csv", "--output", "out", *words) == 1
    assert "would be written twice, with different content; name another" in capsys.readouterr().err
    assert files(place) == ["predictions.jpg"]


@pytest.mark.parametrize("size,factor", [((80, 64), 4), ((500, 200), 1), ((4098, 16), 3), ((9000, 10), 1), ((70000, 3), 1)])
def test_enlarged_pictures_fit_into_a_video(size, factor):
    assert predict.enlargement(size) == factor


def test_batch_size_and_company_do_not_change_results(place, weights):
    (place / "in").mkdir()
    for index in range(5):
        photo(*[(80, 64), (64, 80)][index % 2], seed=index).save(f"in/{index}.png")
    rows = []
    for size in (1, 3, 8):
        assert run("in", "--weights", weights, "--score", 0, "--batch-size", size) == 0
        rows.append(results())
    for other in rows[1:]:
        assert len(other) == len(rows[0])
        for a, b in zip(rows[0], other):
            assert a["file_name"] == b["file_name"] and a["bbox"] == pytest.approx(b["bbox"], abs=0.02)


def test_model_without_masks_writes_boxes(place, tmp_path_factory):
    path = save_model(tmp_path_factory.mktemp("boxes"), "faster_fpn")
    photo().save("a.png")
    assert run("a.png", "--weights", path, "--score", 0) == 0
    assert results() and all("segmentation" not in row for row in results())


def test_annotations_are_a_data_set(place, weights, capsys):
    (place / "photos" / "more").mkdir(parents=True)
    pictures = {"photos/a.png": photo(80, 64, 1), "photos/more/b.png": photo(64, 80, 2)}
    for name, picture in pictures.items():
        picture.save(name)
    (place / "photos" / "broken.png").write_bytes(b"no picture")
    assert run("photos", "--weights", weights, "--score", 0, "--annotations", "photos/instances_train.json") == 1
    assert "annotations in photos/instances_train.json" in capsys.readouterr().out
    dataset = make_dataset("photos", masks=True, keep_empty=True)
    assert dataset.class_names == NAMES
    rows = results()
    for index in range(len(dataset)):
        picture, target, _ = dataset[index]
        name = dataset.get_img_info(index)["file_name"]
        assert picture.tobytes() == pictures[f"photos/{name}"].tobytes()
        mine = [row for row in rows if row["file_name"] == name]
        assert set(target.get_field("labels").tolist()) <= {row["category_id"] for row in mine}
        masks = np.stack([m.get_mask_tensor().reshape(picture.height, picture.width).numpy() for m in target.get_field("masks")])
        expected = np.stack([coco_mask.decode(row["segmentation"]) for row in mine if coco_mask.area(row["segmentation"])])
        assert len(masks) == len(target) and all((expected == mask).all(axis=(1, 2)).any() for mask in masks)


def test_verb_of_the_command(place, weights, capsys):
    photo().save("a.png")
    assert main(["predict", "a.png", "--weights", weights]) == 0
    assert "1 of 1 images" in capsys.readouterr().out


# what it says to mistakes


@pytest.mark.parametrize(
    "words,message",
    [
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--weights", "a.png"], "a.png is no known kind of file"),
        (["MODEL.MASK_ONN", "True"], "unknown key MODEL.MASK_ONN. Did you mean MODEL.MASK_ON"),
        (["MODEL.DEVICE"], "expected KEY VALUE"),
        (["--config-file", "e2e_mask_rcnn_R_50.yaml"], "Did you mean"),
        (["--output", "a.png/out"], "--output: expected a folder, but a.png is a file"),
        (["--labelme", "a.png"], "--labelme: expected a folder, but a.png is a file"),
        (["--annotations", "."], "--annotations: expected a file, such as instances_train.json, but . is a folder"),
        (["--annotations", "a.png"], "--annotations: a.png is there already and may have somebody's corrections; name another file"),
    ],
)
def test_mistakes_are_one_line(place, weights, capsys, words, message):
    photo().save("a.png")
    given_weights = [] if "--weights" in words else ["--weights", weights]
    assert run("a.png", *given_weights, *words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1
    assert files(place) == ["a.png"], "nothing is written"


@pytest.mark.parametrize(
    "words,message",
    [
        (["a.png"], "--weights is missing: a trained model: a file, an address, or the output folder of a training. `maskrcnn-bench demo`"),
        (["--weights", "w.pth"], "IMAGE"),
        (["--weights", "w.pth", "SEED", "3"], "at least one image"),
        (["a.png", "--weights", "w.pth", "--score", "1.5"], "from 0 to 1, got 1.5"),
        (["a.png", "--weights", "w.pth", "--score", "abc"], "argument --score: expected a number from 0 to 1, got abc"),
        (["a.png", "--weights", "w.pth", "--score", "nan"], "from 0 to 1, got nan"),
        (["a.png", "--weights", "w.pth", "--overlap", "0.5"], "--overlap is that of tiles; give their side as well"),
        (["a.png", "--weights", "w.pth", "--tile", "9", "--overlap", "1"], "expected a number from 0 to below 1, got 1"),
        (["a.png", "--weights", "w.pth", "--batch-size", "0"], "from 1 on, got 0"),
        (["a.png", "--weights", "w.pth", "--batch-size", "two"], "argument --batch-size: expected a whole number from 1 on, got two"),
    ],
)
def test_wrong_options_explain_themselves(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_weights_that_do_not_fit(place, weights, capsys):
    photo().save("a.png")
    assert run("a.png", "--weights", weights, "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 9) == 1
    assert "does not hold all of the model" in capsys.readouterr().err


def test_gpu_that_is_not_there(place, weights, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    photo().save("a.png")
    assert run("a.png", "--weights", weights, "MODEL.DEVICE", "cuda") == 1
    assert "MODEL.DEVICE cuda, but" in capsys.readouterr().err


def test_out_of_memory_has_advice(place, weights, capsys, monkeypatch):
    def full(self, pictures):
        raise torch.OutOfMemoryError("CUDA out of memory")

    photo().save("a.png")
    monkeypatch.setattr(COCODemo, "detect", full)
    assert run("a.png", "--weights", weights) == 1
    assert "lower --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word,answer",
    [
        *(("MODEL.DEVICE", True), ("MODEL.DEVCE=cpu", True), ("SEED", True), ("OUTPUT_DIR=x", True)),
        *(("IMG_001.JPG", False), ("MODEL", False), ("SEED.png", False), ("a/b.jpg", False), ("DATASETS", False)),
    ],
)
def test_keys_are_told_from_images(place, word, answer):
    assert predict.is_override(word) == answer
    (place / word).parent.mkdir(exist_ok=True)
    (place / word).touch()
    assert not predict.is_override(word), "what exists is an image"


def test_help_does_not_wait_for_torch(repository):
    code = (
        "import sys\nfrom maskrcnn_bench.demo import predict\n"
        "try: predict.predict_main(['--help'])\nexcept SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n") and "--beside" in done.stdout


# files


@given(st.lists(st.sampled_from(["a.jpg", "A.png", "a.png", "a_det.jpg", "a_2.jpg", "sub/a.jpg"]), min_size=1, max_size=12), st.booleans())
def test_no_two_images_share_a_picture(names, beside):
    found = [Found(f"in/{index % 2}/{name}", name) for index, name in enumerate(names)]
    paths = overlay_paths(found, None if beside else "out")
    assert len({path.lower() for path in paths}) == len(found)
    assert not {path.lower() for path in paths} & {image.path.lower() for image in found}
    assert all(path.endswith("_det.jpg") and path.startswith("in/" if beside else "out/") for path in paths)


def test_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and files(tmp_path) == ["deep/x.json"]
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_kind_of_a_picture_follows_its_name_and_size(tmp_path):
    save_picture(photo(), tmp_path / "a.jpg")
    save_picture(photo(), tmp_path / "b.PNG")
    save_picture(Image.new("RGB", (66000, 2)), str(tmp_path / "c.jpg"))
    assert {path.name: Image.open(path).format for path in tmp_path.iterdir()} == {"a.jpg": "JPEG", "b.png": "PNG", "c.png": "PNG"}
    assert all(MARK.encode() in path.read_bytes() for path in tmp_path.iterdir())
