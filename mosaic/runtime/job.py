"""What a run is made of, and what comes of it: plain values."""

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.core.workload import Expert, NodeName, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import FinalAnswer
from mosaic.pipelines.rules.ballot import Ballot, Decision
from mosaic.planning.problem import SessionModel
from mosaic.planning.profiles import Profile
from mosaic.planning.scheduler import Scheduler
from mosaic.planning.wrapped_costs import HostLoads
from mosaic.runtime.planner import CostFactory, NodePlacements, Planned
from mosaic.runtime.site import Site
from mosaic.runtime.store import Store
from mosaic.runtime.sweep import Sweep

_Measured = TypeVar("_Measured")


class ProfileSource(StrEnum):
    """Which calls tell what experts cost, where no profile is given."""

    AUTO = "auto"
    """Where models really answer, the batch's own if their answers can be kept; else those of calibration."""
    BATCH = "batch"
    """The batch's own: a pilot, whose answers are the batch's."""
    CALIBRATION = "calibration"
    """Of other questions, or of the batch's with another seed: nothing of them is kept."""


class Reaction(StrEnum):
    """What may change a run while it lasts, beside its pipeline and its plan; each can be chosen by itself."""

    QUORUM = "quorum"
    """Calls are cancelled as soon as the gate is decided without them, and plans expect that."""
    NO_BARRIER = "no_barrier"
    """A call starts when the calls that it reads have ended; with a barrier a layer starts when all before it has."""
    OVERLAP = "overlap"
    """No barrier: calls of upper layers join sessions of their expert, or start where a worker is free."""
    FORECAST = "forecast"
    """With ``NO_BARRIER``: experts that a later layer needs again stay on the workers that hold them."""
    MOVES = "moves"
    """Calls go to other workers while they wait or run, where that is predicted to end earlier."""
    REPLAN = "replan"
    """Calls that have not begun are planned anew where the lengths that come in contradict the plan."""
    PREFILL = "prefill"
    """Prompts are prefilled while calls still run that they quote: ``CallGraph.prefill_order`` says in which order."""
    BUDGETS = "budgets"
    """Calls are cut after so many tokens: those of ``CallGraph.budgets``."""
    HEDGE = "hedge"
    """The last undecided call of a question is not waited for past its hedge: one of ``CallGraph.budgets``."""


class Summary(StrEnum):
    """What a run reports beside its results."""

    AUTO = "auto"
    """What aggregating every question would have given, for at most ``LARGE_BATCH`` questions."""
    FULL = "full"
    """That for any number of questions."""


LARGE_BATCH = 10_000
"""Questions. Of a larger simulated batch so many show what the gate leaves, to price upper nodes: a share of 20% is
then known to 0.4 points."""


def shape_of(graph: CallGraph) -> list[object]:
    """List all that decides a graph's calls, the calibration of its rule included."""
    rule = graph.rule
    values = [getattr(rule, name, None) for name in getattr(rule, "__dataclass_fields__", ())]
    compare = [(kind, getattr(same, "__qualname__", same)) for kind, same in graph.compare.items()]
    ahead = [] if graph.prefill_order is None else [graph.prefill_order]
    return [graph.nodes, type(rule).__qualname__, values, compare, graph.budgets, *ahead]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that a run is made of."""

    workload: Workload
    experts: tuple[Expert, ...]
    """The pool."""
    cluster: Cluster
    graph: CallGraph
    scheduler: Scheduler
    costs: CostFactory
    site: Site
    sweep: Sweep
    """How the first layer is measured where no profile is given."""
    profile: Profile | None = None
    """Of the first layer; None: measured before the run."""
    profile_source: ProfileSource = ProfileSource.AUTO
    """What is measured where no profile is given."""
    max_batch_frac: float | None = None
    """Real engines measure no more calls of an expert before the batch than this share of those that it has there.

    None: as many as the sweep says, as simulations always do: they cost nothing.
    """
    upper_profile: Profile | None = None
    """Of the nodes above it; None: measured before the run."""
    placements: Mapping[NodeName, NodePlacements] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()
    """Saved plans, by layer; none: they are made."""
    quoted: Callable[..., Generator[Any, Any, Any]] | None = None
    """The stages of a quote's pilot, with which the run begins; the quote has left its answers in the same journal."""
    choose_plan: Callable[..., Planned] | None = None
    """Makes the first layer's plan of a planner, calls, the pilot and what receives lines; None: the scheduler does."""
    reactions: Set[Reaction] = frozenset()
    """What changes the run while it lasts."""
    session_model: SessionModel | None = None
    """For schedulers that price sessions by their iterations; None: there is no model of the machines."""
    host_loads: HostLoads | None = None
    """Loads that need no disk; None: the host keeps nothing of experts."""
    store: Store | None = None
    """Where measurements are kept for other runs; None: nowhere."""
    summary: Summary = Summary.AUTO

    @property
    def is_cancelling(self) -> bool:
        """Whether calls are cancelled whose votes no longer matter, by a quorum or by an early exit."""
        return Reaction.QUORUM in self.reactions or self.graph.rule.is_exit

    @property
    def max_swept_frac(self) -> float | None:
        """``max_batch_frac`` where calls that are not the batch's cost something."""
        return None if self.site.kind == "simulated" else self.max_batch_frac

    @property
    def reruns_without_gate(self) -> bool:
        """Whether the batch is to be run again without a gate, to tell what that would have given."""
        return self.summary is Summary.FULL or len(self.workload.questions) <= LARGE_BATCH

    def kept(self, decided_by: Sequence[object], kind: type[_Measured]) -> _Measured | None:
        """Read what the same site has measured of the same; None: nothing."""
        fingerprint = self.site.cache_key
        return self.store.read((*fingerprint, *decided_by), kind) if self.store and fingerprint else None

    def keep(self, decided_by: Sequence[object], measured: object) -> None:
        """Keep a measurement for other runs on the same site."""
        fingerprint = self.site.cache_key
        if self.store and fingerprint:
            self.store.write((*fingerprint, *decided_by), measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAggregate:
    """What the same world gives when the gate skips nothing; None: not simulated."""

    aggregator_s: float | None = None
    accuracy_frac: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    planned: tuple[Planned, ...]
    """By layer that had a call to plan; none on servers."""
    plans: tuple[Plan, ...]
    """Their plans; on servers one, which says what ran where and predicts nothing."""
    result: RunResult
    replans: tuple[tuple[Plan, Mapping[int, str]], ...] = ()
    """Made because workers were lost, with what was lost."""
    answers: tuple[FinalAnswer, ...] | None = None
    """None: no node reads the experts' answers, and it is not known whether their majority is right."""
    ballots: tuple[Ballot, ...] = ()
    decisions: tuple[Decision, ...] = ()
    num_too_long: int = 0
    """Questions that an upper node could not read."""
    always: AlwaysAggregate = AlwaysAggregate()
    reacting_s: float | None = None
    """Wall seconds in which controllers made up their minds; None: a simulation, whose clock stands still meanwhile."""

    @property
    def skip_frac(self) -> float | None:
        """Share of the questions that the gate skips."""
        if not self.decisions:
            return None
        return sum(decision.skip for decision in self.decisions) / len(self.decisions)
