"""KV blocks that keep what they hold until they are used again, as in vLLM's V1."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeAlias

from sim.engine.kv_cache import KvCache
from sim.engine.request import Request


class SharedBlock:
    """A full block of a named prefix; several requests may hold it, and it may exist more than once."""

    __slots__ = ("index", "num_users", "prefix")

    def __init__(self, prefix: Hashable, index: int) -> None:
        self.prefix = prefix
        self.index = index
        """Place in the prefix."""
        self.num_users = 1


Owner: TypeAlias = Request | SharedBlock


class PrefixKvCache(KvCache):
    """Free blocks stand in a queue, and a prompt starts behind those of its blocks that are still in it.

    NOTE: blocks are taken from the front of the queue. A sequence gives its full blocks back tail first and to the
    end, so of every sequence what survives is a beginning: one number, the length of its run. A block that is not full
    holds nothing that could be found and goes to the front, so all blank blocks are in front of all runs, and their
    number is enough.
    """

    __slots__ = ("_blank", "_copies", "_held", "_runs")

    def __init__(self, *, kv_tokens: int, block_size: int, watermark_frac: float) -> None:
        super().__init__(kv_tokens=kv_tokens, block_size=block_size, watermark_frac=watermark_frac)
        self._blank = self.num_blocks
        self._runs: OrderedDict[Owner, int] = OrderedDict()
        """Blocks in the queue behind the blank ones, by whose content they hold."""
        self._copies: dict[tuple[Hashable, int], list[SharedBlock]] = {}
        self._held: dict[Request, list[SharedBlock]] = {}

    def find(self, request: Request) -> int:
        """Count the tokens of a request that the cache holds already; the last one is computed in any case."""
        found = self._shared(request)
        return (len(found) + self._num_own(request, found)) * self.block_size

    def try_admit(self, request: Request, num_tokens: int, whole_tokens: int = 0) -> bool:
        found = self._shared(request)
        num_own = self._num_own(request, found)
        num_unused = num_own + sum(not block.num_users for block in found)
        num_in_use = len(found) + num_own - num_unused
        if self.num_free - self.blocks(max(num_tokens, whole_tokens)) + num_in_use < self.watermark_blocks:
            return False
        for block in found:
            if not block.num_users:
                del self._runs[block]
            block.num_users += 1
        if num_own:
            del self._runs[request]
        self.num_free -= num_unused
        if request.prefix_tokens:
            self._held[request] = found
        self.hold(self.blocks(num_tokens) - len(found) - num_own)
        self._name(request, num_tokens)
        return True

    def try_extend(self, request: Request, num_held: int, num_tokens: int) -> bool:
        num_blocks = self.blocks(num_held + num_tokens) - self.blocks(num_held)
        if num_blocks > self.num_free:
            return False
        self.hold(num_blocks)
        self._name(request, num_held + num_tokens)
        return True

    def free(self, request: Request, num_tokens: int) -> None:
        held = self._held.pop(request, None) or []
        num_full, in_part = divmod(num_tokens, self.block_size)
        num_own = num_full - len(held)
        self._blank += in_part > 0
        if num_own:
            self._runs[request] = num_own
        self.num_free += num_own + (in_part > 0)
        for block in reversed(held):
            block.num_users -= 1
            if not block.num_users:
                self._runs[block] = 1
                self.num_free += 1

    def hold(self, num_blocks: int) -> None:
        self.num_free -= num_blocks
        self._take(num_blocks)

    def unhold(self, num_blocks: int) -> None:
        self.num_free += num_blocks
        self._blank += num_blocks

    def use_up(self) -> None:
        self._take(self.num_free)
        self._blank = self.num_free

    def grow(self, counter: int, num_steps: int) -> None:
        num_free = self.num_free
        super().grow(counter, num_steps)
        self._take(num_free - self.num_free)

    def _take(self, num_blocks: int) -> None:
        """Use blocks from the front of the queue: the runs in order, each from its end."""
        self._blank -= num_blocks
        while self._blank < 0:
            owner, length = self._runs.popitem(last=False)
            self._blank += length
            if isinstance(owner, SharedBlock):
                place = (owner.prefix, owner.index)
                self._copies[place].remove(owner)
                if not self._copies[place]:
                    del self._copies[place]
            elif self._blank > 0:
                self._runs[owner] = self._blank
                self._runs.move_to_end(owner, last=False)
                self._blank = 0

    def _num_shareable(self, request: Request) -> int:
        return request.prefix_tokens // self.block_size

    def _shared(self, request: Request) -> list[SharedBlock]:
        """Find the blocks of its prefix that somebody has computed."""
        if not request.prefix_tokens:
            return []
        last = min(self._num_shareable(request), (request.num_tokens - 1) // self.block_size)
        found = []
        for index in range(last):
            copies = self._copies.get((request.prefix, index))
            if copies is None:
                break
            found.append(copies[0])
        return found

    def _num_own(self, request: Request, found: list[SharedBlock]) -> int:
        """Count the blocks behind the prefix that are left from before its preemption."""
        return self._runs.get(request, 0) if len(found) == self._num_shareable(request) else 0

    def _name(self, request: Request, num_tokens: int) -> None:
        """Let others find the blocks of a prefix as soon as they are in a batch."""
        if not request.prefix_tokens:
            return
        held = self._held[request]
        for index in range(len(held), min(self._num_shareable(request), num_tokens // self.block_size)):
            block = SharedBlock(request.prefix, index)
            held.append(block)
            self._copies.setdefault((request.prefix, index), []).append(block)
