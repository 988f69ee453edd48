"""Fully connected layers: large products by oneDNN against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskrcnn_bench.layers import linear as page
from maskrcnn_bench.layers.linear import LEAST_PRODUCTS, Linear

LARGE = (96, 1024, 768)  # rows, channels in and out
needs_onednn = pytest.mark.skipif(not page._has_onednn(), reason="torch without oneDNN")


@pytest.fixture
def products(monkeypatch):
    """The shapes of what oneDNN multiplies."""
    shapes = []
    multiply = page._multiply
    monkeypatch.setattr(page, "_multiply", lambda x, w, *bias: shapes.append((*x.shape, w.shape[0])) or multiply(x, w, *bias))
    return shapes


def values_and_gradients(run, *tensors):
    out = run(*tensors)
    return [out, *torch.autograd.grad((out * torch.arange(out.shape[1])).sum(), [tensor for tensor in tensors if tensor is not None])]


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_torchs(products, with_bias, transposed):
    rows, channels, outputs = LARGE
    assert rows * channels * outputs >= LEAST_PRODUCTS
    torch.manual_seed(0)
    layer = Linear(channels, outputs, bias=with_bias)
    x = (torch.randn(channels, rows).t() if transposed else torch.randn(rows, channels)).requires_grad_()
    tensors = [x, *layer.parameters()]
    ours = values_and_gradients(lambda x, *parameters: layer(x), *tensors)
    theirs = values_and_gradients(F.linear, *[tensor.detach().double().requires_grad_() for tensor in tensors])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    assert products == [(rows, channels, outputs), (rows, outputs, channels), (outputs, rows, channels)]


def test_small_products_other_types_and_autocast_are_left_to_torch(products):
    rows, channels, outputs = LARGE
    layer, x = Linear(channels, outputs), torch.randn(rows, channels)
    small = Linear(8, 4)
    assert torch.equal(small(x[:, :8]), F.linear(x[:, :8], small.weight, small.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert products == []


@needs_onednn
def test_frozen_weights_have_no_gradient(products):
    rows, channels, outputs = LARGE
    layer = Linear(channels, outputs).requires_grad_(False)
    x = torch.randn(rows, channels, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and len(products) == 2


@needs_onednn
def test_compiles_into_one_graph():
    rows, channels, outputs = LARGE
    layer, x = Linear(channels, outputs), torch.randn(rows, channels)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
