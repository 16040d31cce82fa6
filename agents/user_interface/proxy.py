"""Making, showing and erasing the user's RFC 3820 proxy: what `grid proxy` does."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from security.credentials import (
    MAX_CREDENTIAL_BYTES,
    Credential,
    find_proxy_path,
    find_user_certificate,
    is_proxy_file,
)
from security.errors import CredentialError, Reason, utc_text
from security.files import read_bounded
from security.proxies import proxy_info


def ask_passphrase(path: Path, *, from_stdin: bool) -> bytes:
    """The passphrase of a key, from the terminal or (asked for) the first line of stdin."""
    if from_stdin:
        return sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not _has_terminal():
        raise _locked(path)
    try:
        return getpass.getpass(f"Pass phrase of {path}: ").encode()
    except (EOFError, OSError):
        raise _locked(path) from None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True


def _locked(path: Path) -> CredentialError:
    return CredentialError(
        Reason.CREDENTIAL_LOCKED,
        f"{path} is encrypted and there is no terminal to ask for the pass phrase; use --pwstdin",
        {"path": str(path)},
    )


def open_certificate(
    environ: Mapping[str, str], certificate: Path | None = None, key: Path | None = None, *, pwstdin: bool = False
) -> Credential:
    """The user's long-lived credential: the files named, or the ones in the usual places. Raises SecurityError."""
    if certificate is None:
        certificate, key = find_user_certificate(environ)
    elif key is None:
        key = certificate if certificate.suffix in (".p12", ".pfx") else certificate.with_name("userkey.pem")
    asked = key
    return Credential.load(
        certificate,
        None if certificate == key else key,
        passphrase=lambda: ask_passphrase(asked, from_stdin=pwstdin),
    )


def place(out: Path | None, environ: Mapping[str, str]) -> Path:
    """Where a new proxy goes; over nothing but a proxy. Raises CredentialError."""
    path = out or find_proxy_path(environ, os.getuid())
    refuse_other(path)
    return path


def refuse_other(path: Path) -> None:
    """A proxy is written over nothing but a proxy. Raises CredentialError."""
    try:
        content = read_bounded(path, MAX_CREDENTIAL_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:  # a folder, a device, something large, or somebody else's
        raise _not_a_proxy(path) from None
    if content and not is_proxy_file(content):
        raise _not_a_proxy(path)


def _not_a_proxy(path: Path) -> CredentialError:
    return CredentialError(
        Reason.CREDENTIAL_MALFORMED,
        f"{path} is not a proxy and is left as it is; name another file (X509_USER_PROXY), or remove it yourself",
        {"path": str(path)},
    )


def summary(proxy: Credential, path: Path, now: datetime) -> dict[str, Any]:
    """The facts of a proxy file. Raises ValidationError for a malformed extension."""
    info = proxy_info(proxy.certificate)
    left = (proxy.not_after - now).total_seconds()
    key: Any = proxy.key
    algorithm = (
        f"RSA {key.key_size} bits"
        if hasattr(key, "private_numbers") and not hasattr(key, "curve")
        else (f"ECDSA {key.curve.name}")
    )
    kind = "not a proxy, a long-lived credential" if info is None else f"RFC 3820 {info.kind.value} proxy"
    return {
        "subject": str(proxy.subject),
        "issuer": str(_issuer(proxy)),
        "identity": str(proxy.identity),
        "type": kind,
        "limited": info is not None and info.kind.value == "limited",
        "path_length": None if info is None else info.path_length,
        "key": algorithm,
        "path": str(path),
        "not_after": utc_text(proxy.not_after),
        "seconds_left": max(0, int(left)),
        "valid": left > 0,
    }


def _issuer(proxy: Credential) -> Any:
    from security.certificates import issuer_of

    return issuer_of(proxy.certificate)


def load(path: Path | None, environ: Mapping[str, str]) -> tuple[Credential, Path]:
    """The proxy file asked for, or the user's. Raises CredentialError."""
    found = path or find_proxy_path(environ, os.getuid())
    try:
        return Credential.load(found), found
    except CredentialError as error:
        if error.reason is not Reason.CREDENTIAL_NOT_FOUND:
            raise
        sentence = f"there is no proxy at {found}; make one with: grid proxy init"
        raise CredentialError(error.reason, sentence, {"path": str(found)}) from None


def destroy(path: Path) -> None:
    """Overwrite and remove a proxy file, and no other. Raises CredentialError, OSError."""
    facts = {"path": str(path)}
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        sentence = f"there is no proxy at {path}: nothing to destroy"
        raise CredentialError(Reason.CREDENTIAL_NOT_FOUND, sentence, facts) from None
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        content = file.read(MAX_CREDENTIAL_BYTES) if regular else b""
        if not is_proxy_file(content):
            raise _not_a_proxy(path)
        file.seek(0)
        file.write(b"\0" * len(content))
        os.fsync(descriptor)
    os.unlink(path)


def now_utc() -> datetime:
    """The wall clock, read at the edge of the program only."""
    return datetime.now(UTC)
