"""What a softmax policy achieves, exactly: sums over arms, no samples.

Shape legend: `...` seeds and betas, C contexts, K arms. Log-policies are (..., C, K), results (..., C).
"""

import torch
from torch import Tensor


def kl(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """KL(policy || reference) in nats."""
    return (log_policy.exp() * (log_policy - log_reference)).sum(-1)


def expected_reward(log_policy: Tensor, reward: Tensor) -> Tensor:
    """Mean reward of an arm drawn from the policy; `reward` broadcasts to the policies."""
    return (log_policy.exp() * reward).sum(-1)


def win_rate(log_policy: Tensor, log_reference: Tensor, preference: Tensor) -> Tensor:
    """Probability that the policy's arm is preferred to the reference's.

    preference: (..., C, K, K), of the first arm over the second; 1/2 on its diagonal.
    """
    against_reference = (preference * log_reference.exp()).sum(-1)
    return (log_policy.exp() * against_reference).sum(-1)


def accuracy(log_policy: Tensor, log_reference: Tensor, place: Tensor) -> Tensor:
    """Share of all pairs of arms that log policy / reference orders like the central ranking; ties count half."""
    implicit = log_policy - log_reference
    first, second = torch.triu_indices(place.shape[-1], place.shape[-1], 1)
    learned = torch.sign(implicit[..., first] - implicit[..., second])
    true = torch.sign((place[..., second] - place[..., first]).to(learned.dtype))
    return ((1 + learned * true) / 2).mean(-1)


def reward_spread(log_policy: Tensor, log_reference: Tensor, beta: Tensor) -> Tensor:
    """Standard deviation over the arms of the learned reward beta * log(policy / reference); beta broadcasts."""
    learned: Tensor = beta * (log_policy - log_reference)
    return learned.std(-1, correction=0)
