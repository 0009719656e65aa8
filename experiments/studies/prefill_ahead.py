"""Prefill ahead of time: what it saves of a layer alone, and what it changes by load."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.lab.plots import Panel, draw
from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import beside, markdown, means, wide
from mosaic.comparison.estimate import Estimate
from mosaic.config.compose import compose_config
from mosaic.config.instantiation import make
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.realization import Outcome
from mosaic.core.results import RunResult
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, Question, Workload
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.runtime.controller import Controller
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.prefill_ahead import PrefillAhead
from mosaic.runtime.servers import Servers
from sim.cluster.backend import SimBackend
from sim.hardware.hardware import Hardware

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TEXT_TOKENS = 2048
QUESTION_TOKENS = 64
START_S = 200.0
"""Questions arrive from here on: all experts are up by then."""
ALONE_S = 120.0
"""Between two questions: the slowest is over long before the next."""
READERS = ("reader_0", "reader_1")
"""Experts that read, the second where two engines share the calls."""

WHOLE, CHUNKED, TWO_ENGINES = "whole prompts", "chunked prefill", "data parallelism, 2 GPUs"
AHEAD, AHEAD_SHORTEST = "ahead, in slot order", "ahead, shortest first"
SAVING = (CHUNKED, TWO_ENGINES, AHEAD, AHEAD_SHORTEST)
OUTPUT_TOKENS = (16, 32, 64, 128, 256)
SHAPES = ((3, 1), (9, 1), (9, 3))
"""Texts that a call reads, and calls that an engine serves at once: a tree's; a call that reads all of nine agents;
and three agents of one model in a layer of nine that all read all."""
RATES_PER_S = {"alone": 0.0, "0.25": 0.25, "1": 1.0, "2": 2.0, "batch": inf}
LAYER_QUESTIONS, LOAD_QUESTIONS = 40, 100
LOAD_FAN_IN, LOAD_OUTPUT_TOKENS = 3, 256
PUBLISHED_PERCENT, TOLERANCE_POINTS = 27.4, 5
"""Faster-MoA's largest saving from incremental prefill; its output length and fan-in are not published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Texts that are written, each slot's on a GPU of its own, and calls that read them. All are by Llama-3-8B."""

    method: str
    fan_in: int
    """Texts that a call reads."""
    num_readers: int = 1
    """Calls that read them, each in a prompt of its own, all by one expert."""
    output_tokens: int
    """Of each of these calls."""
    per_s: float = 0.0
    """Questions that arrive in a second, at random; 0: one after the other, infinite: all at once."""
    num_questions: int
    shares_engine: bool = False
    """The expert that reads also writes the first slot, in the same engine."""

    @property
    def writers(self) -> list[str]:
        """Experts that write, by slot."""
        names = [f"writer_{slot}" for slot in range(self.fan_in)]
        return [READERS[0], *names[1:]] if self.shares_engine else names

    @property
    def readers(self) -> Sequence[str]:
        """Experts that read, in turn."""
        return READERS if self.method == TWO_ENGINES else READERS[:1]


@cache
def make_parts() -> tuple[Expert, Hardware]:
    """Make Llama-3-8B, whose operators the hardware's tables were measured with, and the GPU of all scenes."""
    config = compose_config(["pool=llama3_8b", "workload=gpqa", "hardware=a100_80gb"])
    return make(config["pool"]["experts"]["llama3_8b"], "expert"), make(config["hardware"], "hardware")


def draw_texts(scene: Scene, seed: int) -> tuple[list[Call], dict[CallKey, int]]:
    """Draw texts, uniform in length, and arrivals; equal seeds draw equal ones."""
    rng = random.Random(f"{seed} {scene.fan_in} {scene.num_questions}")
    calls: list[Call] = []
    lengths: dict[CallKey, int] = {}
    arrival_s = START_S
    for number in range(scene.num_questions):
        drawn = [rng.randint(1, MAX_TEXT_TOKENS) for _ in range(scene.fan_in)]
        gap = rng.expovariate(1.0)
        arrival_s += ALONE_S if scene.per_s == 0 else 0.0 if scene.per_s == inf else gap / scene.per_s
        for slot, tokens in enumerate(sorted(drawn) if scene.method == AHEAD_SHORTEST else drawn):
            key = CallKey(f"q{number}", PROPOSE, slot)
            lengths[key] = tokens
            calls.append(Call(key, scene.writers[slot], QUESTION_TOKENS, ready_s=arrival_s))
    return calls, lengths


def simulate(scene: Scene, seed: int) -> RunResult:
    """Run a scene on experts that are up from the start and stay."""
    llama, hardware = make_parts()
    experts = {name: replace(llama, name=name) for name in (*scene.writers, *scene.readers)}
    calls, lengths = draw_texts(scene, seed)
    reading = [experts[scene.readers[number % len(scene.readers)]] for number in range(scene.num_readers)]
    nodes = [Node(name=f"read_{n}", experts=(expert,), after=(PROPOSE,)) for n, expert in enumerate(reading)]
    graph = CallGraph(nodes=(Node(name=PROPOSE), *nodes), compare=comparisons(), prefill_order=PrefillOrder())
    asked = tuple(Question(id=f"q{number}", prompt_tokens=QUESTION_TOKENS) for number in range(scene.num_questions))
    questions = Questions(Workload(name="scene", questions=asked, calls=tuple(calls)), graph)
    sessions = [Session(id=number, expert=name, workers=(number,)) for number, name in enumerate(experts)]
    backend = SimBackend(
        experts=list(experts.values()),
        hardware={hardware.gpu.name: hardware},
        cluster=uniform_cluster(name="scene", num_workers=len(experts), gpu=hardware.gpu),
        outcomes=lambda call, inputs: Outcome(lengths.get(call.key, scene.output_tokens)),
        settings=EngineOptions(order=Order.PREFILL_FIRST if scene.method in (WHOLE, TWO_ENGINES) else Order.MIXED),
    )
    ahead = PrefillAhead(questions)
    plan = unpriced_plan(sessions, num_workers=len(sessions))
    controllers: list[Controller] = [Servers(questions=questions, plan=plan, home=ahead.home)]
    if scene.method in (AHEAD, AHEAD_SHORTEST):
        controllers.append(ahead)
    return drive(backend, controllers, num_workers=len(sessions))


def measure(scene: Scene, seed: int) -> Row:
    """Simulate a scene; times are means, from the end of the last text to the first token and the end of what reads it.

    ``question_s`` is from a question's arrival to the end of its last call, the makespan from the first arrival to the
    last end. Tokens are prefilled for the prompts that are read, ahead or in time.
    """
    result = simulate(scene, seed)
    calls = pl.DataFrame(
        [
            (record.key.question, record.key.node, record.queued_ts, record.first_token_ts, record.finished_ts)
            for record in result.calls
        ],
        schema=["question", "node", "queued_s", "first_token_s", "end_s"],
        orient="row",
    )
    texts = calls.filter(node=PROPOSE).group_by("question", maintain_order=True)
    reads = calls.filter(pl.col("node") != PROPOSE).join(
        texts.agg(begun_s=pl.col("queued_s").min(), read_s=pl.col("end_s").max()), on="question", maintain_order="left"
    )
    questions = reads.group_by("question", maintain_order=True).agg(pl.col("begun_s").first(), pl.col("end_s").max())
    times = reads.select(pl.col("end_s", "first_token_s").sub(pl.col("read_s")).mean()).row(0, named=True)
    wholes = questions.select(
        question_s=(pl.col("end_s") - pl.col("begun_s")).mean(),
        makespan_s=pl.col("end_s").max() - pl.col("begun_s").min(),
    )
    ahead = sum(prefill.computed_tokens for prefill in result.prefills)
    in_time = sum(record.prompt_tokens - record.cached_tokens for record in result.calls if record.key.node != PROPOSE)
    return {
        "layer_s": times["end_s"],
        "first_token_s": times["first_token_s"],
        **wholes.row(0, named=True),
        "computed_tokens": ahead + in_time,
    }


def measure_layer(point: Point, seed: int) -> Row:
    """Measure one layer alone, a question at a time."""
    labels: dict[str, Any] = dict(point.labels)
    return {"layer_s": measure(Scene(num_questions=LAYER_QUESTIONS, **labels), seed)["layer_s"]}


def measure_load(point: Point, seed: int) -> Row:
    """Measure by load, from a question at a time to all at once."""
    labels: dict[str, Any] = dict(point.labels)
    labels["per_s"] = RATES_PER_S[labels.pop("rate")]
    return measure(
        Scene(fan_in=LOAD_FAN_IN, output_tokens=LOAD_OUTPUT_TOKENS, num_questions=LOAD_QUESTIONS, **labels), seed
    )


def compare_layers(tables: Tables) -> list[dict[str, Any]]:
    """Average what methods save of the layer's time with whole prompts on one engine, in percent."""
    by = ["fan_in", "num_readers", "output_tokens"]
    both = beside(tables["layer"], pl.col("method") == WHOLE, by).filter(pl.col("method") != WHOLE)
    return means(both, [*by, "method"], saved=100 * (1 - pl.col("layer_s") / pl.col("layer_s_base")))


def compare_loads(tables: Tables) -> list[dict[str, Any]]:
    """Average what prefill ahead changes at a load, against the same engines without it, in percent."""
    by = ["shares_engine", "rate"]
    both = beside(tables["load"], pl.col("method") == CHUNKED, by).filter(method=AHEAD)
    changes = {name: 100 * (pl.col(column) / pl.col(f"{column}_base") - 1) for name, column in MEASURES.items()}
    return [
        {**{label: row[label] for label in by}, "measure": name, "change": row[name]}
        for row in means(both, by, **changes)
        for name in MEASURES
    ]


def is_published(saved: Estimate) -> bool:
    """Tell whether a saving is the published one, within the tolerance."""
    return abs(saved.mean - PUBLISHED_PERCENT) <= TOLERANCE_POINTS


def report(tables: Tables) -> str:
    """Write what was found, with the published number beside it, and the tables."""
    layers = compare_layers(tables)
    ahead = [row for row in layers if row["method"] == AHEAD]
    most = max(ahead, key=lambda row: row["saved"].mean)
    best = {name: max(row["saved"].mean for row in layers if row["method"] == name) for name in (CHUNKED, TWO_ENGINES)}
    inside = [
        f"{row['fan_in']}, {row['num_readers']}, {row['output_tokens']}" for row in ahead if is_published(row["saved"])
    ]
    loads = wide(compare_loads(tables), ["shares_engine", "rate"], "measure", "{change:+.1f}")
    for row in loads:
        row["shares_engine"] = "shares a writer's engine" if row["shares_engine"] else "has a GPU of its own"
    index = {"fan_in": "texts a call", "num_readers": "calls on the engine", "output_tokens": "fixed_tokens"}
    return PAGE.format(
        **most,
        hit="within 5 points of" if is_published(most["saved"]) else "a MISS, more than 5 points from",
        chunked=best[CHUNKED],
        two=best[TWO_ENGINES],
        inside="; ".join(inside),
        layers=markdown(wide(layers, [*index], "method", "{saved:.1f}", order=SAVING), index),
        loads=markdown(loads, {"shares_engine": "the reader", "rate": "questions/s"}),
    )


def draw_layers(tables: Tables) -> "Figure":
    """Draw what prefill ahead saves of a layer alone, by output tokens."""
    shapes = {shape: f"{shape[0]} texts, {shape[1]} call{'s' * (shape[1] > 1)}" for shape in SHAPES}
    rows = [{**row, "shape": shapes[row["fan_in"], row["num_readers"]]} for row in compare_layers(tables)]
    return draw(
        rows,
        "output_tokens",
        "saved",
        "shape",
        "method",
        x_label="output tokens of a call",
        panels={method: Panel(label="time saved (%)", title=method) for method in (AHEAD, AHEAD_SHORTEST)},
        lines=list(shapes.values()),
        stacked=True,
    )


def draw_loads(tables: Tables) -> "Figure":
    """Draw what prefill ahead changes, by load."""
    titles = {False: "the reader has a GPU of its own", True: "the reader shares a writer's engine"}
    return draw(
        compare_loads(tables),
        "rate",
        "change",
        "measure",
        "shares_engine",
        x_label="questions per second",
        panels={shares: Panel(label="change (%)", title=title, mark=0) for shares, title in titles.items()},
        lines=["first token", "layer", "question", "makespan"],
        stacked=True,
    )


MEASURES = {
    "first token": "first_token_s",
    "layer": "layer_s",
    "question": "question_s",
    "makespan": "makespan_s",
    "prefilled tokens": "computed_tokens",
}
PAGE = f"""\
- Of one layer prefill ahead saves at most {{saved:.1f}} %, with fixed_tokens = {{output_tokens}}, {{fan_in}} texts a
  call and {{num_readers}} calls on the engine: {{hit}} the published {PUBLISHED_PERCENT} %. That is the edge of the
  sweep: fewer output tokens would save more. Within 5 points are (texts, calls, tokens): {{inside}}.
- Published beside it: about 10 % from chunked prefill or data parallelism. Here chunked prefill saves {{chunked:.1f}} %
  at best, and a second GPU {{two:.1f}} %, which is more than published: MISS on both.
- In whole batches the first token comes a quarter sooner, and the end does not change.
- Real vLLM, first token after overlap against cold: 0.24 of it at 512 tokens, 0.18 at 1,024 and 0.14 at 2,048.

## Time of one layer alone that is saved (%)

Simulated. Texts of 1 to {MAX_TEXT_TOKENS:,} tokens, uniform, each written on a GPU of its own, one question at a time;
calls of Llama-3-8B on one A100 read them and write `fixed_tokens`. The time of a call is from the end of the last text
that it reads to its own end; saved is against whole prompts (vLLM V0) on one engine. Means over 3 paired seeds of
{LAYER_QUESTIONS} questions with 95% intervals. `{AHEAD}`: as Faster-MoA reads texts. `{AHEAD_SHORTEST}`: as if lengths
were predicted exactly, the most that any prediction could give. Not published, and so assumed: the output length, how
many texts a call reads, and how many calls an engine serves; hence the sweep. Prompts of one engine share nothing.

![time of a layer saved](layer.png)

{{layers}}

## Where it pays, and where it only moves work: change (%)

Simulated: {LOAD_QUESTIONS} questions, {LOAD_FAN_IN} texts, {LOAD_OUTPUT_TOKENS} output tokens, chunked prefill, with
prefill ahead against without. Negative is faster. `alone`: one question is over before the next comes; `batch`: all
come at once. `first token` and `layer` are of the calls that read. Means over 6 paired seeds with 95% intervals.

![change by load](load.png)

{{loads}}

## Whole batches

Made by commit e0bd268, the last with this code ([batch.csv](batch.csv)); [trees.md](../trees/trees.md) has prefill
ahead in trees of agents. GPQA, the hybrid pool on four A100s, `pipeline.overlap=true`, experts loaded in turn, 6 seeds:

| gate | seconds without | end to end | first token of an aggregation | tokens ahead | of them used |
| --- | --- | --- | --- | --- | --- |
| never | 1,224 | -0.0% [-0.0%, +0.0%] | -26.1% [-27.6%, -24.7%] | 120,118 | 97% |
| majority | 1,151 | -0.0% [-0.0%, +0.0%] | -28.4% [-31.3%, -25.5%] | 91,278 | 14% |

## Real vLLM

Made by commit e0bd268, the last with this code ([real.csv](real.csv)). Two cores; a Llama with random weights (8 layers
of 1024) reads 9 texts of about equal length that another expert writes one after the other. Every second question is
prefilled ahead, and the one before it is not: medians of 5 pairs, and the range of their ratios. The time is from the
end of the last text to the first token. Work is prefilled tokens, ahead and after, against cold. Other work shared the
cores.

| prompt tokens | cold, ms | after overlap, ms | ratio of medians | range of ratios | cached tokens | work |
| --- | --- | --- | --- | --- | --- | --- |
| 512 | 1,000 | 238 | 0.24 | 0.20 to 0.24 | 416 | 1.26 |
| 1,024 | 2,279 | 405 | 0.18 | 0.16 to 0.18 | 864 | 1.13 |
| 2,048 | 5,408 | 753 | 0.14 | 0.13 to 0.16 | 1,792 | 1.06 |
"""


def make_layers() -> Iterator[Point]:
    """List methods in each layer; one call has one engine."""
    for (fan_in, num_readers), tokens, method in product(SHAPES, OUTPUT_TOKENS, (WHOLE, *SAVING)):
        if method != TWO_ENGINES or num_readers > 1:
            yield Point(
                labels={"fan_in": fan_in, "num_readers": num_readers, "output_tokens": tokens, "method": method}
            )


def make_loads() -> Iterator[Point]:
    """List loads, where the reader has a GPU and where it shares one, with and without prefill ahead."""
    for shares_engine, rate, method in product((False, True), RATES_PER_S, (CHUNKED, AHEAD)):
        yield Point(labels={"shares_engine": shares_engine, "rate": rate, "method": method})


STUDY = Study(
    name="prefill_ahead",
    about="What prefill ahead of time saves of a layer (Faster-MoA), and what it changes by load.",
    title="Prefill ahead of time",
    tables={
        "layer": Sweep(points=tuple(make_layers()), measure=measure_layer, num_seeds=3),
        "load": Sweep(points=tuple(make_loads()), measure=measure_load, num_seeds=6),
    },
    report=report,
    figures={"layer": draw_layers, "load": draw_loads},
)
