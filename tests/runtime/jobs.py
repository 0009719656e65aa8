"""Jobs on the simulator whose calls say what a table has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Expert, Question, Workload
from mosaic.pipelines.call_graph import CallGraph, mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.rules.rule import Never
from mosaic.planning.baselines import RoundRobin
from mosaic.planning.costs import AffineCosts
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Show, show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.planner import NodePlacements, Placement
from mosaic.runtime.stages import FirstStretch, Stages
from mosaic.runtime.sweep import Sweep
from mosaic.runtime.unpriced import gangs_of
from sim.site import SimSite
from tests.answered_questions import make_moa, make_question
from tests.factories import make_call, make_cluster, make_expert, make_workload
from tests.sim.random_runs import committed_hardware

T = TypeVar("T")
ALONE = mixture_of_agents(None, rule=Never(), compare=comparisons())
"""Experts whom nobody reads."""
VOTES = {"agreed": "AAA", "split": "ABC", "dumb": "D--"}
"""By question; - is unparsable."""
SAID = {"agreed": "B", "split": "C"}
"""What the aggregator says; nothing to the others."""
GOLD = {"agreed": "A", "split": "C", "dumb": "D"}
HARDWARE = replace(committed_hardware("a100_80gb"), unload_s=0.0)


@dataclass(frozen=True)
class Told:
    """A world of answers from tables, where all calls are equally long."""

    votes: Mapping[str, str] = field(default_factory=lambda: VOTES)
    said: Mapping[str, str] = field(default_factory=lambda: SAID)
    output_tokens: int = 50
    answers: None = None

    def outcome(self, call: Call, inputs: Inputs) -> Outcome:
        key = call.key
        if call.after:
            assert set(inputs) >= set(call.after)
            return Outcome(2 * self.output_tokens, self.said.get(key.question))
        vote = self.votes.get(key.question, "---")[key.slot]
        return Outcome(self.output_tokens, None if vote == "-" else vote)


class MeasuringSite:
    """Measures on backends that a function makes; its calibration questions are of 100 tokens, 101 tokens and so on."""

    name, kind, description, cache_key, expert_by_server = "scripted", "measured", "by hand", None, None

    def __init__(self, make: Callable[[], Backend], num_workers: int = 1, begun: Sequence[str] = ()) -> None:
        self.make, self.num_workers, self.begun, self.names = make, num_workers, begun, []

    def backend(self, questions, prompts, *, name, earlier, is_measured) -> Backend:
        assert is_measured
        self.names.append(name)
        return self.make()

    def has_begun(self, name: str) -> bool:
        return name in self.begun

    def draw(self, calls, earlier) -> None:
        return None

    def swept_questions(self) -> list[tuple[Question, int]]:
        return [(make_question(f"c{number}"), 100 + number) for number in range(100)]

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        return gangs_of(expert, self.num_workers)

    swept_places = places


def measured_on(job: Job, stages: Stages[T], show: Show = show_nothing) -> T:
    """Go through stages of calls that are not the batch's."""
    stretch = FirstStretch(job, stages, show)
    assert not stretch.measure()
    return stretch.outcome


def make_questions(prompt_tokens: int = 50) -> tuple[Question, ...]:
    return tuple(make_question(name, answer=gold, prompt_tokens=prompt_tokens) for name, gold in GOLD.items())


def make_job(graph: CallGraph | None = None, *, questions=(), world: Any = None, **changes: Any) -> Job:
    """Three experts asked on four GPUs, and the aggregator W over all of them, by round robin and affine prices."""
    graph = make_moa() if graph is None else graph
    questions = questions or make_questions()
    calls = tuple(
        make_call(question.id, expert="ABC"[slot], slot=slot, prompt_tokens=question.prompt_tokens)
        for question in questions
        for slot in range(3)
    )
    batch = Workload(name="three", questions=questions, calls=calls)
    pool = tuple(make_expert(name) for name in "ABC")
    cluster = make_cluster(4, gpu=HARDWARE.gpu)
    world = world or Told()
    site = SimSite(
        experts=(*pool, *graph.experts), cluster=cluster, hardware=HARDWARE, batch=batch, world=world,
        calibration_world=Told(world.votes, world.said, 80), draws=" with other luck",
    )  # fmt: skip
    arguments = {
        "workload": batch, "experts": pool, "cluster": cluster, "graph": graph, "scheduler": RoundRobin(),
        "costs": AffineCosts, "site": site, "sweep": Sweep(shard_sizes=(1, 3)),
        "placements": {AGGREGATE: NodePlacements(placements=(Placement(tp_degree=4),))},
        **changes,
    }  # fmt: skip
    return Job(**arguments)


def merge_calls(number: int) -> tuple[Call, ...]:
    """Calls of the aggregator W, each behind a call of an expert."""
    return tuple(
        make_call(f"q{i}", expert="W", node=AGGREGATE, after=(CallKey(f"q{i}", PROPOSE, 0),)) for i in range(number)
    )


def measuring_job(site: MeasuringSite, num_calls: Mapping[str, int], **changes: Any) -> Job:
    """A batch of so many calls of each expert, measured on a site."""
    arguments = {
        "experts": tuple(map(make_expert, num_calls)), "workload": make_workload(num_calls),
        "cluster": make_cluster(site.num_workers), "site": site, "placements": {}, **changes,
    }  # fmt: skip
    return make_job(ALONE, **arguments)
