"""The reference table against each row alone, full logits, float64."""

import json

import pandas as pd
import pytest
import torch

from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.models import load_model, load_tokenizer, make_made_up
from mallowspo.packing import Row
from mallowspo.pairs.tokens import tokenize_pairs
from mallowspo.reference import answer_batches, look_up, score_pairs, score_rows, score_table
from mallowspo.scoring import Scorer
from mallowspo.settings import TokenSettings

PLAIN = TokenSettings(template="plain", max_prompt=40, max_response=12)
CHAT = TokenSettings(template="chat", max_prompt=40, max_response=12)
#: The made-up model's template ends a prompt with this, one token a character.
HEADER = "assistant: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_made_up(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def pair(prompt, chosen, rejected, complete=(True, True)):
    return {
        "pair_id": digest([prompt, chosen, rejected]),
        "prompt_id": digest(prompt),
        "prompt": prompt,
        "messages": json.dumps([{"role": "user", "content": prompt}]),
        "chosen": chosen,
        "rejected": rejected,
        "meta": json.dumps({"chosen_complete": complete[0], "rejected_complete": complete[1]}),
    }


PAIRS = pd.DataFrame(
    [
        pair("What?", " yes", " no, never", (True, False)),
        pair("Which of the two is it?", "both", "a response that is cut off"),
        pair("What?", "x", "why", (False, True)),  # one token; a prompt seen before
        pair("Q", " a", " b"),  # under template plain, a prompt of one token
    ]
)


def entropies_and_logp(model, ids):
    """Of every token but the first: the law's entropy and the token's log-probability, float64."""
    with torch.no_grad():
        law = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
    return -(law.exp() * law).sum(dim=-1), law[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]


def table_of(folder, tokenizer, settings, tokens_per_batch=200):
    pairs = list(tokenize_pairs(tokenizer, PAIRS, settings))
    return score_table(Scorer(load_model(folder), "float32"), pairs, tokenizer.eos_token_id, tokens_per_batch)


def expected_row(model, tokenizer, pair, header):
    entropy, logp = entropies_and_logp(model, pair.prompt)
    proper = max(0, len(pair.prompt) - 1 - header)
    row = {
        "prompt_tokens": proper,
        "prompt_logp": float(logp[:proper].sum()),
        "prompt_entropy": float(entropy[:proper].sum()),
        "header_tokens": len(entropy) - proper,
        "header_entropy": float(entropy[proper:].sum()),
    }
    for side in ("chosen", "rejected"):
        response = getattr(pair, side)
        entropy, logp = (values[-len(response) :] for values in entropies_and_logp(model, [*pair.prompt, *response]))
        ended = response[-1] == tokenizer.eos_token_id
        row |= {
            f"{side}_logp": float(logp.sum()),
            f"{side}_tokens": len(response),
            f"{side}_entropy": float(entropy.sum()),
            f"{side}_first_entropy": float(entropy[0]),
            f"{side}_end_entropy": float(entropy[-1]) if ended else 0.0,
            f"{side}_has_end": ended,
        }
    return row


@pytest.mark.parametrize("settings", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("tokens_per_batch", [1, 70, 1000])
def test_every_column_against_full_logits(folder, tokenizer, settings, tokens_per_batch):
    found = table_of(folder, tokenizer, settings, tokens_per_batch)
    model, header = load_model(folder).double(), len(HEADER) if settings.template == "chat" else 0
    assert found["pair_id"].tolist() == PAIRS["pair_id"].tolist()
    for index, tokenized in enumerate(tokenize_pairs(tokenizer, PAIRS, settings)):
        expected = expected_row(model, tokenizer, tokenized, header)
        assert set(found.columns) == {"pair_id", *expected}
        for name, value in expected.items():
            assert found[name].iloc[index] == pytest.approx(value, abs=2e-4), name


def test_what_the_rows_are(folder, tokenizer):
    plain, chat = (table_of(folder, tokenizer, settings) for settings in (PLAIN, CHAT))
    assert plain["prompt_tokens"].tolist() == [4, 22, 4, 0]
    assert plain.loc[3, ["prompt_logp", "prompt_entropy"]].tolist() == [0.0, 0.0]
    assert plain["header_tokens"].tolist() == [0, 0, 0, 0]
    # "user: What?\n" has twelve tokens, and the first is not predicted.
    assert chat["prompt_tokens"].tolist()[0] == 11
    assert chat["header_tokens"].tolist() == [len(HEADER)] * 4
    assert plain["chosen_tokens"].tolist() == [5, 5, 1, 3]
    assert plain["chosen_has_end"].tolist() == [True, True, False, True]
    assert plain["rejected_has_end"].tolist() == [False, False, True, True]  # not complete; cut; complete
    assert plain.loc[2, "chosen_entropy"] == plain.loc[2, "chosen_first_entropy"]


def test_prompts_are_scored_once_and_not_once_a_side(folder, tokenizer, monkeypatch):
    scored = []
    scorer = Scorer(load_model(folder), "float32")
    kept = scorer.token_scores

    def spy(batch, want_entropy=False):
        scored.extend(int(row.sum()) for row in batch.response)
        return kept(batch, want_entropy)

    monkeypatch.setattr(scorer, "token_scores", spy)
    pairs = list(tokenize_pairs(tokenizer, PAIRS, PLAIN))
    table = score_table(scorer, pairs, tokenizer.eos_token_id, 60)
    sides = int(table["chosen_tokens"].sum() + table["rejected_tokens"].sum())
    assert sum(scored) == sides + 4 + 22


def test_without_entropies_only_log_probabilities(folder, tokenizer):
    pairs = list(tokenize_pairs(tokenizer, PAIRS, PLAIN))
    scorer = Scorer(load_model(folder), "float32")
    found, whole = score_pairs(scorer, pairs, 60), score_table(scorer, pairs, tokenizer.eos_token_id, 60)
    assert found.columns.tolist() == ["pair_id", "chosen_logp", "chosen_tokens", "rejected_logp", "rejected_tokens"]
    pd.testing.assert_frame_equal(found, whole[found.columns])


def test_a_header_longer_than_what_is_left_of_the_prompt(folder, tokenizer):
    short = TokenSettings(template="chat", max_prompt=5, max_response=12)
    table = table_of(folder, tokenizer, short)
    assert table["prompt_tokens"].tolist() == [0] * 4
    assert table["header_tokens"].tolist() == [4] * 4


def test_header_length_is_what_the_generation_prompt_adds(tokenizer):
    for settings, header in ((CHAT, len(HEADER)), (PLAIN, 0)):
        assert {pair.header for pair in tokenize_pairs(tokenizer, PAIRS, settings)} == {header}


@torch.no_grad()
def test_entropies_are_float32_at_any_dtype_of_the_model(folder, tokenizer):
    """A bfloat16 model's logits are rounded; the softmax over them is not, as the official code's is."""
    model = load_model(folder, weights=torch.bfloat16)
    row = list(tokenize_pairs(tokenizer, PAIRS, PLAIN))[1]
    [(_, entropy)] = score_rows(Scorer(model, "float32"), [Row(row.prompt, row.chosen)])
    logits = model(torch.tensor([[*row.prompt, *row.chosen]])).logits[0, len(row.prompt) - 1 : -1]
    assert logits.dtype == torch.bfloat16

    def of(logits):
        law = torch.log_softmax(logits, dim=-1)
        return -(law.exp() * law).sum(dim=-1).double().numpy()

    assert abs(entropy - of(logits.double())).max() < 1e-5 < 1e-3 < abs(of(logits) - of(logits.double())).max()


def test_the_table_does_not_depend_on_the_batches(folder, tokenizer):
    tables = [table_of(folder, tokenizer, CHAT, tokens_per_batch) for tokens_per_batch in (1, 60, 1000)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table, check_exact=True)


def test_answers_to_a_prompt_go_together_as_far_as_they_fit():
    rows = [Row(prompt, [0] * length) for prompt, length in (([1], 3), ([2, 2], 1), ([1], 1), ([1], 4), ([3], 30))]
    assert answer_batches(rows, 7) == [[1], [2, 0], [3], [4]]
    assert answer_batches(rows, 8) == [[1, 2, 0], [3], [4]]
    assert answer_batches(rows, 1000) == [[1, 2, 0, 3, 4]]


def test_joins_go_by_id():
    table = pd.DataFrame({"pair_id": ["a", "b", "c"], "chosen_logp": [1.0, 2.0, float("nan")]})
    assert look_up(table, ["b", "a"], "file")["chosen_logp"].tolist() == [2.0, 1.0]
    with pytest.raises(InputError, match="file: no row for 1 of 2 pairs \\(first: d\\)"):
        look_up(table, ["a", "d"], "file")
    with pytest.raises(InputError, match="not finite \\(first: c\\)"):
        look_up(table, ["a", "c"], "file")
