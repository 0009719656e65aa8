"""Steps of a long measurement: kept at once, and begun only where they can end in time."""

from dataclasses import dataclass

import pytest

from experiments.hardware.kept_steps import KeptSteps


@dataclass(frozen=True)
class Found:
    value: float
    more: tuple[int | None, ...] = ()


class Clock:
    """Stands still but for what steps take."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def step(self, seconds, result=None):
        def measure():
            self.now_s += seconds
            return result or Found(seconds)

        return measure


def must_not_run():
    raise AssertionError("this step is there, or there is no time for it")


def steps_in(folder, clock, budget_s, told=None):
    return KeptSteps(folder, budget_s=budget_s, report=(told if told is not None else []).append, now=clock)


def test_a_step_that_is_there_is_read_and_not_taken(tmp_path):
    clock, told = Clock(), []
    first = steps_in(tmp_path, clock, 60, told)
    assert first.obtain("a", "kind", Found, clock.step(10, Found(1.5, (None, 2)))) == Found(1.5, (None, 2))
    assert told == ["a: begins, 1.0 minutes left", "a: 10 s"]
    again = steps_in(tmp_path, clock, 0, told)
    assert again.obtain("a", "kind", Found, must_not_run) == Found(1.5, (None, 2))
    assert again.missing == []


def test_no_step_begins_that_would_end_too_late(tmp_path):
    clock = Clock()
    steps = steps_in(tmp_path, clock, 30)
    assert steps.obtain("a0", "a", Found, clock.step(10)) is not None
    assert steps.obtain("a1", "a", Found, clock.step(9)) is not None
    assert steps.obtain("a2", "a", Found, must_not_run) is None, "11 seconds are left, and one may take 12"
    assert steps.obtain("b0", "b", Found, clock.step(11)) is not None, "of another kind nothing is known"
    assert steps.obtain("c0", "c", Found, must_not_run) is None
    assert steps.missing == ["a2", "c0"]
    later = steps_in(tmp_path, clock, 12)
    assert later.obtain("a2", "a", Found, clock.step(12)) is not None, "how long it takes is known from the first start"


def test_a_step_that_fails_leaves_nothing(tmp_path):
    clock = Clock()

    def fail():
        raise RuntimeError("the GPU fell off the bus")

    with pytest.raises(RuntimeError):
        steps_in(tmp_path, clock, 60).obtain("a", "a", Found, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"kind": "a", "took')
    with pytest.raises(ValueError, match=r"a\.json: must be what a step left"):
        steps_in(tmp_path, Clock(), 60).obtain("a", "a", Found, must_not_run)
    with pytest.raises(ValueError, match=r"a\.json: must be what a step left"):
        steps_in(tmp_path, Clock(), 60).obtain("b", "b", Found, must_not_run)
