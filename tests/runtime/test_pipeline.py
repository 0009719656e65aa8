"""mosaic.core.plan and mosaic.run on plain values: the Python API, as the README shows it."""

import subprocess
import sys
from functools import partial
from typing import ClassVar

import pytest

import mosaic
from mosaic.core.cluster import Cluster, Gpu, uniform_cluster
from mosaic.core.errors import BackendError, PlanError, ProfileError
from mosaic.core.plan import Plan
from mosaic.core.prediction import LengthPrediction
from mosaic.core.realization import Outcome
from mosaic.core.workload import (
    PROPOSE,
    Call,
    CallKey,
    Expert,
    Family,
    ModelShape,
    Question,
    Workload,
)
from mosaic.planning.costs import AffineCosts, PaperCosts
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.profiles import Profile, ProfileEntry, SessionFit
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.runtime.run import make_problem
from tests.factories import assert_plan_valid, make_workload
from tests.sim.cluster_runs import make_backend

LLAMA_8B = ModelShape(
    num_parameters=8_030_000_000,
    num_layers=32,
    hidden_size=4096,
    ffn_size=14336,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
)
THINKER = Expert(name="Thinker", checkpoint="me/thinker", shape=LLAMA_8B, family=Family.REASONING)
TALKER = Expert(name="Talker", checkpoint="me/talker", shape=LLAMA_8B, family=Family.INSTRUCT)
CLUSTER = uniform_cluster(name="desk", num_workers=2, gpu=Gpu(name="a100", memory_bytes=80 * 2**30))
QUESTIONS = tuple(Question(id=f"q{i}", prompt_tokens=120) for i in range(30))
WORKLOAD = Workload(
    name="mine",
    questions=QUESTIONS,
    calls=tuple(
        Call(CallKey(question.id, PROPOSE, slot), ("Thinker", "Talker")[slot], question.prompt_tokens)
        for question in QUESTIONS
        for slot in range(2)
    ),
)


def entry(expert: str, *, fixed_s: float, per_call_s: float) -> ProfileEntry:
    return ProfileEntry(
        expert=expert,
        gpu="a100",
        tp_degree=1,
        load_s=40.0,
        fit=SessionFit(
            fixed_s=fixed_s, per_call_s=per_call_s, min_num_calls=1, max_num_calls=64, residual_std_frac=0.05
        ),
        lengths=LengthPrediction(mean=300, max=4096, std=200),
        points=(),
    )


PROFILE = Profile(
    source="by hand",
    entries=(entry("Thinker", fixed_s=200, per_call_s=10), entry("Talker", fixed_s=20, per_call_s=0.5)),
)
PARTS = {"experts": (THINKER, TALKER), "cluster": CLUSTER, "profile": PROFILE, "costs": AffineCosts}


def outcome(call: Call) -> Outcome:
    return Outcome(400 if call.expert == "Thinker" else 50)


def simulator(*, experts: tuple[Expert, ...] = (THINKER, TALKER), cluster: Cluster = CLUSTER):
    return make_backend(outcome, experts=experts, cluster=cluster)


def test_a_workload_is_planned() -> None:
    plan = mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **PARTS)
    assert [(session.expert, session.workers) for session in plan.sessions] == [("Thinker", (0,)), ("Talker", (1,))]
    assert plan.predicted_makespan_s == 40 + 200 + 10 * 30
    assert_plan_valid(plan, make_problem(WORKLOAD, **PARTS))


def test_a_workload_is_planned_and_run() -> None:
    plan, result = mosaic.run(WORKLOAD, scheduler=RoundRobin(), backend=simulator(), **PARTS)
    assert plan == mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **PARTS)
    assert {record.key for record in result.calls} == {call.key for call in WORKLOAD.calls}
    assert {record.output_tokens for record in result.calls if record.expert == "Thinker"} == {400}
    assert [session.expert for session in result.sessions] == ["Thinker", "Talker"]


def test_the_ilp_is_never_predicted_above_round_robin() -> None:
    ilp = mosaic.plan(WORKLOAD, scheduler=Ilp(), **PARTS)
    assert ilp.predicted_makespan_s <= mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **PARTS).predicted_makespan_s


def test_costs_are_built_for_the_workload() -> None:
    problem = make_problem(WORKLOAD, **{**PARTS, "costs": PaperCosts})
    assert problem.costs.num_calls_by_expert == {"Thinker": 30, "Talker": 30}  # type: ignore[attr-defined]
    assert problem.costs.profile is PROFILE  # type: ignore[attr-defined]
    assert problem.calls is WORKLOAD.calls
    assert set(problem.lengths) == {"Thinker", "Talker"}


def test_experts_without_calls_need_no_profile() -> None:
    idle = Expert(name="Idle", checkpoint="me/idle", shape=LLAMA_8B, family=Family.INSTRUCT)
    parts = {**PARTS, "experts": (THINKER, TALKER, idle)}
    plan = mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **parts)
    assert {session.expert for session in plan.sessions} == {"Thinker", "Talker"}


def test_a_problem_holds_no_true_lengths() -> None:
    lengths = {call.key: 12345 for call in WORKLOAD.calls}
    told = Workload(name="mine", questions=QUESTIONS, calls=WORKLOAD.calls, output_tokens=lengths)
    assert "12345" not in repr(make_problem(told, **PARTS))


def test_a_call_for_an_expert_outside_of_the_pool_is_refused() -> None:
    message = r"call q0/propose/0: expert must be one of the pool \['Talker', 'Thinker'\], got 'Poet'"
    with pytest.raises(ValueError, match=message):
        mosaic.plan(make_workload({"Poet": 1}), scheduler=RoundRobin(), **PARTS)


def test_an_expert_that_was_not_profiled_is_refused() -> None:
    profile = Profile(source="half", entries=PROFILE.entries[:1])
    with pytest.raises(ProfileError, match="profile 'half' has no lengths for expert 'Talker'"):
        mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **{**PARTS, "profile": profile})


class Forgetful:
    """Drops the last session of a good plan."""

    name = "forgetful"

    def plan(self, problem) -> Plan:
        good = RoundRobin().plan(problem)
        return Plan(
            scheduler=self.name,
            costs=good.costs,
            problem_fingerprint=good.problem_fingerprint,
            num_workers=good.num_workers,
            sessions=good.sessions[:-1],
            predicted=good.predicted[:-1],
            lengths=good.lengths,
            lower_bound_s=good.lower_bound_s,
            solve=good.solve,
        )


class Untouched:
    """A backend that must not be reached."""

    name = "untouched"

    dead_workers: ClassVar[dict[int, str]] = {}

    def execute(self, plan, calls, listener=None):
        raise AssertionError("a plan that breaks its problem was run")


def test_a_plan_that_breaks_its_problem_is_not_run() -> None:
    with pytest.raises(PlanError, match="plan drops call q0/propose/1"):
        mosaic.run(WORKLOAD, scheduler=Forgetful(), backend=Untouched(), **PARTS)


def test_a_backend_without_the_expert_says_so() -> None:
    with pytest.raises(BackendError, match=r"expert must be one of \['Thinker'\], got 'Talker'"):
        mosaic.run(WORKLOAD, scheduler=RoundRobin(), backend=simulator(experts=(THINKER,)), **PARTS)


def test_a_listener_sees_every_call() -> None:
    seen = []

    class Listener:
        def on_finish(self, record):
            seen.append(record.key)
            return ()

    mosaic.run(WORKLOAD, scheduler=RoundRobin(), backend=simulator(), listener=Listener(), **PARTS)
    assert sorted(map(str, seen)) == sorted(str(call.key) for call in WORKLOAD.calls)


def test_costs_may_carry_options_of_their_own() -> None:
    plan = mosaic.plan(WORKLOAD, scheduler=RoundRobin(), **{**PARTS, "costs": partial(AffineCosts, name="mine")})
    assert plan.predicted_makespan_s == 540


def test_the_package_offers_its_functions_beside_its_modules() -> None:
    code = "import mosaic; assert callable(mosaic.plan); print(mosaic.__all__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['aggregate', 'plan', 'run']"
