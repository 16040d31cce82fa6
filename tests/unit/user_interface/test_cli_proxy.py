"""`grid proxy`: what is made, shown, refused and erased."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agents.user_interface.main import run
from security.credentials import Credential
from security.proxies import ProxyKind, proxy_info

NAME = "/O=Test/CN=Ada Lovelace"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with usercert.pem and userkey.pem of some authority; the environment points there."""
    folder = tmp_path / ".globus"
    folder.mkdir()
    key, ca_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])

    certificate = (
        x509.CertificateBuilder()
        .subject_name(name((NameOID.ORGANIZATION_NAME, "Test"), (NameOID.COMMON_NAME, "Ada Lovelace")))
        .issuer_name(name((NameOID.ORGANIZATION_NAME, "Test"), (NameOID.COMMON_NAME, "CA")))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "usercert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_key(folder / "userkey.pem", key, None)
    write_key(folder / "locked.pem", key, b"secret")
    for variable in ("X509_USER_CERT", "X509_USER_KEY", "X509_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy.pem"))
    return folder


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> None:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    path.chmod(0o600)


def test_a_proxy_is_made_where_globus_looks_for_it_and_only_the_owner_can_read_it(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["proxy", "init"]) == 0
    assert f"Your identity: {NAME}" in capsys.readouterr().out
    path = tmp_path / "proxy.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    proxy = Credential.load(path)
    info = proxy_info(proxy.certificate)
    assert info is not None and info.kind is ProxyKind.FULL
    assert str(proxy.identity) == NAME
    assert timedelta(hours=11, minutes=58) < proxy.not_after - datetime.now(UTC) <= timedelta(hours=12)


@pytest.mark.parametrize(
    ("options", "key", "kind", "length"),
    [
        (["--key-type", "rsa-2048"], "RSA 2048 bits", "RFC 3820 full proxy", None),
        (["--limited"], "ECDSA secp256r1", "RFC 3820 limited proxy", None),
        (["--path-length", "0"], "ECDSA secp256r1", "RFC 3820 full proxy", 0),
    ],
)
def test_the_options_decide_what_the_proxy_is(
    user: Path, capsys: pytest.CaptureFixture[str], options: list[str], key: str, kind: str, length: int | None
) -> None:
    assert run(["proxy", "init", "--json", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["key"], made["type"], made["path_length"]) == (key, kind, length)
    assert run(["proxy", "info", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {**shown, "seconds_left": 0} == {**made, "seconds_left": 0}


def test_a_proxy_never_outlives_the_certificate_and_says_so(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["proxy", "init", "--valid", "100h"]) == 0
    assert "your certificate ends first" in capsys.readouterr().err


def test_a_locked_key_needs_its_pass_phrase(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["proxy", "init", "--cert", str(user / "usercert.pem"), "--key", str(user / "locked.pem"), "--pwstdin"]

    def answer(passphrase: bytes) -> int:
        read, write = os.pipe()
        os.write(write, passphrase + b"\n")
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return run(command)

    assert answer(b"wrong") == 1
    assert "wrong passphrase?" in capsys.readouterr().err
    assert answer(b"secret") == 0


def test_exists_is_a_question_for_scripts(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["proxy", "info", "--exists"]) == 1
    assert run(["proxy", "init", "--valid", "1:00"]) == 0
    capsys.readouterr()
    assert run(["proxy", "info", "--exists"]) == 0
    assert run(["proxy", "info", "--exists", "--valid", "0:30"]) == 0
    assert run(["proxy", "info", "--exists", "--valid", "2:00"]) == 1
    assert capsys.readouterr().out == ""


def test_destroy_leaves_nothing_to_read(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "proxy.pem"
    assert run(["proxy", "init"]) == 0
    os.link(path, tmp_path / "another-name")
    assert run(["proxy", "destroy"]) == 0
    assert not path.exists()
    assert b"PRIVATE" not in (tmp_path / "another-name").read_bytes()
    assert run(["proxy", "destroy"]) == 3
    assert run(["proxy", "info"]) == 3
    assert "grid proxy init" in capsys.readouterr().err


def test_a_proxy_is_not_written_over_a_folder(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["proxy", "init", "--out", str(user)]) == 1
    assert f"{user} is not a proxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other", ["a text", "a certificate with its key", "an empty file", "a fifo", "a link to a proxy"]
)
def test_destroy_leaves_everything_else_as_it_is(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    assert run(["proxy", "init"]) == 0
    path = tmp_path / "other"
    contents = {"a text": b"root:*:1::::::\n", "an empty file": b""}
    contents["a certificate with its key"] = (user / "usercert.pem").read_bytes() + (user / "userkey.pem").read_bytes()
    if other == "a fifo":
        os.mkfifo(path)
    elif other == "a link to a proxy":
        path.symlink_to(tmp_path / "proxy.pem")
    else:
        path.write_bytes(contents[other])
    capsys.readouterr()
    assert run(["proxy", "destroy", "--file", str(path)]) == 1
    assert str(path) in capsys.readouterr().err
    if other not in ("a link to a proxy", "an empty file"):
        assert run(["proxy", "init", "--out", str(path)]) == 1
        assert f"{path} is not a proxy and is left as it is" in capsys.readouterr().err
    assert path.is_fifo() or path.read_bytes() == contents.get(other, (tmp_path / "proxy.pem").read_bytes())
    assert run(["proxy", "info"]) == 0


def test_openssl_sees_a_proxy_below_the_user(user: Path, tmp_path: Path) -> None:
    assert run(["proxy", "init"]) == 0
    shown = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "proxy.pem", "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Proxy Certificate Information: critical" in shown.stdout
    assert "Inherit all" in shown.stdout


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_proxy_is_one_sentence(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "proxy.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    assert run(["proxy", "info", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["error"]["reason"] == "CREDENTIAL_MALFORMED"
    assert output.err.startswith("grid: ") and output.err.count("\n") == 1
