"""What authorities may sign: `.namespaces` before `.signing_policy`, as canl's EUGRIDPMA_GLOBUS with one required."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from security import certificates
from security.authority import CertificateAuthority
from security.credentials import Credential
from security.errors import Reason, ValidationError
from security.installation import install_authority
from security.names import DistinguishedName
from security.signing_policy import compile_pattern, parse_namespaces
from security.testing import NOW, TestGrid, shared_key
from security.trust import TrustStore, subject_hash
from security.validation import ValidationPolicy, validate_client_chain

DAY = timedelta(days=1)
CA = "/C=XX/O=TestGrid/CN=TestGrid CA"


def verdict(grid: TestGrid, chain: bytes | Credential) -> str:
    data = chain if isinstance(chain, bytes) else chain.pem_chain()
    try:
        validate_client_chain(data, grid.trust, ValidationPolicy(), NOW)
    except ValidationError as error:
        return error.reason.value
    return "OK"


def namespaces(grid: TestGrid, text: str) -> None:
    grid.signing_policy_path.with_suffix(".namespaces").write_text(text)


def signing_policy(grid: TestGrid, pattern: str) -> None:
    grid.signing_policy_path.write_text(
        f"access_id_CA X509 '{CA}'\npos_rights globus CA:sign\ncond_subjects globus '\"{pattern}\"'\n"
    )


OURS, OTHERS = "/C=XX/O=TestGrid/*", "/C=XX/O=Elsewhere/*"


@pytest.mark.parametrize(
    ("rules", "eacl", "expected"),
    [
        (None, OURS, "OK"),
        (None, OTHERS, "NAMESPACE_VIOLATION"),
        (None, None, "SIGNING_POLICY_MISSING"),
        (f'TO Issuer "{CA}" PERMIT Subject "/C=XX/O=TestGrid/.*"', OTHERS, "OK"),
        (f'TO Issuer "{CA}" PERMIT Subject "/C=XX/O=TestGrid/.*"', None, "OK"),
        (f'TO Issuer "{CA}" PERMIT Subject "/C=XX/O=Elsewhere/.*"', OURS, "NAMESPACE_VIOLATION"),
        ('TO Issuer SELF PERMIT Subject "/C=XX/O=TestGrid/.*"', None, "OK"),
        ('TO Issuer "/CN=Another" PERMIT Subject "/C=XX/.*"', OURS, "OK"),
        ('TO Issuer "/CN=Another" PERMIT Subject "/C=XX/.*"', None, "SIGNING_POLICY_MISSING"),
        ("nonsense", OURS, "SIGNING_POLICY_INVALID"),
        ("#NAMESPACES-VERSION: 2.0\n" + f'TO Issuer "{CA}" PERMIT Subject "/C=XX/.*"', OURS, "SIGNING_POLICY_INVALID"),
        (
            'TO Issuer SELF PERMIT Subject "/C=XX/O=TestGrid/.*"\nTO Issuer SELF DENY Subject "/C=XX/.*/CN=alice"',
            None,
            "NAMESPACE_VIOLATION",
        ),
        (
            'TO Issuer SELF PERMIT Subject "/C=XX/O=TestGrid/.*"\nTO Issuer SELF DENY Subject "/C=XX/.*/CN=ALICE"',
            None,
            "NAMESPACE_VIOLATION",
        ),
        ('TO Issuer SELF PERMIT Subject "/C=XX/O=TESTGRID/.*"', None, "NAMESPACE_VIOLATION"),
        (
            'TO Issuer SELF DENY Subject "/C=XX/O=TestGrid/CN=bob"\nTO Issuer SELF PERMIT Subject "/C=XX/.*"',
            None,
            "OK",
        ),
    ],
)
def test_precedence(grid: TestGrid, rules: str | None, eacl: str | None, expected: str) -> None:
    alice = grid.user("alice")
    if rules is not None:
        namespaces(grid, rules + "\n")
    if eacl is not None:
        signing_policy(grid, eacl)
    else:
        grid.signing_policy_path.unlink()
    assert verdict(grid, alice) == expected


@pytest.fixture
def intermediate(grid: TestGrid) -> tuple[bytes, CertificateAuthority, x509.Certificate]:
    """An authority below the grid's, installed, and the chain of one of its people."""
    key = shared_key(number=77)
    sub = CertificateAuthority.create(
        grid.directory / "sub", "/C=XX/O=TestGrid/CN=Sub CA", lifetime=99 * DAY, now=NOW, key=key
    )
    extensions = [(extension.value, extension.critical) for extension in sub.certificate.extensions]
    cross = grid.certificate(sub.certificate.subject, key, extensions=extensions)
    person = sub.issue_user("sue", shared_key(number=5).public_key(), lifetime=9 * DAY, now=NOW)
    install_authority(grid.trust_directory, cross, sub.signing_policy(), sub.build_crl(NOW, DAY))
    return certificates.pem([person, cross]), sub, cross


Intermediate = tuple[bytes, CertificateAuthority, x509.Certificate]


def test_the_file_of_the_root_may_speak_for_an_authority_below_it(grid: TestGrid, intermediate: Intermediate) -> None:
    """canl looks upward for a policy; the nearest file that says something decides."""
    chain, sub, cross = intermediate
    assert verdict(grid, chain) == "OK"
    own = grid.trust_directory / f"{subject_hash(cross)}.namespaces"
    (grid.trust_directory / f"{subject_hash(cross)}.signing_policy").unlink()
    assert verdict(grid, chain) == "SIGNING_POLICY_MISSING"
    root = f'TO Issuer "{CA}" PERMIT Subject "/C=XX/O=TestGrid/.*"\n'
    namespaces(grid, root + f'TO Issuer "{sub.subject}" PERMIT Subject "/C=XX/O=TestGrid/.*"\n')
    assert verdict(grid, chain) == "OK"
    own.write_text(f'TO Issuer "{sub.subject}" PERMIT Subject "/C=XX/O=Nobody/.*"\n')
    assert verdict(grid, chain) == "NAMESPACE_VIOLATION"
    own.unlink()
    namespaces(grid, root + f'TO Issuer "{sub.subject}" DENY Subject "/C=XX/O=TestGrid/CN=s.*"\n')
    assert verdict(grid, chain) == "NAMESPACE_VIOLATION"


def test_self_in_the_file_of_the_root_is_the_root(grid: TestGrid, intermediate: Intermediate) -> None:
    chain, _, cross = intermediate
    (grid.trust_directory / f"{subject_hash(cross)}.signing_policy").unlink()
    namespaces(grid, 'TO Issuer SELF PERMIT Subject "/C=XX/.*"\n')
    assert verdict(grid, chain) == "SIGNING_POLICY_MISSING"


def test_an_authority_below_needs_its_place_in_the_namespace_too(grid: TestGrid, intermediate: Intermediate) -> None:
    chain, _, _ = intermediate
    namespaces(grid, f'TO Issuer "{CA}" PERMIT Subject "/C=XX/O=TestGrid/CN=[a-z].*"\n')
    assert verdict(grid, chain) == "NAMESPACE_VIOLATION"


def test_two_authorities_sign_each_in_its_own_tree(grid: TestGrid, tmp_path: Path) -> None:
    other = grid.unknown_authority()
    install_authority(grid.trust_directory, other.certificate, other.signing_policy(), other.build_crl(NOW, DAY))
    key = shared_key(number=9)
    person = other.issue_user("eve", key.public_key(), lifetime=DAY, now=NOW)
    assert verdict(grid, certificates.pem([person])) == "OK"
    assert verdict(grid, grid.user("alice")) == "OK"
    assert verdict(grid, grid.outside_namespace_user()) == "NAMESPACE_VIOLATION"


def test_an_authority_with_a_new_key_may_name_itself(grid: TestGrid) -> None:
    """Roll-over: the old key signs the new one under the same name, which no namespace has to list."""
    new_key = shared_key(number=88)
    old = grid.ca.certificate
    extensions = [
        (extension.value, extension.critical)
        for extension in old.extensions
        if not isinstance(extension.value, (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier))
    ]
    old_key = certificates.public_key_of(old)
    extensions.append((x509.SubjectKeyIdentifier.from_public_key(new_key.public_key()), False))
    extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(old_key), False))
    new_with_old = grid.certificate(old.subject, new_key, extensions=extensions)
    signing_policy(grid, "/C=XX/O=TestGrid/CN=alice")
    builder = (
        x509.CertificateBuilder()
        .subject_name(DistinguishedName.parse("/C=XX/O=TestGrid/CN=alice").to_x509())
        .issuer_name(old.subject)
        .public_key(shared_key(number=3).public_key())
        .serial_number(4711)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(new_key.public_key()), critical=False)
    )
    alice = builder.sign(new_key, hashes.SHA256())
    assert verdict(grid, certificates.pem([alice, new_with_old])) == "OK"  # by the list that the old key signed


# Patterns


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("/C=XX/.*", "/C=XX/CN=a", True),
        ("/C=XX/.*", "/C=XX/", True),
        ("/C=XX/.+", "/C=XX/", False),
        ("/C=XX/.*", "/C=XXX/CN=a", False),
        ("^/C=XX/.*$", "/C=XX/CN=a", True),
        ("/C=XX/.*/CN=a", "/C=XX/O=b/CN=a", True),
        ("/C=XX/.*/CN=a", "/C=XX/O=b/CN=ab", False),
        ("/C=XX/.*/CN=a", "/C=XX/CN=a", False),
        ("/O=a.b/.*", "/O=axb/CN=c", True),
        (r"/O=a\.b/.*", "/O=axb/CN=c", False),
        (r"/O=a\.b/.*", "/O=a.b/CN=c", True),
        ("/O=[ab]/.*", "/O=b/CN=c", True),
        ("/O=[^ab]/.*", "/O=b/CN=c", False),
        (".*", "/anything", True),
        (".*/CN=a.*b.*", "/O=x/CN=a1b2", True),
        (".*aa", "/aaa", True),
        ("/aa.*aa", "/aaa", False),
        ("/C=XX/CN=a", "/C=XX/CN=a", True),
        ("/C=XX/CN=a", "/C=XX/CN=A", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert compile_pattern(pattern, ignore_case=False).matches(name) == expected


@pytest.mark.parametrize(
    "pattern", ["a*", "a+", "(a|b)", "a{2}", "a?", "[", "[a", r"\d", r"\w+", "a|b", "a.**", ".*" * 20]
)
def test_patterns_that_are_not_understood_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compile_pattern(pattern, ignore_case=False)
    with pytest.raises(ValidationError) as caught:
        parse_namespaces(f'TO Issuer SELF PERMIT Subject "{pattern}"')
    assert caught.value.reason == Reason.SIGNING_POLICY_INVALID


PIECES = st.lists(st.sampled_from([".*", ".", "a", "b", "/", r"\.", "[ab]"]), max_size=10)


@given(PIECES, st.text("ab/.", max_size=12))
def test_patterns_match_as_regular_expressions_do(pieces: list[str], name: str) -> None:
    import re

    pattern = "".join(pieces)
    assert compile_pattern(pattern, ignore_case=False).matches(name) == bool(re.fullmatch(pattern, name))


def test_no_pattern_takes_long() -> None:
    """`re` would need 10^30 steps for this."""
    pattern = compile_pattern("/" + "a.*" * 16 + "b", ignore_case=False)
    start = time.process_time()
    assert not pattern.matches("/" + "a" * 4000)
    assert time.process_time() - start < 1


def test_the_files_of_an_authority_are_in_the_fields_formats(grid: TestGrid, tmp_path: Path) -> None:
    """Both namespaces say the same, `.info` is about this certificate, and the linter has nothing to say."""
    from security.lint import lint_authority, read_info
    from security.trust import subject_hash_old

    folder, ca = tmp_path / "new", grid.ca
    info = ca.info("http://ca.example.org/crl")
    install_authority(
        folder, ca.certificate, ca.signing_policy(), ca.build_crl(NOW, DAY), namespaces=ca.namespaces(), info=info
    )
    stem, old = subject_hash(ca.certificate), subject_hash_old(ca.certificate)
    (folder / f"{old}.0").symlink_to(f"{stem}.0")
    assert {path.name for path in folder.iterdir()} == {
        f"{stem}.0", f"{old}.0", f"{stem}.r0", f"{stem}.signing_policy", f"{stem}.namespaces", f"{stem}.info",
    }  # fmt: skip
    trust = TrustStore(folder).snapshot()
    (authority,) = trust.authorities
    assert [finding for finding in lint_authority(authority, trust, NOW) if finding.level != "ok"] == []
    assert read_info(folder, authority)["crl_url"] == "http://ca.example.org/crl"
    assert authority.policy is not None
    for name, expected in (("/C=XX/O=TestGrid/CN=a", True), ("/C=XX/O=TestGridX/CN=a", False)):
        assert authority.policy.permits(ca.subject, DistinguishedName.parse(name)) == expected
    with pytest.raises(ValidationError) as caught:
        install_authority(
            tmp_path / "x", ca.certificate, ca.signing_policy(), namespaces='TO Issuer "/CN=B" PERMIT Subject "/.*"'
        )
    assert caught.value.reason == Reason.SIGNING_POLICY_INVALID


def test_a_list_by_somebody_who_took_the_authoritys_name_is_not_believed(
    grid: TestGrid, intermediate: Intermediate
) -> None:
    """RFC 5280 section 6.3.3 asks only for the same root; the namespace of who gave that name has to allow it too."""
    _, sub, cross = intermediate
    rogue_key = shared_key(number=99)
    usage = next(e for e in cross.extensions if isinstance(e.value, x509.KeyUsage))
    sub_key = Credential.load(sub.directory / "ca.pem", sub.directory / "key.pem").key
    rogue = (
        x509.CertificateBuilder()
        .subject_name(grid.ca.certificate.subject)
        .issuer_name(cross.subject)
        .public_key(rogue_key.public_key())
        .serial_number(666)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(usage.value, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(rogue_key.public_key()), critical=False)
        .sign(sub_key, hashes.SHA256())
    )
    builder = x509.CertificateRevocationListBuilder(grid.ca.certificate.subject, NOW, NOW + DAY)
    forged = builder.add_extension(x509.CRLNumber(999), critical=False).sign(rogue_key, hashes.SHA256())
    alice = grid.user("alice")
    grid.crl_path.unlink()
    stem = subject_hash(grid.ca.certificate)
    (grid.trust_directory / f"{stem}.r0").write_bytes(forged.public_bytes(certificates.Encoding.PEM))
    chain = certificates.pem([alice.certificate, rogue, cross])
    policy = (grid.trust_directory / f"{subject_hash(cross)}.signing_policy").read_text()
    assert "/C=XX/O=TestGrid/*" in policy
    narrow = policy.replace("/C=XX/O=TestGrid/*", "/C=XX/O=TestGrid/CN=sue")
    (grid.trust_directory / f"{subject_hash(cross)}.signing_policy").write_text(narrow)
    grid.trust_store = TrustStore(grid.trust_directory)  # started anew: it remembers no list
    assert verdict(grid, chain) == "CRL_MISSING"
