"""`mallowspo bench reference`: tokens a second of the reference pass, against a plain padded forward."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mallowspo.bench import ours
from mallowspo.bench.data import Data, describe
from mallowspo.bench.figures import spread
from mallowspo.bench.machine import machine
from mallowspo.bench.options import Options
from mallowspo.bench.training import Measure, sets_of_pairs
from mallowspo.files import read_parquet, write_json
from mallowspo.layout import Layout


def run(options: Options, work: Path, measure: Measure, tell: Callable[[str], None]) -> dict[str, Any]:
    """Both in turn, `repeats` times, on each set.

    Our pass also gives the entropies, and the log-probabilities of the prompts; the plain forward gives the
    log-probabilities of the responses alone.
    """
    sets = {data.name: _run_set(data, options, work / data.name, measure, tell) for data in sets_of_pairs(options)}
    return {
        **{f"speedup_reference_{name}": found["speedup"] for name, found in sets.items()},
        **{f"tokens_per_second_{name}": found["tokens_per_second"]["ours"]["median"] for name, found in sets.items()},
        "max_abs_logp_difference": max(found["max_abs_logp_difference"] for found in sets.values()),
        "options": options.as_json(),
        "machine": machine(options.device, options.threads),
        "sets": sets,
    }


def measurements(options: Options) -> int:
    return (1 if options.file else len(options.sets)) * 2 * options.repeats


def _run_set(data: Data, options: Options, work: Path, measure: Measure, tell: Callable[[str], None]) -> dict[str, Any]:
    ids = work / "ids.json"
    write_json(ids, data.ids)
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    difference = 0.0
    for number in range(1, options.repeats + 1):
        tell(f"{data.name}: round {number}, mallowspo")
        results = work / f"results-{number}"
        ours.prepare(results, data)
        task = ours.task("reference", options, results)
        rounds["ours"].append(measure(task, f"round-{number}-reference", work))
        table = read_parquet(Layout(str(results), ours.EXPERIMENT).reference("train")).set_index("pair_id")
        shutil.rmtree(results)
        tell(f"{data.name}: round {number}, plain forward")
        plain = {"kind": "plain_forward", "ids": str(ids), "batch": options.batch, "dtype": options.dtype}
        found = measure({**plain, **options.where, "model_folder": options.model}, f"round-{number}-plain", work)
        expected = table.loc[data.table["pair_id"], ["chosen_logp", "rejected_logp"]].to_numpy()
        difference = max(difference, float(abs(expected - found.pop("logps")).max()))
        rounds["plain"].append(found)
    rates = {side: spread([data.real_tokens / one["wall_seconds"] for one in found]) for side, found in rounds.items()}
    return {
        "speedup": rates["ours"]["median"] / rates["plain"]["median"],
        "tokens_per_second": rates,
        "peak_memory_gb": {
            side: spread([one["peak_memory_bytes"] / 1e9 for one in found]) for side, found in rounds.items()
        },
        "max_abs_logp_difference": difference,
        "data": describe(data, options.batch),
        "runs": rounds,
    }
