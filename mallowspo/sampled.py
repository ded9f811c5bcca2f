"""The predictive entropy of prompts, from answers sampled from the reference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mallowspo.dispersion import sampled_terms
from mallowspo.generation import sample_answers
from mallowspo.packing import Row
from mallowspo.reference import Pairs, answer_batches, score_rows
from mallowspo.scoring import Scorer
from mallowspo.settings import SamplingSettings


def sampled_columns(view: Any, scorer: Scorer, tokenizer: Any, pairs: Mapping[str, Pairs]) -> dict[str, pd.DataFrame]:
    """For every pair of every split: pair_id, sampled_entropy, sampled_tokens and sampled_variance of its prompt.

    `view.dispersion.samples` answers to each prompt, of at most `view.tokens.max_response` tokens: past that an answer
    is cut off, and the entropy is that of its beginning.
    """
    places: dict[tuple[int, ...], int] = {}
    for part in pairs.values():
        for pair in part:
            places.setdefault(tuple(pair.prompt), len(places))
    prompts = [list(prompt) for prompt in places]
    sampling = SamplingSettings(
        answers=view.dispersion.samples, max_new_tokens=view.tokens.max_response, seed=view.dispersion.seed
    )
    sums, lengths = answer_entropies(tokenizer, prompts, sampling, scorer, view.reference.tokens_per_batch)
    table = pd.DataFrame(sampled_terms(sums, lengths, scorer.vocabulary)._asdict()).add_prefix("sampled_")
    columns = {}
    for split, part in pairs.items():
        of_prompts = table.iloc[[places[tuple(pair.prompt)] for pair in part]].reset_index(drop=True)
        columns[split] = of_prompts.assign(pair_id=[pair.pair_id for pair in part])
    return columns


def answer_entropies(
    tokenizer: Any, prompts: list[list[int]], sampling: SamplingSettings, scorer: Scorer, tokens_per_batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Summed token entropies (nats) and lengths of the answers sampled to each tokenized prompt: (P, K) each."""
    answers = sample_answers(scorer.model, tokenizer, prompts, sampling)
    rows = [Row(prompts[answer.prompt_index], answer.token_ids) for answer in answers]
    sums = np.empty(len(rows))
    for batch in tqdm(answer_batches(rows, tokens_per_batch), desc="scoring answers", mininterval=2):
        scored = score_rows(scorer, [rows[index] for index in batch])
        sums[batch] = [entropy.sum() for _, entropy in scored]
    # Answers come ordered by prompt, then answer.
    shape = (len(prompts), sampling.answers)
    return sums.reshape(shape), np.array([len(row.response) for row in rows], dtype=float).reshape(shape)
