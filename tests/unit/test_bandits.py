"""Bandits: exact outcomes against plain sums, known optima, weights, and a small study whole."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mallowspo.bandits import outcomes, study, weights
from mallowspo.bandits.compare import Frontiers, causes, collapse, difference_row, order, verdict, with_holm
from mallowspo.bandits.runs import Runs, run_all, variants
from mallowspo.bandits.settings import BanditStudy, BanditTraining
from mallowspo.bandits.training import OneScaleAdam, tallied, train
from mallowspo.bandits.world import draw_comparisons, every_pair, make_world
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.layout import Layout
from mallowspo.mallows.rankings import pairwise_matrix, sample_rankings
from mallowspo.methods import METHODS
from mallowspo.paper import study_tables
from mallowspo.paper.settings import load_paper
from mallowspo.report.table import write_table

ROOT = Path(__file__).parents[2]
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64).log()
PHI = np.array([0.3, 0.8])
LONG = BanditTraining(steps=1500, early_steps=20, learning_rate=0.1)
SHORT = BanditTraining(steps=12, early_steps=4, learning_rate=0.2)


def world(law="mallows", seeds=3, arms=4, phi=PHI):
    return make_world(seeds, arms, phi, law, 2)


def fit(method, made, comparisons, weight=None, reference=UNIFORM, betas=(0.5,), training=SHORT, **options):
    return train(
        method, comparisons, weight, reference, len(made.phi), torch.tensor(betas).double(), training, **options
    )


def test_outcomes_are_plain_sums():
    made = world()
    policy = torch.randn(3, 2, 2, 4, dtype=torch.float64).log_softmax(-1)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reward, place, preference = (torch.from_numpy(part)[:, None] for part in (made.reward, made.place, made.preference))
    kl = outcomes.kl(policy, reference.log())
    mean = outcomes.expected_reward(policy, reward)
    wins = outcomes.win_rate(policy, reference.log(), preference)
    right = outcomes.accuracy(policy, reference.log(), place)
    for s, b, c in itertools.product(range(3), range(2), range(2)):
        p = [math.exp(policy[s, b, c, a]) for a in range(4)]
        assert kl[s, b, c] == pytest.approx(sum(p[a] * math.log(p[a] / reference[a]) for a in range(4)))
        assert mean[s, b, c] == pytest.approx(sum(p[a] * (3 - made.place[s, c, a]) / 3 for a in range(4)))
        expected = sum(
            p[a] * reference[o] * made.preference[s, c, a, o] for a, o in itertools.product(range(4), range(4))
        )
        assert wins[s, b, c] == pytest.approx(float(expected))
        learned = [math.log(p[a] / reference[a]) for a in range(4)]
        pairs = [
            (learned[a] > learned[o]) == (made.place[s, c, a] < made.place[s, c, o])
            for a, o in itertools.combinations(range(4), 2)
        ]
        assert right[s, b, c] == pytest.approx(np.mean(pairs))


def test_the_reference_itself_is_at_zero():
    made = world()
    policy = UNIFORM.expand(3, 1, 2, 4)
    place, preference = torch.from_numpy(made.place)[:, None], torch.from_numpy(made.preference)[:, None]
    assert outcomes.kl(policy, UNIFORM).abs().max() == 0
    assert outcomes.accuracy(policy, UNIFORM, place).unique().tolist() == [0.5]
    assert torch.allclose(outcomes.win_rate(policy, UNIFORM, preference), torch.tensor(0.5, dtype=torch.float64))
    assert outcomes.reward_spread(policy, UNIFORM, torch.tensor(2.0)).abs().max() == 0


def test_preferences_are_those_of_the_laws():
    mallows, bradley_terry = world(), world("bradley_terry")
    assert np.array_equal(mallows.place, bradley_terry.place)
    for s, c in itertools.product(range(3), range(2)):
        exact = pairwise_matrix(mallows.place[s, c], PHI[c])
        off = ~np.eye(4, dtype=bool)
        assert np.allclose(mallows.preference[s, c][off], exact[off], atol=1e-12)
        gap = mallows.place[s, c][None, :] - mallows.place[s, c][:, None]
        assert np.allclose(bradley_terry.preference[s, c], 1 / (1 + PHI[c] ** (2.0 * gap)))
        # Both laws agree for neighbours.
        assert np.allclose(mallows.preference[s, c][gap == 1], bradley_terry.preference[s, c][gap == 1])


def test_preferences_are_those_of_sampled_rankings():
    made = world(seeds=1, phi=np.array([0.6, 0.9]))
    sampled = sample_rankings(np.random.default_rng(0), 40_000, made.place[0, 0], 0.6)
    ahead = (sampled[:, :, None] < sampled[:, None, :]).mean(axis=0)
    off = ~np.eye(4, dtype=bool)
    assert np.abs(ahead - made.preference[0, 0])[off].max() < 0.01


def test_draws_depend_on_the_seed_alone_and_fewer_are_part_of_more():
    many, few = draw_comparisons(world(), 20, 20), draw_comparisons(world(), 5, 20)
    again = draw_comparisons(world(seeds=2), 20, 20)
    assert np.array_equal(many.chosen[:2], again.chosen)
    assert not np.array_equal(many.chosen[0], many.chosen[1])
    for context in range(2):
        part = many.chosen[many.context == context].reshape(3, 20)[:, :5]
        assert np.array_equal(few.chosen[few.context == context].reshape(3, 5), part)
    assert (many.chosen != many.rejected).all()


def test_draws_follow_the_preferences():
    made = world(seeds=1)
    drawn = draw_comparisons(made, 60_000, 60_000)
    for context in range(2):
        here = drawn.context[0] == context
        wins = np.zeros((4, 4))
        np.add.at(wins, (drawn.chosen[0][here], drawn.rejected[0][here]), 1)
        off = ~np.eye(4, dtype=bool)
        assert np.abs(wins / (wins + wins.T + np.eye(4)) - made.preference[0, context])[off].max() < 0.02


def endless_comparisons(made):
    """Infinitely many comparisons: every ordered pair of arms, and the share (S, B) of the data that it is."""
    pairs = every_pair(made)
    share = made.preference[np.arange(len(made.place))[:, None], pairs.context, pairs.chosen, pairs.rejected]
    return pairs, share / share.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("reference", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]], ids=["uniform", "given"])
def test_dpo_on_endless_bradley_terry_data_finds_the_known_optimum(reference):
    """pi* = ref exp(r / beta), with the reward that made the preferences; MallowsPO-theta: beta times the weight."""
    made = world("bradley_terry")
    comparisons, share = endless_comparisons(made)
    log_reference = torch.tensor(reference, dtype=torch.float64).log()
    reward = torch.from_numpy(2 * np.log(PHI)[:, None] * made.place)
    _, found = fit("dpo", made, comparisons, None, log_reference, (1.0, 2.0), LONG, share=share)
    weight = weights.calibrated(weights.oracle(made), comparisons)
    _, weighted = fit("mallows_theta", made, comparisons, weight, log_reference, (1.0, 2.0), LONG, share=share)
    of_context = -np.log(PHI) / -np.log(PHI).mean()
    for position, beta in enumerate((1.0, 2.0)):
        optimum = (log_reference + reward / beta).softmax(-1)
        assert torch.allclose(found[:, position].exp(), optimum, atol=2e-4)
        optimum = (log_reference + reward / (beta * torch.from_numpy(of_context)[:, None])).softmax(-1)
        assert torch.allclose(weighted[:, position].exp(), optimum, atol=2e-4)


@pytest.mark.parametrize("method", ["dpo", "ipo", "mallows_theta", "mallows_phi", "slic"])
def test_without_agreement_nothing_is_learned(method):
    made = world(phi=np.array([1 - 1e-12, 1 - 1e-12]))
    comparisons, share = endless_comparisons(made)
    weight = weights.calibrated(weights.oracle(made), comparisons) if METHODS[method].weight == "dispersion" else None
    steps = BanditTraining(steps=200, early_steps=20, learning_rate=0.05)
    _, found = fit(method, made, comparisons, weight, share=share, training=steps)
    assert outcomes.kl(found, UNIFORM).max() < 1e-6


def test_a_context_of_weight_zero_is_left_alone_where_dpo_learns_noise():
    made = world(phi=np.array([0.3, 1 - 1e-9]))
    comparisons = draw_comparisons(made, 16, 16)
    weight = weights.calibrated(weights.oracle(made), comparisons)
    _, plain = fit("dpo", made, comparisons)
    for method in ("mallows_theta", "mallows_phi"):
        _, weighted = fit(method, made, comparisons, weight)
        assert outcomes.kl(weighted, UNIFORM)[..., 1].max() < 1e-6
        assert outcomes.kl(weighted, UNIFORM)[..., 0].min() > 0.1
    assert outcomes.kl(plain, UNIFORM)[..., 1].mean() > 0.05


def test_weights_have_mean_one_and_controls_are_permutations():
    made = world(phi=np.array([0.1, 0.4, 0.8]))
    comparisons = draw_comparisons(made, 10, 10)
    weight = weights.calibrated(weights.oracle(made), comparisons)
    assert np.allclose(weight.mean(axis=1), 1, atol=1e-12)
    assert np.allclose(weight[:, comparisons.context[0] == 0] / weight[:, comparisons.context[0] == 2],
                       math.log(0.1) / math.log(0.8))  # fmt: skip
    controlled = weights.controlled(weight, comparisons)
    assert set(controlled) == {"shuffled", "shuffled_contexts", "inverted"}
    for given in controlled.values():
        assert np.array_equal(np.sort(given, axis=1), np.sort(weight, axis=1))
    for seed in range(3):
        dealt, inverted = controlled["shuffled_contexts"][seed], controlled["inverted"][seed]
        assert all(len(set(dealt[comparisons.context[seed] == c])) == 1 for c in range(3))
        assert np.all(np.diff(inverted[np.argsort(weight[seed], kind="stable")]) <= 0)
    assert len({tuple(row) for row in controlled["shuffled"]}) == 3


def test_estimates_are_posterior_means():
    """Three arms, summed over rankings and dispersions by hand."""
    made = make_world(1, 3, np.array([0.5, 0.5]), "mallows", 2)
    comparisons = draw_comparisons(made, 5, 5)
    found = weights.estimated(made, comparisons, 2)[0]
    grid = (np.arange(weights.GRID) + 0.5) / weights.GRID
    for context in range(2):
        here = comparisons.context[0] == context
        likelihood = np.zeros(len(grid))
        for centre in itertools.permutations(range(3)):
            for position, phi in enumerate(grid):
                law = pairwise_matrix(np.array(centre), phi)
                likelihood[position] += np.prod(law[comparisons.chosen[0][here], comparisons.rejected[0][here]])
        assert found[context] == pytest.approx(np.sum(likelihood * -np.log(grid)) / likelihood.sum())


def test_estimates_come_near_the_truth_with_many_comparisons():
    made = world(seeds=4)
    found = weights.estimated(made, draw_comparisons(made, 3000, 3000), 2)
    assert np.abs(found.mean(axis=0) - -np.log(PHI)).max() < 0.05


@pytest.mark.parametrize("method", ["dpo", "mallows_theta", "mallows_phi", "orpo", "rcpo"])
def test_counting_equal_comparisons_together_changes_nothing(method):
    made = world()
    comparisons = draw_comparisons(made, 16, 16)
    weight = weights.calibrated(weights.oracle(made), comparisons) if METHODS[method].weight == "dispersion" else None
    one_by_one = fit(method, made, comparisons, weight, betas=(0.2, 1.0))
    pairs, share, tallied_weight = tallied(comparisons, weight, made)
    together = fit(method, made, pairs, tallied_weight, betas=(0.2, 1.0), share=share)
    assert np.allclose(share.sum(axis=1), 1)
    for one, other in zip(one_by_one, together, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_weights_that_differ_within_a_context_cannot_be_counted_together():
    made = world()
    comparisons = draw_comparisons(made, 16, 16)
    weight = weights.controlled(weights.calibrated(weights.oracle(made), comparisons), comparisons)["shuffled"]
    with pytest.raises(ValueError, match="differ within a context"):
        tallied(comparisons, weight, made)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_and_runs_are_independent(method):
    """Every row moves, and a seed's or a beta's policy does not depend on which others are trained beside it."""
    made = world()
    comparisons = draw_comparisons(made, 16, 16)
    weight = weights.calibrated(weights.oracle(made), comparisons)
    early, found = fit(method, made, comparisons, weight, betas=(0.2, 1.0))
    assert found.shape == early.shape == (3, 2, 2, 4)
    assert torch.isfinite(found).all()
    assert outcomes.kl(found, UNIFORM).mean() > outcomes.kl(early, UNIFORM).mean() * 0.5 > 1e-4
    again = fit(method, made, comparisons, weight, betas=(0.2, 1.0))[1]
    assert torch.equal(found, again)
    if method != "beta_dpo":  # draws which pairs it keeps, for all runs from one generator
        alone = fit(method, made, comparisons, weight, betas=(1.0,))[1]
        assert torch.allclose(found[:, 1:], alone, atol=1e-12)


def test_with_one_token_some_rows_are_others():
    made = world()
    comparisons = draw_comparisons(made, 16, 16)
    weight = weights.calibrated(weights.oracle(made), comparisons)
    ones = np.ones_like(weight)
    dpo = fit("dpo", made, comparisons)[1]
    assert torch.equal(fit("rdpo", made, comparisons)[1], dpo)
    assert torch.equal(fit("mallows_theta", made, comparisons, ones)[1], dpo)
    assert torch.allclose(fit("cpo", made, comparisons, options={"sft": 0.0})[1], dpo, atol=1e-9)
    assert torch.allclose(fit("simpo", made, comparisons, options={"home_advantage": 0.0})[1], dpo, atol=1e-9)
    assert not torch.allclose(fit("mallows_theta", made, comparisons, weight)[1], dpo, atol=1e-3)


def test_one_scale_for_the_whole_policy_keeps_the_proportions_of_a_gradient():
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    target = torch.randn(2, 3, 4)
    optimizer = OneScaleAdam(logits)
    (logits * target).sum().backward()
    optimizer.step(0.1)
    moved = -logits.detach()
    assert torch.allclose(moved / moved[:, :1, :1], target / target[:, :1, :1], rtol=1e-4)
    assert torch.allclose(moved.square().mean((1, 2)).sqrt(), torch.full((2,), 0.1), rtol=1e-4)


SMALL = {
    "kind": "bandit",
    "title": "Small",
    "arms": 4,
    "phis": [0.2, 0.5, 0.9],
    "comparisons": [6, 12],
    "seeds": 3,
    "methods": ["dpo", "ipo", "cpo", "beta_dpo", "mallows_theta", "mallows_phi"],
    "betas": [0.1, 0.4, 1.6],
    "kl_targets": [0.2, 0.3, 0.4],
    "training": {"steps": 30, "early_steps": 5, "learning_rate": 0.2},
    "resamples": 99,
}


@pytest.fixture(scope="module")
def small():
    settings = BanditStudy(**SMALL)
    return settings, run_all(settings)


def test_all_runs_are_there_once(small):
    settings, runs = small
    labels = [variant.label for variant in variants(settings.methods, "mallows")]
    assert len(set(labels)) == len(labels) == 5 + 2 * 5
    assert labels[5:8] == ["mallows_theta", "mallows_theta shuffled", "mallows_theta shuffled_contexts"]
    assert "mallows_theta estimated inverted" in labels
    per_label = 3 * 3 * 2 * 2  # seeds, betas, numbers of comparisons, stages
    assert len(runs.values) == (len(labels) + 4) * per_label
    assert not runs.values.isna().any().any()
    assert set(runs.values.columns) == {
        "law", "comparisons", "label", "stage", "seed", "beta", "reward", "win_rate", "kl", "accuracy",
    }  # fmt: skip


def test_a_reference_policy_may_be_given():
    settings = BanditStudy(
        **{**SMALL, "reference": [0.4, 0.3, 0.2, 0.1], "methods": ["dpo", "mallows_theta", "mallows_phi"]}
    )
    runs = run_all(settings)
    assert (runs.values["kl"] > 0).all()


def frontiers(kl, reward):
    """Two labels, two seeds, three betas; `reward` is a function of label and KL."""
    rows = [
        {"law": "mallows", "comparisons": 6, "stage": "end", "label": label, "seed": seed, "beta": beta,
         "kl": kl(label, seed, beta), "reward": reward(label, kl(label, seed, beta))}
        for label in ("a", "b") for seed in range(3) for beta in SMALL["betas"]
    ]  # fmt: skip
    return Frontiers(Runs(values=pd.DataFrame(rows)), BanditStudy(**SMALL), "mallows", 6)


def test_rewards_at_the_same_kl_are_read_off_the_line():
    found = frontiers(
        lambda label, seed, beta: (0.05 + 0.01 * seed) / beta, lambda label, kl: kl + (1.0 if label == "a" else 0.0)
    )
    values, reached = found.at_kl(["a", "b"], "reward")
    assert reached == [0.2, 0.3, 0.4]
    assert np.allclose(values["b"], 0.3) and np.allclose(values["a"], 1.3)
    row = difference_row(found, "a", "b", "reward", "same KL")
    assert row["difference"] == pytest.approx(1.0)
    assert (row["kl_low"], row["kl_high"], row["n"]) == (0.2, 0.4, 3)


def test_nothing_is_extrapolated():
    found = frontiers(lambda label, seed, beta: (0.03 if label == "a" else 0.01) / beta, lambda label, kl: kl)
    assert found.at_kl(["a", "b"], "reward") == ({}, [])
    row = difference_row(found, "a", "b", "reward", "same KL")
    assert math.isnan(row["difference"]) and math.isnan(row["p"])
    table = with_holm(pd.DataFrame([row, {**row, "p": 0.01, "difference": 1.0, "ci_low": 0.5, "ci_high": 2.0}]))
    assert math.isnan(table["p_holm"][0]) and table["p_holm"][1] == 0.01


def row(difference, low, high, p):
    return pd.Series({"difference": difference, "ci_low": low, "ci_high": high, "p_holm": p})


def test_a_verdict_needs_both_a_small_p_and_an_interval_without_zero():
    assert verdict(row(1, 0.5, 2, 0.01), 0.95) == "higher"
    assert verdict(row(-1, -2, -0.5, 0.01), 0.95) == "lower"
    assert verdict(row(1, -0.1, 2, 0.01), 0.95) == "unclear"
    assert verdict(row(1, 0.5, 2, 0.2), 0.95) == "unclear"
    assert verdict(row(math.nan, math.nan, math.nan, math.nan), 0.95) == "unclear"


def test_dispersion_is_the_cause_only_where_every_control_loses():
    controls = ["dpo", "shuffled", "shuffled_contexts", "inverted", "outside"]
    base = {"comparisons": 6, "outcome": "reward", "where": "same KL", "difference": 1.0, "ci_low": 0.5, "ci_high": 2.0}
    won = [{**base, "weights": "oracle", "control": name, "p_holm": 0.01} for name in controls]
    tied = [{**base, "weights": "estimated", "control": name, "p_holm": 0.01 if name != "inverted" else 0.5}
            for name in controls]  # fmt: skip
    found = causes(pd.DataFrame(won + tied), 0.95).set_index("weights")
    assert found["dispersion_is_the_cause"].to_dict() == {"oracle": True, "estimated": False}
    assert found.loc["estimated", "inverted"] == "unclear"


def test_order_is_one_where_spreads_fall_with_dispersion():
    rows = [
        {"law": "mallows", "comparisons": 6, "label": label, "seed": 0, "phi": phi, "value": value}
        for label, values in (("falls", (3, 2, 1)), ("rises", (1, 2, 3)))
        for phi, value in zip((0.1, 0.5, 0.9), values, strict=True)
    ]
    found = order(Runs(spreads=pd.DataFrame(rows)), "mallows", 6)
    assert found["falls"] == pytest.approx([1.0]) and found["rises"] == pytest.approx([-1.0])


def test_the_same_settings_give_the_same_numbers(small):
    settings, runs = small
    again = run_all(settings)
    assert again.values.equals(runs.values) and again.spreads.equals(runs.spreads)


def test_the_study_says_what_it_found(small, tmp_path, monkeypatch):
    settings, runs = small
    monkeypatch.setattr(study, "run_all", lambda settings: runs)
    first = study.run(settings, Layout(str(tmp_path), "first"), None)
    assert all(math.isfinite(value) for value in first.numbers.values())
    assert "same_beta/12/dpo/kl" in first.numbers
    assert "reward minus DPO's at the same KL" in first.findings[0]
    titles = [section.title for section in first.sections]
    assert titles[:2] == ["Setting", "Is dispersion the cause?"] and "Reward collapse" in titles
    setting = first.sections[0].table.shown.set_index("Setting")["Whose"]
    assert "guess" in setting["Arms"] and "guess" in setting["Comparisons a context"]
    names = [panel.name for section in first.sections for panel in section.panels]
    assert len(set(names)) == len(names)
    for name in names:
        assert all((tmp_path / f"first/figures/{name}.{kind}").stat().st_size for kind in ("svg", "pdf", "csv"))


def test_the_papers_page_finds_its_rows(small, tmp_path, monkeypatch):
    settings, runs = small
    monkeypatch.setattr(study, "run_all", lambda settings: runs)
    layout = Layout(str(tmp_path), "bandit")
    tables = [section.table for section in study.run(settings, layout, None).sections if section.table]
    for table in tables:
        write_table(layout, table)
    claims = load_paper(ROOT / "config/paper.yaml").claims.values()
    tests = [test for claim in claims for test in claim.tests if test.part == "bandit"]
    assert len(tests) == 5
    for test in tests:
        (found,) = study_tables.rows(test, SimpleNamespace(layout=layout), 0.95).values()
        assert found.n == settings.seeds and found.claimed == test.claimed
    collapsed = pd.read_csv(layout.tables / "collapse.csv").set_index(["comparisons", "label"])
    last = max(settings.comparisons)
    ratios = collapse(runs, "mallows", last)
    expected = (ratios["mallows_theta"] - ratios["dpo"]).mean()
    assert collapsed.loc[(last, "mallows_theta"), "difference"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"phis": [0.1, 1.0]}, "phis.1: 1.0: Input should be less than 1"),
        ({"phis": [0.1]}, "phis"),
        ({"arms": 9}, "arms: 9"),
        ({"methods": ["dpo", "mallows_theta", "mallows_pi"]}, "did you mean 'mallows_phi'?"),
        ({"methods": ["dpo", "mallows_phi"]}, "missing: ['mallows_theta']"),
        ({"same_beta": 0.3}, "same_beta 0.3 is none of betas"),
        ({"betas": [0.4, 0.1, 1.6]}, "betas must rise"),
        ({"reference": [0.5, 0.5]}, "reference has 2 probabilities, arms is 4"),
        ({"reference": [0.5, 0.5, 0.5, 0.5]}, "reference sums to 2, not to 1"),
        ({"training": {"steps": 5, "early_steps": 5}}, "early_steps must be below steps"),
        ({"armz": 5}, "armz: unknown key; did you mean 'arms'?"),
        ({"seeds": 1}, "seeds: 1"),
    ],
    ids=str,
)
def test_wrong_settings_are_told_in_one_line(tmp_path, change, says):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **change}))
    with pytest.raises(InputError) as caught:
        load_experiment(str(file))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_settings_read_back_equal():
    settings = BanditStudy(**SMALL)
    assert BanditStudy(**json.loads(settings.model_dump_json())) == settings
