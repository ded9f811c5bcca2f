"""Estimators of the KL, by exact sums; methods at equal KL, on curves whose answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mallowspo.evaluation.frontier import (
    EQUAL_KL,
    HYPERVOLUME,
    HYPERVOLUME_GAIN,
    curves,
    frontier_table,
    hypervolume,
    reward_at,
)
from mallowspo.evaluation.kl import kl_columns, low_variance_kl
from mallowspo.inference import bootstrap_means, two_level_bootstrap
from mallowspo.settings import Experiment

RESAMPLING = {"confidence": 0.95, "resamples": 999, "seed": 0}


def test_both_estimators_are_unbiased_and_k3_varies_less():
    """Exact means under the policy, over a small vocabulary."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    ratio = np.log(policy / reference)
    k3 = low_variance_kl(ratio)
    kl = (policy * ratio).sum()
    assert (policy * k3).sum() == pytest.approx(kl, rel=1e-12)
    assert (k3 >= 0).all() and ratio.min() < 0
    assert (policy * (k3 - kl) ** 2).sum() < 0.2 * (policy * (ratio - kl) ** 2).sum()


def test_k3_near_and_far_from_the_reference():
    assert low_variance_kl(1e-6) == pytest.approx(5e-13, rel=1e-3)
    assert low_variance_kl(0.0) == 0
    # Where no answer that the reference likes better is sampled, it reads one nat less than k1.
    assert low_variance_kl([20.0, 30.0]).mean() == pytest.approx(24)


def test_all_three_estimate_the_same_kl_of_answers():
    """Answers of two tokens, the second's law dependent on the first: exact means over all nine of them."""
    draw = np.random.default_rng(0)
    laws = {name: (draw.dirichlet([2, 2, 2]), draw.dirichlet([2, 2, 2], size=3)) for name in ("policy", "reference")}
    answers = [(first, second) for first in range(3) for second in range(3)]
    tokens = {
        name: [np.log([start[first], then[first, second]]) for first, second in answers]
        for name, (start, then) in laws.items()
    }
    share = np.exp([logp.sum() for logp in tokens["policy"]])
    found = kl_columns(tokens["policy"], tokens["reference"])
    exact = sum(p * (a.sum() - b.sum()) for p, a, b in zip(share, tokens["policy"], tokens["reference"], strict=True))
    assert share.sum() == pytest.approx(1) and exact > 0.05
    for name in ("kl", "kl_k3", "kl_k3_by_token"):
        assert (share * found[name]).sum() == pytest.approx(exact, rel=1e-12)
    assert (found[["kl_k3", "kl_k3_by_token"]] >= 0).all(axis=None)


def settings(method, beta, **more):
    return SimpleNamespace(**{"method": method, "beta": beta, "options": {}, "control": "none", **more})


def test_a_curve_is_made_of_labels_that_differ_in_beta_alone():
    methods = {
        "dpo": settings("dpo", 0.1),
        "theta": settings("mallows_theta", 0.1),
        "dpo_low": settings("dpo", 0.01),
        "dpo_again": settings("dpo", 0.1),
        "dpo_mean": settings("dpo", 0.05, options={"length": "mean"}),
        "theta_inverted": settings("mallows_theta", 0.3, control="inverted"),
    }
    assert curves(methods) == [["dpo", "dpo_low"]]


def test_reward_between_two_points():
    kl, reward = np.array([[4.0, 1.0, 2.0]]), np.array([[0.8, 0.2, 0.6]])
    for at, expected in ((1.0, 0.2), (1.5, 0.4), (2.0, 0.6), (3.0, 0.7), (4.0, 0.8), (5.0, 0.9), (0.5, 0.0)):
        assert reward_at(np.array([at]), kl, reward)[0] == pytest.approx(expected)
    assert reward_at(np.array([1.0]), np.array([[1.0, 1.0]]), np.array([[0.2, 0.4]]))[0] == pytest.approx(0.3)


def test_hypervolume_is_a_staircase_above_the_reference():
    kl, reward = np.array([[3.0, 1.0, 2.0]]), np.array([[0.5, 0.3, 0.2]])
    # 0.2 above the floor from 1 to 3, 0.4 from 3 to 5; the point at 2 is worse than the one at 1.
    assert hypervolume(kl, reward, np.array([0.1]), 5.0)[0] == pytest.approx(0.2 * 2 + 0.4 * 2)
    assert hypervolume(kl, reward, np.array([0.9]), 5.0)[0] == 0
    assert hypervolume(kl, reward, np.array([0.1]), 2.5)[0] == pytest.approx(0.2 * 1.5)


def made_up_values(points, seeds=2, prompts=60):
    """Reward and KL of every prompt and seed, whose means are `points` (label -> (KL, reward)); prompts vary a lot."""
    generator = np.random.default_rng(0)
    ease = generator.normal(0, 0.5, (prompts, 1))
    ids = [f"p{number:02}" for number in range(prompts)]

    def table(mean, columns, spread):
        noise = generator.normal(0, spread, (prompts, columns))
        values = mean + ease - ease.mean() + noise - noise.mean()
        return pd.DataFrame(values, index=ids)

    values = {"reward": {"reference": table(0.0, 1, 0.05)}, "kl": {"reference": pd.DataFrame(np.zeros(prompts), ids)}}
    for label, (kl, reward) in points.items():
        values["reward"][label] = table(reward, seeds, 0.05)
        # Another order of rows: joined by id.
        values["kl"][label] = table(kl, seeds, 0.3).sample(frac=1, random_state=1)
    return values


METHODS = {
    "dpo_high": settings("dpo", 0.3),
    "dpo_low": settings("dpo", 0.03),
    "theta_high": settings("mallows_theta", 0.3),
    "theta_low": settings("mallows_theta", 0.03),
    "phi": settings("mallows_phi", 0.1),
}
#: DPO's line is reward = 0.2 + 0.1 (KL - 1). Mallows-theta lies 0.15 above it, phi further along the same line.
POINTS = {
    "dpo_high": (1.0, 0.2),
    "dpo_low": (5.0, 0.6),
    "theta_high": (2.0, 0.45),
    "theta_low": (6.5, 0.9),
    "phi": (4.0, 0.5),
}


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_better_at_equal_kl_is_told_from_what_goes_further(seeds):
    table = frontier_table(made_up_values(POINTS, seeds), METHODS, "dpo_high", RESAMPLING)
    equal = table[table["measure"] == EQUAL_KL].set_index("method")
    assert equal.index.tolist() == ["theta_high", "theta_low", "phi"]
    better = equal.loc["theta_high"]
    assert better["estimate"] == pytest.approx(0.15) and better["ci_low"] > 0.1 and better["ci_high"] < 0.2
    assert (better["against"], better["kl"], better["n"], better["seeds"]) == (
        "dpo_high, dpo_low", pytest.approx(2.0), 60, seeds,
    )  # fmt: skip
    assert better["outside"] == 0
    along = equal.loc["phi"]
    assert along["estimate"] == pytest.approx(0) and along["ci_low"] < 0 < along["ci_high"]
    beyond = equal.loc["theta_low"]
    assert math.isnan(beyond["estimate"]) and "outside the curve's, 1 to 5 nats" in beyond["note"]


def test_hypervolumes_and_their_gain():
    table = frontier_table(made_up_values(POINTS), METHODS, "dpo_low", RESAMPLING)
    volumes = table[table["measure"] == HYPERVOLUME].set_index("method")
    assert volumes["estimate"].to_dict() == {
        "dpo_high, dpo_low": pytest.approx(0.2 * 4 + 0.6 * 1.5),
        "theta_high, theta_low": pytest.approx(0.45 * 4.5),
    }
    assert volumes["kl"].tolist() == [pytest.approx(6.5)] * 2
    (gain,) = table[table["measure"] == HYPERVOLUME_GAIN].to_dict("records")
    assert gain["estimate"] == pytest.approx(0.45 * 4.5 - 0.2 * 4 - 0.6 * 1.5)
    assert gain["ci_low"] < gain["estimate"] < gain["ci_high"]


def test_means_share_their_resamples():
    tables = np.random.default_rng(0).normal(size=(2, 30, 3))
    drawn = bootstrap_means(tables, resamples=999)
    assert drawn.shape == (999, 2)
    for table, means in zip(tables, drawn.T, strict=True):
        assert two_level_bootstrap(table, resamples=999) == pytest.approx(np.quantile(means, [0.025, 0.975]))
    # What is the same in both tables drops out of their difference.
    shifted = bootstrap_means(np.stack([tables[0], tables[0] + 1]), resamples=99)
    np.testing.assert_allclose(shifted[:, 1] - shifted[:, 0], 1)


def test_without_several_betas_there_is_nothing():
    methods = {label: METHODS[label] for label in ("dpo_high", "theta_high")}
    table = frontier_table(made_up_values({label: POINTS[label] for label in methods}), methods, "dpo_high", RESAMPLING)
    assert table.empty and "estimate" in table


def test_settings_of_an_experiment_make_curves():
    """The real settings have what curves are told apart by."""
    methods = {"dpo": {"beta": 0.1}, "dpo_low": {"method": "dpo", "beta": 0.01}, "ipo": {"beta": 0.1}}
    experiment = Experiment.model_validate(
        {
            "title": "x", "model": {"source": "made_up:two_layers"}, "pairs": {"source": "path:x"}, "methods": methods,
            "seeds": [0], "training": {"learning_rate": 1e-5, "pairs_per_step": 8}, "generation": {},
            "evaluation": {"judge": "reward:vader"},
        }
    )  # fmt: skip
    assert curves(experiment.methods) == [["dpo", "dpo_low"]]
