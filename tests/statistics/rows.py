"""The calibration table: what was simulated, how often an interval covered and a test rejected."""

import math

#: Simulated experiments behind a row.
EXPERIMENTS = 2000
ROWS: list[tuple[str, str, int, float | None, float | None, bool]] = []
LOW, HIGH = 0.93, 0.97
REJECTED_LOW, REJECTED_HIGH = 0.03, 0.07


def note(what, covered=None, rejected=None, held=True, experiments=EXPERIMENTS):
    """Add a row; `held`: whether the row is held to the limits, or shows what cannot be calibrated."""
    method, case = what
    ROWS.append((method, case, experiments, covered, rejected, held))


def check(what, covered=None, rejected=None, experiments=EXPERIMENTS, limits=(LOW, HIGH, REJECTED_LOW, REJECTED_HIGH)):
    """Add a row and hold it to the limits."""
    note(what, covered, rejected, True, experiments)
    assert covered is None or limits[0] <= covered <= limits[1], (what, covered)
    assert rejected is None or limits[2] <= rejected <= limits[3], (what, rejected)


def markdown():
    lines = [
        "| method | simulated case | experiments | 95 % interval covers (%) | p < 0.05 (%) | held to 93-97, 3-7 |",
        "|---|---|---|---|---|---|",
    ]
    for method, case, experiments, covered, rejected, held in ROWS:
        told = [_percent(share, experiments) for share in (covered, rejected)]
        lines.append(f"| {method} | {case} | {experiments:,} | {told[0]} | {told[1]} | {'yes' if held else 'no'} |")
    return "\n".join(lines)


def _percent(share, experiments):
    if share is None:
        return ""
    error = 100 * math.sqrt(max(share * (1 - share), 1e-4) / experiments)
    return f"{100 * share:.1f} ± {error:.1f}"
