"""The health of a data set: what was read, what was left out and why, and how the rest fits the token limits."""

from collections import Counter
from typing import Any

import pandas as pd

from mallowspo.pairs.formats import DUPLICATE, EMPTY, EMPTY_ANSWER, EQUAL, FORMAT, NO_PREFERENCE
from mallowspo.pairs.tokens import TokenizedPair

KINDS = {
    EMPTY: "prompt or a side missing, empty, or cut to nothing",
    EQUAL: "as text, or after the cut",
    FORMAT: "not text, or turns that make no pair",
    NO_PREFERENCE: "best and worst answer too close, or votes tied; not held against the data",
    DUPLICATE: "kept once",
    EMPTY_ANSWER: "answers, not rows; left out before best and worst are taken",
}
FLAGS = {
    "prompt truncated": "from the left",
    "chosen truncated": "from the right",
    "rejected truncated": "from the right",
    "double BOS": "must be 0",
    "chosen without EOS": "cut, or a sampled answer that did not end",
    "rejected without EOS": "cut, or a sampled answer that did not end",
}
LENGTHS = ("prompt tokens", "chosen tokens", "rejected tokens")

Check = dict[str, Any]


def token_facts(pair: TokenizedPair, bos: int | None, eos: int) -> dict[str, bool | int]:
    """Flags and lengths of one tokenized pair, under the names of the table."""
    return {
        "prompt truncated": pair.prompt_truncated,
        "chosen truncated": pair.chosen_truncated,
        "rejected truncated": pair.rejected_truncated,
        "double BOS": bos is not None and (pair.prompt[:2] == [bos, bos] or bos in (pair.chosen[0], pair.rejected[0])),
        "chosen without EOS": pair.chosen[-1] != eos,
        "rejected without EOS": pair.rejected[-1] != eos,
        "prompt tokens": len(pair.prompt),
        "chosen tokens": len(pair.chosen),
        "rejected tokens": len(pair.rejected),
    }


def health_table(rows_read: int, kinds: Counter[str], left_out: int, facts: pd.DataFrame) -> list[Check]:
    """Checks as {check, split, count, share, note}.

    Args:
        rows_read: rows (on-policy: prompts) in the source.
        kinds: number of listed rows of each kind.
        left_out: usable pairs that `split.share`, `max_train` and `max_test` left out.
        facts: one row a written pair: split, prompt_id, and `token_facts`.

    Returns:
        Shares are of rows read down to "usable", and of the split's pairs below; for lengths `count` is in tokens and
        there is no share.
    """
    usable = len(facts) + left_out
    checks = [_check("rows read", "all", rows_read)]
    checks += [_check(kind, "all", kinds[kind], rows_read, note) for kind, note in KINDS.items()]
    checks += [
        _check("usable", "all", usable, rows_read, "pairs, each once"),
        _check("left out by share, max_train and max_test", "all", left_out, usable, "whole prompts, by seeded draw"),
        _check("prompts in both splits", "all", overlap(facts), facts["prompt_id"].nunique(), "must be 0"),
    ]
    for split in ("train", "test", "all"):
        checks += _of_split(split, facts if split == "all" else facts[facts["split"] == split])
    return checks


def overlap(facts: pd.DataFrame) -> int:
    """Number of prompts that are in more than one split."""
    return int((facts.groupby("prompt_id")["split"].nunique() > 1).sum())


def _of_split(split: str, facts: pd.DataFrame) -> list[Check]:
    checks = [_check("prompts", split, facts["prompt_id"].nunique()), _check("pairs", split, len(facts))]
    checks += [_check(name, split, int(facts[name].sum()), len(facts), note) for name, note in FLAGS.items()]
    for name in LENGTHS:
        checks.append(_check(f"{name}, median", split, float(facts[name].median())))
        checks.append(_check(f"{name}, 95th percentile", split, float(facts[name].quantile(0.95))))
    return checks


def _check(check: str, split: str, count: float, of: int | None = None, note: str = "") -> Check:
    share = None if of is None else count / of if of else 0.0
    return {"check": check, "split": split, "count": count, "share": share, "note": note}
