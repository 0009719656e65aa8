from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, Expert, Question, Workload
from mosaic.pipelines.node import Node, When
from mosaic.pipelines.rules.ballot import Ballot, Vote, make_ballot
from mosaic.pipelines.rules.calibration_answers import (
    CalibrationQuestion,
    grade_ballot,
    split_calibration,
)
from mosaic.pipelines.rules.calibration_file import (
    CalibrationContext,
    describe_context,
    encode_calibration_answers,
    load_calibration_answers,
    load_context,
    name_differences,
)
from tests.calibration_questions import SETTING, make_question, save_answers
from tests.factories import make_call, make_expert

QUESTIONS = st.lists(
    st.builds(
        make_question,
        name=st.text(min_size=1, max_size=5).filter(str.strip),
        votes=st.text(alphabet="ABCD-", min_size=1, max_size=3),
        gold=st.sampled_from("ABCD"),
        aggregator=st.sampled_from(["A", "B", "C", "D", None]),
        skills=st.lists(st.sampled_from(["algebra", "anatomy"]), unique=True).map(tuple),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda question: question.id,
)


def rows_of_one() -> list[dict[str, object]]:
    table = pq.read_table(pa.BufferReader(encode_calibration_answers([make_question()], SETTING)))
    return list(table.to_pylist())


def save(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "answers.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def every(**changes: object) -> list[dict[str, object]]:
    """The rows of one question, with some columns changed in all of them."""
    return [{**row, **changes} for row in rows_of_one()]


def change_row(number: int, **changes: object) -> list[dict[str, object]]:
    rows = rows_of_one()
    rows[number] |= changes
    return rows


@settings(max_examples=40)
@given(questions=QUESTIONS)
def test_the_table_holds_all_that_gates_need(
    tmp_path_factory: pytest.TempPathFactory, questions: list[CalibrationQuestion]
) -> None:
    path = save_answers(tmp_path_factory.mktemp("table"), questions)
    assert load_calibration_answers(path) == tuple(questions)


def test_mathematical_and_free_text_answers_survive(tmp_path: Path) -> None:
    math = Question(id="m", prompt_tokens=9, answer="1/2", answer_kind=AnswerKind.MATH)
    text = Question(id="t", prompt_tokens=9, answer="a cat")
    questions = (
        grade_ballot(
            make_ballot(math, [Vote("X", "0.5"), Vote("X", "1/2")], lambda *_: True), "\\frac12", lambda *_: True
        ),
        grade_ballot(make_ballot(text, [Vote("X", "a cat"), Vote("Y", "a dog")], None), "a dog", str.__eq__),
    )
    loaded = load_calibration_answers(save_answers(tmp_path, questions))
    assert loaded == questions
    assert [question.ballot.comparable for question in loaded] == [True, False]
    assert loaded[0].ballot.votes == (Vote("X", "0.5"), Vote("X", "0.5"))
    assert [question.vote_correct for question in loaded] == [(True, True), (True, False)]


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    assert load_calibration_answers(save(tmp_path, rows_of_one()[::-1])) == (make_question(),)


def test_other_columns_are_ignored(tmp_path: Path) -> None:
    assert load_calibration_answers(save(tmp_path, every(remark="kept by somebody"))) == (make_question(),)


@pytest.mark.parametrize(
    ("votes", "aggregator", "majority_correct", "loss"),
    [
        ("AAB", "A", True, 0),
        ("AAB", "B", True, -1),
        ("BBA", "A", False, 1),
        ("BBA", "C", False, 0),
        ("--A", None, True, -1),
        ("---", "A", False, 1),
    ],
)
def test_the_loss_is_the_aggregators_correctness_minus_the_gates(
    votes: str, aggregator: str | None, majority_correct: bool, loss: int
) -> None:
    question = make_question(votes=votes, aggregator=aggregator)
    assert question.majority_correct is majority_correct
    assert question.vote_correct == tuple(vote == "A" for vote in votes), "no answer is wrong"
    assert question.loss_if_skipped("A" if majority_correct else "B") == loss


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*rows_of_one(), rows_of_one()[0]], r"each once, got \[0, 0, 1, 2\]"),
        (change_row(0, correct=False), "question q: correct must be the same for all votes for 'A'"),
        (change_row(1, gold="B"), "question q: gold must be 'A' in all of its rows, got 'B'"),
        (
            [{name: row[name] for name in row if name not in ("gold", "correct")} for row in rows_of_one()],
            r"columns must be a superset of .*\['gold', 'correct'\] are missing",
        ),
        (every(aggregator_correct=None), r"question q: aggregator_correct must be given \(.*gate=never\)"),
        (every(correct=None), "question q: correct must be given"),
        (every(prompt_tokens=0), "question q: prompt_tokens must be at least 1"),
        (every(answer_kind="riddle"), "question q: answer_kind must be one of"),
        (every(slot=0), "question q: slots must be 0, 1, 2 and so on, each once"),
        (every(slot="first"), "must be a parquet table of calibration answers"),
        (every(answer=None, correct=True), "question q: correct must be false for an unparsable answer"),
        (every(aggregator_answer=None), "question q: aggregator_correct must be false for an unparsable answer"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    path = save(tmp_path, rows)
    with pytest.raises(ValueError, match=message) as raised:
        load_calibration_answers(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"calibration answers .*answers\.file: must be a readable file"),
        (b"question,slot\nq,0\n", r"answers\.file: must be a parquet table"),
        (encode_calibration_answers([], SETTING), "table must be of at least one row"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "answers.file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_calibration_answers(tmp_path / "answers.file")


def test_wrong_types_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[dict[str, object]]:
        raise TypeError("question q: skills must be a list")

    monkeypatch.setattr("mosaic.pipelines.rules.calibration_file._read_rows", refuse)
    with pytest.raises(TypeError, match=r"answers\.parquet: question q: skills must be a list"):
        load_calibration_answers(save(tmp_path, rows_of_one()))


def test_every_vote_needs_a_grade() -> None:
    ballot = Ballot(question=Question(id="q", prompt_tokens=5), votes=(Vote("X", "yes"),), comparable=True)
    with pytest.raises(ValueError, match="vote_correct must be of 1 votes"):
        CalibrationQuestion(ballot=ballot, vote_correct=(), aggregator_answer="yes", aggregator_correct=True)


@given(questions=QUESTIONS, fit_frac=st.floats(min_value=0, max_value=0.99))
def test_every_question_is_in_one_part(questions: list[CalibrationQuestion], fit_frac: float) -> None:
    fit, certify = split_calibration(questions, fit_frac)
    assert sorted(question.id for question in (*fit, *certify)) == sorted(question.id for question in questions)


@given(questions=QUESTIONS, fit_frac=st.floats(min_value=0, max_value=0.99), data=st.data())
def test_a_question_keeps_its_part(questions: list[CalibrationQuestion], fit_frac: float, data: st.DataObject) -> None:
    """Whatever the others are, in whatever order: what made a profile yesterday must not certify today."""
    fit, certify = split_calibration(questions, fit_frac)
    some = data.draw(st.permutations(questions))[: len(questions) // 2]
    fit_of_some, certify_of_some = split_calibration(some, fit_frac)
    assert [question for question in fit if question in some] == list(fit_of_some)
    assert [question for question in certify if question in some] == list(certify_of_some)


def test_the_split_has_the_stated_share_and_shuffles() -> None:
    questions = [make_question(f"q{number}") for number in range(2000)]
    fit, certify = split_calibration(questions, 0.3)
    assert abs(len(fit) - 600) < 3 * (2000 * 0.3 * 0.7) ** 0.5
    ranks = [int(question.id[1:]) for question in certify]
    assert ranks != sorted(ranks)
    first_half = sum(rank < 1000 for rank in ranks[: len(ranks) // 2]) / (len(ranks) // 2)
    assert 0.4 < first_half < 0.6
    assert split_calibration(questions, 0)[0] == ()


def test_the_split_is_the_same_on_every_machine() -> None:
    questions = [make_question(f"q{number}") for number in range(10)]
    assert [question.id for question in split_calibration(questions, 0.3)[0]] == ["q2", "q4", "q6"]


# What the answers are of


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
    path = save_answers(tmp_path, [make_question()], setting_of())
    assert load_context(path) == setting_of()
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    assert load_context(path) == setting_of(), "a part of the table is of the same"


def test_a_file_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    path = save_answers(tmp_path, [make_question()], setting_of())
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
