"""Prompts read once, in groups of like length; keys and values in a cache with room: the answers are those without."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)
from transformers.cache_utils import DynamicLayer

from mallowspo import generation, prompt_cache
from mallowspo.errors import InputError
from mallowspo.prompt_cache import ROOM, Reader, RoomyLayer
from mallowspo.settings import SamplingSettings
from tests.unit.test_packed_scoring import GROUPED, SIZES

MODELS = {
    "llama": LlamaConfig(**GROUPED),
    "neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, initializer_range=0.3, eos_token_id=0),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma": GemmaConfig(**GROUPED, head_dim=8, pad_token_id=0),
    # Positions from the mask alone: learned, and as a slope on the attention.
    "opt": OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=97, word_embed_proj_dim=32,
        init_std=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=2, max_position_embeddings=64,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=97, initializer_range=0.3, eos_token_id=0),
    "window": MistralConfig(**GROUPED, sliding_window=4),  # shorter than the prompts: a batch is read as a whole
}  # fmt: skip
PROMPTS = [[5, 6, 7], list(range(20, 40)), [9], [5, 6, 7], list(range(40, 59)), [3, 3, 8, 1]]


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


class Words:
    """A tokenizer of no words."""

    eos_token_id = 0

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def sample(model, **settings):
    answers = generation.sample_answers(model, Words(), PROMPTS, SamplingSettings(**settings))
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_generate(name):
    model = build(MODELS[name])
    answers = sample(model, answers=1, temperature=0, max_new_tokens=12, batch_size=6)
    assert len({tuple(ids) for ids in answers}) >= 4
    for prompt, ids in zip(PROMPTS, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :].tolist()
        assert ids == expected


@pytest.mark.parametrize("name", MODELS)
def test_how_many_are_read_together_changes_nothing(name, monkeypatch):
    model = build(MODELS[name])
    settings = {"answers": 3, "max_new_tokens": 10, "batch_size": 18, "seed": 4}
    together = sample(model, **settings)
    monkeypatch.setattr(prompt_cache, "READ_TOGETHER", 8)
    monkeypatch.setattr(prompt_cache, "ROOM", 2)  # full at every second token
    assert sample(model, **settings) == together
    assert sample(model, **(settings | {"batch_size": 1})) == together


def test_a_prompt_is_read_once_beside_others_of_its_length(monkeypatch):
    model = build(MODELS["llama"])
    read = []
    forward = model.forward
    monkeypatch.setattr(prompt_cache, "READ_TOGETHER", 40)

    def counting(**given):
        read.append(tuple(given["input_ids"].shape))
        return forward(**given)

    reader = Reader(model)
    monkeypatch.setattr(model, "forward", counting)
    with torch.no_grad():
        logits, mask, cache = reader.read_prompts(PROMPTS)
    assert read == [(3, 4), (2, 20)]
    assert mask.sum(dim=1).tolist() == [3, 20, 1, 3, 19, 4] and mask.shape == (6, 20)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = forward(input_ids=torch.tensor([prompt]), use_cache=True)
        torch.testing.assert_close(logits[row], alone.logits[0, -1], atol=1e-5, rtol=1e-5)
        for layer, own in zip(cache.layers, alone.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys[row, :, -len(prompt) :], own.keys[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer.values[row, :, -len(prompt) :], own.values[0], atol=1e-5, rtol=1e-5)
            before = 16 if len(prompt) <= 4 else 0  # what none of its group has
            assert not layer.keys[row, :, :before].any() and not layer.values[row, :, :before].any()


def test_a_roomy_layer_holds_what_transformers_own_holds():
    roomy, own = RoomyLayer(), DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    rows = 4
    for step, length in enumerate([5, *[1] * (ROOM + 3), 7]):
        if step == 3:
            stay = torch.tensor([3, 0, 1])
            rows = 3
            roomy.reorder_cache(stay)
            own.reorder_cache(stay)
        keys, values = (torch.randn(rows, 2, length, 8, generator=generator) for _ in range(2))
        for ours, theirs in zip(roomy.update(keys, values), own.update(keys, values), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == own.get_seq_length()
        assert roomy.get_mask_sizes(1) == own.get_mask_sizes(1)


def test_appending_copies_nothing_while_there_is_room():
    layer = RoomyLayer()
    layer.update(*torch.randn(2, 2, 2, 5, 8))
    before = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(ROOM):
        layer.update(*torch.randn(2, 2, 2, 1, 8))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == before
    layer.update(*torch.randn(2, 2, 2, 1, 8))
    assert layer.keys.data_ptr() != before[0] and layer.get_seq_length() == 6 + ROOM


def test_a_model_without_keys_and_values_is_refused():
    model = build(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=97))
    with pytest.raises(InputError, match="keeps no key-value cache"):
        sample(model, max_new_tokens=2)


class Batched(TorchDispatchMode):
    """Shapes of the second factor of products in batches."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        if operation is torch.ops.aten.bmm.default:
            self.shapes.append(tuple(arguments[1].shape))
        return operation(*arguments, **(keywords or {}))


def test_a_frozen_head_is_not_copied_for_each_row():
    model = build(MODELS["llama"]).to(torch.bfloat16).requires_grad_(False)
    with Batched() as seen, torch.no_grad():
        model(input_ids=torch.ones(3, 5, dtype=torch.long), logits_to_keep=1)
    assert (3, 32, 97) in seen.shapes  # what transformers does by itself: the head, once a row
    with Batched() as seen, torch.no_grad():
        Reader(model).read_prompts([[5, 6, 7], [7, 8, 9], [1, 2, 3]])
    assert not [shape for shape in seen.shapes if shape[-1] == 97]
    assert not model.get_output_embeddings()._forward_pre_hooks
