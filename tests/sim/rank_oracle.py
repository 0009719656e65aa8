"""The naive engine of data-parallel ranks: one iteration of all at a time."""

from dataclasses import dataclass, field

from tests.sim.oracle import Oracle


@dataclass
class RankOracle(Oracle):
    num_ranks: int = 2
    experts: tuple[int, int] = (8, 2)
    """In a layer, and of these what a token passes through."""
    experts_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """On one GPU with all of them: in all, for each that gets any, and for each token."""
    exchange_s: tuple[float, float] = (0.0, 0.0)
    """In all, and for each token of the rank that has most."""
    captured: int = 0
    """Largest batch of a CUDA graph, of which there is one for each size."""
    ranks: list[Oracle] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.time, self.settings, self.kv_tokens, self.context)
        self.ranks = [Oracle(*one, skew=self.skew, eager=self.eager, host=self.host) for _ in range(self.num_ranks)]

    def iterate(self, aborts) -> None:
        while self.waiting:
            fewest = min(len(rank.waiting) + len(rank.running) for rank in self.ranks)
            first = next(rank for rank in self.ranks if len(rank.waiting) + len(rank.running) == fewest)
            first.waiting.append(self.waiting.pop(0))
        for rank in self.ranks:
            rank.now = self.now
        works = [rank.compose() for rank in self.ranks]
        tokens = [sum(num_new for _, num_new in work) for work in works]
        self.now += max(rank.work_s(work) for rank, work in zip(self.ranks, works, strict=True) if work)
        self.now += self.common_s([max(1, num_tokens) for num_tokens in tokens])
        self.cut(lambda ts: ts < self.now)
        for rank, work in zip(self.ranks, works, strict=True):
            rank.now = self.now
            rank.end(work, aborts)
        self.collect()

    def common_s(self, tokens) -> float:
        if max(tokens) <= self.captured:
            tokens = [max(tokens)] * len(tokens)
        num_experts, num_active = self.experts
        reached = 0.0
        for _ in range(sum(tokens)):
            reached += (num_experts - reached) * num_active / num_experts
        fixed_s, expert_s, token_s = self.experts_s
        experts_s = fixed_s + (expert_s * reached + token_s * sum(tokens)) / self.num_ranks
        return experts_s + self.exchange_s[0] + self.exchange_s[1] * max(tokens)

    def collect(self) -> None:
        self.running = [seq for rank in self.ranks for seq in (*rank.waiting, *rank.running)]

    def abort(self, seq, ts, arriving) -> None:
        rank = next((rank for rank in self.ranks if seq in rank.waiting or seq in rank.running), None)
        if rank is None:
            super().abort(seq, ts, arriving)
        else:
            rank.abort(seq, ts, arriving)
            self.collect()
