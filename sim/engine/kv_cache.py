"""Counts the KV blocks of one session, and the blocks that its decoding sequences need."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.workload import Prefix
from sim.engine.request import Request


class SharedBlock:
    """A full block with a name; several requests may hold it, and it may exist more than once."""

    __slots__ = ("name", "num_users")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.num_users = 1


class Found(NamedTuple):
    """The part of a request that the cache holds at its admission."""

    shared: Sequence[SharedBlock]
    """Blocks with names."""
    num_own: int
    """Further blocks that are left from before its preemption."""
    num_tokens: int


NOTHING = Found((), 0, 0)


class KvCache:
    """Counts the free blocks of one engine.

    A prompt takes its blocks on admission. From then on the sequence *grows* by one token per decode step, until it
    leaves and returns its blocks.

    NOTE: all sequences grow in lockstep, so the step at which blocks run out is found without visiting sequences. Let c
    be the number of decode steps so far. Then a sequence's phase (c - its tokens) mod block_size is constant while it
    decodes. The step after c needs one block for every sequence of phase c mod block_size.
    """

    __slots__ = ("_phases", "block_size", "num_blocks", "num_free", "num_growing", "watermark_blocks")

    def __init__(self, *, kv_tokens: int, block_size: int, watermark_frac: float) -> None:
        self.block_size = block_size
        self.num_blocks = kv_tokens // block_size
        require(
            self.num_blocks >= 1, "backend.kv_cache_tokens", f"at least one block of {block_size} tokens", kv_tokens
        )
        self.watermark_blocks = int(watermark_frac * self.num_blocks)
        self.num_free = self.num_blocks
        self.num_growing = 0
        # Stored twice, so that a window that wraps around is one slice.
        self._phases = [0] * (2 * block_size)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one sequence that an empty cache admits."""
        return (self.num_blocks - self.watermark_blocks) * self.block_size

    def blocks(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def named_blocks(self, prefix: Prefix, prompt_tokens: int) -> Sequence[Hashable]:
        """Name the full blocks of a prompt that others may share.

        Here none, since free blocks are blank.
        """
        return ()

    def find(self, request: Request) -> Found:
        """Find the blocks that the cache holds of a request that has named blocks or was preempted.

        Here none, since free blocks are blank.
        """
        return NOTHING

    def would_fit(self, num_tokens: int, num_blocks: int) -> bool:
        """Return whether tokens of one request fit below the watermark beside blocks that others take."""
        return self.num_free - num_blocks + -num_tokens // self.block_size >= self.watermark_blocks

    def try_admit(self, request: Request, found: Found, num_tokens: int, whole_tokens: int) -> bool:
        """Take the blocks of a prompt's first tokens if the watermark stays free; otherwise take none.

        Parameters
        ----------
        request, found
            The request, and the result of ``find`` for it.
        num_tokens
            Its tokens after its first iteration.
        whole_tokens
            If this is larger, blocks for so many tokens must be free.
        """
        most_tokens = whole_tokens if whole_tokens > num_tokens else num_tokens
        if self.num_free + -most_tokens // self.block_size < self.watermark_blocks:
            return False
        self.num_free += -num_tokens // self.block_size
        return True

    def try_extend(self, request: Request, num_held: int, num_tokens: int) -> bool:
        """Take the blocks of the next chunk of an admitted prompt if enough are left."""
        num_free = self.num_free - self.blocks(num_held + num_tokens) + self.blocks(num_held)
        if num_free < 0:
            return False
        self.num_free = num_free
        return True

    def free(self, request: Request, num_tokens: int) -> None:
        """Return the blocks of a sequence of this many tokens."""
        self.num_free -= -num_tokens // self.block_size

    def hold(self, num_blocks: int) -> None:
        """Reserve blocks for a step that is certain."""
        self.num_free -= num_blocks

    def unhold(self, num_blocks: int) -> None:
        """Release reserved blocks, which are taken again as part of several steps."""
        self.num_free += num_blocks

    def use_up(self) -> None:
        """Record that all free blocks were in use before a preemption returned some."""

    def join(self, phase: int) -> None:
        """Let a sequence grow with the others."""
        phases, block_size = self._phases, self.block_size
        phase %= block_size
        phases[phase] += 1
        phases[phase + block_size] += 1
        self.num_growing += 1

    def leave(self, request: Request, phase: int, num_tokens: int) -> None:
        """Stop a sequence's growth and return its blocks."""
        phases, block_size = self._phases, self.block_size
        phase %= block_size
        phases[phase] -= 1
        phases[phase + block_size] -= 1
        self.num_growing -= 1
        self.free(request, num_tokens)

    def next_step_blocks(self, counter: int) -> int:
        """Blocks that the decode step after ``counter`` needs."""
        return self._phases[counter % self.block_size]

    def steps_that_fit(self, counter: int, limit: int) -> int:
        """Count the decode steps after ``counter``, at most ``limit``, for which the free blocks suffice."""
        block_size, num_free = self.block_size, self.num_free
        if self.num_growing * (limit // block_size + 1) <= num_free:
            return limit
        cycles, spare = divmod(num_free, self.num_growing)
        steps = cycles * block_size
        first = counter % block_size
        for needed in self._phases[first : first + block_size]:
            if needed > spare:
                break
            spare -= needed
            steps += 1
        return min(steps, limit)

    def grow(self, counter: int, num_steps: int) -> None:
        """Take the blocks of the decode steps after ``counter``."""
        block_size = self.block_size
        cycles, rest = divmod(num_steps, block_size)
        first = counter % block_size
        self.num_free -= cycles * self.num_growing + sum(self._phases[first : first + rest])
