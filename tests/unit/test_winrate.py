"""Win rates of any outputs by any judge, by AlpacaEval's own code; with the public files where they are at hand."""

import gzip
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mallowspo.errors import InputError
from mallowspo.evaluation import winrate
from mallowspo.evaluation.alpaca_eval_code import INSTRUCTIONS, length_controlled
from mallowspo.evaluation.outputs import read_outputs, read_rows
from mallowspo.evaluation.winrate import Side, compare, of_annotations, of_outputs, printed, told
from mallowspo.files import digest, read_json, write_json, write_jsonl
from mallowspo.judges.judge import Judge, Judgement, Question
from mallowspo.judges.open import open_judge
from mallowspo.judges.settings import JudgeSettings

BOTH, ONE = JudgeSettings(), JudgeSettings(orders="one")
SHARED = Path(os.environ.get("MALLOWSPO_SHARED_DATA", "/nowhere"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="MALLOWSPO_SHARED_DATA names no folder of public files")


def outputs(label: str, count: int = 120) -> list[dict[str, str]]:
    draw = random.Random(label)
    return [
        {"instruction": f"Prompt {n}", "output": label + draw.choice("aeiou xyz") * draw.randint(1, 80)}
        for n in range(count)
    ]


def table_judge(folder: Path, rule: Any, *sides: list[dict[str, str]]) -> Judge:
    """A judge of stored preferences, 2 - rule(instruction, first, second), of both orders."""
    rows = []
    for ours, theirs in zip(*sides, strict=True):
        for first, second in ((ours["output"], theirs["output"]), (theirs["output"], ours["output"])):
            preference = 2 - rule(ours["instruction"], first, second)
            shown = {"instruction": ours["instruction"], "output_1": first, "output_2": second}
            rows.append({**shown, "preference": preference})
    write_jsonl(folder / "table.jsonl", rows)
    return open_judge(f"pairwise-table:{folder / 'table.jsonl'}")


def longer(instruction: str, first: str, second: str) -> float:
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def test_a_model_against_itself_gives_exactly_50() -> None:
    rows = outputs("same ")
    found = compare(Side("m", rows), Side("m", rows), open_judge("reward:vowels"), BOTH)
    assert (found.found.numbers["win_rate"], found.found.numbers["n_draws"]) == (50.0, 120)
    assert found.judged["equal_answers"] == 120 and found.length_control["kind"] is None


@pytest.mark.parametrize("settings", [BOTH, ONE])
def test_a_position_taker_wins_nothing_in_both_orders(tmp_path: Path, settings: JudgeSettings) -> None:
    ours, theirs = outputs("ours "), outputs("theirs ")
    judge = table_judge(tmp_path, lambda *_: 1.0, ours, theirs)
    found = compare(Side("ours", ours), Side("theirs", theirs), judge, settings)
    wins = set(found.found.wins.values())
    assert wins == ({0.5} if settings is BOTH else {0.0, 1.0})
    assert found.judged["prefer_first"]["value"] == 1.0
    assert found.judged["judgements"] == (240 if settings is BOTH else 120)


def test_exchanging_the_order_of_all_pairs_changes_nothing(tmp_path: Path) -> None:
    """A judge with a taste for the first place and noise of its own: both sides exchanged mirror every number."""
    ours, theirs = outputs("ours "), outputs("theirs ")

    def rule(*shown: str) -> float:
        return min(1.0, random.Random(repr(shown)).random() * 0.8 + 0.2)

    judge = table_judge(tmp_path, rule, ours, theirs)
    one = compare(Side("ours", ours), Side("theirs", theirs), judge, BOTH)
    other = compare(Side("theirs", theirs), Side("ours", ours), judge, BOTH)
    assert other.found.numbers["win_rate"] == pytest.approx(100 - one.found.numbers["win_rate"], abs=1e-9)
    assert all(other.found.wins[key] == pytest.approx(1 - value) for key, value in one.found.wins.items())
    for name in ("prefer_first", "flips", "ties"):
        assert other.judged[name] == pytest.approx(one.judged[name])
    # And AlpacaEval's own draw of the order has no say: the mean of both orders is what it is told.
    assert one.found.wins["Prompt 7"] == pytest.approx(
        (rule("Prompt 7", ours[7]["output"], theirs[7]["output"])
         + 1 - rule("Prompt 7", theirs[7]["output"], ours[7]["output"])) / 2
    )  # fmt: skip


class Undecided:
    """A judge that changes its mind about every second pair when it is shown again, and never flips with the order."""

    name, content, deterministic, batch, concurrency = "undecided", {"version": 1}, False, 8, 1

    def __init__(self) -> None:
        self.asked: Counter[Question] = Counter()

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        self.asked.update(questions)
        return [self._one(question) for question in questions]

    def cost(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def _one(self, question: Question) -> Judgement:
        again = self.asked[question] > 1 and int(question.instruction.split()[1]) % 2 == 0
        ours = question.first.startswith("ours")
        return Judgement(1.0 if ours != again else 2.0)


def test_pairs_that_are_shown_again_tell_whether_a_judge_agrees_with_itself(tmp_path: Path) -> None:
    sides, judge = (Side("ours", outputs("ours ")), Side("theirs", outputs("theirs "))), Undecided()
    settings = JudgeSettings(asked_again_share=0.25)
    found = compare(*sides, judge, settings, tmp_path)
    twice = sorted(question.instruction for question, count in judge.asked.items() if count == 2)
    assert len(twice) == 30 and sum(judge.asked.values()) == 2 * 120 + 30
    changed = sum(int(name.split()[1]) % 2 == 0 for name in twice)
    assert 5 < changed < 25
    assert found.judged["self_consistency"]["n"] == 30
    assert found.judged["self_consistency"]["value"] == pytest.approx(1 - changed / 30)
    # The first reply counts, here and where the kept file is read as a table.
    assert found.found.numbers["win_rate"] == 100.0 and found.judged["judgements"] == 240
    (kept,) = tmp_path.glob("*.jsonl")
    assert compare(*sides, open_judge(f"pairwise-table:{kept}"), BOTH).found.numbers["win_rate"] == 100.0
    assert compare(*sides, judge, settings, tmp_path).judged == found.judged
    assert sum(judge.asked.values()) == 2 * 120 + 30, "nothing is asked a third time"
    none = compare(*sides, Undecided(), JudgeSettings(asked_again_share=0))
    assert none.judged["self_consistency"]["value"] is None
    sure = compare(*sides, open_judge("reward:vowels"), BOTH).judged["self_consistency"]
    assert (sure["value"], sure["low"], sure["note"]) == (1.0, None, "deterministic")


def test_one_order_is_the_order_that_alpacaeval_draws(tmp_path: Path) -> None:
    ours, theirs = outputs("ours "), outputs("theirs ")
    judge = table_judge(tmp_path, lambda *_: 0.75, ours, theirs)
    found = compare(Side("ours", ours), Side("theirs", theirs), judge, ONE)
    assert set(np.round(list(found.found.wins.values()), 6)) == {0.25, 0.75}
    assert 0.3 < np.mean([win > 0.5 for win in found.found.wins.values()]) < 0.7


def test_sides_that_do_not_answer_the_same(tmp_path: Path) -> None:
    ours, judge = outputs("ours "), open_judge("reward:vowels")
    with pytest.raises(
        InputError, match=r"outputs of 'theirs' lack 1 instructions that 'ours' answers, first 'Prompt 0'"
    ):
        compare(Side("ours", ours), Side("theirs", outputs("theirs ")[1:]), judge, BOTH)
    with pytest.raises(InputError, match="'Prompt 0' appears twice"):
        compare(Side("ours", [*ours, ours[0]]), Side("theirs", outputs("theirs ")), judge, BOTH)


def test_a_judge_of_length_alone_has_lc_near_50(tmp_path: Path) -> None:
    """The win rate is far from 50 and the length-controlled one is near it; its kind is told."""
    ours = [{"instruction": f"Prompt {n}", "output": "o" * (40 + 37 * n % 160)} for n in range(200)]
    theirs = [{"instruction": f"Prompt {n}", "output": "t" * (1 + 53 * n % 150)} for n in range(200)]

    def rule(instruction: str, first: str, second: str) -> float:
        return 1 / (1 + math.exp((len(second) - len(first)) / 40))

    judge = table_judge(tmp_path, rule, ours, theirs)
    found = compare(Side("ours", ours), Side("theirs", theirs), judge, BOTH)
    assert found.found.numbers["win_rate"] > 65
    control = found.length_control
    assert control["kind"] == "approximate" and abs(control["lc_winrate_approximate"] - 50) < 3
    assert "lc_winrate_official" not in control
    assert "LC (approx.)" in told(found.summary())
    shown = printed(found.summary())
    assert shown["length_controlled_kind"] == "approximate"
    assert shown["length_controlled_winrate"] == control["lc_winrate_approximate"]


def test_too_few_pairs_or_equal_lengths_have_no_length_control(tmp_path: Path) -> None:
    few = compare(Side("a", outputs("a ", 20)), Side("b", outputs("b ", 20)), open_judge("reward:vowels"), BOTH)
    assert few.length_control["kind"] is None and "below 100" in few.length_control["why"]
    assert "LC             none: below 100" in told(few.summary())


def annotations(count: int = 150) -> list[dict[str, Any]]:
    draw = random.Random(3)
    return [
        {"instruction": f"Prompt {n}", "output_1": "a" * draw.randint(1, 90), "output_2": "b" * draw.randint(1, 90),
         "generator_1": "one", "generator_2": "two", "annotator": "j", "preference": 1 + draw.random()}
        for n in range(count)
    ]  # fmt: skip


def difficulty_file(folder: Path, count: int) -> Path:
    """The hub's file in its own columns: two gamed baselines and a difficulty of each instruction, made up."""
    draw, rows = np.random.default_rng(0), []
    hardness = draw.normal(size=count)
    for model, shift in (("concise", 1.0), ("verbose", -1.0)):
        for index in range(count):
            preference = 1 / (1 + math.exp(-0.9 * math.tanh(shift)))
            rows.append([model, preference, index, shift, hardness[index], False])
    columns = ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    file = folder / "df_gamed.csv"
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


def test_the_official_length_control_is_alpacaevals_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alpaca_eval.metrics import glm_winrate

    rows, file = annotations(), difficulty_file(tmp_path, 150)
    other = length_controlled(rows, file)
    assert other["kind"] == "approximate" and "not AlpacaEval's 805 instructions" in other["why"]
    monkeypatch.setattr(
        "mallowspo.evaluation.alpaca_eval_code.INSTRUCTIONS", digest([row["instruction"] for row in rows])
    )
    found = length_controlled(rows, file)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(file))
    expected = glm_winrate.get_length_controlled_winrate(pd.DataFrame(rows), save_weights_dir=None)
    assert found["kind"] == "official" and found["difficulty_as_published"] is False
    assert found["lc_winrate_official"] == expected["length_controlled_winrate"]
    assert found["lc_standard_error"] == expected["lc_standard_error"]
    assert not any("approximate" in key for key in found)
    shuffled = length_controlled(rows[::-1], file)
    assert shuffled["kind"] == "approximate", "its difficulties go by position"
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    for wrong, says in (("wrong.csv", "is not df_gamed.csv"), ("none.csv", "no such file")):
        with pytest.raises(InputError, match=says):
            length_controlled(rows, tmp_path / wrong)


@pytest.mark.parametrize("packed", [False, True])
def test_annotations_from_a_file(tmp_path: Path, packed: bool) -> None:
    rows = [{**row, "preference": value} for row, value in zip(annotations(4), [1, 2, 1.5, 0], strict=True)]
    content = json.dumps(rows).encode()
    file = tmp_path / "annotations.json"
    file.write_bytes(gzip.compress(content) if packed else content)
    found = of_annotations(file)
    assert (found["win_rate"], found["n_total"], found["n_draws"]) == (50.0, 4, 2)
    assert found["standard_error"] == pytest.approx(100 * np.std([0, 1, 0.5, 0.5], ddof=1) / 2)
    write_json(file, [{**rows[0], "preference": None}])
    with pytest.raises(InputError, match="row 0 has no preference"):
        of_annotations(file)
    write_json(file, [{**rows[0], "preference": 3}])
    with pytest.raises(InputError, match="row 0: preference 3 is not from 1 to 2"):
        of_annotations(file)
    file.write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(InputError, match="not whole"):
        of_annotations(file)


def test_outputs_and_what_is_written(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**row, "generator": "A"} for row in outputs("a ")])
    write_json(tmp_path / "b.json", outputs("b "))
    found = of_outputs(
        str(tmp_path / "a.jsonl"), f"path:{tmp_path / 'b.json'}", "reward:vowels", BOTH, tmp_path / "out"
    )
    assert (found["generator"], found["against"], found["n_total"]) == ("A", "against", 120)
    again = of_annotations(tmp_path / "out" / "annotations.json")
    assert again["win_rate"] == found["win_rate"] and again["length_control"] == found["length_control"]
    assert read_json(tmp_path / "out" / "winrate.json")["win_rate"] == found["win_rate"]
    assert read_json(tmp_path / "out" / "judge.json")["comparisons"][0]["pairs"] == 120
    stored = next((tmp_path / "out" / "judgements").glob("*.jsonl"))
    by_table = of_outputs(str(tmp_path / "a.jsonl"), str(tmp_path / "b.json"), f"pairwise-table:{stored}", BOTH, None)
    assert by_table["win_rate"] == found["win_rate"]
    write_jsonl(tmp_path / "a.jsonl", [*outputs("a "), outputs("a ")[0]])
    with pytest.raises(InputError, match="row 120: instruction 'Prompt 0' appears twice"):
        read_outputs(str(tmp_path / "a.jsonl"))


def test_published_outputs_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a commit, so that the file is the same tomorrow; a stand-in for the hub."""
    write_json(tmp_path / "gpt4.json", outputs("g ", 3))
    asked = []

    def download(name: str, file: str, **options: Any) -> str:
        asked.append((name, file, options))
        if name == "no/such":
            raise OSError("401 Client Error\nmore")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    commit = "a" * 40
    assert read_outputs(f"hub:tatsu-lab/alpaca_eval@{commit}!gpt4.json") == outputs("g ", 3)
    assert asked == [("tatsu-lab/alpaca_eval", "gpt4.json", {"revision": commit, "repo_type": "dataset"})]
    with pytest.raises(InputError, match=r"could not be fetched \(401 Client Error\); download it and use path:FILE"):
        read_outputs(f"hub:no/such@{commit}!gpt4.json")


@needs_shared
def test_stored_annotations_give_the_public_leaderboards_row() -> None:
    found = of_annotations(SHARED / "alpacaeval_annotations_gemma-2b-it.json.gz")
    row = pd.read_csv(SHARED / "alpacaeval2_leaderboard.csv.gz", index_col=0).loc["gemma-2b-it"]
    for name in ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"):
        assert found[name] == pytest.approx(row[name], abs=1e-6), name
    assert found["length_control"]["kind"] == "approximate"
    # The official number is 5.44; without the instructions' difficulties 6.65.
    assert abs(found["length_control"]["lc_winrate_approximate"] - row["length_controlled_winrate"]) < 3


@needs_shared
def test_the_805_instructions_are_known_by_their_digest() -> None:
    rows = read_rows(SHARED / "alpacaeval_instructions.jsonl.gz", ["instruction"])
    assert len(rows) == 805 and digest([row["instruction"] for row in rows]) == INSTRUCTIONS


@needs_shared
def test_805_instructions_by_a_reward_and_by_length(tmp_path: Path) -> None:
    names = ("Meta-Llama-3-8B-Instruct", "gpt4_1106_preview")
    ours, theirs = (read_outputs(str(SHARED / f"alpacaeval_outputs_{name}.json.gz")) for name in names)
    start = time.process_time()
    found = compare(Side("ours", ours), Side("theirs", theirs), open_judge("reward:vowels"), BOTH, tmp_path)
    assert found.found.numbers["n_total"] == 805 and time.process_time() - start < 20
    judge = table_judge(tmp_path, longer, ours, theirs)
    by_length = compare(Side("ours", ours), Side("theirs", theirs), judge, BOTH)
    assert by_length.length_control["lc_winrate_approximate"] == pytest.approx(50, abs=2)
    assert winrate.printed(by_length.summary())["win_rate"] < 45
