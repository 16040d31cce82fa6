"""Several authorities of one grid: what may be made, added, rolled over and removed, and above all what may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from unit.authority.test_authority_register import request

from agents.authority.authorities import FIRST, Authorities
from agents.authority.config import AuthorityConfig
from agents.authority.register import Register
from agents.authority.store import AuthorityRow
from agents.authority.trust import MAX_PUSHED_CRL_BYTES, trust_set
from fabric.errors import AlreadyExists, Conflict, GridError, InvalidRequest, NotFound
from fabric.trust_push import install, remember
from security.authority import ROBOT_POLICY, CertificateAuthority
from security.credentials import generate_key
from security.errors import SecurityError
from security.installation import install_authority
from security.testing import shared_key
from security.trust import TrustStore
from security.validation import ValidationPolicy, validate_client_chain

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


class Grid:
    """Authorities and their register, as the agent has them, without the agent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.config = AuthorityConfig(user_lifetime_s=90 * 86400.0)
        self.authorities = self.opened(
            CertificateAuthority.create(
                folder / "ca", "/O=EDG/CN=CA", lifetime=999 * DAY, now=NOW, namespace="/O=EDG/*",
                key=shared_key("ec-p256", 1),
            )
        )  # fmt: skip

    def opened(self, first: CertificateAuthority) -> Authorities:
        return Authorities(first, self.folder / "authorities", self.config, "/O=EDG", self.clock)

    @property
    def register(self) -> Register:
        return Register(self.authorities, self.config, "/O=EDG", self.clock)

    def make(self, name: str, parent: str = "", *namespace: str) -> CertificateAuthority:
        self.authorities.keep(self.authorities.make(name, parent, namespace, 0))
        return self.authorities.own(name)

    def user(self, name: str, authority: str = "", *, renew: bool = False) -> x509.Certificate:
        return x509.load_pem_x509_certificate(
            self.register.issue_user(name, request(), 0, renew=renew, authority=authority)
        )

    def foreign(self, subject: str = "/O=Else/CN=Their CA") -> CertificateAuthority:
        return CertificateAuthority.create(
            self.folder / subject.rpartition("=")[2], subject, lifetime=99 * DAY, now=NOW,
            key=shared_key("ec-p256", 400 + len(subject)),
        )  # fmt: skip


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grid]:
    # RSA keys, which the product makes here, take a second each
    monkeypatch.setattr("security.authority.generate_key", lambda kind: generate_key("ec-p256"))
    made = Grid(tmp_path)
    yield made
    made.authorities.close()


@pytest.mark.parametrize(
    "name", ["", " ", "grid", "a/b", "../up", "x" * 65, "new\nline", "a=b", ".hidden", "trailing ", "ünï"]
)
def test_names_that_are_none_are_refused(grid: Grid, name: str) -> None:
    with pytest.raises((InvalidRequest, AlreadyExists)) as caught:
        grid.authorities.make(name, "", (), 0)
    assert caught.value.reason in ("NAME_INVALID", "AUTHORITY_EXISTS")
    assert not (grid.folder / "authorities").exists()


@pytest.mark.parametrize(
    "namespace",
    [
        "/O=EDG/*", "/*", "/O=EDG*", "/O=EDG/OU=Operators/*", "/O=EDG/OU=Operators/CN=root", "/O=EDG/OU=CERN/*",
        "/O=EDG/OU=Users*", "/o=edg/ou=operators/*", "/O=EDG/OU=operators/*", "*", "O=EDG/OU=Users/*",
        "/O=EDG/OU=Users/*/CN=*", "/O=EDG/OU=Users/'*", "",
    ],
)  # fmt: skip
def test_names_of_agents_and_operators_are_the_first_authoritys_alone(grid: Grid, namespace: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grid.authorities.make("robots", "", (namespace,), 0)
    assert caught.value.reason in ("NAMESPACE_TAKEN", "NAMESPACE_INVALID", "SIGNING_POLICY_INVALID")


@pytest.mark.parametrize("pattern", ["/O=EDG/*", "/*", "/O=EDG/OU=Operators/*", "/o=EDG/OU=Users/*", "/O=ED*"])
def test_a_foreign_authority_that_could_sign_names_of_this_grid_is_not_added(grid: Grid, pattern: str) -> None:
    other = grid.foreign()
    policy = other.signing_policy().replace("/O=Else/*", pattern)
    with pytest.raises(InvalidRequest) as caught:
        grid.authorities.offered(other.ca_pem(), policy, b"")
    assert caught.value.reason == "NAMESPACE_TAKEN"


def test_a_foreign_authority_is_checked_before_it_is_added(grid: Grid) -> None:
    other, third = grid.foreign(), grid.foreign("/O=Third/CN=Third CA")
    policy = other.signing_policy()
    eve = grid.user("Eve").public_bytes(Encoding.PEM)
    for offered in (
        (b"what", policy, b""),
        (eve, policy, b""),
        (other.ca_pem(), "what", b""),
        (other.ca_pem(), third.signing_policy(), b""),
        (other.ca_pem(), policy, b"what"),
        (other.ca_pem(), policy, third.build_crl(NOW, DAY)),
        *(
            (other.ca_pem(), policy, b"", [url])
            for url in (
                "",
                "https://ca/x",
                "http://",
                "http://ca/a;http://ca/b",
                "http://ca/a\nstatus = operational",
                "file:///etc",
                "http://root@ca/x",
                f"http://ca/{'x' * 500}",
            )
        ),
        (other.ca_pem(), policy, b"", [f"http://ca/{number}" for number in range(9)]),
    ):
        with pytest.raises(InvalidRequest):
            grid.authorities.offered(*offered)
    row = grid.authorities.offered(other.ca_pem(), policy, other.build_crl(NOW, DAY))
    grid.authorities.keep(row)
    assert row.name == "Their CA" and grid.authorities.find("/O=Else/CN=Their CA") == "Their CA"
    (trusted,) = (one for one in grid.authorities.trusted() if one.name == "Their CA")
    assert trusted.info == ""
    urls = ["http://ca.example.org/a.crl", "http://ca.example.org:81/b"]
    grid.authorities.keep(grid.authorities.offered(other.ca_pem(), policy, b"", urls))
    again = grid.authorities.offered(other.ca_pem(), policy, b"")  # what is not given stays
    assert again.crl == row.crl and again.crl_urls.split("\n") == urls
    (trusted,) = (one for one in grid.authorities.trusted() if one.name == "Their CA")
    assert f"crl_url = {';'.join(urls)}\n" in trusted.info and trusted.crl is not None
    rogue = CertificateAuthority.create(grid.folder / "rogue", "/O=Else/CN=Their CA", lifetime=9 * DAY, now=NOW)
    with pytest.raises(AlreadyExists):
        grid.authorities.offered(rogue.ca_pem(), rogue.signing_policy(), b"")
    assert grid.authorities.offered(other.ca_pem(), policy, other.build_crl(NOW, 2 * DAY)).name == "Their CA"


def test_an_authority_below_has_none_below_itself(grid: Grid) -> None:
    below = grid.make("robots", FIRST)
    limits = below.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical and limits.value.ca and limits.value.path_length == 0
    with pytest.raises(GridError) as caught:
        grid.authorities.make("deeper", "robots", (), 0)
    assert "path length 0" in caught.value.sentence or "namespace" in caught.value.sentence
    with pytest.raises(NotFound):
        grid.authorities.make("orphan", "nobody", (), 0)


def test_one_name_is_given_once_whichever_authority_is_asked(grid: Grid) -> None:
    grid.make("people", "", "/O=EDG/OU=Users/*")
    grid.user("Ada")
    with pytest.raises(AlreadyExists) as caught:
        grid.user("Ada", "people")
    assert caught.value.reason == "DUPLICATE_SUBJECT" and "grid" in caught.value.sentence
    with pytest.raises(NotFound):
        grid.user("Bob", "nobody")


def test_people_and_robots_of_a_named_authority_are_below_its_own_name(grid: Grid) -> None:
    grid.make("partner")
    register = grid.register
    robot = x509.load_pem_x509_certificate(
        register.issue_user("nightly", request(), 0, renew=False, authority="partner", robot=True)
    )
    assert robot.subject.rfc4514_string() == "CN=Robot: nightly,OU=partner,OU=Users,O=EDG"
    policies = robot.extensions.get_extension_for_class(x509.CertificatePolicies).value
    assert [one.policy_identifier for one in policies] == [ROBOT_POLICY]
    host = x509.load_pem_x509_certificate(
        register.issue_host(["ce.example.org"], "ldap", request(), 0, renew=False, authority="partner")
    )
    assert host.subject.rfc4514_string() == "CN=ldap/ce.example.org,OU=partner,OU=Users,O=EDG"
    with pytest.raises(GridError):
        register.issue_host([], "", request(), 0, renew=False)


def test_the_first_authority_is_not_removed_and_says_what_would_go_down(grid: Grid) -> None:
    grid.authorities.first.issue_host(
        ["localhost"], request(), lifetime=DAY, now=NOW, subject="/O=EDG/OU=CERN/CN=broker/broker.CERN"
    )
    with pytest.raises(Conflict) as caught:
        grid.authorities.require_removable(FIRST)
    assert "broker/broker.CERN" in caught.value.sentence and "rollover" in caught.value.sentence
    grid.make("robots", FIRST)
    grid.authorities.require_removable("robots")


def test_what_is_removed_is_revoked_and_cannot_sign_again(grid: Grid) -> None:
    made = grid.make("robots", FIRST)
    folder = made.directory
    assert grid.authorities.cease("robots") == FIRST
    grid.authorities.drop("robots")
    grid.authorities.publish([FIRST])
    (first,) = grid.authorities.trusted()
    assert first.crl is not None
    crl = x509.load_pem_x509_crl(first.crl.pem)
    assert {one.serial_number for one in crl} == {made.certificate.serial_number}
    assert not list(folder.glob("key*.pem"))
    with pytest.raises(NotFound):
        grid.user("Ada", "robots")


def test_a_roll_over_is_finished_before_the_next(grid: Grid) -> None:
    with pytest.raises(Conflict) as caught:
        grid.authorities.require_retirable(FIRST)
    assert caught.value.reason == "ROLLOVER_MISSING"
    ada, bob = grid.user("Ada"), grid.user("Bob")
    grid.authorities.roll_over(FIRST)
    with pytest.raises(Conflict) as caught:
        grid.authorities.roll_over(FIRST)
    assert caught.value.reason == "ROLLOVER_UNDER_WAY"
    with pytest.raises(Conflict) as caught:
        grid.authorities.require_retirable(FIRST)
    assert "CN=Ada" in caught.value.sentence and "CN=Bob" in caught.value.sentence
    grid.user("Ada", renew=True)
    with pytest.raises(Conflict) as caught:  # Bob has nothing else
        grid.authorities.require_retirable(FIRST, now=True)
    assert caught.value.reason == "AUTHORITY_IN_USE" and "CN=Ada" not in caught.value.sentence
    grid.register.revoke(f"{bob.serial_number:X}", "", "superseded")
    assert [one.serial for one in grid.authorities.held_beside(FIRST)] == [ada.serial_number]
    with pytest.raises(Conflict) as caught:  # jobs of Ada may still run on the old one
        grid.authorities.require_retirable(FIRST)
    assert caught.value.reason == "OLD_KEY_IN_USE"
    assert "CN=Ada" in caught.value.sentence and f"{ada.not_valid_after_utc:%Y-%m-%d}" in caught.value.sentence
    grid.authorities.require_retirable(FIRST, now=True)
    first = grid.authorities.first
    assert first.signer_of(ada) == first.certificates[0] != first.certificate
    first.retire()
    assert first.signer_of(ada) is None
    first.close()
    again = CertificateAuthority.open(first.directory)
    assert again.certificates == (first.certificate,)
    assert not (first.directory / "key.pem").exists()


def test_both_keys_list_everything_that_was_revoked(grid: Grid) -> None:
    ada = grid.user("Ada")
    grid.authorities.roll_over(FIRST)
    bob = grid.user("Bob")
    for one in (ada, bob):
        grid.register.revoke(f"{one.serial_number:X}", "", "keyCompromise")
    grid.authorities.publish([FIRST])
    old, new = grid.authorities.trusted()
    assert (old.is_old, new.is_old, old.index, new.index) == (True, False, 0, 1)
    for one in (old, new):
        assert one.crl is not None
        crl = x509.load_pem_x509_crl(one.crl.pem)
        assert crl.is_signature_valid(one.certificate.public_key())  # type: ignore[arg-type]
        assert {entry.serial_number for entry in crl} == {ada.serial_number, bob.serial_number}


def test_a_certificate_is_renewed_when_it_is_due_and_by_nobody_elses_wish(grid: Grid) -> None:
    register, first = grid.register, grid.authorities.first
    host = first.issue_host(
        ["localhost", "127.0.0.1"], request(), lifetime=90 * DAY, now=NOW, subject="/O=EDG/OU=CERN/CN=broker/b"
    )
    with pytest.raises(Conflict) as caught:
        register.renew(host, request())
    assert caught.value.reason == "RENEWAL_NOT_DUE"
    grid.authorities.roll_over(FIRST)
    renewed = x509.load_pem_x509_certificate(register.renew(host, request()))
    names = x509.SubjectAlternativeName
    assert renewed.subject == host.subject and first.signer_of(renewed) == first.certificate
    assert renewed.extensions.get_extension_for_class(names) == host.extensions.get_extension_for_class(names)
    grid.clock.now = NOW + 70 * DAY
    register.renew(renewed, request())
    register.revoke(f"{renewed.serial_number:X}", "", "")
    with pytest.raises(GridError):
        register.renew(renewed, request())
    other = grid.foreign()
    stranger = other.issue_user("Eve", request(), lifetime=DAY, now=NOW)
    with pytest.raises(NotFound):
        register.renew(stranger, request())


def test_what_was_kept_is_there_after_a_restart(grid: Grid) -> None:
    grid.make("robots", FIRST)
    other = grid.foreign()
    row = grid.authorities.offered(other.ca_pem(), other.signing_policy(), other.build_crl(NOW, DAY))
    grid.authorities.keep(row)
    grid.authorities.roll_over(FIRST)
    before = [(one.name, one.certificate) for one in grid.authorities.trusted()]
    grid.authorities.close()
    grid.authorities = grid.opened(CertificateAuthority.open(grid.folder / "ca"))
    grid.authorities.open([AuthorityRow("robots", parent=FIRST), row])
    assert [(one.name, one.certificate) for one in grid.authorities.trusted()] == before
    assert grid.authorities.below(FIRST) == ["robots"]


def test_one_that_was_begun_and_never_acknowledged_is_taken_up_again(grid: Grid) -> None:
    grid.authorities.make("robots", "", (), 0)
    with pytest.raises(Conflict):
        grid.authorities.make("robots", "", ("/O=EDG/OU=Users/OU=other/*",), 0)
    grid.authorities.keep(grid.authorities.make("robots", "", (), 0))
    with pytest.raises(AlreadyExists):
        grid.authorities.make("robots", "", (), 0)


def test_a_large_list_is_announced_and_small_ones_travel_with_the_set(grid: Grid) -> None:
    grid.authorities.publish([FIRST])
    (one,) = grid.authorities.trusted()
    assert one.crl is not None
    large = replace(one, crl=replace(one.crl, pem=b"x" * (MAX_PUSHED_CRL_BYTES + 1)))
    small, announced = trust_set(7, [one, large]).authorities
    assert small.crl.pem == one.crl.pem
    assert (announced.crl.pem, announced.crl.number, announced.crl.path) == (b"", 1, f"/crl/{one.stem}.r0")
    many = trust_set(7, [replace(one, crl=replace(one.crl, pem=b"x" * MAX_PUSHED_CRL_BYTES))] * 20)
    assert many.ByteSize() < 3 * 1024 * 1024


def test_chains_below_are_accepted_and_end_with_what_carried_them(grid: Grid, tmp_path: Path) -> None:
    directory = tmp_path / "certificates"
    first = grid.authorities.first
    install_authority(directory, first.certificate, first.signing_policy(), first.build_crl(NOW, DAY))
    remember(directory, [first.certificate])
    grid.make("robots", FIRST)
    ada = grid.user("Ada", "robots")

    def push(number: int) -> TrustStore:
        grid.authorities.publish(list(grid.authorities.all_own()))
        install(directory, trust_set(number, grid.authorities.trusted()), NOW)
        return TrustStore(directory)

    identity = validate_client_chain([ada], push(1).snapshot(), ValidationPolicy(), now=NOW)
    assert str(identity.subject) == "/O=EDG/OU=Users/OU=robots/CN=Ada"
    robots = grid.authorities.own("robots").certificate
    grid.authorities.cease("robots")
    grid.authorities.drop("robots")
    store = push(2)
    for chain in ([ada], [ada, robots]):
        with pytest.raises(SecurityError):
            validate_client_chain(chain, store.snapshot(), ValidationPolicy(), now=NOW)
