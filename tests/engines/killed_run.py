"""Runs a plan in a process that tests can kill.

    python -m tests.engines.killed_run FOLDER ENGINE [NUM_CALLS]

Calls of four sessions: two experts on two workers, each again with the other after it. Says each finish on stdout.
"""

import sys
from pathlib import Path

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


def run(folder: Path, engine: str, num_calls: int, journal: str = "journal"):
    plan, calls = plan_of_four(num_calls)
    with running_host(engine) as host:
        executor = Runs(folder, host, prompts=prompt, journal=folder / journal)
        executor.execute(plan, calls, Reactor(cry))
        return executor.records


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
