"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.runtime.job import Job
from mosaic.runtime.run import plan, run

__all__ = ["Job", "plan", "run"]
