"""Many trainings: the graph of their jobs is built, and soon."""

from tests import growth


def test_a_thousand_jobs_are_planned_in_time():
    """Two experiments of 5 methods x 4 betas x 5 seeds."""
    found = growth.graph(200)
    # Of each training: train, generate, score, alpaca, lm_eval. Of the reference: generate, score_answers, lm_eval.
    # Of each experiment besides: sample (2), pairs, tokens, reference, dispersion, compare, report, track.
    assert found.jobs == 1 + 200 * 5 + 2 * (3 + 9)
    assert found.processor_seconds < 60
