"""The naive engine: one iteration at a time, every sequence visited, every block counted. Slow on purpose."""

from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from sim.hardware.iteration_time import IterationTime


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTime(IterationTime):
    """An iteration time with constants that no sum of round numbers hits."""

    base_s: float = 0.0107613
    per_seq_s: float = 3.7731e-5
    per_kv_token_s: float = 8.2719e-8
    per_prefill_token_s: float = 6.7713e-5
    per_prefill_pair_s: float = 3.6131e-9

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int, longest=0) -> float:
        kv_read = num_steps * kv_tokens + num_seqs * num_steps * (num_steps - 1) // 2
        return num_steps * (self.base_s + self.per_seq_s * num_seqs) + self.per_kv_token_s * kv_read

    def mixed_s(self, chunks, num_decodes, decode_kv_tokens, longest=0):
        tokens = pairs = 0
        for num_new, num_cached in chunks:
            tokens += num_new
            pairs += num_new * (num_new + 2 * num_cached)
        return (
            self.base_s
            + self.per_seq_s * num_decodes
            + self.per_kv_token_s * decode_kv_tokens
            + self.per_prefill_token_s * tokens
            + self.per_prefill_pair_s * pairs
        )


@dataclass(eq=False)
class Block:
    """What it holds, if that is known, survives its release until somebody else takes it."""

    content: tuple | None = None
    users: int = 0


@dataclass(eq=False)
class Seq:
    id: int
    prompt: int
    output: int
    ready: float
    generated: int = 0
    prefix: Prefix | None = None
    computed: int = 0
    blocks: list[Block] = field(default_factory=list)
    admitted: float | None = None
    first: float | None = None
    finished: float | None = None
    preemptions: int = 0
    wasted: int = 0
    cached: int = 0
    decoding: bool = False

    @property
    def length(self) -> int:
        return self.prompt + self.generated

    def token(self, place: int) -> tuple:
        """What a token is; those that no other sequence has are its own."""
        if self.prefix is not None and place < min(self.prompt, self.prefix.num_tokens):
            index, offset = divmod(place, self.prefix.block_tokens)
            return self.prefix.blocks[index], offset
        return "own", self.id, place


@dataclass
class Oracle:
    time: IterationTime
    settings: EngineOptions
    kv_tokens: int
    context: int
    now: float = 0.0
    num_iterations: int = 0
    cuts: list[tuple[float, int, int]] = field(default_factory=list)
    everyone: list[Seq] = field(default_factory=list)
    waiting: list[Seq] = field(default_factory=list)
    running: list[Seq] = field(default_factory=list)
    # Beside a time by totals: what lengths add to it.
    skew: tuple[float, int] | None = None
    """Seconds per token of a thread block, least batch of decodes that is not split."""
    eager: tuple[int, float] | None = None
    """Longest sequence under CUDA graphs, least seconds of a step without them."""
    host: tuple[float, float] = (0.0, 0.0)
    """Host seconds per sequence and per token in the cache of a step."""

    def __post_init__(self) -> None:
        self.num_blocks = self.kv_tokens // self.settings.block_size
        self.watermark_frac = self.settings.watermark_frac
        if self.watermark_frac is None:
            self.watermark_frac = 0.0 if self.settings.order is Order.MIXED else 0.01
        self.watermark = int(self.watermark_frac * self.num_blocks)
        self.free = [Block() for _ in range(self.num_blocks)]
        self.named: dict[tuple, list[Block]] = {}

    @property
    def num_free(self) -> int:
        return len(self.free)

    def blocks_for(self, num_tokens: int, *, decoding: bool = False) -> int:
        return (num_tokens + self.settings.block_size - 1) // self.settings.block_size

    def take(self, seq: Seq, num_blocks: int) -> None:
        assert num_blocks <= len(self.free)
        for _ in range(num_blocks):
            block = self.free.pop(0)
            if block.content is not None:
                self.named[block.content].remove(block)
            block.content, block.users = None, 1
            seq.blocks.append(block)

    def release(self, seq: Seq) -> None:
        behind = []
        for block in reversed(seq.blocks):
            block.users -= 1
            if not block.users:
                behind.append(block)
        self.free = [b for b in behind if b.content is None] + self.free + [b for b in behind if b.content is not None]
        seq.blocks = []

    def content(self, seq: Seq, index: int) -> tuple:
        """All tokens up to the end of a block."""
        return tuple(seq.token(place) for place in range((index + 1) * self.settings.block_size))

    def find(self, seq: Seq) -> list[Block]:
        found = []
        for index in range((seq.length - 1) // self.settings.block_size):
            copies = self.named.get(self.content(seq, index))
            if not copies:
                break
            found.append(copies[0])
        return found

    def name(self, seq: Seq, num_tokens: int) -> None:
        if not self.settings.caches_prefixes:
            return
        for index in range(num_tokens // self.settings.block_size):
            block = seq.blocks[index]
            if block.content is None:
                block.content = self.content(seq, index)
                self.named.setdefault(block.content, []).append(block)

    def run(self, requests, aborts=(), cuts=()) -> list[Seq]:
        """Requests are (prompt, output, ready), and may add what is generated and a prefix;
        aborts are (ts, index), each at its time or not at all; cuts are (ts, index, tokens).
        """
        arriving = sorted((Seq(i, *request) for i, request in enumerate(requests)), key=lambda seq: seq.ready)
        everyone = sorted(arriving, key=lambda seq: seq.id)
        aborts = sorted(aborts)
        self.everyone, self.cuts = everyone, sorted(cuts)
        while True:
            self.cut(lambda ts: ts <= self.now)
            while aborts and aborts[0][0] <= self.now:
                self.abort(everyone[aborts[0][1]], aborts[0][0], arriving)
                aborts.pop(0)
            while arriving and arriving[0].ready <= self.now:
                self.waiting.append(arriving.pop(0))
            if self.waiting or self.running:
                self.iterate(aborts)
            elif arriving:
                self.now = min([arriving[0].ready] + [max(self.now, ts) for ts, _ in aborts])
            elif aborts:
                self.now = max(self.now, aborts[0][0])
            else:
                return everyone

    def abort(self, seq, ts, arriving) -> None:
        if seq.finished is not None:
            return
        for place in (self.waiting, self.running, arriving):
            if seq in place:
                place.remove(seq)
        if seq.first is not None and seq.first > ts:
            seq.first = None
            seq.generated -= 1
        elif seq.generated == seq.output:
            seq.generated -= 1
        seq.finished = ts
        seq.wasted += seq.computed
        self.release(seq)

    def cut(self, is_due) -> None:
        while self.cuts and is_due(self.cuts[0][0]):
            _, index, tokens = self.cuts.pop(0)
            seq = self.everyone[index]
            if seq.finished is None:
                seq.output = min(seq.output, max(tokens, seq.generated + 1))

    def preempt(self) -> None:
        seq = self.running.pop()
        seq.wasted += seq.computed
        seq.computed = 0
        self.release(seq)
        seq.preemptions += 1
        seq.decoding = False
        self.waiting.insert(0, seq)

    def iterate(self, aborts) -> None:
        self.compute(self.compose(), aborts)

    def compose(self) -> list[tuple[Seq, int]]:
        self.num_iterations += 1
        mixed = self.settings.order.chunks_prompts
        budget = self.settings.batched_tokens(self.context)
        work: list[tuple[Seq, int]] = []
        if not mixed:
            self.admit(work, budget, whole=True)
        if not work:
            preempted = False
            index = 0
            while index < len(self.running):
                seq = self.running[index]
                num_new = min(seq.length - seq.computed, budget) if mixed else 1
                needed = self.blocks_for(seq.computed + num_new, decoding=seq.decoding) - len(seq.blocks)
                while needed > self.num_free and seq in self.running:
                    self.preempt()
                    preempted = True
                if seq not in self.running:
                    break
                self.take(seq, needed)
                self.name(seq, seq.computed + num_new)
                budget -= num_new
                work.append((seq, num_new))
                index += 1
            if mixed and not preempted:
                self.admit(work, budget, whole=False)
        return work

    def admit(self, work, budget, *, whole) -> None:
        while self.waiting and len(self.running) < self.settings.max_num_seqs and budget > 0:
            seq = self.waiting[0]
            found = self.find(seq)
            cached = len(found) * self.settings.block_size
            num_new = seq.length - cached if whole else min(seq.length - cached, budget)
            num_tokens = cached + num_new
            must_fit = seq.length if self.settings.scheduler_reserve_full_isl else num_tokens
            in_use = sum(block.users > 0 for block in found)
            if num_new > budget or self.num_free - self.blocks_for(must_fit) + in_use < self.watermark:
                return
            self.waiting.pop(0)
            self.running.append(seq)
            for block in found:
                if not block.users:
                    self.free.remove(block)
                block.users += 1
            seq.blocks = list(found)
            seq.computed = cached
            self.take(seq, self.blocks_for(num_tokens) - len(found))
            self.name(seq, num_tokens)
            if seq.admitted is None:
                seq.admitted, seq.cached = self.now, cached
            else:
                seq.wasted -= cached
            budget -= num_new
            work.append((seq, num_new))

    def compute(self, work, aborts) -> None:
        self.now += self.work_s(work)
        self.end(work, aborts)

    def work_s(self, work) -> float:
        decodes = [seq for seq, _ in work if seq.decoding]
        return self.seconds(decodes, [(num_new, seq.computed) for seq, num_new in work if not seq.decoding])

    def end(self, work, aborts) -> None:
        aborted = {index for ts, index in aborts if ts < self.now}
        self.cut(lambda ts: ts < self.now)
        for seq, num_new in work:
            seq.computed += num_new
            if seq.computed < seq.length:
                continue
            seq.generated += 1
            seq.decoding = True
            seq.first = self.now if seq.first is None else seq.first
            if seq.generated == seq.output and seq.id not in aborted:
                seq.finished = self.now
                self.running.remove(seq)
                self.release(seq)

    def seconds(self, decodes, chunks) -> float:
        kv_tokens = sum(seq.computed + 1 for seq in decodes)
        lengths = [seq.computed + 1 for seq in decodes]
        longest = max(lengths, default=0) if self.time.needs_longest else 0
        if chunks:
            gpu_s = self.time.mixed_s(chunks, len(decodes), kv_tokens, longest) + self.skew_s(lengths, chunks)
        else:
            gpu_s = self.skew_s(lengths, chunks) + self.time.decode_span_s(len(decodes), kv_tokens, 1, longest)
            if self.eager and max(seq.computed + 1 for seq in decodes) > self.eager[0]:
                gpu_s = max(gpu_s, self.eager[1])
        return gpu_s + self.host[0] * (len(decodes) + len(chunks)) + self.host[1] * kv_tokens

    def skew_s(self, lengths, chunks) -> float:
        if self.skew is None or not lengths or (len(lengths) < self.skew[1] and not chunks):
            return 0.0
        block_s, _ = self.skew
        mean = sum(lengths) / len(lengths)
        if not chunks:
            return block_s * (max(lengths) - mean) * 2 / 3
        read = [cached + new for new, cached in chunks]
        return block_s * (max(*lengths, *read) - max(mean, *read))


FIELDS = {
    "admitted_ts": "admitted", "first_token_ts": "first", "finished_ts": "finished", "num_generated": "generated",
    "num_preemptions": "preemptions", "wasted_tokens": "wasted", "cached_tokens": "cached",
}  # fmt: skip
"""What a simulated request knows of itself, and its name here."""


def assert_same(submitted, seqs: list[Seq]) -> None:
    for request, seq in zip(submitted, seqs, strict=True):
        for ours, theirs in FIELDS.items():
            mine, real = getattr(request, ours), getattr(seq, theirs)
            same = mine is None if real is None else mine == pytest.approx(real, rel=1e-6)
            assert same, (ours, mine, real, seq)


@dataclass(frozen=True)
class Disturbances:
    """Instants at which an engine stops, (instant, index) of aborts, and (instant, index, tokens) of cuts."""

    stops: list[float]
    aborts: list[tuple[float, int]]
    cuts: list[tuple[float, int, int]]


@st.composite
def disturbances(draw, num_requests: int) -> Disturbances:
    """Draw what happens on the way; no request is both aborted and cut."""
    moments, indices = st.floats(0.0001, 2.0), st.integers(0, num_requests - 1)
    stops = draw(st.lists(st.floats(0.0, 3.0), max_size=8))
    aborts = draw(st.lists(st.tuples(moments, indices), max_size=8, unique_by=lambda abort: abort[1]))
    cuts = draw(st.lists(st.tuples(moments, indices, st.integers(0, 90)), max_size=8))
    aborted = {index for _, index in aborts}
    return Disturbances(stops, sorted(aborts), sorted(cut for cut in cuts if cut[1] not in aborted))


def disturb(engine, submitted, planned: Disturbances) -> list:
    """Run a session to its end through all that happens on the way; return the requests as they finish."""
    finished: list = []
    happenings = [(ts, "stop", 0, 0) for ts in planned.stops]
    happenings += [(ts, "abort", index, 0) for ts, index in planned.aborts]
    happenings += [(ts, "cut", index, tokens) for ts, index, tokens in planned.cuts]
    for ts, what, index, tokens in sorted(happenings):
        finished += engine.advance_to(ts)
        assert all(request.finished_ts <= ts for request in finished)
        request = submitted[index]
        goes_on = request not in finished
        if what == "abort":
            assert engine.abort(request, ts) == goes_on
            if goes_on:
                assert request.first_token_ts is None or request.first_token_ts <= request.finished_ts == ts
                assert request.num_generated < request.output_tokens, "one that goes on elsewhere has tokens to write"
        elif what == "cut":
            written = engine.num_generated(request)
            is_cut = engine.cut(request, tokens, ts)
            assert goes_on if is_cut else request.finished_ts is not None, "or its last token is under way"
            assert written <= request.output_tokens
    return finished + engine.advance_to(inf)
