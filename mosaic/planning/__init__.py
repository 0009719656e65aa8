"""What policies know (problem, profiles, costs) and the policies that turn it into a plan."""

from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.costs import AffineCosts, CostModel, PaperCosts, PiecewiseCosts
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import load_plans, save_plans
from mosaic.planning.problem import Problem
from mosaic.planning.profiles import Profile, load_profile
from mosaic.planning.program import Flexible, Ilp
from mosaic.planning.scheduler import Scheduler

__all__ = [
    "AffineCosts",
    "CostModel",
    "DataParallel",
    "Fifo",
    "Flexible",
    "Ilp",
    "LeastLoaded",
    "PaperCosts",
    "PiecewiseCosts",
    "Problem",
    "Profile",
    "RoundRobin",
    "Scheduler",
    "check_plan",
    "load_plans",
    "load_profile",
    "save_plans",
]
