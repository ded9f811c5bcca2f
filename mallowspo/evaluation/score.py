"""Stage "score": what a policy's answers and the held-out pairs are worth (`answer_scores`, `pair_scores`).

Both are scored in parts, each written whole: a killed stage goes on behind its last part, and several processes share
one (`--shard`). Parts may be deleted once the tables are there.
"""

from pathlib import Path
from typing import Any

from mallowspo.evaluation.answer_scores import AnswerScores
from mallowspo.evaluation.kl import kl_columns
from mallowspo.evaluation.pair_scores import PairScores
from mallowspo.layout import REFERENCE, Layout
from mallowspo.models import load_model, resolve_device, resolve_precision
from mallowspo.policies import Policy
from mallowspo.scoring import Scorer
from mallowspo.shard import Shard, missing_of

#: For the log.
WHAT = "parts of the scores"


def run(
    view: Any,
    layout: Layout,
    model_folder: Path,
    policy_folder: Path,
    method: str,
    seed: int,
    device: str,
    shard: Shard | None = None,
) -> None:
    """Write score.parquet, and pairs.parquet for a trained policy as it is compared.

    Args:
        method: as in `mallowspo.policies`.
        shard: score this share of the parts that are missing, and leave putting them together to a call without.
    """
    arithmetic = _arithmetic(view, device)
    name = Policy.parse(method)
    answers = AnswerScores(view, layout, method, seed, [policy_folder, model_folder], arithmetic)
    has_pairs = name.is_compared and name.label != REFERENCE
    pairs = PairScores(view, layout, method, seed, policy_folder, arithmetic) if has_pairs else None
    parts = [*answers.parts, *(pairs.parts if pairs else [])]
    _, missing = missing_of(parts, shard, lambda part: part.is_there, WHAT)
    left = [part for part in answers.parts if part in missing]
    if name.label == REFERENCE:
        for part in left:
            answers.write(part, None)
    elif missing:
        policy = _open(policy_folder, arithmetic)
        if pairs:
            pairs.write(policy, missing)
        rows = [answers.rows(part) for part in left]
        of_policy = [answers.log_probabilities(policy, each) for each in rows]
        del policy  # one model in memory at a time
        if left:
            reference = _open(model_folder, arithmetic)
            for part, each, ours in zip(left, rows, of_policy, strict=True):
                answers.write(part, kl_columns(ours, answers.log_probabilities(reference, each)))
    if shard:
        return
    answers.assemble()
    if pairs:
        pairs.assemble()


def run_pairs(
    view: Any, layout: Layout, policy_folder: Path, method: str, seed: int, device: str, shard: Shard | None = None
) -> None:
    """Write pairs.parquet of a further set of pairs alone; `layout` is the set's."""
    arithmetic = _arithmetic(view, device)
    pairs = PairScores(view, layout, method, seed, policy_folder, arithmetic)
    _, missing = missing_of(pairs.parts, shard, lambda part: part.is_there, WHAT)
    if missing:
        pairs.write(_open(policy_folder, arithmetic), missing)
    if not shard:
        pairs.assemble()


def _arithmetic(view: Any, device: str) -> tuple[str, str]:
    """Precision and device."""
    device = resolve_device(device)
    return resolve_precision(view.model.precision, device), device


def _open(folder: Path, arithmetic: tuple[str, str]) -> Scorer:
    precision, device = arithmetic
    return Scorer(load_model(folder, device), precision)
