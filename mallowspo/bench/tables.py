"""What the commands print at their end."""

from typing import Any

from rich.table import Table

from mallowspo.bench.figures import SIDES

#: The speedups of a row, as the keys of the figures end.
KINDS = ("", "_without_reference", "_last_pass")


def training_tables(found: dict[str, Any]) -> list[Table]:
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
    columns = ("seconds a pair", "processor", "GB", "GFLOP", "of peak", "slower by", "without pass", "last pass")
    for column in ("", *columns):
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
    """How many times slower than ours: all told, with the reference pass left out of both where it is apart, and over
    the last pass alone."""
    if side == "ours":
        return ("", "", "")
    name = "_best" if side == "trl_best" else ""
    return tuple(f"{figures[f'speedup{name}{without}']:.2f}" for without in KINDS)


def _spread(values: dict[str, float]) -> str:
    """Median, and least to most of the rounds."""
    if values["min"] == values["max"]:
        return f"{values['median']:.3g}"
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"


def comparison_tables(found: dict[str, Any]) -> list[Table]:
    """One table: seconds of all trainings, with and without starting processes and loading models."""
    table = Table(
        title=f"{len(found['methods'])} methods x {len(found['seeds'])} seeds, {found['data']['pairs']} pairs, "
        f"{found['options']['steps']} steps each",
        caption=f"TRL: {found['trl_trainings_measured']} trainings of its DPO measured, at its defaults; every method "
        "counts at their time, also those that TRL does not have.",
    )
    for column in ("", "mallowspo, seconds", "TRL, seconds", "faster by"):
        table.add_column(column, justify="right" if column else "left")
    for title, seconds, speedup in (
        ("all told", "seconds", "speedup_comparison"),
        ("without starting", "seconds_without_starting", "speedup_comparison_without_starting"),
    ):
        table.add_row(title, *(f"{found[seconds][side]:.1f}" for side in ("ours", "trl")), f"{found[speedup]:.2f}")
    return [table]


def reference_tables(found: dict[str, Any]) -> list[Table]:
    """One table: a row a set."""
    table = Table(
        title="Reference pass, tokens a second (real tokens; a prompt counts with both its responses)",
        caption=f"Largest difference of a response's log-probability: {found['max_abs_logp_difference']:.1e} nats.",
    )
    for column in ("", "mallowspo", "plain forward", "faster by", "GB", "GB, plain"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in found["sets"].items():
        rates, memory = figures["tokens_per_second"], figures["peak_memory_gb"]
        table.add_row(
            name,
            _spread(rates["ours"]),
            _spread(rates["plain"]),
            f"{figures['speedup']:.2f}",
            *(f"{memory[side]['median']:.3g}" for side in ("ours", "plain")),
        )
    return [table]


def generation_tables(found: dict[str, Any]) -> list[Table]:
    """One table: a row a way to choose tokens."""
    options, prompts = found["options"], found["prompts"]
    table = Table(
        title=f"Tokens a second: answers to {prompts['number']} prompts ({prompts['tokens']} tokens) in batches of "
        f"{options['batch']}, at most {options['max_new_tokens']} tokens each, {options['dtype']}, "
        f"{options['threads']} threads",
        caption="Against model.generate. Medians, least to most of the rounds; faster by: of the rounds' own ratios.",
    )
    for column in ("", "mallowspo", "generate", "faster by", "processor", "equal answers"):
        table.add_column(column, justify="right" if column else "left")
    for law, figures in found["laws"].items():
        rates, ratios = figures["tokens_per_second"], figures["speedup_by_round"]
        table.add_row(
            law,
            *(_spread(rates[side]) for side in ("ours", "generate")),
            _spread({"median": figures["speedup"], "min": min(ratios), "max": max(ratios)}),
            f"{figures['processor_speedup']:.2f}",
            f"{figures['equal_answers']:.0%}",
        )
    return [table]


def scaling_tables(found: dict[str, Any]) -> list[Table]:
    """A table a size that grows, and one of the bytes that a token takes at each vocabulary."""
    tables = []
    for name, points in found["tables"].items():
        table = Table(title=f"{name}: seconds, MB added")
        sides = list(points[0]["sides"])
        for column in ("vocabulary", "tokens", "rows", *sides):
            table.add_column(column, justify="right")
        for point in points:
            measured = [point["sides"][side] for side in sides]
            values = [f"{one['seconds']:.3g}, {one['added_bytes'] / 1e6:.0f}" for one in measured]
            table.add_row(*(str(point[key]) for key in ("vocabulary", "length", "rows")), *values)
        tables.append(table)
    slopes = Table(
        title="bytes of one more token",
        caption=f"Bytes that a token grows by with an entry of the vocabulary: {found['memory_slope_vocabulary']:.3f}, "
        f"with full logits {found['memory_slope_vocabulary_plain']:.1f}.",
    )
    each = found["bytes_per_token"]
    for column in ("vocabulary", *each):
        slopes.add_column(column, justify="right")
    for size in next(iter(each.values())):
        slopes.add_row(size, *(f"{each[side][size]:.0f}" for side in each))
    return [*tables, slopes]
