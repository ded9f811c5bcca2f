"""From entropies to weights, worked by hand and in the corners."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mallowspo.dispersion import (
    CONTROLS,
    CONVENTIONS,
    ESTIMATORS,
    Convention,
    ImpossibleValue,
    Terms,
    bounded,
    calibration_constant,
    controls,
    dispersion,
    length_strata,
    neutral_index,
    normalised_entropy,
    resolve_convention,
    sampled_terms,
    weights,
)

LOG16 = math.log(16)


def table(**changes):
    """Two pairs over a vocabulary of 16, in units of log 16: chosen 4 and 2 tokens, rejected 2 and 1.

    Token entropies of the first pair: header .5 .5, chosen .1 .2 .3 .4, rejected .6 .8 (both end); of the second pair:
    header .5, chosen .2 .4 (ends), rejected .9 (cut off).
    """
    columns = {
        "prompt_tokens": [10, 4],
        "prompt_entropy": [3.0, 1.0],
        "header_tokens": [2, 1],
        "header_entropy": [1.0, 0.5],
        "chosen_tokens": [4, 2],
        "chosen_entropy": [1.0, 0.6],
        "chosen_first_entropy": [0.1, 0.2],
        "chosen_end_entropy": [0.4, 0.4],
        "chosen_has_end": [True, True],
        "chosen_bigram_entropy": [1.5, 0.7],
        "rejected_tokens": [2, 1],
        "rejected_entropy": [1.4, 0.9],
        "rejected_first_entropy": [0.6, 0.9],
        "rejected_end_entropy": [0.8, 0.0],
        "rejected_has_end": [True, False],
        "rejected_bigram_entropy": [0.3, 0.0],
        "sampled_entropy": [2.0, 1.0],
        "sampled_tokens": [4.0, 2.5],
    }
    columns |= changes
    return {
        name: np.asarray(values) * (LOG16 if name.endswith("entropy") else 1) for name, values in columns.items()
    } | {"votes_chosen": np.array([3, 10]), "votes_rejected": np.array([1, 0])}


def estimate(name, terms=None, **changes):
    return ESTIMATORS[name](table(**changes), terms or Terms(16)).tolist()


def under(**convention):
    return Terms(16, Convention(**convention))


@pytest.mark.parametrize(
    ("name", "terms", "expected"),
    [
        ("entropy", Terms(16), [(0.25 + 0.7) / 2, (0.3 + 0.9) / 2]),
        ("chosen", Terms(16), [0.25, 0.3]),
        ("rejected", Terms(16), [0.7, 0.9]),
        ("prompt", Terms(16), [0.3, 0.25]),
        ("prompt", under(header=True), [4 / 12, 1.5 / 5]),
        # The official code: two header tokens of .5 each count on both sides.
        ("entropy", Terms(16, CONVENTIONS["official"]), [(2 / 6 + 2.4 / 4) / 2, (1.1 / 3 + 1.4 / 2) / 2]),
        # Without its first token the second pair's rejected side has none, and is left out.
        ("entropy", under(first_token=False), [(0.3 + 0.8) / 2, 0.4]),
        ("entropy", under(end_token=False), [(0.2 + 0.6) / 2, (0.2 + 0.9) / 2]),
        ("chosen", under(first_token=False, end_token=False), [0.25, math.nan]),
        # Paper: chosen .2 .3 .4 and rejected .8, N = 4; chosen .4 and rejected nothing, N = 2.
        ("paper_sum", under(first_token=False), [1.7 / (2 * 4), 0.4 / (2 * 2)]),
        ("paper_sum", Terms(16, Convention(first_token=False), "vocabulary"), [1.7 / 2, 0.4 / 2]),
        ("paper_sum", under(first_token=True), [2.4 / 8, 1.5 / 4]),
        ("paper_sum", under(first_token=False, end_token=False), [0.5 / 6, math.nan]),
        ("bigram", Terms(16), [(0.5 + 0.3) / 2, 0.7]),
        ("sampled", Terms(16), [0.5, 0.4]),
        # A share of 3/4 has entropy 0.811 bits; all of one mind: 0.
        ("votes", Terms(16), [-0.75 * math.log2(0.75) + 0.5, 0.0]),
    ],
)
def test_estimators_by_hand(name, terms, expected):
    assert estimate(name, terms) == pytest.approx(expected, nan_ok=True)


def test_the_sum_over_the_vocabulary_may_exceed_one_and_is_cut_and_counted():
    found = ESTIMATORS["paper_sum"](
        table(chosen_tokens=[9, 9], chosen_entropy=[8.0, 0.5]), Terms(16, normaliser="vocabulary")
    )
    assert found.tolist() == pytest.approx([4.7, 0.7])
    index = bounded(found, 1e-4)
    assert index.values.tolist() == pytest.approx([1.0, 0.7])
    assert (index.clamped, index.above_one, index.zero_weight, index.undefined) == (0, 1, 1, 0)


def test_a_response_of_nothing_but_its_end_loses_that_token_once():
    only_end = {"chosen_tokens": [1, 1], "chosen_entropy": [0.5, 0.5], "chosen_first_entropy": [0.5, 0.5],
                "chosen_end_entropy": [0.5, 0.5]}  # fmt: skip
    for convention in (Convention(first_token=False), Convention(end_token=False), Convention(False, False, False)):
        assert np.isnan(estimate("chosen", Terms(16, convention), **only_end)).all()
    assert estimate("chosen", Terms(16, Convention(False, False, True)), **only_end) == pytest.approx([0.5, 0.5])


def test_a_convention_is_a_preset_with_changes():
    assert resolve_convention("entropy", "response_tokens", None, None, None) == (True, True, False)
    assert resolve_convention("entropy", "official", None, None, None) == (True, True, True)
    assert resolve_convention("entropy", "official", None, False, False) == (True, False, False)
    # The paper's sum runs from i = 1: H(Y_2 | Y_1) is its first term.
    assert resolve_convention("paper_sum", "official", None, None, None) == (False, True, True)
    assert resolve_convention("paper_sum", "official", True, None, None) == (True, True, True)


def test_normalised_entropy_by_hand():
    """Two tokens of entropy log 2 each over a vocabulary of 16: 2 log 2 / (2 log 16) = 1/4; of no token: undefined."""
    found = normalised_entropy(np.array([2 * math.log(2), 0.0]), np.array([2, 0]), 16)
    assert found.tolist() == pytest.approx([0.25, math.nan], nan_ok=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 3.1])
@pytest.mark.parametrize("name", ["entropy", "chosen", "paper_sum"])
def test_impossible_entropies_are_refused_with_their_place(name, value):
    with pytest.raises(ImpossibleValue) as caught:
        estimate(name, chosen_entropy=[1.0, value])
    assert (caught.value.position, caught.value.count) == (1, 1)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("prompt", "prompt_entropy"),
        ("bigram", "rejected_bigram_entropy"),
        ("sampled", "sampled_entropy"),
        ("chosen", "chosen_first_entropy"),
    ],
)
def test_every_column_that_is_read_is_checked(name, column):
    with pytest.raises(ImpossibleValue, match=f"{column} is nan"):
        estimate(name, under(first_token=False), **{column: [math.nan, 0.2]})


def test_a_response_without_tokens_is_refused():
    with pytest.raises(ImpossibleValue, match="rejected response has no tokens") as caught:
        estimate("entropy", rejected_tokens=[2, 0])
    assert caught.value.position == 1


def test_votes_that_sum_to_nothing_or_are_negative_are_refused():
    with pytest.raises(ImpossibleValue, match="sum to 0"):
        ESTIMATORS["votes"]({"votes_chosen": [1, 0], "votes_rejected": [0, 0]}, Terms(16))
    with pytest.raises(ImpossibleValue, match=r"votes_rejected is -1\.0"):
        ESTIMATORS["votes"]({"votes_chosen": [1], "votes_rejected": [-1]}, Terms(16))
    even = ESTIMATORS["votes"]({"votes_chosen": [5], "votes_rejected": [5]}, Terms(16))
    assert even.tolist() == [1.0]


def test_sampled_terms_by_hand():
    """Sums 1 and 3 over 2 and 4 tokens, V = 16: mean 2 over 3; residuals -1/3, 1/3: variance 2/9, of the mean 1/9."""
    found = sampled_terms([[1.0, 3.0]], [[2, 4]], 16)
    assert (found.entropy.tolist(), found.tokens.tolist()) == ([2.0], [3.0])
    assert found.variance.tolist() == pytest.approx([(1 / 9) / (3 * LOG16) ** 2])


def test_the_sampled_variance_is_that_of_the_estimator():
    """Against 20 000 repetitions with k = 8 answers of 5 to 15 tokens."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 16, (20_000, 8)).astype(float)
    sums = lengths * 1.2 + draw.normal(0, 1.5, lengths.shape) + 4
    terms = sampled_terms(sums, lengths, 16)
    index = terms.entropy / (terms.tokens * LOG16)
    assert terms.variance.mean() == pytest.approx(index.var(), rel=0.1)


def test_index_is_bounded_and_every_case_counted():
    found = bounded(np.array([0.3, 0.0, 1.0, math.nan, 1e-4]), floor=1e-4)
    assert found.values.tolist() == pytest.approx([0.3, 1e-4, 1.0, math.nan, 1e-4], nan_ok=True)
    assert (found.clamped, found.above_one, found.zero_weight, found.undefined) == (1, 0, 1, 1)


def test_uniform_up_to_float32_is_uniform():
    """Otherwise a weight of 1e-8 everywhere would be calibrated to 1."""
    entropy = np.float32(math.log(50_000)) * np.ones(3) * 7
    found = bounded(normalised_entropy(entropy, np.full(3, 7), 50_000), 1e-4)
    assert (found.values.tolist(), found.zero_weight, found.above_one) == ([1.0] * 3, 3, 0)
    assert bounded(np.array([1 - 1e-5]), 1e-4).values.tolist() == [1 - 1e-5]


def test_uniform_laws_weigh_nothing():
    uniform = normalised_entropy(np.array([5 * math.log(100)]), np.array([5]), 100)
    weight = weights(uniform, 3.0)
    assert weight.tolist() == pytest.approx([0.0])
    assert (math.copysign(1, weights(np.ones(1), 3.0)[0]), dispersion(np.zeros(1))[0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="weights would all be 0"):
        calibration_constant(np.ones(4))
    with pytest.raises(ValueError, match="nothing to calibrate by"):
        calibration_constant(np.full(3, math.nan))


def test_calibration_makes_the_mean_weight_one():
    index = np.random.default_rng(0).uniform(0.01, 0.99, 500)
    index[7] = math.nan
    constant = calibration_constant(index)
    filled = np.where(np.isnan(index), neutral_index(index), index)
    weight = weights(filled, constant)
    assert weight.mean() == pytest.approx(1.0)
    assert weight[7] == pytest.approx(1.0)  # undefined: as much as the mean pair
    assert bool((weight >= 0).all())
    # phi = exp(-w/2), so that -2 log(phi) = w; weight 1 is phi = e^(-1/2), DPO.
    assert (-2 * np.log(dispersion(weight))).tolist() == pytest.approx(weight.tolist())
    assert dispersion(np.array([1.0]))[0] == pytest.approx(0.60653, abs=1e-5)


def test_the_official_constant_fits_its_own_model():
    """0.29 gives mean weight 1 where E[-log index] = 1 / 0.29 = 3.448: the index is then about 0.0318."""
    assert calibration_constant(np.full(3, math.exp(-1 / 0.29))) == pytest.approx(0.29)


def test_controls_by_hand():
    weight = np.array([0.5, 2.0, 1.0, 0.1])
    found = controls(weight, np.arange(4.0), seed=0)
    assert set(found) == set(CONTROLS)
    assert found["inverted"].tolist() == [1.0, 0.1, 0.5, 2.0]
    # Four pairs make one stratum, so nothing is held fixed.
    assert sorted(found["length_matched"]) == sorted(weight)


@given(pairs=st.integers(1, 120), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_controls_keep_the_distribution(pairs, seed):
    draw = np.random.default_rng(seed)
    weight, lengths = draw.gamma(2, 0.5, pairs), draw.integers(1, 30, pairs).astype(float)
    found = controls(weight, lengths, seed)
    again = controls(weight, lengths, seed)
    for name, values in found.items():
        assert np.sort(values).tolist() == np.sort(weight).tolist()
        assert values.tolist() == again[name].tolist()
    assert (np.argsort(found["inverted"]) == np.argsort(weight)[::-1]).all()


def test_controls_differ_by_seed_and_destroy_what_they_should():
    draw = np.random.default_rng(1)
    lengths = draw.integers(5, 400, 600).astype(float)
    own = draw.normal(0, 1, 600)
    weight = np.exp(0.004 * lengths + 0.3 * own)
    found, other = controls(weight, lengths, 0), controls(weight, lengths, 1)
    assert found["shuffled"].tolist() != other["shuffled"].tolist()
    assert found["length_matched"].tolist() != other["length_matched"].tolist()

    def correlation(first, second):
        return float(np.corrcoef(np.log(first), second)[0, 1])

    assert abs(correlation(found["shuffled"], lengths)) < 0.1
    assert correlation(found["inverted"], lengths) < -0.7
    # What the weight owes to length stays, what it owes to anything else goes.
    assert correlation(found["length_matched"], lengths) == pytest.approx(correlation(weight, lengths), abs=0.03)
    assert abs(correlation(found["length_matched"], own)) < 0.1 < correlation(weight, own)


@pytest.mark.parametrize(("pairs", "strata"), [(1, 1), (9, 1), (10, 2), (23, 4), (50, 10), (1000, 10)])
def test_strata_of_length(pairs, strata):
    lengths = np.random.default_rng(0).permutation(pairs).astype(float)
    parts = length_strata(lengths)
    assert len(parts) == strata
    assert sorted(position for part in parts for position in part) == list(range(pairs))
    assert min(len(part) for part in parts) >= min(pairs, 5)
    assert all(lengths[a].max() < lengths[b].min() for a, b in pairwise(parts))
