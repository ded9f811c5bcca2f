"""Two factors over four labels: effects by hand, their intervals, what is refused, and how the page tells of it."""

import numpy as np
import pytest

from mallowspo import compare
from mallowspo.compare_factorial import COEFFICIENTS, factorial_table
from mallowspo.compare_values import read_values
from mallowspo.experiments import validate
from mallowspo.files import read_parquet
from mallowspo.inference import contrast, holm, paired_difference
from mallowspo.report.factorial_table import factorial_findings, factorial_view
from mallowspo.report.factorial_table import factorial_table as factorial_table_of
from mallowspo.report.results import read_results
from mallowspo.settings import Experiment
from mallowspo.stage_reads import STAGE_READS
from mallowspo.tracking.findings import experiment_metrics
from tests.made_up_results import settings, write

METHODS = ("dpo", "mallows_theta", "lb", "both")
FACTORIAL = {
    "factors": ["dispersion weight", "learnable beta"],
    **dict(zip(("neither", "first", "second", "both"), METHODS, strict=True)),
}


FEW = {"comparison": {"baseline": "dpo", "resamples": 199}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = write(tmp_path_factory.mktemp("results"), METHODS, steps=3, evaluation={"factorial": FACTORIAL, **FEW})
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return made


def made_up(seed, prompts=30, seeds=3):
    """(4, P, S)"""
    generator = np.random.default_rng(seed)
    shapes = (1, prompts, 1), (4, prompts, 1), (4, 1, seeds), (1, 1, seeds), (4, prompts, seeds)
    return sum(
        sd * generator.normal(size=shape) for sd, shape in zip((1, 0.5, 0.2, 0.9, 0.7), shapes, strict=True)
    )  # fmt: skip


def test_effects_by_hand():
    """Four labels that give 1, 2, 4 and 9 everywhere: (1 + 5) / 2, (3 + 7) / 2 and 5 - 1."""
    runs = np.ones((4, 3, 2)) * np.array([1.0, 2.0, 4.0, 9.0])[:, None, None]
    found = {effect: contrast(runs, weights).difference for effect, weights in COEFFICIENTS.items()}
    assert found == {"first": 3.0, "second": 5.0, "interaction": 4.0}


def test_a_difference_of_two_is_a_contrast_of_two():
    runs = made_up(1)
    mine, theirs = contrast(runs, (0, 1, -1, 0)), paired_difference(runs[1], runs[2], runs=runs)
    for name in ("difference", "low", "high", "p", "p_policies", "n"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name))
    assert mine.spread.seed_freedom == 6


def test_what_a_prompt_or_seed_does_to_all_drops_out():
    runs = made_up(2)
    moved = runs + 5 * np.arange(30)[:, None] - 3 * np.arange(3)
    for weights in COEFFICIENTS.values():
        before, after = contrast(runs, weights), contrast(moved, weights)
        assert (before.low, before.high) == pytest.approx((after.low, after.high))


def test_the_seeds_part_goes_by_the_squared_coefficients():
    """Of runs that differ by seed alone: the variance of a main effect is that of one run, of the interaction four."""
    generator = np.random.default_rng(3)
    runs = np.broadcast_to(generator.normal(size=(4, 1, 5)), (4, 8, 5))
    own = runs[:, 0] - runs[:, 0].mean(axis=1, keepdims=True)
    square = float(((own - own.mean(axis=0)) ** 2).sum()) / 12
    for effect, times in (("first", 1), ("interaction", 4)):
        assert contrast(runs, COEFFICIENTS[effect]).spread.of_seeds == pytest.approx(times * square / 5)


def test_intervals_cover_about_as_often_as_they_say():
    """400 experiments without any effect: 95 % intervals of the interaction miss 0 in 5 % (here: 1 to 9 %)."""
    misses = 0
    for seed in range(400):
        found = contrast(made_up(seed, prompts=20), COEFFICIENTS["interaction"], resamples=99)
        misses += not found.low < 0 < found.high
    assert 4 <= misses <= 36


@pytest.mark.parametrize("weights", [(1, -1), (1, 1, -1, 0)])
def test_contrasts_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="no contrast of runs"):
        contrast(made_up(1), weights)


def test_the_table_holds_three_effects_of_every_metric_of_all_four(made):
    table = read_parquet(made.layout.factorial)
    means = read_parquet(made.layout.estimates).set_index(["metric", "method"])["estimate"]
    assert set(table["effect"]) == set(COEFFICIENTS)
    assert "win_rate against dpo" not in set(table["metric"]) and "win_rate" in set(table["metric"])
    reward = table[table["metric"] == "reward"].set_index("effect")
    none, first, second, both = (means["reward", label] for label in METHODS)
    assert reward["estimate"]["first"] == pytest.approx((first - none + both - second) / 2)
    assert reward["estimate"]["interaction"] == pytest.approx(both - second - first + none)
    assert reward["name"].tolist() == ["dispersion weight", "learnable beta", "dispersion weight × learnable beta"]
    assert (reward["n"] == 12).all() and (reward["seeds"] == 2).all()
    outcomes = table[table["family"] == "outcomes"]
    assert set(outcomes["metric"]) == {"reward", "win_rate", "accuracy", "made_up_task/acc"}
    assert outcomes["family_size"].tolist() == [12] * 12
    assert outcomes["p_holm"].tolist() == pytest.approx(list(holm(outcomes["p"])))


def test_the_table_goes_by_names_not_by_places(made):
    view = made.experiment.stage_view("compare")
    values, resampling = read_values(view, made.layout), {"confidence": 0.95, "resamples": 99, "seed": 0}
    swapped = made.experiment.evaluation.factorial.model_copy(update={"first": "lb", "second": "mallows_theta"})
    found, other = (
        factorial_table(values, factors, list(view.methods), resampling).set_index(["metric", "effect"])["estimate"]
        for factors in (view.evaluation.factorial, swapped)
    )
    assert other["reward", "first"] == found["reward", "second"]
    assert other["reward", "interaction"] == pytest.approx(found["reward", "interaction"])


def test_nothing_without_factors(tmp_path):
    found = factorial_table({"reward": {}}, None, ["dpo"], {})
    assert found.empty and "p_holm" in found


def test_the_report_tells_of_the_factors(made):
    results = read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)
    table = factorial_table_of(results)
    assert len(table.shown) == len(read_parquet(made.layout.factorial))
    assert table.shown["Metric"][:3].tolist() == ["Reward"] * 3
    assert set(factorial_view(table).numbers["family"]) == {"outcomes"}
    first = factorial_findings(results)[0]
    assert first.title == "Reward (n = 12)"
    assert [effect for effect, _ in first.answers][2] == "dispersion weight × learnable beta"
    assert first.answers[2][1].startswith(("together ", "cannot be told from none: "))


def test_the_store_gets_effects_with_their_intervals(made):
    found = experiment_metrics(made.experiment.evaluation, made.layout)
    table = read_parquet(made.layout.factorial).set_index(["metric", "effect"])
    row = table.loc[("reward", "interaction")]
    names = {"": "estimate", "/ci_low": "ci_low", "/ci_high": "ci_high", "/p_holm": "p_holm"}
    assert {end: found[f"factorial/interaction/reward{end}"] for end in names} == {
        end: row[column] for end, column in names.items()
    }
    assert "factorial/first/made_up_task/acc" in found


def test_factors_touch_comparison_and_report_alone(made):
    without = settings(METHODS, (0, 1), True)
    changed = {stage for stage in STAGE_READS if without.stage_digest(stage) != made.experiment.stage_digest(stage)}
    assert changed == {"compare", "report"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": "thet"}, "evaluation.factorial: 'thet' is no label of methods"),
        ({"first": "dpo"}, "four different labels, not dpo, dpo, lb, both"),
        ({"factors": ["beta", "beta"]}, "the two factors need a name each"),
        ({"factors": ["beta"]}, "evaluation.factorial.factors"),
        ({"bth": "both"}, "evaluation.factorial.bth: unknown key; did you mean 'both'"),
    ],
)
def test_factors_that_do_not_fit_are_refused_in_one_line(change, message):
    values = settings(METHODS, (0,), False).model_dump()
    values["evaluation"]["factorial"] = {**FACTORIAL, **change}
    with pytest.raises(Exception, match=message) as error:
        validate(Experiment, values, "file.yaml")
    assert str(error.value).startswith("file.yaml: ") and "\n" not in str(error.value)
