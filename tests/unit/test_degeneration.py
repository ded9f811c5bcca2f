"""Signs of degeneration, by hand."""

import pandas as pd
import pytest

from mallowspo.evaluation.degeneration import distinct, is_refusal, repetition, signs


def test_distinct_counts_ngrams():
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert distinct([1, 2, 3], 2) == 1
    assert distinct([7], 2) == 1 and distinct([], 1) == 1


def test_repetition_is_of_four_grams():
    assert repetition([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)
    assert repetition([5] * 10) == pytest.approx(6 / 7)
    assert repetition(list(range(10))) == 0 and repetition([5, 5, 5]) == 0


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but that is not something I do.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}M UNABLE TO say.", True),
        ("As an AI, I have no taste in films.", True),
        ("I cannot recommend this film to anybody.", False),
        ("The actor says: nothing. " * 10 + "I cannot help it.", False),
        ("", False),
    ],
)
def test_a_refusal_begins_with_one_of_the_phrases(text, refuses):
    assert is_refusal(text) is refuses


def test_the_end_token_of_a_complete_answer_does_not_count():
    answers = pd.DataFrame(
        {
            "token_ids": [[4, 4, 2], [4, 4, 2], [2]],
            "complete": [True, False, True],
            "output": ["a a", "a a b", ""],
        },
        index=[5, 3, 8],
    )
    found = signs(answers)
    assert found["distinct_1"].tolist() == [0.5, pytest.approx(2 / 3), 1]
    assert found.index.tolist() == [5, 3, 8]
