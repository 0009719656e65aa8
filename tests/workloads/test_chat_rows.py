"""Files as people have them: OpenAI's batch format, chats, prompts, CSV and parquet without our names."""

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
        ([line(max_tokens=0)], r"body\.max_output_tokens must be at least 1, got 0"),
        ([line(max_tokens=5, max_completion_tokens=5)], r"body\.max_completion_tokens must be given under one name"),
        ([line(stop=5)], r"body\.stop must be a text or a list of texts, got 5"),
        ([line(top_p=0)], r"body\.top_p must be above 0, got 0"),
        ([line(best_of=3)], r"body: key must be one of"),
        ([line() | {"extra": 1}], r"line 1: key must be one of"),
        ([{"question": "x", "prompt": "y"}], r"question must be given once, as question, prompt or messages"),
        ([{"question": "x"}, '{"question": "y'], r"line 2: must be JSON"),
        (["[1]"], "must have an object a line, got an array"),
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
