"""torchvision's R-CNNs and RetinaNets beside ours: the same random weights, the same photographs, the same numbers."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision_peers import BACKBONES, LOSSES, as_tensor, objects, our_model, partners, peer_model, photographs

from maskrcnn_bench.config import load_config
from maskrcnn_bench.data.build import make_transforms
from maskrcnn_bench.structures.bounding_box import BoxList
from maskrcnn_bench.structures.image_list import to_image_list
from maskrcnn_bench.structures.segmentation_mask import SegmentationMask
from maskrcnn_bench.utils.counter import CounterRandom
from maskrcnn_bench.weights import to_torchvision

CONFIG = "configs/torchvision/{}.yaml"
HEIGHT, WIDTH = 128, 160
FAST = ("fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2")
MODELS = [name if name in FAST else pytest.param(name, marks=pytest.mark.full) for name in BACKBONES]


@pytest.fixture(params=MODELS, scope="module")
def pair(request, shared_dir):
    images = [as_tensor(picture) for picture in photographs(shared_dir, 2, (WIDTH, HEIGHT))]
    peer = peer_model(request.param, images, HEIGHT, WIDTH)
    return request.param, our_model(request.param, peer), peer, images


def test_anchors_are_the_same(pair):
    """The coarsest levels of 160 pixels have 3 and 2 columns, which torchvision puts 53 and 80 pixels apart."""
    _, ours, peer, images = pair
    with torch.no_grad():
        batch = peer.transform([images[0] / 255])[0]
        features = list(peer.backbone(batch.tensors).values())
        theirs = getattr(peer, "rpn", peer).anchor_generator(batch, features)[0]
    torch.testing.assert_close(torch.cat(ours.rpn.anchor_generator(features)), theirs)


def largest_differences(mine, theirs):
    """{what: the largest difference over matched detections}, and the share of those that match none.

    Rounding may turn an overlap in a suppression to the other side of its threshold, and other boxes stay.
    """
    assert abs(len(mine) - len(theirs["boxes"])) <= 1 and len(mine) >= 5
    inds, found = partners(mine, theirs)
    mine, theirs = mine[inds[found]], {key: value[found] for key, value in theirs.items()}
    out = {"without partner": (~found).float().mean().item()}
    out["score"] = (mine.get_field("scores") - theirs["scores"]).abs().max().item()
    out["box"] = (mine.bbox - theirs["boxes"]).abs().max().item()
    if "masks" in theirs:
        out["mask"] = (mine.get_field("mask") - theirs["masks"]).abs().max().item()
    if "keypoints" in theirs:
        points = mine.get_field("keypoints")
        distance = (points.keypoints - theirs["keypoints"]).abs().amax(dim=-1)
        out["keypoints elsewhere"] = (distance > 0.01).float().mean().item()  # two cells of a map may be equally large
        out["keypoint score"] = (points.get_field("logits") - theirs["keypoints_scores"]).abs().max().item()
    return out


LIMITS = {"without partner": 0.1, "score": 1e-4, "box": 0.05, "mask": 1e-3, "keypoints elsewhere": 0.01, "keypoint score": 1e-2}


def compare_detections(ours, peer, my_image, their_image):
    with torch.no_grad():  # one image alone, as exchanges of neighbours in score are few then
        out = largest_differences(ours([my_image])[0], peer([their_image])[0])
    assert all(value <= LIMITS[what] for what, value in out.items()), out
    return out


def test_detections_are_the_same(pair):
    _, ours, peer, images = pair
    for image in images:
        print(pair[0], compare_detections(ours, peer, image, image / 255))


def test_losses_and_gradients_are_the_same(pair):
    name, ours, peer, images = pair
    theirs, mine = objects(2, 2 if "keypoint" in name else 91, (WIDTH, HEIGHT))
    for model in (ours, peer):
        model.train()
        model.backbone.body.eval()  # rounding grows through fifty norms that follow the batch; those of the other parts do
    my_losses, their_losses = ours(images, mine), peer([image / 255 for image in images], theirs)
    for key, value in their_losses.items():
        torch.testing.assert_close(my_losses[LOSSES.get(key, key)], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    sum(my_losses.values()).backward()
    sum(their_losses.values()).backward()
    gradients = {n: p.grad for n, p in peer.named_parameters() if p.grad is not None}
    mine = dict(ours.named_parameters())
    named = to_torchvision({n: mine[n].grad if n in mine else None for n in ours.state_dict()})
    named = {n: gradient for n, gradient in named.items() if gradient is not None}
    ours.zero_grad()
    ours.eval()
    peer.eval()
    assert set(named) == set(gradients)
    norm, their_norm = (torch.stack([g.norm() for g in side.values()]).norm().item() for side in (named, gradients))
    least = 1e-4 * torch.stack([g.norm() for g in gradients.values()]).max()
    differences = {key: ((named[key] - value).norm() / value.norm().clamp(min=least)).item() for key, value in gradients.items()}
    worst = max(differences, key=differences.get)
    loss = max(((my_losses[LOSSES.get(k, k)] - v).abs() / v.abs()).item() for k, v in their_losses.items())
    print(name, "loss", loss, "norm of the gradient", abs(norm / their_norm - 1), "gradient", worst, differences[worst])
    assert norm == pytest.approx(their_norm, rel=1e-4)
    # One ReLU that rounding switches on or off shows in the layers before it.
    assert differences[worst] < 2e-2, f"{worst}: {differences[worst]}"


@pytest.mark.parametrize(
    ("size", "shorter", "longer", "expected"),
    [
        ((640, 480), 800, 1333, (1066, 800)),
        ((500, 375), 800, 1333, (1066, 800)),
        ((640, 199), 800, 1333, (1333, 414)),  # the longer side's limit
        ((341, 512), 500, 1333, (500, 750)),
        ((612, 612), 79, 1333, (79, 79)),
        ((300, 900), 320, 640, (213, 640)),
        ((97, 194), 800, 2000, (799, 1599)),  # 97 * (800 / 97) is less than 800
        ((1600, 1200), 320, 640, (426, 320)),  # shrinking, between four pixels only
    ],
)
def test_images_become_the_same_numbers(size, shorter, longer, expected):
    transform = GeneralizedRCNNTransform(shorter, longer, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, 5.0, 40.5, 31.25]])
    theirs, (their_target,) = transform([pixels.permute(2, 0, 1) / 255], [{"boxes": boxes}])
    config = load_config(
        CONFIG.format("fasterrcnn_resnet50_fpn"), ["INPUT.MIN_SIZE_TEST", str(shorter), "INPUT.MAX_SIZE_TEST", str(longer)]
    )
    image, target = make_transforms(config, is_train=False)(Image.fromarray(pixels.numpy()), BoxList(boxes, size, pixel=0))
    assert target.size == (image.shape[2], image.shape[1]) == expected
    torch.testing.assert_close(to_image_list([image], 32).tensors, theirs.tensors, rtol=0, atol=1e-5)
    torch.testing.assert_close(target.bbox, their_target["boxes"])


def test_training_mirrors_before_it_resizes():
    """As torchvision's recipe does; numbers of 8 bits would have been rounded, and jitter of scales stays a picture's."""
    config = load_config(
        CONFIG.format("maskrcnn_resnet50_fpn"), ["INPUT.HORIZONTAL_FLIP_PROB_TRAIN", "1.0", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    )
    picture = Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy())
    target = BoxList([[4.0, 6, 30, 40]], picture.size, pixel=0)
    target.add_field("masks", SegmentationMask([[[4.0, 6, 30, 6, 30, 40, 4, 40]]], picture.size))
    image, found = make_transforms(config)(picture, target, CounterRandom(5))
    turned = make_transforms(config, is_train=False).transforms[0]
    turned.min_size = (96,)
    torch.testing.assert_close(image, turned(picture.transpose(Image.FLIP_LEFT_RIGHT))[0])
    assert image.dtype == torch.float32 and found.bbox.tolist() == [[68.0, 12.0, 120.0, 80.0]]
    assert found.get_field("masks").get_mask_tensor().sum() == 52 * 68
    jitter = load_config(CONFIG.format("maskrcnn_resnet50_fpn_v2"), ["INPUT.MAX_SIZE_TRAIN", "80"])
    image, found = make_transforms(jitter)(picture, target, CounterRandom(7))
    assert image.dtype == torch.uint8 and max(image.shape[1:]) <= 80


SIDES = {"fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640)}


@pytest.mark.full
@pytest.mark.parametrize("name", BACKBONES)
def test_detections_on_twenty_photographs_are_the_same(name, shared_dir):
    """From the picture to the last number, with as many proposals and detections as the shipped configuration has; 256 pixels and more."""
    pictures = photographs(shared_dir, 20)
    images = [as_tensor(picture) for picture in pictures]
    shorter, longer = SIDES.get(name, (256, 427))
    peer = peer_model(name, images, shorter, longer, settings=())
    ours = our_model(name, peer, settings=())
    sizes = ["INPUT.MIN_SIZE_TEST", str(shorter), "INPUT.MAX_SIZE_TEST", str(longer)]
    transform = make_transforms(load_config(CONFIG.format(name), sizes), is_train=False)
    worst = {}
    for picture, image in zip(pictures, images, strict=True):
        mine, target = transform(picture, BoxList([], picture.size, pixel=0))
        torch.testing.assert_close(
            mine, peer.transform([image / 255])[0].tensors[0, :, : mine.shape[1], : mine.shape[2]], rtol=0, atol=1e-5
        )
        for what, value in compare_detections(ours, peer, mine, image / 255).items():
            worst[what] = max(value, worst.get(what, 0.0))
    print(name, worst)
