"""Sampling: seeded answer by answer, whatever the batch; cut at the end token, and untouched by padding."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from mallowspo import generation
from mallowspo.generation import sample_answers
from mallowspo.models import load_model, load_tokenizer, make_made_up
from mallowspo.settings import SamplingSettings

PROMPTS = [[10, 20, 30], [40], list(range(50, 70)), [7, 8]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_made_up(folder)
    return load_model(folder), load_tokenizer(folder)


def sample(policy, prompts=PROMPTS, names=None, **settings):
    answers = sample_answers(*policy, prompts, SamplingSettings(**settings), names)
    return [answer.token_ids for answer in answers]


def test_every_prompt_gets_its_answers_in_order(policy):
    answers = sample_answers(*policy, PROMPTS, SamplingSettings(answers=3, max_new_tokens=5, batch_size=5))
    assert [(answer.prompt_index, answer.answer_index) for answer in answers] == [
        (prompt, index) for prompt in range(4) for index in range(3)
    ]
    assert all(1 <= len(answer.token_ids) <= 5 for answer in answers)


def test_the_seed_decides(policy):
    before = torch.random.get_rng_state()
    first, again, other = (sample(policy, answers=2, max_new_tokens=6, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("settings", [{"temperature": 0}, {}, {"temperature": 0.7, "top_p": 0.8}])
def test_the_batch_changes_nothing(policy, settings):
    prompts = [list(range(3 + number, 5 + 3 * number)) for number in range(12)]
    alone, together = (
        sample(policy, prompts, answers=4, max_new_tokens=16, batch_size=size, **settings) for size in (1, 16)
    )
    assert alone == together
    assert len({tuple(ids) for ids in alone}) > (30 if settings.get("temperature") != 0 else 5)


def test_the_order_of_the_prompts_changes_nothing(policy):
    names = ["a", "b", "c", "d"]
    forth = sample(policy, PROMPTS, names, answers=2, max_new_tokens=8, batch_size=3)
    back = sample(policy, PROMPTS[::-1], names[::-1], answers=2, max_new_tokens=8, batch_size=3)
    assert back == [forth[index] for index in (6, 7, 4, 5, 2, 3, 0, 1)]
    assert sample(policy, PROMPTS, ["e", *names[1:]], answers=2, max_new_tokens=8)[2:] == forth[2:]
    assert sample(policy, PROMPTS, ["e", *names[1:]], answers=2, max_new_tokens=8)[:2] != forth[:2]


def test_a_longer_answer_begins_with_the_shorter(policy):
    short, long = (sample(policy, answers=3, max_new_tokens=length) for length in (4, 9))
    assert [ids[:4] for ids in long] == short


def test_greedy_is_what_generate_gives(policy):
    model, tokenizer = policy
    answers = sample(policy, temperature=0, max_new_tokens=10, batch_size=4)
    for prompt, ids in zip(PROMPTS, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=10)[0, len(prompt) :].tolist()
        assert ids == expected[: len(ids)]
        assert len(ids) == 10 or ids[-1] == tokenizer.eos_token_id


def test_tokens_come_as_often_as_they_are_likely():
    """Draws spread evenly over [0, 1): each token's count is its probability times their number, to within one."""
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0, -float("inf"), 0.0]])
    draws = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for settings in (SamplingSettings(temperature=1), SamplingSettings(temperature=0.5, top_p=0.9)):
        found = torch.bincount(generation._choose(logits.expand(10_000, -1), draws, settings), minlength=6)
        warped = TemperatureLogitsWarper(settings.temperature)(None, logits)
        if settings.top_p < 1:
            warped = TopPLogitsWarper(settings.top_p)(None, warped)
        np.testing.assert_allclose(found, 10_000 * torch.softmax(warped[0], -1), atol=1.5)
        assert found[4] == 0


def test_rows_that_have_ended_leave_the_batch(policy, monkeypatch):
    settings = {"answers": 10, "max_new_tokens": 80, "batch_size": 40, "seed": 3}
    sizes = []

    def counting(logits, draws, sampling, choose=generation._choose):
        sizes.append(len(logits))
        return choose(logits, draws, sampling)

    monkeypatch.setattr(generation, "_choose", counting)
    leaving = sample(policy, **settings)
    assert sizes[0] == 40 and sizes[-1] < 40 and sizes == sorted(sizes, reverse=True)
    monkeypatch.setattr(generation, "LEAVING_SHARE", 2)
    sizes.clear()
    assert sample(policy, **settings) == leaving and set(sizes) == {40}


def test_nothing_comes_from_the_models_own_generation_settings(policy, monkeypatch):
    before = sample(policy, max_new_tokens=10)
    monkeypatch.setattr(policy[0].generation_config, "repetition_penalty", 50.0)
    monkeypatch.setattr(policy[0].generation_config, "top_k", 1)
    assert sample(policy, max_new_tokens=10) == before


def test_complete_means_ended_by_itself(policy):
    model, tokenizer = policy
    settings = SamplingSettings(answers=40, max_new_tokens=12, batch_size=200, seed=3)
    answers = sample_answers(model, tokenizer, PROMPTS, settings)
    ended = [answer for answer in answers if answer.complete]
    assert 0 < len(ended) < len(answers)
    for answer in answers:
        assert answer.complete == (answer.token_ids[-1] == tokenizer.eos_token_id)
        assert answer.finish_reason == ("stop" if answer.complete else "length")
        assert tokenizer.eos_token_id not in answer.token_ids[:-1]
        assert answer.complete or len(answer.token_ids) == 12


def test_padding_changes_nothing(policy):
    """Each prompt of a batch must go as it goes alone, unpadded and without a cache."""
    model, tokenizer = policy
    answers = sample_answers(model, tokenizer, PROMPTS, SamplingSettings(max_new_tokens=8, temperature=0))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        for token in answer.token_ids:
            with torch.no_grad():
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
