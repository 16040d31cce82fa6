"""What a failure of a copy means: by who raised it, its kind and its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fabric import errors
from fabric.errors import GridError

NO_SPACE_S = 300.0
"""Pause where there is no room: somebody has to make some."""
LATER_S = 2.0
PATIENT_ATTEMPTS = 200
"""While a service is away; with pauses of ten minutes more than a day."""


class Side(Enum):
    """Who raised an error."""

    SOURCE = "source"
    DESTINATION = "destination"
    CATALOGUE = "catalogue"


class Action(Enum):
    """What to do about it."""

    AGAIN = "again"
    """The same, after a pause that grows."""
    ELSEWHERE = "elsewhere"
    """From another source if there is one, at once; else as AGAIN."""
    STAGED = "staged"
    """It is on tape there and comes to disk: as ELSEWHERE, else as LATER, and no attempt is spent."""
    LATER = "later"
    """Nothing was tried: after a short pause, and no attempt is spent."""
    END = "end"
    """It would fail again."""


UNSPENT = frozenset({Action.LATER, Action.STAGED})
"""Nothing was tried, or nothing could be."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long to wait, and how often to try."""

    first_s: float
    max_s: float
    max_attempts: int


_BY_REASON: Mapping[str, Action] = {
    "FILE_STAGING": Action.STAGED,
    "TOO_MANY_TRANSFERS": Action.LATER,
    "STORE_BUSY": Action.LATER,
    "PUT_TAKEN_OVER": Action.LATER,  # by ourselves, before a restart
    "SOURCE_DIFFERS": Action.ELSEWHERE,
    "CHECKSUM_MISMATCH": Action.ELSEWHERE,  # on the way, or rotten where it came from
    "SIZE_MISMATCH": Action.ELSEWHERE,
    "FILE_LARGE": Action.ELSEWHERE,  # another file than the catalogue's
    "NOT_MAPPED": Action.AGAIN,  # member lists are read every few seconds
    "MEMBERS_UNKNOWN": Action.AGAIN,
    "DELEGATION_MISSING": Action.AGAIN,  # the element has lost it; it gets another one
    "DELEGATION_EXPIRED": Action.AGAIN,
    "NO_REPLICA": Action.END,
}
_BY_KIND: Mapping[type[GridError], Action] = {
    errors.InvalidRequest: Action.END,
    errors.Refused: Action.END,
    errors.NotFound: Action.END,
    errors.AlreadyExists: Action.END,
    errors.Unauthenticated: Action.AGAIN,
    errors.Conflict: Action.AGAIN,
    errors.Exhausted: Action.AGAIN,
    errors.Unavailable: Action.AGAIN,
    errors.DeadlineExceeded: Action.AGAIN,
    errors.DataCorrupted: Action.AGAIN,
    errors.Defect: Action.AGAIN,
}
_SPACE = frozenset({"QUOTA_EXCEEDED", "DISK_FULL"})
_ITS_OWN = frozenset({errors.NotFound, errors.Unavailable, errors.DeadlineExceeded, errors.DataCorrupted})
"""Kinds of errors of a source that another source need not have."""


def action_of(side: Side, error: GridError) -> Action:
    """What to do about an error."""
    if side is Side.SOURCE and type(error) in _ITS_OWN and error.reason != "FILE_STAGING":
        return Action.ELSEWHERE
    return _BY_REASON.get(error.reason) or _BY_KIND.get(type(error), Action.AGAIN)


def pause_s(error: GridError, action: Action, attempt: int, pauses: Pauses) -> float:
    """Seconds until the next attempt; `attempt` is the one that failed."""
    if action in UNSPENT:
        return error.retry_after_s or LATER_S
    if error.reason in _SPACE:
        return max(NO_SPACE_S, error.retry_after_s or 0.0)
    return min(pauses.first_s * 2 ** min(attempt - 1, 30), pauses.max_s)


def attempts(side: Side, error: GridError, pauses: Pauses) -> int:
    """How many are made in all."""
    away = side is Side.CATALOGUE or type(error) is errors.Unavailable
    return max(PATIENT_ATTEMPTS, pauses.max_attempts) if away else pauses.max_attempts
