"""Stage "alpaca": win rates of a run's answers against the reference policy's, the baseline's and published outputs.

A reward judge compares the rewards of the score stage, so that no answer is judged twice and no key, server or network
is needed; other judges see both answers, and what they said is kept beside the results.
"""

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.errors import InputError
from mallowspo.evaluation.outputs import generator_of, read_outputs
from mallowspo.evaluation.winrate import Compared, Side, compare, provenance
from mallowspo.files import read_jsonl, read_parquet, write_json, write_parquet
from mallowspo.judges.judge import Judge
from mallowspo.judges.open import open_judge
from mallowspo.judges.reward import RewardJudge
from mallowspo.layout import REFERENCE, Layout

KEY = ["prompt_id", "answer_index"]
AGAINST_COLUMNS = [*KEY, "against", "metric", "value", "judge"]


def run(view: Any, layout: Layout, method: str, seed: int) -> None:
    """Compare one run with each opponent, once for each answer_index.

    Writes alpaca.parquet (against the reference policy), alpaca_against.parquet (against the others), alpaca.json
    (AlpacaEval's numbers of all) and judge.json (what the judge was like in each).

    Raises:
        InputError: when an answer or a reward is missing, doubled or not finite, when two prompts share a text,
            when published outputs lack an instruction, or when AlpacaEval counted fewer comparisons than prompts.
    """
    settings = view.evaluation.alpaca
    name = settings.judge or view.evaluation.judge
    answers = _expected(layout, _answers(layout, method, seed), layout.samples(method, seed))
    opponents = _opponents(view, layout, answers, method, seed)
    if name == view.evaluation.judge:
        judge: Judge = RewardJudge(name, _rewards(layout, name, [(method, seed), *_runs(view, method, seed)]))
        folder = None
    else:
        judge, folder = open_judge(name, settings.settings), layout.scores(method, seed) / "judgements"
    tables, numbers, judged = [], [], []
    for against, outputs in opponents.items():
        for answer_index, group in answers.merge(outputs, on=KEY).groupby("answer_index", sort=True):
            found = _compare_one_answer(group, judge, settings, folder, method, against)
            beside = {"against": against, "answer_index": int(str(answer_index))}
            numbers.append({**beside, **found.summary()})
            judged.append({"method": method, "seed": seed, **beside, **found.beside_the_judge()})
            wins = [found.found.wins[instruction] for instruction in group["instruction"]]
            tables.append(group[KEY].assign(against=against, metric="win", value=wins, judge=name))
    table = pd.concat(tables, ignore_index=True)[AGAINST_COLUMNS]
    to_reference = table["against"] == REFERENCE
    scores = layout.scores(method, seed)
    write_parquet(scores / "alpaca.parquet", table[to_reference].drop(columns="against").reset_index(drop=True))
    write_parquet(scores / "alpaca_against.parquet", table[~to_reference].reset_index(drop=True))
    write_json(scores / "alpaca.json", _summary(method, seed, name, table[to_reference], numbers))
    write_json(scores / "judge.json", {**provenance(judge, settings.settings), "comparisons": judged})


def _summary(method: str, seed: int, judge: str, table: pd.DataFrame, numbers: list[dict[str, Any]]) -> dict[str, Any]:
    to_reference = [{k: v for k, v in row.items() if k != "against"} for row in numbers if row["against"] == REFERENCE]
    return {
        "method": method,
        "seed": seed,
        "judge": judge,
        "win_rate": 100 * float(table["value"].mean()),
        "prompts": int(table["prompt_id"].nunique()),
        "by_answer_index": to_reference,
        "against": [row for row in numbers if row["against"] != REFERENCE],
        "versions": {name: importlib.metadata.version(name) for name in ("alpaca_eval", "scikit-learn")},
    }


def _runs(view: Any, method: str, seed: int) -> list[tuple[str, int]]:
    """Whose answers this run's are compared with: the untrained policy's, and the baseline's of the same seed."""
    baseline = view.evaluation.comparison.baseline
    compared = "baseline" in view.evaluation.alpaca.against and method != baseline
    return [(REFERENCE, 0), *([(baseline, seed)] if compared else [])]


def _opponents(view: Any, layout: Layout, answers: pd.DataFrame, method: str, seed: int) -> dict[str, pd.DataFrame]:
    """By name, prompt_id, answer_index and output_against for every row of `answers`."""
    found = {}
    for other, other_seed in _runs(view, method, seed):
        file = layout.samples(other, other_seed)
        theirs = _answers(layout, other, other_seed).drop(columns="instruction")
        theirs = theirs.rename(columns={"output": "output_against"})
        _join_exactly(answers, theirs, layout.samples(method, seed), file)
        found[other] = theirs
    for source in view.evaluation.alpaca.against:
        if source != "baseline":
            rows = read_outputs(source)
            name = generator_of(rows, Path(source).name)
            # A model that is called like a method, or like another model, would take its place.
            name = name if name not in (*found, method) else source
            found[name] = _published(answers, {row["instruction"]: row["output"] for row in rows}, source)
    return found


def _published(answers: pd.DataFrame, outputs: dict[str, str], source: str) -> pd.DataFrame:
    missing = sorted(set(answers["instruction"]) - set(outputs))
    if missing:
        raise InputError(
            f"evaluation.alpaca.against {source}: no output for {len(missing)} test prompts, first "
            f"{missing[0][:60]!r}; published outputs must answer the experiment's test prompts"
        )
    return answers[KEY].assign(output_against=answers["instruction"].map(outputs))


def _compare_one_answer(
    group: pd.DataFrame, judge: Judge, settings: Any, folder: Path | None, method: str, against: str
) -> Compared:
    """One answer to each prompt on both sides."""
    sides = [
        [{"instruction": i, "output": o} for i, o in zip(group["instruction"], group[column], strict=True)]
        for column in ("output", "output_against")
    ]
    ours, theirs = Side(method, sides[0]), Side(against, sides[1])
    return compare(ours, theirs, judge, settings.settings, folder, settings.difficulty)


def _answers(layout: Layout, method: str, seed: int) -> pd.DataFrame:
    """prompt_id, answer_index, instruction and output of every sampled answer."""
    file = layout.samples(method, seed)
    answers = pd.DataFrame(read_jsonl(file), columns=[*KEY, "instruction", "output"])
    if answers.empty or answers.isna().any(axis=None):
        raise InputError(f"{file}: no answers, or rows without {KEY}, instruction and output; run generate again")
    return answers


def _expected(layout: Layout, answers: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The answers in the order of the test prompts: every prompt with every answer_index, and no text twice."""
    indices = answers[["answer_index"]].drop_duplicates()
    expected = read_parquet(layout.prompts)[["prompt_id"]].merge(indices, how="cross")
    answers = _join_exactly(expected, answers, layout.prompts, file)
    shared = answers[answers.duplicated(["answer_index", "instruction"], keep=False)]
    if len(shared):
        raise InputError(
            f"{file}: prompts {sorted(set(shared['prompt_id']))[:2]} share the text "
            f"{shared['instruction'].iloc[0][:60]!r}, and AlpacaEval matches by text; remove one from the test prompts"
        )
    return answers


def _rewards(layout: Layout, judge: str, runs: list[tuple[str, int]]) -> dict[tuple[str, str], float]:
    """Reward of every (instruction, output) of the runs, from the score stage."""
    known: dict[tuple[str, str], float] = {}
    for method, seed in runs:
        file, score_file = layout.samples(method, seed), layout.scores(method, seed) / "score.parquet"
        scores = read_parquet(score_file)
        rewards = scores[scores["metric"] == "reward"]
        others = sorted(set(rewards["judge"]) - {judge})
        if others:
            raise InputError(
                f"{score_file}: rewards of judge '{others[0]}', but evaluation.judge is '{judge}'; score again"
            )
        rewards = rewards[[*KEY, "value"]].rename(columns={"value": "reward"})
        answers = _join_exactly(_answers(layout, method, seed), rewards, file, score_file)
        failed = answers[~answers["reward"].map(math.isfinite)]
        if len(failed):
            raise InputError(
                f"{score_file}: {len(failed)} rewards are not finite, first {_name(failed)}; mend '{judge}'"
            )
        texts = zip(answers["instruction"], answers["output"], strict=True)
        known.update(zip(texts, answers["reward"], strict=True))
    return known


def _join_exactly(left: pd.DataFrame, right: pd.DataFrame, left_file: Path, right_file: Path) -> pd.DataFrame:
    """Join by (prompt_id, answer_index), each key exactly once on both sides; the order is the left table's."""
    for table, file in ((left, left_file), (right, right_file)):
        twice = table[table.duplicated(KEY)]
        if len(twice):
            raise InputError(f"{file}: {_name(twice)} appears more than once; run its stage again")
    joined = left.merge(right, on=KEY, how="outer", indicator="side")
    for side, has, lacks in (("left_only", left_file, right_file), ("right_only", right_file, left_file)):
        missing = joined[joined["side"] == side]
        if len(missing):
            raise InputError(
                f"{lacks}: {len(missing)} rows of {has} are missing, first {_name(missing)}; run its stage"
            )
    return left.merge(right, on=KEY, how="left")


def _name(rows: pd.DataFrame) -> str:
    return f"prompt_id {rows['prompt_id'].iloc[0]}, answer_index {rows['answer_index'].iloc[0]}"
