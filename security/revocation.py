"""Certificate revocation lists (RFC 5280 section 5): read once, verified once, asked often."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from security import certificates
from security.errors import Reason, ValidationError, utc_text
from security.names import DistinguishedName

MAX_CRL_BYTES = 32 * 1024 * 1024
"""The largest list of a grid authority is about 1 MB."""

_KNOWN_CRITICAL = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


@dataclass(frozen=True)
class RevocationList:
    """A list whose signature was verified with its authority's key.

    `next_update` None means that the list never expires by itself (RFC 5280 forbids it, some authorities did it).
    """

    issuer: DistinguishedName
    number: int | None
    last_update: datetime
    next_update: datetime | None
    revoked: frozenset[int] = field(repr=False)
    crl: x509.CertificateRevocationList = field(repr=False, compare=False)

    def older_than(self, other: RevocationList) -> bool:
        """True if `other` supersedes this list: by CRL number where both have one, else by lastUpdate."""
        if self.number is not None and other.number is not None and self.number != other.number:
            return self.number < other.number
        return self.last_update < other.last_update

    def expired(self, now: datetime, skew: timedelta = timedelta(0)) -> bool:
        """True past nextUpdate."""
        return self.next_update is not None and self.next_update + skew < now

    def revocation_text(self, serial: int) -> str:
        """When and why, for a sentence: `on 2026-01-31T12:00:00Z (keyCompromise)`."""
        entry = self.crl.get_revoked_certificate_by_serial_number(serial)
        if entry is None:
            return "at an unknown time"
        reason = ""
        try:
            value = entry.extensions.get_extension_for_oid(CRLEntryExtensionOID.CRL_REASON).value
            if isinstance(value, x509.CRLReason):
                reason = f" ({value.reason.value})"
        except (x509.ExtensionNotFound, ValueError):
            pass
        return f"on {utc_text(entry.revocation_date_utc)}{reason}"


def _invalid(sentence: str, facts: dict[str, str]) -> ValidationError:
    return ValidationError(Reason.CRL_INVALID, f"{sentence}; fetch the list again from its authority", facts)


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Read a PEM or DER list. Raises ValidationError CRL_INVALID. Verifies nothing."""
    facts = {"check": "revocation list"}
    if len(data) > MAX_CRL_BYTES:
        raise _invalid(f"the revocation list is larger than {MAX_CRL_BYTES} bytes", facts)
    try:
        crl = x509.load_pem_x509_crl(data) if b"-----BEGIN" in data[:65536] else x509.load_der_x509_crl(data)
        _ = crl.issuer, crl.extensions, crl.last_update_utc, crl.next_update_utc
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _invalid(f"the revocation list cannot be read ({error})", facts) from error
    return crl


def verify_crl(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> RevocationList:
    """Check that the list is its authority's, complete and understood, and index it. Raises ValidationError
    CRL_INVALID.

    Delta lists, indirect lists and lists for some certificates only are refused: taken for complete they would hide
    revocations. Does not compare times: see `security.validation`.
    """
    name = DistinguishedName.from_x509(crl.issuer)
    facts = {"check": "revocation list", "issuer": str(name), "lastUpdate": utc_text(crl.last_update_utc)}
    if crl.issuer != authority.subject:
        raise _invalid(f"the revocation list of {name} is not from {certificates.subject_of(authority)}", facts)
    try:
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign:
            raise _invalid(f"the authority {name} has no right to sign revocation lists (keyUsage)", facts)
    except x509.ExtensionNotFound:
        pass
    try:
        genuine = crl.is_signature_valid(certificates.public_key_of(authority, "revocation list"))
    except (TypeError, ValueError, UnsupportedAlgorithm):
        genuine = False
    if not genuine:
        raise _invalid(f"the revocation list of {name} is not signed with that authority's key", facts)
    number: int | None = None
    for extension in crl.extensions:
        if isinstance(extension.value, x509.CRLNumber):
            number = extension.value.crl_number
        elif extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise _invalid(f"the revocation list of {name} is a delta list, which is not supported", facts)
        elif isinstance(extension.value, x509.IssuingDistributionPoint):
            _check_scope(extension.value, name, facts)
        elif extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise _invalid(
                f"the revocation list of {name} has the critical extension {extension.oid.dotted_string}, not "
                "understood",
                facts,
            )
    revoked = frozenset(entry.serial_number for entry in crl)
    return RevocationList(name, number, crl.last_update_utc, crl.next_update_utc, revoked, crl)


def _check_scope(point: x509.IssuingDistributionPoint, name: DistinguishedName, facts: dict[str, str]) -> None:
    partial = (
        point.only_contains_user_certs
        or point.only_contains_ca_certs
        or point.only_contains_attribute_certs
        or point.indirect_crl
        or point.only_some_reasons is not None
    )
    if partial:
        raise _invalid(f"the revocation list of {name} covers only a part of its certificates", facts)
