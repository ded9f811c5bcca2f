"""Packed scoring against a plain float64 computation, and which models take it."""

import copy
import json
import logging
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from mallowspo import output_head
from mallowspo.attention import NAME
from mallowspo.errors import InputError
from mallowspo.packing import Row, make_batch
from mallowspo.scoring import Scorer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": 97, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
PACKED = {
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, initializer_range=0.3, eos_token_id=0),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    # A pad token would have no gradient, and a row of it alone no gradient at all.
    "gemma": GemmaConfig(**GROUPED, head_dim=8, pad_token_id=None),
    "mistral": MistralConfig(**GROUPED),
    "mistral_window": MistralConfig(**GROUPED, sliding_window=3),  # shorter than the rows
}
PADDED = {
    "phi": (PhiConfig(**SIZES), "changes its logits"),  # a bias in the head, 0 at the start
    "granite": (GraniteConfig(**GROUPED, logits_scaling=3.0), "changes its logits"),
    "gpt_oss": (
        GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
        "does not take packed rows (NotImplementedError: attention with s_aux)",
    ),
    "mamba": (
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=97, initializer_range=0.3),
        "does not take packed rows (its hidden states are off by",
    ),
}
ROWS = [
    *(Row([1, 2, 3], response) for response in ([4, 5, 6, 7], [11], [11, 12, 4], [4, 5, 9])),
    Row([9], [8], True),
    Row(list(range(20, 40)), [96, 0, 50], True),
]
MIXTURE = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
DIRECTION = torch.tensor([1.0, -0.5, 2.0, -1.0, 0.3, -0.2], dtype=torch.float64)


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()


def plain(model, rows):
    """Summed log-probability and entropy of each row alone, full logits."""
    sums, entropies = [], []
    for row in rows:
        ids = torch.tensor([*row.prompt, *row.response])
        law = torch.log_softmax(model(ids[None], use_cache=False).logits[0, :-1], dim=-1)[-row.scored :]
        sums.append(law.gather(1, ids[-row.scored :, None]).sum())
        entropies.append(-(law.exp() * law).sum())
    return torch.stack(sums), torch.stack(entropies)


def gradient_errors(model, oracle):
    """Of each parameter, relative to its own gradient; to a hundredth of the largest where that is smaller still, and
    the bias of keys to a tenth: it is a sum of what cancels, for a softmax does not see what all keys share."""
    expected = {name: value.grad for name, value in oracle.named_parameters() if value.grad is not None}
    largest = max(float(value.norm()) for value in expected.values())
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()

    def scale(name, value):
        return max(float(value.norm()), largest / (10 if name.endswith("k_proj.bias") else 100))

    return {name: float((found[name].double() - value).norm()) / scale(name, value) for name, value in expected.items()}


def check(config, rows, direction):
    model, oracle = build(config), build(config).double()
    scorer = Scorer(model, "float32")
    assert scorer.packs
    scores = scorer(make_batch(rows), want_entropy=True)
    logp, entropy = plain(oracle, rows)
    assert scores.tokens.tolist() == [row.scored for row in rows]
    assert (scores.logp - logp).abs().max() < 1e-4
    assert ((scores.entropy - entropy).abs() / scores.tokens).max() < 2e-5
    (scores.logp * direction.float()).sum().backward()
    (logp * direction).sum().backward()
    errors = gradient_errors(model, oracle)
    if max(errors.values()) >= 1e-5:  # a drawn example that float32 itself, one row at a time, gets no nearer to
        eager = build(config)
        (plain(eager, rows)[0] * direction.float()).sum().backward()
        limit = min(1e-4, 1.5 * max(gradient_errors(eager, oracle).values()))
        assert max(errors.values()) < limit, errors


@pytest.mark.parametrize("name", PACKED)
def test_against_float64(name):
    check(PACKED[name], ROWS, DIRECTION)


@pytest.mark.parametrize("name", PACKED)
@given(data=st.data(), tile=st.integers(2, 40), keep=st.sampled_from([0, 4000, 1 << 20]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_batch_order_sharing_and_tile_change_nothing(name, data, tile, keep):
    token = st.integers(0, 96)
    # Tokens that are all the same, or rows that cancel, would have gradients of 0 but for rounding.
    prompts = data.draw(st.lists(st.lists(token, min_size=3, max_size=12, unique=True), min_size=1, max_size=3))
    response = st.lists(token, min_size=1, max_size=9, unique=True)
    rows = data.draw(
        st.lists(st.builds(Row, st.sampled_from(prompts), response, st.booleans()), min_size=1, max_size=6)
    )
    kept = output_head.ROWS, output_head.WORDS, output_head.KEEP
    output_head.ROWS, output_head.WORDS, output_head.KEEP = tile, 3 * tile, keep
    try:
        check(PACKED[name], rows, DIRECTION[: len(rows)].abs())
    finally:
        output_head.ROWS, output_head.WORDS, output_head.KEEP = kept


@pytest.mark.parametrize("name", PACKED)
def test_bfloat16_stays_within_its_bound(name):
    """0.1 nats a token on the mean of a row, and a tenth of a gradient: bfloat16 keeps 8 bits. Seen: 0.035, 0.054."""
    model, oracle = build(PACKED[name]), build(PACKED[name]).double()
    scores = Scorer(model, "bfloat16")(make_batch(ROWS))
    logp, _ = plain(oracle, ROWS)
    assert scores.logp.dtype == torch.float32
    assert 0 < ((scores.logp - logp).abs() / scores.tokens).max() < 0.1
    (scores.logp * DIRECTION.float()).sum().backward()
    (logp * DIRECTION).sum().backward()
    assert max(gradient_errors(model, oracle).values()) < 0.1


def products_ignore_their_number_of_rows():
    """Whether this processor's matrix products round a row alike, however many stand beside it (from 8 on)."""
    generator = torch.Generator().manual_seed(0)
    for inner, outer in ((32, 48), (48, 32), (32, 97), (32, 16)):
        left = torch.randn(64, inner, generator=generator)
        right = torch.randn(inner, outer, generator=generator)
        whole = left @ right
        if not all(torch.equal(left[:rows] @ right, whole[:rows]) for rows in range(8, 64, 8)):
            return False
    return True


@pytest.mark.parametrize("name", PACKED)
def test_a_rows_float32_score_depends_on_nothing_beside_it(name):
    """To the bit: so the margin at step 0 is 0 and DPO's loss ln 2, however policy and reference are batched."""
    scorer = Scorer(build(PACKED[name]), "float32")
    with torch.no_grad():
        together = scorer(make_batch(ROWS), want_entropy=True)
        alone = [scorer(make_batch([row]), want_entropy=True) for row in ROWS]
        turned = scorer(make_batch(ROWS[::-1]), want_entropy=True)
    assert torch.allclose(together.logp, torch.cat([scores.logp for scores in alone]), atol=1e-4)
    if not products_ignore_their_number_of_rows():
        pytest.skip("this processor rounds a product's rows by how many there are; equal up to rounding")
    assert torch.equal(together.logp, torch.cat([scores.logp for scores in alone]))
    assert torch.equal(together.entropy, torch.cat([scores.entropy for scores in alone]))
    assert torch.equal(together.logp, turned.logp.flip(0))
    margin = (together.logp[0] - together.logp[1]) - (alone[0].logp - alone[1].logp)
    assert float(-torch.nn.functional.logsigmoid(0.1 * margin)) == pytest.approx(math.log(2), abs=1e-7)
    assert float(margin) == 0


@pytest.mark.parametrize("name", PADDED)
def test_other_models_are_padded_and_told_so(name, caplog):
    config, reason = PADDED[name]
    model = build(config)
    before = model.config._attn_implementation
    with caplog.at_level(logging.WARNING, logger="mallowspo"):
        scorer = Scorer(model, "float32")
    assert not scorer.packs
    told = [record.message for record in caplog.records if record.name.startswith("mallowspo")]
    assert [reason in line for line in told] == [False] * (name == "gpt_oss") + [True]  # gpt_oss is a mixture too
    assert model.config._attn_implementation == before
    with torch.no_grad():
        found = scorer(make_batch(ROWS), want_entropy=True)
        logp, entropy = plain(build(config), ROWS)
    assert torch.allclose(found.logp, logp, atol=1e-3)
    assert torch.allclose(found.entropy, entropy, atol=1e-3)


def test_an_encoder_decoder_is_refused():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 97}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, decoder_start_token_id=0))
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        Scorer(model, "float32")


def test_a_model_that_is_scored_still_generates_and_is_saved_as_before(tmp_path):
    model, untouched = build(PACKED["llama"]), build(PACKED["llama"])
    Scorer(model, "float32")
    assert model.config._attn_implementation == NAME
    tokens, mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(tokens, **settings), untouched.generate(tokens, **settings))
    model.save_pretrained(tmp_path)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_adapters_and_checkpointing():
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(build(PACKED["llama"]), adapter)
    oracle = copy.deepcopy(model).double()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    scores = Scorer(model.train(), "float32")(make_batch(ROWS))
    logp, _ = plain(oracle, ROWS)
    assert (scores.logp - logp).abs().max() < 1e-4
    # Another packed batch between forward and backward: a layer that is computed again must find its own mask.
    Scorer(model, "float32")(make_batch(ROWS[:1]))
    (scores.logp * DIRECTION.float()).sum().backward()
    (logp * DIRECTION).sum().backward()
    errors = gradient_errors(model, oracle)
    assert len(errors) == 8 and max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("rows", "words"), [(4, 10), (256, 256)])
def test_what_the_head_keeps_changes_no_bit(monkeypatch, rows, words):
    monkeypatch.setattr(output_head, "ROWS", rows)
    monkeypatch.setattr(output_head, "WORDS", words)
    gradients = []
    for keep in (0, 97 * 4 * 20, 1 << 20):  # nothing, some tiles, all
        model = build(PACKED["llama"])
        scorer = Scorer(model, "float32")
        scorer.softmax_kept = keep
        scorer(make_batch(ROWS)).logp.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(left, right) for left, right in zip(gradients[0], other, strict=True))


def test_signals_read_the_same_places():
    """Hidden states and `logits_in_chunks` on packed rows, against padded ones."""
    scorer = Scorer(build(PACKED["llama"]), "float32")
    batch = make_batch(ROWS)
    packed = (
        scorer(batch, want_hidden=True).hidden,
        *(torch.cat(parts) for parts in zip(*scorer.logits_in_chunks(batch), strict=True)),
    )
    scorer.packs = False
    padded = (
        scorer(batch, want_hidden=True).hidden,
        *(torch.cat(parts) for parts in zip(*scorer.logits_in_chunks(batch), strict=True)),
    )
    assert packed[0].shape == (len(ROWS), 32) and packed[1].shape == (sum(row.scored for row in ROWS), 97)
    assert all(torch.allclose(left, right, atol=1e-4) for left, right in zip(packed, padded, strict=True))


def test_a_mixture_of_experts_is_scored_and_what_is_missing_is_told(caplog):
    model = build(MIXTURE)
    scorer = Scorer(model, "float32")
    with torch.no_grad():
        expected, _ = plain(build(MIXTURE), ROWS)  # its experts' products have no float64
    assert scorer.packs and (scorer(make_batch(ROWS)).logp - expected).abs().max() < 1e-3
    assert "MixtralForCausalLM is a mixture of experts: its load-balancing loss is no part" in caplog.text
