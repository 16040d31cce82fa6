"""The issuing side of the authority: blocking, so that the servicer runs it on a thread. No gRPC in here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agents.authority.config import AuthorityConfig
from fabric.errors import InvalidRequest, NotFound, from_security
from security.authority import CertificateAuthority, IssuedCertificate
from security.errors import SecurityError
from security.names import DistinguishedName

MAX_NAME_LENGTH = 64
"""X.520: upper bound of a common name."""
MAX_AGENTS = 2000
"""In one enrolment."""
USERS = "Users"


@dataclass(frozen=True)
class AgentRequest:
    """One agent that wants a certificate."""

    kind: str
    name: str
    hosts: tuple[str, ...]
    request_pem: bytes


@dataclass(frozen=True)
class PublishedCrl:
    """A revocation list as it is served."""

    pem: bytes
    number: int
    next_update: datetime

    @property
    def etag(self) -> str:
        """Changes with the content."""
        return hashlib.sha256(self.pem).hexdigest()[:32]


@contextmanager
def refusals() -> Iterator[None]:
    """The library's refusals as errors that cross a connection."""
    try:
        yield
    except SecurityError as error:
        raise from_security(error) from error


class Register:
    """What the authority does, by the rules of this grid. Thread safe."""

    def __init__(
        self, authority: CertificateAuthority, config: AuthorityConfig, organisation: str, now: Callable[[], datetime]
    ) -> None:
        self.authority = authority
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
                certificate = self.authority.issue_host(
                    agent.hosts, agent.request_pem, lifetime=lifetime, now=self._now(), subject=subject, renew=True
                )
                issued.append(certificate.public_bytes(Encoding.PEM))
        return issued

    def issue_user(self, common_name: str, request_pem: bytes, lifetime_s: int, *, renew: bool) -> bytes:
        """A user's certificate. Raises InvalidRequest, AlreadyExists DUPLICATE_SUBJECT."""
        name = common_name.strip()
        if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or set(name) & set('/=\\"*?+,'):
            raise InvalidRequest(
                "NAME_INVALID",
                f"{common_name[:80]!r} cannot be a user's name: "
                f"1 to {MAX_NAME_LENGTH} printable characters without / = + * ?",
            )
        if lifetime_s < 0:
            raise InvalidRequest(
                "LIFETIME_INVALID", f"a lifetime of {lifetime_s} s is not possible; leave it out or give seconds"
            )
        wanted = min(lifetime_s or self._config.user_lifetime_s, self._config.user_lifetime_s)
        subject = self._organisation.child("OU", USERS).child("CN", name)
        with refusals():
            certificate = self.authority.issue_user(
                subject, request_pem, lifetime=timedelta(seconds=wanted), now=self._now(), renew=renew
            )
        return certificate.public_bytes(Encoding.PEM)

    def revoke(self, serial: str, subject: str, reason: str) -> list[str]:
        """Revoke one serial, or every active certificate of a subject. Returns the serials. Idempotent."""
        if bool(serial) == bool(subject):
            raise InvalidRequest("REVOCATION_INVALID", "name either a serial number or a subject to revoke")
        now = self._now()
        with refusals():
            if serial:
                try:
                    numbers = [int(serial.replace(":", ""), 16)]
                except ValueError:
                    raise InvalidRequest(
                        "REVOCATION_INVALID", f"{serial[:60]!r} is not a serial number; give it in hexadecimal"
                    ) from None
            else:
                name = DistinguishedName.parse(subject)
                known = [issued for issued in self.authority.list_issued() if issued.subject == name]
                if not known:
                    raise NotFound(
                        "SUBJECT_UNKNOWN", f"this authority never issued a certificate to {name}", subject=name
                    )
                numbers = [issued.serial for issued in known if issued.revoked_at is not None or issued.not_after > now]
            for number in numbers:
                self.authority.revoke(number, reason or "unspecified", now)
        return [f"{number:X}" for number in numbers]

    def issued(self, prefix: str) -> list[IssuedCertificate]:
        """The register, oldest first."""
        return [issued for issued in self.authority.list_issued() if str(issued.subject).startswith(prefix)]

    def new_crl(self) -> PublishedCrl:
        """A new revocation list with the next number."""
        with refusals():
            pem = self.authority.build_crl(self._now(), timedelta(seconds=self._config.crl_lifetime_s))
        crl = x509.load_pem_x509_crl(pem)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return PublishedCrl(pem, number, crl.next_update_utc or self._now())
