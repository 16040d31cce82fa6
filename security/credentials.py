"""A private key with its certificate and chain: loading, saving, finding, signing.

File layout as Globus writes it: certificate, PKCS#8 key, chain without the authority (grid-proxy-init 7.3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from security import certificates
from security.certificates import PrivateKey
from security.errors import CredentialError, Reason, ValidationError
from security.files import read_bounded, read_private, unusable, write_atomic
from security.names import DistinguishedName

MAX_CREDENTIAL_BYTES = 512 * 1024
"""Chain, key and some VOMS attributes; a bigger file is not a credential."""

Passphrase = Callable[[], bytes]
"""Asked for only when a key is encrypted."""

KEY_TYPES = ("ec-p256", "rsa-2048")
_KEY_BLOCK = re.compile(
    rb"-----BEGIN (?:(?:RSA|EC|ENCRYPTED) )?PRIVATE KEY-----.*?-----END (?:(?:RSA|EC|ENCRYPTED) )?PRIVATE KEY-----",
    re.DOTALL,
)


def generate_key(kind: str) -> PrivateKey:
    """A new private key, `ec-p256` (0.01 ms) or `rsa-2048` (30 ms and more: not on an event loop)."""
    if kind == "ec-p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind in ("rsa-2048", "rsa-3072", "rsa-4096"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    raise CredentialError(Reason.KEY_TOO_WEAK, f"unknown key type {kind!r}; use one of {', '.join(KEY_TYPES)}")


@dataclass(frozen=True)
class Credential:
    """A private key, its certificate, and the issuers up to (not including) the authority, nearest first.

    Invariant: the key belongs to the certificate. The key is in no repr and in no error.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False, compare=False)
    chain: tuple[x509.Certificate, ...] = ()

    def __post_init__(self) -> None:
        public = self.key.public_key()
        if certificates.spki(public) != certificates.spki(_public_key(self.certificate)):
            raise CredentialError(
                Reason.CREDENTIAL_MALFORMED,
                f"the private key does not belong to the certificate {certificates.describe(self.certificate)}",
                certificates.facts_of(self.certificate, "credential"),
            )

    def __repr__(self) -> str:
        return (
            f"Credential({self.subject}, chain of {1 + len(self.chain)}, not after {self.not_after:%Y-%m-%dT%H:%M:%SZ})"
        )

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a credential is never pickled: it would carry the private key; send pem_chain() or delegate")

    @classmethod
    def load(
        cls,
        path: str | Path,
        key_path: str | Path | None = None,
        *,
        passphrase: Passphrase | None = None,
        owner_uid: int | None = None,
    ) -> Credential:
        """Load a proxy file, a certificate with its key file, or a PKCS#12 file (`.p12`, `.pfx`).

        The file with the key must be owned by the caller (or root) and closed to group and other. Raises
        CredentialError CREDENTIAL_NOT_FOUND, CREDENTIAL_FILE_UNSAFE, CREDENTIAL_MALFORMED, CREDENTIAL_LOCKED.
        """
        uid = os.geteuid() if owner_uid is None else owner_uid
        if key_path is None:
            data = read_private(Path(path), MAX_CREDENTIAL_BYTES, uid)
            if Path(path).suffix.lower() in (".p12", ".pfx"):
                return cls._from_pkcs12(data, passphrase, str(path))
            return cls.loads(data, passphrase=passphrase, source=str(path))
        try:
            certificate_pem = read_bounded(Path(path), MAX_CREDENTIAL_BYTES)
        except OSError as error:
            raise unusable(Path(path), "certificate", error) from error
        key_pem = read_private(Path(key_path), MAX_CREDENTIAL_BYTES, uid)
        return cls.loads(
            _KEY_BLOCK.sub(b"", certificate_pem) + b"\n" + key_pem, passphrase=passphrase, source=str(path)
        )

    @classmethod
    def loads(cls, pem: bytes, *, passphrase: Passphrase | None = None, source: str = "the credential") -> Credential:
        """From PEM text with one key and at least one certificate, the leaf first. Raises CredentialError."""
        if len(pem) > MAX_CREDENTIAL_BYTES:
            raise CredentialError(
                Reason.CREDENTIAL_MALFORMED, f"{source} is larger than {MAX_CREDENTIAL_BYTES} bytes", {"path": source}
            )
        block = _KEY_BLOCK.search(pem)
        if block is None:
            raise CredentialError(
                Reason.CREDENTIAL_MALFORMED, f"{source} holds no private key", {"check": "credential", "path": source}
            )
        key = load_private_key(block.group(), passphrase, source)
        return _assembled(key, _KEY_BLOCK.sub(b"", pem), source)

    @classmethod
    def _from_pkcs12(cls, data: bytes, passphrase: Passphrase | None, source: str) -> Credential:
        facts = {"check": "credential", "path": source}
        try:
            bundle = pkcs12.load_pkcs12(data, passphrase() if passphrase is not None else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise CredentialError(
                Reason.CREDENTIAL_LOCKED, f"{source} cannot be opened: wrong passphrase or not PKCS#12", facts
            ) from None
        key = bundle.key
        if bundle.cert is None or not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise CredentialError(
                Reason.CREDENTIAL_MALFORMED, f"{source} lacks an RSA or ECDSA key or its certificate", facts
            )
        return cls(bundle.cert.certificate, key, ())

    def dumps(self) -> bytes:
        """The proxy file as bytes: certificate, unencrypted PKCS#8 key, chain. Holds the private key: never log or
        send it."""
        return self._file

    @cached_property
    def _file(self) -> bytes:
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificates.pem([self.certificate]) + key + certificates.pem(self.chain)

    def save(self, path: str | Path) -> None:
        """Write the proxy file with mode 0600, atomically and durably. Raises OSError."""
        write_atomic(Path(path), self.dumps(), 0o600)

    def pem_chain(self) -> bytes:
        """The certificates as PEM, leaf first, without the authority and without the key: what is sent to a peer."""
        return certificates.pem(self.certificates)

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """The certificate and its chain, leaf first."""
        return (self.certificate, *self.chain)

    @property
    def subject(self) -> DistinguishedName:
        """The subject of the leaf (for a proxy, with its extra common names)."""
        return certificates.subject_of(self.certificate)

    @cached_property
    def identity(self) -> DistinguishedName:
        """The subject of the end-entity certificate: the person or host. Not verified: see `security.validation`."""
        for certificate in self.certificates:
            if not is_proxy_certificate(certificate):
                return certificates.subject_of(certificate)
        return certificates.subject_of(self.certificates[-1])

    @cached_property
    def not_after(self) -> datetime:
        """When the first certificate of the chain expires (aware UTC)."""
        return min(certificate.not_valid_after_utc for certificate in self.certificates)

    def sign(self, data: bytes) -> bytes:
        """A signature over `data`: ECDSA with SHA-256 (DER) or RSA PKCS#1 v1.5 with SHA-256, by the kind of key."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


PROXY_CERT_INFO_OID = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
"""RFC 3820 section 3.8."""
DRAFT_PROXY_CERT_INFO_OID = x509.ObjectIdentifier("1.3.6.1.4.1.3536.1.222")
"""The GT3 draft of it."""


def is_proxy_certificate(certificate: x509.Certificate) -> bool:
    """True for a certificate with a ProxyCertInfo extension (RFC 3820, or the GT3 draft of it)."""
    return any(e.oid in (PROXY_CERT_INFO_OID, DRAFT_PROXY_CERT_INFO_OID) for e in certificate.extensions)


def is_proxy_file(pem: bytes) -> bool:
    """True for the text of a proxy file, also of GT2: its first certificate is a proxy. To ask before erasing it."""
    try:
        leaf = certificates.load_chain(_KEY_BLOCK.sub(b"", pem))[0]
    except ValidationError:
        return False
    legacy = certificates.subject_of(leaf).rdns[-1] in ((("CN", "proxy"),), (("CN", "limited proxy"),))
    return legacy or is_proxy_certificate(leaf)


def _public_key(certificate: x509.Certificate) -> certificates.PublicKey:
    try:
        return certificates.public_key_of(certificate)
    except ValidationError as error:
        raise CredentialError(error.reason, error.sentence, error.facts) from error


def _assembled(key: PrivateKey, chain_pem: bytes, source: str) -> Credential:
    try:
        chain = certificates.load_chain(chain_pem)
    except ValidationError as error:
        raise CredentialError(
            Reason.CREDENTIAL_MALFORMED, f"{source} has no readable certificates: {error.sentence}", error.facts
        ) from error
    return Credential(chain[0], key, without_authority(chain[1:]))


def without_authority(chain: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The chain without self-signed certificates: those are the verifier's own business."""
    return tuple(certificate for certificate in chain if certificate.subject != certificate.issuer)


def load_private_key(pem: bytes, passphrase: Passphrase | None, source: str) -> PrivateKey:
    """Read a PEM private key, PKCS#8 or traditional. Raises CredentialError; the text never quotes the key."""
    facts = {"check": "private key", "path": source}
    encrypted = b"ENCRYPTED" in pem
    if encrypted and passphrase is None:
        raise CredentialError(
            Reason.CREDENTIAL_LOCKED, f"the private key of {source} is encrypted and no passphrase was given", facts
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase() if encrypted and passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = Reason.CREDENTIAL_LOCKED if encrypted else Reason.CREDENTIAL_MALFORMED
        hint = "wrong passphrase?" if encrypted else "it is damaged or of an unknown kind"
        raise CredentialError(reason, f"the private key of {source} cannot be read: {hint}", facts) from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise CredentialError(Reason.KEY_TOO_WEAK, f"the private key of {source} is neither RSA nor ECDSA", facts)
    return key


def verify_signature(certificate: x509.Certificate, signature: bytes, data: bytes) -> None:
    """Check a signature made by `Credential.sign`. Raises ValidationError BAD_SIGNATURE.

    Says nothing about whether the certificate is to be trusted.
    """
    key = certificates.public_key_of(certificate, "signature")
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise ValidationError(
            Reason.BAD_SIGNATURE,
            f"the signature was not made with the key of {certificates.describe(certificate)}",
            certificates.facts_of(certificate, "signature"),
        ) from None


def find_proxy_path(environ: Mapping[str, str], uid: int) -> Path:
    """Where the proxy of this user is or would be: X509_USER_PROXY, else /tmp/x509up_u<uid> (Globus convention)."""
    named = environ.get("X509_USER_PROXY")
    return Path(named) if named else Path(f"/tmp/x509up_u{uid}")


def find_user_certificate(environ: Mapping[str, str]) -> tuple[Path, Path]:
    """Certificate and key file of the user: X509_USER_CERT with X509_USER_KEY, else ~/.globus (PEM, then usercred.p12).

    For a PKCS#12 file both paths are the same. Raises CredentialError CREDENTIAL_NOT_FOUND, ENVIRONMENT_INVALID.
    """
    certificate, key = environ.get("X509_USER_CERT"), environ.get("X509_USER_KEY")
    if certificate and key:
        return Path(certificate), Path(key)
    if certificate or key:
        lacking = "X509_USER_KEY" if certificate else "X509_USER_CERT"
        raise CredentialError(
            Reason.ENVIRONMENT_INVALID,
            f"{lacking} is not set but its partner is; set both or none",
            {"check": "environment"},
        )
    home = environ.get("HOME", "")
    folder = Path(home) / ".globus"
    if home and (folder / "usercert.pem").exists() and (folder / "userkey.pem").exists():
        return folder / "usercert.pem", folder / "userkey.pem"
    if home and (folder / "usercred.p12").exists():
        return folder / "usercred.p12", folder / "usercred.p12"
    raise CredentialError(
        Reason.CREDENTIAL_NOT_FOUND,
        f"no user certificate: set X509_USER_CERT and X509_USER_KEY or put usercert.pem and userkey.pem into {folder}",
        {"check": "environment", "path": str(folder)},
    )


def find_certificate_directory(environ: Mapping[str, str]) -> Path:
    """The directory of authorities: X509_CERT_DIR, ~/.globus/certificates, /etc/grid-security/certificates.

    Raises CredentialError TRUST_DIRECTORY_INVALID when there is none.
    """
    named = environ.get("X509_CERT_DIR")
    if named:
        return Path(named)
    home = environ.get("HOME", "")
    places = [Path(home) / ".globus" / "certificates"] if home else []
    places.append(Path("/etc/grid-security/certificates"))
    for place in places:
        if place.is_dir():
            return place
    raise CredentialError(
        Reason.TRUST_DIRECTORY_INVALID,
        f"no directory of authorities: set X509_CERT_DIR or create {places[-1]}",
        {"check": "environment", "path": str(places[-1])},
    )
