"""Our credentials in the hands of OpenSSL, Globus and VOMS, and theirs in ours. Tools as Debian 12 ships them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.peers import World, needs_globus, needs_openssl, needs_voms

from security import certificates, voms
from security.credentials import Credential
from security.errors import Reason, ValidationError
from security.gridmapdir import encode_subject
from security.names import DistinguishedName
from security.proxies import create_proxy
from security.trust import subject_hash, subject_hash_old
from security.validation import ValidationPolicy, validate_client_chain

KEY_TYPES = ("ec-p256", "rsa-2048")


@pytest.fixture(params=KEY_TYPES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    made.grid.close()


@pytest.fixture
def ec_world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, "ec-p256")
    yield made
    made.grid.close()


@pytest.fixture
def rsa_world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, "rsa-2048")
    yield made
    made.grid.close()


# OpenSSL


@needs_openssl
def test_openssl_accepts_users_and_proxies(world: World) -> None:
    grid = world.grid
    alice = grid.user("alice")
    for credential in (
        alice,
        grid.proxy(alice),
        grid.proxy(grid.proxy(grid.proxy(alice))),
        grid.limited(alice),
        grid.proxy(grid.limited(alice)),
        grid.proxy(alice, independent=True),
        grid.proxy(grid.proxy(alice, path_length=1), path_length=9),
    ):
        assert world.openssl_verify(credential).startswith("0 "), credential
        assert world.ours(credential) == "OK"


BOTH_REFUSE = (
    "unknown_ca_user", "forged_user", "expired_user", "expired_proxy", "future_proxy", "expired_user_proxy",
    "wrong_name_proxy", "two_names_proxy", "pathlen_exceeded_chain", "ca_bit_proxy", "alternative_name_proxy",
    "legacy_proxy", "forged_proxy", "end_entity_of_user", "malformed_proxy",
)  # fmt: skip
ONLY_WE_REFUSE = (
    "full_below_limited", "unknown_policy_language", "policy_with_inherit_all", "not_critical_proxy",
    "outside_namespace_user", "server_only_user",
)  # fmt: skip
"""OpenSSL leaves policy languages, namespaces and purposes to its caller."""


@needs_openssl
@pytest.mark.parametrize("fault", BOTH_REFUSE)
def test_what_openssl_refuses_we_refuse(ec_world: World, fault: str) -> None:
    credential = getattr(ec_world.grid, fault)()
    assert not ec_world.openssl_verify(credential).startswith("0 ")
    assert ec_world.ours(credential) != "OK"


@needs_openssl
@pytest.mark.parametrize("fault", ONLY_WE_REFUSE)
def test_what_only_we_refuse(ec_world: World, fault: str) -> None:
    credential = getattr(ec_world.grid, fault)()
    assert ec_world.openssl_verify(credential).startswith("0 ")
    assert ec_world.ours(credential) != "OK"


@needs_openssl
def test_revocation_agrees_with_openssl_and_goes_further(ec_world: World) -> None:
    grid = ec_world.grid
    alice, bob = grid.user("alice"), grid.user("bob")
    proxy, stolen = grid.proxy(alice), grid.proxy(bob)
    grid.revoke(alice)
    grid.revoke_proxy(stolen)
    assert "revoked" in ec_world.openssl_verify(proxy)
    assert ec_world.ours(proxy) == Reason.CERTIFICATE_REVOKED
    # The two traps: a leaf-only check accepts the proxy of a revoked user; a proxy's serial is never looked up.
    assert ec_world.openssl_verify(proxy, "-allow_proxy_certs", "-crl_check").startswith("0 ")
    assert ec_world.openssl_verify(stolen).startswith("0 ")
    assert ec_world.ours(stolen) == Reason.PROXY_REVOKED


@needs_openssl
@pytest.mark.parametrize("spoil", ["expired_crl", "missing_crl", "garbage_crl", "forged_crl", "future_crl"])
def test_a_bad_list_is_refused_by_both(ec_world: World, spoil: str) -> None:
    alice = ec_world.grid.user("alice")
    getattr(ec_world.grid, spoil)()
    ec_world.grid.trust_store = type(ec_world.grid.trust_store)(ec_world.grid.trust_directory)
    assert not ec_world.openssl_verify(alice).startswith("0 ")
    assert ec_world.ours(alice).startswith("CRL_")


@needs_openssl
def test_hashes_and_names_are_those_of_openssl(ec_world: World) -> None:
    for subject in ("/C=XX/O=TestGrid/CN=host/ce.example.org", "/C=XX/O=TestGrid/CN=Jos\u00e9 \u0141 x,+y"):
        name = DistinguishedName.parse(subject)
        key = ec_world.grid.user("alice").key
        certificate = ec_world.grid.certificate(name.to_x509(), key)
        path = ec_world.folder / "one.pem"
        path.write_bytes(certificates.pem([certificate]))
        assert ec_world.run("openssl", "x509", "-noout", "-hash", "-in", str(path)).split()[1] == subject_hash(
            certificate
        )
        old = ec_world.run("openssl", "x509", "-noout", "-subject_hash_old", "-in", str(path)).split()[1]
        assert old == subject_hash_old(certificate)
        shown = ec_world.run("openssl", "x509", "-noout", "-subject", "-nameopt", "compat", "-in", str(path))
        printed = shown.split("subject=", 1)[1].strip()
        assert DistinguishedName.parse(printed) == name
        assert printed.replace("\\/", "/").replace("\\+", "+") == name.openssl_oneline()


# Globus


@needs_globus
def test_grid_proxy_info_reads_our_proxies(rsa_world: World) -> None:
    grid = rsa_world.grid
    alice = grid.user("alice")
    for proxy, kind in (
        (grid.proxy(alice), "RFC 3820 compliant impersonation proxy"),
        (grid.limited(alice), "RFC 3820 compliant limited proxy"),
        (grid.proxy(alice, independent=True), "RFC 3820 compliant independent proxy"),
    ):
        told = rsa_world.run("grid-proxy-info", "-all", proxy=rsa_world.save(proxy))
        assert told.startswith("0 "), told
        assert kind in told
        assert re.search(r"^subject\s*:\s*" + re.escape(str(proxy.subject)) + "$", told[2:], re.MULTILINE), told
        assert re.search(r"^identity\s*:\s*/C=XX/O=TestGrid/CN=alice", told, re.MULTILINE), told
        assert rsa_world.run("grid-proxy-info", "-exists", "-valid", "1:00", proxy=rsa_world.save(proxy)).startswith(
            "0 "
        )


@needs_globus
def test_grid_proxy_info_and_p256(ec_world: World) -> None:
    told = ec_world.run("grid-proxy-info", "-all", proxy=ec_world.save(ec_world.grid.proxy("alice")))
    assert told.startswith("0 "), told
    assert "RFC 3820 compliant impersonation proxy" in told


@needs_globus
@pytest.mark.parametrize(
    ("options", "limited"),
    [(("-rfc",), False), ((), False), (("-rfc", "-limited"), True)],
    ids=["rfc", "default", "limited"],
)
def test_we_accept_proxies_of_grid_proxy_init(rsa_world: World, options: tuple[str, ...], limited: bool) -> None:
    world, grid = rsa_world, rsa_world.grid
    user = grid.save_user(grid.user("alice"), world.folder / "alice")
    out = world.folder / "globus.pem"
    told = world.run("grid-proxy-init", *options, "-verify", "-valid", "2:00", "-out", str(out), user=user)
    assert told.startswith("0 "), told
    assert "Proxy Verify OK" in told
    made = Credential.load(out)
    identity = validate_client_chain(made.pem_chain(), grid.trust, ValidationPolicy(), datetime.now(UTC))
    assert str(identity.subject) == "/C=XX/O=TestGrid/CN=alice"
    assert identity.is_limited == limited
    assert identity.proxy_depth == 1
    below = grid.proxy(made)
    assert world.ours(below) == "OK"
    assert world.openssl_verify(below).startswith("0 ")


@needs_globus
def test_grid_proxy_init_cannot_sign_with_a_p256_user_key(ec_world: World) -> None:
    """A limit of Globus, recorded: its users need RSA certificates; P-256 proxies below them are fine."""
    user = ec_world.grid.save_user(ec_world.grid.user("alice"), ec_world.folder / "alice")
    told = ec_world.run("grid-proxy-init", "-debug", "-out", str(ec_world.folder / "x.pem"), user=user)
    assert "signing algorithm not supported" in told


@needs_globus
def test_p256_proxy_of_an_rsa_user(rsa_world: World) -> None:
    mixed = create_proxy(rsa_world.grid.user("alice"), lifetime=timedelta(hours=1), now=rsa_world.grid.now)
    told = rsa_world.run("grid-proxy-info", "-all", proxy=rsa_world.save(mixed))
    assert "RFC 3820 compliant impersonation proxy" in told
    assert rsa_world.openssl_verify(mixed).startswith("0 ")
    assert rsa_world.ours(mixed) == "OK"


@needs_globus
@pytest.mark.parametrize("options", [("-old",), ("-old", "-limited"), ("-draft",)], ids=["old", "old-limited", "draft"])
def test_we_refuse_older_proxies_with_a_clear_reason(rsa_world: World, options: tuple[str, ...]) -> None:
    grid = rsa_world.grid
    user = grid.save_user(grid.user("alice"), rsa_world.folder / "alice")
    out = rsa_world.folder / "old.pem"
    told = rsa_world.run("grid-proxy-init", *options, "-out", str(out), user=user)
    assert told.startswith("0 "), told
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(Credential.load(out).pem_chain(), grid.trust, ValidationPolicy(), datetime.now(UTC))
    assert caught.value.reason == Reason.PROXY_LEGACY
    assert "grid-proxy-init -rfc" in caught.value.sentence


@needs_globus
def test_globus_checks_our_authority_list_and_policy(rsa_world: World) -> None:
    """`grid-proxy-init -verify` reads certificate, revocation list and signing policy from the trust directory."""
    grid = rsa_world.grid
    alice = grid.user("alice")
    user = grid.save_user(alice, rsa_world.folder / "alice")
    out = str(rsa_world.folder / "x.pem")
    assert "Proxy Verify OK" in rsa_world.run("grid-proxy-init", "-verify", "-out", out, user=user)
    eve = grid.save_user(grid.outside_namespace_user(), rsa_world.folder / "eve")
    told = rsa_world.run("grid-proxy-init", "-verify", "-out", out, user=eve)
    assert not told.startswith("0 "), told
    grid.revoke(alice)
    told = rsa_world.run("grid-proxy-init", "-verify", "-out", out, user=user)
    assert not told.startswith("0 "), told


# VOMS


@needs_voms
def test_voms_proxy_info_reads_our_proxies(world: World) -> None:
    proxy = world.grid.proxy("alice")
    told = world.run("voms-proxy-info", "-all", "-file", str(world.save(proxy)))
    assert told.startswith("0 "), told
    assert str(proxy.subject) in told
    assert "RFC" in told


@needs_voms
@pytest.mark.parametrize(
    "options", [(), ("-newformat",), ("-target", "ce.example.org")], ids=["plain", "newformat", "target"]
)
def test_we_accept_attribute_certificates_of_voms(rsa_world: World, options: tuple[str, ...]) -> None:
    grid = rsa_world.grid
    user = grid.save_user(grid.user("alice"), rsa_world.folder / "alice")
    server = grid.host("localhost", subject="voms/localhost")
    host = grid.save_user(server, rsa_world.folder / "host")
    out = rsa_world.folder / "voms.pem"
    told = rsa_world.run(
        "voms-proxy-fake", "-rfc", *options, "-voms", "testvo", "-cert", str(user[0]), "-key", str(user[1]),
        "-certdir", str(grid.trust_directory), "-hostcert", str(host[0]), "-hostkey", str(host[1]),
        "-fqan", "/testvo/Role=NULL/Capability=NULL", "-fqan", "/testvo/physics/Role=pilot/Capability=NULL",
        "-uri", "localhost:15000", "-out", str(out),
    )  # fmt: skip
    assert told.startswith("0 "), told
    now = datetime.now(UTC)
    identity = validate_client_chain(Credential.load(out).pem_chain(), grid.trust, ValidationPolicy(), now)
    servers = voms.VomsDirectory({"testvo": ((server.subject, grid.ca.subject),)})
    if "-target" in options:  # the tool loses the name and writes an empty list: it is for nobody, rather than for all
        (why,) = voms.objections(identity, servers, grid.trust, ValidationPolicy(), now)
        assert "it is only for nobody" in why
        return
    (found,) = voms.verify_attributes(identity, servers, grid.trust, ValidationPolicy(), now)
    assert found.fqans == ("/testvo", "/testvo/physics/Role=pilot")


@needs_voms
def test_voms_proxy_info_reads_our_attribute_certificates(rsa_world: World) -> None:
    grid = rsa_world.grid
    alice, server = grid.user("alice"), grid.host("localhost", subject="voms-localhost")
    encoded = voms.create_attribute_certificate(
        server, alice.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo", "/testvo/physics/Role=pilot"],
        lifetime=timedelta(hours=12), now=grid.now,
    )  # fmt: skip
    proxy = create_proxy(
        alice, lifetime=timedelta(hours=12), now=grid.now, extensions=[voms.proxy_extension([encoded])]
    )
    told = rsa_world.run("voms-proxy-info", "-all", "-file", str(rsa_world.save(proxy)))
    assert told.startswith("0 "), told
    assert "VO        : testvo" in told
    assert "attribute : /testvo/physics/Role=pilot/Capability=NULL" in told
    assert rsa_world.openssl_verify(proxy).startswith("0 ")


# Pool accounts


def test_lease_names_are_those_of_globus() -> None:
    """The name that a Globus 6.2 gatekeeper made for this person."""
    carol = DistinguishedName.parse("/C=XX/O=PeerGrid/OU=People/CN=Carol Pool")
    assert encode_subject(carol) == "%2fc%3dxx%2fo%3dpeergrid%2fou%3dpeople%2fcn%3dcarol%20pool"


def test_a_proxy_never_outlives_its_chain(ec_world: World) -> None:
    alice = ec_world.grid.user("alice", lifetime=timedelta(hours=1))
    assert ec_world.grid.proxy(alice, lifetime=timedelta(days=9)).not_after == alice.not_after
