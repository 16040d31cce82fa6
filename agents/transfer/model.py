"""What the transfer agent knows: immutable values, no protobuf and no rows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fabric.errors import InvalidRequest

MAX_SUBMITTED = 1000
"""Files of one Submit."""
MAX_PRIORITY = 10
PAGE = 1000
"""Files of one Status, jobs of one List."""


class TransferState(StrEnum):
    """As FTS3 names them."""

    SUBMITTED = "SUBMITTED"
    """Waits for room on its link, for the end of a pause, or for a proxy."""
    READY = "READY"
    """It is its turn: from here on the destination may have bytes of it."""
    ACTIVE = "ACTIVE"
    """Bytes move, or the copy is whole and about to be registered."""
    FINISHED = "FINISHED"
    """The replica is verified and in the catalogue."""
    FAILED = "FAILED"
    """Not copied; the reason says why, and trying again made no sense."""
    CANCELED = "CANCELED"
    """Its owner, an operator, or who took its owner's rights away has ended it."""


ENDED = frozenset({TransferState.FINISHED, TransferState.FAILED, TransferState.CANCELED})


@dataclass(frozen=True, slots=True)
class Job:
    """Files that were submitted together, to one destination."""

    job_id: str
    owner: str
    vo: str
    destination: str
    """host:port of the storage element, as SURLs have it; so are all elements below."""
    source: str
    """The only source wanted; empty: any."""
    priority: int
    submitted_at_us: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """Files of a directory that are to have copies at some places."""

    subscription_id: str
    owner: str
    vo: str
    directory: str
    at: str
    copies: int
    created_at_us: int

    def job(self, destination: str, now_us: int) -> Job:
        """Its transfers to one storage element."""
        return Job(f"{self.subscription_id}@{destination}", self.owner, self.vo, destination, "", 0, now_us)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a job as it is shown."""

    number: int
    lfn: str
    guid: str
    size_bytes: int
    state: TransferState
    attempt: int
    source: str
    surl: str
    reason: str
    sentence: str
    moved_bytes: int
    submitted_at_us: int
    ended_at_us: int


def element_of(surl: str) -> str:
    """host:port of the storage element that a SURL names."""
    return surl.partition("://")[2].partition("/")[0]


def host_and_port(element: str) -> tuple[str, int]:
    """As a socket wants them. Raises InvalidRequest(SURL_INVALID)."""
    host, _, port = element.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidRequest("SURL_INVALID", f"{element[:200]!r} is not host:port of a storage element")
    return host.strip("[]"), int(port)
