"""`predict` on videos: what is read, what is written, and videos that are cut short, damaged or none at all."""

import csv
import os
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from demo_models import photo, results, run, save_model
from PIL import Image

from maskrcnn_bench.demo.files import MARK
from maskrcnn_bench.demo.predictor import COCODemo
from maskrcnn_bench.demo.tiling import TooManyTiles
from maskrcnn_bench.demo.video import VideoReader, VideoWriter, is_video

av = pytest.importorskip("av", reason='no PyAV; pip install -e ".[demo]"')


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_clip(path, frames=12, size=(96, 80), rate=10, codec="mpeg4", sound=False, **options):
    """A video whose pictures get brighter from one to the next."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 4
        voice = container.add_stream("aac", rate=16000) if sound else None
        for index in range(frames):
            picture = Image.blend(Image.new("RGB", size), photo(*size), 0.3 + 0.7 * index / frames)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
        if voice:
            for index in range(40):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                samples.sample_rate, samples.pts = 16000, index * 1024
                container.mux(voice.encode(samples))
            container.mux(voice.encode())
    return path


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def brightness(frames):
    return [float(np.asarray(frame.picture).mean()) for frame in frames]


# reading


@pytest.mark.parametrize(
    "name,codec", [("a.mp4", "mpeg4"), ("a.mkv", "libx264"), ("a.avi", "mjpeg"), ("a.webm", "libvpx"), ("a.MOV", "libx264")]
)
def test_pictures_in_order_with_times(place, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    if codec == "mjpeg":
        clip = place / name
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 80, "yuvj420p"
            for index in range(12):
                container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (96, 80), (20 * index,) * 3))))
            container.mux(stream.encode())
    else:
        clip = make_clip(place / name, codec=codec)
    with VideoReader(clip) as reader:
        frames = list(reader)
        assert reader.fault == "" and float(reader.rate) == pytest.approx(10)
    assert [frame.index for frame in frames] == list(range(12)) and {frame.picture.size for frame in frames} == {(96, 80)}
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(12)], abs=0.002)
    levels = brightness(frames)
    assert levels == sorted(levels) and levels[-1] > levels[0] + 20
    assert is_video(clip)


def test_sound_that_is_longer_than_the_pictures_is_no_fault(place):
    with VideoReader(make_clip(place / "a.mkv", codec="libx264", sound=True)) as reader:
        assert len(list(reader)) == 12 and reader.fault == ""


def test_video_of_a_telephone_is_turned_upright(place):
    """A phone writes what its sensor saw, and a matrix that says how to turn it."""
    clip = make_clip(place / "a.mp4", size=(96, 64))
    with VideoReader(clip) as reader:
        plain = next(iter(reader)).picture
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    one = 0x10000
    assert struct.unpack_from(">9i", content, at) == (one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    struct.pack_into(">9i", content, at, 0, one, 0, -one, 0, 0, 64 * one, 0, 0x40000000)
    clip.write_bytes(content)
    with VideoReader(clip) as reader:
        turned = next(iter(reader)).picture
    assert turned.size == (64, 96)
    # The matrix sends (x, y) to (-y, x): a quarter turn with the clock.
    assert (np.asarray(turned) == np.asarray(plain.transpose(Image.ROTATE_270))).all()


@pytest.mark.parametrize(
    "name,codec,options", [("a.mp4", "libx264", {"movflags": "+faststart"}), ("a.mkv", "libx264", {}), ("a.avi", "mpeg4", {})]
)
def test_video_cut_short_gives_what_can_be_read(place, name, codec, options):
    clip = cut(make_clip(place / name, frames=60, codec=codec, **options), 0.6)
    with VideoReader(clip) as reader:
        frames = list(reader)
    assert 10 < len(frames) < 55
    assert reader.fault == f"{clip} is cut short: {len(frames)} of about 60 pictures could be read; copy it again from its source"


def test_damaged_pieces_are_left_out(place):
    clip = make_clip(place / "a.mkv", frames=40, codec="mpeg4")
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = os.urandom(600)
    clip.write_bytes(content)
    with VideoReader(clip) as reader:
        frames = list(reader)
    assert len(frames) > 10 and [frame.index for frame in frames] == list(range(len(frames)))


def sound_only(path):
    with av.open(str(path), "w") as container:
        voice = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 16000
        container.mux(voice.encode(samples))
        container.mux(voice.encode())


FAULTS = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "cannot be opened as a video"),
    "text.mkv": (lambda path: path.write_bytes(b"no video" * 50), "cannot be opened as a video"),
    "head.mp4": (lambda path: cut(make_clip(path), 0.5), "cannot be opened as a video"),
    "sound.mp4": (sound_only, "has no pictures, only sound"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_video_is_one_clear_error(place, name):
    make, message = FAULTS[name]
    make(place / name)
    with pytest.raises(OSError, match=f"{name} {message}"):
        list(VideoReader(place / name))


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_titles_that_are_not_utf8_are_no_fault(place, name):
    clip = make_clip(place / name, frames=3)
    content = clip.read_bytes()
    assert b"Lavf" in content
    clip.write_bytes(content.replace(b"Lavf", b"Vid\xe9"))
    with VideoReader(clip) as reader:
        assert len(list(reader)) == 3


# writing


@pytest.mark.parametrize("size,without", [((96, 80), ()), ((97, 81), ()), ((50, 33), ()), ((96, 80), {"libx264"})])
def test_writer_keeps_times_and_pictures(place, monkeypatch, size, without):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - set(without))
    times = [0.0, 0.1, 0.15, 0.9, 1.0]
    with VideoWriter(place / "deep" / "o.mp4", Fraction(10)) as writer:
        for index, seconds in enumerate(times):
            writer.add(Image.new("RGB", size, (40 + 40 * index,) * 3), seconds)
        assert not (place / "deep" / "o.mp4").exists(), "nobody sees half of it"
    assert [path.name for path in (place / "deep").iterdir()] == ["o.mp4"]
    with VideoReader(place / "deep" / "o.mp4") as reader:
        frames = list(reader)
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=1e-3)
    assert brightness(frames) == pytest.approx([40 + 40 * index for index in range(5)], abs=6)
    assert frames[0].picture.size == (size[0] // 2 * 2, size[1] // 2 * 2)


def test_pictures_of_another_size_are_fitted(place):
    with VideoWriter(place / "o.mp4", Fraction(10)) as writer:
        for index, size in enumerate([(96, 80), (192, 160), (48, 40)]):
            writer.add(photo(96, 80).resize(size), index / 10)
    with VideoReader(place / "o.mp4") as reader:
        first, *others = [np.asarray(frame.picture).astype(int) for frame in reader]
    assert len(others) == 2 and all(np.abs(first - other).mean() < 20 for other in others)


def test_failed_writing_leaves_nothing(place):
    with pytest.raises(RuntimeError), VideoWriter(place / "o.mp4", Fraction(10)) as writer:
        writer.add(photo(), 0.0)
        raise RuntimeError
    assert list(place.iterdir()) == []


# predict


def test_predict_writes_video_json_and_csv(place, weights, capsys):
    make_clip(place / "clip.mp4", frames=7)
    photo().save("a.png")
    assert run("clip.mp4", "a.png", "--weights", weights, "--score", 0, "--batch-size", 3, "--csv", "--output", "out") == 0
    assert sorted(path.name for path in (place / "out").iterdir()) == ["a_det.jpg", "clip_det.mp4", "predictions.csv", "predictions.json"]
    found = results("out")
    assert {row["image_id"] for row in found if row["file_name"] == "a.png"} == {2} and not any(
        "frame" in row for row in found if row["image_id"] == 2
    )
    of_clip = [row for row in found if row["file_name"] == "clip.mp4"]
    assert {(row["image_id"], row["frame"]) for row in of_clip} == {(3 + index, index) for index in range(7)}
    assert all(row["seconds"] == pytest.approx(row["frame"] / 10, abs=0.002) for row in of_clip)
    with VideoReader("clip.mp4") as reader:
        pictures = [frame.picture for frame in reader]
    demo = COCODemo.from_weights(weights, confidence_threshold=0.0)
    for frame, boxlist in enumerate(demo.detect(pictures)):
        mine = [row for row in of_clip if row["frame"] == frame]
        assert [row["score"] for row in mine] == pytest.approx(boxlist.get_field("scores").tolist(), abs=1e-4)
    assert MARK.encode() in (place / "out" / "clip_det.mp4").read_bytes()
    with VideoReader("out/clip_det.mp4") as reader:
        drawn = list(reader)
    assert len(drawn) == 7 and drawn[0].picture.size == (384, 320), "small pictures are enlarged to be readable"
    plain = np.asarray(pictures[3].resize((384, 320))).astype(int)
    assert np.abs(np.asarray(drawn[3].picture) - plain).mean() > 3, "something is drawn"
    with open("out/predictions.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(found)
    for line, row in zip(table, found):
        assert (int(line["image_id"]), line["category_name"], float(line["score"])) == (row["image_id"], row["category_name"], row["score"])
        assert [float(line[name]) for name in ("x", "y", "width", "height")] == row["bbox"]
        assert line["frame"] == str(row.get("frame", ""))
    assert "1 of 1 images and 7 pictures of 1 video:" in capsys.readouterr().out


def test_predict_on_a_folder_tells_faults_and_does_the_rest(place, weights, capsys):
    (place / "in").mkdir()
    cut(make_clip(place / "in" / "short.avi", frames=60), 0.6)
    make_clip(place / "in" / "good.mp4", frames=3)
    make_clip(place / "in" / "good_det.mp4", frames=3)
    (place / "in" / "bad.mkv").write_bytes(b"x")
    assert run("in", "--weights", weights, "MODEL.ROI_HEADS.SCORE_THRESH", 1.0) == 1
    captured = capsys.readouterr()
    assert captured.err.count("in/bad.mkv cannot be opened") == captured.err.count("in/short.avi is cut short") == 1
    assert sorted(path.name for path in (place / "output" / "predict").iterdir()) == ["good_det.mp4", "predictions.json", "short_det.mp4"]
    assert "of 3 videos, 2 of them not whole" in captured.out and results() == []
    with VideoReader("output/predict/short_det.mp4") as reader:
        assert 10 < len(list(reader)) < 55


@pytest.mark.parametrize("error", [av.error.ExternalError(542398533, "Generic error in an external library"), TooManyTiles("6000")])
def test_video_that_cannot_be_written_is_left_out(place, weights, capsys, monkeypatch, error):
    def refuse(self, picture, seconds):
        raise error

    make_clip(place / "clip.mp4", frames=2)
    photo().save("a.png")
    monkeypatch.setattr(VideoWriter, "add", refuse)
    assert run("a.png", "clip.mp4", "--weights", weights, "--score", 0) == 1
    assert "skipped: clip.mp4: no video can be made of its pictures" in capsys.readouterr().err
    assert "a.png" in {row["file_name"] for row in results()}


def test_without_pyav_images_work_and_videos_say_what_to_install(place, weights, capsys, monkeypatch):
    make_clip(place / "clip.mp4", frames=2)
    photo().save("a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert run("a.png", "--weights", weights) == 0
    assert run("clip.mp4", "--weights", weights, "--output", "other") == 1
    err = capsys.readouterr().err
    assert 'pip install -e ".[demo]"' in err and len(err.splitlines()) == 1 and not (place / "other").exists()
