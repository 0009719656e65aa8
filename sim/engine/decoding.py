"""Keeps the requests that decode together, in few enough numbers to take many steps at once."""

from bisect import bisect_left, insort
from heapq import heappop, heappush

from sim.engine.kv_cache import KvCache
from sim.engine.request import Request

# A heap entry is finish_step * TICKETS + ticket: integers compare faster than tuples.
TICKETS = 1 << 40


class DecodingSet:
    """Requests in order of admission, each of which gains one token per step until it ends.

    A request joins after its prefill. It leaves after its last token, when it is preempted or when it is dropped. No
    request is visited per step. A request is represented by its finish step in a heap, and its phase in the cache's
    histogram. Its tokens are part of the running sum of KV tokens.
    """

    __slots__ = ("_by_ticket", "_finish_heap", "_num_tickets", "_starts", "counter", "keeps_lengths", "kv", "kv_tokens")

    def __init__(self, kv: KvCache, *, keeps_lengths: bool = False) -> None:
        self.kv = kv
        self.keeps_lengths = keeps_lengths
        self.counter = 0
        """Steps so far."""
        self.kv_tokens = 0
        """Tokens of all requests in the cache."""
        self._by_ticket: dict[int, Request] = {}
        self._finish_heap: list[int] = []
        self._num_tickets = 0
        self._starts: list[int] = []
        """Lengths at step 0, in rising order, if they are kept."""

    def __contains__(self, request: Request) -> bool:
        return request.ticket in self._by_ticket

    def join(self, request: Request, num_tokens: int) -> None:
        """Add a request that has ``num_tokens`` in the cache and has generated one more."""
        counter = self.counter
        ticket = request.ticket = self._num_tickets
        self._num_tickets = ticket + 1
        finish_step = request.finish_step = counter + request.output_tokens - request.num_generated
        self._by_ticket[ticket] = request
        heappush(self._finish_heap, finish_step * TICKETS + ticket)
        self.kv.join(counter - num_tokens)
        self.kv_tokens += num_tokens
        if self.keeps_lengths:
            insort(self._starts, num_tokens - counter)

    def longest(self) -> int:
        """Tokens that the next step reads of the longest sequence; 0 without any, or if lengths are not kept."""
        return self._starts[-1] + self.counter + 1 if self._starts else 0

    def steps_to_finish(self) -> int:
        """Count the steps to the next finish."""
        heap = self._finish_heap
        while heap[0] % TICKETS not in self._by_ticket:
            heappop(heap)
        return heap[0] // TICKETS - self.counter

    def step(self, num_steps: int) -> list[Request]:
        """Let every request gain that many tokens, whose blocks were taken; remove requests after their last token."""
        counter = self.counter = self.counter + num_steps
        self.kv_tokens += num_steps * self.kv.num_growing
        finished = []
        heap, by_ticket = self._finish_heap, self._by_ticket
        end = (counter + 1) * TICKETS
        while heap and heap[0] < end:
            request = by_ticket.pop(heappop(heap) % TICKETS, None)
            if request is not None:
                self._leave(request, request.output_tokens)
                finished.append(request)
        return finished

    def num_generated(self, request: Request) -> int:
        """Count the tokens that a request has written, decoding or not."""
        if request.ticket in self._by_ticket:
            return request.output_tokens - (request.finish_step - self.counter)
        return request.num_generated

    def cut(self, request: Request, output_tokens: int) -> None:
        """Lower the output of a request; the later one of its two entries in the heap is ignored."""
        earlier = request.output_tokens - output_tokens
        request.output_tokens = output_tokens
        if request.ticket in self._by_ticket:
            request.finish_step -= earlier
            heappush(self._finish_heap, request.finish_step * TICKETS + request.ticket)

    def pop_last(self) -> Request:
        """Preempt the last admitted request."""
        _, request = self._by_ticket.popitem()
        self._waste(request)
        return request

    def drop(self, request: Request) -> None:
        """Remove an aborted request."""
        del self._by_ticket[request.ticket]
        self._waste(request)

    def _waste(self, request: Request) -> None:
        self._leave(request, request.output_tokens - (request.finish_step - self.counter))
        request.wasted_tokens += request.num_tokens - 1

    def _leave(self, request: Request, num_generated: int) -> None:
        request.num_generated = num_generated
        request.ticket = -1
        num_tokens = request.prompt_tokens + num_generated - 1
        self.kv.leave(request, self.counter - num_tokens, num_tokens)
        self.kv_tokens -= num_tokens
        if self.keeps_lengths:
            del self._starts[bisect_left(self._starts, num_tokens - self.counter)]
