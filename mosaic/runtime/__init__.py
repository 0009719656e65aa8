"""Runs plans on any backend: the backend protocol, the run, replanning, measuring, the journal."""

from mosaic.runtime.backend import Backend

__all__ = ["Backend"]
