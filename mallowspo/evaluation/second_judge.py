"""Stage "second-score": rewards of the answers by another judge than the pairs'.

Policies that are trained on pairs which a judge chose learn to please that judge, and may get better by no other
standard (over-optimisation: Gao, Schulman and Hilton 2023). So the same answers are scored once more.
"""

from typing import Any

import pandas as pd

from mallowspo.files import read_jsonl, write_parquet
from mallowspo.judges.reward import judge_answers
from mallowspo.layout import Layout
from mallowspo.metric_names import SECOND_REWARD


def run(view: Any, layout: Layout, method: str, seed: int) -> None:
    """Write second.parquet beside score.parquet, in its form: a row an answer.

    Args:
        view: .evaluation.second_judge, the name of a reward.
        method: as in `mallowspo.policies`.

    Raises:
        InputError: there are no answers, or the judge cannot score one of them.
    """
    judge = view.evaluation.second_judge
    answers = pd.DataFrame(read_jsonl(layout.samples(method, seed)))
    values = judge_answers(judge, answers["instruction"].tolist(), answers["output"].tolist())
    table = answers[["prompt_id", "answer_index"]].assign(metric=SECOND_REWARD, value=values, judge=judge)
    write_parquet(layout.scores(method, seed) / "second.parquet", table)
