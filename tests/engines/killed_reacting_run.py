"""Runs a plan with a controller that cancels, moves, cuts and adds calls, in a process that tests can kill.

    python -m tests.engines.killed_reacting_run FOLDER NUM_CALLS

What it adds and cancels follows from the calls' keys; what it moves and cuts, from the moment. Says each end on stdout.
"""

import sys
import zlib
from pathlib import Path

from mosaic.core.commands import Cancel, Cut, Move, Open, Submit
from mosaic.core.events import Finished, Idle, Progress, Started
from mosaic.core.workload import AGGREGATE, Call, CallKey
from tests.engines.executor_runs import FAKE_ENGINE, Runs, running_host
from tests.engines.killed_run import plan_of_four, prompt
from tests.factories import make_session

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
            print(event.record.key, flush=True)
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
            yield Submit(follows, follows.expert, priority=luck(key) % 2)
        other = self.order[luck(key) % len(self.order)]
        if luck(key) % 5 == 0 and other != key:
            yield Cancel(other)

    def disturb(self, key: CallKey, view):
        if luck(key) % 8 == 0:
            return Cut(key, 5)
        return Move(key, SHARED[view.running[key].expert])


def run(folder: Path, num_calls: int, journal: str = "journal") -> Runs:
    plan, calls = plan_of_four(num_calls)
    with running_host(FAKE_ENGINE) as host:
        executor = Runs(folder, host, prompts=prompt, journal=folder / journal)
        executor.execute(plan, calls, Reacting(num_calls))
    return executor


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
