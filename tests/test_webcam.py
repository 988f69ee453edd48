"""The window with a camera: its options, its keys, and cameras and windows that do not work. OpenCV is a stand-in."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from demo_models import photo, save_model

WINDOW_SHUT = 1000


class CvError(Exception):
    pass


class FakeOpenCV(types.ModuleType):
    """As much of cv2 as the program uses.

    Args:
        pictures: those that the camera gives; then it gives none.
        keys: pressed after each wait.
    """

    WND_PROP_VISIBLE = 4
    error = CvError

    def __init__(self, pictures=(), keys=(), present=True, window=True, shut_after=WINDOW_SHUT):
        super().__init__("cv2")
        self.pictures, self.keys, self.present, self.window, self.shut_after = list(pictures), list(keys), present, window, shut_after
        self.shown, self.opened, self.released, self.destroyed = [], [], 0, 0

    def VideoCapture(self, number):
        self.opened.append(number)
        return self

    def isOpened(self):
        return self.present

    def read(self):
        picture = self.pictures.pop(0) if self.pictures else None
        return picture is not None, picture

    def release(self):
        self.released += 1

    def imshow(self, name, image):
        if not self.window:
            raise CvError("OpenCV(5.0) window.cpp:1266: The function is not implemented\nRebuild the library")
        self.shown.append(image)

    def waitKey(self, milliseconds):
        assert milliseconds > 0, "0 would wait for a key for ever"
        return self.keys.pop(0) if self.keys else -1

    def getWindowProperty(self, name, what):
        return 0.0 if len(self.shown) >= self.shut_after else 1.0

    def destroyAllWindows(self):
        self.destroyed += 1
        if not self.window:
            raise CvError("not implemented")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def webcam(repository):
    spec = importlib.util.spec_from_file_location("webcam", repository / "demo" / "webcam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def opencv(monkeypatch):
    def install(*args, **kwargs):
        fake = FakeOpenCV(*args, **kwargs)
        monkeypatch.setitem(sys.modules, "cv2", fake)
        return fake

    return install


def frames(count, width=96, height=72):
    return [np.ascontiguousarray(np.asarray(photo(width, height, seed))[..., ::-1]) for seed in range(count)]


@pytest.mark.parametrize("key", [ord("q"), ord("Q"), 27, 27 + 256 * 16])
def test_shows_what_was_found_until_a_key_ends_it(webcam, opencv, weights, capsys, key):
    pictures = frames(5)
    fake = opencv(pictures, [-1, ord("x"), key])
    assert webcam.main(["--weights", weights, "--confidence-threshold", "0", "--camera", "2", "--min-image-size", "64"]) == 0
    assert fake.opened == [2] and len(fake.shown) == 3 and fake.released == fake.destroyed == 1
    for shown, picture in zip(fake.shown, frames(3)):
        assert shown.shape == picture.shape and shown.dtype == np.uint8 and (shown != picture).any(), "something is drawn"
    assert capsys.readouterr().out.startswith("3 pictures in ")


def test_closing_the_window_ends_it(webcam, opencv, weights):
    fake = opencv(frames(5), shut_after=2)
    assert webcam.main(["--weights", weights]) == 0 and len(fake.shown) == 2


def test_options_reach_the_model(webcam, opencv, weights, monkeypatch):
    made = []
    real = webcam.build_demo
    monkeypatch.setattr(webcam, "build_demo", lambda args: made.append(real(args)) or made[-1])
    words = [
        "--weights",
        weights,
        "--confidence-threshold",
        "0.3",
        "--min-image-size",
        "80",
        "--show-mask-heatmaps",
        "--masks-per-dim",
        "3",
    ]
    opencv(frames(2), [27])
    assert webcam.main([*words, "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "4"]) == 0
    (demo,) = made
    assert (demo.confidence_threshold, demo.min_image_size, demo.show_mask_heatmaps, demo.masks_per_dim) == (0.3, 80, True, 3)
    assert demo.cfg.MODEL.ROI_HEADS.DETECTIONS_PER_IMG == 4 and demo.masker.threshold == -1


def test_defaults_are_the_original_s(webcam):
    args = webcam._parser().parse_args([])
    assert (args.confidence_threshold, args.min_image_size, args.show_mask_heatmaps, args.masks_per_dim) == (0.7, 224, False, 2)
    assert (args.camera, args.opts) == (0, [])


def test_configuration_file_alone_takes_its_own_weights(webcam, opencv, weights, tmp_path, capsys):
    import torch

    (tmp_path / "c.yaml").write_text(torch.load(weights, weights_only=True)["config"])
    fake = opencv(frames(2), [27])
    assert webcam.main(["--config-file", str(tmp_path / "c.yaml"), "MODEL.WEIGHT", weights]) == 0 and len(fake.shown) == 1


def test_camera_that_wakes_up_slowly(webcam, opencv, weights):
    fake = opencv([None] * (webcam.PATIENCE - 1) + frames(2), [-1] * webcam.PATIENCE + [27])
    assert webcam.main(["--weights", weights]) == 0 and len(fake.shown) == 2


def fails(webcam, capsys, message, *words):
    assert webcam.main(list(words)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_absent_camera_is_told_before_the_model_is_loaded(webcam, opencv, capsys, monkeypatch):
    fake = opencv(present=False)
    monkeypatch.setattr(webcam, "build_demo", lambda args: pytest.fail("the model is not needed"))
    fails(webcam, capsys, "camera 7 cannot be opened; is it plugged in", "--camera", "7")
    assert fake.released


def test_camera_that_vanishes(webcam, opencv, weights, capsys):
    fake = opencv(frames(2))
    fails(webcam, capsys, "camera 0 gives no more pictures, after 2; was it unplugged", "--weights", weights)
    assert fake.released == fake.destroyed == 1


def test_opencv_without_windows(webcam, opencv, weights, capsys):
    opencv(frames(2), window=False)
    fails(webcam, capsys, "demo --serve", "--weights", weights)


def test_opencv_that_is_missing(webcam, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    fails(webcam, capsys, 'pip install -e ".[demo]"')


def test_weights_that_are_missing(webcam, opencv, capsys):
    fake = opencv(frames(1))
    fails(webcam, capsys, "nowhere.pth does not exist", "--weights", "nowhere.pth")
    assert fake.released == 1, "the camera's light goes out"


def test_ctrl_c(webcam, opencv, weights, monkeypatch):
    fake = opencv(frames(2))
    fake.waitKey = lambda milliseconds: (_ for _ in ()).throw(KeyboardInterrupt())
    assert webcam.main(["--weights", weights]) == 130 and fake.released == 1
