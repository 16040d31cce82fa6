"""Rows of the broker: submissions, steps, deliveries, files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from agents.broker import machine as m
from agents.broker import store as rows
from agents.broker import tables
from agents.broker.jdl import normalise
from agents.broker.model import JobState, SandboxFile
from agents.broker.sandbox import SandboxStore
from fabric.errors import Exhausted, InvalidRequest
from fabric.store import Store

ALICE = "/CN=alice"


class Opened:
    def __init__(self, path: Path) -> None:
        self.store = Store(path, tables.metadata)
        self.log: list[tables.LogLine] = []

    def sink(self, connection, lines) -> None:
        self.log.extend(lines)

    def submit(self, jdl, submission_id="s", owner=ALICE, files=(), at_us=1000):
        template = normalise(jdl)
        ids = tuple(f"https://lb/{owner[-1]}{submission_id}{n}" for n in range(len(template)))
        parent = f"https://lb/{owner[-1]}{submission_id}p" if len(template) > 1 else ids[0]
        new = rows.Submission(owner, submission_id, jdl, "cms", template, tuple(files), parent, ids, at_us)
        return self.store.write_sync(lambda c: rows.submit(c, new, self.sink))

    def step(self, *events, owner=None, gatekeeper=None, now_us=2000):
        return self.store.write_sync(
            lambda c: rows.step_ids(c, events, now_us, self.sink, owner=owner, gatekeeper=gatekeeper)
        )

    def assign(self, given):
        gatekeepers = {"a": "h:1", "b": "h:2"}
        choices = {
            key: [(m.Matched(ce, gatekeepers[ce]), count) for ce, count in shares.items()]
            for key, shares in given.items()
        }
        return self.store.write_sync(lambda c: rows.assign(c, choices, 2000, self.sink))

    def read(self, function, *arguments):
        return self.store.read_sync(lambda c: function(c, *arguments))

    def write(self, function, *arguments):
        return self.store.write_sync(lambda c: function(c, *arguments))


@pytest.fixture
def opened(tmp_path):
    made = Opened(tmp_path / "broker.db")
    yield made
    made.store.close_sync()


PARAMETRIC = 'Executable = "/bin/true"; Parameters = 6; Arguments = "_PARAM_";'


def test_a_parametric_submission_shares_one_description_and_cluster(opened):
    done = opened.submit(PARAMETRIC)
    assert len(done.children) == len(done.changes) == 6
    counts = opened.read(rows.counts)
    assert list(counts.waiting.values()) == [6]
    (key,) = counts.waiting
    given = opened.assign({key: {"a": 2, "b": 3}})
    assert [change.after.ce for change in given] == ["a", "a", "b", "b", "b"]
    found = opened.read(rows.ready, ALICE, "h:2", 10)
    assert [row.parameter for row in found] == ["2", "3", "4"]
    assert len(opened.read(rows.load_descriptions, {row.description for row in found})) == 1
    assert [line.event.type for line in opened.log].count("REGISTERED") == 7
    parent = opened.log[0]
    assert (parent.job_id, parent.event.fields["type"], parent.event.fields["jobs"]) == (done.job_id, "parametric", "6")


def test_repeated_submission_gives_the_first_answer_and_logs_nothing(opened):
    first = opened.submit(PARAMETRIC)
    lines = len(opened.log)
    again = opened.submit('Executable = "/bin/false";')
    assert (again.job_id, again.children, again.changes) == (first.job_id, first.children, ())
    assert len(opened.log) == lines
    assert opened.submit(PARAMETRIC, owner="/CN=bob").job_id != first.job_id


def test_parameters_in_requirements_make_clusters(opened):
    opened.submit(
        'Executable = "/bin/true"; Parameters = {"x", "y"}; Requirements = other.GlueCEUniqueID == "_PARAM_";'
    )
    clusters = opened.read(rows.load_clusters, list(opened.read(rows.counts).waiting))
    assert {cluster.requirements for cluster in clusters.values()} == {
        'other.GlueCEUniqueID == "x"', 'other.GlueCEUniqueID == "y"',
    }  # fmt: skip


def test_a_job_that_pauses_moves_to_a_cluster_that_waits(opened):
    done = opened.submit('Executable = "/bin/true";')
    (key,) = opened.read(rows.counts).waiting
    opened.assign({key: {"a": 1}})
    failed = m.Failed(1, "INPUT_DATA_UNAVAILABLE", "it is away")
    changes = opened.step((done.job_id, m.Sending()), (done.job_id, failed), now_us=100_000_001)
    assert [change.cause for change in changes] == ["INPUT_DATA_UNAVAILABLE"]
    (paused,) = opened.read(rows.load_clusters, opened.read(rows.counts).waiting).values()
    assert (paused.not_before_s, paused.excluded) == (120, ())
    opened.assign({paused.id: {"a": 1}})
    opened.step((done.job_id, m.Sending()), (done.job_id, m.Failed(2, "DISK_FULL")), now_us=130_000_000)
    (again,) = opened.read(rows.load_clusters, opened.read(rows.counts).waiting).values()
    assert (again.not_before_s, again.excluded) == (0, ("a",))


def test_clusters_without_jobs_are_forgotten_and_no_id_comes_twice(opened):
    done = opened.submit('Executable = "/bin/true";')
    (first,) = opened.read(rows.counts).waiting
    for attempt, now_us in ((1, 100_000_000), (2, 200_000_000)):
        (key,) = opened.read(rows.counts).waiting
        opened.assign({key: {"a": 1}})
        failed = m.Failed(attempt, "INPUT_DATA_UNAVAILABLE")
        opened.step((done.job_id, m.Sending()), (done.job_id, failed), now_us=now_us)
    (last,) = opened.read(rows.counts).waiting
    opened.write(rows.drop_unused_clusters)
    assert list(opened.read(rows.load_clusters, range(first, last + 1))) == [last]
    opened.step((done.job_id, m.GivenUp("NO_COMPATIBLE_RESOURCES", "")))
    opened.write(rows.drop_submissions, opened.read(rows.old_submissions, 1 << 60).values())
    opened.write(rows.drop_unused_clusters)
    opened.submit('Executable = "/bin/false"; Rank = 1;', submission_id="t")
    assert min(opened.read(rows.counts).waiting) > last


def test_a_failed_job_moves_to_a_cluster_that_avoids_its_ce(opened):
    done = opened.submit('Executable = "/bin/true";')
    (key,) = opened.read(rows.counts).waiting
    opened.assign({key: {"a": 1}})
    (row,) = opened.read(rows.ready, ALICE, "h:1", 10)
    assert opened.write(rows.mark_sent, [row.id]) == [row.id]
    (change,) = opened.step((done.job_id, m.Accepted(1)), (done.job_id, m.Failed(1, "X")))
    assert (change.before_cluster, change.after.state, change.after.attempt) == (key, JobState.WAITING, 2)
    cluster = opened.read(rows.load_clusters, [change.after_cluster])[change.after_cluster]
    assert cluster.excluded == ("a",)
    assert opened.read(rows.counts).waiting == {change.after_cluster: 1}


def test_updates_from_another_gatekeeper_or_owner_are_passed_over(opened):
    done = opened.submit('Executable = "/bin/true";')
    (key,) = opened.read(rows.counts).waiting
    opened.assign({key: {"a": 1}})
    assert opened.step((done.job_id, m.Started(1)), gatekeeper="h:2") == []
    assert opened.step((done.job_id, m.CancelAsked()), owner="/CN=bob") == []
    assert opened.step(("https://lb/unknown", m.CancelAsked())) == []
    (change,) = opened.step((done.job_id, m.Started(1)), gatekeeper="h:1", owner=ALICE)
    assert change.after.state is JobState.RUNNING


def test_work_that_is_left_is_found_after_a_restart(opened):
    done = opened.submit('Executable = "/bin/true"; Parameters = 5;')
    (key,) = opened.read(rows.counts).waiting
    opened.assign({key: {"a": 4}})
    one, two, three, four = (row for row in opened.read(rows.ready, ALICE, "h:1", 9))
    opened.write(rows.mark_sent, [two.id, three.id, four.id])
    opened.step((three.job_id, m.Accepted(1)), (three.job_id, m.CancelAsked()))
    opened.step((four.job_id, m.Ended(1)), (four.job_id, m.OutputFetched()))
    assert [row.job_id for row in opened.read(rows.ready, ALICE, "h:1", 9)] == [two.job_id, one.job_id]
    assert [row.job_id for row in opened.read(rows.unsent, ALICE, "h:1")] == [one.job_id]
    assert opened.read(rows.cancelling, ALICE, "h:1", 0, 9) == [(three.id, three.job_id, 1)]
    assert opened.read(rows.cancelling, ALICE, "h:1", three.id, 9) == []
    assert opened.read(rows.purgeable, ALICE, "h:1", 9) == [four.job_id]
    counts = opened.read(rows.counts)
    assert counts.links == {(ALICE, "h:1")}
    assert sum(counts.waiting.values()) == 1
    assert counts.at_ce == {(ALICE, "a", "h:1", JobState.READY): 2, (ALICE, "a", "h:1", JobState.SCHEDULED): 1}
    opened.write(rows.purged, [four.job_id])
    assert opened.read(rows.purgeable, ALICE, "h:1", 9) == []
    assert opened.read(rows.expand, [done.job_id, "x"]) == [*done.children, "x"]


def test_watch_sequences(opened):
    assert opened.read(rows.watch_sequence, ALICE, "h:1") == 0
    for sequence in (5, 9):
        opened.write(rows.set_watch_sequence, ALICE, "h:1", sequence)
    assert opened.read(rows.watch_sequence, ALICE, "h:1") == 9


def test_files_are_kept_while_a_job_needs_them(opened):
    file = SandboxFile("a", "f" * 64, 3)
    opened.write(rows.add_file, ALICE, file.sha256, 3, 100)
    opened.write(rows.add_file, "/CN=bob", file.sha256, 3, 100)
    assert opened.write(rows.held_files, "/CN=eve", [file.sha256], 100) == set()
    done = opened.submit('Executable = "/bin/cat"; InputSandbox = "a";', files=[file])
    assert opened.write(rows.drop_unused_files, 10**9) == []  # Bob's row goes, Alice's holds the file
    opened.step((done.job_id, m.CancelAsked()))
    assert opened.write(rows.drop_unused_files, 500) == []
    assert opened.write(rows.drop_unused_files, 10**9) == [file.sha256]
    (dropped,) = opened.read(rows.old_submissions, 10**9).values()
    opened.write(rows.drop_submissions, [dropped])
    assert opened.read(rows.load_jobs, [done.job_id]) == {}


def test_sandbox_store_takes_whole_files_only(tmp_path):
    import hashlib

    store = SandboxStore(tmp_path / "s", 10)
    data = b"0123456789"
    sha256 = hashlib.sha256(data).hexdigest()
    for pieces, size in (([b"01234"], 10), ([data, b"x"], 10), ([b"987654321x"], 10)):
        upload = store.begin(sha256, size)
        with pytest.raises(InvalidRequest):
            for piece in pieces:
                upload.write(piece)
            upload.adopt()
        upload.discard()
        assert not store.has(sha256)
    with pytest.raises(Exhausted):
        store.begin(sha256, 11)
    with pytest.raises(InvalidRequest):
        store.begin("../../etc/passwd", 1)
    left = store.begin(sha256, 10)
    left.write(data[:3])
    again = SandboxStore(tmp_path / "s", 10)  # after a crash in the middle
    assert list((tmp_path / "s" / "incoming").iterdir()) == []
    upload = again.begin(sha256, 10)
    upload.write(data)
    upload.adopt()
    assert b"".join(again.pieces(sha256)) == data
    assert list(again.hashes()) == [sha256]


def test_rate_of_submission(opened):
    jdl = 'Executable = "/bin/true"; Parameters = 2000; Arguments = "_PARAM_"; StdOutput = "o_PARAM_";'
    start = time.process_time()
    opened.submit(jdl)
    took_s = time.process_time() - start
    print(f"{2000 / took_s:.0f} jobs per second of processor time")
    assert took_s < 5


CHILD = """
    import sys
    from pathlib import Path
    from test_broker_store import Opened
    from agents.broker import machine as m, store as rows
    opened = Opened(Path(sys.argv[1]))
    n = 0
    while True:
        done = opened.submit('Executable = "/bin/true"; Parameters = 3;', submission_id=str(n))
        print(done.job_id, *done.children, flush=True)
        (key, *_) = opened.read(rows.counts).waiting
        opened.assign({key: {"a": 2}})
        n += 1
"""


def test_kill_loses_nothing_that_was_answered(tmp_path):
    path = tmp_path / "broker.db"
    root = Path(__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "proto/gen"), str(Path(__file__).parent)]),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    answered = [child.stdout.readline().split() for _ in range(8)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    opened = Opened(path)
    try:
        assert all(answered)
        for parent, *children in answered:
            assert opened.read(rows.expand, [parent]) == children
            assert len(opened.read(rows.load_jobs, children)) == 3
        counts = opened.read(rows.counts)
        unfinished = sum(counts.waiting.values()) + sum(counts.at_ce.values())
        assert unfinished == counts.owners[ALICE]
    finally:
        opened.store.close_sync()
