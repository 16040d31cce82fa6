"""The gatekeeper's and the workers' machines together, with every loss that a real site has, in any order.

Nothing real here: streams are lists that can be cut, the disk is a dictionary, a process is a set member. What is
checked
is what people rely on: no attempt's payload starts twice, every accepted attempt ends exactly once, nothing is held for
ever.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.proof import TIMES

from agents.gatekeeper import model as ce
from agents.gatekeeper.machine import GatekeeperMachine
from agents.gatekeeper.model import Rules
from agents.worker import model as wn
from agents.worker.machine import WorkerMachine

SECOND = 1_000_000
LOST_US = 10 * SECOND
STEPS = 300
"""Of a long life."""


class SimulatedWorker:
    """A worker node whose agent and starter can die separately."""

    def __init__(self, name: str, starts: Counter[tuple[str, int]]) -> None:
        self.name, self.starts = name, starts
        self.rows: dict[str, wn.Name] = {}
        self.forked: set[str] = set()
        """Keys with a directory: for ever, until forgotten."""
        self.running: set[str] = set()
        self.exits: dict[str, dict[str, Any]] = {}
        self.starter_queue: list[str] = []
        self.stream = 0
        self.seen = 0
        self.up: list[Any] = []
        self.down: list[Any] = []
        self.begin()

    def begin(self) -> None:
        """The agent's start, after any death."""
        self.stream, self.up, self.down = 0, [], []
        self.preparing: list[str] = []
        self.collecting: list[str] = []
        self.machine = WorkerMachine(2, max_unacknowledged=100, prefetch=True)
        self.machine.mean_wall_s = 0.1
        for key, name in self.rows.items():
            self.machine.adopt(wn.Job(key, name, "alice", None, phase=wn.Phase.STARTING))
        events: list[wn.Event] = []
        for key in list(self.rows):
            job = self.machine.jobs[key]
            if key in self.exits:
                events.append(wn.ProcessEnded(key, self.exits[key]))
            elif key in self.running:
                events.append(wn.ProcessStarted(key, 1, 1))
            elif key in self.forked:
                events.append(wn.ProcessLost(key, "STARTER_LOST", "gone"))
            elif key not in self.starter_queue:
                self.machine.jobs.pop(key)
                self.machine.in_slots -= 1
                job.phase = wn.Phase.PREPARING
                events.append(wn.Ordered(job))
        self.feed(*events)

    def starter_dies(self) -> None:
        self.running.clear()  # the agent kills what is left
        self.starter_queue.clear()
        events: list[wn.Event] = []
        for job in list(self.machine.jobs.values()):
            if job.phase in wn.IN_SLOT and job.key not in self.exits:
                lost = wn.ProcessLost(job.key, "STARTER_LOST", "gone")
                events.append(lost if job.key in self.forked else wn.NotRunning(job.key))
        self.feed(*events)

    def feed(self, *events: wn.Event) -> None:
        todo = self.machine.handle(list(events), 7)
        self.preparing += [job.key for job in todo.prepare]
        self.starter_queue += [job.key for job in todo.start]
        for job in todo.kill:
            self.kill(job.key, job.kill_reason)
        for key in todo.withdraw:
            if key in self.starter_queue:
                self.starter_queue.remove(key)
                self.feed(wn.NotRunning(key))
        self.collecting += [job.key for job in todo.collect]
        if self.stream:
            self.up += [("started", job.name) for job in todo.report_started]
            self.up += [("ended", job.name, job.result) for job in todo.report]
            self.up += [("ended", name, wn.Result(7, reason=reason)) for name, reason in todo.unknown]
        for job in [*todo.forget, *todo.give_back]:
            del self.rows[job.key]
            self.forked.discard(job.key)
            self.exits.pop(job.key, None)
            if self.stream and job in todo.give_back:
                self.up.append(("returned", job.name))

    def kill(self, key: str, reason: str) -> None:
        if key in self.starter_queue:
            self.starter_queue.remove(key)
            self.feed(wn.NotRunning(key))
        elif key in self.running:
            self.end(key, 137, reason)

    def end(self, key: str, exit_code: int, reason: str = "") -> None:
        self.running.discard(key)
        self.exits[key] = {"exit_code": exit_code, "reason": reason, "wall_s": 0.1}
        self.feed(wn.ProcessEnded(key, self.exits[key]))

    def fork(self) -> None:
        if not self.starter_queue or len(self.running) >= 2:
            return
        key = self.starter_queue.pop(0)
        if key in self.forked:
            self.feed(wn.StartRefused(key, "ALREADY_STARTED"))
            return
        self.forked.add(key)
        self.running.add(key)
        if key in self.rows:
            name = self.rows[key]
            self.starts[name.job_id, name.attempt] += 1
        self.feed(wn.ProcessStarted(key, 1, 1))

    def take_down(self) -> None:
        """One order from the gatekeeper."""
        if not self.down:
            return
        command = self.down.pop(0)
        name = wn.Name(command.job_id, command.attempt, command.run)
        match command:
            case ce.KillOnWorker():
                self.feed(wn.KillAsked(name, command.reason))
            case ce.AcknowledgeWorker():
                self.feed(wn.AcknowledgedByGatekeeper(name))
            case _:
                self.seen += 1
                self.rows[name.key] = name
                self.feed(wn.Ordered(wn.Job(name.key, name, "alice", None)))


class _Run:
    """A RunOnWorker with the fields of the wire, as it was when sent."""

    def __init__(self, command: ce.RunOnWorker) -> None:
        self.job_id, self.attempt, self.run = command.job.job_id, command.job.attempt, command.run


class Site(RuleBasedStateMachine):
    """Everything that can happen."""

    @initialize()
    def begin(self) -> None:
        self.now_us = SECOND
        self.starts: Counter[tuple[str, int]] = Counter()
        self.lost: Counter[tuple[str, int]] = Counter()
        self.ends: Counter[tuple[str, int]] = Counter()
        self.rows: dict[str, ce.Job] = {}
        self.fences: dict[str, int] = {}
        self.sequence = self.streams = self.numbers = 0
        self.workers = [SimulatedWorker(name, self.starts) for name in ("w1", "w2")]
        self.new_gatekeeper()

    def new_gatekeeper(self) -> None:
        self.gatekeeper = GatekeeperMachine(Rules(worker_lost_us=LOST_US, max_queued=50))
        rows = [copy.copy(job) for job in self.rows.values()]
        self.gatekeeper.recover(rows, dict(self.fences), self.sequence, self.now_us)
        for worker in self.workers:
            worker.stream, worker.up, worker.down = 0, [], []

    def feed(self, *events: ce.Event) -> ce.Turn:
        turn = self.gatekeeper.turn(events, self.now_us)
        for job_id, job in turn.changed.items():
            self.rows[job_id] = copy.copy(job)
            self.fences[job_id] = job.attempt
        for update in turn.updates:
            assert update.sequence == self.sequence + 1
            self.sequence = update.sequence
            if update.state in ce.ENDED:
                self.ends[update.job_id, update.attempt] += 1
        self.send(turn.commands)
        return turn

    def send(self, commands: Sequence[ce.Command]) -> None:
        for command in commands:
            for worker in self.workers:
                if worker.name == command.worker and worker.stream == command.stream:
                    worker.down.append(_Run(command) if isinstance(command, ce.RunOnWorker) else command)

    # ---- users

    @rule()
    def submit(self) -> None:
        if self.numbers < 6:
            self.numbers += 1
            job_id = f"j{self.numbers}"
            self.feed(ce.Submitted(self.job(job_id, self.rows[job_id].attempt + 1 if job_id in self.rows else 1)))

    @rule(data=st.data())
    def submit_again(self, data: Any) -> None:
        """The same, a newer or an older attempt of something submitted before."""
        if not self.rows:
            return
        job_id = data.draw(st.sampled_from(sorted(self.rows)))
        attempt = max(1, self.rows[job_id].attempt + data.draw(st.sampled_from([1, 1, 1, 0, -1])))
        highest = self.rows[job_id].attempt
        (outcome,) = self.feed(ce.Submitted(self.job(job_id, attempt))).outcomes
        assert outcome.accepted == (attempt >= highest)
        assert outcome.new == (attempt > highest)

    def job(self, job_id: str, attempt: int) -> ce.Job:
        return ce.Job(job_id, attempt, "alice", "cms", "cms001", -1, -1, self.now_us)

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.rows:
            self.feed(ce.CancelAsked(data.draw(st.sampled_from(sorted(self.rows)))))

    @rule(data=st.data(), is_kept=st.booleans())
    def stop(self, data: Any, is_kept: bool) -> None:
        """Its owner was banned: killed at once, and that is kept later, or never as the gatekeeper dies before."""
        if self.gatekeeper.jobs:
            job_id = data.draw(st.sampled_from(sorted(self.gatekeeper.jobs)))
            self.send(self.gatekeeper.stop([job_id], "BANNED"))
            if is_kept:
                self.feed(ce.CancelAsked(job_id, "BANNED"))

    # ---- connections

    @rule(which=st.integers(0, 1))
    def connect(self, which: int) -> None:
        worker = self.workers[which]
        if worker.stream:
            return
        self.streams += 1
        worker.stream, worker.seen = self.streams, 0
        held = tuple((job.name.job_id, job.name.attempt, job.name.run) for job in worker.machine.jobs.values())
        self.feed(ce.WorkerArrived(worker.name, worker.stream, 2, held))
        worker.feed(wn.LinkOpened())

    @rule(which=st.integers(0, 1), half_open=st.booleans())
    def cut(self, which: int, half_open: bool) -> None:
        """Everything under way is lost. `half_open`: the gatekeeper has not noticed yet."""
        worker = self.workers[which]
        stream, worker.stream, worker.up, worker.down = worker.stream, 0, [], []
        if stream and not half_open:
            self.feed(ce.WorkerLeft(worker.name, stream))

    @rule(which=st.integers(0, 1), count=st.integers(1, 5))
    def deliver(self, which: int, count: int) -> None:
        worker = self.workers[which]
        for _ in range(count):
            worker.take_down()
            if worker.up:
                self.report(worker, worker.up.pop(0))
        if worker.stream:
            credit = ce.CreditGiven(worker.name, worker.stream, worker.machine.credit, worker.seen)
            self.feed(credit)

    def report(self, worker: SimulatedWorker, report: Any) -> None:
        name = report[1]
        identity = (worker.name, name.job_id, name.attempt, name.run)
        if report[0] == "started":
            self.feed(ce.JobStarted(*identity, at_us=self.now_us))
        elif report[0] == "returned":
            self.feed(ce.JobReturned(*identity))
        else:
            result = report[2]
            self.feed(
                ce.JobEnded(
                    *identity,
                    self.now_us,
                    result.exit_code,
                    result.reason,
                    failed=result.failed,
                    started=result.started,
                )
            )

    # ---- a worker's own steps

    @rule(which=st.integers(0, 1), works=st.booleans())
    def prepare(self, which: int, works: bool) -> None:
        worker = self.workers[which]
        if worker.preparing:
            key = worker.preparing.pop(0)
            worker.feed(wn.Prepared(key) if works else wn.PrepareFailed(key, "DISK", "full"))

    @rule(which=st.integers(0, 1))
    def fork(self, which: int) -> None:
        self.workers[which].fork()

    @rule(which=st.integers(0, 1), exit_code=st.integers(0, 1))
    def process_ends(self, which: int, exit_code: int) -> None:
        worker = self.workers[which]
        if worker.running:
            worker.end(min(worker.running), exit_code)

    @rule(which=st.integers(0, 1))
    def collect(self, which: int) -> None:
        worker = self.workers[which]
        if worker.collecting:
            key = worker.collecting.pop(0)
            job = worker.machine.jobs[key]
            record = job.exit_record or {}
            worker.feed(wn.Collected(key, wn.Result(7, record["exit_code"], job.kill_reason, started=True)))

    @rule(which=st.integers(0, 1), seconds=st.integers(1, 8))
    def worker_looks(self, which: int, seconds: int) -> None:
        worker = self.workers[which]
        worker.feed(wn.Looked(worker.machine.monotonic + seconds))

    @rule(which=st.integers(0, 1), turns=st.integers(2, 5))
    def bustle(self, which: int, turns: int) -> None:
        """Ordinary progress: so that the rarer events meet jobs in every phase."""
        self.connect(which)
        for _ in range(turns):
            self.deliver(which, 3)
            self.prepare(which, True)
            self.fork(which)

    # ---- deaths

    @rule(which=st.integers(0, 1))
    def worker_agent_dies(self, which: int) -> None:
        worker = self.workers[which]
        stream = worker.stream
        worker.begin()
        if stream:
            self.feed(ce.WorkerLeft(worker.name, stream))

    @rule(which=st.integers(0, 1))
    def starter_dies(self, which: int) -> None:
        self.workers[which].starter_dies()

    @rule()
    def gatekeeper_dies(self) -> None:
        self.new_gatekeeper()

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * SECOND
        away = [worker.name for worker in self.gatekeeper.workers.values() if not worker.stream]
        self.feed(ce.Ticked())
        for worker in self.workers:
            if worker.name in away and worker.name not in self.gatekeeper.workers:
                self.lost.update((name.job_id, name.attempt) for name in worker.rows.values())

    # ---- what must hold

    @invariant()
    def no_attempt_starts_twice(self) -> None:
        if hasattr(self, "starts"):
            assert all(count == 1 for count in self.starts.values()), self.starts
            assert all(count == 1 for count in self.ends.values()), self.ends

    @invariant()
    def attempts_of_one_job_do_not_overlap(self) -> None:
        """A newer attempt waits until the older one is dead; only a lost worker's processes may be over here and
        there."""
        if not hasattr(self, "workers"):
            return
        together: Counter[str] = Counter()
        for worker in self.workers:
            for key in worker.running & set(worker.rows):
                name = worker.rows[key]
                if not self.ends[name.job_id, name.attempt] and not self.lost[name.job_id, name.attempt]:
                    together[name.job_id] += 1
        assert all(count == 1 for count in together.values()), together

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "gatekeeper"):
            return
        machine = self.gatekeeper
        for job_id, job in machine.jobs.items():
            assert not job.ended
            assert (job.state is ce.State.QUEUED) == (job_id in machine.queue or job_id in machine.parked)
            if job.state in ce.ON_WORKER:
                assert job_id in machine.workers[job.worker].held
        for worker in machine.workers.values():
            assert all(machine.jobs[job_id].worker == worker.name for job_id in worker.held)
            assert worker.stream or worker.lost_at_us
        for simulated in self.workers:
            own = simulated.machine
            assert set(own.jobs) == set(simulated.rows)
            assert own.in_slots == sum(job.phase in wn.IN_SLOT for job in own.jobs.values())
            over = (wn.Phase.COLLECTING, wn.Phase.REPORTED)
            assert own.unreported == sum(job.phase in over for job in own.jobs.values())
            assert len(simulated.running & set(simulated.rows)) <= 2

    def teardown(self) -> None:
        """With everything connected and time passing, all that was accepted ends and nothing is left."""
        if not hasattr(self, "gatekeeper"):
            return
        for _ in range(400):
            for which in (0, 1):
                self.connect(which)
                self.deliver(which, 5)
                self.prepare(which, True)
                self.fork(which)
                self.process_ends(which, 0)
                self.collect(which)
                self.worker_looks(which, 1)
            if not self.gatekeeper.jobs and not any(worker.rows for worker in self.workers):
                break
            self.time_passes(1)
        self.no_attempt_starts_twice()
        assert not self.gatekeeper.jobs
        assert not any(worker.rows or worker.running for worker in self.workers)
        for job in self.rows.values():
            assert self.ends[job.job_id, job.attempt] == 1


Site.TestCase.settings = settings(
    max_examples=40 * TIMES, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)
TestSite = pytest.mark.timeout(120 * TIMES)(Site.TestCase)


class _Chosen:
    """Stands in for the data of hypothesis in a random walk."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def draw(self, strategy: Any) -> Any:
        return self._random.choice(list(strategy.elements))


@pytest.mark.timeout(120 * TIMES)
def test_long_random_lives() -> None:
    """Deeper than a shrinkable search goes: hundreds of events on few jobs. A failure is repeated by its seed."""
    seeds = [*range(40 * TIMES), 1295]
    for seed in seeds:
        try:
            a_long_random_life(Random(seed))
        except AssertionError as error:
            raise AssertionError(f"with the seed {seed}: {error}") from error
    print(f"{len(seeds)} lives of {STEPS} steps of a gatekeeper and two workers")


def a_long_random_life(random: Random) -> None:
    """Anything may happen, in any order; what must hold is looked at after each step."""
    site = Site()
    site.begin()
    data = _Chosen(random)
    steps: list[tuple[int, Callable[[], None]]] = [
        (6, site.submit),
        (8, lambda: site.submit_again(data)),
        (4, lambda: site.cancel(data)),
        (30, lambda: site.bustle(random.randrange(2), random.randint(1, 4))),
        (8, lambda: site.cut(random.randrange(2), random.random() < 0.5)),
        (20, lambda: site.deliver(random.randrange(2), random.randint(1, 5))),
        (10, lambda: site.prepare(random.randrange(2), random.random() < 0.8)),
        (10, lambda: site.fork(random.randrange(2))),
        (10, lambda: site.process_ends(random.randrange(2), random.randrange(2))),
        (10, lambda: site.collect(random.randrange(2))),
        (4, lambda: site.worker_looks(random.randrange(2), random.randint(1, 8))),
        (4, lambda: site.worker_agent_dies(random.randrange(2))),
        (2, lambda: site.starter_dies(random.randrange(2))),
        (3, site.gatekeeper_dies),
        (3, lambda: site.time_passes(random.randint(1, 15))),
    ]
    for _ in range(STEPS):
        random.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
        site.no_attempt_starts_twice()
        site.attempts_of_one_job_do_not_overlap()
        site.books_agree()
        if random.random() < 0.02:
            site.numbers = 0  # the same ids again: older attempts are refused
    site.teardown()
