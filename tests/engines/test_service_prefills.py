"""Prefills in a session's process: what the engine is asked, and what is told of it."""

from mosaic.engines.messages import Ahead, Finish, Run
from mosaic.runtime.journal_records import ClosedSession, EndedPrefill
from tests.engines.test_session_service import ended, make_spec, serve


def prefills(said):
    return [entry.record for entry in said if isinstance(entry, EndedPrefill)]


def beginning(slot: int, prompt: str):
    return Ahead(make_spec(slot, output_tokens=None, prompt=prompt))


def test_a_beginning_is_read_and_is_no_call():
    said = serve(make_spec(0, output_tokens=40), later={2: [beginning(7, "abc")], 12: [Finish()]})
    (record,) = prefills(said)
    assert (record.key.slot, record.prompt_tokens, record.computed_tokens, record.session) == (7, 3, 3, 4)
    assert 1.0 < record.queued_ts <= record.finished_ts
    assert list(ended(said)) == [0]


def test_the_call_takes_the_place_of_its_beginning():
    call = make_spec(7)
    said = serve(make_spec(0, output_tokens=40), later={2: [beginning(7, "abc"), Run((call,)), Finish()]})
    (record,) = prefills(said)
    assert (record.prompt_tokens, record.computed_tokens) == (3, 0), "it had not been started"
    assert ended(said)[7].output_tokens == 3


def test_a_longer_beginning_takes_the_place_of_a_shorter_one():
    said = serve(
        make_spec(0, output_tokens=40),
        later={2: [beginning(7, "abc"), beginning(7, "abcdef"), beginning(8, "ab")], 20: [Finish()]},
    )
    assert [(record.key.slot, record.prompt_tokens, record.computed_tokens) for record in prefills(said)] == [
        (7, 3, 0), (7, 6, 6), (8, 2, 2),
    ]  # fmt: skip


def test_what_the_engine_refuses_is_left_to_the_call():
    said = serve(make_spec(0, output_tokens=20), later={2: [beginning(7, "refuse")], 8: [Finish()]})
    assert prefills(said) == []
    assert list(ended(said)) == [0]


def test_a_session_does_not_wait_for_what_nobody_will_read():
    said = serve(make_spec(0, output_tokens=3), later={2: [beginning(7, "abc"), beginning(8, "ab"), Finish()]})
    assert isinstance(said[-1], ClosedSession)
    assert [record.key.slot for record in prefills(said)] in ([7, 8], [8, 7])
