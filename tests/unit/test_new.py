"""`mallowspo new`: the file that it writes is an experiment that fits the data, the minutes and the memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.experiments import load_comparison
from mallowspo.files import read_parquet, write_jsonl
from mallowspo.models import make_made_up
from mallowspo.new.look import Look
from mallowspo.new.size import Request, sized
from mallowspo.plan.hardware import DEVICES
from mallowspo.plan.shapes import KNOWN

ROOT = Path(__file__).parents[2]
WORDS = ("yes", "no", "perhaps", "a long answer, with reasons")
LOOKED = Look(900, 880, 660, 220, {"duplicate": 20}, np.array([[100.0, 50, 60], [20, 10, 10], [300, 40, 90]] * 50))
ASKED = Request(
    *("mine", "path:a.jsonl", "pypi:x==1!y.gguf", "0" * 64, "chat", "reward:vader", 20, 0.05, 0.25),
    *(KNOWN["SmolLM2-135M"], 2048, DEVICES["cpu"], 2, 32 << 30),
)


def rows(count):
    return [
        {"prompt": f"Question {n}?", "chosen": WORDS[n % 4] + "!", "rejected": f"{n} " + WORDS[-n % 3]}
        for n in range(count)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout's folder of experiments, a model, and a file of 60 pairs, one row repeated and one broken."""
    monkeypatch.chdir(tmp_path)
    Path("config/experiments").mkdir(parents=True)
    make_made_up(tmp_path / "model")
    given = rows(60)
    write_jsonl("pairs.jsonl", [*given, given[0], {"prompt": "q", "chosen": "same", "rejected": "same"}])
    return tmp_path


def new(*arguments, model="model"):
    return CliRunner().invoke(app, ["new", *arguments, "--model", model])


def refusal(*arguments, **options):
    done = new(*arguments, **options)
    assert isinstance(done.exception, InputError), done.output
    assert len(str(done.exception).splitlines()) == 1
    return str(done.exception)


def test_the_file_is_an_experiment_of_these_pairs_and_says_what_to_type_next(place):
    done = new("mine", "--pairs", "pairs.jsonl")
    assert done.exit_code == 0, done.exception
    said = done.output.splitlines()
    read = "62 rows, 60 different pairs of 60 prompts (rows that give no pair: 1 equal sides, 1 duplicate)."
    assert said[0] == f"Read pairs.jsonl: {read}"
    assert [line.strip() for line in said[-2:]] == [
        "snakemake --cores all --config experiments=mine",
        "python -m webbrowser results/mine/report.html",
    ]
    settings = load_comparison("mine")
    assert (list(settings.methods), settings.seeds) == (["dpo", "mallows_theta", "mallows_phi"], [1, 2])
    assert (settings.model.source, settings.pairs.source) == ("path:model", "path:pairs.jsonl")
    assert settings.training.lora is not None and settings.tokens.template == "chat"
    # The stage finds the counts that were foretold: all prompts, for two layers are quick.
    for stage in ("model", "pairs"):
        assert CliRunner().invoke(app, [stage, "mine"], catch_exceptions=False).exit_code == 0
    found = {split: len(read_parquet(f"results/mine/pairs/{split}.parquet")) for split in ("train", "test")}
    assert found == {"train": settings.pairs.max_train, "test": settings.pairs.max_test}
    assert sum(found.values()) == 60


def test_limits_of_tokens_come_from_the_data(place):
    """Made-up tokens are bytes: 'Question 10?' with its turn is a few dozen, the longest response some thirty."""
    new("mine", "--pairs", "pairs.jsonl", "--template", "plain")
    tokens = load_comparison("mine").tokens
    assert tokens.template == "plain"
    assert (tokens.max_prompt, tokens.max_response) == (16, 32)


def test_csv_and_parquet_give_the_same_file(place):
    pd.DataFrame(rows(60)).to_csv("pairs.csv", index=False)
    pd.DataFrame(rows(60)).to_parquet("pairs.parquet")
    texts = []
    for kind in ("csv", "parquet"):
        assert new(kind, "--pairs", f"pairs.{kind}").exit_code == 0
        texts.append(Path(f"config/experiments/{kind}.yaml").read_text().replace(kind, "KIND"))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ['it\'s my "data": 1 # x.jsonl', "pärchen 測試.jsonl", "<b>&amp;.jsonl"])
def test_a_file_may_be_called_anything(place, name):
    Path("pairs.jsonl").rename(name)
    assert new("mine", "--pairs", name).exit_code == 0
    assert load_comparison("mine").pairs.source == f"path:{name}"


def test_what_is_there_is_not_overwritten(place):
    Path("config/experiments/mine.yaml").write_text("# mine")
    assert "is there already and was not changed" in refusal("mine", "--pairs", "pairs.jsonl")
    assert Path("config/experiments/mine.yaml").read_text() == "# mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine", "--pairs", "pears.jsonl"], "--pairs pears.jsonl: no such file"),
        (["mine", "--pairs", "broken.jsonl"], "broken.jsonl: after row 1: not whole JSONL"),
        (["mine", "--pairs", "notes.txt"], "notes.txt: unknown kind of file; expected .jsonl, .json, .csv, .parquet"),
        (["mine", "--pairs", "columns.jsonl"], "12 of 12 rows (100.0%) cannot be used"),
        (["mine", "--pairs", "few.jsonl"], "are the fewest: add pairs of other prompts"),
        (["mine", "--pairs", "empty.jsonl"], "empty.jsonl: holds no rows"),
        (["true", "--pairs", "pairs.jsonl"], "experiment 'true': give a name"),
        (["7", "--pairs", "pairs.jsonl"], "experiment '7': give a name"),
        (["models", "--pairs", "pairs.jsonl"], "experiment 'models': give a name"),
        (["../up", "--pairs", "pairs.jsonl"], "experiment '../up': give a name"),
        (["mine", "--pairs", "pairs.jsonl", "--template", "chatt"], "--template chatt: did you mean 'chat'?"),
        (["mine", "--pairs", "pairs.jsonl", "--judge", "reward:vadr"], "did you mean 'reward:vader'?"),
        (["mine", "--pairs", "pairs.jsonl", "--device", "h1000"], "--device h1000: did you mean 'h100'?"),
        (["mine", "--pairs", "pairs.jsonl", "--minutes", "1"], "the smallest comparison of these pairs"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_experiment(place, arguments, says):
    Path("broken.jsonl").write_text(json.dumps(rows(1)[0]) + '\n{"prompt": "q", "cho')
    Path("notes.txt").write_text("no pairs")
    write_jsonl("columns.jsonl", [{"question": f"q{n}", "good": "a", "bad": "b"} for n in range(12)])
    write_jsonl("few.jsonl", rows(6))
    Path("empty.jsonl").write_text("")
    assert says in refusal(*arguments)
    assert not list(Path("config/experiments").iterdir())


def test_rows_that_cannot_be_used_are_listed_and_may_be_allowed(place):
    broken = [{"prompt": f"b{n}", "chosen": "same", "rejected": "same"} for n in range(10)]
    write_jsonl("mixed.jsonl", [*rows(50), *broken])
    said = refusal("mine", "--pairs", "mixed.jsonl")
    assert "10 of 60 rows (16.7%) cannot be used" in said and "row 51: chosen equals rejected" in said
    assert len(Path("results/mine/pairs/unusable.jsonl").read_text().splitlines()) == 10
    assert new("mine", "--pairs", "mixed.jsonl", "--max-unusable-share", "0.2").exit_code == 0
    assert load_comparison("mine").pairs.max_unusable_share == 0.2


def test_no_checkout_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "call the command in a checkout" in refusal("mine", "--pairs", "pairs.jsonl")


def test_more_minutes_or_cores_are_more_pairs_and_no_plan_is_longer_than_was_asked():
    made = [sized(replace(ASKED, minutes=minutes), LOOKED) for minutes in (8, 20, 60)]
    takes = [each.train for each in made]
    assert takes[0] < takes[1] < takes[2] < LOOKED.train
    assert all(each.minutes <= minutes for each, minutes in zip(made, (8, 20, 60), strict=True))
    assert all(each.test == each.train // 2 for each in made)
    assert sized(replace(ASKED, cores=8), LOOKED).train > takes[1]
    everything = sized(replace(ASKED, minutes=10_000), LOOKED)
    assert (everything.train, everything.test) == (LOOKED.train, LOOKED.test)


def test_few_steps_have_a_larger_learning_rate():
    """440 and 2,000 training pairs are 55 and 250 steps of 8."""
    asked = replace(ASKED, minutes=10_000)
    rates = [
        sized(asked, replace(LOOKED, pairs=prompts, train=3 * prompts // 4, test=prompts // 4)).experiment.training
        for prompts in (586, 2668)
    ]
    assert [rate.learning_rate for rate in rates] == [5e-4, 1e-4]


def test_limits_stay_within_the_models_window():
    tokens = sized(replace(ASKED, window=128), LOOKED).experiment.tokens
    assert (tokens.max_prompt, tokens.max_response) == (64, 64)
    long = sized(ASKED, LOOKED).experiment.tokens
    assert (long.max_prompt, long.max_response) == (304, 96)


def test_jobs_side_by_side_fit_into_the_memory():
    assert sized(ASKED, LOOKED).experiment.compute.memory_mb is None
    small = sized(replace(ASKED, memory=4 << 30), LOOKED).experiment.compute
    assert small.memory_mb == 1600  # 0.8 x 4 GiB, shared by two


def test_a_gpu_is_asked_for_where_it_is_planned_with():
    on_gpu = sized(replace(ASKED, device=DEVICES["h100"], minutes=5), LOOKED)
    assert on_gpu.experiment.compute.gpus == 1
    assert on_gpu.train > sized(replace(ASKED, minutes=5), LOOKED).train
