"""What was compared, for the head of the page: the settings that matter most, and each label's method."""

from typing import Any

from mallowspo.methods import METHODS
from mallowspo.report import measured_judge
from mallowspo.report.results import Results
from mallowspo.report.words import plural


def judges(evaluation: Any) -> list[str]:
    """Of rewards, the second of them too, and of win rates; each once."""
    names = (evaluation.judge, evaluation.second_judge, evaluation.alpaca.judge)
    return list(dict.fromkeys(name for name in names if name))


def _judge(name: str) -> str:
    how_good = measured_judge.how_good(name)
    return f"{name}, which {how_good}" if how_good else name


def methods(results: Results) -> list[dict[str, str]]:
    """A row a label: its method, beta, options, weight, margin, loss of one pair, and whose it is."""
    rows = []
    for label, settings in results.view.methods.items():
        method = METHODS[settings.method]
        options = ", ".join(f"{name} = {_told(value)}" for name, value in settings.options.items())
        rows.append(
            {
                "label": label,
                "method": settings.method,
                "beta": f"{settings.beta:g}",
                "options": options or "–",
                "weight": _weight(method.weight, settings.control),
                "margin": f"{_MARGINS[method.margin]}, {settings.options.get('length', 'sum')} over tokens",
                "formula": method.formula,
                "source": method.source,
            }
        )
    return rows


#: What a row's margin is called on the page.
_MARGINS = {
    "log_ratio": "log-ratio",
    "log_probability": "log-probability",
    "mixed": "log-ratio, share of the reference",
    "log_odds": "log-odds",
}


def _weight(weight: str, control: str) -> str:
    if control == "none":
        return weight
    return f"{weight}, outside the link" if control == "outside" else f"{weight}, {control.replace('_', '-')} (control)"


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def setup(results: Results) -> dict[str, str]:
    """The settings that matter most for reading the numbers."""
    settings = results.settings
    training, generation, evaluation = settings["training"], settings["generation"], settings["evaluation"]
    length = plural(training["max_steps"], "step") if training["max_steps"] else plural(training["epochs"], "epoch")
    tuned = f"LoRA of rank {training['lora']['rank']}" if training["lora"] else "all parameters"
    precisions = " and ".join(sorted(set(results.runs["precision"])))
    tasks = ", ".join(evaluation["lm_eval"]["tasks"]) if evaluation["lm_eval"] else "none"
    return {
        "Initial policy and reference": f"{settings['model']['source']} (matrix products in {precisions})",
        "Pairs": settings["pairs"]["source"],
        "Training": f"{length}, {tuned}, {training['optimizer']} at {training['learning_rate']:g} "
        f"({training['schedule']}), {plural(training['pairs_per_step'], 'pair')} a step",
        "Answers": f"{generation['answers']} a test prompt, temperature {generation['temperature']:g}"
        f"{''.join(f' (and {value:g})' for value in evaluation['temperatures'])}, "
        f"top-p {generation['top_p']:g}, at most {plural(generation['max_new_tokens'], 'token')}",
        "Judge": _judge(evaluation["judge"]),
        **({"Second judge": _judge(second)} if (second := evaluation["second_judge"]) else {}),
        "Benchmarks": tasks,
        "Size": f"{plural(results.n_prompts, 'test prompt')}; seeds {', '.join(map(str, results.view.seeds))}",
    }
