"""Reading certificates with bounds, and the facts about them that every sentence and record shows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID
from OpenSSL import crypto

from security.errors import Reason, ValidationError, utc_text
from security.names import CanonicalName, DistinguishedName, canonical_name

MAX_CHAIN_BYTES = 256 * 1024
"""A chain of ten RSA-4096 certificates with VOMS attributes is below 64 KiB."""
MAX_CHAIN_CERTIFICATES = 24
"""Certificates that a peer may send: more cost time before anything is known about the peer."""

MAX_CERTIFICATE_BYTES = 64 * 1024
"""One authority certificate file."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

ACCEPTED_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
MAX_RSA_BITS = 8192
"""Verification time grows with the square of the length; nobody uses more."""


UNREADABLE: tuple[type[Exception], ...] = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What `cryptography` raises for bytes that are no certificate, request or list. InvalidVersion is no ValueError."""


class _View:
    """What is asked of one certificate many times: names, encoding, OpenSSL's own object, some of its extensions."""

    __slots__ = (
        "_native", "canonical_issuer", "canonical_subject", "encoded", "has_policy_rules", "is_authority", "issuer",
        "may_sign_lists", "subject",
    )  # fmt: skip

    def __init__(self, certificate: x509.Certificate) -> None:
        self.encoded = certificate.public_bytes(Encoding.DER)
        self.subject = DistinguishedName.from_x509(certificate.subject)
        self.issuer = DistinguishedName.from_x509(certificate.issuer)
        self.canonical_subject = canonical_name(certificate.subject)
        self.canonical_issuer = canonical_name(certificate.issuer)
        self._native: crypto.X509 | None = None
        self.is_authority = certificate.version is x509.Version.v1 and certificate.subject == certificate.issuer
        self.may_sign_lists = True  # a certificate without key usage may do everything (RFC 5280 section 4.2.1.3)
        self.has_policy_rules = False
        for extension in certificate.extensions:
            value = extension.value
            if isinstance(value, x509.BasicConstraints):
                self.is_authority = value.ca
            elif isinstance(value, x509.KeyUsage):
                self.may_sign_lists = value.crl_sign
            elif extension.oid in _POLICY_RULES:
                self.has_policy_rules = True

    def native(self) -> crypto.X509:
        if self._native is None:
            try:
                self._native = crypto.load_certificate(crypto.FILETYPE_ASN1, self.encoded)
            except crypto.Error as error:
                raise ValidationError(
                    Reason.CHAIN_MALFORMED,
                    f"the certificate of {self.subject} cannot be read by OpenSSL; use another credential",
                    {"check": "parse", "subject": str(self.subject), "issuer": str(self.issuer)},
                ) from error
        return self._native


_POLICY_RULES = frozenset(
    {ExtensionOID.POLICY_CONSTRAINTS, ExtensionOID.POLICY_MAPPINGS, ExtensionOID.INHIBIT_ANY_POLICY}
)


@lru_cache(maxsize=4096)
def _view_by_content(certificate: x509.Certificate) -> _View:
    """Remembered by content: a service sees the same authorities and people again and again."""
    return _View(certificate)


_MAX_VIEWS = 4096
_views: dict[int, tuple[x509.Certificate, _View]] = {}
"""By object, since hashing the content costs 5 us each time. Holds the certificate, so that an id is never used
twice."""


def _view(certificate: x509.Certificate) -> _View:
    found = _views.get(id(certificate))
    if found is not None and found[0] is certificate:
        return found[1]
    view = _view_by_content(certificate)
    if len(_views) >= _MAX_VIEWS:
        _views.clear()
    _views[id(certificate)] = (certificate, view)
    return view


def subject_of(certificate: x509.Certificate) -> DistinguishedName:
    """The certificate's subject. Raises CredentialError NAME_MALFORMED for a name beyond the bounds."""
    return _view(certificate).subject


def issuer_of(certificate: x509.Certificate) -> DistinguishedName:
    """The certificate's issuer. Raises as `subject_of`."""
    return _view(certificate).issuer


def canonical_subject(certificate: x509.Certificate) -> CanonicalName:
    """The certificate's subject as chaining compares it. Raises as `subject_of`."""
    return _view(certificate).canonical_subject


def canonical_issuer(certificate: x509.Certificate) -> CanonicalName:
    """The certificate's issuer as chaining compares it. Raises as `subject_of`."""
    return _view(certificate).canonical_issuer


def der(certificate: x509.Certificate) -> bytes:
    """The DER bytes of a certificate."""
    return _view(certificate).encoded


def native(certificate: x509.Certificate) -> crypto.X509:
    """The certificate as pyOpenSSL has it. Shared: not to be changed."""
    return _view(certificate).native()


def issuer_among(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """Which of these authorities has the name of its issuer and the key that signed it."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (*UNREADABLE, InvalidSignature):
            continue
        return authority
    return None


def is_authority(certificate: x509.Certificate) -> bool:
    """True for basicConstraints CA, and for a version 1 certificate that is its own issuer."""
    return _view(certificate).is_authority


def may_sign_lists(certificate: x509.Certificate) -> bool:
    """True if the key usage allows it to sign revocation lists."""
    return _view(certificate).may_sign_lists


def signs_only_lists(certificate: x509.Certificate) -> bool:
    """True for a certificate that is no authority and whose key usage names the signing of revocation lists."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.crl_sign and not usage.key_cert_sign and not is_authority(certificate)


def has_policy_rules(certificate: x509.Certificate) -> bool:
    """True if it has policy constraints, policy mappings or inhibitAnyPolicy (RFC 5280 section 4.2.1)."""
    return _view(certificate).has_policy_rules


def serial_text(serial: int) -> str:
    """A serial number as even-length upper-case hexadecimal digits, as `openssl x509 -serial` prints it."""
    digits = f"{serial:X}"
    return "0" + digits if len(digits) % 2 else digits


def facts_of(certificate: x509.Certificate, check: str, now: datetime | None = None) -> dict[str, str]:
    """Facts for an error about this certificate."""
    facts = {
        "check": check,
        "subject": _shown(certificate, subject_of),
        "issuer": _shown(certificate, issuer_of),
        "serial": serial_text(certificate.serial_number),
    }
    if now is not None:
        facts["at"] = utc_text(now)
    return facts


def describe(certificate: x509.Certificate) -> str:
    """The certificate for a sentence: subject, issuer and serial number."""
    return (
        f"{_shown(certificate, subject_of)[:300]} "
        f"(serial {serial_text(certificate.serial_number)}, issued by {_shown(certificate, issuer_of)[:200]})"
    )


def _shown(certificate: x509.Certificate, name: Callable[[x509.Certificate], DistinguishedName]) -> str:
    try:
        return str(name(certificate))
    except Exception:  # only for showing: a name beyond the bounds is refused where it matters
        return "(unreadable name)"


def load_chain(chain: bytes | Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM chain, leaf first, within bounds and with readable names.

    Text around the PEM blocks is ignored, private keys too (a peer should not send one, but it is not read).
    Raises ValidationError CHAIN_MALFORMED or CHAIN_TOO_LONG. Does not check any signature.
    """
    if isinstance(chain, (bytes, bytearray, memoryview)):
        raw = bytes(chain)
        if len(raw) > MAX_CHAIN_BYTES:
            raise ValidationError(
                Reason.CHAIN_TOO_LONG,
                f"the certificate chain has {len(raw)} bytes, more than the {MAX_CHAIN_BYTES} accepted",
                {"check": "parse"},
            )
        if raw.count(b"-----BEGIN CERTIFICATE") > MAX_CHAIN_CERTIFICATES:
            raise _too_many()
        try:
            certificates = tuple(x509.load_pem_x509_certificates(raw))
        except UNREADABLE as error:
            raise ValidationError(
                Reason.CHAIN_MALFORMED,
                f"the certificate chain is not readable PEM ({_short(error)}); send the proxy, then its issuers",
                {"check": "parse"},
            ) from error
    else:
        certificates = tuple(chain)
    if not certificates:
        raise ValidationError(Reason.CHAIN_MALFORMED, "the certificate chain is empty", {"check": "parse"})
    if len(certificates) > MAX_CHAIN_CERTIFICATES:
        raise _too_many()
    for certificate in certificates:
        try:
            _ = subject_of(certificate), issuer_of(certificate), certificate.extensions
        except Exception as error:  # cryptography raises several kinds for malformed content
            raise ValidationError(
                Reason.CHAIN_MALFORMED,
                f"a certificate of the chain has content that cannot be read ({type(error).__name__}: {error})",
                {"check": "parse", "serial": serial_text(certificate.serial_number)},
            ) from error
    return certificates


def load_der(encoded: bytes) -> x509.Certificate:
    """One certificate in DER. Raises ValidationError CHAIN_MALFORMED for anything else."""
    try:
        return load_chain([x509.load_der_x509_certificate(encoded)])[0]
    except UNREADABLE as error:
        raise ValidationError(
            Reason.CHAIN_MALFORMED,
            f"a certificate cannot be read ({_short(error)}); use another one",
            {"check": "parse"},
        ) from error


def _short(error: Exception) -> str:
    """What the library says without the address of its manual."""
    return re.sub(r"[ .]*See https?://\S+( for more details)?", "", str(error)).rstrip(". ")


def _too_many() -> ValidationError:
    return ValidationError(
        Reason.CHAIN_TOO_LONG,
        f"the certificate chain has more than the {MAX_CHAIN_CERTIFICATES} certificates accepted",
        {"check": "parse"},
    )


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """The PEM text of these certificates, in this order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, lower-case hexadecimal."""
    return hashlib.sha256(der(certificate)).hexdigest()


def spki(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo: two keys are the same key if and only if these bytes are."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_of(certificate: x509.Certificate) -> bytes:
    """SubjectPublicKeyInfo of a certificate with any kind of key."""
    return crypto.dump_publickey(crypto.FILETYPE_ASN1, native(certificate).get_pubkey())


def public_key_of(certificate: x509.Certificate, check: str = "key") -> PublicKey:
    """The RSA or ECDSA key of a certificate. Raises ValidationError KEY_TOO_WEAK for any other kind."""
    try:
        key = certificate.public_key()
    except UNREADABLE as error:
        raise ValidationError(
            Reason.KEY_TOO_WEAK,
            f"the key of {describe(certificate)} cannot be used ({error})",
            facts_of(certificate, check),
        ) from error
    if isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        return key
    raise ValidationError(
        Reason.KEY_TOO_WEAK,
        f"the key of {describe(certificate)} is neither RSA nor ECDSA; use one of these",
        facts_of(certificate, check),
    )


def key_problem(key: object, minimum_rsa_bits: int) -> str | None:
    """Why a public key is not acceptable, or None."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < minimum_rsa_bits:
            return f"an RSA key of {key.key_size} bits is shorter than the {minimum_rsa_bits} required"
        if key.key_size > MAX_RSA_BITS:
            return f"an RSA key of {key.key_size} bits is longer than the {MAX_RSA_BITS} accepted"
        return None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.curve.name in ACCEPTED_CURVES else f"the curve {key.curve.name} is not accepted"
    return "the key is neither RSA nor ECDSA"


def digest_name(certificate: x509.Certificate) -> str:
    """The digest of a certificate's signature (`sha256`), empty for one that is not known or has none."""
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return digest.name if digest is not None else ""


def signs(issuer_key: PublicKey, certificate: x509.Certificate) -> bool:
    """True if `issuer_key` made the signature of `certificate`."""
    try:
        digest = certificate.signature_hash_algorithm
        if digest is None:
            return False
        if isinstance(issuer_key, rsa.RSAPublicKey):
            parameters = certificate.signature_algorithm_parameters
            if not isinstance(parameters, (padding.PKCS1v15, padding.PSS)):
                return False
            issuer_key.verify(certificate.signature, certificate.tbs_certificate_bytes, parameters, digest)
        else:
            issuer_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(digest))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def subject_hash(certificate: x509.Certificate) -> str:
    """The eight digits of `openssl x509 -hash`."""
    return f"{native(certificate).subject_name_hash():08x}"


def subject_hash_old(certificate: x509.Certificate) -> str:
    """The eight digits of `openssl x509 -subject_hash_old` (OpenSSL 0.9): MD5 of the name's DER."""
    encoded = certificate.subject.public_bytes()
    digest = hashlib.md5(encoded, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def parse_authority(data: bytes) -> x509.Certificate:
    """One authority certificate in PEM. Raises ValidationError CHAIN_MALFORMED, KEY_TOO_WEAK, KEY_USAGE."""
    certificate = load_chain(data)[0]
    public_key_of(certificate, "authority")
    if not is_authority(certificate):
        raise ValidationError(
            Reason.KEY_USAGE,
            f"{describe(certificate)} is not an authority (basicConstraints)",
            facts_of(certificate, "authority"),
        )
    return certificate
