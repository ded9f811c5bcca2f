"""What each stage of an experiment takes: jobs, threads, GPUs, memory and time. docs/plan.md has the formulas."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from mallowspo.layout import REFERENCE
from mallowspo.memory_formula import MEBIBYTE, PROCESS, MemoryPlan
from mallowspo.methods import METHODS, Method
from mallowspo.plan.data import Data, Pairs
from mallowspo.plan.hardware import LAUNCHING, READING, STARTING, Device, processor_precision
from mallowspo.plan.room import (
    BYTES,
    CUDA_CONTEXT,
    adapter_parameters,
    ample,
    processor_memory,
    sampling_memory,
    scoring_memory,
    training_memory,
)
from mallowspo.plan.shapes import Shape
from mallowspo.plan.work import Lengths, Work, answers_read, pair_parts, prompts_read, scoring, training
from mallowspo.policies import Policy
from mallowspo.settings import Experiment, SamplingSettings

#: Memory of a job without a model: pairs and tokens are read and written.
LIGHT = 800 * MEBIBYTE
#: Pairs that become tokens in a second, on one core.
TOKENIZING = 500
#: Answers that are sampled in one piece, at most (`mallowspo.evaluation.answers.ANSWERS_PER_PART`).
TOGETHER = 256
#: Bytes that the optimizer reads and writes of a trained parameter: weight, gradient, two moments; three are written.
MOVED = 28
#: Methods that score a step's pairs twice where they come in several parts, for their loss compares them.
TWICE = ("beta_dpo", "alpha_dpo")


@dataclass(frozen=True)
class Stage:
    """Jobs of one kind. Bytes and seconds are of each of them."""

    name: str
    jobs: int
    threads: int
    gpus: int
    memory: int
    gpu_memory: int
    seconds: float
    operations: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float:
        return self.jobs * self.gpus * self.seconds / 3600

    @property
    def core_hours(self) -> float:
        return self.jobs * self.threads * self.seconds / 3600


@dataclass(frozen=True)
class Case:
    """An experiment on a device."""

    experiment: Experiment
    shape: Shape
    data: Data
    device: Device
    cores: int  # of the machine that auto threads share
    precision: str = field(init=False)

    def __post_init__(self) -> None:
        asked = self.experiment.model.precision
        found = "bfloat16" if self.device.is_gpu else processor_precision()
        object.__setattr__(self, "precision", found if asked == "auto" else asked)

    @property
    def runs(self) -> int:
        return len(self.experiment.runs())

    def threads(self, side_by_side: int) -> int:
        return self.experiment.compute.threads_of(self.cores, side_by_side)

    def lanes(self, threads: int, processes: int = 1) -> int:
        """Devices at work in a job: GPUs, one a process, or cores."""
        return processes if self.device.is_gpu else threads

    def computing(self, work: Work, lanes: int) -> float:
        """Seconds of work on so many devices."""
        rates = self.device.rate(self.precision), self.device.rate("float32")
        return (work.products / rates[0] + work.float32 / rates[1]) / lanes


def stages(case: Case) -> list[Stage]:
    """Every stage that takes time to speak of, in the order of the data."""
    return [
        *_sample(case),
        _tokens(case),
        _reference(case),
        *(_train(case, label) for label in case.experiment.methods),
        _generate(case),
        *_score(case),
        _alpaca(case),
        *_lm_eval(case),
    ]


def _tokens(case: Case) -> Stage:
    pairs = case.data.train.count + case.data.test.count
    return Stage("tokens", 1, 1, 0, LIGHT, 0, STARTING + pairs / TOKENIZING)


def _with_model(case: Case, name: str, jobs: int, threads: int, memory: int, seconds: float, work: Work) -> Stage:
    """A stage that holds a model on one device; `memory` is of the model's job on that device."""
    own = processor_memory(case.shape, case.device, memory)
    on_gpu = CUDA_CONTEXT + memory if case.device.is_gpu else 0
    notes = []
    if on_gpu > case.device.memory > 0:
        notes.append(f"needs {on_gpu / 1e9:.0f} GB of a GPU that has {case.device.memory / 1e9:.0f}")
    return Stage(name, jobs, threads, int(case.device.is_gpu), own, on_gpu, seconds, work.total, tuple(notes))


def _reference(case: Case) -> Stage:
    reference, shape = case.experiment.reference, case.shape
    threads = case.threads(reference.shards)
    work = Work()
    for pairs in (case.data.train, case.data.test):
        work += scoring(pair_parts(shape, pairs.lengths, score_prompt=True)) * pairs.each
    work *= 1 / reference.shards
    memory = _scoring_memory(case, reference.tokens_per_batch)
    seconds = STARTING + 4 * shape.parameters / READING + case.computing(work, case.lanes(threads))
    return _with_model(case, "reference", reference.shards, threads, memory, seconds, work)


def _scoring_memory(case: Case, tokens_per_batch: int) -> int:
    longest = max(case.data.train.longest, case.data.test.longest)
    total = sum(float(pairs.lengths.sum()) * pairs.each for pairs in (case.data.train, case.data.test))
    tokens = max(longest, min(tokens_per_batch, int(total)))
    return scoring_memory(case.shape, case.precision, tokens, case.device.is_gpu)


def _train(case: Case, label: str) -> Stage:
    experiment, shape, pairs = case.experiment, case.shape, case.data.train
    settings, processes = experiment.training, experiment.compute.processes
    row = METHODS[experiment.methods[label].method or label]
    threads = max(processes, case.threads(case.runs))
    room = memory_of_training(case)
    parts = pair_parts(shape, pairs.lengths)
    seen = settings.max_steps * settings.pairs_per_step if settings.max_steps else settings.epochs * pairs.count
    once = training(parts, settings.lora is not None, room.checkpointing)
    several = pairs.largest_batch(1 << 60, settings.pairs_per_step) > settings.tokens_per_batch
    once += scoring(parts) * _extra_forwards(row, several)
    work = once * (pairs.each * seen / pairs.count)
    steps = math.ceil(seen / settings.pairs_per_step)
    seconds = STARTING + 2 * 4 * shape.parameters / READING
    seconds += case.computing(work, case.lanes(threads, processes)) + _beside_products(case, steps)
    own = processor_memory(shape, case.device, room.total, processes)
    gpus = max(experiment.compute.gpus, processes) if case.device.is_gpu else 0
    on_gpu = CUDA_CONTEXT + room.total if gpus else 0
    jobs = len(experiment.seeds)
    return Stage(
        f"train {label}", jobs, threads, gpus, own, on_gpu, seconds, work.total, tuple(_notes(case, room, row.needs))
    )


def memory_of_training(case: Case) -> MemoryPlan:
    """As the training will plan it: within the GPU, or the memory that the job is given."""
    experiment, shape, pairs = case.experiment, case.shape, case.data.train
    if case.device.is_gpu:
        budget = int(case.device.memory) - CUDA_CONTEXT
    else:
        given = experiment.compute.memory_mb
        of_a_process = given * MEBIBYTE // experiment.compute.processes if given else 0
        budget = of_a_process or ample(experiment, shape, pairs, case.precision)
    return training_memory(experiment, shape, pairs, case.precision, budget, case.device.is_gpu)


def _extra_forwards(row: Method, several_parts: bool) -> int:
    """Forwards besides the one with a gradient: of policy and reference for epsilon-DPO, of the policy for `TWICE`."""
    return 2 * ("reference_logits" in row.needs) + (row.adaptive in TWICE and several_parts)


def _beside_products(case: Case, steps: int) -> float:
    """Seconds of the optimizer's steps, of the checkpoints and of the policies that are kept."""
    settings, trained = case.experiment.training, _trained_parameters(case)
    compute = case.experiment.compute
    moving = steps * MOVED * trained / case.device.bandwidth / (compute.processes if compute.sharded else 1)
    checkpoints = (steps - 1) // settings.checkpoint_every
    return moving + (checkpoints * 3 + len(settings.keep)) * 4 * trained / READING


def _trained_parameters(case: Case) -> int:
    lora = case.experiment.training.lora
    return adapter_parameters(case.shape, lora) if lora else case.shape.parameters


def _notes(case: Case, room: MemoryPlan, needs: tuple[str, ...]) -> list[str]:
    """What a person should know of a training."""
    notes = []
    if not room.fits:
        lacking = room.total / (0.9 * room.budget)
        notes.append(f"needs {lacking:.1f} times what a process has: {_remedy(case)}")
    if room.checkpointing:
        notes.append("computes layers again in the backward")
    if "reference_logits" in needs:
        notes.append("the reference policy beside it is not counted in the memory")
    kept = len(case.experiment.training.keep)
    if kept:
        notes.append(f"keeps {kept} policies on its way, each {4 * _trained_parameters(case) / 1e9:.2g} GB on disk")
    compute = case.experiment.compute
    if case.device.is_gpu and compute.gpus > compute.processes:
        notes.append(f"works on {compute.processes} of its {compute.gpus} GPUs: set compute.processes")
    return notes


def _remedy(case: Case) -> str:
    if case.experiment.compute.sharded:
        return "raise compute.processes, or set training.lora"
    return "every process holds all of it; set compute.sharded, or training.lora"


def _sampling(
    case: Case, prompts: Lengths, each: float, sampling: SamplingSettings, threads: int
) -> tuple[float, Work]:
    """Seconds and work of sampling answers to prompts (k,), each of which stands for `each`.

    The slower of two counts: the products, or reading weights, keys and values once a token.
    """
    shape, new = case.shape, sampling.max_new_tokens
    answers = each * len(prompts) * sampling.answers
    together = TOGETHER if sampling.engine == "vllm" else min(sampling.batch_size, TOGETHER)
    passes = math.ceil(answers / together) * new
    seen = float((prompts + new / 2).mean())
    a_token = 2 * (shape.body + shape.head) + 4 * seen * shape.layers * shape.attention_width
    work = prompts_read(shape, prompts) * (each * sampling.answers) + Work(answers * (new - 1) * a_token)
    width = BYTES[case.precision]
    cache = min(together, answers) * seen * shape.layers * 2 * shape.key_value_heads * shape.head_size * width
    reading = passes * (width * (shape.body + shape.head) + cache) / case.device.bandwidth
    waiting = passes * shape.layers * LAUNCHING if case.device.is_gpu and sampling.engine == "transformers" else 0.0
    return max(case.computing(work, case.lanes(threads)), reading) + waiting, work


def _sample(case: Case) -> list[Stage]:
    """Answers behind on-policy pairs: a job for each split; told of the larger, training."""
    on_policy = case.experiment.pairs.on_policy
    if on_policy is None:
        return []
    threads, sampling, pairs = case.threads(2), on_policy.sampling, case.data.train
    seconds, work = _sampling(case, pairs.lengths[:, 0], pairs.each, sampling, threads)
    return [_sampler(case, "sample", 2, threads, pairs, sampling, seconds, work)]


def _sampler(
    case: Case,
    name: str,
    jobs: int,
    threads: int,
    pairs: Pairs,
    sampling: SamplingSettings,
    seconds: float,
    work: Work,
) -> Stage:
    longest = int(pairs.lengths[:, 0].max()) + sampling.max_new_tokens
    together = min(sampling.batch_size, TOGETHER, pairs.count * sampling.answers)
    memory = sampling_memory(case.shape, case.precision, together, longest, case.device.is_gpu)
    start = STARTING + 4 * case.shape.parameters / READING
    return _with_model(case, name, jobs, threads, memory, start + seconds, work)


def _generate(case: Case) -> Stage:
    sampling, pairs, shards = case.experiment.generation, case.data.test, case.experiment.compute.shards
    threads = case.threads(case.runs * shards)
    seconds, work = _sampling(case, pairs.lengths[:, 0], pairs.each / shards, sampling, threads)
    jobs = (case.runs + 1 + len(case.experiment.variants())) * shards
    stage = _sampler(case, "generate", jobs, threads, pairs, sampling, seconds, work)
    merged = 4 * case.shape.parameters + PROCESS  # adapters are merged in float32
    return replace(stage, memory=max(stage.memory, merged)) if case.experiment.training.lora else stage


def _score(case: Case) -> list[Stage]:
    """Log-probabilities of answers under policy and reference; of the compared policies also of the held-out pairs."""
    experiment, shape, pairs, shards = case.experiment, case.shape, case.data.test, case.experiment.compute.shards
    threads = case.threads(case.runs * shards)
    answers = answers_read(shape, pairs.lengths[:, 0], experiment.generation.max_new_tokens)
    of_answers = answers * (2 * experiment.evaluation.kl_answers) * pairs.each
    of_pairs = scoring(pair_parts(shape, pairs.lengths)) * pairs.each
    memory = _scoring_memory(case, experiment.reference.tokens_per_batch)
    start = STARTING + 2 * 4 * shape.parameters / READING
    others = [name for name, _ in experiment.variants() if Policy.parse(name).label != REFERENCE]
    planned = {"score": (case.runs, of_answers + of_pairs), "score answers": (len(others), of_answers)}
    stages = []
    for name, (policies, whole) in planned.items():
        work = whole * (1 / shards)
        seconds = start + case.computing(work, case.lanes(threads))
        stages += [_with_model(case, name, policies * shards, threads, memory, seconds, work)] if policies else []
    return stages


def _alpaca(case: Case) -> Stage:
    judge = case.experiment.evaluation.alpaca.judge
    count = case.data.test.count * case.experiment.generation.answers
    note = f"the judge's time is not counted: {count} comparisons for each opponent" if judge else ""
    return Stage("alpaca", case.runs, 1, 0, LIGHT, 0, STARTING, notes=(note,) if note else ())


def _lm_eval(case: Case) -> list[Stage]:
    settings = case.experiment.evaluation.lm_eval
    if settings is None:
        return []
    memory = _scoring_memory(case, 2048)
    start = STARTING + 4 * case.shape.parameters / READING
    shards = min(case.experiment.compute.shards, len(settings.tasks))
    threads = case.threads(case.runs * shards)
    stage = _with_model(case, "lm-eval", (case.runs + 1) * shards, threads, memory, start, Work())
    note = "only its start is counted: how many items a task has is known to lm-eval alone"
    return [Stage(**{**vars(stage), "notes": (*stage.notes, note)})]


def mean_lengths(lengths: Lengths) -> tuple[float, float, float]:
    """Mean tokens of prompt, chosen and rejected."""
    prompt, chosen, rejected = np.mean(lengths, axis=0).tolist()
    return prompt, chosen, rejected
