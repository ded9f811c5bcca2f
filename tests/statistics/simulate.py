"""Made-up experiments in which no method is better than another, of the size and kind that the pipeline compares."""

import numpy as np

KINDS = ("normal rewards", "skewed rewards", "wins with ties")


def experiment(generator, seeds, seed_spread, kind, methods=None):
    """(M, P, S) values of M methods with equal means, 60 to 300 prompts; `seed_spread` in standard deviations.

    A value is the prompt's own level, what the method does to that prompt, what the seed does to all methods alike,
    what the run does, and the chance of the answer. Half of the run's effect is the seed's. How much of the rest
    differs from run to run is drawn for every experiment, between a third and nearly all.
    """
    methods = methods or int(generator.integers(3, 9))
    prompts = int(generator.integers(60, 301))
    share = generator.uniform(0.3, 0.9)
    noise = {
        "normal rewards": generator.normal,
        "skewed rewards": lambda size: generator.exponential(size=size) - 1,
        "wins with ties": generator.logistic,
    }[kind]
    level = generator.normal(size=(1, prompts, 1))
    of_method = np.sqrt(1 - share) * noise(size=(methods, prompts, 1))
    of_seed = generator.normal(size=(1, 1, seeds)) * seed_spread / np.sqrt(2)
    of_run = generator.normal(size=(methods, 1, seeds)) * seed_spread / np.sqrt(2)
    of_answer = np.sqrt(share) * noise(size=(methods, prompts, seeds))
    values = level + of_method + of_seed + of_run + of_answer
    # Against the same answer of the reference, judged the same way: half the answers that are close are ties.
    return np.where(np.abs(values) < 0.3, 0.5, (values > 0).astype(float)) if kind == "wins with ties" else values
