"""What a worker does, for whoever watches a run."""

from typing import NamedTuple

from mosaic.core.workload import ExpertName


class WorkerState(NamedTuple):
    """What a worker does, for whoever watches."""

    workers: tuple[int, ...]
    expert: ExpertName
    phase: str
    """loading, serving, idle or closing."""
    session: int | None
    num_calls: int
    """That the session's process had to serve; 0: not known yet."""
    num_ended: int
    output_tokens: int
    """Of those that ended."""
    cause: str | None = None
    """Why its session broke off, told once; None: it did not."""
