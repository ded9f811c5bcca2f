"""(b) Every estimator against the exact entropy of the answers of a small language model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mallowspo import inference
from mallowspo.dispersion import ESTIMATORS, Terms, sampled_terms
from mallowspo.dispersion_study.association import rank_correlations
from mallowspo.dispersion_study.chain import Answers, Chain
from mallowspo.dispersion_study.estimators import SUMMED, filled, indices
from mallowspo.dispersion_study.settings import ChainSettings, StatisticsSettings

Array = NDArray[np.float64]

EQUAL, DIFFER, OFF_POLICY = "equal lengths", "lengths differ", "lengths differ, off-policy"
#: The paper's H(Y_i+1 | Y_i) read as the policy's law for this prompt; needs a model whose laws can be averaged.
BIGRAM_BY_PROMPT = "bigram, by prompt"
#: The same sampled answers, their entropies summed and not divided by the length: unbiased for the sequence entropy.
SAMPLED_SUM = "sampled, not divided by length"
#: What both sums are measured against is not the rate but sequence entropy / log V.
SUMS = (SUMMED, SAMPLED_SUM)


@dataclass(frozen=True)
class Condition:
    """One language model with its pairs: the truth, and each estimator's index of every prompt."""

    name: str
    sequence_entropy: Array  # (P,) nats
    mean_length: Array  # (P,)
    rate: Array  # (P,) sequence entropy / (mean length * log V)
    indices: dict[str, Array]  # each (P,)


def conditions(settings: ChainSettings, seed: int) -> Iterator[Condition]:
    """The same prompts with answers of equal expected length, of different ones, and of another policy's making."""
    for name, differ, factor in ((EQUAL, False, 1.0), (DIFFER, True, 1.0), (OFF_POLICY, True, settings.off_policy)):
        rng = np.random.default_rng(seed)
        chain, prompts = make_chains(settings, rng, differ)
        columns = pair_columns(chain, prompts, settings, rng, factor)
        found = {label: filled(index) for label, index in indices(columns, chain.vocabulary).items()}
        by_prompt = {f"{side}_bigram_entropy": columns[f"{side}_bigram_by_prompt"] for side in ("chosen", "rejected")}
        found[BIGRAM_BY_PROMPT] = filled(ESTIMATORS["bigram"](columns | by_prompt, Terms(chain.vocabulary)))
        found[SAMPLED_SUM] = columns["sampled_entropy"] / math.log(chain.vocabulary)
        rate = chain.sequence_entropy / (chain.mean_length * math.log(chain.vocabulary))
        yield Condition(name, chain.sequence_entropy, chain.mean_length, rate, found)


def make_chains(settings: ChainSettings, rng: np.random.Generator, lengths_differ: bool) -> tuple[Chain, Chain]:
    """The model of the answers, and of the prompts' own words: same language, related temperatures, no end."""
    count, words = settings.prompts, settings.words
    scores = rng.normal(size=(words + 1, words + 1, words))
    normal = rng.normal(size=(3, count))
    weight = settings.prompt_correlation
    related = weight * normal[0] + math.sqrt(1 - weight**2) * normal[1]
    temperature, of_prompt = (_log_uniform(values, settings.temperatures) for values in (normal[0], related))
    length = _log_uniform(normal[2], settings.mean_lengths)
    if not lengths_differ:
        length = np.full_like(length, math.sqrt(math.prod(settings.mean_lengths)))
    # An answer has at least one word before it can end, so a stop of 1 / (length - 1) gives that mean before the cut.
    stop = 1 / np.maximum(length - 1, 1.0)
    return (
        Chain(scores, temperature, stop, settings.max_tokens),
        Chain(scores, of_prompt, np.zeros(count), settings.prompt_tokens),
    )


def _log_uniform(normal: Array, bounds: tuple[float, float]) -> Array:
    low, high = (math.log(bound) for bound in bounds)
    value: Array = np.exp(low + (high - low) * stats.norm.cdf(normal))
    return value


def pair_columns(
    chain: Chain, prompts: Chain, settings: ChainSettings, rng: np.random.Generator, factor: float
) -> dict[str, Array]:
    """What the reference stage would write: one pair a prompt, its answers drawn at `factor` times the temperature."""
    pairs = chain.sample(rng, 2, factor)
    columns: dict[str, Array] = {}
    for index, side in enumerate(("chosen", "rejected")):
        one = Answers(pairs.tokens[:, [index]], pairs.lengths[:, [index]], pairs.ended[:, [index]])
        columns |= {f"{side}_{name}": values[:, 0] for name, values in _side(chain, one).items()}
    own = prompts.token_entropies(prompts.sample(rng, 1))[:, 0]
    # The first token of a text has nothing before it that could predict it.
    columns["prompt_entropy"] = own[:, 1:].sum(axis=-1)
    columns["prompt_tokens"] = np.full(len(own), own.shape[1] - 1)
    columns["header_tokens"] = np.full(len(own), settings.header_tokens)
    columns["header_entropy"] = np.zeros(len(own))
    answers = chain.sample(rng, settings.samples)
    terms = sampled_terms(chain.token_entropies(answers).sum(axis=-1), answers.lengths, chain.vocabulary)
    return columns | {"sampled_entropy": terms.entropy, "sampled_tokens": terms.tokens}


def _side(chain: Chain, answers: Answers) -> dict[str, Array]:
    """Columns of one side's answers, (P, A) each."""
    entropies = chain.token_entropies(answers)
    last = np.take_along_axis(entropies, answers.lengths[..., None] - 1, axis=-1)[..., 0]
    # Every token but an answer's last one has a next token; the end has none, so only words come before one.
    before = answers.tokens[..., :-1]
    counted = answers.tokens[..., 1:] >= 0
    prompts = np.arange(len(before))[:, None, None]

    def bigrams(by_prompt: bool) -> Array:
        given_word = chain.bigram_entropies(by_prompt)[prompts, np.where(counted, before, 0)]
        total: Array = np.where(counted, given_word, 0.0).sum(axis=-1)
        return total

    return {
        "tokens": answers.lengths,
        "entropy": entropies.sum(axis=-1),
        "logp": chain.log_probabilities(answers),
        "first_entropy": entropies[..., 0],
        "end_entropy": np.where(answers.ended, last, 0.0),
        "has_end": answers.ended,
        "bigram_entropy": bigrams(False),
        "bigram_by_prompt": bigrams(True),
    }


def summarise(condition: Condition, statistics: StatisticsSettings, seed: int) -> pd.DataFrame:
    """One row an estimator: rank correlation with the sequence entropy and with the rate, and bias, with intervals.

    bias: mean of index - rate; for sums that are not divided by a length, of index - sequence entropy / log V.
    """
    options = {**statistics.model_dump(), "seed": seed}
    against = {
        "sequence": rank_correlations(condition.indices, condition.sequence_entropy, **options),
        "rate": rank_correlations(condition.indices, condition.rate, **options),
    }
    rows = []
    for label, index in condition.indices.items():
        truth = condition.rate
        if label in SUMS:
            truth = condition.rate * condition.mean_length
        bias = inference.estimate(index - truth, statistics.confidence)
        row = {"condition": condition.name, "estimator": label, "n": len(index)}
        for target, found in against.items():
            result = found[label]
            row |= {f"rho_{target}": result.rho, f"rho_{target}_low": result.low, f"rho_{target}_high": result.high}
        row |= {"bias": bias.mean, "bias_low": bias.low, "bias_high": bias.high}
        row["above_one"] = int((index > 1).sum())
        rows.append(row)
    return pd.DataFrame(rows)
