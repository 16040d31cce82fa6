"""Why a chain is accepted or refused, step by step, for people: the validation that services do, told as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import certificates, voms
from security.errors import Reason, SecurityError, ValidationError, utc_text
from security.policy import ValidationPolicy
from security.proxies import proxy_info
from security.revocation import RevocationList
from security.trust import TrustSnapshot
from security.validation import Identity, usage_problem, validate_chain, validate_client_chain, validate_host_chain
from security.voms import VomsDirectory

STEPS = ("parse", "path", "proxy rules", "revocation lists", "namespaces", "purpose", "attributes")
"""In the order in which they are taken."""


@dataclass(frozen=True)
class Step:
    """One step of a verdict."""

    name: str
    outcome: str
    """`passed`, `refused`, `warning`, `skipped`, or `not reached` after a refusal."""
    sentences: tuple[str, ...]
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Explanation:
    """The whole verdict."""

    accepted: bool
    steps: tuple[Step, ...]
    identity: Identity | None

    @property
    def refusal(self) -> Step | None:
        """The step that refused."""
        return next((step for step in self.steps if step.outcome == "refused"), None)


def leaf_first(chain: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The chain with the certificate at its front that issued none of the others, the rest as it was.

    Where several issued none (or, in a circle, none did), the first of them.
    """
    if not chain:
        return ()
    issuers = {one.issuer for one in chain if one.issuer != one.subject}
    leaves = [one for one in chain if one.subject not in issuers]
    leaf = leaves[0] if leaves else chain[0]
    return (leaf, *(one for one in dict.fromkeys(chain) if one is not leaf and one != leaf))


def explain(
    chain: Sequence[x509.Certificate],
    trust: TrustSnapshot,
    policy: ValidationPolicy,
    now: datetime,
    *,
    host: str | None = None,
    servers: VomsDirectory | None = None,
) -> Explanation:
    """Judge a chain (leaf first) and tell each step. Never raises for a chain that is not good.

    `host`: as the chain of a server reached by that name. Otherwise a proxy is judged as a client, and of an end
    entity's certificate it is told what it may be used for. `servers`: VO servers whose attributes are verified.
    """
    telling = _Telling(trust, policy, now)
    identity: Identity | None = None
    try:
        if host is not None:
            identity = validate_host_chain(chain, host, trust, policy, now, passed=telling.passed)
        elif _has_proxy(chain):
            identity = validate_client_chain(chain, trust, policy, now, passed=telling.passed)
        else:
            identity = validate_chain(chain, trust, policy, now, passed=telling.passed)
            telling.uses(identity)
    except SecurityError as error:
        telling.refused(error)
        return telling.result(None)
    telling.warnings(identity)
    if servers is not None:
        telling.attributes(identity, servers)
    return telling.result(identity)


def _has_proxy(chain: Sequence[x509.Certificate]) -> bool:
    for certificate in chain:
        try:
            if proxy_info(certificate) is not None:
                return True
        except SecurityError:
            return True
    return False


class _Telling:
    """Collects the steps of one validation."""

    def __init__(self, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime) -> None:
        self._trust, self._policy, self._now = trust, policy, now
        self._steps: dict[str, Step] = {}
        if not policy.namespaces:
            self._steps["namespaces"] = Step("namespaces", "skipped", ("not looked at, as asked",))

    def passed(self, name: str, path: tuple[x509.Certificate, ...]) -> None:
        tell = {
            "parse": self._parse,
            "path": self._path,
            "proxy rules": self._proxies,
            "revocation lists": self._lists,
            "namespaces": self._namespaces,
            "purpose": self._purpose,
        }[name]
        self._steps[name] = Step(name, "passed", tuple(tell(path)))

    def refused(self, error: SecurityError) -> None:
        """The first step that was not passed refused."""
        name = next((name for name in STEPS if name not in self._steps), STEPS[-2])
        self._steps[name] = Step(name, "refused", (error.sentence,), error.reason.value, error.facts)

    def uses(self, identity: Identity) -> None:
        """What an end entity's certificate may do; nothing at all is a refusal."""
        uses = [role for role, purpose in _ROLES.items() if not usage_problem(identity.certificates[0], purpose)]
        if not uses:
            raise ValidationError(
                Reason.KEY_USAGE,
                f"{certificates.describe(identity.certificates[0])} may act neither as a client nor as a server; "
                "ask its authority for another",
                certificates.facts_of(identity.certificates[0], "key usage", self._now),
            )
        self._steps["purpose"] = Step("purpose", "passed", (f"it may act as {' and as '.join(uses)}",))

    def warnings(self, identity: Identity) -> None:
        """What the policy let pass."""
        if identity.warnings:
            told = self._steps["revocation lists"]
            self._steps["revocation lists"] = Step(told.name, "warning", (*told.sentences, *identity.warnings))

    def attributes(self, identity: Identity, servers: VomsDirectory) -> None:
        """Step 7, VO attributes: their refusal is a refusal, having none is not."""
        try:
            found = voms.verify_attributes(identity, servers, self._trust, self._policy, self._now)
        except SecurityError as error:
            self.refused(error)
            return
        sentences = [
            f"{entry.vo}: {' '.join(entry.fqans)}, until {utc_text(entry.not_after)}" for entry in found
        ] or ["none"]  # fmt: skip
        self._steps["attributes"] = Step("attributes", "passed", tuple(sentences))

    def result(self, identity: Identity | None) -> Explanation:
        """All steps, also those not reached."""
        refused = any(step.outcome == "refused" for step in self._steps.values())
        steps: list[Step] = []
        for name in STEPS:
            if name in self._steps:
                steps.append(self._steps[name])
            elif refused and name != "attributes":
                steps.append(Step(name, "not reached", ()))
        return Explanation(not refused, tuple(steps), None if refused else identity)

    def _parse(self, chain: tuple[x509.Certificate, ...]) -> list[str]:
        return [f"{_kind(one)} {certificates.describe(one)}, {key_text(one)}" for one in chain]

    def _path(self, path: tuple[x509.Certificate, ...]) -> list[str]:
        root = path[-1]
        told = [
            f"{certificates.subject_of(below)} is signed with the key of {certificates.subject_of(above)}"
            for below, above in pairwise(path)
        ]
        first = min(path, key=lambda one: one.not_valid_after_utc)
        return [
            *told,
            f"{certificates.subject_of(root)} is installed ({certificates.subject_hash(root)}.N)",
            f"all are in date; the first to end is {certificates.subject_of(first)} at "
            f"{utc_text(first.not_valid_after_utc)}",
        ]

    def _proxies(self, path: tuple[x509.Certificate, ...]) -> list[str]:
        told: list[str] = []
        for certificate in path:
            info = proxy_info(certificate)
            if info is None:
                break
            length = "no limit of further proxies" if info.path_length is None else f"path length {info.path_length}"
            told.append(f"{certificates.subject_of(certificate)} is {info.kind.value}, {length}")
        return told or ["no proxy"]

    def _lists(self, path: tuple[x509.Certificate, ...]) -> list[str]:
        told: list[str] = []
        for issuer in dict.fromkeys(path[1:] or path):
            if proxy_info(issuer) is not None or not certificates.is_authority(issuer):
                continue
            lists = self._trust.lists_of(issuer, self._now)
            told += [list_text(one) for one in lists] or [
                f"no list of {certificates.subject_of(issuer)} itself is installed"
            ]
        return [*told, "no certificate of the path is on them, and no proxy"]

    def _namespaces(self, path: tuple[x509.Certificate, ...]) -> list[str]:
        told: list[str] = []
        for index in range(len(path) - 1, 0, -1):
            name = certificates.subject_of(path[index])
            policy, _ = self._trust.policy_for(path[index:])
            if policy is None or not certificates.is_authority(path[index]):
                continue
            told.append(f"{name} may sign {certificates.subject_of(path[index - 1])}: {', '.join(policy.texts(name))}")
        return told

    def _purpose(self, path: tuple[x509.Certificate, ...]) -> list[str]:
        uses = [role for role, purpose in _ROLES.items() if not usage_problem(path[0], purpose)]
        if proxy_info(path[0]) is not None:
            uses = ["a client"]  # a proxy is never a host
        return [f"it may act as {' and as '.join(uses)}"]


_ROLES = {"a client": ExtendedKeyUsageOID.CLIENT_AUTH, "a server": ExtendedKeyUsageOID.SERVER_AUTH}


def _kind(certificate: x509.Certificate) -> str:
    try:
        info = proxy_info(certificate)
    except SecurityError:
        return "malformed proxy"
    if info is not None:
        return f"{info.kind.value} proxy"
    return "authority" if certificates.is_authority(certificate) else "end entity"


def key_text(certificate: x509.Certificate) -> str:
    """`RSA 2048, sha256`"""
    try:
        key = certificates.public_key_of(certificate)
    except SecurityError:
        kind = "a key of another kind"
    else:
        if isinstance(key, rsa.RSAPublicKey):
            kind = f"RSA {key.key_size}"
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            kind = key.curve.name
    return f"{kind}, {certificates.digest_name(certificate) or 'unknown digest'}"


def list_text(one: RevocationList) -> str:
    """A list for a sentence."""
    number = f"number {one.number}" if one.number is not None else "without number"
    until = utc_text(one.next_update) if one.next_update is not None else "for ever"
    delta = f", completed by delta list {one.delta.number}" if one.delta is not None else ""
    return (
        f"the list of {one.issuer}, {number}, from {utc_text(one.last_update)} until {until}, revokes "
        f"{len(one.revoked)}{delta}"
    )
