"""Sampling answers with vLLM, an extra for GPUs: the same call as `mallowspo.generation.sample_answers`.

Every answer has a seed of its own here, too, but vLLM draws in its own way: with one engine the answers are others than
with the other, so policies are compared within one. Only tried with a stand-in of vLLM: no GPU was at hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import digest
from mallowspo.generation import Answer
from mallowspo.kept import whole_folder
from mallowspo.settings import SamplingSettings


def open_policy(folder: Path, device: str, precision: str) -> Any:
    """vLLM's model of a local folder.

    Raises:
        InputError: there is no GPU, or vLLM is not installed.
    """
    if device != "cuda":
        raise InputError("generation.engine: 'vllm' needs a GPU and torch sees none; set it to transformers")
    vllm = _vllm()
    # "vllm": no sampling settings and no further end tokens from the model's generation_config.json.
    with whole_folder(folder) as whole:
        return vllm.LLM(model=str(whole), dtype=precision, generation_config="vllm")


def sample_answers(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    names: Sequence[str],
    what: str | None = "sampling",
) -> list[Answer]:
    """As `mallowspo.generation.sample_answers`; vLLM makes its batches itself."""
    jobs = [(index, answer) for index in range(len(prompts)) for answer in range(sampling.answers)]
    end = tokenizer.eos_token_id
    parameters = [
        _vllm().SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=int(digest([sampling.seed, names[index], answer], 15), 16),
            stop_token_ids=[end],
        )
        for index, answer in jobs
    ]
    requests = [{"prompt_token_ids": list(prompts[index])} for index, _ in jobs]
    answers = []
    outputs = policy.generate(requests, parameters, use_tqdm=what is not None)
    for (prompt_index, answer_index), output in zip(jobs, outputs, strict=True):
        (found,) = output.outputs
        complete = found.finish_reason == "stop"
        ids = list(found.token_ids)
        if complete and ids[-1:] != [end]:
            ids.append(end)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        answers.append(Answer(prompt_index, answer_index, text, complete, ids))
    return answers


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            f"generation.engine: vLLM cannot be imported ({error}); pip install 'mallowspo[vllm]', or set it to "
            "transformers"
        ) from None
    return vllm
