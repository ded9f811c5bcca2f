"""Stage "pairs": read, check, give ids, split by prompt, and say how healthy the data is."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.errors import InputError
from mallowspo.files import read_jsonl, write_json, write_jsonl, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_tokenizer
from mallowspo.pairs import formats
from mallowspo.pairs.answers import best_against_worst
from mallowspo.pairs.formats import Candidate, UnusableRow, recognise
from mallowspo.pairs.health import health_table, overlap, token_facts
from mallowspo.pairs.sources import pinned, read_rows
from mallowspo.pairs.split import SPLITS, assign_splits, draw_prompts
from mallowspo.pairs.tokens import TokenizedPair, check_tokenizer, tokenize_pair
from mallowspo.settings import OnPolicySettings, PairsSettings, TokenSettings

TEST_PROMPT_COLUMNS = ["prompt_id", "prompt", "messages"]


@dataclass(frozen=True)
class Read:
    """What one row of the source gave. `split` is known beforehand only for sampled answers."""

    file: str
    row: int
    values: dict[str, Any]
    split: str | None
    outcome: Candidate | UnusableRow


@dataclass(frozen=True)
class Usable:
    """A pair that passed every check; `pair` is its row in pairs/*.parquet."""

    read: Read
    pair: dict[str, Any]
    tokens: TokenizedPair


def run(view: Any, layout: Layout, tokenizer_folder: Path) -> None:
    """Write pairs/{train,test}.parquet, test_prompts.parquet, health.json and unusable.jsonl.

    Raises:
        InputError: the source cannot be read; more rows than `max_unusable_share` cannot be used (unusable.jsonl,
            written first, lists them); no pair is left for a split.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    check_tokenizer(tokenizer, view.tokens)
    settings = pinned(view.pairs)
    if settings.on_policy:
        reads = _read_answers(settings.on_policy, layout)
    else:
        reads = read_source(settings, view.tokens.template)
    usable, listed = check_rows(reads, tokenizer, settings.source, view.tokens)
    write_jsonl(layout.unusable_rows, listed)
    kinds = Counter(problem["kind"] for problem in listed)
    rows_read = len(reads) - kinds[formats.EMPTY_ANSWER]
    stop_if_too_many(settings, rows_read, len(usable), listed, layout.unusable_rows)

    table, facts = _split(usable, settings, tokenizer)
    if overlap(facts):
        raise InputError(
            f"{settings.source}: {overlap(facts)} prompts are in both train and test; split them by prompt"
        )
    for split in SPLITS:
        part = table[facts["split"] == split]
        if part.empty:
            raise InputError(f"{settings.source}: no pair is left for {split}; mend pairs.split or give more prompts")
        write_parquet(layout.pairs(split), part)
    test_prompts = table[facts["split"] == "test"]
    if settings.on_policy:
        # A prompt whose sampled answers showed no preference is as good a test prompt as any.
        test_prompts = pd.DataFrame([read.values for read in reads if read.split == "test"])
    write_parquet(layout.prompts, test_prompts[TEST_PROMPT_COLUMNS].drop_duplicates("prompt_id"))
    write_json(layout.data_health, health_table(rows_read, kinds, len(usable) - len(table), facts))


def read_source(settings: PairsSettings, template: str) -> list[Read]:
    """What every row of `hub:` or `path:` gives, before it is tokenized."""
    place = settings.source.partition(":")[2]
    reads = []
    for row, values in read_rows(settings):
        outcome: Candidate | UnusableRow
        try:
            outcome = recognise(values, template)
        except UnusableRow as problem:
            outcome = problem
        reads.append(Read(place, row, values, None, outcome))
    return reads


def _read_answers(settings: OnPolicySettings, layout: Layout) -> list[Read]:
    reads = []
    for split in SPLITS:
        path = layout.answers(split)
        answers = read_jsonl(path)
        outcomes = best_against_worst(answers, settings.minimum_gap)
        reads += [Read(str(path), row, answers[row - 1], split, outcome) for row, outcome in outcomes]
    return reads


def check_rows(
    reads: list[Read], tokenizer: Any, source: str, settings: TokenSettings
) -> tuple[list[Usable], list[dict[str, Any]]]:
    """The usable pairs, each once, and every other row with its kind and reason."""
    usable: dict[str, Usable] = {}
    listed = []
    for read in reads:
        try:
            if isinstance(read.outcome, UnusableRow):
                raise read.outcome
            pair = _pair_row(read.outcome, source)
            if pair["pair_id"] in usable:
                raise UnusableRow(formats.DUPLICATE, f"the same pair as row {usable[pair['pair_id']].read.row}")
            usable[pair["pair_id"]] = Usable(read, pair, _fit(pair, tokenizer, settings))
        except UnusableRow as problem:
            listed.append({"file": read.file, "row": read.row, "kind": problem.kind, "reason": str(problem)})
    return list(usable.values()), listed


def _pair_row(candidate: Candidate, source: str) -> dict[str, Any]:
    return {
        "pair_id": candidate.pair_id,
        "prompt_id": candidate.prompt_id,
        "prompt": candidate.prompt,
        "messages": json.dumps(candidate.messages, ensure_ascii=False),
        "chosen": candidate.chosen,
        "rejected": candidate.rejected,
        "source": source,
        # default=str: tables may hold dates and the like.
        "meta": json.dumps(candidate.meta, ensure_ascii=False, default=str),
    }


def _fit(pair: dict[str, Any], tokenizer: Any, settings: TokenSettings) -> TokenizedPair:
    """The pair's tokens, if the limits leave text on both sides, and not the same."""
    try:
        tokens = tokenize_pair(tokenizer, pair, settings)
    except InputError as error:
        raise UnusableRow(formats.FORMAT, str(error)) from None
    for side, ids in (("chosen", tokens.chosen), ("rejected", tokens.rejected)):
        if not tokenizer.decode(ids, skip_special_tokens=True).strip():
            reason = f"{side} is cut to nothing but white space by tokens.max_response = {settings.max_response}"
            raise UnusableRow(formats.EMPTY, reason)
    if tokens.chosen == tokens.rejected:
        reason = f"the sides are equal within tokens.max_response = {settings.max_response}"
        raise UnusableRow(formats.EQUAL, reason)
    return tokens


def stop_if_too_many(
    settings: PairsSettings, rows_read: int, usable: int, listed: list[dict[str, Any]], path: Path
) -> None:
    """Raises an InputError where more rows cannot be used than `max_unusable_share`, or none is left."""
    unusable = [problem for problem in listed if problem["kind"] in formats.UNUSABLE]
    too_many = len(unusable) > settings.max_unusable_share * rows_read
    if usable and not too_many:
        return
    if not rows_read:
        raise InputError(f"{settings.source}: holds no rows; mend pairs.source")
    first = "; ".join(f"row {problem['row']}: {problem['reason']}" for problem in (unusable or listed)[:3])
    share = f"{len(unusable)} of {rows_read} rows ({len(unusable) / rows_read:.1%}) cannot be used"
    limit = f"pairs.max_unusable_share is {settings.max_unusable_share:.1%}" if too_many else "no pair is left"
    raise InputError(f"{settings.source}: {share}, {limit}; {first}; all are listed in {path}; mend the rows")


def _split(usable: list[Usable], settings: PairsSettings, tokenizer: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of kept pairs, and beside it, row by row, split, prompt_id and token facts."""
    if settings.on_policy:  # split and limited before the answers were sampled
        chosen = [(item, str(item.read.split)) for item in usable]
    else:
        rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for item in usable:
            rows.setdefault(item.pair["prompt_id"], []).append((item.read.row, item.read.values))
        splits = assign_splits(rows, settings.split, settings.source)
        kept = draw_prompts(splits, settings)
        chosen = [(item, splits[item.pair["prompt_id"]]) for item in usable if item.pair["prompt_id"] in kept]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    facts = [
        {"split": split, "prompt_id": item.pair["prompt_id"], **token_facts(item.tokens, bos, eos)}
        for item, split in chosen
    ]
    return pd.DataFrame([item.pair for item, _ in chosen]), pd.DataFrame(facts)
