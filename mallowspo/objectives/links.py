"""Link functions: from the scaled margin s = beta * margin and the dispersion weight w to the loss of a pair.

All take tensors that broadcast and return the loss elementwise. w multiplies s inside the link, except where a link
says otherwise; w = 1 gives the base method. Where a link is -log of a probability g, g(s) + g(-s) = 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mallowspo.mallows.pairwise import (
    bernoulli_curvature,
    kendall_log_probability,
    kendall_log_upset,
    negative_bernoulli_slope,
)

Link = Callable[..., Tensor]


def logistic(s: Tensor, weight: Tensor) -> Tensor:
    """-log sigmoid(w s). DPO with w = 1; MallowsPO-theta with w = -2 log phi: g_theta(s) = 1 / (1 + phi^(2s))."""
    return softplus(-weight * s)


def conservative(s: Tensor, weight: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy to a label that is wrong with probability `label_smoothing` (conservative DPO)."""
    return (1 - label_smoothing) * softplus(-weight * s) + label_smoothing * softplus(weight * s)


def robust(s: Tensor, weight: Tensor, *, label_smoothing: float) -> Tensor:
    """The loss whose mean over labels flipped with probability `label_smoothing` is the logistic loss (robust DPO)."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing}: the robust link needs 0 <= label_smoothing < 0.5")
    kept = (1 - label_smoothing) * softplus(-weight * s)
    return (kept - label_smoothing * softplus(weight * s)) / (1 - 2 * label_smoothing)


def squared(s: Tensor, weight: Tensor) -> Tensor:
    """(w s - 1/2)^2: IPO's loss times beta^2 (`Objective` divides by it where the row says scaling "published")."""
    return (weight * s - 0.5) ** 2


def hinge(s: Tensor, weight: Tensor) -> Tensor:
    """max(0, 1 - w s): SLiC."""
    return torch.relu(1 - weight * s)


def cauchy(s: Tensor, weight: Tensor) -> Tensor:
    """-log(1/2 + arctan(w s) / pi), without cancellation for s << 0: 1/2 + arctan(x)/pi = atan2(1, -x)/pi."""
    return math.log(math.pi) - torch.log(torch.atan2(torch.ones_like(s), -weight * s))


def no_preference(s: Tensor, weight: Tensor) -> Tensor:
    """0: no preference, for a row that is its SFT term alone."""
    return torch.zeros_like(weight * s)


def exponential(s: Tensor, weight: Tensor) -> Tensor:
    """exp(-w s)."""
    return torch.exp(-weight * s)


def ranked_choice(s: Tensor, weight: Tensor) -> Tensor:
    """-log of P(chosen) = phi^(rank - 1) / (1 + phi), with the rank's step smoothed to sigmoid(-s): Mallows-RMJ.

    phi = exp(-w / 2). Rebuilt from the method's description; its paper's formula was not at hand. The smoothed P is
    a probability only in the limits of large |s|. The weight acts outside: it scales a bounded loss.
    """
    return weight / 2 * torch.sigmoid(-s) + softplus(-weight / 2)


def mallows_phi(
    s: Tensor,
    weight: Tensor,
    *,
    exponent: float = 2,
    smoothing: str = "cubic",
    smoothing_width: float = 1.0,
    steepness: float = 10.0,
) -> Tensor:
    """-log g_phi(s): Kendall's pairwise probability at a real gap s, smoothed around s = 0.

    phi = exp(-w / 2) and q = phi^exponent. The exact g_phi jumps at s = 0, where training starts; the model defines it
    at whole gaps of at least one place. Every smoothing keeps g(s) + g(-s) = 1:

        none        exact, g(0) = 1/2
        cubic       for |s| < smoothing_width the odd cubic that meets g_phi at the edge in value and slope
        polynomial  the same with the quintic that meets the second derivative too
        tanh        sgn(s) becomes tanh(steepness s): g = 1/2 + tanh(steepness s) (g_phi(|s|) - 1/2), everywhere
        sigmoid     sgn(s) becomes 2 sigmoid(steepness s) - 1: the same at half the steepness

    A weight of 0 (phi = 1) gives g = 1/2 for every s: the prompt is ignored, as with MallowsPO-theta.

    Raises:
        ValueError: for another `smoothing`, a width or a steepness of 0 or below.
    """
    if smoothing_width <= 0 or steepness <= 0:
        raise ValueError(
            "mallows_phi: smoothing_width and steepness must be above 0 (smoothing: none is the exact link)"
        )
    # The link needs rate > 0; at this floor g differs from 1/2 by less than rounding.
    rate = (weight * (exponent / 2)).clamp_min(torch.finfo(s.dtype).tiny ** 0.25)
    s, rate = torch.broadcast_tensors(s, rate)
    if smoothing == "none":
        return -kendall_log_probability(s, rate)
    if smoothing in ("cubic", "polynomial"):
        inside = s.abs() < smoothing_width
        near = _POLYNOMIALS[smoothing](torch.where(inside, s, torch.zeros_like(s)), rate, smoothing_width)
        return torch.where(inside, -torch.log(near), -kendall_log_probability(s, rate))
    if smoothing in ("tanh", "sigmoid"):
        return _steep_sign(s, rate, steepness if smoothing == "tanh" else steepness / 2)
    raise ValueError(f"mallows_phi: unknown smoothing '{smoothing}'")


def _at_edge(rate: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """g_phi - 1/2, its slope and its second derivative at s = width, from T(k) = (b(rate k) - b(rate (k+1))) / rate."""
    edge = torch.full_like(rate, width)
    height = 0.5 - torch.exp(kendall_log_upset(edge, rate))
    slope = negative_bernoulli_slope(rate * width) - negative_bernoulli_slope(rate * (width + 1))
    curvature = rate * (bernoulli_curvature(rate * (width + 1)) - bernoulli_curvature(rate * width))
    return height, slope, curvature


def _cubic(s: Tensor, rate: Tensor, width: float) -> Tensor:
    height, slope, _ = _at_edge(rate, width)
    first = (3 * height / width - slope) / 2
    third = (slope - height / width) / (2 * width**2)
    return 0.5 + first * s + third * s**3


def _quintic(s: Tensor, rate: Tensor, width: float) -> Tensor:
    height, slope, curvature = _at_edge(rate, width)
    # a u + c u^3 + e u^5 with u = s / width meets h, h' = slope width, h'' = curvature width^2 at u = 1.
    u, rise, bend = s / width, slope * width, curvature * width**2
    fifth = (bend - 3 * rise + 3 * height) / 8
    third = (rise - height - 4 * fifth) / 2
    first = height - third - fifth
    return 0.5 + first * u + third * u**3 + fifth * u**5


_POLYNOMIALS = {"cubic": _cubic, "polynomial": _quintic}


def _steep_sign(s: Tensor, rate: Tensor, steepness: float) -> Tensor:
    """-log(1/2 + tanh(steepness s) (1/2 - T(|s|))); the side s < 0 in logarithms, where 1/2 - 1/2 would cancel."""
    # Not s.abs(), whose gradient at 0 is 0: a policy that equals its reference would never move.
    size = torch.where(s > 0, s, -s)
    upset = kendall_log_upset(size, rate)
    near = steepness * size < 1
    tanh = torch.tanh(steepness * torch.where(near, size, torch.zeros_like(size)))
    log_near = torch.log((1 - tanh) / 2 + tanh * torch.exp(upset))
    # (1 - tanh(x)) / 2 = sigmoid(-2x); log tanh(x) = log(1 - exp(-2x)) - log(1 + exp(-2x)).
    far = steepness * torch.where(near, torch.ones_like(size), size)
    log_far = torch.logaddexp(logsigmoid(-2 * far), torch.log(torch.tanh(far)) + upset)
    log_lower = torch.where(near, log_near, log_far)
    return torch.where(s > 0, -torch.log1p(-torch.exp(log_lower)), -log_lower)


#: Link functions by the name that a row of `mallowspo.methods.METHODS` gives.
LINKS: dict[str, Link] = {
    link.__name__: link
    for link in (
        *(logistic, conservative, robust, squared, hinge, cauchy, exponential, no_preference),
        *(mallows_phi, ranked_choice),
    )
}
