"""Simulates beginnings of prompts that engines prefill ahead of their calls, by the blocks of their prefix caches."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from mosaic.core.commands import Prefill
from mosaic.core.errors import BackendError
from mosaic.core.results import PrefillRecord
from mosaic.core.workload import Call, CallKey, ExpertName, Prefix
from sim.cluster.session import PREFILL, PendingCall, SimSession
from sim.engine.request import Request

PromptName: TypeAlias = tuple[str, str]
"""Question and node: all slots of a node read the same."""


class _Under(NamedTuple):
    """A running prefill."""

    call: Call
    live: SimSession


class Prefills:
    """Tracks the prefills ahead of calls in all sessions, and the prompts that begin with them.

    Parameters
    ----------
    touch
        Called with sessions whose engines got a command.
    emit
        Receives the record of each prefill.
    """

    def __init__(
        self,
        touch: Callable[[SimSession], None],
        emit: Callable[[PrefillRecord], None],
    ) -> None:
        self._touch = touch
        self._emit = emit
        self._under_way: dict[Request, _Under] = {}
        self._last: dict[CallKey, Request] = {}
        """By call, the last queued prefill."""
        self._begun: dict[tuple[PromptName, ExpertName], tuple[tuple[CallKey, ...], Prefix]] = {}
        """Inputs of the longest known beginning of a prompt, and that beginning."""

    def close(self) -> None:
        """Drop the callbacks: without this cycle a backend that has ended is freed at once."""
        del self._touch, self._emit

    def start(self, command: Prefill, live: SimSession, now: float) -> None:
        """Queue a prefill, replacing an earlier one of the call, if the session is up and takes calls.

        Raises
        ------
        BackendError
            If it can never fit into the engine.
        """
        call = command.call
        self.stop(call.key, now)
        engine = None if live.is_closing else live.engine
        if engine is None:
            return
        tokens, name = call.prompt_tokens, prompt_name(call)
        beginning = Prefix((name,), tokens)
        try:
            request = engine.submit(PREFILL, tokens, 1, now, prefix=beginning)
        except ValueError as error:
            raise BackendError(f"session {live.session.id}, prefill of call {call.key}: {error}") from error
        self._begun[name, call.expert] = call.after[: command.num_read], beginning
        self._last[call.key] = request
        self._under_way[request] = _Under(call, live)
        live.on_prefilled = self._finish
        self._touch(live)

    def stop(self, key: CallKey, now: float) -> None:
        """Drop the prefill of a call if one is running."""
        request = self._last.pop(key, None)
        under = None if request is None else self._under_way.get(request)
        if request is None or under is None or under.live.engine is None:
            return
        if under.live.engine.abort(request, now):  # otherwise it has just finished
            self._end(request, request.wasted_tokens, now)
            self._touch(under.live)

    def stop_all(self, live: SimSession, now: float) -> None:
        """Drop all prefills of a session."""
        for key in [under.call.key for under in self._under_way.values() if under.live is live]:
            self.stop(key, now)

    def name_prefix(self, pending: PendingCall) -> None:
        """Make a call's prompt begin with the prefilled tokens, if it reads the same inputs."""
        call, name = pending.call, prompt_name(pending.call)
        read, beginning = self._begun.get((name, call.expert), ((), None))
        if beginning and call.after[: len(read)] == read:
            pending.prefix = beginning

    def _finish(self, request: Request) -> None:
        self._end(request, request.prompt_tokens, request.finished_ts or 0.0)

    def _end(self, request: Request, num_held: int, ts: float) -> None:
        """Emit the record of an ended prefill, with its tokens that the engine held at the end."""
        call, live = self._under_way.pop(request)
        self._emit(
            PrefillRecord(
                key=call.key,
                expert=call.expert,
                session=live.session.id,
                prompt_tokens=call.prompt_tokens,
                cached_tokens=request.cached_tokens,
                computed_tokens=max(0, num_held - request.cached_tokens),
                queued_ts=request.queued_ts,
                finished_ts=ts,
            )
        )


def prompt_name(call: Call) -> PromptName:
    """Name the prompt of a call."""
    return call.key.question, call.key.node
