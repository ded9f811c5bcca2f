"""Stage "score": of each answer its reward, signs of degeneration and log-ratio to the reference; of each held-out pair
its margin and how far both log-probabilities moved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mallowspo.evaluation.degeneration import SIGNS, signs
from mallowspo.evaluation.displacement import changes
from mallowspo.evaluation.kl import ESTIMATORS, kl_columns
from mallowspo.files import read_jsonl, read_parquet, write_parquet
from mallowspo.judges.reward import judge_answers
from mallowspo.kept import load_policy
from mallowspo.layout import REFERENCE, Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.packing import Row
from mallowspo.pairs.prepared import open_tokens
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.policies import Policy
from mallowspo.reference import answer_batches, look_up, score_pairs, score_rows
from mallowspo.scoring import Scorer


def run(
    view: Any, layout: Layout, model_folder: Path, policy_folder: Path, method: str, seed: int, device: str
) -> None:
    """Write score.parquet, and pairs.parquet for a trained policy as it is compared.

    `mallowspo.evaluation.kl` says what the estimators of the KL to the reference are.

    Args:
        method: as in `mallowspo.policies`.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    answers = pd.DataFrame(read_jsonl(layout.samples(method, seed)))
    judge = view.evaluation.judge
    answers["reward"] = judge_answers(judge, answers["instruction"].tolist(), answers["output"].tolist())
    answers = answers.join(signs(answers))
    measured = answers[answers["answer_index"] < view.evaluation.kl_answers].reset_index(drop=True)
    name = Policy.parse(method)
    if name.label == REFERENCE:
        measured = measured.assign(**dict.fromkeys(ESTIMATORS, 0.0))
    else:
        policy = Scorer(load_policy(policy_folder, device), precision)
        rows = _rows(measured, layout, model_folder, view)
        log_policy = _score_rows(policy, rows, view.reference.tokens_per_batch)
        if name.is_compared:
            _write_pairs(policy, view, layout, method, seed)
        del policy  # one model in memory at a time
        reference = Scorer(load_model(model_folder, device), precision)
        measured = measured.join(kl_columns(log_policy, _score_rows(reference, rows, view.reference.tokens_per_batch)))
    metrics = ("reward", "tokens", "complete", *SIGNS)
    parts = [_long(answers, metric, judge if metric == "reward" else "") for metric in metrics]
    parts += [_long(measured, metric, "") for metric in ESTIMATORS]
    write_parquet(layout.scores(method, seed) / "score.parquet", pd.concat(parts, ignore_index=True))


def run_pairs(view: Any, layout: Layout, policy_folder: Path, method: str, seed: int, device: str) -> None:
    """Write pairs.parquet of a further set of pairs alone; `layout` is the set's."""
    device = resolve_device(device)
    policy = Scorer(load_model(policy_folder, device), resolve_precision(view.model.precision, device))
    _write_pairs(policy, view, layout, method, seed)


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


def _score_rows(scorer: Scorer, rows: list[Row], tokens_per_batch: int) -> list[np.ndarray]:
    """Log-probability of each token of each row's response, nats, in the order given."""
    values: dict[int, np.ndarray] = {}
    for batch in tqdm(answer_batches(rows, tokens_per_batch), desc="scoring answers", mininterval=2):
        scored = score_rows(scorer, [rows[index] for index in batch], want_entropy=False)
        values |= {index: logp for index, (logp, _) in zip(batch, scored, strict=True)}
    return [values[index] for index in range(len(rows))]


def _write_pairs(policy: Scorer, view: Any, layout: Layout, method: str, seed: int) -> None:
    """Of the held-out pairs, against the reference table: implicit reward margins, changes of log-probabilities."""
    scored = score_pairs(policy, open_tokens(layout.tokens("test")), view.reference.tokens_per_batch)
    reference = look_up(
        read_parquet(layout.reference("test")), scored["pair_id"].tolist(), str(layout.reference("test"))
    )
    moved = changes(scored, reference)
    margin = moved["chosen_change"] - moved["rejected_change"]
    scored = scored.assign(margin=margin, correct=0.5 + 0.5 * np.sign(margin)).join(moved)
    prompts = read_parquet(layout.pairs("test"))[["pair_id", "prompt_id"]]
    result = prompts.merge(scored.drop(columns=["chosen_tokens", "rejected_tokens"]), on="pair_id")
    write_parquet(layout.scores(method, seed) / "pairs.parquet", result)
