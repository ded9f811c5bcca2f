"""Kind "reward_model": train it, ask it as a judge about the test pairs, and say how good a judge it is."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.files import read_jsonl, read_parquet, write_jsonl, write_parquet
from mallowspo.judges.reward import judge_answers, load_reward
from mallowspo.layout import Layout
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import count, fixed, interval, plural
from mallowspo.reward_model import figures, measure, training
from mallowspo.reward_model.settings import RewardModelStudy
from mallowspo.studies.result import Section, StudyResult

#: Below this share of held-out pairs a judge is called weak.
WEAK = 0.75
#: The names of the measures in the tracking store.
NUMBERS = {
    measure.ALL_PAIRS: "accuracy",
    measure.LONGER: "accuracy_chosen_longer",
    measure.SHORTER: "accuracy_chosen_shorter",
    measure.LOSS: "loss",
    measure.CALIBRATION: "calibration_error",
    measure.FAVOURS_LENGTH: "favours_length",
    measure.SLOPE: "length_slope",
}


def run(settings: RewardModelStudy, layout: Layout, model_folder: Path) -> StudyResult:
    """Train where the model is not there yet, and measure it on the test pairs.

    Also writes tables/test_pairs.parquet (rewards and margin of each pair) and tables/test_labels.jsonl (the same pairs
    as `mallowspo judge --labels` reads them, for any other judge).
    """
    training.run(settings, layout, model_folder)
    pairs = read_parquet(layout.pairs("test"))
    steps = pd.DataFrame(read_jsonl(layout.reward_model_training / "metrics.jsonl"))
    table = ask(f"reward:path:{layout.reward_model}", pairs)
    write_parquet(layout.tables / "test_pairs.parquet", table)
    write_jsonl(layout.tables / "test_labels.jsonl", labels(pairs))
    found = measure.measured(table, pairs, settings.confidence)
    trained = read_parquet(layout.pairs("train"))
    return StudyResult(
        findings=_findings(settings, found, len(pairs), trained),
        cautions=_cautions(found, layout),
        sections=[_test(settings, layout, table, found), _training(settings, layout, steps, trained)],
        numbers=_numbers(settings, found, len(pairs), trained),
    )


def ask(judge: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """Rewards of both answers of each pair by a judge, as `measure.with_rewards` joins them."""
    reward, prompts = load_reward(judge), pairs["prompt"].tolist()
    chosen, rejected = (judge_answers(judge, prompts, pairs[side].tolist(), reward) for side in ("chosen", "rejected"))
    return measure.with_rewards(pairs, chosen, rejected)


def labels(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of input, output_1, output_2 and label, the chosen answer first in every other row."""
    rows = []
    for number, pair in enumerate(pairs.to_dict("records")):
        sides = [pair["chosen"], pair["rejected"]][:: -1 if number % 2 else 1]
        rows.append({"input": pair["prompt"], "output_1": sides[0], "output_2": sides[1], "label": 1 + number % 2})
    return rows


def _row(found: pd.DataFrame, name: str) -> Any:
    return next(iter(rows_of(found[found["measure"] == name])))


def _told(row: Any) -> str:
    """A share in percent, with its interval."""
    return f"{interval(100 * row.value, 100 * row.low, 100 * row.high, 1)} %"


def _findings(settings: RewardModelStudy, found: pd.DataFrame, pairs: int, trained: pd.DataFrame) -> list[str]:
    right, sure = _row(found, measure.ALL_PAIRS), _row(found, measure.CALIBRATION)
    level = f"{settings.confidence:.0%} interval over prompts"
    sentences = [
        f"On {plural(pairs, 'held-out pair')} of {plural(int(right.n), 'prompt')} the reward model prefers the chosen "
        f"answer in {_told(right)} ({level}); guessing gives 50 %.",
        f"It was trained on {plural(len(trained), 'pair')} of {plural(trained['prompt_id'].nunique(), 'other prompt')} "
        f"for {plural(settings.training.epochs, 'epoch')} with seed {settings.seed}.",
        f"Its calibration error is {interval(sure.value, sure.low, sure.high, 3)}; a calibrated model would have "
        f"{fixed(sure.compare, 3)} on as many pairs.",
    ]
    if (found["measure"] == measure.FAVOURS_LENGTH).any():
        longer = _row(found, measure.FAVOURS_LENGTH)
        sentences.append(
            f"It prefers the longer answer in {_told(longer)} of the pairs that differ in length; the chosen answer is "
            f"the longer one in {fixed(100 * longer.compare, 1)} %."
        )
    return sentences


def _cautions(found: pd.DataFrame, layout: Layout) -> list[str]:
    right = _row(found, measure.ALL_PAIRS)
    sentences = [
        "One seed was trained: the intervals speak of other prompts, and not of another training.",
        "Held-out pairs have other prompts, but answers of the same kind as the training pairs. A policy that is "
        "optimised moves away from them, and a reward model is less often right there.",
    ]
    if not right.low > 0.5:
        sentences.insert(0, "It cannot be told from guessing: what it says of policies means nothing.")
    elif right.value < WEAK:
        sentences.insert(
            0,
            f"It is a weak judge: on {fixed(100 * (1 - right.value), 0)} of 100 held-out pairs it prefers the other "
            "answer. Errors by chance pull a win rate by it towards one half, errors of taste can pull it anywhere.",
        )
    return sentences


def _test(settings: RewardModelStudy, layout: Layout, table: pd.DataFrame, found: pd.DataFrame) -> Section:
    return Section(
        title="As a judge of held-out pairs",
        paragraphs=[
            f"Asked as any comparison asks it: reward:path:{layout.reward_model}. Probability that the chosen answer "
            "is preferred: sigmoid of the margin, its reward less the rejected one's. A tie counts half.",
        ],
        panels=[figures.calibration(layout, table["margin"]), figures.margins_by_length(layout, table)],
        caption=f"n = {plural(len(table), 'pair')} of {plural(table['prompt_id'].nunique(), 'prompt')}. "
        f"{settings.confidence:.0%} intervals: over prompts; calibration: bootstrap over prompts; length slope: robust "
        "errors, 95 %. Compare with: guessing (shares, loss), a calibrated model (calibration error), the chosen "
        "answers themselves (length). No test.",
        table=_table(found),
    )


def _table(found: pd.DataFrame) -> Table:
    shown = pd.DataFrame(
        {
            "Measure": found["measure"].str.capitalize(),
            "Value": [interval(row.value, row.low, row.high, 3) for row in rows_of(found)],
            "Compare with": [fixed(value, 3) for value in found["compare"]],
            "n": [f"{count(row.n)} {row.unit}" for row in rows_of(found)],
        }
    )
    return Table("reward_model", found, shown, ("Measure",))


def _training(settings: RewardModelStudy, layout: Layout, steps: pd.DataFrame, trained: pd.DataFrame) -> Section:
    chosen = settings.training
    return Section(
        title="Training",
        paragraphs=[
            f"{settings.model.source}, with a score head of one output at the last token of prompt and answer "
            f"(template {settings.tokens.template}, at most {plural(settings.tokens.max_tokens, 'token')}; a longer "
            "text loses its beginning). Loss of a pair: minus log sigmoid of the margin (Bradley and Terry; Ouyang et "
            "al. 2022, equation 1). All weights are trained.",
            f"Pairs: {settings.pairs.source}, split by prompt; {_share(settings)}.",
        ],
        panels=[figures.learning(layout, steps)],
        caption=f"n = {plural(len(trained), 'pair')}, {plural(len(steps), 'step')} of "
        f"{plural(chosen.pairs_per_step, 'pair')}, learning rate {chosen.learning_rate:g}. Dotted: guessing. No "
        "interval, no test.",
    )


def _share(settings: RewardModelStudy) -> str:
    share = settings.pairs.split.share
    if share is None:
        return "no share of the prompts was kept for others (pairs.split.share)"
    return f"part {', '.join(map(str, share.parts))} of {share.of} of the prompts"


def _numbers(settings: RewardModelStudy, found: pd.DataFrame, pairs: int, trained: pd.DataFrame) -> dict[str, float]:
    numbers = {"pairs": pairs, "train_pairs": len(trained), "seed": settings.seed, "confidence": settings.confidence}
    numbers["prompts"] = _row(found, measure.ALL_PAIRS).n
    for row in rows_of(found):
        name = NUMBERS[row.measure]
        numbers |= {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high, f"{name}_compare": row.compare}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
