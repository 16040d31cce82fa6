"""Section `queued`: a broker with more and more waiting jobs: what it takes to accept one, to give one to a CE and to
follow it to its end, and the memory. Its store, machine, counts and outbox, without the network; in processor time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from agents.broker import machine, tables, wire
from agents.broker import store as rows
from agents.broker.board import Board
from agents.broker.jdl import normalise
from agents.broker.tables import Change, LogLine
from bench.lab import uss
from bench.measure import Bench, Table, show
from fabric.outbox import Outbox
from fabric.store import Store

OWNER, CE, GATEKEEPER = "/O=Bench/CN=production", "ce:2119/jobmanager-fabric-bench", "ce:2119"
PART = 10_000
"""Jobs of one submission."""
MAX_SUBMISSIONS = 50
"""That one outbox counts."""
TURN = 100
"""Jobs of one matching pass, of one delivery, of one batch of updates."""
TRIALS = 9
JDL = f'JobType = "Parametric"; Parameters = {PART}; Executable = "/bin/true"; Arguments = "_PARAM_";'


class Queue:
    """What a broker has of its jobs."""

    def __init__(self, bench: Bench) -> None:
        self.store = Store(bench.folder / "queued.db", tables.metadata, tables.MIGRATIONS)
        self.board, self.template, self.submissions = Board(), normalise(JDL), 0

    def sink(self, connection: sa.Connection, lines: Sequence[LogLine]) -> None:
        """As the agent's; nobody takes the events away here, so these are forgotten at once."""
        self.outbox.add(connection, wire.log_payloads(lines))
        connection.exec_driver_sql("DELETE FROM outbox")

    def submit(self) -> float:
        """Ten thousand more. Seconds to the commit."""
        if not self.submissions % MAX_SUBMISSIONS:
            self.outbox = Outbox(self.store, "broker.BENCH")  # which looks that nothing waits in it
        self.submissions += 1
        name = f"https://bench:1/{self.submissions:08d}"
        ids = tuple(f"{name}{number:08d}" for number in range(PART))
        new = rows.Submission(OWNER, name, JDL, "cms", self.template, (), name, ids, 1)
        began = time.perf_counter()
        done = self.store.write_sync(lambda connection: rows.submit(connection, new, self.sink), 600)
        self.board.apply(done.changes, 0.0)
        return time.perf_counter() - began

    def _step(self, ids: Sequence[str], event: machine.Event) -> None:
        self._count(lambda c: rows.step_ids(c, [(job_id, event) for job_id in ids], 3, self.sink, owner=OWNER))

    def _count(self, change: object) -> Sequence[Change]:
        changes = self.store.write_sync(change)  # type: ignore[arg-type]
        self.board.apply(changes, 1.0)
        return changes

    def dispatch(self) -> Iterator[str]:
        """The life of a turn's jobs; yields what has just been done."""
        ((cluster, _),) = self.board.waiting.items()
        choice = {cluster: [(machine.Matched(CE, GATEKEEPER), TURN)]}
        self._count(lambda c: rows.assign(c, choice, 2, self.sink))
        yield "matched"
        found = self.store.read_sync(lambda c: rows.ready(c, OWNER, GATEKEEPER, TURN))
        self.store.write_sync(lambda c: rows.mark_sent(c, [row.id for row in found]))
        ids = [row.job_id for row in found]
        self._step(ids, machine.Accepted(1))
        yield "delivered"
        self._step(ids, machine.Started(1, "worker"))
        self._step(ids, machine.Ended(1))
        yield "followed to its end"


def run(bench: Bench) -> None:
    """Until a million wait."""
    queue = Queue(bench)
    try:
        table = [_row(bench, queue, size) for size in (PART, 10 * PART, bench.size(100 * PART, 20 * PART))]
    finally:
        queue.store.close_sync()
    columns = ("jobs waiting", "accepted, jobs/s", "ms a job", "matched", "delivered", "to its end", "memory MiB")
    bench.tables.append(Table("A broker with many waiting jobs, ms of processor time a job", columns, tuple(table)))


def _row(bench: Bench, queue: Queue, size: int) -> tuple[str, ...]:
    seconds, cpu = [], time.process_time()
    while queue.submissions * PART < size:
        seconds.append(queue.submit())
    accepting_ms = (time.process_time() - cpu) * 1000 / (len(seconds) * PART)
    spent: dict[str, list[float]] = {}
    for _ in range(TRIALS):
        at = time.process_time()
        for what in queue.dispatch():
            now = time.process_time()
            spent.setdefault(what, []).append((now - at) * 1000 / TURN)
            at = now
    rate, memory = PART / sorted(seconds)[len(seconds) // 2], uss(os.getpid()) / 2**20
    bench.say(f"  {size} jobs wait: {show(memory)} MiB")
    figures = [
        bench.add(f"queued {size} {what}", f"{size} jobs wait: one {what}", "ms of processor time", values).median
        for what, values in spent.items()
    ]
    return (str(size), *map(show, (rate, accepting_ms, *figures, memory)))
