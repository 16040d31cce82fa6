"""Which attributes somebody gets who asks: the steps between a verified chain and a signed attribute certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.vo import machine
from agents.vo.model import Aup, Member, groups_of, join_fqan, roles_of, split_fqan
from fabric.clock import from_us, to_us
from fabric.errors import GridError, InvalidRequest, NotFound, Refused, from_security
from security import certificates
from security.credentials import Credential
from security.errors import SecurityError, ValidationError, utc_text
from security.validation import Identity
from security.voms import (
    GenericAttribute,
    VomsAttributes,
    create_attribute_certificate,
    new_serial,
)

MAX_REQUESTED = 64
"""FQANs in one request."""
EVERYTHING = "all"
"""Asked for instead of an FQAN: every group and every role."""


@dataclass(frozen=True)
class Wanted:
    """A request as it came in by either door."""

    fqans: tuple[str, ...] = ()
    """In the user's order; `all`; or `/Role=x` for that role wherever it is held. None: the VO's groups."""
    order: tuple[str, ...] = ()
    """These first, as far as they are given."""
    lifetime_s: int = 0
    """0: the VO's own."""
    targets: tuple[str, ...] = ()
    """Only these hosts shall take it; none: any."""


@dataclass(frozen=True)
class Issued:
    """An attribute certificate."""

    encoded: bytes
    fqans: tuple[str, ...]
    serial: int
    not_after: datetime
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Lookup:
    """What the store knows of the person who asks."""

    member: Member | None
    aup: Aup


class Issuer:
    """Signs for one VO with the credential of its server."""

    def __init__(
        self, vo: str, credential: Callable[[], Credential], *, max_lifetime: timedelta, default: timedelta
    ) -> None:
        self.vo = vo
        self.uri = ""
        """host:port of the VOMS door, once that is open."""
        self._credential = credential
        self._max_lifetime, self._default = max_lifetime, default

    def issue(
        self, identity: Identity, carried: Sequence[VomsAttributes], known: Lookup, wanted: Wanted, now: datetime
    ) -> Issued:
        """The steps after chain and bans. Raises GridError with the sentence for the user.

        `carried` are the verified attributes already in the chain.
        """
        subject = str(identity.subject)
        # 1. a limited proxy gets no rights that its maker may have held back
        if identity.is_limited:
            raise Refused(
                "LIMITED_PROXY",
                f"{identity.leaf_subject} is a limited proxy and gets no attributes of {self.vo}; ask with a full one",
                subject=subject,
            )
        if identity.subject != certificates.subject_of(identity.certificates[identity.proxy_depth]):
            raise Refused(
                "PROXY_INDEPENDENT",
                f"{identity.leaf_subject} is an independent proxy, which has no rights of its maker's; ask with a full "
                "proxy",
                subject=subject,
            )
        # 2. a member in good standing
        member = self.member_in_good_standing(subject, known, now)
        # 3. groups and roles
        chosen = choose(self.vo, subject, member.groups, wanted)
        # 4. not more than the chain already has
        warnings: list[str] = []
        limits = [set(attributes.fqans) for attributes in carried if attributes.vo == self.vo]
        if limits:
            kept = tuple(fqan for fqan in chosen if all(fqan in limit for limit in limits))
            if not kept:
                raise Refused(
                    "ATTRIBUTES_WIDENED",
                    f"the proxy of {subject} already has attributes of {self.vo} and none of those asked for is among "
                    "them; ask with a proxy without attributes",
                    subject=subject,
                )
            if kept != chosen:
                warnings.append(f"{self.vo}: the proxy already has attributes; only those of them are given")
            chosen = kept
        # 5. life
        lifetime = self._lifetime(identity, member, known.aup, wanted, now, warnings)
        # 6. signature
        serial = new_serial()
        try:
            encoded = create_attribute_certificate(
                self._credential(),
                identity.certificates[identity.proxy_depth],
                vo=self.vo,
                uri=self.uri,
                fqans=chosen,
                lifetime=lifetime,
                now=now,
                attributes=[
                    GenericAttribute(name, value, self.vo) for name, value in sorted(member.attributes.items())
                ],
                serial=serial,
                targets=wanted.targets,
            )
        except ValidationError as error:
            raise from_security(error) from error
        not_after = min(now + lifetime, self._credential().not_after)
        return Issued(encoded, chosen, serial, not_after, tuple(warnings))

    def member_in_good_standing(self, subject: str, known: Lookup, now: datetime) -> Member:
        """Raises Refused NOT_A_MEMBER, MEMBER_SUSPENDED, AUP_UNSIGNED ..."""
        if known.member is None:
            raise not_a_member(self.vo, subject)
        refusal = machine.objection(self.vo, known.member, known.aup, to_us(now))
        if refusal is not None:
            raise refusal
        return known.member

    def _lifetime(
        self, identity: Identity, member: Member, aup: Aup, wanted: Wanted, now: datetime, warnings: list[str]
    ) -> timedelta:
        if wanted.lifetime_s < 0:
            raise InvalidRequest("LIFETIME_INVALID", "the lifetime of attributes must be positive")
        asked = timedelta(seconds=min(wanted.lifetime_s, 10**9)) or self._default
        given = asked
        if given > self._max_lifetime:
            given = self._max_lifetime
            warnings.append(
                f"{self.vo}: the life of these attributes is shortened to {given.total_seconds():.0f} seconds"
            )
        ends = [identity.certificates[identity.proxy_depth].not_valid_after_utc]
        if standing_us := machine.good_until_us(member, aup):
            ends.append(from_us(standing_us))
        if min(ends) < now + given:
            given = min(ends) - now
            warnings.append(f"{self.vo}: these attributes end at {utc_text(min(ends))}, with the certificate or "
                            "membership")  # fmt: skip
        return max(given, timedelta(seconds=1))


def not_a_member(vo: str, subject: str) -> NotFound | Refused:
    """The refusal of a stranger."""
    return Refused(
        "NOT_A_MEMBER",
        f"{subject} is not a member of {vo}; ask to become one with: grid vo request",
        subject=subject,
        vo=vo,
    )


def choose(vo: str, subject: str, held: Sequence[str], wanted: Wanted) -> tuple[str, ...]:
    """The FQANs to give: those asked for, in that order, then every other group. Raises Refused FQAN_REFUSED.

    Roles are given only when asked for, as by every VOMS server.
    """
    if len(wanted.fqans) > MAX_REQUESTED or len(wanted.order) > MAX_REQUESTED:
        raise InvalidRequest("FQAN_INVALID", f"more than {MAX_REQUESTED} groups and roles were asked for")
    groups, roles = groups_of(vo, held), roles_of(vo, held)
    asked: list[str] = []
    for text in wanted.fqans:
        if text == EVERYTHING:
            asked += [*groups, *roles]
        elif text.startswith("/Role="):
            asked += _role_anywhere(vo, subject, text, roles)
        else:
            if text.split("/")[1:2] != [vo]:
                raise Refused(
                    "VO_UNKNOWN",
                    f"this server speaks for {vo} and was asked for {text[:80]!r}; look at the vomses file",
                    vo=vo,
                    fqan=text[:200],
                )
            fqan = join_fqan(*split_fqan(vo, text))
            if fqan not in groups and fqan not in roles:
                raise _refused(vo, subject, fqan)
            asked.append(fqan)
    first = [fqan for fqan in (join_fqan(*split_fqan(vo, text)) for text in wanted.order) if fqan in {*groups, *asked}]
    return tuple(dict.fromkeys([*first, *asked, *groups]))


def _role_anywhere(vo: str, subject: str, text: str, roles: Sequence[str]) -> list[str]:
    found = [fqan for fqan in roles if fqan.endswith(text)]
    if not found:
        raise _refused(vo, subject, f"/{vo}{text}")
    return found


def _refused(vo: str, subject: str, fqan: str) -> Refused:
    group, role = split_fqan(vo, fqan)
    what = f"does not hold the role {role} in {group}" if role else f"is not in the group {group}"
    return Refused(
        "FQAN_REFUSED",
        f"{subject} {what}; ask a manager of {vo}, or ask for less",
        subject=subject,
        vo=vo,
        fqan=fqan,
    )


def chain_refused(error: SecurityError) -> GridError:
    """A refused chain as the error of this door."""
    return from_security(error)
