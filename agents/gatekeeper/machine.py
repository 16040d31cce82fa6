"""The decisions of a gatekeeper, pure: events in, rows and commands out. No clock, disk, socket or wire type.

The shell feeds events in batches with `turn(events, now_us)`, writes what the Turn names in one transaction, and only
then carries out its commands. If the write fails it is repeated until it succeeds; nothing was said to anybody before.

A job's way (each edge below has its comment in the code):

    Submitted -> QUEUED -> ASSIGNED -> RUNNING -> DONE | FAILED
                    |  ^______|           |
                    |   returned          +-> CANCELLED (also from QUEUED and ASSIGNED)

Fences: (job, attempt) is the broker's; `run` counts hand-outs inside this CE. A report about another attempt or run
than
the current one changes nothing: it is acknowledged so that the worker forgets it, and a process of it is killed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agents.gatekeeper import gangs
from agents.gatekeeper.gangs import Phase
from agents.gatekeeper.model import (
    KILL_REASONS,
    ON_WORKER,
    AcknowledgeWorker,
    CancelAsked,
    Closure,
    ClosureAsked,
    CreditGiven,
    Event,
    GoOnWorker,
    Hold,
    HoldAsked,
    Job,
    JobEnded,
    JobReturned,
    JobStarted,
    KillOnWorker,
    Outcome,
    PartReady,
    Purged,
    QueueRules,
    ReleaseAsked,
    Rules,
    RunOnWorker,
    State,
    Submitted,
    Ticked,
    Turn,
    Update,
    Usage,
    WorkerArrived,
    WorkerLeft,
)
from fabric.shares import ShareQueue

MAX_RETURNS = 8
"""A job that workers gave back this often is failed instead of circling for ever."""
MAX_ASSIGNED_PER_TURN = 1000
SLACK_S = 20
"""Beyond its wall time limit a job takes a slot no longer than this: for its input, its grace and its report."""
RESERVE_EVERY_US = 1_000_000
"""A gang's reservation is brought forward so often, when jobs end before their limits."""


@dataclass(slots=True)
class Worker:
    """One worker node. `stream` 0: not connected, its jobs are given up at `lost_at_us`."""

    name: str
    stream: int = 0
    slots: int = 0
    credit: int = 0
    """Absolute, as last told."""
    seen: int = 0
    """Orders of this stream that the worker had seen when it told its credit."""
    sent: int = 0
    """Orders of this stream sent by us."""
    unfit: str = ""
    lost_at_us: int = 0
    held: set[str] = field(default_factory=set)
    """Ids of jobs ASSIGNED or RUNNING there."""
    used: int = 0
    """Slots that these take."""

    @property
    def room(self) -> int:
        """How many more jobs may be sent now."""
        return max(0, self.credit - (self.sent - self.seen)) if self.stream else 0

    @property
    def spare(self) -> int:
        """Slots that nothing has and that a part of a gang may have."""
        return min(self.room, self.slots - self.used)


class GatekeeperMachine:
    """All live jobs and all workers of one CE."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.jobs: dict[str, Job] = {}
        """Live jobs by id. Ended ones are only in the store."""
        self.queue = ShareQueue(rules.shares)
        """Ids of QUEUED jobs that may start. Subset of `jobs`."""
        self.parked: dict[str, None] = {}
        """Ids of QUEUED jobs that may not: held, blocked by an older attempt, or too long for the time before a
        maintenance."""
        self.attempts: dict[str, int] = {}
        """Highest attempt seen per job id, also of ended and (for a day) of purged jobs: the fence."""
        self.workers: dict[str, Worker] = {}
        self.sequence = 0
        self.closures: dict[str, Closure] = {}
        """Of queues that are shut or will be; "" is all of them."""
        self.waiting_in: Counter[str] = Counter()
        """Jobs QUEUED by queue."""
        self.gang = ""
        """The gang whose turn it is, as long as it has no room. One of `parked`. Nothing else starts until it has, but
        jobs that surely end before its reservation."""
        self.reserved_at_us = 0
        """Its reservation: at the latest then it has room, if its workers stay. It comes forward and never goes back.
        0: none, as nobody knows when what runs will end."""
        self._reserve_next_us = 0
        self.running_in: Counter[str] = Counter()
        """Slots of jobs ASSIGNED or RUNNING by queue."""
        self._turn = Turn()
        self._now_us = 0

    # ---- recovery

    def recover(self, jobs: Iterable[Job], attempts: dict[str, int], sequence: int, now_us: int) -> None:
        """Take over what the store holds. Every worker counts as away from now on."""
        self.sequence = sequence
        self.attempts = dict(attempts)
        for job in jobs:
            self.attempts[job.job_id] = max(job.attempt, self.attempts.get(job.job_id, 0))
            if job.ended:
                continue
            self.jobs[job.job_id] = job
            if job.state is State.QUEUED:
                self._enqueue(job)
                if job.blocked_by is not None:
                    self._away(job.blocked_by.worker, now_us)
            else:
                job.parts = gangs.without_ready(job.parts)
                for name, slots in job.places:
                    self._onto(self._away(name, now_us), job, slots)

    def restart(self, jobs: Iterable[Job], attempts: dict[str, int], sequence: int, now_us: int) -> None:
        """Forget everything but the numbers of purged fences and recover."""
        closures = self.closures
        self.__init__(self.rules)  # type: ignore[misc]
        self.closures = closures
        self.recover(jobs, attempts, sequence, now_us)

    def _away(self, name: str, now_us: int) -> Worker:
        worker = self.workers.get(name)
        if worker is None:
            worker = self.workers[name] = Worker(name, lost_at_us=now_us + self.rules.worker_lost_us)
        return worker

    # ---- one batch

    def turn(self, events: Iterable[Event], now_us: int) -> Turn:
        """Handle a batch, then hand out what can be handed out."""
        self._turn, self._now_us = Turn(), now_us
        for event in events:
            self._handle(event)
        self._assign()
        return self._turn

    def _handle(self, event: Event) -> None:
        match event:
            case Submitted():
                self._submit(event.job)
            case JobStarted():
                self._started(event)
            case PartReady():
                self._ready(event)
            case JobEnded():
                self._ended(event)
            case CreditGiven():
                self._credit(event)
            case JobReturned():
                self._returned(event)
            case CancelAsked():
                self._cancel(event)
            case HoldAsked():
                self._hold(event)
            case ReleaseAsked():
                self._release(event)
            case ClosureAsked():
                self._close(event.queue, event.closure)
            case WorkerArrived():
                self._arrived(event)
            case WorkerLeft():
                self._left(event)
            case Ticked():
                self._tick()
            case Purged():
                self._turn.purged.append(event.job_id)

    @property
    def waits_for_time(self) -> bool:
        """Whether a tick may change something soon."""
        ends = any(closure.ends_at_us for closure in self.closures.values())
        return bool(self.jobs) or ends or any(not one.stream for one in self.workers.values())

    def closures_of(self, queue: str) -> list[Closure]:
        """What shuts a queue: the site's closure of all of them, and its own."""
        if not self.closures:
            return []
        return [self.closures[name] for name in ("", queue) if name in self.closures]

    def _time_for(self, job: Job) -> bool:
        """Whether it ends before a maintenance, if it starts now."""
        return all(closure.leaves_time_for(job, self._now_us) for closure in self.closures_of(job.queue))

    def _shut(self) -> set[str]:
        """Queues of which nothing may start now: under maintenance, or with as many running as they may have."""
        full = {
            name
            for name, rules in self.rules.queues.items()
            if rules.max_running and self.running_in[name] >= rules.max_running
        }
        return full | {name for name, closure in self.closures.items() if closure.holds(self._now_us)}

    # ---- submit

    def _submit(self, job: Job) -> None:
        seen = self.attempts.get(job.job_id, 0)
        present = self.jobs.get(job.job_id)
        if job.attempt < seen:
            self._outcome(
                job, "FENCED", f"attempt {job.attempt} of {job.job_id} is older than attempt {seen} seen here"
            )
            return
        if job.attempt == seen:  # the same again, after a lost answer
            self._turn.outcomes.append(Outcome(job.job_id, accepted=True))
            return
        draining = next((closure for closure in self.closures_of(job.queue) if closure.draining), None)
        if draining is not None:
            why = draining.reason or "it stops"
            self._outcome(job, "DRAINING", f"this computing element takes no new jobs ({why}); try another one")
            return
        own = self.rules.queues.get(job.queue, QueueRules()).max_queued or self.rules.max_queued
        full = self.waiting >= self.rules.max_queued or self.waiting_in[job.queue] >= own
        if full and not (present is not None and present.state is State.QUEUED):
            most = min(own, self.rules.max_queued)
            self._outcome(job, "QUEUE_FULL", f"the queue is full ({most} jobs); try again later")
            return
        if present is not None:
            self._supersede(present, job)
        self.attempts[job.job_id] = job.attempt
        self.jobs[job.job_id] = job
        self._enqueue(job)
        self._turn.accepted.append(job)
        self._turn.outcomes.append(Outcome(job.job_id, accepted=True, new=True))
        self._announce(job, State.QUEUED, job.accepted_at_us)

    def _supersede(self, present: Job, newer: Job) -> None:
        """A newer attempt arrived while an older one lives here: the older one dies first, unannounced."""
        if present.state in ON_WORKER:
            newer.blocked_by = Hold(present.worker, present.attempt, present.run)
            if present.parts:  # rank 0's worker may be through with it
                newer.blocked_by = Hold(present.places[0][0], present.attempt, present.run)
            self._kill(present, "FENCED")
            self._off_worker(present)
        else:
            newer.blocked_by = present.blocked_by
            self._dequeue(present.job_id)

    def _outcome(self, job: Job, reason: str, sentence: str) -> None:
        self._turn.outcomes.append(Outcome(job.job_id, accepted=False, reason=reason, sentence=sentence))

    # ---- reports about jobs

    def current(self, worker: str, job_id: str, attempt: int, run: int) -> Job | None:
        """The live job that this worker's hand-out is; None when the report is about something that no longer
        counts."""
        job = self.jobs.get(job_id)
        if job is None or job.state not in ON_WORKER or (job.attempt, job.run) != (attempt, run):
            return None
        return job if any(name == worker for name, _ in job.places) else None

    def _started(self, event: JobStarted) -> None:
        job = self.current(event.worker, event.job_id, event.attempt, event.run)
        if job is None:
            # A hand-out that was given up started after all (its worker was thought lost): stop it.
            self._kill_there(event.worker, event.job_id, event.attempt, event.run, "FENCED")
            return
        part = gangs.part_of(job.parts, event.worker)
        if part is not None and part.phase is not Phase.STARTED:
            job.parts = gangs.put(job.parts, replace(part, phase=Phase.STARTED))
            self._turn.changed[job.job_id] = job
        if job.state is State.RUNNING:
            return  # told again after a reconnect, or another part of a gang
        # ASSIGNED -> RUNNING: the worker's starter has forked the payload.
        self._runs(job, event.at_us)

    def _runs(self, job: Job, at_us: int) -> None:
        job.started, job.started_at_us = True, at_us
        self._announce(job, State.RUNNING, at_us)

    def _ended(self, event: JobEnded) -> None:
        self._acknowledge(event.worker, event.job_id, event.attempt, event.run)
        job = self.current(event.worker, event.job_id, event.attempt, event.run)
        if job is None:
            self._unblock(event.job_id, Hold(event.worker, event.attempt, event.run))
            return  # told again, or fenced: acknowledged so that the worker forgets it
        if job.parts:
            self._part_ended(job, event)
            return
        if job.state is State.ASSIGNED and event.started and not event.failed:
            # ASSIGNED -> RUNNING: what told of its start was lost with a stream or with the worker's agent.
            self._runs(job, event.at_us - int(event.usage.wall_s * 1e6))
        job.usage, job.exit_code = event.usage, event.exit_code
        job.started = event.started  # false also after RUNNING: forked, but its program could not be executed
        job.reason, job.sentence = event.reason, event.sentence
        if job.cancel_reason or event.reason in KILL_REASONS:
            # ASSIGNED, RUNNING -> CANCELLED: it is over, and a cancellation was promised before, or ordered by `stop`
            # and forgotten in a restart.
            job.reason = job.cancel_reason or event.reason
            self._end(job, State.CANCELLED, event.at_us)
        elif event.failed:
            # ASSIGNED, RUNNING -> FAILED: staging, starting or the node failed, not the payload.
            self._end(job, State.FAILED, event.at_us)
        else:
            # RUNNING -> DONE: the payload ended, well or badly.
            self._end(job, State.DONE, event.at_us)
        self._turn.ended_by_report.append((job, event))

    def _returned(self, event: JobReturned) -> None:
        job = self.current(event.worker, event.job_id, event.attempt, event.run)
        if job is None:
            self._unblock(event.job_id, Hold(event.worker, event.attempt, event.run))
            return
        part = gangs.part_of(job.parts, event.worker)
        if job.state is not State.ASSIGNED and part is not None and part.phase is not Phase.STARTED:
            self._part_lost(job, event.worker, "START_REFUSED", "could not be started there when the others were")
            return
        if job.state is not State.ASSIGNED:
            return  # a worker cannot give back what it said it started; its end will be told
        self._requeue(job, event.worker)

    # ---- gangs

    def _ready(self, event: PartReady) -> None:
        job = self.current(event.worker, event.job_id, event.attempt, event.run)
        part = gangs.part_of(job.parts, event.worker) if job is not None else None
        if job is None or part is None:
            self._kill_there(event.worker, event.job_id, event.attempt, event.run, "FENCED")
            return
        if part.phase is not Phase.ASSIGNED:
            return
        job.parts = gangs.put(job.parts, replace(part, phase=Phase.READY))
        self._go(job)

    def _go(self, job: Job) -> None:
        """All or nothing: when every part is ready, and its worker here to hear of it, they start."""
        if any(part.phase is Phase.ASSIGNED for part in job.parts) or job.cancel_reason:
            return
        for part in job.parts:
            if part.phase is Phase.READY:
                stream = self.workers[part.worker].stream
                self._turn.commands.append(GoOnWorker(part.worker, stream, job.job_id, job.attempt, job.run))

    def _part_ended(self, job: Job, event: JobEnded) -> None:
        """The first part that ends badly ends the others; the gang is over when all of its parts are."""
        part = gangs.part_of(job.parts, event.worker)
        assert part is not None
        badly = bool(event.failed or event.exit_code or event.reason) and not job.cancel_reason
        was_well = not any((job.exit_code, job.reason))
        self._leave(job, part.worker, part.ranks)
        used = event.usage
        if job.state is State.ASSIGNED and event.started and not event.failed:
            # ASSIGNED -> RUNNING: as of a single job.
            self._runs(job, event.at_us - int(used.wall_s * 1e6))
        job.parts = gangs.put(
            job.parts,
            replace(
                part, phase=Phase.ENDED, failed=event.failed and badly and was_well, wall_s=used.wall_s,
                user_s=used.user_s, system_s=used.system_s, max_rss_bytes=used.max_rss_bytes,
            ),
        )  # fmt: skip
        job.started = job.started or event.started
        self._turn.changed[job.job_id] = job
        self._turn.ended_by_report.append((job, event))
        if badly and was_well:
            job.exit_code, job.reason = event.exit_code, event.reason
            first = gangs.first_rank(job.parts, part.worker)
            ranks = f"ranks {first} to {first + part.ranks - 1}" if part.ranks > 1 else f"rank {first}"
            why = event.sentence or f"ended with {event.exit_code}"
            job.sentence = f"{ranks} on {part.worker}: {why}; the other ranks were stopped"
        elif event.sentence and was_well:
            job.sentence = "; ".join(filter(None, (job.sentence, event.sentence)))[:1000]
        if badly and was_well:
            self._kill(job, "GANG_ENDED")
        if not job.places:
            self._gang_ended(job, event.at_us)

    def _gang_ended(self, job: Job, at_us: int) -> None:
        parts = job.parts
        job.usage = Usage(
            max(part.wall_s for part in parts),
            sum(part.user_s for part in parts),
            sum(part.system_s for part in parts),
            sum(part.max_rss_bytes for part in parts),
        )
        if job.cancel_reason:
            job.reason = job.cancel_reason
            self._end(job, State.CANCELLED, at_us)
        else:
            self._end(job, State.FAILED if any(part.failed for part in parts) else State.DONE, at_us)

    def _part_lost(self, job: Job, worker: str, reason: str, sentence: str) -> None:
        """As if its worker had said that it failed."""
        self._part_ended(
            job,
            JobEnded(
                worker, job.job_id, job.attempt, job.run, self._now_us, reason=reason, sentence=sentence, failed=True
            ),
        )

    def _requeue(self, job: Job, by: str = "") -> None:
        """`by`: the worker that does not have it; of a gang, the others give up their parts."""
        for name, _ in job.places if job.parts else ():
            if name != by:
                self._kill_there(name, job.job_id, job.attempt, job.run, "FENCED")
        self._off_worker(job)
        job.parts = ()
        job.returns += 1
        if job.cancel_reason:
            # ASSIGNED -> CANCELLED: never started, and the owner does not want it any more.
            job.reason = job.cancel_reason
            self._end(job, State.CANCELLED, self._now_us)
        elif job.returns > MAX_RETURNS:
            # ASSIGNED -> FAILED: no worker here manages to start it.
            job.reason = "NO_WORKER_TAKES_IT"
            job.sentence = f"{job.returns} times a worker of this site gave the job back unstarted"
            self._end(job, State.FAILED, self._now_us)
        else:
            # ASSIGNED -> QUEUED: the worker certainly never started this run; it goes to the front, with the next run
            # number.
            job.worker = ""
            self._enqueue(job, first=True)
            self._announce(job, State.QUEUED, self._now_us)

    # ---- cancel

    def _cancel(self, event: CancelAsked) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return  # ended before, or never here: the servicer told the caller which
        if job.state is State.QUEUED and job.blocked_by is not None:
            # Nobody has this attempt, but an older one still dies: until then the job is not over, and a yet newer
            # attempt
            # must find it here.
            job.cancel_reason = event.reason
            self._turn.changed[job.job_id] = job
            return
        if job.state is State.QUEUED:
            # QUEUED -> CANCELLED: nobody has it.
            job.reason = job.cancel_reason = event.reason
            self._end(job, State.CANCELLED, self._now_us)
            return
        # ASSIGNED and RUNNING stay until the worker says that the processes are dead; the wish itself is durable.
        job.cancel_reason = job.cancel_reason or event.reason
        self._turn.changed[job.job_id] = job
        self._kill(job, job.cancel_reason)

    def stop(self, job_ids: Iterable[str], reason: str) -> list[KillOnWorker]:
        """Orders to end what runs of these now, before anything is durable: for a reason that is found again after a
        restart. Feed CancelAsked for each afterwards."""
        orders: list[KillOnWorker] = []
        for job in map(self.jobs.__getitem__, job_ids):
            if job.state is State.RUNNING:  # an order of one that is ASSIGNED may still wait for its transaction
                job.cancel_reason = reason
                for worker in (self.workers.get(name) for name, _ in job.places):
                    if worker is None or not worker.stream:
                        continue  # it is told when it comes back
                    orders.append(KillOnWorker(worker.name, worker.stream, job.job_id, job.attempt, job.run, reason))
        return orders

    # ---- hold and closure

    def _hold(self, event: HoldAsked) -> None:
        job = self.jobs.get(event.job_id)
        if job is None or job.state is not State.QUEUED or job.held:
            return  # the servicer told the caller which
        # QUEUED, held: it keeps its place by age, and nobody gets it.
        job.held = True
        self._dequeue(job.job_id)
        self._enqueue(job)
        self._note(job, "HELD", "held; it starts when it is released")

    def _release(self, event: ReleaseAsked) -> None:
        job = self.jobs.get(event.job_id)
        if job is None or not job.held:
            return
        job.held = False
        self._dequeue(job.job_id)
        self._enqueue(job)
        self._note(job, "", "")

    def _note(self, job: Job, reason: str, sentence: str) -> None:
        job.reason, job.sentence = reason, sentence
        self._announce(job, State.QUEUED, self._now_us)

    def _close(self, queue: str, closure: Closure) -> None:
        """One for all queues takes the place of all others."""
        closures = {queue: closure} if not queue else self.closures | {queue: closure}
        self._keep_closures(closures)

    def _keep_closures(self, closures: dict[str, Closure]) -> None:
        self.closures = {queue: closure for queue, closure in closures.items() if closure != Closure()}
        self._turn.closures = dict(self.closures)
        self._sort_parked()

    def _sort_parked(self) -> None:
        """What was too long for the time before a maintenance may not be any more."""
        for job_id in list(self.parked):
            self._dequeue(job_id)
            self._enqueue(self.jobs[job_id])

    # ---- workers

    def _arrived(self, event: WorkerArrived) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            worker = self.workers[event.worker] = Worker(event.worker)
        worker.stream, worker.slots = event.stream, event.slots
        worker.credit = worker.seen = worker.sent = worker.lost_at_us = 0
        self._not_ready(worker)
        held = set(event.held)
        for job_id, attempt, run in event.held:
            job = self.current(event.worker, job_id, attempt, run)
            if job is None:
                # Given up, fenced or ended here meanwhile: the worker stops it, reports, is acknowledged, forgets.
                self._kill_there(event.worker, job_id, attempt, run, "FENCED")
            elif job.cancel_reason:
                self._kill(job, job.cancel_reason)
        for job_id in sorted(worker.held):
            job = self.jobs[job_id]
            if (job_id, job.attempt, job.run) in held:
                continue
            if job.state is State.ASSIGNED:
                # the order never arrived, or died with the agent before it was durable there
                self._requeue(job, worker.name)
            else:
                # RUNNING -> FAILED: the worker came back without it, so it lost its own state.
                self._lose(job, worker.name, f"worker {worker.name} came back without knowing the job")
        self._unblock_all(worker.name, {(j, a, r) for j, a, r in held})
        for job_id in [job_id for job_id in self.parked if self.jobs[job_id].slots > 1]:
            self._dequeue(job_id)  # there may be slots enough now
            self._enqueue(self.jobs[job_id], first=True)

    def _left(self, event: WorkerLeft) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.stream != event.stream:
            return  # an older stream: the worker is here already again
        worker.stream = worker.credit = 0
        worker.lost_at_us = self._now_us + self.rules.worker_lost_us
        self._not_ready(worker)

    def _not_ready(self, worker: Worker) -> None:
        """Its stream ended: a part that was ready there has to say it again, so that none starts without the others."""
        for job in map(self.jobs.__getitem__, worker.held):
            job.parts = gangs.without_ready(job.parts, worker.name)

    def _tick(self) -> None:
        over = {name for name, closure in self.closures.items() if 0 < closure.ends_at_us <= self._now_us}
        if over:
            self._keep_closures({name: closure for name, closure in self.closures.items() if name not in over})
        for worker in list(self.workers.values()):
            if worker.stream or worker.lost_at_us > self._now_us:
                continue
            for job_id in sorted(worker.held):
                # ASSIGNED, RUNNING -> FAILED or CANCELLED: silent for too long. Should the worker come back, what it
                # still runs of these is killed and its report ignored.
                seconds = self.rules.worker_lost_us // 1_000_000
                self._lose(self.jobs[job_id], worker.name, f"worker {worker.name} was not heard of for {seconds} s")
            self._unblock_all(worker.name, set())
            del self.workers[worker.name]

    def _lose(self, job: Job, worker: str, sentence: str) -> None:
        job.started = True  # perhaps; to assume less would allow a cheap second start
        if job.parts:
            self._part_lost(job, worker, "WORKER_LOST", sentence)
            return
        if job.cancel_reason:
            job.reason = job.cancel_reason
            self._end(job, State.CANCELLED, self._now_us)
        else:
            job.reason, job.sentence = "WORKER_LOST", sentence
            self._end(job, State.FAILED, self._now_us)

    def _credit(self, event: CreditGiven) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.stream != event.stream:
            return
        worker.credit, worker.seen, worker.unfit = event.slots, event.seen, event.unfit

    # ---- handing out

    def _assign(self) -> None:
        """QUEUED -> ASSIGNED, in the order of the shares, each to the worker with the most room; at most one
        transaction's worth."""
        if not (self.queue or self.gang) or any(closure.holds(self._now_us) for closure in self.closures_of("")):
            return
        rooms = self._rooms()
        if not rooms:
            return
        left = MAX_ASSIGNED_PER_TURN
        if self.rules.max_running:
            left = min(left, self.rules.max_running - sum(worker.used for worker in self.workers.values()))
        shut = self._shut()
        while rooms and left > 0 and (job_id := self._next(shut)) is not None:
            job = self.jobs[job_id]
            if job.slots > 1:
                if not self._assign_gang(job, left):
                    self._fill(left, shut)
                    return
                left -= job.slots
                rooms, shut = self._rooms(), self._shut()
                continue
            room, name = rooms[0]
            if not self._assign_one(job, self.workers[name], shut):
                continue
            left -= 1
            if room + 1 < 0:
                heapq.heapreplace(rooms, (room + 1, name))
            else:
                heapq.heappop(rooms)

    def _assign_one(self, job: Job, worker: Worker, shut: set[str]) -> bool:
        """QUEUED -> ASSIGNED of what was just taken out of the queue, unless it has no time."""
        self.waiting_in[job.queue] -= 1
        if not self._time_for(job):
            self._enqueue(job)  # parked
            return False
        job.run += 1
        job.worker = worker.name
        self._onto(worker, job, 1)
        worker.sent += 1
        most = self.rules.queues.get(job.queue, QueueRules()).max_running
        if most and self.running_in[job.queue] >= most:
            shut.add(job.queue)
        self._announce(job, State.ASSIGNED, self._now_us)
        self._turn.commands.append(RunOnWorker(worker.name, worker.stream, job, job.run))
        return True

    def _fill(self, left: int, shut: set[str]) -> None:
        """Short jobs into slots that stand empty while a gang waits for more of them: it starts no later for that."""
        self._reserve(self.jobs[self.gang])
        seconds = (self.reserved_at_us - self._now_us) / 1_000_000 - SLACK_S
        empty = [worker for worker in self.workers.values() for _ in range(worker.spare)][:left]
        while empty and seconds > 0 and (job_id := self.queue.fill(seconds, shut)) is not None:
            if self._assign_one(self.jobs[job_id], empty[-1], shut):
                empty.pop()

    def _reserve(self, gang: Job) -> None:
        if self._now_us < self._reserve_next_us:
            return
        self._reserve_next_us = self._now_us + RESERVE_EVERY_US
        here = [worker for worker in self.workers.values() if worker.stream and not worker.unfit]
        at_us = gangs.earliest(
            gang.slots,
            gang.hosts,
            gang.slots_per_host,
            {worker.name: worker.slots - worker.used for worker in here},
            [
                (self._over_at_us(job), name, slots)
                for worker in here
                for job in map(self.jobs.__getitem__, worker.held)
                if job.wall_s
                for name, slots in job.places
                if name == worker.name
            ],
        )
        if at_us is not None:
            self.reserved_at_us = min(at_us, self.reserved_at_us or at_us)

    def _over_at_us(self, job: Job) -> int:
        """Until then a job that is on a worker, and has a limit, takes its slots at the latest."""
        began = job.started_at_us if job.state is State.RUNNING else self._now_us
        return max(self._now_us, began + (job.wall_s + SLACK_S) * 1_000_000)

    def _rooms(self) -> list[tuple[int, str]]:
        rooms = [(-worker.room, worker.name) for worker in self.workers.values() if worker.room > 0]
        heapq.heapify(rooms)
        return rooms

    def _next(self, shut: set[str]) -> str | None:
        """Whose turn it is: the gang that waits for room, else by the shares."""
        if self.gang:
            job = self.jobs[self.gang]
            if job.queue not in shut and self._time_for(job):
                return self.gang
            self._dequeue(job.job_id)
            self._enqueue(job, first=True)
        while (job_id := self.queue.take(shut)) is not None:
            job = self.jobs[job_id]
            if job.slots == 1:
                return job_id
            self.parked[job_id] = None
            if not self._time_for(job):
                continue
            connected = {worker.name: worker.slots for worker in self.workers.values() if worker.stream}
            if gangs.place(job.slots, job.hosts, job.slots_per_host, connected) is not None:
                self.gang = job_id
                return job_id
            each = f", {job.slots_per_host} on each" if job.slots_per_host > 1 else ""
            room = f"{sum(connected.values())} slots on {len(connected)} workers"
            self._note(
                job, "GANG_TOO_LARGE", f"it needs {job.slots} slots on {job.hosts} workers{each}; there are {room} now"
            )
        return None

    def _assign_gang(self, job: Job, left: int) -> bool:
        """QUEUED -> ASSIGNED on all its workers, or it waits on."""
        most = self.rules.queues.get(job.queue, QueueRules()).max_running
        if job.slots > left or (most and self.running_in[job.queue] + job.slots > most):
            return False
        spare = {worker.name: worker.spare for worker in self.workers.values()}
        parts = gangs.place(job.slots, job.hosts, job.slots_per_host, spare)
        if parts is None:
            return False
        self._dequeue(job.job_id)
        job.run += 1
        job.parts, job.worker = parts, parts[0].worker
        job.exit_code, job.reason, job.sentence = 0, "", ""
        for part in parts:
            worker = self.workers[part.worker]
            self._onto(worker, job, part.ranks)
            worker.sent += 1
            worker.credit -= part.ranks - 1  # until it is told anew; one slot is counted by `sent`
            self._turn.commands.append(RunOnWorker(worker.name, worker.stream, job, job.run))
        self._announce(job, State.ASSIGNED, self._now_us)
        return True

    # ---- small steps

    def _announce(self, job: Job, state: State, at_us: int) -> None:
        self.sequence += 1
        job.state, job.sequence, job.changed_at_us = state, self.sequence, at_us
        self._turn.changed[job.job_id] = job
        self._turn.updates.append(
            Update(
                self.sequence, job.job_id, job.attempt, job.owner, job.vo, state, at_us, job.worker, job.exit_code,
                job.reason,
                job.sentence, job.usage, job.started, job.account, job.fqan, job.queue,
                job.slots,
            )
        )  # fmt: skip

    def _end(self, job: Job, state: State, at_us: int) -> None:
        self._off_worker(job)
        self._dequeue(job.job_id)
        self.jobs.pop(job.job_id, None)
        job.ended_at_us = at_us
        self._turn.ended.append(job)
        self._announce(job, state, at_us)

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        self.waiting_in[job.queue] += 1
        if job.held or job.blocked_by is not None or not self._time_for(job):
            self.parked[job.job_id] = None
        else:
            length_s = job.wall_s if job.slots == 1 else 0  # a gang is not filled in beside another one
            self.queue.add(job.job_id, job.vo, job.priority, queue=job.queue, first=first, length_s=length_s)

    def _dequeue(self, job_id: str) -> None:
        if job_id in self.queue or job_id in self.parked:
            self.waiting_in[self.jobs[job_id].queue] -= 1
        self.queue.discard(job_id)
        self.parked.pop(job_id, None)
        if self.gang == job_id:
            self.gang = ""
            self.reserved_at_us = self._reserve_next_us = 0

    def _onto(self, worker: Worker, job: Job, slots: int) -> None:
        worker.held.add(job.job_id)
        worker.used += slots
        self.running_in[job.queue] += slots

    def _off_worker(self, job: Job) -> None:
        for name, slots in job.places:
            self._leave(job, name, slots)

    def _leave(self, job: Job, name: str, slots: int) -> None:
        worker = self.workers.get(name)
        if worker is not None and job.job_id in worker.held:
            worker.held.discard(job.job_id)
            worker.used -= slots
            self.running_in[job.queue] -= slots

    def _kill(self, job: Job, reason: str) -> None:
        for name, _ in job.places:
            self._kill_there(name, job.job_id, job.attempt, job.run, reason)

    def _kill_there(self, name: str, job_id: str, attempt: int, run: int, reason: str) -> None:
        worker = self.workers.get(name)
        if worker is not None and worker.stream:
            self._turn.commands.append(KillOnWorker(name, worker.stream, job_id, attempt, run, reason))

    def _acknowledge(self, name: str, job_id: str, attempt: int, run: int) -> None:
        worker = self.workers.get(name)
        if worker is not None and worker.stream:
            self._turn.commands.append(AcknowledgeWorker(name, worker.stream, job_id, attempt, run))

    def _unblock(self, job_id: str, hold: Hold) -> None:
        job = self.jobs.get(job_id)
        if job is not None and job.blocked_by == hold:
            job.blocked_by = None
            self._turn.changed[job_id] = job
            self._dequeue(job_id)
            self._enqueue(job)
            if job.cancel_reason:
                # QUEUED -> CANCELLED: wanted before; now the older attempt is dead too.
                job.reason = job.cancel_reason
                self._end(job, State.CANCELLED, self._now_us)

    def _unblock_all(self, worker: str, held: set[tuple[str, int, int]]) -> None:
        """Older attempts that this worker does not hold (any more) are over."""
        for job_id in list(self.parked):
            hold = self.jobs[job_id].blocked_by
            if hold is not None and hold.worker == worker and (job_id, hold.attempt, hold.run) not in held:
                self._unblock(job_id, hold)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Drop the fences of jobs purged long ago."""
        for job_id in job_ids:
            if job_id not in self.jobs:
                self.attempts.pop(job_id, None)

    # ---- numbers

    @property
    def waiting(self) -> int:
        """Jobs QUEUED."""
        return len(self.queue) + len(self.parked)

    def counts(self) -> tuple[int, int, int, int]:
        """(slots of connected workers, slots free for a job now, slots used on workers, jobs waiting)."""
        connected = [worker for worker in self.workers.values() if worker.stream]
        total = sum(worker.slots for worker in connected)
        on_workers = sum(worker.used for worker in self.workers.values())
        free = sum(max(0, worker.spare) for worker in connected)
        return total, free, on_workers, self.waiting
