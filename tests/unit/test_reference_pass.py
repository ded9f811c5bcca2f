"""The reference pass: found again by its content, shared, and gone on with behind its last part."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from mallowspo import reference_pass
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json, read_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_tokenizer, make_made_up
from mallowspo.pairs import prepared
from mallowspo.reference_pass import Shard
from mallowspo.settings import TokenSettings
from tests.made_up_run import ROOT, experiment_file, write_pairs

PAIRS, TEST_PAIRS, PER_PART = 22, 4, 4
PARTS = 6 + 1


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(reference_pass, "PAIRS_PER_PART", PER_PART)


@pytest.fixture
def made_up(tmp_path):
    """Pairs and tokens of an experiment, and `run`, which does its reference pass."""
    make_made_up(tmp_path / "model")
    experiment = load_experiment(str(experiment_file(tmp_path)))

    class MadeUp:
        model = tmp_path / "model"
        references = tmp_path / "results/references"

        def layout(self, name="made_up"):
            return Layout(str(tmp_path / "results"), name)

        def tokenize(self, name="made_up", pairs=PAIRS, **tokens):
            view = experiment.stage_view("tokens")
            view.tokens = TokenSettings.model_validate({**view.tokens.model_dump(), **tokens})
            write_pairs(self.layout(name), pairs, TEST_PAIRS)
            prepared.run(view, self.layout(name), self.model)

        def run(self, name="made_up", shard=None, tokens_per_batch=None):
            view = experiment.stage_view("reference")
            view.reference.tokens_per_batch = tokens_per_batch or view.reference.tokens_per_batch
            reference_pass.run(view, self.layout(name), self.model, "cpu", shard)

        def table(self, name="made_up", split="train"):
            return self.layout(name).reference(split).read_bytes()

        def parts(self):
            return {str(file.relative_to(self.references)): file.stat().st_ino for file in self.references.rglob("p*")}

    found = MadeUp()
    found.tokenize()
    return found


@pytest.fixture
def computed(monkeypatch):
    """How many pairs each call scored."""
    calls = []
    kept = reference_pass.score_table
    monkeypatch.setattr(
        reference_pass,
        "score_table",
        lambda scorer, pairs, *rest, **named: calls.append(len(pairs)) or kept(scorer, pairs, *rest, **named),
    )
    return calls


def test_parts_make_the_table_of_all_pairs(made_up, computed, monkeypatch):
    made_up.run()
    assert computed == [4, 4, 4, 4, 4, 2, 4]
    table = read_parquet(made_up.layout().reference("train"))
    assert table["pair_id"].tolist() == read_parquet(made_up.layout().pairs("train"))["pair_id"].tolist()
    monkeypatch.setattr(reference_pass, "PAIRS_PER_PART", 100)
    made_up.run()
    pd.testing.assert_frame_equal(read_parquet(made_up.layout().reference("train")), table, check_exact=True)
    summary = read_json(made_up.layout().reference_summary)
    assert (summary["vocabulary"], summary["tokenizer_vocabulary"], summary["longer_than_a_batch"]) == (259, 259, 0)
    assert summary["train"]["tokens"] == int(table["chosen_tokens"].sum() + table["rejected_tokens"].sum())


def test_a_second_pass_computes_nothing_and_loads_no_model(made_up, computed, monkeypatch):
    made_up.run()
    before, summary = made_up.table(), read_json(made_up.layout().reference_summary)
    made_up.layout().reference("train").unlink()
    monkeypatch.setattr(reference_pass, "load_model", None)
    made_up.run()
    assert len(computed) == PARTS
    assert (made_up.table(), read_json(made_up.layout().reference_summary)) == (before, summary)


def test_only_what_is_missing_is_computed_again(made_up, computed):
    made_up.run()
    before = made_up.table()
    gone = sorted(made_up.references.glob("*/part-00003.parquet"))
    assert len(gone) == 1
    gone[0].unlink()
    made_up.run()
    assert computed[PARTS:] == [4]
    assert made_up.table() == before


def test_experiments_with_equal_content_share_the_parts(made_up, computed):
    made_up.run()
    made_up.tokenize("other")
    made_up.run("other")
    assert len(computed) == PARTS
    assert made_up.table("other") == made_up.table()


def test_the_size_of_a_batch_changes_nothing(made_up, computed):
    made_up.run()
    before = made_up.table()
    made_up.run(tokens_per_batch=100)
    assert len(computed) == PARTS
    for file in made_up.references.rglob("part-*"):
        file.unlink()
    made_up.run(tokens_per_batch=100)
    assert made_up.table() == before


def change_weights(model):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def change_config(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))


def change_template(model):
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant: ", "assistant says: ")
    tokenizer.save_pretrained(model)


def change_tokenizer(model):
    file = model / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("change", [change_weights, change_config, change_template, change_tokenizer])
def test_another_model_tokenizer_or_template_makes_a_new_table(made_up, computed, change):
    made_up.tokenize(template="chat")
    made_up.run()
    before = made_up.table()
    change(made_up.model)
    made_up.tokenize(template="chat")
    made_up.run()
    assert len(computed) == 2 * PARTS
    assert made_up.table() != before


@pytest.mark.parametrize("tokens", [{"max_prompt": 9}, {"max_response": 9}, {"template": "chat"}])
def test_other_lengths_make_a_new_table(made_up, computed, tokens):
    made_up.run()
    before = made_up.table()
    made_up.tokenize(**tokens)
    made_up.run()
    assert len(computed) == 2 * PARTS
    assert made_up.table() != before


def test_lengths_that_cut_nothing_make_none(made_up, computed):
    made_up.run()
    made_up.tokenize(max_prompt=500)
    made_up.run()
    assert len(computed) == PARTS


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Another"},
        {"seeds": [7, 8]},
        {"methods": {"dpo": {"beta": 3.0}}},
        {"dispersion": {"estimator": "prompt"}},
        {"training": {"learning_rate": 0.5, "pairs_per_step": 2}},
        {"compute": {"threads": 2}},
        {"reference": {"shards": 3, "tokens_per_batch": 100}},
    ],
)
def test_no_other_setting_makes_a_new_table(tmp_path, change):
    """Neither changes the digest by which the workflow runs a stage again, nor is read by the pass."""
    import yaml

    file = experiment_file(tmp_path)
    before = load_experiment(str(file))
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    after = load_experiment(str(file))
    for stage in ("tokens", "reference"):
        assert before.stage_digest(stage) == after.stage_digest(stage)
    assert before.stage_view("tokens") == after.stage_view("tokens")
    assert before.stage_view("reference").model == after.stage_view("reference").model


def test_shards_share_the_parts(made_up, computed):
    for number in (2, 1, 3):
        made_up.run(shard=Shard(number, 3))
        assert not made_up.layout().reference("train").exists()
        done = read_json(made_up.layout().reference_shard(number, 3))
        assert len(done["parts"]) == (3 if number == 1 else 2)
    assert sum(computed) == PAIRS + TEST_PAIRS
    made_up.run()
    assert len(computed) == PARTS
    sharded = made_up.table()
    for file in made_up.references.rglob("part-*"):
        file.unlink()
    made_up.run()
    assert made_up.table() == sharded


def test_two_processes_on_one_part_do_no_harm(made_up, computed, monkeypatch):
    """Another process finishes every part while this one computes it."""
    made_up.run()
    before, contents = made_up.table(), {file: file.read_bytes() for file in made_up.references.rglob("part-*")}
    for file in contents:
        file.unlink()
    kept = reference_pass.write_parquet

    def write_after_the_other(path, table):
        if path in contents:
            path.write_bytes(contents[path])
        kept(path, table)

    monkeypatch.setattr(reference_pass, "write_parquet", write_after_the_other)
    made_up.run()
    assert made_up.table() == before


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "one/4", "²/4"])
def test_shards_that_are_none(text):
    with pytest.raises(InputError, match=r"^--shard .*: give NUMBER/COUNT"):
        Shard.parse(text)
    assert Shard.parse("2/4") == Shard(2, 4)


def test_long_pairs_run_alone_and_are_told_once(made_up, caplog):
    made_up.run(tokens_per_batch=70)
    lengths = prepared.open_tokens(made_up.layout().tokens("train")).lengths.sum(axis=1)
    lengths_of_test = prepared.open_tokens(made_up.layout().tokens("test")).lengths.sum(axis=1)
    long = int((lengths > 70).sum() + (lengths_of_test > 70).sum())
    assert 0 < long < PAIRS
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"{long} pairs are longer than reference.tokens_per_batch; each runs alone"]
    assert read_json(made_up.layout().reference_summary)["longer_than_a_batch"] == long


def test_numbers_that_are_not_finite_are_told_and_not_kept(made_up):
    weights = load_file(made_up.model / "model.safetensors")
    weights["model.norm.weight"][3] = 3e38  # finite by itself
    save_file(weights, made_up.model / "model.safetensors", metadata={"format": "pt"})
    first = read_parquet(made_up.layout().pairs("train"))["pair_id"][0]
    with pytest.raises(InputError, match=f"^pair {first} .*not finite, because its products overflow"):
        made_up.run()
    assert made_up.parts() == {}


SLOW = """
import sys, time
from pathlib import Path
from mallowspo import reference_pass
from mallowspo.experiments import load_experiment
from mallowspo.layout import Layout

reference_pass.PAIRS_PER_PART = {per_part}
kept = reference_pass.score_table


def slow(*arguments, **named):
    time.sleep(0.2)
    return kept(*arguments, **named)


reference_pass.score_table = slow
view = load_experiment({file!r}).stage_view("reference")
reference_pass.run(view, Layout({results!r}, "made_up"), Path({model!r}), "cpu")
"""


def test_a_killed_pass_goes_on_from_its_last_part(made_up, computed, tmp_path):
    made_up.tokenize("whole")
    made_up.run("whole")
    before = made_up.table("whole")
    for file in made_up.references.rglob("part-*"):
        file.unlink()
    script = tmp_path / "slow.py"
    values = {"file": str(tmp_path / "made_up.yaml"), "results": str(tmp_path / "results"), "model": str(made_up.model)}
    script.write_text(SLOW.format(per_part=PER_PART, **values))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while len(made_up.parts()) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    left = made_up.parts()
    assert 3 <= len(left) < PARTS
    assert not made_up.layout().reference("train").exists()
    del computed[:]
    made_up.run()
    assert len(computed) == PARTS - len(left)
    assert {file: made_up.parts()[file] for file in left} == left
    assert made_up.table() == before
