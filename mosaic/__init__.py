"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.pipeline import plan, run

__all__ = ["plan", "run"]
