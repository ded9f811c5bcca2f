"""Sampling answers from a policy: every answer by draws of its own, whatever stands beside it in the batch.

The token at place t of an answer is the one at which the cumulated probabilities of the vocabulary pass u_t, where u is
drawn from a generator seeded by the sampling seed, the prompt and the answer's index, and by nothing else. So an answer
is the same alone or in a batch, in any order and any shard, and two policies answer with the same luck.

Up to rounding, that is: products of another shape differ in their last bits, and a token changes where u_t lies that
close to the edge between two. That is rare in float32, not in bfloat16.

Batches are padded on the left, prompts of similar length together; a row that has ended leaves the batch. Nothing is
taken from the model's own generation_config.json, whose repetition penalty or top_k `model.generate` would add.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mallowspo.errors import InputError
from mallowspo.files import digest
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

    Weights in bfloat16 are fine here: what was sampled is scored again in float32.

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
    answers = []
    starts = range(0, len(jobs), sampling.batch_size)
    for start in tqdm(starts, desc=what, mininterval=2, disable=what is None):
        part = jobs[start : start + sampling.batch_size]
        draws = np.stack([_draws(sampling, names[index], answer) for index, answer in part])
        rows = _continue(model, [prompts[index] for index, _ in part], torch.from_numpy(draws), sampling, end)
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
    model: Any, prompts: list[Sequence[int]], draws: Tensor, sampling: SamplingSettings, end: int
) -> list[list[int]]:
    """Answers to B prompts by draws (B, max_new_tokens): the sampled tokens, `end` included where it came."""
    tokens, mask = (values.to(model.device) for values in _padded_left(prompts))
    draws = draws.to(model.device)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    # Models without learned or rotary positions take no position_ids; a few take no logits_to_keep.
    bare = getattr(model, "get_base_model", lambda: model)  # what PEFT wraps
    known = inspect.signature(bare().forward).parameters
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=model.device)  # which answer each row of the batch writes
    ended = torch.zeros_like(rows, dtype=torch.bool)
    cache = None
    for step in range(sampling.max_new_tokens):
        given = {**inputs, "past_key_values": cache, "logits_to_keep": 1}
        output = model(**{name: value for name, value in given.items() if name in known}, use_cache=True)
        cache = _cache_of(output)
        chosen = _choose(output.logits[:, -1], draws[rows, step], sampling)
        for row, token, over in zip(rows.tolist(), chosen.tolist(), ended.tolist(), strict=True):
            if not over:
                answers[row].append(token)
        ended |= chosen == end
        gone = int(ended.sum())
        if gone == len(rows):
            break
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        if gone and gone >= LEAVING_SHARE * len(rows):
            stay = (~ended).nonzero()[:, 0]
            cache.reorder_cache(stay)
            rows, ended, chosen, mask, positions = (v[stay] for v in (rows, ended, chosen, mask, positions))
        inputs = {
            "input_ids": chosen[:, None],
            "attention_mask": torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1),
            "position_ids": positions[:, -1:] + 1,
        }
    return answers


def _cache_of(output: Any) -> Any:
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise InputError("the model keeps no key-value cache (past_key_values), so no answers can be sampled from it")
    return cache


def _padded_left(prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, longest). The mask says what is padding, so any id does."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask


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
