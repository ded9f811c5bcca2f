"""What a reward model is like on pairs that it was not trained on: how often it is right, how sure, how fond of length.

The margin of a pair is the chosen answer's reward less the rejected one's. Bradley and Terry's probability that the
chosen answer is preferred is its sigmoid. Means are over prompts of the mean over a prompt's pairs, with the interval
of `mallowspo.inference.estimate`: pairs of one prompt are no independent evidence.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.evaluation.pair_accuracy import calibration_error
from mallowspo.inference import estimate
from mallowspo.judges.judge import Judgement, Question
from mallowspo.judges.measure import Both, length_slope
from mallowspo.pairs.split import unit_draw

COLUMNS = ["measure", "value", "low", "high", "n", "unit", "compare"]
ALL_PAIRS = "prefers the chosen answer"
LONGER, SHORTER = "the same where the chosen answer is longer", "the same where it is shorter"
LOSS, CALIBRATION = "loss of a pair (nats)", "calibration error"
FAVOURS_LENGTH, SLOPE = "prefers the longer answer", "length slope (log-odds)"


def with_rewards(pairs: pd.DataFrame, chosen: Sequence[float], rejected: Sequence[float]) -> pd.DataFrame:
    """pair_id, prompt_id, chosen_reward, rejected_reward, margin, and length_ratio, the natural logarithm of the chosen
    answer's characters over the rejected one's (one added to each)."""
    lengths = {side: 1 + pairs[side].str.len() for side in ("chosen", "rejected")}
    table = pairs[["pair_id", "prompt_id"]].assign(chosen_reward=list(chosen), rejected_reward=list(rejected))
    table["margin"] = table["chosen_reward"] - table["rejected_reward"]
    return table.assign(length_ratio=np.log(lengths["chosen"] / lengths["rejected"]))


def measured(table: pd.DataFrame, pairs: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """One row a measure: value with its interval (NaN where there is none), n and what n counts, and what to compare
    it with.

    Args:
        table: of `with_rewards`.
        pairs: the same pairs, with their texts.
    """
    right, ratio = _share(table["margin"]), table["length_ratio"]
    longer, people = _share(table["margin"] * np.sign(ratio)), _share(ratio)
    differ = ratio != 0
    rows = [_mean(ALL_PAIRS, right, table, confidence, 0.5)]
    for name, part in ((LONGER, ratio > 0), (SHORTER, ratio < 0)):
        if part.any():
            rows.append(_mean(name, right[part], table[part], confidence, 0.5))
    rows.append(_mean(LOSS, np.logaddexp(0, -table["margin"]), table, confidence, math.log(2)))
    rows.append(_calibration(table, confidence))
    if differ.any():
        rows.append(_mean(FAVOURS_LENGTH, longer[differ], table[differ], confidence, float(people[differ].mean())))
    rows += _slope(table["margin"], pairs)
    return pd.DataFrame(rows, columns=COLUMNS)


def _share(signed: pd.Series) -> pd.Series:
    """1 above 0, 0 below, and one half at 0."""
    shares: pd.Series = 0.5 + 0.5 * np.sign(signed)
    return shares


def _mean(name: str, values: Any, table: pd.DataFrame, confidence: float, compare: float) -> dict[str, Any]:
    by_prompt = pd.Series(np.asarray(values), index=table.index).groupby(table["prompt_id"]).mean()
    found = estimate(by_prompt, confidence)
    low, high = found.low, found.high
    if name != LOSS and not math.isnan(low):
        low, high = max(low, 0.0), min(high, 1.0)
    numbers = {"value": found.mean, "low": low, "high": high}
    return {"measure": name, **numbers, "n": found.n, "unit": "prompts", "compare": compare}


def _calibration(table: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """How far the probability of the preferred side is from how often it is right (see `pair_accuracy`)."""
    prompts = table["prompt_id"].to_numpy()
    found = calibration_error(table["margin"].to_numpy()[:, None], prompts, confidence)
    numbers = {"value": found[""], "low": found["_low"], "high": found["_high"], "compare": found["_if_calibrated"]}
    return {"measure": CALIBRATION, "n": len(table), "unit": "pairs", **numbers}


def _slope(margins: pd.Series, pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Of the model's preferences as `mallowspo judge` measures any judge's, beside that of the chosen answers; no row
    where there is none. Which answer stands first is drawn by the pair's id."""
    of_model: list[Both] = []
    of_labels: list[Both] = []
    for margin, pair in zip(margins, pairs.to_dict("records"), strict=True):
        sides, sign = (pair["chosen"], pair["rejected"]), float(np.sign(margin))
        turned = unit_draw(0, "order", pair["pair_id"]) < 0.5
        question = Question(pair["prompt"], *(sides[::-1] if turned else sides))
        for found, preferred in ((of_model, sign), (of_labels, 1.0)):
            found.append(Both(question, Judgement(1.5 + 0.5 * preferred * (1 if turned else -1)), None))
    model, labels = length_slope(of_model), length_slope(of_labels)
    if model["value"] is None:
        return []
    numbers = {name: model[name] for name in ("value", "low", "high", "n")}
    compare = math.nan if labels["value"] is None else labels["value"]
    return [{"measure": SLOPE, **numbers, "unit": "pairs", "compare": compare}]
