"""Which epoch of each of several brokers counts. All functions run inside ``Store.write`` of fabric/store.py.

A broker's epoch begins when the broker does and is over when another one takes over from it. As a broker tells of a CE
that it has chosen before it sends a job there, one that can tell nothing any more can start nothing any more.
"""

from __future__ import annotations

from typing import Any

from fabric.errors import Conflict, NotFound
from fabric.store import run


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
