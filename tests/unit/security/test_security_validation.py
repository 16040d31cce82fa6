from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security import certificates, validation
from security.credentials import Credential
from security.errors import Reason, ValidationError
from security.names import DistinguishedName
from security.proxies import proxy_info
from security.testing import NOW, TestGrid, chain_of, shared_key
from security.trust import TrustStore
from security.validation import Identity, ValidationPolicy, validate_client_chain, validate_host_chain


def validate(grid: TestGrid, credential: Credential | bytes, policy: ValidationPolicy | None = None) -> Identity:
    chain = credential if isinstance(credential, bytes) else credential.pem_chain()
    return validate_client_chain(chain, grid.trust, policy or grid.policy, grid.now)


def refusal(grid: TestGrid, credential: Credential | bytes, policy: ValidationPolicy | None = None) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        validate(grid, credential, policy)
    return caught.value


def test_a_user_is_who_the_authority_says(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    identity = validate(shared_grid, alice)
    assert str(identity.subject) == "/C=XX/O=TestGrid/CN=alice"
    assert identity.serial == alice.certificate.serial_number
    assert identity.issuer == shared_grid.ca.subject
    assert not identity.is_proxy
    assert identity.not_after == alice.not_after
    assert identity.fingerprints == (certificates.fingerprint(alice.certificate),)
    assert identity.warnings == ()


def test_three_levels_of_delegation_speak_for_the_user(shared_grid: TestGrid) -> None:
    third = shared_grid.proxy(shared_grid.proxy(shared_grid.proxy("alice")))
    identity = validate(shared_grid, third)
    assert str(identity.subject) == "/C=XX/O=TestGrid/CN=alice"
    assert identity.proxy_depth == 3
    assert identity.leaf_subject == third.subject
    assert len(identity.certificates) == 4


def test_limited_stays_limited(shared_grid: TestGrid) -> None:
    below = shared_grid.proxy(shared_grid.limited("alice"))
    identity = validate(shared_grid, below)
    assert identity.is_limited
    assert identity.proxy_depth == 2


def test_an_independent_proxy_is_nobody_but_itself(shared_grid: TestGrid) -> None:
    independent = shared_grid.proxy("alice", independent=True)
    assert validate(shared_grid, independent).subject == independent.subject
    below = shared_grid.proxy(independent)
    assert validate(shared_grid, below).subject == independent.subject


def test_the_authority_in_the_chain_and_any_order_below_the_leaf_do_not_matter(shared_grid: TestGrid) -> None:
    proxy = shared_grid.proxy(shared_grid.proxy("alice"))
    validate(shared_grid, chain_of(proxy, shared_grid.ca))
    leaf, *rest = proxy.certificates
    validate(shared_grid, certificates.pem([leaf, *reversed(rest)]))


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_path_length_counts_the_proxies_below(shared_grid: TestGrid, levels: int) -> None:
    chain = shared_grid.proxy("alice", path_length=levels)
    for _ in range(levels):
        chain = shared_grid.raw_proxy(chain)
    assert validate(shared_grid, chain).proxy_depth == levels + 1
    assert refusal(shared_grid, shared_grid.raw_proxy(chain)).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED


def test_the_smallest_path_length_counts(shared_grid: TestGrid) -> None:
    """RFC 3820 section 4.1 takes the minimum; OpenSSL also refuses a proxy that claims more than what is left."""
    narrow = shared_grid.proxy("alice", path_length=1)
    below = shared_grid.proxy(narrow, path_length=5)
    info = proxy_info(below.certificate)
    assert info is not None
    assert info.path_length == 0  # cut to what is left
    validate(shared_grid, below)
    assert refusal(shared_grid, shared_grid.raw_proxy(below)).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED
    silent = shared_grid.raw_proxy(narrow)
    validate(shared_grid, silent)
    assert refusal(shared_grid, shared_grid.raw_proxy(silent)).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED
    claims_more = shared_grid.raw_proxy(narrow, path_length=5)
    assert refusal(shared_grid, claims_more).reason == Reason.PROXY_PATH_LENGTH_EXCEEDED


REFUSED: dict[str, Reason] = {
    "unknown_ca_user": Reason.UNKNOWN_CA,
    "forged_user": Reason.BAD_SIGNATURE,
    "expired_user": Reason.CERTIFICATE_EXPIRED,
    "outside_namespace_user": Reason.NAMESPACE_VIOLATION,
    "user_without_signature_usage": Reason.KEY_USAGE,
    "server_only_user": Reason.KEY_USAGE,
    "expired_proxy": Reason.PROXY_EXPIRED,
    "future_proxy": Reason.NOT_YET_VALID,
    "expired_user_proxy": Reason.CERTIFICATE_EXPIRED,
    "wrong_name_proxy": Reason.PROXY_NAME_INVALID,
    "two_names_proxy": Reason.PROXY_NAME_INVALID,
    "pathlen_exceeded_chain": Reason.PROXY_PATH_LENGTH_EXCEEDED,
    "full_below_limited": Reason.PROXY_RIGHTS_WIDENED,
    "unknown_policy_language": Reason.PROXY_POLICY_UNKNOWN,
    "policy_with_inherit_all": Reason.PROXY_EXTENSION_INVALID,
    "ca_bit_proxy": Reason.PROXY_EXTENSION_INVALID,
    "alternative_name_proxy": Reason.PROXY_EXTENSION_INVALID,
    "not_critical_proxy": Reason.PROXY_EXTENSION_INVALID,
    "malformed_proxy": Reason.PROXY_EXTENSION_INVALID,
    "legacy_proxy": Reason.PROXY_LEGACY,
    "forged_proxy": Reason.BAD_SIGNATURE,
    "end_entity_of_user": Reason.KEY_USAGE,
}


@pytest.mark.parametrize("fault", REFUSED)
def test_one_fault_is_refused_for_its_reason_naming_a_certificate(shared_grid: TestGrid, fault: str) -> None:
    credential = getattr(shared_grid, fault)()
    error = refusal(shared_grid, credential)
    assert error.reason == REFUSED[fault]
    serials = {certificates.serial_text(c.serial_number) for c in credential.certificates}
    assert error.facts["serial"] in serials
    assert {"check", "subject", "issuer"} <= set(error.facts)
    assert "\n" not in error.sentence


@pytest.mark.parametrize("fault", [name for name in REFUSED if name.endswith("proxy")])
def test_a_good_proxy_below_a_bad_one_does_not_heal_it(shared_grid: TestGrid, fault: str) -> None:
    below = shared_grid.raw_proxy(getattr(shared_grid, fault)())
    assert refusal(shared_grid, below).reason == REFUSED[fault]


def test_a_legacy_limited_proxy_is_named_too(shared_grid: TestGrid) -> None:
    assert refusal(shared_grid, shared_grid.legacy_proxy(limited=True)).reason == Reason.PROXY_LEGACY


def test_a_proxy_without_its_user_is_an_incomplete_chain(shared_grid: TestGrid) -> None:
    proxy = shared_grid.proxy("alice")
    error = refusal(shared_grid, certificates.pem([proxy.certificate]))
    assert error.reason == Reason.CHAIN_MALFORMED
    assert "incomplete" in error.sentence
    second = shared_grid.proxy(proxy)
    gap = certificates.pem([second.certificate, second.certificates[2]])
    assert refusal(shared_grid, gap).reason == Reason.CHAIN_MALFORMED


def test_the_authority_itself_is_not_a_user(shared_grid: TestGrid) -> None:
    assert refusal(shared_grid, shared_grid.ca.ca_pem()).reason == Reason.KEY_USAGE


def test_a_proxy_of_a_host_is_a_client_but_no_host(shared_grid: TestGrid) -> None:
    proxy = shared_grid.proxy(shared_grid.host("ce.example.org"))
    assert validate(shared_grid, proxy).is_proxy
    with pytest.raises(ValidationError) as caught:
        validate_host_chain(proxy.pem_chain(), "ce.example.org", shared_grid.trust, shared_grid.policy, NOW)
    assert caught.value.reason == Reason.PROXY_NOT_ALLOWED


def test_depth_and_length_are_bounded(shared_grid: TestGrid) -> None:
    chain = shared_grid.user("alice")
    for _ in range(4):
        chain = shared_grid.proxy(chain)
    deep = refusal(shared_grid, chain, ValidationPolicy(max_proxy_depth=3))
    assert deep.reason == Reason.PROXY_PATH_LENGTH_EXCEEDED
    assert refusal(shared_grid, chain, ValidationPolicy(max_chain=4)).reason == Reason.CHAIN_TOO_LONG
    assert refusal(shared_grid, chain.pem_chain() * 20).reason == Reason.CHAIN_TOO_LONG
    assert refusal(shared_grid, b"x" * 1_000_000).reason == Reason.CHAIN_TOO_LONG


@pytest.mark.parametrize("garbage", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_garbage_is_malformed(shared_grid: TestGrid, garbage: bytes) -> None:
    assert refusal(shared_grid, garbage).reason == Reason.CHAIN_MALFORMED
    assert refusal(shared_grid, garbage).facts["check"] == "parse"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_never_gives_another_identity(shared_grid: TestGrid, data: st.DataObject) -> None:
    proxy = shared_grid.proxy("alice")
    encoded = bytearray(certificates.der(proxy.certificate))
    position = data.draw(st.integers(0, 380))
    encoded[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = x509.load_der_x509_certificate(bytes(encoded))
        identity = validate_client_chain(
            [changed, *proxy.certificates[1:]], shared_grid.trust, shared_grid.policy, shared_grid.now
        )
    except (ValidationError, ValueError):
        return
    assert identity.leaf_subject == proxy.subject  # only ever bits outside the signed part (unused bits of DER)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400))
def test_any_bytes_are_refused_with_a_typed_error(shared_grid: TestGrid, noise: bytes) -> None:
    with pytest.raises(ValidationError):
        validate(shared_grid, noise)
    with pytest.raises(ValidationError):
        validate(shared_grid, b"-----BEGIN CERTIFICATE-----\n" + noise + b"\n-----END CERTIFICATE-----\n")


def test_clock_skew_excuses_the_start_but_never_the_end(shared_grid: TestGrid) -> None:
    early = shared_grid.raw_proxy("alice", not_before=NOW + timedelta(minutes=4))
    validate(shared_grid, early)
    assert refusal(shared_grid, early, ValidationPolicy(clock_skew=timedelta(0))).reason == Reason.NOT_YET_VALID
    late = shared_grid.raw_proxy("alice", not_after=NOW - timedelta(seconds=1))
    assert refusal(shared_grid, late).reason == Reason.PROXY_EXPIRED


def test_a_naive_time_is_a_programming_error(shared_grid: TestGrid) -> None:
    with pytest.raises(ValueError, match="aware"):
        validate_client_chain(b"", shared_grid.trust, shared_grid.policy, NOW.replace(tzinfo=None))


def test_weak_keys_are_refused(shared_grid: TestGrid) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP192R1())):
        subject = DistinguishedName.parse("/C=XX/O=TestGrid/CN=weak").to_x509()
        weak = certificates.pem([shared_grid.certificate(subject, key)])
        assert refusal(shared_grid, weak).reason == Reason.KEY_TOO_WEAK


# Revocation


def test_revoked_user_is_refused_with_and_without_proxies(grid: TestGrid) -> None:
    """OpenSSL's leaf-only check accepts the proxy; A-REX does."""
    alice, bob = grid.user("alice"), grid.user("bob")
    proxy = grid.proxy(grid.proxy(alice))
    validate(grid, proxy)
    grid.revoke(alice)
    for credential in (alice, proxy):
        error = refusal(grid, credential)
        assert error.reason == Reason.CERTIFICATE_REVOKED
        assert error.facts["serial"] == certificates.serial_text(alice.certificate.serial_number)
        assert "key_compromise" in error.sentence.lower() or "keyCompromise" in error.sentence
    validate(grid, bob)


def test_a_single_proxy_can_be_revoked(grid: TestGrid) -> None:
    alice = grid.user("alice")
    stolen, other = grid.proxy(alice), grid.proxy(alice)
    below = grid.proxy(stolen)
    grid.revoke_proxy(stolen)
    assert refusal(grid, stolen).reason == Reason.PROXY_REVOKED
    assert refusal(grid, below).reason == Reason.PROXY_REVOKED
    validate(grid, other)
    validate(grid, alice)


@pytest.mark.parametrize(
    ("spoil", "reason", "setting"),
    [("missing_crl", Reason.CRL_MISSING, "missing_crl"), ("expired_crl", Reason.CRL_EXPIRED, "expired_crl")],
)
def test_missing_and_expired_lists_follow_the_site(grid: TestGrid, spoil: str, reason: Reason, setting: str) -> None:
    alice = grid.user("alice")
    getattr(grid, spoil)()
    fresh = TrustStore(grid.trust_directory).snapshot()
    proxy = grid.proxy(alice).pem_chain()
    for mode in ("require", "warn", "ignore"):
        policy = ValidationPolicy(**{setting: mode})  # type: ignore[arg-type]
        if mode == "require":
            with pytest.raises(ValidationError) as caught:
                validate_client_chain(proxy, fresh, policy, NOW)
            assert caught.value.reason == reason
        else:
            identity = validate_client_chain(proxy, fresh, policy, NOW)
            assert bool(identity.warnings) == (mode == "warn")


def test_an_expired_list_still_revokes(grid: TestGrid) -> None:
    alice = grid.user("alice")
    grid.ca.revoke(alice.certificate.serial_number, "superseded", NOW)
    grid.expired_crl()
    fresh = TrustStore(grid.trust_directory).snapshot()
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(alice.pem_chain(), fresh, ValidationPolicy(expired_crl="ignore"), NOW)
    assert caught.value.reason == Reason.CERTIFICATE_REVOKED


@pytest.mark.parametrize("spoil", ["garbage_crl", "forged_crl"])
def test_a_bad_list_after_a_restart_counts_as_missing(grid: TestGrid, spoil: str) -> None:
    alice = grid.user("alice")
    getattr(grid, spoil)()
    store = TrustStore(grid.trust_directory)
    assert [problem.reason for problem in store.problems] == [Reason.CRL_INVALID]
    with pytest.raises(ValidationError) as caught:
        validate_client_chain(alice.pem_chain(), store.snapshot(), grid.policy, NOW)
    assert caught.value.reason == Reason.CRL_MISSING


def test_a_list_from_the_future_is_refused(grid: TestGrid) -> None:
    alice = grid.user("alice")
    grid.future_crl()
    assert refusal(grid, alice).reason == Reason.CRL_INVALID


# Namespaces


def test_no_signing_policy_no_signatures(grid: TestGrid) -> None:
    alice = grid.user("alice")
    grid.signing_policy_path.unlink()
    assert refusal(grid, alice).reason == Reason.SIGNING_POLICY_MISSING


def test_a_broken_signing_policy_is_told_apart(grid: TestGrid) -> None:
    alice = grid.user("alice")
    grid.signing_policy_path.write_text("access_id_CA nonsense\n")
    assert refusal(grid, alice).reason == Reason.SIGNING_POLICY_INVALID


def test_a_signing_policy_for_another_authority_is_none(grid: TestGrid) -> None:
    alice = grid.user("alice")
    text = grid.signing_policy_path.read_text().replace("TestGrid CA", "Other CA")
    grid.signing_policy_path.write_text(text)
    assert refusal(grid, alice).reason == Reason.SIGNING_POLICY_MISSING


def test_namespaces_file_serves_when_there_is_no_signing_policy(grid: TestGrid) -> None:
    alice, path = grid.user("alice"), grid.signing_policy_path
    path.unlink()
    path.with_suffix(".namespaces").write_text(
        f'TO Issuer "{grid.ca.subject}" \\\n  PERMIT Subject "/C=XX/O=TestGrid/.*"\n'
    )
    validate(grid, alice)
    assert refusal(grid, grid.outside_namespace_user()).reason == Reason.NAMESPACE_VIOLATION


# Hosts


def host_check(grid: TestGrid, credential: Credential, host: str) -> Identity:
    return validate_host_chain(credential.pem_chain(), host, grid.trust, grid.policy, NOW)


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (("ce.example.org",), "ce.example.org"),
        (("ce.example.org",), "CE.Example.ORG."),
        (("a.example.org", "b.example.org"), "b.example.org"),
        (("*.example.org",), "ce.example.org"),
        (("127.0.0.1",), "127.0.0.1"),
        (("::1",), "[::1]"),
        (("::1",), "0:0:0:0:0:0:0:1"),
    ],
)
def test_host_names_that_match(shared_grid: TestGrid, names: tuple[str, ...], host: str) -> None:
    host_check(shared_grid, shared_grid.host(*names), host)


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (("ce.example.org",), "se.example.org"),
        (("ce.example.org",), "example.org"),
        (("*.example.org",), "a.b.example.org"),
        (("*.example.org",), "example.org"),
        (("*.org",), "example.org"),
        (("localhost",), "127.0.0.1"),
        (("127.0.0.1",), "localhost"),
        (("127.0.0.1",), "127.0.0.2"),
        (("ce.example.org",), ""),
        (("ce.example.org",), "*.example.org"),
    ],
)
def test_host_names_that_do_not(shared_grid: TestGrid, names: tuple[str, ...], host: str) -> None:
    with pytest.raises(ValidationError) as caught:
        host_check(shared_grid, shared_grid.host(*names), host)
    assert caught.value.reason == Reason.HOST_NAME_MISMATCH
    assert caught.value.facts["host"] == host


@pytest.mark.parametrize("common_name", ["ce.example.org", "host/ce.example.org", "gatekeeper/ce.example.org"])
def test_common_name_counts_only_without_alternative_names(shared_grid: TestGrid, common_name: str) -> None:
    key = shared_key()
    subject = DistinguishedName.parse(f"/C=XX/O=TestGrid/CN={common_name}").to_x509()
    old = Credential(shared_grid.certificate(subject, key), key)
    host_check(shared_grid, old, "ce.example.org")
    with pytest.raises(ValidationError):
        host_check(shared_grid, old, "ce")
    new = shared_grid.host("other.example.org", subject=common_name)
    with pytest.raises(ValidationError) as caught:
        host_check(shared_grid, new, "ce.example.org")
    assert caught.value.reason == Reason.HOST_NAME_MISMATCH


def test_a_user_certificate_is_no_host(shared_grid: TestGrid) -> None:
    with pytest.raises(ValidationError) as caught:
        host_check(shared_grid, shared_grid.user("alice"), "alice")
    assert caught.value.reason == Reason.KEY_USAGE


# Intermediate authorities


def test_intermediate_authorities_work_and_need_a_list_and_a_policy(grid: TestGrid) -> None:
    from security.authority import CertificateAuthority
    from security.installation import install_authority

    sub = CertificateAuthority.create(
        grid.directory / "sub",
        "/C=XX/O=TestGrid/CN=Sub CA",
        lifetime=timedelta(days=99),
        now=NOW,
        key=shared_key(number=77),
    )
    key = shared_key(number=77)
    extensions = [(e.value, e.critical) for e in sub.certificate.extensions]
    cross = grid.certificate(sub.certificate.subject, key, extensions=extensions)
    alice = sub.issue_user("alice", shared_key().public_key(), lifetime=timedelta(days=9), now=NOW)
    chain = certificates.pem([alice, cross])
    assert refusal(grid, chain).reason == Reason.CRL_MISSING  # sent by the peer, not installed
    install_authority(grid.trust_directory, cross, sub.signing_policy())
    assert refusal(grid, chain).reason == Reason.CRL_MISSING
    install_authority(grid.trust_directory, cross, sub.signing_policy(), sub.build_crl(NOW, timedelta(days=1)))
    assert validate(grid, chain).issuer == sub.subject
    assert validate(grid, certificates.pem([alice])).issuer == sub.subject
    grid.ca.revoke_proxy(cross, NOW)  # lists the serial number of the intermediate
    grid.publish_crl()
    error = refusal(grid, chain)
    assert error.reason == Reason.CERTIFICATE_REVOKED
    assert error.facts["subject"] == str(sub.subject)


def test_an_authority_that_renewed_its_certificate_goes_on(grid: TestGrid) -> None:
    """Same name, same key, two certificates: one expired."""
    from security.installation import install_authority

    old = grid.ca.certificate
    extensions = [(e.value, e.critical) for e in old.extensions]
    key = Credential.load(grid.ca.directory / "ca.pem", grid.ca.directory / "key.pem").key
    new = grid.certificate(old.subject, key, extensions=extensions, not_after=NOW + timedelta(days=9000))
    late = NOW + timedelta(days=4000)
    crl = grid.ca.build_crl(late, timedelta(days=9))
    install_authority(grid.trust_directory, new, grid.ca.signing_policy(), crl)
    subject = DistinguishedName.parse("/C=XX/O=TestGrid/CN=late").to_x509()
    user = grid.certificate(subject, key, not_before=late - timedelta(days=1), not_after=late + timedelta(days=1))
    identity = validate_client_chain(
        [user], grid.trust, ValidationPolicy(missing_crl="ignore", expired_crl="ignore"), late
    )
    assert str(identity.subject).endswith("CN=late")


def test_snapshots_are_shared_between_threads(shared_grid: TestGrid) -> None:
    from concurrent.futures import ThreadPoolExecutor

    good = shared_grid.proxy("alice").pem_chain()
    bad = shared_grid.full_below_limited().pem_chain()
    trust = shared_grid.trust

    def one(number: int) -> bool:
        try:
            validate_client_chain(bad if number % 2 else good, trust, shared_grid.policy, NOW)
        except ValidationError as error:
            return number % 2 == 1 and error.reason == Reason.PROXY_RIGHTS_WIDENED
        return number % 2 == 0

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(100)))


def test_policy_modes_are_checked() -> None:
    with pytest.raises(ValueError, match="require, warn or ignore"):
        ValidationPolicy(missing_crl="maybe")  # type: ignore[arg-type]


def test_one_chain_is_judged_once_in_a_moment_and_anew_after_every_change(
    grid: TestGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of many agents asks about the same people when trust has changed."""
    alice, bob = grid.proxy("alice"), grid.user("bob")
    asked: list[object] = []
    build = validation.build_path

    def counted(offered: tuple[x509.Certificate, ...], *more: Any) -> tuple[x509.Certificate, ...]:
        asked.append(offered[0])
        return build(offered, *more)

    monkeypatch.setattr(validation, "build_path", counted)

    def judged(who: Credential, after_s: float = 0.0, policy: ValidationPolicy = grid.policy) -> int:
        """How often it was looked at closely."""
        before = len(asked)
        validate_client_chain(who.certificates, trust, policy, grid.now + timedelta(seconds=after_s))
        return len(asked) - before

    trust = grid.trust
    assert [judged(alice), judged(alice), judged(alice, 1.0), judged(bob), judged(bob)] == [1, 0, 0, 1, 0]
    assert [judged(alice, 1.1), judged(alice, 1.0)] == [1, 1]  # later, and before what was seen last
    assert judged(bob, policy=ValidationPolicy(clock_skew=timedelta(0))) == 1
    longer = Credential(bob.certificate, bob.key, (*bob.certificates[1:], alice.certificate))
    assert judged(longer) == 1
    with pytest.raises(ValidationError) as caught:  # good for a client, and no host's
        validate_host_chain(alice.certificates, "localhost", trust, grid.policy, grid.now + timedelta(seconds=1.0))
    assert caught.value.reason is Reason.PROXY_NOT_ALLOWED
    grid.revoke(bob)
    trust = grid.trust
    refused: list[ValidationError] = []
    for _ in range(2):
        with pytest.raises(ValidationError) as caught:
            judged(bob)
        refused.append(caught.value)
    assert refused[0].reason is Reason.CERTIFICATE_REVOKED
    assert refused[0] == refused[1] and refused[0] is not refused[1] and len(asked) == 7
