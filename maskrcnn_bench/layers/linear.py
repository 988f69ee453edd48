"""Fully connected layers whose large float32 products on a CPU are oneDNN's.

torch gives such products to MKL, which runs at half of the speed of oneDNN where the processor is not Intel's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Below so many multiplications, rearranging the weights costs what the product saves.
LEAST_PRODUCTS = 1 << 26


class Linear(nn.Linear):
    """torch's layer: the same names and, up to rounding, the same numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, C] to [R, O]"""
        return _OneDNNLinear.apply(input, self.weight, self.bias) if self._is_large(input) else super().forward(input)

    def _is_large(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling():
            return False  # the compiler chooses for itself
        exact = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return exact and x.dim() == 2 and x.shape[0] * self.weight.numel() >= LEAST_PRODUCTS and _has_onednn()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (
            _multiply(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            _multiply(grad.t(), x.t()) if ctx.needs_input_grad[1] else None,
            grad.sum(dim=0) if ctx.has_bias and ctx.needs_input_grad[2] else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias. [R, C], [O, C], [O] -> [R, O]"""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")
