"""The ranking model against enumeration of all rankings, and in the corners of (gap, phi)."""

import itertools
import math

import mpmath
import pytest
import torch

from mallowspo.mallows import (
    bernoulli_curvature,
    kendall_log_probability,
    negative_bernoulli_slope,
    pairwise_probability,
    pairwise_slope,
)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def enumerated_probability(n: int, phi: float, exponent: int, gap: int) -> float:
    """P(item 0 ranked ahead of item `gap`) under P ~ phi^(exponent * Kendall's tau), by listing all n! rankings."""
    total = ahead = 0.0
    for ranking in itertools.permutations(range(n)):  # ranking[i]: place of item i; the centre is 0..n-1
        d = sum(ranking[i] > ranking[j] for i in range(n) for j in range(i + 1, n))
        mass = phi ** (exponent * d)
        total += mass
        ahead += mass * (ranking[0] < ranking[gap])
    return ahead / total


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("phi", [1e-6, 0.05, 0.4, 0.7, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("exponent", [1, 2])
def test_kendall_is_the_exact_marginal(n, phi, exponent):
    for gap in range(1, n):
        found = pairwise_probability(double(float(gap)), double(phi), exponent=exponent)
        assert found.item() == pytest.approx(enumerated_probability(n, phi, exponent, gap), abs=1e-12)


def test_spearman_is_the_marginal_of_two_items():
    """Two exchanged items lie 2 apart: P(upset) / P(no upset) = phi^2 under P ~ phi^(sum of squares)."""
    found = pairwise_probability(double(1.0), double(0.7), distance="spearman")
    assert found.item() == pytest.approx(1 / (1 + 0.7**2), abs=1e-12)


def test_values_worked_by_hand():
    """h(k) = k / (1 - q^k); q = 1/4: g(1) = 2/(1 - 1/16) - 1/(1 - 1/4) = 0.8; g(2) = 3/(1 - 1/64) - 2/(1 - 1/16)."""
    half = torch.tensor(0.5, dtype=torch.float64)
    gaps = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    expected = [0.8, 64 / 21 - 32 / 15, 0.2, 1.5 / (1 - 0.125) - 0.5 / (1 - 0.5)]
    assert pairwise_probability(gaps, half).tolist() == pytest.approx(expected, abs=1e-14)


def test_published_check_values():
    """Pairs of Kendall / Spearman values at phi = .5, .8, .95 (method notes, section 1.4)."""
    for phi, gap, kendall, spearman in [
        (0.5, 0.5, 0.714, 0.667), (0.5, 5, 0.9966, 0.9990), (0.8, 2, 0.678, 0.709), (0.8, 5, 0.841, 0.903),
        (0.95, 5, 0.593, 0.626), (0.95, 20, 0.806, 0.886),
    ]:  # fmt: skip
        point = (torch.tensor(float(gap), dtype=torch.float64), torch.tensor(phi, dtype=torch.float64))
        assert pairwise_probability(*point).item() == pytest.approx(kendall, abs=6e-4)
        assert pairwise_probability(*point, distance="spearman").item() == pytest.approx(spearman, abs=6e-4)


@pytest.mark.parametrize("distance", ["kendall", "spearman"])
def test_symmetry_and_agreement_at_one_place(distance):
    gaps = torch.linspace(-30, 30, 241, dtype=torch.float64)
    for phi in (1e-6, 0.3, 0.9, 1 - 1e-9):
        law = pairwise_probability(gaps, torch.tensor(phi, dtype=torch.float64), distance=distance)
        assert torch.allclose(law + law.flip(0), torch.ones_like(law), atol=1e-12)
        one = pairwise_probability(
            torch.tensor(1.0, dtype=torch.float64), torch.tensor(phi, dtype=torch.float64), distance=distance
        )
        assert one.item() == pytest.approx(1 / (1 + phi**2), abs=1e-12)


def test_uniform_limit():
    law = pairwise_probability(torch.tensor(3.0, dtype=torch.float64), torch.tensor(1 - 1e-9, dtype=torch.float64))
    # 1/2 + (2 s + 1)(1 - q)/12 with q = phi^2
    assert law.item() - 0.5 == pytest.approx(7 * 2e-9 / 12, rel=1e-4)
    by_q = pairwise_probability(double(3.0), double(1 - 1e-9), exponent=1)
    assert 0 < by_q.item() - 0.5 < 1e-9


def test_far_tail_in_logarithms():
    """-log g(s) for s << 0 is |s| rate - log(|s|(1 - q) - q) up to vanishing terms; no underflow."""
    for rate in (0.3, 2.0):
        q = math.exp(-rate)
        found = kendall_log_probability(torch.tensor(-500.0), torch.tensor(rate)).item()
        assert found == pytest.approx(-500 * rate + math.log(500 * (1 - q) - q), rel=1e-5)


def test_float32_is_finite_with_finite_gradients_on_a_grid():
    gap = torch.linspace(-80, 80, 401)
    phi = torch.cat([torch.logspace(-6, -0.01, 150), 1 - torch.logspace(-6.5, -2, 100)])
    gaps, phis = (part.clone().requires_grad_() for part in torch.meshgrid(gap, phi, indexing="ij"))
    value = kendall_log_probability(gaps, -2 * torch.log(phis))
    value.sum().backward()
    assert value.numel() > 10**5
    for tensor in (value, gaps.grad, phis.grad):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["kendall", "spearman"])
def test_any_real_gap_in_both_precisions(dtype, distance):
    gaps = [0.0, 1e-30, 1e-6, 0.5, 3.0, 1e3, 1e6, 1e15, 1e30]
    gap = torch.tensor([sign * value for value in gaps for sign in (1, -1)], dtype=dtype)[:, None].requires_grad_()
    phi = torch.tensor([1e-6, 0.01, 0.5, 0.9, 1 - 1e-6, 1 - 1e-9, 1.0], dtype=dtype).requires_grad_()
    law = pairwise_probability(gap, phi, distance=distance)
    law.sum().backward()
    for tensor in (law, gap.grad, phi.grad):
        assert bool(tensor.isfinite().all())
    assert bool(((law >= 0) & (law <= 1)).all())
    slope = pairwise_slope(gap.detach(), phi.detach(), distance=distance)
    assert bool((slope.isfinite() & (slope >= 0)).all())


@pytest.mark.parametrize("phi", [0.05, 0.5, 0.9, 1 - 1e-4, 1 - 1e-9])
@pytest.mark.parametrize("gap", [0.01, 0.7, 3.0, 40.0])
def test_values_and_derivatives_with_60_digits(gap, phi):
    """g(s) = h(s + 1) - h(s), h(k) = k / (1 - q^k), q = phi^2: value, slope in s and slope in phi."""
    with mpmath.workdps(60):

        def law(s, p):
            return (s + 1) / (1 - p ** (2 * (s + 1))) - s / (1 - p ** (2 * s))

        # phi as the binary number that the code is given
        exact_phi, exact_gap = mpmath.mpf(phi), mpmath.mpf(gap)
        value = float(law(exact_gap, exact_phi))
        in_gap = float(mpmath.diff(lambda s: law(s, exact_phi), exact_gap))
        in_phi = float(mpmath.diff(lambda p: law(exact_gap, p), exact_phi))
    point, parameter = double(gap).requires_grad_(), double(phi).requires_grad_()
    found = pairwise_probability(point, parameter)
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-13)
    assert pairwise_slope(double(gap), double(phi)).item() == pytest.approx(in_gap, rel=1e-11)
    assert parameter.grad.item() == pytest.approx(in_phi, rel=1e-10, abs=1e-13)
    assert point.grad.item() == pytest.approx(in_gap, rel=1e-10, abs=1e-13)
    negative = double(-gap).requires_grad_()
    pairwise_probability(negative, double(phi)).backward()
    assert negative.grad.item() == pytest.approx(in_gap, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("distance", ["kendall", "spearman"])
def test_gradients_against_finite_differences(distance):
    gap = double([-7.0, -1.3, -0.2, 0.2, 0.9, 4.0])[:, None].requires_grad_()
    phi = double([0.1, 0.6, 0.61, 0.95, 0.9999]).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, p: pairwise_probability(s, p, distance=distance), (gap, phi))
    assert torch.autograd.gradcheck(lambda s, p: pairwise_slope(s, p, distance=distance), (gap, phi))


@pytest.mark.parametrize("x", [1e-3, 0.1, 0.9999, 1.0, 1.5, 10.0, 300.0])
def test_derivatives_of_the_bernoulli_function(x):
    """b(x) = x / (exp(x) - 1), differentiated with 60 digits."""
    with mpmath.workdps(60):
        slope, curvature = (float(mpmath.diff(lambda t: t / mpmath.expm1(t), x, order)) for order in (1, 2))
    for dtype, tolerance in [(torch.float64, 1e-14), (torch.float32, 1e-6)]:
        point = torch.tensor(x, dtype=dtype)
        exact = float(torch.finfo(dtype).tiny)  # below, float32 has no digits left
        assert negative_bernoulli_slope(point).item() == pytest.approx(-slope, rel=tolerance, abs=exact)
        assert bernoulli_curvature(point).item() == pytest.approx(curvature, rel=tolerance, abs=exact)


@pytest.mark.parametrize("phi", [0.0, -0.1, 1.1, math.nan])
def test_phi_outside_its_range_is_refused(phi):
    with pytest.raises(ValueError, match="phi must lie in"):
        pairwise_probability(torch.tensor(1.0), torch.tensor(phi))
