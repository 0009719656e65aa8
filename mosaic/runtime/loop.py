"""The run: a backend sends events, controllers answer with commands. There is one run and one clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mosaic.core.commands import Action, Cancel, Close, Command, Cut, Move, Open, Prefill, Submit
from mosaic.core.events import Event, Finished, Lost, Prefilled, Started, cause_of
from mosaic.core.results import LostWorker, PrefillRecord, RunResult
from mosaic.core.view import View
from mosaic.core.workload import CallKey
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller
from mosaic.runtime.journal import Journal, resumptions_of

QUOTE = "quote: "
"""Stands before the causes of a quote's commands."""


def drive(
    backend: Backend,
    controllers: Sequence[Controller],
    *,
    num_workers: int,
    log: Journal | None = None,
    tick_s: float | None = None,
    then: Callable[[View], Sequence[Controller]] | None = None,
    is_quote: bool = False,
    keeps_actions: bool = True,
) -> RunResult:
    """Run to the end.

    Sessions that no controller closed are closed when no call is left and no controller wants more.

    Parameters
    ----------
    backend
        Who carries commands out.
    controllers
        Who gives them; the first gets an event first.
    num_workers
        Of the cluster.
    log
        Of commands, for runs that may be interrupted.
    tick_s
        Seconds between ticks, for controllers that want them.
    then
        Gives the controllers that take over when all sessions of the first ones are over; they get ``Started`` once
        more. None: the run ends there.
    is_quote
        Whether it stops where the batch of the same journal goes on. Commands of the batch are then left alone.
    keeps_actions
        Whether the result has the log of commands, which is as long as the records; with ``log`` it always has.

    Returns
    -------
    RunResult
        It lacks calls whose workers were lost, where no controller placed them anew.

    Raises
    ------
    BackendError
        If the backend cannot carry a command out.
    """
    run = _Run(
        backend=backend, controllers=controllers, num_workers=num_workers, log=log, then=then, is_quote=is_quote,
        keeps_actions=keeps_actions,
    )  # fmt: skip
    reacts = run.is_resumed or any(controller.reacts for controller in controllers)
    events = backend.events(reacts=reacts, tick_s=tick_s)
    try:
        for event in events:
            run.take(event)
    except BaseException as error:
        events.throw(error)  # it ends what it started, and says what is kept
        raise
    return run.result()


@dataclass(kw_only=True, eq=False)
class _Run:
    """A run under way: what is known of it, and what was done."""

    backend: Backend
    controllers: Sequence[Controller]
    num_workers: int
    log: Journal | None
    then: Callable[[View], Sequence[Controller]] | None
    is_quote: bool
    keeps_actions: bool

    def __post_init__(self) -> None:
        log = self.log
        self._view = View(self.num_workers)
        self._ended_before = frozenset[CallKey]() if log is None else log.state.done_keys
        actions = () if log is None else log.state.actions
        self._earlier, self._view.first_session = _split(actions, self.num_workers)
        self._resumes_ts = 0.0
        """Of the backend's ``Started``."""
        self._unreported: set[CallKey] = set()
        """Calls that ended before the run went on, were submitted again and are yet to be reported."""
        self._written = {action.command for action in self._earlier}
        self._actions: list[Action] = []
        self._lost: list[LostWorker] = []
        self._prefills: list[PrefillRecord] = []

    @property
    def is_resumed(self) -> bool:
        return bool(self._earlier)

    def take(self, event: Event) -> None:
        """Let every controller answer an event, and carry the answers out."""
        view = self._view
        self._answer(event)
        if view.running:
            return
        if self.then is not None and view.opened.keys() <= view.ended.keys():
            then, self.then = self.then, None
            self.controllers = then(view)
            self.take(Started(view.ts, resumes_ts=self._resumes_ts))
            return
        unclosed = [Close(n) for n in view.opened if n not in view.closing and n not in view.ended]
        self._give(unclosed, event)

    def _answer(self, event: Event) -> None:
        view = self._view
        view.observe(event)
        if isinstance(event, Finished):
            self._unreported.discard(event.record.key)
        elif isinstance(event, Started):
            self._resumes_ts = event.resumes_ts
        elif isinstance(event, Lost):
            self._lost.append(LostWorker(event.ts, event.worker, event.cause))
        elif isinstance(event, Prefilled):
            self._prefills.append(event.record)
        for controller in self.controllers:
            commands = controller.on(event, view)
            if commands:
                self._give(list(commands), event)
        if self._earlier and not self._unreported and self.then is None and not self.is_quote:
            self._fold_in()

    def result(self) -> RunResult:
        """Put the run together."""
        view = self._view
        sessions = view.closed_sessions()
        end_ts = max((record.end_ts for record in sessions), default=0.0)
        resumptions = () if self.log is None else resumptions_of(self.log.state.starts)
        return RunResult(
            calls=tuple(view.calls_by_session()),
            sessions=sessions,
            num_workers=view.num_workers,
            actions=tuple(self._actions),
            resumptions=tuple(one for one in resumptions if one.ts < end_ts),  # later ones found all done
            lost_workers=tuple(self._lost),
            prefills=tuple(self._prefills),
        )

    def _give(self, commands: Sequence[Command], event: Event | str) -> None:
        if not commands:
            return
        view = self._view
        ts, cause = view.ts, event if isinstance(event, str) else cause_of(event)
        if self.is_quote:
            cause = f"{QUOTE}{cause}"
        if self.keeps_actions or self.log is not None:
            given = [Action(ts, cause, command) for command in commands]
            self._actions += given
            if self.log is not None:
                self.log.write([action for action in given if action.command not in self._written])
        ended = self._ended_before if self._earlier else frozenset()
        for command in commands:
            view.expect(command)
            if isinstance(command, Submit) and command.call.key in ended:
                self._unreported.add(command.call.key)
        for command in commands:
            self.backend.apply(command)

    def _fold_in(self) -> None:
        """Give the commands of the interrupted run that no controller gave anew and that still apply.

        By now controllers have received again all that had ended. What they did at other moments (a timer, an idle
        worker) may not come again in the same way: it is done as it was. A quote's are not: it may have been of
        other questions or experts, and what the batch needs of it is given anew.
        """
        actions = [action for action in self._earlier if not _is_of_quote(action)]
        self._earlier = ()
        opened = [action.command.session for action in actions if isinstance(action.command, Open)]
        # numbers that a controller has given to other sessions than the last time
        others = {session.id for session in opened if self._view.opened.get(session.id, session) != session}
        for action in actions:
            if session_of(action.command) not in others and self._still_means_something(action.command):
                self._give([action.command], action.cause)

    def _still_means_something(self, command: Command) -> bool:
        view = self._view
        match command:
            case Open(session=session):
                return session.id not in view.opened and not view.lost.keys() & set(session.workers)
            case Submit(call=call, to=to):
                is_there = isinstance(to, str) or (to in view.opened and to not in view.closing)
                is_new = call.key not in view.calls
                # What it reads may be run again: who wants the call submits it when that has ended.
                return is_new and is_there and not any(key in view.running for key in call.after)
            case Cancel(key=key) | Cut(key=key):
                return key in view.running
            case Move(key=key, session=number):
                return key in view.running and number in view.opened and number not in view.closing
            case Close(session=number):
                # Where calls failed and are tried again, it was closed as none was left.
                is_needed = number in view.opened and view.held.get(view.opened[number].expert)
                return number in view.opened and number not in view.closing and not is_needed
            case Prefill():
                return False  # what it computed is gone with its engine


def _split(actions: Sequence[Action], num_workers: int) -> tuple[Sequence[Action], int]:
    """Split off the commands of a quote that was made on more workers; gives the others, and the first free number.

    Of what the quote did only the answers count: its sessions are not opened again, and their numbers stay theirs.
    """
    opened = [action.command.session for action in actions if _is_of_quote(action) and isinstance(action.command, Open)]
    if all(max(session.workers) < num_workers for session in opened):
        return actions, 0
    own = [action for action in actions if not _is_of_quote(action)]
    return own, 1 + max(session.id for session in opened)


def _is_of_quote(action: Action) -> bool:
    return action.cause.startswith(QUOTE)


def session_of(command: Command) -> int | None:
    """Give the session that a command names; None: it names none."""
    match command:
        case Open(session=session):
            return session.id
        case Submit(to=to):
            return to if isinstance(to, int) else None
        case Move(session=number) | Close(session=number) | Prefill(session=number):
            return number
    return None
