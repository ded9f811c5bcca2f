"""How far training moved the log-probabilities of held-out pairs from the reference's: the columns of pairs.parquet."""

import pandas as pd

SIDES = ("chosen", "rejected")
#: In nats: of the sum over a response's tokens, and per token.
CHANGES = (*(f"{side}_change" for side in SIDES), *(f"{side}_change_per_token" for side in SIDES))
CHOSEN_FELL = "chosen_fell"


def changes(policy: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """`CHANGES` of pairs, from S_logp of both and S_tokens of the policy's; the tables stand row by row alike."""
    found = pd.DataFrame(index=policy.index)
    for side in SIDES:
        found[f"{side}_change"] = policy[f"{side}_logp"] - reference[f"{side}_logp"]
        found[f"{side}_change_per_token"] = found[f"{side}_change"] / policy[f"{side}_tokens"]
    return found


def chosen_fell(pairs: pd.DataFrame) -> pd.Series:
    """Of each pair 1 where the chosen responses to its prompt became less probable on average, else 0."""
    by_prompt = pairs.groupby("prompt_id")["chosen_change"].transform("mean")
    return (by_prompt < 0).astype(float)
