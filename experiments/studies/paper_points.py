"""The runs behind the reproduction of the paper: which points, and what is measured of each."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from statistics import fmean

import msgspec
import polars as pl

from experiments.lab.one_session import serve_alone
from experiments.lab.study import Point, Row
from mosaic.commands.run_folder import summary_of
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job, simulated_job
from mosaic.core.results import RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.report.metrics import busy_s_by_worker, expert_sessions, load_s_by_worker, quantile
from mosaic.runtime.job import Job, Outcome
from mosaic.runtime.run import run
from sim.site import SimSite, draw_records

TITLES = {"mmlu_pro": "MMLU-Pro", "medmcqa": "MedMCQA", "gpqa": "GPQA"}
BENCHMARKS = tuple(TITLES)
POOL_OF = dict.fromkeys(BENCHMARKS, "hybrid") | {f"mmlu_pro_{pool}": pool for pool in ("reasoning", "instruct")}
"""By workload; the last two put MMLU-Pro's questions to other experts."""
EXPERTS = {
    **dict.fromkeys(("mmlu_pro", "medmcqa"), ("LlamaR1", "QwenR1", "Gemma", "Exaone", "GLM", "Qwen")),
    "gpqa": ("LlamaR1", "QwenR1", "Gemma", "Exaone"),
    "mmlu_pro_reasoning": ("LlamaR1", "QwenR1", "DLER", "OREAL", "Skywork", "Stratos"),
    "mmlu_pro_instruct": ("Gemma", "Exaone", "GLM", "Qwen", "Llama", "Granite"),
}
"""Those that hold slots, by workload."""
NUM_WORKERS = 4

TWO_STAGES = {
    "round_robin": ("scheduler=round_robin", "gate=never"),
    "ilp": ("scheduler=ilp", "gate=majority"),
    "unanimous": ("scheduler=ilp", "gate=unanimous"),
}
"""Policies of the benchmarks: the baseline aggregates every question; MOSAIC has tau = 2/3, then tau = 1."""
EXPERT_STAGE = {name: (f"scheduler={name}", "aggregator=none") for name in ("round_robin", "data_parallel", "ilp")}
"""Policies of the pools, the expert stage alone."""
DRAWN = {"run": "seed", "questions": "question_seed", "profile": "profile.seed"}
"""What a seed draws: lengths and answers of a run; or the questions, or the profile, of the run with seed 0."""
TYPICAL_SEEDS = {"mmlu_pro": 9, "medmcqa": 14, "gpqa": 31}
"""Of each benchmark the run whose makespans, round robin's and the ILP's, are nearest to the means."""

AGREEMENTS = ("3:0", "2:1", "1:1:1")
"""How the three answers to a question split, most agreement first."""
SUMMARY = (
    "expert_makespan_s", "aggregator_s", "end_to_end_s", "gpu_idle_frac", "skip_frac", "accuracy_frac",
    "accuracy_change_pp",
)  # fmt: skip
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_TAIL_PARTS = 20
"""The last twentieth of the calls is the tail."""
SHARD_SIZES = tuple(2**power for power in range(3, 12))
"""Calls of a session, 8 to 2048."""
NUM_SESSIONS, MIN_CALLS = 4, 128
"""Rows of a shard size, and the calls of each: those of small shards are means over several sessions."""


def make_points() -> Iterator[Point]:
    """List policies of both stages, other draws of the ILP's expert stage, and policies of the pools."""
    for workload in BENCHMARKS:
        for policy, groups in TWO_STAGES.items():
            yield make_point(workload, policy, groups)
        for drawn in ("questions", "profile"):
            yield make_point(workload, "ilp", EXPERT_STAGE["ilp"], drawn)
    yield make_point("mmlu_pro", "data_parallel", EXPERT_STAGE["data_parallel"])
    for pool in ("reasoning", "instruct"):
        for policy, groups in EXPERT_STAGE.items():
            yield make_point(f"mmlu_pro_{pool}", policy, (*groups, f"pool={pool}"))


def make_point(workload: str, policy: str, groups: Sequence[str], drawn: str = "run") -> Point:
    """Make a point with what its seed draws."""
    labels = {"workload": workload, "policy": policy, "drawn": drawn}
    return Point(labels=labels, overrides=(f"workload={workload}", *groups))


def is_small(point: Point) -> bool:
    """Whether a point needs more seeds: GPQA leaves 54 questions to its aggregator."""
    return point.labels["workload"] == "gpqa" and point.labels["drawn"] == "run"


def measure(point: Point, seed: int) -> Row:
    """Simulate a run; the workers' times are those of the expert stage."""
    config = compose_config([*point.overrides, f"{DRAWN[str(point.labels['drawn'])]}={seed}"])
    prepared = build_job(config, overrides=point.overrides)
    outcome = run(prepared.job)
    summary = summary_of(prepared, config, outcome.plans, outcome)
    sessions = expert_sessions(outcome.result)
    row = {name: summary[name] for name in SUMMARY}
    row |= {f"load_{worker}_s": each for worker, each in enumerate(load_s_by_worker(sessions, NUM_WORKERS))}
    row |= {f"busy_{worker}_s": each for worker, each in enumerate(busy_s_by_worker(sessions, NUM_WORKERS))}
    row |= measure_agreement(outcome) | measure_tail(outcome.result)
    return {
        name: value if value is None else round(value, 3 if name.endswith("_s") else 6) for name, value in row.items()
    }


def measure_agreement(outcome: Outcome) -> dict[str, float | None]:
    """Measure the mean tokens of a question's calls by how its answers split, and how often all agree and are right."""
    tokens = tokens_by_question((call.key, call.output_tokens) for call in outcome.result.calls)
    finals = outcome.answers or ()
    ranks = [split_of(final.votes) for final in finals]
    of_question = [tokens[final.question] for final in finals]
    row = {"agreed_right_frac": mean(bool(final.correct) for final in finals if final.confidence == 1)}
    for rank, split in enumerate(AGREEMENTS):
        row[f"tokens_{split}"] = mean(own for own, its in zip(of_question, ranks, strict=True) if its == rank)
    ranked = pl.select(pl.corr(pl.Series(of_question), -pl.Series(ranks), method="spearman")).item() if finals else None
    return row | {"rank_correlation": ranked}


def tokens_by_question(calls: Iterable[tuple[CallKey, int]]) -> dict[str, float]:
    """Average the output tokens of each question's experts."""
    tokens: dict[str, list[int]] = {}
    for key, output_tokens in calls:
        if key.node == PROPOSE:
            tokens.setdefault(key.question, []).append(output_tokens)
    return {question: fmean(own) for question, own in tokens.items()}


def split_of(votes: Iterable[str | None]) -> int:
    """Return the place among `AGREEMENTS`; an answer that cannot be read agrees with none."""
    return 3 - max(Counter(vote for vote in votes if vote is not None).values(), default=1)


def mean(values: Iterable[float]) -> float | None:
    """Average; nothing has no mean."""
    known = list(values)
    return fmean(known) if known else None


def measure_tail(result: RunResult) -> dict[str, float | None]:
    """Measure the aggregator's stage, load included: the share of it in which only the last of its calls run."""
    calls = [call for call in result.calls if call.key.node == AGGREGATE]
    if not calls:
        return dict.fromkeys(("num_merged", "tail_frac", "longest_tokens"))
    ends = sorted(call.finished_ts or 0.0 for call in calls)
    start = min(session.load_start_ts for session in result.sessions if session.node == AGGREGATE)
    tail_s = ends[-1] - ends[-1 - len(ends) // NUM_TAIL_PARTS]
    longest = max(call.output_tokens for call in calls)
    return {"num_merged": len(calls), "tail_frac": tail_s / (ends[-1] - start), "longest_tokens": longest}


@cache
def simulated_pool(workload: str) -> tuple[Job, SimSite]:
    """Compose the expert stage of a workload."""
    return simulated_job([f"workload={workload}", f"pool={POOL_OF[workload]}", "aggregator=none"])


@cache
def lengths_of(workload: str) -> dict[str, list[float]]:
    """Draw output tokens: of each expert's calls, and means of questions by how their answers split."""
    job, site = simulated_pool(workload)
    records = draw_records(site.world, job.workload.calls, job.experts, {})
    lengths: dict[str, list[float]] = {}
    votes: dict[str, list[str | None]] = {}
    for record in records:
        lengths.setdefault(record.expert, []).append(record.output_tokens)
        votes.setdefault(record.key.question, []).append(record.answer)
    for question, tokens in tokens_by_question((record.key, record.output_tokens) for record in records).items():
        lengths.setdefault(AGREEMENTS[split_of(votes[question])], []).append(tokens)
    return lengths


def measure_lengths(point: Point, seed: int) -> Row:
    """Measure the output tokens of an expert's calls, or of questions whose answers split in one way."""
    tokens = lengths_of(str(point.labels["workload"]))[str(point.labels["name"])]
    quantiles = {f"p{100 * share:.0f}_tokens": round(quantile(tokens, share) or 0.0, 3) for share in QUANTILES}
    mean_tokens, longest = round(fmean(tokens), 3), round(max(tokens), 3)
    return {"num": len(tokens), "mean_tokens": mean_tokens, **quantiles, "max_tokens": longest}


def measure_throughput(point: Point, seed: int) -> Row:
    """Measure sessions that have a GPU each and calls of their own, their load left out."""
    workload, name, size = (point.labels[key] for key in ("workload", "expert", "shard_size"))
    assert isinstance(size, int)
    job, site = simulated_pool(str(workload))
    expert = next(expert for expert in job.experts if expert.name == name)
    prompts = [call.prompt_tokens for call in job.workload.calls]
    per_row = max(MIN_CALLS, size)
    before = sum(NUM_SESSIONS * max(MIN_CALLS, smaller) for smaller in SHARD_SIZES if smaller < size) + seed * per_row
    rates = []
    for first in range(before, before + per_row, size):
        calls = [
            Call(CallKey(f"throughput-{name}-{place}", PROPOSE, 0), expert.name, prompts[place % len(prompts)])
            for place in range(first, first + size)
        ]
        session = serve_alone(site, expert, calls, site.calibration_world).sessions[0]
        rates.append(session.output_tokens / (session.end_ts - session.start_ts))
    return {"output_tok_per_s": round(fmean(rates), 3)}


def measure_timeline(point: Point, seed: int) -> Row:
    """Keep the sessions of the expert stage of a benchmark's typical run."""
    typical = TYPICAL_SEEDS[str(point.labels["workload"])]
    outcome = run(build_job(compose_config([*point.overrides, f"seed={typical}"])).job)
    return {"run_seed": typical, "sessions": msgspec.json.encode(expert_sessions(outcome.result)).decode()}


POINTS = tuple(make_points())
LENGTH_POINTS = tuple(
    Point(labels={"workload": workload, "name": name})
    for workload, experts in EXPERTS.items()
    for name in (*experts, *(AGREEMENTS if workload == "mmlu_pro" else ()))
)
THROUGHPUT_POINTS = tuple(
    Point(labels={"workload": workload, "expert": expert, "shard_size": size})
    for workload, experts in EXPERTS.items()
    if workload not in BENCHMARKS[1:]
    for expert in experts
    for size in SHARD_SIZES
)
TIMELINE_POINTS = tuple(
    Point(labels={"workload": workload, "policy": policy}, overrides=(f"workload={workload}", *EXPERT_STAGE[policy]))
    for workload in BENCHMARKS
    for policy in ("round_robin", "ilp")
)
