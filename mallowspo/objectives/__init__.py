"""Losses of preference optimization as margin x weight x link: pure functions of tensors, and the table's rows.

A new method is a link (or a margin, or an adaptation) here and one row in `mallowspo.methods`.
"""

from mallowspo.objectives.adaptations import ADAPTATIONS
from mallowspo.objectives.links import LINKS
from mallowspo.objectives.margins import PairScores, join, log_ratio_margin
from mallowspo.objectives.objective import Objective, PairLosses

__all__ = ["ADAPTATIONS", "LINKS", "Objective", "PairLosses", "PairScores", "join", "log_ratio_margin"]
