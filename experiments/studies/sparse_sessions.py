"""What a sparse KV cache gives the reasoning experts: sessions on a simulated A100, the same calls at each budget."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.studies.throughput import Relaxed, throughput_points

EXPERTS = {"LlamaR1": (535, 1070), "QwenR1": (714, 1428)}
"""Calls of a session: a quarter and half of what MMLU-Pro asks of the expert, about."""
BUDGET_PAGES = (None, 128, 64)
"""None: the full cache."""


class SparseSession(NamedTuple):
    """One session, its load left out."""

    expert: str
    num_calls: int
    budget_pages: int | None
    session_s: float
    num_preemptions: int


def sparse_sessions(workload: str = "mmlu_pro") -> list[SparseSession]:
    """Simulate the sessions; lengths and answers are those of the full cache."""
    found = []
    for expert, sizes in EXPERTS.items():
        for budget in BUDGET_PAGES:
            kv = "null" if budget is None else f"{{policy: flexicache, budget_pages: {budget}}}"
            overrides = [f"workload={workload}", f"pool.experts.{expert}.kv={kv}"]
            points = throughput_points(overrides, expert, shard_sizes=sizes, num_repeats=1, min_calls=1)
            found += [
                SparseSession(expert, point.shard_size, budget, point.session_s, point.num_preemptions)
                for point in points
                if point.relaxed is Relaxed.NOTHING
            ]
    return found


def sessions_report(sessions: Sequence[SparseSession]) -> str:
    """Write the seconds of each session, and how many times faster than with the full cache it is."""
    full = {(it.expert, it.num_calls): it.session_s for it in sessions if it.budget_pages is None}
    lines = [
        "# Sessions of the reasoning experts with a sparse KV cache",
        "",
        "Made by `python experiments/flexicache.py sessions --out results/flexicache`: MMLU-Pro on one simulated A100.",
        "Lengths are those of the full cache: whether a model that reads less writes as much and as well is not known.",
        "",
        "| expert | calls | budget, tokens | seconds | faster | preemptions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for it in sorted(sessions, key=lambda it: (it.expert, it.num_calls)):
        budget = "full" if it.budget_pages is None else f"{16 * it.budget_pages:,}"
        faster = full[it.expert, it.num_calls] / it.session_s
        counts = (f"{it.num_calls:,}", budget, f"{it.session_s:,.0f}", f"x {faster:.2f}", f"{it.num_preemptions:,}")
        cells = (it.expert, *counts)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
