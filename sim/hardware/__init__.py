"""Models the costs of a kind of GPU: memory, loads, seconds of an iteration."""

from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import IterationTime, iteration_time

__all__ = ["Hardware", "IterationTime", "hardware_from_config", "iteration_time"]
