"""A short run of every fuzz target, always the same; `make fuzz` runs longer. What it found has tests of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from cryptography import x509
from fuzz.mutate import mutate
from fuzz.targets import Target, World
from hypothesis import given, settings
from hypothesis import strategies as st

from security import certificates
from security.errors import Reason, SecurityError, ValidationError
from security.names import DistinguishedName
from security.proxies import load_request, new_request
from security.revocation import parse_crl
from security.testing import NOW
from security.validation import ValidationPolicy, validate_client_chain

INPUTS = 400
SLOW_S = 1.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def targets(world: World) -> dict[str, Target]:
    return world.targets()


NAMES = (
    "chain", "certificate", "proxy", "proxy_cert_info", "request", "crl", "voms", "mapfile", "bans", "signing_policy",
    "namespaces", "name", "lsc", "jdl", "ldap", "ldap_filter", "protobuf",
)  # fmt: skip


def test_every_target_is_run(targets: dict[str, Target]) -> None:
    assert set(targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_changed_inputs_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    target, chance = targets[name], random.Random(name)
    for seed in target.seeds:
        target.run(seed)
    for _ in range(INPUTS):
        data = mutate(chance.choice(target.seeds), chance, target.seeds)
        start = time.process_time()
        target.run(data)
        assert time.process_time() - start < SLOW_S


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    @settings(max_examples=40, database=None)
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
    def run(data: bytes) -> None:
        targets[name].run(data)

    run()


# What was found


def _changed(der: bytes, old: bytes, new: bytes) -> bytes:
    at = der.index(old)
    return der[:at] + new + der[at + len(old) :]


def test_a_certificate_of_an_unheard_version_is_malformed(world: World) -> None:
    """The library's InvalidVersion is no ValueError and went through to the caller."""
    der = _changed(certificates.der(world.proxy.certificate), b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22")
    for read in (lambda: certificates.load_der(der), lambda: certificates.load_chain(_pem(der))):
        with pytest.raises(ValidationError) as caught:
            read()
        assert caught.value.reason == Reason.CHAIN_MALFORMED


def _pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_a_list_or_request_of_an_unheard_version_is_malformed(world: World) -> None:
    crl = x509.load_pem_x509_crl(world.crl).public_bytes(certificates.Encoding.DER)
    with pytest.raises(SecurityError):
        parse_crl(_changed(crl, b"\x02\x01\x01", b"\x02\x01\x41"))
    request = x509.load_pem_x509_csr(new_request()[1]).public_bytes(certificates.Encoding.DER)
    with pytest.raises(SecurityError):
        load_request(_changed(request, b"\x02\x01\x00", b"\x02\x01\x02"))


def test_a_signature_of_an_unheard_algorithm_is_refused(world: World) -> None:
    der = certificates.der(world.host.certificate)
    ecdsa_sha256, unheard = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040309")
    certificate = certificates.load_der(der.replace(ecdsa_sha256, unheard))
    with pytest.raises(ValidationError):
        validate_client_chain([certificate], world.trust, ValidationPolicy(allow_weak=True), NOW)
    assert certificates.digest_name(certificate) == ""


def test_a_name_too_long_to_be_printed_is_no_name() -> None:
    """One such person in a member list, and no map file could be written any more."""
    with pytest.raises(SecurityError) as caught:
        DistinguishedName.parse("/CN=" + "/OU=".join("\u20ac" * 300 for _ in range(6)))
    assert caught.value.reason == Reason.NAME_MALFORMED


def test_a_key_that_openssl_cannot_read_is_refused(world: World) -> None:
    """OpenSSL ends with an internal error and names no certificate."""
    der = bytearray(certificates.der(world.host.certificate))
    point = der.index(bytes.fromhex("03420004"))
    der[point + 4 : point + 36] = bytes(32)
    with pytest.raises(ValidationError):
        validate_client_chain([certificates.load_der(bytes(der))], world.trust, ValidationPolicy(), NOW)
