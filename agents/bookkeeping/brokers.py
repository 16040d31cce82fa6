"""Which epoch of each of several brokers counts. All functions run inside ``Store.write`` of fabric/store.py.

A broker's epoch begins when the broker does and is over when another one takes over from it. As a broker tells of a CE
that it has chosen before it sends a job there, one that can tell nothing any more can start nothing any more.

A broker may have a lease: its successor may end its epoch by itself when nothing was heard of it for so long. Who holds
one is decided here, by this agent's clock alone.
"""

from __future__ import annotations

from typing import Any

from fabric.errors import Conflict, NotFound
from fabric.store import run

MAX_LEASE_S = 86_400.0


def require_epoch(connection: Any, name: str, epoch: int) -> None:
    """Raises Conflict BROKER_FENCED if a later epoch than this has begun, or this one is over."""
    row = _row(connection, name)
    if row is not None and epoch < row[0]:
        raise Conflict(
            "BROKER_FENCED",
            f"{row[1] or 'another broker'} has taken over the jobs of {name}, whose epoch {epoch} is over; it hands "
            "over what it has and begins anew",
            epoch=row[0],
        )


def begin(connection: Any, name: str, epoch: int, successor: str) -> tuple[int, str]:
    """The epoch that counts, and who has taken over what was before it; the latter empty if `name` may go on.

    `epoch` 0 is a broker that knows nothing any more: what it had falls to `successor`.
    """
    row = _row(connection, name)
    if row is None:
        run(connection, "INSERT INTO brokers (name, epoch, taken_by) VALUES (?,?,'')", (name, max(1, epoch)))
        return max(1, epoch), ""
    known, taken_by = row
    if epoch == 0 and not taken_by and successor:
        run(connection, "UPDATE brokers SET epoch = ?, taken_by = ? WHERE name = ?", (known + 1, successor, name))
        return known + 1, successor
    if epoch < known and taken_by:
        return known, taken_by
    run(connection, "UPDATE brokers SET epoch = ?, taken_by = '' WHERE name = ?", (max(known, epoch), name))
    return max(known, epoch), ""


def set_lease(connection: Any, name: str, lease_s: float) -> None:
    """The lease that a broker wants; 0: none."""
    run(connection, "DELETE FROM leases WHERE name = ?", (name,))
    if lease_s > 0:
        run(connection, "INSERT INTO leases (name, lease_s) VALUES (?,?)", (name, lease_s))


def lease_of(connection: Any, name: str) -> float:
    """In seconds; 0: it has none."""
    found = run(connection, "SELECT lease_s FROM leases WHERE name = ?", (name,)).first()
    return float(found[0]) if found is not None else 0.0


class Leases:
    """When each broker was heard of. In memory: after a restart every lease begins anew.

    So it does after a time in which nobody was heard of, as then it was this agent that was stopped or cut off.
    """

    def __init__(self, now_s: float) -> None:
        self._heard: dict[str, float] = {}
        self._since = self._looked = now_s

    def heard(self, name: str, lease_s: float, now_s: float) -> None:
        """The lease of this broker begins anew."""
        self._look(lease_s, now_s)
        self._heard[name] = now_s

    def left_s(self, name: str, lease_s: float, now_s: float) -> float:
        """Until it lapses; below 0: it has."""
        self._look(lease_s, now_s)
        return max(self._heard.get(name, self._since), self._since) + lease_s - now_s

    def _look(self, lease_s: float, now_s: float) -> None:
        if now_s - self._looked > lease_s / 2:
            self._since = now_s
        self._looked = now_s


def require_lapsed(connection: Any, leases: Leases, name: str, by: str, now_s: float) -> None:
    """Raises Conflict LEASE_NONE or LEASE_HELD; not if `by` has taken over already."""
    row = _row(connection, name)
    if row is not None and row[1] == by:
        return
    lease_s = lease_of(connection, name)
    if not lease_s:
        raise Conflict("LEASE_NONE", f"{name} has no lease, so only an operator can end its epoch")
    left_s = leases.left_s(name, lease_s, now_s)
    if left_s >= 0:
        raise Conflict("LEASE_HELD", f"{name} was heard of; its lease lasts for {left_s:.1f} s", retry_after_s=left_s)


def end(connection: Any, name: str, by: str) -> int:
    """`by` takes over from `name`; the highest epoch that is over. Raises Conflict BROKER_TAKEN, NotFound."""
    row = _row(connection, name)
    if row is None:
        raise NotFound("BROKER_UNKNOWN", f"no broker {name[:80]!r} has ever begun here, so it has no jobs to take over")
    epoch, taken_by = row
    if taken_by not in ("", by):
        raise Conflict("BROKER_TAKEN", f"{taken_by} has taken over the jobs of {name} already", taken_by=taken_by)
    if not taken_by:
        run(connection, "UPDATE brokers SET epoch = ?, taken_by = ? WHERE name = ?", (epoch + 1, by, name))
        return epoch
    return epoch - 1


def _row(connection: Any, name: str) -> tuple[int, str] | None:
    found = run(connection, "SELECT epoch, taken_by FROM brokers WHERE name = ?", (name,)).first()
    return (int(found[0]), str(found[1])) if found is not None else None
