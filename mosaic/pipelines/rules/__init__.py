"""Rules say when the answers of a question so far are enough; see README.md for a rule of your own."""

from mosaic.pipelines.rules.ballot import Ballot, Decision, Vote, Winner
from mosaic.pipelines.rules.calibrated import Calibrated
from mosaic.pipelines.rules.faster_moa import FasterMoa
from mosaic.pipelines.rules.rule import Majority, Never, Order, Rule, Scope
from mosaic.pipelines.rules.weighted import Weighted

__all__ = [
    "Ballot",
    "Calibrated",
    "Decision",
    "FasterMoa",
    "Majority",
    "Never",
    "Order",
    "Rule",
    "Scope",
    "Vote",
    "Weighted",
    "Winner",
]
