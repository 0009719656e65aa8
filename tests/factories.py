"""Small factories that show only what a test is about, and the assertion every plan must pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mosaic.core.cluster import Cluster, Gpu, Worker, uniform_cluster
from mosaic.core.plan import LengthPrediction, Plan, Session, unpriced_plan
from mosaic.core.workload import (
    PROPOSE,
    Call,
    CallKey,
    Expert,
    ExpertName,
    Family,
    ModelShape,
    Prefix,
    Question,
    SparseKv,
    Workload,
)
from mosaic.planning.costs import AffineCosts, LinearTerms, PaperCosts, WeightLocation
from mosaic.planning.length_forecast import Speed
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem, Request
from mosaic.planning.profiles import Profile, ProfileEntry, SessionFit
from mosaic.planning.scheduler import predict_times

LENGTH_SAMPLE = (100, 200, 300, 600)
"""Output tokens of calibration calls."""


def make_gpu(name: str = "gpu", *, memory_gib: float = 80.0) -> Gpu:
    return Gpu(name=name, memory_bytes=int(memory_gib * 2**30))


def make_cluster(num_workers: int = 2, *, gpu: Gpu | None = None) -> Cluster:
    return uniform_cluster(name=f"test-x{num_workers}", num_workers=num_workers, gpu=gpu or make_gpu())


def make_mixed_cluster(*gpus: Gpu) -> Cluster:
    return Cluster(name="test-mixed", workers=tuple(Worker(i, gpu) for i, gpu in enumerate(gpus)))


def make_shape(**changes: object) -> ModelShape:
    """Llama-3-8B by default."""
    dimensions: dict[str, object] = {
        "num_parameters": 8_030_000_000,
        "num_layers": 32,
        "hidden_size": 4096,
        "ffn_size": 14336,
        "num_query_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
    }
    return ModelShape(**{**dimensions, **changes})  # type: ignore[arg-type]


def make_expert(
    name: str = "A",
    *,
    tp_degree: int = 1,
    max_replicas: int | None = None,
    family: Family = Family.INSTRUCT,
    max_output_tokens: int = 4096,
    context_tokens: int = 8192,
    shape: ModelShape | None = None,
    kv: SparseKv | None = None,
    dp_attention: bool = False,
) -> Expert:
    return Expert(
        name=name,
        checkpoint=f"test/{name}",
        shape=shape or make_shape(),
        family=family,
        max_output_tokens=max_output_tokens,
        context_tokens=context_tokens,
        tp_degree=tp_degree,
        max_replicas=max_replicas,
        kv=kv,
        dp_attention=dp_attention,
    )


def make_call(
    question: str = "q0",
    *,
    expert: str = "A",
    slot: int = 0,
    node: str = PROPOSE,
    prompt_tokens: int = 100,
    ready_s: float = 0.0,
    after: tuple[CallKey, ...] = (),
    prefix: Prefix | None = None,
) -> Call:
    return Call(CallKey(question, node, slot), expert, prompt_tokens, ready_s, after, prefix)


def some_calls(expert: str, number: int, *, start: int = 0, ready_s: float = 0.0) -> list[Call]:
    """Make calls of one expert; their questions are named for it and numbered."""
    return [make_call(f"{expert}{start + i}", expert=expert, ready_s=ready_s) for i in range(number)]


def make_session(
    number: int,
    calls: Sequence[Call] = (),
    *,
    expert: str = "",
    workers: Sequence[int] = (0,),
    after: Sequence[int] = (),
) -> Session:
    return Session(
        id=number,
        expert=expert or calls[0].expert,
        workers=tuple(workers),
        shard=tuple(call.key for call in calls),
        after=tuple(after),
    )


def make_plan(*sessions: Session, num_workers: int = 2) -> Plan:
    """Make a plan by hand, without prices."""
    return unpriced_plan(sessions, num_workers=num_workers)


def make_calls(num_calls: Mapping[ExpertName, int]) -> tuple[Call, ...]:
    """Make calls in which the experts take turns until each has its number; one question a call."""
    left = {name: number for name, number in num_calls.items() if number > 0}
    calls: list[Call] = []
    while left:
        for name in list(left):
            calls.append(make_call(f"q{len(calls)}", expert=name))
            left[name] -= 1
            if not left[name]:
                del left[name]
    return tuple(calls)


def make_workload(num_calls: Mapping[ExpertName, int], *, name: str = "test") -> Workload:
    calls = make_calls(num_calls)
    questions = tuple(Question(id=call.key.question, prompt_tokens=call.prompt_tokens) for call in calls)
    return Workload(name=name, questions=questions, calls=calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCosts:
    """Affine prices from plain tables, in seconds; a GPU kind may be slower by a factor."""

    load_s_by_expert: Mapping[ExpertName, float]
    fixed_s_by_expert: Mapping[ExpertName, float]
    per_call_s_by_expert: Mapping[ExpertName, float]
    slowdown_by_gpu: Mapping[str, float] = field(default_factory=dict)
    misfits: frozenset[tuple[ExpertName, str]] = frozenset()
    """Pairs of expert and GPU kind that do not fit."""
    remarks: tuple[str, ...] = ()
    name: str = "table"

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        seconds = 0.0 if location is WeightLocation.RESIDENT else self.load_s_by_expert[expert.name]
        return seconds

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        slowdown = self.slowdown_by_gpu.get(workers[0].gpu.name, 1.0)
        fixed_s, per_call_s = self.fixed_s_by_expert[expert.name], self.per_call_s_by_expert[expert.name]
        return (LinearTerms(slowdown * fixed_s, slowdown * per_call_s),)

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return all((expert.name, worker.gpu.name) not in self.misfits for worker in workers)

    def notes(self) -> Sequence[str]:
        return self.remarks


@dataclass(frozen=True, slots=True, kw_only=True)
class SlottedSessions:
    """Sessions in which a few requests run at once, each for a time per token written, in the order given."""

    num_slots: int = 2
    token_s: float = 1e-3

    def serve_s(self, expert: Expert, requests: Sequence[Request], workers: Sequence[Worker]) -> float:
        free_s = [0.0] * self.num_slots
        for request in requests:
            slot = min(range(self.num_slots), key=lambda slot: free_s[slot])
            free_s[slot] += self.token_s * request.output_tokens / len(workers)
        return max(free_s)


def make_entry(
    expert: ExpertName = "A",
    *,
    tp_degree: int = 1,
    gpu: str = "gpu",
    load_s: float = 10.0,
    fixed_s: float = 5.0,
    per_call_s: float = 1.0,
) -> ProfileEntry:
    """What was measured of an expert: sessions of n calls took ``fixed_s + per_call_s n``."""
    return ProfileEntry(
        expert=expert,
        gpu=gpu,
        tp_degree=tp_degree,
        load_s=load_s,
        fit=SessionFit(
            fixed_s=fixed_s, per_call_s=per_call_s, min_num_calls=1, max_num_calls=2000, residual_std_frac=0.05
        ),
        lengths=LengthPrediction(mean=300.0, max=4096.0, std=200.0),
        points=(),
        output_tokens=tuple(range(10, 210, 10)),
        speed=Speed(base_s=0.01, per_seq_s=0.001, per_kv_s=1e-7, read_s=1e-5),
    )


def make_profile(*entries: ProfileEntry | ExpertName) -> Profile:
    made = tuple(make_entry(entry) if isinstance(entry, str) else entry for entry in entries)
    return Profile(source="test", entries=made)


def _by_expert(value: float | Mapping[ExpertName, float], names: Sequence[ExpertName]) -> dict[ExpertName, float]:
    return {name: float(value[name] if isinstance(value, Mapping) else value) for name in names}


def make_problem(
    num_calls: Mapping[ExpertName, int] | None = None,
    *,
    num_workers: int = 2,
    cluster: Cluster | None = None,
    calls: Sequence[Call] | None = None,
    load_s: float | Mapping[ExpertName, float] = 10.0,
    fixed_s: float | Mapping[ExpertName, float] = 0.0,
    per_call_s: float | Mapping[ExpertName, float] = 1.0,
    max_replicas: int | Mapping[ExpertName, int | None] | None = None,
    tp_degree: int | Mapping[ExpertName, int] = 1,
    slowdown_by_gpu: Mapping[str, float] | None = None,
    misfits: Sequence[tuple[ExpertName, str]] = (),
    remarks: tuple[str, ...] = (),
) -> Problem:
    """Build a problem under ``TableCosts``: numbers apply to every expert, mappings name each one."""
    num_calls = {"A": 3, "B": 2} if num_calls is None else num_calls
    names = list(num_calls)
    caps = max_replicas if isinstance(max_replicas, Mapping) else dict.fromkeys(names, max_replicas)
    degrees = tp_degree if isinstance(tp_degree, Mapping) else dict.fromkeys(names, tp_degree)
    return Problem(
        experts=tuple(make_expert(name, max_replicas=caps.get(name), tp_degree=degrees.get(name, 1)) for name in names),
        calls=tuple(make_calls(num_calls) if calls is None else calls),
        cluster=cluster or make_cluster(num_workers),
        costs=TableCosts(
            load_s_by_expert=_by_expert(load_s, names),
            fixed_s_by_expert=_by_expert(fixed_s, names),
            per_call_s_by_expert=_by_expert(per_call_s, names),
            slowdown_by_gpu=slowdown_by_gpu or {},
            misfits=frozenset(misfits),
            remarks=remarks,
        ),
        lengths={name: LengthPrediction(mean=300.0, max=4096.0, std=200.0) for name in names},
        length_samples=dict.fromkeys(names, LENGTH_SAMPLE),
        session_model=SlottedSessions(),
    )


SLOTS = {
    "mmlu_pro": {"Gemma": 1632, "QwenR1": 1428, "Qwen": 956, "LlamaR1": 1070, "Exaone": 547, "GLM": 667},
    "medmcqa": {"Qwen": 5682, "Gemma": 4195, "GLM": 1283, "Exaone": 625, "LlamaR1": 620, "QwenR1": 144},
    "gpqa": {"LlamaR1": 429, "QwenR1": 158, "Gemma": 4, "Exaone": 3},
}
"""The paper's slot tables."""
_PRICES = {
    "LlamaR1": (47.0, 266.0, 2.18),
    "QwenR1": (41.0, 236.0, 1.53),
    "Gemma": (45.0, 44.0, 0.14),
    "Exaone": (42.0, 40.0, 0.12),
    "GLM": (43.0, 35.0, 0.13),
    "Qwen": (38.0, 27.0, 0.11),
}
"""Load, fixed and per-call seconds of the size the prototype found on MMLU-Pro."""


def make_paper_problem(benchmark: str, *, costs: str = "paper", hybrid_caps: bool = True) -> Problem:
    """Build the paper's problem of a benchmark on 4 GPUs, with plausible prices."""
    slots = SLOTS[benchmark]
    cluster = make_cluster(4, gpu=make_gpu("a100_80gb"))
    entries = []
    for name in slots:
        load_s, fixed_s, per_call_s = _PRICES[name]
        entries.append(make_entry(name, gpu="a100_80gb", load_s=load_s, fixed_s=fixed_s, per_call_s=per_call_s))
    model = {"paper": PaperCosts, "affine": AffineCosts}[costs]
    caps = {name: None if not hybrid_caps else 4 if name.endswith("R1") else 1 for name in slots}
    return Problem(
        experts=tuple(make_expert(name, max_replicas=caps[name]) for name in slots),
        calls=make_calls(slots),
        cluster=cluster,
        costs=model(profile=make_profile(*entries), num_calls_by_expert=slots),
        lengths=dict.fromkeys(slots, entries[0].lengths),
        length_samples=dict.fromkeys(slots, LENGTH_SAMPLE),
        session_model=SlottedSessions(num_slots=256, token_s=0.03),
    )


def assert_plan_valid(plan: Plan, problem: Problem) -> None:
    """Every call once, on workers that fit; no worker overlaps; predictions follow the order and keep the bound."""
    check_plan(plan, problem)
    assert plan.predicted == predict_times(problem, plan.sessions)
    places = {expert.name: {tuple(w.id for w in gang) for gang in problem.gangs(expert)} for expert in problem.experts}
    free_s = [0.0] * plan.num_workers
    for session, times in zip(plan.sessions, plan.predicted, strict=True):
        assert session.workers in places[session.expert]
        assert times.end_s >= times.start_s + times.load_s
        for worker in session.workers:
            assert times.start_s >= free_s[worker]
            free_s[worker] = times.end_s
    assert plan.lower_bound_s <= plan.predicted_makespan_s * (1 + 1e-9)


def worker_queue(plan: Plan, worker: int) -> list[Session]:
    """List the sessions of one worker, in the plan's order."""
    return [session for session in plan.sessions if worker in session.workers]
