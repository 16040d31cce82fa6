"""Each rule of RFC 3820 (sections 3 and 4.1) by its number: what keeps it passes, what breaks it has its reason.

The same rules on random chains beside OpenSSL and Globus: tests/interop/test_security_agreement.py.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import _der
from security.credentials import Credential
from security.errors import Reason, ValidationError
from security.names import DistinguishedName
from security.proxies import INDEPENDENT, INHERIT_ALL, LIMITED, decode_proxy_cert_info, encode_proxy_cert_info
from security.testing import ANY_LANGUAGE, NOW, TestGrid
from security.validation import Identity, ValidationPolicy, validate_client_chain

Make = Callable[[TestGrid], Credential]
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def verdict(grid: TestGrid, credential: Credential, policy: ValidationPolicy | None = None) -> Identity:
    return validate_client_chain(credential.pem_chain(), grid.trust, policy or ValidationPolicy(), NOW)


def usage(**bits: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


def chain(*levels: dict[str, object]) -> Make:
    """A user and one proxy for each of these, topmost first."""

    def make(grid: TestGrid) -> Credential:
        made = grid.user("alice")
        for options in levels:
            made = grid.raw_proxy(made, **options)  # type: ignore[arg-type]
        return made

    return make


def named(*common_names: str, base: str = "/C=XX/O=TestGrid/CN=alice") -> Make:
    name = DistinguishedName.parse(base)
    for common_name in common_names:
        name = name.child("CN", common_name)
    return chain({"subject": name.to_x509()})


def multi_valued(grid: TestGrid) -> Credential:
    user = grid.user("alice")
    last = x509.RelativeDistinguishedName(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "1"), x509.NameAttribute(x509.NameOID.USER_ID, "u")]
    )
    return grid.raw_proxy(user, subject=x509.Name([*user.certificate.subject.rdns, last]))


def not_a_common_name(grid: TestGrid) -> Credential:
    user = grid.user("alice")
    last = x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.USER_ID, "1")])
    return grid.raw_proxy(user, subject=x509.Name([*user.certificate.subject.rdns, last]))


KEPT: dict[str, Make] = {
    "3.2 any serial number, also twice": chain({}, {}),
    "3.4 subject is issuer + one CN": named("12345"),
    "3.6 key usage digitalSignature": chain({"extensions": [(usage(digital_signature=True), True)]}),
    "3.6 no key usage": chain({}),
    "3.7 extended key usage clientAuth": chain({"extensions": [(CLIENT, False)]}),
    "3.8 inheritAll": chain({"language": INHERIT_ALL}),
    "3.8 independent": chain({"language": INDEPENDENT}),
    "3.8 limited (Globus)": chain({"language": LIMITED}),
    "3.8.1 no path length, four levels": chain({}, {}, {}, {}),
    "3.8.1 path length 1 and one below": chain({"path_length": 1}, {}),
    "3.8.1 path length falls": chain({"path_length": 2}, {"path_length": 1}, {"path_length": 0}),
    "3.9 basic constraints, no authority": chain(
        {"extensions": [(x509.BasicConstraints(ca=False, path_length=None), True)]}
    ),
    "4.1 outlives its issuer, whose end counts": chain({"not_after": NOW + timedelta(days=4000)}),
    "limited below limited": chain({"language": LIMITED}, {"language": LIMITED}),
    "limited below full": chain({}, {"language": LIMITED}),
}

BROKEN: dict[str, tuple[Make, Reason]] = {
    "3.1 signed by another key": (lambda grid: grid.forged_proxy(), Reason.BAD_SIGNATURE),
    "3.3 issuer alternative name": (
        chain({"extensions": [(x509.IssuerAlternativeName([x509.DNSName("a")]), False)]}),
        Reason.PROXY_EXTENSION_INVALID,
    ),
    "3.4 another person's name": (lambda grid: grid.wrong_name_proxy(), Reason.PROXY_NAME_INVALID),
    "3.4 two common names": (named("1", "2"), Reason.PROXY_NAME_INVALID),
    "3.4 no common name more": (named(), Reason.PROXY_NAME_INVALID),
    "3.4 a common name and an identifier in one": (multi_valued, Reason.PROXY_NAME_INVALID),
    "3.4 an identifier for the common name": (not_a_common_name, Reason.PROXY_NAME_INVALID),
    "3.4 letter case of the issuer's name": (
        named("1", base="/C=XX/O=TestGrid/CN=ALICE"),
        Reason.PROXY_NAME_INVALID,
    ),
    "3.5 subject alternative name": (lambda grid: grid.alternative_name_proxy(), Reason.PROXY_EXTENSION_INVALID),
    "3.6 key usage certificate signing": (
        chain({"extensions": [(usage(digital_signature=True, key_cert_sign=True), True)]}),
        Reason.PROXY_EXTENSION_INVALID,
    ),
    "3.6 an issuer without digitalSignature": (
        lambda grid: grid.raw_proxy(grid.user_without_signature_usage()),
        Reason.KEY_USAGE,
    ),
    "3.6 a proxy between without digitalSignature": (
        chain({"extensions": [(usage(key_encipherment=True), True)]}, {}),
        Reason.KEY_USAGE,
    ),
    "3.7 extended key usage not for this purpose": (chain({"extensions": [(SERVER, False)]}), Reason.KEY_USAGE),
    "3.7 more than the issuer has": (
        lambda grid: grid.raw_proxy(grid.server_only_user(), extensions=[(CLIENT, False)]),
        Reason.KEY_USAGE,
    ),
    "3.8 not critical": (chain({"critical": False}), Reason.PROXY_EXTENSION_INVALID),
    "3.8 malformed": (lambda grid: grid.malformed_proxy(), Reason.PROXY_EXTENSION_INVALID),
    "3.8 trailing bytes": (
        chain({"info": encode_proxy_cert_info(INHERIT_ALL, None) + b"\0"}),
        Reason.PROXY_EXTENSION_INVALID,
    ),
    "3.8.1 path length 0 and one below": (chain({"path_length": 0}, {}), Reason.PROXY_PATH_LENGTH_EXCEEDED),
    "3.8.1 path length 1 and two below": (chain({"path_length": 1}, {}, {}), Reason.PROXY_PATH_LENGTH_EXCEEDED),
    "3.8.1 the minimum counts: wide above, narrow below": (
        chain({"path_length": 5}, {"path_length": 0}, {}),
        Reason.PROXY_PATH_LENGTH_EXCEEDED,
    ),
    "3.8.1 the minimum counts: narrow above, wide below": (
        chain({"path_length": 1}, {"path_length": 5}),
        Reason.PROXY_PATH_LENGTH_EXCEEDED,
    ),
    "3.8.1 negative path length": (
        chain({"info": _der.encode(_der.SEQUENCE, b"\x02\x01\xff" + encode_proxy_cert_info(INHERIT_ALL, None)[2:])}),
        Reason.PROXY_EXTENSION_INVALID,
    ),
    "3.8.2 unknown language": (chain({"language": "1.2.3.4"}), Reason.PROXY_POLICY_UNKNOWN),
    "3.8.2 anyLanguage with a policy": (
        chain({"language": ANY_LANGUAGE, "policy": b"x"}),
        Reason.PROXY_POLICY_UNKNOWN,
    ),
    "3.8.2 unknown language above a full proxy": (chain({"language": "1.2.3.4"}, {}), Reason.PROXY_POLICY_UNKNOWN),
    "3.8.2 inheritAll with a policy": (chain({"policy": b"x"}), Reason.PROXY_EXTENSION_INVALID),
    "3.8.2 inheritAll with an empty policy": (chain({"policy": b""}), Reason.PROXY_EXTENSION_INVALID),
    "3.8.2 independent with a policy": (
        chain({"language": INDEPENDENT, "policy": b"x"}),
        Reason.PROXY_EXTENSION_INVALID,
    ),
    "3.8.2 limited with a policy": (chain({"language": LIMITED, "policy": b"x"}), Reason.PROXY_EXTENSION_INVALID),
    "3.9 authority bit": (lambda grid: grid.ca_bit_proxy(), Reason.PROXY_EXTENSION_INVALID),
    "4.1.3 expired in between": (
        chain({"not_before": NOW - timedelta(hours=2), "not_after": NOW - timedelta(hours=1)}, {}),
        Reason.PROXY_EXPIRED,
    ),
    "4.1.3 not yet valid in between": (chain({"not_before": NOW + timedelta(hours=1)}, {}), Reason.NOT_YET_VALID),
    "full below limited": (chain({"language": LIMITED}, {}), Reason.PROXY_RIGHTS_WIDENED),
    "independent below limited": (chain({"language": LIMITED}, {"language": INDEPENDENT}), Reason.PROXY_RIGHTS_WIDENED),
    "full below full below limited": (chain({"language": LIMITED}, {}, {}), Reason.PROXY_RIGHTS_WIDENED),
    "limited, full, limited": (chain({"language": LIMITED}, {}, {"language": LIMITED}), Reason.PROXY_RIGHTS_WIDENED),
    "certificate signed by a proxy": (
        lambda grid: grid.end_entity_of_user(grid.proxy("alice")),
        Reason.CHAIN_MALFORMED,
    ),
}


@pytest.mark.parametrize("rule", KEPT)
def test_kept(shared_grid: TestGrid, rule: str) -> None:
    credential = KEPT[rule](shared_grid)
    identity = verdict(shared_grid, credential)
    assert identity.is_proxy
    assert identity.not_after <= credential.certificates[-1].not_valid_after_utc


@pytest.mark.parametrize("rule", BROKEN)
def test_broken(shared_grid: TestGrid, rule: str) -> None:
    make, reason = BROKEN[rule]
    with pytest.raises(ValidationError) as caught:
        verdict(shared_grid, make(shared_grid))
    assert caught.value.reason == reason, caught.value.sentence
    assert caught.value.facts["subject"] in caught.value.sentence
    assert ";" in caught.value.sentence  # the cure


def test_a_limited_proxy_is_limited_at_any_depth(shared_grid: TestGrid) -> None:
    for make in (chain({"language": LIMITED}), chain({}, {"language": LIMITED}), chain(*[{"language": LIMITED}] * 4)):
        assert verdict(shared_grid, make(shared_grid)).is_limited


def test_clock_skew_is_named_as_such(shared_grid: TestGrid) -> None:
    """Five minutes are excused for a beginning; a refusal says how far off the clocks are and what is excused."""
    assert verdict(shared_grid, chain({"not_before": NOW + timedelta(minutes=5)})(shared_grid))
    with pytest.raises(ValidationError) as caught:
        verdict(shared_grid, chain({"not_before": NOW + timedelta(minutes=7)})(shared_grid))
    assert caught.value.reason == Reason.NOT_YET_VALID
    assert "7 min after the clock of this host" in caught.value.sentence
    assert "clock skew of at most 5 min is excused" in caught.value.sentence
    assert caught.value.facts["clockSkew"] == "5 min"


@pytest.mark.parametrize("length", [0, 1, 2, 127, 128, 1 << 31])
def test_path_lengths_come_back(length: int) -> None:
    """A path length of 0 is written: Globus' own tool leaves it out."""
    info = decode_proxy_cert_info(encode_proxy_cert_info(INHERIT_ALL, length))
    assert info.path_length == min(length, 1_000_000)
