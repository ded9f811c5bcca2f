"""Signs that a policy's answers degenerate: words that return, refusals. One value an answer, for every policy alike.

They are to be read against the reference's: answers to other prompts, or of another length, have other values.
"""

from collections.abc import Sequence

import pandas as pd

#: In lower case; one of them within the first REFUSAL_CHARACTERS of an answer makes it a refusal. Phrases of assistants
#: in English: a policy that refuses in other words is not seen.
REFUSAL_PHRASES = (
    *(f"i {no} {verb}" for no in ("can't", "cannot") for verb in ("assist", "help", "provide", "fulfill", "comply")),
    *(f"i{am} {no} to" for am in ("'m", " am") for no in ("unable", "not able")),
    *(f"i{am} sorry, but" for am in ("'m", " am")),
    *("i apologize, but", "i must decline", "as an ai", "as a language model"),
)
REFUSAL_CHARACTERS = 200

#: Columns of `signs`.
SIGNS = ("distinct_1", "distinct_2", "repetition", "refusal")


def distinct(tokens: Sequence[int], length: int) -> float:
    """Distinct-n (Li et al. 2016): share of the answer's n-grams that differ; 1 where it has none.

    It falls as answers get longer, whatever they say.
    """
    grams = list(zip(*(tokens[start:] for start in range(length)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(tokens: Sequence[int]) -> float:
    """Share of 4-grams that were there before in the answer (seq-rep-4, Welleck et al. 2020); 0 where it has none."""
    return 1 - distinct(tokens, 4)


def is_refusal(text: str) -> bool:
    """Whether one of `REFUSAL_PHRASES` stands where the answer begins."""
    beginning = text[:REFUSAL_CHARACTERS].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return any(phrase in beginning for phrase in REFUSAL_PHRASES)


def signs(answers: pd.DataFrame) -> pd.DataFrame:
    """`SIGNS` of answers with the columns output, token_ids and complete; the token that ends an answer is left out."""
    tokens = [ids[:-1] if done else ids for ids, done in zip(answers["token_ids"], answers["complete"], strict=True)]
    rows = [
        (distinct(ids, 1), distinct(ids, 2), repetition(ids), float(is_refusal(text)))
        for ids, text in zip(tokens, answers["output"], strict=True)
    ]
    return pd.DataFrame(rows, columns=list(SIGNS), index=answers.index)
