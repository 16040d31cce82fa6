"""Who is at the other end of a call."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fabric.errors import Unauthenticated
from fabric.logs import current_trace

if TYPE_CHECKING:
    from security.validation import Identity
    from security.voms import VomsAttributes


@dataclass(frozen=True, slots=True)
class Standing:
    """What an authenticated subject is here. Empty texts where something does not apply."""

    agent_kind: str = ""
    agent_site: str = ""
    agent_name: str = ""
    account: str = ""
    """Local account of a user: a name, or `.pool` where an account of that pool would be leased."""
    vo: str = ""
    is_administrator: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller of an RPC, as its session was judged. `identity` is None for a call without a session."""

    subject: str
    """DN of the end entity (person, host or service) in slash form: what bans, maps and ownership are about."""
    identity: Identity | None
    standing: Standing
    session_id: str
    """Names the session in logs; not the session token."""
    is_limited: bool
    attributes: tuple[VomsAttributes, ...] = ()
    """What VO servers say of the user, verified; one for each VO in the proxy."""
    address: str = ""
    """IP address that the session was established from."""
    fqans: tuple[str, ...] = field(init=False)
    """Verified groups and roles of the user's proxy, in the user's order; empty for a proxy without attributes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fqans", tuple(fqan for one in self.attributes for fqan in one.fqans))

    @property
    def agent_kind(self) -> str:
        """`broker`, `gatekeeper`, ...; empty for people."""
        return self.standing.agent_kind

    @property
    def agent_site(self) -> str:
        """The agent's own site; empty for people."""
        return self.standing.agent_site

    @property
    def agent_name(self) -> str:
        """The agent's name; empty for people."""
        return self.standing.agent_name

    @property
    def account(self) -> str:
        """Local account of a user; `.pool` where it would be leased."""
        return self.standing.account

    @property
    def vo(self) -> str:
        """The user's VO by the map file; empty for agents."""
        return self.standing.vo

    @property
    def is_administrator(self) -> bool:
        """True for an operator of the grid."""
        return self.standing.is_administrator

    @property
    def trail(self) -> dict[str, object]:
        """Who it was, for a line of the audit log."""
        return {
            "peer": self.subject,
            "address": self.address or None,
            "fqans": list(self.fqans) or None,
            "session_id": self.session_id,
        }

    @property
    def trace_id(self) -> str:
        """The trace of the call that is being served now."""
        return current_trace()


ANONYMOUS = Peer("", None, Standing(), "", False)
"""The caller of a method with the rule `anyone` that came without a session."""

_peer: contextvars.ContextVar[Peer] = contextvars.ContextVar("peer", default=ANONYMOUS)


def set_current_peer(peer: Peer) -> None:
    """Used by the server before it hands a call to a servicer."""
    _peer.set(peer)


def current_peer(context: object = None) -> Peer:
    """The caller of the RPC that this task serves. ANONYMOUS where no session is needed and none was given.

    `context` is accepted so that calls read naturally in servicers; tasks started by a servicer inherit the peer.
    """
    del context
    return _peer.get()


def require_identity(peer: Peer) -> Identity:
    """The peer's verified identity. Raises Unauthenticated SESSION_MISSING for ANONYMOUS."""
    if peer.identity is None:
        raise Unauthenticated("SESSION_MISSING", "this call needs a session; establish one with a grid proxy")
    return peer.identity


class Authoriser(Protocol):
    """Says what an identity is here. Implemented by `fabric.authorisation.Judge`."""

    async def admit(
        self, identity: Identity, *, unmapped: bool, attributes: tuple[VomsAttributes, ...] = (), address: str = ""
    ) -> Standing:
        """For a new session; may ask others once before refusing. Raises Refused BANNED, NOT_MAPPED (unless
        `unmapped`)."""
        ...

    def judge(
        self, identity: Identity, *, unmapped: bool, attributes: tuple[VomsAttributes, ...] = (), address: str = ""
    ) -> Standing:
        """For a session that exists; never waits. Raises as `admit`."""
        ...
