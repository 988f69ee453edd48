"""COCODemo: images in any form, the original's methods, names and configuration from the checkpoint."""

import importlib.util
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from demo_models import NAMES, SMALL, photo, save_model
from models import narrow_config, narrow_model
from PIL import Image

from maskrcnn_bench.demo import COCODemo, draw
from maskrcnn_bench.demo.images import as_picture
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.boxlist_ops import boxlist_iou
from maskrcnn_bench.structures.mask_paste import Masker


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def demo(weights):
    return COCODemo.from_weights(weights, confidence_threshold=0.0)


def bgr(picture):
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def same(a: BoxList, b: BoxList, tolerance=0.0):
    assert a.size == b.size and a.fields() == b.fields() and len(a) == len(b) > 0
    torch.testing.assert_close(a.bbox, b.bbox, rtol=0, atol=tolerance)
    for name in a.fields():
        torch.testing.assert_close(a.get_field(name), b.get_field(name), rtol=0, atol=tolerance)


# what goes in


def test_every_form_of_an_image_gives_the_same_detections(demo, tmp_path):
    picture = photo()
    picture.save(tmp_path / "a.png")
    rgb = np.asarray(picture)
    tensor = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    expected = next(demo.predict(picture))
    forms = [bgr(picture), tensor, tensor.float() / 255, str(tmp_path / "a.png"), tmp_path / "a.png", bgr(picture).astype(np.uint16) * 257]
    for boxlist in itertools.chain(demo.predict(forms, batch_size=1), demo.predict([rgb], channels="RGB")):
        same(boxlist, expected)


def test_grey_and_opacity_are_understood():
    rgb = np.asarray(photo())
    grey, opaque = rgb[..., 0], np.dstack([rgb[..., ::-1], rgb[..., 0]])
    assert (np.asarray(as_picture(grey)) == grey[..., None]).all()
    assert (np.asarray(as_picture(grey[..., None])) == grey[..., None]).all()
    assert (np.asarray(as_picture(torch.from_numpy(grey.copy())[None])) == grey[..., None]).all()
    assert (np.asarray(as_picture(opaque)) == rgb).all()


@pytest.mark.parametrize(
    "wrong,message",
    [
        (np.zeros((5, 4, 2), np.uint8), r"\[H, W, 3\].*\[5, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.full((5, 4, 3), 300.0), "float64 from 300 to 300"),
        (np.full((5, 4, 3), np.nan), "float64 from nan"),
        (torch.zeros(5, 4, 3), r"\[3, H, W\], got \[5, 4, 3\]"),
        (torch.zeros(3, 4, 3, dtype=torch.int64), "uint8.*int64"),
    ],
)
def test_other_arrays_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        as_picture(wrong)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="a path, a PIL image.*got dict"):
        as_picture({})
    with pytest.raises(ValueError, match="'BGR' or 'RGB', got 'GBR'"):
        as_picture(np.zeros((5, 4, 3), np.uint8), "GBR")


def test_batches_answer_in_order_and_as_single_images_do(demo):
    sizes = [(80, 64), (64, 80), (80, 64), (200, 64), (64, 80), (81, 64), (3, 2)]
    pictures = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    together = list(demo.predict(pictures, batch_size=5))
    assert [boxlist.size for boxlist in together] == sizes
    for picture, boxlist in zip(pictures, together, strict=True):
        same(boxlist, next(demo.predict([picture], batch_size=1)), tolerance=1e-3)


def test_prediction_streams(demo):
    taken = itertools.count()
    endless = (photo(seed=next(taken)) for _ in itertools.repeat(None))
    stream = demo.predict(endless, batch_size=2)
    for _ in range(3):
        next(stream)
    assert next(taken) == 4, "two batches of two images were read, no more"


def test_folder_is_read_by_number(demo, tmp_path):
    for width, name in ((50, "10.png"), (40, "9.png"), (60, "10_det.jpg")):
        photo(width, 40).save(tmp_path / name)
    assert [boxlist.size for boxlist in demo.predict(tmp_path)] == [(40, 40), (50, 40)]


def test_shorter_side_is_as_asked_for(weights):
    cfg = narrow_config("mask_fpn", *SMALL, "INPUT.MAX_SIZE_TEST", 500)
    demo = COCODemo(cfg, weight_loading=weights)
    assert demo.min_image_size == 224 and demo.confidence_threshold == 0.7
    tensor, _ = demo.transforms(photo(100, 80))
    assert tensor.shape == (3, 224, 280) and tensor.dtype == torch.uint8


# the original's methods


def test_prediction_has_pasted_masks_in_pixels_of_the_image(demo):
    picture = photo(120, 90)
    predictions, raw = demo.compute_prediction(bgr(picture)), next(demo.predict(picture))
    assert predictions.size == (120, 90)
    pasted = predictions.get_field("mask")
    assert pasted.shape == (len(raw), 1, 90, 120) and pasted.dtype == torch.uint8
    assert (pasted == Masker(0.5, padding=1)([raw.get_field("mask")], [raw])[0]).all()


def test_boxes_come_back_to_the_original_image(demo):
    small, large = photo(40, 32), photo(40, 32).resize((320, 256), Image.NEAREST)
    assert next(demo.predict(large)).bbox.max() > 100 > next(demo.predict(small)).bbox.max()


def test_top_predictions_are_above_the_threshold_and_sorted(demo):
    boxlist = BoxList(torch.arange(16.0).reshape(4, 4), (50, 50))
    boxlist.add_field("scores", torch.tensor([0.2, 0.9, 0.0, 0.5]))
    assert demo.select_top_predictions(boxlist).get_field("scores").tolist() == pytest.approx([0.9, 0.5, 0.2])


def test_run_on_opencv_image_draws_what_was_found(demo):
    picture = photo(240, 180)
    image = bgr(picture)
    before = image.copy()
    result = demo.run_on_opencv_image(image)
    assert result.shape == image.shape and result.dtype == np.uint8 and (image == before).all()
    expected = draw.draw_detections(picture, demo.select_top_predictions(next(demo.predict(picture))), NAMES)
    assert (result == bgr(expected)).all()
    assert (result != image).any(axis=2).mean() > 0.05


def test_overlays_take_and_give_images_of_opencv(demo):
    image = bgr(photo(240, 180))
    predictions = demo.select_top_predictions(demo.compute_prediction(image))
    for overlay in (demo.overlay_boxes, demo.overlay_mask, demo.overlay_class_names):
        drawn = overlay(image, predictions)
        assert drawn.shape == image.shape and (drawn != image).any()
    assert (demo.overlay_keypoints(image, predictions) == image).all(), "this model has no keypoints"
    color = demo.compute_colors_for_labels(predictions.get_field("labels")[:1])[0]
    assert (demo.overlay_boxes(image, predictions[:1]) == color).all(axis=2).any(), "colours are blue, green, red as the image"


def test_subclass_sees_each_step(weights):
    class Quiet(COCODemo):
        CATEGORIES = ("nothing", "thing")

        def overlay_class_names(self, image, predictions):
            return np.zeros_like(image)

    quiet = Quiet.from_weights(weights, confidence_threshold=0.0)
    assert not quiet.run_on_opencv_image(bgr(photo())).any()
    assert quiet.CATEGORIES == ("nothing", "thing"), "names of one's own stay"


def test_montage_shows_the_first_masks(weights):
    demo = COCODemo(narrow_config("mask_fpn", *SMALL), 0.0, show_mask_heatmaps=True, masks_per_dim=2, weight_loading=weights)
    montage = demo.run_on_opencv_image(bgr(photo(121, 91)))
    assert montage.shape == (90, 120, 3)
    predictions = demo.select_top_predictions(demo.compute_prediction(bgr(photo(121, 91))))
    assert predictions.get_field("mask").max() > 1, "masks stay soft for heat maps"
    brightness = demo.create_mask_montage(np.zeros((91, 121, 3), np.uint8), predictions[:1]).sum(axis=2)
    assert brightness[:45, :60].max() > brightness.min() and len(np.unique(brightness[45:])) == 1, "one mask, three empty places"


def test_montage_needs_masks(demo):
    boxlist = next(demo.predict(photo())).copy_with_fields(["scores", "labels"])
    with pytest.raises(ValueError, match="MODEL.MASK_ON"):
        demo.create_mask_montage(np.zeros((9, 9, 3), np.uint8), boxlist)


def test_model_without_masks(tmp_path):
    demo = COCODemo.from_weights(save_model(tmp_path, "faster_fpn"), confidence_threshold=0.0)
    predictions = demo.compute_prediction(photo())
    assert sorted(predictions.fields()) == ["labels", "scores"] and demo.run_lengths(predictions) is None
    assert demo.run_on_opencv_image(photo(100, 80)).shape == (80, 100, 3)


# weights, names, configuration


def test_checkpoint_takes_its_names_and_configuration_along(weights, tmp_path):
    moved = tmp_path / "elsewhere.pth"
    shutil.copyfile(weights, moved)
    demo = COCODemo.from_weights(moved, confidence_threshold=0.25)
    assert demo.CATEGORIES == NAMES and demo.confidence_threshold == 0.25
    assert demo.cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES == 5 and demo.min_image_size == 64
    assert demo.cfg.MODEL.DEVICE == "auto", "the device was that of the training"
    assert len(COCODemo.CATEGORIES) == 81 and COCODemo.CATEGORIES[1] == "person", "other demos keep COCO's names"


def test_overrides_win_over_the_checkpoint(weights):
    demo = COCODemo.from_weights(weights, opts=["INPUT.MIN_SIZE_TEST", "32", "MODEL.DEVICE=cpu"])
    assert demo.min_image_size == 32 and demo.device.type == "cpu"


def test_classes_compete_where_asked(weights):
    picture = photo(80, 64)
    (usual,) = COCODemo.from_weights(weights).detect([picture])
    (found,) = COCODemo.from_weights(weights, opts=["TEST.CLASS_AGNOSTIC_NMS", "0.1"]).detect([picture])
    assert len(found) < len(usual)
    assert boxlist_iou(found, found).fill_diagonal_(0).max() <= 0.1


def test_sources_of_coloured_pictures_need_a_model_of_them(demo, monkeypatch):
    demo.require_colours("the page")
    monkeypatch.setattr(demo, "cfg", narrow_config("mask_fpn", "INPUT.CHANNELS", 5))
    with pytest.raises(ValueError, match="the page gives pictures in colours, but this model takes images with INPUT.CHANNELS 5"):
        demo.require_colours("the page")


def test_averaged_weights_are_the_ones_used(tmp_path):
    model = narrow_model("mask_fpn", *SMALL, seed=3)
    demo = COCODemo.from_weights(save_model(tmp_path, ema=model.state_dict()))
    torch.testing.assert_close(demo.model.state_dict()["rpn.head.conv.weight"], model.state_dict()["rpn.head.conv.weight"])


def test_weights_alone_need_a_configuration_and_have_no_names(tmp_path):
    torch.save(narrow_model("mask_fpn", *SMALL).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="plain.pth does not say which model.*--config-file"):
        COCODemo.from_weights(tmp_path / "plain.pth")
    (tmp_path / "config.yml").write_text(narrow_config("mask_fpn", *SMALL).dump())
    demo = COCODemo.from_weights(tmp_path / "plain.pth")
    assert demo.CATEGORIES == ("__background__", "class 1", "class 2", "class 3", "class 4"), "they are not COCO's classes"


def test_no_pictures_have_no_detections(demo):
    assert demo.detect([]) == [] and list(demo.predict([])) == []
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        list(demo.predict([photo()], batch_size=0))


def test_labels_that_the_data_did_not_name_have_numbers(tmp_path):
    demo = COCODemo.from_weights(save_model(tmp_path, names=("__background__", "cat")))
    assert demo.CATEGORIES == ("__background__", "cat", "class 2", "class 3", "class 4")


@pytest.mark.parametrize("count", [81, 91])
def test_weights_without_names_and_with_the_classes_of_coco(shared_dir, tmp_path, count):
    origin = json.loads((shared_dir / "data/coco_mini/annotations/instances_val.json").read_text())["categories"]
    wanted = [(number if count == 81 else entry["id"], entry["name"]) for number, entry in enumerate(origin, 1)]
    size = ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", count]
    torch.save(narrow_model("faster_fpn", *SMALL, *size).state_dict(), tmp_path / "plain.pth")
    demo = COCODemo(narrow_config("faster_fpn", *SMALL, *size), weight_loading=tmp_path / "plain.pth")
    assert len(demo.CATEGORIES) == count and demo.CATEGORIES[0] == "__background__"
    assert len(wanted) == 80 and [(label, demo.CATEGORIES[label]) for label, _ in wanted] == wanted


def test_configuration_file_takes_the_number_of_classes_from_the_checkpoint(weights, tmp_path):
    text = narrow_config("mask_fpn", *SMALL).dump()
    assert "    NUM_CLASSES: 5\n" in text
    (tmp_path / "own.yaml").write_text(text.replace("    NUM_CLASSES: 5\n", ""))
    demo = COCODemo.from_weights(weights, str(tmp_path / "own.yaml"))
    assert demo.cfg.MODEL.ROI_BOX_HEAD.NUM_CLASSES == 5
    with pytest.raises(ValueError, match="does not hold all of the model"):
        COCODemo.from_weights(weights, str(tmp_path / "own.yaml"), ["MODEL.ROI_BOX_HEAD.NUM_CLASSES", "7"])


def test_weights_of_a_backbone_are_not_enough(tmp_path):
    state = narrow_model("mask_fpn", *SMALL).state_dict()
    torch.save({k: v for k, v in state.items() if "roi_heads.mask" not in k}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="(?s)part.pth does not hold all.*roi_heads.mask"):
        COCODemo(narrow_config("mask_fpn", *SMALL), weight_loading=tmp_path / "part.pth")


def test_output_folder_stands_for_its_last_checkpoint(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder without last_checkpoint"):
        COCODemo.from_weights(tmp_path)
    shutil.copyfile(weights, tmp_path / "model_0000010.pth")
    (tmp_path / "last_checkpoint").write_text("moved/away/model_0000010.pth")
    assert COCODemo.from_weights(tmp_path).CATEGORIES == NAMES


def test_model_without_weights_says_so(caplog):
    COCODemo(narrow_config("mask_fpn", *SMALL, "MODEL.WEIGHT", ""))
    assert "random numbers" in caplog.text


def test_model_of_proposals_has_nothing_to_show():
    with pytest.raises(ValueError, match="MODEL.RPN_ONLY"):
        COCODemo(narrow_config("rpn_fpn", *SMALL))


def test_masks_follow_the_rules_of_the_configuration(tmp_path):
    demo = COCODemo.from_weights(save_model(tmp_path, "d2_mask_fpn"), confidence_threshold=0.0)
    assert demo.mask_rule == "pixel_centres" and demo.transforms.transforms[0].rounding == "round"
    boxlist = next(demo.predict(photo(333, 250)))
    assert boxlist.pixel == 0 and boxlist.bbox[:, 2].max() <= 333


def test_old_path_gives_the_same_class(repository):
    spec = importlib.util.spec_from_file_location("old_predictor", repository / "demo" / "predictor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.COCODemo is COCODemo


def test_package_has_no_other_names():
    import maskrcnn_bench.demo as package

    assert package.draw_detections is draw.draw_detections
    with pytest.raises(AttributeError, match="has no attribute 'Webcam'"):
        package.Webcam  # noqa: B018
