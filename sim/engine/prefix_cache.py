"""Simulates KV blocks that keep their content until they are used again, as in vLLM's V1."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeAlias

from mosaic.core.workload import Prefix
from sim.engine.kv_cache import NOTHING, Found, KvCache, SharedBlock
from sim.engine.request import Request

Owner: TypeAlias = Request | SharedBlock


class PrefixKvCache(KvCache):
    """Free blocks form a queue, and a prompt starts after those of its blocks that are still in the queue.

    NOTE: blocks are taken from the front of the queue. A sequence returns its full blocks to the end, the last one
    first. So the beginning of every sequence survives longest: one number per sequence, the length of its run, is
    enough. A block that is not full cannot be found again and goes to the front. So all blank blocks are before all
    runs, and their number is enough. Taking blocks only decrements ``num_free``. Which blocks were taken is determined
    when blocks are returned. Its effect on runs is determined when a request is looked up.
    """

    __slots__ = ("_blank", "_copies", "_held", "_num_seen", "_owed", "_runs")

    def __init__(self, *, kv_tokens: int, block_size: int, watermark_frac: float) -> None:
        super().__init__(kv_tokens=kv_tokens, block_size=block_size, watermark_frac=watermark_frac)
        self._blank = self.num_blocks
        self._num_seen = self.num_blocks
        """Free blocks whose contents are known."""
        self._owed = 0
        """Blocks that were taken from the runs but are still counted in them."""
        self._runs: OrderedDict[Owner, int] = OrderedDict()
        """Blocks in the queue after the blank ones, by the owner of their content."""
        self._copies: dict[Hashable, list[SharedBlock]] = {}
        """By name."""
        self._held: dict[Request, list[SharedBlock]] = {}

    def named_blocks(self, prefix: Prefix, prompt_tokens: int) -> Sequence[Hashable]:
        """Name a block by the prefix's block of its last token, and the token's position there.

        So blocks of the cache may be smaller or larger than those of the prefix.
        """
        blocks, block_tokens = prefix
        num_named = min(prompt_tokens, prefix.num_tokens) // self.block_size
        ends = range(self.block_size - 1, num_named * self.block_size, self.block_size)
        return tuple((blocks[end // block_tokens], end % block_tokens) for end in ends)

    def find(self, request: Request) -> Found:
        """Find the remaining blocks of a request; its last token is computed in any case."""
        self._catch_up()
        if self._owed:
            self._settle()
        shared: list[SharedBlock] = []
        if request.blocks:
            shared = self._shared(request)
            if len(shared) < len(request.blocks):
                return Found(shared, 0, len(shared) * self.block_size)
        num_own = self._runs.get(request, 0)
        return Found(shared, num_own, (len(shared) + num_own) * self.block_size)

    def try_admit(self, request: Request, found: Found, num_tokens: int, whole_tokens: int) -> bool:
        if found is NOTHING:
            return super().try_admit(request, found, num_tokens, whole_tokens)
        shared, num_own, _ = found
        num_in_use = sum(block.num_users > 0 for block in shared) if shared else 0
        most_tokens = whole_tokens if whole_tokens > num_tokens else num_tokens
        if self.num_free + -most_tokens // self.block_size + num_in_use < self.watermark_blocks:
            return False
        for block in shared:
            if not block.num_users:
                del self._runs[block]
            block.num_users += 1
        if num_own:
            del self._runs[request]
        num_found = len(shared) + num_own
        self._num_seen -= num_found - num_in_use
        self.num_free -= self.blocks(num_tokens) - num_in_use
        if request.blocks:
            self._held[request] = list(shared)
            self._name(request, num_tokens)
        return True

    def try_extend(self, request: Request, num_held: int, num_tokens: int) -> bool:
        is_there = super().try_extend(request, num_held, num_tokens)
        if is_there and request.blocks:
            self._name(request, num_held + num_tokens)
        return is_there

    def free(self, request: Request, num_tokens: int) -> None:
        self._catch_up()
        held = self._held.pop(request) if request.blocks else None
        num_own = num_tokens // self.block_size
        if num_own * self.block_size < num_tokens:
            self._blank += 1
            self.num_free += 1
        if held:
            num_own -= len(held)
        if num_own:
            self._runs[request] = num_own
        self.num_free += num_own
        if held:
            self._release(held)
        self._num_seen = self.num_free

    def _release(self, held: list[SharedBlock]) -> None:
        for block in reversed(held):
            block.num_users -= 1
            if not block.num_users:
                self._runs[block] = 1
                self.num_free += 1

    def unhold(self, num_blocks: int) -> None:
        self._catch_up()
        self.num_free += num_blocks
        self._num_seen = self.num_free
        self._blank += num_blocks

    def use_up(self) -> None:
        self._catch_up()
        self._owed += self.num_free - self._blank
        self._blank = self.num_free

    def _catch_up(self) -> None:
        """Remove the counted blocks from the front of the queue."""
        num_taken = self._num_seen - self.num_free
        self._num_seen = self.num_free
        if num_taken <= self._blank:
            self._blank -= num_taken
        else:
            self._owed += num_taken - self._blank
            self._blank = 0

    def _settle(self) -> None:
        """Remove the owed blocks from the runs, in order and each from its end."""
        runs, owed = self._runs, self._owed
        while owed:
            owner, length = runs.popitem(last=False)
            if length > owed:
                runs[owner] = length - owed
                runs.move_to_end(owner, last=False)
                break
            owed -= length
            if isinstance(owner, SharedBlock):
                copies = self._copies[owner.name]
                copies.remove(owner)
                if not copies:
                    del self._copies[owner.name]
        self._owed = 0

    def _shared(self, request: Request) -> list[SharedBlock]:
        """Find its named blocks that were computed before."""
        found = []
        for name in request.blocks[: (request.num_tokens - 1) // self.block_size]:
            copies = self._copies.get(name)
            if copies is None:
                break
            found.append(copies[0])
        return found

    def _name(self, request: Request, num_tokens: int) -> None:
        """Make its named blocks visible to others as soon as they are in a batch."""
        held = self._held[request]
        for name in request.blocks[len(held) : num_tokens // self.block_size]:
            block = SharedBlock(name)
            held.append(block)
            self._copies.setdefault(name, []).append(block)
