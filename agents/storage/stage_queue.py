"""Which tape is read next, and what from it: pure book-keeping, no clock and no disk.

Requests for one file are one; those for one tape are read in one go, in order of position, whoever made them. Which
tape is next is decided by need: of the VOs that wait the one that got least for its share, of its users the one who got
least, of his files the one that waits longest. Who waited for nothing cannot save up: on coming back he begins where
the least served of the others is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.storage.tape_rows import StageRequest, user_of

RUN_FILES = 50
"""Files read from a tape before others get their turn; those left over wait for the next."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A file that is wanted on disk."""

    file_id: str
    vo: str
    size_bytes: int
    tape: str
    position: int
    number: int
    """Of its arrival."""
    owners: set[str] = field(default_factory=set)
    obstacle: str = ""
    """Why it could not be staged when it was tried; else empty."""


@dataclass(frozen=True, slots=True)
class Run:
    """What to read from one tape, in this order."""

    tape: str
    files: tuple[Waiting, ...]


class StageQueue:
    """The files that wait for a tape, or are being read."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = shares
        self._files: dict[str, Waiting] = {}
        self._by_user: Counter[tuple[str, str]] = Counter()
        """(VO, user) -> files waited for; nobody with 0."""
        self._by_vo: Counter[str] = Counter()
        self._busy: dict[str, Run] = {}
        self._served: dict[str, float] = {}
        """Bytes by VO, divided by its share."""
        self._served_users: dict[tuple[str, str], float] = {}
        self._arrived = 0

    def __len__(self) -> int:
        """Files."""
        return len(self._files)

    def get(self, file_id: str) -> Waiting | None:
        """What waits under this id."""
        return self._files.get(file_id)

    def of_user(self, vo: str, owner: str) -> int:
        """How many files this user waits for."""
        return self._by_user[vo, user_of(owner)]

    def add(self, request: StageRequest) -> None:
        """Somebody wants a file. Again: nothing changes."""
        waiting = self._files.get(request.file_id)
        if waiting is not None and request.owner in waiting.owners:
            return
        self._catch_up(request)
        if waiting is None:
            self._arrived += 1
            self._by_vo[request.vo] += 1
            waiting = self._files[request.file_id] = Waiting(
                request.file_id, request.vo, request.size_bytes, request.tape, request.position, self._arrived
            )
        waiting.owners.add(request.owner)
        self._by_user[request.vo, user_of(request.owner)] += 1

    def _catch_up(self, request: StageRequest) -> None:
        vo, user = request.vo, (request.vo, user_of(request.owner))
        if vo not in self._by_vo:
            least = min((self._served.get(other, 0.0) for other in self._by_vo), default=0.0)
            self._served[vo] = max(self._served.get(vo, 0.0), least)
        if user not in self._by_user:
            least = min((self._served_users.get(other, 0.0) for other in self._by_user if other[0] == vo), default=0.0)
            self._served_users[user] = max(self._served_users.get(user, 0.0), least)

    def withdraw(self, file_id: str, owner: str) -> None:
        """This user wants it no more. A file that is being read is read to its end."""
        waiting = self._files.get(file_id)
        if waiting is None or owner not in waiting.owners:
            return
        waiting.owners.discard(owner)
        _count_down(self._by_user, (waiting.vo, user_of(owner)))
        if not waiting.owners and not any(waiting in run.files for run in self._busy.values()):
            self._leave(waiting)

    def _leave(self, waiting: Waiting) -> None:
        if self._files.pop(waiting.file_id, None) is not None:
            _count_down(self._by_vo, waiting.vo)
            for owner in waiting.owners:
                _count_down(self._by_user, (waiting.vo, user_of(owner)))

    def next(self, later: Collection[str] = ()) -> Run | None:
        """The next tape to read, marked as busy; None if all tapes wanted are, or every file waits for something else
        (`later`)."""
        ready = [each for each in self._files.values() if each.tape not in self._busy and each.file_id not in later]
        if not ready:
            return None
        neediest = min(ready, key=self._need)
        same = sorted((each for each in ready if each.tape == neediest.tape), key=self._need)[:RUN_FILES]
        run = Run(neediest.tape, tuple(sorted(same, key=lambda each: each.position)))
        self._busy[run.tape] = run
        return run

    def _need(self, waiting: Waiting) -> tuple[float, float, int]:
        users = (self._served_users.get((waiting.vo, user_of(owner)), 0.0) for owner in waiting.owners)
        return self._served.get(waiting.vo, 0.0), min(users, default=0.0), waiting.number

    def done(self, waiting: Waiting, *, served: bool) -> None:
        """It waits no more; if it was `served`, those who waited have had that much."""
        self._leave(waiting)
        if served:
            share = self._shares.get(waiting.vo, 1.0)
            self._served[waiting.vo] = self._served.get(waiting.vo, 0.0) + waiting.size_bytes / share
            for owner in waiting.owners:
                key = (waiting.vo, user_of(owner))
                self._served_users[key] = self._served_users.get(key, 0.0) + waiting.size_bytes / len(waiting.owners)

    def end(self, run: Run) -> None:
        """Its tape is free again."""
        self._busy.pop(run.tape, None)

    def ahead(self, file_ids: Collection[str]) -> dict[str, tuple[int, int]]:
        """(files, bytes) to be read before each of these that waits, if nobody else comes: about."""
        wanted, before, found = set(file_ids), (0, 0), {}
        reading = [each for run in self._busy.values() for each in run.files if each.file_id in self._files]
        rest = sorted(set(self._files.values()) - set(reading), key=self._need)
        for waiting in (*reading, *rest):
            if waiting.file_id in wanted:
                found[waiting.file_id] = before
            before = (before[0] + 1, before[1] + waiting.size_bytes)
        return found


def _count_down(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
