"""The naive engine with a sparse KV cache: every unit of every sequence counted, every sequence read by itself."""

from dataclasses import dataclass, field

from mosaic.core.workload import SparseKv
from tests.sim.oracle import Block, Oracle


@dataclass
class SparseOracle(Oracle):
    kv: SparseKv = field(default_factory=SparseKv)
    num_heads: int = 4
    kv_bytes: int = 1000
    link_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        num_units = self.kv_tokens // 16 * 16 * self.num_heads
        self.watermark = int(self.watermark_frac * num_units)
        self.free = [Block() for _ in range(num_units)]

    def blocks_for(self, num_tokens: int, *, decoding: bool = False) -> int:
        """A unit is a token in a head, and each head has one more for the summary of a page."""
        num_unstable = round(self.kv.unstable_frac * self.num_heads)
        units = 0
        for page in range((num_tokens + 15) // 16):
            kept = not decoding or page < self.dense_pages
            units += self.num_heads + 16 * (self.num_heads if kept else num_unstable)
        return units

    @property
    def dense_pages(self) -> int:
        return self.kv.budget_pages + (self.kv.rerank_every + 15) // 16

    def name(self, seq, num_tokens: int) -> None:
        pass

    def is_long(self, seq) -> bool:
        return seq.computed >= 16 * self.dense_pages

    def compute(self, work, aborts) -> None:
        read = [seq for seq, _ in work if not seq.decoding]
        super().compute(work, aborts)
        for seq in read:
            if seq.decoding and seq in self.running:
                held = self.blocks_for(seq.computed, decoding=True)
                self.free += seq.blocks[held:]
                del seq.blocks[held:]

    def read_tokens(self, seq) -> float:
        """A head reads its pages, and those since the last ranking; who ranks reads the summaries of all pages."""
        length = seq.computed + 1
        if not self.is_long(seq):
            return length
        stable_frac = 1 - self.kv.unstable_frac
        ranks = self.kv.unstable_frac + stable_frac / self.kv.rerank_every
        return 16 * self.kv.budget_pages + stable_frac * self.kv.rerank_every / 2 + ranks * length / 16

    def seconds(self, decodes, chunks) -> float:
        every, num_long = self.kv.rerank_every, sum(self.is_long(seq) for seq in decodes)
        long_reads = sum(self.read_tokens(seq) for seq in decodes if self.is_long(seq))
        short_reads = sum(self.read_tokens(seq) for seq in decodes if not self.is_long(seq))
        stable_s = (1 - self.kv.unstable_frac) * self.kv_bytes * self.link_s
        link_s = num_long / every * self.kv.promoted * 16 * self.kv.budget_pages * stable_s
        num_seqs, reads = len(decodes), long_reads + short_reads
        pauses_s = num_long / num_seqs / every * self.time.decode_span_s(1, 1, 1) if num_long else 0.0
        if chunks:
            gpu_s = self.time.mixed_s(chunks, num_seqs, reads) + pauses_s
            return max(gpu_s, link_s, sum(tokens for tokens, _ in chunks) * stable_s)
        return max(self.time.decode_span_s(num_seqs, reads, 1) + pauses_s, link_s, num_long * stable_s)
