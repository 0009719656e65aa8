"""Decides whether a call may be sent to a server that bills it: costs so far and possible costs stay below caps.

A request may read as many tokens as its prompt has bytes, and those that a chat template adds. It may write as many
tokens as it requests. Its reply has the actual counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.events import Stopped
from mosaic.core.spending import Cap, Cost, Payee, Prices, Spent, cost_by_expert, total_of
from mosaic.core.workload import CallKey, ExpertName
from mosaic.engines.calls import CallState, SessionState
from mosaic.engines.engine import Prompt, Request
from mosaic.engines.prompt_text import messages_of
from mosaic.runtime.journal import Journal, JournalState, SentCall

NOT_SENT = "not sent: "
"""Prefix of the error of a call that a cap kept from being sent."""
TEMPLATE_TOKENS = 16
"""Assumed: tokens that a chat template adds to a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """Prices of servers, and the most that may be spent."""

    prices: Prices = field(default_factory=dict)
    cap: Cap = field(default_factory=Cap)
    max_retries: int = 0
    """Of a request; a cap on requests may leave fewer."""

    def admit(self, request: Request, payee: Payee, state: JournalState) -> SentCall | str:
        """Return the journal's entry for a request before it is sent, or the cap that keeps it from being sent."""
        sent = SentCall(
            key=request.key,
            expert=payee.expert,
            server=payee.server,
            attempt=request.attempt,
            num_requests=1,
            prompt_tokens=most_prompt_tokens(request.prompt),
            output_tokens=request.max_output_tokens,
        )
        most = self.cap.max_requests
        if most is None and self.cap.max_dollars is None:
            return sent
        spent, dollars = committed(state, self.prices, without=request)
        refusal = self.cap.refusal(spent.num_requests, dollars, self._most_dollars(sent))
        if refusal is not None or most is None:
            return refusal or sent
        return msgspec.structs.replace(sent, num_requests=min(1 + self.max_retries, most - spent.num_requests))

    def limited(self, request: Request, sent: SentCall) -> Request:
        """Limit the tries of a request to those that a cap leaves."""
        return request if self.cap.max_requests is None else request._replace(max_requests=sent.num_requests)

    def _most_dollars(self, sent: SentCall) -> float:
        price = self.prices.get(sent.server)
        return 0.0 if price is None else price.dollars(sent.prompt_tokens, sent.output_tokens)

    def costs(self, spent: Mapping[Payee, Spent]) -> dict[ExpertName, Cost]:
        """Price what was spent, by expert."""
        return cost_by_expert(spent, self.prices)


@dataclass(eq=False)
class Admission:
    """Admits calls to their sessions, as long as caps leave room.

    Once a call is refused, no call of a later question is sent before it. Calls in progress may cost less than their
    maximum, and then the call is sent.
    """

    billing: Billing | None
    """None: nothing is billed, and every call is admitted."""
    journal: Journal
    """Of the run: costs so far, and possible costs."""
    find: Callable[[CallKey], CallState | None]
    """Finds a call that has not ended."""
    stopped: str | None = field(default=None, init=False)
    """The cap that is reached: nothing more is sent."""
    _refused: CallState | None = field(default=None, init=False)
    """The first call that waits for room."""
    _refusal: str | None = field(default=None, init=False)
    """The reason, if it was refused in this round."""

    def begin_round(self) -> None:
        """Begin to distribute calls."""
        self._refusal = None
        if self._refused is not None and self.find(self._refused.request.key) is not self._refused:
            self._refused = None  # it has ended in another way

    def admit(self, session: SessionState, call: CallState, request: Request) -> Request | None:
        """Record that a call is sent to a server that bills it; None: a cap keeps it from being sent."""
        if self.billing is None:
            return request
        if self.stopped is not None or (self._refused is not None and call.number > self._refused.number):
            return None
        payee = Payee(session.session.expert, session.session.workers[0])
        sent = self.billing.admit(request, payee, self.journal.state)
        if isinstance(sent, str):
            self._refused, self._refusal = call, sent
            return None
        if call is self._refused:
            self._refused = None
        self.journal.add(sent)
        return self.billing.limited(request, sent)

    def stop(self, ts: float, *, is_idle: bool) -> Stopped | None:
        """Report that a cap is reached now: a call was refused although nothing is in progress; None: no cap is."""
        if self.stopped is not None or self._refusal is None or not is_idle:
            return None
        self.stopped = self._refusal
        return Stopped(ts, self.stopped)


def committed(state: JournalState, prices: Prices, *, without: Request) -> tuple[Spent, float]:
    """Sum the costs so far, and the most that calls in progress may cost, except a call that is sent again."""
    parts = [*state.spent.items(), *state.reserved.items()]
    if (before := state.sent.get(without.key)) is not None:
        parts.append((before.payee, Spent().minus(before.most._replace(num_requests=0))))
    dollars = add_in_order(
        prices[payee.server].dollars(each.prompt_tokens, each.output_tokens)
        for payee, each in parts
        if payee.server in prices
    )
    return total_of(each for _, each in parts), dollars


def most_prompt_tokens(prompt: Prompt) -> int:
    """Bound the tokens of a prompt from above: every token has at least a byte.

    Examples
    --------
    >>> most_prompt_tokens("Is 7 prime?")
    27
    """
    if isinstance(prompt, tuple):
        return len(prompt)
    return sum(TEMPLATE_TOKENS + len(message["content"].encode("utf-8", "replace")) for message in messages_of(prompt))
