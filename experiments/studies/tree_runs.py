"""Trees of agents against all-to-all on few GPUs: what is run, and what comes of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from experiments.analysis.intervals import Estimate, estimate
from experiments.config.compose import compose_config
from experiments.config.job import job_from
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.runtime.job import Job
from mosaic.runtime.run import run

NUM_QUESTIONS = 200
EXPERTS = ("Gemma", "Exaone", "GLM", "Qwen", "Llama", "Granite")
COMMON = (
    "workload=mmlu_pro_instruct",
    "pool=instruct",
    "costs=piecewise",
    "backend.order=mixed",
    f"workload.num_questions={NUM_QUESTIONS}",
    # The workload only says who is asked: layers of agents seat the experts in turn.
    f"workload.slots={{{', '.join(f'{name}: {3 * NUM_QUESTIONS // len(EXPERTS)}' for name in EXPERTS)}}}",
)
ALL_STAY = ("exit=never",)
FREE = ("pipeline.barrier=false", "pipeline.forecast=true")

STAGES: dict[str, tuple[str, ...]] = {
    "all to all": ("topology=all_to_all", *ALL_STAY),
    "tree": ("topology=tree", *ALL_STAY),
    "no barrier": ("topology=tree", *FREE, *ALL_STAY),
    "overlap": ("topology=tree", "pipeline.overlap=true", *ALL_STAY),
    "prefill ahead": ("topology=tree", "pipeline.overlap=true", "pipeline.prefill_ahead=true", *ALL_STAY),
    "exit": ("topology=tree", "pipeline.overlap=true", "exit=agreement"),
}
"""Each on top of the one before it."""
NEEDS_SHARING = "prefill ahead"

WAYS: dict[str, tuple[str, ...]] = {
    "barrier": (),
    "no barrier": ("pipeline.barrier=false",),
    "no barrier, forecast": FREE,
    "overlap": ("pipeline.overlap=true",),
    "overlap, moves": ("pipeline.overlap=true", "pipeline.moves=true"),
}
"""In which layers follow each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run but for its seed."""

    kind: str
    """stage, or the topology whose ways of following are compared."""
    name: str
    num_gpus: int
    shares: bool
    """Whether engines cache prefixes."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Say what differs from ``COMMON``."""
        cached = str(self.shares).lower()
        own = STAGES[self.name] if self.kind == "stage" else (f"topology={self.kind}", *WAYS[self.name], *ALL_STAY)
        if self.kind == "stage" and self.name == "exit" and self.shares:
            own = (*own, "pipeline.prefill_ahead=true")
        return (*COMMON, f"cluster.num_workers={self.num_gpus}", f"backend.enable_prefix_caching={cached}", *own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of a run."""

    kind: str
    name: str
    num_gpus: int
    shares: bool
    seed: int
    end_to_end_s: float
    accuracy_frac: float
    num_loads: int
    num_calls: int
    """That finished."""

    @property
    def point(self) -> Point:
        return Point(kind=self.kind, name=self.name, num_gpus=self.num_gpus, shares=self.shares)


def points(nums_gpus: Sequence[int]) -> Iterator[Point]:
    """List all that is run: stages with and without prefix sharing, and ways without it."""
    for num, shares, name in product(nums_gpus, (False, True), STAGES):
        if shares or name != NEEDS_SHARING:
            yield Point(kind="stage", name=name, num_gpus=num, shares=shares)
    for topology, num, name in product(("tree", "all_to_all"), nums_gpus, WAYS):
        yield Point(kind=topology, name=name, num_gpus=num, shares=False)


def run_point(point: Point, seeds: Iterable[int]) -> Iterator[Row]:
    """Simulate a point; what it is made of is composed once, as nothing but the run's own seed differs."""
    config = compose_config([*point.overrides])
    for seed in seeds:
        yield _row(point, seed, job_from({**config, "seed": seed}).job)


def _row(point: Point, seed: int, job: Job) -> Row:
    outcome = run(job)
    found = accuracy_frac(outcome.answers or ())
    assert found is not None, "the world has answers"
    return Row(
        **asdict(point),
        seed=seed,
        end_to_end_s=round(max(session.end_ts for session in outcome.result.sessions), 3),
        accuracy_frac=found,
        num_loads=sum(session.load_s > 0 for session in outcome.result.sessions),
        num_calls=sum(record.status == "finished" for record in outcome.result.calls),
    )


class Times:
    """Times of runs, paired by seed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[Point, dict[int, Row]] = {}
        for row in rows:
            self._rows.setdefault(row.point, {})[row.seed] = row

    def __contains__(self, point: Point) -> bool:
        """Tell whether a point was run."""
        return point in self._rows

    def of(self, point: Point) -> Mapping[int, Row]:
        """Give the runs of a point, by seed."""
        return self._rows[point]

    def saved_frac(self, point: Point, baseline: Point) -> Estimate:
        """Give the share of the baseline's time that a point saves: mean over paired seeds, with its interval."""
        ours, theirs = self._rows[point], self._rows[baseline]
        shared = sorted(ours.keys() & theirs.keys())
        return estimate([1 - ours[seed].end_to_end_s / theirs[seed].end_to_end_s for seed in shared])

    def changed_pp(self, point: Point, baseline: Point) -> Estimate:
        """Give by how many percentage points a point is right more often than the baseline."""
        ours, theirs = self._rows[point], self._rows[baseline]
        shared = sorted(ours.keys() & theirs.keys())
        return estimate([100 * (ours[seed].accuracy_frac - theirs[seed].accuracy_frac) for seed in shared])
