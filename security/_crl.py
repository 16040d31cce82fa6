"""Reading a certificate revocation list (RFC 5280 section 5) of any size: bounded, strict, an index instead of objects.

A list of a million entries is 35 MB. Every step works on small pieces, so that a thread that reads one never keeps
the interpreter from the event loop for long: hashes and base64 by pieces, entries one by one, no sort over all of them.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from security import _der, certificates
from security.errors import Reason, ValidationError

MAX_CRL_BYTES = 128 * 1024 * 1024
"""Two million entries in PEM. The largest list of a grid authority is about 1 MB."""
KEPT_ENTRY_BYTES = 4 * 1024 * 1024
"""Entries of larger lists are not kept for telling when and why: their index is enough for the decision."""
MAX_SERIAL_BYTES = 48
"""RFC 5280 section 5.1.2.6 allows 20; some authorities had a few more."""
_PIECE = 1 << 20
_PEM_PIECE = 48 * 1024
_INTEGER, _BIT_STRING, _SEQUENCE, _EXTENSIONS = 0x02, 0x03, 0x30, 0xA0
_TIMES = frozenset({0x17, 0x18})
_PADDING = frozenset({0x00, 0xFF})
_WIDTH = 21
"""Bytes of a row of the index: 20 and one for the sign."""

_PEM_BEGIN, _PEM_END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_KNOWN_ENTRY_EXTENSIONS = frozenset({CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE})
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.CRL_NUMBER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.DELTA_CRL_INDICATOR,
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
    }
)


class SerialIndex:
    """A set of serial numbers in about 25 bytes each: up to 16384 small tables by hash, searched by the C library."""

    __slots__ = ("_count", "_long", "_mask", "_tables")

    def __init__(self, serials: Iterable[bytes] = (), *, expected: int = 0) -> None:
        """From the contents of DER INTEGERs; `expected`: about how many there will be."""
        self._mask = (1 << min(14, (expected // 64).bit_length())) - 1
        self._tables = [bytearray() for _ in range(self._mask + 1)]
        self._long: set[bytes] = set()
        self._count = 0
        for serial in serials:
            self.add(serial)

    def add(self, serial: bytes) -> None:
        """Take in one more, in the form of a DER INTEGER's content."""
        self._count += 1
        row = serial.rjust(_WIDTH, b"\xff" if serial[0] & 0x80 else b"\0")
        if len(row) == _WIDTH:
            self._tables[hash(row) & self._mask] += row
        else:
            self._long.add(serial)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, serial: object) -> bool:
        if not isinstance(serial, int):
            return False
        bits = (serial if serial >= 0 else ~serial).bit_length()
        if bits >= 8 * _WIDTH:
            return bool(self._long) and serial.to_bytes(bits // 8 + 1, "big", signed=True) in self._long
        row = serial.to_bytes(_WIDTH, "big", signed=True)
        table = self._tables[hash(row) & self._mask]
        at = table.find(row)
        while at % _WIDTH and at > 0:
            at = table.find(row, at + 1)
        return at >= 0

    def serials(self) -> frozenset[int]:
        """Every number. For small lists: it makes an object of each."""
        rows = (bytes(table[at : at + _WIDTH]) for table in self._tables for at in range(0, len(table), _WIDTH))
        return frozenset(int.from_bytes(row, "big", signed=True) for row in (*rows, *self._long))


@dataclass(frozen=True)
class Scope:
    """Which certificates of its issuer a list covers (RFC 5280 section 5.2.5, IssuingDistributionPoint)."""

    names: tuple[x509.GeneralName, ...] = ()
    """Of the distribution point; empty: not bound to one."""
    relative: x509.RelativeDistinguishedName | None = None
    user_only: bool = False
    authority_only: bool = False
    unsupported: str = ""
    """Why nothing may be concluded from such a list, or empty."""

    @property
    def is_whole(self) -> bool:
        """True if the list covers every certificate of its issuer."""
        return self == Scope()


@dataclass(frozen=True)
class CrlDocument:
    """A list as it was read; nothing of it is verified."""

    issuer: x509.Name
    number: int | None
    base_number: int | None
    """For a delta list, the number of the list that it completes (RFC 5280 section 5.2.4)."""
    last_update: datetime
    next_update: datetime | None
    key_identifier: bytes | None
    scope: Scope
    problem: str
    """A critical extension not understood, of the list or of an entry, or empty."""
    revoked: SerialIndex = field(repr=False)
    restored: frozenset[int] = field(repr=False)
    """Of a delta list: removeFromCRL."""
    fingerprint: bytes = field(repr=False)
    """SHA-256 of the DER form."""
    digest: bytes = field(repr=False)
    digest_name: str
    padding: padding.PKCS1v15 | padding.PSS | None = field(repr=False)
    """None for ECDSA."""
    signature: bytes = field(repr=False)
    entries: bytes = field(repr=False)
    """DER of the entries, empty for a large list."""


def invalid(sentence: str, facts: dict[str, str] | None = None) -> ValidationError:
    """The error for a list that cannot be relied upon."""
    return ValidationError(
        Reason.CRL_INVALID,
        f"{sentence}; fetch the list again from its authority",
        {"check": "revocation list", **(facts or {})},
    )


def to_der(data: bytes) -> bytes:
    """The DER form of a PEM or DER list. Raises ValidationError CRL_INVALID."""
    if len(data) > MAX_CRL_BYTES:
        raise invalid(f"the revocation list is larger than {MAX_CRL_BYTES} bytes")
    begin = data.find(_PEM_BEGIN, 0, 65536)
    if begin < 0:
        return data
    start, end = begin + len(_PEM_BEGIN), data.find(_PEM_END, begin)
    if end < 0:
        raise invalid("the revocation list cannot be read (its last line is missing)")
    pieces: list[bytes] = []
    rest = b""
    try:
        while start < end:
            raw = rest + b"".join(data[start : min(start + _PIECE, end)].split())
            start += _PIECE
            whole = len(raw) if start >= end else len(raw) // 4 * 4
            pieces.append(binascii.a2b_base64(raw[:whole], strict_mode=True))
            rest = raw[whole:]
    except binascii.Error as error:
        raise invalid(f"the revocation list cannot be read ({error})") from error
    return b"".join(pieces)


def to_pem(der: bytes) -> bytes:
    """PEM as Globus, VOMS and curl read it: lines of 64 characters."""
    pieces = [_PEM_BEGIN]
    for start in range(0, len(der), _PEM_PIECE):
        text = binascii.b2a_base64(der[start : start + _PEM_PIECE], newline=False)
        pieces.append(b"\n".join(text[at : at + 64] for at in range(0, len(text), 64)))
    return b"\n".join([*pieces, _PEM_END, b""])


def read_document(data: bytes, *, entries: bool = True) -> CrlDocument:
    """Read a PEM or DER list; without its entries where only its age and signature matter.

    Raises ValidationError CRL_INVALID.
    """
    der = to_der(data)
    try:
        return _read(der, entries)
    except (*certificates.UNREADABLE, IndexError) as error:
        raise invalid(f"the revocation list cannot be read ({error})") from error


def _span(data: bytes, position: int, limit: int) -> tuple[int, int, int]:
    """Tag, start of the content and end of the element at `position`."""
    if position + 2 > limit:
        raise _der.DerError("truncated element")
    length, start = data[position + 1], position + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or start + count > limit:
            raise _der.DerError("bad length")
        length = int.from_bytes(data[start : start + count], "big")
        if length < 0x80 or length < 1 << 8 * (count - 1):
            raise _der.DerError("length is not in its shortest form")
        start += count
    if start + length > limit:
        raise _der.DerError("truncated element")
    return data[position], start, start + length


def _read(der: bytes, with_entries: bool) -> CrlDocument:
    tag, start, end = _span(der, 0, len(der))
    if tag != _SEQUENCE or end != len(der):
        raise _der.DerError("not one sequence")
    tbs_tag, tbs_start, tbs_end = _span(der, start, end)
    if tbs_tag != _SEQUENCE:
        raise _der.DerError("no list to be signed")
    entries_at, entries_start, entries_end = _entries(der, tbs_start, tbs_end)
    head = der[tbs_start:entries_at] + der[entries_end:tbs_end]
    small = _der.encode(_SEQUENCE, _der.encode(_SEQUENCE, head) + der[tbs_end:end])
    header = x509.load_der_x509_crl(small)  # the same list without its entries: reads names, times and extensions
    algorithm, last = _span(der, tbs_end, end)[2], _span(der, _span(der, tbs_end, end)[2], end)
    if last[0] != _BIT_STRING or last[2] != end or der[tbs_end:algorithm] not in head:
        raise _der.DerError("two signature algorithms, or none")
    hash_algorithm = header.signature_hash_algorithm
    if hash_algorithm is None:
        raise _der.DerError("no digest in the signature algorithm")
    digest = hashlib.new(hash_algorithm.name)
    whole = hashlib.sha256()
    for at in range(0, end, _PIECE):
        whole.update(der[at : at + _PIECE])
    for at in range(start, tbs_end, _PIECE):
        digest.update(der[at : min(at + _PIECE, tbs_end)])
    number, base_number, key_identifier, scope, problem = _extensions(header)
    if not with_entries:
        entries_start = entries_end
    serials, restored, entry_problem = _serials(der, entries_start, entries_end, delta=base_number is not None)
    large = entries_end - entries_start > KEPT_ENTRY_BYTES
    return CrlDocument(
        issuer=header.issuer,
        number=number,
        base_number=base_number,
        last_update=header.last_update_utc,
        next_update=header.next_update_utc,
        key_identifier=key_identifier,
        scope=scope,
        problem=problem or entry_problem,
        revoked=serials,
        restored=restored,
        fingerprint=whole.digest(),
        digest=digest.digest(),
        digest_name=hash_algorithm.name,
        padding=_padding(header),
        signature=header.signature,
        entries=b"" if large else der[entries_start:entries_end],
    )


def _padding(header: x509.CertificateRevocationList) -> padding.PKCS1v15 | padding.PSS | None:
    oid = header.signature_algorithm_oid.dotted_string
    if oid == _PSS:
        parameters = header.signature_algorithm_parameters
        return parameters if isinstance(parameters, padding.PSS) else None
    return padding.PKCS1v15() if oid.startswith(_PKCS1) else None


_PKCS1, _PSS = "1.2.840.113549.1.1.", "1.2.840.113549.1.1.10"
"""RFC 8017: the algorithms of RSA."""


def _entries(der: bytes, start: int, end: int) -> tuple[int, int, int]:
    """Where the element revokedCertificates begins, its content and its end; three times the same if there is none."""
    position = start
    tag, _, after = _span(der, position, end)
    if tag == _INTEGER:  # version
        position = after
    for expected in (_SEQUENCE, _SEQUENCE):  # algorithm, issuer
        tag, _, position = _span(der, position, end)
        if tag != expected:
            raise _der.DerError("unexpected element before the entries")
    for optional in (False, True):  # thisUpdate, nextUpdate
        tag, _, after = _span(der, position, end) if position < end else (0, 0, 0)
        if tag in _TIMES:
            position = after
        elif not optional:
            raise _der.DerError("no thisUpdate")
    if position < end and der[position] == _SEQUENCE:
        _, content, after = _span(der, position, end)
        return position, content, after
    return position, position, position


def _serials(der: bytes, start: int, end: int, *, delta: bool) -> tuple[SerialIndex, frozenset[int], str]:
    """The serial numbers of the entries, those that a delta list restores, and what is not understood."""
    found = SerialIndex(expected=(end - start) // 36)  # bytes of an entry with a reason
    add = found.add
    restored: set[int] = set()
    seen: dict[bytes, tuple[bool, str]] = {}
    problem = ""
    position = start
    while position < end:
        tag, length = der[position], der[position + 1]
        inner, after = position + 2, position + 2 + length
        if length >= 0x80:  # only entries with long extensions
            tag, inner, after = _span(der, position, end)
        length = der[inner + 1]
        time = inner + 2 + length
        if tag != _SEQUENCE or after > end or der[inner] != _INTEGER or not 0 < length <= MAX_SERIAL_BYTES:
            raise _der.DerError("an entry is malformed")
        rest = time + 2 + der[time + 1]
        if der[time] not in _TIMES or rest > after:
            raise _der.DerError("an entry has no date")
        serial = der[inner + 2 : time]
        if length > 1 and serial[0] in _PADDING and serial[0] & 0x80 == serial[1] & 0x80:
            raise _der.DerError("a serial number is not in its shortest form")
        position = after
        if rest < after:
            encoded = der[rest:after]
            known = seen.get(encoded)
            if known is None:
                known = _entry_extensions(encoded)
                if len(seen) < 4096:
                    seen[encoded] = known
            problem = problem or known[1]
            if known[0]:
                if delta:
                    restored.add(int.from_bytes(serial, "big", signed=True))
                    continue
                problem = problem or "removeFromCRL in a list that is not a delta list"
        add(serial)
    return found, frozenset(restored), problem


def _entry_extensions(encoded: bytes) -> tuple[bool, str]:
    """Of one entry: whether it is removeFromCRL, and the first critical extension that is not understood."""
    removed, problem = False, ""
    for extension in _der.read_all(_der.read_single(encoded, _SEQUENCE).content):
        parts = _der.read_all(extension.content)
        if len(parts) not in (2, 3) or parts[0].tag != _der.OBJECT_IDENTIFIER or parts[-1].tag != _der.OCTET_STRING:
            raise _der.DerError("an extension of an entry is malformed")
        oid = _der.object_identifier(parts[0].content)
        if oid == CRLEntryExtensionOID.CRL_REASON.dotted_string:
            removed = parts[-1].content == b"\x0a\x01\x08"
        critical = len(parts) == 3 and parts[1].content != b"\0"
        if critical and x509.ObjectIdentifier(oid) not in _KNOWN_ENTRY_EXTENSIONS:
            problem = problem or f"an entry with the critical extension {oid}, not understood"
    return removed, problem


def _extensions(header: x509.CertificateRevocationList) -> tuple[int | None, int | None, bytes | None, Scope, str]:
    number: int | None = None
    base_number: int | None = None
    key_identifier: bytes | None = None
    scope, problem = Scope(), ""
    for extension in header.extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
        elif isinstance(value, x509.DeltaCRLIndicator):
            base_number = value.crl_number
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            key_identifier = value.key_identifier
        elif isinstance(value, x509.IssuingDistributionPoint):
            scope = _scope(value)
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            problem = f"the critical extension {extension.oid.dotted_string}, not understood"
    return number, base_number, key_identifier, scope, problem


def _scope(point: x509.IssuingDistributionPoint) -> Scope:
    unsupported = ""
    if point.indirect_crl:
        unsupported = "it is an indirect list, with certificates of other authorities"
    elif point.only_some_reasons is not None:
        unsupported = "it covers some reasons of revocation only"
    elif point.only_contains_attribute_certs:
        unsupported = "it covers attribute certificates only"
    return Scope(
        names=tuple(point.full_name or ()),
        relative=point.relative_name,
        user_only=point.only_contains_user_certs,
        authority_only=point.only_contains_ca_certs,
        unsupported=unsupported,
    )


def entry_text(document: CrlDocument, serial: int) -> tuple[datetime, str] | None:
    """When this serial number was revoked and why, None where the list is too large to have been kept."""
    position, end = 0, len(document.entries)
    width = max(1, (serial if serial >= 0 else ~serial).bit_length() // 8 + 1)
    wanted = _der.encode(_INTEGER, serial.to_bytes(width, "big", signed=True))
    while position < end:
        _, inner, after = _span(document.entries, position, end)
        if document.entries.startswith(wanted, inner):
            return _when_and_why(document.entries[inner + len(wanted) : after])
        position = after
    return None


def _when_and_why(rest: bytes) -> tuple[datetime, str]:
    date, *extensions = _der.read_all(rest)
    text = date.content.decode("ascii")
    if date.tag == 0x17:  # RFC 5280 section 4.1.2.5.1: two digits, 50 and above are 19xx
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    moment = datetime.strptime(text.removesuffix("Z") + "+0000", "%Y%m%d%H%M%S%z")
    for block in extensions:
        for extension in _der.read_all(block.content):
            parts = _der.read_all(extension.content)
            if _der.object_identifier(parts[0].content) == CRLEntryExtensionOID.CRL_REASON.dotted_string:
                return moment, _REASONS.get(parts[-1].content[-1], "")
    return moment, ""


_REASONS = {
    0: "unspecified", 1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged", 4: "superseded",
    5: "cessationOfOperation", 6: "certificateHold", 8: "removeFromCRL", 9: "privilegeWithdrawn", 10: "aACompromise",
}  # fmt: skip
"""RFC 5280 section 5.3.1."""


def der_of(crl: x509.CertificateRevocationList) -> bytes:
    """The DER form of a list that `cryptography` holds."""
    return crl.public_bytes(Encoding.DER)
