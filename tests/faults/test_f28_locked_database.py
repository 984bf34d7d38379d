"""Row 28: many threads and processes may add at once, and what was acknowledged survives kill -9."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from groundling.align.preferences import database
from groundling.align.preferences.judgement import Candidate, Judgement, choice_of_best
from groundling.align.preferences.store import Rankings
from groundling.errors import StorageError
from groundling.text.chat.messages import Message

WRITER = """
import sys, threading
sys.path.insert(0, sys.argv[3])
from test_f28_locked_database import item
from groundling.align.preferences.store import Rankings

rankings = Rankings(sys.argv[1])
lock = threading.Lock()

def write(thread):
    for number in range(int(sys.argv[2])):
        key = f"child {thread} {number}"
        rankings.add(item(key))
        with lock:
            print(key, flush=True)

for thread in range(8):
    threading.Thread(target=write, args=(thread,)).start()
"""


def item(key: str) -> Judgement:
    return Judgement(
        key=key,
        messages=(Message("user", "ReplyFn."),),
        candidates=(Candidate("a", "m"), Candidate("b" * 3000, "m")),
        shown=(0, 1),
        choice=choice_of_best(0, 2),
        rater="ann",
        time="2026-01-02T03:04:05+00:00",
    )


def start_writer(path, n_each):
    command = [sys.executable, "-c", WRITER, str(path), str(n_each), os.path.dirname(__file__)]  # noqa: PTH120
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def pragma(path, name):
    db = sqlite3.connect(path)
    try:
        return db.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        db.close()


def test_acknowledged_writes_survive_kill_9(tmp_path):
    """Eight threads here and eight in a process that is killed while it writes."""
    path = tmp_path / "r.db"
    acknowledged: list[str] = []
    with Rankings(path) as rankings:
        child = start_writer(path, 100_000)

        def write(thread: int) -> None:
            for number in range(50):
                assert rankings.add(item(f"parent {thread} {number}"))
                acknowledged.append(f"parent {thread} {number}")

        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(write, thread) for thread in range(8)]
            heard = [child.stdout.readline().strip() for _ in range(100)]
            os.kill(child.pid, signal.SIGKILL)
            heard += [line.strip() for line in child.stdout if line.endswith("\n")]
            assert child.wait() == -signal.SIGKILL
            for future in done:
                future.result()
    child.stdout.close()
    assert len(acknowledged) == 400
    assert len(heard) >= 100
    assert all(heard)
    with Rankings(path) as rankings:
        assert {*acknowledged, *heard} <= {found.key for found in rankings}
        assert all(found == item(found.key) for found in rankings), "and none is there by half"
    assert pragma(path, "integrity_check") == "ok"


@pytest.mark.slow
def test_concurrent_first_openers_all_write_their_rows(tmp_path):
    writers = [start_writer(tmp_path / "r.db", 5) for _ in range(6)]
    outputs = [writer.communicate(timeout=100)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 6
    assert [len(output) for output in outputs] == [40] * 6
    with Rankings(tmp_path / "r.db") as rankings:
        assert {found.key for found in rankings} == set(outputs[0])


@pytest.mark.slow
def test_opening_waits_for_a_concurrent_creation(tmp_path):
    """For the step to a write-ahead log SQLite itself does not wait: it says "locked" at once."""
    other = sqlite3.connect(tmp_path / "r.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.7, lambda: other.execute("ROLLBACK")).start()
    began = time.monotonic()
    with Rankings(tmp_path / "r.db") as rankings:
        assert time.monotonic() - began > 0.5
        assert rankings.add(item("k"))
    other.close()


def test_the_file_syncs_at_every_commit_and_checks_its_references(tmp_path):
    """kill -9 cannot show it, for the page cache survives: so the settings are looked at."""
    with Rankings(tmp_path / "r.db") as rankings, rankings._file.reading() as db:
        found = [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 5000]


@pytest.fixture
def holder(tmp_path):
    """A connection of another program that holds the right to write."""
    with Rankings(tmp_path / "r.db") as rankings:
        other = sqlite3.connect(tmp_path / "r.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        yield rankings, other
        other.close()


@pytest.mark.slow
def test_a_writer_waits_for_its_turn(holder):
    rankings, other = holder
    threading.Timer(0.7, lambda: other.execute("ROLLBACK")).start()
    began = time.monotonic()
    assert rankings.add(item("k"))
    assert time.monotonic() - began > 0.5


def test_a_writer_times_out_in_one_line_and_stores_nothing(tmp_path, holder, monkeypatch):
    _, other = holder
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    with Rankings(tmp_path / "r.db") as impatient:
        with pytest.raises(
            StorageError, match=r"cannot use .*r\.db: another program has been writing to it for 0\.3 s"
        ):
            impatient.add(item("k"))
        assert list(impatient) == [], "reading goes on"
        other.execute("ROLLBACK")
        assert impatient.add(item("k")), "and so does writing afterwards"
