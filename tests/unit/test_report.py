"""The report on made-up results: what the tables say, what the sentences claim, and that hostile text stays text."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from mallowspo import compare, report
from mallowspo.errors import InputError
from mallowspo.files import read_json, write_json
from mallowspo.report import data_figures, effect_figure, outcome_figures, summary, tables, words
from mallowspo.report.results import read_results
from mallowspo.report.style import Look
from mallowspo.report.table import write_table
from tests.made_up_results import TASK, rewrite, write


def compared(made):
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return made


def read(made):
    return read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)


def build(made):
    report.run(made.experiment.stage_view("report"), made.layout, made.settings_text)
    return made.layout.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return compared(write(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def page(made):
    return build(made)


class Reader(HTMLParser):
    """Collects tags, ids, links and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.links, self.texts, self.headings, self.open = [], [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("href", "src", "xlink:href") if key in values]

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_sections_come_in_order(page):
    assert Reader(page).headings == [
        "What was compared", "Finding", "Main table", "Differences", "Reward against KL", "Learning curves",
        "Dispersion", "Explore prompts", "Win rates", "Displacement of log-probabilities", "Samples",
        "Data health", "Cost", "Versions and digests",
    ]  # fmt: skip


def test_page_is_one_file_and_hostile_text_stays_text(made, page):
    reader = Reader(page)
    assert reader.tags.count("script") == 2 and "img" not in reader.tags and "b" not in reader.tags
    assert len(reader.ids) == len(set(reader.ids))
    text = "".join(reader.texts)
    assert "<script>document.title = 'taken over'</script>" in text and "{{ 7 * 7 }}" in text
    assert "\x00" not in page and "␀" in text
    inside = {link for link in reader.links if link.startswith("#")}
    assert {link[1:] for link in inside} <= set(reader.ids)
    files = [link for link in reader.links if not link.startswith(("#", "data:"))]
    assert len(files) > 50
    for file in files:
        assert (made.layout.root / file).stat().st_size > 0


def test_every_figure_has_files_alt_text_and_a_caption(made, page):
    names = {path.stem for path in made.layout.figures.glob("*.svg")}
    assert names >= {
        "frontier",
        "win_rate",
        "learning_loss",
        "dispersion_index",
        "displacement_dpo",
        "forest_dpo_reward",
    }
    for name in names:
        assert (made.layout.figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(made.layout.figures / f"{name}.csv")) > 0
    assert len(re.findall(r'role="img" aria-label="[^"]{40,}"', page)) == len(names)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)
    assert len(captions) == 8
    for caption in captions:
        assert re.search(r"\bn = \d+", caption) and "interval" in caption and "est" in caption
        assert "<code>mallowspo report made_up</code>" in caption


def test_main_csv_has_the_agreed_columns_and_values(made, page):
    main = pd.read_csv(made.layout.tables / "main.csv")
    assert list(main.columns) == [
        "method", "seeds", "n_prompts", "reward", "reward_ci_low", "reward_ci_high", "kl", "win_rate",
        "win_rate_ci_low", "win_rate_ci_high", "mean_length", f"{TASK}/acc",
    ]  # fmt: skip
    assert list(main["method"]) == ["reference", "dpo", "mallows_theta", "mallows_phi"]
    estimates = pd.read_parquet(made.layout.root / "estimates.parquet").set_index(["method", "metric"])["estimate"]
    for _, row in main.iterrows():
        assert row["reward"] == pytest.approx(estimates[row["method"], "reward"])
        assert row["mean_length"] == pytest.approx(estimates[row["method"], "length"])
    assert main["win_rate"][0] == 0.5 and math.isnan(main["win_rate_ci_low"][0])
    assert main["seeds"].tolist() == [1, 2, 2, 2] and set(main["n_prompts"]) == {12}


def test_markdown_and_latex_hold_the_same_rows(made, page):
    markdown = (made.layout.tables / "main.md").read_text().splitlines()
    latex = (made.layout.tables / "main.tex").read_text()
    assert len(markdown) == 2 + 4 and all(line.count("|") == markdown[0].count("|") for line in markdown)
    assert r"mallows\_theta" in latex and "\\toprule" in latex and "−" not in latex
    csv = pd.read_csv(made.layout.tables / "main.csv").set_index("method")
    shown = re.search(r"\| mallows_theta \| ([\d.]+) \[", "\n".join(markdown)).group(1)
    assert float(shown) == pytest.approx(csv.loc["mallows_theta", "reward"], abs=0.006)


def test_many_methods_are_told_by_their_number(made, monkeypatch):
    results = read(made)
    fell = results.displacement.assign(chosen_change=-1.0)
    all_open = replace(results, comparison=results.comparison.assign(p_holm=1.0), displacement=fell)
    monkeypatch.setattr(summary, "MOST_NAMES", 1)
    assert "cannot tell any of the 2 others from dpo" in summary.headline(all_open)
    assert "3 policies, from dpo on 100% to mallows_phi on 100% of held-out pairs" in " ".join(
        summary.cautions(all_open)
    )


def test_sentences_follow_the_comparison(made):
    results = read(made)
    headline = summary.headline(results)
    assert headline.startswith(
        "On reward, mallows_theta is higher than dpo; this comparison cannot tell mallows_phi from dpo"
    )
    assert "12 test prompts, 2 seeds" in headline
    first = summary.findings(results)[0]
    assert first.title == "Reward, compared with dpo (n = 12)"
    slopes = summary.slopes(results)
    assert slopes[0].title == "Reward minus dpo's, by dispersion (n = 12)"
    assert dict(slopes[0].answers)["mallows_phi"].startswith("no dependence on dispersion can be told: ")
    answers = dict(first.answers)
    assert answers["mallows_theta"].startswith("higher: +") and "Holm p" in answers["mallows_theta"]
    assert answers["mallows_phi"].startswith("cannot be told apart") and "detectable" in answers["mallows_phi"]
    cautions = " ".join(summary.cautions(results))
    assert "2 seeds" in cautions and "length" in cautions


def test_a_set_that_was_left_out_is_told(made):
    results = read(made)
    assert not [sentence for sentence in summary.cautions(results) if "Left out" in sentence]
    absent = {"left_out": {"forum": "path:data/forum.jsonl"}}
    results.view.evaluation = results.view.evaluation.model_copy(update=absent)
    assert summary.cautions(results)[0] == (
        "Left out, for its file was not there: 1 set of pairs, forum (path:data/forum.jsonl)."
    )


def test_what_seeds_leave_open_is_told_of_these_runs(made):
    results = read(made)
    family = {"family": "outcomes against dpo", "metric": "win_rate", "seeds": 2, "n": 12, "p_holm": 0.2}
    row = results.comparison.query("method == 'mallows_theta' and baseline == 'dpo' and metric == 'win_rate'")
    row = row.assign(
        **family, ci_low=-0.1, ci_high=0.5, difference=0.2, p_equivalence=0.5, n_needed_two_points=math.inf
    )
    results.comparison.loc[row.index, "p_policies"] = 1e-6
    told = summary._told(results, next(row.assign(seeds_needed_two_points=31.0).itertuples()))
    assert told.startswith(
        "cannot be told apart with 2 seeds, though these runs are higher on new prompts (Holm p < 0.001"
    )
    assert told.endswith(
        "to find two points with 2 seeds: no number of prompts is enough, on 12 prompts: about 31 seeds"
    )
    equal = summary._told(results, next(row.assign(p_equivalence=0.01, equivalence_margin=0.02).itertuples()))
    assert equal.endswith("; equal within ±0.02 (p = 0.010)")


def test_slopes_without_a_dispersion_are_told(tmp_path):
    made = write(tmp_path, methods=("dpo", "mallows_theta"), lm_eval=False, prompts=9)
    results = read(compared(made))
    answer = summary.slopes(results)[0].answers[0][1]
    assert answer == "no slope: 9 test prompts have a dispersion, at least 10 are needed"
    assert answer in build(made)


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "expected"),
    [
        (0.1, 0.3, 0.01, "higher"),
        (-0.3, -0.1, 0.01, "lower"),
        (-0.1, 0.3, 0.01, "cannot tell"),
        (0.1, 0.3, 0.06, "cannot tell"),
        (math.nan, math.nan, 0.01, "cannot tell"),
    ],
)
def test_a_verdict_needs_both_p_and_interval(low, high, p_holm, expected):
    row = next(pd.DataFrame({"ci_low": [low], "ci_high": [high], "p_holm": [p_holm]}).itertuples())
    assert summary.verdict(row, 0.05) == expected


def test_too_few_resamples_are_pointed_out(tmp_path):
    """One seed: p is the sign-flip test's. Two methods, five outcomes: 10 x 2 / 100."""
    results = read(compared(write(tmp_path, seeds=(0,), prompts=12)))
    few = results.view.evaluation.comparison.model_copy(update={"resamples": 99})
    results.view.evaluation = results.view.evaluation.model_copy(update={"comparison": few})
    assert "no Holm p can fall below 0.200 with 12 prompts and 99 resamples" in " ".join(summary.cautions(results))


def test_same_inputs_give_the_same_bytes(made, page):
    results = read(made)
    before = {path: path.read_bytes() for path in made.layout.figures.glob("*") if path.stem in ("frontier", "weight")}
    assert len(before) == 6
    outcome_figures.frontier(results, Look(results.methods))
    data_figures.dispersion_histograms(results)
    assert {path: path.read_bytes() for path in before} == before
    write_table(made.layout, tables.main_table(results))
    assert tables.main_table(results).numbers.equals(tables.main_table(read(made)).numbers)
    assert b"<dc:date>" not in b"".join(before.values())


def test_no_two_curves_have_one_colour():
    labels = [f"{method}_{beta}" for method in "abcdefg" for beta in (1, 2, 3)]
    joined = [[f"{method}_{beta}" for beta in (1, 2, 3)] for method in "abcdefg"]
    colours = outcome_figures._curve_colours(labels, joined, Look(labels))
    assert len({colours[own[0]] for own in joined}) == 7
    assert all(len({colours[label] for label in own}) == 1 for own in joined)
    few = outcome_figures._curve_colours(labels[:6], joined[:2], Look(labels[:6]))
    assert few["a_2"] == Look(labels).colour["a_1"] and few["b_3"] == Look(labels).colour["b_1"]


def test_one_colour_a_method_for_twelve_methods():
    look = Look([f"m{i}" for i in range(12)])
    assert len(set(look.colour.values())) == 13
    assert len({look.marker[f"m{i}"] for i in range(12)}) >= 11


def test_one_method_one_seed_without_benchmarks(tmp_path):
    made = compared(write(tmp_path, methods=("dpo",), seeds=(3,), lm_eval=False, prompts=5, steps=450))
    page = build(made)
    assert "One seed: the intervals say nothing about what another seed would give." in page
    assert "Each point is the mean of 3 steps." in page
    assert len(pd.read_csv(made.layout.figures / "learning_loss.csv")) == 450
    assert "On reward, this comparison cannot tell dpo from reference" in page
    assert not any("/" in column for column in pd.read_csv(made.layout.tables / "main.csv").columns)


def test_dispersion_is_told_with_its_constant_and_every_counted_case(made, page):
    told = read_json(made.layout.dispersion_summary)
    sentence = "(calibrated to mean weight 1 on the training pairs; the official code&#39;s is 0.29)."
    assert f"Constant {words.number(told['constant'])} {sentence}" in page
    assert "Raised to the floor: 0; cut to 1: 0; weight 0: 0; no token that counts: 0." in page
    odd = data_figures.dispersion_words(told | {"calibrated": False, "constant": 0.29, "clamped": 3,
                                                   "vocabulary": 300, "tokenizer_vocabulary": 280})  # fmt: skip
    assert odd[1] == "Constant 0.290 (given, not calibrated; the official code's is 0.29)."
    assert odd[3].startswith("Raised to the floor: 3;")
    assert odd[-1].startswith("The model's output is 300 wide") and "knows 280 tokens" in odd[-1]


def test_cost_sums_jobs_and_versions_name_digests(made):
    results = read(made)
    cost = tables.cost_table(results).numbers.set_index(["stage", "method"])
    assert cost.loc[("train", "dpo")].tolist() == [2, 25.0, 23.8, 512.5]
    assert math.isnan(cost.loc[("lm-eval", "reference"), "peak_memory_mb"])
    assert [stage for stage, _ in cost.index] == ["pairs", "train", "train", "train", "lm-eval"]
    versions = dict(tables.versions_table(results).numbers.itertuples(index=False, name=None))
    assert versions["settings digest"] == made.experiment.identity
    assert versions["versions torch"] == "2.13.0"
    assert "run digest mallows_phi seed=1" in versions


def test_data_health_shows_both_splits_together_and_files_hold_each(made, page):
    csv = pd.read_csv(made.layout.tables / "data_health.csv")
    assert list(csv.columns) == ["check", "split", "count", "share", "note"] and len(csv) == 3
    section = page[page.index('id="health"') : page.index('id="cost"')]
    assert "2.70%" in section and "prompt tokens" not in section


def test_examples_stand_at_their_percentiles(made):
    index = pd.read_parquet(made.layout.dispersion)["dispersion_index"].sort_values().to_numpy()
    found = [example.index for example in data_figures.dispersion_examples(read(made))]
    assert found == [words.number(index[round(q * 35)]) for q in (0.05, 0.5, 0.95)]


def test_effect_by_dispersion_averages_fifths_of_the_prompts(made, page):
    data = pd.read_csv(made.layout.figures / "effect_by_dispersion_mallows_theta.csv")
    results = read(made)
    rewards = results.values["reward"]
    lowest = effect_figure.prompt_dispersion(results).index[:3]
    expected = (rewards["mallows_theta"] - rewards["dpo"]).loc[lowest].to_numpy().mean()
    assert data["difference"][0] == pytest.approx(expected)
    assert data["n"].tolist() == [3, 3, 2, 2, 2] and data["mean_dispersion"].is_monotonic_increasing


def test_displacement_is_the_change_from_the_reference(made):
    results = read(made)
    pair = results.displacement["pair_id"].iloc[0]
    reference = pd.read_parquet(made.layout.reference("test")).set_index("pair_id").loc[pair]
    runs = [
        pd.read_parquet(made.layout.scores("dpo", seed) / "pairs.parquet").set_index("pair_id").loc[pair]
        for seed in (0, 1)
    ]
    expected = sum(run["chosen_logp"] - reference["chosen_logp"] for run in runs) / 2
    found = results.displacement.query("method == 'dpo' and pair_id == @pair")
    assert found["chosen_change"].item() == pytest.approx(expected)


def test_the_displacement_table_has_every_policy(made, page):
    numbers = pd.read_csv(made.layout.tables / "displacement.csv").set_index("method")
    assert list(numbers.index) == ["reference", "dpo", "mallows_theta", "mallows_phi"]
    pairs = pd.concat(pd.read_parquet(made.layout.scores("dpo", seed) / "pairs.parquet") for seed in (0, 1))
    assert numbers["chosen_change"]["dpo"] == pytest.approx(pairs["chosen_change"].mean())
    assert numbers["chosen_fell"]["dpo"] == pytest.approx((pairs["chosen_change"] < 0).mean())
    assert numbers["truncated"]["dpo"] == 0 and numbers["repetition"]["dpo"] == pytest.approx(0.01)
    assert math.isnan(numbers["chosen_change"]["reference"]) and numbers["n_pairs"]["reference"] == 0
    assert (numbers["chosen_change_low"] < numbers["chosen_change_high"]).drop("reference").all()
    section = page[page.index('id="displacement"') : page.index('id="samples"')]
    assert "the loss sees only their difference" in section and "Repeated 4-grams" in section


def test_kl_stands_by_each_estimator(made, page):
    numbers = pd.read_csv(made.layout.tables / "kl.csv").set_index("method")
    main = pd.read_csv(made.layout.tables / "main.csv").set_index("method")
    assert numbers["kl"]["dpo"] == pytest.approx(main["kl"]["dpo"])
    assert 0 < numbers["kl_standard_error"]["dpo"] < 0.5 and numbers["kl_k3"]["dpo"] < numbers["kl"]["dpo"]
    assert numbers["kl_k3_by_token"]["dpo"] == pytest.approx(0.9 * numbers["kl"]["dpo"])
    assert "Better at equal KL?" not in page and not (made.layout.tables / "equal_kl.csv").exists()


def test_temperatures_have_a_table_and_a_figure(tmp_path):
    """The made-up rewards of the methods rise by 1 - temperature; the reference's stay."""
    made = compared(write(tmp_path, lm_eval=False, evaluation={"temperatures": [0.5]}))
    page = build(made)
    table = pd.read_csv(made.layout.tables / "temperatures.csv").set_index(["method", "temperature"])
    assert [name for name, _ in table.index] == ["reference"] * 2 + [m for m in made.experiment.methods for _ in "ab"]
    assert table.loc[("dpo", 0.5), "reward"] == pytest.approx(table.loc[("dpo", 1.0), "reward"] + 0.5)
    assert table.loc[("reference", 0.5), "reward"] == pytest.approx(table.loc[("reference", 1.0), "reward"])
    assert table.loc[("dpo", 0.5), "win_rate"] == 1 and math.isnan(table.loc[("reference", 0.5), "win_rate"])
    assert 'id="temperatures"' in page and "temperature 1 (and 0.5)" in page
    assert (made.layout.figures / "temperature_win_rate.svg").exists()


def test_the_training_has_a_path_and_a_comparison_at_equal_kl(tmp_path):
    """Made up: reward and KL at half of the training are half of those at its end."""
    made = compared(write(tmp_path, lm_eval=False, keep=(0.5,)))
    page = build(made)
    table = pd.read_csv(made.layout.tables / "along_training.csv").set_index(["method", "training"])
    assert list(table.index) == [(method, share) for method in made.experiment.methods for share in (0.5, 1.0)]
    for metric in ("reward", "kl"):
        assert table.loc[("dpo", 0.5), metric] == pytest.approx(table.loc[("dpo", 1.0), metric] / 2)
    path = pd.read_csv(made.layout.figures / "training_path.csv").set_index(["method", "training"])
    main = pd.read_csv(made.layout.tables / "main.csv").set_index("method")
    for method in made.experiment.methods:
        assert path.loc[(method, 1.0), ["kl", "reward"]].tolist() == pytest.approx(main.loc[method, ["kl", "reward"]])
        assert path.loc[(method, 0.5), "reward_ci_low"] < path.loc[(method, 0.5), "reward_ci_high"]
    assert {"training_path", "training_reward", "training_kl"} <= {f.stem for f in made.layout.figures.glob("*.svg")}
    assert "<h3>Along the training</h3>" in page and "Better at equal KL?" not in page
    assert "A curve is made of the policies along a method" in page and 'id="temperatures"' not in page
    equal = pd.read_csv(made.layout.tables / "equal_kl_along_training.csv")
    assert equal["against"].dropna().unique().tolist() == ["dpo"]
    assert "mallows_theta@training=0.5" in page


def test_without_kept_policies_nothing_is_said_of_the_training(made, page):
    assert "Along the training" not in page
    assert not list(made.layout.tables.glob("*along_training*")) and not list(made.layout.figures.glob("training_*"))


def test_an_interval_that_is_narrow_by_luck_is_pointed_out(made):
    results = read(made)
    table = results.comparison
    halves = (table["ci_high"] - table["ci_low"]) / 2
    row = (table["metric"] == "reward") & (table["method"] == "dpo")
    usual = replace(results, comparison=table.assign(detectable=1.4 * halves))
    assert not [sentence for sentence in summary.cautions(usual) if "narrow by luck" in sentence]
    lucky = replace(results, comparison=table.assign(detectable=halves.where(row, 1.4 * halves / 3) * 3))
    (told,) = [sentence for sentence in summary.cautions(lucky) if "narrow by luck" in sentence]
    assert "(Reward, dpo and reference)" in told


def test_other_pairs_and_other_opponents_are_shown(tmp_path):
    made = compared(write(tmp_path, lm_eval=False, evaluation={"other_pairs": {"hh": {"source": "path:hh.jsonl"}}}))
    page = build(made)
    assert "Other pairs: hh" in page and "Implicit accuracy on hh, compared with dpo" in page
    assert "Win rate against dpo, compared with dpo (n = 12)" in page
    assert {"forest_dpo_accuracy_on_hh", "win_rate_against_dpo"} <= {f.stem for f in made.layout.figures.glob("*.svg")}
    table = pd.read_csv(made.layout.tables / "held_out_pairs.csv")
    assert set(table["pair_set"]) == {"test", "hh"}
    main = (made.layout.tables / "main.md").read_text().splitlines()
    assert "| Win rate against dpo |" in main[0] and "| Implicit accuracy on hh |" in main[0]
    assert len({line.count("|") for line in main}) == 1


def test_parts_of_a_group_stand_apart(tmp_path):
    made = write(tmp_path, methods=("dpo", "mallows_theta"), seeds=(0,))
    folder = made.layout.scores("reference", 0)
    groups = {"all_of_it": {"tasks": [TASK], "weights": {"acc": "items"}}}
    write_json(folder / "lm_eval.json", read_json(folder / "lm_eval.json") | {"groups": groups})
    page = build(compared(made))
    assert "<summary>Parts of benchmark groups</summary>" in page and f"all_of_it &gt; {TASK}/acc" in page
    assert list(pd.read_csv(made.layout.tables / "main.csv").columns)[-1] == "all_of_it/acc"


def test_several_betas_are_compared_at_equal_kl(tmp_path):
    """Labels that the made-up settings do not know are DPO under another beta."""
    made = compared(write(tmp_path, methods=("dpo", "dpo_low", "mallows_theta"), lm_eval=False))
    page = build(made)
    table = pd.read_csv(made.layout.tables / "equal_kl.csv")
    assert table["measure"].tolist() == ["reward at equal KL", "hypervolume"]
    assert "Better at equal KL?" in page and "Dotted: labels that differ in beta alone." in page
    assert "dpo, dpo_low" in page and "largest mean KL of any curve" in page


def test_stale_estimates_and_strange_pairs_are_refused(tmp_path):
    made = compared(write(tmp_path, methods=("dpo",), seeds=(0,), lm_eval=False))
    rewrite(made.layout.reference("test"), lambda table: table.iloc[1:])
    with pytest.raises(InputError, match=r"pairs.parquet: pair .* is not in .*test.parquet"):
        read(made)
    rewrite(made.layout.root / "estimates.parquet", lambda table: table[table["method"] != "dpo"])
    with pytest.raises(InputError, match=r"estimates.parquet: no method 'dpo'"):
        read(made)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.26123, "0.261"), (-12.34, "−12.3"), (0.0, "0"), (12345.6, "12,346"), (0.00001, "1.0e−05"), (math.nan, "–")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert words.number(value) == text


def test_intervals_share_their_decimals():
    assert words.meaningful_decimals([0.1, 0.09, 0.11, math.nan]) == 2
    assert words.meaningful_decimals([23.0]) == 0
    assert words.interval(0.261, 0.209, 0.311, 2) == "0.26 [0.21, 0.31]"
    assert words.interval(0.261, -0.01, 0.5, 2, signed=True) == "+0.26 [−0.01, 0.50]"
    assert words.interval(0.5, math.nan, math.nan, 2) == "0.500"


def test_text_is_made_fit_for_a_page():
    assert words.shown_text("a\x00b\x1b[0m\ud800", 100) == "a␀b␛[0m?"
    assert words.shown_text("x" * 12, 10) == "x" * 10 + " … [2 more characters]"
