"""The inputs of policies (problem, profiles, costs), and the policies that turn them into a plan."""

from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.costs import AffineCosts, PaperCosts, PiecewiseCosts
from mosaic.planning.program import Flexible, Ilp

__all__ = [
    "AffineCosts",
    "DataParallel",
    "Fifo",
    "Flexible",
    "Ilp",
    "LeastLoaded",
    "PaperCosts",
    "PiecewiseCosts",
    "RoundRobin",
]
