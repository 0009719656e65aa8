"""Holds back commands for calls whose inputs have not ended, so that backends get only what can be served."""

from collections.abc import Iterable, Iterator

from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Submit
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.view import View
from mosaic.core.workload import CallKey


class Dependencies:
    """Calls that wait for others of the run, with what was said of them meanwhile.

    A session is closed for a backend only when none of these calls is bound for it.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._held: dict[CallKey, Submit] = {}
        self._cuts: dict[CallKey, Cut] = {}
        self._closing: set[int] = set()

    def admit(self, command: Command) -> Iterator[Command]:
        """Give what can be carried out now."""
        match command:
            case Submit(call=call) if self._is_early(command):
                self._held[call.key] = command
            case Move(key=key, session=number) if key in self._held:
                self._held[key] = Submit(self._held[key].call, number)
            case Cut(key=key) if key in self._held:
                self._cuts[key] = min(command, self._cuts.get(key, command), key=lambda cut: cut.tokens)
            case Close(session=number) if self._is_bound_for(number):
                self._closing.add(number)
            case _:
                yield command

    def cancel(self, command: Command, ts: float) -> CallRecord | None:
        """Take back a call that no backend has yet; None: there is none."""
        held = self._held.pop(command.key, None) if isinstance(command, Cancel) else None
        if held is None:
            return None
        session = self._view.opened.get(held.to) if isinstance(held.to, int) else None
        return CallRecord(
            key=held.call.key,
            expert=held.call.expert,
            session=-1 if session is None else session.id,
            workers=() if session is None else session.workers,
            prompt_tokens=held.call.prompt_tokens,
            output_tokens=0,
            queued_ts=ts,
            admitted_ts=None,
            first_token_ts=None,
            finished_ts=ts,
            status=CallStatus.CANCELLED,
        )

    def release(self) -> Iterable[Command]:
        """Give what can be carried out after a call has ended."""
        return self._released() if self._held or self._closing else ()

    def _released(self) -> Iterator[Command]:
        for key, submit in list(self._held.items()):
            if self._is_early(submit):
                continue
            del self._held[key]
            yield submit
            if key in self._cuts:
                yield self._cuts.pop(key)
        for number in sorted(self._closing):
            if not self._is_bound_for(number):
                self._closing.remove(number)
                yield Close(number)

    def _is_early(self, submit: Submit) -> bool:
        return any(key in self._view.running for key in submit.call.after)

    def _is_bound_for(self, number: int) -> bool:
        return any(submit.to == number for submit in self._held.values())
