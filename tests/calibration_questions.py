"""Calibration questions from strings of letters."""

from collections.abc import Sequence
from pathlib import Path

from mosaic.core.workload import AnswerKind, Question
from mosaic.pipelines.rules.ballot import Ballot, Vote, make_ballot
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, grade_ballot
from mosaic.pipelines.rules.calibration_file import CalibrationContext, encode_calibration_answers

SETTING = {"workload": "letters", "answers": "made up", "expert X": "none"}


def same(one: str, other: str) -> bool:
    return one == other


def make_ballot_of(
    votes: str,
    *,
    name: str = "q",
    gold: str | None = None,
    experts: str = "XYZ",
    skills: tuple[str, ...] = ("algebra",),
    num_options: int | None = 4,
    comparable: bool = True,
) -> Ballot:
    """Make a ballot in which each expert in turn votes for a letter; "-" is unparsable."""
    question = Question(
        id=name,
        prompt_tokens=50,
        answer=gold,
        skills=skills,
        answer_kind=AnswerKind.MATH if num_options is None else AnswerKind.CHOICE,
        num_options=num_options,
    )
    given = [Vote(expert, None if vote == "-" else vote) for expert, vote in zip(experts, votes, strict=False)]
    return make_ballot(question, given, same if comparable else None)


def make_question(
    name: str = "q",
    votes: str = "AAB",
    *,
    gold: str = "A",
    aggregator: str | None = "A",
    experts: str = "XYZ",
    skills: tuple[str, ...] = ("algebra",),
    comparable: bool = True,
) -> CalibrationQuestion:
    """Make a graded question with four options."""
    ballot = make_ballot_of(votes, name=name, gold=gold, experts=experts, skills=skills, comparable=comparable)
    return grade_ballot(ballot, aggregator, same)


def save_answers(folder: Path, questions: Sequence[CalibrationQuestion], setting: CalibrationContext = SETTING) -> Path:
    """Write calibration answers; gives the file."""
    path = folder / "answers.parquet"
    path.write_bytes(encode_calibration_answers(questions, setting))
    return path
