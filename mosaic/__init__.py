"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""

from mosaic.runtime.run import plan

__all__ = ["plan"]
