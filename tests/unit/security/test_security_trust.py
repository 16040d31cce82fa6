from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from security.credentials import Credential
from security.errors import Reason, SecurityError, ValidationError
from security.installation import install_authority, install_crl, remove_authority
from security.names import DistinguishedName
from security.revocation import parse_crl, verify_crl
from security.signing_policy import emit_signing_policy, matches, parse_namespaces, parse_signing_policy
from security.testing import NOW, TestGrid
from security.trust import TrustStore, subject_hash

DAY = timedelta(days=1)


def test_nothing_changed_nothing_read(grid: TestGrid) -> None:
    store = grid.trust_store
    before = store.snapshot()
    assert before.generation == 1
    assert not store.refresh()
    assert store.snapshot() is before


def test_a_new_list_is_a_new_generation(grid: TestGrid) -> None:
    before = grid.trust
    alice = grid.user("alice")
    grid.revoke(alice)
    after = grid.trust
    assert after.generation == before.generation + 1
    crl = after.authorities[0].crl
    assert crl is not None
    assert alice.certificate.serial_number in crl.revoked
    assert before.authorities[0].crl is not crl  # the old snapshot is as it was


def test_a_change_names_whom_a_list_has_and_whose_authority_has_left(grid: TestGrid) -> None:
    alice, bob = grid.user("alice"), grid.user("bob")
    proxy, stolen = grid.proxy(alice), grid.proxy(bob)
    assert not any(grid.trust.names(one.certificates) for one in (alice, bob, proxy, stolen))
    grid.revoke(alice)
    grid.revoke_proxy(stolen)
    found = {name: grid.trust.names(one.certificates) for name, one in vars().items() if isinstance(one, Credential)}
    assert found == {"alice": True, "proxy": True, "stolen": True, "bob": False}
    before = grid.trust
    remove_authority(grid.trust_directory, grid.ca.subject)
    assert grid.trust.names(bob.certificates) and not before.names(bob.certificates)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [("garbage_crl", Reason.CRL_INVALID), ("forged_crl", Reason.CRL_INVALID)],
)
def test_a_bad_list_leaves_the_last_good_one(grid: TestGrid, spoil: str, reason: Reason) -> None:
    grid.revoke(grid.user("alice"))
    good = grid.trust.authorities[0].crl
    getattr(grid, spoil)()
    after = grid.trust
    assert after.authorities[0].crl is good
    assert [problem.reason for problem in after.problems] == [reason]
    grid.publish_crl()
    assert grid.trust.problems == ()


def test_an_older_list_never_comes_back_while_we_run(grid: TestGrid) -> None:
    old = grid.crl_path.read_bytes()
    alice = grid.user("alice")
    grid.revoke(alice)
    assert grid.trust.authorities[0].crl is not None
    for between in (False, True):
        if between:
            grid.crl_path.unlink()
            assert grid.trust.authorities[0].crl is None  # removed counts as missing
        (grid.trust_directory / f"{subject_hash(grid.ca.certificate)}.r0").write_bytes(old)
        crl = grid.trust.authorities[0].crl
        assert crl is not None
        assert alice.certificate.serial_number in crl.revoked
        assert grid.trust_store.problems[0].reason == Reason.CRL_OLDER


def test_removing_an_authority_takes_effect(grid: TestGrid) -> None:
    removed = remove_authority(grid.trust_directory, grid.ca.subject)
    assert len(removed) == 3
    assert grid.trust.authorities == ()
    assert remove_authority(grid.trust_directory, grid.ca.subject) == ()


def test_misnamed_and_foreign_files_are_not_trusted(grid: TestGrid) -> None:
    (grid.trust_directory / "00000000.0").write_bytes(grid.unknown_authority().ca_pem())
    (grid.trust_directory / "ca.pem").write_bytes(grid.unknown_authority().ca_pem())
    (grid.trust_directory / "11111111.0").write_bytes(b"garbage")
    (grid.trust_directory / "22222222.0").mkdir()
    user = grid.trust_directory / "33333333.0"
    user.write_bytes(grid.user("alice").pem_chain())
    os.symlink("/nonexistent", grid.trust_directory / "44444444.0")
    snapshot = grid.trust
    assert [authority.subject for authority in snapshot.authorities] == [grid.ca.subject]
    assert {problem.path.name for problem in snapshot.problems} == {f"{d * 8}.0" for d in "0123"}


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        TrustStore(tmp_path / "none")
    assert caught.value.reason == Reason.TRUST_DIRECTORY_INVALID
    assert "none cannot be read (no such file or directory); set X509_CERT_DIR to" in caught.value.sentence


def test_alarms_come_before_the_end(grid: TestGrid) -> None:
    crl = grid.trust.authorities[0].crl
    assert crl is not None
    assert crl.next_update is not None
    end = crl.next_update

    def steps(now_before_end: timedelta) -> list[timedelta | None]:
        return [alarm.step for alarm in grid.trust.alarms(end - now_before_end)]

    assert steps(8 * DAY) == []
    assert steps(6 * DAY) == [7 * DAY]
    assert steps(timedelta(hours=20)) == [DAY]
    assert steps(timedelta(minutes=30)) == [timedelta(hours=1)]
    expired = grid.trust.alarms(end + DAY)[0]
    assert expired.step is None
    assert expired.reason == Reason.CRL_EXPIRED
    assert expired.remaining == -DAY
    grid.missing_crl()
    assert grid.trust.alarms(NOW)[0].reason == Reason.CRL_MISSING


def test_installed_files_are_readable_by_all_and_installing_again_changes_nothing(grid: TestGrid) -> None:
    files = sorted(path.name for path in grid.trust_directory.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in grid.trust_directory.iterdir())
    install_authority(grid.trust_directory, grid.ca.ca_pem(), grid.ca.signing_policy())
    assert sorted(path.name for path in grid.trust_directory.iterdir()) == files


def test_two_authorities_of_one_name_each_keep_their_list(grid: TestGrid) -> None:
    twin = grid.same_name_authority()
    path = install_authority(grid.trust_directory, twin.certificate, twin.signing_policy(), twin.build_crl(NOW, DAY))
    assert path.name.endswith(".1")
    snapshot = grid.trust
    assert snapshot.problems == ()
    assert len(snapshot.authorities) == 2
    assert all(authority.crl is not None for authority in snapshot.authorities)
    install_crl(grid.trust_directory, twin.build_crl(NOW, 2 * DAY), NOW)
    assert (grid.trust_directory / path.name.replace(".1", ".r1")).exists()


def refused(reason: Reason, grid: TestGrid, crl: bytes) -> None:
    before = grid.crl_path.read_bytes()
    with pytest.raises(ValidationError) as caught:
        install_crl(grid.trust_directory, crl, NOW)
    assert caught.value.reason == reason
    assert grid.crl_path.read_bytes() == before


def test_lists_that_are_not_installed(grid: TestGrid) -> None:
    older = grid.ca.build_crl(NOW, DAY)
    grid.publish_crl()
    refused(Reason.CRL_OLDER, grid, older)
    refused(Reason.CRL_INVALID, grid, b"")
    refused(Reason.CRL_INVALID, grid, grid.same_name_authority().build_crl(NOW, DAY))
    refused(Reason.UNKNOWN_CA, grid, grid.unknown_authority().build_crl(NOW, DAY))
    refused(Reason.CRL_EXPIRED, grid, grid.ca.build_crl(NOW - 2 * DAY, DAY))
    refused(Reason.CRL_INVALID, grid, grid.ca.build_crl(NOW + DAY, DAY))


def test_der_lists_are_installed_as_pem(grid: TestGrid) -> None:
    der = x509.load_pem_x509_crl(grid.ca.build_crl(NOW, DAY)).public_bytes(serialization.Encoding.DER)
    assert install_crl(grid.trust_directory, der, NOW).read_bytes().startswith(b"-----BEGIN X509 CRL-----")


def test_authorities_that_are_not_installed(grid: TestGrid, tmp_path: Path) -> None:
    for certificate, policy, crl, reason in (
        (grid.user("alice").pem_chain(), grid.ca.signing_policy(), None, Reason.KEY_USAGE),
        (b"garbage", grid.ca.signing_policy(), None, Reason.CHAIN_MALFORMED),
        (grid.ca.ca_pem(), "garbage", None, Reason.SIGNING_POLICY_INVALID),
        (grid.ca.ca_pem(), grid.unknown_authority().signing_policy(), None, Reason.SIGNING_POLICY_INVALID),
        (grid.ca.ca_pem(), grid.ca.signing_policy(), b"garbage", Reason.CRL_INVALID),
    ):
        with pytest.raises(ValidationError) as caught:
            install_authority(tmp_path / "new", certificate, policy, crl)
        assert caught.value.reason == reason
    assert not (tmp_path / "new").exists()


SOME_REASONS = frozenset({x509.ReasonFlags.key_compromise})


def signed_list(grid: TestGrid, *extensions: x509.ExtensionType) -> x509.CertificateRevocationList:
    key = Credential.load(grid.ca.directory / "ca.pem", grid.ca.directory / "key.pem").key
    builder = x509.CertificateRevocationListBuilder(grid.ca.certificate.subject, NOW, NOW + DAY)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    "extension",
    [
        x509.IssuingDistributionPoint(None, None, False, False, SOME_REASONS, False, False),
        x509.IssuingDistributionPoint(None, None, False, False, None, True, False),
        x509.IssuingDistributionPoint(None, None, False, False, None, False, True),
        x509.DeltaCRLIndicator(1),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
    ids=["some reasons", "indirect", "attribute certificates", "delta", "unknown critical"],
)
def test_partial_lists_are_not_taken_for_complete(grid: TestGrid, extension: x509.ExtensionType) -> None:
    with pytest.raises(ValidationError) as caught:
        verify_crl(signed_list(grid, extension), grid.ca.certificate)
    assert caught.value.reason == Reason.CRL_INVALID


def test_a_list_covers_only_its_scope(grid: TestGrid) -> None:
    """RFC 5280 section 6.3.3, step b."""
    user, authority = grid.user("alice").certificate, grid.ca.certificate
    users = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    authorities = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
    point = x509.IssuingDistributionPoint(
        [x509.UniformResourceIdentifier("http://a/crl")], None, False, False, None, False, False
    )
    for extension, covers in ((users, (True, False)), (authorities, (False, True)), (point, (False, False))):
        good = verify_crl(signed_list(grid, extension), authority)
        assert (good.covers(user), good.covers(authority)) == covers


@given(st.binary(max_size=200))
def test_any_bytes_are_no_list(noise: bytes) -> None:
    for data in (noise, b"-----BEGIN X509 CRL-----\n" + noise + b"\n-----END X509 CRL-----"):
        with pytest.raises(ValidationError) as caught:
            parse_crl(data)
        assert caught.value.reason == Reason.CRL_INVALID


# Signing policies

EACL = """# a comment
access_id_CA      X509         '/C=XX/O=Grid/CN=Grid CA'
pos_rights        globus        CA:sign
cond_subjects     globus     '"/C=XX/O=Grid/*" "/DC=org/E=*"'

access_id_CA X509 "/CN=Other"
pos_rights globus CA:sign
cond_subjects globus '"/CN=Other/*"'
"""
name = DistinguishedName.parse


def test_policy_of_two_authorities() -> None:
    policy = parse_signing_policy(EACL)
    grid, other = name("/C=XX/O=Grid/CN=Grid CA"), name("/CN=Other")
    assert policy.permits(grid, name("/C=XX/O=Grid/CN=a"))
    assert policy.permits(grid, name("/DC=org/emailAddress=x@y"))
    assert not policy.permits(grid, name("/CN=Other/CN=a"))
    assert policy.permits(other, name("/CN=Other/CN=a"))
    assert not policy.permits(name("/CN=Third"), name("/CN=Other/CN=a"))


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("/C=XX/*", "/C=XX/CN=a", True),
        ("/C=XX/*", "/C=XX", False),
        ("/C=XX/*", "/C=XXX/CN=a", False),
        ("/C=XX*", "/C=XXX/CN=a", True),
        ("/C=XX/CN=a", "/C=XX/CN=a", True),
        ("/C=XX/CN=a", "/C=XX/CN=ab", False),
        ("/C=xx/*", "/C=XX/CN=a", False),
        ("/C=X?/*", "/C=XX/CN=a", False),
        ("*", "/anything", True),
        ("/O=a/*/CN=b", "/O=a/OU=x/CN=b", True),
        ("/O=a/*/CN=b", "/O=a/OU=x/CN=c", False),
        ("/O=a/*/CN=*", "/O=a/OU=x/CN=c", False),
        ("/O=aa*aa", "/O=aaa", False),
    ],
)
def test_wildcards(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) == expected


def test_a_name_that_only_prints_like_the_namespace_is_outside() -> None:
    policy = parse_signing_policy(EACL)
    trick = DistinguishedName(((("C", "XX/O=Grid/CN=x"),),))
    assert not policy.permits(name("/C=XX/O=Grid/CN=Grid CA"), trick)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "access_id_CA X509 '/CN=a'",
        EACL.replace("CA:sign", "other"),
        EACL + "neg_rights globus CA:sign\n",
        EACL.replace("X509", "KERBEROS"),
        EACL.replace("/C=XX/O=Grid/CN=Grid CA", "nobody"),
        "frobnicate a b\n" + EACL,
        EACL.replace("""'"/CN=Other/*"'""", "''"),
        "#" * 70_000,
    ],
)  # fmt: skip
def test_policies_refused(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_signing_policy(text)
    assert caught.value.reason == Reason.SIGNING_POLICY_INVALID


@given(st.text(max_size=300))
def test_any_text_is_a_policy_or_a_typed_error(text: str) -> None:
    for candidate in (text, EACL + text, EACL.replace("/CN=Other/*", text)):
        for parse in (parse_signing_policy, parse_namespaces):
            try:
                policy = parse(candidate)
            except SecurityError as error:
                assert error.reason == Reason.SIGNING_POLICY_INVALID
            else:
                assert policy.entries


def test_emit_comes_back_and_refuses_quotes() -> None:
    authority = name("/C=XX/O=Grid/CN=Grid CA")
    policy = parse_signing_policy(emit_signing_policy(authority, ["/C=XX/*", "/DC=org/*"]))
    assert policy.entries[0].subjects == ("/C=XX/*", "/DC=org/*")
    with pytest.raises(ValueError, match="quotation"):
        emit_signing_policy(authority, ['/CN="*'])


def test_namespaces() -> None:
    text = '# c\nTO Issuer "/CN=A" \\\n PERMIT Subject "/O=a/.*"\nTO Issuer "/CN=A" PERMIT Subject "/O=b/CN=x"\n'
    policy = parse_namespaces(text)
    assert policy.permits(name("/CN=A"), name("/O=a/CN=z"))
    assert policy.permits(name("/CN=A"), name("/O=b/CN=x"))
    assert not policy.permits(name("/CN=A"), name("/O=b/CN=y"))
    for bad in (text + "junk", text.replace("PERMIT", "ALLOW"), text.replace("/O=a/.*", "/O=(a|b)/.*"), ""):
        with pytest.raises(ValidationError):
            parse_namespaces(bad)
