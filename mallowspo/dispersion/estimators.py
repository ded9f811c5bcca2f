"""The dispersion index of a pair, estimated in one of eight ways; all are normalised entropies."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Columns = Mapping[Any, Any] | Any


class ImpossibleValue(ValueError):
    """A column holds what no model can give; `position` is the row of the first such pair."""

    def __init__(self, wrong: NDArray[np.bool_], problem: str):
        self.position = int(np.flatnonzero(wrong)[0])
        self.count = int(np.sum(wrong))
        super().__init__(problem)


class Convention(NamedTuple):
    """Which tokens count."""

    first_token: bool = True  # predicted from the prompt alone
    end_token: bool = True  # end-of-sequence
    header: bool = False  # what the chat template puts between prompt and response; the same for both sides


#: "official": the official code builds the response by the chat template, so its header counts as response.
CONVENTIONS = {"response_tokens": Convention(), "official": Convention(header=True)}


@dataclass(frozen=True)
class Terms:
    """What the estimators sum over, and what they divide by."""

    vocabulary: int  # V, the width of the model's output
    convention: Convention = CONVENTIONS["response_tokens"]
    normaliser: str = "sequences"  # "paper_sum" only: log n is N log V ("sequences"), or log V ("vocabulary")


def resolve_convention(
    estimator: str, name: str, first_token: bool | None, end_token: bool | None, header: bool | None
) -> Convention:
    """The named convention, with what is not None in its place; the paper's sum has no first token by its formula."""
    named = CONVENTIONS[name]
    if estimator == "paper_sum":
        named = named._replace(first_token=False)
    changes = {"first_token": first_token, "end_token": end_token, "header": header}
    return named._replace(**{key: value for key, value in changes.items() if value is not None})


def normalised_entropy(entropy_sum: Array, tokens: Array, vocabulary: int) -> Array:
    """Mean entropy a token over log V: (B,) in [0, 1], NaN where there is no token.

    Args:
        entropy_sum: (B,) sum over tokens of the next-token entropy, nats.
        tokens: (B,) number of those tokens.
        vocabulary: V, the width of the model's output.

    Raises:
        ImpossibleValue: an entropy is not finite, or lies outside [0, tokens * log V].
    """
    defined = tokens > 0
    normalised = np.where(defined, entropy_sum, 0.0) / (np.where(defined, tokens, 1) * math.log(vocabulary))
    # The upper edge leaves room for rounding: a uniform law over V tokens sums to log V only approximately.
    wrong = ~(np.isfinite(entropy_sum) & (normalised >= 0) & (normalised <= 1 + 1e-4))
    if np.any(wrong):
        raise ImpossibleValue(wrong, "an entropy is not finite or lies outside [0, log V] a token")
    return np.where(defined, np.minimum(normalised, 1.0), np.nan)


def counted(columns: Columns, side: str, convention: Convention) -> tuple[Array, Array]:
    """Sum of the entropies and number of the tokens that count, (B,) each; `side` is chosen or rejected.

    Raises:
        ImpossibleValue: a response without tokens; an entropy that is not finite or negative.
    """
    tokens, entropy = (_numbers(columns, f"{side}_{name}") for name in ("tokens", "entropy"))
    if np.any(tokens < 1):
        raise ImpossibleValue(tokens < 1, f"its {side} response has no tokens")
    kept = tokens.copy()
    if not convention.first_token:
        entropy, kept = entropy - _numbers(columns, f"{side}_first_entropy"), kept - 1
    if not convention.end_token:
        # In a response of nothing but the end, the first token is the end: it is taken off once.
        ended = np.asarray(columns[f"{side}_has_end"], dtype=bool) & (convention.first_token | (tokens > 1))
        entropy = entropy - np.where(ended, _numbers(columns, f"{side}_end_entropy"), 0.0)
        kept = kept - ended
    if convention.header:
        entropy, kept = entropy + _numbers(columns, "header_entropy"), kept + _numbers(columns, "header_tokens")
    # Differences of equal sums need not be 0 to the last digit.
    return np.maximum(entropy, 0.0), kept


def _numbers(columns: Columns, name: str) -> Array:
    values = np.asarray(columns[name], dtype=np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if np.any(wrong):
        raise ImpossibleValue(wrong, f"{name} is {values[wrong][0]}, not a finite number of at least 0")
    return values


def _of_side(columns: Columns, terms: Terms, side: str) -> Array:
    return normalised_entropy(*counted(columns, side, terms.convention), terms.vocabulary)


def _mean_of_sides(chosen: Array, rejected: Array) -> Array:
    """A side without a token that counts says nothing, and is left out; NaN where both are."""
    sides = np.stack([chosen, rejected])
    defined = np.isfinite(sides)
    total: Array = np.where(defined, sides, 0.0).sum(axis=0)
    return total / np.where(defined.any(axis=0), defined.sum(axis=0), np.nan)


def entropy(columns: Columns, terms: Terms) -> Array:
    """Mean over both sides of the entropy a token given all that stands before it, over log V (official code)."""
    return _mean_of_sides(_of_side(columns, terms, "chosen"), _of_side(columns, terms, "rejected"))


def chosen(columns: Columns, terms: Terms) -> Array:
    """As `entropy`, of the chosen response alone."""
    return _of_side(columns, terms, "chosen")


def rejected(columns: Columns, terms: Terms) -> Array:
    """As `entropy`, of the rejected response alone."""
    return _of_side(columns, terms, "rejected")


def prompt(columns: Columns, terms: Terms) -> Array:
    """Entropy a token of the prompt, over log V; NaN for a one-token prompt. The convention matters for the header."""
    parts = ("prompt", "header") if terms.convention.header else ("prompt",)
    sums, tokens = (sum(_numbers(columns, f"{part}_{name}") for part in parts) for name in ("entropy", "tokens"))
    return normalised_entropy(np.asarray(sums), np.asarray(tokens), terms.vocabulary)


def paper_sum(columns: Columns, terms: Terms) -> Array:
    """The paper's form, sum over i = 1..N-1 of [H(Y_i+1 | y_w up to i) + H(Y_i+1 | y_l up to i)] / (2 log n).

    N is the longer side's length; past its end the shorter side adds nothing. With n = V^N ("sequences") this lies in
    [0, 1); with n = V ("vocabulary", as the survey arXiv 2409.11564 glosses eq. 54) it is a sum and may exceed 1.
    NaN where both sides have no term.
    """
    sums, lengths = [], []
    for side in ("chosen", "rejected"):
        total, terms_counted = counted(columns, side, terms.convention)
        normalised_entropy(total, terms_counted, terms.vocabulary)  # refuses the impossible
        sums.append(total)
        lengths.append(terms_counted)
    longest = np.maximum(*lengths)
    log_n = math.log(terms.vocabulary) * np.ones_like(longest)
    if terms.normaliser == "sequences":
        log_n *= longest + (not terms.convention.first_token)
    return np.where(longest > 0, (sums[0] + sums[1]) / (2 * log_n), np.nan)


def bigram(columns: Columns, terms: Terms) -> Array:
    """As `entropy`, but H(Y | Y_i = y_i) given one token alone, the paper's notation to the letter: |y|-1 terms a side.

    The convention has no say: the first token has no token before it. NaN where both sides have one token.
    """
    sides = [
        normalised_entropy(
            _numbers(columns, f"{side}_bigram_entropy"), _numbers(columns, f"{side}_tokens") - 1, terms.vocabulary
        )
        for side in ("chosen", "rejected")
    ]
    return _mean_of_sides(sides[0], sides[1])


def sampled(columns: Columns, terms: Terms) -> Array:
    """Predictive entropy a token of the model's own answers to the prompt, over log V, from `sampled_terms`.

    Every sampled token counts, first and end-of-sequence too.
    """
    return normalised_entropy(
        _numbers(columns, "sampled_entropy"), _numbers(columns, "sampled_tokens"), terms.vocabulary
    )


def votes(columns: Columns, terms: Terms) -> Array:
    """Entropy of the share of voters who preferred the chosen response, over log 2; no model has a say.

    Raises:
        ImpossibleValue: negative or non-finite votes, or votes that sum to 0.
    """
    for_chosen, against = _numbers(columns, "votes_chosen"), _numbers(columns, "votes_rejected")
    total = for_chosen + against
    if np.any(total == 0):
        raise ImpossibleValue(total == 0, "its votes sum to 0: nobody voted")
    shares = np.stack([for_chosen, against]) / total
    # x log x is 0 at 0.
    terms_of_entropy: Array = shares * np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(np.abs(terms_of_entropy.sum(axis=0)))


#: Each takes a table's columns and `Terms`, and gives (B,) indices before `bounded`, NaN where undefined.
ESTIMATORS: dict[str, Callable[[Columns, Terms], Array]] = {
    "entropy": entropy,
    "chosen": chosen,
    "rejected": rejected,
    "prompt": prompt,
    "paper_sum": paper_sum,
    "bigram": bigram,
    "sampled": sampled,
    "votes": votes,
}


class SampledTerms(NamedTuple):
    """Of each prompt's sampled answers; all (B,)."""

    entropy: Array  # mean over answers of the summed token entropies, nats: unbiased for H(Y | x)
    tokens: Array  # mean number of tokens
    variance: Array  # of the index: entropy / (tokens * log V)


def sampled_terms(entropy_sums: ArrayLike, tokens: ArrayLike, vocabulary: int) -> SampledTerms:
    """What K sampled answers say of the predictive entropy, and how surely.

    The sum of an answer's token entropies has mean H(Y | x), as -log p(y | x) does, and less variance, because each
    term is already the mean over the next token (Rao-Blackwell). The variance is that of a ratio of means, to first
    order (Cochran, Sampling Techniques, eq. 6.13).

    Args:
        entropy_sums: (B, K) sum over an answer's tokens of the next-token entropy, nats; K at least 2.
        tokens: (B, K) number of those tokens, at least 1.
    """
    sums, lengths = np.asarray(entropy_sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    mean_sum, mean_length = sums.mean(axis=-1), lengths.mean(axis=-1)
    residuals = sums - (mean_sum / mean_length)[..., None] * lengths
    spread = residuals.var(axis=-1, ddof=1) / sums.shape[-1]
    return SampledTerms(mean_sum, mean_length, spread / (mean_length * math.log(vocabulary)) ** 2)
