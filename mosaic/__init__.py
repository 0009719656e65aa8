"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.runtime.run import plan, run
from mosaic.runtime.second_stage import aggregate

__all__ = ["aggregate", "plan", "run"]
