"""Made-up results of the experiments that config/paper.yaml names at scale cpu, some of them not finished.

`write_paper(folder)` writes folder/config and folder/results; the page is then made with `folder` as current folder.
"""

import gc
import shutil
from pathlib import Path

import pandas as pd

from mallowspo import compare
from mallowspo.dispersion_study.rankings import CHOICE
from mallowspo.dispersion_study.tokens import DIFFER
from mallowspo.experiments import dump_settings, load_experiment
from mallowspo.files import read_json, write_json, write_text
from mallowspo.layout import Layout
from mallowspo.report.style import draw_panel
from tests.made_up_results import write

ROOT = Path(__file__).parents[1]
THREE = ("dpo", "mallows_theta", "mallows_phi")
LEVELS = {
    "dpo": (0.2, 2.0), "mallows_theta": (0.5, 2.0), "mallows_phi": (0.2, 1.9), "theta_shuffled": (0.2, 2.0),
    "theta_inverted": (0.1, 2.0), "theta_outside": (0.5, 2.0), "theta_length_matched": (0.2, 2.0),
    "simpo": (0.2, 2.0), "mallows_simpo": (0.4, 2.0), "ipo": (0.3, 2.0), "mallows_ipo": (0.3, 2.0),
    "lb_dpo": (0.3, 2.0), "mallows_lb": (0.6, 2.0),
}  # fmt: skip
COMPARISONS = {
    "sentiment_smollm2": {"methods": THREE, "keep": (0.5,)},
    "hh_smollm2": {"methods": THREE},
    "ultrafeedback_smollm2": {"methods": ("dpo", "mallows_theta", "simpo", "mallows_simpo", "ipo", "mallows_ipo")},
    "learnable_beta_smollm2": {"methods": ("dpo", "mallows_theta", "lb_dpo", "mallows_lb")},
    "controls_sentiment_smollm2": {
        "methods": ("mallows_theta", "dpo", "theta_shuffled", "theta_inverted", "theta_outside", "theta_length_matched")
    },
}
FACTORIAL = {"factors": ["weight", "beta"], "neither": "dpo", "first": "mallows_theta", "second": "lb_dpo",
             "both": "mallows_lb"}  # fmt: skip
#: Length-controlled win rates by seed.
RATES = {"simpo": (50.0, 51.0, 49.5), "mallows_simpo": (53.0, 53.8, 52.6), "ipo": (50.0, 51.0, 52.0),
         "mallows_ipo": (52.0, 50.0, 51.0), "dpo": (50.0, 50.5, 51.0), "mallows_theta": (50.1, 50.7, 51.0)}  # fmt: skip


def write_paper(folder: Path, names: tuple[str, ...] = tuple(COMPARISONS), prompts: int = 24) -> Path:
    """The studies and these comparisons; all others, and the judge, are not run."""
    results = folder / "results"
    # statsmodels collects garbage in each of its corrections, which takes longest of all with torch loaded.
    gc.freeze()
    (folder / "config/experiments").mkdir(parents=True)
    for name in ("paper.yaml", "published.yaml"):
        shutil.copy(ROOT / "config" / name, folder / "config" / name)
    pairs = {"stackexchange": {"source": "path:votes.jsonl"}}
    for name in names:
        settings = COMPARISONS[name]
        evaluation = {"comparison": {"baseline": settings["methods"][0], "resamples": 199}}
        evaluation |= {"other_pairs": pairs} if name == "hh_smollm2" else {}
        evaluation |= {"factorial": FACTORIAL} if name == "learnable_beta_smollm2" else {}
        size = {"seeds": (1, 2, 3), "prompts": prompts, "steps": 4, "lm_eval": False}
        made = write(results, **settings, **size, evaluation=evaluation, name=name, levels=LEVELS)
        if name == "ultrafeedback_smollm2":
            _length_controlled(made)
        compare.run(made.experiment.stage_view("compare"), made.layout)
        _finish(made.layout, "frontier" if name == "sentiment_smollm2" else "win_rate")
        shutil.copy(made.layout.settings, folder / "config/experiments" / f"{name}.yaml")
    for name in ("bandit", "dispersion"):
        write_study(results, name, name)
        shutil.copy(ROOT / "config/experiments" / f"{name}.yaml", folder / "config/experiments")
    shutil.copy(ROOT / "config/experiments/hh_reward_smollm2.yaml", folder / "config/experiments")
    return results


def _length_controlled(made) -> None:
    for label, seed in made.experiment.runs():
        path = made.layout.scores(label, seed) / "judge.json"
        judged = read_json(path)
        judged["comparisons"][0]["lc_winrate_official"] = RATES[label][seed - 1]
        write_json(path, judged)


def _finish(layout: Layout, figure: str) -> None:
    """A report, one figure, and the record of the tracking stage."""
    write_text(layout.report, "<!DOCTYPE html><title>report</title>")
    data = pd.DataFrame({"x": [0, 1], "y": [0, 1]})
    draw_panel(layout, figure, "A line.", data, lambda axes: axes.plot(data["x"], data["y"]))
    write_json(layout.tracked, {"store": "http://127.0.0.1:5000", "experiment_id": "7", "run_id": f"run_of_{figure}"})


def write_study(results: Path, name: str, file: str) -> None:
    """Made-up results of the study in config/experiments/FILE.yaml, as the workflow would leave them."""
    layout = Layout(str(results), name)
    settings = load_experiment(str(ROOT / "config/experiments" / f"{file}.yaml"))
    write_text(layout.settings, dump_settings(settings))
    write_json(layout.study, {"kind": settings.kind, "numbers": {}})
    for table, frame in (_bandit() if file == "bandit" else _dispersion()).items():
        write_text(layout.tables / f"{table}.csv", frame.to_csv(index=False))
    write_text(layout.benchmark("study"), "s\n1.0\n")
    _finish(layout, "collapse_64" if file == "bandit" else "rankings_law")
    # Last of all, or the workflow takes it for older than what it was made of.
    write_text(layout.benchmark("track"), "s\n1.0\n")


def _bandit() -> dict[str, pd.DataFrame]:
    keys = {"weights": "oracle", "control": "dpo", "outcome": "reward", "where": "same KL"}
    effects = {16: (-0.002, -0.007, 0.003, 0.4), 64: (0.024, 0.021, 0.027, 0.0001)}
    columns = ("difference", "ci_low", "ci_high", "p")
    controls = [
        {"comparisons": count, **keys, **dict(zip(columns, effects[count], strict=True)), "n": 24, "detectable": 0.006}
        for count in effects
    ]
    collapse = [
        {"comparisons": count, "label": label, "difference": -0.5, "ci_low": -0.6, "ci_high": -0.4, "p": 0.0001,
         "n": 24, "detectable": 0.1}
        for count in effects for label in ("mallows_theta", "mallows_phi")
    ]  # fmt: skip
    return {"controls": pd.DataFrame(controls), "collapse": pd.DataFrame(collapse)}


def _dispersion() -> dict[str, pd.DataFrame]:
    rankings = [
        {"items": items, "annotators": annotators, "estimator": CHOICE, "n": 320, "rho": 0.98, "rho_low": 0.97,
         "rho_high": 0.985, "slope": 1.6, "slope_low": 1.5, "slope_high": 1.7}
        for items in (2, 6) for annotators in (5, 100, float("inf"))
    ]  # fmt: skip
    tokens = {"condition": DIFFER, "estimator": "entropy", "n": 400, "rho_rate": 0.9, "rho_rate_low": 0.88,
              "rho_rate_high": 0.92}  # fmt: skip
    people = {"estimator": "entropy", "rho": 0.06, "low": 0.01, "high": 0.11, "p": 0.02, "n": 1532}
    return {
        "rankings": pd.DataFrame(rankings),
        "tokens": pd.DataFrame([tokens]),
        "people_votes": pd.DataFrame([people]),
    }
