"""What the commands print at their end."""

from typing import Any

from rich.table import Table

from mallowspo.bench.figures import SIDES


def training_table(found: dict[str, Any]) -> list[Table]:
    """One table a set: a row a side, medians with least and most of the rounds."""
    options = found["options"]
    peak = found["matmul_peak_gflops"][options["dtype"]]
    return [_set_table(name, figures, options, peak) for name, figures in found["sets"].items()]


def _set_table(name: str, figures: dict[str, Any], options: dict[str, Any], peak: float) -> Table:
    table = Table(
        title=f"{name}: {figures['data']['pairs']} pairs, {figures['data']['real_tokens']} tokens "
        f"({figures['data']['padded_tokens']} padded), batch {options['batch']}, {options['dtype']}, "
        f"{options['threads']} threads",
        caption=f"TRL, best: {figures['best']}. Times with the reference pass. "
        f"Largest difference of a step's loss: {figures['max_abs_loss_difference']:.1e}. "
        f"Peak of matrix products: {peak:.0f} GFLOP/s.",
    )
    for column in ("", "seconds a pair", "processor", "GB", "GFLOP", "of peak", "slower by", "without pass"):
        table.add_column(column, justify="right" if column else "left")
    for side, title in SIDES.items():
        values = figures["sides"][side]
        table.add_row(
            title,
            _spread(values["seconds_per_pair"]),
            f"{values['processor_seconds_per_pair']['median']:.3g}",
            f"{values['peak_memory_gb']['median']:.3g}",
            f"{values['flops_per_pair'] / 1e9:.3g}",
            f"{values['fraction_of_peak']:.0%}",
            *_speedups(figures, side),
        )
    return table


def _speedups(figures: dict[str, Any], side: str) -> tuple[str, ...]:
    """How many times slower than ours; all told, and with the reference pass left out of both where it is apart."""
    if side == "ours":
        return ("", "")
    name = "_best" if side == "trl_best" else ""
    return tuple(f"{figures[f'speedup{name}{without}']:.2f}" for without in ("", "_without_reference"))


def _spread(values: dict[str, float]) -> str:
    """Median, and least to most of the rounds."""
    if values["min"] == values["max"]:
        return f"{values['median']:.3g}"
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"
