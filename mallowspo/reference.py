"""Stage "reference": one pass of the reference policy over every pair, into a table by pair_id.

Every method, seed and beta reads the table; the reference policy is never in memory while a policy trains.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import read_parquet, write_json, write_parquet
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Batch, Row, make_batch
from mallowspo.pairs.tokens import TokenizedPair, tokenize_pairs
from mallowspo.scoring import Scorer

Array = NDArray[np.float64]

#: Contexts of one token that are scored at a time.
BIGRAMS_PER_BATCH = 256


def run(view: Any, layout: Layout, model_folder: Path, device: str) -> None:
    """Score the training and the test pairs; write one table a split and a summary."""
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    tokenizer = load_tokenizer(model_folder)
    scorer = Scorer(load_model(model_folder, device), precision)
    # V is the width of the output; models pad it beyond what the tokenizer knows.
    summary: dict[str, Any] = {"vocabulary": scorer.vocabulary, "tokenizer_vocabulary": len(tokenizer)}
    summary |= {"precision": precision, "device": device}
    for split in ("train", "test"):
        pairs = read_parquet(layout.pairs(split))
        table = score_table(scorer, tokenizer, pairs, view.tokens, view.reference.pairs_per_batch)
        write_parquet(layout.reference(split), table)
        summary[split] = {
            "pairs": len(table),
            "tokens": int(table["chosen_tokens"].sum() + table["rejected_tokens"].sum()),
        }
    write_json(layout.reference_summary, summary)


def score_table(scorer: Scorer, tokenizer: Any, pairs: pd.DataFrame, tokens: Any, pairs_per_batch: int) -> pd.DataFrame:
    """Everything that the reference says of a table of pairs, in its order.

    Returns:
        pair_id; of the prompt, without its first token, which nothing predicts, and without the chat template's header
        of the response: prompt_tokens, prompt_logp, prompt_entropy; of that header: header_tokens, header_entropy; and
        for each side S: S_logp, S_tokens, S_entropy, S_first_entropy (of its first token), S_end_entropy (where its
        end-of-sequence token was predicted, 0 without one), S_has_end, S_bigram_entropy (sum over all tokens but the
        last of the entropy given that token alone). Entropies are of the next-token law, sums in nats.
    """
    tokenized = list(tokenize_pairs(tokenizer, pairs, tokens))
    rows = _rows(tokenized)
    # A prompt is scored along with the first response that follows it.
    leading: dict[int, dict[str, Any]] = {}
    for index in np.flatnonzero(~pairs["prompt_id"].duplicated()).tolist():
        rows[index] = rows[index]._replace(score_prompt=True)
        leading[index] = {"prompt_id": pairs["prompt_id"].iloc[index]}
    values: list[dict[str, Any]] = [{} for _ in rows]
    for index, logp, entropy in score_tokens(scorer, rows, _batches(tokenized, pairs_per_batch), "scoring pairs"):
        pair = tokenized[index % len(tokenized)]
        start = len(pair.prompt) - 1 if index in leading else 0
        response = pair.chosen if index < len(tokenized) else pair.rejected
        values[index] = _response_values(response, logp[start:], entropy[start:], tokenizer.eos_token_id)
        if index in leading:
            leading[index] |= _prompt_values(logp[:start], entropy[:start], pair.header)
    table = pairs[["pair_id", "prompt_id"]].merge(pd.DataFrame(leading.values()), on="prompt_id", how="left")
    sides = _by_side(tokenized, values).assign(**_bigram_columns(scorer, tokenizer, tokenized))
    return table.drop(columns="prompt_id").merge(sides, on="pair_id", validate="one_to_one")


def score_pairs(scorer: Scorer, pairs: list[TokenizedPair], pairs_per_batch: int) -> pd.DataFrame:
    """Log-probabilities alone: pair_id, and for each side _logp (sum, nats) and _tokens; in the order of `pairs`."""
    rows = _rows(pairs)
    values: list[dict[str, Any]] = [{} for _ in rows]
    batches = _batches(pairs, pairs_per_batch)
    for index, logp, _ in score_tokens(scorer, rows, batches, "scoring pairs", want_entropy=False):
        values[index] = {"logp": float(logp.sum()), "tokens": len(logp)}
    return _by_side(pairs, values)


def _rows(pairs: list[TokenizedPair]) -> list[Row]:
    """All chosen rows, then all rejected rows."""
    return [*(Row(pair.prompt, pair.chosen) for pair in pairs), *(Row(pair.prompt, pair.rejected) for pair in pairs)]


def _batches(pairs: list[TokenizedPair], pairs_per_batch: int) -> list[list[int]]:
    """Positions in `_rows`; pairs of similar length go together: less padding."""
    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    return [[*part, *(len(pairs) + index for index in part)] for part in in_parts(order, pairs_per_batch)]


def _by_side(pairs: list[TokenizedPair], values: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a pair from the values of `_rows`."""
    sides = {"chosen_": values[: len(pairs)], "rejected_": values[len(pairs) :]}
    ids = pd.DataFrame({"pair_id": [pair.pair_id for pair in pairs]})
    return pd.concat([ids, *(pd.DataFrame(side).add_prefix(name) for name, side in sides.items())], axis="columns")


def in_parts(order: list[int], size: int) -> list[list[int]]:
    """Positions in batches of `size`, in their order."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def score_tokens(
    scorer: Scorer, rows: Sequence[Row], batches: Iterable[list[int]], what: str, want_entropy: bool = True
) -> Iterator[tuple[int, Array, Array]]:
    """Each row's position in `rows`, and the log-probability and the entropy of every token that is scored.

    Args:
        rows: prompts with responses.
        batches: positions in `rows` that are scored together.
    """
    for batch in tqdm(list(batches), desc=what, mininterval=2):
        with torch.no_grad():
            scores = scorer.token_scores(make_batch([rows[index] for index in batch]), want_entropy)
        logp, entropy = (values.cpu().numpy().astype(np.float64) for values in (scores.logp, scores.entropy))
        # Tokens come row by row, so the end of each row's is where the counts add up to.
        ends = np.cumsum([rows[index].scored for index in batch])[:-1]
        yield from zip(batch, np.split(logp, ends), np.split(entropy, ends), strict=True)


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


def _bigram_columns(scorer: Scorer, tokenizer: Any, pairs: list[TokenizedPair]) -> dict[str, list[float]]:
    """Sum over a response's tokens but the last of H(Y | that token alone, after BOS where prompts begin with one)."""
    start = [tokenizer.bos_token_id] if pairs and pairs[0].prompt[0] == tokenizer.bos_token_id else []
    given = sorted({token for pair in pairs for side in (pair.chosen, pair.rejected) for token in side[:-1]})
    # The law after a token is read where some next token is predicted; which one does not matter.
    rows = [Row([*start, token], [token]) for token in given]
    entropies: dict[int, float] = {}
    batches = in_parts(list(range(len(rows))), BIGRAMS_PER_BATCH)
    for index, _, entropy in score_tokens(scorer, rows, batches, "scoring single tokens"):
        entropies[given[index]] = float(entropy[0])
    return {
        f"{side}_bigram_entropy": [sum(entropies[token] for token in getattr(pair, side)[:-1]) for pair in pairs]
        for side in ("chosen", "rejected")
    }


def pair_batch(pairs: list[TokenizedPair]) -> Batch:
    """All chosen rows, then all rejected rows."""
    return make_batch(_rows(pairs))


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
    numbers = found.select_dtypes("number")
    broken = numbers.index[~numbers.map(lambda value: value == value and abs(value) != float("inf")).all(axis=1)]
    if len(broken):
        raise InputError(f"{what}: {len(broken)} pairs have values that are not finite (first: {broken[0]})")
    return found.reset_index()
