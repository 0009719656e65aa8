"""The baselines, a file each, and what they share with the integer program."""

from mosaic.planning.schedulers.base import Scheduler
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.planning.schedulers.fifo import Fifo
from mosaic.planning.schedulers.least_loaded import LeastLoaded
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.planning.schedulers.sampled_greedy import SampledGreedy

__all__ = ["DataParallel", "Fifo", "LeastLoaded", "RoundRobin", "SampledGreedy", "Scheduler"]
