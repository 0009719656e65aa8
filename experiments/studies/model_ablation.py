"""The simulator's model taken apart: what each change does to the walls, everything else being fitted anew.

Rows are cumulative: each has the changes of all rows above it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from joblib import Parallel, delayed
from tqdm import tqdm

from experiments.studies.fitted_set import FittedSet, Walls, fit_set, mean_walls, predict
from experiments.studies.paper_runs import BENCHMARKS, TITLES, TWO_STAGES
from experiments.studies.parameters import ParameterSet
from experiments.studies.published import GATED_AGGREGATE_S, PREDICTED_ILP, PUBLISHED_MEANS, ROUND_ROBIN_WALL_S

NO_CHANGES = {
    "cpu_per_kv_token_s": 0.0, "max_graph_tokens": None, "eager_layer_s": 0.0, "unload_s": 0.0, "flops_per_s": None,
    "attention_streams": 0.0,
}  # fmt: skip
"""The engine before: what it did was made up for by a factor on the host's time (phi)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change of the model, or of what is assumed."""

    label: str
    engine: Mapping[str, float | None] = field(default_factory=dict)
    """Fields of the hardware that it sets."""
    host: str | None = None
    """The field of the host's time that is fitted from here on."""
    opens_glm: bool = False
    """Whether GLM's mean is fitted from here on."""
    fixes_questions: bool = False
    """Whether questions and profile are one draw from here on."""
    output_cap: int | None = None


BEFORE = ParameterSet(
    name="before",
    engine={**NO_CHANGES, "cpu_overhead_scale": 2.1},
    reasoning_sigma=1.1,
    light_sigma=0.8,
    mean_by_expert={**PUBLISHED_MEANS, "Exaone": 440.0, "GLM": 400.0, "Qwen": 380.0},
    questions_differ=True,
)


def steps(committed: ParameterSet) -> list[Step]:
    """List the changes, the model before them first."""
    return [
        Step(label="before: a factor on the host's time, GLM's mean assumed", host="cpu_overhead_scale"),
        Step(label="LM head: the larger of reading and products", engine={"flops_per_s": 312e12}),
        Step(
            label="no CUDA graphs past 8,192 tokens (7a)",
            engine={"max_graph_tokens": 8192, "eager_layer_s": 0.0007},
        ),
        Step(
            label="host time per KV token, its factor at the measured 1 (7b)",
            engine={"cpu_overhead_scale": 1.0, "cpu_per_kv_token_s": 1e-8},
            host="cpu_per_kv_token_s",
        ),
        Step(label="light experts by the published mean over all calls (7c)", opens_glm=True),
        Step(label="15 s to end a session (7d)", engine={"unload_s": 15.0}),
        Step(
            label="attention waits for the longest sequences (3)",
            engine={"attention_streams": committed.engine["attention_streams"]},
        ),
        Step(label="questions and profile drawn once (8): the committed model", fixes_questions=True),
        *(Step(label=f"output cap {cap:,} (8)", output_cap=cap) for cap in (24_576, 20_480, 16_384)),
    ]


class Ablated(NamedTuple):
    """A row: what was fitted, and the walls of round robin and the ILP, both with the gate of the paper."""

    label: str
    fitted: FittedSet
    walls: Mapping[str, Mapping[str, Walls]]
    """By benchmark and policy."""


def ablate(committed: ParameterSet, *, num_fit_seeds: int, num_seeds: int) -> list[Ablated]:
    """Fit and simulate every row, rows side by side."""
    starts: list[tuple[str, ParameterSet, str, bool]] = []
    found, host, glm_is_open = BEFORE, "cpu_overhead_scale", False
    for step in steps(committed):
        host, glm_is_open = step.host or host, glm_is_open or step.opens_glm
        found = replace(
            found.with_engine(**step.engine),
            name=step.label,
            questions_differ=found.questions_differ and not step.fixes_questions,
            output_cap=step.output_cap or found.output_cap,
        )
        starts.append((step.label, found, host, glm_is_open))
    jobs = (delayed(_ablated)(*start, num_fit_seeds, num_seeds) for start in starts)
    running = Parallel(n_jobs=-1, return_as="generator")(jobs)
    return list(tqdm(running, "rows", len(starts), disable=not sys.stderr.isatty()))


def _ablated(
    label: str, start: ParameterSet, host: str, glm_is_open: bool, num_fit_seeds: int, num_seeds: int
) -> Ablated:
    fitted = fit_set(start, num_seeds=num_fit_seeds, host=host, glm_is_open=glm_is_open, all_orders=False)
    walls = {
        workload: {
            policy: mean_walls([predict(workload, TWO_STAGES[policy], seed, fitted) for seed in range(num_seeds)])
            for policy in ("round_robin", "ilp")
        }
        for workload in BENCHMARKS
    }
    return Ablated(label, fitted, walls)


def ablation_table(rows: Sequence[Ablated], *, num_fit_seeds: int, num_seeds: int) -> list[tuple[str, ...]]:
    """Write the rows beside the published walls; relative errors of what is predicted in brackets."""
    head = [f"the model ({num_fit_seeds} seeds to fit, {num_seeds} to run)", "fitted: host", "sigma"]
    first = ["published", "", ""]
    for name in BENCHMARKS:
        title = TITLES[name]
        head += [f"{title} round robin (s)", f"{title} ILP (s)", f"{title} speedup", f"{title} aggregator at 2/3 (s)"]
        ilp_s, wall_s = PREDICTED_ILP[name].mean_s, ROUND_ROBIN_WALL_S[name]
        first += [
            f"{wall_s:,.0f}",
            f"{ilp_s:,.0f}",
            f"{PREDICTED_ILP[name].speedup:.2f}",
            f"{GATED_AGGREGATE_S[name]:,.0f}",
        ]
    lines = [tuple(head), tuple(first)]
    for row in rows:
        parameters = row.fitted.parameters
        cells = [row.label, _host(parameters), f"{parameters.reasoning_sigma:.2f}"]
        for name in BENCHMARKS:
            before, after = row.walls[name]["round_robin"], row.walls[name]["ilp"]
            cells += [
                f"{before.expert_s:,.0f}",
                _beside(after.expert_s, PREDICTED_ILP[name].mean_s),
                f"{before.expert_s / after.expert_s:.2f}",
                _beside(after.aggregator_s, GATED_AGGREGATE_S[name]),
            ]
        lines.append(tuple(cells))
    return lines


def _host(parameters: ParameterSet) -> str:
    per_token_s = parameters.engine.get("cpu_per_kv_token_s")
    if per_token_s:
        return f"{1e9 * per_token_s:.1f} ns a KV token"
    return f"phi {parameters.engine['cpu_overhead_scale']:.2f}"


def _beside(value: float, published: float) -> str:
    return f"{value:,.0f} ({value / published - 1:+.0%})"
