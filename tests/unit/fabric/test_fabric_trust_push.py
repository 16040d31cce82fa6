"""A host's directory of authorities follows the set that is pushed, if it is understood as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from gridfabric.authority.v1 import trust_pb2 as pb

from fabric.errors import DataCorrupted, GridError, Unavailable
from fabric.trust_push import RECORD_NAME, Record, install, remember
from security.authority import CertificateAuthority
from security.certificates import subject_hash
from security.installation import install_authority
from security.testing import NOW, TestGrid, shared_key
from security.trust import TrustStore

DAY = timedelta(days=1)


class Host:
    """A directory with the grid's authority, and sets to be pushed to it."""

    def __init__(self, folder: Path) -> None:
        self.grid = TestGrid(folder / "grid")
        self.folder = folder
        self.directory = self.grid.trust_directory
        self.other = self.authority("other", "/C=XX/O=Other/CN=Other CA")
        self.number = 0

    def authority(self, folder: str, subject: str) -> CertificateAuthority:
        return CertificateAuthority.create(
            self.folder / folder, subject, lifetime=9 * DAY, now=NOW - DAY, key=shared_key("ec-p256", 300 + len(folder))
        )

    def message(self, *authorities: CertificateAuthority) -> pb.TrustSet:
        """The next set: these authorities with all their keys and lists."""
        self.number += 1
        found = pb.TrustSet(number=self.number)
        for authority in authorities:
            for certificate, crl in zip(authority.certificates, authority.build_crls(NOW, DAY), strict=True):
                number = x509.load_pem_x509_crl(crl).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
                found.authorities.append(
                    pb.TrustedAuthority(
                        certificate_pem=certificate.public_bytes(Encoding.PEM),
                        signing_policy=authority.signing_policy(),
                        namespaces=authority.namespaces(),
                        info=authority.info(),
                        crl=pb.RevocationList(number=number, pem=crl),
                    )
                )
        return found

    def push(self, *authorities: CertificateAuthority) -> None:
        install(self.directory, self.message(*authorities), NOW)

    def subjects(self) -> list[str]:
        return sorted(str(one.subject) for one in TrustStore(self.directory).snapshot().authorities)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.other.close()
    made.grid.close()


def test_what_a_push_installed_a_push_removes(host: Host) -> None:
    before = host.files()
    host.push(host.grid.ca, host.other)
    stem = subject_hash(host.other.certificate)
    written = {f"{stem}.{kind}" for kind in ("0", "r0", "signing_policy", "namespaces", "info")}
    assert written <= host.files().keys()
    assert len(TrustStore(host.directory).snapshot().authorities) == 2
    host.push(host.grid.ca)
    assert host.files().keys() == before.keys()


def test_what_a_manager_installed_stays_and_gets_fresh_lists(host: Host) -> None:
    policy = "# narrowed by hand\n" + host.other.signing_policy()
    install_authority(host.directory, host.other.certificate, policy, host.other.build_crl(NOW - DAY, 3 * DAY))
    stem = subject_hash(host.other.certificate)
    before = (host.directory / f"{stem}.r0").read_bytes()
    host.push(host.grid.ca, host.other)
    assert (host.directory / f"{stem}.signing_policy").read_text() == policy
    assert not (host.directory / f"{stem}.namespaces").exists()
    assert (host.directory / f"{stem}.r0").read_bytes() != before
    host.push(host.grid.ca)
    assert str(host.other.subject) in host.subjects()


def test_a_record_that_is_lost_or_nonsense_removes_nothing(host: Host) -> None:
    for text in ("", "[]", '{"number": "x"}', '{"installed": []}'):
        host.push(host.grid.ca, host.other)
        (host.directory / RECORD_NAME).write_text(text)
        host.push(host.grid.ca)
        assert str(host.other.subject) in host.subjects()


def test_an_older_set_changes_nothing(host: Host) -> None:
    older = host.message(host.grid.ca)
    host.push(host.grid.ca, host.other)
    assert install(host.directory, older, NOW) is None
    assert str(host.other.subject) in host.subjects()


def test_an_older_list_never_takes_the_place_of_a_newer_one(host: Host) -> None:
    alice = host.grid.user("alice").certificate
    older = host.message(host.grid.ca)
    host.grid.ca.revoke(alice.serial_number, "keyCompromise", NOW)
    host.push(host.grid.ca)
    older.number = host.number + 1
    install(host.directory, older, NOW)
    crl = TrustStore(host.directory).snapshot().authorities[0].crl
    assert crl is not None and crl.revokes(alice.serial_number)


def _forged_list(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].crl.pem = host.authority("forger", str(host.other.subject)).build_crl(NOW, DAY)


def _list_of_another(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].crl.pem = found.authorities[0].crl.pem


def _damaged_list(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].crl.pem = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"


def _user_as_authority(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].certificate_pem = host.grid.user("eve").certificate.public_bytes(Encoding.PEM)


def _damaged_certificate(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].certificate_pem = b"what is this"


def _policy_of_another(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].signing_policy = found.authorities[0].signing_policy


def _namespaces_of_another(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].namespaces = found.authorities[0].namespaces


def _damaged_policy(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].signing_policy = "access_id_ANYBODY"


def _no_policy(host: Host, found: pb.TrustSet) -> None:
    found.authorities[1].signing_policy = ""


def _empty(host: Host, found: pb.TrustSet) -> None:
    del found.authorities[:]


@pytest.mark.parametrize(
    "spoil",
    [
        _forged_list, _list_of_another, _damaged_list, _user_as_authority, _damaged_certificate, _policy_of_another,
        _namespaces_of_another, _damaged_policy, _no_policy, _empty,
    ],
)  # fmt: skip
def test_a_set_that_is_not_understood_changes_nothing(host: Host, spoil: Callable[[Host, pb.TrustSet], None]) -> None:
    host.push(host.grid.ca)
    before = host.files(), Record.load(host.directory)
    found = host.message(host.grid.ca, host.other)
    spoil(host, found)
    with pytest.raises(DataCorrupted) as caught:
        install(host.directory, found, NOW)
    assert caught.value.reason == "TRUST_SET_INVALID"
    assert (host.files(), Record.load(host.directory)) == before


def test_a_list_that_has_ended_spoils_nothing_else(host: Host) -> None:
    found = host.message(host.grid.ca, host.other)
    found.authorities[0].crl.pem = host.grid.ca.build_crl(NOW - 3 * DAY, DAY)
    install(host.directory, found, NOW)
    assert len(host.subjects()) == 2


def test_a_directory_that_cannot_be_written_is_a_sentence(host: Host, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        install(tmp_path / "nowhere", host.message(host.grid.ca), NOW)
    assert caught.value.reason == "TRUST_DIRECTORY_UNAVAILABLE"


def test_two_keys_of_one_name_stand_side_by_side_until_the_older_is_retired(host: Host) -> None:
    ca = host.grid.ca
    remember(host.directory, [ca.certificate])
    alice = host.grid.user("alice").certificate
    host.push(ca, host.other)
    ca.roll_over(NOW, lifetime=99 * DAY, key_type="ec-p256")
    ca.revoke(alice.serial_number, "keyCompromise", NOW)
    host.push(ca, host.other)
    stem = subject_hash(ca.certificate)
    assert {f"{stem}.0", f"{stem}.1", f"{stem}.r0", f"{stem}.r1"} <= host.files().keys()
    found = TrustStore(host.directory).snapshot()
    both = [one for one in found.authorities if one.subject == ca.subject]
    assert [one.certificate for one in both] == list(ca.certificates)
    assert all(one.crl is not None and one.crl.revokes(alice.serial_number) for one in both)
    ca.retire()
    host.push(ca, host.other)
    assert {f"{stem}.0", f"{stem}.r0", f"{stem}.signing_policy"} <= host.files().keys()
    assert not {f"{stem}.1", f"{stem}.r1"} & host.files().keys()
    (left,) = (one for one in TrustStore(host.directory).snapshot().authorities if one.subject == ca.subject)
    assert left.certificate == ca.certificate and left.crl is not None and left.policy is not None


def test_a_busy_directory_is_waited_for_and_no_longer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from fabric import trust_push

    monkeypatch.setattr(trust_push, "LOCK_WAIT_S", 0.0)
    with (host.directory / trust_push.LOCK_NAME).open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(GridError) as caught:
            host.push(host.grid.ca)
    assert caught.value.reason == "TRUST_DIRECTORY_BUSY"
