"""What a run says about a request log that it replayed: the errors, and a figure beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.figures.replay import draw_replay
from mosaic.metrics import final_records
from mosaic.request_log import measured_records
from mosaic.results import RunResult
from sim.replay import replay_errors, replay_table

FIGURE = "replay.png"


def report_replay(workload: Mapping[str, Any], result: RunResult, folder: Path) -> str:
    """Compare a run with the log that its workload was read from, and draw replay.png into the run folder.

    Parameters
    ----------
    workload
        The configuration of the workload: ``path`` and ``expert``.
    result, folder
        What ran, and where its figure goes.

    Returns
    -------
    str
        A table of simulated and measured times.

    Raises
    ------
    ValueError, TypeError
        If the log cannot be read any more, or the run does not cover its requests.
    """
    measured = measured_records(workload["path"], expert=workload["expert"])
    records = tuple(final_records(result).values())
    (folder / FIGURE).write_bytes(draw_replay(records, measured))
    return replay_table(replay_errors(records, measured))
