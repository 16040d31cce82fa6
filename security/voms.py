"""VOMS attribute certificates (RFC 5755 as VOMS uses it): read, verified against a vomsdir, and made.

They travel in a proxy's extension 1.3.6.1.4.1.8005.100.100.5. Verified are: the signature, the signer's chain with
the full rules of `security.validation`, the signer's names against the VO's `.lsc` files, the holder, the times and,
where it is for some hosts only, that this is one of them.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from security import _der, certificates
from security.credentials import Credential
from security.errors import Reason, SecurityError, ValidationError, os_error_text, require_utc, utc_text
from security.files import read_bounded
from security.names import DistinguishedName
from security.trust import TrustSnapshot
from security.validation import Identity, ValidationPolicy, validate_chain

ATTRIBUTE_CERTIFICATES_OID = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
_FQANS_OID = "1.3.6.1.4.1.8005.100.100.4"
_SIGNER_CHAIN_OID = "1.3.6.1.4.1.8005.100.100.10"
_NO_REVOCATION_OID = "2.5.29.56"
_AUTHORITY_KEY_OID = "2.5.29.35"
_TARGETS_OID = "2.5.29.55"
_GENERIC_ATTRIBUTES_OID = "1.3.6.1.4.1.8005.100.100.11"
_KNOWN_CRITICAL = frozenset(
    {_SIGNER_CHAIN_OID, _NO_REVOCATION_OID, _AUTHORITY_KEY_OID, _GENERIC_ATTRIBUTES_OID, _TARGETS_OID}
)

MAX_EXTENSION_BYTES = 64 * 1024
MAX_ATTRIBUTE_CERTIFICATES = 8
"""Virtual organisations in one proxy."""
MAX_FQANS = 256
MAX_GENERIC_ATTRIBUTES = 64
MAX_TARGETS = 64
MAX_ATTRIBUTE_BYTES = 1024
"""Of a generic attribute's name, value or qualifier."""
MAX_LSC_BYTES = 64 * 1024
MAX_LIFETIME = timedelta(days=7)
"""Longest life accepted; VOMS servers give 12 to 24 hours."""

_DIGESTS: Mapping[str, tuple[type[hashes.HashAlgorithm], bool]] = {
    "1.2.840.113549.1.1.11": (hashes.SHA256, True),
    "1.2.840.113549.1.1.12": (hashes.SHA384, True),
    "1.2.840.113549.1.1.13": (hashes.SHA512, True),
    "1.2.840.10045.4.3.2": (hashes.SHA256, False),
    "1.2.840.10045.4.3.3": (hashes.SHA384, False),
    "1.2.840.10045.4.3.4": (hashes.SHA512, False),
}
"""Signature algorithm: its digest, and whether it is RSA (else ECDSA)."""
_FQAN = re.compile(r"(?P<group>(?:/[A-Za-z0-9_.-]{1,100}){1,16})(?:/Role=(?P<role>[A-Za-z0-9_.-]{1,100}))?\Z")
_VO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class GenericAttribute:
    """A name and a value that a VO gives a member, such as a nickname. `qualifier` is the group it comes from."""

    name: str
    value: str
    qualifier: str = ""


@dataclass(frozen=True)
class AttributeCertificate:
    """One attribute certificate as it was read; nothing of it is verified."""

    vo: str
    uri: str
    """host:port of the server."""
    fqans: tuple[str, ...]
    """In the user's order, the first is the primary one; `Role=NULL` and `Capability=...` left out."""
    holder_issuer: DistinguishedName
    holder_serial: int
    issuer: DistinguishedName
    serial: int
    not_before: datetime
    not_after: datetime
    attributes: tuple[GenericAttribute, ...]
    targets: tuple[str, ...] | None
    """The hosts that may take it, in small letters; empty texts for targets that name no host. None: any."""
    signer_chain: tuple[x509.Certificate, ...] = field(repr=False)
    signed: bytes = field(repr=False)
    algorithm: str = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class VomsAttributes:
    """Verified membership: what a VO says of an identity until `not_after`."""

    vo: str
    fqans: tuple[str, ...]
    issuer: DistinguishedName
    uri: str
    not_after: datetime
    attributes: tuple[GenericAttribute, ...] = ()
    serial: int = 0
    signers: tuple[x509.Certificate, ...] = field(default=(), repr=False, compare=False)
    """The path of the VO server that signed it."""


@dataclass(frozen=True)
class VomsDirectory:
    """Which signers speak for which VO: chains of names (signer, its authority, ...), from `<vo>/<host>.lsc` files."""

    chains: Mapping[str, tuple[tuple[DistinguishedName, ...], ...]]
    refused: Mapping[str, SecurityError] = field(default_factory=dict[str, SecurityError])
    """VOs of which nothing is believed, whoever signed it, and why."""
    hosts: frozenset[str] = frozenset()
    """Names of this host, in small letters: what is for some hosts only must be for one of them."""

    @classmethod
    def load(cls, directory: str | Path) -> VomsDirectory:
        """Read a vomsdir. An unreadable file speaks for nobody. Raises ValidationError when there is no directory."""
        found: dict[str, tuple[tuple[DistinguishedName, ...], ...]] = {}
        try:
            folders = sorted(path for path in Path(directory).iterdir() if path.is_dir() and _VO.match(path.name))
        except OSError as error:
            raise ValidationError(
                Reason.ATTRIBUTE_INVALID,
                f"the directory of VOMS servers {directory} cannot be read ({os_error_text(error)}); set X509_VOMS_DIR",
                {"check": "vomsdir", "path": str(directory)},
            ) from error
        for folder in folders:
            chains: list[tuple[DistinguishedName, ...]] = []
            for path in sorted(folder.glob("*.lsc")):
                try:
                    chains += parse_lsc(read_bounded(path, MAX_LSC_BYTES).decode())
                except (OSError, UnicodeDecodeError, SecurityError):
                    continue
            found[folder.name] = tuple(chains)
        return cls(found)


def parse_lsc(text: str) -> list[tuple[DistinguishedName, ...]]:
    """Chains of an `.lsc` file: signer, then its issuers, one name a line; chains divided by a line of dashes.

    The C client wants subject and issuer of every certificate, so that an intermediate authority stands there twice.
    """
    chains: list[list[DistinguishedName]] = [[]]
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("---"):
            chains.append([])
        elif stripped and not stripped.startswith("#"):
            name = DistinguishedName.parse(stripped.strip('"'))
            if name not in chains[-1][-1:]:
                chains[-1].append(name)
    return [tuple(chain) for chain in chains if len(chain) >= 2]


def lsc_text(chain: Sequence[DistinguishedName]) -> str:
    """An `.lsc` file for a signer and its issuers, for our tools and the C ones of every age.

    They compare with OpenSSL's one-line form, where versions since 2023 write a slash inside a value as `\\/`; so the
    chain stands there in both spellings, and for an intermediate authority subject and issuer of each certificate.
    """
    names = [name for pair in itertools.pairwise(chain) for name in pair]
    spellings = dict.fromkeys("".join(f"{spell(name)}\n" for name in names) for spell in (_oneline, _oneline_escaped))
    return "------ NEXT CHAIN ------\n".join(spellings)


def _oneline(name: DistinguishedName) -> str:
    return name.openssl_oneline()


def _oneline_escaped(name: DistinguishedName) -> str:
    escaped = tuple(tuple((kind, value.replace("/", "\\/")) for kind, value in rdn) for rdn in name.rdns)
    return DistinguishedName(escaped).openssl_oneline()


def _malformed(what: str) -> ValidationError:
    return ValidationError(
        Reason.ATTRIBUTE_INVALID,
        f"a VOMS attribute certificate cannot be read ({what}); run voms-proxy-init again",
        {"check": "attribute certificate"},
    )


def attribute_certificates(certificate: x509.Certificate) -> tuple[AttributeCertificate, ...]:
    """The attribute certificates that a proxy carries, unverified. Raises ValidationError ATTRIBUTE_INVALID."""
    for extension in certificate.extensions:
        if extension.oid == ATTRIBUTE_CERTIFICATES_OID and isinstance(extension.value, x509.UnrecognizedExtension):
            return parse_extension(extension.value.value)
    return ()


def parse_extension(data: bytes) -> tuple[AttributeCertificate, ...]:
    """Read the extension's value: SEQUENCE { SEQUENCE OF AttributeCertificate }. Raises ValidationError."""
    if len(data) > MAX_EXTENSION_BYTES:
        raise _malformed(f"more than {MAX_EXTENSION_BYTES} bytes")
    try:
        listed = _der.read_all(_der.read_single(_der.read_single(data, _der.SEQUENCE).content, _der.SEQUENCE).content)
        if not 1 <= len(listed) <= MAX_ATTRIBUTE_CERTIFICATES:
            raise _der.DerError(f"{len(listed)} certificates")
        return tuple(_parse(_expect(element, _der.SEQUENCE)) for element in listed)
    except ValidationError:
        raise
    except (SecurityError, ValueError, IndexError, TypeError) as error:
        raise _malformed(str(error)[:100]) from error


def _expect(element: _der.Element, tag: int) -> list[_der.Element]:
    if element.tag != tag:
        raise _der.DerError(f"tag {element.tag:#x} where {tag:#x} was expected")
    return _der.read_all(element.content)


def _parse(parts: list[_der.Element]) -> AttributeCertificate:
    information, algorithm, signature = parts
    fields = _expect(information, _der.SEQUENCE)
    version, holder, issuer, inner_algorithm, serial, validity, attributes, *rest = fields
    if version.tag != _der.INTEGER or _der.integer(version.content) != 1:
        raise _der.DerError("not version 2")
    if algorithm.encoded != inner_algorithm.encoded or signature.tag != 0x03 or signature.content[:1] != b"\0":
        raise _der.DerError("signature")
    base, *_ = _expect(holder, _der.SEQUENCE)
    holder_names, holder_serial, *_ = _expect(base, 0xA0)
    (issuer_names,) = _expect(issuer, 0xA0)
    start, end = _expect(validity, _der.SEQUENCE)
    uri, fqans = _fqans(attributes)
    vo = uri.partition("://")[0]
    server = uri.partition("://")[2]
    if not _VO.match(vo) or not server:
        raise _der.DerError("no VO name")
    chain: tuple[x509.Certificate, ...] = ()
    generic: tuple[GenericAttribute, ...] = ()
    targets: tuple[str, ...] | None = None
    for oid, critical, value in _extensions(rest):
        if oid == _SIGNER_CHAIN_OID:
            outer = _der.read_single(value, _der.SEQUENCE)
            encoded = _der.read_all(_der.read_single(outer.content, _der.SEQUENCE).content)
            chain = certificates.load_chain([certificates.load_der(e.encoded) for e in encoded[:8]])
        elif oid == _GENERIC_ATTRIBUTES_OID:
            generic = _generic_attributes(value)
        elif oid == _TARGETS_OID:
            targets = (*(targets or ()), *_targets(value))
        elif critical and oid not in _KNOWN_CRITICAL:
            raise _der.DerError(f"extension {oid} is not understood")
    return AttributeCertificate(
        vo=vo,
        uri=server,
        fqans=tuple(normal_fqan(text, vo) for text in fqans),
        holder_issuer=_directory_name(holder_names),
        holder_serial=_der.integer(holder_serial.content),
        issuer=_directory_name(issuer_names),
        serial=_der.integer(serial.content),
        not_before=_time(start),
        not_after=_time(end),
        attributes=generic,
        targets=targets,
        signer_chain=chain,
        signed=information.encoded,
        algorithm=_der.object_identifier(_expect(algorithm, _der.SEQUENCE)[0].content),
        signature=signature.content[1:],
    )


def _fqans(attributes: _der.Element) -> tuple[str, list[str]]:
    """`vo://host:port` and the FQANs of the IetfAttrSyntax value."""
    for attribute in _expect(attributes, _der.SEQUENCE):
        kind, values = _expect(attribute, _der.SEQUENCE)
        if _der.object_identifier(kind.content) != _FQANS_OID:
            continue
        authority, listed = _expect(_expect(values, 0x31)[0], _der.SEQUENCE)
        (name,) = _expect(authority, 0xA0)
        texts = [element.content.decode("ascii") for element in _expect(listed, _der.SEQUENCE)]
        if name.tag != 0x86 or not 1 <= len(texts) <= MAX_FQANS:
            raise _der.DerError("group names")
        return name.content.decode("ascii"), texts
    raise _der.DerError("no group names")


def _generic_attributes(value: bytes) -> tuple[GenericAttribute, ...]:
    """SEQUENCE { SEQUENCE OF { grantor, SEQUENCE OF { name, value, qualifier } } }; text that is not UTF-8 is
    refused."""
    found: list[GenericAttribute] = []
    (providers,) = _expect(_der.read_single(value, _der.SEQUENCE), _der.SEQUENCE)
    for provider in _expect(providers, _der.SEQUENCE):
        _, listed = _expect(provider, _der.SEQUENCE)
        for attribute in _expect(listed, _der.SEQUENCE):
            parts = _expect(attribute, _der.SEQUENCE)
            if len(parts) != 3 or any(
                part.tag != _der.OCTET_STRING or len(part.content) > MAX_ATTRIBUTE_BYTES for part in parts
            ):
                raise _der.DerError("generic attribute")
            found.append(GenericAttribute(*(part.content.decode("utf-8") for part in parts)))
    if len(found) > MAX_GENERIC_ATTRIBUTES:
        raise _der.DerError(f"{len(found)} generic attributes")
    return tuple(found)


def _targets(value: bytes) -> list[str]:
    """SEQUENCE { SEQUENCE { [0] GeneralName ... } ... }: so RFC 5755 section 4.3.2 nests it (one list of targets) and
    so VOMS does (one target in each)."""
    found: list[str] = []
    for group in _expect(_der.read_single(value, _der.SEQUENCE), _der.SEQUENCE):
        for target in _expect(group, _der.SEQUENCE):
            found.append(_host_of(_der.read_all(target.content)[0]) if target.tag == 0xA0 else "")
    if len(found) > MAX_TARGETS:
        raise _der.DerError(f"{len(found)} targets")
    return found


def _host_of(name: _der.Element) -> str:
    """The host of a dNSName, or of a URI, where VOMS writes the bare name; empty for any other name."""
    if name.tag not in (0x82, 0x86):
        return ""
    text = name.content.decode("ascii").lower()
    host = text.partition("://")[2].partition("/")[0].partition(":")[0] if "://" in text else text
    return host if _HOST.match(host) else ""


def _extensions(rest: list[_der.Element]) -> list[tuple[str, bool, bytes]]:
    found: list[tuple[str, bool, bytes]] = []
    for element in rest:
        if element.tag != _der.SEQUENCE:
            continue  # issuerUniqueID
        for extension in _der.read_all(element.content):
            oid, *flags, value = _expect(extension, _der.SEQUENCE)
            critical = bool(flags) and flags[0].content == b"\xff"
            found.append((_der.object_identifier(oid.content), critical, value.content))
    return found


def _directory_name(names: _der.Element) -> DistinguishedName:
    """The one directoryName of a GeneralNames, read by way of a certificate name parser."""
    (name,) = _expect(names, _der.SEQUENCE)
    if name.tag != 0xA4:
        raise _der.DerError("not a directory name")
    return DistinguishedName.from_x509(_name_from_der(name.content))


def _name_from_der(encoded: bytes) -> x509.Name:
    rdns: list[x509.RelativeDistinguishedName] = []
    for rdn in _der.read_all(_der.read_single(encoded, _der.SEQUENCE).content):
        attributes: list[x509.NameAttribute[str]] = []
        for attribute in _expect(rdn, 0x31):
            kind, value = _expect(attribute, _der.SEQUENCE)
            text = value.content.decode(
                "utf-16-be" if value.tag == 0x1E else "latin-1" if value.tag == 0x14 else "utf-8"
            )
            oid = x509.ObjectIdentifier(_der.object_identifier(kind.content))
            attributes.append(x509.NameAttribute(oid, text, _validate=False))
        rdns.append(x509.RelativeDistinguishedName(attributes))
    return x509.Name(rdns)


def _time(element: _der.Element) -> datetime:
    if element.tag != 0x18 or not re.fullmatch(rb"[0-9]{14}Z", element.content):
        raise _der.DerError("time")
    return datetime.strptime(element.content.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def normal_fqan(text: str, vo: str) -> str:
    """`/vo/group/Role=pilot` from any spelling with `Role=NULL` or `Capability=`. Raises ValidationError outside the
    VO."""
    found = _FQAN.match(text.partition("/Capability=")[0])
    if found is None or found["group"].split("/")[1] != vo:
        raise _malformed(f"{text[:80]!r} is not a group of {vo[:40]}")
    role = found["role"]
    return found["group"] if role in (None, "NULL") else f"{found['group']}/Role={role}"


def is_fqan(text: str) -> bool:
    """True for `/vo`, `/vo/group`, `/vo/group/Role=role` as `normal_fqan` writes them."""
    found = _FQAN.match(text)
    return found is not None and "/Capability=" not in text and found["role"] != "NULL"


def is_within(fqan: str, group: str) -> bool:
    """True for the group itself, its subgroups and their roles; for a role only itself. An absent role is no role."""
    plain = fqan.replace("/Capability=NULL", "").removesuffix("/Role=NULL")
    return plain == group or plain.startswith(f"{group}/")


def verify_attributes(
    identity: Identity, servers: VomsDirectory, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
) -> tuple[VomsAttributes, ...]:
    """The verified memberships in an identity's chain (of the proxy nearest the leaf that has any), none without proxy.

    Raises ValidationError ATTRIBUTE_INVALID for the first that is not good in any way; a chain error of the signer
    keeps its own reason (CERTIFICATE_REVOKED ...), and so does a refused VO (VO_DISSOLVED ...).
    """
    now = require_utc(now)
    return tuple(_verify(entry, identity, servers, trust, policy, now) for entry in _carried(identity))


def objections(
    identity: Identity, servers: VomsDirectory, trust: TrustSnapshot, policy: ValidationPolicy, now: datetime
) -> list[str]:
    """For each attribute certificate that `verify_attributes` would look at, why it is not good; empty if it is.

    Raises ValidationError when they cannot be read.
    """
    now = require_utc(now)
    found: list[str] = []
    for entry in _carried(identity):
        try:
            _verify(entry, identity, servers, trust, policy, now)
            found.append("")
        except SecurityError as error:
            found.append(error.sentence)
    return found


def _carried(identity: Identity) -> tuple[AttributeCertificate, ...]:
    """Those of the proxy nearest the leaf that has any."""
    for certificate in identity.certificates[: identity.proxy_depth]:
        if found := attribute_certificates(certificate):
            return found
    return ()


def _verify(
    entry: AttributeCertificate,
    identity: Identity,
    servers: VomsDirectory,
    trust: TrustSnapshot,
    policy: ValidationPolicy,
    now: datetime,
) -> VomsAttributes:
    holder = identity.certificates[identity.proxy_depth]
    facts = {
        "check": "attribute certificate",
        "subject": str(certificates.subject_of(holder)),
        "issuer": str(entry.issuer),
        "serial": certificates.serial_text(abs(entry.serial)),
        "vo": entry.vo,
        "at": utc_text(now),
    }

    def refuse(why: str) -> ValidationError:
        sentence = f"the membership of {certificates.subject_of(holder)} in {entry.vo} is not accepted: {why}"
        return ValidationError(Reason.ATTRIBUTE_INVALID, sentence, facts)

    if entry.vo in servers.refused:
        raise servers.refused[entry.vo]
    # 1. the signer is there, and is whom the attribute certificate names
    if not entry.signer_chain:
        raise refuse("it does not carry its signer's certificate; use a VOMS server of version 2")
    signer = entry.signer_chain[0]
    if certificates.subject_of(signer) != entry.issuer:
        raise refuse(f"it is from {entry.issuer} but carries the certificate of {certificates.subject_of(signer)}")
    # 2. signature
    if not _signed_by(entry, signer):
        raise refuse(f"it is not signed by {entry.issuer}")
    # 3. the signer's chain
    server = validate_chain(entry.signer_chain, trust, policy, now)
    if server.is_proxy:
        raise refuse(f"its signer {server.leaf_subject} is a proxy")
    # 4. the signer speaks for this VO
    chain = [certificates.subject_of(certificate) for certificate in server.certificates]
    chain.append(certificates.issuer_of(server.certificates[-1]))
    if not any(tuple(chain[: len(known)]) == known for known in servers.chains.get(entry.vo, ())):
        raise refuse(f"no .lsc file of {entry.vo} names {entry.issuer}; the site must install it")
    # 5. holder
    # VOMS servers write the holder's own subject where RFC 5755 wants its issuer (voms-proxy-fake without -newformat).
    names = (certificates.issuer_of(holder), certificates.subject_of(holder))
    if entry.holder_issuer not in names or entry.holder_serial != holder.serial_number:
        raise refuse("it was given to another certificate")
    if identity.subject != certificates.subject_of(holder):
        raise refuse("an independent proxy has no right of its maker's, memberships included")
    # 6. time
    if now > entry.not_after:
        raise refuse(f"it expired at {utc_text(entry.not_after)}; run voms-proxy-init again")
    if entry.not_before > now + policy.clock_skew:
        raise refuse(f"it is valid only from {utc_text(entry.not_before)}; check the clocks")
    if entry.not_after - entry.not_before > MAX_LIFETIME:
        raise refuse(f"it lives longer than {MAX_LIFETIME.days} days")
    # 7. targets (RFC 5755 section 4.3.2)
    if entry.targets is not None and not servers.hosts & (set(entry.targets) - {""}):
        hosts = ", ".join(host for host in entry.targets[:10] if host) or "nobody that can be told"
        here = f", not for {', '.join(sorted(servers.hosts))}" if servers.hosts else ""
        raise refuse(f"it is only for {hosts}{here}; name every host that it is for with --target, or none")
    return VomsAttributes(
        entry.vo, entry.fqans, entry.issuer, entry.uri, entry.not_after, entry.attributes, entry.serial,
        server.certificates,
    )  # fmt: skip


def _signed_by(entry: AttributeCertificate, signer: x509.Certificate) -> bool:
    key = certificates.public_key_of(signer, "attribute certificate")
    known = _DIGESTS.get(entry.algorithm)
    if known is None or known[1] != isinstance(key, rsa.RSAPublicKey):
        return False
    digest = known[0]()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(entry.signature, entry.signed, padding.PKCS1v15(), digest)
        else:
            key.verify(entry.signature, entry.signed, ec.ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def create_attribute_certificate(
    signer: Credential,
    holder: x509.Certificate,
    *,
    vo: str,
    uri: str,
    fqans: Sequence[str],
    lifetime: timedelta,
    now: datetime,
    attributes: Sequence[GenericAttribute] = (),
    serial: int | None = None,
    targets: Sequence[str] = (),
) -> bytes:
    """One attribute certificate (DER) for the end-entity certificate `holder`, as a VOMS server makes it.

    `uri` is host:port. Put it into a proxy with `proxy_extension`. It ends with the signer's chain at the latest.
    With `targets` only these hosts take it. Raises ValidationError for FQANs outside the VO, and for what is no host.
    """
    now = require_utc(now)
    if len(targets) > MAX_TARGETS or not all(_HOST.match(host) for host in targets):
        raise _malformed(f"targets are at most {MAX_TARGETS} host names")
    if not _VO.match(vo) or not 1 <= len(fqans) <= MAX_FQANS or lifetime <= timedelta(0):
        raise _malformed("VO name, groups or lifetime")
    sequence, encode = _der.SEQUENCE, _der.encode
    texts: list[str] = []
    for fqan in (normal_fqan(text, vo) for text in fqans):
        texts.append(f"{fqan}{'' if '/Role=' in fqan else '/Role=NULL'}/Capability=NULL")
    rsa_key = isinstance(signer.key, rsa.RSAPrivateKey)
    algorithm = encode(
        sequence,
        _der.encode_object_identifier("1.2.840.113549.1.1.11" if rsa_key else "1.2.840.10045.4.3.2")
        + (b"\x05\x00" if rsa_key else b""),
    )
    listed = encode(sequence, b"".join(encode(_der.OCTET_STRING, text.encode("ascii")) for text in texts))
    syntax = encode(sequence, encode(0xA0, encode(0x86, f"{vo}://{uri}".encode("ascii"))) + listed)
    attribute = encode(sequence, _der.encode_object_identifier(_FQANS_OID) + encode(0x31, syntax))
    chain = encode(sequence, encode(sequence, b"".join(certificates.der(c) for c in signer.certificates)))
    extensions = _extension(_SIGNER_CHAIN_OID, chain) + _extension(_NO_REVOCATION_OID, b"\x05\x00")
    extensions += _authority_key(signer.certificate)
    if attributes:
        extensions += _generic_extension(attributes, f"{vo}://{uri}")
    if targets:
        extensions += _targets_extension(targets)
    information = encode(
        sequence,
        _der.encode_integer(1)
        + encode(
            sequence,
            encode(0xA0, _general_names(holder.issuer) + _der.encode_integer(holder.serial_number)),
        )
        + encode(0xA0, _general_names(signer.certificate.subject))
        + algorithm
        + _der.encode_integer(new_serial() if serial is None else serial)
        + encode(sequence, _general_time(now) + _general_time(min(now + lifetime, signer.not_after)))
        + encode(sequence, attribute)
        + encode(sequence, extensions),
    )
    return encode(sequence, information + algorithm + encode(0x03, b"\0" + signer.sign(information)))


def proxy_extension(attribute_certificate_ders: Sequence[bytes]) -> x509.UnrecognizedExtension:
    """The extension that carries these attribute certificates, for `create_proxy(extensions=...)`."""
    content = _der.encode(_der.SEQUENCE, _der.encode(_der.SEQUENCE, b"".join(attribute_certificate_ders)))
    return x509.UnrecognizedExtension(ATTRIBUTE_CERTIFICATES_OID, content)


def _general_names(name: x509.Name) -> bytes:
    return _der.encode(_der.SEQUENCE, _der.encode(0xA4, name.public_bytes()))


def _general_time(moment: datetime) -> bytes:
    return _der.encode(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _extension(oid: str, value: bytes) -> bytes:
    return _der.encode(_der.SEQUENCE, _der.encode_object_identifier(oid) + _der.encode(_der.OCTET_STRING, value))


def _authority_key(signer: x509.Certificate) -> bytes:
    """The key that signed, by its SHA-1 (RFC 5280 section 4.2.1.2): what the C client compares, whatever the signer's
    own extensions say."""
    key = certificates.public_key_of(signer, "attribute certificate")
    return _extension(_AUTHORITY_KEY_OID, x509.AuthorityKeyIdentifier.from_issuer_public_key(key).public_bytes())


def _generic_extension(attributes: Sequence[GenericAttribute], grantor: str) -> bytes:
    sequence, encode = _der.SEQUENCE, _der.encode
    listed = b""
    for attribute in attributes:
        parts = (attribute.name, attribute.value, attribute.qualifier)
        listed += encode(sequence, b"".join(encode(_der.OCTET_STRING, part.encode()) for part in parts))
    provider = encode(sequence, encode(sequence, encode(0x86, grantor.encode("ascii"))) + encode(sequence, listed))
    return _extension(_GENERIC_ATTRIBUTES_OID, encode(sequence, encode(sequence, provider)))


def _targets_extension(targets: Sequence[str]) -> bytes:
    """Critical, as RFC 5755 wants it; each host as VOMS writes and reads it."""
    sequence, encode = _der.SEQUENCE, _der.encode
    listed = b"".join(
        encode(sequence, encode(0xA0, encode(0x86, host.lower().encode("ascii")))) for host in dict.fromkeys(targets)
    )
    value = encode(_der.OCTET_STRING, encode(sequence, listed))
    return encode(sequence, _der.encode_object_identifier(_TARGETS_OID) + encode(0x01, b"\xff") + value)


def new_serial() -> int:
    """A serial number for an attribute certificate: 95 random bits, so below the 20 octets that are allowed."""
    return secrets.randbits(95) | 1
