"""Bilinear resizing: each kernel against the library whose numbers it gives, and against what stands in for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_bench.data import transforms as T
from maskrcnn_bench.data.float_resize import NormalizeAndInterpolate, NormalizeAndResize
from maskrcnn_bench.layers import _ops
from maskrcnn_bench.layers.resize import resize_fixed_point, resize_looked_up, resize_means

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIDE = st.integers(1, 90)


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Noise: every wrong neighbour shows."""
    return torch.randint(0, 256, (height, width, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(height * 91 + width))


def tables(length: int, source: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbours of a side and their weights or shares, of the kind that a resize of bytes or of numbers wants."""
    if dtype == torch.int32:
        return tuple(torch.from_numpy(table) for table in T._neighbours(length, source))
    return NormalizeAndResize._across(source, length / source)


def case(name: str) -> tuple:
    image = picture(30, 20)
    if name == "resize_means":
        return image, 45, 13
    dtype = torch.int32 if name == "resize_fixed_point" else torch.float32
    sides = (*tables(13, 20, dtype), *tables(45, 30, dtype))
    return (image, *sides) if dtype == torch.int32 else (image, torch.rand(3, 256), *sides)


NAMES = ["resize_means", "resize_fixed_point", "resize_looked_up"]


@settings(deadline=None, max_examples=150)
@given(SIDE, SIDE, st.integers(1, 150), st.integers(1, 150))
def test_means_are_pillows(height, width, new_height, new_width):
    """One axis at a time; and both wherever Pillow begins with the columns."""
    pixels = picture(height, width)
    image = Image.fromarray(pixels.numpy())
    for size in ((new_width, height), (width, new_height), (new_width, max(new_height, height))):
        assert np.array_equal(resize_means(pixels, size[1], size[0]).numpy(), np.asarray(image.resize(size, Image.BILINEAR)))


@settings(deadline=None, max_examples=80)
@given(SIDE, SIDE, st.integers(1, 150), st.integers(1, 150))
def test_pictures_come_out_as_from_pillow(height, width, new_height, new_width):
    image = Image.fromarray(picture(height, width).numpy())
    ours = T.resize_antialiased(image, (new_width, new_height))
    assert ours.mode == "RGB" and np.array_equal(np.asarray(ours), np.asarray(image.resize((new_width, new_height), Image.BILINEAR)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_other_pictures_are_left_to_pillow(mode):
    image = Image.fromarray(picture(20, 30).numpy()).convert(mode)
    assert np.array_equal(np.asarray(T.resize_antialiased(image, (45, 40))), np.asarray(image.resize((45, 40), Image.BILINEAR)))


@settings(deadline=None, max_examples=100)
@given(SIDE, SIDE, st.integers(1, 200), st.integers(20, 400))
def test_numbers_are_torchs(height, width, shorter, longest):
    """torchvision's order: pictures become normalised floats, then torch interpolates."""
    resize = NormalizeAndInterpolate(shorter, longest, MEAN, STD, bgr255=False)
    image = picture(height, width)
    normal = (image.permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    factor = resize.factor((width, height))
    if min(int(height * factor), int(width * factor)) < 1:
        return  # torch refuses; a pixel is left here
    theirs = F.interpolate(normal[None], scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=True)[0]
    ours, _ = resize(Image.fromarray(image.numpy()))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_gives_the_same(name):
    arguments = case(name)
    ours, other = getattr(torch.ops.maskrcnn_bench, name)(*arguments), list(_ops._replacements[name].values())[-1](*arguments)
    assert ours.dtype == other.dtype and ours.shape == other.shape
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_well_formed(name):
    torch.library.opcheck(getattr(torch.ops.maskrcnn_bench, name).default, case(name))


@pytest.mark.skipif(_ops.implementation("resize_means") != "csrc", reason="the kernels aren't compiled here")
def test_wrong_arguments_are_refused():
    image = picture(4, 5)
    columns, weights = tables(7, 5, torch.int32)
    with pytest.raises(ValueError, match="resize_means: expected a size above 0, got 0 x 7"):
        resize_means(image, 0, 7)
    with pytest.raises(ValueError, match="resize_means: image: expected Byte, got Float"):
        resize_means(image.float(), 3, 7)
    with pytest.raises(IndexError, match="resize_fixed_point: columns: expected 0 to 4, got 5"):
        resize_fixed_point(image, columns + 1, weights, columns[:, :3], weights[:, :3])
    with pytest.raises(ValueError, match=r"resize_looked_up: table: expected shape \[3, 256\]"):
        resize_looked_up(image, torch.zeros(1, 256), columns, weights[0].float(), columns[:, :3], weights[0, :3].float())
