"""Reading revocation lists ourselves: as the library reads them, in any size, with deltas and other signers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from security import _crl
from security._crl import SerialIndex
from security.authority import CertificateAuthority
from security.credentials import Credential
from security.errors import Reason, SecurityError, ValidationError
from security.installation import install_authority, install_crl, remove_authority
from security.revocation import complete, parse_crl, verify_crl
from security.testing import NOW, TestGrid, shared_key
from security.trust import TrustStore, subject_hash
from security.validation import ValidationPolicy, validate_client_chain

DAY = timedelta(days=1)
SERIALS = st.one_of(st.integers(-(1 << 170), 1 << 170), st.integers(-300, 300))


def content(serial: int) -> bytes:
    """Of a DER INTEGER."""
    return serial.to_bytes((serial if serial >= 0 else ~serial).bit_length() // 8 + 1, "big", signed=True)


@given(st.sets(SERIALS, max_size=60), st.lists(SERIALS, max_size=20), st.sampled_from([0, 100, 10_000]))
def test_the_index_is_a_set_of_numbers(numbers: set[int], others: list[int], expected: int) -> None:
    index = SerialIndex((content(number) for number in numbers), expected=expected)
    assert len(index) == len(numbers)
    assert all(number in index for number in numbers)
    assert all((other in index) == (other in numbers) for other in others)
    assert index.serials() == numbers
    assert "1" not in index


def key_of(grid: TestGrid) -> object:
    return Credential.load(grid.ca.directory / "ca.pem", grid.ca.directory / "key.pem").key


def made(
    grid: TestGrid, number: int, serials: dict[int, x509.ReasonFlags | None], *extensions: x509.ExtensionType
) -> bytes:
    builder = x509.CertificateRevocationListBuilder(grid.ca.certificate.subject, NOW, NOW + DAY)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    for serial, reason in serials.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key_of(grid), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_what_is_read_is_what_the_library_reads(shared_grid: TestGrid, count: int) -> None:
    reasons = [None, x509.ReasonFlags.key_compromise, x509.ReasonFlags.superseded]
    serials = {(n + 1) * 0x1234567_89AB: reasons[n % 3] for n in range(count)}
    pem = made(shared_grid, 9, serials)
    theirs, ours = x509.load_pem_x509_crl(pem), parse_crl(pem)
    assert ours.revoked.serials() == {entry.serial_number for entry in theirs} == set(serials)
    assert (ours.issuer, ours.last_update, ours.next_update) == (
        theirs.issuer, theirs.last_update_utc, theirs.next_update_utc,
    )  # fmt: skip
    assert ours.number == 9
    der = theirs.public_bytes(serialization.Encoding.DER)
    assert _crl.to_pem(der) == pem and _crl.to_der(pem) == der
    good = verify_crl(ours, shared_grid.ca.certificate)
    for serial, reason in serials.items():
        assert good.revocation_text(serial) == (
            "on 2026-05-31T12:00:00Z" + (f" ({_NAMES[reason]})" if reason is not None else "")
        )


_NAMES = {x509.ReasonFlags.key_compromise: "keyCompromise", x509.ReasonFlags.superseded: "superseded"}


def test_a_look_up_is_fast_in_a_large_list() -> None:
    """Also where all numbers end alike. `python -m bench security` measures a million entries."""
    index = SerialIndex((content(number << 32) for number in range(1, 40_001)), expected=40_000)
    start = time.process_time()
    assert all(number << 32 in index for number in range(1, 40_001, 20))
    assert not any((number << 32) + 1 in index for number in range(1, 40_001, 20))
    assert (time.process_time() - start) / 4000 < 100e-6  # usually 3 us


def test_a_changed_entry_breaks_the_signature(shared_grid: TestGrid) -> None:
    der = bytearray(_crl.to_der(made(shared_grid, 1, {0x1122334455: None})))
    at = der.index(bytes.fromhex("1122334455"))
    der[at] ^= 1
    with pytest.raises(ValidationError, match="not signed with that authority's key"):
        verify_crl(parse_crl(bytes(der)), shared_grid.ca.certificate)


# Delta lists (RFC 5280 section 5.2.4)


def base_and_delta(grid: TestGrid, base: int, start: int, number: int, entries: dict[int, x509.ReasonFlags | None]):  # type: ignore[no-untyped-def]
    whole = verify_crl(parse_crl(made(grid, base, {1: None, 2: None})), grid.ca.certificate)
    delta = parse_crl(made(grid, number, entries, x509.DeltaCRLIndicator(start)))
    return whole, verify_crl(delta, grid.ca.certificate, delta=True)


def test_a_delta_adds_and_restores(shared_grid: TestGrid) -> None:
    entries = {2: x509.ReasonFlags.remove_from_crl, 3: x509.ReasonFlags.key_compromise}
    whole, delta = base_and_delta(shared_grid, 5, 4, 7, entries)
    both = complete(whole, [delta], NOW)
    assert [both.revokes(serial) for serial in (1, 2, 3, 4)] == [True, False, True, False]
    assert "keyCompromise" in both.revocation_text(3)


@pytest.mark.parametrize(
    ("base", "start", "number", "at"),
    [(5, 6, 7, NOW), (7, 4, 7, NOW), (5, 4, 7, NOW + 2 * DAY), (5, 4, 7, NOW - DAY)],
    ids=["of a later base", "not newer", "expired", "from the future"],
)
def test_a_delta_that_does_not_belong_is_left_out(
    shared_grid: TestGrid, base: int, start: int, number: int, at: object
) -> None:
    whole, delta = base_and_delta(shared_grid, base, start, number, {3: None})
    assert complete(whole, [delta], at) is whole  # type: ignore[arg-type]


def test_a_delta_is_installed_beside_its_base_and_counts(grid: TestGrid) -> None:
    alice = grid.user("alice")
    serial = alice.certificate.serial_number
    before = grid.trust.authorities[0].crl
    assert before is not None and before.number is not None
    delta = made(grid, before.number + 1, {serial: None}, x509.DeltaCRLIndicator(before.number))
    assert install_crl(grid.trust_directory, delta, NOW).name == f"{subject_hash(grid.ca.certificate)}.r1"
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(alice.pem_chain(), grid.trust, ValidationPolicy(), NOW)
    assert caught.value.reason == Reason.CERTIFICATE_REVOKED
    (grid.trust_directory / f"{subject_hash(grid.ca.certificate)}.r0").unlink()
    store = TrustStore(grid.trust_directory)
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(alice.pem_chain(), store.snapshot(), ValidationPolicy(), NOW)
    assert caught.value.reason == Reason.CRL_MISSING  # a delta alone says nothing


# Lists of a part, beside each other


def test_lists_for_people_and_for_authorities_make_a_whole(grid: TestGrid) -> None:
    alice = grid.user("alice")
    users = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    authorities = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
    grid.missing_crl()
    install_crl(grid.trust_directory, made(grid, 5, {}, users), NOW)
    trust = TrustStore(grid.trust_directory)
    with pytest.raises(ValidationError) as caught:  # the root itself is not covered
        validate_client_chain(alice.pem_chain(), trust.snapshot(), ValidationPolicy(), NOW)
    assert caught.value.reason == Reason.CRL_MISSING
    second = install_crl(grid.trust_directory, made(grid, 5, {}, authorities), NOW)
    assert second.name.endswith(".r1")
    trust.refresh()
    validate_client_chain(alice.pem_chain(), trust.snapshot(), ValidationPolicy(), NOW)
    install_crl(grid.trust_directory, made(grid, 6, {alice.certificate.serial_number: None}, users), NOW)
    trust.refresh()
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(alice.pem_chain(), trust.snapshot(), ValidationPolicy(), NOW)
    assert caught.value.reason == Reason.CERTIFICATE_REVOKED
    assert len(remove_authority(grid.trust_directory, grid.ca.subject)) == 4


def test_a_list_that_is_there_and_of_no_use_is_named(grid: TestGrid) -> None:
    alice = grid.user("alice")
    point = x509.IssuingDistributionPoint(
        [x509.UniformResourceIdentifier("http://a/")], None, False, False, None, False, False
    )
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for extension, words in ((unknown, "the critical extension 1.2.3.4, not understood"), (point, "that covers it")):
        grid.crl_path.write_bytes(made(grid, 9, {}, extension))
        trust = TrustStore(grid.trust_directory).snapshot()
        with pytest.raises(ValidationError, match=words) as caught:
            validate_client_chain(alice.pem_chain(), trust, ValidationPolicy(), NOW)
        assert caught.value.reason == Reason.CRL_MISSING


# What a change of lists means for those who were accepted before it


def refused_later(grid: TestGrid, people: dict[str, Credential], change: Callable[[], object]) -> tuple[bool, set[str]]:
    """Whether a change was of newer lists alone, and who is refused after it that was not before. Who is, must be named
    by the change or judged with everybody."""
    before = grid.trust

    def accepted(name: str) -> bool:
        with contextlib.suppress(SecurityError):
            return bool(validate_client_chain(people[name].certificates, grid.trust, ValidationPolicy(), NOW))
        return False

    assert all(map(accepted, people))
    change()
    after = grid.trust
    only_lists = after.only_newer_lists(before.generation, NOW)
    refused = {name for name in people if not accepted(name)}
    if only_lists:
        assert refused <= {name for name, one in people.items() if after.names(one.certificates)}
    return only_lists, refused


def test_newer_lists_concern_only_whom_they_name(grid: TestGrid) -> None:
    alice, bob, carol = (grid.user(name) for name in ("alice", "bob", "carol"))
    people = {"alice": alice, "alice's proxy": grid.proxy(alice), "bob": bob, "stolen": grid.proxy(bob)}
    first = grid.trust.generation
    assert refused_later(grid, people, grid.publish_crl) == (True, set())
    assert refused_later(grid, people, grid.garbage_crl) == (True, set())
    assert refused_later(grid, people, lambda: grid.revoke(carol)) == (True, set())
    assert refused_later(grid, people, lambda: grid.revoke_proxy(people["stolen"])) == (True, {"stolen"})
    del people["stolen"]
    assert refused_later(grid, people, lambda: grid.revoke(alice)) == (True, {"alice", "alice's proxy"})
    last = grid.trust
    assert last.only_newer_lists(first, NOW) and last.only_newer_lists(last.generation, NOW)
    assert not last.only_newer_lists(first, NOW + 31 * DAY)  # out of their time
    assert not last.only_newer_lists(first, NOW - DAY)
    assert not last.only_newer_lists(first - 1, NOW)


def test_of_a_revoked_authority_below_another_everybody_is_named(grid: TestGrid, tmp_path: Path) -> None:
    below = CertificateAuthority.create(
        tmp_path / "below", "/C=XX/O=TestGrid/CN=Below CA", lifetime=300 * DAY, now=NOW, parent=grid.ca,
        namespace="/C=XX/O=TestGrid/OU=Below/*", key=shared_key(grid.key_type, 7),
    )  # fmt: skip
    install_authority(grid.trust_directory, below.ca_pem(), below.signing_policy())
    install_crl(grid.trust_directory, below.build_crl(NOW, 30 * DAY), NOW)
    key = shared_key(grid.key_type, 8)
    dora = Credential(below.issue_user("Dora", key.public_key(), lifetime=DAY, now=NOW), key)
    people = {"dora": dora, "dora's proxy": grid.proxy(dora), "alice": grid.user("alice")}
    found = refused_later(grid, people, lambda: grid.revoke(below.certificate))
    assert found == (True, {"dora", "dora's proxy"})


@pytest.mark.parametrize("change", ["expired", "future", "missing", "forged", "part", "delta", "policy", "gone"])
def test_any_other_change_is_not_of_newer_lists_alone(grid: TestGrid, change: str) -> None:
    alice = grid.user("alice")
    serial = alice.certificate.serial_number

    def spoil() -> object:
        number = grid.trust.authorities[0].crl.number  # type: ignore[union-attr]
        assert number is not None
        match change:
            case "part":
                users = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
                return install_crl(grid.trust_directory, made(grid, number + 1, {serial: None}, users), NOW)
            case "delta":
                data = made(grid, number + 1, {serial: None}, x509.DeltaCRLIndicator(number))
                return install_crl(grid.trust_directory, data, NOW)
            case "policy":
                text = grid.signing_policy_path.read_text()
                return grid.signing_policy_path.write_text(text.replace("/*", "/OU=Nobody/*"))
            case "gone":
                return remove_authority(grid.trust_directory, grid.ca.subject)
            case _:
                return getattr(grid, f"{change}_crl")()

    only_lists, refused = refused_later(grid, {"alice": alice}, spoil)
    assert not only_lists
    assert refused == (set() if change == "forged" else {"alice"})
