"""`mallowspo bench training`: this package against TRL, on the same pairs, model, precision and threads.

For each set of pairs: both sides once with their operations counted; TRL's best setting looked for with few pairs; then
ours, TRL's defaults and TRL's best in turn, `repeats` times. Every measurement is a process of its own.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mallowspo.bench import ours
from mallowspo.bench.data import Data, describe, from_file, made_up
from mallowspo.bench.figures import Side, figures_of_set, headline
from mallowspo.bench.lengths import SETS
from mallowspo.bench.machine import machine
from mallowspo.bench.options import Options
from mallowspo.bench.with_trl import CANDIDATES
from mallowspo.errors import InputError
from mallowspo.files import write_json

#: (task, name, folder) -> result; `processes.run` but for tests.
Measure = Callable[[dict[str, Any], str, Path], dict[str, Any]]

#: Steps of each trial when TRL's best setting is looked for.
TRIAL_STEPS = 2
#: Side of the matrices whose product is the machine's peak.
MATMUL_SIZE = 2048


def run(options: Options, work: Path, measure: Measure, tell: Callable[[str], None]) -> dict[str, Any]:
    """All sets; the keys are described in docs/benchmarks.md.

    Args:
        work: folder for files of the measurements.
        tell: hears what is measured next.
    """
    tell("the machine's matrix products")
    spec = {"kind": "matmul", "size": MATMUL_SIZE, "dtype": options.dtype, **options.where}
    peak = measure(spec, "matmul", work)["gflops"]
    sets = {data.name: _run_set(data, options, work / data.name, measure, tell) for data in sets_of_pairs(options)}
    figures = {name: figures_of_set(found, peak) for name, found in sets.items()}
    return {
        **headline(figures),
        "matmul_peak_gflops": {options.dtype: peak},
        "options": options.as_json(),
        "machine": machine(options.device, options.threads),
        "sets": figures,
        "runs": sets,
    }


def measurements(options: Options) -> int:
    """How many measurements `run` tells of."""
    number_of_sets = 1 if options.file else len(options.sets)
    trials = 0 if options.trl_best else len(CANDIDATES)
    return 1 + number_of_sets * (3 + trials + 3 * options.repeats)


def sets_of_pairs(options: Options) -> list[Data]:
    """The pairs of each set, or those of the file."""
    from mallowspo.models import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    size, seed = (options.number_of_pairs, options.max_length), options.seeds[0]
    if options.file:
        return [from_file(options.file, *size, options.template, seed, tokenizer)]
    return [made_up(name, SETS[name], *size, seed, tokenizer) for name in options.sets]


def _run_set(data: Data, options: Options, work: Path, measure: Measure, tell: Callable[[str], None]) -> dict[str, Any]:
    bench = SetBench(data, options, work, measure, tell)
    counted = {"ours": bench.ours("counted", count=True)}
    bench.order = counted["ours"].training["pairs"]
    _check_order(bench.order, options.batch)
    counted["trl"] = bench.trl("counted", "defaults", count=True)
    trials = {} if options.trl_best else bench.trials()
    timed = {name: trial["seconds"] for name, trial in trials.items() if "seconds" in trial}
    best = options.trl_best or min(timed, key=lambda name: timed[name])
    counted["trl_best"] = bench.trl("counted-best", best, count=True)
    rounds = []
    for number in range(1, options.repeats + 1):
        sides = {
            "ours": bench.ours(f"round-{number}"),
            "trl": bench.trl(f"round-{number}", "defaults"),
            "trl_best": bench.trl(f"round-{number}-best", best),
        }
        rounds.append({name: side.as_json() for name, side in sides.items()})
    return {
        "data": describe(data, options.batch),
        "order": bench.order,
        "best": best,
        "trials": trials,
        "counted": {name: side.as_json() for name, side in counted.items()},
        "rounds": rounds,
    }


def count_training_flops(
    data: Data, options: Options, work: Path, measure: Measure, candidate: str = "defaults"
) -> dict[str, Side]:
    """Both sides' operations over all pairs, TRL under one of `CANDIDATES`: no clock, so no noise.

    Returns:
        ours and trl; `Side.operations` holds the reference pass, training["operations"] alone does not hold ours.
    """
    bench = SetBench(data, options, work, measure, lambda what: None)
    mine = bench.ours("counted", count=True)
    bench.order = mine.training["pairs"]
    return {"ours": mine, "trl": bench.trl("counted", candidate, count=True)}


def _check_order(order: list[list[int]], batch: int) -> None:
    wrong = next((step for step in order if len(step) != batch), None)
    if wrong is not None:
        raise InputError(f"bench: a step had {len(wrong)} pairs in place of {batch}; the sides cannot be compared")


class SetBench:
    """Measures both sides on one set of pairs.

    Attributes:
        order: positions of the pairs that each step takes, as our training drew them; TRL is given the same.
    """

    def __init__(self, data: Data, options: Options, work: Path, measure: Measure, tell: Callable[[str], None]) -> None:
        self.data, self.options, self.work, self.measure, self.tell = data, options, work, measure, tell
        self.order: list[list[int]] = []
        write_json(self._ids, data.ids)

    @property
    def _ids(self) -> Path:
        return self.work / "ids.json"

    def ours(self, name: str, count: bool = False) -> Side:
        """The stages "reference" and "train", each a process of its own, in a results folder of their own."""
        self.tell(f"{self.data.name}: {name}, mallowspo")
        results = self.work / f"results-{name}"
        ours.prepare(results, self.data)
        tasks = [ours.task(kind, self.options, results, count=count) for kind in ("reference", "training")]
        reference, training = (self.measure(task, f"{name}-{task['kind']}", self.work) for task in tasks)
        shutil.rmtree(results)
        return Side(reference, training, self.options.batch)

    def trl(self, name: str, candidate: str, count: bool = False, steps: int | None = None) -> Side:
        """DPOTrainer under one of `CANDIDATES`, for all steps or the first few.

        Raises:
            InputError: its tokens are not ours, or it refuses the candidate.
        """
        self.tell(f"{self.data.name}: {name}, TRL, {candidate}")
        order = self.order[:steps]
        spec = {
            "kind": "trl",
            "model_folder": self.options.model,
            "ids": str(self._ids),
            "order": order,
            "batch": self.options.batch,
            "learning_rate": self.options.learning_rate,
            "beta": ours.BETA,
            "dtype": self.options.dtype,
            "lora": self.options.lora,
            "seed": self.options.seeds[0],
            "candidate": candidate,
            "count": count,
            "scratch": str(self.work / "trl"),
            **self.options.where,
        }
        found = self.measure(spec, f"{name}-trl", self.work)
        if "refused" in found:
            raise InputError(found["refused"])
        expected = self._real_tokens(order)
        if found["real_tokens"] != expected:
            raise InputError(f"bench: TRL trained on {found['real_tokens']} tokens where ours are {expected}")
        return Side(None, found, self.options.batch)

    def _real_tokens(self, order: list[list[int]]) -> int:
        pairs = [self.data.tokens[pair] for step in order for pair in step]
        return sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)

    def trials(self) -> dict[str, dict[str, Any]]:
        """Seconds that the whole training would take, by each candidate's first steps; or why it does not run."""
        found: dict[str, dict[str, Any]] = {}
        for number, candidate in enumerate(CANDIDATES):
            try:
                side = self.trl(f"trial-{number}", candidate, steps=TRIAL_STEPS)
            except InputError as problem:
                found[candidate] = {"refused": str(problem)}
            else:
                found[candidate] = {"seconds": side.expected(len(self.order)), "pairs": side.pairs}
        return found
