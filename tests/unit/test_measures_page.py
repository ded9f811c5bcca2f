"""One page with a second judge, a selection, two factors and the betas of pairs: its sections, links and files."""

import dataclasses
import re

import pandas as pd
import pytest

from mallowspo import compare
from mallowspo.files import read_parquet, write_parquet
from mallowspo.report import page as report
from mallowspo.report import summary
from mallowspo.report.results import read_results
from mallowspo.report.words import interval
from tests.made_up_results import write

METHODS = ("dpo", "mallows_theta", "lb", "both")
FACTORIAL = {
    "factors": ["<b>weight</b>", "beta"],
    "neither": "dpo",
    "first": "mallows_theta",
    "second": "lb",
    "both": "both",
}
EVALUATION = {
    "comparison": {"baseline": "dpo", "resamples": 199},
    "second_judge": "reward:pattern",
    "factorial": FACTORIAL,
    "selection": {"validation_share": 0.4, "unequal": "allow"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = write(tmp_path_factory.mktemp("results"), METHODS, (0,), False, 20, 3, EVALUATION)
    values = made.experiment.model_dump()
    values["methods"]["lb"] = {"method": "lb_dpo", "beta": 0.1}
    values["methods"]["both"] = {"method": "lb_dpo", "beta": 0.2}
    values["evaluation"]["signals"] = True
    made = type(made)(made.layout, type(made.experiment).model_validate(values))
    pairs = read_parquet(made.layout.pairs("test"))[["pair_id", "prompt_id"]]
    for label in ("lb", "both"):
        betas = pairs.assign(beta=[0.1 + 0.01 * (7 * at % 20) for at in range(len(pairs))], learned=1.0, perplexity=1.0)
        write_parquet(made.layout.scores(label, 0) / "signals.parquet", betas)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    report.run(made.experiment.stage_view("report"), made.layout, made.settings_text)
    return made


def test_the_sections_are_there_and_every_link_leads_somewhere(made):
    page = made.layout.report.read_text(encoding="utf-8")
    titles = ("Tuned with one budget", "Two factors: do they add up?", "A second judge",
              "Dispersion and learned betas: the same signal?")  # fmt: skip
    places = [page.index(title) for title in titles]
    assert places == sorted(places)
    ids = set(re.findall(r' id="([^"]+)"', page))
    assert {"selection", "factorial", "second-judge"} <= ids
    assert set(re.findall(r'href="#([^"]+)"', page)) <= ids
    files = [link for link in re.findall(r'href="([^"#]+)"', page) if not link.startswith("data:")]
    names = ("figures/second_opinion.csv", "figures/forest_dpo_second_reward.svg", "figures/signals_lb_beta.pdf",
             "tables/selection.tex", "tables/tuning.md", "tables/factorial.csv", "tables/signals.csv")  # fmt: skip
    assert set(names) <= set(files)
    assert all((made.layout.root / file).stat().st_size > 0 for file in files)


def test_names_of_factors_stay_text(made):
    page = made.layout.report.read_text(encoding="utf-8")
    assert "&lt;b&gt;weight&lt;/b&gt;" in page and "<b>" not in page
    assert "<dt>Second judge</dt><dd>reward:pattern</dd>" in page


def test_the_main_table_has_the_second_judge_and_no_validation_prompt(made):
    main = pd.read_csv(made.layout.tables / "main.csv")
    assert "second_reward_ci_high" in main
    tests = int(read_parquet(made.layout.selection)["n"].iloc[0])
    assert 0 < tests < 20 and set(main["n_prompts"]) == {tests}


def test_the_headline_tells_each_method_at_its_best_tuning_run(made):
    results = read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)
    row = results.selection[results.selection["metric"] == "reward"].set_index("group").loc["mallows_theta"]
    numbers = (row["difference"], row["difference_low"], row["difference_high"])
    told = interval(*numbers, results.decimals("reward"), True)
    headline = summary.headline(results)
    assert "selected by other prompts, minus dpo: " in headline and f"mallows_theta {told}" in headline
    without = dataclasses.replace(results, selection=results.selection.iloc[:0])
    assert "tuning run" not in summary.headline(without)
    above = results.selection.assign(p_holm=0.001, difference_low=0.1, difference_high=0.2)
    assert "clear: mallows_theta" in summary.headline(dataclasses.replace(results, selection=above))
    across = above.assign(difference_low=-0.1)
    assert "none is clear" in summary.headline(dataclasses.replace(results, selection=across))
