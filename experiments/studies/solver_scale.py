"""How far solvers get on placement problems of growing size: outcomes, one a solver and a problem, and a table."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic, process_time
from typing import Any

from experiments.studies.placement_instances import PlacementProblem
from mosaic.planning.ilp.solve import solve_instance

CP_SAT_PROGRAM = Path(__file__).with_name("cp_sat_process.py")
CP_SAT_GRACE_S = 120.0
"""Time beyond its limit after which CP-SAT's process is given up."""
MOSAIC, CP_SAT = "mosaic", "CP-SAT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of problem, what it is given and what is asked of mosaic."""

    num_experts: int
    num_workers: int
    time_limit_s: float
    most_gap_frac: float

    @property
    def name(self) -> str:
        return f"{self.num_experts} x {self.num_workers}"


SIZES = (
    Size(num_experts=12, num_workers=8, time_limit_s=10.0, most_gap_frac=0.005),
    Size(num_experts=24, num_workers=16, time_limit_s=10.0, most_gap_frac=0.005),
    Size(num_experts=48, num_workers=64, time_limit_s=10.0, most_gap_frac=0.01),
    Size(num_experts=200, num_workers=256, time_limit_s=60.0, most_gap_frac=0.02),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one solver said of one problem; times in seconds."""

    size: str
    problem: str
    solver: str
    time_limit_s: float
    makespan_s: float | None
    """Of its shards, priced anew; None without a placement."""
    bound_s: float
    wall_s: float
    cpu_s: float

    @property
    def gap_frac(self) -> float:
        return 1.0 if self.makespan_s is None else 1 - self.bound_s / self.makespan_s


def solve_by_mosaic(problem: PlacementProblem, size: Size) -> Outcome:
    """Solve with what ``scheduler=ilp`` uses, on one thread."""
    instance = problem.instance()
    begin_ts, begin_cpu_s = monotonic(), process_time()
    solved = solve_instance(instance, time_limit_s=size.time_limit_s)
    return Outcome(
        size=size.name,
        problem=problem.label,
        solver=MOSAIC,
        time_limit_s=size.time_limit_s,
        makespan_s=instance.makespan_s(solved.counts),
        bound_s=solved.lower_bound_s,
        wall_s=monotonic() - begin_ts,
        cpu_s=process_time() - begin_cpu_s,
    )


def solve_by_cp_sat(problem: PlacementProblem, size: Size, *, python: Path, num_threads: int) -> Outcome:
    """Solve with CP-SAT in a process of its own.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    given = {"problem": problem.to_json(), "time_limit_s": size.time_limit_s, "num_threads": num_threads}
    done = subprocess.run(
        [str(python), str(CP_SAT_PROGRAM)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=size.time_limit_s + CP_SAT_GRACE_S,
        check=False,
        env={},
    )
    if done.returncode:
        raise RuntimeError(f"CP-SAT failed with status {done.returncode}: {done.stderr.strip()[-500:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    counts = said["counts"]
    return Outcome(
        size=size.name,
        problem=problem.label,
        solver=CP_SAT,
        time_limit_s=size.time_limit_s,
        makespan_s=problem.instance().makespan_s(tuple(map(tuple, counts))) if counts else None,
        bound_s=said["bound_s"],
        wall_s=said["wall_s"],
        cpu_s=said["cpu_s"],
    )


def read_outcomes(path: Path) -> list[Outcome]:
    """Read the outcomes that are kept so far; none if there is no file."""
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def keep_outcome(path: Path, outcome: Outcome) -> None:
    """Add an outcome to the file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def table_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Make the table of all sizes: a row a size and a solver."""
    lines = [
        "| experts x GPUs | problems | solver | limit (s) | gap: median, worst | within mosaic's aim "
        "| makespan over mosaic's: median | wall (s): median, most | CPU (s): median |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size in SIZES:
        here = [outcome for outcome in outcomes if outcome.size == size.name]
        by_mosaic = {outcome.problem: outcome for outcome in here if outcome.solver == MOSAIC}
        for solver in (MOSAIC, CP_SAT):
            rows = [outcome for outcome in here if outcome.solver == solver]
            if rows:
                lines.append(_row(size, solver, rows, by_mosaic))
    return lines


def _row(size: Size, solver: str, rows: Sequence[Outcome], by_mosaic: dict[str, Outcome]) -> str:
    gaps = [outcome.gap_frac for outcome in rows]
    within = sum(gap <= size.most_gap_frac for gap in gaps)
    ratios = [
        outcome.makespan_s / other.makespan_s
        for outcome in rows
        if outcome.makespan_s and (other := by_mosaic.get(outcome.problem)) and other.makespan_s
    ]
    missing = sum(outcome.makespan_s is None for outcome in rows)
    over = f"{median(ratios):.4f}" if ratios else "none"
    walls = [outcome.wall_s for outcome in rows]
    return (
        f"| {size.name} | {len(rows)} | {solver} | {rows[0].time_limit_s:g} | {median(gaps):.2%}, {max(gaps):.2%}"
        + (f" ({missing} without a placement)" if missing else "")
        + f" | {within} of {len(rows)} (at most {size.most_gap_frac:.1%}) | {over} | {median(walls):.1f}, "
        f"{max(walls):.1f} | {median(outcome.cpu_s for outcome in rows):.1f} |"
    )


def contradictions(outcomes: Sequence[Outcome]) -> list[str]:
    """Name problems where one solver's bound is above the other's placement: one of them would be wrong."""
    found = []
    for one in outcomes:
        for other in outcomes:
            same = (one.size, one.problem) == (other.size, other.problem)
            if same and other.makespan_s is not None and one.bound_s > other.makespan_s * (1 + 1e-6):
                found.append(f"{one.size}, {one.problem}: {one.solver}'s bound is above {other.solver}'s placement")
    return found
