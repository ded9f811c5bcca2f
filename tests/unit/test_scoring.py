"""The kernel against a plain float64 computation, for several architectures, lengths and batchings."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from mallowspo import output_head
from mallowspo.errors import InputError
from mallowspo.output_head import LawSums, Want
from mallowspo.packing import make_batch
from mallowspo.scoring import Scorer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.3),
    "llama_untied": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.3),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, initializer_range=0.3),
    "neox": GPTNeoXConfig(**SIZES, initializer_range=0.3),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, initializer_range=0.3),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, initializer_range=0.3),
}
ROWS = [([1, 2, 3], [4, 5, 6, 7]), ([9], [8]), ([1, 2, 3], [11, 12]), (list(range(20, 40)), [96, 0, 50])]


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()


def plain(model, rows):
    """Each row alone, full logits, float64."""
    sums, entropies = [], []
    for prompt, response in rows:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
        law = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        sums.append(law[torch.arange(len(response)), torch.tensor(response)].sum())
        entropies.append(-(law.exp() * law).sum())
    return torch.stack(sums), torch.stack(entropies)


@pytest.mark.parametrize("name", CONFIGS)
def test_against_float64(name):
    model = build(name)
    scores = Scorer(model, "float32")(make_batch(ROWS), want_entropy=True)
    with torch.no_grad():
        logp, entropy = plain(build(name).double(), ROWS)
    assert scores.tokens.tolist() == [4, 1, 2, 3]
    assert torch.allclose(scores.logp.double(), logp, atol=1e-4)
    assert torch.allclose(scores.entropy.double(), entropy, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_against_float64(name):
    model, oracle = build(name), build(name).double()
    direction = torch.tensor([1.0, -0.5, 2.0, -1.0])
    (Scorer(model, "float32")(make_batch(ROWS)).logp * direction).sum().backward()
    (plain(oracle, ROWS)[0] * direction).sum().backward()
    for (label, found), expected in zip(model.named_parameters(), oracle.parameters(), strict=True):
        scale = expected.grad.abs().max().clamp_min(1e-3)
        assert ((found.grad.double() - expected.grad).abs().max() / scale) < 1e-4, label


def test_a_head_that_is_not_linear_is_noticed_and_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert Scorer(build("gemma2"), "float32").plain  # soft-capped logits
        assert not Scorer(build("llama"), "float32").plain
    assert [record.message for record in caplog.records] == [
        "Gemma2ForCausalLM changes its logits after the output head: scoring by full logits, exact but slower"
    ]


rows_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 96), min_size=1, max_size=12), st.lists(st.integers(0, 96), min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=5,
)


@given(rows=rows_strategy, tile=st.integers(1, 20), order=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_batching_order_and_tiles_change_nothing(rows, tile, order):
    model = build("llama")
    alone = [Scorer(model, "float32")(make_batch([row])).logp.item() for row in rows]
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    kept = output_head.ROWS, output_head.WORDS
    output_head.ROWS, output_head.WORDS = tile, 5 * tile
    try:
        together = Scorer(model, "float32")(make_batch([rows[index] for index in shuffled])).logp.tolist()
    finally:
        output_head.ROWS, output_head.WORDS = kept
    assert together == pytest.approx([alone[index] for index in shuffled], abs=2e-4)


def test_bfloat16_body_stays_near():
    model = build("llama")
    exact, rounded = (Scorer(model, precision)(make_batch(ROWS)) for precision in ("float32", "bfloat16"))
    assert torch.allclose(exact.logp, rounded.logp, atol=0.5)
    assert rounded.logp.dtype == torch.float32
    assert not torch.equal(exact.logp, rounded.logp)


def scores_of(logits, target, want, words):
    """(V,) logits, `words` of them at a time."""
    sums = LawSums(torch.tensor([target]), want)
    for start in range(0, len(logits), words):
        sums.add(torch.tensor([logits[start : start + words]]), start)
    return [values.item() for values in sums.scores()]


@pytest.mark.parametrize("words", [1, 2, 3, 8])
def test_scores_of_known_laws(words):
    all_of_it = Want(entropy=True, collision=True)
    uniform = scores_of([0.0] * 8, 3, all_of_it, words)
    assert uniform == pytest.approx([-2.0794415, 2.0794415, -2.0794415], abs=1e-6)
    for certain in ([0.0, 500.0, 0.0], [500.0, 0.0, 0.0], [-700.0, 0.0, -900.0]):
        target = certain.index(max(certain))
        assert scores_of(certain, target, all_of_it, words) == [0.0, 0.0, 0.0]
    masked = scores_of([float("-inf"), 0.0, 0.0, float("-inf")], 1, all_of_it, words)
    assert masked == pytest.approx([-0.6931472, 0.6931472, -0.6931472], abs=1e-6)
    assert scores_of([1.0, 2.0], 0, Want(), words)[1:] == [0.0, 0.0]


def test_empty_sides_are_refused():
    with pytest.raises(InputError, match="empty prompt or response"):
        make_batch([([1], [])])
