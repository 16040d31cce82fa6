"""What the reference implementations get wrong in validation, seen on running systems: one test each, ours is right.

Globus GCT 6.2, ARC A-REX 6.17, VOMS 2.1, OpenSSL 3.0 as Debian 12 ships them. Beside the running tools:
tests/interop/test_security_tools.py and test_security_agreement.py.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from security import voms
from security.authorization import authorize
from security.bans import BanList
from security.credentials import Credential, find_proxy_path
from security.errors import CredentialError, MappingError, Reason, SecurityError, ValidationError
from security.mapfile import GridMapFile
from security.proxies import create_proxy, proxy_info
from security.testing import NOW, TestGrid
from security.trust import TrustStore
from security.validation import Identity, ValidationPolicy, validate_client_chain

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def judge(grid: TestGrid, credential: Credential) -> Identity:
    """As a service that was just started."""
    trust = TrustStore(grid.trust_directory).snapshot()
    return validate_client_chain(credential.pem_chain(), trust, ValidationPolicy(), grid.now)


def refusal(grid: TestGrid, credential: Credential) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        judge(grid, credential)
    return caught.value


def test_arex_accepts_the_proxy_of_a_revoked_user(grid: TestGrid) -> None:
    """Only the leaf is looked up there."""
    proxy = grid.proxy(grid.proxy("alice"))
    grid.revoke(proxy)
    assert refusal(grid, proxy).reason == Reason.CERTIFICATE_REVOKED


def test_openssl_never_looks_up_the_serial_of_a_proxy(grid: TestGrid) -> None:
    proxy = grid.proxy("alice")
    below = grid.proxy(proxy)
    grid.revoke_proxy(proxy)
    assert refusal(grid, proxy).reason == refusal(grid, below).reason == Reason.PROXY_REVOKED


def test_globus_accepts_everybody_without_a_revocation_list(grid: TestGrid) -> None:
    alice = grid.user("alice")
    grid.missing_crl()
    error = refusal(grid, alice)
    assert error.reason == Reason.CRL_MISSING
    assert "the site must fetch it" in error.sentence


@pytest.mark.parametrize("content", [b"garbage", b"", b"-----BEGIN X509 CRL-----\nAAAA\n"])
def test_globus_with_openssl_3_0_22_accepts_an_unreadable_revocation_list(grid: TestGrid, content: bytes) -> None:
    alice = grid.user("alice")
    grid.revoke(alice)
    grid.crl_path.write_bytes(content)
    assert refusal(grid, alice).reason == Reason.CRL_MISSING
    problems = TrustStore(grid.trust_directory).problems
    assert [problem.reason for problem in problems] == [Reason.CRL_INVALID]


def test_globus_gives_no_warning_before_a_list_expires(grid: TestGrid) -> None:
    crl = grid.trust.authorities[0].crl
    assert crl is not None and crl.next_update is not None
    for before, step in ((6 * DAY, 7 * DAY), (20 * HOUR, DAY), (HOUR / 2, HOUR)):
        (alarm,) = grid.trust.alarms(crl.next_update - before)
        assert alarm.step == step and "fetch a new one" in alarm.sentence
        judge(grid, grid.user("alice"))  # still accepted


FAULTS = (
    "unknown_ca_user", "forged_user", "expired_user", "outside_namespace_user", "expired_proxy", "future_proxy",
    "wrong_name_proxy", "pathlen_exceeded_chain", "full_below_limited", "unknown_policy_language", "legacy_proxy",
)  # fmt: skip


def test_globus_answers_check_host_and_port_to_every_refusal(grid: TestGrid) -> None:
    """Code 12 for all of them, the reason only in the server's log. Here each has its own, and names a certificate."""
    reasons: set[Reason] = set()
    for fault in FAULTS:
        error = refusal(grid, getattr(grid, fault)())
        reasons.add(error.reason)
        assert error.facts["serial"] in error.sentence
        assert ";" in error.sentence or "ask" in error.sentence or "check" in error.sentence
    assert len(reasons) == len(FAULTS)


def test_grid_proxy_init_writes_no_path_length_of_zero(grid: TestGrid) -> None:
    """`-path-length 0` is no limit at all there: the library has `if (pathlen > 0)`."""
    proxy = grid.proxy("alice", path_length=0)
    info = proxy_info(proxy.certificate)
    assert info is not None and info.path_length == 0
    assert refusal(grid, grid.raw_proxy(proxy)).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED


def test_globus_hangs_for_ever_when_a_path_length_0_proxy_submits(grid: TestGrid) -> None:
    """The delegated proxy is invalid everywhere. Here the delegation itself is refused, at once and with the cure."""
    with pytest.raises(CredentialError) as caught:
        create_proxy(grid.proxy("alice", path_length=0), lifetime=HOUR, now=NOW)
    assert caught.value.reason == Reason.PROXY_PATH_LENGTH_EXCEEDED
    assert "start from a proxy without" in caught.value.sentence


@pytest.mark.parametrize("limited", [False, True])
def test_globus_accepts_legacy_proxies_of_users_without_key_usage(grid: TestGrid, limited: bool) -> None:
    from security.names import DistinguishedName
    from security.testing import shared_key

    key = shared_key()
    plain = Credential(grid.certificate(DistinguishedName.parse("/C=XX/O=TestGrid/CN=plain").to_x509(), key), key)
    judge(grid, plain)
    error = refusal(grid, grid.legacy_proxy(plain, limited=limited))
    assert error.reason == Reason.PROXY_LEGACY
    assert "grid-proxy-init -rfc" in error.sentence


def test_globus_honours_a_map_line_to_root(grid: TestGrid) -> None:
    map_file = GridMapFile.loads('"/C=XX/O=TestGrid/CN=alice" root\n')
    assert "nobody may be mapped to root" in map_file.problems[0].sentence
    with pytest.raises(MappingError) as caught:
        authorize(judge(grid, grid.user("alice")), bans=BanList(), map_file=map_file)
    assert caught.value.reason == Reason.NOT_MAPPED


def test_globus_honours_an_account_that_is_root_by_another_name(grid: TestGrid) -> None:
    map_file = GridMapFile.loads('"/C=XX/O=TestGrid/CN=alice" admin\n')
    with pytest.raises(MappingError) as caught:
        authorize(
            judge(grid, grid.user("alice")), bans=BanList(), map_file=map_file, account_lookup=lambda name: (0, 0)
        )
    assert caught.value.reason == Reason.ACCOUNT_UNKNOWN


def test_globus_ignores_malformed_map_lines_in_silence() -> None:
    map_file = GridMapFile.loads('"/CN=a" x\n"/CN=b y\nnonsense\n"/CN=c" z\n')
    assert [problem.line for problem in map_file.problems] == [2, 3]
    assert all("correct that line" in problem.sentence for problem in map_file.problems)
    assert len(map_file.entries) == 2


def attributes(grid: TestGrid, credential: Credential, server: Credential) -> tuple[voms.VomsAttributes, ...]:
    encoded = voms.create_attribute_certificate(
        server, credential.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo"], lifetime=12 * HOUR,
        now=NOW,
    )  # fmt: skip
    proxy = create_proxy(credential, lifetime=12 * HOUR, now=NOW, extensions=[voms.proxy_extension([encoded])])
    servers = voms.VomsDirectory({"testvo": ((server.subject, grid.ca.subject),)})
    trust = TrustStore(grid.trust_directory).snapshot()
    identity = validate_client_chain(proxy.pem_chain(), trust, ValidationPolicy(), NOW)
    return voms.verify_attributes(identity, servers, trust, ValidationPolicy(), NOW)


def test_voms_proxy_info_all_verifies_no_attribute_certificate(grid: TestGrid) -> None:
    """It prints the attributes of a server that nobody trusts as it prints good ones."""
    alice = grid.user("alice")
    good = grid.host("localhost", subject="voms/localhost")
    assert attributes(grid, alice, good)[0].fqans == ("/testvo",)
    forged = grid.host("localhost", subject="voms/elsewhere")
    with pytest.raises(SecurityError) as caught:
        encoded = voms.create_attribute_certificate(
            forged, alice.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo"], lifetime=12 * HOUR,
            now=NOW,
        )  # fmt: skip
        proxy = create_proxy(alice, lifetime=12 * HOUR, now=NOW, extensions=[voms.proxy_extension([encoded])])
        servers = voms.VomsDirectory({"testvo": ((good.subject, grid.ca.subject),)})
        identity = validate_client_chain(proxy.pem_chain(), grid.trust, ValidationPolicy(), NOW)
        voms.verify_attributes(identity, servers, grid.trust, ValidationPolicy(), NOW)
    assert caught.value.reason == Reason.ATTRIBUTE_INVALID


def test_voms_server_checks_neither_revocation_nor_namespaces(grid: TestGrid) -> None:
    """What it gives such a user is worth nothing here; and its own revoked certificate vouches for nobody."""
    server = grid.host("localhost", subject="voms/localhost")
    with pytest.raises(SecurityError) as outside:
        attributes(grid, grid.outside_namespace_user(), server)
    assert outside.value.reason == Reason.NAMESPACE_VIOLATION
    alice = grid.user("alice")
    grid.revoke(server)
    with pytest.raises(SecurityError) as revoked:
        attributes(grid, alice, server)
    assert revoked.value.reason == Reason.CERTIFICATE_REVOKED


def test_globus_tools_take_the_certificate_although_a_proxy_is_named(grid: TestGrid) -> None:
    """X509_USER_CERT and X509_USER_KEY win over X509_USER_PROXY there: a test about a proxy passes wrongly."""
    environment = {"X509_USER_PROXY": "/tmp/p", "X509_USER_CERT": "/tmp/c", "X509_USER_KEY": "/tmp/k"}
    assert str(find_proxy_path(environment, 1000)) == "/tmp/p"


def test_openssl_leaves_policy_languages_namespaces_and_purposes_to_its_caller(grid: TestGrid) -> None:
    for fault, reason in (
        ("full_below_limited", Reason.PROXY_RIGHTS_WIDENED),
        ("unknown_policy_language", Reason.PROXY_POLICY_UNKNOWN),
        ("outside_namespace_user", Reason.NAMESPACE_VIOLATION),
        ("server_only_user", Reason.KEY_USAGE),
    ):
        assert refusal(grid, getattr(grid, fault)()).reason == reason
