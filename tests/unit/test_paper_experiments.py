"""The paper's experiments at both scales: all there, fit for their scale, and as docs/paper_experiments.md says."""

import re
from pathlib import Path

import pytest

from mallowspo.chains import load_all
from mallowspo.data_files import known_files
from mallowspo.experiments import load_experiment
from mallowspo.methods import METHODS
from mallowspo.settings import Experiment

ROOT = Path(__file__).parents[2]
CPU = (
    "sentiment_smollm2", "hh_smollm2", "hh_reward_smollm2", "ultrafeedback_smollm2", "learnable_beta_smollm2",
    "controls_sentiment_smollm2", "controls_hh_smollm2", "beta_sweep_smollm2",
)  # fmt: skip
PAPER = (
    "sentiment_gpt2_large_sft", "sentiment_gpt2_large", "hh_pythia2.8b_sft", "hh_pythia2.8b", "ultrafeedback_llama3_8b",
    "learnable_beta_llama3_8b", "controls_hh_pythia2.8b", "controls_ultrafeedback_llama3_8b", "beta_sweep_llama3_8b",
)  # fmt: skip
CONTROLS = {"shuffled", "inverted", "outside", "length_matched"}


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MALLOWSPO_SHARED_DATA", raising=False)


def text(name):
    return (ROOT / f"config/experiments/{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CPU)
def test_the_cpu_scale_needs_no_hub(name):
    assert "hub:" not in re.sub(r"#.*", "", text(name))
    experiment = load_experiment(name)
    assert experiment.model.source.startswith("pypi:") and not experiment.compute.gpus
    kind, _, place = experiment.pairs.source.partition(":")
    assert Path(place).exists() or (kind == "path" and known_files()[Path(place).name].url), "by itself"


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_scale_says_where_each_value_is_from(name):
    """Every section that holds hyper-parameters has a tag in its comment or on its lines; what is no pin is marked."""
    file = text(name)
    for section in ("tokens", "pairs", "methods", "training", "generation", "evaluation", "compute"):
        found = re.search(rf"((?:^#.*\n)*)^{section}:.*\n((?:^[ #].*\n)*)", file, re.MULTILINE)
        assert re.search(r"\[(paper|code base|RainbowPO|DPO|SimPO|e-DPO|b-DPO|choice)\]", found[0]), section
    assert "@main" not in file or '"main" is no pin' in file
    assert load_experiment(name).compute.gpus


@pytest.mark.parametrize(
    "name", ["controls_sentiment_smollm2", "controls_hh_smollm2", *(n for n in PAPER if "controls" in n)]
)
def test_controls_are_all_controls_at_one_beta(name):
    experiment = load_experiment(name)
    assert {method.control for method in experiment.methods.values()} == {"none", *CONTROLS}
    assert {method.beta for method in experiment.methods.values()} == {0.1}
    assert experiment.evaluation.comparison.baseline == "mallows_theta" and "dpo" in experiment.methods


@pytest.mark.parametrize("name", ["beta_sweep_smollm2", "beta_sweep_llama3_8b"])
def test_a_sweep_gives_every_method_the_same_number_of_betas(name):
    betas = {}
    for method in load_experiment(name).methods.values():
        betas.setdefault(method.method, []).append(method.beta)
    assert len(betas) == 7
    assert all(len(set(tried)) == 3 for tried in betas.values())
    assert all(betas[twin] == betas[f"mallows_{twin}"] for twin in ("ipo", "simpo")), "a twin has its method's grid"


@pytest.mark.parametrize("name", ["learnable_beta_smollm2", "learnable_beta_llama3_8b"])
def test_the_factorial_is_whole(name):
    methods = load_experiment(name).methods
    assert {"dpo", "mallows_theta", "lb_dpo", "mallows_lb", "epsilon_dpo", "beta_dpo"} == set(methods)
    assert len({methods[label].beta for label in ("dpo", "mallows_theta", "lb_dpo", "mallows_lb")}) == 1


@pytest.mark.parametrize("name", ["ultrafeedback_smollm2", "ultrafeedback_llama3_8b"])
def test_twins_have_the_settings_of_what_they_are_twins_of(name):
    methods = load_experiment(name).methods
    for plain, twin in (("ipo", "mallows_ipo"), ("simpo", "mallows_simpo"), ("rainbowpo_plain", "rainbowpo")):
        assert methods[plain].beta == methods[twin].beta and methods[plain].options == methods[twin].options
        assert METHODS[methods[plain].method].weight == "constant" != METHODS[methods[twin].method].weight


@pytest.mark.parametrize("name", ["hh_smollm2", "controls_hh_smollm2", "ultrafeedback_smollm2"])
def test_the_judge_comes_with_it_and_was_trained_on_other_prompts(name):
    _, experiments = load_all([name])
    assert list(experiments) == [name, "hh_reward_smollm2"]
    judged, judge = experiments[name].pairs, experiments["hh_reward_smollm2"].pairs
    if not judged.on_policy:
        assert judged.source == judge.source and judged.split.share.of == judge.split.share.of
        assert not set(judged.split.share.parts) & set(judge.split.share.parts)


def test_hh_goes_without_the_file_that_has_no_address():
    if Path("data/stackexchange_votes_pairs.jsonl.gz").exists():
        pytest.skip("the file is there")
    evaluation = load_experiment("hh_smollm2").evaluation
    assert not evaluation.other_pairs and list(evaluation.left_out) == ["stackexchange"]


def test_the_page_names_every_file_and_counts_its_trainings():
    page = (ROOT / "docs/paper_experiments.md").read_text(encoding="utf-8")
    for name in (*CPU, *PAPER):
        assert f"`{name}`" in page
    rows = re.findall(r"`([a-z0-9_.]+)` \| [0-9.]+ \| (\d+) ", page)
    counted = {name: len(load_experiment(name).runs()) for name, _ in rows}
    assert {name: int(count) for name, count in rows} == counted
    assert set(counted) == {n for n in (*CPU, *PAPER) if isinstance(load_experiment(n), Experiment)}
