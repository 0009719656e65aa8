"""What is measured before a run: experts by a sweep, upper nodes on what a rehearsal leaves to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import pytest

from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.workload import AGGREGATE, PROPOSE, Workload
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.runtime.controller import show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.planner import Planner
from mosaic.runtime.rehearsal import Rehearsal, price_by_rehearsal, rehearse
from mosaic.runtime.run import measure
from mosaic.runtime.stages import Pilot
from mosaic.runtime.sweep import Sweep
from mosaic.runtime.unpriced import even_plan
from tests.answered_questions import make_moa, make_tree
from tests.factories import make_call, make_entry, make_expert, make_profile
from tests.runtime.jobs import HARDWARE, MeasuringSite, make_job, make_questions, measured_on, measuring_job
from tests.runtime.scripted import Scripted


def planner_of(job: Job) -> Planner:
    profile = make_profile(*(make_entry(expert.name, gpu=HARDWARE.gpu.name) for expert in job.experts))
    return Planner(
        experts=(*job.experts, *job.graph.experts), cluster=job.cluster, scheduler=job.scheduler, costs=job.costs,
        profiles=dict.fromkeys(job.graph.first_nodes, profile), by_node=job.placements,
    )  # fmt: skip


def rehearse_job(job: Job):
    return measured_on(job, rehearse(job, planner_of(job), Pilot()))


def price(job: Job, rehearsal: Rehearsal):
    return price_by_rehearsal(job, job.graph.node(AGGREGATE), planner_of(job), rehearsal, "here", lambda line: None)


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


def test_of_a_large_batch_questions_from_all_over_it_are_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosaic.runtime.rehearsal.LARGE_BATCH", 2)
    rehearsal = rehearse_job(make_job())
    assert list(rehearsal.questions) == ["agreed", "split"]
    assert rehearsal.needed_frac == {AGGREGATE: 0.5}


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

    profile = measured_on(job, price(job, rehearsal), show)
    assert (profile.source, shown) == ("here", ["profiling aggregate"])
    (entry,) = profile.entries
    assert (entry.expert, entry.tp_degree, set(entry.output_tokens)) == ("W", 4, {160})


def test_a_node_that_can_read_no_question_is_not_swept() -> None:
    job = make_job(questions=make_questions(prompt_tokens=7900))
    rehearsal = rehearse_job(job)
    assert (rehearsal.calls[AGGREGATE], rehearsal.prompt_tokens()) == ((), {})
    assert measured_on(job, price(job, rehearsal)).entries == ()


def test_calls_are_spread_evenly_over_replicas_where_there_is_no_price() -> None:
    job = make_job()
    calls = [make_call(f"q{i}", expert="A") for i in range(6)]
    plan = even_plan(calls, [make_expert("A"), make_expert("idle")], job.site.places, 4)
    assert [len(session.shard) for session in plan.sessions] == [2, 2, 1, 1]
    assert [session.id for session in plan.sessions] == [0, 1, 2, 3]


def sweep_on(make: Callable[[], Scripted], begun: Sequence[str] = ()):
    """Measure one of two experts on two workers; gives its entry, and the names of the measurements."""
    site = MeasuringSite(make, 2, begun)
    job = measuring_job(
        site, {"A": 1}, experts=(make_expert("A"), make_expert("idle")), sweep=Sweep(shard_sizes=(1, 3))
    )
    profile = measure(job)[PROPOSE]
    return profile.entries, site.names


def disturbed(number: int) -> Callable[[], Scripted]:
    """Make backends; the sessions of the first ones are interrupted."""
    turn = count()
    return lambda: Scripted(disturbed=frozenset(range(9)) if next(turn) < number else frozenset())


def test_only_experts_with_calls_are_measured_where_the_site_says() -> None:
    backend = Scripted()
    (entry,), names = sweep_on(lambda: backend)
    assert (entry.expert, names) == ("A", ["profile"])
    assert [session.workers for session in backend.sessions] == [(0,), (0,)], "one place further in each round"


def test_a_disturbed_measurement_is_made_twice_more_and_those_of_earlier_starts_are_no_tries_of_this_one() -> None:
    names = ["profile", "profile_2", "profile_3", "profile_4", "profile_5"]
    undisturbed, _ = sweep_on(Scripted)
    assert sweep_on(disturbed(2)) == (undisturbed, names[:3])
    with pytest.raises(DisturbedSweepError):
        sweep_on(disturbed(3))
    assert sweep_on(disturbed(4), begun=names[:3]) == (undisturbed, names)


class Asking(MeasuringSite):
    """Asks the batch's questions, on workers of which one is lost before it has served anything."""

    def __init__(self, batch: Workload) -> None:
        super().__init__(lambda: Scripted(losses={1: (0, "its node is gone")}), 2)
        self.batch = batch
        self.backends = []

    def calibration(self, experts):
        return self.batch

    def backend(self, questions, prompts, **named):
        self.backends.append(super().backend(questions, prompts, **named))
        self.places = lambda expert: [(0,)]
        return self.backends[-1]


def test_a_rehearsal_goes_on_without_the_workers_that_are_lost() -> None:
    job = make_job(make_tree(Majority()), placements={})
    site = Asking(job.workload)
    rehearsal = rehearse_job(replace(job, site=site))
    assert len(rehearsal.records) == 9 + 6, "every call of two layers"
    assert site.names == ["calibration_0", "calibration_1"]
    assert any(session.workers == (1,) for session in site.backends[0].sessions)
    alone = Asking(job.workload)
    alone.backend = super(Asking, alone).backend
    with pytest.raises(BackendError, match=r"worker 1: its node is gone\): no place is left for"):
        rehearse_job(replace(job, site=alone))


def test_a_rehearsal_in_which_calls_only_fail_stops_with_the_first_cause() -> None:
    job = make_job(make_tree(Majority()), placements={})
    site = Asking(job.workload)
    site.make = lambda: Scripted(num_failed=99)
    with pytest.raises(BackendError, match="calibrating: 0 of 9 calls finished .*, the first of 4 in a row"):
        rehearse_job(replace(job, site=site))
