"""Reading bounded files and replacing files atomically and durably. Every file this package touches goes through
here."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from security.errors import CredentialError, Reason, os_error_text


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError (EFBIG, EISDIR ... included in its
    text)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(f"{path} is larger than {limit} bytes")
    return data


def read_private(path: Path, limit: int, owner_uid: int) -> bytes:
    """As `read_bounded`, for a file with a private key: owned by `owner_uid` (or root), no access for group and other.

    Checked on the open descriptor, so the file cannot be exchanged in between. Raises CredentialError
    CREDENTIAL_NOT_FOUND, CREDENTIAL_FILE_UNSAFE or CREDENTIAL_MALFORMED.
    """
    facts = {"check": "credential file", "path": str(path)}
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unusable(path, "credential", error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CredentialError(Reason.CREDENTIAL_FILE_UNSAFE, f"{path} is not a regular file", facts)
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            raise CredentialError(
                Reason.CREDENTIAL_FILE_UNSAFE,
                f"{path} holds a private key but has mode {mode}; run: chmod 600 {path}",
                {**facts, "mode": mode},
            )
        if status.st_uid not in (owner_uid, 0):
            raise CredentialError(
                Reason.CREDENTIAL_FILE_UNSAFE,
                f"{path} holds a private key but belongs to uid {status.st_uid}, not to uid {owner_uid}",
                {**facts, "owner": str(status.st_uid)},
            )
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise CredentialError(
            Reason.CREDENTIAL_MALFORMED, f"{path} is larger than {limit} bytes: not a credential", facts
        )
    return data


def unusable(path: Path, what: str, error: OSError) -> CredentialError:
    """A credential's file that cannot be opened: CREDENTIAL_NOT_FOUND if it is not there, else FILE_UNSAFE."""
    facts = {"check": "credential file", "path": str(path)}
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        make = "make one, or " if what == "credential" else ""
        sentence = f"there is no {what} file {path}; {make}name the file that you have"
        return CredentialError(Reason.CREDENTIAL_NOT_FOUND, sentence, facts)
    sentence = f"the {what} file {path} cannot be read ({os_error_text(error)}); name a file of your own"
    return CredentialError(Reason.CREDENTIAL_FILE_UNSAFE, sentence, facts)


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by a file of these bytes: readers see the old or the new content, also after a power cut.

    The temporary file is made with O_EXCL beside the target (its name starts with a dot) and never follows a link.
    """
    directory = path.parent
    temporary = directory / f".{path.name[:100]}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:  # tell of the file asked for, not of one that nobody knows
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def write_if_changed(path: Path, data: bytes, mode: int) -> bool:
    """As `write_atomic`, unless the file has these bytes already; then False."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return False
    write_atomic(path, data, mode)
    return True


def sync_directory(directory: Path) -> None:
    """Make renames and links in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that an administrator writes, with their numbers; without blank ones and `#` comments."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped
