"""Time to the first token of a call that reads nine texts, cold and after its prompt was prefilled ahead: real vLLM.

Two experts with random weights, a core each: a small one writes nine texts one after the other, and an eight-layer
Llama reads them. Every second question is prefilled ahead, and the one before it, of the same lengths, is not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.resident import Resident
from mosaic.core.cluster import Gpu, uniform_cluster
from mosaic.core.commands import Command, Prefill
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.events import Event
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Expert, Family, ModelShape, Question, Workload
from mosaic.engines import RunContent, host_process, make_vllm_backend
from mosaic.pipelines.aggregation import merge_call
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.read_ahead import ReadAhead
from mosaic.runtime.controller import Controller, View
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.prefill_ahead import PrefillAhead

PROMPT_TOKENS = (512, 1024, 2048)
NUM_TEXTS = 9
"""As in the second layer of Faster-MoA's all-to-all baseline, 9-9-1."""
NUM_WARM = 2
"""First questions, which count for nothing: engines load, and compile what they need."""
QUESTION_TOKENS = 16
CONTEXT_TOKENS = 4096
READ_OUTPUT_TOKENS = 2
SHAPES = {
    "writer": {"num_layers": 4, "hidden_size": 512, "ffn_size": 1408, "num_query_heads": 8, "num_kv_heads": 2},
    "reader": {"num_layers": 8, "hidden_size": 1024, "ffn_size": 2816, "num_query_heads": 16, "num_kv_heads": 4},
}
OPTIONS = EngineOptions(
    max_num_seqs=1,
    block_size=32,
    kv_cache_memory_bytes=192 * 2**20,
    loading=ModelLoading(device=Device.CPU, dtype="float32", load_format="dummy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two questions of the same lengths."""

    prompt_tokens: int
    cold_s: float
    """From the end of the last text to the first token of the reader's call."""
    ahead_s: float
    """The same, after its prompt was prefilled as far as it was known."""
    cached_tokens: int
    """Of its prompt, found."""
    prefilled_tokens: int
    """Computed ahead."""
    num_prefills: int


class EverySecond:
    """Lets a controller prefill for every second question only."""

    reacts = True

    def __init__(self, ahead: PrefillAhead) -> None:
        self._ahead = ahead

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Leave out what is for the others."""
        for command in self._ahead.on(event, view):
            if isinstance(command, Prefill) and int(command.call.key.question[1:]) % 2:
                yield command


def measure_pairs(
    folder: Path,
    num_pairs: int,
    write_checkpoint: Callable[[Path, ModelShape, int], None],
    sizes: Sequence[int] = PROMPT_TOKENS,
) -> list[Pair]:
    """Ask questions one after the other, pairs of the sizes in turn; all is written into an empty folder."""
    experts = [_expert(name, folder) for name in SHAPES]
    for expert in experts:
        write_checkpoint(Path(expert.checkpoint), expert.shape, CONTEXT_TOKENS)
    wanted = [max(sizes)] * NUM_WARM + [size for _ in range(num_pairs) for size in sizes for _ in range(2)]
    lengths: dict[CallKey, int] = {}
    for number, size in enumerate(wanted):
        for slot, tokens in enumerate(_lengths(size, experts[1])):
            lengths[CallKey(f"q{number}", PROPOSE, slot)] = tokens
    asked = tuple(Question(id=f"q{number}", prompt_tokens=QUESTION_TOKENS) for number in range(len(wanted)))
    nodes = (Node(name=PROPOSE), Node(name=AGGREGATE, experts=(experts[1],), after=(PROPOSE,)))
    graph = CallGraph(nodes=nodes, compare=comparisons(), read_ahead=ReadAhead())
    calls = tuple(Call(key, "writer", QUESTION_TOKENS) for key in lengths)
    questions = Questions(Workload(name="pairs", questions=asked, calls=calls), graph)
    ahead = PrefillAhead(questions)
    sessions = [Session(id=number, expert=name, workers=(number,)) for number, name in enumerate(SHAPES)]
    with host_process(OPTIONS) as host:
        backend = make_vllm_backend(
            experts=experts,
            cluster=uniform_cluster(name="cores", num_workers=2, gpu=Gpu(name="core", memory_bytes=4 * 2**30)),
            journal=folder / "journal",
            content=RunContent(outcomes=lambda call, inputs: Outcome(lengths.get(call.key, READ_OUTPUT_TOKENS))),
            options=OPTIONS,
            host=host,
        )
        everybody: list[Controller] = [Resident(questions, sessions, ahead.home, at_once=1), EverySecond(ahead)]
        result = drive(backend, everybody, num_workers=2, log=backend.log)
    return list(_pairs(result, len(wanted)))


def _expert(name: str, folder: Path) -> Expert:
    sizes = SHAPES[name]
    heads = sizes["num_query_heads"] * 64 + 2 * sizes["num_kv_heads"] * 64 + sizes["num_query_heads"] * 64
    layer = sizes["hidden_size"] * (heads + 3 * sizes["ffn_size"])
    vocab = 2048
    count = sizes["num_layers"] * layer + 2 * vocab * sizes["hidden_size"]
    shape = ModelShape(
        num_parameters=count,
        num_layers=sizes["num_layers"],
        hidden_size=sizes["hidden_size"],
        ffn_size=sizes["ffn_size"],
        num_query_heads=sizes["num_query_heads"],
        num_kv_heads=sizes["num_kv_heads"],
        head_dim=64,
        vocab_size=vocab,
        bytes_per_value=4,
    )
    return Expert(
        name=name,
        checkpoint=str(folder / name),
        shape=shape,
        family=Family.INSTRUCT,
        max_output_tokens=512,
        context_tokens=CONTEXT_TOKENS,
    )


def _lengths(size: int, reader: Expert) -> list[int]:
    """Choose the texts' lengths, about equal, so that the reader's prompt has so many tokens."""
    question = Question(id="q", prompt_tokens=QUESTION_TOKENS)
    records = [_text(slot) for slot in range(NUM_TEXTS)]
    made = merge_call(CallKey("q", AGGREGATE, 0), question, records, reader, num_places=NUM_TEXTS)
    left = size - (made.prompt_tokens - NUM_TEXTS)
    return [left // NUM_TEXTS + (slot < left % NUM_TEXTS) for slot in range(NUM_TEXTS)]


def _text(slot: int) -> CallRecord:
    return CallRecord(
        CallKey("q", PROPOSE, slot), "writer", 0, (0,), QUESTION_TOKENS, 1, 0.0, 0.0, 0.0, 0.0,
        status=CallStatus.FINISHED,
    )  # fmt: skip


def _pairs(result: RunResult, num_questions: int) -> Iterator[Pair]:
    reads = {record.key.question: record for record in result.calls if record.key.node == AGGREGATE}
    for number in range(NUM_WARM, num_questions, 2):
        cold, ahead = reads[f"q{number}"], reads[f"q{number + 1}"]
        mine = [prefill for prefill in result.prefills if prefill.key == ahead.key]
        yield Pair(
            prompt_tokens=ahead.prompt_tokens,
            cold_s=_first_token_s(cold),
            ahead_s=_first_token_s(ahead),
            cached_tokens=ahead.cached_tokens,
            prefilled_tokens=sum(prefill.computed_tokens for prefill in mine),
            num_prefills=len(mine),
        )


def _first_token_s(record: CallRecord) -> float:
    assert record.first_token_ts is not None, "it has finished"
    return record.first_token_ts - record.queued_ts
