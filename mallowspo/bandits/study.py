"""Kind "bandit"."""
