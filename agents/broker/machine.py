"""A job's life in the broker: (job, event) to (job, what to log). Pure.

What to *do* follows from the state alone, so a restarted broker does the same again: WAITING is matched, READY is
delivered to its CE, ``cancelling`` with a CE is cancelled there, CLEARED with ``purge`` is purged there.

Updates of a CE come at least once and carry the attempt they are about; those of an earlier attempt, and those that
say less than is known already, change nothing. DONE, ABORTED, CANCELLED and CLEARED are never left, but for DONE to
CLEARED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agents.broker import policy
from agents.broker.model import AT_CE, ENDED, JobState, LogEvent

MAX_EXCLUDED = 8
"""CEs remembered where a job failed."""


class Job(NamedTuple):
    """What decides about a job's next step. A named tuple: thousands are made in a second."""

    state: JobState = JobState.WAITING
    attempt: int = 1
    ce: str = ""
    gatekeeper: str = ""
    sent: bool = False
    """READY only: a Submit with this job may have reached the CE."""
    cancelling: bool = False
    purge: bool = False
    """The CE still has its output or row."""
    shallow_left: int = 3
    deep_left: int = 1
    excluded: tuple[str, ...] = ()
    """CEs where it has failed, the last first."""
    reason: str = ""
    """Why it waits again, or how it ended; of a DONE job empty if it ended well."""

    @property
    def nowhere(self) -> bool:
        """No CE can have it."""
        return self.state in (JobState.BLOCKED, JobState.WAITING) or (self.state is JobState.READY and not self.sent)

    @property
    def ended_well(self) -> bool:
        """Its program ran to its end and said so."""
        return self.state in (JobState.DONE, JobState.CLEARED) and not self.reason


@dataclass(frozen=True, slots=True)
class Released:
    """The nodes it depends on have ended well."""


@dataclass(frozen=True, slots=True)
class Matched:
    """A CE was chosen."""

    ce: str
    gatekeeper: str
    why: Mapping[str, str] = field(default_factory=dict)
    """What bookkeeping is told of the choice: its rank, the runner-up and its rank, how many suited."""


@dataclass(frozen=True, slots=True)
class Sending:
    """From now on a Submit may reach the CE."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """The CE surely never got it (or said that it does not take it now); no retry is spent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The gatekeeper has it."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The gatekeeper will not take it, and does not have it."""

    attempt: int
    reason: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The gatekeeper says its process runs."""

    attempt: int
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The gatekeeper says its process ended and the output is there."""

    attempt: int
    exit_code: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The gatekeeper says it could not be run to its end."""

    attempt: int
    reason: str
    sentence: str = ""
    started: bool = False


@dataclass(frozen=True, slots=True)
class CancelledAtCe:
    """The gatekeeper says it is cancelled, whoever wanted that."""

    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UnknownAtCe:
    """Asked to cancel it, the gatekeeper has never heard of it."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Its owner wants it ended."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It cannot go on, whatever its retry counts: proxy expired, owner banned ..."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class OutputFetched:
    """Its owner has the output."""


@dataclass(frozen=True, slots=True)
class Purged:
    """The gatekeeper has forgotten it."""


Event = (
    Released | Matched | Sending | TakenBack | Accepted | Rejected | Started | Ended | Failed | CancelledAtCe
    | UnknownAtCe | CancelAsked | GivenUp | OutputFetched | Purged
)  # fmt: skip


class Step(NamedTuple):
    """What an event makes of a job. ``refused``: the event does not belong to this state, which is worth an alarm."""

    job: Job
    log: tuple[LogEvent, ...] = ()
    refused: bool = False
    cause: str = ""
    """Why its attempt failed, if it did."""
    pause_s: float = 0.0
    """WAITING: not matched before this has passed."""


def step(job: Job, event: Event) -> Step:
    """The job after the event. An event that is late, a duplicate or out of place changes nothing."""
    return _HANDLERS[type(event)](job, event)


def _released(job: Job, event: Released) -> Step:
    if job.state is not JobState.BLOCKED:
        return Step(job)
    # BLOCKED -> WAITING when the last node that it depends on has ended well.
    return Step(job._replace(state=JobState.WAITING), (LogEvent("ENQUEUED", job.attempt),))


def _matched(job: Job, event: Matched) -> Step:
    if job.state is not JobState.WAITING:
        return Step(job, refused=True)
    # WAITING -> READY when a pass has chosen a CE.
    after = job._replace(state=JobState.READY, ce=event.ce, gatekeeper=event.gatekeeper, sent=False, reason="")
    return Step(after, (LogEvent("MATCHED", job.attempt, {"ce": event.ce, **event.why}),))


def _sending(job: Job, event: Sending) -> Step:
    if job.state is not JobState.READY:
        return Step(job)
    # READY stays READY when the courier is about to call Submit: from here on only the CE can say where it is.
    return Step(job._replace(sent=True))


def _taken_back(job: Job, event: TakenBack) -> Step:
    if job.state is not JobState.READY:
        return Step(job)
    if job.cancelling:
        return _cancelled(job)
    return _returned(job, event.reason)


def _returned(job: Job, reason: str) -> Step:
    if job.attempt >= policy.MAX_ATTEMPTS:
        why = f"{reason}; given back for the {job.attempt}th time without having run"
        return _aborted(job, "TOO_MANY_ATTEMPTS", why)
    # READY -> WAITING when the CE surely does not have it. A new attempt number, as bookkeeping orders by it, but no
    # retry is spent.
    pause_s = policy.pause_of_returned_s(job.attempt)
    after = _again(job, reason)
    event = _resubmission(after, job, reason, "", "none", policy.Action.LATER, pause_s)
    return Step(after, (event,), pause_s=pause_s)


def _accepted(job: Job, event: Accepted) -> Step:
    if job.state is not JobState.READY or event.attempt != job.attempt:
        return Step(job)
    # READY -> SCHEDULED when the gatekeeper has acknowledged it. TRANSFERRED is the gatekeeper's to log.
    return Step(job._replace(state=JobState.SCHEDULED))


def _rejected(job: Job, event: Rejected) -> Step:
    if job.state is not JobState.READY or event.attempt != job.attempt:
        return Step(job)
    if policy.rule_for(event.reason).action is policy.Action.LATER and not job.cancelling:
        return _returned(job, f"{event.reason}: {event.sentence}" if event.sentence else event.reason)
    return _retry(job, event.reason, event.sentence, started=False)


def _started(job: Job, event: Started) -> Step:
    if job.state not in (JobState.READY, JobState.SCHEDULED) or event.attempt != job.attempt:
        return Step(job)
    # SCHEDULED -> RUNNING; from READY when the answer to Submit was lost and the update overtook its repetition.
    return Step(job._replace(state=JobState.RUNNING))


def _at_ce(job: Job, attempt: int) -> bool:
    return attempt == job.attempt and (job.state in AT_CE or (job.state is JobState.READY and job.sent))


def _ended(job: Job, event: Ended) -> Step:
    if not _at_ce(job, event.attempt):
        return Step(job)
    # READY, SCHEDULED, RUNNING -> DONE when the output is at the CE, also if a cancellation came too late.
    reason = event.reason or (f"EXIT_{event.exit_code}" if event.exit_code else "")
    return Step(job._replace(state=JobState.DONE, reason=reason, purge=True, cancelling=False))


def _failed(job: Job, event: Failed) -> Step:
    if not _at_ce(job, event.attempt):
        return Step(job)
    return _retry(job, event.reason, event.sentence, event.started)


def _cancelled_at_ce(job: Job, event: CancelledAtCe) -> Step:
    if not _at_ce(job, event.attempt):
        return Step(job)
    return _cancelled(job, event.reason)


def _unknown_at_ce(job: Job, event: UnknownAtCe) -> Step:
    if not job.cancelling or event.attempt != job.attempt or job.state in ENDED or job.state is JobState.WAITING:
        return Step(job)
    # A CE that acknowledged it and forgot it (lost its disk) has nothing left to cancel.
    return _cancelled(job)


def _cancel_asked(job: Job, event: CancelAsked) -> Step:
    if job.state in ENDED:
        return Step(job)
    log = () if job.cancelling else (LogEvent("CANCEL_REQUESTED", job.attempt, {"ce": job.ce} if job.ce else {}),)
    if job.nowhere:
        # BLOCKED, WAITING, READY -> CANCELLED at once when no CE can have it.
        after = _cancelled(job)
        return Step(after.job, log + after.log)
    # READY (sent), SCHEDULED, RUNNING stay; the CE is asked, and delivered to first if need be.
    return Step(job._replace(cancelling=True), log)


def _cancelled(job: Job, reason: str = "") -> Step:
    # Any state before the end -> CANCELLED when nothing of the job runs or will run.
    after = job._replace(state=JobState.CANCELLED, cancelling=False, reason=reason)
    return Step(after, (LogEvent("CANCELLED", job.attempt, {"reason": reason} if reason else {}),))


def _given_up(job: Job, event: GivenUp) -> Step:
    if job.state in ENDED:
        return Step(job)
    return _aborted(job, event.reason, event.sentence)


def _aborted(job: Job, reason: str, sentence: str) -> Step:
    # Any state before the end -> ABORTED when no retry is left or none can help.
    after = job._replace(state=JobState.ABORTED, reason=reason, cancelling=False)
    return Step(after, (LogEvent("ABORTED", job.attempt, {"reason": reason, "text": sentence}),))


def _output_fetched(job: Job, event: OutputFetched) -> Step:
    if job.state is JobState.CLEARED:
        return Step(job)
    if job.state is not JobState.DONE:
        return Step(job, refused=True)
    # DONE -> CLEARED when the owner says so; the CE is told to purge it.
    return Step(job._replace(state=JobState.CLEARED), (LogEvent("CLEARED", job.attempt, {}),))


def _purged(job: Job, event: Purged) -> Step:
    return Step(job._replace(purge=False))


def _retry(job: Job, reason: str, sentence: str, started: bool) -> Step:
    if job.cancelling:
        return _cancelled(job, reason)
    rule = policy.rule_for(reason)
    left = job.deep_left if started else job.shallow_left
    if rule.action is policy.Action.GIVE_UP:
        return _aborted(job, reason, sentence or reason)._replace(cause=reason)
    if left <= 0:
        count = "RetryCount" if started else "ShallowRetryCount"
        return _aborted(job, reason, f"{sentence or reason}; no retry is left ({count})")._replace(cause=reason)
    # READY, SCHEDULED, RUNNING -> WAITING with the next attempt when it failed by no fault of its own.
    after = _again(job, reason)._replace(
        shallow_left=job.shallow_left - (0 if started else 1), deep_left=job.deep_left - (1 if started else 0)
    )
    if rule.action is policy.Action.ELSEWHERE:
        after = after._replace(excluded=(job.ce, *(ce for ce in job.excluded if ce != job.ce))[:MAX_EXCLUDED])
    pause_s = policy.pause_s(rule, job.attempt)
    spent = "deep" if started else "shallow"
    event = _resubmission(after, job, reason, sentence, spent, rule.action, pause_s)
    return Step(after, (event,), cause=reason, pause_s=pause_s)


def _again(job: Job, reason: str) -> Job:
    return job._replace(
        state=JobState.WAITING, attempt=job.attempt + 1, ce="", gatekeeper="", sent=False, reason=reason
    )


def _resubmission(
    after: Job, before: Job, reason: str, sentence: str, spent: str, action: policy.Action, pause_s: float
) -> LogEvent:
    fields = {
        "reason": reason,
        "text": sentence,
        "failed_ce": before.ce,
        "failed_attempt": str(before.attempt),
        "retry": spent,
        "left": f"{after.shallow_left} shallow, {after.deep_left} deep",
        "action": action.value,
        "pause_s": f"{pause_s:g}" if pause_s else "",
    }
    return LogEvent("RESUBMISSION", after.attempt, {name: value for name, value in fields.items() if value})


_HANDLERS: dict[type, Callable[[Job, object], Step]] = {
    Released: _released,
    Matched: _matched,
    Sending: _sending,
    TakenBack: _taken_back,
    Accepted: _accepted,
    Rejected: _rejected,
    Started: _started,
    Ended: _ended,
    Failed: _failed,
    CancelledAtCe: _cancelled_at_ce,
    UnknownAtCe: _unknown_at_ce,
    CancelAsked: _cancel_asked,
    GivenUp: _given_up,
    OutputFetched: _output_fetched,
    Purged: _purged,
}  # pyright: ignore[reportAssignmentType]
