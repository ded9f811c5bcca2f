"""Policies whose linear layers are held in four bits while their adapters train (QLoRA, Dettmers et al., 2023).

Blocks of 64 weights are divided by their largest magnitude and rounded to one of 16 values (NF4), all but the output
head's. This happens once, in the stage "model", which writes the rounded weights as float32: the policy that every
stage reads is the same one, and so is the reference. Rounding rounded weights changes nothing, so a training holds
these very values in four bits. The magnitudes are kept as float32 for that (no double quantization).
"""

import importlib.util
from typing import Any

import torch
from torch import nn

from mallowspo.errors import InputError

#: Weights that share a magnitude.
BLOCK = 64


def check_installed() -> None:
    """Raises `InputError` where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.quantized needs bitsandbytes: pip install -c constraints.txt 'mallowspo[quantized]'")


def round_weights(model: nn.Module) -> None:
    """Round the weights of the linear layers to what four bits can hold; they stay float32.

    Raises:
        InputError: bitsandbytes is missing, or the model has no linear layers (GPT-2 has others).
    """
    check_installed()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    if not layers:
        raise InputError(f"model.quantized: {type(model).__name__} has no linear layers to round; remove it")
    with torch.no_grad():
        for layer in layers:
            codes, state = quantize_4bit(
                layer.weight.data, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
            )
            layer.weight.copy_(dequantize_4bit(codes, state))


def as_loaded(precision: str) -> Any:
    """What `from_pretrained` takes to hold the linear layers in four bits, for products in `precision`."""
    check_installed()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=getattr(torch, precision),
    )


def keep_differentiable(model: nn.Module) -> None:
    """On some processors bitsandbytes (0.50) packs the weights anew at the first forward without a gradient, and the
    backward is wrong from then on, with a warning alone: let it not."""
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def count(parameter: torch.Tensor) -> int:
    """Weights that a parameter holds; a byte of four-bit ones is two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
