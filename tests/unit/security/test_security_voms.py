from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security import _der, voms
from security.credentials import Credential
from security.errors import Reason, SecurityError, ValidationError
from security.proxies import create_proxy
from security.testing import NOW, TestGrid
from security.validation import validate_client_chain

HOUR = timedelta(hours=1)
GROUPS = ("/testvo", "/testvo/physics/Role=pilot")


def attribute(grid: TestGrid, holder: Credential, signer: Credential | None = None, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "vo": "testvo", "uri": "localhost:15000", "fqans": GROUPS, "lifetime": 12 * HOUR, "now": NOW, **changes
    }  # fmt: skip
    server = signer or grid.host("localhost", subject="voms/localhost")
    return voms.create_attribute_certificate(server, holder.certificate, **arguments)  # type: ignore[arg-type]


def servers(grid: TestGrid) -> voms.VomsDirectory:
    return voms.VomsDirectory({"testvo": ((grid.host(subject="voms/localhost").subject, grid.ca.subject),)})


def verify(grid: TestGrid, holder: Credential, *encoded: bytes) -> tuple[voms.VomsAttributes, ...]:
    extension = voms.proxy_extension(encoded)
    proxy = create_proxy(holder, lifetime=HOUR, now=NOW, extensions=[extension])
    below = create_proxy(proxy, lifetime=HOUR, now=NOW)  # a delegated proxy carries them in its issuer
    identity = validate_client_chain(below.pem_chain(), grid.trust, grid.policy, NOW)
    return voms.verify_attributes(identity, servers(grid), grid.trust, grid.policy, NOW)


def test_membership(grid: TestGrid) -> None:
    alice = grid.user("alice")
    (found,) = verify(grid, alice, attribute(grid, alice))
    assert (found.vo, found.fqans, found.uri) == ("testvo", GROUPS, "localhost:15000")
    assert found.not_after == NOW + 12 * HOUR


def test_no_proxy_no_membership(grid: TestGrid) -> None:
    identity = validate_client_chain(grid.user().pem_chain(), grid.trust, grid.policy, NOW)
    assert voms.verify_attributes(identity, servers(grid), grid.trust, grid.policy, NOW) == ()


def refused(grid: TestGrid, holder: Credential, encoded: bytes, word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        verify(grid, holder, encoded)
    assert caught.value.reason == Reason.ATTRIBUTE_INVALID
    assert word in caught.value.sentence


def test_memberships_refused(grid: TestGrid) -> None:
    alice, bob = grid.user("alice"), grid.user("bob")
    refused(grid, alice, attribute(grid, bob), "another certificate")
    refused(grid, alice, attribute(grid, alice, now=NOW - 13 * HOUR), "expired")
    refused(grid, alice, attribute(grid, alice, now=NOW + HOUR), "valid only from")
    refused(grid, alice, attribute(grid, alice, lifetime=timedelta(days=30)), "lives longer")
    refused(grid, alice, attribute(grid, alice, signer=bob), ".lsc")
    refused(grid, alice, attribute(grid, alice, vo="othervo", fqans=["/othervo"]), ".lsc")
    good = attribute(grid, alice)
    changed = good.replace(b"Role=pilot", b"Role=admin", 1)
    assert len(changed) == len(good)
    refused(grid, alice, changed, "not signed")
    refused(grid, alice, good[:-10], "cannot be read")


def test_who_is_named_takes_it_and_nobody_else(grid: TestGrid) -> None:
    alice = grid.user("alice")

    def taken_at(hosts: set[str], encoded: bytes) -> str:
        """Why these hosts do not take it; empty if they do."""
        proxy = create_proxy(alice, lifetime=HOUR, now=NOW, extensions=[voms.proxy_extension([encoded])])
        identity = validate_client_chain(proxy.pem_chain(), grid.trust, grid.policy, NOW)
        here = replace(servers(grid), hosts=frozenset(hosts))
        (why,) = voms.objections(identity, here, grid.trust, grid.policy, NOW)
        return why

    encoded = attribute(grid, alice, targets=["CE.example.org", "se.example.org"])
    assert taken_at({"ce.example.org"}, encoded) == "" == taken_at({"x", "se.example.org"}, encoded)
    for hosts in ({"ce.example.com"}, {"example.org"}, {"ce.example.org.evil"}, {"*"}, {""}, set()):
        why = taken_at(hosts, encoded)
        assert "it is only for ce.example.org, se.example.org" in why and "--target" in why, hosts
    assert taken_at({"anywhere"}, attribute(grid, alice)) == ""
    with pytest.raises(ValidationError):
        attribute(grid, alice, targets=["no host"])
    with pytest.raises(ValidationError):
        attribute(grid, alice, targets=[f"h{n}.example.org" for n in range(65)])


def _element(tag: int, *parts: bytes) -> bytes:
    return _der.encode(tag, b"".join(parts))


def test_targets_in_every_spelling_and_none_that_is_not_understood_names_a_host(grid: TestGrid) -> None:
    def name(tag: int, text: bytes) -> bytes:
        return _element(0xA0, _element(tag, text))

    nested = (
        (
            _element(0x30, _element(0x30, name(0x82, b"a.b"), name(0x86, b"https://C.d:443/x"))),
            ["a.b", "c.d"],
        ),  # RFC 5755
        (
            _element(0x30, _element(0x30, name(0x86, b"a.b")), _element(0x30, name(0x86, b"c.d"))),
            ["a.b", "c.d"],
        ),  # VOMS
        (_element(0x30, _element(0x30, _element(0xA1, _element(0x86, b"group")))), [""]),
        (_element(0x30, _element(0x30, name(0x81, b"ada@a.b"), name(0x86, b"a b"), name(0x82, b""))), ["", "", ""]),
        (_element(0x30), []),
    )
    for encoded, hosts in nested:
        assert voms._targets(encoded) == hosts
    for encoded in (b"", b"\x04\x00", _element(0x30, name(0x82, b"a.b")), _element(0x30, _element(0x30, b"\xa0\x00"))):
        with pytest.raises((SecurityError, ValueError, IndexError)):
            voms._targets(encoded)


def test_a_revoked_server_speaks_for_nobody(grid: TestGrid) -> None:
    alice, server = grid.user("alice"), grid.host(subject="voms/localhost")
    encoded = attribute(grid, alice, signer=server)
    verify(grid, alice, encoded)
    grid.revoke(server)
    with pytest.raises(ValidationError) as caught:
        verify(grid, alice, encoded)
    assert caught.value.reason == Reason.CERTIFICATE_REVOKED


def test_a_server_of_an_unknown_authority(grid: TestGrid) -> None:
    alice = grid.user("alice")
    with pytest.raises(ValidationError) as caught:
        verify(grid, alice, attribute(grid, alice, signer=grid.unknown_ca_user("voms")))
    assert caught.value.reason == Reason.UNKNOWN_CA


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/testvo", "/testvo"),
        ("/testvo/Role=NULL/Capability=NULL", "/testvo"),
        ("/testvo/a/b/Role=x/Capability=NULL", "/testvo/a/b/Role=x"),
        ("/testvo/Role=x", "/testvo/Role=x"),
    ],
)
def test_group_names(text: str, expected: str) -> None:
    assert voms.normal_fqan(text, "testvo") == expected


@pytest.mark.parametrize(
    "text", ["", "testvo", "/other", "/testvox", "/testvo/", "/testvo/a b", "/testvo/Role=", "//testvo"]
)
def test_group_names_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        voms.normal_fqan(text, "testvo")


@settings(max_examples=80)
@given(st.data())
def test_any_damage_is_a_typed_error(shared_grid: TestGrid, data: st.DataObject) -> None:
    encoded = bytearray(voms.proxy_extension([attribute(shared_grid, shared_grid.user())]).value)
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    for candidate in (bytes(encoded), data.draw(st.binary(max_size=100))):
        try:
            assert voms.parse_extension(candidate)
        except ValidationError as error:
            assert error.reason in (Reason.ATTRIBUTE_INVALID, Reason.CHAIN_MALFORMED)


def test_vomsdir(tmp_path: Path) -> None:
    (tmp_path / "testvo").mkdir()
    (tmp_path / "testvo" / "a.lsc").write_text("/CN=server\n/CN=ca\n------ NEXT CHAIN ------\n/CN=old\n/CN=ca\n")
    (tmp_path / "testvo" / "b.lsc").write_text("not a name\n")
    (tmp_path / "testvo" / "c.lsc").write_text("/CN=alone\n")
    chains = voms.VomsDirectory.load(tmp_path).chains
    assert [[str(name) for name in chain] for chain in chains["testvo"]] == [
        ["/CN=server", "/CN=ca"],
        ["/CN=old", "/CN=ca"],
    ]
    with pytest.raises(ValidationError):
        voms.VomsDirectory.load(tmp_path / "none")


NICKNAME = voms.GenericAttribute("nickname", "Ada \u0141", "testvo")


def test_generic_attributes_travel(grid: TestGrid) -> None:
    alice = grid.user("alice")
    (found,) = verify(grid, alice, attribute(grid, alice, attributes=[NICKNAME], serial=77))
    assert (found.attributes, found.serial) == ((NICKNAME,), 77)
    (plain,) = verify(grid, alice, attribute(grid, alice))
    assert plain.attributes == ()


@pytest.mark.parametrize(
    "attributes",
    [
        [voms.GenericAttribute("name", "x" * 1025)],
        [voms.GenericAttribute(f"n{n}", "v") for n in range(voms.MAX_GENERIC_ATTRIBUTES + 1)],
    ],
    ids=["long", "many"],
)
def test_generic_attributes_out_of_bounds_are_refused(grid: TestGrid, attributes: list[voms.GenericAttribute]) -> None:
    alice = grid.user("alice")
    refused(grid, alice, attribute(grid, alice, attributes=attributes), "generic attribute")


def test_generic_attributes_that_are_no_text_are_refused(grid: TestGrid) -> None:
    alice = grid.user("alice")
    good = attribute(grid, alice, attributes=[voms.GenericAttribute("name", "value", "q")])
    refused(grid, alice, good.replace(b"value", b"val\xff\xfe", 1), "cannot be read")


def test_the_authority_key_is_the_signers_own(grid: TestGrid) -> None:
    """The C client compares it with the SHA-1 of the signer's key and not with the signer's own extension."""
    from cryptography import x509

    server = grid.host("localhost", subject="voms/localhost")
    digest = x509.SubjectKeyIdentifier.from_public_key(server.key.public_key()).digest
    assert digest in attribute(grid, grid.user("alice"), signer=server)


def test_lsc_with_subject_and_issuer_of_every_certificate() -> None:
    """The C client wants an intermediate authority twice, others once."""
    one = voms.parse_lsc("/C=XX/CN=voms\n/C=XX/CN=sub\n/C=XX/CN=root\n")
    two = voms.parse_lsc('/C=XX/CN=voms\n/C=XX/CN=sub\n/C=XX/CN=sub\n"/C=XX/CN=root"\n')
    assert one == two and len(one[0]) == 3
    assert voms.parse_lsc("/C=XX/CN=voms\n/C=XX/CN=voms\n") == []


def test_an_independent_proxy_has_no_membership_of_its_makers(grid: TestGrid) -> None:
    alice = grid.user("alice")
    extension = voms.proxy_extension([attribute(grid, alice)])
    full = create_proxy(alice, lifetime=HOUR, now=NOW, extensions=[extension])
    for proxy in (
        create_proxy(full, lifetime=HOUR, now=NOW, independent=True),
        create_proxy(alice, lifetime=HOUR, now=NOW, independent=True, extensions=[extension]),
    ):
        identity = validate_client_chain(proxy.pem_chain(), grid.trust, grid.policy, NOW)
        with pytest.raises(ValidationError, match="an independent proxy has no right of its maker's"):
            voms.verify_attributes(identity, servers(grid), grid.trust, grid.policy, NOW)
        (objection,) = voms.objections(identity, servers(grid), grid.trust, grid.policy, NOW)
        assert "independent" in objection


def test_the_attributes_nearest_the_leaf_count(grid: TestGrid) -> None:
    """A service may give a delegated proxy fewer attributes; it cannot lose those above by adding none."""
    alice = grid.user("alice")
    first = create_proxy(alice, lifetime=HOUR, now=NOW, extensions=[voms.proxy_extension([attribute(grid, alice)])])
    fewer = voms.proxy_extension([attribute(grid, alice, fqans=["/testvo"])])
    below = create_proxy(create_proxy(first, lifetime=HOUR, now=NOW, extensions=[fewer]), lifetime=HOUR, now=NOW)
    identity = validate_client_chain(below.pem_chain(), grid.trust, grid.policy, NOW)
    (found,) = voms.verify_attributes(identity, servers(grid), grid.trust, grid.policy, NOW)
    assert found.fqans == ("/testvo",)
    assert voms.objections(identity, servers(grid), grid.trust, grid.policy, NOW) == [""]
