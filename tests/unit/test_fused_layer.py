"""Layers as one function: which models have them, their bits, and attention of long segments by products."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import causal_mask_function

from mallowspo import fused_layer, memory, product_attention, products, recompute, segment_attention
from mallowspo.attention import segment_masks
from mallowspo.memory_formula import MemoryPlan
from mallowspo.packing import Row, make_batch, pack
from mallowspo.scoring import Scorer
from tests.unit.test_memory import in_use
from tests.unit.test_packed_scoring import PACKED, build

ROWS = [Row(range(20), range(30, 41)), Row(range(20), [3, 1, 2]), Row([7], range(50, 59), True)]
LOSS = torch.tensor([1.0, -2.0, 0.5])


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor where oneDNN is the faster library."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN product")
    monkeypatch.setattr(products, "faster", lambda: True)


def gradients(scorer):
    for parameter in scorer.model.parameters():
        parameter.grad = None
    (scorer(make_batch(ROWS)).logp * LOSS).sum().backward()
    return {name: value.grad for name, value in scorer.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", PACKED)
def test_who_has_fused_layers(name):
    """Query and key norms (Qwen3), another activation and scale (Gemma), another layer (GPT): not these."""
    scorer = Scorer(build(PACKED[name]), "float32")
    assert scorer.fused == (name in ("llama", "qwen2", "mistral", "mistral_window"))
    assert any(isinstance(module, fused_layer.FusedLayer) for module in scorer.model.modules()) == scorer.fused
    assert Scorer(scorer.model, "float32").fused == scorer.fused


def test_adapters_and_other_activations_have_none():
    adapted = get_peft_model(build(PACKED["llama"]), LoraConfig(r=2, target_modules=["q_proj"]))
    assert not Scorer(adapted, "float32").fused
    config = LlamaConfig(**{**PACKED["llama"].to_dict(), "hidden_act": "gelu"})
    assert not Scorer(build(config), "float32").fused


def test_layers_that_only_have_the_name_are_found_out(caplog):
    """Their hidden states differ in the scorer's trial, so they compute what they did before, packed all the same."""
    model = build(PACKED["llama"])
    original = type(model.model.layers[0])

    class LlamaDecoderLayer(original):
        def forward(self, hidden_states, **kwargs):
            return 0.5 * hidden_states + super().forward(hidden_states, **kwargs)

    for layer in model.model.layers:
        layer.__class__ = LlamaDecoderLayer
    scorer = Scorer(model, "float32")
    assert (scorer.packs, scorer.fused, caplog.text) == (True, False, "")
    assert all(type(layer) is LlamaDecoderLayer for layer in model.model.layers)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral_window"])
def test_the_forward_has_the_bits_of_the_layers_that_transformers_has(name, precision, monkeypatch):
    """Else a policy with adapters, which has these, would not begin as its reference."""
    with torch.no_grad():
        fused = Scorer(build(PACKED[name]), precision)(make_batch(ROWS), want_entropy=True)
        monkeypatch.setattr(fused_layer, "use", lambda model: False)
        plain = Scorer(build(PACKED[name]), precision)(make_batch(ROWS), want_entropy=True)
    assert torch.equal(fused.logp, plain.logp) and torch.equal(fused.entropy, plain.entropy)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fused_is_the_layer_that_transformers_has(precision, monkeypatch):
    fused = gradients(Scorer(build(PACKED["qwen2"]), precision))
    monkeypatch.setattr(fused_layer, "use", lambda model: False)
    scorer = Scorer(build(PACKED["qwen2"]), precision)
    assert scorer.packs and not scorer.fused
    plain = gradients(scorer)
    assert fused.keys() == plain.keys()
    largest = max(float(value.norm()) for value in plain.values())
    for name, value in plain.items():
        off = float((fused[name] - value).norm()) / max(float(value.norm()), largest / 100)
        assert off < (1e-5 if precision == "float32" else 0.05), name


@pytest.mark.parametrize("config", [PACKED["llama"], GPTNeoXConfig(**PACKED["neox"].to_dict())], ids=["llama", "neox"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_computed_again_has_the_same_bits(config, checkpointing):
    scorer = Scorer(build(config).train(), "float32")
    kept = gradients(scorer)
    memory.apply(scorer, MemoryPlan(0, 0, 0, 0, checkpointing=checkpointing, softmax_kept=1 << 20))
    again = gradients(scorer)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_what_a_layer_keeps_is_freed_without_the_garbage_collector():
    """A result with a graph that holds the place where it is kept would never be freed else."""
    config = GPTNeoXConfig(vocab_size=97, hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    scorer = Scorer(model, "float32")
    memory.apply(scorer, memory.plan(scorer, 100, 1 << 40))
    batch = make_batch([Row([5] * 600, [7] * 20)])
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            scorer(batch).logp.sum().backward()
        before = in_use()
        for _ in range(6):
            scorer(batch).logp.sum().backward()
        assert in_use() - before < 1 << 20  # what a forward keeps is 12 MB
    finally:
        gc.enable()


def test_products_are_taken_over_in_order():
    calls = []

    def compute(value):
        calls.append(value)
        return torch.tensor(value)

    first, second = recompute.contexts()
    with first:
        assert [recompute.once(lambda value=value: compute(value)).item() for value in (1.0, 2.0)] == [1.0, 2.0]
    with second:
        assert [recompute.once(lambda: compute(0.0)).item() for _ in range(2)] == [1.0, 2.0]
    assert recompute.once(lambda: compute(3.0)).item() == 3.0
    assert calls == [1.0, 2.0, 3.0]


def window_of_9(batch, head, query, key):
    return (key <= query) & (query - key < 9)


@pytest.mark.parametrize("block", [16, 256])
@pytest.mark.parametrize("rule", [causal_mask_function, window_of_9])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
def test_long_segments_by_products(onednn, rule, block, heads, groups, monkeypatch):
    """A prompt, and a response to one, against float64 and a dense mask."""
    monkeypatch.setattr(product_attention, "LARGE", 1000)
    monkeypatch.setattr(product_attention, "BLOCK", block)
    packing = pack([Row([1] * 37, [2] * 31), Row([1] * 37, [3])], 8)  # the second response adds no place
    masks = segment_masks(packing, rule, torch.float32)
    generator = torch.Generator().manual_seed(0)
    places = packing.tokens.shape[1]
    query, key, value = (
        torch.randn(1, places, count, 8, generator=generator).transpose(1, 2).requires_grad_()
        for count in (heads, groups, groups)
    )
    taken = []
    by_products = product_attention.forward
    monkeypatch.setattr(
        product_attention, "forward", lambda query, *rest: (taken.append(query.shape[2]), by_products(query, *rest))[1]
    )
    found = segment_attention.attend_by_segments(query, key, value, masks, 0.3)
    assert taken == [37, 30]  # not the filler
    exact = [heads.detach().double().requires_grad_() for heads in (query, key, value)]
    at = torch.arange(68 - 1)  # without the filler
    seen = rule(None, None, at[:, None], at)
    expected = scaled_dot_product_attention(*(one[:, :, :67] for one in exact), seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found[:, :67].double(), expected.transpose(1, 2), rtol=1e-5, atol=1e-6)
    direction = torch.randn(found[:, :67].shape, generator=generator)
    (found[:, :67] * direction).sum().backward()
    (expected.transpose(1, 2) * direction.double()).sum().backward()
    for mine, true in zip((query, key, value), exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=1e-5, atol=1e-5)


def test_long_segments_have_the_same_bits_beside_others_and_with_one_thread(onednn):
    config = LlamaConfig(
        vocab_size=97, hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    scorer = Scorer(LlamaForCausalLM(config).eval(), "float32")
    assert scorer.fused
    rows = [Row([5, 9] * 150, [7, 3, 1] * 70), Row([5, 9] * 150, [2] * 9), Row([4], [1, 2])]
    threads = torch.get_num_threads()
    with torch.no_grad():
        together = scorer(make_batch(rows)).logp
        alone = torch.cat([scorer(make_batch([row])).logp for row in rows])
        torch.set_num_threads(1)
        with_one = scorer(make_batch(rows)).logp
        torch.set_num_threads(threads)
    assert torch.equal(together, alone) and torch.equal(together, with_one)


def test_layers_are_given_back():
    scorer = Scorer(build(PACKED["llama"]), "float32")
    fused_layer.leave(scorer.model)
    assert all(type(module).__name__ != "FusedLlamaDecoderLayer" for module in scorer.model.modules())
    assert isinstance(scorer.model.model.layers[0], nn.Module)
    assert (
        fused_layer.use(scorer.model) and fused_layer.use(build(PACKED["llama"])) is False
    )  # its layers are nn.Linear
