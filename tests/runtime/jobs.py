"""Jobs on the simulator whose calls say what a table has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs
from mosaic.core.workload import AGGREGATE, Call, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.planning.baselines import RoundRobin
from mosaic.planning.costs import AffineCosts
from mosaic.runtime.job import Job
from mosaic.runtime.planner import NodePlacements, Placement
from mosaic.runtime.sweep import Sweep
from sim.site import SimSite
from tests.answered_questions import make_moa, make_question
from tests.factories import make_call, make_cluster, make_expert
from tests.sim.random_runs import committed_hardware

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
