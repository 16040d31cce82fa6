"""A file's life in the transfer agent: (transfer, event) to (transfer, pause). Pure.

What to *do* follows from the state alone, so a restarted agent does the same again: SUBMITTED is queued; READY and
ACTIVE are copied, under the same id of the put every time, so the destination has one copy or none; ACTIVE with a
`surl` is registered; an ended one that is `touched` may have left a copy that nobody knows, which is removed.

`surl` is kept before the catalogue hears of it. So what is not yet registered for certain is never removed, and what is
removed was never registered. FINISHED, FAILED and CANCELED are never left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from agents.transfer import policy
from agents.transfer.model import ENDED, TransferState
from agents.transfer.policy import Action, Pauses, Side
from fabric.errors import GridError

MAX_AVOIDED = 8
"""Sources remembered where it failed."""


class Transfer(NamedTuple):
    """What decides about a file's next step."""

    state: TransferState = TransferState.SUBMITTED
    attempt: int = 1
    source: str = ""
    """The element that it is read from, or is to be."""
    surl: str = ""
    """The copy, whole and verified, that is being registered or is."""
    touched: bool = False
    """The destination may have a copy that no catalogue knows."""
    avoid: tuple[str, ...] = ()
    """Sources where it failed, the last first."""
    reason: str = ""
    """Why it waits again, or how it ended; of a FINISHED one ALREADY_THERE if nothing was copied."""
    sentence: str = ""

    @property
    def ended(self) -> bool:
        """It stays as it is, but for what it may have left behind."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Chosen:
    """There is room on its link."""


@dataclass(frozen=True, slots=True)
class Moving:
    """The destination says that bytes come."""


@dataclass(frozen=True, slots=True)
class Copied:
    """The destination has it, whole and verified."""

    surl: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The catalogue has the replica."""


@dataclass(frozen=True, slots=True)
class Present:
    """The catalogue had a replica there before anything was copied."""

    surl: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed. `sources`: where it could be read."""

    side: Side
    error: GridError
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waits:
    """It was not its turn after all: no proxy, or the agent stopped. No attempt is spent."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """Somebody wants it ended."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The destination has no copy that nobody knows, or nobody can look any more."""


Event = Chosen | Moving | Copied | Registered | Present | Failed | Waits | Canceled | Cleaned


class Step(NamedTuple):
    """What an event makes of a transfer. `pause_s`: it is not tried again before."""

    transfer: Transfer
    pause_s: float = 0.0


def step(transfer: Transfer, event: Event, pauses: Pauses) -> Step:
    """The transfer after the event. An event that is late or a duplicate changes nothing."""
    match event:
        case Cleaned():
            return Step(transfer._replace(touched=False) if transfer.ended else transfer)
        case _ if transfer.ended:
            return Step(transfer)
        case Chosen() if transfer.surl:
            return Step(transfer)
        case Chosen():
            # SUBMITTED -> READY: kept before the destination is called.
            return Step(transfer._replace(state=TransferState.READY, touched=True, reason="", sentence=""))
        case Moving():
            # READY -> ACTIVE
            return Step(transfer._replace(state=TransferState.ACTIVE))
        case Copied(surl):
            # READY or ACTIVE -> ACTIVE with a SURL: kept before the catalogue is called.
            return Step(transfer._replace(state=TransferState.ACTIVE, surl=surl))
        case Registered():
            # ACTIVE -> FINISHED
            return Step(_end(transfer, TransferState.FINISHED, "", "")._replace(touched=False))
        case Present(surl):
            # Any -> FINISHED: somebody else has copied it there. What we may have put there ourselves goes.
            ended = _end(transfer, TransferState.FINISHED, "ALREADY_THERE", "there was a replica already")
            return Step(ended._replace(surl=surl))
        case Waits(reason, sentence):
            # READY or ACTIVE -> SUBMITTED, if it is not only to be registered.
            if transfer.surl:
                return Step(transfer)
            return Step(transfer._replace(state=TransferState.SUBMITTED, reason=reason, sentence=sentence))
        case Canceled(reason, sentence):
            # Any -> CANCELED; but a copy that may be in the catalogue already is taken to its end.
            return Step(transfer if transfer.surl else _end(transfer, TransferState.CANCELED, reason, sentence))
        case Failed():
            return _failed(transfer, event, pauses)


def _failed(transfer: Transfer, event: Failed, pauses: Pauses) -> Step:
    error = event.error
    action = policy.action_of(event.side, error)
    pause_s = policy.pause_s(error, action, transfer.attempt, pauses)
    if action is Action.END:
        return Step(_end(transfer, TransferState.FAILED, error.reason, error.sentence)._replace(surl=""))
    if transfer.surl:
        # Stays ACTIVE: the copy is there, and the catalogue will answer some time.
        return Step(transfer._replace(reason=error.reason, sentence=error.sentence), pause_s)
    if action not in policy.UNSPENT and transfer.attempt >= policy.attempts(event.side, error, pauses):
        sentence = f"{error.sentence} (tried {transfer.attempt} times)"
        return Step(_end(transfer, TransferState.FAILED, error.reason, sentence))
    # READY or ACTIVE -> SUBMITTED
    after = transfer._replace(state=TransferState.SUBMITTED, reason=error.reason, sentence=error.sentence)
    if action is Action.LATER:
        return Step(after, pause_s)
    if action is not Action.STAGED:
        after = after._replace(attempt=transfer.attempt + 1)
        if action is not Action.ELSEWHERE:
            return Step(after, pause_s)
    avoid = (transfer.source, *(one for one in transfer.avoid if one != transfer.source))[:MAX_AVOIDED]
    untried = [one for one in event.sources if one not in avoid]
    return Step(after._replace(avoid=avoid), 0.0 if untried else pause_s)


def _end(transfer: Transfer, state: TransferState, reason: str, sentence: str) -> Transfer:
    return transfer._replace(state=state, reason=reason, sentence=sentence)
