"""A small grid of credentials for tests, good ones and ones that are wrong in exactly one named way. Shipped, not
secret.

Keys are P-256 and shared within the process, so that a credential costs well under a millisecond. Give each one to code
under test as a peer would: `credential.pem_chain()`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security import certificates, proxies
from security.authority import CertificateAuthority
from security.certificates import PrivateKey
from security.credentials import PROXY_CERT_INFO_OID, Credential, generate_key
from security.installation import install_authority, install_crl
from security.names import DistinguishedName
from security.trust import TrustSnapshot, TrustStore
from security.validation import ValidationPolicy

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
"""A moment for tests that need any."""
ANY_LANGUAGE = "1.3.6.1.5.5.7.21.0"


@lru_cache(maxsize=256)
def shared_key(kind: str = "ec-p256", number: int = 0) -> PrivateKey:
    """The `number`-th key of this kind in this process."""
    return generate_key(kind)


class TestGrid:
    """One authority with a trust directory, and everybody it knows. Deterministic but for keys and serial numbers."""

    __test__ = False  # not a test class of pytest

    def __init__(
        self,
        directory: str | Path,
        now: datetime = NOW,
        *,
        key_type: str = "ec-p256",
        base: str = "/C=XX/O=TestGrid",
        crl_lifetime: timedelta = timedelta(days=30),
    ) -> None:
        self.directory = Path(directory)
        self.now = now
        self.key_type = key_type
        self.base = base
        self.ca = CertificateAuthority.create(
            self.directory / "ca",
            f"{base}/CN=TestGrid CA",
            lifetime=timedelta(days=3650),
            now=now - timedelta(days=30),
            key=shared_key(key_type, 0),
        )
        self.trust_directory = self.directory / "certificates"
        crl = self.ca.build_crl(now - timedelta(hours=1), crl_lifetime)
        install_authority(self.trust_directory, self.ca.certificate, self.ca.signing_policy(), crl)
        self.trust_store = TrustStore(self.trust_directory)
        self.policy = ValidationPolicy()
        self._key_number = 0

    def close(self) -> None:
        """Close the authority's register."""
        self.ca.close()

    @property
    def trust(self) -> TrustSnapshot:
        """The current snapshot, re-read if the directory changed."""
        self.trust_store.refresh()
        return self.trust_store.snapshot()

    def _key(self) -> PrivateKey:
        self._key_number += 1
        return shared_key(self.key_type, self._key_number % 64 + 1)

    # Good credentials

    def user(
        self, name: str = "alice", *, lifetime: timedelta = timedelta(days=365), now: datetime | None = None
    ) -> Credential:
        """A person's certificate and key: `<base>/CN=<name>`; asked again, the certificate is renewed."""
        key = self._key()
        certificate = self.ca.issue_user(name, key.public_key(), lifetime=lifetime, now=now or self.now, renew=True)
        return Credential(certificate, key)

    def host(self, *hosts: str, subject: str | None = None, lifetime: timedelta = timedelta(days=365)) -> Credential:
        """A host's certificate and key with these names and addresses (default localhost and 127.0.0.1)."""
        key = self._key()
        names = hosts or ("localhost", "127.0.0.1")
        certificate = self.ca.issue_host(
            names, key.public_key(), lifetime=lifetime, now=self.now, subject=subject, renew=True
        )
        return Credential(certificate, key)

    def proxy(
        self,
        issuer: Credential | str = "alice",
        *,
        lifetime: timedelta = timedelta(hours=12),
        limited: bool = False,
        independent: bool = False,
        path_length: int | None = None,
    ) -> Credential:
        """A proxy of a credential, or of a new certificate for that name."""
        parent = self.user(issuer) if isinstance(issuer, str) else issuer
        return proxies.create_proxy(
            parent,
            lifetime=lifetime,
            now=self.now,
            key_type=self.key_type,
            limited=limited,
            independent=independent,
            path_length=path_length,
        )

    def limited(self, issuer: Credential | str = "alice") -> Credential:
        """A limited proxy: good for data, not for jobs."""
        return self.proxy(issuer, limited=True)

    def save_user(self, credential: Credential, directory: str | Path) -> tuple[Path, Path]:
        """Write usercert.pem and userkey.pem as Globus tools want them; returns both paths."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / "usercert.pem", folder / "userkey.pem"
        certificate.write_bytes(credential.pem_chain())
        credential.save(folder / "both.pem")
        text = (folder / "both.pem").read_text()
        start, end = text.index("-----BEGIN PRIVATE KEY-----"), text.index("-----END PRIVATE KEY-----") + 26
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text[start:end].rstrip("\n") + "\n")
        (folder / "both.pem").unlink()
        return certificate, key

    # Revocation lists

    def publish_crl(self, *, at: datetime | None = None, lifetime: timedelta = timedelta(days=30)) -> bytes:
        """Build a new list and install it in the trust directory."""
        moment = at or self.now
        crl = self.ca.build_crl(moment, lifetime)
        install_crl(self.trust_directory, crl, moment)
        return crl

    def revoke(self, credential: Credential | x509.Certificate, reason: str = "keyCompromise") -> None:
        """Revoke the end-entity certificate of a credential and publish the list."""
        if isinstance(credential, Credential):
            entity = next(c for c in credential.certificates if proxies.proxy_info(c) is None)
        else:
            entity = credential
        self.ca.revoke(entity.serial_number, reason, self.now)
        self.publish_crl()

    def revoke_proxy(self, credential: Credential) -> None:
        """List the serial number of a proxy and publish the list; its user stays good."""
        self.ca.revoke_proxy(credential.certificate, self.now)
        self.publish_crl()

    def expired_crl(self) -> None:
        """Make the installed list one that expired an hour before `now`."""
        self._write_crl(self.ca.build_crl(self.now - timedelta(hours=2), timedelta(hours=1)))

    def future_crl(self) -> None:
        """Make the installed list one from tomorrow."""
        self._write_crl(self.ca.build_crl(self.now + timedelta(days=1), timedelta(days=1)))

    def missing_crl(self) -> None:
        """Remove the installed list."""
        self.crl_path.unlink()

    def garbage_crl(self) -> None:
        """Make the installed list unreadable."""
        self._write_crl(b"-----BEGIN X509 CRL-----\nnot a list\n-----END X509 CRL-----\n")

    def forged_crl(self) -> None:
        """Make the installed list one of the same name, signed by another key."""
        self._write_crl(self.same_name_authority().build_crl(self.now, timedelta(days=30)))

    @property
    def crl_path(self) -> Path:
        """The installed list."""
        return next(self.trust_directory.glob("*.r0"))

    @property
    def signing_policy_path(self) -> Path:
        """The installed signing policy."""
        return next(self.trust_directory.glob("*.signing_policy"))

    def _write_crl(self, data: bytes) -> None:
        path = self.crl_path
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)

    # Authorities

    def same_name_authority(self) -> CertificateAuthority:
        """Another authority with the same name and another key."""
        return self._other("same-name", str(self.ca.subject))

    def unknown_authority(self) -> CertificateAuthority:
        """An authority that is not installed."""
        return self._other("unknown", "/C=XX/O=Elsewhere/CN=Unknown CA")

    def _other(self, folder: str, subject: str) -> CertificateAuthority:
        path = self.directory / folder
        if path.exists():
            return CertificateAuthority.open(path)
        return CertificateAuthority.create(
            path,
            subject,
            lifetime=timedelta(days=3650),
            now=self.now - timedelta(days=30),
            key=shared_key(self.key_type, 200 + len(folder)),
        )

    # Credentials wrong in one way

    def unknown_ca_user(self, name: str = "alice") -> Credential:
        """Issued by an authority that is not installed."""
        return self._user_of(self.unknown_authority(), name)

    def forged_user(self, name: str = "alice") -> Credential:
        """Issued by an authority of the right name with another key."""
        return self._user_of(self.same_name_authority(), name)

    def _user_of(self, authority: CertificateAuthority, name: str) -> Credential:
        key = self._key()
        certificate = authority.issue_user(
            name, key.public_key(), lifetime=timedelta(days=30), now=self.now, renew=True
        )
        return Credential(certificate, key)

    def expired_user(self, name: str = "alice") -> Credential:
        """A person's certificate that expired an hour ago."""
        return self.user(name, lifetime=timedelta(hours=23), now=self.now - timedelta(days=1))

    def outside_namespace_user(self, name: str = "eve") -> Credential:
        """Signed by the authority's key, outside its signing policy."""
        key = self._key()
        subject = DistinguishedName.parse(f"/C=XX/O=Elsewhere/CN={name}")
        return Credential(self.certificate(subject.to_x509(), key), key)

    def user_without_signature_usage(self, name: str = "alice") -> Credential:
        """keyUsage without digitalSignature."""
        key = self._key()
        usage = _usage(digital_signature=False, key_encipherment=True)
        subject = DistinguishedName.parse(f"{self.base}/CN={name}").to_x509()
        return Credential(self.certificate(subject, key, extensions=[(usage, True)]), key)

    def server_only_user(self, name: str = "alice") -> Credential:
        """Extended key usage serverAuth only."""
        key = self._key()
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        subject = DistinguishedName.parse(f"{self.base}/CN={name}").to_x509()
        return Credential(self.certificate(subject, key, extensions=[(purposes, False)]), key)

    def expired_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy that expired an hour ago, of a good certificate."""
        return self.raw_proxy(
            issuer, not_before=self.now - timedelta(hours=13), not_after=self.now - timedelta(hours=1)
        )

    def future_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy that starts in an hour."""
        return self.raw_proxy(issuer, not_before=self.now + timedelta(hours=1), not_after=self.now + timedelta(hours=2))

    def expired_user_proxy(self, name: str = "alice") -> Credential:
        """A proxy in date of a certificate that expired."""
        return self.raw_proxy(self.expired_user(name))

    def wrong_name_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy whose subject is another person's."""
        return self.raw_proxy(issuer, subject=DistinguishedName.parse(f"{self.base}/CN=mallory/CN=12345").to_x509())

    def two_names_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy that adds two common names."""
        parent = self.user(issuer) if isinstance(issuer, str) else issuer
        subject = parent.subject.child("CN", "1").child("CN", "2").to_x509()
        return self.raw_proxy(parent, subject=subject)

    def pathlen_exceeded_chain(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy below a proxy with path length 0."""
        return self.raw_proxy(self.proxy(issuer, path_length=0))

    def full_below_limited(self, issuer: Credential | str = "alice") -> Credential:
        """A full proxy made from a limited one."""
        return self.raw_proxy(self.limited(issuer))

    def unknown_policy_language(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy with a policy that nobody here understands."""
        return self.raw_proxy(issuer, language=ANY_LANGUAGE, policy=b"anything")

    def policy_with_inherit_all(self, issuer: Credential | str = "alice") -> Credential:
        """inheritAll with a policy text, which RFC 3820 forbids."""
        return self.raw_proxy(issuer, policy=b"text")

    def ca_bit_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy that claims to be an authority."""
        return self.raw_proxy(issuer, extensions=[(x509.BasicConstraints(ca=True, path_length=None), True)])

    def alternative_name_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy with a subjectAltName."""
        return self.raw_proxy(issuer, extensions=[(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)])

    def not_critical_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A ProxyCertInfo that is not critical."""
        return self.raw_proxy(issuer, critical=False)

    def malformed_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A ProxyCertInfo that is not DER."""
        return self.raw_proxy(issuer, info=b"\x30\x03\x02\x01")

    def legacy_proxy(self, issuer: Credential | str = "alice", *, limited: bool = False) -> Credential:
        """A GT2 proxy: CN=proxy or CN=limited proxy, no extension."""
        parent = self.user(issuer) if isinstance(issuer, str) else issuer
        subject = parent.subject.child("CN", "limited proxy" if limited else "proxy").to_x509()
        return self.raw_proxy(parent, subject=subject, info=None, critical=None)

    def forged_proxy(self, issuer: Credential | str = "alice") -> Credential:
        """A proxy signed by a key that is not its user's."""
        parent = self.user(issuer) if isinstance(issuer, str) else issuer
        return self.raw_proxy(parent, signing_key=shared_key(self.key_type, 250))

    def end_entity_of_user(self, issuer: Credential | str = "alice") -> Credential:
        """A person's certificate "issued" by another person."""
        subject = DistinguishedName.parse(f"{self.base}/CN=mallory").to_x509()
        return self.raw_proxy(issuer, subject=subject, info=None, critical=None)

    # Building blocks

    def certificate(
        self,
        subject: x509.Name,
        key: PrivateKey,
        *,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> x509.Certificate:
        """Any certificate signed with the authority's key, past all its rules."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.ca.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or self.now - timedelta(days=1))
            .not_valid_after(not_after or self.now + timedelta(days=365))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        ca_key = Credential.load(self.ca.directory / "ca.pem", self.ca.directory / "key.pem").key
        return builder.sign(ca_key, hashes.SHA256())

    def raw_proxy(
        self,
        issuer: Credential | str = "alice",
        *,
        subject: x509.Name | None = None,
        language: str = proxies.INHERIT_ALL,
        policy: bytes | None = None,
        path_length: int | None = None,
        info: bytes | None = b"",
        critical: bool | None = True,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        signing_key: PrivateKey | None = None,
    ) -> Credential:
        """A proxy past all rules. `info` replaces the ProxyCertInfo's bytes; None leaves the extension out."""
        parent = self.user(issuer) if isinstance(issuer, str) else issuer
        key = self._key()
        serial = x509.random_serial_number() >> 96
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
        own = x509.Name([*parent.certificate.subject.rdns, x509.RelativeDistinguishedName([common_name])])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or own)
            .issuer_name(parent.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(not_before or self.now - timedelta(minutes=5))
            .not_valid_after(not_after or self.now + timedelta(hours=12))
        )
        if info is not None and critical is not None:
            data = info or proxies.encode_proxy_cert_info(language, path_length, policy)
            builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO_OID, data), critical)
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        certificate = builder.sign(signing_key or parent.key, hashes.SHA256())
        return Credential(certificate, key, parent.certificates)


def _usage(*, digital_signature: bool, key_encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def chain_of(credential: Credential, authority: CertificateAuthority) -> bytes:
    """The chain with the authority's certificate at its end, as some clients send it."""
    return credential.pem_chain() + certificates.pem([authority.certificate])
