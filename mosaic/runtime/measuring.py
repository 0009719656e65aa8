"""Measures what the planner needs, before the run: the first layer by a sweep, the others by a rehearsal.

A rehearsal sends calibration questions through the pipeline, so that the lengths which a gate selects for are those
that are measured.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from mosaic.core.cluster import Cluster
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Plan, PredictedTimes, Session, unpriced_plan
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Expert, NodeName, Question
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.node import Node
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.planning.schedulers.shards import replica_sessions, split_evenly
from mosaic.runtime.aggregator_sweep import sweep_aggregator
from mosaic.runtime.controller import Controller
from mosaic.runtime.layers import Questions
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.site import Prompts, Site
from mosaic.runtime.sweep import Sweep, run_sweep

_Swept = TypeVar("_Swept")

Show: TypeAlias = Callable[[str, Mapping[int, PredictedTimes]], AbstractContextManager[Sequence[Controller]]]
"""Gives who shows what goes on, by its name and what is predicted of its sessions (more may come while it lasts)."""


def show_nothing(name: str, predicted: Mapping[int, PredictedTimes]) -> AbstractContextManager[Sequence[Controller]]:
    """Show nothing."""
    return nullcontext(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What calibration questions show of a pipeline's upper nodes."""

    questions: Mapping[str, Question] = field(default_factory=dict)
    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    calls: Mapping[NodeName, tuple[Call, ...]] = field(default_factory=dict)
    """Typical calls of each upper node."""
    needed_frac: Mapping[NodeName, float] = field(default_factory=dict)
    """Share of the questions that reach it."""

    def prompt_tokens(self) -> dict[NodeName, int]:
        """What a typical call of each node reads."""
        return {
            node: round(sum(call.prompt_tokens for call in calls) / len(calls))
            for node, calls in self.calls.items()
            if calls
        }


def sweep_first_layer(
    sweep: Sweep,
    calls: Sequence[Call],
    experts: Sequence[Expert],
    cluster: Cluster,
    site: Site,
    source: str,
    show: Show,
) -> Profile:
    """Measure the experts that have calls."""
    called = {call.expert for call in calls}
    swept = [expert for expert in experts if expert.name in called]

    def measure(name: str) -> Profile:
        backend, prompt_tokens = site.sweep(name, swept)
        with show("profiling", {}) as shown:
            return run_sweep(
                sweep,
                swept,
                cluster,
                backend,
                prompt_tokens,
                source,
                lambda expert, session: site.swept_place(expert, session, len(swept)),
                shown,
            )

    return _again_if_disturbed("profile", measure)


def rehearse(graph: CallGraph, planner: Planner, site: Site, show: Show) -> Rehearsal:
    """Send calibration questions through all layers but the last, and see what each upper node gets.

    A node that gets nothing there has no typical call; then all questions stand in.

    Parameters
    ----------
    graph, planner, site
        The pipeline, who plans its first layer, and where.
    show
        Shows what goes on.
    """
    asked = site.calibration([entry.expert for entry in planner.profiles[graph.first_nodes[0]].entries])
    known = {question.id: question for question in asked.questions}
    questions = Questions(asked, graph)
    calls: Sequence[Call] = questions.first_calls
    make: Callable[[], Plan] = lambda: planner.plan(questions.first_calls).plan  # noqa: E731
    records: dict[CallKey, CallRecord] = {}
    typical: dict[NodeName, tuple[Call, ...]] = {}
    needed_frac: dict[NodeName, float] = {}
    for number, layer in enumerate(graph.layers[1:]):
        with show("calibrating", {}) as shown:
            prompts = prompts_of(graph, known)
            said = site.ask(f"calibration_{number}", calls, make, known, prompts, records, shown)
        for record in said:
            records[record.key] = record
            questions.note(record)
        for node in layer:
            mine = questions.calls_of(node.name)
            needed_frac[node.name] = len({call.key.question for call in mine}) / len(known)
            typical[node.name] = mine or questions.calls_of(node.name, skipping=False)
        calls = [call for node in layer for call in typical[node.name]]
        experts = [expert for node in layer for expert in node.experts]
        make = partial(even_plan, calls, experts, site, planner.cluster.num_workers)
    return Rehearsal(questions=known, records=records, calls=typical, needed_frac=needed_frac)


def sweep_node(
    node: Node, rehearsal: Rehearsal, graph: CallGraph, planner: Planner, site: Site, source: str, show: Show
) -> Profile:
    """Measure a node's experts, at each degree at which they may be placed, on what calibration leaves to it."""
    entries: list[ProfileEntry] = []
    prompts = prompts_of(graph, rehearsal.questions)
    for expert in node.experts:
        calls = [call for call in rehearsal.calls[node.name] if call.expert == expert.name]
        for degree in planner.degrees(node.name, expert) if calls else ():  # every question may be too long for it
            shaped = placed(expert, degree)

            def measure(name: str, shaped: Expert = shaped, calls: Sequence[Call] = calls) -> ProfileEntry:
                backend = site.rehearsal(name, rehearsal.questions, prompts, rehearsal.records)
                with show(f"profiling {node.name}", {}) as shown:
                    return sweep_aggregator(shaped, calls, planner.cluster, backend, site.places(shaped), shown)

            entries.append(_again_if_disturbed(f"profile_{node.name}_{expert.name}_tp{degree}", measure))
    return Profile(source=source, entries=tuple(entries))


def even_plan(calls: Sequence[Call], experts: Sequence[Expert], site: Site, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as each expert may have, by no price."""
    sessions: list[Session] = []
    for expert in experts:
        mine = [call for call in calls if call.expert == expert.name]
        if mine:
            places = site.places(expert)
            parts = split_evenly(len(mine), len(places))
            sessions += replica_sessions(mine, places, parts, first_id=len(sessions))
    return unpriced_plan(sessions, num_workers=num_workers)


def prompts_of(graph: CallGraph, questions: Mapping[str, Question]) -> Prompts:
    """Write the prompts of a graph's calls."""
    return lambda call, inputs: graph.prompt(questions[call.key.question], call, inputs)


def _again_if_disturbed(name: str, measure: Callable[[str], _Swept]) -> _Swept:
    try:
        return measure(name)
    except DisturbedSweepError:
        return measure(f"{name}_again")
