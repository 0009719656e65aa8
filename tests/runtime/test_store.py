"""Measurements are kept by what decides them."""

from dataclasses import dataclass

from mosaic.core.workload import Question
from mosaic.runtime.store import Store


@dataclass(frozen=True)
class Measured:
    seconds: float


def test_equal_values_are_read_and_others_are_not(tmp_path):
    store, question = Store(tmp_path), Question(id="q", prompt_tokens=10)
    assert store.read((question, [1, 2]), Measured) is None
    store.write((question, [1, 2]), Measured(1.0))
    assert store.read((question, [1, 2]), Measured) == Measured(1.0)
    assert store.read((question, [1, 3]), Measured) is None
    assert Store(tmp_path).read((Question(id="q", prompt_tokens=10), [1, 2]), Measured) == Measured(1.0)
    assert Store(tmp_path).read((Question(id="q", prompt_tokens=11), [1, 2]), Measured) is None


def test_what_cannot_be_read_is_measured_again(tmp_path):
    store = Store(tmp_path)
    store.write(("a",), Measured(1.0))
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert store.read(("a",), Measured) is None
    store.write(("a",), Measured(2.0))
    assert store.read(("a",), Measured) == Measured(2.0)
