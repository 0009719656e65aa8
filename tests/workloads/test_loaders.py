"""Workloads from slot tables and from files, and what is refused on the way."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.chat import Chat, Message, Sampling
from mosaic.core.workload import AnswerKind, Workload
from mosaic.pipelines.call_graph import mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.rules.rule import Never
from mosaic.workloads.loaders import draw_experts, file_workload


def write(folder: Path, name: str, *lines: object) -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def experts_by_question(workload: Workload) -> dict[str, tuple[str, ...]]:
    slots: dict[str, tuple[str, ...]] = {}
    for call in workload.calls:
        slots[call.key.question] = (*slots.get(call.key.question, ()), call.expert)
    return slots


# Files


def test_jsonl_gives_questions_calls_and_recorded_lengths(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine.jsonl",
        {"id": "a", "question": "Is 7 prime?", "experts": ["A", "A", "B"], "answer": "yes", "output_tokens": 9},
        "",
        {"id": 2, "prompt_tokens": 40, "experts": ["B"], "skills": ["optics"], "output_tokens": [5], "answer": None},
        {
            "id": "c",
            "question": "x\u2028y",
            "prompt_tokens": 8,
            "experts": ["B", "A"],
            "output_tokens": {"A": 1, "B": 2},
        },
    )
    workload = file_workload(path=path, name="mine", template_tokens=100)
    assert workload.name == "mine"
    assert [question.id for question in workload.questions] == ["a", "2", "c"]
    assert [question.prompt_tokens for question in workload.questions] == [3, 40, 8]
    assert (workload.questions[0].text, workload.questions[0].answer) == ("Is 7 prime?", "yes")
    assert (workload.questions[1].text, workload.questions[1].skills) == (None, ("optics",))
    assert experts_by_question(workload) == {"a": ("A", "A", "B"), "2": ("B",), "c": ("B", "A")}
    assert [call.prompt_tokens for call in workload.calls] == [103] * 3 + [140] + [108] * 2
    assert workload.output_tokens is not None
    assert list(workload.output_tokens.values()) == [9, 9, 9, 5, 2, 1]
    assert list(workload.output_tokens) == [call.key for call in workload.calls]


def test_without_recorded_lengths_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", {"id": "a", "question": "x", "experts": ["A"]})
    assert file_workload(path=path).output_tokens is None
    assert file_workload(path=str(path)).name == "file"


def test_symbolic_moe_csv_gives_the_recruited_solvers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "test.csv",
        "question,gold_answer,keywords,solvers,notes",
        '"What, then,\nis light?",B,"[\'optics\', ""Fermat\'s principle""]","[\'A\', \'B\', \'A\']",-',
        "Why?,,[],['B'],",
    )
    workload = file_workload(path=path, template_tokens=0)
    assert experts_by_question(workload) == {"row-1": ("A", "B", "A"), "row-2": ("B",)}
    first, second = workload.questions
    assert (first.text, first.answer, first.skills) == (
        "What, then,\nis light?",
        "B",
        ("optics", "Fermat's principle"),
    )
    assert (second.answer, second.skills, second.prompt_tokens) == (None, (), 1)


def test_plain_questions_are_routed_by_the_profiles(tmp_path: Path) -> None:
    profiles = write(tmp_path, "skills.json", {"A": {"algebra": 9}, "B": {"optics": 9}})
    path = write(
        tmp_path, "plain.json", [{"question": "x", "gold_answer": "1", "keywords": ["optics"], "category": "p"}]
    )
    workload = file_workload(path=path, profiles=profiles, num_slots_per_question=4)
    assert experts_by_question(workload) == {"row-1": ("B", "B", "B", "B")}
    assert workload.questions[0].category == "p"


def test_questions_that_name_their_experts_keep_them_beside_routed_ones(tmp_path: Path) -> None:
    profiles = write(tmp_path, "skills.json", {"A": {"algebra": 9}, "B": {"optics": 9}})
    lines = [{"id": i, "question": "x", "skills": ["algebra"]} for i in range(30)]
    path = write(tmp_path, "q.jsonl", *lines, {"id": "own", "question": "x", "experts": ["B"]})
    slots = experts_by_question(file_workload(path=path, profiles=profiles))
    assert slots["own"] == ("B",)
    assert set(slots["7"]) == {"A"}
    assert file_workload(path=path, profiles=profiles, seed=4) == file_workload(path=path, profiles=profiles, seed=4)


COLOURS = "Which one? The options are: (A) red (B) green (C) blue"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: must be JSON"),
        ([1], r"line 2: must be an object, got an array of 1"),
        ("3", r"line 2: must be an object, got 3"),
        ('{"id": "b", "question": "x", "answer": "A", "answer": "B"}', r"line 2: 'answer' must be given once, got it"),
        ('{"id": "b", "output_tokens": {"A": 1, "A": 2}}', r"line 2: 'A' must be given once, got it twice"),
        (
            '{"id": "b", "question": "x\\ud83d"}',
            r"line 2: 'question' must be text without lone surrogates, got 'x\\ud83d'",
        ),
        ('{"id": "b", "skills": ["\\udc00"]}', r"line 2: 'skills' must be text without lone surrogates, got '\\udc00'"),
        ({"id": [1], "question": "x"}, r"line 2: id must be a string, got \[1\]"),
        ({"id": "a", "question": "x", "experts": ["A"]}, r"line 2: id must be unique, got 'a', which .*line 1 has too"),
        ({"id": "b"}, r"line 2: question must be in one of the columns or keys .*--question-column.*got \['id'\]"),
        ({"id": "b", "question": " "}, r"line 2: question must be in one of the columns or keys"),
        ({"id": "b", "question": 5}, r"line 2: question must be a string, got 5"),
        ({"id": "b", "question": "x", "experts": 5}, r"line 2: experts must be a list of strings, got 5"),
        ({"id": "b", "question": "x", "experts": []}, r"line 2: experts must be a list with at least one name"),
        ({"id": "b", "question": "x", "experts": [3]}, r"line 2: experts must be a string, got 3"),
        ({"id": "b", "question": "x", "experts": ["Z"]}, r"line 2: experts must be of the pool \['A'\], got 'Z'"),
        ({"id": "b", "question": "x"}, r"line 2: experts .* must be given, or workload\.profiles"),
        ({"id": "b", "question": "x", "answer": [4]}, r"line 2: answer must be a text or a number, got \[4\]"),
        ({"id": "b", "question": "x", "options": "red"}, r"line 2: options must be a list of texts, such as"),
        ({"id": "b", "question": "x", "options": ["red"]}, r"line 2: options must be a list of 2 to 26 texts"),
        (
            {"id": "b", "question": "x", "options": ["red", "green"], "answer": "blue"},
            r"line 2: answer must be the letter or the text of an option, got 'blue'",
        ),
        (
            {"id": "b", "question": "x", "options": ["red", "green"], "answer": 5},
            r"line 2: answer must be the position of an option, 0 to 1, got 5",
        ),
        (
            {"id": "b", "question": COLOURS, "answer": "D"},
            r"line 2: answer must be one of the listed options ABC, got 'D'",
        ),
        ({"id": "b", "prompt_tokens": 0}, r"line 2: prompt_tokens must be at least 1, got 0"),
        ({"id": "b", "prompt_tokens": 1.5}, r"line 2: prompt_tokens must be a whole number, got 1\.5"),
        ({"id": "b", "question": "x", "output_tokens": [0]}, r"line 2: output_tokens\[0\] must be at least 1"),
        ({"id": "b", "question": "x", "output_tokens": {"A": "9"}}, r"line 2: output_tokens\.A must be a whole number"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path, "q.jsonl", {"id": "a", "question": "x", "experts": ["A"]}, line)
    with pytest.raises((ValueError, TypeError), match=r"q\.jsonl, " + message):
        file_workload(path=path, pool=["A"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"line 2: output_tokens must be on every line or on none"),
        ([1, 2, 3], r"line 2: output_tokens must be a list of 2 numbers, one per slot, got \[1, 2, 3\]"),
        ({"A": 4}, r"line 2: output_tokens must be a mapping that has expert 'B', got \{'A': 4\}"),
    ],
)
def test_recorded_lengths_must_cover_every_slot(tmp_path: Path, given: object, message: str) -> None:
    path = write(
        tmp_path,
        "q.jsonl",
        {"id": "a", "question": "x", "experts": ["A"], "output_tokens": 3},
        {"id": "b", "question": "x", "experts": ["A", "B"], "output_tokens": given},
    )
    with pytest.raises(ValueError, match=message):
        file_workload(path=path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["frage,solvers", "x,['A']"],
            r"q\.csv, line 2: question must be in one of the columns .* got \['frage', 'solvers'\]",
        ),
        (["question,solvers", "x"], r"q\.csv, line 2: must have 2 columns"),
        (["question,solvers", "x,['A'],y"], r"q\.csv, line 2: must have 2 columns"),
        (["question,solvers", ",['A']"], r"q\.csv, line 2: question must be in one of the columns"),
        (["question,solvers", "x,[3]"], r"q\.csv, line 2: solvers must be a string, got 3"),
        (["question,solvers", "x,[]"], r"q\.csv, line 2: solvers must be a list with at least one name"),
        (["question,solvers", "x,"], r"q\.csv, line 2: experts \(solvers in a table\) must be given"),
        (["question,solvers", '"x"y,[]'], r"q\.csv, line 2: must be CSV"),
        (["question,solvers"], r"q\.csv: must be a file with at least one question, got none"),
        ([""], r"q\.csv: must be a file with at least one question, got none"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        file_workload(path=write(tmp_path, "q.csv", *lines))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"questions": [\n{"question": "x"}]}', r"q\.json: must be a list of questions or have an object a line, got"),
        ("[", r"q\.json: must be JSON"),
        ('["x"]', r"q\.json, row 1: must be an object, got 'x'"),
        ('[{"gold_answer": "B"}]', r"q\.json, row 1: question must be in one of the columns or keys"),
        ("[]", r"q\.json: must be a file with at least one question"),
        ("[[1, 2]]", r"q\.json, row 1: must be an object, got an array of 2"),
        (
            '[{"question": "x", "answer": "A", "gold_answer": "B"}]',
            r"row 1: answer must be given once, got \['answer', 'gold_answer'\]",
        ),
        ('[{"question": "x", "question": "y"}]', r"q\.json: 'question' must be given once, got it twice"),
        ('[{"id": "a", "question": "x"}, {"id": "a", "question": "y"}]', r"row 2: id must be unique, got 'a'"),
        ('[{"question": "x", "solvers": 5, "notes": 1}]', r"q\.json, row 1: solvers must be a list of strings"),
    ],
)
def test_a_bad_list_of_questions_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        file_workload(path=write(tmp_path, "q.json", content))


def test_a_list_in_our_words_is_read_as_it_is(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "question": "Find it.", "experts": ["A", "B"], "answer": "7", "output_tokens": [5, 6]},
        {"id": 2, "prompt_tokens": 40, "experts": ["B"], "skills": ["optics"], "output_tokens": 9},
    ]
    from_list = file_workload(path=write(tmp_path, "q.json", json.dumps(lines, indent=2)))
    assert from_list == file_workload(path=write(tmp_path, "q.jsonl", *lines))
    assert [question.id for question in from_list.questions] == ["a", "2"]


def test_a_table_of_objects_keeps_its_ids_and_may_have_other_columns(tmp_path: Path) -> None:
    rows = [{"question": "x", "gold_answer": "B", "solvers": ["A"], "id": "mine", "notes": [1]}, {"question": "y"}]
    rows[1] |= {"solvers": ["B"]}
    first, second = file_workload(path=write(tmp_path, "q.json", json.dumps(rows))).questions
    assert (first.id, first.answer, second.id) == ("mine", "B", "row-2")


def test_unusable_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: must be a readable file \(No such file or directory\)"):
        file_workload(path=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"workload\.template_tokens must be at least 0"):
        file_workload(path="q.csv", template_tokens=-1)
    with pytest.raises(ValueError, match=r"workload\.answers must be one of .*'text'\], got 'words'"):
        file_workload(path="q.csv", answers="words")
    with pytest.raises(ValueError, match=r"workload\.bad_lines must be one of \['refuse', 'leave_out'\], got 'skip'"):
        file_workload(path="q.csv", bad_lines="skip")
    with pytest.raises(ValueError, match=r"workload\.limit must be at least 1, got 0"):
        file_workload(path="q.csv", limit=0)


def line(name: str = "a", **body: Any) -> dict[str, Any]:
    body = {"model": "any", "messages": [{"role": "user", "content": "Is 7 prime?"}]} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def read(folder: Path, *lines: object, name: str = "q.jsonl", end: str = "\n", **options: Any) -> Workload:
    path = folder / name
    text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + end for entry in lines)
    path.write_bytes(text.encode(options.pop("encoding", "utf-8")))
    return file_workload(path=path, **{"experts": ["A", "B"], **options})


def test_a_batch_file_gives_questions_with_their_chat_and_sampling(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Is 7 "}, {"type": "text", "text": "prime?"}]},
    ]
    sampling = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 50, "seed": 7, "stop": "END", "metadata": {"x": "y"}}
    workload = read(tmp_path, line("first"), line("second", messages=talk, **sampling))
    first, second = workload.questions
    assert (first.id, first.text, first.context, first.sampling) == ("first", "Is 7 prime?", (), None)
    assert second.text == "Is 7 prime?"
    assert second.context == (Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hi"))
    assert second.sampling == Sampling(temperature=0.2, top_p=0.9, max_output_tokens=50, seed=7, stop=("END",))
    tokens = {call.key.question: call.prompt_tokens for call in workload.calls}
    assert tokens["second"] - tokens["first"] == second.context_tokens == 3 + 2 + 1


def test_an_expert_reads_the_chat_and_a_lone_question_as_before(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 7 prime?"}]
    workload = read(tmp_path, line("plain"), line("chat", messages=talk))
    graph = mixture_of_agents(None, rule=Never(), compare=comparisons())
    prompts = {
        call.key.question: graph.prompt(question, call, {})
        for question in workload.questions
        for call in workload.calls
        if call.key.question == question.id
    }
    assert prompts["plain"] == "Is 7 prime?"
    assert prompts["chat"] == Chat((Message("system", "Be brief."), Message("user", "Is 7 prime?")))


def test_a_completions_line_is_a_question(tmp_path: Path) -> None:
    entry = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "Is 7 prime?", "max_tokens": 5}}
    (question,) = read(tmp_path, entry).questions
    assert (question.text, question.sampling) == ("Is 7 prime?", Sampling(max_output_tokens=5))


def test_gold_answers_and_experts_may_stand_beside_a_batch_line(tmp_path: Path) -> None:
    workload = read(tmp_path, line() | {"answer": "7", "experts": ["B", "B"]}, experts=None)
    assert (workload.questions[0].answer, workload.questions[0].answer_kind) == ("7", AnswerKind.MATH)
    assert [call.expert for call in workload.calls] == ["B", "B"]


def test_missing_keys_are_made_up(tmp_path: Path) -> None:
    lines = [
        {"question": "x"},
        {"prompt": "y"},
        {"messages": [{"role": "user", "content": "z"}]},
        {"id": None, "question": "w"},
    ]
    workload = read(tmp_path, *lines)
    assert [(question.id, question.text) for question in workload.questions] == [
        ("row-1", "x"), ("row-2", "y"), ("row-3", "z"), ("row-4", "w"),
    ]  # fmt: skip
    assert [call.expert for call in workload.calls] == ["A", "B"] * 4


def test_a_draw_of_experts_knows_its_question_alone() -> None:
    pool = ["A", "B", "C", "D", "E"]
    drawn = {f"q{i}": draw_experts(pool, f"q{i}", 3, seed=0) for i in range(2000)}
    assert all(len(set(experts)) == 3 for experts in drawn.values())
    counts = [sum(name in experts for experts in drawn.values()) for name in pool]
    assert all(abs(count - 1200) < 5 * (2000 * 0.6 * 0.4) ** 0.5 for count in counts), "each is as likely"
    assert drawn["q7"] == draw_experts(pool, "q7", 3, seed=0) != draw_experts(pool, "q7", 3, seed=1)


def test_csv_and_parquet_need_no_names_of_ours(tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    table.write_text("prompt,answer,source\nIs 7 prime?,yes,book\n")
    (question,) = file_workload(path=table, experts=["A"]).questions
    assert (question.id, question.text, question.answer) == ("row-1", "Is 7 prime?", "yes")
    rows = [{"id": "p", "question": "Is 7 prime?", "experts": ["A", "B"], "extra": 1}, {"id": "q", "question": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    workload = file_workload(path=tmp_path / "q.parquet", experts=["C"])
    assert [(call.key.question, call.expert) for call in workload.calls] == [("p", "A"), ("p", "B"), ("q", "C")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_empty_lines_and_a_mark_at_the_start_are_no_matter(tmp_path: Path, end: str, encoding: str) -> None:
    workload = read(tmp_path, line("a"), line("b"), end=end, encoding=encoding)
    assert [question.id for question in workload.questions] == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("a"), line("a")], r"line 2: id must be unique, got 'a', which .*line 1 has too"),
        ([line() | {"method": "GET"}], "line 1: method must be POST, got 'GET'"),
        ([line() | {"url": "/v1/embeddings"}], "line 1: url must be one of"),
        ([{"custom_id": "a"}], "line 1: body must be an object with messages, got None"),
        ([line(messages=[])], r"body\.messages must be a list with at least one message"),
        ([line(messages=[{"role": "robot", "content": "x"}])], r"body\.messages\[0\]\.role must be one of"),
        ([line(messages=[{"role": "assistant", "content": "x"}])], r"role must be user: the last message is the"),
        ([line(messages=[{"role": "user", "content": ""}])], r"messages\[0\]\.content must be a non-empty string"),
        ([line(messages=[{"role": "user", "content": [{"type": "image_url"}]}])], "type of a part must be text"),
        ([line(n=3)], r"body\.n must be left out or 1, as a final answer is one text of several models, got 3"),
        ([line(stream=True)], r"body\.stream must be left out or False"),
        ([line(tools=[{}])], r"body\.tools must be left out or \[\]"),
        ([line(response_format={"type": "json_object"})], r"body\.response_format must be left out"),
        ([line(temperature=3)], r"line 1: body\.temperature must be at most 2, got 3"),
        ([line(temperature="hot")], r"line 1: body\.temperature must be a number, got 'hot'"),
        ([line(max_tokens=0)], r"body\.max_tokens must be at least 1, got 0"),
        ([line(max_tokens=5, max_completion_tokens=5)], r"body\.max_completion_tokens must be given under one name"),
        ([line(stop=5)], r"body\.stop must be a text or a list of texts, got 5"),
        ([line(top_p=0)], r"body\.top_p must be above 0, got 0"),
        ([line(best_of=3)], r"body\.best_of must be left out or 1, as a final answer is one text of several models"),
        ([line(audio={"voice": "x"})], r"body\.audio must be left out, as a final answer is one text"),
        ([line() | {"body": 5}], r"line 1: body must be an object with messages, got 5"),
        ([line(stop=[""])], r"line 1: body\.stop must be a list of texts that are not empty, got ''"),
        ([{"question": "x", "prompt": "y"}], r"question must be given once; --question-column names the one to ask"),
        ([{"question": "x"}, '{"question": "y'], r"line 2: must be JSON"),
        (["[1]"], "row 1: must be an object, got 1"),
        ([], "must be a file with at least one question"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_a_line(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        read(tmp_path, *lines)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_still_being_written_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(line("a")) + "\n" + json.dumps(line("b"))[:40])
    with pytest.raises(ValueError, match=r"line 2: must be JSON.*is the file still being written\?"):
        file_workload(path=path, experts=["A"])


@pytest.mark.parametrize("change", [{"experts": []}, {"experts": "A"}, {"experts": ["A", "A"]}, {"profiles": "p.json"}])
def test_bad_experts_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"workload\.(experts|profiles) must be"):
        read(tmp_path, {"question": "x"}, **change)
