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
    """host:port of the storage element, as SURLs have it; so are all elements below. Of a server of others: the URL of
    a directory there."""
    source: str
    """The only source wanted; empty: any."""
    priority: int
    submitted_at_us: int

    def can_read(self, element: str) -> bool:
        """Its files may come from there. One of the two ends is an element of this grid, which moves the bytes."""
        is_other = not is_at(element, self.destination) and self.source in ("", element)
        return is_other and not (is_foreign(element) and is_foreign(self.destination))


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


def is_foreign(element: str) -> bool:
    """It is a server of others, not a storage element of this grid."""
    return "://" in element


def element_of(surl: str) -> str:
    """The storage element that a SURL names: host:port; of a server of others with its scheme, `https://host:port`."""
    scheme, _, rest = surl.partition("://")
    host = rest.partition("/")[0]
    return host if scheme == "srm" else f"{scheme}://{host}"


def is_at(surl_or_element: str, destination: str) -> bool:
    """A SURL, or an element, is what a destination means."""
    if is_foreign(destination):
        return f"{surl_or_element}/".startswith(f"{destination}/")
    return destination in (surl_or_element, element_of(surl_or_element))


def host_and_port(element: str) -> tuple[str, int]:
    """As a socket wants them. Raises InvalidRequest(SURL_INVALID)."""
    host, _, port = element.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidRequest("SURL_INVALID", f"{element[:200]!r} is not host:port of a storage element")
    return host.strip("[]"), int(port)
