"""A further set of pairs: read, drawn, scored by the reference and by a policy, as the held-out pairs are."""

import pandas as pd
import pytest
import torch
import yaml

from mallowspo.errors import InputError
from mallowspo.evaluation import other_pairs, score
from mallowspo.evaluation.settings import OtherPairsSettings
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json, read_jsonl, read_parquet, write_jsonl
from mallowspo.layout import Layout
from mallowspo.models import load_model, make_made_up
from tests.made_up_run import ROOT, experiment_file

FILE = ROOT / "config/pairs/plain_endings.jsonl"


@pytest.fixture
def made_up(tmp_path):
    """Experiment, layout and model folder; nothing of the experiment itself has run."""
    make_made_up(tmp_path / "model")
    experiment = load_experiment(str(experiment_file(tmp_path)))
    return experiment, Layout(str(tmp_path / "results"), "made_up"), tmp_path / "model"


def run(made_up, **settings):
    experiment, layout, model = made_up
    chosen = OtherPairsSettings.model_validate({"source": f"path:{FILE}", **settings})
    place = layout.other_pairs("endings")
    other_pairs.run(experiment.stage_view("other-pairs"), chosen, place, model, "cpu")
    return place


def test_every_pair_is_scored_and_none_twice(made_up):
    place = run(made_up)
    pairs, table = read_parquet(place.pairs("test")), read_parquet(place.reference("test"))
    assert set(pairs["prompt"]) == {row["prompt"] for row in read_jsonl(FILE)}
    assert pairs["pair_id"].tolist() == table["pair_id"].tolist() and len(pairs) == 16
    assert (table["chosen_logp"] < 0).all() and (table["rejected_entropy"] > 0).all()
    assert read_json(place.reference_summary)["test"]["pairs"] == 16
    assert read_jsonl(place.unusable_rows) == []


def test_the_draw_goes_by_pair_and_seed(made_up):
    drawn = [set(read_parquet(run(made_up, max_pairs=6, seed=seed).pairs("test"))["pair_id"]) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 6 and drawn[0] == drawn[1] != drawn[2]
    more = read_parquet(run(made_up, max_pairs=9).pairs("test"))
    assert drawn[0] < set(more["pair_id"]), "more pairs keep the others"


def test_another_policy_has_margins_and_the_reference_none(made_up):
    """The made-up model against itself gives margins of 0; against another one, those of both tables."""
    experiment, _, model = made_up
    place = run(made_up)
    view = experiment.stage_view("score")
    score.run_pairs(view, place, model, "dpo", 1, "cpu")
    same = read_parquet(place.scores("dpo", 1) / "pairs.parquet")
    assert same["margin"].abs().max() < 1e-4
    another = load_model(model)
    with torch.no_grad():
        another.get_output_embeddings().weight.mul_(1.5)
    another.save_pretrained(model.with_name("another"))
    score.run_pairs(view, place, model.with_name("another"), "dpo", 2, "cpu")
    found = read_parquet(place.scores("dpo", 2) / "pairs.parquet").set_index("pair_id")
    reference = read_parquet(place.reference("test")).set_index("pair_id").loc[found.index]
    change = {side: found[f"{side}_logp"] - reference[f"{side}_logp"] for side in ("chosen", "rejected")}
    pd.testing.assert_series_equal(found["margin"], change["chosen"] - change["rejected"], check_names=False)
    assert found["margin"].abs().max() > 0.01 and set(found["correct"]) <= {0.0, 0.5, 1.0}


def test_rows_that_cannot_be_used_are_listed_and_stop_it(made_up, tmp_path):
    file = tmp_path / "broken.jsonl"
    write_jsonl(file, [*read_jsonl(FILE)[:9], {"prompt": "x", "chosen": "", "rejected": "y"}])
    with pytest.raises(InputError, match=r"evaluation.other_pairs: path:.*1 of 10 rows \(10.0%\) cannot be used"):
        run(made_up, source=f"path:{file}")
    place = run(made_up, source=f"path:{file}", max_unusable_share=0.2)
    assert [row["row"] for row in read_jsonl(place.unusable_rows)] == [10]
    with pytest.raises(InputError, match=r"evaluation.other_pairs: .*nowhere.jsonl: no such file"):
        run(made_up, source="path:nowhere.jsonl")


def with_sets(folder, **sets):
    """The settings of evaluation with these sets."""
    file = experiment_file(folder)
    values = yaml.safe_load(file.read_text())
    values["evaluation"]["other_pairs"] = sets
    file.write_text(yaml.safe_dump(values))
    return load_experiment(str(file)).evaluation


def test_a_set_whose_file_is_absent_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOWSPO_SHARED_DATA", raising=False)
    skip, absent = {"where_absent": "skip"}, {"source": "path:nowhere.jsonl"}
    evaluation = with_sets(tmp_path, there={"source": f"path:{FILE}", **skip}, gone={**absent, **skip})
    assert list(evaluation.other_pairs) == ["there"]
    assert evaluation.left_out == {"gone": "path:nowhere.jsonl"}
    assert evaluation.warnings() == [
        "evaluation.other_pairs.gone is left out: path:nowhere.jsonl is not there and cannot be fetched"
    ]
    stays = with_sets(tmp_path, gone=absent)
    assert list(stays.other_pairs) == ["gone"] and not stays.warnings(), "by default its job stops"
    with pytest.raises(InputError, match="where_absent: skip is for path: sources"):
        with_sets(tmp_path, gone={"source": "hub:a/b@c", **skip})
