"""The certificates of a grid: its authority, its agents, its operator, and how another machine gets its own.

No private key leaves the machine on which it was made.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from clusters.model import GridDescription
from clusters.paths import StatePaths
from clusters.plan import PlannedAgent
from fabric import trust_push
from fabric.errors import InvalidRequest, NotFound, from_security
from security.authority import CertificateAuthority
from security.certificates import issuer_among, parse_authority, subject_hash
from security.credentials import Credential, generate_key
from security.errors import CredentialError, SecurityError, os_error_text
from security.files import write_atomic
from security.installation import install_authority, install_crl
from security.names import DistinguishedName
from security.revocation import parse_crl, signed_by

RENEW_WITHIN = timedelta(days=7)
"""A credential that ends sooner is made anew at start."""
OPERATORS = "Operators"


def ca_directory(grid: GridDescription, state: StatePaths) -> Path:
    """Where the authority agent keeps its keys and register."""
    agent = next(agent for agent in grid.agents() if agent.kind == "authority")
    return state.agent(agent.site, agent.name) / "ca"


def open_authority(grid: GridDescription, state: StatePaths, now: datetime) -> CertificateAuthority:
    """The grid's authority, made if there is none. Raises GridError."""
    folder = ca_directory(grid, state)
    try:
        if (folder / "ca.pem").exists():
            return CertificateAuthority.open(folder)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return CertificateAuthority.create(
            folder,
            grid.authority.subject,
            lifetime=timedelta(seconds=grid.authority.lifetime_s),
            now=now,
            namespace=f"{grid.organisation}/*",
        )
    except SecurityError as error:
        raise from_security(error) from error


def prepare_here(grid: GridDescription, state: StatePaths, agents: Sequence[PlannedAgent], now: datetime) -> None:
    """On the authority's own host: trust, every agent's credential, the operator's. Keeps what is still good."""
    authority = open_authority(grid, state, now)
    try:
        lists = authority.build_crls(now, timedelta(seconds=grid.authority.crl_lifetime_s))
        for certificate, crl in zip(authority.certificates, lists, strict=True):
            install_authority(state.certificates, certificate, authority.signing_policy(), crl, now=now)
        trust_push.remember(state.certificates, authority.certificates)
        for agent in agents:
            _issue_agent(authority, agent, timedelta(seconds=grid.authority.host_lifetime_s), now)
        _issue_operator(authority, grid, state, now)
    except SecurityError as error:
        raise from_security(error) from error
    finally:
        authority.close()


def _issue_agent(authority: CertificateAuthority, agent: PlannedAgent, lifetime: timedelta, now: datetime) -> None:
    path = Path(agent.settings["credential"])
    if is_good_for(agent, authority.ca_pem(), now):
        return
    key = generate_key(key_type_of(agent))
    certificate = authority.issue_host(
        agent.hosts, key.public_key(), lifetime=lifetime, now=now, subject=subject_of(agent), renew=True
    )
    _save(Credential(certificate, key), path)


def _issue_operator(authority: CertificateAuthority, grid: GridDescription, state: StatePaths, now: datetime) -> None:
    subject = DistinguishedName.parse(grid.organisation).child("OU", OPERATORS).child("CN", operator_name())
    if is_good(state.administrator, subject, authority.ca_pem(), now):
        return
    key = generate_key("ec-p256")
    lifetime = timedelta(seconds=grid.authority.user_lifetime_s)
    certificate = authority.issue_user(subject, key.public_key(), lifetime=lifetime, now=now, renew=True)
    _save(Credential(certificate, key), state.administrator)


def operator_name() -> str:
    """The login name of who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def subject_of(agent: PlannedAgent) -> DistinguishedName:
    """The DN that an agent's certificate must have."""
    settings = agent.settings
    return (
        DistinguishedName.parse(settings["organisation"])
        .child("OU", settings["site"])
        .child("CN", f"{settings['kind']}/{settings['name']}")
    )


def key_type_of(agent: PlannedAgent) -> str:
    """The kind of an agent's key: P-256, but RSA where other people's old tools have to verify what it signs."""
    return "rsa-2048" if agent.settings["kind"] == "vo" else "ec-p256"


def is_good_for(agent: PlannedAgent, ca_pem: bytes, now: datetime) -> bool:
    """Whether an agent has a usable credential of its name and kind of key."""
    path = Path(agent.settings["credential"])
    if not is_good(path, subject_of(agent), ca_pem, now):
        return False
    key = Credential.load(path).key
    return isinstance(key, rsa.RSAPrivateKey) or key_type_of(agent) != "rsa-2048"


def is_good(path: Path, subject: DistinguishedName, ca_pem: bytes, now: datetime) -> bool:
    """Whether there is a usable credential of that name, issued by one of these authorities, that lasts for a while."""
    try:
        credential = Credential.load(path)
        authorities = x509.load_pem_x509_certificates(ca_pem)
    except (CredentialError, ValueError, OSError):
        return False
    issued = issuer_among(credential.certificate, authorities) is not None
    return issued and credential.subject == subject and credential.not_after - now > RENEW_WITHIN


def _save(credential: Credential, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    credential.save(path)


# ---------------------------------------------------------------------------------------------- joining from elsewhere


@dataclass(frozen=True)
class Invitation:
    """What another machine needs to make the agents of one site part of the grid. Holds a token that works once."""

    grid: str
    site: str
    token: str
    authority_host: str
    authority_port: int
    authority_pem: str
    """Pinned: whoever answers there must have a certificate of this authority."""
    signing_policy: str
    crl: str
    """As of the invitation; the agents keep it fresh by themselves."""
    vos: tuple[str, ...] = ()
    host: str = ""
    """For one more machine of a site whose Ray runs already: its name in the description."""
    ray_address: str = ""
    """host:port of the site's Ray, where it shall join."""
    ray_token: str = ""
    """The secret of that Ray: the machine becomes part of the site's trust domain."""

    def save(self, path: Path) -> None:
        """Mode 0600: whoever has the token can enrol agents of the site."""
        write_atomic(path, json.dumps(asdict(self), indent=2).encode() + b"\n", 0o600)

    @classmethod
    def load(cls, path: Path) -> Invitation:
        """Raises InvalidRequest INVITATION_INVALID."""
        try:
            raw: Any = json.loads(path.read_bytes())
            return cls(**{**raw, "vos": tuple(raw.get("vos", ()))})
        except OSError as error:
            raise InvalidRequest(
                "INVITATION_INVALID", f"the invitation {path} cannot be read ({os_error_text(error)})", path=path
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidRequest(
                "INVITATION_INVALID", f"{path} is not an invitation; make one with: grid host invite SITE", path=path
            ) from error


def make_requests(agents: Iterable[PlannedAgent]) -> Mapping[str, tuple[bytes, Any]]:
    """By agent: a certificate request (PEM) and its key, which stays here."""
    made = {}
    for agent in agents:
        key = generate_key(key_type_of(agent))
        request = x509.CertificateSigningRequestBuilder().subject_name(subject_of(agent).to_x509())
        made[agent.name] = (request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), key)
    return made


def lacking(agents: Iterable[PlannedAgent], ca_pem: bytes, now: datetime) -> list[PlannedAgent]:
    """The agents that have no usable credential here."""
    return [a for a in agents if not is_good_for(a, ca_pem, now)]


def install_invitation(state: StatePaths, invitation: Invitation, now: datetime) -> None:
    """Trust the authority of an invitation. Keeps a newer revocation list that is there. Raises GridError."""
    try:
        pem = invitation.authority_pem.encode()
        install_authority(state.certificates, pem, invitation.signing_policy, now=now)
        trust_push.remember(state.certificates, [parse_authority(pem)])
        install_crl(state.certificates, invitation.crl.encode(), now=now)
    except SecurityError as error:
        if error.reason.value != "CRL_OLDER":
            raise from_security(error) from error


def policy_and_crl(directory: Path, authority_pem: bytes) -> tuple[str, str]:
    """What stands beside an authority in a directory of authorities. Raises GridError."""
    try:
        authority = parse_authority(authority_pem)
        stem = subject_hash(authority)
        policy = (directory / f"{stem}.signing_policy").read_text("utf-8")
        for path in sorted(directory.glob(f"{stem}.r*")):
            if signed_by(parse_crl(path.read_bytes(), entries=False), authority):
                return policy, path.read_text("utf-8")
    except SecurityError as error:
        raise from_security(error) from error
    raise NotFound("CRL_MISSING", f"there is no revocation list of {stem} in {directory}; try again")


def save_issued(agent: PlannedAgent, certificate_pem: bytes, key: Any) -> None:
    """Keep what the authority sent. Raises GridError if it is not for our key and name."""
    try:
        credential = Credential(x509.load_pem_x509_certificate(certificate_pem), key)
    except SecurityError as error:
        raise from_security(error) from error
    if credential.subject != subject_of(agent):
        raise InvalidRequest(
            "CERTIFICATE_OTHER",
            f"the authority sent a certificate of {credential.subject} instead of {subject_of(agent)}",
        )
    _save(credential, Path(agent.settings["credential"]))
