"""The study of dispersion estimates: its truths by enumeration, its statistics by other means, its files of votes."""

import gzip
import itertools
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mallowspo.dispersion_study import figures, people, rankings, tokens, words
from mallowspo.dispersion_study.association import (
    RankCorrelation,
    needed,
    partial_spearman,
    power,
    rank_correlations,
    spearman,
)
from mallowspo.dispersion_study.chain import Answers, Chain
from mallowspo.dispersion_study.estimators import binary_entropy, choice_entropy, indices
from mallowspo.dispersion_study.settings import ChainSettings, RankingSettings, StatisticsSettings, find
from mallowspo.dispersion_study.study import score_votes
from mallowspo.errors import InputError
from mallowspo.experiments import dump_settings, load_experiment
from mallowspo.layout import Layout
from mallowspo.mallows.rankings import ranking_law
from mallowspo.models import make_made_up
from mallowspo.paper import study_tables
from mallowspo.paper.settings import load_paper
from mallowspo.report.style import Panel, csv
from mallowspo.studies.page import run as run_study

QUICK = StatisticsSettings(resamples=99, permutations=99)


# (b) the chain


def small_chain():
    scores = np.random.default_rng(1).normal(size=(3, 3, 2))
    return Chain(scores, temperature=np.array([0.5, 2.0]), stop=np.array([0.3, 0.1]), max_tokens=4)


def sequences(chain, prompt):
    """Every answer with its probability, written out: words 0 and 1, end 2, cut after four tokens."""

    def grow(answer, probability):
        if len(answer) == chain.max_tokens or answer[-1:] == (2,):
            yield answer, probability
            return
        before, last = (2, 2, *answer)[-2:]
        logits = chain.scores[before, last] / chain.temperature[prompt]
        words_law = np.exp(logits) / np.exp(logits).sum()
        stop = 0.0 if not answer else chain.stop[prompt]
        for token, share in enumerate([*((1 - stop) * words_law), stop]):
            if share:
                yield from grow((*answer, token), probability * share)

    return list(grow((), 1.0))


def test_sequence_entropy_and_length_by_enumeration():
    chain = small_chain()
    for prompt in (0, 1):
        answers = sequences(chain, prompt)
        shares = np.array([share for _, share in answers])
        assert shares.sum() == pytest.approx(1, abs=1e-12)
        assert chain.sequence_entropy[prompt] == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)
        lengths = [len(answer) for answer, _ in answers]
        assert chain.mean_length[prompt] == pytest.approx(shares @ lengths, abs=1e-12)


def test_bigram_law_by_enumeration():
    chain = small_chain()
    follows = np.zeros((2, 2, 3))  # prompt, word, what comes next
    for prompt in (0, 1):
        for answer, share in sequences(chain, prompt):
            for word, following in itertools.pairwise(answer):
                follows[prompt, word, following] += share
    by_prompt = chain.bigram_entropies(by_prompt=True)
    pooled = chain.bigram_entropies(by_prompt=False)
    np.testing.assert_allclose(by_prompt, stats.entropy(follows, axis=-1), atol=1e-12)
    np.testing.assert_allclose(pooled, np.tile(stats.entropy(follows.sum(axis=0), axis=-1), (2, 1)), atol=1e-12)


def test_entropies_and_probability_of_one_answer():
    chain = small_chain()
    answer = (1, 0, 2)
    answers = Answers(np.array([[[*answer, -1]]] * 2), np.full((2, 1), 3), np.ones((2, 1), dtype=bool))
    for prompt in (0, 1):
        shares = dict(sequences(chain, prompt))
        assert chain.log_probabilities(answers)[prompt, 0] == pytest.approx(math.log(shares[answer]), abs=1e-12)
    entropies = chain.token_entropies(answers)[0, 0]
    after_one = chain.laws[0, 2, 1]
    assert entropies[1] == pytest.approx(-(after_one * np.log(after_one)).sum())
    assert entropies[3] == 0


def test_samples_follow_the_law():
    chain = small_chain()
    answers = chain.sample(np.random.default_rng(0), 20_000)
    found = -chain.log_probabilities(answers)
    error = found.std(axis=1) / math.sqrt(found.shape[1])
    assert (np.abs(found.mean(axis=1) - chain.sequence_entropy) < 4 * error).all()
    # The sum of an answer's token entropies is unbiased for the same number, and varies less.
    sums = chain.token_entropies(answers).sum(axis=-1)
    assert (np.abs(sums.mean(axis=1) - chain.sequence_entropy) < 4 * error).all()
    assert (sums.std(axis=1) < found.std(axis=1)).all()
    assert (answers.ended == (answers.tokens == chain.words).any(axis=-1)).all()
    assert (answers.lengths == (answers.tokens >= 0).sum(axis=-1)).all()


def test_estimators_on_known_token_laws():
    settings = ChainSettings(prompts=120, samples=64)
    found = {condition.name: condition for condition in tokens.conditions(settings, 0)}
    table = tokens.summarise(found[tokens.DIFFER], QUICK, 0).set_index("estimator")
    # Averaged over tokens: right a token, not for the answer; summed over samples: right for the answer.
    assert table.loc["entropy", "rho_rate"] > 0.95 > 0.7 > table.loc["entropy", "rho_sequence"]
    assert table.loc[tokens.SAMPLED_SUM, "rho_sequence"] > 0.8
    assert abs(table.loc[tokens.SAMPLED_SUM, "bias"]) < 0.2
    # The bigram cannot know the prompt's temperature; within the prompt it would.
    assert table.loc["bigram", "rho_rate"] < 0.6 < 0.85 < table.loc[tokens.BIGRAM_BY_PROMPT, "rho_rate"]
    # Header tokens without entropy dilute the mean.
    assert table.loc["entropy, convention: official", "bias"] < -0.15
    equal = found[tokens.EQUAL]
    assert np.ptp(equal.mean_length) == pytest.approx(0, abs=1e-9)


def test_the_official_convention_needs_a_header():
    settings = ChainSettings(prompts=12)
    rng = np.random.default_rng(0)
    columns = tokens.pair_columns(*tokens.make_chains(settings, rng, True), settings, rng, 1.0)
    assert "entropy, convention: official" in indices(columns, 9)
    columns["header_tokens"] = np.zeros(12)
    assert "entropy, convention: official" not in indices(columns, 9)


# (a) rankings


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("phi", [0.3, 0.8])
def test_exact_index_by_enumeration(phi, exponent):
    law, shares = ranking_law(np.arange(4), phi, "kendall", exponent)
    first = [shares[law[:, item] == 0].sum() for item in range(4)]
    exact = rankings.exact_index(phi, 4, exponent)
    assert exact[rankings.CHOICE] == pytest.approx(stats.entropy(first) / math.log(4), abs=1e-12)
    assert exact[rankings.RANKING] == pytest.approx(stats.entropy(shares) / math.log(24), abs=1e-12)


def test_plug_in_index_by_hand():
    # Places of items; first choices: item 0, item 0, item 1; rankings: two kinds of three.
    found = rankings.plug_in_index(np.array([[0, 1, 2], [0, 1, 2], [1, 0, 2]]))
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found[rankings.CHOICE] == pytest.approx(expected / math.log(3))
    assert found[rankings.RANKING] == pytest.approx(expected / math.log(6))


def test_likelihood_recovers_phi_and_the_entropy_form_bends():
    settings = RankingSettings(phis=[0.4, 0.6, 0.8, 0.9], items=[4], annotators=[400])
    table = rankings.simulate(settings, 6, seed=0)
    summary = rankings.summarise(table, QUICK, 0).set_index("estimator")
    assert summary.loc[rankings.LIKELIHOOD, "slope"] == pytest.approx(1, abs=0.05)
    assert summary.loc[rankings.LIKELIHOOD, "bias"] == pytest.approx(0, abs=0.02)
    exact = rankings.exact_summary(settings).set_index("estimator")
    for form in (rankings.CHOICE, rankings.RANKING):
        assert exact.loc[form, "slope"] > 1.2
        assert summary.loc[form, "slope"] == pytest.approx(exact.loc[form, "slope"], abs=0.1)
        assert summary.loc[form, "slope_low"] < summary.loc[form, "slope"] < summary.loc[form, "slope_high"]
        assert exact.loc[form, "rho"] == 1


def test_agreement_is_capped_and_counted():
    same = np.tile(np.arange(3), (5, 1))
    assert set(rankings.estimates(same, 2).values()) == {math.inf}
    settings = RankingSettings(phis=[0.01, 0.02, 0.03], items=[2], annotators=[3], cap=3.0)
    table = rankings.simulate(settings, 4, seed=0)
    assert table["capped"].all() and (table["estimate"] == 3).all()


# statistics


def test_spearman_and_its_partial_form():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(6, size=(3, 40)).astype(float)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    ranks = [stats.rankdata(values) for values in (x, y, z)]
    design = np.column_stack([np.ones(40), ranks[2]])
    residuals = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
    assert partial_spearman(x, y, z) == pytest.approx(np.corrcoef(*residuals)[0, 1])


def test_correlations_with_their_tests():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    length = rng.normal(size=200)
    estimates = {"near": truth + rng.normal(size=200), "chance": rng.normal(size=200), "same": np.ones(200)}
    found = rank_correlations(estimates, truth, length, resamples=400, permutations=999, seed=1)
    near, chance, same = found["near"], found["chance"], found["same"]
    assert near.p == 0.001 and near.p_holm == pytest.approx(0.003)
    assert near.low < near.rho < near.high and near.low > 0.5
    assert chance.low < 0 < chance.high and chance.p > 0.05
    assert math.isnan(same.rho) and same.p == 1
    # Fisher's interval for Spearman, by the formula.
    half = 1.96 * math.sqrt((1 + near.rho**2 / 2) / 197)
    assert near.low == pytest.approx(math.tanh(math.atanh(near.rho) - half), abs=0.05)
    again = rank_correlations(estimates, truth, length, resamples=400, permutations=999, seed=1)
    assert again["near"] == near and again["chance"] == chance


def test_permutation_p_by_enumeration():
    x, y = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 3.0, 5.0, 4.0])
    observed = stats.spearmanr(x, y).statistic
    reached = [abs(stats.spearmanr(x, y[list(order)]).statistic) >= observed - 1e-12
               for order in itertools.permutations(range(5))]  # fmt: skip
    found = rank_correlations({"x": x}, y, permutations=20_000, resamples=99)["x"]
    assert found.p == pytest.approx(np.mean(reached), abs=0.01)


def test_power():
    assert needed(0.1) == 787
    assert power(0.1, 787) == pytest.approx(0.8, abs=1e-3)
    assert power(0.1, 786) < 0.8 < power(0.1, 1532)
    # By simulation: rank correlation of normal variables whose Spearman's rho is 0.3.
    rng = np.random.default_rng(0)
    pearson = 2 * math.sin(math.pi * 0.3 / 6)
    x = rng.normal(size=(2000, 80))
    y = pearson * x + math.sqrt(1 - pearson**2) * rng.normal(size=(2000, 80))
    rho = spearman(x, y)
    rejected = np.abs(np.arctanh(rho)) * math.sqrt(77 / 1.0) > 1.96
    assert power(0.3, 80) == pytest.approx(rejected.mean(), abs=0.04)


# (c) votes


def alpha_row(votes=(97, 3), **changes):
    example = {
        "obs1": "Ron {x} began.",
        "obs2": "Ron was fired.",
        "hyp1": "He was rude.",
        "hyp2": "He slept.",
    } | changes
    return {"example": example, "label_count": list(votes), "entropy": 0.1943918578315762}


def plain_row(number=0, votes_a=3, votes_b=2):
    return {"prompt": f"Say {number}", "a": "yes it is", "b": "no", "votes_a": votes_a, "votes_b": votes_b}


def write_rows(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_entropy_of_votes():
    assert binary_entropy(np.array([0.97]))[0] == pytest.approx(0.1943918578315762)  # ChaosNLI's own number
    np.testing.assert_allclose(binary_entropy(np.array([0.5, 0.0, 1.0])), [1, 0, 0])
    np.testing.assert_allclose(choice_entropy(np.array([0.0, math.log(97 / 3), 1e9])), [1, 0.1943918578, 0], atol=1e-9)


def test_both_forms_are_read(tmp_path):
    path = write_rows(tmp_path / "votes.jsonl.gz", [alpha_row(), plain_row(), plain_row(1, 0, 7)])
    votes = people.read_votes(path, "First {obs1} last {obs2}")
    assert votes["prompt"].tolist() == ["First Ron {x} began. last Ron was fired.", "Say 0", "Say 1"]
    assert votes[["row", "votes_a", "votes_b"]].to_numpy().tolist() == [[1, 97, 3], [2, 3, 2], [3, 0, 7]]
    pairs = people.as_pairs(votes, "plain")
    assert pairs["chosen"].tolist() == [" He was rude.", " yes it is", " no"]
    assert people.as_pairs(votes, "chat")["chosen"].tolist() == ["He was rude.", "yes it is", "no"]


BROKEN = {
    "sum to 0": plain_row(votes_a=0, votes_b=0),
    "votes_a is -1": plain_row(votes_a=-1),
    "votes_b is 0.5": plain_row(votes_b=0.5),
    "votes_b is None": plain_row(votes_b=None),
    "votes_a is True": plain_row(votes_a=True),
    "no b, votes_b": {"prompt": "x", "a": "y", "votes_a": 1},
    "a is ''": plain_row() | {"a": ""},
    "same text": plain_row() | {"b": " yes it is"},
    "a list of two votes": alpha_row((1, 2, 3)),
    "example has no hyp2": {"example": {"obs1": "a", "obs2": "b", "hyp1": "c"}, "label_count": [1, 2]},
    "repeats row 1": plain_row(1, 5, 5),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_row_is_named(tmp_path, problem):
    path = write_rows(tmp_path / "votes.jsonl", [plain_row(1), plain_row(2), BROKEN[problem]])
    with pytest.raises(InputError) as error:
        people.read_votes(path, "{obs1}{obs2}")
    assert f"{path}: row 3" in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(plain_row()) + "\n{broken\n")
    with pytest.raises(InputError, match="after row 1"):
        people.read_votes(path, "{obs1}{obs2}")


def test_a_draw_is_seeded_and_in_order(tmp_path):
    votes = pd.DataFrame({"row": range(1, 101)})
    drawn = people.draw(votes, 30, seed=3)
    assert len(drawn) == 30 and drawn["row"].is_monotonic_increasing
    pd.testing.assert_frame_equal(drawn, people.draw(votes, 30, seed=3))
    assert people.draw(votes, 100, seed=3) is votes


def test_reliability_of_votes():
    rng = np.random.default_rng(0)
    share = rng.random(400)

    def votes(count):
        first = rng.binomial(count, share)
        return pd.DataFrame({"votes_a": first, "votes_b": count - first})

    # What it promises: the correlation with another set of as many voters.
    for count in (10, 100):
        first, second = votes(count), votes(count)
        between = spearman(*(binary_entropy(part["votes_a"].to_numpy() / count) for part in (first, second)))
        assert people.reliability(first, 0) == pytest.approx(float(between), abs=0.07)
    assert math.isnan(people.reliability(pd.DataFrame({"votes_a": [1, 3], "votes_b": [0, 1]}), 0))


# files and variables


def test_where_a_file_of_votes_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("VOTES_FOLDER", raising=False)
    source = "path:${VOTES_FOLDER}/votes.jsonl"
    assert find(source) == "the environment variable VOTES_FOLDER is not set"
    monkeypatch.setenv("VOTES_FOLDER", str(tmp_path))
    assert find(source) == "VOTES_FOLDER is set, but holds no file votes.jsonl"
    path = write_rows(tmp_path / "votes.jsonl", [plain_row()])
    assert find(source) == path
    # Named without a variable it must be there.
    with pytest.raises(InputError, match="people.files: .*other.jsonl: no such file"):
        small_study(tmp_path, f"path:{tmp_path}/other.jsonl")
    study = small_study(tmp_path, f'path:{path}", "path:{path}')
    with pytest.raises(InputError, match="would share the name votes"):
        score_votes(study, None)


SETTINGS = """
kind: dispersion_study
title: Small
seeds: 3
model: {{source: "made_up:two_layers"}}
rankings: {{phis: [0.4, 0.6, 0.9], items: [2, 3], annotators: [5, 20]}}
chain: {{prompts: 24, max_tokens: 8, mean_lengths: [3, 6]}}
people:
  files: ["{source}"]
  tokens_per_batch: 500
statistics: {{resamples: 99, permutations: 99}}
"""


def small_study(tmp_path, source="path:${VOTES_FOLDER}/votes.jsonl"):
    path = tmp_path / "small.yaml"
    path.write_text(SETTINGS.format(source=source))
    return load_experiment(str(path))


def test_what_the_study_depends_on(tmp_path, monkeypatch):
    monkeypatch.delenv("VOTES_FOLDER", raising=False)
    study = small_study(tmp_path)
    seen = [study.stage_digest("study")]
    assert study.input_files() == []
    monkeypatch.setenv("VOTES_FOLDER", str(tmp_path))
    seen.append(study.stage_digest("study"))
    path = write_rows(tmp_path / "votes.jsonl", [plain_row(1)])
    seen.append(study.stage_digest("study"))
    assert study.input_files() == [str(path)]
    write_rows(path, [plain_row(2)])
    seen.append(study.stage_digest("study"))
    assert len(set(seen)) == 4
    assert study.stage_digest("study") == seen[-1]
    model = study.stage_digest("model")
    monkeypatch.delenv("VOTES_FOLDER")
    assert study.stage_digest("model") == model


def test_wrong_settings_are_told(tmp_path):
    path = tmp_path / "wrong.yaml"
    for old, new, message in (
        ("0.9]", "1.0]", "every phi must lie between 0 and 1"),
        ("items: [2, 3]", "items: [1, 3]", "from 2 to 12 items"),
        ("tokens_per_batch: 500", "token_per_batch: 500", "did you mean 'tokens_per_batch'"),
        ("tokens_per_batch: 500", "wording: only {obs1}", "must hold {obs1} and {obs2}"),
    ):
        path.write_text(SETTINGS.format(source="path:${VOTES_FOLDER}/x").replace(old, new))
        with pytest.raises(InputError) as error:
            load_experiment(str(path))
        assert message in str(error.value)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_made_up(folder)
    return folder


def run_small(tmp_path, model_folder, name):
    study = small_study(tmp_path)
    layout = Layout(str(tmp_path / name), "small")
    run_study(study, layout, model_folder, dump_settings(study))
    return layout


@pytest.fixture
def undrawn(monkeypatch):
    """Panels as their data alone: drawing takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(figures, "draw_panel", lambda layout, name, alt, data, *drawing: Panel(name, alt, csv(data)))


def test_the_study_of_votes(tmp_path, monkeypatch, model_folder):
    monkeypatch.setenv("VOTES_FOLDER", str(tmp_path))
    write_rows(tmp_path / "votes.jsonl", [plain_row(number, number % 7, 7) for number in range(24)])
    first = run_small(tmp_path, model_folder, "one")
    assert (first.figures / "people_votes.svg").exists() and (first.figures / "people_votes_fifths.pdf").exists()
    record = json.loads(first.study.read_text())
    pairs = pd.read_parquet(first.tables / "people_votes_pairs.parquet")
    expected = stats.spearmanr(pairs["entropy"], pairs["voted_entropy"]).statistic
    assert record["numbers"]["people/votes/entropy/rho"] == pytest.approx(expected)
    assert pairs["voted_entropy"].iloc[3] == pytest.approx(stats.entropy([0.3, 0.7], base=2))
    page = first.report.read_text()
    assert "of that figure we know the caption" in page
    assert "What this says of the claim" in page
    # What the page of the paper reads of it is there.
    claims = load_paper(Path(__file__).parents[2] / "config/paper.yaml").claims.values()
    tests = [test for claim in claims for test in claim.tests if test.part == "dispersion"]
    found = {test.title: study_tables.rows(test, SimpleNamespace(layout=first), 0.95) for test in tests}
    assert all(len(rows) == 1 for rows in found.values()) and len(found) == 4
    (people,) = (rows["people_votes"] for rows in found.values() if "people_votes" in rows)
    assert people.effect == pytest.approx(expected) and people.n == 24


def test_the_study_is_the_same_twice(tmp_path, monkeypatch, model_folder, undrawn):
    monkeypatch.setenv("VOTES_FOLDER", str(tmp_path))
    write_rows(tmp_path / "votes.jsonl", [plain_row(number, number % 7, 7) for number in range(24)])
    first, second = (run_small(tmp_path, model_folder, name) for name in ("one", "two"))
    files = sorted(path.relative_to(first.root) for path in first.root.rglob("*") if path.is_file())
    assert len(files) >= 12
    for file in files:
        assert (first.root / file).read_bytes() == (second.root / file).read_bytes(), file


def test_absent_votes_are_told_on_page_and_terminal(tmp_path, monkeypatch, caplog, undrawn):
    monkeypatch.delenv("VOTES_FOLDER", raising=False)
    with caplog.at_level(logging.WARNING):
        layout = run_small(tmp_path, None, "out")
    assert "votes.jsonl is not run: the environment variable VOTES_FOLDER is not set" in caplog.text
    page = layout.report.read_text()
    assert "votes.jsonl was not run: the environment variable VOTES_FOLDER is not set" in page
    assert "VOTES_FOLDER=FOLDER snakemake --cores all --config experiments=small" in page
    findings = json.loads(layout.study.read_text())["findings"]
    assert "not tested" in findings[0]
    assert any(sentence.startswith("Not run: path:${VOTES_FOLDER}") for sentence in findings)


# words


def correlation(rho, low, high, p, p_holm):
    return RankCorrelation(rho, low, high, p, p_holm, rho, low, high, 900)


VERDICTS = {
    "found": correlation(0.5, 0.4, 0.6, 0.001, 0.01),
    "trace": correlation(0.06, 0.01, 0.11, 0.02, 0.2),
    "none": correlation(-0.02, -0.07, 0.03, 0.5, 1.0),
    "against": correlation(-0.2, -0.27, -0.13, 0.001, 0.01),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_what_a_correlation_is_said_to_mean(kind):
    result = VERDICTS[kind]
    assert words.verdict(result, 0.05) == kind
    votes = people.Votes("votes", "0", 900, pd.DataFrame(), [], 0, 0, math.nan)
    text = words.implication(votes, {words.DEFAULT: result}, 0.05)
    assert ("holds in part" in text) == (kind == "found")
    assert ("is not supported" in text) == (kind != "found")
    wide = words.implication(votes, {words.DEFAULT: correlation(0.1, -0.3, 0.5, 0.5, 1.0)}, 0.05)
    assert "too few to say more" in wide
