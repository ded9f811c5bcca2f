"""Sampling answers from a policy: every answer by draws of its own, whatever stands beside it in the batch.

The token at place t of an answer is the one at which the cumulated probabilities of the vocabulary pass u_t, where u is
drawn from a generator seeded by the sampling seed, the prompt and the answer's index, and by nothing else. So an answer
is the same alone or in a batch, in any order and any shard, and two policies answer with the same luck.

Up to rounding, that is: products of another shape differ in their last bits, and a token changes where u_t lies that
close to the edge between two. That is rare in float32, not in bfloat16.

Prompts of similar length stand in one batch (`prompt_cache` reads them); a row that has ended leaves it. Nothing is
taken from the model's own generation_config.json, whose repetition penalty or top_k `model.generate` would add.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mallowspo import products
from mallowspo.files import digest
from mallowspo.prompt_cache import Reader
from mallowspo.settings import SamplingSettings

#: Ended rows leave the batch once they are this share of it: leaving copies what attention has kept of the others.
LEAVING_SHARE = 1 / 8


class Answer(NamedTuple):
    """One sampled answer."""

    prompt_index: int
    answer_index: int
    output: str
    complete: bool  # ended by itself with EOS, not cut off at max_new_tokens
    token_ids: list[int]  # as sampled, EOS included

    @property
    def finish_reason(self) -> str:
        """As OpenAI's interface and vLLM call it."""
        return "stop" if self.complete else "length"


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    names: Sequence[str] | None = None,
    what: str | None = "sampling",
) -> list[Answer]:
    """Sample `sampling.answers` answers to each tokenized prompt.

    Weights in bfloat16 are fine here: what was sampled is scored again in float32. The model's linear layers multiply
    by the faster library from then on (`products.use`).

    Args:
        names: what each prompt's draws are seeded by, such as its prompt_id; default: its token ids.
        what: the progress bar's name; None: no bar.

    Returns:
        Answers ordered by prompt, then answer index.
    """
    names = names or [digest(list(prompt)) for prompt in prompts]
    jobs = [(index, answer) for index in range(len(prompts)) for answer in range(sampling.answers)]
    jobs.sort(key=lambda job: len(prompts[job[0]]))
    end = tokenizer.eos_token_id
    products.use(model)
    reader = Reader(model)
    answers = []
    starts = range(0, len(jobs), sampling.batch_size)
    for start in tqdm(starts, desc=what, mininterval=2, disable=what is None):
        part = jobs[start : start + sampling.batch_size]
        draws = np.stack([_draws(sampling, names[index], answer) for index, answer in part])
        rows = _continue(reader, [prompts[index] for index, _ in part], torch.from_numpy(draws), sampling, end)
        for (prompt_index, answer_index), ids in zip(part, rows, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            answers.append(Answer(prompt_index, answer_index, text, ids[-1] == end, ids))
    return sorted(answers, key=lambda answer: (answer.prompt_index, answer.answer_index))


def _draws(sampling: SamplingSettings, name: str, answer_index: int) -> np.ndarray:
    """u of an answer: (max_new_tokens,), uniform on [0, 1); a longer answer begins with those of a shorter one."""
    seed = int(digest([sampling.seed, name, answer_index], 32), 16)
    return np.random.default_rng(seed).random(sampling.max_new_tokens)


@torch.no_grad()
def _continue(
    reader: Reader, prompts: list[Sequence[int]], draws: Tensor, sampling: SamplingSettings, end: int
) -> list[list[int]]:
    """Answers to B prompts by draws (B, max_new_tokens): the sampled tokens, `end` included where it came."""
    logits, mask, cache = reader.read_prompts(prompts)
    positions = mask.sum(dim=1, keepdim=True) - 1  # of the last token read
    draws = draws.to(mask.device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=mask.device)  # which answer each row of the batch writes
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        chosen = _choose(logits, draws[rows, step], sampling)
        for row, token, over in zip(rows.tolist(), chosen.tolist(), ended.tolist(), strict=True):
            if not over:
                answers[row].append(token)
        ended |= chosen == end
        gone = int(ended.sum())
        if gone == len(rows) or step + 1 == sampling.max_new_tokens:
            break
        if gone and gone >= LEAVING_SHARE * len(rows):
            stay = (~ended).nonzero()[:, 0]
            cache.reorder_cache(stay)
            rows, ended, chosen, mask, positions = (v[stay] for v in (rows, ended, chosen, mask, positions))
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions + 1
        logits, cache = reader.read(chosen[:, None], mask, positions, cache)
    return answers


def _choose(logits: Tensor, draws: Tensor, sampling: SamplingSettings) -> Tensor:
    """The next token of each row: (B, V) logits and (B,) draws -> (B,) ids."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    law = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        law = _nucleus(law, sampling.top_p)
    # In float64: a sum over the vocabulary in float32 is off by as much as rare tokens weigh.
    cumulated = law.cumsum(dim=-1, dtype=torch.float64)
    # The first token whose sum lies above the draw, so never one of probability 0.
    found = torch.searchsorted(cumulated, draws[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return found.clamp_max(logits.shape[-1] - 1)


def _nucleus(law: Tensor, top_p: float) -> Tensor:
    """The most likely tokens that together reach `top_p` keep their probability, the others get 0."""
    ordered, order = law.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(law).scatter(-1, order, ordered.masked_fill(before >= top_p, 0))
