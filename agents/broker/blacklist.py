"""Which CEs get no jobs because they fail them. Pure; times are monotonic seconds.

Each failure for which a CE is to blame (policy.py) counts 1, each job that ended there 1 on the other side, and both
halve every half-life. A CE with ``LIST_AT`` failures (four within a short time), more than ends, is listed: it
gets nothing until its failures have faded to ``PROBE_AT``, then one job at a time. One that ends clears it; one that
fails lists it again, a half-life longer each time. What speaks against a CE for one user only is counted for him alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agents.broker.policy import Blame, rule_for

HALF_LIFE_S = 300.0
"""Unless the broker's settings say otherwise."""
LIST_AT = 3.5
PROBE_AT = 2.0
MAX_FAILURES = PROBE_AT * 2.0**12
"""An hour of half-lives."""
TOGETHER_S = 10.0
"""Jobs lost with one node within this time count as one failure."""
MAX_RECORDS = 10_000
FADED = 0.1
"""A record with fewer failures is forgotten."""

EVERYBODY = ""
"""In the place of an owner."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held against a CE, as it is kept over a restart of the broker."""

    ce: str
    owner: str
    """EVERYBODY, or who alone is concerned."""
    age_s: float
    """How long ago the numbers were so."""
    failed: float = 0.0
    """0: nothing is held against it any more."""
    ended: float = 0.0
    listings: int = 0
    cause: str = ""


@dataclass(slots=True)
class _Record:
    at_s: float
    half_life_s: float
    failed: float = 0.0
    ended: float = 0.0
    listings: int = 0
    """How often it was listed since its last success as a probe; 0: it is not listed."""
    cause: str = ""
    """The last one."""
    node_died_at_s: float = -math.inf
    """When the last failure was counted that many jobs share."""

    def fade(self, now_s: float) -> None:
        factor = 0.5 ** ((now_s - self.at_s) / self.half_life_s)
        self.failed, self.ended, self.at_s = self.failed * factor, self.ended * factor, now_s
        if self.failed < FADED:
            self.listings = 0

    def left_s(self, now_s: float) -> float:
        """Until it may be tried again; 0 or less: it may."""
        if not self.listings:
            return 0.0
        return self.at_s + self.half_life_s * math.log2(max(self.failed, 1e-9) / PROBE_AT) - now_s


@dataclass(frozen=True, slots=True)
class Listing:
    """That a CE is listed, for whom, for how long, and why."""

    ce: str
    owner: str
    """EVERYBODY, or who alone is concerned."""
    left_s: float
    """Until one job is tried there; not above 0 while that is so."""
    cause: str
    """The last one."""
    failures: int
    """As they count now."""

    @property
    def sentence(self) -> str:
        """For whoever asks why no jobs go there."""
        when = f"for {math.ceil(self.left_s)} s more" if self.left_s > 0 else "but one at a time"
        whose = "" if self.owner == EVERYBODY else " of yours"
        return f"gets no jobs{whose} from this broker {when}: {self.failures} failed there lately, last by {self.cause}"


class Blacklist:
    """What this broker holds against CEs. Whoever owns it keeps what `changed` says, and gives it back at a start."""

    def __init__(self, half_life_s: float = HALF_LIFE_S, kept: Iterable[Held] = (), now_s: float = 0.0) -> None:
        """`kept`: from before a restart; an age below 0, of a clock that was set back, is taken as none."""
        self._half_life_s = half_life_s
        self._records: dict[tuple[str, str], _Record] = {
            (item.ce, item.owner): _Record(
                now_s - max(0.0, item.age_s), half_life_s, min(item.failed, MAX_FAILURES), item.ended, item.listings,
                item.cause,
            )
            for item in itertools.islice(kept, MAX_RECORDS)
        }  # fmt: skip
        self._changed: set[tuple[str, str]] = set()

    def changed(self, now_s: float) -> list[Held]:
        """What is to be kept since this was asked last."""
        keys, self._changed = self._changed, set()
        return [
            Held(*key, now_s - record.at_s, record.failed, record.ended, record.listings, record.cause)
            if (record := self._records.get(key)) is not None
            else Held(*key, 0.0)
            for key in keys
        ]

    def failed(self, ce: str, owner: str, cause: str, now_s: float) -> Listing | None:
        """A job of this owner failed there. The listing, if it begins with that."""
        rule = rule_for(cause)
        if rule.blame is Blame.NOBODY:
            return None
        key = (ce, EVERYBODY if rule.blame is Blame.EVERYBODY else owner)
        record = self._records.get(key)
        if record is None:
            self._make_room(now_s)
            record = self._records[key] = _Record(now_s, self._half_life_s)
        if rule.together:
            if now_s - record.node_died_at_s < TOGETHER_S:
                return None
            record.node_died_at_s = now_s
        self._changed.add(key)
        was_shunned = record.left_s(now_s) > 0
        record.fade(now_s)
        was_listed = record.listings > 0
        record.failed = min(MAX_FAILURES, record.failed + 1)
        record.cause = cause
        if was_shunned:
            return None
        if was_listed:
            record.listings += 1
            record.failed = max(record.failed, min(MAX_FAILURES, PROBE_AT * 2.0**record.listings))
        elif record.failed >= LIST_AT and record.failed > record.ended:
            record.listings = 1
        return _listing(key, record, now_s) if record.listings else None

    def ended(self, ce: str, owner: str, now_s: float) -> None:
        """A job of this owner ran to its end there."""
        for key in ((ce, EVERYBODY), (ce, owner)):
            record = self._records.get(key)
            if record is None:
                continue
            probed = record.listings > 0 and record.left_s(now_s) <= 0
            record.fade(now_s)
            record.ended += 1
            self._changed.add(key)
            if probed or record.ended > record.failed:
                del self._records[key]

    def shunned(self, owner: str, now_s: float) -> frozenset[str]:
        """CEs that get nothing of this owner now."""
        return frozenset(
            ce
            for (ce, whose), record in self._records.items()
            if whose in (EVERYBODY, owner) and record.left_s(now_s) > 0
        )

    def probed(self, now_s: float) -> frozenset[str]:
        """CEs that get one job at a time now."""
        return frozenset(
            ce
            for (ce, whose), record in self._records.items()
            if whose == EVERYBODY and record.listings and record.left_s(now_s) <= 0
        )

    def listings(self, now_s: float) -> list[Listing]:
        """Everything listed, also what is tried again."""
        return [_listing(key, record, now_s) for key, record in self._records.items() if record.listings]

    def for_owner(self, owner: str, now_s: float) -> Mapping[str, Listing]:
        """By CE: what concerns this owner."""
        return {item.ce: item for item in self.listings(now_s) if item.owner in (EVERYBODY, owner)}

    def _make_room(self, now_s: float) -> None:
        if len(self._records) < MAX_RECORDS:
            return
        for record in self._records.values():
            record.fade(now_s)
        kept = sorted(self._records.items(), key=lambda item: item[1].failed)[MAX_RECORDS // 10 :]
        before, self._records = self._records, {key: record for key, record in kept if record.failed > FADED}
        self._changed |= before.keys() - self._records.keys()


def _listing(key: tuple[str, str], record: _Record, now_s: float) -> Listing:
    left_s = record.left_s(now_s)
    faded = record.failed * 0.5 ** ((now_s - record.at_s) / record.half_life_s)
    return Listing(key[0], key[1], left_s, record.cause, max(1, round(faded)))
