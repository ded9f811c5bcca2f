"""Matrix products of linear layers in float32 on a processor, by the faster of PyTorch's two libraries.

On AMD's processors with AVX-512, PyTorch's own choice (MKL) takes its kernels for AVX2; oneDNN, which PyTorch ships
too, multiplies more than twice as fast there (docs/benchmarks.md). Which is taken depends on the processor alone and
not on a clock, so that the same machine gives the same bits. A row of a product by oneDNN has the same bits whatever
rows stand beside it (if any do) and however many threads work.

Shapes: M rows, K units in, N units out.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from mallowspo.recompute import once


@functools.cache
def faster() -> bool:
    """Whether oneDNN is the faster library on this processor, and PyTorch has its product."""
    return (
        platform.system() == "Linux"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    )


def applies(*factors: Tensor) -> bool:
    """Whether `product` is oneDNN's for these: float32, on a processor where that is the faster one."""
    for factor in factors:  # no generator: a training asks thousands of times a step
        if factor.dtype != torch.float32 or not factor.is_cpu:
            return False
    return faster()


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias by the faster library: (M, K), (N, K), (N,) to (M, N); no gradient."""
    if applies(rows, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            _by_rows(rows), _dense(weight), bias, "none", [], ""
        )
        return result
    return torch.mm(rows, weight.T) if bias is None else torch.addmm(bias, rows, weight.T)


def _by_rows(matrix: Tensor) -> Tensor:
    """The matrix laid out row after row, as oneDNN takes the first factor; itself, if it is.

    A transposed one by a shuffle of channels, which transposes: PyTorch's copy takes four times as long.
    """
    if matrix.is_contiguous() or not matrix.T.is_contiguous():
        return matrix.contiguous()
    rows, columns = matrix.shape
    count = rows * columns
    # Channels of one point, in the strides of "channels last": the other order has a slow kernel.
    channels = matrix.as_strided((1, count, 1, 1), (count, 1, count, count))
    return torch.native_channel_shuffle(channels, columns).view(rows, columns)


def _dense(matrix: Tensor) -> Tensor:
    """The matrix by rows or by columns without gaps: with any other strides oneDNN is a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


class _LinearProduct(torch.autograd.Function):
    """`product`, which a layer that is computed again does not compute again, with its gradients: products as well."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return once(lambda: product(rows, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.T) if of_rows else None,
            product(gradient.T, rows.T) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K), (N, K), (N,) to (..., N)."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    if torch.is_grad_enabled():
        output: Tensor = _LinearProduct.apply(rows, weight, bias)
    else:
        output = once(lambda: product(rows, weight, bias))
    return output.view(*inputs.shape[:-1], output.shape[-1])


def _ours(inputs: Tensor, weight: Tensor) -> bool:
    """Float32 on a CPU, and no autocast."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class LinearProduct(nn.Linear):
    """nn.Linear by `product`, for float32 on a CPU; under autocast, and elsewhere, it is nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        return _linear(input, self.weight, self.bias) if _ours(input, self.weight) else super().forward(input)


class TransposedProduct(Conv1D):
    """The same of the layer that GPT-2 has in place of nn.Linear, with its weight the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight.T, self.bias) if _ours(x, self.weight) else super().forward(x)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LinearProduct, Conv1D: TransposedProduct}


def use(model: nn.Module) -> None:
    """Have a model's linear layers multiply by `product`.

    Only the class of the layers changes: their parameters and names stay, so does what is saved.
    """
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
