"""What figures need of a run folder's expert stage, as plain data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require, require_number
from mosaic.core.errors import RunFolderError
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, ExpertName
from mosaic.report.metrics import busy_s_by_worker, load_s_by_worker, makespan_s
from mosaic.report.run_folder import SUMMARY, read_json
from mosaic.report.run_records import ANSWERS, CALLS, SESSIONS, read_sessions, read_table

if TYPE_CHECKING:
    import polars as pl

AGREEMENT_BUCKETS = ("3:0", "2:1", "1:1:1")
"""How the three answers to a question split, most agreement first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimes:
    """How the workers of a run spend the expert stage, in seconds; what is left of the makespan is idle."""

    load_s: tuple[float, ...]
    """By worker."""
    generate_s: tuple[float, ...]
    """By worker."""
    makespan_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "load_s", tuple(self.load_s))
        object.__setattr__(self, "generate_s", tuple(self.generate_s))
        require(len(self.load_s) > 0, "worker times: load_s", "of at least one worker", self.load_s)
        rule = f"of as many workers as load_s ({len(self.load_s)})"
        require(len(self.generate_s) == len(self.load_s), "worker times: generate_s", rule, self.generate_s)
        require_number(self.makespan_s, "worker times: makespan_s", above=0)
        for seconds in (*self.load_s, *self.generate_s):
            require_number(seconds, "worker times: seconds", at_least=0)

    @property
    def idle_s(self) -> tuple[float, ...]:
        """By worker."""
        # NOTE: busy spans are sums of differences, so rounding can bring the rest just below 0.
        busy_s = map(add_in_order, zip(self.load_s, self.generate_s, strict=True))
        return tuple(max(0.0, self.makespan_s - seconds) for seconds in busy_s)

    @property
    def idle_frac(self) -> float:
        """Share of N x makespan."""
        return add_in_order(self.idle_s) / (len(self.load_s) * self.makespan_s)

    @property
    def load_frac(self) -> float:
        """Share of N x makespan."""
        return add_in_order(self.load_s) / (len(self.load_s) * self.makespan_s)


def output_tokens_by_expert(folder: Path) -> dict[ExpertName, list[int]]:
    """Output tokens of every call, by expert in the pool's order; experts without calls are left out."""
    names: list[ExpertName] = _summary(folder, "experts")
    groups = _proposals(folder).group_by("expert", maintain_order=True).agg("output_tokens")
    tokens: dict[ExpertName, list[int]] = dict(groups.iter_rows())
    return {name: tokens[name] for name in dict.fromkeys([*names, *tokens]) if name in tokens}


def slots_by_expert(folder: Path) -> dict[ExpertName, int]:
    """Slots of the questions that each expert holds, in the pool's order; experts without slots are left out."""
    return {name: len(tokens) for name, tokens in output_tokens_by_expert(folder).items()}


def worker_times(folder: Path) -> WorkerTimes:
    """Seconds that the workers load and generate in the expert stage.

    Raises
    ------
    RunFolderError
        If a file cannot be read, or holds no session of that stage.
    """
    sessions = [session for session in read_sessions(folder) if session.node == PROPOSE]
    span_s = makespan_s(sessions)
    if not span_s:
        raise RunFolderError(f"{folder / SESSIONS}: has no session of the expert stage")
    num_workers = _summary(folder, "num_workers")
    load_s = load_s_by_worker(sessions, num_workers)
    busy_s = busy_s_by_worker(sessions, num_workers)
    generate_s = tuple(max(0.0, busy - load) for busy, load in zip(busy_s, load_s, strict=True))
    return WorkerTimes(load_s=load_s, generate_s=generate_s, makespan_s=span_s)


def tokens_by_agreement(folder: Path) -> dict[str, list[float]]:
    """Mean output tokens of each question's calls, by how its three answers split.

    An unparsable answer agrees with none. Questions whose answers cannot be compared (free text) are left out.

    Raises
    ------
    RunFolderError
        If a file cannot be read, or a question has not three answers.
    """
    import polars as pl

    means = dict(_proposals(folder).group_by("question").agg(pl.col("output_tokens").mean()).iter_rows())
    buckets: dict[str, list[float]] = {name: [] for name in AGREEMENT_BUCKETS}
    for question, votes, confidence in read_table(folder / ANSWERS, ["question", "votes", "confidence"]).iter_rows():
        if len(votes) != 3:
            raise RunFolderError(f"{folder / ANSWERS}: question {question!r} must have 3 votes, has {len(votes)}")
        if confidence is not None and question in means:
            buckets[_bucket(votes)].append(means[question])
    return buckets


def _bucket(votes: Sequence[str | None]) -> str:
    """Name the split of three votes; those that compare equal are the same string."""
    counts = Counter(vote for vote in votes if vote is not None)
    return AGREEMENT_BUCKETS[3 - max(counts.values(), default=1)]


def _proposals(folder: Path) -> "pl.DataFrame":
    """Question, expert and output tokens of the expert stage's finished calls."""
    calls = read_table(folder / CALLS, ["question", "expert", "output_tokens", "node", "status"])
    return calls.filter(node=PROPOSE, status=CallStatus.FINISHED.value).select("question", "expert", "output_tokens")


def _summary(folder: Path, key: str) -> Any:
    path = folder / SUMMARY
    found = read_json(path)
    if not isinstance(found, dict) or key not in found:
        raise RunFolderError(f"{path}: not a summary of a run ({key!r} missing)")
    return found[key]
