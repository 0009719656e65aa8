"""What is measured before a run: experts by a sweep, upper nodes on what a rehearsal leaves to them."""

from collections.abc import Sequence

import pytest

from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.workload import AGGREGATE
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.runtime.controller import show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.planner import Planner
from mosaic.runtime.rehearsal import rehearse, sweep_node
from mosaic.runtime.static_plan import execute
from mosaic.runtime.sweep import Sweep, sweep_first_layer
from mosaic.runtime.unpriced import even_plan
from tests.answered_questions import make_moa, make_tree
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_profile
from tests.runtime.jobs import HARDWARE, make_job, make_questions
from tests.runtime.scripted import Scripted


def planner_of(job: Job) -> Planner:
    profile = make_profile(*(make_entry(expert.name, gpu=HARDWARE.gpu.name) for expert in job.experts))
    return Planner(
        experts=(*job.experts, *job.graph.experts), cluster=job.cluster, scheduler=job.scheduler, costs=job.costs,
        profiles=dict.fromkeys(job.graph.first_nodes, profile), by_node=job.placements,
    )  # fmt: skip


def rehearse_job(job: Job):
    return rehearse(job.graph, planner_of(job), job.site, show_nothing)


def test_a_rehearsal_tells_who_reaches_the_aggregator_and_what_it_reads() -> None:
    job = make_job()
    rehearsal = rehearse_job(job)
    assert rehearsal.needed_frac == {AGGREGATE: pytest.approx(2 / 3)}
    assert [call.key.question for call in rehearsal.calls[AGGREGATE]] == ["split", "dumb"]
    tokens = [call.prompt_tokens for call in rehearsal.calls[AGGREGATE]]
    assert rehearsal.prompt_tokens() == {AGGREGATE: round(sum(tokens) / 2)}
    # It is the calibration world that answers: its calls are longer.
    assert {record.output_tokens for record in rehearsal.records.values()} == {80}
    assert {call.key for call in job.workload.calls} == rehearsal.records.keys()


def test_all_questions_stand_in_where_a_rehearsal_leaves_none() -> None:
    rehearsal = rehearse_job(make_job(make_moa(Majority(tau=0.3))))
    assert rehearsal.needed_frac == {AGGREGATE: 0.0}
    assert len(rehearsal.calls[AGGREGATE]) == 3


def test_layers_are_rehearsed_one_behind_the_other() -> None:
    rehearsal = rehearse_job(make_job(make_tree(Majority()), placements={}))
    assert rehearsal.needed_frac == {"merge": 1.0, "final": pytest.approx(1 / 3)}
    assert [call.key.question for call in rehearsal.calls["final"]] == ["dumb"]
    assert sum(key.node == "merge" for key in rehearsal.records) == 6
    assert not any(key.node == "final" for key in rehearsal.records), "the last layer is measured by its sweep"


def test_a_node_is_swept_at_every_degree_at_which_it_may_be_placed() -> None:
    job = make_job(make_moa(Never()))
    rehearsal = rehearse_job(job)
    shown = []

    def show(name, predicted):
        shown.append(name)
        return show_nothing(name, predicted)

    node = job.graph.node(AGGREGATE)
    profile = sweep_node(node, rehearsal, job.graph, planner_of(job), job.site, "here", show)
    assert (profile.source, shown) == ("here", ["profiling aggregate"])
    (entry,) = profile.entries
    assert (entry.expert, entry.tp_degree, set(entry.output_tokens)) == ("W", 4, {160})


def test_a_node_that_can_read_no_question_is_not_swept() -> None:
    job = make_job(questions=make_questions(prompt_tokens=7900))
    rehearsal = rehearse_job(job)
    node = job.graph.node(AGGREGATE)
    assert (rehearsal.calls[AGGREGATE], rehearsal.prompt_tokens()) == ((), {})
    assert sweep_node(node, rehearsal, job.graph, planner_of(job), job.site, "here", show_nothing).entries == ()


def test_calls_are_spread_evenly_over_replicas_where_there_is_no_price() -> None:
    job = make_job()
    calls = [make_call(f"q{i}", expert="A") for i in range(6)]
    plan = even_plan(calls, [make_expert("A"), make_expert("idle")], job.site, 4)
    assert [len(session.shard) for session in plan.sessions] == [2, 2, 1, 1]
    assert [session.id for session in plan.sessions] == [0, 1, 2, 3]


class Shaky:
    """A site whose first backends have sessions that are interrupted."""

    def __init__(self, num_disturbed: int, begun: Sequence[str] = ()) -> None:
        self.num_disturbed, self.names, self.begun = num_disturbed, [], begun

    def sweep(self, name, experts):
        self.names.append(name)
        is_disturbed = len(self.names) <= self.num_disturbed
        return Scripted(disturbed=frozenset(range(9)) if is_disturbed else frozenset()), lambda number: 100

    def swept_place(self, expert, session, num_experts):
        return (session % 2,)

    def has_begun(self, name):
        return name in self.begun


def sweep_on(site: Shaky):
    experts = [make_expert("A"), make_expert("idle")]
    sweep, cluster = Sweep(shard_sizes=(1, 3)), make_cluster(2)
    return sweep_first_layer(sweep, [make_call()], experts, cluster, site, "shaky", show_nothing)  # type: ignore[arg-type]


def test_only_experts_with_calls_are_measured_where_the_site_says() -> None:
    site = Shaky(0)
    assert [entry.expert for entry in sweep_on(site).entries] == ["A"]
    assert site.names == ["profile"]


def test_a_disturbed_measurement_is_made_twice_more_and_no_more() -> None:
    site = Shaky(2)
    assert sweep_on(site) == sweep_on(Shaky(0))
    assert site.names == ["profile", "profile_2", "profile_3"]
    with pytest.raises(DisturbedSweepError):
        sweep_on(Shaky(3))


def test_measurements_that_earlier_starts_began_are_no_tries_of_this_one() -> None:
    site = Shaky(4, begun=("profile", "profile_2", "profile_3"))
    assert sweep_on(site) == sweep_on(Shaky(0))
    assert site.names == ["profile", "profile_2", "profile_3", "profile_4", "profile_5"]


class Broken:
    """Asks on workers of which one is lost before it has served anything."""

    def __init__(self, site) -> None:
        self.site, self.lost, self.backends = site, set(), []

    def __getattr__(self, name):
        return getattr(self.site, name)

    def places(self, expert):
        return [(worker,) for worker in range(2) if worker not in self.lost]

    def ask(self, name, calls, plan, questions, prompts, earlier, controllers):
        self.backends.append(Scripted(losses={1: (0, "its node is gone")}))
        self.lost.add(1)
        said = self.site.ask(name, calls, plan, questions, prompts, earlier, controllers)
        served = {record.key for record in execute(plan(), calls, self.backends[-1], controllers).calls}
        return [record for record in said if record.key in served]


def test_a_rehearsal_goes_on_without_the_workers_that_are_lost() -> None:
    job = make_job(make_tree(Majority()), placements={})
    site = Broken(job.site)
    rehearsal = rehearse(job.graph, planner_of(job), site, show_nothing)  # type: ignore[arg-type]
    assert rehearsal == rehearse_job(job)
    assert any(session.workers == (1,) for session in site.backends[0].sessions)
    site.places = lambda expert: [(1,)]
    with pytest.raises(BackendError, match=r"worker 1: its node is gone\): no place is left for"):
        rehearse(job.graph, planner_of(job), site, show_nothing)  # type: ignore[arg-type]
