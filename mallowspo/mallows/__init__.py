"""Mallows' ranking model: pairwise probabilities (torch), the law of whole rankings, and its fit (numpy)."""

from mallowspo.mallows.likelihood import Fit, fit_pairs, fit_partial, fit_rankings
from mallowspo.mallows.pairwise import (
    bernoulli_curvature,
    kendall_log_probability,
    kendall_log_upset,
    negative_bernoulli_slope,
    pairwise_probability,
    pairwise_slope,
)
from mallowspo.mallows.rankings import (
    kendall_distance,
    log_normaliser,
    pairwise_matrix,
    ranking_law,
    sample_rankings,
    sampling_method,
    spearman_distance,
)

__all__ = [
    "Fit",
    "bernoulli_curvature",
    "fit_pairs",
    "fit_partial",
    "fit_rankings",
    "kendall_distance",
    "kendall_log_probability",
    "kendall_log_upset",
    "log_normaliser",
    "negative_bernoulli_slope",
    "pairwise_matrix",
    "pairwise_probability",
    "pairwise_slope",
    "ranking_law",
    "sample_rankings",
    "sampling_method",
    "spearman_distance",
]
