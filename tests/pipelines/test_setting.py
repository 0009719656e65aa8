from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.core.workload import AGGREGATE, PROPOSE, Expert, Question, Workload
from mosaic.pipelines.node import Node, When
from mosaic.pipelines.rules.calibration_file import (
    CalibrationContext,
    describe_context,
    encode_calibration_answers,
    load_context,
    name_differences,
)
from tests.calibration_questions import make_question
from tests.factories import make_call, make_expert

X, Y, Z = (make_expert(name) for name in "XYZ")
WORKLOAD = Workload(
    name="letters_calibration",
    questions=tuple(Question(id=name, prompt_tokens=9) for name in ("q1", "q2")),
    calls=tuple(make_call(name, slot=slot) for name, num_slots in (("q1", 2), ("q2", 1)) for slot in range(num_slots)),
)


def setting_of(
    *experts: Expert, aggregator: Expert = Z, benchmark: str = "letters", answers: str = "fitted"
) -> CalibrationContext:
    merge = Node(name=AGGREGATE, experts=(aggregator,), after=(PROPOSE,), when=When.UNSETTLED)
    pool = experts or (X, Y, Z)
    return describe_context(WORKLOAD, pool, (Node(name=PROPOSE), merge), benchmark=benchmark, answers=answers)


def test_a_setting_names_all_that_decides_answers() -> None:
    setting = setting_of(X, Z)
    assert list(setting) == ["workload", "answers", "node propose", "node aggregate", "expert X", "expert Z"]
    assert (setting["workload"], setting["answers"]) == ("letters", "fitted")
    assert setting["node propose"] == "up to 2 recruited experts"
    assert setting["node aggregate"] == "Z after propose, unsettled"
    assert setting["expert X"].startswith(f"{X.checkpoint}, temperature 0.7, max_output_tokens {X.max_output_tokens}")


def test_a_file_keeps_its_setting(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    path.write_bytes(encode_calibration_answers([make_question()], setting_of()))
    assert load_context(path) == setting_of()
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    assert load_context(path) == setting_of(), "a part of the table is of the same"


def test_a_file_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    path.write_bytes(encode_calibration_answers([make_question()], setting_of()))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(ValueError, match="gate.calibration must say what its answers are of .*Make it again, with"):
        load_context(path)


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        (setting_of(benchmark="numbers"), "workload is 'letters' there and 'numbers' here"),
        (setting_of(answers="measured"), "answers is 'fitted' there and 'measured' here"),
        (setting_of(aggregator=Y), "node aggregate is 'Z after propose, unsettled' there and 'Y after"),
        (setting_of(X, Y, replace(Z, checkpoint="tuned")), f"expert Z is '{Z.checkpoint}, temperature"),
        (setting_of(X, Y, replace(Z, checkpoint="tuned")), "there and 'tuned, temperature"),
        (setting_of(replace(X, temperature=0.0), Y, Z), "temperature 0, max_output_tokens"),
        (setting_of(X, Z), "there and 'absent' here"),
        (setting_of(X, benchmark="numbers", answers="measured"), "(and 1 more)"),
    ],
)
def test_what_differs_is_named(other: CalibrationContext, differences: str) -> None:
    assert differences in name_differences(setting_of(), other)


def test_where_experts_lie_and_in_which_order_is_no_difference() -> None:
    placed = setting_of(Z, replace(X, tp_degree=2, max_replicas=3), Y)
    assert name_differences(setting_of(), placed) == ""
