"""The runs behind the paper's figures and tables: which points, run in parallel into run folders, and read back."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from omegaconf import OmegaConf
from tqdm import tqdm

from mosaic.commands.run import run_point
from mosaic.config.compose import compose_config
from mosaic.core.results import SessionRecord
from mosaic.report.run_folder import SUMMARY, read_json
from mosaic.report.run_records import read_sessions

BENCHMARKS = ("mmlu_pro", "medmcqa", "gpqa")
TITLES = {"mmlu_pro": "MMLU-Pro", "medmcqa": "MedMCQA", "gpqa": "GPQA"}
POOLS = {"hybrid": "mmlu_pro", "reasoning": "mmlu_pro_reasoning", "instruct": "mmlu_pro_instruct"}
"""The workload that asks MMLU-Pro's questions of each pool."""

TWO_STAGES = {
    "round_robin": ("scheduler=round_robin", "gate=never"),  # the baseline: every question aggregated
    "ilp": ("scheduler=ilp", "gate=majority"),  # MOSAIC at tau = 2/3
    "unanimous": ("scheduler=ilp", "gate=unanimous"),  # MOSAIC at tau = 1
}
"""Policies of the benchmarks."""
SEEDS_TIMES = {"gpqa": 4}
"""More luck for the smallest benchmark: 54 questions are left to its aggregator, so that the mean of 16 runs is known
within 20% only."""
OTHER_DRAWS = {"questions": "question_seed", "profile": "profile.seed"}
"""What else than a run's luck is drawn: the ILP's expert stage with other draws of it, the run's luck the same."""
EXPERT_STAGE = {name: (f"scheduler={name}", "aggregator=none") for name in ("round_robin", "data_parallel", "ilp")}
"""Policies of the pools, the expert stage alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: what is overridden, and the folder below the runs that it lands in."""

    workload: str
    policy: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.workload}/{self.policy}/seed_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class PaperRun:
    """A complete run of a point."""

    point: Point
    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Contents of summary.json."""
        found: dict[str, Any] = read_json(self.folder / SUMMARY)
        return found

    @cached_property
    def sessions(self) -> tuple[SessionRecord, ...]:
        """All sessions, of both stages."""
        return read_sessions(self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRuns:
    """All runs, by workload, policy and seed."""

    runs: tuple[PaperRun, ...]

    def of(self, workload: str, policy: str) -> tuple[PaperRun, ...]:
        """Runs of a workload and policy, by seed."""
        return tuple(run for run in self.runs if (run.point.workload, run.point.policy) == (workload, policy))


def paper_points(num_seeds: int) -> list[Point]:
    """List the points of the reproduction, the first seed of everything first; one seed is one of every benchmark."""
    points = []
    for seed in range(num_seeds):
        for workload in BENCHMARKS:
            points += [_point(workload, name, seed, groups) for name, groups in TWO_STAGES.items()]
            points += [
                Point(
                    workload=workload,
                    policy=f"ilp_{name}",
                    seed=seed,
                    overrides=(f"workload={workload}", *EXPERT_STAGE["ilp"], f"{key}={seed}"),
                )
                for name, key in OTHER_DRAWS.items()
            ]
        for pool, workload in POOLS.items():
            # NOTE: the benchmarks' runs hold the hybrid pool's expert stage under round robin and the ILP already.
            known = TWO_STAGES if pool == "hybrid" else ()
            policies = {name: groups for name, groups in EXPERT_STAGE.items() if name not in known}
            points += [_point(workload, name, seed, (*groups, f"pool={pool}")) for name, groups in policies.items()]
    if num_seeds > 1:
        for workload, times in SEEDS_TIMES.items():
            for seed in range(num_seeds, times * num_seeds):
                points += [_point(workload, name, seed, groups) for name, groups in TWO_STAGES.items()]
    return points


def _point(workload: str, policy: str, seed: int, overrides: Sequence[str]) -> Point:
    return Point(
        workload=workload,
        policy=policy,
        seed=seed,
        overrides=(f"workload={workload}", *overrides, f"seed={seed}"),
    )


def run_all(points: Sequence[Point], folder: Path) -> PaperRuns:
    """Run the points that are not complete yet, on all cores.

    Raises
    ------
    MosaicError, ValueError, OSError
        If a point cannot be run; the points before it are complete and are not run again.
    """
    running = Parallel(n_jobs=-1, return_as="generator")(delayed(_run_quietly)(point, folder) for point in points)
    done = tqdm(running, total=len(points), desc="runs", unit="run", disable=not sys.stderr.isatty())
    return PaperRuns(runs=tuple(done))


def _run_quietly(point: Point, folder: Path) -> PaperRun:
    """Run a point; its line is not printed, since a bar shows the progress."""
    place = folder / point.name
    place.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(io.StringIO()):
        run_point(OmegaConf.create(compose_config(list(point.overrides))), place, point=point.name)
    return PaperRun(point=point, folder=place)
