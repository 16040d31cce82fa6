"""RFC 3820 proxy certificates: reading, making, and delegation by certificate request (the key never travels)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from security import _der, certificates
from security.certificates import PrivateKey, PublicKey
from security.credentials import (
    DRAFT_PROXY_CERT_INFO_OID,
    PROXY_CERT_INFO_OID,
    Credential,
    generate_key,
    without_authority,
)
from security.errors import CredentialError, Reason, ValidationError, require_utc, utc_text

INHERIT_ALL = "1.3.6.1.5.5.7.21.1"
"""id-ppl-inheritAll: all rights of the issuer (RFC 3820 section 3.8.2)."""
INDEPENDENT = "1.3.6.1.5.5.7.21.2"
"""id-ppl-independent: no right of the issuer; an identity of its own."""
LIMITED = "1.3.6.1.4.1.3536.1.1.1.9"
"""Globus limited proxy: may move data, may not start jobs."""

MAX_PATH_LENGTH = 1_000_000
"""Larger path lengths are read as this, and not made: nobody delegates so deep."""
MAX_REQUEST_BYTES = 32 * 1024
"""A certificate request is below 2 kB."""
MINIMUM_RSA_BITS = 2048
BACKDATING = timedelta(minutes=5)
"""How far before `now` a proxy starts, for clocks that run behind (as grid-proxy-init)."""


class ProxyKind(StrEnum):
    """What a proxy may do, by its policy language."""

    FULL = "full"
    """Everything that its issuer may."""
    LIMITED = "limited"
    """Everything but starting jobs."""
    INDEPENDENT = "independent"
    """Nothing of its issuer's."""
    RESTRICTED = "restricted"
    """A policy in a language that is not known here: refused at validation."""


@dataclass(frozen=True)
class ProxyInfo:
    """The content of a ProxyCertInfo extension. `path_length` None means no limit on the proxies below."""

    language: str
    path_length: int | None
    kind: ProxyKind
    policy: bytes | None = None
    """The policy text; None where there is none, which is not the same as an empty one."""


_KINDS = {INHERIT_ALL: ProxyKind.FULL, INDEPENDENT: ProxyKind.INDEPENDENT, LIMITED: ProxyKind.LIMITED}


def encode_proxy_cert_info(language: str, path_length: int | None, policy: bytes | None = None) -> bytes:
    """The DER of a ProxyCertInfo (RFC 3820 section 3.8)."""
    body = _der.encode_object_identifier(language)
    if policy is not None:
        body += _der.encode(_der.OCTET_STRING, policy)
    length = b"" if path_length is None else _der.encode_integer(path_length)
    return _der.encode(_der.SEQUENCE, length + _der.encode(_der.SEQUENCE, body))


def decode_proxy_cert_info(data: bytes) -> ProxyInfo:
    """Read a ProxyCertInfo. Raises `_der.DerError` (a ValueError) when malformed."""
    elements = _der.read_all(_der.read_single(data, _der.SEQUENCE).content)
    path_length: int | None = None
    if elements and elements[0].tag == _der.INTEGER:
        path_length = _der.integer(elements.pop(0).content)
        if path_length < 0:
            raise _der.DerError("negative path length")
        path_length = min(path_length, MAX_PATH_LENGTH)
    if len(elements) != 1 or elements[0].tag != _der.SEQUENCE:
        raise _der.DerError("no proxy policy")
    policy = _der.read_all(elements[0].content)
    if not 1 <= len(policy) <= 2 or policy[0].tag != _der.OBJECT_IDENTIFIER:
        raise _der.DerError("no policy language")
    if len(policy) == 2 and policy[1].tag != _der.OCTET_STRING:
        raise _der.DerError("the policy is not an octet string")
    language = _der.object_identifier(policy[0].content)
    kind = _KINDS.get(language, ProxyKind.RESTRICTED)
    return ProxyInfo(language, path_length, kind, policy[1].content if len(policy) == 2 else None)


def proxy_info(cert: x509.Certificate) -> ProxyInfo | None:
    """What the ProxyCertInfo of a certificate says, None for a certificate that is not a proxy.

    Raises ValidationError PROXY_EXTENSION_INVALID (malformed, or not critical) or PROXY_LEGACY (GT3 draft). Checks
    neither name nor signature: see `security.validation`.
    """
    for extension in cert.extensions:
        if extension.oid == DRAFT_PROXY_CERT_INFO_OID:
            raise ValidationError(
                Reason.PROXY_LEGACY,
                f"{certificates.describe(cert)} is a draft (GT3) proxy; make an RFC 3820 proxy: grid-proxy-init -rfc",
                certificates.facts_of(cert, "proxy extension"),
            )
        if extension.oid != PROXY_CERT_INFO_OID:
            continue
        try:
            if not extension.critical:
                raise _der.DerError("the extension is not critical")
            value = extension.value
            data = value.value if isinstance(value, x509.UnrecognizedExtension) else value.public_bytes()
            return decode_proxy_cert_info(data)
        except _der.DerError as error:
            raise ValidationError(
                Reason.PROXY_EXTENSION_INVALID,
                f"the ProxyCertInfo of {certificates.describe(cert)} is not valid ({error}); make a new proxy",
                certificates.facts_of(cert, "proxy extension"),
            ) from error
    return None


@dataclass(frozen=True)
class _IssuerRights:
    """What the issuer's chain leaves to a new proxy."""

    limited: bool
    remaining_path_length: int | None
    not_before: datetime
    not_after: datetime


def _rights(issuer: Credential) -> _IssuerRights:
    limited = False
    remaining: int | None = None
    for depth, certificate in enumerate(issuer.certificates):
        info = proxy_info(certificate)
        if info is None:
            break
        limited = limited or info.kind is ProxyKind.LIMITED
        if info.path_length is not None:
            left = info.path_length - depth
            remaining = left if remaining is None else min(remaining, left)
    return _IssuerRights(
        limited,
        remaining,
        max(certificate.not_valid_before_utc for certificate in issuer.certificates),
        issuer.not_after,
    )


def create_proxy(
    issuer: Credential,
    *,
    lifetime: timedelta,
    now: datetime,
    key_type: str = "ec-p256",
    limited: bool = False,
    independent: bool = False,
    path_length: int | None = None,
    extensions: Sequence[x509.UnrecognizedExtension] = (),
) -> Credential:
    """A proxy of `issuer` with a new key. Its life is cut to the issuer's; a proxy of a limited proxy is limited.

    `extensions` (not critical) carry VOMS attribute certificates. Raises CredentialError PROXY_PATH_LENGTH_EXCEEDED
    when the issuer may have no proxies, LIFETIME_INVALID when it is expired or the lifetime is not positive.
    """
    key = generate_key(key_type)
    certificate = _sign(
        issuer,
        key.public_key(),
        lifetime=lifetime,
        now=now,
        limited=limited,
        independent=independent,
        path_length=path_length,
        extensions=extensions,
    )
    return Credential(certificate, key, without_authority(issuer.certificates))


def _sign(
    issuer: Credential,
    public_key: PublicKey,
    *,
    lifetime: timedelta,
    now: datetime,
    limited: bool,
    independent: bool,
    path_length: int | None,
    extensions: Sequence[x509.UnrecognizedExtension] = (),
) -> x509.Certificate:
    now = require_utc(now)
    facts = certificates.facts_of(issuer.certificate, "proxy creation", now)
    rights = _rights(issuer)
    if rights.remaining_path_length is not None and rights.remaining_path_length < 1:
        raise CredentialError(
            Reason.PROXY_PATH_LENGTH_EXCEEDED,
            f"{issuer.subject} may not be delegated further (path length used up); start from a proxy without "
            "that limit",
            facts,
        )
    if lifetime <= timedelta(0):
        raise CredentialError(Reason.LIFETIME_INVALID, "the lifetime of a proxy must be positive", facts)
    if rights.not_after <= now:
        raise CredentialError(
            Reason.LIFETIME_INVALID,
            f"{issuer.subject} expired at {utc_text(rights.not_after)}; renew it before making a proxy",
            facts,
        )
    if path_length is not None and not 0 <= path_length <= MAX_PATH_LENGTH:
        sentence = f"a path length is between 0 and {MAX_PATH_LENGTH}; leave it out for no limit"
        raise CredentialError(Reason.PROXY_PATH_LENGTH_EXCEEDED, sentence, facts)
    if path_length is not None and rights.remaining_path_length is not None:
        path_length = min(path_length, rights.remaining_path_length - 1)  # OpenSSL refuses a proxy that claims more
    if rights.limited and independent:
        raise CredentialError(
            Reason.PROXY_RIGHTS_WIDENED, f"{issuer.subject} is limited and cannot have an independent proxy", facts
        )
    language = LIMITED if limited or rights.limited else INDEPENDENT if independent else INHERIT_ALL
    if limited and independent:
        raise CredentialError(Reason.PROXY_RIGHTS_WIDENED, "a proxy is either limited or independent", facts)
    serial = secrets.randbits(63) | 1 << 62  # RFC 3820 section 3.2: unique below one issuer; 62 random bits are
    subject = x509.Name(
        [
            *issuer.certificate.subject.rdns,
            x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, str(serial))]),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(max(now - BACKDATING, rights.not_before))
        .not_valid_after(min(now + lifetime, rights.not_after))
        .add_extension(
            x509.UnrecognizedExtension(PROXY_CERT_INFO_OID, encode_proxy_cert_info(language, path_length)),
            critical=True,
        )
        .add_extension(_key_usage(encipherment=isinstance(public_key, rsa.RSAPublicKey)), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _key_usage(*, encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def new_request(key_type: str = "ec-p256") -> tuple[PrivateKey, bytes]:
    """A new key, to be kept, and the PEM certificate request to send to the delegator."""
    key = generate_key(key_type)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy request")]))
        .sign(key, hashes.SHA256())
    )
    return key, request.public_bytes(serialization.Encoding.PEM)


def load_request(csr: bytes) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    """Read a PEM or DER certificate request and check its bounds, self signature and key.

    Raises ValidationError REQUEST_MALFORMED, BAD_SIGNATURE, KEY_TOO_WEAK. Nothing in the request but its key is used
    for a proxy.
    """
    facts = {"check": "certificate request"}
    if len(csr) > MAX_REQUEST_BYTES:
        raise ValidationError(
            Reason.REQUEST_MALFORMED, f"the certificate request is larger than {MAX_REQUEST_BYTES} bytes", facts
        )
    try:
        request = x509.load_pem_x509_csr(csr) if b"-----BEGIN" in csr else x509.load_der_x509_csr(csr)
        key = request.public_key()
        genuine = request.is_signature_valid
    except certificates.UNREADABLE as error:
        raise ValidationError(
            Reason.REQUEST_MALFORMED, f"the certificate request cannot be read ({error})", facts
        ) from error
    problem = certificates.key_problem(key, MINIMUM_RSA_BITS)
    if problem is not None or not isinstance(key, PublicKey):
        raise ValidationError(Reason.KEY_TOO_WEAK, f"the certificate request is refused: {problem}", facts)
    if not genuine:
        raise ValidationError(
            Reason.BAD_SIGNATURE, "the certificate request is not signed by its own key; make a new request", facts
        )
    return request, key


def sign_request(
    csr_pem: bytes,
    issuer: Credential,
    *,
    lifetime: timedelta,
    now: datetime,
    limited: bool = False,
    path_length: int | None = None,
) -> bytes:
    """Delegate: a proxy for the key of the request. Returns the PEM chain, new proxy first, then the issuer's chain.

    Refuses as `create_proxy` and `load_request` do.
    """
    _, key = load_request(csr_pem)
    certificate = _sign(
        issuer, key, lifetime=lifetime, now=now, limited=limited, independent=False, path_length=path_length
    )
    return certificates.pem((certificate, *without_authority(issuer.certificates)))


def assemble(key: PrivateKey, chain_pem: bytes) -> Credential:
    """The credential from a kept key and the chain that the delegator returned.

    Raises CredentialError CREDENTIAL_MALFORMED when the chain is unreadable or its leaf is for another key. The chain
    is not verified: do that with `security.validation` before relying on it.
    """
    try:
        chain = certificates.load_chain(chain_pem)
    except ValidationError as error:
        raise CredentialError(Reason.CREDENTIAL_MALFORMED, error.sentence, error.facts) from error
    return Credential(chain[0], key, without_authority(chain[1:]))
