"""Answers to calibration questions, with what the aggregator made of them: what two of the gates learn from.

One row per (question, slot), written by a run with gate=never, so that every question has the aggregator's answer.
The table's metadata say what the answers are of (`mosaic.pipelines.gates.setting`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.core.checks import require, require_name, require_number
from mosaic.core.workload import AnswerKind, CalibrationRecord, Question
from mosaic.pipelines.gates.gate import Ballot, Vote, plurality
from mosaic.pipelines.gates.setting import Setting, encode_setting

if TYPE_CHECKING:
    import pyarrow as pa

_OF_SLOT = ("slot", "expert", "answer", "correct")
_OF_QUESTION = (
    "question", "aggregator_answer", "aggregator_correct", "comparable", "gold", "answer_kind", "num_options",
    "skills", "prompt_tokens",
)  # fmt: skip
"""Columns that all rows of a question repeat."""
_MAY_BE_NULL = frozenset({"answer", "aggregator_answer", "gold", "num_options"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationQuestion:
    """A question, the votes of its slots and the aggregator's answer, all of them graded."""

    ballot: Ballot
    vote_correct: tuple[bool, ...]
    """In the order of the ballot's votes."""
    aggregator_answer: str | None
    """None: unparsable."""
    aggregator_correct: bool

    def __post_init__(self) -> None:
        label = f"calibration question {self.ballot.question.id}"
        object.__setattr__(self, "vote_correct", tuple(self.vote_correct))
        num_votes = len(self.ballot.votes)
        require(
            len(self.vote_correct) == num_votes, f"{label}: vote_correct", f"of {num_votes} votes", self.vote_correct
        )
        grades: dict[str, bool] = {}
        for vote, correct in zip(self.ballot.votes, self.vote_correct, strict=True):
            if vote.answer is None:
                require(not correct, f"{label}: correct", "false for an unparsable answer", correct)
            elif self.ballot.comparable:
                same = grades.setdefault(vote.answer, correct) == correct
                require(same, f"{label}: correct", f"the same for all votes for {vote.answer!r}", self.vote_correct)
        unparsable = self.aggregator_answer is None and self.aggregator_correct
        require(
            not unparsable, f"{label}: aggregator_correct", "false for an unparsable answer", self.aggregator_correct
        )

    @property
    def id(self) -> str:
        return self.ballot.question.id

    @property
    def majority_correct(self) -> bool:
        """Whether the plurality answer is right; False where there is none."""
        return self.answer_correct(plurality(self.ballot).answer)

    def answer_correct(self, answer: str | None) -> bool:
        """Tell whether one of the ballot's answers is right."""
        votes = zip(self.ballot.votes, self.vote_correct, strict=True)
        return answer is not None and any(correct for vote, correct in votes if vote.answer == answer)

    def loss_if_skipped(self, answer: str | None) -> int:
        """Compute what returning this answer instead of the aggregator's loses: -1, 0 or 1."""
        return int(self.aggregator_correct) - int(self.answer_correct(answer))


def grade_ballot(
    ballot: Ballot, aggregator_answer: str | None, same: Callable[[str, str], bool]
) -> CalibrationQuestion:
    """Grade a ballot and the aggregator's answer against the gold answer.

    Raises
    ------
    ValueError
        If the question has no gold answer.
    """
    gold = ballot.question.answer
    if gold is None:
        raise ValueError(f"question {ballot.question.id}: answer must be given for a calibration question, got None")

    def right(answer: str | None) -> bool:
        return answer is not None and (answer == gold or same(answer, gold))

    return CalibrationQuestion(
        ballot=ballot,
        vote_correct=tuple(right(vote.answer) for vote in ballot.votes),
        aggregator_answer=aggregator_answer,
        aggregator_correct=right(aggregator_answer),
    )


def grade_ballots(
    ballots: Iterable[Ballot],
    aggregated: Mapping[str, str | None],
    compare: Mapping[AnswerKind, Callable[[str, str], bool] | None],
) -> list[CalibrationQuestion]:
    """Grade the questions that the aggregator answered, where gold is known and answers can be compared."""
    graded = []
    for ballot in ballots:
        question, same = ballot.question, compare[ballot.question.answer_kind]
        if question.id in aggregated and question.answer is not None and same is not None:
            graded.append(grade_ballot(ballot, aggregated[question.id], same))
    return graded


def split_calibration(
    questions: Iterable[CalibrationQuestion], fit_frac: float
) -> tuple[tuple[CalibrationQuestion, ...], tuple[CalibrationQuestion, ...]]:
    """Split into a part that may be fitted to and a part that certifies, by a hash of the question's id.

    Router profiles, lengths and reliabilities may be made from the first part, which certifies nothing. A question
    stays in its part whatever the others are. Both parts come in the order of the hash, a shuffle that nobody chose:
    a file sorted by subject must not be read subject by subject. ``fit_frac`` is the expected share of the first
    part, 0 to 1 (excluded).
    """
    given = tuple(questions)
    fit, certify = split_places([question.id for question in given], fit_frac)
    return tuple(given[place] for place in fit), tuple(given[place] for place in certify)


def split_places(ids: Sequence[str], fit_frac: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the places of questions with these ids as ``split_calibration`` does: those to fit, those that certify.

    Examples
    --------
    >>> split_places(["q0", "q1", "q2", "q3"], 0.5)
    ((2,), (3, 1, 0))
    """
    require_number(fit_frac, "fit_frac", at_least=0)
    require(fit_frac < 1, "fit_frac", "below 1", fit_frac)
    ordered = sorted(range(len(ids)), key=lambda place: (_hash_frac(ids[place]), ids[place]))
    num_fit = sum(_hash_frac(name) < fit_frac for name in ids)
    return tuple(ordered[:num_fit]), tuple(ordered[num_fit:])


def _hash_frac(question: str) -> float:
    """Map an id to 0..1, the same on every machine."""
    digest = blake2b(question.encode(), digest_size=6, person=b"calibration").digest()
    return int.from_bytes(digest, "big") / 2**48


def router_records(questions: Iterable[CalibrationQuestion]) -> list[CalibrationRecord]:
    """List what a router's skill profiles are made from; give it the part that certifies nothing."""
    return [
        CalibrationRecord(question.ballot.question.skills, vote.expert, correct)
        for question in questions
        for vote, correct in zip(question.ballot.votes, question.vote_correct, strict=True)
    ]


def encode_calibration_answers(questions: Sequence[CalibrationQuestion], setting: Setting) -> bytes:
    """Encode as parquet, one row per (question, slot); the questions' texts and categories are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for question in questions for row in _rows(question)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema().with_metadata(encode_setting(setting))), sink)
    return bytes(sink.getvalue())


def _rows(graded: CalibrationQuestion) -> list[dict[str, Any]]:
    question = graded.ballot.question
    shared = {
        "question": question.id,
        "aggregator_answer": graded.aggregator_answer,
        "aggregator_correct": graded.aggregator_correct,
        "comparable": graded.ballot.comparable,
        "gold": question.answer,
        "answer_kind": question.answer_kind.value,
        "num_options": question.num_options,
        "skills": list(question.skills),
        "prompt_tokens": question.prompt_tokens,
    }
    votes = zip(graded.ballot.votes, graded.vote_correct, strict=True)
    return [
        {**shared, "slot": slot, "expert": vote.expert, "answer": vote.answer, "correct": correct}
        for slot, (vote, correct) in enumerate(votes)
    ]


def load_calibration_answers(path: str | Path) -> tuple[CalibrationQuestion, ...]:
    """Read the table back, questions in first-seen order.

    Raises
    ------
    ValueError, TypeError
        Naming the file, and the question or column, the rule and the value.
    """
    if not isinstance(path, Path):
        require_name(path, "gate.calibration")
    at = f"calibration answers {path}"
    try:
        by_question: dict[str, list[dict[str, Any]]] = {}
        for row in _read_rows(path):
            _require_given(row)
            by_question.setdefault(row["question"], []).append(row)
        require(len(by_question) > 0, "table", "of at least one row", 0)
        return tuple(_question(rows) for rows in by_question.values())
    except OSError as error:
        raise ValueError(f"{at}: must be a readable file ({error.strerror or error})") from error
    except TypeError as error:
        raise TypeError(f"{at}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def _read_rows(path: str | Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in _schema().names if name not in names]
            require(not missing, "columns", f"a superset of {_schema().names}, {missing} are missing", names)
            table = file.read(columns=_schema().names).select(_schema().names).cast(_schema())
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
    except pa.ArrowException as error:
        raise ValueError(f"must be a parquet table of calibration answers ({error})") from error


def _require_given(row: Mapping[str, Any]) -> None:
    """Check that nothing is null that must be known."""
    for name, value in row.items():
        rule = "given"
        if name == "aggregator_correct":
            rule = "given (let the run aggregate every question: gate=never)"
        require(value is not None or name in _MAY_BE_NULL, f"question {row['question']}: {name}", rule, value)


def _question(rows: list[dict[str, Any]]) -> CalibrationQuestion:
    """Rebuild a question from its rows."""
    first = rows[0]
    label = f"question {first['question']}"
    for row in rows:
        for name in _OF_QUESTION:
            require(row[name] == first[name], f"{label}: {name}", f"{first[name]!r} in all of its rows", row[name])
    rows = sorted(rows, key=lambda row: int(row["slot"]))
    slots = [row["slot"] for row in rows]
    require(slots == list(range(len(rows))), f"{label}: slots", "0, 1, 2 and so on, each once", slots)
    question = Question(
        id=first["question"],
        prompt_tokens=first["prompt_tokens"],
        answer=first["gold"],
        skills=tuple(first["skills"]),
        answer_kind=first["answer_kind"],
        num_options=first["num_options"],
    )
    votes = tuple(Vote(row["expert"], row["answer"]) for row in rows)
    return CalibrationQuestion(
        ballot=Ballot(question=question, votes=votes, comparable=first["comparable"]),
        vote_correct=tuple(row["correct"] for row in rows),
        aggregator_answer=first["aggregator_answer"],
        aggregator_correct=first["aggregator_correct"],
    )


def _schema() -> "pa.Schema":
    import pyarrow as pa

    types = {
        "slot": pa.int32(),
        "correct": pa.bool_(),
        "aggregator_correct": pa.bool_(),
        "comparable": pa.bool_(),
        "num_options": pa.int32(),
        "skills": pa.list_(pa.string()),
        "prompt_tokens": pa.int64(),
    }
    # NOTE: no column is declared free of nulls: a null is reported with its question, not by the cast.
    return pa.schema([pa.field(name, types.get(name, pa.string())) for name in (*_OF_QUESTION, *_OF_SLOT)])
