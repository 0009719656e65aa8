import json
from pathlib import Path
from typing import Any

import pytest

from mosaic.core.workload import PROPOSE, CallKey, Prefix
from mosaic.report.metrics import latency_s, tpot_s, ttft_s
from mosaic.workloads.request_log import load_request_log, measured_records


def make_line(request_id: str = "r0", **changes: Any) -> dict[str, Any]:
    line = {
        "request_id": request_id,
        "input_toks": 100,
        "output_toks": 11,
        "arrival_time": 1_700_000_000.0,
        "queued_ts": 50.0,
        "scheduled_ts": 50.5,
        "first_token_ts": 51.0,
        "last_token_ts": 53.0,
    }
    return {**line, **changes}


def write_log(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "log.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_log_becomes_calls_in_order_of_arrival_with_true_lengths(tmp_path: Path) -> None:
    late = make_line("late", arrival_time=1_700_000_002.0, queued_ts=52.0, scheduled_ts=52.0, first_token_ts=53.0)
    path = write_log(tmp_path, late, "", make_line("early", input_toks=7, output_toks=3))
    workload = load_request_log(path, expert="A")
    assert [call.key.question for call in workload.calls] == ["early", "late"]
    assert [call.ready_s for call in workload.calls] == [0.0, 2.0]
    assert [call.prompt_tokens for call in workload.calls] == [7, 100]
    assert workload.output_tokens == {CallKey("early", PROPOSE, 0): 3, CallKey("late", PROPOSE, 0): 11}
    assert workload.num_calls_by_expert == {"A": 2}


def test_arrival_counts_from_the_clients_clock_set_by_the_least_delay(tmp_path: Path) -> None:
    # The second request arrived 1 s after the first, but waited 0.4 s for an iteration before it was queued.
    second = make_line("b", arrival_time=1_700_000_001.0, queued_ts=51.4, scheduled_ts=51.4, first_token_ts=52.0)
    requests = measured_records(write_log(tmp_path, make_line("a"), second), expert="A")
    assert [request.queued_ts for request in requests] == pytest.approx([0.0, 1.0])
    assert requests[1].first_token_ts == pytest.approx(2.0)


def test_queued_counts_as_arrival_where_one_line_lacks_the_clients_clock(tmp_path: Path) -> None:
    line = make_line("b", queued_ts=51.4, scheduled_ts=51.4, first_token_ts=52.0)
    del line["arrival_time"]
    requests = measured_records(write_log(tmp_path, make_line("a"), line), expert="A")
    assert [request.queued_ts for request in requests] == pytest.approx([0.0, 1.4])


def test_measured_times_have_the_form_of_a_runs_records(tmp_path: Path) -> None:
    (record,) = measured_records(write_log(tmp_path, make_line()), expert="A")
    assert (ttft_s(record), latency_s(record), record.admitted_ts) == (1.0, 3.0, 0.5)
    assert tpot_s(record) == pytest.approx(0.2)


def make_trace_line(timestamp: float = 0, **changes: Any) -> dict[str, Any]:
    line = {"timestamp": timestamp, "input_length": 1000, "output_length": 20, "hash_ids": [7, 8]}
    return {**line, **changes}


def test_calls_begin_with_what_their_prompts_share(tmp_path: Path) -> None:
    ids = {"a": [0, 1, 2], "b": [0, 1, 3], "c": [0, 9], "d": [4]}
    lines = [make_line(name, hash_ids=hashes) for name, hashes in ids.items()]
    workload = load_request_log(write_log(tmp_path, *lines, make_line("e")), expert="A")
    assert [call.prefix for call in workload.calls] == [
        Prefix((0, 1), 16), Prefix((0, 1), 16), Prefix((0,), 16), None, None,
    ]  # fmt: skip


def test_a_trace_is_a_workload_and_no_measurement(tmp_path: Path) -> None:
    log = write_log(tmp_path, make_trace_line(27_482), make_trace_line(26_000, hash_ids=[7]))
    workload = load_request_log(log, expert="A")
    assert [call.ready_s for call in workload.calls] == [0.0, 1.482]
    assert [call.key.question for call in workload.calls] == ["request-1", "request-0"]
    assert {call.prefix for call in workload.calls} == {Prefix((7,), 512)}
    assert {call.prompt_tokens for call in workload.calls} == {1000}
    assert set((workload.output_tokens or {}).values()) == {20}
    assert measured_records(log, expert="A") == ()


def test_the_size_of_a_logs_blocks_can_be_given(tmp_path: Path) -> None:
    log = write_log(tmp_path, make_trace_line(), make_trace_line())
    calls = load_request_log(log, expert="A", hash_block_tokens=600).calls
    assert [call.prefix for call in calls] == [Prefix((7, 8), 600)] * 2
    with pytest.raises(ValueError, match="workload.hash_block_tokens must be at least 1, got 0"):
        load_request_log(log, expert="A", hash_block_tokens=0)


def test_what_a_log_measured_is_read_whatever_the_size_of_its_blocks(tmp_path: Path) -> None:
    log = write_log(tmp_path, *(make_line(name, input_toks=24, hash_ids=[7, 8, 9]) for name in "ab"))
    assert [call.prefix for call in load_request_log(log, expert="A", hash_block_tokens=8).calls] == [
        Prefix((7, 8, 9), 8), Prefix((7, 8, 9), 8),
    ]  # fmt: skip
    assert len(measured_records(log, expert="A")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"timestamp": 1}, "line 2: input_length must be given, got the fields"),
        (make_trace_line(output_length=0), "line 2: output_length must be at least 1, got 0"),
        (make_trace_line("x"), "line 2: timestamp must be a number, got 'x'"),
        (make_line(), "line 2: timestamp must be given"),
        (make_trace_line(hash_ids=5), "line 2: hash_ids must be a list, got 5"),
        (make_trace_line(hash_ids=[-1]), "line 2: hash_ids must be at least 0, got -1"),
        (
            make_trace_line(hash_ids=[7, 8, 9]),
            "line 2: number of hash_ids must be at most 2 for 1000 tokens in blocks of 512, .*, got 3",
        ),
        (make_trace_line(hash_ids=[5, 8]), "hash_ids must be names of whole beginnings: 8 follows 7 .*, got 5"),
        (make_trace_line(hash_ids=[8]), "hash_ids must be names of whole beginnings: 8 follows 7 .*, got None"),
    ],
)
def test_bad_lines_of_a_trace_are_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load_request_log(write_log(tmp_path, make_trace_line(), line), expert="A")


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in make_line().items() if key != field}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 2: must be JSON, got '{nonsense'"),
        ("[1]", "line 2: must be an object, got an array of 1"),
        ('{"request_id": "b", "request_id": "c"}', "line 2: 'request_id' must be given once, got it twice"),
        (without("input_toks"), "line 2: input_toks must be given"),
        (without("last_token_ts"), "line 2: last_token_ts must be given"),
        (make_line("b", input_toks=0), "line 2: input_toks must be at least 1, got 0"),
        (make_line("b", output_toks=2.5), "line 2: output_toks must be a whole number, got 2.5"),
        (make_line("b", output_toks=-4), "line 2: output_toks must be at least 1, got -4"),
        (make_line("b", queued_ts=float("nan")), "line 2: queued_ts must be finite, got nan"),
        (make_line("b", queued_ts="x"), "line 2: queued_ts must be a number, got 'x'"),
        (make_line("b", arrival_time="x"), "line 2: arrival_time must be a number, got 'x'"),
        (make_line("b", first_token_ts=50.1), "line 2: first_token_ts must be at least scheduled_ts=50.5, got 50.1"),
        (make_line(" "), "line 2: request_id must be a non-empty string"),
        (make_line("a"), "line 2: request_id must be unique, got 'a' twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load_request_log(write_log(tmp_path, make_line("a"), line), expert="A")


def test_unreadable_and_empty_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.jsonl: must be a readable file \(No such file"):
        load_request_log(tmp_path / "none.jsonl", expert="A")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary: must be utf-16, as its byte order mark says"):
        load_request_log(tmp_path / "binary", expert="A")
    with pytest.raises(ValueError, match="must be a log with at least one request"):
        load_request_log(write_log(tmp_path, ""), expert="A")
    with pytest.raises(ValueError, match=r"workload.expert must be a non-empty string"):
        load_request_log(write_log(tmp_path, make_line()), expert="")
