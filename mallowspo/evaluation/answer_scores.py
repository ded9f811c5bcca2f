"""Of each answer of a policy: its reward, signs of degeneration, and its log-ratio to the reference."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mallowspo.evaluation.degeneration import SIGNS, signs
from mallowspo.evaluation.kl import ESTIMATORS
from mallowspo.evaluation.score_parts import Part, key_of, parts_of
from mallowspo.files import content_digest, read_jsonl, read_parquet, write_parquet
from mallowspo.judges.reward import Reward, judge_answers, load_reward, reward_content
from mallowspo.layout import Layout
from mallowspo.models import load_tokenizer
from mallowspo.packing import Row
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.reference import answer_batches, score_rows
from mallowspo.scoring import Scorer


class AnswerScores:
    """The scores of the answers in samples/METHOD/seed=S, and their table.

    Args:
        folders: of the policy and of the reference.
        arithmetic: precision and device.
    """

    def __init__(
        self, view: Any, layout: Layout, method: str, seed: int, folders: list[Path], arithmetic: tuple[str, str]
    ):
        self.view = view
        self.table = layout.scores(method, seed) / "score.parquet"
        self.prompts = layout.prompts
        self.reference_folder = folders[1]
        file, judge = layout.samples(method, seed), view.evaluation.judge
        self.answers = pd.DataFrame(read_jsonl(file))
        asked = [content_digest(file), content_digest(layout.prompts), view.tokens.model_dump(mode="json")]
        rewards = [judge, reward_content(judge), view.evaluation.kl_answers]
        folder = layout.score_parts(method, seed, key_of([asked, rewards], folders, arithmetic))
        each = int(self.answers["prompt_id"].value_counts().max())
        # Answers to one prompt share its forward.
        self.parts = parts_of(len(self.answers), folder, "answers", together=each)

    def log_probabilities(self, scorer: Scorer, rows: Sequence[Row]) -> list[np.ndarray]:
        """Of each token of each row's response, nats, in the order given."""
        budget = self.view.reference.tokens_per_batch
        values: dict[int, np.ndarray] = {}
        for batch in tqdm(answer_batches(rows, budget), desc="scoring answers", mininterval=2):
            scored = score_rows(scorer, [rows[index] for index in batch], want_entropy=False)
            values |= {index: logp for index, (logp, _) in zip(batch, scored, strict=True)}
        return [values[index] for index in range(len(rows))]

    def write(self, part: Part, kl: pd.DataFrame | None) -> None:
        """Write a part.

        Args:
            kl: a row for each answer whose KL is measured; None: the policy is the reference, from which it is 0.
        """
        answers, judge = self._of(part), self.view.evaluation.judge
        texts = (answers["instruction"].tolist(), answers["output"].tolist())
        scores = answers[["prompt_id", "answer_index", "tokens", "complete"]].join(signs(answers))
        scores["reward"] = judge_answers(judge, *texts, self._reward, first=part.start)
        measured = self._measured(part).index
        kl = pd.DataFrame(0.0, measured, ESTIMATORS) if kl is None else kl.set_index(measured)
        write_parquet(part.file, scores.join(kl))

    def assemble(self) -> None:
        """Write the table: prompt_id, answer_index, metric, value and judge."""
        scores = pd.concat([read_parquet(part.file) for part in self.parts], ignore_index=True)
        metrics = ("reward", "tokens", "complete", *SIGNS, *ESTIMATORS)
        write_parquet(self.table, pd.concat([self._long(scores, metric) for metric in metrics], ignore_index=True))

    @cached_property
    def _reward(self) -> Reward:
        return load_reward(self.view.evaluation.judge)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.reference_folder)

    def _of(self, part: Part) -> pd.DataFrame:
        return self.answers.iloc[part.places].reset_index(drop=True)

    def _measured(self, part: Part) -> pd.DataFrame:
        answers = self._of(part)
        measured: pd.DataFrame = answers[answers["answer_index"] < self.view.evaluation.kl_answers]
        return measured

    def rows(self, part: Part) -> list[Row]:
        """Of the part's answers whose KL is measured, with token ids as they were sampled: decoding and tokenizing
        again need not give the same ones."""
        answers = self._measured(part)
        asked = read_parquet(self.prompts).set_index("prompt_id").loc[answers["prompt_id"].unique()]
        prompts = {
            prompt_id: tokenize_prompt(self._tokenizer, row["prompt"], json.loads(row["messages"]), self.view.tokens)[0]
            for prompt_id, row in asked.iterrows()
        }
        return [Row(prompts[row["prompt_id"]], list(row["token_ids"])) for row in answers.to_dict("records")]

    def _long(self, scores: pd.DataFrame, metric: str) -> pd.DataFrame:
        # Answers beyond kl_answers have no estimate of the KL, and no row of it.
        known = scores[scores[metric].notna()] if metric in ESTIMATORS else scores
        judge = self.view.evaluation.judge if metric == "reward" else ""
        rows: pd.DataFrame = known[["prompt_id", "answer_index"]]
        return rows.assign(metric=metric, value=known[metric].astype(float), judge=judge)
