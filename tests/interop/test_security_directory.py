"""One directory of authorities for everybody: ours, OpenSSL, Globus' library and VOMS read the same files alike.

Two roots, an authority below one of them, lists, both kinds of namespaces, `.info`.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.peers import GLOBUS_JUDGE

from security import certificates
from security.authority import CertificateAuthority
from security.credentials import Credential
from security.errors import ValidationError
from security.installation import install_authority, remove_authority, remove_certificate
from security.proxies import create_proxy
from security.testing import TestGrid, shared_key
from security.trust import TrustStore, subject_hash
from security.validation import ValidationPolicy, validate_client_chain

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None or ctypes.util.find_library("globus_gsi_credential") is None,
    reason="openssl and libglobus-gsi-credential1 are not installed",
)
DAY = timedelta(days=1)


class Directory:
    """The directory, its authorities, and people of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grid = TestGrid(folder / "grid", datetime.now(UTC).replace(microsecond=0))
        grid, now = self.grid, self.grid.now
        self.path = grid.trust_directory
        install_authority(
            self.path,
            grid.ca.certificate,
            grid.ca.signing_policy(),
            namespaces=grid.ca.namespaces(),
            info=grid.ca.info(),
        )
        self.second = grid.unknown_authority()
        install_authority(
            self.path, self.second.certificate, self.second.signing_policy(), self.second.build_crl(now, DAY),
            namespaces=self.second.namespaces(), info=self.second.info("http://ca.example.org/crl"),
        )  # fmt: skip
        key = shared_key(number=77)
        self.below = CertificateAuthority.create(
            folder / "below", "/C=XX/O=TestGrid/CN=Below CA", lifetime=99 * DAY, now=now, key=key
        )
        extensions = [(extension.value, extension.critical) for extension in self.below.certificate.extensions]
        self.cross = grid.certificate(self.below.certificate.subject, key, extensions=extensions)
        install_authority(self.path, self.cross, self.below.signing_policy(), self.below.build_crl(now, DAY))

    def person(self, authority: CertificateAuthority, name: str, *above: object) -> Credential:
        key = shared_key(number=len(name))
        certificate = authority.issue_user(name, key.public_key(), lifetime=9 * DAY, now=self.grid.now)
        user = Credential(certificate, key, tuple(above))  # type: ignore[arg-type]
        return create_proxy(user, lifetime=DAY, now=self.grid.now)

    def verdicts(self, credential: Credential) -> tuple[bool, bool, bool]:
        """Ours, OpenSSL's, Globus'."""
        path = self.folder / f"{certificates.serial_text(credential.certificate.serial_number)}.pem"
        credential.save(path)
        trust = TrustStore(self.path).snapshot()
        try:
            validate_client_chain(credential.pem_chain(), trust, ValidationPolicy(), datetime.now(UTC))
            ours = True
        except ValidationError:
            ours = False
        openssl = subprocess.run(
            ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-CApath", str(self.path), "-untrusted",
             str(path), str(path)],
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        globus = subprocess.run(
            [sys.executable, str(GLOBUS_JUDGE), str(self.path)], input=f"{path}\n", text=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "X509_CERT_DIR": str(self.path)}, timeout=30, check=True,
        )  # fmt: skip
        return ours, openssl.returncode == 0, globus.stdout.startswith("OK")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    made = Directory(tmp_path)
    yield made
    made.grid.close()


ALL = (True, True, True)
NOBODY = (False, False, False)


def test_people_of_every_authority_are_accepted_by_all(directory: Directory) -> None:
    assert TrustStore(directory.path).problems == ()
    assert directory.verdicts(directory.person(directory.grid.ca, "ann")) == ALL
    assert directory.verdicts(directory.person(directory.second, "bertha")) == ALL
    assert directory.verdicts(directory.person(directory.below, "charlotte", directory.cross)) == ALL


def test_revoked_people_and_authorities_are_refused_by_all(directory: Directory) -> None:
    grid, now = directory.grid, directory.grid.now
    bertha = directory.person(directory.second, "bertha")
    directory.second.revoke(bertha.certificates[1].serial_number, "keyCompromise", now)
    stem = subject_hash(directory.second.certificate)
    (directory.path / f"{stem}.r0").write_bytes(directory.second.build_crl(now, DAY))
    assert directory.verdicts(bertha) == NOBODY
    charlotte = directory.person(directory.below, "charlotte", directory.cross)
    grid.ca.revoke_proxy(directory.cross, now)  # lists the serial number of the authority below
    grid.publish_crl()
    assert directory.verdicts(charlotte) == NOBODY


def test_a_removed_authority_is_trusted_by_nobody(directory: Directory) -> None:
    bertha = directory.person(directory.second, "bertha")
    remove_authority(directory.path, directory.second.subject)
    assert not list(directory.path.glob(f"{subject_hash(directory.second.certificate)}.*"))
    assert directory.verdicts(bertha) == NOBODY
    charlotte = directory.person(directory.below, "charlotte", directory.cross)
    remove_authority(directory.path, directory.below.subject)
    ours, _, globus = directory.verdicts(charlotte)  # the list and policy are gone as well
    assert not ours and not globus


def test_a_name_outside_the_namespace_is_refused_by_all_that_know_of_namespaces(directory: Directory) -> None:
    eve = create_proxy(directory.grid.outside_namespace_user(), lifetime=DAY, now=directory.grid.now)
    assert directory.verdicts(eve) == (False, True, False)


def test_two_keys_of_one_name_are_read_alike_until_one_retires(directory: Directory) -> None:
    """HASH.0 and HASH.1, each with its list: a roll-over as the grid does it."""
    ca, now, path = directory.grid.ca, directory.grid.now, directory.path
    old, gone = directory.person(ca, "ann"), directory.person(ca, "gustav")
    ending = ca.certificate
    new_certificate = ca.roll_over(now, lifetime=99 * DAY)
    new, left = directory.person(ca, "wilhelm"), directory.person(ca, "ferdinand")
    for revoked in (gone, left):
        ca.revoke(revoked.certificates[1].serial_number, "superseded", now)
    for certificate, crl in zip(ca.certificates, ca.build_crls(now, DAY), strict=True):
        install_authority(path, certificate, ca.signing_policy(), crl)
    stem = subject_hash(new_certificate)
    assert all((path / f"{stem}.{name}").exists() for name in ("0", "1", "r0", "r1"))
    verdicts = [directory.verdicts(one) for one in (old, new, gone, left)]
    assert [found[:2] for found in verdicts] == [(True, True), (True, True), (False, False), (False, False)]
    # Globus' library looks at the first certificate of a name only: it knows new people when the old key has gone.
    assert [found[2] for found in verdicts] == [True, False, False, False]
    remove_certificate(path, ending)
    assert not (path / f"{stem}.1").exists() and not (path / f"{stem}.r1").exists()
    assert directory.verdicts(old) == NOBODY
    assert directory.verdicts(new) == ALL
    assert directory.verdicts(left) == NOBODY
