"""What a chain must pass before anybody believes it: numbered steps, each with its own error.

1. parse and bounds; 2. path to an installed authority (OpenSSL), times, keys, usage (RFC 5280); 3. proxy rules (RFC
3820);
4. revocation list of every authority of the path, applied to every certificate they issued; 5. and to each proxy's
serial
number, which OpenSSL never looks up; 6. namespaces of every authority. For hosts also 7. the name (RFC 6125).

The caller gives the time. Nothing here reads files or clocks; a `TrustSnapshot` may be shared by threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import certificates
from security._path import build_path, diagnose_proxies, proxy_rules
from security.errors import Reason, ValidationError, require_utc, utc_text
from security.names import DistinguishedName
from security.proxies import ProxyInfo, ProxyKind
from security.trust import Authority, TrustSnapshot

CrlPolicy = Literal["require", "warn", "ignore"]

ChainInput = bytes | Sequence[x509.Certificate]


@dataclass(frozen=True)
class ValidationPolicy:
    """What a site demands. The defaults fail closed."""

    missing_crl: CrlPolicy = "require"
    """An authority without a revocation list: refuse, accept with a warning, or accept."""
    expired_crl: CrlPolicy = "require"
    """An authority whose list is past nextUpdate; a revoked certificate on it is refused in any case."""
    max_chain: int = 12
    """Certificates from the leaf to the authority."""
    max_proxy_depth: int = 8
    """Proxies below the end entity."""
    minimum_rsa_bits: int = 2048
    clock_skew: timedelta = timedelta(minutes=5)
    """How far in the future a notBefore or lastUpdate may be. Ends of validity are never stretched."""

    def __post_init__(self) -> None:
        for value in (self.missing_crl, self.expired_crl):
            if value not in ("require", "warn", "ignore"):
                raise ValueError(f"unknown revocation list policy {value!r}; use require, warn or ignore")
        if self.max_chain < 1 or self.max_proxy_depth < 0 or self.clock_skew < timedelta(0):
            raise ValueError("bounds of a validation policy cannot be negative")


DEFAULT_POLICY = ValidationPolicy()


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


def validate_client_chain(chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime) -> Identity:
    """The identity behind a user's, robot's or service's chain (PEM bytes or certificates, leaf first).

    Raises ValidationError with the failing certificate in its facts. Does not check that the peer holds the key (see
    `security.session`), nor bans and maps (see `security.authorization`).
    """
    now = require_utc(now)
    path, warnings = _validate(chain, trust, policy, now)
    for certificate in path.certificates[: path.depth + 1]:
        _require_usage(certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "a client", now)
    return _identity(path, warnings)


def validate_host_chain(
    chain: ChainInput,
    host: str | IPv4Address | IPv6Address,
    trust: TrustSnapshot,
    policy: ValidationPolicy,
    now: datetime,
) -> Identity:
    """The identity of a server that was reached as `host` (DNS name or address). Proxies are refused."""
    now = require_utc(now)
    path, warnings = _validate(chain, trust, policy, now)
    leaf = path.certificates[0]
    if path.depth:
        raise ValidationError(
            Reason.PROXY_NOT_ALLOWED,
            f"{certificates.describe(leaf)} is a proxy; a host must show its own certificate",
            certificates.facts_of(leaf, "host certificate", now),
        )
    _require_usage(leaf, ExtendedKeyUsageOID.SERVER_AUTH, "a server", now)
    _require_host_name(leaf, host, now)
    return _identity(path, warnings)


def validate_chain(chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime) -> Identity:
    """As `validate_client_chain`, for a signer that is neither client nor host: no extended key usage is asked for."""
    now = require_utc(now)
    return _identity(*_validate(chain, trust, policy, now))


def _validate(
    chain: ChainInput, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
) -> tuple[_Path, tuple[str, ...]]:
    """Steps 1 to 6, in this order."""
    # 1. parse and bounds
    offered = certificates.load_chain(chain)
    if len(offered) > policy.max_chain:
        raise ValidationError(
            Reason.CHAIN_TOO_LONG,
            f"the chain of {certificates.describe(offered[0])} has {len(offered)} certificates, "
            f"more than the {policy.max_chain} accepted",
            certificates.facts_of(offered[0], "parse", now),
        )
    # 2. path, times, keys
    path = _path(offered, trust, policy, now)
    # 3. proxy rules
    proxy_rules(path.certificates, path.proxies, policy.max_proxy_depth, now)
    # 4. revocation lists of the authorities, 5. applied to proxies as well
    warnings = _revocation(path, policy, now)
    # 6. namespaces
    _namespaces(path, now)
    return path, warnings


def _path(
    offered: tuple[x509.Certificate, ...], trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
) -> _Path:
    verified = build_path(offered, trust, now)
    proxies = diagnose_proxies(verified)
    authorities = [trust.authority_of(certificates.der(certificate)) for certificate in verified]
    # An authority that renewed its certificate with the same key: OpenSSL may have taken either; take the valid one.
    for index, authority in enumerate(authorities):
        if authority is not None and index > 0 and not _in_time(authority.certificate, policy, now):
            twin = next((t for t in trust.twins(authority) if _in_time(t.certificate, policy, now)), None)
            if twin is not None:
                authorities[index] = twin
                verified = (*verified[:index], twin.certificate, *verified[index + 1 :])
    for index in range(len(verified) - 1, -1, -1):
        _require_time(verified[index], index < len(proxies), policy, now)
    for index, certificate in enumerate(verified):
        _require_strength(certificate, index == len(verified) - 1, policy, now)
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


def _in_time(certificate: x509.Certificate, policy: ValidationPolicy, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now + policy.clock_skew and now <= certificate.not_valid_after_utc


def _require_time(certificate: x509.Certificate, is_proxy: bool, policy: ValidationPolicy, now: datetime) -> None:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > not_after:
        kind = "the proxy" if is_proxy else "the certificate"
        cure = "make a new proxy" if is_proxy else "renew the certificate"
        raise ValidationError(
            Reason.PROXY_EXPIRED if is_proxy else Reason.CERTIFICATE_EXPIRED,
            f"{kind} {certificates.describe(certificate)} expired at {utc_text(not_after)}; {cure}",
            {**certificates.facts_of(certificate, "validity", now), "notAfter": utc_text(not_after)},
        )
    if not_before > now + policy.clock_skew:
        raise ValidationError(
            Reason.NOT_YET_VALID,
            f"{certificates.describe(certificate)} is valid only from {utc_text(not_before)}; check the clocks "
            "of both hosts",
            {**certificates.facts_of(certificate, "validity", now), "notBefore": utc_text(not_before)},
        )


_BROKEN_DIGESTS = frozenset({"md5", "sha1"})


def _require_strength(certificate: x509.Certificate, is_root: bool, policy: ValidationPolicy, now: datetime) -> None:
    problem = certificates.key_problem(certificates.public_key_of(certificate), policy.minimum_rsa_bits)
    if problem is None and not is_root:  # nothing rests on the signature of an installed root
        digest = certificate.signature_hash_algorithm
        if digest is None or digest.name in _BROKEN_DIGESTS:
            problem = f"it is signed with {digest.name if digest else 'an unknown digest'}"
    if problem is not None:
        raise ValidationError(
            Reason.KEY_TOO_WEAK,
            f"{certificates.describe(certificate)} is refused: {problem}",
            certificates.facts_of(certificate, "key", now),
        )


def _revocation(path: _Path, policy: ValidationPolicy, now: datetime) -> tuple[str, ...]:
    """Step 4 for each certificate that an authority issued (the root's own list covers the root), then step 5."""
    warnings: list[str] = []
    last = len(path.certificates) - 1
    for index in range(last, path.depth - 1, -1):
        certificate = path.certificates[index]
        above = min(index + 1, last)
        authority = path.authorities[above]
        crl = authority.crl if authority is not None else None
        name = certificates.subject_of(path.certificates[above])

        def facts(of: x509.Certificate = certificate, authority: DistinguishedName = name) -> dict[str, str]:
            return {**certificates.facts_of(of, "revocation list", now), "authority": str(authority)}

        if crl is None:
            sentence = f"no revocation list of {name} is installed, {certificates.describe(certificate)} is unchecked"
            _judge(policy.missing_crl, Reason.CRL_MISSING, sentence, "the site must fetch it", facts(), warnings)
            continue
        if crl.last_update > now + policy.clock_skew:
            raise ValidationError(
                Reason.CRL_INVALID,
                f"the revocation list of {name} is valid only from {utc_text(crl.last_update)}; check the clock "
                "of this host",
                facts(),
            )
        # Revocation before expiry: what an expired list says is still true.
        if certificate.serial_number in crl.revoked:
            raise ValidationError(
                Reason.CERTIFICATE_REVOKED,
                f"{certificates.describe(certificate)} was revoked {crl.revocation_text(certificate.serial_number)}; "
                "ask the authority for a new certificate",
                facts(),
            )
        if index == path.depth:
            for proxy in path.certificates[: path.depth]:
                if proxy.serial_number in crl.revoked:
                    raise ValidationError(
                        Reason.PROXY_REVOKED,
                        f"the proxy {certificates.describe(proxy)} was revoked "
                        f"{crl.revocation_text(proxy.serial_number)}; make a new proxy",
                        facts(proxy),
                    )
        if crl.expired(now):
            until = utc_text(crl.next_update) if crl.next_update else ""
            sentence = f"the revocation list of {name} expired at {until}"
            _judge(policy.expired_crl, Reason.CRL_EXPIRED, sentence, "the site must fetch a new one", facts(), warnings)
    return tuple(dict.fromkeys(warnings))


def _judge(
    mode: CrlPolicy, reason: Reason, sentence: str, cure: str, facts: dict[str, str], warnings: list[str]
) -> None:
    if mode == "require":
        raise ValidationError(reason, f"{sentence}; {cure}", facts)
    if mode == "warn":
        warnings.append(sentence)


def _namespaces(path: _Path, now: datetime) -> None:
    """Every certificate issued by an authority lies in that authority's namespace (the root itself excepted)."""
    for index in range(len(path.certificates) - 2, path.depth - 1, -1):
        certificate = path.certificates[index]
        authority = path.authorities[index + 1]
        name = certificates.subject_of(path.certificates[index + 1])
        if (
            authority is not None
            and authority.policy is not None
            and authority.policy.permits(name, certificates.subject_of(certificate))
        ):
            continue
        facts = {**certificates.facts_of(certificate, "namespace", now), "authority": str(name)}
        if authority is None or authority.policy is None:
            problem = authority.policy_problem if authority is not None else None
            raise ValidationError(
                Reason.SIGNING_POLICY_INVALID if problem else Reason.SIGNING_POLICY_MISSING,
                f"the signing policy of {name} cannot be used ({problem})"
                if problem
                else f"no signing policy of {name} is installed, so it may sign nothing; the site must install it",
                facts,
            )
        raise ValidationError(
            Reason.NAMESPACE_VIOLATION,
            f"{name} may not sign {certificates.describe(certificate)}: outside its signing policy",
            facts,
        )


def _require_usage(certificate: x509.Certificate, purpose: x509.ObjectIdentifier, role: str, now: datetime) -> None:
    problem = ""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage):
            server = purpose == ExtendedKeyUsageOID.SERVER_AUTH
            if not (value.digital_signature or (server and value.key_encipherment)):
                problem = "its key usage has no digitalSignature"
        elif (
            isinstance(value, x509.ExtendedKeyUsage)
            and purpose not in value
            and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in value
        ):
            problem = "its extended key usage does not name this purpose"
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
