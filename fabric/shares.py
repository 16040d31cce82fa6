"""Whose work goes next: shares between VOs, priorities within one, and nobody waits for ever. Pure.

Between VOs: stride scheduling. Each VO has a virtual time that its hand-outs move on by 1/share; the VO that is least
far goes next, and one that comes back with jobs after a pause begins where the others are. While a VO has jobs that may
start, of the hand-outs that follow one is its own at the latest after

    bound = sum over the other VOs of (share / own share + 2)

because each of the others can be handed at most share/own + 1 jobs until its virtual time has passed, and one more that
was due before. Within a VO: the highest priority first, oldest first within it, and every `AGED_EVERY`-th is the oldest
of all, whatever its priority: the job at position p of a VO by age is handed out after at most p * AGED_EVERY
hand-outs of that VO.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

AGED_EVERY = 8
DEFAULT_SHARE = 1.0


@dataclass(slots=True)
class _Vo:
    share: float
    virtual: float = 0.0
    handed: int = 0
    by_age: OrderedDict[str, int] = field(default_factory=OrderedDict[str, int])
    """Job id to priority, oldest first."""
    by_priority: dict[int, OrderedDict[str, None]] = field(default_factory=dict[int, OrderedDict[str, None]])
    """Only priorities that have jobs."""


class ShareQueue:
    """Jobs that may start, of all VOs. All operations take time in the number of VOs and priorities, not of jobs."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        """`shares`: of each VO that has one; the others have 1 each."""
        self._shares = dict(shares)
        self._vos: dict[str, _Vo] = {}
        self._places: dict[str, str] = {}
        """Job id to VO."""

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

    def add(self, job_id: str, vo: str, priority: int = 0, *, first: bool = False) -> None:
        """A job may start. `first`: it was handed out in vain, and goes before the others of its VO and priority."""
        here = self._vos.get(vo)
        if here is None:
            here = self._vos[vo] = _Vo(self._share(vo))
        if not here.by_age:
            here.virtual = max(here.virtual, self._now())
        level = here.by_priority.setdefault(priority, OrderedDict())
        here.by_age[job_id] = priority
        level[job_id] = None
        self._places[job_id] = vo
        if first:
            here.by_age.move_to_end(job_id, last=False)
            level.move_to_end(job_id, last=False)

    def _now(self) -> float:
        return min((vo.virtual for vo in self._vos.values() if vo.by_age), default=0.0)

    def discard(self, job_id: str) -> None:
        """It may not start any more; nothing if it is not here."""
        vo = self._places.pop(job_id, None)
        if vo is None:
            return
        here = self._vos[vo]
        priority = here.by_age.pop(job_id)
        level = here.by_priority[priority]
        del level[job_id]
        if not level:
            del here.by_priority[priority]

    def take(self) -> str | None:
        """The next job, which counts as handed out; None if there is none."""
        waiting = [(vo.virtual, name) for name, vo in self._vos.items() if vo.by_age]
        if not waiting:
            return None
        here = self._vos[min(waiting)[1]]
        here.virtual += 1 / here.share
        here.handed += 1
        if here.handed % AGED_EVERY == 0 or len(here.by_priority) == 1:
            job_id = next(iter(here.by_age))
        else:
            job_id = next(iter(here.by_priority[max(here.by_priority)]))
        self.discard(job_id)
        return job_id
