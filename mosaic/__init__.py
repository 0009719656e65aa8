"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.pipeline import plan, run
from mosaic.second_stage import aggregate

__all__ = ["aggregate", "plan", "run"]
