"""How many pairs an experiment has and how long they are: from its prepared tokens, else from what is expected of them.

What a plan took for true is told in words (`Data.told`), the weaker the knowledge the plainer.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from mallowspo.errors import InputError
from mallowspo.layout import Layout
from mallowspo.plan.work import Lengths
from mallowspo.settings import Experiment


@dataclass(frozen=True)
class Pairs:
    """The pairs of one split: `count` of them, whose lengths (k, 3) are all of theirs, or those of a typical one."""

    count: int
    lengths: Lengths  # tokens of prompt, chosen and rejected
    longest: int  # tokens of the longest pair

    @property
    def each(self) -> float:
        """How many pairs a row of `lengths` stands for."""
        return self.count / len(self.lengths)

    def largest_batch(self, tokens_per_batch: int, pairs: int) -> int:
        """Tokens of the largest batch: at most so many tokens, of at most so many pairs; a longer pair alone."""
        tokens = np.sort(self.lengths.sum(axis=1))[::-1]
        together = int(tokens[:pairs].sum()) if len(tokens) == self.count else pairs * self.longest
        return max(self.longest, min(tokens_per_batch, together))


@dataclass(frozen=True)
class Data:
    """The pairs of both splits, and on what that rests."""

    train: Pairs
    test: Pairs
    told: str


def prepared(layout: Layout) -> Data | None:
    """From the tokens that the stage of that name left; None before it has run."""
    if not layout.tokens_summary.exists():
        return None
    from mallowspo.pairs.prepared import open_tokens  # reads Arrow, by a library that is slow to load

    splits = []
    for split in ("train", "test"):
        lengths = open_tokens(layout.tokens(split)).lengths.astype(np.float64)
        splits.append(Pairs(len(lengths), lengths, int(lengths.sum(axis=1).max())))
    return Data(splits[0], splits[1], f"pairs and lengths: counted in {layout.tokens_summary.parent}")


def expected(experiment: Experiment) -> Data:
    """From the settings alone.

    Raises:
        InputError: nothing says how many pairs there are.
    """
    given, tokens = experiment.expected, experiment.tokens
    counts, source = _counts(experiment)
    on_policy = experiment.pairs.on_policy
    most = min(tokens.max_response, on_policy.sampling.max_new_tokens) if on_policy else tokens.max_response
    prompt, response = given.prompt_tokens or tokens.max_prompt, given.response_tokens or most
    typical = np.array([[prompt, response, response]], dtype=np.float64)
    longest = tokens.max_prompt + 2 * most
    said = given.prompt_tokens and given.response_tokens
    lengths = "means of expected" if said else "the most that tokens allows, so times are too long"
    told = f"pairs: {source}; tokens of a prompt and a response: {prompt:.0f} and {response:.0f}, {lengths}"
    train, test = (Pairs(count, typical, longest) for count in counts)
    return Data(train, test, told)


def _counts(experiment: Experiment) -> tuple[tuple[int, int], str]:
    """Pairs of both splits, and who says so. `max_train` and `max_test` count prompts, of one pair each."""
    pairs, given = experiment.pairs, experiment.expected
    most, known = (pairs.max_train, pairs.max_test), (given.train_pairs, given.test_pairs)
    source = "max_train and max_test" if known == (None, None) else "expected"
    if any(limit is None and count is None for limit, count in zip(most, known, strict=True)):
        known, source = _in_the_file(experiment), "counted in the file"
    train, test = (min(n for n in both if n is not None) for both in zip(most, known, strict=True))
    return (train, test), source


def _in_the_file(experiment: Experiment) -> tuple[int, int]:
    pairs = experiment.pairs
    kind, _, place = pairs.source.partition(":")
    file = Path(place)
    if kind == "hub" or not file.exists() or ".jsonl" not in file.suffixes:
        raise InputError(
            f"pairs.source '{pairs.source}': how many pairs it has is not known yet; say so in expected: "
            "{train_pairs: N, test_pairs: N}, or cut it by pairs.max_train and pairs.max_test"
        )
    with _open(file) as lines:
        rows = [line for line in lines if line.strip()]
    column, share = pairs.split.column, pairs.split.share
    if column:
        train = sum(json.loads(row).get(column) == "train" for row in rows)
        test = len(rows) - train
    else:
        test = max(1, round(len(rows) * pairs.split.test_fraction))
        train = len(rows) - test
    taken = len(share.parts) / share.of if share else 1
    return max(1, round(train * taken)), max(1, round(test * taken))


def _open(file: Path) -> TextIO:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
