from __future__ import annotations

import errno
import os
import pickle
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from security import credentials, proxies, session
from security._der import DerError
from security.credentials import (
    Credential,
    find_certificate_directory,
    find_proxy_path,
    find_user_certificate,
    is_proxy_file,
)
from security.errors import CredentialError, Reason, SecurityError, ValidationError, os_error_text
from security.files import write_atomic
from security.testing import NOW, TestGrid, shared_key

HOUR = timedelta(hours=1)


def test_a_saved_proxy_file_comes_back(shared_grid: TestGrid, tmp_path: Path) -> None:
    proxy = shared_grid.proxy(shared_grid.proxy("alice"))
    path = tmp_path / "x509up"
    path.write_text("old")
    proxy.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    again = Credential.load(path)
    assert again.certificates == proxy.certificates
    assert str(again.identity) == "/C=XX/O=TestGrid/CN=alice"
    blocks = [line for line in path.read_text().splitlines() if line.startswith("-----BEGIN")]
    assert (
        blocks == ["-----BEGIN CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----"] + ["-----BEGIN CERTIFICATE-----"] * 2
    )


def test_what_is_a_proxy_file(shared_grid: TestGrid) -> None:
    for proxy in (shared_grid.proxy("alice"), shared_grid.limited(), shared_grid.legacy_proxy(limited=True)):
        assert is_proxy_file(proxy.dumps())
    for other in (shared_grid.user("alice").dumps(), b"", b"root:*:1::::::"):
        assert not is_proxy_file(other)


def test_no_representation_shows_the_key(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    assert "key" not in repr(alice).lower()
    assert b"PRIVATE" not in alice.pem_chain()
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(alice)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_open_key_files_are_refused(shared_grid: TestGrid, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "proxy"
    shared_grid.proxy("alice").save(path)
    path.chmod(mode)
    with pytest.raises(CredentialError) as caught:
        Credential.load(path)
    assert caught.value.reason == Reason.CREDENTIAL_FILE_UNSAFE
    assert "chmod 600" in caught.value.sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_key_of_somebody_else_is_refused(shared_grid: TestGrid, tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    shared_grid.proxy("alice").save(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(CredentialError) as caught:
        Credential.load(path)
    assert caught.value.reason == Reason.CREDENTIAL_FILE_UNSAFE
    Credential.load(path, owner_uid=12345)


def test_a_file_that_is_there_and_cannot_be_opened_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for paths in ((tmp_path / "shadow",), (tmp_path / "shadow", tmp_path / "key")):
        with pytest.raises(CredentialError) as caught:
            Credential.load(*paths)
        assert caught.value.reason == Reason.CREDENTIAL_FILE_UNSAFE
        assert "shadow cannot be read (permission denied); name a file of your own" in caught.value.sentence


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "no such file or directory"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 101] x"), "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (OSError("/x is not a regular file"), "/x is not a regular file"),
        (UnicodeError("not UTF-8"), "not UTF-8"),
    ],
)
def test_what_the_operating_system_says_goes_into_a_sentence_without_its_number(error: Exception, text: str) -> None:
    assert os_error_text(error) == text


def test_missing_and_strange_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CredentialError) as caught:
            Credential.load(path)
        assert caught.value.reason in (Reason.CREDENTIAL_NOT_FOUND, Reason.CREDENTIAL_FILE_UNSAFE)
    big = tmp_path / "big"
    big.write_bytes(b"x" * 600_000)
    big.chmod(0o600)
    with pytest.raises(CredentialError) as caught:
        Credential.load(big)
    assert caught.value.reason == Reason.CREDENTIAL_MALFORMED


def test_a_key_of_another_certificate_is_refused(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    with pytest.raises(CredentialError) as caught:
        Credential(alice.certificate, shared_key(number=255))
    assert caught.value.reason == Reason.CREDENTIAL_MALFORMED


def test_encrypted_keys_and_pkcs12(shared_grid: TestGrid, tmp_path: Path) -> None:
    alice = shared_grid.user("alice")
    secret = alice.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret-pass"),
    )
    (tmp_path / "usercert.pem").write_bytes(alice.pem_chain())
    key = tmp_path / "userkey.pem"
    key.write_bytes(secret)
    key.chmod(0o600)
    loaded = Credential.load(tmp_path / "usercert.pem", key, passphrase=lambda: b"secret-pass")
    assert loaded.certificate == alice.certificate
    for passphrase in (None, lambda: b"wrong"):
        with pytest.raises(CredentialError) as caught:
            Credential.load(tmp_path / "usercert.pem", key, passphrase=passphrase)
        assert caught.value.reason == Reason.CREDENTIAL_LOCKED
        assert "secret" not in str(caught.value)
    bundle = serialization.pkcs12.serialize_key_and_certificates(
        b"alice", alice.key, alice.certificate, None, serialization.BestAvailableEncryption(b"pass")
    )
    p12 = tmp_path / "usercred.p12"
    p12.write_bytes(bundle)
    p12.chmod(0o600)
    assert Credential.load(p12, passphrase=lambda: b"pass").certificate == alice.certificate
    with pytest.raises(CredentialError) as caught:
        Credential.load(p12, passphrase=lambda: b"no")
    assert caught.value.reason == Reason.CREDENTIAL_LOCKED


def test_traditional_keys_are_read(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    key = alice.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert Credential.loads(key + alice.pem_chain()).certificate == alice.certificate


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_typed_error(noise: bytes) -> None:
    for text in (noise, b"-----BEGIN PRIVATE KEY-----\n" + noise + b"\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(CredentialError):
            Credential.loads(text)


def test_where_credentials_are(tmp_path: Path) -> None:
    assert find_proxy_path({}, 1000) == Path("/tmp/x509up_u1000")
    assert find_proxy_path({"X509_USER_PROXY": "/p"}, 1000) == Path("/p")
    assert find_user_certificate({"X509_USER_CERT": "/c", "X509_USER_KEY": "/k"}) == (Path("/c"), Path("/k"))
    with pytest.raises(CredentialError):
        find_user_certificate({"X509_USER_CERT": "/c"})
    home = {"HOME": str(tmp_path)}
    with pytest.raises(CredentialError) as caught:
        find_user_certificate(home)
    assert caught.value.reason == Reason.CREDENTIAL_NOT_FOUND
    folder = tmp_path / ".globus"
    (folder / "certificates").mkdir(parents=True)
    (folder / "usercred.p12").touch()
    assert find_user_certificate(home)[0].name == "usercred.p12"
    (folder / "usercert.pem").touch()
    (folder / "userkey.pem").touch()
    assert find_user_certificate(home) == (folder / "usercert.pem", folder / "userkey.pem")
    assert find_certificate_directory(home) == folder / "certificates"
    assert find_certificate_directory({"X509_CERT_DIR": "/x"}) == Path("/x")


@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
def test_signatures(tmp_path: Path, kind: str) -> None:
    grid = TestGrid(tmp_path / "g", key_type=kind)
    alice = grid.user("alice")
    signature = alice.sign(b"data")
    credentials.verify_signature(alice.certificate, signature, b"data")
    other = grid.user("bob")
    for certificate, made, data in (
        (alice.certificate, signature, b"Data"),
        (other.certificate, signature, b"data"),
        (alice.certificate, signature[:-1], b"data"),
        (alice.certificate, b"", b"data"),
    ):
        with pytest.raises(ValidationError) as caught:
            credentials.verify_signature(certificate, made, data)
        assert caught.value.reason == Reason.BAD_SIGNATURE


# Proxies and delegation


def test_proxy_contents(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    proxy = proxies.create_proxy(alice, lifetime=12 * HOUR, now=NOW)
    certificate = proxy.certificate
    assert proxy.subject.parent == alice.subject
    assert proxy.subject.common_name == str(certificate.serial_number)
    assert certificate.not_valid_before_utc == alice.certificate.not_valid_before_utc  # issued at the same moment
    assert certificate.not_valid_after_utc == NOW + 12 * HOUR
    later = proxies.create_proxy(alice, lifetime=HOUR, now=NOW + HOUR)
    assert later.certificate.not_valid_before_utc == NOW + HOUR - timedelta(minutes=5)
    info = proxies.proxy_info(certificate)
    assert info == proxies.ProxyInfo(proxies.INHERIT_ALL, None, proxies.ProxyKind.FULL)
    assert proxies.proxy_info(alice.certificate) is None
    assert len({shared_grid.proxy(alice).certificate.serial_number for _ in range(5)}) == 5


@pytest.mark.parametrize("key_type", ["ec-p256", "rsa-2048"])
def test_key_usage_fits_the_key(shared_grid: TestGrid, key_type: str) -> None:
    proxy = proxies.create_proxy(shared_grid.user(), lifetime=HOUR, now=NOW, key_type=key_type)
    usage = proxy.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_encipherment == (key_type == "rsa-2048")


def refused(reason: Reason, issuer: Credential, **options: object) -> None:
    arguments: dict[str, object] = {"lifetime": HOUR, "now": NOW, **options}
    with pytest.raises(CredentialError) as caught:
        proxies.create_proxy(issuer, **arguments)  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_proxies_that_are_not_made(shared_grid: TestGrid) -> None:
    alice = shared_grid.user("alice")
    refused(Reason.LIFETIME_INVALID, alice, lifetime=timedelta(0))
    refused(Reason.LIFETIME_INVALID, shared_grid.expired_user())
    refused(Reason.LIFETIME_INVALID, shared_grid.expired_proxy())
    refused(Reason.PROXY_PATH_LENGTH_EXCEEDED, shared_grid.proxy(alice, path_length=0))
    refused(Reason.PROXY_PATH_LENGTH_EXCEEDED, shared_grid.raw_proxy(shared_grid.proxy(alice, path_length=1)))
    for length in (-1, 10**30):
        refused(Reason.PROXY_PATH_LENGTH_EXCEEDED, alice, path_length=length)
    refused(Reason.PROXY_RIGHTS_WIDENED, shared_grid.limited(alice), independent=True)
    refused(Reason.PROXY_RIGHTS_WIDENED, alice, independent=True, limited=True)
    refused(Reason.KEY_TOO_WEAK, alice, key_type="rsa-512")


def test_delegation(shared_grid: TestGrid) -> None:
    key, request = proxies.new_request()
    chain = proxies.sign_request(request, shared_grid.limited("alice"), lifetime=HOUR, now=NOW, path_length=3)
    delegated = proxies.assemble(key, chain)
    info = proxies.proxy_info(delegated.certificate)
    assert info is not None
    assert (info.kind, info.path_length) == (proxies.ProxyKind.LIMITED, 3)
    assert len(delegated.chain) == 2
    assert b"PRIVATE" not in chain + request


def test_a_delegation_for_another_key_is_not_assembled(shared_grid: TestGrid) -> None:
    _, request = proxies.new_request()
    other, _ = proxies.new_request()
    chain = proxies.sign_request(request, shared_grid.user(), lifetime=HOUR, now=NOW)
    for wrong in (chain, b"", b"garbage"):
        with pytest.raises(CredentialError) as caught:
            proxies.assemble(other, wrong)
        assert caught.value.reason == Reason.CREDENTIAL_MALFORMED


def test_bad_requests(shared_grid: TestGrid) -> None:
    alice = shared_grid.user()

    def reason_of(request: bytes, issuer: Credential = alice) -> str:
        with pytest.raises(SecurityError) as caught:
            proxies.sign_request(request, issuer, lifetime=HOUR, now=NOW)
        return caught.value.reason

    _, good = proxies.new_request()
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    assert reason_of(bytes(der)) == Reason.BAD_SIGNATURE
    assert reason_of(b"") == Reason.REQUEST_MALFORMED
    assert reason_of(good + b" " * 40_000) == Reason.REQUEST_MALFORMED
    assert reason_of(good.replace(b"M", b"N")) == Reason.REQUEST_MALFORMED
    assert reason_of(good, shared_grid.proxy(alice, path_length=0)) == Reason.PROXY_PATH_LENGTH_EXCEEDED
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP192R1())):
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        assert reason_of(request.public_bytes(serialization.Encoding.PEM)) == Reason.KEY_TOO_WEAK


@given(st.binary(max_size=60))
def test_any_proxy_extension_is_read_or_refused(data: bytes) -> None:
    try:
        info = proxies.decode_proxy_cert_info(data)
    except DerError:
        return
    assert info.path_length is None or info.path_length >= 0


@given(
    st.sampled_from([proxies.INHERIT_ALL, proxies.LIMITED, "2.999.12345678", "1.2.3"]),
    st.one_of(st.none(), st.integers(0, 100_000)),
    st.one_of(st.none(), st.binary(max_size=300)),
)
def test_proxy_extension_round_trip(language: str, length: int | None, policy: bytes | None) -> None:
    info = proxies.decode_proxy_cert_info(proxies.encode_proxy_cert_info(language, length, policy))
    assert (info.language, info.path_length, info.policy) == (language, length, policy)


# Session proof


def test_session_proof(shared_grid: TestGrid) -> None:
    proxy, server = shared_grid.proxy("alice"), b"server certificate"
    nonce = bytes(range(32))
    proof = session.prove(proxy, nonce, server)
    chain = proxy.pem_chain()
    session.check_proof(proxy.certificate, proof, nonce, server, chain)
    stranger = shared_grid.proxy("mallory")
    for leaf, signature, used_nonce, used_server, used_chain in (
        (stranger.certificate, proof, nonce, server, chain),
        (proxy.certificate, session.prove(stranger, nonce, server), nonce, server, chain),
        (proxy.certificate, proof, bytes(32), server, chain),
        (proxy.certificate, proof, nonce, b"man in the middle", chain),
        (proxy.certificate, proof, nonce, server, chain + b"\n"),
        (proxy.certificate, proof, nonce[:31], server, chain),
        (proxy.certificate, b"", nonce, server, chain),
        (proxy.certificate, b"x" * 5000, nonce, server, chain),
        (proxy.certificate, proxy.sign(nonce), nonce, server, chain),
    ):
        with pytest.raises(ValidationError) as caught:
            session.check_proof(leaf, signature, used_nonce, used_server, used_chain)
        assert caught.value.reason == Reason.BAD_SIGNATURE
    assert session.session_proof_input(nonce, server, chain).startswith(b"gridfabric-session-v1\0" + nonce)
    assert len(session.session_proof_input(nonce, server, chain)) == 22 + 96
    with pytest.raises(ValueError, match="32 bytes"):
        session.session_proof_input(b"", server, chain)


# Errors


def test_errors_survive_a_process_boundary_and_stay_on_one_line() -> None:
    error = ValidationError(Reason.UNKNOWN_CA, "line\nbreak " + "x" * 5000, {"subject": "a\0b" + "y" * 999})
    again = pickle.loads(pickle.dumps(error))
    assert again == error
    assert type(again) is ValidationError
    assert again.facts == dict(error.facts)
    assert len(error.sentence) <= 1000
    assert error.sentence.isprintable()
    assert len(error.facts["subject"]) <= 300
    assert error.reason == "UNKNOWN_CA"
    with pytest.raises(ValueError, match="NOT_A_REASON"):
        SecurityError("NOT_A_REASON", "x")


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_atomic(tmp_path / "none" / "proxy", b"", 0o600)
    assert error.value.filename == str(tmp_path / "none" / "proxy")
