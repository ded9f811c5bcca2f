"""What a model says of pairs: the columns of the reference table, and how rows of it are found again.

The stage that makes the table is `mallowspo.reference_pass`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.packing import Batch, Row, make_batch, within_budget
from mallowspo.pairs.tokens import TokenizedPair
from mallowspo.scoring import Scorer

Array = NDArray[np.float64]
Pairs = Sequence[TokenizedPair]


def score_table(
    scorer: Scorer, pairs: Pairs, end_token: int, tokens_per_batch: int, what: str | None = "scoring pairs"
) -> pd.DataFrame:
    """Everything that the reference says of pairs, in their order.

    Args:
        end_token: id of the token that ends a complete response.
        tokens_per_batch: tokens of one forward (prompt, chosen and rejected of each pair); a longer pair runs alone.
        what: the progress bar's name; None: no bar.

    Returns:
        pair_id; of the prompt, without its first token, which nothing predicts, and without the chat template's header
        of the response: prompt_tokens, prompt_logp, prompt_entropy; of that header: header_tokens, header_entropy; and
        for each side S: S_logp, S_tokens, S_entropy, S_first_entropy (of its first token), S_end_entropy (where its
        end-of-sequence token was predicted, 0 without one), S_has_end. Entropies are of the next-token law, sums in
        nats.
    """
    # A prompt is scored along with the first response that follows it, once for all pairs that have it.
    first_with = {_prompt_of(pair): index for index, pair in reversed(list(enumerate(pairs)))}
    leading = set(first_with.values())
    prompts: dict[int, dict[str, Any]] = {}
    sides: list[dict[str, Any]] = [{} for _ in pairs]
    for batch in tqdm(pair_batches(pairs, tokens_per_batch), desc=what, mininterval=2, disable=what is None):
        for index, scored in zip(batch, _score_batch(scorer, pairs, batch, leading), strict=True):
            pair = pairs[index]
            for side, (logp, entropy) in zip(("chosen", "rejected"), scored, strict=True):
                tokens: list[int] = getattr(pair, side)
                start = len(logp) - len(tokens)
                values = _response_values(tokens, logp[start:], entropy[start:], end_token)
                sides[index] |= {f"{side}_{name}": value for name, value in values.items()}
                if side == "chosen" and index in leading:
                    prompts[index] = _prompt_values(logp[:start], entropy[:start], pair.header)
    return pd.DataFrame(
        {"pair_id": pair.pair_id, **prompts[first_with[_prompt_of(pair)]], **values}
        for pair, values in zip(pairs, sides, strict=True)
    )


def score_pairs(scorer: Scorer, pairs: Pairs, tokens_per_batch: int) -> pd.DataFrame:
    """Log-probabilities alone: pair_id, and for each side _logp (sum, nats) and _tokens; in the order of `pairs`."""
    rows: list[dict[str, Any]] = [{} for _ in range(len(pairs))]
    for batch in tqdm(pair_batches(pairs, tokens_per_batch), desc="scoring pairs", mininterval=2):
        for index, scored in zip(batch, _score_batch(scorer, pairs, batch, want_entropy=False), strict=True):
            rows[index]["pair_id"] = pairs[index].pair_id
            for side, (logp, _) in zip(("chosen", "rejected"), scored, strict=True):
                rows[index] |= {f"{side}_logp": float(logp.sum()), f"{side}_tokens": len(logp)}
    return pd.DataFrame(rows)


def pair_batches(pairs: Pairs, tokens_per_batch: int) -> list[list[int]]:
    """Positions of pairs that are scored together."""
    return within_budget([len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs], tokens_per_batch)


def answer_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Positions of rows that are scored together: answers to one prompt side by side, as they share it."""
    answers: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        answers.setdefault(tuple(row.prompt), []).append(index)
    groups = []
    for prompt, indices in answers.items():
        room = max(1, tokens_per_batch - len(prompt))
        fitting = within_budget([len(rows[index].response) for index in indices], room)
        groups += [[indices[at] for at in batch] for batch in fitting]
    sizes = [len(rows[group[0]].prompt) + sum(len(rows[index].response) for index in group) for group in groups]
    return [[index for at in batch for index in groups[at]] for batch in within_budget(sizes, tokens_per_batch)]


def score_rows(scorer: Scorer, rows: Sequence[Row], want_entropy: bool = True) -> list[tuple[Array, Array]]:
    """In one forward: of each row the log-probability and the entropy (0 if not wanted) of every scored token."""
    with torch.no_grad():
        scores = scorer.token_scores(make_batch(rows), want_entropy)
    logp, entropy = (values.cpu().numpy().astype(np.float64) for values in (scores.logp, scores.entropy))
    # Tokens come row by row, so the end of each row's is where the counts add up to.
    ends = np.cumsum([row.scored for row in rows])[:-1]
    return list(zip(np.split(logp, ends), np.split(entropy, ends), strict=True))


def _prompt_of(pair: TokenizedPair) -> tuple[int, ...]:
    return (pair.header, *pair.prompt)


def _score_batch(
    scorer: Scorer, pairs: Pairs, batch: list[int], leading: Sequence[int] | set[int] = (), want_entropy: bool = True
) -> list[tuple[tuple[Array, Array], tuple[Array, Array]]]:
    """`score_rows` of the chosen and of the rejected response of each pair; the prompts of `leading` pairs too."""
    both = _rows([pairs[index] for index in batch])
    rows = [row._replace(score_prompt=index in leading) for index, row in zip(batch, both, strict=False)]
    scored = score_rows(scorer, [*rows, *both[len(batch) :]], want_entropy)
    return list(zip(scored[: len(batch)], scored[len(batch) :], strict=True))


def _rows(pairs: Pairs) -> list[Row]:
    """All chosen rows, then all rejected rows."""
    return [*(Row(pair.prompt, pair.chosen) for pair in pairs), *(Row(pair.prompt, pair.rejected) for pair in pairs)]


def pair_batch(pairs: Pairs) -> Batch:
    """All chosen rows, then all rejected rows."""
    return make_batch(_rows(pairs))


def _response_values(response: Sequence[int], logp: Array, entropy: Array, end: int) -> dict[str, Any]:
    ended = response[-1] == end
    return {
        "logp": float(logp.sum()),
        "tokens": len(response),
        "entropy": float(entropy.sum()),
        "first_entropy": float(entropy[0]),
        "end_entropy": float(entropy[-1]) if ended else 0.0,
        "has_end": ended,
    }


def _prompt_values(logp: Array, entropy: Array, header: int) -> dict[str, Any]:
    proper = max(0, len(logp) - header)  # the header stands at the end, next to the response
    return {
        "prompt_tokens": proper,
        "prompt_logp": float(logp[:proper].sum()),
        "prompt_entropy": float(entropy[:proper].sum()),
        "header_tokens": len(logp) - proper,
        "header_entropy": float(entropy[proper:].sum()),
    }


def look_up(table: pd.DataFrame, pair_ids: list[str], what: str) -> pd.DataFrame:
    """Rows of a table by pair_id, in the order asked for.

    Raises:
        InputError: when a pair has no row, or a non-finite value; joins go by id, never by position.
    """
    by_id = table.set_index("pair_id")
    missing = [pair_id for pair_id in pair_ids if pair_id not in by_id.index]
    if missing:
        raise InputError(
            f"{what}: no row for {len(missing)} of {len(pair_ids)} pairs (first: {missing[0]}); "
            "delete it and run its stage again"
        )
    found = by_id.loc[pair_ids]
    broken = not_finite(found)
    if len(broken):
        raise InputError(f"{what}: {len(broken)} pairs have values that are not finite (first: {broken[0]})")
    return found.reset_index()


def not_finite(table: pd.DataFrame) -> pd.Index:
    """Labels of the rows that hold a number that is not finite."""
    numbers = table.select_dtypes("number")
    labels: pd.Index = table.index[~np.isfinite(numbers.to_numpy(dtype=float)).all(axis=1)]
    return labels
