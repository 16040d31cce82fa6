"""What reads a stranger's bytes: one function for each kind of input, which raises for nothing but a defect.

A target returns if the input was read or refused with its own typed error. Anything else that escapes is a finding, and
so is a promise that does not hold, such as a list that reads differently than the library reads it.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

from agents.broker import jdl
from fabric.errors import GridError
from fabric.ldap import protocol
from fabric.ldap.ber import BerError
from fabric.ldap.filter_text import FilterSyntaxError, parse_filter
from security import _der, certificates, proxies, voms
from security.bans import BanList
from security.errors import SecurityError
from security.explanation import explain
from security.mapfile import GridMapFile, GroupMapFile
from security.names import DistinguishedName
from security.proxies import create_proxy
from security.revocation import parse_crl, verify_crl
from security.signing_policy import parse_namespaces, parse_signing_policy
from security.testing import NOW, TestGrid
from security.validation import ValidationPolicy, validate_client_chain, validate_host_chain

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    run: Callable[[bytes], object]
    """Raises only for a defect."""
    seeds: Sequence[bytes] = field(repr=False)
    """Good inputs to start from."""


class World:
    """What the targets judge by: one small grid."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._folder = tempfile.TemporaryDirectory()
        self.grid = TestGrid(Path(self._folder.name) / "grid")
        grid = self.grid
        self.proxy = grid.proxy(grid.limited("alice"), limited=True)
        self.host = grid.host("ce.example.org", "127.0.0.1")
        revoked = grid.user("mallory")
        grid.ca.revoke(revoked.certificate.serial_number, "keyCompromise", NOW)
        self.crl = grid.ca.build_crl(NOW, DAY)
        self.trust = grid.trust
        user = grid.user("voms")
        self.attributes = voms.create_attribute_certificate(
            grid.host("vo.example.org"), user.certificate, vo="cms", uri="vo:15000", fqans=["/cms", "/cms/Role=pilot"],
            lifetime=DAY, now=NOW,
        )  # fmt: skip
        self.voms_proxy = create_proxy(
            user, lifetime=DAY, now=NOW, extensions=[voms.proxy_extension([self.attributes])]
        )

    def close(self) -> None:
        self.grid.close()
        self._folder.cleanup()

    def targets(self) -> dict[str, Target]:
        """Every target by name."""
        der = [certificates.der(one) for one in (*self.proxy.certificates, self.host.certificate)]
        extension = next(
            one.value.value
            for one in self.voms_proxy.certificate.extensions
            if isinstance(one.value, x509.UnrecognizedExtension) and one.oid != proxies.PROXY_CERT_INFO_OID
        )
        crl_der = x509.load_pem_x509_crl(self.crl).public_bytes(_DER)
        return {
            "chain": Target(self._chain, [self.proxy.pem_chain(), self.voms_proxy.pem_chain(), b""]),
            "certificate": Target(self._certificate, der),
            "proxy": Target(self._proxy, [certificates.der(self.proxy.certificate)]),
            "proxy_cert_info": Target(
                _proxy_cert_info,
                [
                    proxies.encode_proxy_cert_info(proxies.LIMITED, 3),
                    proxies.encode_proxy_cert_info("1.2.3", None, b"x"),
                ],
            ),
            "request": Target(_request, [proxies.new_request()[1]]),
            "crl": Target(self._crl, [self.crl, crl_der]),
            "voms": Target(_voms, [extension]),
            "mapfile": Target(
                _mapfile, [b'"/C=XX/CN=a b" x,.pool\n', b"/cms/Role=production prod\n", b'# c\n"/CN=\\x41" a']
            ),
            "bans": Target(_bans, [b"/C=XX/CN=a\n", b'dn "/CN=a" reason="x"\n']),
            "signing_policy": Target(_signing_policy, [self.grid.ca.signing_policy().encode()]),
            "namespaces": Target(
                _namespaces,
                [b'TO Issuer "/CN=A" \\\n PERMIT Subject "/O=a/.*"\n', b'TO Issuer SELF DENY Subject "/O=[a-z]./.+"\n'],
            ),
            "name": Target(_name, [b"/C=XX/O=a\\x2fb/CN=host/ce.example.org", b'CN="a,b"+OU=c,DC=x\\2c']),
            "lsc": Target(_lsc, [voms.lsc_text([self.host.subject, self.grid.ca.subject]).encode()]),
            "jdl": Target(
                _jdl, [b'[Executable="/bin/a"; Arguments="b"; Requirements = other.x > 3 && true;]', b'a={1,"b"};']
            ),
            "ldap": Target(_ldap, _LDAP_SEEDS),
            "ldap_filter": Target(
                _ldap_filter, [b"(&(objectClass=GlueCE)(|(a=b*c)(!(d>=3))))", b"(cn:dn:2.5.13.5:=x)"]
            ),
            "protobuf": Target(_protobuf, [_message_seed()]),
        }  # fmt: skip

    def _chain(self, data: bytes) -> None:
        try:
            identity = validate_client_chain(data, self.trust, ValidationPolicy(), NOW)
        except SecurityError:
            return
        assert identity.subject.startswith(DistinguishedName.parse("/C=XX/O=TestGrid"))

    def _certificate(self, data: bytes) -> None:
        try:
            certificate = certificates.load_der(data)
        except SecurityError:
            return
        for judge in (
            lambda: validate_client_chain([certificate], self.trust, ValidationPolicy(allow_weak=True), NOW),
            lambda: validate_host_chain([certificate], "ce.example.org", self.trust, ValidationPolicy(), NOW),
        ):
            try:
                judge()
            except SecurityError:
                continue
        explain([certificate], self.trust, ValidationPolicy(), NOW)

    def _proxy(self, data: bytes) -> None:
        """A changed proxy is refused, or says what it said before."""
        try:
            certificate = certificates.load_der(data)
            identity = validate_client_chain(
                [certificate, *self.proxy.certificates[1:]], self.trust, ValidationPolicy(), NOW
            )
        except SecurityError:
            return
        assert identity.leaf_subject == self.proxy.subject and identity.is_limited

    def _crl(self, data: bytes) -> None:
        """Read as the library reads it; believed only if nothing that is signed was changed."""
        try:
            document = parse_crl(data)
        except SecurityError:
            return
        try:
            theirs = (
                x509.load_pem_x509_crl(data) if b"-----BEGIN X509 CRL" in data[:65536] else x509.load_der_x509_crl(data)
            )
            serials = {entry.serial_number for entry in theirs}
        except certificates.UNREADABLE:
            serials = None
        if serials is not None:
            assert document.revoked.serials() | document.restored >= serials
        try:
            good = verify_crl(document, self.grid.ca.certificate)
        except SecurityError:
            return
        assert serials is None or good.revoked.serials() == serials
        assert good.number in (1, 2)


_DER = Encoding.DER


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _refusable(read: Callable[[str], Any]) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        try:
            read(_text(data))
        except (SecurityError, GridError):
            return

    return run


def _proxy_cert_info(data: bytes) -> None:
    try:
        info = proxies.decode_proxy_cert_info(data)
    except _der.DerError:
        return
    assert info.path_length is None or 0 <= info.path_length <= proxies.MAX_PATH_LENGTH


def _request(data: bytes) -> None:
    try:
        proxies.load_request(data)
    except SecurityError:
        return


def _voms(data: bytes) -> None:
    try:
        voms.parse_extension(data)
    except SecurityError:
        return


def _mapfile(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    found = GridMapFile.loads(text)
    assert not any(account.lstrip(".").lower() == "root" for entry in found.entries for account in entry.accounts)
    assert GridMapFile.loads(found.emit()).entries is not None
    try:
        GroupMapFile.loads(text)
    except SecurityError:
        return


_bans = _refusable(lambda text: BanList.parse(text))
_signing_policy = _refusable(parse_signing_policy)
_namespaces = _refusable(
    lambda text: parse_namespaces(text).permits(DistinguishedName.parse("/CN=A"), DistinguishedName.parse("/O=a/CN=b"))
)
_lsc = _refusable(voms.parse_lsc)
_jdl = _refusable(jdl.normalise)


def _name(data: bytes) -> None:
    """What is read can be written, and reads the same."""
    try:
        name = DistinguishedName.parse(_text(data))
    except SecurityError:
        return
    assert DistinguishedName.parse(str(name)) == name


def _ldap(data: bytes) -> None:
    try:
        protocol.decode_message(data)
    except (BerError, protocol.TooComplexError):
        return


_LDAP_SEEDS = [
    bytes.fromhex("300c020101600702010304008000"),  # bind
    bytes.fromhex("3025020102632004066f3d677269640a01020a0100020100020100010100870b6f626a656374436c6173733000"),
    bytes.fromhex("30050201034200"),  # unbind
]


def _ldap_filter(data: bytes) -> None:
    try:
        parse_filter(_text(data))
    except FilterSyntaxError:
        return


def _messages() -> list[type[Message]]:
    found: list[type[Message]] = []
    for path in sorted((Path(__file__).parents[2] / "proto" / "gen" / "gridfabric").glob("*/v1/*_pb2.py")):
        loaded = importlib.import_module(f"gridfabric.{path.parent.parent.name}.v1.{path.stem}")
        names = loaded.DESCRIPTOR.message_types_by_name
        found += [getattr(loaded, name) for name in names if name.endswith("Request")]
    return found


MESSAGES = _messages()


def _message_seed() -> bytes:
    from gridfabric.security.v1 import security_pb2

    descriptor = security_pb2.DESCRIPTOR.message_types_by_name["EstablishRequest"]
    message = getattr(security_pb2, descriptor.name)()
    for one in descriptor.fields:
        if one.type == one.TYPE_BYTES and not one.is_repeated:
            setattr(message, one.name, b"x" * 40)
    return message.SerializeToString()


def _protobuf(data: bytes) -> None:
    """The bytes as any request; the first one chooses which."""
    kind = MESSAGES[(data[0] if data else 0) % len(MESSAGES)]
    try:
        message = kind.FromString(data[1:])
    except DecodeError:
        return
    assert kind.FromString(message.SerializeToString()) == message or b"\x7f\xf8" in data
