"""The beta of each pair under trained adaptive methods, and its rank correlation with the dispersion weight."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from mallowspo import compare, training
from mallowspo.compare_signals import signals_table
from mallowspo.errors import InputError
from mallowspo.evaluation import pair_betas
from mallowspo.files import read_parquet, write_parquet
from mallowspo.methods import METHODS as ROWS
from mallowspo.models import load_model
from mallowspo.pair_betas import OBJECTIVE, has_pair_beta, labels_with_pair_beta
from mallowspo.pairs.prepared import open_tokens
from mallowspo.perplexity import prompt_perplexity
from mallowspo.report.results import read_results
from mallowspo.report.signals_table import signals_figure
from mallowspo.report.signals_table import signals_table as signals_table_of
from mallowspo.report.style import Look
from mallowspo.settings import MethodSettings
from mallowspo.stage_reads import STAGE_READS
from mallowspo.tracking.findings import experiment_metrics
from tests.made_up_results import rewrite, settings, write
from tests.made_up_run import prepare

METHODS = {
    "mallows_lb": {"beta": 0.2},
    "epsilon_dpo": {"beta": 0.1, "options": {"epsilon": 0.5}},
    "beta_dpo": {"beta": 0.1, "options": {"level": "instance"}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Each method, trained for three steps."""
    prepared = prepare(tmp_path_factory.mktemp("trained"), pairs=8, methods=METHODS)
    experiment, layout, model_folder = prepared
    for label in METHODS:
        view = experiment.stage_view("train")
        training.run(view, experiment.methods[label], label, 1, layout, model_folder, "cpu", 2000)
    return prepared


def betas(trained, label):
    experiment, layout, model_folder = trained
    view, policy = experiment.stage_view("signals"), layout.run(label, 1) / "model"
    pair_betas.run(view, experiment.methods[label], layout, model_folder, policy, label, 1, "cpu")
    return read_parquet(layout.scores(label, 1) / "signals.parquet").set_index("pair_id")


def test_who_has_a_beta_of_each_pair():
    names = ("dpo", "lb_dpo", "mallows_lb", "epsilon_dpo", "beta_dpo", "wpo")
    methods = {name: MethodSettings(method=name, beta=0.1, options=ROWS[name].options) for name in names}
    assert labels_with_pair_beta(methods) == ["lb_dpo", "mallows_lb", "epsilon_dpo"]
    options = {**ROWS["beta_dpo"].options, "level": "instance"}
    assert has_pair_beta(MethodSettings(method="beta_dpo", beta=0.1, options=options))


def test_perplexity_is_in_the_unit_of_the_training():
    train = pd.DataFrame({"prompt_tokens": [2, 4, 0], "prompt_logp": [-4.0, -16.0, 0.0]})
    test = pd.DataFrame({"prompt_tokens": [2, 0], "prompt_logp": [-12.0, 0.0]})
    assert prompt_perplexity(train).tolist() == pytest.approx([2 / 3, 4 / 3, 1])
    assert prompt_perplexity(test, of=train).tolist() == pytest.approx([2, 1])


def test_a_learned_beta_is_what_the_policy_and_the_learned_parts_say(trained):
    """Worked out again from the saved numbers, the last hidden state of the prompt and the reference table."""
    _, layout, _ = trained
    found = betas(trained, "mallows_lb")
    state = load_file(layout.run("mallows_lb", 1) / "model" / OBJECTIVE)
    assert state["adaptation.direction"].abs().max() > 0, "it learned something"
    model = load_model(layout.run("mallows_lb", 1) / "model").eval()
    perplexity = prompt_perplexity(read_parquet(layout.reference("test")), of=read_parquet(layout.reference("train")))
    by_id = dict(zip(read_parquet(layout.reference("test"))["pair_id"], perplexity, strict=True))
    for pair in open_tokens(layout.tokens("test")):
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([list(pair.prompt)])).last_hidden_state[0, -1]
        turned = torch.tanh(hidden @ state["adaptation.direction"][:, 0] + state["adaptation.offset"])
        factor = float(torch.exp(state["adaptation.log_scale"]) * (1 + 0.5 * turned))
        row = found.loc[pair.pair_id]
        assert row["learned"] == pytest.approx(factor, rel=1e-4)
        assert row["perplexity"] == pytest.approx(by_id[pair.pair_id])
        assert row["beta"] == pytest.approx(0.2 * factor * by_id[pair.pair_id], rel=1e-4)


def test_an_epsilon_beta_is_one_of_three(trained):
    _, layout, _ = trained
    found = betas(trained, "epsilon_dpo")
    scale = float(load_file(layout.run("epsilon_dpo", 1) / "model" / OBJECTIVE)["adaptation.scale"])
    possible = np.array([0.1 * scale / (1 + 0.5 * step) for step in (-1, 0, 1)])
    assert all(np.isclose(possible, value, rtol=1e-5).any() for value in found["beta"])
    assert found["learned"].isna().all() and found["perplexity"].isna().all()


def test_a_beta_by_instance_rises_with_the_log_ratio(trained):
    """beta (1 + 0.6 (gap - mean)), each pair for itself, however they come in batches."""
    experiment, layout, _ = trained
    found = betas(trained, "beta_dpo")
    mean = float(load_file(layout.run("beta_dpo", 1) / "model" / OBJECTIVE)["adaptation.mean"])
    from mallowspo.evaluation import score

    place = layout.run("beta_dpo", 1) / "model"
    score.run_pairs(experiment.stage_view("score"), layout, place, "beta_dpo", 1, "cpu")
    margin = read_parquet(layout.scores("beta_dpo", 1) / "pairs.parquet").set_index("pair_id")["margin"]
    expected = np.maximum(0.1 * (1 + 0.6 * (margin - mean)), 1e-3)
    np.testing.assert_allclose(found["beta"], expected.loc[found.index], rtol=1e-4)


def test_what_has_no_beta_or_no_state_is_refused_in_one_line(trained, tmp_path):
    experiment, layout, model_folder = trained
    view, place = experiment.stage_view("signals"), layout.run("mallows_lb", 1) / "model"
    plain = MethodSettings(method="dpo", beta=0.1)
    with pytest.raises(InputError, match="'dpo': method dpo has no beta of each pair"):
        pair_betas.run(view, plain, layout, model_folder, place, "dpo", 1, "cpu")
    with pytest.raises(InputError, match=r"objective.tensors: no such file; train mallows_lb, seed 1 again"):
        pair_betas.run(view, experiment.methods["mallows_lb"], layout, model_folder, tmp_path, "mallows_lb", 1, "cpu")


@pytest.mark.parametrize("method", sorted(name for name, row in ROWS.items() if row.adaptive))
def test_every_adaptation_is_kept_whole(method, tmp_path):
    from mallowspo.objectives import Objective

    first, second = (Objective(method, 0.1, hidden_size=4, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        for number, value in enumerate([*first.parameters(), *first.buffers()]):
            value.add_(number + 1) if value.dim() else value
    save_file(first.state_dict(), tmp_path / OBJECTIVE)
    second.load_state_dict(load_file(tmp_path / OBJECTIVE))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results in which lb's beta rises with the dispersion weight, and its learned factor falls with it."""
    made = write(tmp_path_factory.mktemp("made"), ("dpo", "lb"), prompts=15, steps=3, lm_eval=False)
    values = made.experiment.model_dump()
    values["methods"]["lb"] = {"method": "lb_dpo", "beta": 0.1}
    values["evaluation"] |= {"signals": True, "comparison": {"baseline": "dpo", "resamples": 199}}
    made = type(made)(made.layout, type(made.experiment).model_validate(values))
    weights = read_parquet(made.layout.dispersion)
    pairs = read_parquet(made.layout.pairs("test"))[["pair_id", "prompt_id"]].merge(weights, on="pair_id")
    for seed in (0, 1):
        table = pairs[["pair_id", "prompt_id"]].assign(beta=pairs["weight"] ** 3 + seed, learned=-pairs["weight"])
        write_parquet(made.layout.scores("lb", seed) / "signals.parquet", table.assign(perplexity=1.0))
    for split in ("train", "test"):
        # Half of the prompts' logs go by the weight, so that the correlation is neither 0 nor 1.
        table = read_parquet(made.layout.reference(split))
        weight = table.merge(weights, on="pair_id")["weight"].to_numpy()
        mixed = np.where(np.arange(len(table)) % 2, weight, np.sin(np.arange(len(table))))
        write_parquet(made.layout.reference(split), table.assign(prompt_logp=-9 * (2 + mixed)))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    return made


def test_correlations_are_by_prompt_with_intervals(made):
    table = read_parquet(made.layout.signals).set_index(["method", "signal"])
    assert table["rho"]["lb", "beta"] == pytest.approx(1) and table["rho"]["lb", "learned factor"] == pytest.approx(-1)
    assert table["n"].tolist() == [45, 15, 15] and table["seeds"].tolist() == [1, 2, 2]
    assert table["prompts"].tolist() == ["training and test", "test", "test"]
    row = table.loc[("reference", "prompt log-perplexity")]
    reference = pd.concat([read_parquet(made.layout.reference(split)) for split in ("train", "test")])
    both = reference.merge(read_parquet(made.layout.dispersion), on="pair_id")
    expected = stats.spearmanr(both["weight"], -both["prompt_logp"] / both["prompt_tokens"]).statistic
    assert row["rho"] == pytest.approx(expected) and 0.1 < expected < 0.9
    assert row["ci_low"] < expected < row["ci_high"] and row["p"] <= row["p_holm"]


def test_the_report_and_the_store_have_them(made):
    results = read_results(made.experiment.stage_view("report"), made.layout, made.settings_text)
    assert signals_table_of(results).shown["Signal"].tolist() == ["prompt log-perplexity", "beta", "learned factor"]
    panels = signals_figure(results, Look(results.methods))
    assert [panel.name for panel in panels][1] == "signals_lb_beta"
    assert len(pd.read_csv(made.layout.figures / "signals_lb_beta.csv")) == 15
    found = experiment_metrics(made.experiment.evaluation, made.layout)
    assert found["signals/lb/beta"] == pytest.approx(1) and found["signals/lb/beta/n"] == 15


def test_signals_touch_comparison_and_report_alone(made):
    values = made.experiment.model_dump()
    values["evaluation"]["signals"] = False
    without = type(made.experiment).model_validate(values)
    changed = {stage for stage in STAGE_READS if without.stage_digest(stage) != made.experiment.stage_digest(stage)}
    assert changed == {"compare", "report"}
    assert settings(("dpo",), (0,), False).evaluation.signals is False


def test_a_signal_that_never_varies_and_few_prompts_are_told(made, tmp_path):
    view, resampling = made.experiment.stage_view("compare"), {"confidence": 0.95, "resamples": 99, "seed": 0}
    few = write(tmp_path, ("dpo", "lb"), prompts=3, steps=3, lm_eval=False)
    for seed in (0, 1):
        pairs = read_parquet(few.layout.pairs("test"))[["pair_id", "prompt_id"]]
        write_parquet(few.layout.scores("lb", seed) / "signals.parquet", pairs.assign(beta=1.0, learned=1.0))
    notes = signals_table(view, few.layout, resampling)["note"].tolist()
    assert notes == ["9 prompts, at least 10 are needed", *["3 prompts, at least 10 are needed"] * 2]
    rewrite(made.layout.reference("test"), lambda table: table.assign(prompt_tokens=0))
    rewrite(made.layout.reference("train"), lambda table: table.assign(prompt_logp=-9.0))
    found = signals_table(view, made.layout, resampling).set_index(["method", "signal"])
    row = found.loc[("reference", "prompt log-perplexity")]
    assert row["n"] == 30, "a prompt of one token says nothing of its perplexity"
    assert row["note"] == "the signal is the same for all prompts" and np.isnan(row["rho"])
