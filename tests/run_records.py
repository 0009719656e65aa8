"""Hand-made runs: plans and results of a few sessions, for what is done with a run afterwards."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from msgspec import structs

from mosaic.core.plan import LengthPrediction, Plan, PredictedTimes, Session, SolveReport, SolveStatus
from mosaic.core.results import CallRecord, CallStatus, LostWorker, Resumption, RunResult, SessionRecord
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.pipelines.final_answers import AnswerSource, FinalAnswer
from mosaic.report.metrics import Summary, summarise


def make_key(question: str = "q0", *, slot: int = 0, node: str = PROPOSE) -> CallKey:
    return CallKey(question, node, slot)


def make_record(question: str = "q0", *, expert: str = "A", **changes: object) -> CallRecord:
    record = CallRecord(
        key=make_key(question), expert=expert, session=0, workers=(0,), prompt_tokens=100, output_tokens=11,
        queued_ts=1.0, admitted_ts=2.0, first_token_ts=3.0, finished_ts=8.0,
    )  # fmt: skip
    return structs.replace(record, **changes)


def make_failed(question: str, **changes: object) -> CallRecord:
    lost = {"admitted_ts": None, "first_token_ts": None, "finished_ts": None, "output_tokens": 0}
    return make_record(question, **{**lost, "status": CallStatus.FAILED, **changes})


def make_session(
    session: int = 0,
    *,
    expert: str = "A",
    workers: tuple[int, ...] = (0,),
    load: tuple[float, float] = (0.0, 10.0),
    end_ts: float = 50.0,
    node: str = PROPOSE,
    output_tokens: int = 400,
) -> SessionRecord:
    return SessionRecord(
        session=session,
        expert=expert,
        node=node,
        workers=workers,
        load_start_ts=load[0],
        load_s=load[1] - load[0],
        start_ts=load[1],
        end_ts=end_ts,
        num_calls=1,
        output_tokens=output_tokens,
    )


def make_result(
    *sessions: SessionRecord, calls: tuple[CallRecord, ...] = (), num_workers: int = 2, **changes: object
) -> RunResult:
    return RunResult(calls=calls, sessions=sessions, num_workers=num_workers, **changes)  # type: ignore[arg-type]


def make_small_run() -> RunResult:
    """Worker 0 loads A (0-10), serves to 50, loads B (50-55), serves to 80; worker 1 loads C (0-10), serves to 40."""
    return make_result(
        make_session(0, expert="A"),
        make_session(1, expert="B", load=(50.0, 55.0), end_ts=80.0),
        make_session(2, expert="C", workers=(1,), end_ts=40.0),
        calls=(
            make_record("q0", expert="A", num_preemptions=2),
            make_record("q1", expert="B", session=1, admitted_ts=55.0, first_token_ts=56.0, finished_ts=80.0),
            make_record("q2", expert="C", session=2, workers=(1,), answer="B"),
        ),
        lower_bound_s=60.0,
    )


def make_disturbed_run() -> RunResult:
    """The small run, which went on at 20 s after a minute, and lost worker 1 at 45 s."""
    disturbances = {"resumptions": (Resumption(20.0, 60.0),), "lost_workers": (LostWorker(45.0, 1, "unplugged"),)}
    return replace(make_small_run(), **disturbances)


def make_small_plan(*, scheduler: str = "ilp", lengths: tuple[str, ...] = ("A", "B", "C")) -> Plan:
    """The plan behind the small run, 10% optimistic."""
    sessions = (
        Session(id=0, expert="A", node=PROPOSE, workers=(0,), shard=(make_key("q0"),)),
        Session(id=1, expert="B", node=PROPOSE, workers=(0,), shard=(make_key("q1"),)),
        Session(id=2, expert="C", node=PROPOSE, workers=(1,), shard=(make_key("q2"),)),
    )
    return Plan(
        scheduler=scheduler,
        costs="paper",
        problem_fingerprint="f00d",
        num_workers=2,
        sessions=sessions,
        predicted=(PredictedTimes(0.0, 10.0, 45.0), PredictedTimes(45.0, 5.0, 72.0), PredictedTimes(0.0, 10.0, 36.0)),
        lengths={name: LengthPrediction(mean=12.5, max=64) for name in lengths},
        lower_bound_s=50.0,
        solve=SolveReport(
            status=SolveStatus.OPTIMAL, objective_s=72.0, bound_s=71.0, gap_frac=0.0139, num_vars=12,
            num_constraints=15, wall_s=0.25,
        ),
    )  # fmt: skip


def make_small_aggregator_plan() -> Plan:
    """Z on both workers for question q0, after the small plan: loads for 8 s, done after 18."""
    shard = (make_key("q0", node=AGGREGATE),)
    return Plan(
        scheduler="ilp",
        costs="paper",
        problem_fingerprint="beef",
        num_workers=2,
        sessions=(Session(id=0, expert="Z", node=AGGREGATE, workers=(0, 1), shard=shard),),
        predicted=(PredictedTimes(0.0, 8.0, 18.0),),
        lengths={"Z": LengthPrediction(mean=300.0, max=4096)},
        lower_bound_s=18.0,
        solve=SolveReport(
            status=SolveStatus.HEURISTIC, objective_s=18.0, bound_s=None, gap_frac=None, num_vars=None,
            num_constraints=None, wall_s=None,
        ),
    )  # fmt: skip


def make_two_stage_run() -> RunResult:
    """The small run, and behind its barrier Z on both workers: loads 80-90, serves q0 to 100."""
    first = make_small_run()
    gang = make_session(3, expert="Z", workers=(0, 1), load=(80.0, 90.0), end_ts=100.0, node=AGGREGATE)
    merged = make_record(
        expert="Z", key=make_key("q0", node=AGGREGATE), session=3, workers=(0, 1), queued_ts=90.0,
        admitted_ts=90.0, first_token_ts=91.0, finished_ts=100.0, answer="C",
    )  # fmt: skip
    return make_result(*first.sessions, gang, calls=(*first.calls, merged), lower_bound_s=first.lower_bound_s)


def make_stage_summary(**changes: object) -> dict[str, object]:
    """The second stage of the small run: two of three questions skipped."""
    values: dict[str, object] = {
        "aggregator": "tp4", "aggregator_expert": "Z", "aggregator_tp_degree": 2,
        "aggregator_scheduler": "ilp", "num_aggregator_calls": 1,
        "num_too_long": 0, "predicted_aggregator_s": 18.0, "aggregator_costs": "paper", "skip_frac": 2 / 3,
        "skip_frac_source": "fitted",
        "accuracy_frac": 0.625, "always_aggregate_s": 50.0, "always_aggregate_accuracy_frac": 0.6, "gate_report": None,
    }  # fmt: skip
    return {**values, **changes}


def summarise_small(result: RunResult | None, **changes: Any) -> Summary:
    """Summarise a run of the small plan, or that it was not run."""
    said = {"workload": "mmlu_pro", "backend": "sim", "gate": None, "seed": 3, "num_questions": 3}
    return summarise([make_small_plan()], result, experts=("A", "B", "C"), **(said | changes))


def summarise_two_stages(result: RunResult, *, gate: str = "majority", **changes: object) -> Summary:
    """Summarise a run of both plans."""
    return summarise(
        [make_small_plan(), make_small_aggregator_plan()], result, workload="mmlu_pro", backend="sim", gate=gate,
        seed=3, num_questions=3, experts=("A", "B", "C", "Z"), answers=make_stage_summary(**changes),
    )  # fmt: skip


SMALL_ANSWERS = (
    FinalAnswer("q0", "C", AnswerSource.AGGREGATOR, 0.5, ("A", None), "C", True),
    FinalAnswer("q1", None, AnswerSource.MAJORITY, None, ("red", "green"), None, None),
    FinalAnswer("q2", "B", AnswerSource.MAJORITY, 1.0, ("B", "B"), "A", False),
)
"""Final answers to the three questions of the small run."""


def assert_no_worker_overlaps(result: RunResult) -> None:
    """Check that no worker loads or serves two sessions at once."""
    for worker in range(result.num_workers):
        mine = [session for session in result.sessions if worker in session.workers]
        assert all(a.end_ts <= b.load_start_ts for a, b in pairwise(sorted(mine, key=lambda one: one.load_start_ts)))
