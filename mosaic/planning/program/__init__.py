"""The placement program: the paper's equations 4 to 10, and what it does not have as optional parts."""

from mosaic.planning.program.schedulers import Flexible, Ilp

__all__ = ["Flexible", "Ilp"]
