"""Who may call a method. Every method of every service has exactly one rule; a server without it does not start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fabric.errors import GridError, Refused, Unauthenticated
from fabric.rpc.peer import Peer


class Rule(ABC):
    """Decides about one call. `refusal` returns None to allow."""

    needs_session: bool = True
    """False: the call is allowed without a session."""
    admits_unmapped: bool = False
    """True: a user in no map file may have a session for this."""

    @abstractmethod
    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        """Why `peer` may not call `method` of a server at `site`; None if it may. `peer` has a session."""


@dataclass(frozen=True)
class _Anyone(Rule):
    needs_session = False
    admits_unmapped = False

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        return None


@dataclass(frozen=True)
class _Authenticated(Rule):
    admits_unmapped = True

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        return None


@dataclass(frozen=True)
class _User(Rule):
    full: bool

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        if not peer.standing.account:
            if peer.standing.agent_kind or peer.standing.is_administrator:
                return Refused(
                    "USER_REQUIRED",
                    f"{peer.subject} is not a user, and {method} is for users; call it with a user's proxy",
                    subject=peer.subject,
                    method=method,
                )
            return not_mapped(peer.subject)
        if self.full and peer.is_limited:
            return Refused(
                "LIMITED_PROXY",
                f"{peer.subject} came with a limited proxy, and {method} starts something in the user's name; "
                f"make a full proxy",
                subject=peer.subject,
                method=method,
            )
        return None


@dataclass(frozen=True)
class _Services(Rule):
    kinds: tuple[str, ...]
    same_site: bool

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        standing = peer.standing
        if standing.agent_kind not in self.kinds:
            return Refused(
                "SERVICE_REQUIRED",
                f"{peer.subject} may not call {method}: it is only for {' or '.join(self.kinds)} services",
                subject=peer.subject,
                method=method,
            )
        if self.same_site and standing.agent_site != site:
            return Refused(
                "OTHER_SITE",
                f"{peer.subject} of site {standing.agent_site} may not call {method} of site {site}; use its "
                f"own site's service",
                subject=peer.subject,
                method=method,
            )
        return None


@dataclass(frozen=True)
class _AnyService(Rule):
    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        if peer.standing.agent_kind:
            return None
        return Refused(
            "SERVICE_REQUIRED",
            f"{peer.subject} may not call {method}: it is only for services of the grid",
            subject=peer.subject,
            method=method,
        )


@dataclass(frozen=True)
class _Administrator(Rule):
    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        if peer.standing.is_administrator:
            return None
        return Refused(
            "ADMINISTRATOR_REQUIRED",
            f"{peer.subject} may not call {method}: it is only for operators of the grid",
            subject=peer.subject,
            method=method,
        )


@dataclass(frozen=True)
class _AnyOf(Rule):
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("any_of needs at least one rule")

    @property
    def needs_session(self) -> bool:  # type: ignore[override]
        return all(rule.needs_session for rule in self.rules)

    @property
    def admits_unmapped(self) -> bool:  # type: ignore[override]
        return any(rule.admits_unmapped for rule in self.rules)

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        first: GridError | None = None
        for rule in self.rules:
            refused = rule.refusal(peer, site, method)
            if refused is None:
                return None
            first = first or refused
        return first


def not_mapped(subject: str, **facts: str) -> Refused:
    """The one sentence for a person who is in no map file."""
    return Refused(
        "NOT_MAPPED",
        f"{subject} is not in the map file of this site; join a VO that the site supports, or ask its operators",
        subject=subject,
        **facts,
    )


def session_missing(method: str) -> Unauthenticated:
    """A call without a session."""
    return Unauthenticated(
        "SESSION_MISSING", f"{method} needs a session and the call came without one; establish one first", method=method
    )


anyone: Rule = _Anyone()
"""No session needed. For health, reflection and the security context itself."""
authenticated: Rule = _Authenticated()
"""Any verified, not banned identity, also a user of no VO."""
user: Rule = _User(full=False)
"""A mapped user, also with a limited proxy: moving and reading data."""
full_user: Rule = _User(full=True)
"""A mapped user with a full proxy: everything that starts or changes jobs."""
any_service: Rule = _AnyService()
"""An agent of any kind and site."""
administrator: Rule = _Administrator()
"""An operator of the grid (`OU=Operators`)."""


def services(*kinds: str) -> Rule:
    """An agent of one of these kinds, of any site."""
    return _Services(_kinds(kinds), same_site=False)


def site_services(*kinds: str) -> Rule:
    """An agent of one of these kinds, of the server's own site."""
    return _Services(_kinds(kinds), same_site=True)


def any_of(*rules: Rule) -> Rule:
    """Allowed if one rule allows. A refusal reads as the first rule's: put the usual caller first."""
    return _AnyOf(rules)


def _kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if not kinds or not all(kind.isidentifier() for kind in kinds):
        raise ValueError(f"kinds are names of folders in agents/, not {kinds!r}")
    return kinds
