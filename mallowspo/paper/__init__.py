"""The page of the paper: its claims, each with the published figure, ours, and a verdict by a rule set before."""

#: Its folder among the results.
FOLDER = "paper"
