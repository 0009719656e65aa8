"""A rehearsal: calibration questions go through the pipeline, so that what a gate selects for is what is measured."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from mosaic.core.plan import Expected, Plan
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import Call, CallKey, Expert, NodeName, Question, Workload
from mosaic.pipelines.budgets import cut_record
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.controller import Controller, Show, Tell
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.site import Site, prompts_of
from mosaic.runtime.stopping import Cuts
from mosaic.runtime.sweep import again_if_disturbed, announcement, of_questions, run_waves
from mosaic.runtime.unpriced import even_plan, spread_anew

SPARED = "profile.aggregator_path=FILE spares them"
"""How to do without measuring upper nodes; without a barrier, or for a quorum, they are rehearsed all the same."""


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


def rehearse(
    graph: CallGraph,
    planner: Planner,
    site: Site,
    show: Show,
    *,
    asked: Workload | None = None,
    answered: Mapping[CallKey, CallRecord] | None = None,
    max_questions: int | None = None,
    tell: Tell = lambda line: None,
) -> Rehearsal:
    """Send calibration questions through all layers but the last, and see what each upper node gets.

    A node that gets nothing there has no typical call; then all questions stand in.

    Parameters
    ----------
    graph, planner, site
        The pipeline, who plans its first layer, and where.
    show
        Shows what goes on.
    asked
        Which questions; None: those of calibration.
    answered
        What is known of their calls, of a pilot: these are not sent.
    max_questions
        Most questions that are asked; None: as many as the site gives.
    tell
        Receives how many calls come.
    """
    graph = graph.deciding()
    if asked is None:
        asked = site.calibration([entry.expert for entry in planner.profiles[graph.first_nodes[0]].entries])
        asked = first_questions(asked, max_questions)
    known = {question.id: question for question in asked.questions}
    questions = Questions(asked, graph)
    calls: Sequence[Call] = questions.first_calls
    make: Callable[[], Plan] = lambda: planner.plan(questions.first_calls).plan  # noqa: E731
    records: dict[CallKey, CallRecord] = {}
    known_before = answered or {}
    typical: dict[NodeName, tuple[Call, ...]] = {}
    needed_frac: dict[NodeName, float] = {}
    for number, layer in enumerate(graph.layers[1:]):
        said = [known_before[call.key] for call in calls if call.key in known_before]
        calls = [call for call in calls if call.key not in known_before]
        if calls:
            count = dict(Counter(call.expert for call in calls))
            tell(announcement("calibrating", count, "to see what the gate leaves", SPARED))
            with show("calibrating", Expected()) as shown:
                prompts = prompts_of(graph, known)
                anew = spread_anew([*planner.experts, *graph.experts], site, planner.cluster.num_workers)
                controllers: tuple[Controller, ...] = (Cuts(graph.budgets), anew, *shown)
                said += site.ask(f"calibration_{number}", calls, make, known, prompts, records, controllers)
        for record in said:
            records[record.key] = cut_record(record, graph.budgets)
            questions.note(records[record.key])
        for question in known if number == 0 else ():
            if (late := questions.late_call(question)) is not None:
                records[late] = records[late]._replace(status=CallStatus.CUT, answer=None)
                questions.note(records[late])
        for node in layer:
            mine = questions.calls_of(node.name)
            needed_frac[node.name] = len({call.key.question for call in mine}) / len(known)
            typical[node.name] = mine or questions.calls_of(node.name, skipping=False)
        calls = [call for node in layer for call in typical[node.name]]
        left = [call for call in calls if call.key not in known_before]
        make = partial(even_plan, left, graph.experts, site, planner.cluster.num_workers)
    return Rehearsal(questions=known, records=records, calls=typical, needed_frac=needed_frac)


def first_questions(workload: Workload, num_questions: int | None) -> Workload:
    """Cut a workload down to its first questions; None: all of them."""
    if num_questions is None or num_questions >= len(workload.questions):
        return workload
    return of_questions(workload, workload.questions[:num_questions])


def sweep_node(
    node: Node,
    rehearsal: Rehearsal,
    graph: CallGraph,
    planner: Planner,
    site: Site,
    source: str,
    show: Show,
    *,
    max_calls: int | None = None,
    tell: Tell = lambda line: None,
) -> Profile:
    """Measure a node's experts, at each degree at which they may be placed, on what calibration leaves to it.

    ``max_calls`` bounds each of these measurements, and ``tell`` receives how many calls come.
    """
    what = f"profiling {node.name}"
    entries: list[ProfileEntry] = []
    prompts = prompts_of(graph, rehearsal.questions)
    for expert in dict.fromkeys(node.experts):
        calls = [call for call in rehearsal.calls[node.name] if call.expert == expert.name]
        for degree in planner.degrees(node.name, expert) if calls else ():  # every question may be too long for it
            shaped = placed(expert, degree)

            def measure(name: str, shaped: Expert = shaped, calls: Sequence[Call] = calls) -> ProfileEntry:
                backend = site.rehearsal(name, rehearsal.questions, prompts, rehearsal.records)
                with show(what, Expected()) as shown:
                    return run_waves(
                        shaped, calls, planner.cluster, backend, site.places(shaped), (Cuts(graph.budgets), *shown),
                        max_calls=max_calls,
                        log=lambda count: tell(announcement(what, {shaped.name: count}, "to price it", SPARED)),
                    )  # fmt: skip

            entries.append(again_if_disturbed(f"profile_{node.name}_{expert.name}_tp{degree}", measure, site, tell))
    return Profile(source=source, entries=tuple(entries))
