import json

from mosaic.report.trace import trace_lines
from tests.run_records import make_failed, make_record, make_result, make_session, make_small_run, make_two_stage_run


def events(result, **wanted):
    found = json.loads(b"".join(trace_lines(result)))["traceEvents"]
    return [event for event in found if all(event.get(key) == value for key, value in wanted.items())]


def test_each_worker_is_a_process_with_a_name():
    names = [(e["pid"], e["args"]["name"]) for e in events(make_small_run(), ph="M", name="process_name")]
    assert names == [(0, "worker 0"), (1, "worker 1")]


def test_spans_are_loads_and_sessions_in_microseconds():
    spans = [(e["name"], e["ts"], e["dur"]) for e in events(make_small_run(), ph="X", pid=0)]
    assert spans == [
        ("load A", 0, 10_000_000),
        ("A", 10_000_000, 40_000_000),
        ("load B", 50_000_000, 5_000_000),
        ("B", 55_000_000, 25_000_000),
    ]


def test_gang_shows_on_each_worker_and_a_resident_expert_has_no_load():
    gang = make_result(make_session(workers=(0, 1), load=(0.0, 0.0)))
    assert [(e["pid"], e["name"]) for e in events(gang, ph="X")] == [(0, "A"), (1, "A")]


def test_counter_rises_at_admission_falls_at_finish_and_ends_at_zero():
    calls = (
        make_record("q0", admitted_ts=1.0, finished_ts=3.0),
        make_record("q1", admitted_ts=1.0, finished_ts=2.0),
        make_record("q2", admitted_ts=2.0, finished_ts=3.0),  # takes q1's place: no change at 2 s
        make_failed("q3"),
    )
    counts = [(e["ts"], e["args"]["calls"]) for e in events(make_result(make_session(), calls=calls), ph="C")]
    assert counts == [(1_000_000, 2), (3_000_000, 0)]


def test_both_stages_are_on_one_clock_and_told_apart_by_their_category():
    spans = events(make_two_stage_run(), ph="X", cat="aggregate")
    assert [(e["pid"], e["name"], e["ts"], e["dur"]) for e in spans] == [
        (0, "Z", 90_000_000, 10_000_000), (1, "Z", 90_000_000, 10_000_000),
    ]  # fmt: skip
    assert len(events(make_two_stage_run(), ph="X", cat="propose")) == 3
