"""Stage "score": of each answer its reward and its log-ratio to the reference; of each held-out pair its margin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mallowspo.files import read_jsonl, read_parquet, write_parquet
from mallowspo.judges.reward import judge_answers
from mallowspo.layout import REFERENCE, Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Row
from mallowspo.pairs.prepared import open_tokens
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.reference import answer_batches, look_up, score_pairs, score_rows
from mallowspo.scoring import Scorer


def run(view: Any, layout: Layout, model_folder: Path, method: str, seed: int, device: str) -> None:
    """Write score.parquet, and pairs.parquet for a trained policy.

    The KL to the reference is estimated without bias by log pi(y|x) - log pi_ref(y|x) on answers y sampled from the
    policy at temperature 1 and top_p 1, cut off at max_new_tokens like the answers themselves.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    answers = pd.DataFrame(read_jsonl(layout.samples(method, seed)))
    judge = view.evaluation.judge
    answers["reward"] = judge_answers(judge, answers["instruction"].tolist(), answers["output"].tolist())
    measured = answers[answers["answer_index"] < view.evaluation.kl_answers].copy()
    if method == REFERENCE:
        measured["kl"] = 0.0
    else:
        policy = Scorer(load_model(layout.run(method, seed) / "model", device), precision)
        rows = _rows(measured, layout, model_folder, view)
        log_policy = _score_rows(policy, rows, view.reference.tokens_per_batch)
        _write_pairs(policy, view, layout, method, seed)
        del policy  # one model in memory at a time
        reference = Scorer(load_model(model_folder, device), precision)
        measured["kl"] = log_policy - _score_rows(reference, rows, view.reference.tokens_per_batch)
    parts = [_long(answers, metric, judge if metric == "reward" else "") for metric in ("reward", "tokens", "complete")]
    parts.append(_long(measured, "kl", ""))
    write_parquet(layout.scores(method, seed) / "score.parquet", pd.concat(parts, ignore_index=True))


def _long(answers: pd.DataFrame, metric: str, judge: str) -> pd.DataFrame:
    table = answers[["prompt_id", "answer_index"]].copy()
    return table.assign(metric=metric, value=answers[metric].astype(float), judge=judge)


def _rows(answers: pd.DataFrame, layout: Layout, model_folder: Path, view: Any) -> list[Row]:
    """Token ids as they were sampled: decoding and tokenizing again need not give the same ones."""
    tokenizer = load_tokenizer(model_folder)
    prompts = {
        row["prompt_id"]: tokenize_prompt(tokenizer, row["prompt"], json.loads(row["messages"]), view.tokens)[0]
        for row in read_parquet(layout.prompts).to_dict("records")
    }
    return [Row(prompts[row["prompt_id"]], list(row["token_ids"])) for row in answers.to_dict("records")]


def _score_rows(scorer: Scorer, rows: list[Row], tokens_per_batch: int) -> np.ndarray:
    """Summed log-probability of each row's response, nats, in the order given."""
    values = np.empty(len(rows))
    for batch in tqdm(answer_batches(rows, tokens_per_batch), desc="scoring answers", mininterval=2):
        scored = score_rows(scorer, [rows[index] for index in batch], want_entropy=False)
        values[batch] = [logp.sum() for logp, _ in scored]
    return values


def _write_pairs(policy: Scorer, view: Any, layout: Layout, method: str, seed: int) -> None:
    """Implicit reward margins of the held-out pairs, against the reference table."""
    scored = score_pairs(policy, open_tokens(layout.tokens("test")), view.reference.tokens_per_batch)
    reference = look_up(
        read_parquet(layout.reference("test")), scored["pair_id"].tolist(), str(layout.reference("test"))
    )
    chosen = scored["chosen_logp"] - reference["chosen_logp"]
    rejected = scored["rejected_logp"] - reference["rejected_logp"]
    scored = scored.assign(margin=chosen - rejected, correct=0.5 + 0.5 * np.sign(chosen - rejected))
    prompts = read_parquet(layout.pairs("test"))[["pair_id", "prompt_id"]]
    result = prompts.merge(scored.drop(columns=["chosen_tokens", "rejected_tokens"]), on="pair_id")
    write_parquet(layout.scores(method, seed) / "pairs.parquet", result)
