"""A complete made-up results folder, as the stages would leave it: 3 methods x 2 seeds, 12 prompts x 2 answers.

`write(results)` writes it and gives the layout and the settings; the numbers are drawn by a seeded generator.
Model texts are hostile on purpose: markup, a script, and characters of other scripts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mallowspo.evaluation.displacement import changes
from mallowspo.evaluation.kl import low_variance_kl
from mallowspo.experiments import dump_settings
from mallowspo.files import digest, write_json, write_jsonl, write_parquet, write_text
from mallowspo.layout import REFERENCE, Layout
from mallowspo.methods import METHODS
from mallowspo.policies import Policy
from mallowspo.settings import Experiment

HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & déjà vu 測試 \x00"
#: Mean reward and KL of each method; other labels get values between.
LEVELS = {"dpo": (0.25, 2.0), "mallows_theta": (0.45, 2.2), "mallows_phi": (0.27, 1.6)}
TASK = "made_up_task"


@dataclass(frozen=True)
class MadeUp:
    """What was written."""

    layout: Layout
    experiment: Experiment

    @property
    def settings_text(self) -> str:
        return dump_settings(self.experiment)


def settings(
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    lm_eval: bool,
    evaluation: dict[str, Any] | None = None,
    keep: tuple[float, ...] = (),
) -> Experiment:
    """Settings of the made-up experiment: labels are methods, theta_CONTROL is theta under a control; a label that
    begins with a method's name is that method under another beta, any other DPO.

    Args:
        evaluation: further settings of that section.
        keep: shares of the training.
    """
    return Experiment.model_validate(
        {
            "title": "Made-up comparison <b>of three</b>",
            "question": "Does a dispersion-weighted loss earn more reward at the same KL?",
            "model": {"source": "made_up:two_layers"},
            "pairs": {"source": "path:pairs.jsonl"},
            "methods": {m: {**_method(m), "beta": 0.1 + 0.01 * i} for i, m in enumerate(methods)},
            "seeds": list(seeds),
            "training": {"learning_rate": 1e-5, "pairs_per_step": 8, "keep": list(keep)},
            "generation": {"answers": 2, "max_new_tokens": 32},
            "evaluation": {
                "judge": "reward:vader",
                "kl_answers": 1,
                "lm_eval": {"tasks": [TASK]} if lm_eval else None,
                "comparison": {"baseline": methods[0], "resamples": 1999},
                **(evaluation or {}),
            },
            "report": {"examples": 2},
        }
    )


def _method(label: str) -> dict[str, str]:
    control = label.removeprefix("theta_")
    if control in ("shuffled", "inverted", "outside", "length_matched"):
        return {"method": "mallows_theta", "control": control}
    if label in METHODS:
        return {"method": label}
    return {"method": next((name for name in ("dpo", "mallows_theta", "mallows_phi") if label.startswith(name)), "dpo")}


def write(
    results: Path,
    methods: tuple[str, ...] = ("dpo", "mallows_theta", "mallows_phi"),
    seeds: tuple[int, ...] = (0, 1),
    lm_eval: bool = True,
    prompts: int = 12,
    steps: int = 20,
    evaluation: dict[str, Any] | None = None,
    keep: tuple[float, ...] = (),
    name: str = "made_up",
    levels: dict[str, tuple[float, float]] = LEVELS,
) -> MadeUp:
    """Write every file that the stages before "compare" leave behind.

    Every other set of pairs holds the held-out ones. At other temperatures the rewards are shifted by 1 - temperature;
    along a training of methods reward and KL are their ends' times the share.
    """
    made = MadeUp(Layout(str(results), name), settings(methods, seeds, lm_eval, evaluation, keep))
    generator = np.random.default_rng(0)
    write_text(made.layout.settings, made.settings_text)
    pairs = _pairs(made.layout, generator, prompts)
    _reference_and_dispersion(made.layout, generator, pairs)
    test = pairs[pairs["split"] == "test"]
    for method, seed in [(REFERENCE, 0), *made.experiment.runs()]:
        level = levels.get(method, (0.0, 0.0) if method == REFERENCE else (0.3, 1.8))
        _samples_and_scores(made.layout, generator, test, method, seed, level, methods[0])
        if method != REFERENCE:
            _run(made, generator, method, seed, steps)
            _pair_scores(made.layout, generator, test, method, seed, level)
        if lm_eval:
            _lm_eval(made.layout, generator, method, seed)
    _benchmarks(made)
    _other_pairs(made, generator, test)
    _variants(made)
    _second_judge(made)
    return made


def _pairs(layout: Layout, generator: np.random.Generator, prompts: int) -> pd.DataFrame:
    rows = []
    for index in range(3 * prompts):
        text = f"Question {index}: what do you think of {'this film' if index % 2 else HOSTILE}?"
        messages = json.dumps([{"role": "user", "content": text}])
        chosen, rejected = f"A fine answer, number {index}.", f"A poor answer, number {index}. {HOSTILE}"
        rows.append(
            {
                "pair_id": digest([text, chosen, rejected]),
                "prompt_id": digest(text),
                "prompt": text,
                "messages": messages,
                "chosen": chosen,
                "rejected": rejected,
                "source": "made_up",
                "meta": json.dumps({"chosen_complete": True, "rejected_complete": True}),
                "split": "test" if index < prompts else "train",
            }
        )
    pairs = pd.DataFrame(rows)
    for split in ("train", "test"):
        write_parquet(layout.pairs(split), pairs[pairs["split"] == split].drop(columns="split"))
    test = pairs[pairs["split"] == "test"]
    write_parquet(layout.prompts, test[["prompt_id", "prompt", "messages"]])
    checks = [
        {"check": "rows read", "split": "all", "count": len(pairs) + 1, "share": 1.0, "note": ""},
        {"check": "empty", "split": "all", "count": 1, "share": 1 / (len(pairs) + 1), "note": "see unusable.jsonl"},
        {"check": "prompt tokens, median", "split": "train", "count": 11.5, "share": None, "note": ""},
    ]
    write_json(layout.data_health, checks)
    write_jsonl(layout.unusable_rows, [{"file": "pairs.jsonl", "row": 7, "reason": "rejected is empty"}])
    return pairs


def _reference_and_dispersion(layout: Layout, generator: np.random.Generator, pairs: pd.DataFrame) -> None:
    frame = pairs[["pair_id", "split"]].copy()
    for side in ("chosen", "rejected"):
        tokens = generator.integers(10, 40, len(frame))
        frame[f"{side}_logp"] = -2.5 * tokens + generator.normal(0, 5, len(frame))
        frame[f"{side}_tokens"] = tokens
        frame[f"{side}_entropy"] = 2.0 * tokens
        frame[f"{side}_first_entropy"], frame[f"{side}_end_entropy"] = 2.5, 1.5
        frame[f"{side}_has_end"] = True
    frame["prompt_tokens"], frame["header_tokens"] = 9, 0
    frame["prompt_logp"], frame["prompt_entropy"], frame["header_entropy"] = -27.0, 18.0, 0.0
    for split in ("train", "test"):
        write_parquet(layout.reference(split), frame[frame["split"] == split].drop(columns="split"))
    write_json(
        layout.reference_summary,
        {"vocabulary": 259, "tokenizer_vocabulary": 259, "precision": "float32", "pairs": len(frame), "tokens": 1000},
    )
    index = generator.beta(6, 10, len(frame))
    constant = 1 / -np.log(index)[frame["split"] == "train"].mean()
    weight = -np.log(index) * constant
    dispersion = frame[["pair_id", "split"]].assign(
        dispersion_index=index, neg_log_index=-np.log(index), weight=weight, phi=np.exp(-weight / 2)
    )
    for control in ("shuffled", "inverted", "length_matched"):
        dispersion[f"weight_{control}"] = generator.permutation(weight)
    write_parquet(layout.dispersion, dispersion)
    quantiles = dict(zip(("p05", "p50", "p95"), np.quantile(weight, (0.05, 0.5, 0.95)).tolist(), strict=True))
    summary = {"constant": float(constant), "official_constant": 0.29, "pairs": len(frame), "clamped": 0}
    summary |= {"estimator": "entropy", "convention": "response_tokens", "calibrated": True, "vocabulary": 259}
    summary |= {"above_one": 0, "zero_weight": 0, "undefined": 0, "length_correlation": 0.1}
    train = (frame["split"] == "train").to_numpy()
    means = {"mean_weight_train": float(weight[train].mean()), "mean_weight_test": float(weight[~train].mean())}
    write_json(layout.dispersion_summary, {**summary, "weight": quantiles, **means})


def _samples_and_scores(
    layout: Layout,
    generator: np.random.Generator,
    test: pd.DataFrame,
    method: str,
    seed: int,
    level: tuple[float, float],
    baseline: str,
) -> None:
    answers, scores, wins = [], [], []
    ease = {prompt: position / len(test) for position, prompt in enumerate(test["prompt_id"])}
    for prompt_id, prompt in zip(test["prompt_id"], test["prompt"], strict=True):
        for answer_index in range(2):
            tokens = int(generator.integers(8, 32)) + (4 if method != REFERENCE else 0)
            reward = level[0] + 0.3 * ease[prompt_id] + float(generator.normal(0, 0.1))
            output = f"{method} says {answer_index}: {HOSTILE}"
            here = {"prompt_id": prompt_id, "answer_index": answer_index}
            answers.append(
                {
                    "instruction": prompt,
                    "output": output,
                    "generator": method,
                    **here,
                    "complete": True,
                    "tokens": tokens,
                }
            )
            values = {"reward": reward, "tokens": float(tokens), "complete": 1.0}
            values |= {"distinct_1": 0.9, "distinct_2": 1.0, "repetition": 0.02 * answer_index, "refusal": 0.0}
            if answer_index == 0:
                values["kl"] = level[1] + float(generator.normal(0, 0.2)) if method != REFERENCE else 0.0
                values["kl_k3"] = float(low_variance_kl(values["kl"]))
                values["kl_k3_by_token"] = 0.9 * values["kl"]
            scores += [{**here, "metric": m, "value": v, "judge": "reward:vader"} for m, v in values.items()]
            win = float(generator.random() < 0.5 + level[0])
            wins.append({**here, "metric": "win", "value": win, "judge": "reward:vader"})
    folder = layout.scores(method, seed)
    write_jsonl(layout.samples(method, seed), answers)
    write_parquet(folder / "score.parquet", pd.DataFrame(scores))
    if method != REFERENCE:
        table = pd.DataFrame(wins)
        write_parquet(folder / "alpaca.parquet", table)
        # Nothing is compared with itself.
        against = table.assign(against=baseline, value=1 - table["value"])
        write_parquet(folder / "alpaca_against.parquet", against if method != baseline else against.head(0))
        overall = float(table["value"].mean() * 100)
        write_json(folder / "alpaca.json", {"win_rate": overall, "versions": {"alpaca_eval": "0.6.6"}})
        write_json(folder / "judge.json", _judged(method, seed, overall, len(table)))


def _judged(method: str, seed: int, win_rate: float, count: int) -> dict[str, Any]:
    """What the judge was like: no taste for a position, some for length."""
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": count}
    comparison = {
        "method": method, "seed": seed, "against": REFERENCE, "win_rate": win_rate, "standard_error": 9.0,
        "n_total": count, "lc_winrate_official": None, "lc_winrate_approximate": None, "prefer_first": share,
        "flips": {**share, "value": 0.0, "low": 0.0}, "ties": {**share, "value": 0.1, "low": 0.0, "high": 0.2},
        "length_slope": {"value": 0.3, "low": 0.1, "high": 0.5, "n": count}, "failed": 0, "equal_answers": 0,
        "self_consistency": {"value": 1.0, "low": None, "high": None, "n": 0, "note": "deterministic"},
    }  # fmt: skip
    versions = {"alpaca_eval": "0.6.6", "scikit-learn": "1.9.1"}
    return {"judge": "reward:vader", "orders": "both", "versions": versions, "comparisons": [comparison]}


def _run(made: MadeUp, generator: np.random.Generator, method: str, seed: int, steps: int) -> None:
    folder = made.layout.run(method, seed)
    rows = []
    for step in range(1, steps + 1):
        progress = step / steps
        margin = 3 * progress + float(generator.normal(0, 0.2))
        rows.append(
            {
                "step": step,
                "epoch": progress,
                "loss": float(np.log(2) - 0.3 * progress + generator.normal(0, 0.02)),
                "margin": margin,
                "scaled_margin": 0.1 * margin,
                "accuracy": 0.5 + 0.3 * progress,
                "logp_chosen": -60 - 4 * progress,
                "logp_rejected": -62 - 7 * progress,
                "logp_chosen_per_token": -2.4 - 0.2 * progress,
                "logp_rejected_per_token": -2.5 - 0.3 * progress,
                "effective_beta": 0.1 + float(generator.normal(0, 0.005)),
                "effective_beta_min": 0.06,
                "effective_beta_max": 0.17,
                "gradient_norm": 1.0,
                "learning_rate": 1e-5,
                "tokens_per_second": 900.0,
                "pairs": 8,
            }
        )
    write_jsonl(folder / "metrics.jsonl", rows)
    identity = {"step0_max_abs_margin": 0.0, "step0_loss": float(np.log(2)), "precision": "float32"}
    size = {"steps": steps, "pairs": 8 * steps, "seconds": 12.5, "tokens": 4000, "parameters": 100_000}
    summary = {**size, **identity, "trainable_parameters": 100_000, "resumed_from_step": []}
    write_json(folder / "summary.json", {**summary, "digest": digest([method, seed])})
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    environment = {"python": "3.11.2", "platform": "Linux", "processor": "made-up", "gpu": None, "git_commit": "0" * 40}
    write_json(folder / "environment.json", {**environment, "versions": versions})
    write_text(folder / "settings.yaml", made.settings_text)


def _pair_scores(
    layout: Layout,
    generator: np.random.Generator,
    test: pd.DataFrame,
    method: str,
    seed: int,
    level: tuple[float, float],
) -> None:
    reference = pd.read_parquet(layout.reference("test")).set_index("pair_id").loc[test["pair_id"]]
    chosen = reference["chosen_logp"].to_numpy() + generator.normal(-1, 2, len(test))
    rejected = reference["rejected_logp"].to_numpy() + generator.normal(-3 - level[0], 2, len(test))
    change = chosen - rejected - (reference["chosen_logp"] - reference["rejected_logp"]).to_numpy()
    policy = pd.DataFrame({"chosen_logp": chosen, "rejected_logp": rejected})
    for side in ("chosen", "rejected"):
        policy[f"{side}_tokens"] = reference[f"{side}_tokens"].to_numpy()
    table = pd.DataFrame(
        {
            "pair_id": test["pair_id"].to_numpy(),
            "prompt_id": test["prompt_id"].to_numpy(),
            "margin": change,
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            "correct": np.where(change == 0, 0.5, (change > 0).astype(float)),
        }
    )
    moved = changes(policy, reference.reset_index())
    write_parquet(layout.scores(method, seed) / "pairs.parquet", table.join(moved))


def _other_pairs(made: MadeUp, generator: np.random.Generator, test: pd.DataFrame) -> None:
    for name in made.experiment.evaluation.other_pairs:
        place = made.layout.other_pairs(name)
        for file in ("pairs", "reference"):
            write_parquet(getattr(place, file)("test"), pd.read_parquet(getattr(made.layout, file)("test")))
        for method, seed in made.experiment.runs():
            _pair_scores(place, generator, test, method, seed, LEVELS.get(method, (0.3, 1.8)))


def _variants(made: MadeUp) -> None:
    for name, seed in made.experiment.variants():
        policy = Policy.parse(name)
        table = pd.read_parquet(made.layout.scores(policy.label, seed) / "score.parquet")
        value = table["value"]
        if policy.training is not None:
            value = value.where(~table["metric"].isin(["reward", "kl"]), value * policy.training)
        elif policy.label != REFERENCE:
            value = value + (table["metric"] == "reward") * (1 - (policy.temperature or 0))
        write_parquet(made.layout.scores(name, seed) / "score.parquet", table.assign(value=value))


def _second_judge(made: MadeUp) -> None:
    """Half of the first judge's reward, and a tenth that goes by the place of the answer alone: it sees half a gain."""
    if made.experiment.evaluation.second_judge is None:
        return
    for name, seed in [(REFERENCE, 0), *made.experiment.runs(), *made.experiment.variants()]:
        table = pd.read_parquet(made.layout.scores(name, seed) / "score.parquet")
        rewards = table[table["metric"] == "reward"].reset_index(drop=True)
        place = np.sin(np.arange(len(rewards)))
        second = rewards.assign(metric="second_reward", value=0.5 * rewards["value"] + 0.1 * place)
        write_parquet(made.layout.scores(name, seed) / "second.parquet", second.assign(judge="reward:pattern"))


def _lm_eval(layout: Layout, generator: np.random.Generator, method: str, seed: int) -> None:
    values = (generator.random(30) < 0.6).astype(float)
    table = pd.DataFrame({"task": TASK, "doc_id": range(30), "metric": "acc", "value": values})
    write_parquet(layout.scores(method, seed) / "lm_eval.parquet", table)
    results = {TASK: {"acc": {"value": float(values.mean()), "stderr": 0.09}}}
    write_json(layout.scores(method, seed) / "lm_eval.json", {"results": results, "versions": {}, "settings": {}})


def _benchmarks(made: MadeUp) -> None:
    header = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    line = "12.5\t0:00:12\t512.5\t2000\t500\t505\t0.1\t0.2\t98.0\t11.9\n"
    write_text(made.layout.benchmark("pairs"), header + line)
    write_text(made.layout.benchmark("lm_eval-reference-0"), header + line.replace("512.5", "-"))
    for method, seed in made.experiment.runs():
        write_text(made.layout.benchmark(f"train-{method}-{seed}"), header + line)


def rewrite(path: Path, change: Any) -> None:
    """Read a Parquet file, pass it through `change`, and write it back: for tests of broken input."""
    write_parquet(path, change(pd.read_parquet(path)))
