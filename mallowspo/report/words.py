"""How numbers, intervals and model texts are written, everywhere the same."""

import math
from collections.abc import Iterable

from mallowspo.metric_names import SECOND_REWARD, bare
from mallowspo.visible import visible

#: What each metric is called where people read it.
METRIC_TITLES = {
    "reward": "Reward",
    SECOND_REWARD: "Reward by the second judge",
    "kl": "KL to the reference (nats)",
    "kl_k3": "KL by k3 of answers (nats)",
    "kl_k3_by_token": "KL by k3 of tokens (nats)",
    "win_rate": "Win rate against the reference",
    "length": "Length (tokens)",
    "accuracy": "Implicit accuracy, held-out pairs",
    "margin": "Margin, held-out pairs (nats)",
    "complete": "Share of complete answers",
}
#: The same of metrics that stand against another's answers or on other pairs, which the title then names.
BARE_TITLES = {"win_rate": "Win rate", "accuracy": "Implicit accuracy", "margin": "Margin (nats)"}
ABSENT = "–"


def metric_title(metric: str) -> str:
    """The title of a metric; a benchmark's "TASK/METRIC" is its own."""
    kind = bare(metric)
    otherwise = f"{BARE_TITLES[kind]}{metric.removeprefix(kind)}" if kind in BARE_TITLES else metric
    return METRIC_TITLES.get(metric, otherwise)


def number(value: float, signed: bool = False) -> str:
    """Three significant digits; a dash for NaN."""
    if math.isnan(value):
        return ABSENT
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) < 0.001:
        text = f"{value:.1e}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return _minus(text, signed and value > 0)


def interval(value: float, low: float, high: float, decimals: int, signed: bool = False) -> str:
    """0.26 [0.21, 0.31]; the value alone where there is no interval."""
    if math.isnan(low) or math.isnan(high) or high <= low:
        return number(value, signed)
    mean, lower, upper = (fixed(bound, decimals) for bound in (value, low, high))
    return f"{'+' if signed and value > 0 else ''}{mean} [{lower}, {upper}]"


def fixed(value: float, decimals: int) -> str:
    """A number with that many decimals; a dash for NaN."""
    return ABSENT if math.isnan(value) else _minus(f"{value:,.{decimals}f}")


def meaningful_decimals(widths: Iterable[float]) -> int:
    """Decimals for a column of intervals: two significant digits of their median width."""
    positive = sorted(width for width in widths if width > 0)
    if not positive:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(positive[len(positive) // 2]))))


def p_value(value: float) -> str:
    """Two digits, and "< 0.001" below."""
    if math.isnan(value):
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def count(value: float) -> str:
    """A whole number with thousands apart."""
    return ABSENT if math.isnan(value) else f"{value:,.0f}"


def plural(amount: int, noun: str) -> str:
    """1 prompt, 2 prompts."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def shown_text(text: str, limit: int) -> str:
    """Text as a page can hold it: `visible`, and cut at `limit` with a note."""
    text = visible(text)
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … [{len(text) - limit:,} more characters]"


def _minus(text: str, plus: bool = False) -> str:
    return ("+" if plus else "") + text.replace("-", "−")
