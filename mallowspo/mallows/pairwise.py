"""Mallows' ranking model: the probability that one of two items is ranked ahead of the other.

A ranking mu has probability proportional to phi^(c * d(mu, mu0)), with centre mu0, dispersion phi in (0, 1] and
a distance d between rankings. Under Kendall's tau the pairwise probability depends only on how many places apart
the two items are in mu0. With lambda = -log(q), where q = phi^c, and the Bernoulli function
b(x) = x / (exp(x) - 1), the probability that the item ranked k > 0 places *behind* wins is

    T(k) = (b(lambda k) - b(lambda (k + 1))) / lambda,

which is h(k+1) - h(k) with h(k) = k / (1 - q^k) (Mallows 1957; spec of MallowsPO-phi) written so that it neither
cancels nor overflows. In logarithms,

    T(k) = exp(-lambda k) * integral over t in [0, 1] of exp(-lambda t) c(lambda (k + t)),  c(x) = exp(x) * -b'(x):

closed form where lambda >= 1, Gauss-Legendre quadrature below, exact to rounding in both.

All functions take tensors that broadcast, and are differentiable everywhere but at gap 0.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

#: Below, closed forms in lambda cancel; above, 8 quadrature nodes no longer suffice.
_LAMBDA_SPLIT = 1.0
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)
#: Even Bernoulli numbers B_2 .. B_24, for the Taylor series of b' and b'' around 0.
_BERNOULLI = (
    *(1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330),
    *(854513 / 138, -236364091 / 2730),
)


def negative_bernoulli_slope(x: Tensor) -> Tensor:
    """-b'(x) for x >= 0, where b(x) = x / (exp(x) - 1); falls from 1/2 at 0 to 0."""
    return torch.exp(-x) * _scaled_slope(x)


def bernoulli_curvature(x: Tensor) -> Tensor:
    """b''(x) for x >= 0, where b(x) = x / (exp(x) - 1); falls from 1/6 at 0 to 0."""
    near_zero = x < 1.0
    small = torch.where(near_zero, x, torch.zeros_like(x))
    series = torch.zeros_like(small)
    for index, bernoulli in enumerate(_BERNOULLI):
        order = 2 * index  # b''(x) = sum over n of B_n x^(n-2) / (n-2)!
        series = series + bernoulli / math.factorial(order) * small**order
    large = torch.where(near_zero, torch.ones_like(x), x)
    decay, missing = torch.exp(-large), -torch.expm1(-large)
    closed = decay * (large * (1 + decay) - 2 * missing) / missing**3
    return torch.where(near_zero, series, closed)


def _scaled_slope(x: Tensor) -> Tensor:
    """c(x) = exp(x) * -b'(x) = (x - 1 + exp(-x)) / (1 - exp(-x))^2 for x >= 0; grows from 1/2 like x - 1."""
    near_zero = x < 1.0
    small = torch.where(near_zero, x, torch.zeros_like(x))
    # -b'(x) = 1/2 - sum over n of B_n x^(n-1) / (n-1)!, by Horner's rule: powers would take most of a loss's time.
    odd = torch.zeros_like(small)
    for index in reversed(range(len(_BERNOULLI))):
        odd = odd * small**2 + _BERNOULLI[index] / math.factorial(2 * index + 1)
    series = 0.5 - small * odd
    large = torch.where(near_zero, torch.ones_like(x), x)
    closed = (large + torch.expm1(-large)) / torch.expm1(-large) ** 2
    return torch.where(near_zero, torch.exp(small) * series, closed)


def kendall_log_upset(places: Tensor, rate: Tensor) -> Tensor:
    """log T(k): log-probability that the item `places` behind in the centre is ranked ahead, under Kendall's tau.

    Args:
        places: k >= 0, real (real values interpolate, as MallowsPO-phi does with reward gaps).
        rate: lambda = -log(q) > 0.
    """
    places, rate = torch.broadcast_tensors(places, rate)
    flat = rate < _LAMBDA_SPLIT
    low = torch.where(flat, rate, torch.full_like(rate, 0.5))
    integral = torch.zeros_like(low)
    for node, node_weight in zip(_NODES, _NODE_WEIGHTS, strict=True):
        t = float(node + 1) / 2
        integral = integral + float(node_weight) / 2 * torch.exp(-low * t) * _scaled_slope(low * (places + t))
    high = torch.where(flat, torch.ones_like(rate), rate)
    # k / (1 - exp(-lambda k)) tends to 1 / lambda at k = 0.
    tiny = places * high < 1e-6
    safe_places = torch.where(tiny, torch.ones_like(places), places)
    first = torch.where(tiny, 1 / high + places / 2, safe_places / -torch.expm1(-high * safe_places))
    second = (places + 1) * torch.exp(-high) / -torch.expm1(-high * (places + 1))
    closed = first - second
    return -rate * places + torch.log(torch.where(flat, integral, closed))


def kendall_log_probability(gap: Tensor, rate: Tensor) -> Tensor:
    """log g(gap): log-probability that the item `gap` places ahead is preferred, under Kendall's tau.

    g(s) + g(-s) = 1. g jumps at 0 from T(0) to 1 - T(0); g(0) itself is 1/2.
    """
    gap, rate = torch.broadcast_tensors(gap, rate)
    upset = kendall_log_upset(gap.abs(), rate)
    favourite = torch.log1p(-torch.exp(upset))
    log_probability = torch.where(gap > 0, favourite, upset)
    return torch.where(gap == 0, torch.full_like(gap, math.log(0.5)), log_probability)


def pairwise_probability(
    gap: Tensor, phi: Tensor, *, distance: Literal["kendall", "spearman"] = "kendall", exponent: Literal[1, 2] = 2
) -> Tensor:
    """Probability that the item `gap` places ahead in the centre is preferred.

    Kendall's tau: the exact pairwise marginal of P proportional to phi^(exponent * d) for rankings of any length.
    Spearman's rho: 1 / (1 + phi^(exponent * gap)), the exact marginal for two items only (the paired-comparison
    form that MallowsPO-theta uses).

    Args:
        gap: real, any sign.
        phi: dispersion in (0, 1].
        exponent: q = phi or q = phi^2. With 2 both distances agree at gap 1: 1 / (1 + phi^2).

    Raises:
        ValueError: when a phi lies outside (0, 1] or is NaN.
    """
    gap, rate = _gap_and_rate(gap, phi, exponent)
    if distance == "spearman":
        return torch.sigmoid(rate * gap)
    return torch.exp(kendall_log_probability(gap, rate))


def pairwise_slope(
    gap: Tensor, phi: Tensor, *, distance: Literal["kendall", "spearman"] = "kendall", exponent: Literal[1, 2] = 2
) -> Tensor:
    """Derivative of `pairwise_probability` with respect to the gap; even in the gap.

    Kendall, k = |gap|: g'(k) = h'(k + 1) - h'(k) = b'(lambda (k + 1)) - b'(lambda k), which is the limit from either
    side at the jump at 0. Where lambda is small the difference is the integral of lambda b'' instead.
    """
    gap, rate = _gap_and_rate(gap, phi, exponent)
    if distance == "spearman":
        return rate * torch.sigmoid(rate * gap) * torch.sigmoid(-rate * gap)
    places = gap.abs()
    flat = rate < _LAMBDA_SPLIT
    low = torch.where(flat, rate, torch.full_like(rate, 0.5))
    integral = torch.zeros_like(low)
    for node, node_weight in zip(_NODES, _NODE_WEIGHTS, strict=True):
        t = float(node + 1) / 2
        integral = integral + float(node_weight) / 2 * low * bernoulli_curvature(low * (places + t))
    high = torch.where(flat, torch.ones_like(rate), rate)
    difference = negative_bernoulli_slope(high * places) - negative_bernoulli_slope(high * (places + 1))
    return torch.where(flat, integral, difference)


def _gap_and_rate(gap: Tensor, phi: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    gap, phi = torch.broadcast_tensors(torch.as_tensor(gap), torch.as_tensor(phi))
    if not bool(((phi > 0) & (phi <= 1)).all()):
        raise ValueError("phi must lie in (0, 1]")
    return gap, -exponent * torch.log(phi)
