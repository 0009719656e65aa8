"""Runs a fixed plan as a controller: it opens the plan's sessions and submits their calls, and reacts to no event."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mosaic.core.commands import Close, Command, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Event, Started
from mosaic.core.plan import Plan, Session
from mosaic.core.results import RunResult
from mosaic.core.view import View
from mosaic.core.workload import Call
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller
from mosaic.runtime.loop import drive


def plan_commands(
    plan: Plan, calls: Iterable[Call], first_session: int = 0, *, closes: bool = True
) -> Iterator[Command]:
    """Open each session of a plan, submit its calls and close it; session numbers are offset by ``first_session``.

    Parameters
    ----------
    plan, calls
        What to run; another plan may have served some of the plan's calls.
    first_session
        Number of the plan's session 0 in the run.
    closes
        Whether sessions are closed at once; otherwise another controller closes them later.

    Raises
    ------
    BackendError
        If the plan names an unknown call.
    """
    named = {call.key: call for call in calls}
    for session in plan.sessions:
        number = session.id + first_session
        yield Open(opened(session, first_session))
        for key in session.shard:
            if key not in named:
                raise BackendError(f"plan session {session.id}: call {key} is not one of the calls")
            yield Submit(named[key], number)
        if closes:
            yield Close(number)


def opened(session: Session, first_session: int) -> Session:
    """Give a plan's session its number in the run; it gets its calls by commands."""
    return replace(
        session,
        id=session.id + first_session,
        shard=(),
        after=tuple(needed + first_session for needed in session.after),
    )


class StaticPlan:
    """Runs a plan from the start."""

    reacts = False

    def __init__(self, plan: Plan, calls: Sequence[Call]) -> None:
        self._plan = plan
        self._calls = calls

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Send all commands at the start."""
        return plan_commands(self._plan, self._calls) if isinstance(event, Started) else ()


def execute(plan: Plan, calls: Sequence[Call], backend: Backend, controllers: Sequence[Controller] = ()) -> RunResult:
    """Run a plan over its calls, with further controllers."""
    return drive(backend, (StaticPlan(plan, calls), *controllers), num_workers=plan.num_workers)
