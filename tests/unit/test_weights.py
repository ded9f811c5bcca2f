"""The stage "dispersion": its tables by value for every estimator, what it counts, and what it refuses."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from mallowspo import weights
from mallowspo.bigrams import bigram_columns
from mallowspo.dispersion import ESTIMATORS, Convention, Terms
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_parquet, write_json
from mallowspo.generation import sample_answers
from mallowspo.models import load_model, load_tokenizer
from mallowspo.pairs.prepared import open_tokens
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.sampled import answer_entropies
from mallowspo.scoring import Scorer
from mallowspo.settings import DispersionSettings, SamplingSettings
from tests.made_up_results import rewrite
from tests.made_up_run import prepare


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path, pairs=30)


def stage(prepared, **dispersion):
    """The stage again, under other settings: table and summary."""
    experiment, layout, model_folder = prepared
    view = experiment.stage_view("dispersion")
    view.dispersion = DispersionSettings.model_validate(dispersion)
    weights.run(view, layout, model_folder, "cpu")
    return read_parquet(layout.dispersion), read_json(layout.dispersion_summary)


@pytest.mark.parametrize("estimator", ["entropy", "chosen", "rejected", "prompt", "paper_sum"])
def test_each_estimator_of_the_reference_table(prepared, estimator):
    found, summary = stage(prepared, estimator=estimator)
    layout = prepared[1]
    train = found[found["split"] == "train"]
    from_table = ESTIMATORS[estimator](read_parquet(layout.reference("train")), _terms(summary))
    assert train["dispersion_index"].tolist() == pytest.approx(from_table.tolist())
    assert train["pair_id"].tolist() == read_parquet(layout.pairs("train"))["pair_id"].tolist()
    assert train["weight"].mean() == pytest.approx(1)
    assert found["weight"].to_numpy() == pytest.approx(-summary["constant"] * np.log(found["dispersion_index"]))
    assert found["phi"].to_numpy() == pytest.approx(np.exp(-found["weight"] / 2))
    assert (summary["estimator"], summary["pairs"], summary["official_constant"]) == (estimator, 34, 0.29)
    assert [summary[name] for name in ("clamped", "above_one", "zero_weight", "undefined")] == [0, 0, 0, 0]


def _terms(summary):
    return Terms(summary["vocabulary"], Convention(**summary["counts"]), summary.get("normaliser", "sequences"))


def test_controls_are_permutations_within_a_split_and_follow_the_seed(prepared):
    found, _ = stage(prepared)
    other, _ = stage(prepared, seed=1)
    for _, part in found.groupby("split"):
        for control in ("shuffled", "inverted", "length_matched"):
            assert sorted(part[f"weight_{control}"]) == sorted(part["weight"])
    assert found["weight"].tolist() == other["weight"].tolist()
    assert found["weight_inverted"].tolist() == other["weight_inverted"].tolist()
    for control in ("shuffled", "length_matched"):
        assert found[f"weight_{control}"].tolist() != other[f"weight_{control}"].tolist()
    again, _ = stage(prepared)
    pd.testing.assert_frame_equal(found, again)


def test_conventions_change_what_counts(prepared):
    own, summary = stage(prepared)
    official, official_summary = stage(prepared, convention="official")
    assert summary["counts"] == {"first_token": True, "end_token": True, "header": False}
    assert official_summary["counts"] == {"first_token": True, "end_token": True, "header": True}
    # Template plain has no header, so the official convention is ours.
    assert own["dispersion_index"].tolist() == official["dispersion_index"].tolist()
    layout = prepared[1]
    rewrite(layout.reference("train"), lambda table: table.assign(header_tokens=3, header_entropy=0.3))
    rewrite(layout.reference("test"), lambda table: table.assign(header_tokens=3, header_entropy=0.3))
    assert (stage(prepared, convention="official")[0]["dispersion_index"] < own["dispersion_index"]).all()
    assert stage(prepared)[0]["dispersion_index"].tolist() == own["dispersion_index"].tolist()


def test_a_given_constant_is_taken_and_said(prepared):
    found, summary = stage(prepared, constant=0.29)
    assert (summary["constant"], summary["calibrated"]) == (0.29, False)
    assert found["weight"].to_numpy() == pytest.approx(0.29 * found["neg_log_index"])
    assert summary["mean_weight_train"] != pytest.approx(1, abs=0.1)


def test_clamped_uniform_and_undefined_pairs_are_counted(prepared):
    layout = prepared[1]

    def change(table):
        sides = {f"{side}_{name}": table[f"{side}_{name}"].copy() for side in ("chosen", "rejected")
                 for name in ("entropy", "first_entropy", "tokens")}  # fmt: skip
        for side in ("chosen", "rejected"):
            sides[f"{side}_entropy"][0] = 0.0  # certain
            sides[f"{side}_first_entropy"][0] = 0.0
            sides[f"{side}_entropy"][1] = sides[f"{side}_tokens"][1] * math.log(259)  # uniform
            sides[f"{side}_first_entropy"][1] = math.log(259)
            sides[f"{side}_entropy"][2] = sides[f"{side}_first_entropy"][2]  # one token
            sides[f"{side}_tokens"][2] = 1
        return table.assign(**sides)

    rewrite(layout.reference("train"), change)
    found, summary = stage(prepared, first_token=False)
    assert [summary[name] for name in ("clamped", "above_one", "zero_weight", "undefined")] == [1, 0, 1, 1]
    assert found["dispersion_index"].iloc[0] == 1e-4
    assert found["weight"].iloc[1] == 0
    assert found["weight"].iloc[2] == pytest.approx(1)
    assert found.loc[found["split"] == "train", "weight"].mean() == pytest.approx(1)
    assert np.isfinite(found.select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("chosen_entropy", math.nan, "chosen_entropy is nan"),
        ("rejected_entropy", math.inf, "rejected_entropy is inf"),
        ("chosen_entropy", -1.0, "chosen_entropy is -1.0"),
        ("chosen_entropy", 1e6, "outside [0, log V] a token"),
        ("chosen_tokens", 0, "chosen response has no tokens"),
    ],
)
def test_impossible_values_are_refused_with_pair_and_file(prepared, column, value, says):
    layout = prepared[1]

    def change(table):
        values = table[column].copy()
        values[2] = value
        return table.assign(**{column: values})

    rewrite(layout.reference("test"), change)
    pair_id = read_parquet(layout.reference("test"))["pair_id"][2]
    with pytest.raises(InputError) as caught:
        stage(prepared)
    message = str(caught.value)
    assert says in message
    assert f"{layout.reference('test')}: pair {pair_id}: " in message
    assert len(message.splitlines()) == 1


def test_uniform_laws_everywhere_are_an_error(prepared):
    uniform = {f"{side}_entropy": lambda table, side=side: table[f"{side}_tokens"] * math.log(259)
               for side in ("chosen", "rejected")}  # fmt: skip
    rewrite(prepared[1].reference("train"), lambda table: table.assign(**uniform))
    with pytest.raises(InputError, match="weights would all be 0"):
        stage(prepared)


def test_an_older_table_is_told_apart(prepared):
    rewrite(prepared[1].reference("train"), lambda table: table.drop(columns="prompt_entropy"))
    with pytest.raises(InputError, match="no column 'prompt_entropy'; delete the file"):
        stage(prepared, estimator="prompt")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": "bigram", "end_token": False}, "estimator 'bigram' does not read end_token"),
        ({"estimator": "prompt", "first_token": False}, "estimator 'prompt' does not read first_token"),
        ({"estimator": "votes", "header": True}, "estimator 'votes' does not read header"),
        ({"normaliser": "vocabulary"}, "estimator 'entropy' does not read normaliser"),
        ({"constant": 0}, "'calibrated' or a number above 0"),
    ],
)
def test_a_choice_that_would_be_ignored_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DispersionSettings.model_validate(settings)
    assert DispersionSettings(estimator="prompt", header=True).header


def test_a_padded_vocabulary_is_reported(prepared):
    layout = prepared[1]
    assert "tokenizer_vocabulary" not in stage(prepared)[1]
    write_json(layout.reference_summary, read_json(layout.reference_summary) | {"tokenizer_vocabulary": 250})
    _, summary = stage(prepared)
    assert (summary["vocabulary"], summary["tokenizer_vocabulary"]) == (259, 250)


def test_votes_come_from_the_pairs(prepared):
    layout = prepared[1]

    def vote(table):
        votes = [{"votes_chosen": 3 + number % 3, "votes_rejected": 1} for number in range(len(table))]
        return table.assign(meta=[json.dumps(json.loads(m) | v) for m, v in zip(table["meta"], votes, strict=True)])

    for split in ("train", "test"):
        rewrite(layout.pairs(split), vote)
    found, _ = stage(prepared, estimator="votes")
    bits = [-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) for p in (3 / 4, 4 / 5, 5 / 6)]
    assert found["dispersion_index"].tolist()[:6] == pytest.approx([*bits, *bits])


def test_pairs_without_votes_are_refused(prepared):
    with pytest.raises(InputError, match=r"pair \w+ of train has no votes_chosen and votes_rejected"):
        stage(prepared, estimator="votes")


def test_bigram_entropies_are_asked_of_the_model(prepared):
    _, layout, model_folder = prepared
    found, summary = stage(prepared, estimator="bigram")
    tokenizer, exact = load_tokenizer(model_folder), load_model(model_folder).double()
    index = found.set_index("pair_id")["dispersion_index"]
    for pair in open_tokens(layout.tokens("test")):
        assert pair.prompt[0] != tokenizer.bos_token_id
        sides = []
        for response in (pair.chosen, pair.rejected):
            with torch.no_grad():
                law = torch.log_softmax(exact(torch.tensor(response[:-1])[:, None]).logits[:, 0], dim=-1)
            sides.append(float(-(law.exp() * law).sum(dim=-1).mean()) / math.log(summary["vocabulary"]))
        assert index[pair.pair_id] == pytest.approx(sum(sides) / 2, abs=1e-5)
    assert "chosen_bigram_entropy" not in read_parquet(layout.reference("test"))


def test_bigrams_begin_where_the_prompts_do(prepared):
    _, layout, model_folder = prepared
    tokenizer, scorer = load_tokenizer(model_folder), Scorer(load_model(model_folder), "float32")
    start = tokenizer.bos_token_id
    [pair] = open_tokens(layout.tokens("test"))[:1]
    begun = dataclasses.replace(pair, prompt=[start, *pair.prompt], chosen=pair.chosen[:1])
    table = bigram_columns(scorer, start, {"test": [begun]})["test"]
    with torch.no_grad():
        given = torch.tensor([[start, token] for token in begun.rejected[:-1]])
        law = torch.log_softmax(load_model(model_folder).double()(given).logits[:, 1], dim=-1)
    assert table["rejected_bigram_entropy"].tolist() == pytest.approx([float(-(law.exp() * law).sum())], abs=1e-3)
    assert table["chosen_bigram_entropy"].tolist() == [0]  # one token follows no token of its own


def test_sampled_answers_of_the_reference(prepared):
    found, _ = stage(prepared, estimator="sampled", samples=3)
    again, _ = stage(prepared, estimator="sampled", samples=3)
    other, _ = stage(prepared, estimator="sampled", samples=3, seed=1)
    pd.testing.assert_frame_equal(found, again)
    assert found["dispersion_index"].tolist() != other["dispersion_index"].tolist()
    assert found["dispersion_index"].between(0.7, 1).all()
    # Two estimates of the same prompts differ by as much as their variances say.
    differ = (found["dispersion_index"] - other["dispersion_index"]).to_numpy()
    spread = (found["index_variance"] + other["index_variance"]).to_numpy()
    assert (differ**2 / spread).mean() == pytest.approx(1, abs=1.2)
    assert (found["index_variance"] > 0).all()


def test_answer_entropies_are_those_of_the_sampled_tokens(prepared):
    experiment, layout, model_folder = prepared
    tokens = experiment.stage_view("dispersion").tokens
    tokenizer, model = load_tokenizer(model_folder), load_model(model_folder)
    rows = read_parquet(layout.pairs("test")).to_dict("records")
    prompts = [tokenize_prompt(tokenizer, row["prompt"], json.loads(row["messages"]), tokens)[0] for row in rows]
    sampling = SamplingSettings(answers=2, max_new_tokens=10)
    sums, lengths = answer_entropies(tokenizer, prompts, sampling, Scorer(model, "float32"), 60)
    assert sums.shape == lengths.shape == (4, 2)
    exact = load_model(model_folder).double()
    for answer in sample_answers(model, tokenizer, prompts, sampling):
        prompt = prompts[answer.prompt_index]
        with torch.no_grad():
            logits = exact(torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
        law = torch.log_softmax(logits.double(), dim=-1)
        place = (answer.prompt_index, answer.answer_index)
        assert lengths[place] == len(answer.token_ids)
        assert sums[place] == pytest.approx(float(-(law.exp() * law).sum()), abs=1e-3)
