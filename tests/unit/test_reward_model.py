"""A reward model on a made-up model: what it learns, that it judges as it was trained, and going on after a kill."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import softplus
from transformers import AutoModelForSequenceClassification

from mallowspo.errors import InputError
from mallowspo.experiments import dump_settings, load_study
from mallowspo.files import read_json, read_jsonl, read_parquet, write_jsonl
from mallowspo.judges.classifier import last_token_logits, read_texts
from mallowspo.judges.labels import judge_labels
from mallowspo.judges.reward import judge_answers
from mallowspo.judges.settings import JudgeSettings
from mallowspo.layout import Layout
from mallowspo.models import fetch, load_tokenizer
from mallowspo.reward_model import study, training
from mallowspo.reward_model.trainer import PairTexts, padded, within_padded_budget
from mallowspo.studies import page

WORDS = ["film", "plot", "scene", "tea", "garden", "rain", "road"]


def rows(count):
    """Pairs whose chosen answer says yes; every other one is the longer."""
    draw = random.Random(0)
    for number in range(count):
        words = " ".join(draw.choices(WORDS, k=3))
        longer = [" yes", " no"][number % 2]
        sides = {side: f"{said}{' indeed' if said == longer else ''}" for side, said in
                 (("chosen", " yes"), ("rejected", " no"))}  # fmt: skip
        yield {"prompt": f"Number {number}, the {words}, was it?", **sides}


def made(folder, count=60, **settings):
    """Settings, layout and fetched model of a made-up reward model; nothing has run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "pairs.jsonl", rows(count))
    values = {
        "kind": "reward_model",
        "title": "Made up",
        "model": {"source": "made_up:two_layers", "precision": "float32"},
        "tokens": {"template": "chat", "max_tokens": 96},
        "pairs": {"source": f"path:{folder}/pairs.jsonl", "split": {"test_fraction": 0.3}},
        "training": {"epochs": 6, "learning_rate": 3e-3, "pairs_per_step": 8, "checkpoint_every": 3},
        "compute": {"device": "cpu", "threads": 1},
    }
    for key, value in settings.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    (folder / "judge.yaml").write_text(yaml.safe_dump(values))
    experiment, layout = load_study(str(folder / "judge.yaml")), Layout(str(folder / "results"), "judge")
    model = layout.model(experiment.model.key)
    fetch(experiment.model.source, None, model)
    return experiment, layout, model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole study, run once: settings, layout, model folder."""
    settings, layout, model = made(tmp_path_factory.mktemp("trained"))
    page.run(settings, layout, model, dump_settings(settings))
    return settings, layout, model


def test_it_learns_what_the_pairs_prefer_and_says_how_well(trained):
    settings, layout, _ = trained
    numbers, test = read_json(layout.study)["numbers"], read_parquet(layout.pairs("test"))
    assert numbers["accuracy"] > 0.9 and numbers["accuracy_low"] > 0.5
    assert (numbers["pairs"], numbers["prompts"]) == (len(test), test["prompt_id"].nunique())
    assert not set(test["prompt_id"]) & set(read_parquet(layout.pairs("train"))["prompt_id"])
    steps = read_jsonl(layout.reward_model_training / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["accuracy"] > steps[0]["accuracy"] or steps[-1]["loss"] < steps[0]["loss"]
    text = layout.report.read_text()
    assert "the reward model prefers the chosen answer in" in text and text.count("<svg") == 3
    assert load_study(str(layout.settings)) == settings
    assert not (layout.reward_model_training / "work").exists()


def test_the_judge_gives_the_trainings_scores(trained, tmp_path):
    """By another way: the trainer's own batches, tokenizer and margins, with the trained weights."""
    settings, layout, model = trained
    test = read_parquet(layout.pairs("test"))
    trainer = training.make_trainer(settings, layout, model, tmp_path)
    trainer.model.load_state_dict(load_file(layout.reward_model / "model.safetensors"))
    trainer.model.eval()
    texts = PairTexts(test, trainer.train_dataset.tokenizer, 1024)
    with torch.no_grad():
        single = [float(trainer.margins(texts.collate([at])["parts"][0])) for at in range(len(test))]
        together = torch.cat([trainer.margins(part) for part in texts.collate(list(range(len(test))))["parts"]])
    judged = read_parquet(layout.tables / "test_pairs.parquet")
    assert judged["pair_id"].tolist() == test["pair_id"].tolist()
    assert single == pytest.approx(judged["margin"].tolist(), abs=1e-4)
    assert sorted(together.tolist()) == pytest.approx(sorted(single), abs=1e-4), "whatever it is batched with"
    judge = f"reward:path:{layout.reward_model}"
    assert judge_answers(judge, ["Was it?"], [" yes"]) > judge_answers(judge, ["Was it?"], [" no"])


def test_people_can_measure_it_and_any_other_judge_on_the_same_pairs(trained):
    _, layout, _ = trained
    file = str(layout.tables / "test_labels.jsonl")
    assert {row["label"] for row in read_jsonl(file)} == {1, 2}
    found = judge_labels(f"reward:path:{layout.reward_model}", file, JudgeSettings())
    assert found["agreement"]["value"] == pytest.approx(read_json(layout.study)["numbers"]["accuracy"])


def test_the_last_token_goes_by_length_where_a_text_ends_in_the_pad_token(trained):
    _, layout, _ = trained
    tokenizer = load_tokenizer(layout.reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(layout.reward_model).eval()
    assert model.config.pad_token_id is None
    end = tokenizer.eos_token_id
    texts = [[5, 6, 7, end, end], [8, 9, end], [5]]
    with torch.no_grad():
        found = last_token_logits(model, **padded(texts))
        alone = [model.score(model.model(torch.tensor([text])).last_hidden_state[:, -1]) for text in texts]
        model.config.pad_token_id = end
        by_id = model(padded(texts)["tokens"]).logits
    assert found[:, 0].tolist() == pytest.approx([float(value) for value in alone], abs=1e-5)
    assert abs(float(by_id[0] - alone[0])) > 1e-3, "what the model's own forward would have taken"


def test_the_loss_is_bradley_and_terrys_whatever_the_batches(tmp_path):
    losses = []
    for budget in (4096, 64):
        settings, layout, model = made(
            tmp_path, count=12, training={"pairs_per_step": 100, "epochs": 2, "tokens_per_batch": budget}
        )
        training.run(settings, layout, model)
        losses.append([row["loss"] for row in read_jsonl(layout.reward_model_training / "metrics.jsonl")])
    trainer = training.make_trainer(settings, layout, model, tmp_path / "work")
    texts = trainer.train_dataset
    with torch.no_grad():
        margins = torch.cat([trainer.margins(part) for part in texts.collate(list(range(len(texts))))["parts"]])
    assert losses[0][0] == pytest.approx(float(softplus(-margins).mean()), abs=1e-4)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][1] != losses[0][0]


def test_parts_fit_with_their_padding_and_hold_every_pair_once():
    lengths = [3, 50, 4, 4, 12, 30, 1]
    parts = within_padded_budget(lengths, 32)
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    assert all(len(part) * max(lengths[at] for at in part) <= 32 for part in parts if len(part) > 1)
    assert [1] in parts and [5] in parts


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_folder_holds_how_texts_are_read(tmp_path, template):
    settings, _, model = made(tmp_path, tokens={"template": template, "max_tokens": 40})
    tokenizer = training.reward_tokenizer(model, settings.tokens, training.initial_model(model).config)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.model_max_length == 40 and bool(saved.chat_template) == (template == "chat")
    saved.truncation_side = "left"  # as the judge sets it
    for texts in ([("Was it?", " yes")], [("Was it? " * 9, " yes"), ("q", "no" * 40)]):
        ids = read_texts(tokenizer, texts, 40)["input_ids"]
        assert ids == read_texts(saved, texts, saved.model_max_length)["input_ids"]
    whole = tokenizer.decode(read_texts(tokenizer, [("Was it?", " yes")], 40)["input_ids"][0])
    assert whole == {"chat": "user: Was it?\nassistant:  yes\n", "plain": "Was it? yes"}[template]
    cut = read_texts(tokenizer, [("Was it? " * 9, " yes")], 40)["input_ids"][0]
    ending = {"chat": "it? \nassistant:  yes\n", "plain": "it?  yes"}[template]
    assert len(cut) == 40 and tokenizer.decode(cut).endswith(ending)


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(tmp_path):
    settings = {"training": {"epochs": 12}}
    whole = made(tmp_path / "whole", **settings)
    training.run(*whole)
    cut = made(tmp_path / "cut", **settings)
    folder = cut[1].reward_model_training
    command = [sys.executable, "-m", "mallowspo.cli", "reward-model", str(tmp_path / "cut/judge.yaml"), "--results",
               str(tmp_path / "cut/results")]  # fmt: skip
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("work/checkpoint-*/whole")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not cut[1].reward_model.exists(), "killed too late to test anything"
    (folder / "work" / "checkpoint-999").mkdir()  # what a kill may leave: a checkpoint without its mark
    training.run(*cut)
    assert read_json(folder / "summary.json")["resumed_from_step"] % 3 == 0
    left, right = (load_file(layout.reward_model / "model.safetensors") for _, layout, _ in (cut, whole))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)
    curves = [read_jsonl(layout.reward_model_training / "metrics.jsonl") for _, layout, _ in (cut, whole)]
    assert curves[0] == curves[1]


def test_what_is_trained_is_not_trained_again_unless_its_settings_change(tmp_path):
    few = {"epochs": 1}
    settings, layout, model = made(tmp_path, count=20, training=few)
    training.run(settings, layout, model)
    made_at = (layout.reward_model / "model.safetensors").stat().st_mtime_ns
    training.run(settings, layout, model)
    same, *_ = made(tmp_path, count=20, training=few, title="Another title")
    training.run(same, layout, model)
    assert (layout.reward_model / "model.safetensors").stat().st_mtime_ns == made_at
    other, *_ = made(tmp_path, count=20, training=few, seed=3)
    training.run(other, layout, model)
    assert (layout.reward_model / "model.safetensors").stat().st_mtime_ns != made_at


def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_no_model(tmp_path):
    settings, layout, model = made(tmp_path, count=20, training={"learning_rate": 1e30, "warmup_ratio": 0})
    with pytest.raises(InputError, match=r"step \d+: the (loss|gradient) is not finite; lower learning_rate"):
        training.run(settings, layout, model)
    assert not layout.reward_model.exists() and not (layout.reward_model_training / "summary.json").exists()


def test_two_files_with_other_shares_of_one_source_share_no_prompt(tmp_path):
    seen = []
    for seed, parts in enumerate(([3], [1, 2])):
        split = {"share": {"of": 3, "parts": parts}, "test_fraction": 0.3, "seed": seed}
        prepared = made(tmp_path / str(seed), count=90, training={"epochs": 1}, pairs={"split": split})
        training.run(*prepared)
        tables = [read_parquet(prepared[1].pairs(part)) for part in ("train", "test")]
        seen.append({prompt for table in tables for prompt in table["prompt_id"]})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 90


def test_labels_change_sides():
    found = study.labels(pd.DataFrame([{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2))
    assert [(row["output_1"], row["output_2"], row["label"]) for row in found] == [("a", "b", 1), ("b", "a", 2)]
