"""Runs of one layer that reads another, on experts that stay on their GPUs: the scene of prefill ahead of time.

Every slot of the first layer has a GPU of its own. Texts are as long as drawn, uniform on 1 to 2,048 tokens; what
reads them writes a fixed number. All experts are Llama-3-8B, whose operators the hardware's tables were measured with.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf

from experiments.studies.resident import Resident
from experiments.studies.sparse_throughput import llama
from mosaic.config.compose import compose_config
from mosaic.config.instantiation import make
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import RunResult
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.read_ahead import ReadAhead
from mosaic.runtime.controller import Controller
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.prefill_ahead import PrefillAhead
from sim.cluster.backend import SimBackend
from sim.hardware.hardware import Hardware

MAX_TEXT_TOKENS = 2048
QUESTION_TOKENS = 64
START_S = 200.0
"""Questions arrive from here on: all experts are up by then."""
ALONE_S = 120.0
"""Between two questions: the slowest is over long before the next."""
READER = "reader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who reads what, how often."""

    fan_in: int = 3
    """Texts that a call reads."""
    num_readers: int = 1
    """Calls that read them, each in a prompt of its own, all by one expert."""
    output_tokens: int = 64
    """Of each of these calls."""
    per_s: float = 0.0
    """Questions that arrive in a second, at random; 0: one after the other, infinite: all at once."""
    num_questions: int = 40
    shares_engine: bool = False
    """The expert that reads also writes the first slot, in the same engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How the layer that reads is served."""

    name: str
    order: Order = Order.MIXED
    num_engines: int = 1
    """That serve it, a GPU each."""
    is_ahead: bool = False
    knows_lengths: bool = False
    """Texts are read in the order of their true lengths, and not in one that says nothing of them."""


WHOLE = Method(name="whole prompts", order=Order.PREFILL_FIRST)
CHUNKED = Method(name="chunked prefill")
TWO_ENGINES = Method(name="data parallelism, 2 GPUs", order=Order.PREFILL_FIRST, num_engines=2)
AHEAD = Method(name="ahead, order knows nothing", is_ahead=True)
AHEAD_SHORTEST = Method(name="ahead, shortest first", is_ahead=True, knows_lengths=True)
METHODS = (WHOLE, CHUNKED, TWO_ENGINES, AHEAD, AHEAD_SHORTEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Means over the questions of a run."""

    layer_s: float
    """From the end of the last text that a call reads to its own end."""
    first_token_s: float
    """To its first token."""
    question_s: float
    """From a question's arrival to the end of its last call."""
    makespan_s: float
    """From the first arrival to the last end."""
    read_tokens: int
    """Of the prompts that are read."""
    computed_tokens: int
    """Prefilled for them, ahead or in time."""


def measure(scene: Scene, method: Method, seed: int) -> Measured:
    """Simulate a scene; equal seeds draw equal texts and arrivals."""
    luck = random.Random(f"{seed} {scene.fan_in} {scene.num_questions}")
    lengths: dict[CallKey, int] = {}
    calls: list[Call] = []
    arrival_s = START_S
    for number in range(scene.num_questions):
        drawn = [luck.randint(1, MAX_TEXT_TOKENS) for _ in range(scene.fan_in)]
        gap = luck.expovariate(1.0)
        arrival_s += ALONE_S if scene.per_s == 0 else 0.0 if scene.per_s == inf else gap / scene.per_s
        for slot, tokens in enumerate(sorted(drawn) if method.knows_lengths else drawn):
            key = CallKey(f"q{number}", PROPOSE, slot)
            lengths[key] = tokens
            calls.append(Call(key, _writer(scene, slot), QUESTION_TOKENS, ready_s=arrival_s))
    names = tuple(Question(id=f"q{number}", prompt_tokens=QUESTION_TOKENS) for number in range(scene.num_questions))
    reader = expert_named(READER)
    graph = CallGraph(
        nodes=(
            Node(name=PROPOSE),
            *(Node(name=f"read_{n}", experts=(reader,), after=(PROPOSE,)) for n in range(scene.num_readers)),
        ),
        compare=comparisons(),
        read_ahead=ReadAhead(),
    )
    result = _run(scene, method, Questions(Workload(name="scene", questions=names, calls=tuple(calls)), graph), lengths)
    return _means(result)


def _writer(scene: Scene, slot: int) -> str:
    return READER if scene.shares_engine and slot == 0 else f"writer_{slot}"


def _run(scene: Scene, method: Method, questions: Questions, lengths: dict[CallKey, int]) -> RunResult:
    names = [_writer(scene, slot) for slot in range(scene.fan_in)]
    placed = [*names, *[READER] * (method.num_engines - names.count(READER))]
    sessions = [Session(id=number, expert=name, workers=(number,)) for number, name in enumerate(placed)]
    hardware = a100()
    experts = [expert_named(name) for name in dict.fromkeys(placed)]
    backend = SimBackend(
        experts=experts,
        hardware={hardware.gpu.name: hardware},
        cluster=uniform_cluster(name="scene", num_workers=len(placed), gpu=hardware.gpu),
        outcomes=lambda call, inputs: Outcome(lengths.get(call.key, scene.output_tokens)),
        settings=EngineOptions(order=method.order),
    )
    ahead = PrefillAhead(questions)
    everybody: list[Controller] = [Resident(questions, sessions, ahead.home), *([ahead] if method.is_ahead else [])]
    return drive(backend, everybody, num_workers=len(placed))


def _means(result: RunResult) -> Measured:
    ended = {record.key: record for record in result.calls}
    texts: dict[str, list[CallKey]] = {}
    reads = [record for record in result.calls if record.key.node != PROPOSE]
    for key in ended:
        if key.node == PROPOSE:
            texts.setdefault(key.question, []).append(key)
    known_s = {question: max(_ts(ended[key].finished_ts) for key in keys) for question, keys in texts.items()}
    begun_s = {question: min(ended[key].queued_ts for key in keys) for question, keys in texts.items()}
    last_s: dict[str, float] = {}
    for record in reads:
        question = record.key.question
        last_s[question] = max(last_s.get(question, 0.0), _ts(record.finished_ts))
    ahead = sum(prefill.computed_tokens for prefill in result.prefills)
    return Measured(
        layer_s=_mean([_ts(record.finished_ts) - known_s[record.key.question] for record in reads]),
        first_token_s=_mean([_ts(record.first_token_ts) - known_s[record.key.question] for record in reads]),
        question_s=_mean([last_s[question] - begun_s[question] for question in texts]),
        makespan_s=max(last_s.values()) - min(begun_s.values()),
        read_tokens=sum(record.prompt_tokens for record in reads),
        computed_tokens=ahead + sum(record.prompt_tokens - record.cached_tokens for record in reads),
    )


def _ts(ts: float | None) -> float:
    assert ts is not None, "all finish"
    return ts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@cache
def expert_named(name: str) -> Expert:
    """Give Llama-3-8B a name."""
    return replace(llama(), name=name)


@cache
def a100() -> Hardware:
    """Build the GPU of all scenes."""
    hardware = make(compose_config(["hardware=a100_80gb"])["hardware"], "hardware")
    assert isinstance(hardware, Hardware)
    return hardware
