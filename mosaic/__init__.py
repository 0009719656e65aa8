"""mosaic: Mixture-of-Agents workloads on few GPUs: plan, simulate, run, compare."""
