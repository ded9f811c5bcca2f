"""Which settings each stage may read, and so depends on (`mallowspo.settings.Experiment.stage_view`)."""

#: What each stage reads. `compute` and `question` change no result; a trained run also reads its method.
STAGE_READS: dict[str, tuple[str, ...]] = {
    "model": ("model.source", "model.sha256", "model.trust_remote_code", "model.quantized"),
    "sample": ("model.precision", "tokens", "pairs"),
    "pairs": ("pairs", "tokens"),
    "tokens": ("tokens",),
    "reference": ("model.precision", "reference.tokens_per_batch"),
    "dispersion": ("model.precision", "tokens", "reference.tokens_per_batch", "dispersion"),
    "other-pairs": ("model.precision", "tokens", "reference.tokens_per_batch"),
    "train": ("model.precision", "model.quantized", "tokens", "training"),
    "generate": ("model.precision", "tokens", "generation"),
    "score": ("model.precision", "tokens", "reference.tokens_per_batch", "evaluation.judge", "evaluation.kl_answers"),
    "second-score": ("evaluation.second_judge",),
    "signals": ("model.precision", "reference.tokens_per_batch"),
    "alpaca": ("evaluation.judge", "evaluation.alpaca", "evaluation.comparison.baseline"),
    "judge": ("evaluation.judge", "evaluation.alpaca.judge", "evaluation.alpaca.settings", "evaluation.judge_labels"),
    "lm-eval": ("model.precision", "evaluation.lm_eval"),
    "compare": (
        *("methods", "seeds", "training.keep", "generation.temperature", "evaluation.comparison", "evaluation.lm_eval"),
        *("evaluation.alpaca.against", "evaluation.other_pairs", "evaluation.temperatures"),
        *("evaluation.second_judge", "evaluation.factorial", "evaluation.selection"),
        *("evaluation.signals",),
    ),
    "report": ("title", "question", "report", "methods", "seeds", "evaluation"),
    "track": ("title",),
}
#: What a stage may read and no result depends on, so that another value runs nothing again.
CHANGES_NOTHING = ("reference.tokens_per_batch",)
