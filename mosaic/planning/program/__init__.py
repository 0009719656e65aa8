"""The placement program: the paper's equations 4 to 10, and optional parts beyond the paper."""

from mosaic.planning.program.schedulers import Flexible, Ilp

__all__ = ["Flexible", "Ilp"]
