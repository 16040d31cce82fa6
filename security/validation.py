"""What a chain must pass before anybody believes it: numbered steps, each with its own error.

1. parse and bounds; 2. path to an installed authority (OpenSSL), times, keys, usage (RFC 5280); 3. proxy rules (RFC
3820);
4. revocation list of every authority of the path, applied to every certificate they issued; 5. and to each proxy's
serial
number, which OpenSSL never looks up; 6. namespaces of every authority. For hosts also 7. the name (RFC 6125).

The caller gives the time. Nothing here reads files or clocks; a `TrustSnapshot` may be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import certificates
from security._lists import RevocationCheck
from security._path import (
    build_path,
    diagnose_proxies,
    in_time,
    proxy_rules,
    require_namespaces,
    require_strength,
    require_time,
)
from security.errors import Reason, ValidationError, require_utc
from security.names import DistinguishedName
from security.policy import DEFAULT_POLICY, CrlPolicy, ValidationPolicy
from security.proxies import ProxyInfo, ProxyKind
from security.trust import Authority, TrustSnapshot

__all__ = [
    "DEFAULT_POLICY",
    "ChainInput",
    "CrlPolicy",
    "Identity",
    "ValidationPolicy",
    "usage_problem",
    "validate_chain",
    "validate_client_chain",
    "validate_host_chain",
]

ChainInput = bytes | Sequence[x509.Certificate]

Passed = Callable[[str, tuple[x509.Certificate, ...]], None]
"""Told of each step that a chain passed (`parse`, `path`, `proxy rules`, `revocation lists`, `namespaces`, `purpose`)
with the chain, from the second step on the path to the root. For explaining a verdict: see `security.explanation`."""


VERDICT_HOLDS = timedelta(seconds=1)
"""How long a chain is not looked at again by the same snapshot: what expires is noticed that much later."""
MAX_VERDICTS = 1024


def _nobody(_step: str, _path: tuple[x509.Certificate, ...]) -> None:
    """Who is told of passed steps where nobody asked."""


@dataclass(frozen=True)
class Identity:
    """Who a chain speaks for, verified. `subject` is what bans, maps and accounts are about."""

    subject: DistinguishedName
    """The end entity (for an independent proxy: that proxy, which has no rights of its issuer's)."""
    leaf_subject: DistinguishedName
    issuer: DistinguishedName
    """The authority that issued the end-entity certificate."""
    serial: int
    """Of the end-entity certificate."""
    is_proxy: bool
    is_limited: bool
    proxy_depth: int
    not_after: datetime
    """When the first certificate of the path, authority included, expires."""
    warnings: tuple[str, ...]
    """What the site's policy let pass, one sentence each."""
    fingerprints: tuple[str, ...]
    """SHA-256 of each certificate of `certificates`, in hexadecimal."""
    certificates: tuple[x509.Certificate, ...] = field(repr=False)
    """The verified path, leaf first, without the authority's own certificate."""


@dataclass(frozen=True)
class _Path:
    """A path that passed step 2."""

    certificates: tuple[x509.Certificate, ...]
    """Leaf to root."""
    proxies: tuple[ProxyInfo, ...]
    """Of the first certificates, leaf first."""
    authorities: tuple[Authority | None, ...]
    """For each certificate of the path the installed authority that it is, or None."""

    @property
    def depth(self) -> int:
        return len(self.proxies)

    @property
    def end_entity(self) -> x509.Certificate:
        return self.certificates[self.depth]


def validate_client_chain(
    chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime, *, passed: Passed = _nobody
) -> Identity:
    """The identity behind a user's, robot's or service's chain (PEM bytes or certificates, leaf first).

    Raises ValidationError with the failing certificate in its facts. Does not check that the peer holds the key (see
    `security.session`), nor bans and maps (see `security.authorization`).
    """
    now = require_utc(now)
    path, warnings = _validate(chain, trust, policy, now, passed)
    for certificate in path.certificates[: path.depth + 1]:
        _require_usage(certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "a client", now)
    passed("purpose", path.certificates)
    return _identity(path, warnings)


def validate_host_chain(
    chain: ChainInput,
    host: str | IPv4Address | IPv6Address,
    trust: TrustSnapshot,
    policy: ValidationPolicy,
    now: datetime,
    *,
    passed: Passed = _nobody,
) -> Identity:
    """The identity of a server that was reached as `host` (DNS name or address). Proxies are refused."""
    now = require_utc(now)
    path, warnings = _validate(chain, trust, policy, now, passed)
    leaf = path.certificates[0]
    if path.depth:
        raise ValidationError(
            Reason.PROXY_NOT_ALLOWED,
            f"{certificates.describe(leaf)} is a proxy; a host must show its own certificate",
            certificates.facts_of(leaf, "host certificate", now),
        )
    _require_usage(leaf, ExtendedKeyUsageOID.SERVER_AUTH, "a server", now)
    _require_host_name(leaf, host, now)
    passed("purpose", path.certificates)
    return _identity(path, warnings)


def validate_chain(
    chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime, *, passed: Passed = _nobody
) -> Identity:
    """As `validate_client_chain`, for a signer that is neither client nor host: no extended key usage is asked for."""
    now = require_utc(now)
    return _identity(*_validate(chain, trust, policy, now, passed))


def _validate(
    chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime, passed: Passed
) -> tuple[_Path, tuple[str, ...]]:
    """Steps 1 to 6, once for each chain within a moment: a process of many agents asks about the same people and hosts
    when trust has changed."""
    # 1. parse and bounds
    offered = certificates.load_chain(chain)
    if passed is not _nobody:
        return _judge(offered, trust, policy, now, passed)
    key = (policy, *map(certificates.der, offered))
    found_at, found = trust.verdicts.get(key, (None, None))
    if found_at is None or not timedelta(0) <= now - found_at <= VERDICT_HOLDS:
        try:
            found = _judge(offered, trust, policy, now, passed)
        except ValidationError as error:
            found = error
        if len(trust.verdicts) >= MAX_VERDICTS:
            trust.verdicts.clear()
        trust.verdicts[key] = now, found
    if isinstance(found, ValidationError):
        kind, facts = found.__reduce__()
        raise kind(*facts)
    return cast("tuple[_Path, tuple[str, ...]]", found)


def _judge(
    offered: tuple[x509.Certificate, ...], trust: TrustSnapshot, policy: ValidationPolicy, now: datetime, passed: Passed
) -> tuple[_Path, tuple[str, ...]]:
    """Steps 1 to 6, in this order."""
    if len(offered) > policy.max_chain:
        raise ValidationError(
            Reason.CHAIN_TOO_LONG,
            f"the chain of {certificates.describe(offered[0])} has {len(offered)} certificates, "
            f"more than the {policy.max_chain} accepted",
            certificates.facts_of(offered[0], "parse", now),
        )
    passed("parse", offered)
    # 2. path, times, keys
    path = _path(offered, trust, policy, now)
    passed("path", path.certificates)
    # 3. proxy rules
    proxy_rules(path.certificates, path.proxies, policy.max_proxy_depth, now)
    passed("proxy rules", path.certificates)
    # 4. revocation lists of the authorities, 5. applied to proxies as well
    warnings = RevocationCheck(offered, trust, policy, now).of_path(path.certificates, path.depth)
    passed("revocation lists", path.certificates)
    # 6. namespaces
    if policy.namespaces:
        require_namespaces(path.certificates, path.depth, trust, now)
        passed("namespaces", path.certificates)
    return path, warnings


def _path(
    offered: tuple[x509.Certificate, ...], trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
) -> _Path:
    verified = build_path(offered, trust, now)
    proxies = diagnose_proxies(verified)
    authorities = [trust.authority_of(certificates.der(certificate)) for certificate in verified]
    # An authority that renewed its certificate with the same key: OpenSSL may have taken either; take the valid one.
    for index, authority in enumerate(authorities):
        if authority is not None and index > 0 and not in_time(authority.certificate, policy, now):
            twin = next((t for t in trust.twins(authority) if in_time(t.certificate, policy, now)), None)
            if twin is not None:
                authorities[index] = twin
                verified = (*verified[:index], twin.certificate, *verified[index + 1 :])
    for index in range(len(verified) - 1, -1, -1):
        require_time(verified[index], index < len(proxies), policy, now)
    for index, certificate in enumerate(verified):
        require_strength(certificate, index == len(verified) - 1, policy, now)
    if len(proxies) == len(verified) or _is_authority(verified[len(proxies)]):
        leaf = verified[min(len(proxies), len(verified) - 1)]
        raise ValidationError(
            Reason.KEY_USAGE,
            f"{certificates.describe(leaf)} is an authority's certificate, not a person's or host's",
            certificates.facts_of(leaf, "path", now),
        )
    return _Path(verified, proxies, tuple(authorities))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.subject == certificate.issuer


def usage_problem(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> str:
    """Why a certificate may not serve this purpose (RFC 5280 sections 4.2.1.3 and 4.2.1.12), or an empty string."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage):
            server = purpose == ExtendedKeyUsageOID.SERVER_AUTH
            if not (value.digital_signature or (server and value.key_encipherment)):
                return "its key usage has no digitalSignature"
        elif (
            isinstance(value, x509.ExtendedKeyUsage)
            and purpose not in value
            and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in value
        ):
            return "its extended key usage does not name this purpose"
    return ""


def _require_usage(certificate: x509.Certificate, purpose: x509.ObjectIdentifier, role: str, now: datetime) -> None:
    problem = usage_problem(certificate, purpose)
    if problem:
        raise ValidationError(
            Reason.KEY_USAGE,
            f"{certificates.describe(certificate)} may not act as {role}: {problem}; ask its authority for another",
            certificates.facts_of(certificate, "key usage", now),
        )


def _require_host_name(certificate: x509.Certificate, host: str | IPv4Address | IPv6Address, now: datetime) -> None:
    """Step 7: RFC 6125; the common name, also as `host/fqdn` or `service/fqdn`, only without any DNS or IP SAN."""
    address = _as_address(host)
    names, addresses = _alternative_names(certificate)
    if address is not None:
        matched = address in addresses
    else:
        wanted = str(host).rstrip(".").lower()
        matched = any(_dns_matches(name, wanted) for name in names)
    if not names and not addresses:
        common = certificates.subject_of(certificate).common_name.rpartition("/")[2]
        names = (common,)
        matched = (
            _as_address(common) == address
            if address is not None
            else _dns_matches(common, str(host).rstrip(".").lower())
        )
    if not matched:
        has = ", ".join([*names, *(str(a) for a in addresses)][:8])
        raise ValidationError(
            Reason.HOST_NAME_MISMATCH,
            f"the certificate {certificates.describe(certificate)} is for {has[:300]}, not for {str(host)[:255]}; "
            "use one of its names or get a certificate for this one",
            {**certificates.facts_of(certificate, "host name", now), "host": str(host)},
        )


def _alternative_names(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...], tuple[object, ...]]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    return (
        tuple(alternative.get_values_for_type(x509.DNSName)),
        tuple(alternative.get_values_for_type(x509.IPAddress)),
    )


def _as_address(host: str | IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
    if not isinstance(host, str):
        return host
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _dns_matches(pattern: str, wanted: str) -> bool:
    """RFC 6125 section 6.4: letter case ignored, `*` only as the whole first label of at least three."""
    pattern = pattern.rstrip(".").lower()
    if not pattern or not wanted:
        return False
    if not pattern.startswith("*."):
        return "*" not in pattern and pattern == wanted
    rest = pattern[1:]
    label, dot, domain = wanted.partition(".")
    return "*" not in rest and rest.count(".") >= 2 and bool(label and dot) and rest == "." + domain


def _identity(path: _Path, warnings: tuple[str, ...]) -> Identity:
    end_entity = path.end_entity
    subject = certificates.subject_of(end_entity)
    for certificate, info in zip(reversed(path.certificates[: path.depth]), reversed(path.proxies), strict=True):
        if info.kind is ProxyKind.INDEPENDENT:
            subject = certificates.subject_of(certificate)
    last = len(path.certificates) - 1
    sent = path.certificates[:last] if last else path.certificates
    return Identity(
        subject=subject,
        leaf_subject=certificates.subject_of(path.certificates[0]),
        issuer=certificates.issuer_of(end_entity),
        serial=end_entity.serial_number,
        is_proxy=path.depth > 0,
        is_limited=any(info.kind is ProxyKind.LIMITED for info in path.proxies),
        proxy_depth=path.depth,
        not_after=min(certificate.not_valid_after_utc for certificate in path.certificates),
        warnings=warnings,
        fingerprints=tuple(certificates.fingerprint(certificate) for certificate in sent),
        certificates=sent,
    )
