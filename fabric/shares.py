"""Whose work goes next: shares between VOs, priorities within one, and nobody waits for ever. Pure.

Between VOs: stride scheduling. Each VO has a virtual time that its hand-outs move on by 1/share; the VO that is least
far goes next, and one that comes back with jobs after a pause begins where the others are. While a VO has jobs that may
start, of the hand-outs that follow one is its own at the latest after

    bound = sum over the other VOs of (share / own share + 2)

because each of the others can be handed at most share/own + 1 jobs until its virtual time has passed, and one more that
was due before. Within a VO, over all its queues: the highest priority first, oldest first within it, and every
`AGED_EVERY`-th is the oldest of all, whatever its priority: the job at position p of a VO by age is handed out after at
most p * AGED_EVERY hand-outs of that VO.

While something large waits for room, short jobs may be filled in (`fill`) that end before it can start. What they get
would have stood empty, so it costs their VO nothing: both bounds count the hand-outs of `take` alone, and hold however
many were filled in between. Fills have strides of their own, so that they too are shared.

A queue that is full or shut takes part in neither: its jobs may not start, and a VO that has no others pauses. So both
bounds count jobs of open queues, and hold over all of these together.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

AGED_EVERY = 8
DEFAULT_SHARE = 1.0


@dataclass(slots=True)
class _Lane:
    """Jobs of one VO in one queue. Only lanes that have jobs are kept."""

    by_age: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict[str, tuple[int, int]])
    """Job id to priority and number of arrival, oldest first."""
    by_priority: dict[int, OrderedDict[str, None]] = field(default_factory=dict[int, OrderedDict[str, None]])
    """Only priorities that have jobs."""
    by_length: dict[int, OrderedDict[str, None]] = field(default_factory=dict[int, OrderedDict[str, None]])
    """Seconds, to the jobs that surely end within them, oldest first. Only lengths that have jobs."""

    def oldest(self) -> tuple[int, str]:
        """Its number, and which it is."""
        job_id, (_, number) = next(iter(self.by_age.items()))
        return number, job_id

    def first(self) -> tuple[int, int, str]:
        """Priority turned round, number, and which it is: the least of several goes first."""
        priority = max(self.by_priority)
        job_id = next(iter(self.by_priority[priority]))
        return -priority, self.by_age[job_id][1], job_id

    def fitting(self, seconds: float) -> tuple[int, int, str] | None:
        """Of the longest that end within this time the oldest: length turned round, number, and which it is."""
        length = max((length for length in self.by_length if length <= seconds), default=None)
        if length is None:
            return None
        job_id = next(iter(self.by_length[length]))
        return -length, self.by_age[job_id][1], job_id


@dataclass(slots=True)
class _Vo:
    share: float
    virtual: float = 0.0
    handed: int = 0
    filled: float = 0.0
    """Virtual time of what was filled in."""
    lanes: dict[str, _Lane] = field(default_factory=dict[str, _Lane])
    """By queue."""


class ShareQueue:
    """Jobs that may start, of all VOs and queues. All operations take time in the number of VOs, queues and priorities,
    not of jobs."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        """`shares`: of each VO that has one; the others have 1 each."""
        self._shares = dict(shares)
        self._vos: dict[str, _Vo] = {}
        self._places: dict[str, tuple[str, str, int]] = {}
        """Job id to VO, queue and length."""
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def bound(self, vo: str) -> int:
        """At the latest so many hand-outs after the last, a VO with waiting jobs is handed one."""
        own = self._share(vo)
        return 1 + sum(int(other.share / own) + 2 for name, other in self._vos.items() if name != vo)

    def _share(self, vo: str) -> float:
        return self._shares.get(vo, DEFAULT_SHARE)

    def add(
        self, job_id: str, vo: str, priority: int = 0, *, queue: str = "", first: bool = False, length_s: int = 0
    ) -> None:
        """A job may start. `first`: it was handed out in vain, and goes before the others of its VO and priority.
        `length_s`: it surely ends within so many seconds; 0: nobody knows, and it is never filled in."""
        here = self._vos.get(vo)
        if here is None:
            here = self._vos[vo] = _Vo(self._share(vo))
        if not here.lanes:
            here.virtual = max(here.virtual, self._now())
        lane = here.lanes.setdefault(queue, _Lane())
        level = lane.by_priority.setdefault(priority, OrderedDict())
        number = next(self._numbers)
        lane.by_age[job_id] = (priority, -number if first else number)
        level[job_id] = None
        self._places[job_id] = (vo, queue, length_s)
        of_length = lane.by_length.setdefault(length_s, OrderedDict()) if length_s else None
        if of_length is not None:
            of_length[job_id] = None
        for order in (lane.by_age, level, of_length) if first else ():
            if order is not None:
                order.move_to_end(job_id, last=False)

    def _now(self) -> float:
        return min((vo.virtual for vo in self._vos.values() if vo.lanes), default=0.0)

    def discard(self, job_id: str) -> None:
        """It may not start any more; nothing if it is not here."""
        place = self._places.pop(job_id, None)
        if place is None:
            return
        here = self._vos[place[0]]
        lane = here.lanes[place[1]]
        priority, _ = lane.by_age.pop(job_id)
        level = lane.by_priority[priority]
        del level[job_id]
        if not level:
            del lane.by_priority[priority]
        if place[2]:
            of_length = lane.by_length[place[2]]
            del of_length[job_id]
            if not of_length:
                del lane.by_length[place[2]]
        if not lane.by_age:
            del here.lanes[place[1]]

    def take(self, shut: Collection[str] = ()) -> str | None:
        """The next job of a queue that is not shut, which counts as handed out; None if there is none."""
        open_lanes = {
            name: lanes
            for name, vo in self._vos.items()
            if (lanes := [lane for queue, lane in vo.lanes.items() if queue not in shut])
        }
        if not open_lanes:
            return None
        virtual, name = min((self._vos[name].virtual, name) for name in open_lanes)
        for pausing in self._vos.keys() - open_lanes.keys():
            self._vos[pausing].virtual = max(self._vos[pausing].virtual, virtual)
        return self._hand(self._vos[name], open_lanes[name])

    def take_along(self, vo: str, queue: str) -> str | None:
        """One more of the VO and queue that was handed out last, whoever's turn it is; it counts as handed out, so the
        others come the sooner. The bounds above are then of groups."""
        here = self._vos[vo]
        lane = here.lanes.get(queue)
        return self._hand(here, [lane]) if lane is not None else None

    def _hand(self, vo: _Vo, lanes: Sequence[_Lane]) -> str:
        vo.virtual += 1 / vo.share
        vo.handed += 1
        if vo.handed % AGED_EVERY == 0:
            job_id = min(lane.oldest() for lane in lanes)[1]
        else:
            job_id = min(lane.first() for lane in lanes)[2]
        self.discard(job_id)
        return job_id

    def fill(self, within_s: float, shut: Collection[str] = ()) -> str | None:
        """A job of a queue that is not shut which ends within this time, and does not count as handed out; None if
        there is none. Of the VO that is least far with these, the longest that fit, oldest first."""
        found: dict[str, tuple[int, int, str]] = {}
        for name, vo in self._vos.items():
            lanes = (lane for queue, lane in vo.lanes.items() if queue not in shut)
            if fitting := [one for lane in lanes if (one := lane.fitting(within_s)) is not None]:
                found[name] = min(fitting)
        if not found:
            return None
        filled, name = min((self._vos[name].filled, name) for name in found)
        for pausing in self._vos.keys() - found.keys():
            self._vos[pausing].filled = max(self._vos[pausing].filled, filled)
        here = self._vos[name]
        here.filled += 1 / here.share
        job_id = found[name][2]
        self.discard(job_id)
        return job_id
