"""Computes metrics from a run's records: its times, the load of the workers, and the times of calls.

A missing value is None, never 0. All metrics are of the run after its plan; the pilot is reported separately. Shares
are of N x expert makespan. A worker is busy from the start of a session's load to its end, so loading counts as busy.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.commands import Submit
from mosaic.core.plan import Plan, SolveReport
from mosaic.core.results import SERVED, CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import ExpertName

Summary: TypeAlias = dict[str, Any]
"""Contents of summary.json, keys in a fixed order."""


MEASURED_KEYS = (
    "num_failed_calls", "num_cancelled_calls", "expert_makespan_s", "aggregator_s", "end_to_end_s",
    "predicted_expert_makespan_s", "expert_lower_bound_s", "gpu_idle_frac", "gpu_load_frac", "num_loads",
    "output_tokens", "wasted_tokens", "output_tok_per_s", "num_preemptions",
)  # fmt: skip
ANSWER_KEYS: Mapping[str, str] = {
    "aggregator": "the choice: tp4, dp, auto; null: a pipeline that names its nodes",
    "aggregator_expert": "several, of a pipeline with more upper nodes, are joined by +",
    "aggregator_tp_degree": "null: no question was left to aggregate, or sessions are of several degrees",
    "aggregator_scheduler": "who planned it",
    "num_aggregator_calls": "calls of all nodes that read others",
    "num_too_long": "questions that were to be aggregated and that the aggregator cannot read",
    "predicted_aggregator_s": "seconds of its plans",
    "aggregator_costs": "the cost model behind the prediction",
    "skip_frac": "share of the questions that the gate skips",
    "skip_frac_source": "of the agreement: measured on an engine; of a simulation, whether it was fitted or assumed",
    "accuracy_frac": "of the final answers; without a second stage, of the experts' majority",
    "always_aggregate_s": "of the stage when every question is aggregated in the same world; null: not simulated",
    "always_aggregate_accuracy_frac": "as always_aggregate_s",
    "gate_report": "what a gate that promises something says of its promise",
}
"""Keys of summary.json on answers and the second stage, beside its times; null if not known."""


def makespan_s(sessions: Iterable[SessionRecord]) -> float | None:
    """First start to last end; None without sessions."""
    spans = [(session.load_start_ts, session.end_ts) for session in sessions]
    if not spans:
        return None
    return max(end for _, end in spans) - min(start for start, _ in spans)


def expert_sessions(result: RunResult) -> tuple[SessionRecord, ...]:
    """Sessions of the expert stage."""
    return tuple(session for session in result.sessions if session.node in result.first_nodes)


def expert_makespan_s(result: RunResult) -> float | None:
    """First start to the end of the first layer's sessions, or of its calls where sessions serve other layers too."""
    sessions = expert_sessions(result)
    if {session.session for session in sessions}.isdisjoint(record.session for record in _upper_calls(result)):
        return makespan_s(sessions)
    ends = [record.finished_ts or 0.0 for record in result.calls if record.key.node in result.first_nodes]
    return max(ends) - min(session.load_start_ts for session in sessions)


def _upper_calls(result: RunResult) -> list[CallRecord]:
    return [record for record in result.calls if record.key.node not in result.first_nodes]


def busy_s_by_worker(sessions: Iterable[SessionRecord], num_workers: int) -> tuple[float, ...]:
    """Seconds each worker spends loading or serving, for one session or several concurrent ones."""
    busy_s, reached_ts = [0.0] * num_workers, [0.0] * num_workers
    for session in sorted(sessions, key=lambda session: session.load_start_ts):
        for worker in session.workers:
            busy_s[worker] += max(0.0, session.end_ts - max(session.load_start_ts, reached_ts[worker]))
            reached_ts[worker] = max(reached_ts[worker], session.end_ts)
    return tuple(busy_s)


def load_s_by_worker(sessions: Iterable[SessionRecord], num_workers: int) -> tuple[float, ...]:
    """Seconds each worker spends loading."""
    sums = [0.0] * num_workers
    for session in sessions:
        for worker in session.workers:
            sums[worker] += session.load_s
    return tuple(sums)


def gpu_shares(result: RunResult) -> tuple[float, float] | tuple[None, None]:
    """Shares of N x expert makespan in which workers hold no session, and load an expert; None if nothing ran."""
    sessions = expert_sessions(result)
    total_s = result.num_workers * (makespan_s(sessions) or 0.0)
    if not total_s:
        return None, None
    busy_s, load_s = (add_in_order(of(sessions, result.num_workers)) for of in (busy_s_by_worker, load_s_by_worker))
    # NOTE: busy spans are sums of differences, so rounding can bring the idle share just below 0.
    return max(0.0, 1.0 - busy_s / total_s), load_s / total_s


def num_loads(result: RunResult) -> int:
    """Loads of the run; a session whose expert was still loaded needs none, a gang's load counts once."""
    return sum(1 for session in result.sessions if session.load_s > 0)


def output_tokens(result: RunResult) -> int:
    """Tokens of the calls that finished or were cut; tokens of a failed or cancelled call are no output."""
    return sum(record.output_tokens for record in result.calls if record.status in SERVED)


def session_output_tok_per_s(session: SessionRecord) -> float | None:
    """Throughput while the session serves, without its load; None for a session that took no time."""
    serve_s = session.end_ts - session.start_ts
    return session.output_tokens / serve_s if serve_s > 0 else None


def ttft_s(record: CallRecord) -> float | None:
    """Time to first token: from the instant the call is ready for its engine to its first token."""
    return None if record.first_token_ts is None else record.first_token_ts - record.queued_ts


def tpot_s(record: CallRecord) -> float | None:
    """Time per output token after the first, (last - first) / (n - 1); None when n < 2."""
    if record.first_token_ts is None or record.finished_ts is None or record.output_tokens < 2:
        return None
    return (record.finished_ts - record.first_token_ts) / (record.output_tokens - 1)


def latency_s(record: CallRecord) -> float | None:
    """From the instant the call is ready for its engine to its last token."""
    return None if record.finished_ts is None else record.finished_ts - record.queued_ts


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return add_in_order(known) / len(known) if known else None


def quantile(values: Iterable[float | None], q: float) -> float | None:
    """Quantile of the known values, linear between order statistics; None if there are none.

    Examples
    --------
    >>> quantile([1.0, 2.0, None, 4.0], 0.5)
    2.0
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    place = q * (len(known) - 1)
    below = int(place)
    above = min(below + 1, len(known) - 1)
    return known[below] + (place - below) * (known[above] - known[below])


def summarise(
    plans: Sequence[Plan],
    result: RunResult | None,
    *,
    workload: str,
    backend: str,
    gate: str | None,
    seed: int,
    num_questions: int,
    experts: Sequence[ExpertName],
    answers: Mapping[str, Any] = MappingProxyType({}),
) -> Summary:
    """Build the contents of summary.json.

    Without a result (``backend=none``) the measured values are None. The plans are those of the layers, the first
    layer's first. The experts are in the pool's order, which fixes each expert's colour in every figure. ``answers``
    has the keys of ``ANSWER_KEYS`` with a known value.
    """
    plan = plans[0]
    num_planned = _num_planned(plans, result)
    measured = _measured(result, num_planned, plan.predicted_makespan_s if plan.sessions and plan.is_priced else None)
    return {
        "workload": workload,
        "scheduler": plan.scheduler,
        "backend": backend,
        "gate": gate,
        "costs": plan.costs,
        "seed": seed,
        "num_questions": num_questions,
        "num_calls": num_planned,
        **measured,
        **({} if result is None else {**_pilot(result), **_prefills(result)}),
        **dict.fromkeys(ANSWER_KEYS),
        **answers,
        **_gains(measured, answers),
        "resumptions": None if result is None else [one._asdict() for one in result.resumptions],
        "lost_workers": None if result is None else [loss._asdict() for loss in result.lost_workers],
        "solve": _solve(plan.solve),
        "num_workers": plan.num_workers,
        "experts": list(experts),
        "problem_fingerprint": plan.problem_fingerprint,
    }


def _num_planned(plans: Sequence[Plan], result: RunResult | None) -> int:
    """Count the planned calls; for later layers, whose plans may be of expected calls, the submitted ones."""
    planned = (key for made in plans for session in made.sessions for key in session.shard)
    if result is None:
        return len(set(planned))
    ended = {record.key for record in result.calls}
    commands = (action.command for action in result.actions)
    submits = (command.call.key for command in commands if isinstance(command, Submit))
    submitted = {key for key in submits if key not in ended}
    first = {key for key in planned if key not in ended and key.node in result.first_nodes}
    return len(ended) + len(first | submitted)


def _pilot(result: RunResult) -> dict[str, Any]:
    """Metrics of the run before its plan, with its own calls; empty without a pilot."""
    sessions = [session for session in result.sessions if session.session < result.num_pilot_sessions]
    if not sessions:
        return {}
    pilot = {
        "num_calls": sum(record.session < result.num_pilot_sessions for record in result.calls),
        "num_sessions": len(sessions),
        "end_ts": max(session.end_ts for session in sessions),
        "pilot_s": makespan_s(sessions),
        "with_pilot_s": makespan_s(result.sessions),
    }
    return {"pilot": pilot}


def _prefills(result: RunResult) -> dict[str, Any]:
    """Count the prefills ahead of calls, and their part that a call has used; empty without prefills."""
    if not result.prefills:
        return {}
    prompts = {(record.key.question, record.key.node, record.session) for record in result.prefills}
    calls = [call for call in result.calls if (call.key.question, call.key.node, call.session) in prompts]
    computed, reused = (
        sum(record.computed_tokens for record in result.prefills),
        sum(call.cached_tokens for call in calls),
    )
    report = {
        "num_prefills": len(result.prefills),
        "computed_tokens": computed,
        "reused_tokens": reused,
        "wasted_tokens": max(0, computed - reused),
    }
    return {"prefill_ahead": report}


def _measured(result: RunResult | None, num_planned: int, predicted_s: float | None) -> Mapping[str, Any]:
    """Times and output of the run; a planned call counts as failed if it neither finished nor was cancelled or cut."""
    if result is None:
        return {**dict.fromkeys(MEASURED_KEYS), "predicted_expert_makespan_s": predicted_s}
    timed, calls = result.after_pilot(), result.calls
    experts_s, total_s, aggregator_s = expert_makespan_s(timed), makespan_s(timed.sessions), None
    is_staged = len(expert_sessions(timed)) < len(timed.sessions) or bool(_upper_calls(timed))
    if experts_s is not None and total_s is not None and is_staged:
        aggregator_s = total_s - experts_s
    values = (
        num_planned - sum(record.status is not CallStatus.FAILED for record in calls),
        sum(record.status is CallStatus.CANCELLED for record in calls),
        experts_s,
        aggregator_s,
        total_s,
        predicted_s,
        result.lower_bound_s,
        *gpu_shares(timed),
        num_loads(timed),
        output_tokens(result),
        sum(record.wasted_tokens for record in calls),
        output_tokens(timed) / total_s if total_s else None,
        sum(record.num_preemptions for record in calls),
    )
    return dict(zip(MEASURED_KEYS, values, strict=True))


def _gains(measured: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, float | None]:
    """Effect of the gate against aggregating every question in the same world, if known."""
    accuracy, always = answers.get("accuracy_frac"), answers.get("always_aggregate_accuracy_frac")
    always_s = answers.get("always_aggregate_s")
    return {
        "accuracy_change_pp": None if accuracy is None or always is None else 100 * (accuracy - always),
        "aggregator_saved_s": None if always_s is None else always_s - (measured["aggregator_s"] or 0.0),
    }


def _solve(solve: SolveReport) -> dict[str, Any]:
    """Remove the solver's seconds, which differ between equal runs: they belong to meta.json."""
    names = ("gap_frac", "bound_s", "num_vars", "num_constraints")
    return {"status": solve.status.value} | {name: getattr(solve, name) for name in names}
