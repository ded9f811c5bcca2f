"""From measurements to figures: medians over the rounds, ratios between the sides, and the table that is shown."""

from dataclasses import dataclass
from statistics import median
from typing import Any

SIDES = {"ours": "mallowspo", "trl": "TRL, defaults", "trl_best": "TRL, best"}


@dataclass(frozen=True)
class Side:
    """One training by one side.

    Attributes:
        reference: what the process of our reference pass found; None for TRL, whose pass is in its training's process.
        training: what the training's process found.
        batch: pairs of a step.
    """

    reference: dict[str, Any] | None
    training: dict[str, Any]
    batch: int

    @property
    def pairs(self) -> int:
        return self.batch * len(self.training["pairs"])

    @property
    def wall(self) -> float:
        """Seconds of the steps and of the reference pass."""
        return float(self.training["wall_seconds"] + self._of_reference("wall_seconds"))

    @property
    def processor(self) -> float:
        return float(self.training["processor_seconds"] + self._of_reference("processor_seconds"))

    @property
    def operations(self) -> int:
        return int(self.training["operations"] + self._of_reference("operations"))

    @property
    def peak_memory(self) -> int:
        """Bytes, of the larger of its processes."""
        found = [self.training["peak_memory_bytes"]]
        return int(max(found + ([self.reference["peak_memory_bytes"]] if self.reference else [])))

    @property
    def last_pass(self) -> float:
        """Seconds that the steps would take if each pass over the pairs took as long as the last: what longer trainings
        tend to, once a process's memory is there. Reference passes made beforehand are left out."""
        steps = self.training["step_seconds"]
        of_a_pass = max(1, len({pair for step in self.training["pairs"] for pair in step}) // self.batch)
        return float(sum(steps[-of_a_pass:]) * len(steps) / of_a_pass)

    def expected(self, steps: int) -> float:
        """Seconds of a training of so many steps, as long each as the measured ones are on average. A reference pass
        made beforehand is one of all pairs, however few steps were measured: it counts once."""
        each = self.training["wall_seconds"] / len(self.training["pairs"])
        return float(each * steps + self._of_reference("wall_seconds"))

    def _of_reference(self, name: str) -> float:
        found: float = self.reference[name] if self.reference else self.training[f"reference_{name}"]
        return found

    def as_json(self) -> dict[str, Any]:
        return {"reference": self.reference, "training": self.training, "pairs": self.pairs}


#: What is compared: the figure of a `Side`, and whether the reference pass is left out of it.
RATES = {
    "seconds": lambda side: side.wall,
    "seconds_without_reference": lambda side: float(side.training["wall_seconds"]),
    "seconds_of_last_pass": lambda side: side.last_pass,
    "processor_seconds": lambda side: side.processor,
    "processor_seconds_without_reference": lambda side: float(side.training["processor_seconds"]),
}


def _side(found: dict[str, Any]) -> Side:
    pairs, steps = found["pairs"], len(found["training"]["pairs"])
    return Side(found["reference"], found["training"], pairs // steps)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def figures_of_set(found: dict[str, Any], peak_gflops: float) -> dict[str, Any]:
    """Figures of each side, a pair, and ratios of medians; TRL's live reference cannot be left out of its times.

    Args:
        found: what `training._run_set` returns.
        peak_gflops: best rate of this machine's matrix products.
    """
    rounds = {name: [_side(one[name]) for one in found["rounds"]] for name in SIDES}
    counted = {name: _side(found["counted"][name]) for name in SIDES}
    sides = {name: _figures_of_side(rounds[name], counted[name], peak_gflops) for name in SIDES}
    return {
        "best": found["best"],
        "sides": sides,
        **_ratios(sides, "trl", ""),
        **_ratios(sides, "trl_best", "_best"),
        "max_abs_loss_difference": max(_loss_difference(one) for one in found["rounds"]),
        "data": found["data"],
    }


def _figures_of_side(rounds: list[Side], counted: Side, peak_gflops: float) -> dict[str, Any]:
    pairs = counted.pairs
    figures: dict[str, Any] = {
        f"{name}_per_pair": spread([rate(side) / pairs for side in rounds]) for name, rate in RATES.items()
    }
    seconds, last = (figures[f"{name}_per_pair"]["median"] for name in ("seconds", "seconds_of_last_pass"))
    return {
        **figures,
        "peak_memory_gb": spread([side.peak_memory / 1e9 for side in rounds]),
        "flops_per_pair": counted.operations / pairs,
        "flops_per_pair_without_reference": counted.training["operations"] / pairs,
        "fraction_of_peak": counted.operations / pairs / seconds / peak_gflops / 1e9,
        "fraction_of_peak_last_pass": counted.training["operations"] / pairs / last / peak_gflops / 1e9,
    }


def _ratios(sides: dict[str, Any], other: str, name: str) -> dict[str, float]:
    """TRL's times over ours; our memory and operations over TRL's."""
    ours, theirs = sides["ours"], sides[other]

    def times(key: str) -> float:
        return float(theirs[f"{key}_per_pair"]["median"] / ours[f"{key}_per_pair"]["median"])

    return {
        f"speedup{name}": times("seconds"),
        f"speedup{name}_without_reference": times("seconds_without_reference"),
        f"speedup{name}_last_pass": times("seconds_of_last_pass"),
        f"processor_speedup{name}": times("processor_seconds"),
        f"processor_speedup{name}_without_reference": times("processor_seconds_without_reference"),
        f"memory_ratio{name}": ours["peak_memory_gb"]["median"] / theirs["peak_memory_gb"]["median"],
        f"flops_ratio{name}": ours["flops_per_pair"] / theirs["flops_per_pair"],
        f"flops_ratio{name}_without_reference": ours["flops_per_pair_without_reference"]
        / theirs["flops_per_pair_without_reference"],
    }


def _loss_difference(sides: dict[str, Any]) -> float:
    """Largest difference of a step's loss between ours and either of TRL's."""
    losses: dict[str, list[float]] = {name: sides[name]["training"]["losses"] for name in SIDES}
    return max(
        abs(mine - theirs)
        for other in ("trl", "trl_best")
        for mine, theirs in zip(losses["ours"], losses[other], strict=True)
    )


def headline(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures of all sets under keys of their own: speedup_multi_turn, speedup_best_multi_turn, and so on."""
    found: dict[str, Any] = {}
    for set_name, values in figures.items():
        for key, value in values.items():
            if isinstance(value, float) and key != "max_abs_loss_difference":
                suffix = next((end for end in ("_without_reference", "_last_pass") if key.endswith(end)), "")
                base = key.removesuffix(suffix)
                found[f"{base}_{set_name}{suffix}"] = value
        for key in ("flops_per_pair", "fraction_of_peak", "fraction_of_peak_last_pass"):
            found[f"{key}_{set_name}"] = {name: side[key] for name, side in values["sides"].items()}
    found["max_abs_loss_difference"] = max(values["max_abs_loss_difference"] for values in figures.values())
    return found
