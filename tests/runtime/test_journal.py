"""Records on the disk: whole or not there, whoever is killed; and the lock of their folder, held by one command."""

import errno
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mosaic.core.commands import Action, Cancel, Close, Cut, Move, Open, Submit, decode_action, encode_action
from mosaic.core.errors import InUseError, RunFolderError
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, CallStatus, Response, Resumption, StoredText
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.runtime import log as log_file
from mosaic.runtime.journal import (
    FILE_NAME,
    ClosedSession,
    EndedCall,
    Journal,
    JournalState,
    JournalTexts,
    OpenedSession,
    as_kept,
    read_entries,
    read_journal,
    resumptions_of,
)
from mosaic.runtime.log import JournalError, Log, frame, lines_of, make_folder
from mosaic.runtime.run_lock import LOCK_NAME, hold, is_held
from tests.commands.command_line import ROOT
from tests.engines.executor_runs import FullDisk


def encode(record) -> bytes:
    return frame(msgspec.json.encode(record))


def numbers(path: Path) -> list[int]:
    return [msgspec.json.decode(text)["number"] for _, _, text in lines_of(path) if text is not None]


def contents(path: Path):
    texts = [line.text for line in lines_of(path)]
    return [msgspec.json.decode(text) for text in texts if text is not None], texts.count(None)


def append(log: Log, *numbers: int) -> None:
    log.append([encode({"number": number}) for number in numbers])


def written(path: Path, *numbers: int) -> bytes:
    with closing(Log(path)) as log:
        append(log, *numbers)
    return path.read_bytes()


def test_a_log_that_does_not_exist_holds_nothing(tmp_path):
    assert list(lines_of(tmp_path / "none.journal")) == []
    assert read_journal(tmp_path / "none") == JournalState()


@pytest.mark.parametrize("kept", range(1, 20))
def test_a_torn_last_record_is_dropped_and_overwritten(tmp_path, kept):
    log = tmp_path / "a.journal"
    whole = written(log, 1, 2)
    log.write_bytes(whole + encode({"number": 3})[:kept])
    assert contents(log) == ([{"number": 1}, {"number": 2}], 1)
    written(log, 4)
    assert contents(log) == ([{"number": 1}, {"number": 2}, {"number": 4}], 0)


def test_a_torn_record_longer_than_any_buffer_is_cut_off(tmp_path):
    log = tmp_path / "a.journal"
    log.write_bytes(encode({"number": 1}) + encode({"text": "x" * 200_000})[:-1])
    written(log, 2)
    assert numbers(log) == [1, 2]
    log.write_bytes(b"x" * 200_000)
    written(log, 3)
    assert numbers(log) == [3]


def test_a_record_that_changed_on_the_disk_is_dropped_wherever_it_stands(tmp_path):
    log = tmp_path / "a.journal"
    data = bytearray(written(log, 1, 2, 3))
    middle = data.index(b'"number":2') + len(b'"number":')
    data[middle] = ord("7")
    log.write_bytes(bytes(data))
    assert contents(log) == ([{"number": 1}, {"number": 3}], 1)


@pytest.mark.parametrize("line", [b"", b"0", b"zz {}", b"\0" * 4096, b"00000000 {}"])
def test_a_line_without_its_checksum_is_no_record(tmp_path, line):
    log = tmp_path / "a.journal"
    log.write_bytes(line + b"\n" + encode({"number": 1}))
    assert contents(log) == ([{"number": 1}], 1)


def failing(file: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("operation", "broken", "message"),
    [
        *(("pwrite", FullDisk(room), "No space left on device.*again") for room in (0, 1, 10, 40, 60)),
        ("fdatasync", failing, "Input/output error"),
    ],
)
def test_what_cannot_be_written_leaves_whole_records_and_says_what_to_do(
    tmp_path, monkeypatch, operation, broken, message
):
    path = tmp_path / "a.journal"
    with closing(Log(path)) as log:
        append(log, 1)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(log_file.os, operation, broken)
            with pytest.raises(JournalError, match=rf"a\.journal cannot be written: {message}"):
                append(log, 2, 3, 4)
        assert path.read_bytes() == before
        append(log, 5)
    assert numbers(path) == [1, 5]


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(log_file.os, "pwrite", lambda file, data, at: write(file, data[:7], at))
    written(tmp_path / "a.journal", 1, 2, 3)
    assert numbers(tmp_path / "a.journal") == [1, 2, 3]


def test_each_append_is_synced_before_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(log_file.os, "fdatasync", lambda file: synced.append(os.fstat(file).st_size))
    with closing(Log(tmp_path / "a.journal")) as log:
        for number in range(3):
            append(log, number)
            assert synced[-1] == (tmp_path / "a.journal").stat().st_size
    assert len(synced) == 3


def test_a_log_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(JournalError, match=r"none/a\.journal cannot be opened: No such file"):
        Log(tmp_path / "none" / "a.journal")


def start_writer(folder: Path, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runtime.journal_writer", str(folder), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_kills_at_any_moment_lose_nothing_that_was_acknowledged_and_repeat_nothing(tmp_path):
    rng, log, first = random.Random(0), tmp_path / FILE_NAME, 0
    for _ in range(3):
        with start_writer(tmp_path, first) as writer:
            for _ in range(rng.randint(1, 30)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        found = numbers(log)
        assert found == list(range(len(found)))
        assert len(found) > acknowledged
        first = len(found)


def test_a_second_command_is_told_at_once_who_is_there_and_a_killed_one_lets_go(tmp_path):
    with start_writer(tmp_path, 0) as writer:
        writer.stdout.readline()
        who = rf"another command is at work there \(process {writer.pid} on {socket.gethostname()}\)"
        with pytest.raises(InUseError, match=who), hold(tmp_path):
            pass
        assert writer.poll() is None, "it goes on"
        assert is_held(tmp_path)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert not is_held(tmp_path)
        with hold(tmp_path):
            assert (tmp_path / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/journal/lock: cannot be opened"), hold(tmp_path / "file/journal"):
        pass


ENTRIES = [
    EndedCall(
        CallRecord(
            CallKey("q", PROPOSE, 2), "A", 3, (0, 1), 9, 3, 1.25, None, 1.5, 2.0, attempt=1, visible_tokens=0,
            response=Response("so \u2014 B\n", (4, 5, 6), "stop", thinking_opened=True, fingerprint="f"),
        )
    ),
    EndedCall(
        CallRecord(
            CallKey("q", AGGREGATE, 0), "A", 3, (0,), 9, 0, 0.0, None, None, 0.5, status=CallStatus.FAILED,
            response=Response(error="it broke", fingerprint="g"),
        )
    ),
    OpenedSession(session=3, expert="A", node=PROPOSE, workers=(0,), load_start_ts=0.0, load_s=4.5, start_ts=4.5),
    ClosedSession(session=3, end_ts=7.5, cpu_s=2.5),
]  # fmt: skip


STORED = StoredText(JournalTexts(Path("journal")), 0, 0)
"""Where no text is."""


def written_by(journal: Journal, *entries) -> Journal:
    make_folder(journal.folder)
    for entry in entries:
        journal.add(entry)
    journal.sync()
    return journal


def test_entries_survive_the_disk(tmp_path):
    state = written_by(Journal(tmp_path), *ENTRIES).state
    assert list(read_entries(tmp_path)) == ENTRIES
    assert Journal(tmp_path).state == state
    assert state.opened == {3: [ENTRIES[2]]}


def state_of(*entries) -> JournalState:
    state = JournalState()
    for entry in entries:
        state.add(entry, STORED)
    return state


def test_a_state_keeps_all_but_texts_and_token_ids():
    record = ENTRIES[0].record
    assert record.response.token_ids
    kept, failed = state_of(*ENTRIES).ended
    assert (kept.response.content, kept.response.token_ids) == (STORED, ())
    assert replace(kept, response=record.response) == record
    assert kept.response._replace(content=record.response.content, token_ids=record.response.token_ids) == (
        record.response
    )
    assert failed is ENTRIES[1].record, "it has neither"


def saying(slot: int, text: str) -> EndedCall:
    record = ENTRIES[0].record
    response = record.response._replace(content=text)
    return EndedCall(replace(record, key=CallKey("q", PROPOSE, slot), response=response))


def texts_of(state: JournalState) -> list[str]:
    return [record.response.text for record in state.ended]


def test_texts_are_read_back_from_the_disk_by_what_was_kept_before_and_after(tmp_path):
    """Also behind damaged lines, commands and a torn end."""
    texts = ["", "so \u2014 B\n", "\U0001f600" * 9, "a" * 100_000, '"\\']
    action = Action(1.0, "cause", Cancel(CallKey("q", PROPOSE, 9)))
    journal = Journal(tmp_path)
    written_by(journal, *(saying(slot, text) for slot, text in enumerate(texts[:3])))
    journal.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b"0000 damaged\ntorn")
    again = Journal(tmp_path)
    assert again.begin() == 2.0
    again.write([action])
    written_by(again, *(saying(slot, text) for slot, text in enumerate(texts[3:], start=3)))
    again.close()
    assert texts_of(journal.state) == texts[:3]
    assert texts_of(again.state) == texts_of(read_journal(tmp_path)) == texts


def test_a_call_that_is_added_is_kept_without_its_text(tmp_path):
    journal, record = Journal(tmp_path), saying(0, "B").record
    kept = journal.add_call(record, replace(record, answer="B"))
    journal.sync()
    assert journal.state.ended == [kept]
    assert kept.response == as_kept(record, kept.response.content).response
    assert (kept.answer, kept.response.text) == ("B", "B")
    journal.close()


def test_a_text_that_changed_on_the_disk_or_is_gone_is_an_error(tmp_path):
    written_by(Journal(tmp_path), saying(0, "A"), saying(1, "B")).close()
    path = tmp_path / FILE_NAME
    first, second = read_journal(tmp_path).ended
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 1 :])
    assert first.response.text == "A"
    with pytest.raises(JournalError, match=f"record at byte {len(data) // 2} changed on the disk; start the same run"):
        _ = second.response.text
    (gone,) = read_journal(tmp_path).ended
    path.unlink()
    with pytest.raises(JournalError, match=r"journal\.jsonl cannot be read: No such file"):
        _ = gone.response.text


def test_a_state_knows_what_is_done_and_the_last_instant():
    state = state_of(*ENTRIES)
    assert state.last_ts == 7.5
    assert state.done_keys == {ENTRIES[0].record.key}
    assert state.done(ENTRIES[0].record.key, "f") == as_kept(ENTRIES[0].record, STORED)
    assert state.done(ENTRIES[0].record.key, "changed") is None
    assert state.done(ENTRIES[1].record.key, "g") is None, "it failed"
    assert JournalState().last_ts == 0.0


def test_an_interrupted_session_has_one_record_from_its_first_load_to_its_last_end():
    session = Session(id=3, expert="A", workers=(0,))
    again = OpenedSession(session=3, expert="A", node=PROPOSE, workers=(0,), load_start_ts=5.0, load_s=1, start_ts=6.0)
    calls = [replace(ENTRIES[0].record, session=3, finished_ts=6.5), ENTRIES[1].record]
    record = state_of(ENTRIES[2], again, ENTRIES[3]).session_record(session, calls)
    assert (record.load_start_ts, record.load_s, record.start_ts, record.end_ts) == (0.0, 4.5, 4.5, 7.5)
    assert (record.num_calls, record.output_tokens, record.cpu_s) == (1, 3, None)
    assert state_of(*ENTRIES[2:]).session_record(session, calls).cpu_s == 2.5
    assert state_of(*ENTRIES[2:]).session_record(Session(id=3, expert="B", workers=(0,)), ()) is None
    assert state_of(ENTRIES[3]).session_record(session, calls) is None, "it was never ready"


KEY = CallKey("q1", PROPOSE, 1)
COMMANDS = [
    Open(Session(id=1, expert="A", workers=(0, 1), shard=(KEY,), after=(0,))),
    Submit(Call(KEY, "A", 10, 1.0, (KEY, CallKey("\u00e9/ q", "node", 0))), "A"),
    Submit(Call(KEY, "A", 10), 4),
    Cancel(KEY),
    Cut(KEY, 7),
    Move(KEY, 3),
    Close(2),
]
ACTIONS = [Action(0.5 * number, f"finished {KEY}", command) for number, command in enumerate(COMMANDS)]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action.command).__name__)
def test_actions_are_lines_of_json_and_come_back_equal(action):
    line = encode_action(action)
    assert b"\n" not in line
    assert list(msgspec.json.decode(line))[:3] == ["ts", "cause", "kind"]
    assert decode_action(line) == action
    assert hash(decode_action(line).command) == hash(action.command)
    assert isinstance(getattr(decode_action(line).command, "key", KEY), CallKey)


@pytest.mark.parametrize(
    "line", [b"{}", b'{"ts":1,"cause":"x","kind":"dance"}', b'{"ts":1,"cause":"x","kind":"close"}']
)
def test_what_is_no_action_is_refused(line):
    with pytest.raises(msgspec.ValidationError):
        decode_action(line)


def test_all_that_is_added_is_on_the_disk_in_one_piece_when_it_is_synced(tmp_path, monkeypatch):
    synced, sync = [], os.fdatasync
    monkeypatch.setattr(log_file.os, "fdatasync", lambda file: synced.append(sync(file)))
    log = Journal(tmp_path)
    assert log.state.actions == []
    log.write(ACTIONS[:3])
    log.add(ENTRIES[0])
    log.write([])
    log.write(ACTIONS[3:])
    assert (tmp_path / FILE_NAME).read_bytes() == b""
    log.sync()
    log.sync()
    log.close()
    assert len(synced) == 1
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b"torn")
    again = Journal(tmp_path)
    assert again.state.actions == ACTIONS
    assert again.state.done_keys == {ENTRIES[0].record.key}
    assert (again.state.num_damaged, again.state.last_ts, again.last_ts) == (1, 2.0, 3.0)
    again.add(ENTRIES[1])
    again.sync()
    assert [len(read_journal(tmp_path).ended), read_journal(tmp_path).num_damaged] == [2, 0]


def test_what_an_interrupt_stops_behind_its_sync_is_not_added_twice(tmp_path, monkeypatch):
    def interrupted(file, sync=os.fdatasync):
        sync(file)
        raise KeyboardInterrupt

    log = Journal(tmp_path)
    log.add(ENTRIES[0])
    with monkeypatch.context() as patch:
        patch.setattr(log_file.os, "fdatasync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.sync()
    log.close()
    log.sync()
    assert len(read_journal(tmp_path).ended) == 1


def test_a_log_of_commands_knows_when_its_run_went_on(tmp_path, monkeypatch):
    """It stopped after 40 s of its clock at the latest, and went on 100 s after it had begun."""
    for ts, unix_s in ((0.0, 1000.0), (40.0, 1100.0), (70.0, 1131.5)):
        monkeypatch.setattr("mosaic.runtime.journal.time.time", lambda unix_s=unix_s: unix_s)
        log = Journal(tmp_path)
        log.write([Action(ts, "tick", Close(0))])
        log.sync()
        assert Journal(tmp_path).begin() == ts
    assert resumptions_of(read_journal(tmp_path).starts) == (Resumption(40.0, 60.0), Resumption(70.0, 1.5))
    assert read_journal(tmp_path).last_ts == 0.0, "neither starts nor commands are what happened"


def test_a_run_of_which_nothing_was_kept_begins_anew(tmp_path):
    assert resumptions_of(read_journal(tmp_path).starts) == ()
    for _ in range(2):
        Journal(tmp_path).begin()
    assert resumptions_of(read_journal(tmp_path).starts) == ()
