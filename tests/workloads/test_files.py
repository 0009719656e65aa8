"""Files of the kinds that people have: the questions of each, or the whole line that says what to do."""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.chat import Sampling
from mosaic.core.workload import AnswerKind, Workload
from mosaic.workloads.files import delimiter_of
from mosaic.workloads.loaders import file_workload

CHOICE, MATH, TEXT = AnswerKind.CHOICE, AnswerKind.MATH, AnswerKind.TEXT
RED = "Which?\nOptions:\n(A) red\n(B) green"
GUESSED_NUMBERS = "answers: numbers (guessed; --answers choice|text says otherwise)"
GUESSED_TEXT = "answers: free text (guessed; --answers number|choice says otherwise)"
USUAL = "['question', 'prompt', 'messages', 'query', 'problem', 'question_stem']"


class Parsed(NamedTuple):
    """A question as it was read."""

    text: str
    answer: str | None = None
    kind: AnswerKind = TEXT


class Kind(NamedTuple):
    """A kind of file, and what comes of it: questions, or the error; FILE stands for its path."""

    name: str
    file: str
    content: bytes
    expected: list[Parsed] | str
    notes: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


def lines(*entries: object) -> bytes:
    return "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries).encode()


def parquet(*rows: dict[str, Any]) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue().to_pybytes()


def request(text: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": text, "body": {"messages": [{"role": "user", "content": text}], **body}}


SUM = [Parsed("2 + 2, then?", "4", MATH)]
FRENCH = "question;answer\nQuel \xe2ge a l\u2019\u0153uvre de Moli\xe8re ?;42\n"
AGE = [Parsed("Quel \xe2ge a l\u2019\u0153uvre de Moli\xe8re ?", "42", MATH)]
MMLU_PRO = {
    "question_id": 70, "question": "Which?", "options": ["red", "green"], "answer": "B", "answer_index": 1,
    "cot_content": "", "category": "art", "src": "exam",
}  # fmt: skip
GREEN = [Parsed(RED, "B", CHOICE)]

KINDS = [
    # Tables
    Kind("comma", "q.csv", b'question,answer\n"2 + 2, then?",4\n', SUM, (GUESSED_NUMBERS,)),
    Kind("semicolon", "q.csv", b"question;answer\n2 + 2, then?;4\n", SUM, (GUESSED_NUMBERS,)),
    Kind("tab", "q.tsv", b"question\tanswer\n2 + 2, then?\t4\n", SUM, (GUESSED_NUMBERS,)),
    Kind("bar", "q.csv", b"question|answer\n2 + 2, then?|4\n", SUM, (GUESSED_NUMBERS,)),
    Kind("unicode_text_of_a_spreadsheet", "q.txt", "question\tanswer\r\n2 + 2, then?\t4\r\n".encode("utf-16"), SUM),
    Kind("one_column", "q.csv", b"question\nRed, or not?\nSo; what?\n", [Parsed("Red, or not?"), Parsed("So; what?")]),
    Kind("capitals", "q.csv", b"ID,Question, ANSWER \na,2 + 2,4\n", [Parsed("2 + 2", "4", MATH)], (GUESSED_NUMBERS,)),
    Kind("utf_8_mark", "q.csv", FRENCH.encode("utf-8-sig"), AGE, (GUESSED_NUMBERS,)),
    Kind("utf_16", "q.csv", FRENCH.encode("utf-16"), AGE, (GUESSED_NUMBERS,)),
    Kind(
        "windows_letters", "q.csv", FRENCH.encode("cp1252"), AGE,
        ("q.csv: not UTF-8, read as cp1252 (guessed; save it as UTF-8 if letters are wrong)", GUESSED_NUMBERS),
    ),
    Kind(
        "one_damaged_byte", "q.csv", "question\nO\xf9 \xe7a, l\xe0-bas?\n".encode() + b"O\xf9?\n",
        [Parsed("O\xf9 \xe7a, l\xe0-bas?")], bad=("FILE, line 3: must be UTF-8, got 'O\\udcf9?'",),
    ),
    Kind(
        "own_column", "q.csv", b"Frage;Antwort\nWas nun?;4\n", [Parsed("Was nun?")],
        ("q.csv: ignored Antwort", GUESSED_TEXT), options={"question_column": "frage"},
    ),
    Kind(
        "own_column_beside_an_id", "q.csv", b"custom_id,Frage\na,Was nun?\n", [Parsed("Was nun?")],
        options={"question_column": " Frage"},
    ),
    Kind(
        "column_of_two", "q.csv", b"prompt,question\nBe brief,Why?\n", [Parsed("Why?")],
        ("q.csv: ignored prompt", GUESSED_TEXT), options={"question_column": "question"},
    ),
    Kind("empty_rows", "q.csv", b"question,answer\n2,2\n,\n\n3,3\n", [Parsed("2", "2", MATH), Parsed("3", "3", MATH)],
         ("q.csv: ignored 2 empty rows", GUESSED_NUMBERS)),
    Kind(
        "a_long_and_a_short_row", "q.csv", b"question,answer\nWhy?,a\nHow?\nWho?,b,\nWho, then?,a\n",
        [Parsed("Why?", "a"), Parsed("Who?", "b")],
        bad=(
            "FILE, line 3: must have 2 columns, like the header, got 1",
            "FILE, line 5: must have 2 columns, like the header, got 3",
        ),
    ),
    Kind("text_over_lines", "q.csv", b'question,answer\n"Why\nso?",a\n,\n"x"y,b\n', [Parsed("Why\nso?", "a")],
         bad=("FILE, line 5: must be CSV (',' expected after '\"')",)),
    Kind("lines_of_text", "q.txt", b"Why?\n\nHow, then?\n", [Parsed("Why?"), Parsed("How, then?")],
         ("q.txt: ignored 1 empty row", GUESSED_TEXT)),
    Kind("gzip", "q.csv.gz", gzip.compress(b"question,answer\n2 + 2,4\n"), [Parsed("2 + 2", "4", MATH)]),
    Kind("no_suffix", "questions", lines({"question": "Why?"}), [Parsed("Why?")]),
    # Data sets
    Kind("mmlu_pro_lines", "q.jsonl", lines(MMLU_PRO), GREEN, ("q.jsonl: ignored cot_content, src",)),
    Kind("mmlu_pro_parquet", "q.parquet", parquet(MMLU_PRO), GREEN, ("q.parquet: ignored cot_content, src",)),
    Kind("options_in_a_cell", "q.csv", b'question,options,answer\nWhich?,"[""red"", ""green""]",B\n', GREEN),
    Kind("python_list_in_a_cell", "q.csv", b"question,options,answer\nWhich?,\"['red', 'green']\",green\n", GREEN),
    Kind("options_behind_letters", "q.csv", b"question,options,answer\nWhich?,(A) red (B) green,B\n", GREEN),
    Kind("no_list_of_options", "q.csv", b"question,options\nWhich?,red\n",
         "FILE, line 2: options must be a list of texts, such as [\"red\", \"green\"], got 'red'"),
    Kind("gsm8k", "q.jsonl", lines({"question": "2 + 2, then?", "answer": "<<2+2=4>>so 4.\n#### 4"}), SUM,
         (GUESSED_NUMBERS,)),
    Kind("mmlu", "q.jsonl", lines({"question": "Which?", "choices": ["red", "green"], "answer": 1, "subject": "a"}),
         GREEN, ("answers: positions of options, counted from 0 (guessed; letters leave no doubt)",)),
    Kind("arc", "q.jsonl", lines(
        {"id": "M", "question": "Which?", "choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": "2"}
    ), GREEN),
    Kind("options_by_letter", "q.jsonl", lines(
        {"question": "Which?", "options": {"A": "red", "B": "green"}, "answer": "green", "answer_idx": "B"}), GREEN),
    Kind("options_as_objects", "q.jsonl", lines({
        "question": "Which?", "answer": "y", "choices": [{"label": "x", "text": "red"}, {"label": "y", "text": "green"}]
    }), GREEN),
    Kind("medmcqa_counts_from_1", "q.csv", b"id,question,opa,opb,cop\n1,Which?,red,green,1\n2,Which?,red,green,2\n",
         [Parsed(RED, "A", CHOICE), *GREEN],
         ("answers: positions of options, counted from 1 (guessed; letters leave no doubt)",)),
    Kind("positions_from_0", "q.csv", b"question,A,B,answer\nWhich?,red,green,1\nWhich?,red,green,0\n",
         [*GREEN, Parsed(RED, "A", CHOICE)]),
    Kind("a_position_too_far", "q.jsonl", lines(MMLU_PRO, {**MMLU_PRO, "question_id": 71, "answer": 9}), GREEN,
         bad=("FILE, line 2: answer must be the position of an option, 0 to 1, got 9",)),
    Kind("options_in_text_and_list", "q.jsonl", lines({"question": RED, "options": ["red", "green"], "answer": "B"}),
         GREEN),
    Kind("numbers_with_gaps", "q.parquet", parquet({"question": "a", "answer": 4.0}, {"question": "b", "answer": None}),
         [Parsed("a", "4", MATH), Parsed("b")],
         ("answers: 1 as numbers, 1 as free text (guessed; --answers number|choice|text says otherwise)",)),
    Kind("said_to_be_numbers", "q.txt", b"2 + 2?\n", [Parsed("2 + 2?", None, MATH)], (), options={"answers": "number"}),
    Kind("said_to_be_text", "q.jsonl", lines(MMLU_PRO), [Parsed(RED, "B", TEXT)], options={"answers": "text"}),
    Kind("said_to_be_choices", "q.csv", b"question,answer\nWhich?,E\nWhich?,7\n", [Parsed("Which?", "E", CHOICE)],
         bad=("FILE, line 3: answer must be the letter or the text of an option, got '7'",),
         options={"answers": "choice"}),
    # JSON
    Kind("list_with_the_suffix_of_lines", "q.jsonl", b'[\n {"question": "Why?"}\n]', [Parsed("Why?")]),
    Kind("lines_with_the_suffix_of_a_list", "q.json", lines({"question": "a"}, {"question": "b"}),
         [Parsed("a"), Parsed("b")]),
    Kind("messages_as_a_prompt", "q.jsonl", lines({"prompt": [{"role": "user", "content": "Why?"}]}), [Parsed("Why?")]),
    Kind("unknown_keys", "q.jsonl", lines({"question": "a", "expert": ["A"], "source": 1}), [Parsed("a")],
         ("q.jsonl: ignored expert (is experts meant?), source", GUESSED_TEXT)),
    Kind("unknown_keys_of_a_request", "q.jsonl", lines(request("Why?", reasoning_effort="low"), request("Who?")),
         [Parsed("Why?"), Parsed("Who?")], ("q.jsonl: ignored body.reasoning_effort", GUESSED_TEXT)),
    Kind("stop_at_a_line_end", "q.jsonl", lines(request("Why?", stop=["\n"])), [Parsed("Why?")]),
    Kind("bad_lines", "q.jsonl", lines(
        request("Why?"), "{", request("Why?"), request("How?", n=3), request("Who?")), [Parsed("Why?"), Parsed("Who?")],
        bad=(
            "FILE, line 2: must be JSON, got '{' (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1))",
            "FILE, line 3: id must be unique, got 'Why?', which FILE, line 1 has too",
            "FILE, line 4: body.n must be left out or 1, as a final answer is one text of several models, got 3",
        )),
    Kind("limit", "q.txt", b"a\nb\nc\n", [Parsed("a"), Parsed("b")], options={"limit": 2}),
    # What cannot be read at all
    Kind("no_question", "q.csv", b"frage,antwort\na,1\nb,2\n",
         f"FILE, line 2: question must be in one of the columns or keys {USUAL}, or --question-column names it, "
         "got ['frage', 'antwort']; none of its 2 lines can be used"),
    Kind("no_such_column", "q.csv", b"question\na\n",
         "FILE, line 2: question must be in one of the columns or keys ['frage'], or --question-column names it, "
         "got ['question']", options={"question_column": "frage"}),
    Kind("open_quote", "q.csv", b'question,answer\n"Why?,a\nHow?,b\n',
         "FILE, line 2: must be CSV, got a quote that is opened and never closed"),
    Kind("excel", "q.xlsx", b"PK\x03\x04" + bytes(9),
         "FILE: must be JSON lines, a JSON list, CSV or parquet, got an Excel workbook or a zip archive; save it as "
         "CSV (UTF-8)"),
    Kind("binary", "q.csv", bytes(range(256)),
         "FILE: must be text or parquet, got bytes of neither; save it as CSV (UTF-8) or JSON lines"),
    Kind("empty", "q.jsonl", b"", "FILE: must be a file with at least one question, got none"),
    Kind("header_alone", "q.csv", b"question,answer\n", "FILE: must be a file with at least one question, got none"),
    Kind("half_a_gzip_file", "q.csv.gz", gzip.compress(b"question\n" * 999)[:-9],
         "FILE: must be a whole gzip file (Compressed file ended before the end-of-stream marker was reached); "
         "pack it again"),
    Kind("still_being_written", "q.jsonl", lines({"question": "Why?"}) + b'{"question": "Ho',
         "FILE, line 2: must be JSON, got '{\"question\": \"Ho' (Unterminated string starting at: line 1 column 14 "
         "(char 13)); the line has no end: is the file still being written?"),
    Kind("an_object_of_lists", "q.json", b'{"data": [\n{"question": "a"}]}',
         "FILE: must be a list of questions or have an object a line, got dict"),
    Kind("wrong_mark", "q.csv", b"\xff\xfea", "FILE: must be utf-16, as its byte order mark says ('utf-16-le' codec "
         "can't decode byte 0x61 in position 2: truncated data)"),
]  # fmt: skip


def read(kind: Kind, folder: Path) -> Workload:
    (folder / kind.file).write_bytes(kind.content)
    return file_workload(path=folder / kind.file, experts=["A", "B"], **{"bad_lines": "leave_out", **kind.options})


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])
def test_a_kind_of_file_is_read_or_refused_in_a_line(kind: Kind, tmp_path: Path) -> None:
    path = str(tmp_path / kind.file)
    if isinstance(kind.expected, str):
        with pytest.raises((ValueError, TypeError)) as refused:
            read(kind, tmp_path)
        assert str(refused.value).replace(path, "FILE") == kind.expected
        return
    workload = read(kind, tmp_path)
    parsed = [Parsed(str(question.text), question.answer, question.answer_kind) for question in workload.questions]
    assert parsed == kind.expected
    assert tuple(line.reason.replace(path, "FILE") for line in workload.bad_lines) == kind.bad
    assert not kind.notes or workload.notes == kind.notes
    assert all("\n" not in line for line in (*workload.notes, *(line.reason for line in workload.bad_lines)))


def test_what_a_file_gives_beside_the_question_is_kept(tmp_path: Path) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    (question,) = read(kinds["mmlu_pro_lines"], tmp_path).questions
    assert (question.id, question.category, question.num_options) == ("70", "art", 2)
    (question,) = read(kinds["stop_at_a_line_end"], tmp_path).questions
    assert question.sampling == Sampling(stop=("\n",))
    (question,) = read(kinds["comma"], tmp_path).questions
    assert question.source is not None
    assert (question.source.at, question.source.number) == (f"{tmp_path / 'q.csv'}, line 2", 2)
    bad = read(kinds["bad_lines"], tmp_path).bad_lines
    assert [(line.number, line.id) for line in bad] == [(2, None), (3, None), (4, "How?")]


def test_questions_keep_their_names_where_others_are_bad_or_empty(tmp_path: Path) -> None:
    rows = Kind("", "q.csv", b"question,answer\na,1\n,\nb\nc,3\n", [])
    assert [question.id for question in read(rows, tmp_path).questions] == ["row-1", "row-3"]


def test_experts_named_on_some_lines_are_kept_and_others_drawn(tmp_path: Path) -> None:
    named = Kind("", "q.jsonl", lines({"question": "a", "experts": ["B"]}, {"question": "b"}), [])
    assert [call.expert for call in read(named, tmp_path).calls] == ["B", "A", "B"]
    every = Kind("", "q.csv", b"question,experts\na,\"['B', 'B']\"\nb,B; A\nc,__import__('os')\n", [])
    assert [call.expert for call in read(every, tmp_path).calls] == ["B", "B", "B", "A", "__import__('os')"]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("question,answer\n\"a; b\nc; d\",4\n\"x; y\",5\n", ","),
        ("question;answer, if known\nWhat, then?;4\nWho, or which, or what?;5\n", ";"),
        ("id|question|answer\n1|a, b|2\n", "|"),
    ],
)  # fmt: skip
def test_the_delimiter_is_what_the_rows_agree_on(text: str, delimiter: str) -> None:
    assert delimiter_of(text) == delimiter
