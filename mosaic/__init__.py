"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.runtime.run import Job, plan, run

__all__ = ["Job", "plan", "run"]
