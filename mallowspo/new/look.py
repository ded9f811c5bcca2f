"""What a file of preference pairs holds: rows, pairs, prompts, and their lengths in tokens."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mallowspo.errors import InputError
from mallowspo.files import write_jsonl
from mallowspo.pairs import formats
from mallowspo.pairs.build import Read, check_rows, read_source, stop_if_too_many
from mallowspo.pairs.formats import Candidate
from mallowspo.pairs.sources import pinned
from mallowspo.pairs.split import assign_splits, unit_draw
from mallowspo.pairs.tokens import check_tokenizer
from mallowspo.plan.work import Lengths
from mallowspo.settings import PairsSettings, TokenSettings

#: Pairs whose tokens are counted; of more a seeded draw is.
COUNTED = 2000
#: Prompts without which there is nothing to compare on.
FEWEST_TRAIN, FEWEST_TEST = 8, 4


@dataclass(frozen=True)
class Look:
    """What a source holds.

    Attributes:
        rows: that were read.
        pairs: usable and different.
        train, test: prompts of each part, split as the experiment will split them.
        left_out: kind of row that gives no pair -> how many.
        lengths: (k, 3), tokens of prompt, chosen and rejected of k pairs, before anything is cut.
    """

    rows: int
    pairs: int
    train: int
    test: int
    left_out: dict[str, int]
    lengths: Lengths

    @property
    def prompts(self) -> int:
        return self.train + self.test

    @property
    def pairs_a_prompt(self) -> float:
        return self.pairs / self.prompts

    def told(self) -> str:
        """One sentence."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.left_out.items())
        left_out = f" (rows that give no pair: {kinds})" if kinds else ""
        return f"{self.rows:,} rows, {self.pairs:,} different pairs of {self.prompts:,} prompts{left_out}"

    def lengths_told(self) -> str:
        """Median, quantile and longest of prompt and response."""
        sides = {"prompt": self.lengths[:, 0], "response": self.lengths[:, 1:]}
        return "; ".join(
            f"{name}: median {np.median(tokens):.0f}, longest {np.max(tokens):.0f}" for name, tokens in sides.items()
        )


def look(settings: PairsSettings, tokenizer: Any, template: str, listed_in: Path) -> Look:
    """Read a source as the stage "pairs" will, and count.

    Args:
        listed_in: where the rows that give no pair are listed, if they are too many.

    Raises:
        InputError: it cannot be read; more rows give no pair than `max_unusable_share`; too few prompts.
    """
    tokens = TokenSettings.model_validate({"template": template, "max_prompt": 1 << 30, "max_response": 1 << 30})
    check_tokenizer(tokenizer, tokens)
    reads = read_source(pinned(settings), template)
    candidates = {read.outcome.pair_id: read for read in reads if isinstance(read.outcome, Candidate)}
    drawn = sorted(candidates, key=lambda pair_id: unit_draw(0, "lengths", pair_id))[:COUNTED]
    broken = [read for read in reads if not isinstance(read.outcome, Candidate)]
    checked = [*(candidates[pair_id] for pair_id in drawn), *broken]
    usable, listed = check_rows(checked, tokenizer, settings.source, tokens)
    kinds = Counter(problem["kind"] for problem in listed)
    unusable = sum(kinds[kind] for kind in formats.UNUSABLE)
    if not usable or unusable > settings.max_unusable_share * len(reads):
        write_jsonl(listed_in, listed)
        stop_if_too_many(settings, len(reads), len(usable), listed, listed_in)
    kinds[formats.DUPLICATE] = len(reads) - len(broken) - len(candidates)
    train, test = _prompts(candidates.values(), settings)
    lengths = [[len(item.tokens.prompt), len(item.tokens.chosen), len(item.tokens.rejected)] for item in usable]
    left_out = {kind: count for kind, count in kinds.items() if count}
    pairs = len(candidates) - (len(drawn) - len(usable))
    return Look(len(reads), pairs, train, test, left_out, np.array(lengths, dtype=np.float64))


def _prompts(reads: Iterable[Read], settings: PairsSettings) -> tuple[int, int]:
    """Training and test prompts."""
    rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for read in reads:
        if isinstance(read.outcome, Candidate):
            rows.setdefault(read.outcome.prompt_id, []).append((read.row, read.values))
    splits = Counter(assign_splits(rows, settings.split, settings.source).values())
    if splits["train"] < FEWEST_TRAIN or splits["test"] < FEWEST_TEST:
        raise InputError(
            f"{settings.source}: {len(rows)} different prompts give {splits['train']} to train on and {splits['test']} "
            f"to test on; {FEWEST_TRAIN} and {FEWEST_TEST} are the fewest: add pairs of other prompts"
        )
    return splits["train"], splits["test"]
