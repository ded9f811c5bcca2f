"""How likely the reference finds each prompt, from the reference table."""

import numpy as np
import pandas as pd


def log_perplexity(reference: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of each row's prompt, nats a token, and whether there is a token to know it by (the first has no law)."""
    tokens = reference["prompt_tokens"].to_numpy()
    return -reference["prompt_logp"].to_numpy() / np.maximum(tokens, 1), tokens > 0


def prompt_perplexity(reference: pd.DataFrame, of: pd.DataFrame | None = None) -> np.ndarray:
    """Log-perplexity of each pair's prompt under the reference, scaled to mean 1; 1 where a prompt has one token only.

    Args:
        reference: rows of the reference table.
        of: rows that have mean 1; default: the same.
    """
    own, known = log_perplexity(reference)
    others, counted = (own, known) if of is None else log_perplexity(of)
    mean = others[counted].mean() if counted.any() else 1.0
    return np.where(known, own / mean, 1.0)
