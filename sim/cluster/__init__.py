"""Simulates workers, sessions and the clock in SimPy: the simulator as a backend."""

from sim.cluster.backend import SimBackend

__all__ = ["SimBackend"]
