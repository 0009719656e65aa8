"""Decide from the answers of a question whether the aggregator is needed."""

from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.gate import Ballot, Decision, Gate, Majority, Never, PartialBallot, Unanimous, Vote
from mosaic.pipelines.gates.weighted import Weighted

__all__ = [
    "Ballot",
    "Calibrated",
    "Decision",
    "Gate",
    "Majority",
    "Never",
    "PartialBallot",
    "Unanimous",
    "Vote",
    "Weighted",
]
