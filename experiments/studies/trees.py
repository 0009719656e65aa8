"""Trees of agents against all-to-all on few GPUs: what each step saves, and how layers should follow each other."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.lab.study import Point, Row, Study, Sweep, Tables, on_jobs
from experiments.lab.tables import beside, markdown, means, wide
from mosaic.figures.means import Panel, draw
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.runtime.job import Job
from mosaic.runtime.run import run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMS_GPUS = (1, 2, 4, 6)
NUM_QUESTIONS = 200
EXPERTS = ("Gemma", "Exaone", "GLM", "Qwen", "Llama", "Granite")
COMMON = (
    "workload=mmlu_pro_instruct",
    "pool=instruct",
    "costs=piecewise",
    "backend.order=mixed",
    f"workload.num_questions={NUM_QUESTIONS}",
    # The workload only names the experts: layers of agents seat them in turn.
    f"workload.slots={{{', '.join(f'{name}: {3 * NUM_QUESTIONS // len(EXPERTS)}' for name in EXPERTS)}}}",
)
ALL_STAY = ("exit=never",)
FREE = ("pipeline.barrier=false", "pipeline.forecast=true")

STAGES: dict[str, tuple[str, ...]] = {
    "all to all": ("topology=all_to_all", *ALL_STAY),
    "tree": ("topology=tree", *ALL_STAY),
    "no barrier": ("topology=tree", *FREE, *ALL_STAY),
    "overlap": ("topology=tree", "pipeline.overlap=true", *ALL_STAY),
    "prefill ahead": ("topology=tree", "pipeline.overlap=true", "pipeline.prefill_ahead=true", *ALL_STAY),
    "exit": ("topology=tree", "pipeline.overlap=true", "exit=agreement"),
}
"""Each on top of the one before it."""
SAVING = tuple(STAGES)[1:]
WAYS: dict[str, tuple[str, ...]] = {
    "barrier": (),
    "no barrier": ("pipeline.barrier=false",),
    "no barrier, forecast": FREE,
    "overlap": ("pipeline.overlap=true",),
    "overlap, moves": ("pipeline.overlap=true", "pipeline.moves=true"),
}
"""In which layers follow each other."""


def make_points() -> Iterator[Point]:
    """List stages with and without prefix sharing, and ways without it."""
    for num_gpus, shares, name in product(NUMS_GPUS, (False, True), STAGES):
        if shares or name != "prefill ahead":  # which needs engines that share prefixes
            also = ("pipeline.prefill_ahead=true",) if shares and name == "exit" else ()
            yield make_point("stage", name, num_gpus, shares, (*STAGES[name], *also))
    for topology, num_gpus, name in product(("tree", "all_to_all"), NUMS_GPUS, WAYS):
        yield make_point(topology, name, num_gpus, False, (f"topology={topology}", *WAYS[name], *ALL_STAY))


def make_point(kind: str, name: str, num_gpus: int, shares: bool, own: tuple[str, ...]) -> Point:
    """Make a point; ``kind`` is stage, or the topology whose ways are compared."""
    engines = f"backend.enable_prefix_caching={str(shares).lower()}"
    return Point(
        labels={"kind": kind, "name": name, "num_gpus": num_gpus, "shares": shares},
        overrides=(*COMMON, f"cluster.num_workers={num_gpus}", engines, *own),
    )


def measure(job: Job) -> Row:
    """Simulate a run; calls are those that finished."""
    outcome = run(job)
    return {
        "end_to_end_s": round(max(session.end_ts for session in outcome.result.sessions), 3),
        "accuracy_frac": accuracy_frac(outcome.answers or ()),
        "num_loads": sum(session.load_s > 0 for session in outcome.result.sessions),
        "num_calls": sum(record.status == "finished" for record in outcome.result.calls),
    }


SAVED_PERCENT = 100 * (1 - pl.col("end_to_end_s") / pl.col("end_to_end_s_base"))


def compare(runs: pl.DataFrame, baseline: str, by: Sequence[str]) -> list[dict[str, Any]]:
    """Average runs, and what they save of the baseline's run with the same seed, which agrees with them in ``by``."""
    return means(
        beside(runs, pl.col("name") == baseline, by),
        [*by, "name"],
        saved=SAVED_PERCENT,
        taken_s=pl.col("end_to_end_s"),
        loads=pl.col("num_loads"),
        change_pp=100 * (pl.col("accuracy_frac") - pl.col("accuracy_frac_base")),
    )


def compare_stages(tables: Tables) -> list[dict[str, Any]]:
    """Compare each stage with all to all, without prefix sharing first."""
    runs = tables["runs"].filter(kind="stage").sort("shares", maintain_order=True)
    return compare(runs, "all to all", ["shares", "num_gpus"])


def report(tables: Tables) -> str:
    """Write the tables of stages and of ways."""
    stages = compare_stages(tables)
    first = {"all to all": "{taken_s.mean:,.0f}"}
    table = wide(stages, ["shares", "num_gpus"], "name", "{saved:.1f}", cells=first, order=tuple(STAGES))
    changes = [f"{row['change_pp']:.1f}" for row in stages if row["name"] == "exit"]
    for row, change in zip(table, changes, strict=True):
        row |= {"shares": "yes" if row["shares"] else "no", "change": change}
    ways = compare(tables["runs"].filter(pl.col("kind") != "stage"), "barrier", ["kind", "num_gpus"])
    taken = "{taken_s.mean:,.0f}, {loads.mean:.1f} loads"
    way_table = wide(ways, ["kind", "num_gpus"], "name", taken + " ({saved:.1f})", cells={"barrier": taken})
    heads = {"shares": "prefix sharing", "num_gpus": "GPUs", "all to all": "all to all (s)", "kind": "topology",
             "change": "accuracy, change (pp)"}  # fmt: skip
    return PAGE.format(stages=markdown(table, heads), ways=markdown(way_table, heads))


def figure(tables: Tables) -> "Figure":
    """Draw what each stage saves."""
    titles = {False: "without prefix sharing", True: "with prefix sharing"}
    panels = {shares: Panel(label="time saved of all to all (%)", title=title) for shares, title in titles.items()}
    rows = compare_stages(tables)
    return draw(rows, "num_gpus", "saved", "name", "shares", x_label="GPUs", panels=panels, lines=SAVING)


PAGE = f"""\
Simulated. `all to all` is 9-9-1, `tree` 9-3-1 with a fan-in of 3, both with a barrier between their layers.
`no barrier` starts calls when what they read has ended, with plans that know each other (`pipeline.forecast=true`);
`overlap` (`pipeline.overlap=true`) lets them join sessions of their expert under way; `prefill ahead` prefills prompts
while later slots still run, which takes engines that share prefixes; `exit` is `exit=agreement`. Each is on top of the
one before it, but `overlap`, which replaces `no barrier`.

{NUM_QUESTIONS} questions of MMLU-Pro's lengths, six instruct models of 7 to 9B (`pool=instruct`), A100s, engines in
mixed order, the ILP with piecewise prices; lengths and answers are those of the simulated world, and loads count. Means
over paired seeds with 95% intervals.

Faster-MoA measured the latency of one question at a time, with three Qwen3-VL of 4B, 8B and 32B on six H200, a GPU for
prefill and one for decode of each. Here a batch is timed, so only direction and order can be compared, not sizes.

![time saved](trees.png)

## Time saved of all to all (%), cumulative

{{stages}}

Published maxima (latency, normalised charts): tree 62, with overlap 76, with early exit 90.

## How layers follow each other (without prefix sharing)

Seconds end to end, and in brackets the time saved of the same topology with a barrier (%), with loads.

{{ways}}
"""

STUDY = Study(
    name="trees",
    about="What trees of agents save of all-to-all on 1 to 6 GPUs, step by step (Faster-MoA).",
    title="Trees of agents on few GPUs",
    tables={"runs": Sweep(points=tuple(make_points()), measure=on_jobs(measure), num_seeds=10)},
    report=report,
    figures={"trees": figure},
)
