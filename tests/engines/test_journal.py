"""Records on the disk: whole or not there, whoever is killed."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.runtime import journal
from mosaic.runtime.journal import JournalError, Log, encode, hold, read_journal, read_log
from mosaic.runtime.journal_records import (
    ClosedSession,
    EndedCall,
    JournalView,
    OpenedSession,
    from_record,
    to_record,
    view,
)

ROOT = Path(__file__).resolve().parents[2]


def numbers(path: Path) -> list[int]:
    return [record["number"] for record in read_log(path).records]


def written(path: Path, *numbers: int) -> bytes:
    with Log(path) as log:
        log.append([{"number": number} for number in numbers])
    return path.read_bytes()


def test_what_was_appended_is_read_in_order(tmp_path):
    log = tmp_path / "a.journal"
    written(log, 1, 2)
    written(log, 3)
    assert numbers(log) == [1, 2, 3]
    assert read_log(log).num_damaged == 0


def test_a_log_that_does_not_exist_holds_nothing(tmp_path):
    assert read_log(tmp_path / "none.journal") == ([], 0)
    assert read_journal(tmp_path / "none") == ([], 0)


def test_a_journal_is_all_its_logs(tmp_path):
    written(tmp_path / "worker-1.journal", 5)
    written(tmp_path / "worker-0.journal", 1, 2)
    (tmp_path / "notes.txt").write_text("not a log")
    assert [record["number"] for record in read_journal(tmp_path).records] == [1, 2, 5]


@pytest.mark.parametrize("kept", range(1, 20))
def test_a_torn_last_record_is_dropped_and_overwritten(tmp_path, kept):
    log = tmp_path / "a.journal"
    whole = written(log, 1, 2)
    log.write_bytes(whole + encode({"number": 3})[:kept])
    assert read_log(log) == ([{"number": 1}, {"number": 2}], 1)
    written(log, 4)
    assert read_log(log) == ([{"number": 1}, {"number": 2}, {"number": 4}], 0)


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
    assert read_log(log) == ([{"number": 1}, {"number": 3}], 1)


@pytest.mark.parametrize("line", [b"", b"0", b"zz {}", b"\0" * 4096, b"00000000 {}"])
def test_a_line_without_its_checksum_is_no_record(tmp_path, line):
    log = tmp_path / "a.journal"
    log.write_bytes(line + b"\n" + encode({"number": 1}))
    assert read_log(log) == ([{"number": 1}], 1)


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with Log(tmp_path / "a.journal") as log:
        with pytest.raises(ValueError, match="JSON"):
            log.append([{"number": float("nan")}])
        log.append([{"number": 1}])
    assert numbers(tmp_path / "a.journal") == [1]


class FullDisk:
    """Takes some bytes more, then says that the disk is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.pwrite

    def __call__(self, file: int, data: bytes, at: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.write(file, data[: self.room], at)
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 10, 40, 60])
def test_a_full_disk_leaves_whole_records_and_says_what_to_do(tmp_path, monkeypatch, room):
    path = tmp_path / "a.journal"
    with Log(path) as log:
        log.append([{"number": 1}])
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(journal.os, "pwrite", FullDisk(room))
            with pytest.raises(JournalError, match=r"a\.journal cannot be written: No space left on device.*again"):
                log.append([{"number": 2}, {"number": 3}, {"number": 4}])
        assert path.read_bytes() == before
        log.append([{"number": 5}])
    assert numbers(path) == [1, 5]


def test_a_failed_sync_counts_for_nothing(tmp_path, monkeypatch):
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "a.journal"
    with Log(path) as log:
        with monkeypatch.context() as patch:
            patch.setattr(journal.os, "fdatasync", fail)
            with pytest.raises(JournalError, match="Input/output error"):
                log.append([{"number": 1}])
        log.append([{"number": 2}])
    assert numbers(path) == [2]


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(journal.os, "pwrite", lambda file, data, at: write(file, data[:7], at))
    written(tmp_path / "a.journal", 1, 2, 3)
    assert numbers(tmp_path / "a.journal") == [1, 2, 3]


def test_each_append_is_synced_before_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal.os, "fdatasync", lambda file: synced.append(os.fstat(file).st_size))
    with Log(tmp_path / "a.journal") as log:
        for number in range(3):
            log.append([{"number": number}])
            assert synced[-1] == (tmp_path / "a.journal").stat().st_size
    assert len(synced) == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file/journal cannot be opened"), hold(tmp_path / "file" / "journal"):
        pass
    with pytest.raises(JournalError, match=r"none/a\.journal cannot be opened: No such file"):
        Log(tmp_path / "none" / "a.journal")


def start_writer(folder: Path, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.engines.journal_writer", str(folder), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_kills_at_any_moment_lose_nothing_that_was_acknowledged_and_repeat_nothing(tmp_path):
    rng, log, first = random.Random(0), tmp_path / "worker-0.journal", 0
    for _ in range(6):
        with start_writer(tmp_path, first) as writer:
            for _ in range(rng.randint(1, 30)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        found = numbers(log)
        assert found == list(range(len(found)))
        assert len(found) > acknowledged
        first = len(found)


def test_only_one_run_holds_a_journal_and_a_killed_one_lets_go(tmp_path):
    with start_writer(tmp_path, 0) as writer:
        writer.stdout.readline()
        with pytest.raises(JournalError, match="another run is using it"), hold(tmp_path, patience_s=0.2):
            pass
        writer.send_signal(signal.SIGKILL)
        with hold(tmp_path):
            pass


def test_a_journal_is_held_as_long_as_any_process_has_its_lock(tmp_path):
    with hold(tmp_path) as lock:
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(JournalError, match="another run"), hold(tmp_path, patience_s=0.2):
        pass
    sleeper.communicate(b"\n")
    with hold(tmp_path):
        pass


ENTRIES = [
    EndedCall(
        fingerprint="f", key=CallKey("q", PROPOSE, 2), expert="A", plan="p", session=3, workers=(0, 1), attempt=1,
        status=CallStatus.FINISHED, prompt_tokens=9, queued_ts=1.25, finished_ts=2.0, output_tokens=3,
        first_token_ts=1.5, token_ids=(4, 5, 6), text="so \u2014 B\n", visible_tokens=0, thinking_opened=True,
    ),
    EndedCall(
        fingerprint="f", key=CallKey("q", AGGREGATE, 0), expert="A", plan="p", session=3, workers=(0,), attempt=0,
        status=CallStatus.FAILED, prompt_tokens=9, queued_ts=0.0, finished_ts=0.5, error="it broke",
    ),
    OpenedSession(
        plan="p", session=3, attempt=0, expert="A", node=PROPOSE, workers=(0,), load_start_ts=0.0, load_s=4.5,
        start_ts=4.5,
    ),
    ClosedSession(plan="p", session=3, attempt=0, end_ts=7.5, cpu_s=2.5),
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_entries_survive_the_disk(tmp_path, entry):
    with Log(tmp_path / "a.journal") as log:
        log.append([to_record(entry)])
    (record,) = read_log(tmp_path / "a.journal").records
    assert from_record(record) == entry


def test_a_view_sorts_entries_by_kind_and_knows_the_last_instant():
    seen = view(to_record(entry) for entry in ENTRIES)
    assert seen == JournalView(ended=tuple(ENTRIES[:2]), opened=(ENTRIES[2],), closed=(ENTRIES[3],))
    assert seen.last_ts == 7.5
    assert JournalView().last_ts == 0.0
