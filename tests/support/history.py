"""What happened to jobs, as recorded from outside the agents, and a model that says what of it must not have happened.

Three records that do not know of each other: what was acknowledged to the user; what the payloads themselves wrote when
they started and ended; and what bookkeeping says. `problems` compares them:

* lost: every acknowledged job is at bookkeeping, has ended, and if DONE, its payload wrote that it ended;
* run twice: an attempt's payload starts at most once; a later attempt starts only after the failure of the one before
  is on record and when no process of an earlier one lives;
* states: every history is legal (`agents.bookkeeping.machine.history_problems`);
* events: every start and end that a payload wrote is an event, and no source's numbers have a gap;
* accounting: every run that ended well has exactly one usage record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from agents.bookkeeping.client import BookkeepingClient, state_name
from agents.bookkeeping.machine import history_problems
from agents.bookkeeping.model import Event, EventType

ANEW = 1_000_000
"""An outbox whose store was lost numbers its events from the time of its making in microseconds, so far above."""
WITNESS = """#!/bin/sh
# Arguments: the folder of the witnesses, how long to run, how many bytes to print.
witness="$1/${GRIDFABRIC_JOB_ID##*/}"
[ -e "$witness" ] && while read -r word attempt pid; do
  [ "$word" = start ] || continue
  read -r state 2>/dev/null < /proc/$pid/stat && case "$state" in
    *") Z "*) ;; # dead, and its parent has not looked yet
    *witness*) echo "overlaps $attempt $pid" >> "$witness" ;;
  esac
done < "$witness"
echo "start $GRIDFABRIC_ATTEMPT $$" >> "$witness"
sleep "$2"
[ "$3" = 0 ] || head -c "$3" /dev/zero
echo "end $GRIDFABRIC_ATTEMPT $$" >> "$witness"
"""
"""A payload that writes that it starts and ends, and if a process of an earlier start still lives."""


@dataclass
class Recorded:
    """Everything that was seen."""

    acknowledged: set[str] = field(default_factory=set)
    """Job ids that a user was told, without parents."""
    parents: set[str] = field(default_factory=set)
    """Of collections that a user was told."""
    witnessed: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """By the last part of the job id: words and attempts, as the payloads wrote them."""
    states: dict[str, str] = field(default_factory=dict)
    """By job id, at bookkeeping."""
    events: dict[str, list[Event]] = field(default_factory=dict)
    """By job id, at bookkeeping; parents, too."""
    usage: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """Usage records: job id, attempt, outcome."""

    def told(self, parent: str, children: Iterable[str]) -> None:
        """A submission was acknowledged."""
        ids = list(children)
        if ids:
            self.parents.add(parent)
        self.acknowledged.update(ids or [parent])

    def read_witnesses(self, folder: Path) -> None:
        """What the payloads wrote."""
        for path in folder.iterdir():
            words = [line.split() for line in path.read_text().splitlines()]
            self.witnessed[path.name] = [(word, int(attempt)) for word, attempt, _ in words]

    async def ask(self, client: BookkeepingClient, since_us: int, until_us: int) -> None:
        """States, histories and usage records. Raises GridError."""
        for job in await client.query(job_ids=sorted(self.acknowledged)):
            self.states[job.job_id] = state_name(job.state)
        for job_id in self.acknowledged & self.states.keys() | self.parents:
            self.events[job_id] = events_of(await client.history(job_id))
        self.usage.clear()
        async for record in client.usage_records(since_us, until_us):
            self.usage[record.job_id, record.attempt, record.outcome] += 1

    def problems(self) -> list[str]:
        """What must not have happened; empty if all is well."""
        found = [f"acknowledged and unknown: {job_id}" for job_id in self.acknowledged - self.states.keys()]
        by_name = {job_id.rpartition("/")[2]: job_id for job_id in self.acknowledged}
        found += [f"never acknowledged, and started: {name}" for name in self.witnessed.keys() - by_name.keys()]
        for job_id, state in self.states.items():
            told = self.witnessed.get(job_id.rpartition("/")[2], [])
            usage = {key[1:]: count for key, count in self.usage.items() if key[0] == job_id}
            found += [f"{job_id}: {text}" for text in job_problems(state, self.events.get(job_id, ()), told, usage)]
        return found + gaps(self.events.values())


def job_problems(
    state: str,
    events: Sequence[Event],
    witnessed: Sequence[tuple[str, int]],
    usage: Mapping[tuple[int, str], int] | None = None,
) -> list[str]:
    """What is wrong with one acknowledged job. `usage`: None if accounting was not asked."""
    found = history_problems(events)
    if state not in ("DONE", "CLEARED", "ABORTED", "CANCELLED"):
        found.append(f"has not ended, it is {state}")
    attempts = {kind: {event.attempt for event in events if event.type == kind} for kind in EventType}
    failed = {
        int(event.fields.get("failed_attempt", event.attempt - 1))
        for event in events
        if event.type == EventType.RESUBMISSION
    }
    over = failed | attempts[EventType.ABORTED] | attempts[EventType.CANCELLED]
    starts = [attempt for word, attempt in witnessed if word == "start"]
    ends = {attempt for word, attempt in witnessed if word == "end"}
    found += [f"attempt {attempt} started {times} times" for attempt, times in Counter(starts).items() if times > 1]
    found += [f"started while attempt {attempt} still ran" for word, attempt in witnessed if word == "overlaps"]
    if starts != sorted(starts):
        found.append(f"an earlier attempt started after a later one: {starts}")
    for attempt in starts:
        if attempt not in attempts[EventType.RUNNING] | over:
            found.append(f"attempt {attempt} started and no event says so")
        if any(later > attempt for later in starts) and attempt not in failed:
            found.append(f"attempt {attempt} was not known to have failed when a later one started")
    found += [f"attempt {attempt} ended and no event says so" for attempt in ends - (attempts[EventType.DONE] | over)]
    done = attempts[EventType.DONE]
    found += [f"attempt {attempt} is DONE, and its payload never ended" for attempt in done - ends]
    found += [f"DONE twice: attempts {sorted(done)}"] if len(done) > 1 else []
    for attempt in done if usage is not None else ():
        records = usage.get((attempt, "DONE"), 0)
        if records != 1:
            found.append(f"attempt {attempt} is DONE and has {records} usage records")
    return found


def gaps(histories: Iterable[Sequence[Event]]) -> list[str]:
    """Numbers that a source must have given to events which did not arrive."""
    by_source: defaultdict[str, set[int]] = defaultdict(set)
    for events in histories:
        for event in events:
            by_source[event.source].add(event.sequence)
    found: list[str] = []
    for source, numbers in by_source.items():
        ordered = sorted(numbers)
        for before, after in pairwise(ordered):
            if 1 < after - before < ANEW:
                found.append(f"{after - before - 1} events of {source} are missing, the first is {before + 1}")
    return found


def events_of(history: Any) -> list[Event]:
    """The events of bookkeeping's answer."""
    return [
        Event(
            item.job_id, item.source, item.sequence, item.at_us, EventType(item.type), item.attempt, dict(item.fields)
        )
        for item in history.events
    ]
