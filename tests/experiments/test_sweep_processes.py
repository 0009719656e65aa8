"""What a sweep's processes keep and leave behind."""

import gc
import os
from time import sleep

from joblib import Parallel, delayed
from omegaconf import OmegaConf

from experiments.config.callbacks import EndedWorkers
from experiments.config.memory import spare_garbage_collector


class Knot:
    """Refers to itself."""

    num_left = 0

    def __init__(self) -> None:
        self.itself = self
        Knot.num_left += 1

    def __del__(self) -> None:
        Knot.num_left -= 1


def test_a_runs_cycles_are_gone_when_the_next_begins() -> None:
    before = gc.get_threshold()
    try:
        spare_garbage_collector()
        kept = [Knot() for _ in range(1000)]
        del kept
        assert Knot.num_left == 1000, "no collection in a run so short"
        spare_garbage_collector()
        assert Knot.num_left == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_joblibs_processes_end_with_their_sweep() -> None:
    numbers = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(8)))
    for launcher, are_left in (("basic", True), ("joblib", False)):
        EndedWorkers().on_multirun_end(
            OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": launcher}}}})
        )
        sleep(0.1)
        assert {number for number in numbers if is_there(number)} == (numbers if are_left else set())


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
