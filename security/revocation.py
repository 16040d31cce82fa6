"""Certificate revocation lists (RFC 5280 sections 5 and 6.3): read once, verified once, asked often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from security import _crl, certificates
from security._crl import MAX_CRL_BYTES, CrlDocument, Scope, SerialIndex, invalid
from security.errors import SecurityError, utc_text
from security.names import DistinguishedName, same_name

__all__ = [
    "MAX_CRL_BYTES",
    "CrlDocument",
    "RevocationList",
    "Scope",
    "SerialIndex",
    "complete",
    "is_delta",
    "parse_crl",
    "signed_by",
    "verify_crl",
]

_HASHES: dict[str, hashes.HashAlgorithm] = {
    algorithm.name: algorithm for algorithm in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512(), hashes.SHA224())
}
_WEAK_HASHES: dict[str, hashes.HashAlgorithm] = {
    algorithm.name: algorithm for algorithm in (hashes.SHA1(), hashes.MD5())
}
"""Only where the caller asks for it: to look at old material."""


@dataclass(frozen=True)
class RevocationList:
    """A list whose signature was verified with its authority's key.

    `next_update` None means that the list never expires by itself (RFC 5280 forbids it, some authorities did it).
    """

    issuer: DistinguishedName
    number: int | None
    last_update: datetime
    next_update: datetime | None
    document: CrlDocument = field(repr=False, compare=False)
    delta: RevocationList | None = field(default=None, repr=False)
    """The newest delta list that completes this one."""

    @property
    def revoked(self) -> SerialIndex:
        """The serial numbers of this list without its delta: `revokes` knows both."""
        return self.document.revoked

    @property
    def scope(self) -> Scope:
        """Which certificates it covers."""
        return self.document.scope

    def revokes(self, serial: int) -> bool:
        """True if this serial number is revoked by this list and its delta (RFC 5280 section 6.3.3, steps i and j)."""
        if self.delta is not None:
            if serial in self.delta.document.restored:
                return False
            if serial in self.delta.document.revoked:
                return True
        return serial in self.document.revoked

    def covers(self, certificate: x509.Certificate) -> bool:
        """True if the list speaks about this certificate of its issuer (RFC 5280 section 6.3.3, step b).

        A list bound to a distribution point covers only certificates that name the same one.
        """
        scope = self.scope
        if scope.unsupported:
            return False
        if scope.user_only or scope.authority_only:
            is_authority = certificates.is_authority(certificate)
            if is_authority == scope.user_only:
                return False
        if not scope.names and scope.relative is None:
            return True
        return _point_matches(scope, certificate)

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
        for source in (self.delta, self):
            if source is not None and serial in source.document.revoked:
                found = _crl.entry_text(source.document, serial)
                if found is None:
                    break
                return f"on {utc_text(found[0])}{f' ({found[1]})' if found[1] else ''}"
        return "at a time that the list states"


def _point_matches(scope: Scope, certificate: x509.Certificate) -> bool:
    """RFC 5280 section 6.3.3 step b 2 i: a name of the list's distribution point is one of the certificate's."""
    wanted = _point_names(scope.names, scope.relative, certificate.issuer)
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return False
    for point in points:
        if point.crl_issuer is not None:
            continue  # an indirect list, not supported
        names = _point_names(tuple(point.full_name or ()), point.relative_name, certificate.issuer)
        if any(_same_general_name(one, other) for one in wanted for other in names):
            return True
    return False


def _point_names(
    full: Iterable[x509.GeneralName], relative: x509.RelativeDistinguishedName | None, issuer: x509.Name
) -> tuple[x509.GeneralName, ...]:
    if relative is None:
        return tuple(full)
    return (*full, x509.DirectoryName(x509.Name([*issuer.rdns, relative])))


def _same_general_name(one: x509.GeneralName, other: x509.GeneralName) -> bool:
    if isinstance(one, x509.DirectoryName) and isinstance(other, x509.DirectoryName):
        return same_name(one.value, other.value)
    return one == other


def parse_crl(data: bytes, *, entries: bool = True) -> CrlDocument:
    """Read a PEM or DER list. Raises ValidationError CRL_INVALID. Verifies nothing.

    Without `entries` it is for comparing with another one only: it seems to revoke nobody.
    """
    return _crl.read_document(data, entries=entries)


def verify_crl(
    crl: CrlDocument | x509.CertificateRevocationList,
    signer: x509.Certificate,
    *,
    delta: bool = False,
    allow_weak: bool = False,
) -> RevocationList:
    """Check that the list is its authority's and understood. Raises ValidationError CRL_INVALID.

    `signer` is a certificate of the authority: its own, or one of the same name that may sign lists (RFC 5280 section
    6.3.3 step f). Indirect lists and lists for some reasons only are refused: taken for complete they would hide
    revocations. So is a delta list, unless asked for, and one made with SHA-1 or MD5, unless weak ones are allowed.
    Does not compare times: see `security.validation`.
    """
    document = crl if isinstance(crl, CrlDocument) else parse_crl(_crl.der_of(crl))
    name = DistinguishedName.from_x509(document.issuer)
    facts = {"check": "revocation list", "issuer": str(name), "lastUpdate": utc_text(document.last_update)}
    if not same_name(document.issuer, signer.subject):
        raise invalid(f"the revocation list of {name} is not from {certificates.subject_of(signer)}", facts)
    if not certificates.may_sign_lists(signer):
        raise invalid(f"the authority {name} has no right to sign revocation lists (keyUsage)", facts)
    if document.digest_name in _WEAK_HASHES and not allow_weak:
        raise invalid(f"the revocation list of {name} is signed with {document.digest_name}, a broken digest", facts)
    if not _signed_by(document, certificates.public_key_of(signer, "revocation list")):
        raise invalid(f"the revocation list of {name} is not signed with that authority's key", facts)
    if delta != (document.base_number is not None):
        kind = "not a delta list" if delta else "a delta list, which is good only beside a complete one"
        raise invalid(f"the revocation list of {name} is {kind}", facts)
    if document.problem:
        raise invalid(f"the revocation list of {name} has {document.problem}", facts)
    if document.scope.unsupported:
        raise invalid(
            f"the revocation list of {name} covers only a part of its certificates: {document.scope.unsupported}", facts
        )
    return RevocationList(name, document.number, document.last_update, document.next_update, document)


def signed_by(document: CrlDocument, signer: x509.Certificate) -> bool:
    """True if the key of this certificate signed the list and may do so; nothing else is looked at."""
    try:
        key = certificates.public_key_of(signer, "revocation list")
    except SecurityError:
        return False
    return certificates.may_sign_lists(signer) and _signed_by(document, key)


def _signed_by(document: CrlDocument, key: certificates.PublicKey) -> bool:
    algorithm = _HASHES.get(document.digest_name) or _WEAK_HASHES.get(document.digest_name)
    if algorithm is None:
        return False
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if document.padding is None:
                return False
            key.verify(document.signature, document.digest, document.padding, Prehashed(algorithm))
        else:
            if document.padding is not None:
                return False
            key.verify(document.signature, document.digest, ec.ECDSA(Prehashed(algorithm)))
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def is_delta(revocation_list: RevocationList) -> bool:
    """True for a list that only completes another one."""
    return revocation_list.document.base_number is not None


def complete(base: RevocationList, deltas: Iterable[RevocationList], now: datetime) -> RevocationList:
    """`base` with the newest of these verified delta lists that belongs to it (RFC 5280 section 5.2.4) and is current.

    It belongs if it has the same scope, builds upon this base or an older one, and is newer.
    """
    best: RevocationList | None = None
    for delta in deltas:
        start = delta.document.base_number
        if start is None or base.number is None or delta.number is None or delta.scope != base.scope:
            continue
        if not start <= base.number < delta.number or delta.expired(now) or delta.last_update > now:
            continue
        if best is None or best.older_than(delta):
            best = delta
    return replace(base, delta=best) if best is not None else base
