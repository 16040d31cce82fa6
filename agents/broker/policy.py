"""What a failure of a job at a CE means: what to do next, whether a retry is spent, and whom it speaks against. Pure.

Causes are the typed reasons of gatekeepers and workers. One that is not in the table is treated by ``UNKNOWN``: a new
kind of failure never strands a job, and never takes a CE away from anybody but its owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

MAX_PAUSE_S = 600.0
"""Of a job before it is matched again."""
MAX_ATTEMPTS = 1000
"""Of one job, those that cost no retry included; reached within a day if a CE keeps handing it back."""


class Action(Enum):
    """What is done with the job."""

    ELSEWHERE = "elsewhere"
    """Matched again; this CE only if no other one matches."""
    ANYWHERE = "anywhere"
    """Matched again, at this CE too: it is not the CE that failed."""
    WAIT = "wait"
    """As ANYWHERE, after a pause that doubles with each attempt."""
    LATER = "later"
    """The CE has not taken it and does not take any now: as ANYWHERE, and no retry is spent."""
    GIVE_UP = "give up"
    """It would fail everywhere."""


class Blame(Enum):
    """For whom the CE gets worse (blacklist.py)."""

    NOBODY = "nobody"
    """The job, its data or its proxy is at fault, or that cannot be known."""
    OWNER = "owner"
    """It may have to do with this user there: his account, his rights."""
    EVERYBODY = "everybody"
    """The site's own fault."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    action: Action
    blame: Blame = Blame.NOBODY
    wait_s: float = 0.0
    """WAIT: before the second attempt."""
    together: bool = False
    """Many jobs fail of it at once (a node died): those of some seconds speak against the CE as one."""


UNKNOWN = Rule(Action.ELSEWHERE, Blame.OWNER)

_SITE = Rule(Action.ELSEWHERE, Blame.EVERYBODY)
_NODE_DIED = Rule(Action.ELSEWHERE, Blame.EVERYBODY, together=True)
_RETURNED = Rule(Action.LATER)
_HOPELESS = Rule(Action.GIVE_UP)

RULES: Mapping[str, Rule] = {
    # the site could not do what it promises
    "SCRATCH_FAILED": _SITE,
    "DISK_FULL": _SITE,
    "WORKER_DEFECT": _SITE,
    "NO_WORKER_TAKES_IT": _SITE,
    "SANDBOX_CHECKSUM": _SITE,
    "START_REFUSED": _SITE,
    "OUTPUT_FAILED": _SITE,
    # what ran the job is gone
    "WORKER_LOST": _NODE_DIED,
    "WORKER_STOPPED": _NODE_DIED,
    "WORKER_REBOOTED": _NODE_DIED,
    "STARTER_LOST": _NODE_DIED,
    "BATCH_LOST": _NODE_DIED,
    "BATCH_SYSTEM": _NODE_DIED,
    "CE_FORGOT": _NODE_DIED,
    # this job, here
    "EXEC_FAILED": Rule(Action.ELSEWHERE),
    "PROLOGUE_FAILED": Rule(Action.ELSEWHERE),
    "DESCRIPTION_INVALID": Rule(Action.ELSEWHERE),
    "FENCED": Rule(Action.ELSEWHERE),
    "SANDBOX_EVICTED": Rule(Action.ANYWHERE),
    "SANDBOX_FILE_UNKNOWN": Rule(Action.ANYWHERE),
    # something else is away for now
    "INPUT_DATA_UNAVAILABLE": Rule(Action.WAIT, wait_s=15.0),
    "INPUT_DATA_ON_TAPE": Rule(Action.WAIT, wait_s=60.0),
    "OUTPUT_DATA_FAILED": Rule(Action.WAIT, wait_s=60.0),
    "PROXY_REFUSED": Rule(Action.WAIT, wait_s=10.0),
    "DELEGATION_MISSING": Rule(Action.WAIT, wait_s=10.0),
    "DELEGATION_EXPIRED": Rule(Action.WAIT, wait_s=10.0),
    # it is as wrong at every other site
    "INPUT_DATA_UNKNOWN": _HOPELESS,
    "INPUT_DATA_CLASH": _HOPELESS,
    "INPUT_DATA_NAME": _HOPELESS,
    "INPUT_DATA_SEALED": _HOPELESS,
    "OUTPUT_DATA_MISSING": _HOPELESS,
    # not now
    "QUEUE_FULL": _RETURNED,
    "DRAINING": _RETURNED,
    "STORE_FULL": _RETURNED,
    "TOO_MANY_KEPT": _RETURNED,
    "TOO_MANY_JOBS": _RETURNED,
}


def rule_for(cause: str) -> Rule:
    """The rule of a cause."""
    return RULES.get(cause, UNKNOWN)


def pause_s(rule: Rule, attempt: int) -> float:
    """Before a job whose attempt failed is matched again."""
    return min(MAX_PAUSE_S, rule.wait_s * 2.0 ** min(attempt - 1, 20))


def pause_of_returned_s(attempt: int) -> float:
    """Before a job that no CE has had is matched again: nothing at first, more the longer it goes to and fro."""
    return min(MAX_PAUSE_S, float(attempt // 8))
