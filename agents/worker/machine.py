"""The decisions of a worker node, pure: events in, commands out.

    Ordered -> PREPARING -> READY -> STARTING -> RUNNING -> COLLECTING -> REPORTED -> (acknowledged) forgotten
                   |          |         |           |           |
                   +----------+---------+-----------+-----------+--> REPORTED when killed, failed or lost

An order is durable before the machine hears of it, and its row goes before its files do: so what is on disk without
a row
is rubbish, and what has a row is known to the gatekeeper by the next hello.
"""

from __future__ import annotations

from agents.worker.model import (
    BEFORE_START,
    IN_SLOT,
    AcknowledgedByGatekeeper,
    Collected,
    Commands,
    Event,
    GoAhead,
    Job,
    KillAsked,
    LinkOpened,
    Looked,
    Name,
    NotRunning,
    Ordered,
    Phase,
    Prepared,
    PrepareFailed,
    ProcessEnded,
    ProcessLost,
    ProcessStarted,
    Result,
    StartRefused,
)

SHORT_JOB_S = 1.0
"""Jobs shorter than this on average make it worth while to hold a few more than there are slots."""
PREFETCH_S = 0.5
"""How much work is held in advance then."""
MAX_PREFETCH = 256
GIVE_BACK_AFTER_S = 3.0
"""A prefetched job that waited this long goes back: another worker may have a free slot."""
_SMOOTHING = 0.15
_RETRY_REFUSALS = frozenset({"NO_PROCESSES", "DISK", "STARTER_STOPPING", "STATE_DIRECTORY", "BATCH_REFUSED"})


class WorkerMachine:
    """All jobs of one node."""

    def __init__(self, slots: int, *, max_unacknowledged: int, prefetch: bool) -> None:
        self.slots, self.max_unacknowledged, self.prefetch_allowed = slots, max_unacknowledged, prefetch
        self.jobs: dict[str, Job] = {}
        self.ready: dict[str, None] = {}
        """Keys of READY jobs in order."""
        self.gangs: dict[str, Job] = {}
        """Those of `jobs` that are parts of gangs."""
        self.in_slots = 0
        """Slots of jobs STARTING or RUNNING: with the starter, which keeps what runs at `slots`."""
        self.unreported = 0
        """Jobs COLLECTING or REPORTED."""
        self.unfit = ""
        """Why no new job is taken; empty: fit."""
        self.mean_wall_s = SHORT_JOB_S * 10
        self.now_us = 0
        self.monotonic = 0.0
        self._out = Commands()

    # ---- numbers

    @property
    def prefetch(self) -> int:
        """How many jobs beyond the slots are welcome now."""
        if not self.prefetch_allowed or self.mean_wall_s > SHORT_JOB_S:
            return 0
        return min(MAX_PREFETCH, int(self.slots * PREFETCH_S / max(self.mean_wall_s, 0.001)) + 1)

    @property
    def ahead(self) -> int:
        """How many more jobs than slots the starter holds, so that a slot is filled without asking us."""
        return min(self.prefetch, 8 * self.slots)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return min(self.in_slots, self.slots)

    @property
    def credit(self) -> int:
        """How many more jobs this node takes."""
        if self.unfit or self.unreported >= self.max_unacknowledged:
            return 0
        more = sum(job.slots - 1 for job in self.gangs.values() if job.phase in BEFORE_START | IN_SLOT)
        return max(0, self.slots + self.prefetch - (len(self.jobs) - self.unreported) - more)

    # ---- events

    def handle(self, events: list[Event], now_us: int) -> Commands:
        """What is to be done now. A started job is announced before its end; orders of one call keep their order."""
        self._out, self.now_us = Commands(), now_us
        for event in events:
            self._handle(event)
        self._fill_slots()
        return self._out

    def _handle(self, event: Event) -> None:
        match event:
            case Ordered():
                self._ordered(event.job)
            case ProcessStarted():
                self._started(event)
            case ProcessEnded():
                self._ended(event)
            case Prepared():
                self._prepared(event.key)
            case Collected():
                self._collected(event)
            case AcknowledgedByGatekeeper():
                self._acknowledged(event.name)
            case KillAsked():
                self._kill(event)
            case GoAhead():
                self._go(event.name)
            case PrepareFailed():
                self._prepare_failed(event)
            case StartRefused():
                self._refused(event)
            case ProcessLost():
                self._lost(event)
            case NotRunning():
                self._not_running(event.key)
            case LinkOpened():
                self._link_opened()
            case Looked():
                self._looked(event.monotonic)

    def adopt(self, job: Job) -> None:
        """At start: a job whose row was found. Its phase is as `recover` found it."""
        self._add(job)
        if job.phase in IN_SLOT:
            self.in_slots += job.slots
        elif job.phase in (Phase.COLLECTING, Phase.REPORTED):
            self.unreported += 1

    def _ordered(self, job: Job) -> None:
        if job.key in self.jobs:
            return
        self._add(job)
        job.busy = True
        self._out.prepare.append(job)

    def _prepared(self, key: str) -> None:
        job = self.jobs.get(key)
        if job is None:
            return
        job.busy = False
        if job.phase is Phase.PREPARING:
            # PREPARING -> READY: everything is in place.
            job.phase, job.ready_since = Phase.READY, self.monotonic
            if job.waits_for_go:
                self._out.report_ready.append(job)
            else:
                self.ready[key] = None
        else:
            self._maybe_forget(job)  # it was killed meanwhile

    def _go(self, name: Name) -> None:
        job = self.jobs.get(name.key)
        if job is not None and job.waits_for_go and job.phase is Phase.READY:
            # It has its slots: they count as taken since it was ordered.
            job.waits_for_go = False
            self.ready[job.key] = None

    def _prepare_failed(self, event: PrepareFailed) -> None:
        job = self.jobs.get(event.key)
        if job is None:
            return
        job.busy = False
        if job.phase is Phase.PREPARING:
            # PREPARING -> REPORTED: never started, for a reason that is not the payload's.
            self._report(job, Result(self.now_us, reason=event.reason, sentence=event.sentence, failed=True))
        else:
            self._maybe_forget(job)

    def _fill_slots(self) -> None:
        """READY -> STARTING, oldest first, while there are slots."""
        limit = self.slots + self.ahead
        while self.ready and self.in_slots < limit:
            key = next(iter(self.ready))
            del self.ready[key]
            job = self.jobs[key]
            job.phase, job.withdrawing = Phase.STARTING, False
            self.in_slots += job.slots
            self._out.start.append(job)

    def _started(self, event: ProcessStarted) -> None:
        job = self.jobs.get(event.key)
        if job is None or job.phase not in IN_SLOT:
            return
        job.pid, job.started_at_us = event.pid, event.at_us
        if job.phase is Phase.STARTING:
            # STARTING -> RUNNING: forked. A kill that came before is sent again, since the starter may have missed it.
            job.phase = Phase.RUNNING
            self._out.report_started.append(job)
            if job.kill_reason:
                self._out.kill.append(job)

    def _refused(self, event: StartRefused) -> None:
        job = self.jobs.get(event.key)
        if job is None or job.phase is not Phase.STARTING:
            return
        self._leave_slot(job)
        if job.kill_reason:
            self._report(job, Result(self.now_us, reason=job.kill_reason))
        elif event.why in _RETRY_REFUSALS:
            # STARTING -> gone: this node is in trouble, another one may not be.
            self._give_back(job)
        else:
            # STARTING -> REPORTED: ALREADY_STARTED. Cannot happen while keys are unique; never start it a second time.
            sentence = f"the starter refused to start it: {event.why}"
            self._report(job, Result(self.now_us, reason="START_REFUSED", sentence=sentence, failed=True, started=True))

    def _ended(self, event: ProcessEnded) -> None:
        job = self.jobs.get(event.key)
        if job is None or job.phase in (Phase.COLLECTING, Phase.REPORTED):
            return
        if job.phase in IN_SLOT:
            self._leave_slot(job)
        self.ready.pop(job.key, None)
        record = event.record
        job.exit_record = record
        if not record.get("error"):
            wall_s = float(record.get("wall_s", 0.0))
            self.mean_wall_s += _SMOOTHING * (wall_s - self.mean_wall_s)
        # STARTING, RUNNING -> COLLECTING: also found so at recovery, from the record on disk.
        job.phase, job.busy = Phase.COLLECTING, True
        self.unreported += 1
        self._out.collect.append(job)

    def _lost(self, event: ProcessLost) -> None:
        job = self.jobs.get(event.key)
        if job is None or job.phase not in IN_SLOT:
            return
        # STARTING, RUNNING -> REPORTED: the starter died with it; what was left of it has been killed.
        self._leave_slot(job)
        self._report(job, Result(self.now_us, reason=event.reason, sentence=event.sentence, failed=True, started=True))

    def _not_running(self, key: str) -> None:
        job = self.jobs.get(key)
        if job is None or job.phase is not Phase.STARTING:
            return  # RUNNING: its end is on its way
        self._leave_slot(job)
        if job.kill_reason:
            # STARTING -> REPORTED: killed before the fork.
            self._report(job, Result(self.now_us, reason=job.kill_reason))
        elif job.withdrawing:
            # STARTING -> gone: it waited too long for a slot here.
            self._give_back(job)
        else:
            # STARTING -> READY: the order died with the old starter, before the fork.
            job.phase, job.ready_since = Phase.READY, self.monotonic
            self.ready = {key: None, **self.ready}

    def _collected(self, event: Collected) -> None:
        job = self.jobs.get(event.key)
        if job is None or job.phase is not Phase.COLLECTING:
            return
        job.busy = False
        self.unreported -= 1
        # COLLECTING -> REPORTED: output is with the gatekeeper or inside the report.
        self._report(job, event.result)

    def _kill(self, event: KillAsked) -> None:
        job = self.jobs.get(event.name.key)
        if job is None:
            self._out.unknown.append((event.name, event.reason))
            return
        job.at_once = job.at_once or event.at_once
        if job.phase in BEFORE_START:
            # PREPARING, READY -> REPORTED: nothing was started.
            self.ready.pop(job.key, None)
            job.kill_reason = event.reason
            self._report(job, Result(self.now_us, reason=event.reason))
        elif job.phase in IN_SLOT:
            job.kill_reason = job.kill_reason or event.reason
            self._out.kill.append(job)
        # COLLECTING, REPORTED: over already; the gatekeeper decides what it calls that.

    def _acknowledged(self, name: Name) -> None:
        job = self.jobs.get(name.key)
        if job is None or job.phase is not Phase.REPORTED:
            return
        job.acknowledged = True
        self._maybe_forget(job)

    def _maybe_forget(self, job: Job) -> None:
        if job.acknowledged and not job.busy:
            self._drop(job)
            self.unreported -= 1
            self._out.forget.append(job)

    def _link_opened(self) -> None:
        """Tell everything again; the gatekeeper ignores what it knows."""
        for job in self.jobs.values():
            if job.phase is Phase.RUNNING:
                self._out.report_started.append(job)
            elif job.phase is Phase.READY and job.waits_for_go:
                self._out.report_ready.append(job)
            elif job.phase is Phase.REPORTED:
                self._out.report.append(job)

    def _looked(self, monotonic: float) -> None:
        self.monotonic = monotonic
        if self.in_slots < self.slots:
            return
        long_ago = monotonic - GIVE_BACK_AFTER_S
        starting = (job for job in self.jobs.values() if job.phase is Phase.STARTING and job.key not in self.gangs)
        waiting = [job for job in starting if not job.withdrawing]
        for job in waiting:
            if job.ready_since < long_ago and not job.kill_reason and self.in_slots > self.slots:
                # Answered by NotRunning, or by ProcessStarted when it was forked just now.
                job.withdrawing = True
                self._out.withdraw.append(job.key)
        for key in list(self.ready):
            job = self.jobs[key]
            if key in self.gangs:
                continue
            if job.ready_since >= long_ago:
                break
            # READY -> gone: the slots are busy with longer jobs than expected.
            del self.ready[key]
            self._give_back(job)
        if self._out.withdraw or self._out.give_back:
            self.mean_wall_s = max(self.mean_wall_s, SHORT_JOB_S * 2)

    # ---- small steps

    def _leave_slot(self, job: Job) -> None:
        self.in_slots -= job.slots

    def _report(self, job: Job, result: Result) -> None:
        job.phase, job.result = Phase.REPORTED, result
        self.unreported += 1
        self._out.report.append(job)

    def _give_back(self, job: Job) -> None:
        self._drop(job)
        self._out.give_back.append(job)

    def again(self, job: Job) -> None:
        """At start: it was never started; it is to be ordered anew."""
        self._drop(job)
        self.in_slots -= job.slots
        job.phase = Phase.PREPARING

    def _add(self, job: Job) -> None:
        self.jobs[job.key] = job
        if job.slots > 1 or job.waits_for_go:
            self.gangs[job.key] = job

    def _drop(self, job: Job) -> None:
        del self.jobs[job.key]
        self.gangs.pop(job.key, None)
