"""The linter of authorities: profiles are data, each finding has its test."""

from __future__ import annotations

from datetime import timedelta

import pytest

from security.installation import install_authority
from security.lint import lint_authority, lint_certificate, profile_of, profiles, read_info
from security.names import DistinguishedName
from security.testing import NOW, TestGrid, shared_key
from security.trust import subject_hash, subject_hash_old

DAY = timedelta(days=1)


def findings(grid: TestGrid, profile: str = "laboratory", at_days: float = 0) -> dict[str, list[str]]:
    """Sentences by level, warnings of missing old hash and .info left out."""
    found: dict[str, list[str]] = {"error": [], "warning": [], "ok": []}
    for one in lint_authority(grid.trust.authorities[0], grid.trust, NOW + at_days * DAY, profiles()[profile]):
        if "OpenSSL 0.9" not in one.sentence and one.check != "info":
            found[one.level].append(one.sentence)
    return found


def test_a_grid_of_ones_own_is_in_order(grid: TestGrid) -> None:
    found = findings(grid)
    assert found["error"] == found["warning"] == []
    assert "it may sign /C=XX/O=TestGrid/*" in found["ok"]


def test_profiles_are_data() -> None:
    assert {"classic", "slcs", "mics", "iota", "laboratory"} <= set(profiles())
    for profile in profiles().values():
        assert profile.title and profile.authority_days[0] < profile.authority_days[1]
        assert profile.entity_rsa_bits >= 2048 and profile.crl_days > 0


def test_the_info_file_says_the_profile(grid: TestGrid) -> None:
    stem = subject_hash(grid.ca.certificate)
    (grid.trust_directory / f"{stem}.info").write_text(
        "# @(#)TestGrid\nalias = TestGrid\nstatus = accredited:slcs\n"
        f'subjectdn = "{grid.ca.subject}"\ncrl_url = http://ca.example.org/crl\n'
    )
    info = read_info(grid.trust_directory, grid.trust.authorities[0])
    assert profile_of(info).name == "slcs"
    assert info["subjectdn"] == str(grid.ca.subject)
    assert profile_of({}).name == "laboratory"
    assert profile_of({"status": "accredited:unheard"}).name == "laboratory"


@pytest.mark.parametrize(
    ("line", "level", "words"),
    [
        ('subjectdn = "/CN=Another"', "error", "subjectdn is"),
        ("sha1fp.0 = 00:11:22", "error", "another certificate's"),
        ("status = withdrawn", "error", "withdrawn"),
        ("alias = x", "warning", "no crl_url"),
    ],
)
def test_an_info_file_that_does_not_fit(grid: TestGrid, line: str, level: str, words: str) -> None:
    (grid.trust_directory / f"{subject_hash(grid.ca.certificate)}.info").write_text(line + "\n")
    found = lint_authority(grid.trust.authorities[0], grid.trust, NOW)
    assert [one for one in found if one.level == level and words in one.sentence]


def test_revocation_lists(grid: TestGrid) -> None:
    assert "expired" in findings(grid, at_days=31)["error"][0]
    grid.publish_crl(lifetime=40 * DAY)
    assert "more than 32 (laboratory)" in findings(grid)["warning"][0]
    grid.missing_crl()
    assert "none is installed" in findings(grid)["error"][0]
    assert "none is installed" in findings(grid, "slcs")["warning"][0]


def test_namespaces_that_are_missing_wide_or_contradictory(grid: TestGrid) -> None:
    path = grid.signing_policy_path
    text = path.read_text()
    path.write_text(text.replace("/C=XX/O=TestGrid/*", "/*"))
    assert "nearly every name" in findings(grid)["error"][0]
    path.write_text(text)
    rules = path.with_suffix(".namespaces")
    rules.write_text('TO Issuer SELF PERMIT Subject "/C=XX/O=TestGrid/.*"\n')
    assert findings(grid)["warning"] == []
    rules.write_text('TO Issuer SELF PERMIT Subject "/C=XX/O=TestGrid/OU=People/.*"\n')
    assert "differ" in findings(grid)["warning"][0]
    path.unlink()
    assert "Globus reads .signing_policy" in findings(grid)["warning"][0]
    rules.unlink()
    assert "it may sign nothing" in findings(grid)["error"][0]


def test_authorities_that_may_sign_the_same_names_are_told(grid: TestGrid) -> None:
    other = grid.unknown_authority()
    policy = other.signing_policy().replace("/C=XX/O=Elsewhere/*", "/C=XX/O=TestGrid/OU=People/*")
    install_authority(grid.trust_directory, other.certificate, policy, other.build_crl(NOW, DAY))
    trust = grid.trust
    for authority in trust.authorities:
        found = lint_authority(authority, trust, NOW)
        assert [one for one in found if "may sign names of it as well" in one.sentence]


def test_certificates_of_an_authority(grid: TestGrid) -> None:
    assert "its life of" in findings(grid, "classic", at_days=0)["ok"][0] or findings(grid, "classic")["warning"] == []
    late = findings(grid, at_days=3600)
    assert any("roll over" in sentence for sentence in late["warning"])
    assert any("expired at" in sentence for sentence in findings(grid, at_days=4000)["error"])


def test_certificates_of_people(grid: TestGrid) -> None:
    key = shared_key()
    subject = DistinguishedName.parse("/C=XX/O=TestGrid/CN=long").to_x509()
    certificate = grid.certificate(subject, key, not_after=NOW + 3000 * DAY)
    assert "longer than 400" in lint_certificate(certificate, profiles()["classic"])[0].sentence
    assert lint_certificate(grid.user("alice").certificate, profiles()["classic"]) == ()


def test_names_by_both_hashes(grid: TestGrid) -> None:
    certificate = grid.ca.certificate
    new, old = subject_hash(certificate), subject_hash_old(certificate)
    (grid.trust_directory / f"{old}.0").write_bytes((grid.trust_directory / f"{new}.0").read_bytes())
    found = lint_authority(grid.trust.authorities[0], grid.trust, NOW)
    assert not [one for one in found if "OpenSSL 0.9" in one.sentence]
    (grid.trust_directory / f"{new}.0").unlink()
    found = lint_authority(grid.trust.authorities[0], grid.trust, NOW)
    assert [one for one in found if one.level == "error" and f"{new}.N is missing" in one.sentence]


def test_unreadable_files_are_findings(grid: TestGrid) -> None:
    (grid.trust_directory / f"{subject_hash(grid.ca.certificate)}.r7").write_bytes(b"garbage")
    assert [sentence for sentence in findings(grid)["error"] if ".r7" in sentence]
