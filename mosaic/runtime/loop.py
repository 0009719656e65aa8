"""Executes a run: a backend sends events, controllers reply with commands. There is one run and one clock."""

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
"""Prefix of the causes of a quote's commands."""


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

    Sessions that no controller closed are closed when no call is left and no controller sends more.

    Parameters
    ----------
    backend
        Executes the commands.
    controllers
        Send the commands; the first one gets an event first.
    num_workers
        Number of workers of the cluster.
    log
        Of commands, for runs that may be interrupted.
    tick_s
        Seconds between ticks, for controllers that need them.
    then
        Returns the controllers that take over when all sessions of the first ones have ended; they get ``Started`` once
        more. None: the run ends there.
    is_quote
        Whether the run stops before the batch, which continues in the same journal. Commands of the batch are then
        ignored.
    keeps_actions
        Whether the result has the log of commands, which is as long as the records. With ``log`` it always has.

    Returns
    -------
    RunResult
        It lacks calls whose workers were lost, if no controller submitted them again.

    Raises
    ------
    BackendError
        If the backend cannot execute a command.
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
        events.throw(error)  # the backend stops what it started, and reports what is kept
        raise
    return run.result()


@dataclass(kw_only=True, eq=False)
class _Run:
    """A run in progress: its state, and its commands."""

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
        """From the backend's ``Started``."""
        self._unreported: set[CallKey] = set()
        """Calls that ended before the resumption, were submitted again and are not yet reported."""
        self._written = {action.command for action in self._earlier}
        self._actions: list[Action] = []
        self._lost: list[LostWorker] = []
        self._prefills: list[PrefillRecord] = []

    @property
    def is_resumed(self) -> bool:
        return bool(self._earlier)

    def take(self, event: Event) -> None:
        """Pass an event to every controller, and execute the replies."""
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
        """Assemble the result of the run."""
        view = self._view
        sessions = view.closed_sessions()
        end_ts = max((record.end_ts for record in sessions), default=0.0)
        resumptions = () if self.log is None else resumptions_of(self.log.state.starts)
        return RunResult(
            calls=tuple(view.calls_by_session()),
            sessions=sessions,
            num_workers=view.num_workers,
            actions=tuple(self._actions),
            resumptions=tuple(one for one in resumptions if one.ts < end_ts),  # later ones had nothing left to do
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
        """Repeat the commands of the interrupted run that no controller has sent again and that still apply.

        By now controllers have received again all that had ended. Commands at other moments (a timer, an idle worker)
        may not be sent in the same way again: they are repeated as they were. A quote's commands are not repeated. The
        quote may have been for other questions or experts, and the batch sends again what it needs.
        """
        actions = [action for action in self._earlier if not _is_of_quote(action)]
        self._earlier = ()
        opened = [action.command.session for action in actions if isinstance(action.command, Open)]
        # numbers that a controller has given to other sessions than in the earlier start
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
                # Its inputs may be run again: its sender submits it when they have ended.
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
                return False  # its result was lost with its engine


def _split(actions: Sequence[Action], num_workers: int) -> tuple[Sequence[Action], int]:
    """Split off the commands of a quote that was made on more workers; returns the others, and the first free number.

    Only the answers of such a quote count: its sessions are not opened again, and their numbers stay reserved.
    """
    opened = [action.command.session for action in actions if _is_of_quote(action) and isinstance(action.command, Open)]
    if all(max(session.workers) < num_workers for session in opened):
        return actions, 0
    own = [action for action in actions if not _is_of_quote(action)]
    return own, 1 + max(session.id for session in opened)


def _is_of_quote(action: Action) -> bool:
    return action.cause.startswith(QUOTE)


def session_of(command: Command) -> int | None:
    """Return the session that a command names; None: it names none."""
    match command:
        case Open(session=session):
            return session.id
        case Submit(to=to):
            return to if isinstance(to, int) else None
        case Move(session=number) | Close(session=number) | Prefill(session=number):
            return number
    return None
