"""The predictive entropy of prompts, from answers sampled from the reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.dispersion import sampled_terms
from mallowspo.generation import sample_answers
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Row
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.reference import in_parts, score_tokens
from mallowspo.scoring import Scorer
from mallowspo.settings import SamplingSettings


def sampled_columns(
    view: Any, pairs: dict[str, pd.DataFrame], vocabulary: int, model_folder: Path, device: str
) -> dict[str, pd.DataFrame]:
    """For every pair of every split: pair_id, sampled_entropy, sampled_tokens and sampled_variance of its prompt.

    `view.dispersion.samples` answers to each prompt, of at most `view.tokens.max_response` tokens: past that an answer
    is cut off, and the entropy is that of its beginning.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    tokenizer = load_tokenizer(model_folder)
    model = load_model(model_folder, device)
    prompts = pd.concat(pairs.values()).drop_duplicates("prompt_id")
    ids = [
        tokenize_prompt(tokenizer, row["prompt"], json.loads(row["messages"]), view.tokens)[0]
        for row in prompts.to_dict("records")
    ]
    sampling = SamplingSettings(
        answers=view.dispersion.samples, max_new_tokens=view.tokens.max_response, seed=view.dispersion.seed
    )
    rows_per_batch = 2 * view.reference.pairs_per_batch
    sums, lengths = answer_entropies(model, tokenizer, ids, sampling, Scorer(model, precision), rows_per_batch)
    terms = sampled_terms(sums, lengths, vocabulary)._asdict()
    table = prompts[["prompt_id"]].assign(**{f"sampled_{name}": values for name, values in terms.items()})
    return {split: part[["pair_id", "prompt_id"]].merge(table, on="prompt_id").drop(columns="prompt_id")
            for split, part in pairs.items()}  # fmt: skip


def answer_entropies(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    sampling: SamplingSettings,
    scorer: Scorer,
    rows_per_batch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed token entropies (nats) and lengths of the answers sampled to each tokenized prompt: (P, K) each."""
    answers = sample_answers(model, tokenizer, prompts, sampling)
    rows = [Row(prompts[answer.prompt_index], answer.token_ids) for answer in answers]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt) + len(rows[index].response))
    sums = np.empty(len(rows))
    for index, _, entropy in score_tokens(scorer, rows, in_parts(order, rows_per_batch), "scoring answers"):
        sums[index] = entropy.sum()
    # Answers come ordered by prompt, then answer.
    shape = (len(prompts), sampling.answers)
    return sums.reshape(shape), np.array([len(row.response) for row in rows], dtype=float).reshape(shape)
