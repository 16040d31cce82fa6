"""The issuing side of the authority: blocking, so that the servicer runs it on a thread. No gRPC in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from agents.authority.authorities import FIRST, Authorities, refusals
from agents.authority.config import AuthorityConfig
from fabric.authorisation import USERS
from fabric.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from security import certificates
from security.authority import IssuedCertificate
from security.names import DistinguishedName
from security.proxies import proxy_info

MAX_NAME_LENGTH = 64
"""X.520: upper bound of a common name."""
MAX_AGENTS = 2000
"""In one enrolment."""
RENEWAL_SHARE = 1 / 3
"""A certificate may be renewed in this last part of its life, or when a newer key of its authority signs."""


@dataclass(frozen=True)
class AgentRequest:
    """One agent that wants a certificate."""

    kind: str
    name: str
    hosts: tuple[str, ...]
    request_pem: bytes


class Register:
    """What the authority does, by the rules of this grid. Thread safe."""

    def __init__(
        self, authorities: Authorities, config: AuthorityConfig, organisation: str, now: Callable[[], datetime]
    ) -> None:
        self._authorities = authorities
        self._config = config
        self._organisation = DistinguishedName.parse(organisation)
        self._now = now

    def check_agents(self, site: str, agents: Sequence[AgentRequest]) -> None:
        """Refuse agents or host names that the grid does not give to that site. Raises InvalidRequest."""
        if not agents or len(agents) > MAX_AGENTS:
            raise InvalidRequest("ENROLMENT_INVALID", f"an enrolment names 1 to {MAX_AGENTS} agents, not {len(agents)}")
        allowed = self._config.sites.get(site, {})
        for agent in agents:
            name = f"{agent.kind}/{agent.name}"
            hosts = allowed.get(name)
            if hosts is None:
                raise InvalidRequest(
                    "AGENT_NOT_OF_SITE",
                    f"{name} is not an agent of site {site} in this grid; check the grid description on both machines",
                    site=site,
                    agent=name,
                )
            if not agent.hosts or not set(agent.hosts) <= set(hosts):
                raise InvalidRequest(
                    "HOST_NOT_OF_AGENT",
                    f"{name} may not have a certificate for {', '.join(agent.hosts) or 'no host'}; "
                    f"the grid description gives it {', '.join(hosts)}",
                    agent=name,
                )

    def issue_agents(self, site: str, agents: Sequence[AgentRequest]) -> list[bytes]:
        """Certificates in the order asked; those that the same agents had before stay valid until they expire."""
        lifetime = timedelta(seconds=self._config.host_lifetime_s)
        issued = []
        with refusals():
            for agent in agents:
                subject = self._organisation.child("OU", site).child("CN", f"{agent.kind}/{agent.name}")
                certificate = self._authorities.first.issue_host(
                    agent.hosts, agent.request_pem, lifetime=lifetime, now=self._now(), subject=subject, renew=True
                )
                issued.append(certificate.public_bytes(Encoding.PEM))
        return issued

    def issue_user(
        self,
        common_name: str,
        request_pem: bytes,
        lifetime_s: int,
        *,
        renew: bool,
        authority: str = "",
        robot: bool = False,
    ) -> bytes:
        """A certificate of a person or robot. Raises InvalidRequest, AlreadyExists DUPLICATE_SUBJECT, NotFound."""
        name = common_name.strip()
        if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or set(name) & set('/=\\"*?+,'):
            raise InvalidRequest(
                "NAME_INVALID",
                f"{common_name[:80]!r} cannot be a user's name: "
                f"1 to {MAX_NAME_LENGTH} printable characters without / = + * ?",
            )
        lifetime = self._lifetime(lifetime_s)
        own = self._authorities.own(authority)
        common_name = f"Robot: {name}" if robot else name
        with refusals():
            subject = (
                self._organisation.child("OU", USERS).child("CN", common_name)
                if own is self._authorities.first
                else own.name_below(common_name)
            )
            self._require_unknown_elsewhere(subject, authority)
            issue = own.issue_robot if robot else own.issue_user
            certificate = issue(str(subject), request_pem, lifetime=lifetime, now=self._now(), renew=renew)
        return certificate.public_bytes(Encoding.PEM)

    def issue_host(
        self,
        hosts: Sequence[str],
        service: str,
        request_pem: bytes,
        lifetime_s: int,
        *,
        renew: bool,
        authority: str = "",
    ) -> bytes:
        """A certificate of a host or of one service of it. Raises as `issue_user`."""
        lifetime = self._lifetime(lifetime_s)
        own = self._authorities.own(authority)
        with refusals():
            if not hosts:
                raise InvalidRequest("HOST_NAME_MISMATCH", "a host certificate needs at least one host name")
            self._require_unknown_elsewhere(own.name_below(f"{service}/{hosts[0]}" if service else hosts[0]), authority)
            certificate = (
                own.issue_service(service, hosts, request_pem, lifetime=lifetime, now=self._now(), renew=renew)
                if service
                else own.issue_host(hosts, request_pem, lifetime=lifetime, now=self._now(), renew=renew)
            )
        return certificate.public_bytes(Encoding.PEM)

    def _lifetime(self, lifetime_s: int) -> timedelta:
        if lifetime_s < 0:
            raise InvalidRequest(
                "LIFETIME_INVALID", f"a lifetime of {lifetime_s} s is not possible; leave it out or give seconds"
            )
        longest_s = self._config.user_lifetime_s
        return timedelta(seconds=min(lifetime_s or longest_s, longest_s))

    def _require_unknown_elsewhere(self, subject: DistinguishedName, authority: str) -> None:
        """Two people of one name would be one to the grid, whoever signed their certificates."""
        for name in self._authorities.all_own():
            if name != (authority or FIRST) and any(one.subject == subject for one in self._authorities.active(name)):
                raise AlreadyExists("DUPLICATE_SUBJECT", f"{subject} has an active certificate of the authority {name}")

    def renew(self, certificate: x509.Certificate, request_pem: bytes) -> bytes:
        """A certificate as this one, which is in force, for another key. Raises Conflict RENEWAL_NOT_DUE, NotFound."""
        for own in self._authorities.all_own().values():
            signer = own.signer_of(certificate)
            if signer is None:
                continue
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            due = signer != own.certificate or end - self._now() < (end - begin) * RENEWAL_SHARE
            if not due:
                raise Conflict(
                    "RENEWAL_NOT_DUE",
                    f"the certificate is good until {end:%Y-%m-%d %H:%M} and signed by the key in use; it can be "
                    "renewed in the last third of its life",
                )
            with refusals():
                renewed = own.renew(certificate, request_pem, lifetime=end - begin, now=self._now())
            return renewed.public_bytes(Encoding.PEM)
        raise NotFound("SUBJECT_UNKNOWN", "no authority of this grid signed the certificate of this session")

    def revoke(self, serial: str, subject: str, reason: str) -> tuple[list[str], list[str]]:
        """Revoke one serial, or every active certificate of a subject, by whichever authority issued it. Idempotent.

        Returns the serials and the names of the authorities. Raises InvalidRequest, NotFound.
        """
        if bool(serial) == bool(subject):
            raise InvalidRequest("REVOCATION_INVALID", "name either a serial number or a subject to revoke")
        try:
            number = int(serial.replace(":", ""), 16) if serial else 0
        except ValueError:
            raise InvalidRequest(
                "REVOCATION_INVALID", f"{serial[:60]!r} is not a serial number; give it in hexadecimal"
            ) from None
        now = self._now()
        with refusals():
            wanted = None if serial else DistinguishedName.parse(subject)
            known = [
                (name, one)
                for name, authority in self._authorities.all_own().items()
                for one in authority.list_issued()
                if one.subject == wanted or (wanted is None and one.serial == number)
            ]
            if not known and wanted is None:
                self._authorities.first.revoke(number, reason or "unspecified", now)  # says that it is unknown
            if not known:
                raise NotFound(
                    "SUBJECT_UNKNOWN",
                    f"no authority of this grid ever issued a certificate to {wanted}",
                    subject=wanted,
                )
            meant = [(name, one) for name, one in known if serial or one.revoked_at is not None or one.not_after > now]
            for name, one in meant:
                self._authorities.own(name).revoke(one.serial, reason or "unspecified", now)
        return [f"{one.serial:X}" for _, one in meant], list(dict.fromkeys(name for name, _ in meant))

    def revoke_proxy(self, proxy_pem: bytes, reason: str) -> tuple[str, str]:
        """List the serial number of one proxy; its owner stays good. Idempotent.

        Returns the serial and the name of the authority. Raises InvalidRequest, NotFound.
        """
        with refusals():
            chain = certificates.load_chain(proxy_pem)
            if len(chain) < 2 or proxy_info(chain[0]) is None:
                raise InvalidRequest(
                    "REVOCATION_INVALID", "give a proxy with its chain; another certificate is revoked by its serial"
                )
            depth = next((n for n, one in enumerate(chain) if proxy_info(one) is None), len(chain) - 1)
            for proxy, issuer in pairwise(chain[: depth + 1]):
                try:
                    proxy.verify_directly_issued_by(issuer)
                except (ValueError, TypeError, InvalidSignature):
                    raise InvalidRequest(
                        "REVOCATION_INVALID", f"{certificates.describe(proxy)} is not signed by the next of its chain"
                    ) from None
            owner = chain[depth]
            for name, authority in self._authorities.all_own().items():
                if any(one.certificate == owner for one in authority.list_issued()):
                    authority.revoke_proxy(chain[0], self._now(), reason or "unspecified")
                    return f"{chain[0].serial_number:X}", name
        raise NotFound(
            "SUBJECT_UNKNOWN", f"no authority of this grid issued {certificates.describe(owner)}, whose proxy this is"
        )

    def issued(self, prefix: str) -> list[tuple[DistinguishedName, IssuedCertificate]]:
        """The registers with the name of the issuer, each oldest first."""
        return [
            (authority.subject, issued)
            for authority in self._authorities.all_own().values()
            for issued in authority.list_issued()
            if str(issued.subject).startswith(prefix)
        ]
