from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from security import proxies
from security.authority import MAX_RENEWALS, CertificateAuthority
from security.errors import CredentialError, Reason
from security.names import DistinguishedName
from security.testing import NOW, TestGrid, shared_key

DAY = timedelta(days=1)
KEY = shared_key(number=3).public_key()


@pytest.fixture
def ca(grid: TestGrid) -> CertificateAuthority:
    return grid.ca


def refused(reason: Reason, ca: CertificateAuthority, subject: str = "alice", **options: object) -> None:
    arguments: dict[str, object] = {"lifetime": DAY, "now": NOW, "key": KEY, **options}
    with pytest.raises(CredentialError) as caught:
        ca.issue_user(subject, **arguments)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert subject not in [str(entry.subject) for entry in ca.list_issued()]


def test_files_are_closed_and_a_second_authority_is_refused(ca: CertificateAuthority) -> None:
    assert stat.S_IMODE(ca.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((ca.directory / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(CredentialError) as caught:
        CertificateAuthority.create(ca.directory, "/O=a/CN=b", lifetime=DAY, now=NOW)
    assert caught.value.reason == Reason.AUTHORITY_INVALID


def test_opening(ca: CertificateAuthority, tmp_path: Path) -> None:
    ca.issue_user("alice", KEY, lifetime=DAY, now=NOW)
    again = CertificateAuthority.open(ca.directory)
    assert again.certificate == ca.certificate
    assert again.namespace == ca.namespace
    refused(Reason.DUPLICATE_SUBJECT, again)
    for broken in (tmp_path / "none", tmp_path):
        broken_mode = broken.exists() and broken.chmod(0o700)
        assert broken_mode in (None, False)
        with pytest.raises(CredentialError) as caught:
            CertificateAuthority.open(broken)
        assert caught.value.reason == Reason.AUTHORITY_INVALID
    ca.directory.chmod(0o755)
    with pytest.raises(CredentialError) as caught:
        CertificateAuthority.open(ca.directory)
    assert caught.value.reason == Reason.CREDENTIAL_FILE_UNSAFE


def test_user_certificate(ca: CertificateAuthority) -> None:
    certificate = ca.issue_user("Jane Doe", KEY, lifetime=DAY, now=NOW)
    assert str(DistinguishedName.from_x509(certificate.subject)) == "/C=XX/O=TestGrid/CN=Jane Doe"
    assert certificate.serial_number.bit_length() >= 64
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_host_and_service_certificates(ca: CertificateAuthority) -> None:
    host = ca.issue_host(["CE.example.org", "127.0.0.1", "::1"], KEY, lifetime=DAY, now=NOW)
    names = host.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ce.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    purposes = host.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(purposes)
    service = ca.issue_service("gatekeeper", ["ce.example.org"], KEY, lifetime=DAY, now=NOW)
    assert DistinguishedName.from_x509(service.subject).common_name == "gatekeeper/ce.example.org"
    assert [entry.kind for entry in ca.list_issued()] == ["host", "service"]


@pytest.mark.parametrize("host", ["", "a b", "-a.example.org", "exa*mple.org", "x" * 300, "a..b", "a/b"])
def test_bad_host_names(ca: CertificateAuthority, host: str) -> None:
    with pytest.raises(CredentialError):
        ca.issue_host([host], KEY, lifetime=DAY, now=NOW, subject="some host")
    with pytest.raises(CredentialError):
        ca.issue_host([], KEY, lifetime=DAY, now=NOW, subject="some host")


def test_requests(ca: CertificateAuthority) -> None:
    key, request = proxies.new_request()
    certificate = ca.issue_user("alice", request, lifetime=DAY, now=NOW)
    assert certificate.public_key() == key.public_key()
    with pytest.raises(CredentialError) as caught:
        ca.sign_csr(request, lifetime=DAY, now=NOW)  # CN=proxy request is outside the namespace
    assert caught.value.reason == Reason.NAMESPACE_VIOLATION
    refused(Reason.REQUEST_MALFORMED, ca, "bob", key=b"garbage")


def test_refusals(ca: CertificateAuthority) -> None:
    refused(Reason.NAMESPACE_VIOLATION, ca, "/C=XX/O=Elsewhere/CN=eve")
    refused(Reason.NAMESPACE_VIOLATION, ca, "/C=XX/O=TestGridX/CN=eve")
    refused(Reason.NAME_MALFORMED, ca, str(ca.subject))
    refused(Reason.NAME_MALFORMED, ca, "")
    refused(Reason.LIFETIME_INVALID, ca, lifetime=timedelta(0))
    refused(Reason.LIFETIME_INVALID, ca, now=NOW + 5000 * DAY)
    refused(Reason.KEY_TOO_WEAK, ca, key=rsa.generate_private_key(65537, 1024).public_key())
    with pytest.raises(ValueError, match="aware"):
        ca.issue_user("x", KEY, lifetime=DAY, now=NOW.replace(tzinfo=None))


def test_an_active_subject_is_not_issued_twice(ca: CertificateAuthority) -> None:
    first = ca.issue_user("alice", KEY, lifetime=DAY, now=NOW)
    with pytest.raises(CredentialError) as caught:
        ca.issue_user("alice", KEY, lifetime=DAY, now=NOW)
    assert caught.value.reason == Reason.DUPLICATE_SUBJECT
    renewed = ca.issue_user("alice", KEY, lifetime=DAY, now=NOW, renew=True)
    assert renewed.serial_number != first.serial_number
    for certificate in (first, renewed):
        ca.revoke(certificate.serial_number, "superseded", NOW)
    ca.issue_user("alice", KEY, lifetime=DAY, now=NOW)
    ca.issue_user("alice", KEY, lifetime=DAY, now=NOW + 2 * DAY)  # the last one has expired


def test_what_renewed_a_stolen_certificate_is_revoked_with_it(ca: CertificateAuthority) -> None:
    first = ca.issue_host(["ce.example.org"], KEY, lifetime=DAY, now=NOW)
    second = ca.renew(first, KEY, lifetime=DAY, now=NOW)
    third = ca.renew(second, KEY, lifetime=DAY, now=NOW)
    other = ca.issue_host(["se.example.org"], KEY, lifetime=DAY, now=NOW)
    ca.revoke(first.serial_number, "superseded", NOW)
    active = [one.certificate for one in ca.list_issued() if one.is_active(NOW)]
    assert active == [second, third, other]
    ca.revoke(second.serial_number, "keyCompromise", NOW)
    assert [one.certificate for one in ca.list_issued() if one.is_active(NOW)] == [other]
    with pytest.raises(CredentialError) as caught:
        ca.renew(third, KEY, lifetime=DAY, now=NOW)
    assert caught.value.reason == Reason.LIFETIME_INVALID


def test_one_certificate_is_not_renewed_for_ever(ca: CertificateAuthority) -> None:
    first = ca.issue_host(["ce.example.org"], KEY, lifetime=DAY, now=NOW)
    renewed = [ca.renew(first, KEY, lifetime=DAY, now=NOW) for _ in range(MAX_RENEWALS)]
    with pytest.raises(CredentialError) as caught:
        ca.renew(first, KEY, lifetime=DAY, now=NOW)
    assert caught.value.reason == Reason.DUPLICATE_SUBJECT
    ca.renew(renewed[-1], KEY, lifetime=DAY, now=NOW)


def test_no_certificate_outlives_the_authority(ca: CertificateAuthority) -> None:
    certificate = ca.issue_user("alice", KEY, lifetime=99_999 * DAY, now=NOW)
    assert certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


def test_revocation(ca: CertificateAuthority) -> None:
    alice = ca.issue_user("alice", KEY, lifetime=DAY, now=NOW)
    ca.revoke(alice.serial_number, "keyCompromise", NOW)
    ca.revoke(alice.serial_number, "superseded", NOW + DAY)
    crl = x509.load_pem_x509_crl(ca.build_crl(NOW, DAY))
    entry = crl.get_revoked_certificate_by_serial_number(alice.serial_number)
    assert entry is not None
    assert entry.revocation_date_utc == NOW
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
    register = ca.list_issued()[0]
    assert (register.serial, register.revocation_reason) == (alice.serial_number, "keyCompromise")
    with pytest.raises(CredentialError) as caught:
        ca.revoke(4711, "keyCompromise", NOW)
    assert caught.value.reason == Reason.SERIAL_UNKNOWN
    with pytest.raises(CredentialError):
        ca.revoke(alice.serial_number, "because", NOW)


def test_list_numbers_only_grow_also_over_restarts(ca: CertificateAuthority) -> None:
    def number(authority: CertificateAuthority) -> int:
        crl = x509.load_pem_x509_crl(authority.build_crl(NOW, DAY))
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    first = number(ca)
    again = CertificateAuthority.open(ca.directory)
    assert [number(again), number(ca), number(again)] == [first + 1, first + 2, first + 3]
