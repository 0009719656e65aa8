"""Runs a plan in a process that tests can kill, perhaps with a controller that cancels, moves, cuts and adds calls.

    python -m tests.engines.killed_run FOLDER ENGINE NUM_CALLS [reacting]

Calls of four sessions: two experts on two workers, each again with the other after it. Says each end on stdout.
What the controller adds and cancels follows from the calls' keys; what it moves and cuts, from the moment.
"""

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from mosaic.core.commands import Cancel, Cut, Move, Open, Submit
from mosaic.core.events import Finished, Idle, Progress, Started
from mosaic.core.workload import AGGREGATE, Call, CallKey
from mosaic.runtime.controller import Controller
from tests.controllers import Reactor
from tests.engines.executor_runs import Runs, running_host
from tests.factories import make_plan, make_session, some_calls


def plan_of_four(num_calls: int):
    first, second = some_calls("A", 2 * num_calls), some_calls("B", 2 * num_calls)
    half = num_calls
    plan = make_plan(
        make_session(0, first[:half]),
        make_session(1, second[:half], workers=(1,)),
        make_session(2, second[half:]),
        make_session(3, first[half:], workers=(1,)),
    )
    return plan, [*first, *second]


def cry(record):
    print(record.key, flush=True)


def prompt(call, inputs):
    return f"slow question {call.key.question}"


SHARED = {"A": 10, "B": 11}
"""Sessions that serve the experts' queues, behind those of the plan."""


def luck(key: CallKey) -> int:
    return zlib.crc32(str(key).encode())


def added(call: Call) -> Call | None:
    """The call that follows one of the plan's, by the other expert; not every one has such."""
    if luck(call.key) % 3:
        return None
    return Call(CallKey(call.key.question, AGGREGATE, 0), "AB"[call.expert == "A"], 7, after=(call.key,))


def all_calls(num_calls: int) -> list[Call]:
    _, calls = plan_of_four(num_calls)
    return [*calls, *(call for call in map(added, calls) if call is not None)]


class Reacting:
    reacts = True

    def __init__(self, num_calls: int) -> None:
        _, calls = plan_of_four(num_calls)
        self.calls = {call.key: call for call in calls}
        self.order = list(self.calls)

    def on(self, event, view):
        if isinstance(event, Started):
            return [
                Open(make_session(number, expert=expert, workers=(number - 10,))) for expert, number in SHARED.items()
            ]
        if isinstance(event, Finished):
            return list(self.after(event.record.key))
        if isinstance(event, Progress):
            return [self.disturb(key, view) for key in event.tokens if luck(key) % 4 == 0 and key in view.running]
        if isinstance(event, Idle) and len(view.running) > 0:
            expert = "AB"[event.worker]
            return [Open(make_session(view.next_session(), expert=expert, workers=(event.worker,)))]
        return ()

    def after(self, key: CallKey):
        if key not in self.calls:
            return
        follows = added(self.calls[key])
        if follows is not None:
            yield Submit(follows, follows.expert)
        other = self.order[luck(key) % len(self.order)]
        if luck(key) % 5 == 0 and other != key:
            yield Cancel(other)

    def disturb(self, key: CallKey, view):
        if luck(key) % 8 == 0:
            return Cut(key, 5)
        return Move(key, SHARED[view.running[key].expert])


def run(folder: Path, engine: str, num_calls: int, controllers: Sequence[Controller], journal: str = "journal") -> Runs:
    plan, calls = plan_of_four(num_calls)
    with running_host(engine) as host:
        executor = Runs(folder, host, prompts=prompt, journal=folder / journal)
        executor.execute(plan, calls, Reactor(cry), *controllers)
    return executor


if __name__ == "__main__":
    reacting = [Reacting(int(sys.argv[3]))] if sys.argv[4:] == ["reacting"] else []
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), reacting)
