"""Matrix products in float32 on a processor, by the faster of PyTorch's two libraries.

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
    """Whether `product` takes these: float32, on a processor where it is the faster one."""
    return faster() and all(factor.dtype == torch.float32 and factor.device.type == "cpu" for factor in factors)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias by oneDNN: (M, K), (N, K), (N,) to (M, N); float32 on a CPU; no gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(rows), _dense(weight), bias, "none", [], "")
    return result


def _dense(matrix: Tensor) -> Tensor:
    """The matrix by rows or by columns without gaps: with any other strides oneDNN is a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


class _LinearProduct(torch.autograd.Function):
    """`product` with its gradients, which are products as well."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

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


class LinearByOneDNN(nn.Linear):
    """nn.Linear whose float32 products on a CPU are oneDNN's; under autocast, and elsewhere, it is nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        rounded = torch.is_autocast_enabled(input.device.type)
        if rounded or input.device.type != "cpu" or input.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        if torch.is_grad_enabled():
            output: Tensor = _LinearProduct.apply(rows, self.weight, self.bias)
        else:
            output = product(rows, self.weight, self.bias)
        return output.view(*input.shape[:-1], output.shape[-1])


def use(model: nn.Module) -> None:
    """Have a model's linear layers multiply by oneDNN where it is the faster library; else leave them as they are.

    Only the class of the layers changes: their parameters and names stay, so does what is saved.
    """
    if not faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = LinearByOneDNN
