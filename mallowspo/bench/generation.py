"""`mallowspo bench generation`: tokens a second of our sampling, against `model.generate` on the same batches."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from statistics import median
from typing import Any

from mallowspo.bench.figures import spread
from mallowspo.bench.lengths import SETS
from mallowspo.bench.machine import machine
from mallowspo.bench.training import Measure
from mallowspo.errors import InputError
from mallowspo.files import read_json, write_json

SIDES = {"ours": "mallowspo", "generate": "model.generate"}
#: How both sides choose a token.
LAWS = {"sampled": 1.0, "greedy": 0.0}
#: Tokens that are sampled first, untimed: a process's first products wait for its memory.
WARM_UP = 4


@dataclass(frozen=True)
class GenerationOptions:
    """The same for both sides.

    Attributes:
        model: folder of the model, fetched.
        file: of prompts; None: made-up ones with the lengths of `lengths.SETS["multi_turn"]`.
        batch: prompts of one batch; prompts are sorted by length first, so that little is padded.
        dtype: of weights and products, as the stage "generate" has them.
    """

    model: str
    file: Path | None = None
    prompts: int = 32
    batch: int = 16
    max_new_tokens: int = 128
    dtype: str = "float32"
    threads: int = 2
    device: str = "cpu"
    repeats: int = 3
    seed: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"--dtype {self.dtype}: known: float32, bfloat16")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"--device {self.device}: known: cpu, cuda")
        numbers = {"number-of-prompts": self.prompts, "batch": self.batch, "max-new-tokens": self.max_new_tokens}
        for name, number in {**numbers, "threads": self.threads, "repeats": self.repeats}.items():
            if number < 1:
                raise InputError(f"--{name} {number}: must be 1 or more")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": self.file and str(self.file), "model": Path(self.model).name}


def measurements(options: GenerationOptions) -> int:
    return len(LAWS) * len(SIDES) * options.repeats


def run(options: GenerationOptions, work: Path, measure: Measure, tell: Callable[[str], None]) -> dict[str, Any]:
    """Both sides in turn, `repeats` times, sampled and greedy; each round has draws of its own.

    Greedy answers are the same tokens on both sides but for rounding, so there the ratio is of equal work; sampled ones
    are of other lengths on each side, which a rate in tokens takes into account, and is what an evaluation does.
    """
    ids = work / "ids.json"
    prompts = token_ids(options)
    write_json(ids, prompts)
    found: dict[str, Any] = {}
    for law, temperature in LAWS.items():
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(1, options.repeats + 1):
            # Which goes first changes from round to round: what the machine does beside it hits both.
            order = list(SIDES) if number % 2 else list(SIDES)[::-1]
            one = {}
            for side in order:
                tell(f"{law}: round {number}, {SIDES[side]}")
                sampling = {"temperature": temperature, "seed": options.seed + number, "batch_size": options.batch}
                task: dict[str, Any] = {"kind": "generation", "side": side, "ids": str(ids), "dtype": options.dtype}
                task |= {"sampling": {**sampling, "max_new_tokens": options.max_new_tokens}}
                task |= {"model_folder": options.model, "device": options.device, "threads": options.threads}
                one[side] = measure(task, f"{law}-{number}-{side}", work)
            rounds.append(one)
        found[law] = _of_law(rounds)
    return {
        **{f"speedup_generation_{law}": of["speedup"] for law, of in found.items()},
        **{f"tokens_per_second_{law}": of["tokens_per_second"]["ours"]["median"] for law, of in found.items()},
        "options": options.as_json(),
        "machine": machine(options.device, options.threads),
        "prompts": {"number": len(prompts), "tokens": sum(map(len, prompts)), "longest": max(map(len, prompts))},
        "laws": found,
    }


def _of_law(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Rates, and their ratio round by round, whose median is the speedup: the two of a round stood beside each other.

    `equal_answers`: share of the answers that are the same tokens on both sides; the answers themselves are left out.
    """
    rates = {side: [one[side]["tokens"] / one[side]["wall_seconds"] for one in rounds] for side in SIDES}
    by_processor = {side: [one[side]["tokens"] / one[side]["processor_seconds"] for one in rounds] for side in SIDES}
    ratios, processor_ratios = (
        [ours / theirs for ours, theirs in zip(each["ours"], each["generate"], strict=True)]
        for each in (rates, by_processor)
    )
    answers = [[one[side].pop("answers") for side in SIDES] for one in rounds]
    same = [list(starmap(list.__eq__, zip(*both, strict=True))) for both in answers]
    return {
        "speedup": median(ratios),
        "speedup_by_round": ratios,
        "processor_speedup": median(processor_ratios),
        "tokens_per_second": {side: spread(values) for side, values in rates.items()},
        "tokens_per_processor_second": {side: spread(values) for side, values in by_processor.items()},
        "equal_answers": sum(map(sum, same)) / sum(map(len, same)),
        "runs": rounds,
    }


def token_ids(options: GenerationOptions) -> list[list[int]]:
    """The prompts, tokenized."""
    from mallowspo.bench.data import made_up
    from mallowspo.models import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    if options.file:
        return _of_file(options.file, options.prompts, options.seed, tokenizer)
    data = made_up("multi_turn", SETS["multi_turn"], options.prompts, 512, options.seed, tokenizer)
    return [pair.prompt for pair in data.tokens]


def _of_file(file: Path, count: int, seed: int, tokenizer: Any) -> list[list[int]]:
    """A seeded draw of a file's prompts (`instruction` or `prompt`), by the chat template where there is one.

    Raises:
        InputError: the file cannot be read, holds too few prompts, or a row without one.
    """
    from mallowspo.bench.data import token_settings
    from mallowspo.evaluation.outputs import read_rows
    from mallowspo.pairs.formats import UnusableRow, prompt_of
    from mallowspo.pairs.tokens import tokenize_prompt

    rows = read_rows(file, ())
    if len(rows) < count:
        raise InputError(f"{file}: holds {len(rows)} prompts, {count} are wanted; lower --number-of-prompts")
    settings = token_settings("chat" if tokenizer.chat_template else "plain", 1 << 20)
    found = []
    for number in random.Random(seed).sample(range(len(rows)), count):
        try:
            prompt = prompt_of(rows[number].get("instruction", rows[number].get("prompt")), settings.template)
        except UnusableRow as problem:
            raise InputError(f"{file}: row {number}: {problem}; every row needs instruction or prompt") from None
        found.append(tokenize_prompt(tokenizer, *prompt, settings)[0])
    return found


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """One side's answers to all prompts, without the time that loading the model took.

    Args:
        spec: side, model_folder, ids (JSON file of token ids), sampling (settings of it), dtype, device.

    Returns:
        wall_seconds, processor_seconds; tokens (of the answers, the end token counted); answers, token ids.
    """
    import torch

    from mallowspo.bench.clock import Moment
    from mallowspo.models import load_model, load_tokenizer
    from mallowspo.settings import SamplingSettings

    prompts, sampling = read_json(spec["ids"]), SamplingSettings(**spec["sampling"])
    model = load_model(spec["model_folder"], spec["device"], getattr(torch, spec["dtype"]))
    tokenizer = load_tokenizer(spec["model_folder"])
    answer = {"ours": _ours, "generate": _by_generate}[spec["side"]]
    answer(model, tokenizer, prompts, sampling.model_copy(update={"max_new_tokens": WARM_UP}))
    started = Moment.now()
    answers = answer(model, tokenizer, prompts, sampling)
    took = Moment.now().since(started)
    return {**took, "tokens": sum(map(len, answers)), "answers": answers}


def _ours(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Any) -> list[list[int]]:
    from mallowspo.generation import sample_answers

    return [answer.token_ids for answer in sample_answers(model, tokenizer, prompts, sampling, what=None)]


def _by_generate(model: Any, tokenizer: Any, prompts: list[list[int]], sampling: Any) -> list[list[int]]:
    """`model.generate` as one would call it: batches sorted by length, padded on the left, nothing of the model's own
    generation_config.json, which may hold a repetition penalty that ours does not compute either."""
    import torch
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=sampling.temperature > 0, pad_token_id=end, eos_token_id=end
    )
    if config.do_sample:
        config.update(temperature=sampling.temperature, top_p=1.0, top_k=0)
    model.generation_config = GenerationConfig(pad_token_id=end, eos_token_id=end)
    torch.manual_seed(sampling.seed)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), sampling.batch_size):
        part = order[start : start + sampling.batch_size]
        longest = max(len(prompts[index]) for index in part)
        tokens = torch.full((len(part), longest), end, device=model.device)
        mask = torch.zeros_like(tokens)
        for row, index in enumerate(part):
            tokens[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index], device=model.device)
            mask[row, longest - len(prompts[index]) :] = 1
        found = model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        for index, ids in zip(part, found, strict=True):
            answers[index] = ids[: ids.index(end) + 1] if end in ids else ids
    return answers
