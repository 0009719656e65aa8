"""What a run says about a request log that it replayed: the errors, and a figure beside them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from experiments.analysis.replay import replay_errors, replay_table
from experiments.figures.replay import draw_replay
from mosaic.core.results import RunResult
from mosaic.workloads.request_log import measured_records


class ReplayReport(NamedTuple):
    """What a replay adds to the run's screen and to its folder."""

    table: str
    files: dict[str, bytes]
    """replay.json and replay.png."""


def report_replay(workload: Mapping[str, Any], result: RunResult) -> ReplayReport:
    """Compare a run with the log that its workload was read from.

    Parameters
    ----------
    workload
        The configuration of the workload: ``path`` and ``expert``.
    result
        What ran.

    Raises
    ------
    ValueError, TypeError
        If the log cannot be read any more, or the run does not cover its requests.
    """
    measured = measured_records(workload["path"], expert=workload["expert"])
    records = result.calls
    errors = replay_errors(records, measured)
    rows = {name: {**asdict(error), "error_frac": error.error_frac} for name, error in errors.items()}
    files = {
        "replay.json": (json.dumps(rows, indent=1) + "\n").encode(),
        "replay.png": draw_replay(records, measured),
    }
    return ReplayReport(replay_table(errors), files)
