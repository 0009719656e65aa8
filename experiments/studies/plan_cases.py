"""Where choices that the paper does not have pay: tensor-parallel degrees, and GPUs of two kinds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.studies.plan_runs import CERTAIN, PAPER, Policy, expert_stage, planned, profile_of
from experiments.studies.rows import Table
from mosaic.comparison.estimate import estimate
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import activation_bytes, free_kv_bytes
from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import Expert, ExpertName
from mosaic.runtime.static_plan import execute

RTX = ("hardware=rtxpro6000",)
UNLIKE = ("cluster=a100x2_rtx4090x4",)
FIRST_SEED = 100
"""Seeds 0 to 3 were looked at when the cases were chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to plan a case."""

    label: str
    policy: Policy
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A workload and a cluster, planned in several ways; the first is what others are compared with."""

    name: str
    workload: str
    sides: tuple[Side, ...]


def _degrees(workload: str, machines: tuple[str, ...], degrees: str) -> Case:
    chosen = tuple(f"+pool.experts.{name}.tp_degrees={degrees}" for name in ("LlamaR1", "QwenR1"))
    number = machines[-1].partition("=")[2]
    return Case(
        name=f"tensor parallel, {number} {'RTX PRO 6000' if machines[0] in RTX else 'A100'}",
        workload=workload,
        sides=(
            Side(label="degree 1", policy=CERTAIN, overrides=machines),
            Side(label="degree 1, the paper's ILP", policy=PAPER, overrides=machines),
            Side(label=f"degree 1 or {degrees}", policy=CERTAIN, overrides=(*machines, *chosen)),
        ),
    )


def _unlike(workload: str) -> Case:
    return Case(
        name="unlike GPUs",
        workload=workload,
        sides=(
            Side(label="2 A100s alone", policy=CERTAIN, overrides=("cluster.num_workers=2",)),
            Side(label="and 4 RTX 4090s, the paper's ILP", policy=PAPER, overrides=UNLIKE),
            Side(label="and 4 RTX 4090s", policy=CERTAIN, overrides=UNLIKE),
        ),
    )


CASES = (
    _degrees("gpqa", (*RTX, "cluster.num_workers=4"), "[2]"),
    _degrees("gpqa", (*RTX, "cluster.num_workers=8"), "[2]"),
    _degrees("mmlu_pro", (*RTX, "cluster.num_workers=8"), "[2]"),
    _degrees("gpqa", ("hardware=a100_80gb", "cluster.num_workers=8"), "[2,4]"),
    *(_unlike(workload) for workload in ("gpqa", "medmcqa", "mmlu_pro")),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one side of a case came to."""

    case: str
    workload: str
    side: str
    makespans_s: tuple[float, ...]
    sessions: str
    most_memory_frac: float


def run_cases(num_seeds: int) -> Iterator[Outcome]:
    """Plan every side once, and run it in the same worlds."""
    for case in CASES:
        for side in case.sides:
            job, site = expert_stage(f"workload={case.workload}", *side.overrides)
            plan = planned(job, site, side.policy, profile_of(job))
            calls = job.graph.first_calls(job.workload)
            pool = {expert.name: expert for expert in job.experts}
            makespans, most = [], 0.0
            for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
                result = execute(plan, calls, site.backend_in(replace(site.world, root_seed=seed)))
                makespans.append(max(session.end_ts for session in result.sessions))
                most = max(most, most_memory_frac(result, pool, job.cluster, site.settings))
            widths: dict[tuple[str, int], int] = {}
            for session in plan.sessions:
                key = session.expert, len(session.workers)
                widths[key] = widths.get(key, 0) + 1
            placed = ", ".join(f"{number} x {name} tp{width}" for (name, width), number in widths.items())
            yield Outcome(case.name, case.workload, side.label, tuple(makespans), placed, most)


def cases_table(outcomes: Sequence[Outcome]) -> Table:
    """Set every side beside the first of its case."""
    head = (
        "case",
        "workload",
        "plan",
        "expert stage s",
        "against the first",
        "95% interval",
        "memory at least",
        "sessions",
    )
    rows = []
    base: dict[tuple[str, str], tuple[float, ...]] = {}
    for outcome in outcomes:
        first = base.setdefault((outcome.case, outcome.workload), outcome.makespans_s)
        ratio = estimate([mine / other for mine, other in zip(outcome.makespans_s, first, strict=True)])
        interval = "" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        mean_s = sum(outcome.makespans_s) / len(outcome.makespans_s)
        rows.append(
            (
                outcome.case,
                outcome.workload,
                outcome.side,
                f"{mean_s:.1f}",
                f"{ratio.mean:.3f}",
                interval,
                f"{outcome.most_memory_frac:.1%}",
                outcome.sessions,
            )
        )
    return [head, *rows]


def most_memory_frac(
    result: RunResult, pool: Mapping[ExpertName, Expert], cluster: Cluster, options: EngineOptions
) -> float:
    """Tell how full a worker certainly was, from the records, as a share of what engines may take.

    A session holds weights and activations from its load to its end, and the KV cache of the calls that run: a call
    holds its prompt from its admission to its end, and all that it wrote when it ends. More is not recorded.

    Raises
    ------
    ValueError
        If two sessions were on a worker at once.
    """
    most = 0.0
    for session in result.sessions:
        for other in result.sessions:
            overlap = min(session.end_ts, other.end_ts) - max(session.load_start_ts, other.load_start_ts)
            if session.session < other.session and overlap > 1e-6 and set(session.workers) & set(other.workers):
                raise ValueError(f"sessions {session.session} and {other.session} were on a worker at once")
        expert, degree = pool[session.expert], len(session.workers)
        gpu = cluster.workers[session.workers[0]].gpu
        free = free_kv_bytes(gpu, expert, options, degree)
        held = expert.shape.weight_bytes // degree + activation_bytes(expert, options, degree)
        assert free + held == gpu.usable_bytes, "what is not free is weights and activations"
        served = [record for record in result.calls if record.session == session.session]
        tokens = most_kv_tokens(served)
        most = max(most, (held + tokens * expert.shape.kv_bytes_per_token(degree)) / gpu.usable_bytes)
    return most


def most_kv_tokens(records: Sequence[CallRecord]) -> int:
    """Count the most tokens that calls of a session certainly held at once: where one ends, and others run."""
    running = [
        (record.admitted_ts, record.finished_ts, record)
        for record in records
        if record.admitted_ts is not None and record.finished_ts is not None and not record.num_preemptions
    ]
    changes = sorted(
        [(admitted, record.prompt_tokens) for admitted, _, record in running]
        + [(finished, -record.prompt_tokens) for _, finished, record in running]
    )
    written = {finished: record.output_tokens for _, finished, record in running}
    most = held = 0
    for instant, tokens in changes:
        most = max(most, held + written.get(instant, 0) if tokens < 0 else held)
        held += tokens
    return most
