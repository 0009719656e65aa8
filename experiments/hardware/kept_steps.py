"""Steps of a long measurement: each is on the disk as soon as it is done, and none starts that cannot end in time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mosaic.core.checks import require_number
from mosaic.report.run_folder import write_file

Result = TypeVar("Result")

SAFETY = 1.2
"""A step may take so much longer than the longest of its kind did."""


class KeptSteps:
    """Obtains the results of steps, by name: from the disk, or by taking the step while there is time.

    Parameters
    ----------
    folder
        Of the results, a file each.
    budget_s
        Of this start.
    report
        Shows a line of progress.
    now
        A clock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        budget_s: float,
        report: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        require_number(budget_s, "budget_s", at_least=0)
        self._folder = folder
        self._budget_s = budget_s
        self._report = report
        self._now = now
        self._start_s = now()
        self.missing: list[str] = []
        """Steps that there was no time for."""
        folder.mkdir(parents=True, exist_ok=True)

    def obtain(self, name: str, kind: str, result: type[Result], measure: Callable[[], Result]) -> Result | None:
        """Give a step's result, a dataclass; None: it is not there, and there is no time for it.

        A step takes as long as the longest of its kind that is known; the first of a kind starts while any time is
        left.
        """
        path = self._folder / f"{name}.json"
        if path.is_file():
            kept: Result = _read(path, result)
            return kept
        start_s = self._now()
        left_s = self._budget_s - (start_s - self._start_s)
        if left_s <= 0 or SAFETY * self._longest_s(kind) > left_s:
            self.missing.append(name)
            return None
        self._report(f"{name}: begins, {left_s / 60:.1f} minutes left")
        found = measure()
        took_s = self._now() - start_s
        step = {"kind": kind, "took_s": round(took_s, 3), "result": found}
        write_file(self._folder, path.name, msgspec.json.encode(step))
        self._report(f"{name}: {took_s:.0f} s")
        return found

    def _longest_s(self, kind: str) -> float:
        kept = [_read(path, Any, whole=True) for path in self._folder.glob("*.json")]
        return max((step["took_s"] for step in kept if step["kind"] == kind), default=0.0)


def _read(path: Path, result: Any, *, whole: bool = False) -> Any:
    try:
        step = msgspec.json.decode(path.read_bytes())
        return step if whole else msgspec.convert(step["result"], result)
    except (msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"{path}: must be what a step left, remove it to measure again ({error})") from error
