"""Signals of adaptive methods against plain computations from full logits."""

import pytest
import torch

from mallowspo.methods import METHODS
from mallowspo.models import load_model, make_made_up
from mallowspo.scoring import Scorer, make_batch
from mallowspo.signals import Signals, interpolated_margins

ROWS = [([5, 6, 7], [8, 9]), ([10, 11], [12, 13, 14]), ([5, 6, 7], [20]), ([10, 11], [21, 22])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_made_up(path)
    return path


def moved(folder):
    """The made-up model after its weights have moved a little."""
    model = load_model(folder, "cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits_of(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    return logits[len(prompt) - 1 : -1]


def log_ratio(laws, response):
    return sum(torch.log_softmax(law, -1)[token].item() for law, token in zip(laws, response, strict=True))


def test_interpolated_margins(folder):
    policy, reference, epsilon = moved(folder), load_model(folder, "cpu").eval(), 0.3
    found = interpolated_margins(Scorer(policy, "float32"), Scorer(reference, "float32"), make_batch(ROWS), epsilon)
    for sign, values in zip((1, -1), found, strict=True):
        sums = []
        for prompt, response in ROWS:
            here, there = logits_of(policy, prompt, response), logits_of(reference, prompt, response)
            sums.append(log_ratio((1 + sign * epsilon) * here - sign * epsilon * there, response))
        assert values.tolist() == pytest.approx([sums[0] - sums[2], sums[1] - sums[3]], abs=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_confidence(folder, plain):
    model = moved(folder)
    scorer = Scorer(model, "float32")
    scorer.plain = plain
    found = scorer(make_batch(ROWS), want_confidence=True).confidence
    for value, (prompt, response) in zip(found.tolist(), ROWS, strict=True):
        laws = torch.log_softmax(logits_of(model, prompt, response), -1)
        parts = [law[token] - torch.logsumexp(2 * law, 0) for law, token in zip(laws, response, strict=True)]
        assert value == pytest.approx(torch.stack(parts).mean().item(), abs=1e-5)


def test_the_prompts_hidden_state_does_not_see_the_response(folder):
    scorer = Scorer(moved(folder), "float32")
    signals = Signals(METHODS["lb_dpo"], {}, scorer, folder)
    batch = make_batch(ROWS)
    hidden = signals(batch, scorer(batch, **signals.wanted))["prompt_hidden"]
    other = make_batch([(prompt, [30, 31, 32, 33]) for prompt, _ in ROWS])
    assert hidden.shape == (2, scorer.hidden_size)
    assert torch.allclose(hidden, signals(other, scorer(other, **signals.wanted))["prompt_hidden"], atol=1e-6)
    with torch.no_grad():
        states = scorer.causal.base_model(torch.tensor([[5, 6, 7]])).last_hidden_state
    assert torch.allclose(hidden[0], states[0, -1], atol=1e-6)


def test_only_what_is_needed_is_computed(folder):
    scorer = Scorer(moved(folder), "float32")
    batch = make_batch(ROWS)
    dpo = Signals(METHODS["dpo"], {}, scorer, folder)
    assert dpo.reference is None and not any(dpo.wanted.values())
    assert dpo(batch, scorer(batch)) == {}
    assert Signals(METHODS["epsilon_dpo"], {"epsilon": 0.01}, scorer, folder).reference is not None
