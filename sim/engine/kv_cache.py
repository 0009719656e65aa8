"""The KV blocks of one session, and how fast its decoding sequences use them up."""

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
    """What a cache holds of a request that is to be admitted."""

    shared: Sequence[SharedBlock]
    """Blocks with names."""
    num_own: int
    """Blocks behind those that are left from before its preemption."""
    num_tokens: int


NOTHING = Found((), 0, 0)


class KvCache:
    """Counts the free blocks of one engine.

    A prompt takes its blocks on admission; from then on the sequence *grows* by one token per
    decode step until it leaves and gives its blocks back.

    NOTE: all sequences grow in lockstep, so none is visited to know when blocks run out. With c the
    number of decode steps so far, a sequence's phase (c - its tokens) mod block_size stays what it is
    while it decodes, and the step after c needs one block for every sequence of phase c mod block_size.
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
        # Twice over, so that a window that wraps around is one slice.
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

        Here none, as blocks are blank once they are free.
        """
        return ()

    def find(self, request: Request) -> Found:
        """Look for what the cache holds of a request that has named blocks or was preempted.

        Here nothing, as blocks are blank once they are free.
        """
        return NOTHING

    def would_fit(self, num_tokens: int, num_blocks: int) -> bool:
        """Return whether tokens of one request alone fit below the watermark beside blocks that others take."""
        return self.num_free - num_blocks + -num_tokens // self.block_size >= self.watermark_blocks

    def try_admit(self, request: Request, found: Found, num_tokens: int, whole_tokens: int) -> bool:
        """Take the blocks of a prompt's first tokens if the watermark stays free, else take nothing.

        Parameters
        ----------
        request, found
            Whose they are, and what ``find`` has just found of it.
        num_tokens
            How many there are after its first iteration.
        whole_tokens
            Where there are more of them, blocks for so many must be free.
        """
        most_tokens = whole_tokens if whole_tokens > num_tokens else num_tokens
        if self.num_free + -most_tokens // self.block_size < self.watermark_blocks:
            return False
        self.num_free += -num_tokens // self.block_size
        return True

    def try_extend(self, request: Request, num_held: int, num_tokens: int) -> bool:
        """Take the blocks of the next chunk of an admitted prompt if there are any left."""
        num_free = self.num_free - self.blocks(num_held + num_tokens) + self.blocks(num_held)
        if num_free < 0:
            return False
        self.num_free = num_free
        return True

    def free(self, request: Request, num_tokens: int) -> None:
        """Give back the blocks of a sequence of this many tokens."""
        self.num_free -= -num_tokens // self.block_size

    def hold(self, num_blocks: int) -> None:
        """Take blocks for a step that is sure to come."""
        self.num_free -= num_blocks

    def unhold(self, num_blocks: int) -> None:
        """Give them back to be taken as part of more steps than one."""
        self.num_free += num_blocks

    def use_up(self) -> None:
        """Know that all free blocks were handed out before a preemption gave some back."""

    def join(self, phase: int) -> None:
        """Let a sequence grow with the others."""
        phases, block_size = self._phases, self.block_size
        phase %= block_size
        phases[phase] += 1
        phases[phase + block_size] += 1
        self.num_growing += 1

    def leave(self, request: Request, phase: int, num_tokens: int) -> None:
        """Stop a sequence's growth and give its blocks back."""
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
        """Count the decode steps after ``counter``, at most ``limit``, for which the free blocks last."""
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
