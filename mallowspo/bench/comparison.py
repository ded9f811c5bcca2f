"""`mallowspo bench comparison`: a whole comparison of methods and seeds, against as many trainings of TRL.

Ours is what the workflow runs: one reference pass, the dispersion, and every training through the stage "train", as
many side by side as there are threads, one thread each. TRL's are its DPO at its defaults, one after the other with all
threads, once a seed; its time counts for every method, also for those that TRL does not have.
"""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from mallowspo.bench import ours
from mallowspo.bench.data import Data, describe
from mallowspo.bench.machine import machine
from mallowspo.bench.options import Options
from mallowspo.bench.training import Measure, SetBench, sets_of_pairs

METHODS = ("dpo", "ipo", "simpo", "mallows_theta", "mallows_phi", "mallows_ipo")


def run(
    options: Options, methods: tuple[str, ...], work: Path, measure: Measure, tell: Callable[[str], None]
) -> dict[str, Any]:
    """On the first set of pairs.

    Returns:
        speedup_comparison, of all the time from the first process's start to the last one's end; and the same
        without starting processes and loading models, of which a comparison on few pairs has more than its share.
    """
    data = sets_of_pairs(options)[0]
    mine = _ours(data, options, methods, work, measure, tell)
    theirs = _trl(data, options, work, measure, tell)
    trl_seconds = len(methods) * sum(one["process_seconds"] for one in theirs)
    trl_steps = len(methods) * sum(one["wall_seconds"] for one in theirs)
    trainings = mine["trainings"]
    our_steps = mine["reference"]["wall_seconds"] + mine["dispersion"]["wall_seconds"]
    our_steps += sum(one["wall_seconds"] for one in trainings) / min(options.threads, len(trainings))
    return {
        "speedup_comparison": trl_seconds / mine["seconds"],
        "speedup_comparison_without_starting": trl_steps / our_steps,
        "seconds": {"ours": mine["seconds"], "trl": trl_seconds},
        "seconds_without_starting": {"ours": our_steps, "trl": trl_steps},
        "methods": list(methods),
        "seeds": list(options.seeds),
        "trainings": len(trainings),
        "trl_trainings_measured": len(theirs),
        "peak_memory_gb": {
            "one of our trainings": max(one["peak_memory_bytes"] for one in trainings) / 1e9,
            "one of TRL's": max(one["peak_memory_bytes"] for one in theirs) / 1e9,
        },
        "data": describe(data, options.batch),
        "options": options.as_json(),
        "machine": machine(options.device, options.threads),
        "runs": {"ours": mine, "trl": theirs},
    }


def measurements(options: Options, methods: tuple[str, ...]) -> int:
    return 2 + len(options.seeds) * (len(methods) + 1)


def _ours(
    data: Data,
    options: Options,
    methods: tuple[str, ...],
    work: Path,
    measure: Measure,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    results = work / "results"
    ours.prepare(results, data)
    started = perf_counter()
    stages = {}
    for stage in ("reference", "dispersion"):
        tell(f"mallowspo, {stage}")
        stages[stage] = measure(ours.task(stage, options, results, methods=methods), stage, work)

    def train(method: str, seed: int) -> dict[str, Any]:
        tell(f"mallowspo, {method}, seed {seed}")
        task = ours.task("training", options, results, method=method, seed=seed, methods=methods)
        return measure({**task, "threads": 1}, f"training-{method}-{seed}", work)

    with ThreadPoolExecutor(max_workers=options.threads) as pool:
        jobs = [pool.submit(train, method, seed) for seed in options.seeds for method in methods]
        trainings = [job.result() for job in jobs]
    return {**stages, "trainings": trainings, "seconds": perf_counter() - started}


def _trl(
    data: Data, options: Options, work: Path, measure: Measure, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    found = []
    for seed in options.seeds:
        bench = SetBench(data, options, work, measure, tell)
        bench.order = _order(len(data.tokens), options, seed)
        found.append(bench.trl(f"seed-{seed}", "defaults").training)
    return found


def _order(pairs: int, options: Options, seed: int) -> list[list[int]]:
    """Positions of the pairs of each step: a shuffle an epoch."""
    generator = random.Random(seed)
    drawn = [pair for _ in range(options.epochs) for pair in generator.sample(range(pairs), pairs)]
    return [drawn[step * options.batch : (step + 1) * options.batch] for step in range(options.steps)]
