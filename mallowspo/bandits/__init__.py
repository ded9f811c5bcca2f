"""Bandits: the paper's synthetic experiment with softmax policies, where reward and KL are exact."""
