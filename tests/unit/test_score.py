"""The stage "score" against log-probabilities worked out plainly."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from mallowspo import training
from mallowspo.evaluation import answers, score, score_parts
from mallowspo.experiments import load_experiment
from mallowspo.files import read_jsonl, read_parquet, write_jsonl
from mallowspo.layout import REFERENCE
from mallowspo.models import load_model, load_tokenizer
from mallowspo.shard import Shard
from tests.made_up_run import ROOT, prepare

MAX_RESPONSE = 32  # tokens.max_response of the smoke experiment


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A trained policy with its answers and scores, and the reference's."""
    experiment, layout, folder = prepare(tmp_path_factory.mktemp("run"))
    training.run(experiment.stage_view("train"), experiment.methods["dpo"], "dpo", 1, layout, folder, "cpu", 4000)
    for method, seed, model in ((REFERENCE, 0, folder), ("dpo", 1, layout.run("dpo", 1) / "model")):
        answers.run(experiment.stage_view("generate"), layout, model, method, seed, "cpu")
        score.run(experiment.stage_view("score"), layout, folder, model, method, seed, "cpu")
    return layout, folder


@pytest.fixture
def again(scored):
    """Scores a policy again, all of it or a shard."""
    view = load_experiment(str(ROOT / "config/experiments/smoke.yaml")).stage_view("score")
    layout, folder = scored

    def run(method, seed, shard=None):
        policy = folder if method == REFERENCE else layout.run(method, seed) / "model"
        score.run(view, layout, folder, policy, method, seed, "cpu", shard)

    return run


def token_logp(model, tokenizer, prompt, response):
    ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        law = torch.log_softmax(model(torch.tensor([[*ids, *response]])).logits[0].double(), dim=-1)
    return [float(law[len(ids) - 1 + place, token]) for place, token in enumerate(response)]


def log_probability(model, tokenizer, prompt, response):
    return sum(token_logp(model, tokenizer, prompt, response))


def test_kl_is_the_log_ratio_of_the_sampled_tokens(scored):
    layout, folder = scored
    tokenizer = load_tokenizer(folder)
    policy, reference = (load_model(place).double() for place in (layout.run("dpo", 1) / "model", folder))
    table = read_parquet(layout.scores("dpo", 1) / "score.parquet").query("metric == 'kl'")
    found = table.set_index(["prompt_id", "answer_index"])["value"]
    rows = read_jsonl(layout.samples("dpo", 1))
    assert len(found) == len(rows) == 8
    for row in rows:
        sides = [log_probability(m, tokenizer, row["instruction"], row["token_ids"]) for m in (policy, reference)]
        assert found[row["prompt_id"], row["answer_index"]] == pytest.approx(sides[0] - sides[1], abs=1e-3)
    assert found.abs().max() > 0.01
    k3 = read_parquet(layout.scores("dpo", 1) / "score.parquet").query("metric == 'kl_k3'")
    k3 = k3.set_index(["prompt_id", "answer_index"])["value"].loc[found.index]
    np.testing.assert_allclose(k3, np.exp(-found) - 1 + found, atol=1e-12)
    assert (k3 > 0).all()
    by_token = read_parquet(layout.scores("dpo", 1) / "score.parquet").query("metric == 'kl_k3_by_token'")
    by_token = by_token.set_index(["prompt_id", "answer_index"])["value"]
    for row in rows:
        value = by_token[row["prompt_id"], row["answer_index"]]
        ours, theirs = (token_logp(m, tokenizer, row["instruction"], row["token_ids"]) for m in (policy, reference))
        ratios = np.array(ours) - np.array(theirs)
        assert value == pytest.approx(float((np.exp(-ratios) - 1 + ratios).sum()), abs=1e-3)


def test_the_reference_has_no_kl_and_no_pairs(scored):
    layout, _ = scored
    table = read_parquet(layout.scores(REFERENCE, 0) / "score.parquet")
    assert set(table[table["metric"].str.startswith("kl")]["value"]) == {0.0}
    assert not (layout.scores(REFERENCE, 0) / "pairs.parquet").exists()


def test_rewards_and_lengths_are_the_answers(scored):
    layout, _ = scored
    table = read_parquet(layout.scores("dpo", 1) / "score.parquet").set_index(["metric", "prompt_id", "answer_index"])
    for row in read_jsonl(layout.samples("dpo", 1)):
        key = (row["prompt_id"], row["answer_index"])
        vowels = sum(character in "aeiou" for character in row["output"].lower()) / max(1, len(row["output"]))
        assert table.loc[("reward", *key), "value"] == pytest.approx(vowels)
        assert table.loc[("tokens", *key), "value"] == len(row["token_ids"])
        assert table.loc[("complete", *key), "value"] == float(row["complete"])
        words = row["token_ids"][:-1] if row["complete"] else row["token_ids"]
        assert table.loc[("distinct_1", *key), "value"] == pytest.approx(len(set(words)) / len(words) if words else 1)
        assert {table.loc[(name, *key), "value"] >= 0 for name in ("distinct_2", "repetition", "refusal")} == {True}


def test_margins_of_held_out_pairs(scored):
    layout, folder = scored
    tokenizer = load_tokenizer(folder)
    policy, reference = (load_model(place).double() for place in (layout.run("dpo", 1) / "model", folder))
    found = read_parquet(layout.scores("dpo", 1) / "pairs.parquet").set_index("pair_id")
    pairs = read_parquet(layout.pairs("test"))
    assert set(found.index) == set(pairs["pair_id"])
    for pair in pairs.to_dict("records"):
        margin = 0.0
        row = found.loc[pair["pair_id"]]
        for side, sign in (("chosen", 1), ("rejected", -1)):
            ids = tokenizer(pair[side], add_special_tokens=False)["input_ids"]
            ids += [tokenizer.eos_token_id] if json.loads(pair["meta"])[f"{side}_complete"] else []
            ids = ids[:MAX_RESPONSE]
            ratio = [log_probability(model, tokenizer, pair["prompt"], ids) for model in (policy, reference)]
            margin += sign * (ratio[0] - ratio[1])
            assert row[f"{side}_change"] == pytest.approx(ratio[0] - ratio[1], abs=1e-3)
            assert row[f"{side}_change_per_token"] == pytest.approx((ratio[0] - ratio[1]) / len(ids), abs=1e-3)
        assert found["margin"][pair["pair_id"]] == pytest.approx(margin, abs=1e-3)
        assert found["correct"][pair["pair_id"]] == 0.5 + 0.5 * np.sign(margin)
        assert found["prompt_id"][pair["pair_id"]] == pair["prompt_id"]


def test_an_answer_that_ends_at_once_is_scored(scored, again):
    layout, folder = scored
    rows = read_jsonl(layout.samples("dpo", 1))
    rows[0] |= {"output": "", "token_ids": [load_tokenizer(folder).eos_token_id], "tokens": 1, "complete": True}
    write_jsonl(layout.samples("dpo", 2), rows)
    (layout.run("dpo", 2)).symlink_to(layout.run("dpo", 1))
    again("dpo", 2)
    table = read_parquet(layout.scores("dpo", 2) / "score.parquet")
    assert bool(np.isfinite(table["value"]).all())


@pytest.mark.parametrize(
    ("method", "seed", "parts"), [("dpo", 1, ["answers"] * 4 + ["pairs"] * 2), (REFERENCE, 0, ["answers"] * 4)]
)
def test_jobs_that_share_the_scores_find_the_same(scored, again, monkeypatch, method, seed, parts):
    layout, _ = scored
    folder = layout.scores(method, seed)
    whole = {
        name: read_parquet(folder / name) for name in ("score.parquet", "pairs.parquet") if (folder / name).exists()
    }
    for name in whole:
        (folder / name).unlink()
    shutil.rmtree(folder / "parts")
    # Eight answers, two of each prompt, which stay together; four pairs.
    monkeypatch.setattr(score_parts, "SIZE", 3)
    for number in (1, 2, 3):
        again(method, seed, Shard(number, 3))
    assert not [name for name in whole if (folder / name).exists()]
    assert sorted(file.name.partition("-")[0] for file in (folder / "parts").rglob("*.parquet")) == parts
    monkeypatch.setattr(score, "_open", None)  # all parts are there: no model is asked
    again(method, seed)
    for name, table in whole.items():
        pd.testing.assert_frame_equal(read_parquet(folder / name), table, rtol=0, atol=1e-4)


def test_a_killed_job_goes_on_behind_its_last_part(scored, again, monkeypatch):
    layout, _ = scored
    shutil.rmtree(layout.scores("dpo", 1) / "parts")
    monkeypatch.setattr(score_parts, "SIZE", 2)
    write = score.AnswerScores.write
    written = []

    def killed(self, part, kl):
        if part.start == 4:
            raise KeyboardInterrupt
        written.append(part.start)
        write(self, part, kl)

    monkeypatch.setattr(score.AnswerScores, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        again("dpo", 1)
    monkeypatch.setattr(
        score.AnswerScores, "write", lambda self, part, kl: (written.append(part.start), write(self, part, kl))
    )
    again("dpo", 1)
    assert written == [0, 2, 4, 6]


def test_other_answers_share_no_part(scored, again):
    layout, _ = scored
    again("dpo", 1)
    before = len(list((layout.scores("dpo", 1) / "parts").iterdir()))
    rows = read_jsonl(layout.samples("dpo", 1))
    write_jsonl(layout.samples("dpo", 1), [row | {"output": "aeiou"} for row in rows])
    again("dpo", 1)
    write_jsonl(layout.samples("dpo", 1), rows)
    table = read_parquet(layout.scores("dpo", 1) / "score.parquet")
    assert set(table[table["metric"] == "reward"]["value"]) == {1.0}
    assert len(list((layout.scores("dpo", 1) / "parts").iterdir())) == before + 1
