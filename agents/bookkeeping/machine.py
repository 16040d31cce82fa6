"""The state of a job from its events, in whatever order and however often they come.

Each part of a record (state, CE, worker, exit, reason) is a register that keeps the value of the event with the highest
rank. Taking a maximum is commutative, associative and idempotent, so any order and any duplicates of the same events
give the same record, and no history has to be read again when one comes late.

Ranks, from low to high: events of an attempt by their phase, a later attempt over any phase of an earlier one, then the
verdicts that no attempt can outrank: ABORTED, CANCELLED, CLEARED (gLite L&B user guide, "job state machine").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agents.bookkeeping.model import ENDED, Event, EventType, JobRecord, JobState

_PHASES = 16
_MOST = 1e15
"""Of anything that a run can use."""
_OF_SEVERAL = frozenset({"parametric", "collection", "dag"})
_VERDICT = 1 << 40
"""Above every attempt."""

_STATE_OF: Mapping[int, tuple[JobState, int]] = {
    EventType.REGISTERED: (JobState.SUBMITTED, 0),  # first of all
    EventType.ENQUEUED: (JobState.WAITING, 1),  # after registration
    EventType.RESUBMISSION: (JobState.WAITING, 1),  # begins the attempt it names
    EventType.MATCHED: (JobState.READY, 2),  # a CE is chosen
    EventType.TRANSFERRED: (JobState.SCHEDULED, 3),  # the CE has it
    EventType.RUNNING: (JobState.RUNNING, 4),  # the process runs
    EventType.DONE: (JobState.DONE, 5),  # the process has ended
    EventType.ABORTED: (JobState.ABORTED, _VERDICT),  # whatever comes late from a CE does not revive it
    EventType.CANCELLED: (JobState.CANCELLED, _VERDICT + 1),  # the owner's will over the grid's despair
    EventType.CLEARED: (JobState.CLEARED, _VERDICT + 2),  # nothing follows
}


def rank_of(event: Event) -> int:
    """The rank of an event; -1 if it says nothing of the state."""
    found = _STATE_OF.get(event.type)
    if found is None:
        return -1
    phase = found[1]
    return phase if phase >= _VERDICT else max(0, event.attempt) * _PHASES + phase


def apply(record: JobRecord, event: Event) -> bool:
    """Put an event into a record. True if the record is different now."""
    rank = rank_of(event)
    fields = event.fields
    kind = event.type
    if kind == EventType.REGISTERED:
        changed = _register(record, event)
    elif rank < 0:
        return False
    else:
        changed = False
    state = _STATE_OF[kind][0]
    if rank > record.state_rank or (rank == record.state_rank and event.at_us < record.changed_at_us):
        record.state, record.state_rank, record.changed_at_us = int(state), rank, event.at_us
        changed = True
    if rank >= _VERDICT:
        if kind != EventType.CLEARED:  # the reason of what was cleared stays readable
            changed |= _reason(record, rank, fields.get("reason", ""))
        return changed
    if event.attempt > record.attempt:
        record.attempt = event.attempt
        changed = True
    ce = fields.get("ce", "")
    if (ce or kind == EventType.RESUBMISSION) and (rank, ce) > (record.ce_rank, record.ce):
        record.ce, record.ce_rank = ce, rank
        changed = True
    worker = fields.get("worker", "")
    if (worker or kind == EventType.RESUBMISSION) and (rank, worker) > (record.worker_rank, record.worker):
        record.worker, record.worker_rank = worker, rank
        changed = True
    if kind in (EventType.DONE, EventType.RESUBMISSION):
        changed |= _exit(record, rank, fields)
    if kind == EventType.RUNNING and (not record.started_at_us or event.at_us < record.started_at_us):
        record.started_at_us = event.at_us
        changed = True
    if kind in (EventType.DONE, EventType.RESUBMISSION, EventType.RUNNING):
        changed |= _reason(record, rank, fields.get("reason", ""))
    return changed


def _register(record: JobRecord, event: Event) -> bool:
    fields = event.fields
    found = (
        fields.get("owner", ""),
        fields.get("vo", ""),
        fields.get("name", ""),
        fields.get("parent", ""),
        1 if fields.get("type", "") in _OF_SEVERAL else 0,
        event.at_us,
    )
    known = (record.owner, record.vo, record.name, record.parent, record.is_parent, record.submitted_at_us)
    if record.submitted_at_us and found >= known:  # two registrations: a fixed choice, whichever comes first
        return False
    record.owner, record.vo, record.name, record.parent, record.is_parent, record.submitted_at_us = found
    return True


def _exit(record: JobRecord, rank: int, fields: Mapping[str, str]) -> bool:
    found = (rank, fields.get("exit_code", ""), number(fields.get("wall_s")), number(fields.get("cpu_s")))
    if found <= (record.exit_rank, record.exit_code, record.wall_s, record.cpu_s):
        return False
    record.exit_rank, record.exit_code, record.wall_s, record.cpu_s = found
    return True


def _reason(record: JobRecord, rank: int, reason: str) -> bool:
    if (rank, reason) <= (record.reason_rank, record.reason):
        return False
    record.reason_rank, record.reason = rank, reason
    return True


def number(text: str | None) -> float:
    """What an event says of an amount (seconds, bytes); 0 where that is no amount."""
    try:
        value = float(text or 0.0)
    except ValueError:
        return 0.0
    return value if 0.0 <= value < _MOST else 0.0


def parent_state(children: Mapping[int, int]) -> JobState:
    """The state of a parametric job or collection whose children are in these states (state: how many)."""
    present = {JobState(state) for state, count in children.items() if count > 0}
    if not present:
        return JobState.SUBMITTED
    if present <= ENDED:
        for state in (JobState.DONE, JobState.ABORTED, JobState.CANCELLED):
            if present == {state} or present == {state, JobState.CLEARED}:
                return state
        # All cleared, or ended in different ways: ABORTED if any child was, as gLite says of a collection.
        if present == {JobState.CLEARED}:
            return JobState.CLEARED
        return JobState.ABORTED if JobState.ABORTED in present else JobState.DONE
    if JobState.RUNNING in present or present & ENDED:
        return JobState.RUNNING
    return max(present)


def history_problems(events: Iterable[Event]) -> list[str]:
    """What is wrong with a complete history: phases missing or out of order, life after a verdict. Empty if legal."""
    ordered = sorted(events, key=lambda event: (rank_of(event), event.at_us))
    problems: list[str] = []
    if not any(event.type == EventType.REGISTERED for event in ordered):
        problems.append("it was never registered")
    for attempt in sorted({event.attempt for event in ordered if 0 <= rank_of(event) < _VERDICT}):
        present = {event.type for event in ordered if event.attempt == attempt}
        for later, earlier in (
            (EventType.TRANSFERRED, EventType.MATCHED),
            (EventType.RUNNING, EventType.TRANSFERRED),
            (EventType.DONE, EventType.RUNNING),
        ):
            if later in present and earlier not in present:
                problems.append(f"attempt {attempt}: {later.name} without {earlier.name}")
        if sum(event.type == EventType.RUNNING for event in ordered if event.attempt == attempt) > 1:
            problems.append(f"attempt {attempt}: started more than once")
    verdicts = {event.type for event in ordered if event.type in (EventType.ABORTED, EventType.CANCELLED)}
    if len(verdicts) > 1:
        problems.append("both aborted and cancelled")
    return problems
