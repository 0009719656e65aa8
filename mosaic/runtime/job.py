"""Defines the inputs of a run and its results, as plain values."""

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
    """The calls that measure the costs of experts, if no profile is given."""

    AUTO = "auto"
    """With real models, the batch's own calls if their answers can be kept; otherwise calibration calls."""
    BATCH = "batch"
    """The batch's own calls: a pilot, whose answers are part of the batch."""
    CALIBRATION = "calibration"
    """Calls of other questions, or of the batch's with another seed: their answers are not kept."""


class Reaction(StrEnum):
    """What may change a run in progress, beside its pipeline and its plan; each can be chosen separately."""

    QUORUM = "quorum"
    """Calls are cancelled as soon as the gate is decided without them, and plans take this into account."""
    NO_BARRIER = "no_barrier"
    """A call starts when the calls that it reads have ended; with a barrier, when all earlier layers have."""
    OVERLAP = "overlap"
    """No barrier: calls of upper layers join sessions of their expert, or start on a free worker."""
    FORECAST = "forecast"
    """With ``NO_BARRIER``: experts that a later layer needs again stay loaded on their workers."""
    MOVES = "moves"
    """Waiting or running calls move to other workers if they are predicted to end earlier there."""
    REPLAN = "replan"
    """Calls that have not started are planned anew if the observed lengths contradict the plan."""
    PREFILL = "prefill"
    """Prompts are prefilled while calls that they quote still run, in the order of ``CallGraph.prefill_order``."""
    BUDGETS = "budgets"
    """Calls are cut at a number of tokens, given by ``CallGraph.budgets``."""
    HEDGE = "hedge"
    """The last undecided call of a question is not waited for beyond its hedge, given by ``CallGraph.budgets``."""


class Summary(StrEnum):
    """Additional results that a run reports."""

    AUTO = "auto"
    """The result of aggregating every question, for at most ``LARGE_BATCH`` questions."""
    FULL = "full"
    """The same for any number of questions."""


LARGE_BATCH = 10_000
"""Questions. In a larger simulated batch, so many show what the gate skips, to price upper nodes.

A share of 20% is then known to 0.4 percentage points.
"""


def shape_of(graph: CallGraph) -> list[object]:
    """List everything that a graph's calls depend on, the calibration of its rule included."""
    rule = graph.rule
    values = [getattr(rule, name, None) for name in getattr(rule, "__dataclass_fields__", ())]
    compare = [(kind, getattr(same, "__qualname__", same)) for kind, same in graph.compare.items()]
    ahead = [] if graph.prefill_order is None else [graph.prefill_order]
    return [graph.nodes, type(rule).__qualname__, values, compare, graph.budgets, *ahead]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All inputs of a run."""

    workload: Workload
    experts: tuple[Expert, ...]
    """The pool."""
    cluster: Cluster
    graph: CallGraph
    scheduler: Scheduler
    costs: CostFactory
    site: Site
    sweep: Sweep
    """How the first layer is measured if no profile is given."""
    profile: Profile | None = None
    """Of the first layer; None: measured before the run."""
    profile_source: ProfileSource = ProfileSource.AUTO
    """What is measured if no profile is given."""
    max_batch_frac: float | None = None
    """Largest share of an expert's calls in the batch that real engines measure before it.

    None: as many as the sweep has. Simulations always measure the whole sweep: it costs nothing.
    """
    upper_profile: Profile | None = None
    """Of the nodes above it; None: measured before the run."""
    placements: Mapping[NodeName, NodePlacements] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()
    """Saved plans, by layer; empty: plans are made."""
    quoted: Callable[..., Generator[Any, Any, Any]] | None = None
    """The stages of a quote's pilot, with which the run starts; the quote's answers are in the same journal."""
    choose_plan: Callable[..., Planned] | None = None
    """Makes the first layer's plan from a planner, calls, the pilot and a log; None: the scheduler does."""
    reactions: Set[Reaction] = frozenset()
    """What changes the run in progress."""
    session_model: SessionModel | None = None
    """For schedulers that price sessions by their iterations; None: there is no model of the machines."""
    host_loads: HostLoads | None = None
    """Prices loads that need no disk; None: the machine keeps no models in memory."""
    store: Store | None = None
    """Keeps measurements for other runs; None: they are not kept."""
    summary: Summary = Summary.AUTO

    @property
    def is_cancelling(self) -> bool:
        """Whether calls whose votes no longer matter are cancelled, by a quorum or by an early exit."""
        return Reaction.QUORUM in self.reactions or self.graph.rule.is_exit

    @property
    def max_swept_frac(self) -> float | None:
        """``max_batch_frac`` if calls outside the batch have a cost."""
        return None if self.site.kind == "simulated" else self.max_batch_frac

    @property
    def reruns_without_gate(self) -> bool:
        """Whether the batch is repeated without a gate, to report the difference."""
        return self.summary is Summary.FULL or len(self.workload.questions) <= LARGE_BATCH

    def kept(self, decided_by: Sequence[object], kind: type[_Measured]) -> _Measured | None:
        """Read a measurement of the same inputs on the same site; None: there is none."""
        fingerprint = self.site.cache_key
        return self.store.read((*fingerprint, *decided_by), kind) if self.store and fingerprint else None

    def keep(self, decided_by: Sequence[object], measured: object) -> None:
        """Keep a measurement for other runs on the same site."""
        fingerprint = self.site.cache_key
        if self.store and fingerprint:
            self.store.write((*fingerprint, *decided_by), measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAggregate:
    """The result of the same world without skipping; None: not simulated."""

    aggregator_s: float | None = None
    accuracy_frac: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of a run."""

    planned: tuple[Planned, ...]
    """By layer that had a call to plan; empty on servers."""
    plans: tuple[Plan, ...]
    """Their plans; on servers one plan, which records where calls ran and predicts nothing."""
    result: RunResult
    replans: tuple[tuple[Plan, Mapping[int, str]], ...] = ()
    """Plans made after workers were lost, each with the lost workers."""
    answers: tuple[FinalAnswer, ...] | None = None
    """None: no node reads the experts' answers, and it is not known whether their majority is right."""
    ballots: tuple[Ballot, ...] = ()
    decisions: tuple[Decision, ...] = ()
    num_too_long: int = 0
    """Questions that were too long for an upper node."""
    always: AlwaysAggregate = AlwaysAggregate()
    reacting_s: float | None = None
    """Wall seconds of the controllers; None: a simulation, whose clock does not advance during them."""

    @property
    def skip_frac(self) -> float | None:
        """Share of the questions that the gate skips."""
        if not self.decisions:
            return None
        return sum(decision.skip for decision in self.decisions) / len(self.decisions)
