"""Judges by name, what they say, and how they are measured."""

import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.files import read_jsonl, write_jsonl
from mallowspo.judges import labels
from mallowspo.judges.judge import Judge, Judgement, Question, judge_digest
from mallowspo.judges.judgements import Asking, ask_all
from mallowspo.judges.measure import Both, agreement, consistency, length_slope, measure, pairs_of, rate
from mallowspo.judges.names import check_judge_name, check_reward_name
from mallowspo.judges.open import open_judge
from mallowspo.judges.reward import RewardJudge, judge_answers
from mallowspo.judges.settings import JudgeSettings
from mallowspo.layout import Layout
from mallowspo.models import byte_tokenizer, load_model, load_tokenizer, make_made_up

SETTINGS = JudgeSettings()


@pytest.mark.parametrize(
    "name",
    ["reward:vader", "reward:my.module:score", "reward:path:/a/folder", "reward:hub:who/what@main",
     "reward:hub:who/what@main#logit=0", "reward:path:folder#probability=POSITIVE"],
)  # fmt: skip
def test_names_of_rewards(name: str) -> None:
    assert check_reward_name(name) == check_judge_name(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reward:vadr", "did you mean 'reward:vader'"),
        ("reward:hub:who/what", "unknown judge"),
        ("reward:path", "unknown judge"),
        ("gpt-4", "kinds: reward:NAME"),
        ("logprob:folder", "unknown judge"),
    ],
)
def test_names_of_nothing(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_judge_name(name)


def test_a_judge_of_pairs_is_no_reward() -> None:
    for name in ("openai:gpt-4", "logprob:path:x", "pairwise-table:x.json"):
        assert check_judge_name(name) == name
        with pytest.raises(ValueError, match="compares two answers and gives no reward"):
            check_reward_name(name)


def test_a_reward_as_a_judge() -> None:
    judge = open_judge("reward:vowels")
    found = judge.ask([Question("p", "aaa", "bbb"), Question("p", "bbb", "aaa"), Question("p", "ab", "ba")])
    assert [judgement.preference for judgement in found] == [1.0, 2.0, 1.5]


def test_known_rewards_are_not_computed_again() -> None:
    judge = RewardJudge("reward:vowels", {("p", "bbb"): 9.0, ("p", "aaa"): 1.0})
    assert judge.ask([Question("p", "aaa", "bbb")])[0].preference == 2.0


def test_stored_judgements(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output_1": "x", "output_2": "y", "preference": 1.2},
        {"instruction": "b", "output_1": "x", "output_2": "y", "preference": 0},
        {"instruction": "b", "output_1": "y", "output_2": "x", "preference": 1.5},
        {"instruction": "c", "output_1": "x", "output_2": "y", "preference": None, "problem": "a refusal"},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    judge = open_judge(f"pairwise-table:{tmp_path / 't.jsonl'}")
    a, b, c = (Question(name, "x", "y") for name in "abc")
    found = judge.ask([a, a.swapped, b, b.swapped, c])
    assert [judgement.preference for judgement in found] == [1.2, pytest.approx(1.8), 1.5, 1.5, None]
    assert found[1].note and not found[3].note and found[4].problem == "a refusal"
    with pytest.raises(InputError, match="1 of 2 pairs are not in the table, first 'd'"):
        judge.ask([a, Question("d", "x", "y")])
    # Mirrored judgements say nothing about positions.
    assert measure([Both(a, found[0], found[1])])["flips"]["n"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preference": 3}, "row 1: preference 3 is not from 1 to 2"),
        ({"preference": "m"}, "row 1: preference 'm' is not"),
        ({"instruction": "a", "preference": 2}, "row 1: judged before, and otherwise"),
        ({"output_1": None}, "row 1 has no output_1"),
    ],
)
def test_stored_judgements_that_are_wrong(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    row = {"instruction": "a", "output_1": "x", "output_2": "y", "preference": 1.2}
    write_jsonl(tmp_path / "t.jsonl", [row, {**row, "instruction": "b", **change}])
    with pytest.raises(InputError, match=says):
        open_judge(f"pairwise-table:{tmp_path / 't.jsonl'}")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    make_made_up(folder)
    return folder


def test_log_probability_judge_is_the_law_of_the_two_labels(causal: Path) -> None:
    judge = open_judge(f"logprob:path:{causal}", JudgeSettings(precision="float32", device="cpu"))
    questions = [Question("Say hi", "hi", "no"), Question("Say hi", "no", "hi"), Question("{output_2}", "x", "y")]
    found = judge.ask(questions)
    model, tokenizer = load_model(causal).double(), load_tokenizer(causal)
    for question, judgement in zip(questions, found, strict=True):
        text = judge.template.replace("{instruction}", "\0").replace("{output_1}", question.first)  # type: ignore[attr-defined]
        text = text.replace("{output_2}", question.second).replace("\0", question.instruction)
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        a, b = (tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in ("A", "B"))
        with torch.no_grad():
            law = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)
        assert judgement.preference == pytest.approx(2 - float(torch.sigmoid(law[a] - law[b])), abs=1e-4)
        assert "log p(A)" in judgement.raw and 1 < (judgement.preference or 0) < 2


def test_answers_that_do_not_fit_are_cut_alike_and_counted(causal: Path) -> None:
    judge = open_judge(f"logprob:path:{causal}", JudgeSettings(device="cpu"))
    question = Question("Say hi", "a" * 900, "b" * 30)
    assert "answers cut to" in judge.ask([question])[0].note
    with pytest.raises(InputError, match="the instruction 'iii.* is longer than the model's"):
        judge.ask([Question("i" * 900, "a", "b")])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of tiny sequence-classification models with one and with two labels."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folders = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"labels{count}")
        tokenizer = byte_tokenizer()
        tokenizer.save_pretrained(folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, num_labels=count, initializer_range=0.3,
        )  # fmt: skip
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(folder)
        folders[count] = folder
    return folders


def test_a_sequence_classifier_as_reward(classifier: dict[int, Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    name = f"reward:path:{classifier[1]}"
    prompts, answers = ["Say hi", "Say no", "Say hi"], ["hi", "well, no", "hello " * 40]
    found = judge_answers(name, prompts, answers)
    model = AutoModelForSequenceClassification.from_pretrained(classifier[1]).eval()
    tokenizer = load_tokenizer(classifier[1])
    for prompt, answer, value in zip(prompts, answers, found, strict=True):
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, -128:]
        with torch.no_grad():
            assert value == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-4)
    assert len(set(found)) == 3


def test_the_reward_of_several_labels_is_declared(classifier: dict[int, Path]) -> None:
    name = f"reward:path:{classifier[2]}"
    with pytest.raises(InputError, match=r"has the labels LABEL_0, LABEL_1; say which .*#probability=LABEL_0"):
        judge_answers(name, ["a"], ["b"])
    logits = [judge_answers(f"{name}#logit={label}", ["a"], ["b"])[0] for label in ("LABEL_0", "1")]
    probability = judge_answers(f"{name}#probability=LABEL_1", ["a"], ["b"])[0]
    assert probability == pytest.approx(1 / (1 + math.exp(logits[0] - logits[1])), abs=1e-5)
    digests = {judge_digest(open_judge(f"{name}#{which}")) for which in ("logit=0", "logit=1", "probability=1")}
    assert len(digests) == 3


def test_a_causal_model_is_no_classifier(causal: Path) -> None:
    with pytest.raises(InputError, match=r"score.weight.* are not in"):
        judge_answers(f"reward:path:{causal}#logit=0", ["a"], ["b"])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in (f"reward:path:{tmp_path}", f"logprob:path:{tmp_path}"):
        with pytest.raises(InputError, match=r"no config.json with \*.safetensors"):
            open_judge(name)


class Voter:
    """A judge made for a test: P(first is better) by a rule, counted."""

    deterministic = True
    concurrency = 1
    name = "voter"

    def __init__(self, rule: Any, batch: int = 3):
        self.rule, self.batch, self.asked = rule, batch, 0
        self.content: dict[str, Any] = {}

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        self.asked += len(questions)
        return [Judgement(2 - self.rule(question)) for question in questions]

    def cost(self, question: Question) -> tuple[int, int]:
        return 0, 0


def questions(count: int) -> list[Question]:
    draw = random.Random(0)
    return [Question(f"q{n}", "a" * draw.randint(1, 60), "b" * draw.randint(1, 60)) for n in range(count)]


def judged(judge: Judge, pairs: list[Question]) -> list[Both]:
    askings = [asking for pair in pairs for asking in (Asking(pair), Asking(pair.swapped))]
    return pairs_of(pairs, ask_all(judge, askings, None, SETTINGS))


def test_a_judge_that_votes_by_position() -> None:
    found = measure(judged(Voter(lambda question: 0.75), questions(50)))
    assert found["prefer_first"]["value"] == 0.75 and found["flips"]["value"] == 1.0 and found["ties"]["value"] == 1.0
    assert found["prefer_first"]["low"] > 0.5
    always = measure(judged(Voter(lambda question: 1.0), questions(50)))
    assert always["prefer_first"]["value"] == 1.0 and always["flips"]["low"] > 0.9


def test_the_length_slope_is_found_again() -> None:
    def rule(question: Question) -> float:
        ratio = math.log((1 + len(question.first)) / (1 + len(question.second)))
        return 1 / (1 + math.exp(-0.8 * ratio))

    slope = measure(judged(Voter(rule), questions(300)))["length_slope"]
    assert slope["value"] == pytest.approx(0.8, abs=1e-6)
    draw = random.Random(1)
    noisy = judged(Voter(lambda question: float(draw.random() < rule(question))), questions(400))
    slope = length_slope([Both(pair.question, pair.given, None) for pair in noisy])
    assert slope["low"] < 0.8 < slope["high"] and slope["high"] - slope["low"] < 1


def test_a_judge_of_length_alone_has_no_slope_but_a_reason() -> None:
    pairs = [pair for pair in questions(100) if len(pair.first) != len(pair.second)]
    found = measure(judged(Voter(lambda question: float(len(question.first) > len(question.second))), pairs))
    assert found["length_slope"]["value"] is None and "length alone" in found["length_slope"]["note"]
    assert found["flips"]["value"] == 0 and found["prefer_first"]["value"] == 0.5


def test_agreement_and_intervals_by_hand() -> None:
    pairs = [Both(Question("q", "a", "b"), Judgement(p), None) for p in (1.0, 1.0, 2.0, 1.5)]
    # Right, right, wrong, half: 2.5 of 4; Wilson's interval for 2.5 of 4 by its formula.
    found = agreement(pairs, [1, 1, 1, 1])
    z, n, p = 1.959963984540054, 4, 0.625
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["value"] == 0.625
    assert found["low"] == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found["high"] == pytest.approx((centre + half) / (1 + z**2 / n))
    assert rate([])["value"] is None
    assert consistency([Judgement(1.2), Judgement(1.7)], [Judgement(1.4), Judgement(1.2)])["value"] == 0.5


def test_judgements_are_kept_and_not_made_twice(tmp_path: Path) -> None:
    judge, pairs = Voter(lambda question: 0.25), questions(7)
    ask_all(judge, [Asking(pair) for pair in pairs[:4]], tmp_path, SETTINGS)
    file = next(tmp_path.glob("voter-*.jsonl"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # the last line is torn
    ask_all(judge, [Asking(pair) for pair in pairs] * 2, tmp_path, SETTINGS)
    assert judge.asked == 4 + 4 and len(read_jsonl(file)) == 7
    ask_all(judge, [Asking(pairs[0], repeat=1)], tmp_path, SETTINGS)
    assert judge.asked == 9, "asked again on purpose"
    assert len(ask_all(open_judge(f"pairwise-table:{file}"), [Asking(pair) for pair in pairs], None, SETTINGS)) == 7
    file.write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is no judgement"):
        ask_all(judge, [Asking(pairs[0])], tmp_path, SETTINGS)


def test_an_interruption_keeps_what_is_under_way(tmp_path: Path) -> None:
    """Not only faults of the endpoint: a bug, or Ctrl-C, while other replies are coming."""

    def rule(question: Question) -> float:
        if question.instruction == "q0":
            raise KeyboardInterrupt
        time.sleep(0.2)
        return 0.25

    judge = Voter(rule, batch=1)
    judge.concurrency = 3
    with pytest.raises(KeyboardInterrupt):
        ask_all(judge, [Asking(pair) for pair in questions(3)], tmp_path, SETTINGS)
    assert {row["instruction"] for row in read_jsonl(next(tmp_path.glob("*.jsonl")))} == {"q1", "q2"}


def test_two_processes_do_not_judge_into_one_file(tmp_path: Path) -> None:
    from filelock import FileLock

    judge = Voter(lambda question: 0.25)
    with FileLock(tmp_path / f".{judge_digest(judge)}.lock"), pytest.raises(InputError, match="another process"):
        ask_all(judge, [Asking(questions(1)[0])], tmp_path, SETTINGS)


def test_human_labels(tmp_path: Path) -> None:
    rows = [
        {"subset": "easy", "input": "i1", "output_1": "aaa", "output_2": "bbb", "label": 1},
        {"subset": "easy", "input": "i2", "output_1": "bbb", "output_2": "aaa", "label": 2},
        {"subset": "hard", "input": "i3", "output_1": "aaa", "output_2": "bbb", "label": 2},
    ]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    found = labels.judge_labels("reward:vowels", str(tmp_path / "labels.jsonl"), SETTINGS, tmp_path / "out")
    assert found["agreement"]["value"] == pytest.approx(2 / 3)
    assert {name: value["value"] for name, value in found["by_subset"].items()} == {"easy": 1.0, "hard": 0.0}
    assert found["self_consistency"]["value"] == 1.0 and found["judgements"] == 6
    assert json.loads((tmp_path / "out" / "judge.json").read_text()) == found
    assert "agreement with the labels    66.7%" in labels.told(found)
    write_jsonl(tmp_path / "labels.jsonl", [{**rows[0], "label": 0}])
    with pytest.raises(InputError, match="row 0: label 0 is neither 1 nor 2"):
        labels.judge_labels("reward:vowels", str(tmp_path / "labels.jsonl"), SETTINGS)


def test_the_judge_of_an_experiment_on_its_labels(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "labels.jsonl", [{"input": "i", "output_1": "aaa", "output_2": "b", "label": 1}])
    alpaca = SimpleNamespace(judge=None, settings=SETTINGS)
    evaluation = SimpleNamespace(judge="reward:vowels", alpaca=alpaca, judge_labels=str(tmp_path / "labels.jsonl"))
    layout = Layout(str(tmp_path), "experiment")
    labels.run(SimpleNamespace(evaluation=evaluation), layout)
    found = json.loads(layout.judge_measured.read_text())
    assert (found["judge"], found["agreement"]["value"], found["labels"]) == ("reward:vowels", 1.0, "labels.jsonl")
    # By its digest the report knows that it is the judge of the win rates.
    assert found["judge_digest"] == judge_digest(open_judge("reward:vowels"))
    assert list((layout.judge_measured.parent / "judgements").glob("*.jsonl"))
    evaluation.judge_labels = None
    with pytest.raises(InputError, match="evaluation.judge_labels names no file"):
        labels.run(SimpleNamespace(evaluation=evaluation), layout)


def test_settings_hold_no_key_and_money_needs_prices() -> None:
    with pytest.raises(ValidationError, match="api_key does not belong in settings; put the key in OPENAI_API_KEY"):
        JudgeSettings(request={"api_key": "secret"})
    with pytest.raises(ValidationError, match="budget_money needs price_in and price_out"):
        JudgeSettings(budget_money=1.0)


def test_the_commands(tmp_path: Path) -> None:
    rows = [{"input": f"i{n}", "output_1": "aaa", "output_2": "bb" + "a" * (n % 2), "label": 1} for n in range(12)]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    arguments = ["judge", "--judge", "reward:vowels", "--labels", str(tmp_path / "labels.jsonl")]
    done = CliRunner().invoke(app, [*arguments, "--json", "--out", str(tmp_path / "out")])
    assert json.loads(done.stdout)["agreement"]["value"] == 1.0 and (tmp_path / "out" / "judge.json").exists()
    assert "agreement with the labels    100.0%" in CliRunner().invoke(app, arguments).stdout
    (tmp_path / "judge.yaml").write_text("order: both\n")
    wrong = CliRunner().invoke(app, [*arguments, "--judge-settings", str(tmp_path / "judge.yaml")])
    assert "judge.yaml: order: unknown key; did you mean 'orders'?" in str(wrong.exception)
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1.75}])
    done = CliRunner().invoke(app, ["winrate", "--annotations", str(tmp_path / "a.jsonl"), "--json"])
    assert {"win_rate": 75.0, "n_total": 1, "length_controlled_kind": None}.items() <= json.loads(done.stdout).items()
    neither = CliRunner().invoke(app, ["judge", "--judge", "reward:vowels"])
    assert "judge: give an EXPERIMENT, or both --judge and --labels" in str(neither.exception)
    both = CliRunner().invoke(app, ["winrate", "--outputs", "a", "--annotations", "b"])
    assert "give --annotations, or all of --outputs, --against and --judge" in str(both.exception)
