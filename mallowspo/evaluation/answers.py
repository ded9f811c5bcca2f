"""Stage "generate": a policy's answers to the test prompts, in AlpacaEval's own format.

Answers are sampled in parts of about `ANSWERS_PER_PART`, prompts of similar length together. Each part is written whole
to samples/METHOD/seed=S/parts/KEY, where KEY is a digest of all that its answers depend on: a killed stage goes on
behind its last part, and several processes share one (`--shard`). Parts may be deleted once answers.jsonl is there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mallowspo import generation, vllm_generation
from mallowspo.files import digest, read_jsonl, read_parquet, write_jsonl
from mallowspo.generation import Answer
from mallowspo.kept import policy_content
from mallowspo.layout import Layout
from mallowspo.models import load_model, load_tokenizer, resolve_device, resolve_precision
from mallowspo.pairs.tokens import tokenize_prompt
from mallowspo.provenance import code_digest
from mallowspo.shard import Shard, missing_of

ANSWERS_PER_PART = 256


@dataclass(frozen=True)
class Prompt:
    """One test prompt."""

    prompt_id: str
    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class Part:
    """Some prompts, and where their answers stand or will stand."""

    prompts: list[Prompt]
    file: Path


def run(
    view: Any, layout: Layout, model_folder: Path, method: str, seed: int, device: str, shard: Shard | None = None
) -> None:
    """Sample the answers that are missing, of all or of a shard; without a shard, put them together.

    Every policy draws with the same sampling seed.
    """
    device = resolve_device(device)
    precision = resolve_precision(view.model.precision, device)
    tokenizer = load_tokenizer(model_folder)
    prompts = _prompts(view, layout, tokenizer)
    key = _key(view, prompts, model_folder, precision, device)
    parts = _parts(prompts, view.generation.answers, layout.answer_parts(method, seed, key))
    _, missing = missing_of(parts, shard, lambda part: part.file.exists(), "parts of the answers")
    if missing:
        sample = _sampler(view, model_folder, device, precision)
        for part in tqdm(missing, desc=f"sampling parts of {ANSWERS_PER_PART} answers", mininterval=2):
            ids, names = ([getattr(p, name) for p in part.prompts] for name in ("token_ids", "prompt_id"))
            answers = sample(tokenizer, ids, view.generation, names, what=None)
            write_jsonl(part.file, [_row(part.prompts[answer.prompt_index], answer, method) for answer in answers])
    if not shard:
        rows = [row for part in parts for row in read_jsonl(part.file)]
        places = {prompt.prompt_id: place for place, prompt in enumerate(prompts)}
        rows.sort(key=lambda row: (places[row["prompt_id"]], row["answer_index"]))
        write_jsonl(layout.samples(method, seed), rows)


def _prompts(view: Any, layout: Layout, tokenizer: Any) -> list[Prompt]:
    rows = read_parquet(layout.prompts).to_dict("records")
    return [
        Prompt(
            row["prompt_id"],
            row["prompt"],
            tokenize_prompt(tokenizer, row["prompt"], json.loads(row["messages"]), view.tokens)[0],
        )
        for row in rows
    ]


def _key(view: Any, prompts: list[Prompt], model_folder: Path, precision: str, device: str) -> str:
    """Of all that the answers depend on: the policy's content, the prompts, the settings, the arithmetic, the code.

    Not of the batch size: in float32 it changes nothing, in bfloat16 it rounds otherwise, as another processor would.
    """
    asked = [[prompt.prompt_id, prompt.token_ids] for prompt in prompts]
    settings = view.generation.model_dump(exclude={"batch_size"})
    arithmetic = [precision, device, code_digest("generate")]
    return digest([policy_content(model_folder), asked, settings, arithmetic, ANSWERS_PER_PART], 24)


def _parts(prompts: list[Prompt], answers: int, folder: Path) -> list[Part]:
    in_order = sorted(prompts, key=lambda prompt: (len(prompt.token_ids), prompt.prompt_id))
    size = max(1, ANSWERS_PER_PART // answers)
    starts = range(0, len(in_order), size)
    return [
        Part(in_order[start : start + size], folder / f"part-{number:05d}.jsonl") for number, start in enumerate(starts)
    ]


def _sampler(view: Any, model_folder: Path, device: str, precision: str) -> Callable[..., list[Answer]]:
    if view.generation.engine == "vllm":
        return partial(vllm_generation.sample_answers, vllm_generation.open_policy(model_folder, device, precision))
    return partial(generation.sample_answers, load_model(model_folder, device, getattr(torch, precision)))


def _row(prompt: Prompt, answer: Answer, method: str) -> dict[str, Any]:
    return {
        "instruction": prompt.text,
        "output": answer.output,
        "generator": method,
        "prompt_id": prompt.prompt_id,
        "answer_index": answer.answer_index,
        "complete": answer.complete,
        "finish_reason": answer.finish_reason,
        "tokens": len(answer.token_ids),
        "token_ids": answer.token_ids,
    }
