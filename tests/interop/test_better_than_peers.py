"""What the reference implementations get wrong with credentials, seen on running systems: one test each, ours is right.

Globus GCT 6.2, ARC A-REX 6.17, VOMS 2.1, OpenSSL 3.0 as Debian 12 ships them. Where the tool is small enough it runs
beside ours on the same files. Their services: test_better_than_peers_services.py. All of them: docs/security.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.peers import World, needs_globus, needs_globus_library, needs_openssl, needs_voms

from agents.user_interface.main import run
from security import voms
from security.authorization import authorize
from security.bans import BanList
from security.credentials import Credential, find_proxy_path
from security.errors import CredentialError, MappingError, Reason, SecurityError, ValidationError
from security.gridmapdir import GridMapDir
from security.mapfile import GridMapFile
from security.names import DistinguishedName
from security.proxies import create_proxy, proxy_info
from security.testing import TestGrid, shared_key
from security.trust import TrustStore
from security.validation import Identity, ValidationPolicy, validate_client_chain

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, "ec-p256")
    yield made
    made.grid.close()


@pytest.fixture
def rsa_world(tmp_path: Path) -> Iterator[World]:
    """The C tools sign with RSA keys only."""
    made = World(tmp_path, "rsa-2048")
    yield made
    made.grid.close()


@pytest.fixture
def grid(world: World) -> TestGrid:
    return world.grid


def judge(grid: TestGrid, credential: Credential) -> Identity:
    """As a service that was just started."""
    trust = TrustStore(grid.trust_directory).snapshot()
    return validate_client_chain(credential.pem_chain(), trust, ValidationPolicy(), datetime.now(UTC))


def refusal(grid: TestGrid, credential: Credential) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        judge(grid, credential)
    return caught.value


# Revocation


@needs_openssl
def test_arex_accepts_the_proxy_of_a_revoked_user(world: World) -> None:
    """It asks OpenSSL to look up the leaf alone."""
    proxy = world.grid.proxy(world.grid.proxy("alice"))
    world.grid.revoke(proxy)
    assert world.openssl_verify(proxy, "-allow_proxy_certs", "-crl_check").startswith("0 ")
    assert refusal(world.grid, proxy).reason == Reason.CERTIFICATE_REVOKED


@needs_openssl
def test_openssl_never_looks_up_the_serial_of_a_proxy(world: World) -> None:
    proxy = world.grid.proxy("alice")
    below = world.grid.proxy(proxy)
    world.grid.revoke_proxy(proxy)
    assert world.openssl_verify(proxy).startswith("0 ")
    assert refusal(world.grid, proxy).reason == refusal(world.grid, below).reason == Reason.PROXY_REVOKED


@needs_globus_library
def test_globus_accepts_everybody_without_a_revocation_list(world: World) -> None:
    alice = world.grid.proxy("alice")
    world.grid.revoke(alice)
    assert world.globus(alice).startswith("REFUSED")
    world.grid.missing_crl()
    assert world.globus(alice) == "OK"
    error = refusal(world.grid, alice)
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


# Sentences

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


@needs_globus_library
def test_globus_has_no_plain_words_for_an_authority_with_a_stolen_name(rsa_world: World) -> None:
    forged = rsa_world.grid.forged_user("alice")
    told = rsa_world.globus(forged)
    assert told.startswith("REFUSED") and "sign" not in told
    error = refusal(rsa_world.grid, forged)
    assert error.reason == Reason.BAD_SIGNATURE and "TestGrid CA" in error.sentence


# Proxies


@needs_globus
def test_grid_proxy_init_writes_no_path_length_of_zero(rsa_world: World) -> None:
    """`-path-length 0` is no limit at all there: the library has `if (pathlen > 0)`."""
    grid, out = rsa_world.grid, rsa_world.folder / "globus.pem"
    user = grid.save_user(grid.user("alice"), rsa_world.folder / "alice")
    assert rsa_world.run("grid-proxy-init", "-path-length", "0", "-out", str(out), user=user).startswith("0 ")
    theirs, ours = (
        proxy_info(Credential.load(out).certificate),
        proxy_info(grid.proxy("bob", path_length=0).certificate),
    )
    assert theirs is not None and theirs.path_length is None
    assert ours is not None and ours.path_length == 0
    assert refusal(grid, grid.pathlen_exceeded_chain()).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED


def test_globus_hangs_for_ever_when_a_path_length_0_proxy_submits(grid: TestGrid) -> None:
    """The delegated proxy is invalid everywhere. Here the delegation itself is refused, at once and with the cure."""
    with pytest.raises(CredentialError) as caught:
        create_proxy(grid.proxy("alice", path_length=0), lifetime=HOUR, now=grid.now)
    assert caught.value.reason == Reason.PROXY_PATH_LENGTH_EXCEEDED
    assert "start from a proxy without" in caught.value.sentence


@pytest.mark.parametrize("limited", [False, True])
def test_globus_accepts_legacy_proxies_of_users_without_key_usage(grid: TestGrid, limited: bool) -> None:
    key = shared_key()
    plain = Credential(grid.certificate(DistinguishedName.parse("/C=XX/O=TestGrid/CN=plain").to_x509(), key), key)
    judge(grid, plain)
    error = refusal(grid, grid.legacy_proxy(plain, limited=limited))
    assert error.reason == Reason.PROXY_LEGACY
    assert "grid-proxy-init -rfc" in error.sentence


@needs_globus
def test_globus_accepts_draft_proxies(rsa_world: World) -> None:
    grid, out = rsa_world.grid, rsa_world.folder / "draft.pem"
    user = grid.save_user(grid.user("alice"), rsa_world.folder / "alice")
    assert "Proxy Verify OK" in rsa_world.run("grid-proxy-init", "-draft", "-verify", "-out", str(out), user=user)
    assert refusal(grid, Credential.load(out)).reason == Reason.PROXY_LEGACY


@needs_globus
def test_grid_proxy_info_is_content_with_an_expired_proxy(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.save(world.grid.expired_proxy())
    assert world.run("grid-proxy-info", "-timeleft", proxy=path).startswith("0 ")
    assert run(["proxy", "info", "--file", str(path)]) == 1
    assert "expired" in "".join(capsys.readouterr())


@needs_globus
def test_globus_tools_cannot_read_dates_from_2050_on(rsa_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """They say that the proxy is not there."""
    grid = rsa_world.grid
    user = grid.user("alice", lifetime=timedelta(days=365 * 30))
    long = grid.raw_proxy(user, not_after=datetime(2051, 1, 1, tzinfo=UTC))
    told = rsa_world.run("grid-proxy-info", "-timeleft", proxy=rsa_world.save(long))
    assert not told.startswith("0 ") or told.split()[1].startswith("-"), told
    assert judge(grid, long).not_after.year == min(2051, grid.ca.certificate.not_valid_after_utc.year)
    assert run(["proxy", "info", "--file", str(rsa_world.save(long))]) == 0
    capsys.readouterr()


def test_globus_tools_take_the_certificate_although_a_proxy_is_named() -> None:
    """X509_USER_CERT and X509_USER_KEY win over X509_USER_PROXY there: a test about a proxy passes wrongly."""
    environment = {"X509_USER_PROXY": "/tmp/p", "X509_USER_CERT": "/tmp/c", "X509_USER_KEY": "/tmp/k"}
    assert str(find_proxy_path(environment, 1000)) == "/tmp/p"


@needs_openssl
def test_openssl_leaves_policy_languages_namespaces_and_purposes_to_its_caller(world: World) -> None:
    for fault, reason in (
        ("full_below_limited", Reason.PROXY_RIGHTS_WIDENED),
        ("unknown_policy_language", Reason.PROXY_POLICY_UNKNOWN),
        ("outside_namespace_user", Reason.NAMESPACE_VIOLATION),
        ("server_only_user", Reason.KEY_USAGE),
    ):
        credential = getattr(world.grid, fault)()
        assert world.openssl_verify(credential).startswith("0 ")
        assert refusal(world.grid, credential).reason == reason


# Map files and accounts


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


def test_globus_fails_to_run_the_job_manager_for_an_account_that_does_not_exist(grid: TestGrid) -> None:
    """Code 47 and no word of the account; here it is named."""
    map_file = GridMapFile.loads('"/C=XX/O=TestGrid/CN=alice" nosuchaccount\n')
    with pytest.raises(MappingError) as caught:
        authorize(judge(grid, grid.user("alice")), bans=BanList(), map_file=map_file, account_lookup=lambda name: None)
    assert caught.value.reason == Reason.ACCOUNT_UNKNOWN and "nosuchaccount" in caught.value.sentence


def test_globus_ignores_malformed_map_lines_in_silence() -> None:
    map_file = GridMapFile.loads('"/CN=a" x\n"/CN=b y\nnonsense\n"/CN=c" z\n')
    assert [problem.line for problem in map_file.problems] == [2, 3]
    assert all("correct that line" in problem.sentence for problem in map_file.problems)
    assert len(map_file.entries) == 2


def test_globus_says_could_not_map_when_there_is_no_map_file(tmp_path: Path) -> None:
    with pytest.raises(MappingError) as caught:
        GridMapFile.load(tmp_path / "grid-mapfile")
    assert caught.value.reason == Reason.MAP_FILE_INVALID and str(tmp_path / "grid-mapfile") in caught.value.sentence


def test_globus_never_gives_a_pool_account_back(tmp_path: Path) -> None:
    pool = GridMapDir(tmp_path / "gridmapdir")
    pool.create_accounts("cms", 1)
    alice, bob = DistinguishedName.parse("/CN=alice"), DistinguishedName.parse("/CN=bob")
    assert pool.lease(alice, "cms") == "cms001"
    (lease,) = pool.leases()
    assert pool.recycle(lease, lambda _: "") == ""  # nothing of hers is left
    assert pool.lease(bob, "cms") == "cms001"


# VOMS


def with_attributes(grid: TestGrid, user: Credential, server: Credential) -> Credential:
    encoded = voms.create_attribute_certificate(
        server, user.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo"], lifetime=12 * HOUR,
        now=grid.now,
    )  # fmt: skip
    return create_proxy(user, lifetime=12 * HOUR, now=grid.now, extensions=[voms.proxy_extension([encoded])])


def attributes(grid: TestGrid, proxy: Credential, believed: Credential) -> tuple[voms.VomsAttributes, ...]:
    servers = voms.VomsDirectory({"testvo": ((believed.subject, grid.ca.subject),)})
    trust = TrustStore(grid.trust_directory).snapshot()
    return voms.verify_attributes(judge(grid, proxy), servers, trust, ValidationPolicy(), datetime.now(UTC))


@needs_voms
def test_voms_proxy_info_all_verifies_no_attribute_certificate(
    rsa_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the attributes of a server that nobody trusts as it prints good ones, and exits with 0."""
    grid = rsa_world.grid
    alice, good = grid.user("alice"), grid.host("localhost", subject="voms/localhost")
    assert attributes(grid, with_attributes(grid, alice, good), good)[0].fqans == ("/testvo",)
    forged = with_attributes(grid, alice, grid.host("localhost", subject="voms/elsewhere"))
    path = rsa_world.save(forged)
    told = rsa_world.run("voms-proxy-info", "-all", "-file", str(path))
    assert told.startswith("0 ") and "attribute : /testvo/Role=NULL" in told, told
    with pytest.raises(SecurityError) as caught:
        attributes(grid, forged, good)
    assert caught.value.reason == Reason.ATTRIBUTE_INVALID
    vomsdir = tmp_path / "vomsdir" / "testvo"
    vomsdir.mkdir(parents=True)
    (vomsdir / "localhost.lsc").write_text(voms.lsc_text([good.subject, grid.ca.subject]))
    options = ["--trust-dir", str(grid.trust_directory), "--vomsdir", str(vomsdir.parent)]
    assert run(["proxy", "verify", str(path), *options]) == 1
    assert "no .lsc file of testvo names" in "".join(capsys.readouterr())


def test_voms_server_checks_neither_revocation_nor_namespaces(grid: TestGrid) -> None:
    """What it gives such a user is worth nothing here (with the server itself: test_voms_of_the_field.py); and its own
    revoked certificate vouches for nobody."""
    server = grid.host("localhost", subject="voms/localhost")
    with pytest.raises(SecurityError) as outside:
        attributes(grid, with_attributes(grid, grid.outside_namespace_user(), server), server)
    assert outside.value.reason == Reason.NAMESPACE_VIOLATION
    proxy = with_attributes(grid, grid.user("alice"), server)
    grid.revoke(server)
    with pytest.raises(SecurityError) as revoked:
        attributes(grid, proxy, server)
    assert revoked.value.reason == Reason.CERTIFICATE_REVOKED


def test_voms_server_leaves_generic_attributes_empty(grid: TestGrid) -> None:
    """`nickname =` is all that arrives of them."""
    alice, server = grid.user("alice"), grid.host("localhost", subject="voms/localhost")
    encoded = voms.create_attribute_certificate(
        server, alice.certificate, vo="testvo", uri="localhost:15000", fqans=["/testvo"], lifetime=HOUR, now=grid.now,
        attributes=[voms.GenericAttribute("nickname", "alice", "testvo")],
    )  # fmt: skip
    proxy = create_proxy(alice, lifetime=HOUR, now=grid.now, extensions=[voms.proxy_extension([encoded])])
    (found,) = attributes(grid, proxy, server)
    assert [(one.name, one.value) for one in found.attributes] == [("nickname", "alice")]


def test_every_row_of_the_table_names_a_test() -> None:
    """docs/security.md has each defect with the test that shows ours right."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "security.md").read_text()
    rows = [line for line in text.partition("## Better than the peers")[2].partition("\n## ")[0].splitlines()
            if line.startswith("| ") and "`test" in line]  # fmt: skip
    assert len(rows) >= 35
    for row in rows:
        *_, cell = (part.strip() for part in row.strip("|").split("|"))
        name, module = cell.replace("`", "").split(" in ")
        (found,) = root.glob(f"tests/*/{module}.py") or root.glob(f"tests/*/*/{module}.py")
        assert f"def {name}(" in found.read_text(), row
