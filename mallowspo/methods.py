"""The table of methods: what each one is, and what it needs.

A row puts together parts that `mallowspo.objectives` holds: margin x weight x link, and what may change during the
training. The table itself needs no torch, so that settings are checked and the workflow is planned without loading it.

Notation of the formulas: D = difference of the log-ratios of chosen and rejected, P = difference of their
log-probabilities, D/len and P/len the same a token, w = -2 log phi(x) the dispersion weight, b = beta.
"""

from dataclasses import dataclass, field
from typing import Literal

#: Options that take one of a few values. All others take any number.
CHOICES: dict[str, tuple[str | float, ...]] = {
    "length": ("sum", "mean"),
    "scaling": ("published", "beta"),
    "smoothing": ("cubic", "polynomial", "tanh", "sigmoid", "none"),
    "level": ("batch", "instance"),
    "exponent": (1.0, 2.0),
}


@dataclass(frozen=True)
class Method:
    """One row: loss = link(beta * margin, weight), and whatever terms its options switch on.

    Attributes:
        link: name of a function in `mallowspo.objectives.LINKS`.
        formula: the loss of one pair, for tables.
        source: where it is defined, and how sure that is.
        margin: "log_ratio" (policy against reference), "log_probability" (no reference), "mixed" (RainbowPO's share
            of the reference) or "log_odds" (ORPO).
        weight: "constant" (1 for every pair) or "dispersion" (the calibrated weight of the pair).
        adaptive: name of a class in `mallowspo.objectives.ADAPTATIONS`, or None: beta and margin stay as they are.
        needs: what must be handed over besides the policy's log-probabilities.
        options: the method's own settings with their defaults; "length" (sum or mean over tokens) is one of them.
    """

    link: str
    formula: str
    source: str
    margin: Literal["log_ratio", "log_probability", "mixed", "log_odds"] = "log_ratio"
    weight: Literal["constant", "dispersion"] = "constant"
    adaptive: str | None = None
    needs: tuple[str, ...] = ("reference",)
    options: dict[str, float | str] = field(default_factory=dict)


_WEIGHTED = ("reference", "dispersion")
_MALLOWSPO = "MallowsPO (ICLR 2025, arXiv 2405.14953)"
_OFFICIAL = "official code of MallowsPO, mallowsPO_trainer.py"
_RAINBOW = "RainbowPO (ICLR 2025, arXiv 2410.04203), eq. 60-62 of the survey arXiv 2409.11564"

METHODS: dict[str, Method] = {
    "dpo": Method(
        link="logistic",
        formula="-log sigmoid(b D)",
        source="Rafailov et al. 2023 (arXiv 2305.18290), eq. 7",
    ),
    "cdpo": Method(
        link="conservative",
        formula="-(1-e) log sigmoid(b D) - e log sigmoid(-b D)",
        source="conservative DPO, label smoothing e: Mitchell 2023; as in TRL",
        options={"label_smoothing": 0.1},
    ),
    "robust_dpo": Method(
        link="robust",
        formula="[-(1-e) log sigmoid(b D) + e log sigmoid(-b D)] / (1 - 2e)",
        source="Chowdhury et al. 2024 (arXiv 2403.00409); as in TRL",
        options={"label_smoothing": 0.1},
    ),
    "ipo": Method(
        link="squared",
        formula="(D/len - 1/(2b))^2; scaling beta: (b D/len - 1/2)^2",
        source="Azar et al. 2023 (arXiv 2310.12036), eq. 17; averaged over tokens as its authors told TRL",
        needs=("reference", "lengths"),
        options={"length": "mean", "scaling": "published"},
    ),
    "slic": Method(
        link="hinge",
        formula="max(0, 1 - b D) - sft log pi(chosen)",
        source="SLiC (arXiv 2305.10425) in the form of GPO (arXiv 2402.05749) and TRL",
        options={"sft": 0.0},
    ),
    "cauchy_dpo": Method(
        link="cauchy",
        formula="-log(1/2 + arctan(b D) / pi)",
        source="DPO with the Cauchy law's link, one of those that RainbowPO's code tries",
    ),
    "exponential_dpo": Method(
        link="exponential",
        formula="exp(-b D)",
        source="GPO (arXiv 2402.05749), the exponential loss",
    ),
    "simpo": Method(
        link="logistic",
        formula="-log sigmoid(b (P/len - home_advantage)); home_advantage is SimPO's gamma / beta",
        source="Meng et al. 2024 (arXiv 2405.14734), eq. 6",
        margin="log_probability",
        needs=("lengths",),
        options={"length": "mean", "home_advantage": 0.3},
    ),
    "sft": Method(
        link="no_preference",
        formula="-sft log pi(chosen)",
        source="maximum likelihood of the chosen responses, the stage before preference optimization: Rafailov et al. "
        "2023 (arXiv 2305.18290), section 3; reads neither beta nor the rejected responses",
        margin="log_probability",
        needs=(),
        options={"sft": 1.0},
    ),
    "cpo": Method(
        link="logistic",
        formula="-log sigmoid(b P) - sft log pi(chosen)",
        source="Xu et al. 2024 (arXiv 2401.08417); eq. 57 of the survey arXiv 2409.11564",
        margin="log_probability",
        needs=(),
        options={"sft": 1.0},
    ),
    "orpo": Method(
        link="logistic",
        formula="-log p - b log sigmoid(log odds(chosen) - log odds(rejected)), p = exp(log pi / len)",
        source="Hong et al. 2024 (arXiv 2403.07691); eq. 58 of the survey arXiv 2409.11564; lambda is our beta",
        margin="log_odds",
        needs=("lengths",),
        options={"length": "mean", "sft": 1.0},
    ),
    "rdpo": Method(
        link="logistic",
        formula="-log sigmoid(b D + length_coefficient (len(chosen) - len(rejected)))",
        source="Park et al. 2024 (arXiv 2403.19159); the sign by derivation, see docs/method.md",
        needs=("reference", "lengths"),
        options={"length_coefficient": 0.01},
    ),
    "rainbowpo": Method(
        link="logistic",
        formula="-log sigmoid(b (P/len - mixing R/len - (1 - mixing) home_advantage)), R: the reference's P",
        source=f"{_RAINBOW}; without its contextual scaling",
        margin="mixed",
        needs=("reference", "lengths"),
        options={"length": "mean", "mixing": 0.25, "home_advantage": 0.1},
    ),
    "beta_dpo": Method(
        link="logistic",
        formula="-log sigmoid(b (1 + a (mean D - M)) D) on the kept pairs; M: running mean of D",
        source="Wu et al. 2024 (arXiv 2407.08639) and its code; level instance: D of the pair for mean D",
        adaptive="beta_dpo",
        options={"level": "batch", "sensitivity": 0.6, "dropped": 0.2, "momentum": 0.9},
    ),
    "epsilon_dpo": Method(
        link="logistic",
        formula="-log sigmoid(b / (1 + e k) D), k in {-1, 0, 1}: how log-ratios at logits (1 +- e) z -+ e z_ref order",
        source="epsilon-DPO (arXiv 2502.13177) and its code",
        adaptive="epsilon_dpo",
        needs=("reference", "reference_logits"),
        options={"epsilon": 0.01},
    ),
    "alpha_dpo": Method(
        link="logistic",
        formula="-log sigmoid(b (P/len - home_advantage - alpha z)), z: running z-score of D/len, no gradient",
        source="AlphaDPO (arXiv 2410.10148) and its code; home_advantage is its gamma",
        margin="log_probability",
        adaptive="alpha_dpo",
        needs=("reference", "lengths"),
        options={"length": "mean", "home_advantage": 0.4, "alpha": 0.2, "momentum": 0.9},
    ),
    "wpo": Method(
        link="logistic",
        formula="-W log sigmoid(b D), W = min(1, exp(A_chosen + A_rejected)), A = mean of log pi - log sum pi^2",
        source="Zhou et al. 2024 (arXiv 2406.11827) and its code",
        adaptive="wpo",
        needs=("reference", "confidence"),
    ),
    "lb_dpo": Method(
        link="logistic",
        formula="-log sigmoid(b(x) D) + penalty log(f)^2, b(x) = b c(x) f(x), f = v (1 + range tanh(u h(x))), learned",
        source="Learnable Beta DPO, 1587causalai/learnable-beta-dpo (a project without results); see docs/method.md",
        adaptive="lb_dpo",
        needs=("reference", "prompt_perplexity", "prompt_hidden"),
        options={"range": 0.5, "penalty": 1.0},
    ),
    "mallows_theta": Method(
        link="logistic",
        formula="-log sigmoid(w b D)",
        source=f"{_MALLOWSPO}, Mallows-theta (Spearman's rho)",
        weight="dispersion",
        needs=_WEIGHTED,
    ),
    "mallows_phi": Method(
        link="mallows_phi",
        formula="-log g(b D), g: Kendall's pairwise probability with q = phi^exponent, smoothed at 0",
        source=f"{_MALLOWSPO}, Mallows-phi (Kendall's tau)",
        weight="dispersion",
        needs=_WEIGHTED,
        options={"exponent": 2.0, "smoothing": "cubic", "smoothing_width": 1.0, "steepness": 10.0},
    ),
    "mallows_ipo": Method(
        link="squared",
        formula="(w D/len - 1/(2b))^2; scaling beta: (w b D/len - 1/2)^2",
        source=f"{_OFFICIAL}:1276 (published), RainbowPO's code (beta); averaged over tokens like ipo",
        weight="dispersion",
        needs=("reference", "dispersion", "lengths"),
        options={"length": "mean", "scaling": "published"},
    ),
    "mallows_simpo": Method(
        link="logistic",
        formula="-log sigmoid(w b (P/len - home_advantage))",
        source=f"{_OFFICIAL}: its defaults",
        margin="log_probability",
        weight="dispersion",
        needs=("dispersion", "lengths"),
        options={"length": "mean", "home_advantage": 0.3},
    ),
    "mallows_slic": Method(
        link="hinge",
        formula="max(0, 1 - w b D) - sft log pi(chosen)",
        source="the dispersion weight inside SLiC's link, as GPO (arXiv 2402.05749) allows; not in the paper's code",
        weight="dispersion",
        needs=_WEIGHTED,
        options={"sft": 0.0},
    ),
    "mallows_rainbowpo": Method(
        link="logistic",
        formula="-log sigmoid(w b (P/len - mixing R/len - (1 - mixing) home_advantage))",
        source=f"{_RAINBOW}: RainbowPO with its contextual scaling",
        margin="mixed",
        weight="dispersion",
        needs=("reference", "dispersion", "lengths"),
        options={"length": "mean", "mixing": 0.25, "home_advantage": 0.1},
    ),
    "mallows_lb": Method(
        link="logistic",
        formula="-log sigmoid(w b(x) D) + penalty log(f)^2, b(x) and f as in lb_dpo",
        source="the combination that 1587causalai/learnable-beta-dpo proposes (no results); see docs/method.md",
        weight="dispersion",
        adaptive="lb_dpo",
        needs=("reference", "dispersion", "prompt_perplexity", "prompt_hidden"),
        options={"range": 0.5, "penalty": 1.0},
    ),
    "rcpo": Method(
        link="ranked_choice",
        formula="w/2 sigmoid(-b D) + log(1 + exp(-w/2)), the smoothed -log P(chosen) with P ~ phi^rank",
        source="Mallows-RMJ pairwise, Tang and Feng 2025 (arXiv 2510.23631), rebuilt from its description (not seen)",
        weight="dispersion",
        needs=_WEIGHTED,
    ),
}
