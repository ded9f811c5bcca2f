"""AlpacaEval's own code on answers and rewards made by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from mallowspo.errors import InputError
from mallowspo.evaluation import alpaca
from mallowspo.evaluation.alpaca_eval_code import head_to_head
from mallowspo.evaluation.settings import AlpacaSettings
from mallowspo.experiments import read_yaml
from mallowspo.files import read_json, read_jsonl, read_parquet, write_jsonl, write_parquet
from mallowspo.layout import Layout
from mallowspo.settings import STAGE_READS, Experiment

JUDGE = "reward:vowels"
VIEW = SimpleNamespace(
    evaluation=SimpleNamespace(judge=JUDGE, alpaca=AlpacaSettings(), comparison=SimpleNamespace(baseline="dpo"))
)

#: Rewards of prompts p0..p3 at answer_index 0 and 1. Index 0: win, win, tie, loss; index 1: loss, win, win, win.
METHOD_REWARDS = [[0.9, 0.2], [0.8, 0.7], [0.5, 0.6], [0.1, 0.4]]
REFERENCE_REWARDS = [[0.3, 0.3], [0.2, 0.1], [0.5, 0.2], [0.6, 0.3]]
WINS = {
    ("p0", 0): 1,
    ("p1", 0): 1,
    ("p2", 0): 0.5,
    ("p3", 0): 0,
    ("p0", 1): 0,
    ("p1", 1): 1,
    ("p2", 1): 1,
    ("p3", 1): 1,
}


def store(layout: Layout, method: str, rewards: list[list[float]], instructions: list[str] | None = None) -> None:
    """Write the answers and rewards of one run, as the stages before do."""
    answers, scores = [], []
    for number, row in enumerate(rewards):
        prompt = {"prompt_id": f"p{number}", "instruction": instructions[number] if instructions else f"Say {number}"}
        for index, reward in enumerate(row):
            output = f"{method} says {number}.{index}"
            answers.append({**prompt, "output": output, "generator": method, "answer_index": index})
            scores.append({"prompt_id": f"p{number}", "answer_index": index, "metric": "reward", "value": reward})
            scores.append({"prompt_id": f"p{number}", "answer_index": index, "metric": "tokens", "value": 7.0})
    write_jsonl(layout.samples(method, 0), answers)
    # Rows in another order than the answers: the join must go by id.
    write_parquet(layout.scores(method, 0) / "score.parquet", pd.DataFrame(scores[::-1]).assign(judge=JUDGE))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path), "experiment")
    write_parquet(layout.prompts, pd.DataFrame({"prompt_id": ["p0", "p1", "p2", "p3"]}))
    store(layout, "dpo", METHOD_REWARDS)
    store(layout, "reference", REFERENCE_REWARDS)
    return layout


def wins(layout: Layout, method: str) -> dict[tuple[str, int], float]:
    table = read_parquet(layout.scores(method, 0) / "alpaca.parquet")
    assert set(table["metric"]) == {"win"} and set(table["judge"]) == {JUDGE}
    return dict(zip(zip(table["prompt_id"], table["answer_index"], strict=True), table["value"], strict=True))


def test_win_rate_by_hand(layout: Layout) -> None:
    alpaca.run(VIEW, layout, "dpo", 0)
    assert wins(layout, "dpo") == WINS
    summary = read_json(layout.scores("dpo", 0) / "alpaca.json")
    first, second = summary["by_answer_index"]
    # Index 0: two wins and a tie of four, 2.5 / 4; index 1: 3 / 4; together 5.5 / 8.
    assert (first["win_rate"], second["win_rate"], summary["win_rate"]) == (62.5, 75.0, 68.75)
    assert (first["n_wins"], first["n_wins_base"], first["n_draws"], first["n_total"]) == (2, 1, 1, 4)
    # Wins 1, 1, 0.5, 0: squared deviations from 0.625 add to 0.6875, so the error is sqrt(0.6875 / 3 / 4).
    assert first["standard_error"] == pytest.approx(100 * math.sqrt(0.6875 / 12))
    assert summary["prompts"] == 4


def test_swapping_the_sides_mirrors_every_win(layout: Layout) -> None:
    store(layout, "dpo", REFERENCE_REWARDS)
    store(layout, "reference", METHOD_REWARDS)
    alpaca.run(VIEW, layout, "dpo", 0)
    assert wins(layout, "dpo") == {key: 1 - value for key, value in WINS.items()}


def test_a_policy_against_itself_gives_exactly_half(layout: Layout) -> None:
    write_jsonl(layout.samples("dpo", 0), read_jsonl(layout.samples("reference", 0)))
    rewards = read_parquet(layout.scores("reference", 0) / "score.parquet")
    write_parquet(layout.scores("dpo", 0) / "score.parquet", rewards)
    alpaca.run(VIEW, layout, "dpo", 0)
    assert set(wins(layout, "dpo").values()) == {0.5}
    assert read_json(layout.scores("dpo", 0) / "alpaca.json")["win_rate"] == 50.0


def test_equal_rewards_are_ties(layout: Layout) -> None:
    store(layout, "dpo", REFERENCE_REWARDS)
    alpaca.run(VIEW, layout, "dpo", 0)
    assert set(wins(layout, "dpo").values()) == {0.5}


def rows_of(label: str, count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Prompt {number}", "output": f"{label} {number}"} for number in range(count)]


def test_alpacaeval_switches_the_order_and_undoes_it() -> None:
    first_shown = []

    def prefers_ours(instruction: str, first: str, second: str) -> float:
        first_shown.append(first.startswith("ours"))
        return 1.0 if first.startswith("ours") else 2.0

    count = 200  # more than the 128 that AlpacaEval judges at a time
    numbers, wins, _ = head_to_head(rows_of("ours", count), rows_of("theirs", count), prefers_ours, "j", "m")
    assert 0.3 < sum(first_shown) / count < 0.7, "both orders are shown"
    assert numbers["win_rate"] == 100.0 and numbers["n_total"] == count and set(wins.values()) == {1.0}


def test_a_judge_that_votes_by_position_is_given_both_positions() -> None:
    ours, theirs = rows_of("ours", 200), rows_of("theirs", 200)
    _, wins, _ = head_to_head(ours, theirs, lambda instruction, first, second: 1.0, "j", "m")
    _, swapped, _ = head_to_head(theirs, ours, lambda instruction, first, second: 1.0, "j", "m")
    # The order depends on the instruction alone: what is shown first wins, whichever side it comes from.
    assert wins == swapped and set(wins.values()) == {0.0, 1.0}


def test_texts_that_look_like_the_template_are_judged_as_they_are() -> None:
    instruction, ours, theirs = "Fill {output_2}\x1f{instruction}", "{output_2} {", "\x1f{output_1} x "
    seen = set()

    def judge(*shown: str) -> float:
        seen.add(shown)
        return 1.0 if shown[1] == ours else 2.0

    rows, others = [{"instruction": instruction, "output": ours}], [{"instruction": instruction, "output": theirs}]
    numbers, wins, _ = head_to_head(rows, others, judge, "j", "m")
    assert wins == {instruction: 1.0} and numbers["standard_error"] is None
    assert seen <= {(instruction, ours, theirs), (instruction, theirs, ours)} and len(seen) == 1


@pytest.mark.parametrize("reply", [math.nan, 3.7])
def test_rows_a_judge_fails_on_are_named(reply: float) -> None:
    def fails_on_two(instruction: str, first: str, second: str) -> float:
        return reply if instruction in ("Prompt 1", "Prompt 4") else 1.0

    with pytest.raises(InputError, match=r"2 of 6 instructions, among them \['Prompt 1', 'Prompt 4'\]"):
        head_to_head(rows_of("ours", 6), rows_of("theirs", 6), fails_on_two, "j", "m")


def test_alpacaevals_own_count_must_be_ours() -> None:
    with pytest.raises(
        InputError, match=r"counted 2 comparisons of 2 instructions for 3 answers .*without a match: \['Prompt 2'\]"
    ):
        head_to_head(rows_of("ours", 3), rows_of("theirs", 2), lambda *_: 1.0, "j", "m")
    with pytest.raises(InputError, match=r"of 2 instructions for 3 answers"):
        head_to_head([*rows_of("ours", 2), rows_of("new", 1)[0]], rows_of("theirs", 3), lambda *_: 1.0, "j", "m")


def change_scores(layout: Layout, method: str, change: Any) -> None:
    path = layout.scores(method, 0) / "score.parquet"
    write_parquet(path, change(read_parquet(path)))


def lose_p2(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["prompt_id"] != "p2"]


def spoil_p2(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(value=table["value"].mask(table["prompt_id"] == "p2"))


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("dpo", lose_p2, r"dpo.*score.parquet: 2 rows .* are missing, first prompt_id p2, answer_index 0"),
        ("reference", lose_p2, r"reference.*score.parquet: 2 rows"),
        ("reference", spoil_p2, r"2 rewards are not finite, first prompt_id p2"),
        ("dpo", lambda table: pd.concat([table, table]), "appears more than once"),
        ("dpo", lambda table: table.assign(judge="reward:vader"), "rewards of judge 'reward:vader', but"),
    ],
)
def test_unusable_rewards(layout: Layout, method: str, change: Any, message: str) -> None:
    change_scores(layout, method, change)
    with pytest.raises(InputError, match=message):
        alpaca.run(VIEW, layout, "dpo", 0)


def test_a_missing_answer_is_named(layout: Layout) -> None:
    store(layout, "reference", [*REFERENCE_REWARDS[:3], [0.6]])
    with pytest.raises(InputError, match=r"reference.*answers.jsonl: 1 rows .* first prompt_id p3, answer_index 1"):
        alpaca.run(VIEW, layout, "dpo", 0)


def test_a_prompt_that_nobody_answered_is_named(layout: Layout) -> None:
    write_parquet(layout.prompts, pd.DataFrame({"prompt_id": ["p0", "p1", "p2", "p3", "p4"]}))
    with pytest.raises(InputError, match=r"answers.jsonl: 2 rows of .*test_prompts.parquet are missing, first .* p4"):
        alpaca.run(VIEW, layout, "dpo", 0)


def test_prompts_that_share_a_text_are_named(layout: Layout) -> None:
    texts = ["Say a", "Say b", "Say a", "Say c"]
    store(layout, "dpo", METHOD_REWARDS, texts)
    store(layout, "reference", REFERENCE_REWARDS, texts)
    with pytest.raises(InputError, match=r"prompts \['p0', 'p2'\] share the text 'Say a'"):
        alpaca.run(VIEW, layout, "dpo", 0)


def view(**changes: Any) -> SimpleNamespace:
    evaluation = SimpleNamespace(judge=JUDGE, comparison=SimpleNamespace(baseline="dpo"))
    evaluation.alpaca = AlpacaSettings(**changes)
    return SimpleNamespace(evaluation=evaluation)


def test_the_baselines_answers_and_published_outputs_are_opponents_too(layout: Layout, tmp_path: Path) -> None:
    store(layout, "mallows", REFERENCE_REWARDS)
    published = [{"instruction": f"Say {n}", "output": "aeiou" * n, "generator": "gpt4"} for n in range(5)]
    write_jsonl(tmp_path / "gpt4.jsonl", published)
    alpaca.run(view(against=["baseline", f"path:{tmp_path / 'gpt4.jsonl'}"]), layout, "mallows", 0)
    folder = layout.scores("mallows", 0)
    table = read_parquet(folder / "alpaca_against.parquet")
    assert list(table.columns) == ["prompt_id", "answer_index", "against", "metric", "value", "judge"]
    to_dpo = table[table["against"] == "dpo"].set_index(["prompt_id", "answer_index"])["value"]
    assert to_dpo.to_dict() == {key: 1 - value for key, value in WINS.items()}
    # A published answer has the reward of its own text, 1 for vowels alone and 0 for nothing.
    to_gpt4 = table[table["against"] == "gpt4"].set_index(["prompt_id", "answer_index"])["value"]
    assert to_gpt4["p0", 0] == 1.0 and to_gpt4["p1", 0] == 0.0 and len(to_gpt4) == 8
    summary = read_json(folder / "alpaca.json")
    assert [(row["against"], row["answer_index"]) for row in summary["against"]] == [
        ("dpo", 0), ("dpo", 1), ("gpt4", 0), ("gpt4", 1)
    ]  # fmt: skip
    assert summary["against"][0]["length_control"]["kind"] is None
    assert set(summary["by_answer_index"][0]) >= {"win_rate", "answer_index", "length_control"}
    judged = read_json(folder / "judge.json")
    assert judged["judge"] == JUDGE and len(judged["comparisons"]) == 6
    assert judged["comparisons"][0]["flips"]["value"] == 0.0
    write_jsonl(tmp_path / "gpt4.jsonl", published[1:])
    with pytest.raises(InputError, match=r"gpt4.jsonl: no output for 1 test prompts, first 'Say 0'"):
        alpaca.run(view(against=[f"path:{tmp_path / 'gpt4.jsonl'}"]), layout, "mallows", 0)


def test_the_baseline_is_not_compared_with_itself(layout: Layout) -> None:
    alpaca.run(VIEW, layout, "dpo", 0)
    assert read_parquet(layout.scores("dpo", 0) / "alpaca_against.parquet").empty
    assert list(read_parquet(layout.scores("dpo", 0) / "alpaca.parquet").columns) == [
        "prompt_id", "answer_index", "metric", "value", "judge"
    ]  # fmt: skip


def test_another_judge_than_the_reward_keeps_its_judgements(layout: Layout, tmp_path: Path) -> None:
    answers = [read_jsonl(layout.samples(name, 0)) for name in ("dpo", "reference")]
    rows = [
        {
            "instruction": ours["instruction"],
            "output_1": ours["output"],
            "output_2": theirs["output"],
            "preference": 1.3,
        }
        for ours, theirs in zip(*answers, strict=True)
    ]
    write_jsonl(tmp_path / "table.jsonl", rows)
    name = f"pairwise-table:{tmp_path / 'table.jsonl'}"
    alpaca.run(view(judge=name), layout, "dpo", 0)
    table = read_parquet(layout.scores("dpo", 0) / "alpaca.parquet")
    assert table["value"].tolist() == pytest.approx([0.7] * 8) and set(table["judge"]) == {name}
    kept = list((layout.scores("dpo", 0) / "judgements").glob("*.jsonl"))
    assert len(kept) == 1 and len(read_jsonl(kept[0])) == 16


def test_another_judge_runs_the_stage_again_and_another_opponent_the_comparison_too() -> None:
    values = read_yaml(Path(__file__).parents[2] / "config/experiments/smoke.yaml")
    before = Experiment.model_validate(values)
    for changed in ({"judge": "openai:gpt-4o"}, {"against": []}, {"settings": {"orders": "one"}}):
        evaluation = {**values["evaluation"], "alpaca": changed}
        after = Experiment.model_validate({**values, "evaluation": evaluation})
        stages = {stage for stage in STAGE_READS if before.stage_digest(stage) != after.stage_digest(stage)}
        compared = {"compare"} if "against" in changed else {"judge"}
        assert stages == {"alpaca", "report"} | compared
    with pytest.raises(ValueError, match="'gpt4.json' is none of baseline, path:FILE"):
        AlpacaSettings(against=["gpt4.json"])
    with pytest.raises(ValueError, match="unknown judge 'gpt-4'"):
        AlpacaSettings(judge="gpt-4")
