"""The memory of each kind of job, in bytes. Trainings by `mallowspo.memory_formula`, as the training itself plans it.

What is told here from a model's shape is what the body keeps of a token for the backward, where a training looks at
each tensor: `KEPT`, fitted to what autograd keeps of Llama and GPT-NeoX, and compared with it by a test. With adapters
on some of the layers alone it is a little less.
"""

from mallowspo.head_chunks import ROWS, WORDS, working_bytes
from mallowspo.memory_formula import (
    MEBIBYTE,
    PROCESS,
    USED,
    MemoryPlan,
    fit,
    fixed_bytes,
    recomputed_bytes,
    shared_out_bytes,
)
from mallowspo.plan.data import Pairs
from mallowspo.plan.hardware import Device
from mallowspo.plan.shapes import Shape
from mallowspo.settings import Experiment, LoraSettings

#: Bytes that a layer keeps of a token for each hidden unit, each of the attention's, each key-value one, and each
#: intermediate one (which are counted four times with a gate, twice without). "fused": `mallowspo.fused_layer`.
KEPT = {
    ("float32", "fused"): (9.7, 8, 8, 2),
    ("float32", "whole"): (25.8, 8, 8, 4),
    ("float32", "adapters"): (16.5, 8, 8, 4),
    ("float32", "no gate"): (21, 8, 8, 4),
    ("bfloat16", "fused"): (9.7, 8, 8, 1),
    ("bfloat16", "whole"): (27.8, 10, 8, 2),
    ("bfloat16", "adapters"): (18.5, 10, 8, 2),
    ("bfloat16", "no gate"): (9, 10, 8, 2),
}
#: A process with CUDA: its libraries, and memory that the driver pins.
CUDA_PROCESS = 4096 * MEBIBYTE
#: The driver's own share of a GPU's memory.
CUDA_CONTEXT = 1024 * MEBIBYTE
BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes of a weight that is held in four bits, with its share of its block's magnitude (`mallowspo.quantized`).
IN_FOUR_BITS = 1 / 2 + 4 / 64


def training_memory(
    experiment: Experiment, shape: Shape, pairs: Pairs, precision: str, budget: int, on_gpu: bool
) -> MemoryPlan:
    """Of one process of a training, as it will plan it itself within `budget` bytes."""
    training, compute = experiment.training, experiment.compute
    trained = 4 * (adapter_parameters(shape, training.lora) if training.lora else shape.parameters)
    outside = 4 * (shape.parameters - shape.body)
    body = round(IN_FOUR_BITS * shape.body) if experiment.model.quantized else 4 * shape.body
    weights = outside + body + (trained if training.lora else 0)
    fixed = fixed_bytes(weights, trained)
    if compute.sharded:
        fixed = shared_out_bytes(fixed, compute.processes, (weights - outside) // shape.layers, outside)
    fixed += 0 if on_gpu else PROCESS
    fused = shape.gated and shape.fused and not on_gpu
    whole = kept_of_a_token(shape, precision, "adapters" if training.lora else "fused" if fused else "whole")
    recomputed = recomputed_bytes(shape.layers, shape.hidden, whole)
    products_alone = not on_gpu and precision == "float32" and training.lora is None and not fused
    each = recomputed + products_of_a_token(shape) if products_alone else whole
    once = BYTES[precision] * shape.body if precision != "float32" and not experiment.model.quantized else 0
    head = working_bytes(shape.vocabulary, shape.hidden)
    tokens = pairs.largest_batch(training.tokens_per_batch, training.pairs_per_step)
    return fit(fixed, once, each, recomputed, head, tokens, budget)


def ample(experiment: Experiment, shape: Shape, pairs: Pairs, precision: str) -> int:
    """The least budget within which a training on a CPU computes nothing again."""
    plan = training_memory(experiment, shape, pairs, precision, 1 << 60, on_gpu=False)
    return round(plan.total / USED) + 1


def kept_of_a_token(shape: Shape, precision: str, kind: str) -> int:
    """Bytes that the body keeps of a token for its backward.

    Args:
        kind: fused, whole or adapters; one for all where the model has no gate.
    """
    hidden, attention, key_value, intermediate = KEPT[precision, kind if shape.gated else "no gate"]
    a_layer = (
        hidden * shape.hidden
        + attention * shape.attention_width
        + key_value * shape.key_value_heads * shape.head_size
        + intermediate * shape.intermediate * (4 if shape.gated else 2)
    )
    return round(shape.layers * a_layer)


def products_of_a_token(shape: Shape) -> int:
    """Bytes of its products and attentions in float32: queries, keys, values, what is attended to, and the attention's,
    the intermediate and the output product."""
    wide, narrow = shape.attention_width, shape.key_value_heads * shape.head_size
    units = 2 * wide + 2 * narrow + 2 * shape.hidden + (2 if shape.gated else 1) * shape.intermediate
    return 4 * shape.layers * units


def adapter_parameters(shape: Shape, lora: LoraSettings) -> int:
    """Of adapters on all linear layers, or on those that `target_modules` names among q, k, v, o, gate, up and down."""
    wide, narrow = shape.attention_width, shape.key_value_heads * shape.head_size
    hidden, inner = shape.hidden, shape.intermediate
    sides = {
        "q_proj": hidden + wide,
        "k_proj": hidden + narrow,
        "v_proj": hidden + narrow,
        "o_proj": hidden + wide,
        "up_proj": hidden + inner,
        "down_proj": hidden + inner,
    }
    if shape.gated:
        sides["gate_proj"] = hidden + inner
    named = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    known = [name for name in named if name in sides]
    return lora.rank * shape.layers * sum(sides[name] for name in (known or sides))


def scoring_memory(shape: Shape, precision: str, tokens_per_batch: int, on_gpu: bool) -> int:
    """Weights in float32 and in the products' precision, a tile of the head, and one layer of the largest batch."""
    weights = 4 * shape.parameters + (BYTES[precision] * shape.body if precision != "float32" else 0)
    head = 3 * 4 * min(WORDS, shape.vocabulary) * ROWS
    layer = 4 * tokens_per_batch * (4 * shape.hidden + 4 * shape.intermediate)
    return weights + head + layer + (0 if on_gpu else PROCESS)


def sampling_memory(shape: Shape, precision: str, answers: int, tokens: int, on_gpu: bool) -> int:
    """Weights in the products' precision, keys and values of a batch, and its law over the vocabulary in float64.

    Args:
        answers: sampled at a time.
        tokens: of the longest prompt with its answer.
    """
    width = BYTES[precision]
    cache = answers * tokens * shape.layers * 2 * shape.key_value_heads * shape.head_size * width
    law = answers * shape.vocabulary * (4 + 4 + 8)
    return width * shape.parameters + cache + law + (0 if on_gpu else PROCESS)


def processor_memory(shape: Shape, device: Device, of_a_process: int, processes: int = 1) -> int:
    """What a job asks the scheduler for: its own on a CPU; beside a GPU, the weights as each process reads them."""
    return processes * (CUDA_PROCESS + 4 * shape.parameters if device.is_gpu else of_a_process)
