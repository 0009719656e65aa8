import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from mosaic.core.results import SessionRecord
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.report.tables import answers_parquet, calls_parquet, sessions_parquet
from tests.run_records import (
    SMALL_ANSWERS,
    make_failed,
    make_session,
    make_small_aggregator_plan,
    make_small_plan,
    make_small_run,
    make_two_stage_run,
)

CALL_COLUMNS = [
    "question", "node", "role", "slot", "expert", "session", "workers", "prompt_tokens", "predicted_output_tokens",
    "output_tokens", "queued_ts", "admitted_ts", "first_token_ts", "finished_ts", "num_preemptions", "attempt",
    "cached_tokens", "wasted_tokens", "status", "answer", "visible_tokens",
]  # fmt: skip
ANSWER_COLUMNS = ["question", "answer", "source", "confidence", "votes", "gold", "correct"]
SESSION_COLUMNS = [
    "session", "expert", "node", "workers", "load_start_ts", "load_s", "start_ts", "end_ts", "num_calls",
    "output_tokens", "output_tok_per_s",
]  # fmt: skip


def read(content: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(content))


def test_calls_have_the_contract_columns_and_one_row_a_record():
    run = make_small_run()
    table = read(calls_parquet(run.calls, {PROPOSE: make_small_plan().lengths}))
    assert table.column_names == CALL_COLUMNS
    assert table.schema.field("workers").type == pa.list_(pa.int32())
    assert table.to_pylist()[2] == {
        "question": "q2", "node": "propose", "role": "propose", "slot": 0, "expert": "C", "session": 2, "workers": [1],
        "prompt_tokens": 100, "predicted_output_tokens": 12.5, "output_tokens": 11, "queued_ts": 1.0,
        "admitted_ts": 2.0, "first_token_ts": 3.0, "finished_ts": 8.0, "num_preemptions": 0, "attempt": 0,
        "cached_tokens": 0, "wasted_tokens": 0, "status": "finished", "answer": "B", "visible_tokens": None,
    }  # fmt: skip


def test_a_table_of_several_blocks_has_the_same_rows(monkeypatch: pytest.MonkeyPatch):
    calls = make_two_stage_run().calls
    whole = read(calls_parquet(calls, {}))
    monkeypatch.setattr("mosaic.report.tables.BLOCK_ROWS", 3)
    content = calls_parquet(calls, {})
    assert pq.ParquetFile(pa.BufferReader(content)).num_row_groups == 2
    assert read(content) == whole
    assert read(answers_parquet([])).column_names == ANSWER_COLUMNS


def test_a_role_is_its_nodes_label():
    rows = read(calls_parquet(make_two_stage_run().calls, {}, {AGGREGATE: "judge"})).to_pylist()
    assert [(row["node"], row["role"]) for row in rows] == [("propose", "propose")] * 3 + [("aggregate", "judge")]


def test_prediction_is_that_of_the_calls_node():
    run = make_two_stage_run()
    plan, after = make_small_plan(), make_small_aggregator_plan()
    one_expert = [replace(record, expert="A", visible_tokens=7) for record in run.calls]
    lengths = {PROPOSE: plan.lengths, AGGREGATE: {"A": after.lengths["Z"]}}
    rows = read(calls_parquet(one_expert, lengths)).to_pylist()
    assert [(row["role"], row["predicted_output_tokens"]) for row in rows] == [
        ("propose", 12.5), ("propose", 12.5), ("propose", 12.5), ("aggregate", 300.0),
    ]  # fmt: skip
    assert {row["visible_tokens"] for row in rows} == {7}
    alone = read(calls_parquet(one_expert, {PROPOSE: plan.lengths})).to_pylist()
    assert alone[3]["predicted_output_tokens"] is None


def test_missing_times_and_predictions_are_null():
    row = read(calls_parquet([make_failed("q9")], {})).to_pylist()[0]
    assert row["status"] == "failed"
    for column in (
        "predicted_output_tokens", "admitted_ts", "first_token_ts", "finished_ts", "answer", "visible_tokens",
    ):  # fmt: skip
        assert row[column] is None


def test_answers_have_the_contract_columns_and_one_row_a_question():
    table = read(answers_parquet(SMALL_ANSWERS))
    assert table.column_names == ANSWER_COLUMNS
    assert table.schema.field("votes").type == pa.list_(pa.string())
    assert table.schema.field("correct").type == pa.bool_()
    rows = [
        dict(zip(ANSWER_COLUMNS, row, strict=True))
        for row in (
            ("q0", "C", "aggregator", 0.5, ["A", None], "C", True),
            ("q1", None, "majority", None, ["red", "green"], None, None),
            ("q2", "B", "majority", 1.0, ["B", "B"], "A", False),
        )
    ]
    assert table.to_pylist() == rows


def test_run_without_records_still_has_the_columns():
    assert read(calls_parquet([], {})).column_names == CALL_COLUMNS
    assert read(sessions_parquet([])).column_names == SESSION_COLUMNS
    assert read(answers_parquet([])).column_names == ANSWER_COLUMNS


def test_sessions_have_the_contract_columns_and_one_row_a_session():
    sessions = (*make_small_run().sessions, make_session(3, workers=(0, 1), load=(80.0, 80.0), end_ts=80.0))
    content = sessions_parquet(sessions)
    table = read(content)
    assert table.column_names == SESSION_COLUMNS
    assert table["output_tok_per_s"].to_pylist() == [10.0, 16.0, pytest.approx(400 / 30), None]
    rows = [{**row, "workers": tuple(row["workers"])} for row in table.drop_columns("output_tok_per_s").to_pylist()]
    assert [SessionRecord(**row) for row in rows] == list(sessions)
