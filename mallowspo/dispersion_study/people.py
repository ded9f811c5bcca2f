"""(c) Every estimator against people's votes: pairs on which many people chose one of two answers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mallowspo.bigrams import bigram_columns
from mallowspo.dispersion_study.association import RankCorrelation, rank_correlations, spearman
from mallowspo.dispersion_study.estimators import binary_entropy, choice_entropy, filled, indices
from mallowspo.dispersion_study.settings import PeopleSettings, StatisticsSettings
from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.pairs.sources import read_rows
from mallowspo.pairs.tokens import tokenize_pairs
from mallowspo.reference import score_table
from mallowspo.scoring import Scorer
from mallowspo.settings import PairsSettings

Array = NDArray[np.float64]

COLUMNS = ("prompt", "a", "b", "votes_a", "votes_b")
#: Not estimators of `mallowspo.dispersion`: the model is asked the voters' question, which answer it would choose.
CHOICE, CHOICE_PER_TOKEN = "model's choice", "model's choice, per token"


class _BrokenRow(Exception):
    """What is wrong with one row, and how to mend it."""


@dataclass(frozen=True)
class Votes:
    """One file of votes, scored."""

    name: str
    sha256: str
    rows: int  # in the file
    table: pd.DataFrame  # a pair: row, votes, voted_entropy (bits), tokens (mean of both answers), each estimate
    estimators: list[str]
    undefined: int  # indices that no token counts for, set to the neutral value
    ties: int  # pairs with as many votes for one answer as for the other; "chosen" is then the first
    reliability: float  # of the voters' entropy: what another set of voters would say of the same pairs; NaN if unknown


def read_votes(path: Path, wording: str) -> pd.DataFrame:
    """Columns row (number in the file), prompt, a, b, votes_a, votes_b.

    A row is {prompt, a, b, votes_a, votes_b}, or ChaosNLI's alpha-NLI {example: {obs1, obs2, hyp1, hyp2},
    label_count: [first, second]}, whose prompt is `wording` with both observations.

    Raises:
        InputError: the file cannot be read, is empty, or has a broken or repeated row; named by file and row.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, values in read_rows(PairsSettings(source=f"path:{path}")):
        try:
            row = _row(values, wording)
        except _BrokenRow as problem:
            raise InputError(f"{path}: row {number}: {problem}") from None
        key = digest([row["prompt"], row["a"], row["b"]])
        if key in rows:
            raise InputError(f"{path}: row {number} repeats row {rows[key]['row']}; merge their votes into one row")
        rows[key] = {"row": number, **row}
    if len(rows) < 3:
        raise InputError(f"{path}: {len(rows)} rows with votes; a correlation needs at least 3")
    return pd.DataFrame(list(rows.values()))


def _row(values: Mapping[str, Any], wording: str) -> dict[str, Any]:
    row = _alpha_row(values, wording) if "example" in values else dict(values)
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise _BrokenRow(
            f"no {', '.join(missing)}; a row holds {', '.join(COLUMNS)}, or ChaosNLI's example and label_count"
        )
    for column in ("prompt", "a", "b"):
        if not isinstance(row[column], str) or not row[column].strip():
            raise _BrokenRow(f"{column} is {row[column]!r}, not a text; mend or remove the row")
    if row["a"].strip() == row["b"].strip():
        raise _BrokenRow("a and b are the same text, so nobody could choose; remove the row")
    for column in ("votes_a", "votes_b"):
        votes = row[column]
        if isinstance(votes, bool) or not isinstance(votes, int) or votes < 0:
            raise _BrokenRow(f"{column} is {votes!r}, not a whole number of at least 0; mend or remove the row")
    if row["votes_a"] + row["votes_b"] == 0:
        raise _BrokenRow("its votes sum to 0: nobody voted; remove the row")
    return {column: row[column] for column in COLUMNS}


def _alpha_row(values: Mapping[str, Any], wording: str) -> dict[str, Any]:
    example, counts = values["example"], values.get("label_count")
    if not isinstance(example, dict) or not isinstance(counts, list) or len(counts) != 2:
        raise _BrokenRow("not ChaosNLI's alpha-NLI: example must be an object, label_count a list of two votes")
    missing = [key for key in ("obs1", "obs2", "hyp1", "hyp2") if key not in example]
    if missing:
        raise _BrokenRow(f"example has no {', '.join(missing)}; mend or remove the row")
    # Not str.format: an observation may hold braces.
    prompt = wording.replace("{obs1}", str(example["obs1"]), 1).replace("{obs2}", str(example["obs2"]), 1)
    return {"prompt": prompt, "a": example["hyp1"], "b": example["hyp2"], "votes_a": counts[0], "votes_b": counts[1]}


def draw(votes: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """A seeded draw of at most `most` rows, in the file's order."""
    if most is None or most >= len(votes):
        return votes
    kept = np.sort(np.random.default_rng(seed).permutation(len(votes))[:most])
    return votes.iloc[kept].reset_index(drop=True)


def as_pairs(votes: pd.DataFrame, template: str) -> pd.DataFrame:
    """The votes as a table of pairs: the answer with more votes is chosen, the first where there are as many."""
    rows = []
    for row in votes.to_dict("records"):
        sides = [row["a"], row["b"]] if row["votes_a"] >= row["votes_b"] else [row["b"], row["a"]]
        chosen, rejected = (_answer(row["prompt"], side, template) for side in sides)
        messages = [{"role": "user", "content": row["prompt"]}]
        rows.append(
            {
                "pair_id": digest([messages, chosen, rejected]),
                "prompt_id": digest(messages),
                "prompt": row["prompt"],
                "messages": json.dumps(messages, ensure_ascii=False),
                "chosen": chosen,
                "rejected": rejected,
                "meta": json.dumps({"chosen_complete": True, "rejected_complete": True}),
            }
        )
    return pd.DataFrame(rows)


def _answer(prompt: str, answer: str, template: str) -> str:
    """Under template plain the answer continues the prompt's text, so white space must part them."""
    apart = template == "chat" or prompt[-1:].isspace() or answer[:1].isspace()
    return answer if apart else f" {answer}"


def score(
    scorer: Scorer, tokenizer: Any, path: Path, name: str, sha256: str, settings: PeopleSettings, seed: int
) -> Votes:
    """Read one file, score its pairs, and estimate each pair's dispersion in every way."""
    everything = read_votes(path, settings.wording)
    votes = draw(everything, settings.max_pairs, seed)
    pairs = as_pairs(votes, settings.tokens.template)
    tokenized = list(tokenize_pairs(tokenizer, pairs, settings.tokens))
    reference = score_table(scorer, tokenized, tokenizer.eos_token_id, settings.tokens_per_batch)
    bigrams = bigram_columns(scorer, tokenizer.bos_token_id, {name: tokenized})[name]
    reference = reference.merge(bigrams, on="pair_id", validate="one_to_one")
    found = indices(reference, scorer.vocabulary)
    undefined = sum(int(np.isnan(index).sum()) for index in found.values())
    logp = {side: reference[f"{side}_logp"].to_numpy() for side in ("chosen", "rejected")}
    tokens = {side: reference[f"{side}_tokens"].to_numpy() for side in ("chosen", "rejected")}
    estimates = {label: filled(index) for label, index in found.items()} | {
        CHOICE: choice_entropy(logp["chosen"] - logp["rejected"]),
        CHOICE_PER_TOKEN: choice_entropy(logp["chosen"] / tokens["chosen"] - logp["rejected"] / tokens["rejected"]),
    }
    shares = votes["votes_a"].to_numpy(dtype=float) / (votes["votes_a"] + votes["votes_b"]).to_numpy(dtype=float)
    table = votes[["row", "votes_a", "votes_b"]].assign(
        voted_entropy=binary_entropy(shares), tokens=(tokens["chosen"] + tokens["rejected"]) / 2, **estimates
    )
    ties = int((votes["votes_a"] == votes["votes_b"]).sum())
    return Votes(name, sha256, len(everything), table, list(estimates), undefined, ties, reliability(votes, seed))


def reliability(votes: pd.DataFrame, seed: int) -> float:
    """Rank correlation of the voters' entropy with that of as many other voters: a ceiling for any estimate's.

    From random halves of each pair's votes, their correlation brought to the full number (Spearman and Brown); NaN
    where a pair has fewer than two votes, or all pairs have the same entropy.
    """
    first, second = (votes[column].to_numpy() for column in ("votes_a", "votes_b"))
    total = first + second
    if (total < 2).any():
        return math.nan
    half = total // 2
    drawn = np.random.default_rng(seed).hypergeometric(first, second, half)
    entropies = binary_entropy(drawn / half), binary_entropy((first - drawn) / (total - half))
    between = float(spearman(*entropies))
    return 2 * between / (1 + between) if between > 0 else math.nan


def correlations(votes: Votes, statistics: StatisticsSettings, seed: int) -> dict[str, RankCorrelation]:
    """Rank correlation of each estimate with the voters' entropy, alone and given the answers' length."""
    estimates = {label: votes.table[label].to_numpy() for label in votes.estimators}
    truth, tokens = votes.table["voted_entropy"].to_numpy(), votes.table["tokens"].to_numpy()
    return rank_correlations(estimates, truth, tokens, **statistics.model_dump(), seed=seed)
