"""Mallows' ranking model: pairwise probabilities (torch), and the law of whole rankings (numpy)."""

from mallowspo.mallows.pairwise import (
    bernoulli_curvature,
    kendall_log_probability,
    kendall_log_upset,
    negative_bernoulli_slope,
    pairwise_probability,
)

__all__ = [
    "bernoulli_curvature",
    "kendall_log_probability",
    "kendall_log_upset",
    "negative_bernoulli_slope",
    "pairwise_probability",
]
