"""A whole layer of the Llama family as one function, with its backward, for packed rows on a CPU.

Autograd keeps what each operation of a layer reads, and runs Python for each. This keeps what a backward needs and
cannot get cheaply: products and attentions. Norms and activations it computes again, inside that backward.

Shapes: P places of the packed sequence, D hidden units, H heads of queries and G of keys and values with E units each,
I intermediate units. Of a place, 4 (2 D + 2 H E + 2 G E) bytes are kept a layer, and 8 I in float32, 4 I in bfloat16.

The residual stream, norms and attention are float32 always; products are in bfloat16 under autocast, as there. The
forward has the bits of the layer that transformers has, so a policy with adapters begins as its reference.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from mallowspo import segment_attention
from mallowspo.products import LinearProduct, product
from mallowspo.segment_attention import SegmentMasks

#: Layers that compute what `_Layer` does; `mallowspo.scoring.Scorer` compares, too.
FUSED = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")


class _Plan(NamedTuple):
    """What is no tensor."""

    dtype: torch.dtype  # of the products
    epsilons: tuple[float, float]
    scaling: float
    masks: SegmentMasks


class _Linear(NamedTuple):
    weight: Tensor  # (units out, units in)
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        return product(rows, self.weight, self.bias)

    def backward(self, gradient: Tensor) -> Tensor:
        """Of its rows, float32."""
        return product(gradient, self.weight.T).float()


class _Normalised(NamedTuple):
    """Rows of root mean square 1, times a weight."""

    rows: Tensor  # (P, D) of root mean square 1
    inverse: Tensor  # (P, 1) of what they were before
    weight: Tensor  # (D,)

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor, epsilon: float) -> "_Normalised":
        return cls.again(rows, weight, torch.rsqrt(rows.pow(2).mean(dim=-1, keepdim=True) + epsilon))

    @classmethod
    def again(cls, rows: Tensor, weight: Tensor, inverse: Tensor) -> "_Normalised":
        """With the inverse that `of` found."""
        return cls(rows * inverse, inverse, weight)

    @property
    def weighted(self) -> Tensor:
        return self.rows * self.weight

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the rows before and of the weight; overwrites `gradient`."""
        of_weight = (gradient * self.rows).sum(dim=0)
        of_rows = gradient.mul_(self.weight)
        along = (of_rows * self.rows).mean(dim=-1, keepdim=True)
        return of_rows.addcmul_(self.rows, along, value=-1).mul_(self.inverse), of_weight


class _Layer(torch.autograd.Function):
    """Hidden states (P, D), the cosine and sine of each place's rotation (P, E), the two norms' weights, and weight and
    bias of query, key, value, output, gate, up and down."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, hidden: Tensor, cosine: Tensor, sine: Tensor, *parameters: Tensor) -> Tensor:
        norms, rounded = parameters[:2], [None if each is None else each.to(plan.dtype) for each in parameters[2:]]
        query, key, value, output, gate, up, down = _linears(rounded)
        first = _Normalised.of(hidden, norms[0], plan.epsilons[0])
        rows = first.weighted.to(plan.dtype)
        queries, keys, values = (_heads(linear(rows).float(), cosine) for linear in (query, key, value))
        queries, keys = (_rotated(heads, cosine, sine) for heads in (queries, keys))
        attended, sums = segment_attention.forward(queries, keys, values, plan.masks, plan.scaling)
        between = hidden + output(attended[0].flatten(1).to(plan.dtype))
        second = _Normalised.of(between, norms[1], plan.epsilons[1])
        rows = second.weighted.to(plan.dtype)
        gated, raised = gate(rows), up(rows)
        ctx.plan = plan
        kept = hidden, cosine, sine, queries, keys, values, attended, sums, between, gated, raised
        ctx.save_for_backward(*kept, first.inverse, second.inverse, *norms, *rounded)
        return between + down(silu(gated).mul_(raised))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors  # asked for once: a layer that is computed again has them once
        hidden, cosine, sine, queries, keys, values, attended, sums, between, gated, raised = saved[:11]
        inverses, norms, rounded = saved[11:13], saved[13:15], saved[15:]
        query, key, value, output, gate, up, down = _linears(rounded)
        slopes = _Slopes()
        of_between, of_second_norm = _feed_forward_backward(
            gradient, _Normalised.again(between, norms[1], inverses[1]), (gated, raised), (gate, up, down), slopes
        )
        rounded_gradient = of_between.to(plan.dtype)
        slopes.add(rounded_gradient, attended[0].flatten(1).to(plan.dtype), output)
        of_heads = segment_attention.backward(
            output.backward(rounded_gradient).view(attended.shape),
            *(queries, keys, values, attended, sums, plan.masks, plan.scaling),
        )
        of_outputs = [*(_rotated_back(one, cosine, sine) for one in of_heads[:2]), of_heads[2]]
        first = _Normalised.again(hidden, norms[0], inverses[0])
        of_hidden, of_first_norm = first.backward(
            _heads_backward(of_outputs, first.weighted.to(plan.dtype), (query, key, value), slopes)
        )
        return None, of_hidden.add_(of_between), None, None, of_first_norm, of_second_norm, *reversed(slopes)


class _Slopes(list[Tensor | None]):
    """Gradients of weights and biases, from the last linear's to the first's."""

    def add(self, of_output: Tensor, rows: Tensor, linear: _Linear) -> None:
        self.append(None if linear.bias is None else of_output.float().sum(dim=0))
        self.append(product(of_output.T, rows.T).float())


def _feed_forward_backward(
    gradient: Tensor,
    second: _Normalised,
    products: tuple[Tensor, Tensor],
    linears: tuple[_Linear, _Linear, _Linear],
    slopes: _Slopes,
) -> tuple[Tensor, Tensor]:
    """Gradients of what came between attention and feed-forward, and of the second norm's weight.

    Args:
        gradient: of the layer's output, (P, D).
        products: what gate and up gave, (P, I) each.
        linears: gate, up and down.
    """
    (gated, raised), (gate, up, down) = products, linears
    rounded_gradient, rows = gradient.to(gated.dtype), second.weighted.to(gated.dtype)
    activated = silu(gated)
    slopes.add(rounded_gradient, activated * raised, down)
    of_product = product(rounded_gradient, down.weight.T)
    of_raised = activated.mul_(of_product)
    slopes.add(of_raised, rows, up)
    of_gated = torch.ops.aten.silu_backward(of_product.mul_(raised), gated)
    slopes.add(of_gated, rows, gate)
    of_between, of_norm = second.backward(up.backward(of_raised).add_(gate.backward(of_gated)))
    return of_between.add_(gradient), of_norm


def _heads_backward(
    of_heads: list[Tensor], rows: Tensor, linears: tuple[_Linear, _Linear, _Linear], slopes: _Slopes
) -> Tensor:
    """Gradient (P, D) of the rows that queries, keys and values were made of; `of_heads` are theirs, (1, ., P, E)."""
    parts = []
    for of_head, linear in reversed(list(zip(of_heads, linears, strict=True))):
        of_output = of_head[0].transpose(0, 1).flatten(1).to(rows.dtype)
        slopes.add(of_output, rows, linear)
        parts.append(linear.backward(of_output))
    return parts[0].add_(parts[1]).add_(parts[2])


def _linears(parameters: Any) -> list[_Linear]:
    return [_Linear(*pair) for pair in zip(parameters[::2], parameters[1::2], strict=True)]


def _heads(outputs: Tensor, rotation: Tensor) -> Tensor:
    """(P, H E) to (1, H, P, E), as attention takes it; `rotation` is (P, E)."""
    return outputs.view(1, len(outputs), -1, rotation.shape[1]).transpose(1, 2)


def _halves(vectors: Tensor) -> tuple[Tensor, Tensor]:
    half = vectors.shape[-1] // 2
    return vectors[..., :half], vectors[..., half:]


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(1, H, P, E) by (P, E): each entry of the first half with its partner in the second."""
    (first, second), (of_first, of_second) = _halves(heads), _halves(sine)
    result = heads * cosine
    of_result = _halves(result)
    of_result[0].sub_(second * of_first)  # not in one, which may round once where transformers rounds twice
    of_result[1].add_(first * of_second)
    return result


def _rotated_back(gradient: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The gradient of what `_rotated` took."""
    (first, second), (of_first, of_second) = _halves(gradient), _halves(sine)
    result = gradient * cosine
    of_result = _halves(result)
    of_result[0].addcmul_(second, of_second)
    of_result[1].addcmul_(first, of_first, value=-1)
    return result


class FusedLayer:
    """Mixed into a layer's class: `_Layer` for packed rows in training and scoring, else what the class does."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        masks, rotation = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
        if args or not isinstance(masks, SegmentMasks) or rotation is None or hidden_states.dtype != torch.float32:
            result: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return result
        attention, norms = self.self_attn, (self.input_layernorm, self.post_attention_layernorm)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        epsilons = norms[0].variance_epsilon, norms[1].variance_epsilon
        plan = _Plan(dtype, epsilons, attention.scaling, masks)
        linears = _linears_of(self)
        parameters = [*(norm.weight for norm in norms), *(each for one in linears for each in (one.weight, one.bias))]
        with torch.autocast("cpu", enabled=False):
            output: Tensor = _Layer.apply(plan, hidden_states[0], rotation[0][0], rotation[1][0], *parameters)
        return output[None]


def _linears_of(layer: Any) -> list[nn.Module]:
    attention, feed_forward = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj),
    ]


def use(model: Any) -> bool:
    """Have a model's layers computed by `_Layer`, if all of them are of the kind. Only their class changes.

    Returns:
        whether they are: of the family, with the usual activation, on a CPU, in float32, without adapters.
    """
    layers = [one for one in model.modules() if type(one).__name__ in FUSED or isinstance(one, FusedLayer)]
    if not layers or getattr(model.config, "hidden_act", None) not in ("silu", "swish"):
        return False
    for layer in layers:
        linears = _linears_of(layer)
        usual = all(type(linear) is LinearProduct and linear.weight.device.type == "cpu" for linear in linears)
        if not usual or any(parameter.dtype != torch.float32 for parameter in layer.parameters()):
            return False
    for layer in layers:
        if not isinstance(layer, FusedLayer):  # as another scorer leaves it
            layer.__class__ = _fused_class(type(layer))  # type: ignore[arg-type]
    return True


def leave(model: nn.Module) -> None:
    """Undo `use`."""
    for module in model.modules():
        if isinstance(module, FusedLayer):
            module.__class__ = type(module).__bases__[1]


@functools.cache
def _fused_class(original: Any) -> Any:
    return type(f"Fused{original.__name__}", (FusedLayer, original), {})
