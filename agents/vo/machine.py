"""The life of a membership: (member, event, now) to the member as it is afterwards. Pure.

REQUESTED -> APPROVED <-> SUSPENDED; APPROVED -> EXPIRED -> APPROVED. Removal is no state: the row goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agents.vo.model import MAX_REASON_LENGTH, Aup, Member, MemberState
from fabric.clock import from_us, utc_text
from fabric.errors import Conflict, GridError, InvalidRequest, Refused


@dataclass(frozen=True)
class AupSigned:
    """The person signed this version."""

    version: int


@dataclass(frozen=True)
class Approved:
    """A manager let the person in, until then (0: for good)."""

    expires_at_us: int = 0


@dataclass(frozen=True)
class Suspended:
    """A manager took the member out for a time."""

    reason: str


@dataclass(frozen=True)
class Restored:
    """A manager took the suspension back."""


@dataclass(frozen=True)
class Renewed:
    """A manager set a new end (0: for good)."""

    expires_at_us: int = 0


@dataclass(frozen=True)
class EndReached:
    """The clock passed the end."""


Event = AupSigned | Approved | Suspended | Restored | Renewed | EndReached

_S = MemberState
TRANSITIONS: Mapping[tuple[MemberState, type[Event]], MemberState] = {
    (_S.REQUESTED, Approved): _S.APPROVED,  # when a manager decides; the policy must be signed
    (_S.APPROVED, Suspended): _S.SUSPENDED,  # when a manager or an incident says so
    (_S.EXPIRED, Suspended): _S.SUSPENDED,  # so that renewing alone does not bring the person back
    (_S.SUSPENDED, Suspended): _S.SUSPENDED,  # another reason
    (_S.SUSPENDED, Restored): _S.APPROVED,  # when the reason is gone; its end counts again at once
    (_S.APPROVED, Renewed): _S.APPROVED,
    (_S.EXPIRED, Renewed): _S.APPROVED,
    (_S.SUSPENDED, Renewed): _S.SUSPENDED,  # stays out
    (_S.APPROVED, EndReached): _S.EXPIRED,
    (_S.REQUESTED, AupSigned): _S.REQUESTED,
    (_S.APPROVED, AupSigned): _S.APPROVED,
    (_S.SUSPENDED, AupSigned): _S.SUSPENDED,
    (_S.EXPIRED, AupSigned): _S.EXPIRED,
}
"""Anything absent is refused."""

_WORDS: Mapping[type[Event], str] = {
    AupSigned: "signed for",
    Approved: "approved",
    Suspended: "suspended",
    Restored: "restored",
    Renewed: "renewed",
    EndReached: "ended",
}


def apply(member: Member, event: Event, aup: Aup, now_us: int) -> Member:
    """The member after the event. Raises Conflict MEMBER_STATE, AUP_UNSIGNED, AUP_VERSION; InvalidRequest."""
    after = TRANSITIONS.get((member.state, type(event)))
    if after is None:
        raise Conflict(
            "MEMBER_STATE",
            f"{member.subject} is {member.state.value} and cannot be {_WORDS[type(event)]}; look with: "
            f"grid vo member show",
            subject=member.subject,
            state=member.state.value,
        )
    return _EFFECTS[type(event)](replace(member, state=after), event, aup, now_us)


def _sign(member: Member, event: AupSigned, aup: Aup, now_us: int) -> Member:
    if event.version != aup.version or aup.version == 0:
        now_is = f"version {aup.version}" if aup.version else "none"
        raise Conflict(
            "AUP_VERSION",
            f"version {event.version} of the acceptable use policy cannot be signed, the current one is {now_is}; "
            "read it with: grid vo aup show",
            version=aup.version,
        )
    return replace(member, aup_version=event.version, aup_signed_at_us=now_us)


def _approve(member: Member, event: Approved, aup: Aup, now_us: int) -> Member:
    if member.aup_version != aup.version:
        raise Conflict(
            "AUP_UNSIGNED",
            f"{member.subject} cannot be approved before signing version {aup.version} of the acceptable use policy "
            f"(grid vo aup sign)",
            subject=member.subject,
            version=aup.version,
        )
    return replace(member, expires_at_us=_future(event.expires_at_us, now_us))


def _suspend(member: Member, event: Suspended, aup: Aup, now_us: int) -> Member:
    reason = " ".join(event.reason.split())
    if not reason or len(reason) > MAX_REASON_LENGTH or not reason.isprintable():
        raise InvalidRequest(
            "REASON_INVALID", f"a suspension needs a reason of at most {MAX_REASON_LENGTH} characters, which is shown"
        )
    return replace(member, reason=reason)


def _renew(member: Member, event: Renewed, aup: Aup, now_us: int) -> Member:
    return replace(member, expires_at_us=_future(event.expires_at_us, now_us))


def _future(expires_at_us: int, now_us: int) -> int:
    if expires_at_us and expires_at_us <= now_us:
        raise InvalidRequest(
            "LIFETIME_INVALID", f"the end of a membership must lie ahead, not at {utc_text(from_us(expires_at_us))}"
        )
    return expires_at_us


_EFFECTS: Mapping[type[Event], Callable[..., Member]] = {
    AupSigned: _sign,
    Approved: _approve,
    Suspended: _suspend,
    Restored: lambda member, event, aup, now_us: replace(member, reason=""),
    Renewed: _renew,
    EndReached: lambda member, event, aup, now_us: member,
}


def objection(vo: str, member: Member, aup: Aup, now_us: int) -> GridError | None:
    """Why this person is in no good standing now; None for a member with all rights."""
    facts = {"subject": member.subject, "vo": vo, "state": member.state.value}
    if member.state is MemberState.REQUESTED:
        return Refused(
            "MEMBER_REQUESTED",
            f"{member.subject} has asked to become a member of {vo} and no manager has approved it yet",
            **facts,
        )
    if member.state is MemberState.SUSPENDED:
        return Refused(
            "MEMBER_SUSPENDED",
            f"{member.subject} is suspended from {vo}: {member.reason}; ask a manager of the VO",
            **facts,
        )
    if member.state is MemberState.EXPIRED or (member.expires_at_us and now_us >= member.expires_at_us):
        return Refused(
            "MEMBER_EXPIRED",
            f"the membership of {member.subject} in {vo} ended at {utc_text(from_us(member.expires_at_us))}; ask a "
            "manager of the VO to renew it",
            **facts,
        )
    if member.aup_version < aup.version and (member.aup_version == 0 or now_us >= aup.required_at_us):
        signed = f"signed only version {member.aup_version}" if member.aup_version else "has not signed it"
        return Refused(
            "AUP_UNSIGNED",
            f"{vo} demands its acceptable use policy of version {aup.version} and {member.subject} {signed}; sign it "
            "with: grid vo aup sign",
            **facts,
            version=aup.version,
        )
    return None


def good_until_us(member: Member, aup: Aup) -> int:
    """When a good standing ends by itself; 0: never."""
    ends = [member.expires_at_us]
    if member.aup_version < aup.version:
        ends.append(aup.required_at_us)
    return min((end for end in ends if end), default=0)
