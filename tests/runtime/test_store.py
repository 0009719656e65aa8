"""Measurements are kept by what decides them."""

from dataclasses import dataclass

from mosaic.core.workload import Question
from mosaic.runtime.store import Store


@dataclass(frozen=True)
class Measured:
    seconds: float


def test_equal_values_are_measured_once_and_others_anew(tmp_path):
    measured = []

    def measure() -> Measured:
        measured.append(None)
        return Measured(float(len(measured)))

    def get(store: Store, *decided_by: object) -> float:
        return store.get(decided_by, Measured, measure).seconds

    store, question = Store(tmp_path), Question(id="q", prompt_tokens=10)
    assert get(store, question, [1, 2]) == 1.0
    assert get(store, question, [1, 2]) == 1.0
    assert get(store, question, [1, 3]) == 2.0
    assert get(Store(tmp_path), Question(id="q", prompt_tokens=10), [1, 2]) == 1.0
    assert get(Store(tmp_path), Question(id="q", prompt_tokens=11), [1, 2]) == 3.0


def test_what_cannot_be_read_is_measured_again(tmp_path):
    store = Store(tmp_path)
    store.get(("a",), Measured, lambda: Measured(1.0))
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert store.get(("a",), Measured, lambda: Measured(2.0)) == Measured(2.0)
