"""What the report embeds for exploring prompts. In a browser: tests/browser/test_report_page.py."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.report import explore
from mallowspo.report.results import read_results
from mallowspo.report.style import Look
from tests.made_up_results import write


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = write(tmp_path_factory.mktemp("results"))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)


def embedded(results):
    found = explore.explorer(results, Look(results.methods))
    return found, json.loads(found.data)


def test_values_are_means_over_answers_and_seeds(results):
    found, data = embedded(results)
    assert (found.shown, found.total) == (12, 12)
    assert [policy["name"] for policy in data["policies"]] == ["reference", "dpo", "mallows_theta", "mallows_phi"]
    assert data["outcomes"][0] == "Reward" and data["baseline"] == "dpo"
    ids = sorted(results.prompts["prompt_id"])
    runs = [
        pd.read_parquet(results.layout.scores("mallows_phi", seed) / "score.parquet").query("metric == 'reward'")
        for seed in (0, 1)
    ]
    rewards = pd.concat(runs).groupby("prompt_id")["value"].mean()
    dispersion = results.dispersion.merge(results.test_pairs, on="pair_id").set_index("prompt_id")["dispersion_index"]
    for prompt_id, prompt in zip(ids, data["prompts"], strict=True):
        assert prompt["values"][0][3] == pytest.approx(rewards[prompt_id], rel=1e-4)
        assert prompt["dispersion"] == pytest.approx(dispersion[prompt_id], rel=1e-4)
        assert prompt["answers"][1].startswith("dpo says 0: ")
    win_rate = data["outcomes"].index("Win rate against the reference")
    assert data["prompts"][0]["values"][win_rate][0] is None


def test_the_table_has_every_prompt_and_policy(results):
    embedded(results)
    table = pd.read_csv(results.layout.tables / "prompts.csv")
    assert list(table.columns[:4]) == ["prompt_id", "dispersion_index", "method", "reward"]
    assert len(table) == 12 * 4 and table["reward"].notna().all()
    means = table.groupby("method")["reward"].mean()
    expected = results.estimates.query("metric == 'reward'").set_index("method")["estimate"]
    assert means["mallows_theta"] == pytest.approx(expected["mallows_theta"])


def test_many_prompts_are_cut_to_a_draw_that_is_told(results, monkeypatch):
    monkeypatch.setattr(explore, "MOST_PROMPTS", 5)
    found, data = embedded(results)
    assert (found.shown, found.total, len(data["prompts"])) == (5, 12, 5)
    # With many policies there is room for fewer.
    monkeypatch.setattr(explore, "MOST_CHARACTERS", 2 * 600 * 5)
    assert embedded(results)[0].shown == 2


def test_long_texts_are_cut(results, monkeypatch):
    monkeypatch.setattr(explore, "TEXT_CHARACTERS", 20)
    _, data = embedded(results)
    assert all(" more characters]" in text for text in data["prompts"][0]["answers"])


def test_without_dispersion_there_is_nothing_to_explore(results):
    assert explore.explorer(replace(results, test_pairs=results.test_pairs.iloc[:0]), Look(results.methods)) is None
