"""Floating-point operations of matrix products, and how many of them this machine does a second at most.

Counted as PyTorch counts them: 2 m n k a product, attention in full even where half is masked. All else (norms,
softmax, the optimizer) is not counted; both sides of a comparison are counted alike.
"""

import time
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mallowspo.products import applies, product

Shape = torch.Size


def attention_operations(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Of the processor's attention kernel: scores, and their product with the values. Shapes (batch, heads, T, D)."""
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])


def attention_backward_operations(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores once more, and the gradients of scores, values, queries and keys."""
    return 2 * prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])


def product_operations(rows: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of a product by oneDNN (`mallowspo.products`). Shapes (M, K) and (N, K)."""
    return 2 * prod(rows) * weight[0]


def counting() -> FlopCounterMode:
    """PyTorch's counter with two of the processor's kernels, which it leaves out: attention (it knows those of GPUs),
    and the product by oneDNN."""
    kernels = torch.ops.aten
    mapping: dict[Any, Any] = {
        kernels._scaled_dot_product_flash_attention_for_cpu: attention_operations,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_operations,
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        mapping[torch.ops.mkldnn._linear_pointwise] = product_operations
    return FlopCounterMode(display=False, custom_mapping=mapping)


def measure_matmul(spec: dict[str, Any]) -> dict[str, Any]:
    """The best rate of a large matrix product on this machine now, by the library that our products take.

    Args:
        spec: device, dtype, and size, the side of the square matrices.

    Returns:
        gflops: thousand million operations a second, best of as many products as fit into two seconds.
    """
    device, size = spec["device"], spec["size"]
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, spec["dtype"])) for _ in range(2))
    multiply = product if applies(left, right) else torch.matmul
    multiply(left, right)
    best, ends = float("inf"), time.perf_counter() + 2
    while time.perf_counter() < ends:
        _synchronize(device)
        started = time.perf_counter()
        multiply(left, right)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return {"gflops": 2 * size**3 / best / 1e9}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
