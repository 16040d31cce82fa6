"""The sandbox area: files by their sha256, complete and verified or not there, within byte and i-node bounds.

`<area>/<2 hex>/<64 hex>`; a file under way is `<area>/incoming/<random>`. The rows say what should be there; at
start both
are compared, and whatever one side lacks the other forgets.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path

from fabric import failpoints
from fabric.errors import DataCorrupted, Exhausted, InvalidRequest, NotFound
from security.errors import os_error_text

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
PIECE_BYTES = 1024 * 1024


def require_sha256(text: str) -> str:
    """The text, if it is a lower-case hexadecimal SHA-256. Raises InvalidRequest CHECKSUM_MALFORMED."""
    if not _SHA256.match(text):
        raise InvalidRequest(
            "CHECKSUM_MALFORMED", f"{text[:70]!r} is not a SHA-256 in 64 lower-case hexadecimal digits"
        )
    return text


class SandboxArea:
    """The files. Blocking: use from a thread. Bounds are counted here and in no other place."""

    def __init__(self, directory: Path, *, max_bytes: int, max_files: int, max_file_bytes: int) -> None:
        self.directory = directory
        self.max_bytes, self.max_files, self.max_file_bytes = max_bytes, max_files, max_file_bytes
        self.files = self.bytes = 0
        """What is there, uploads under way included (by their announced size)."""
        self._incoming = directory / "incoming"

    def open(self, known: set[str]) -> tuple[set[str], int]:
        """Make the folders, remove what is under way or unknown. Returns (known but missing hashes, files removed)."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(mode=0o700)
        present: set[str] = set()
        removed = 0
        for folder in self.directory.iterdir():
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for file in folder.iterdir():
                if file.name in known:
                    present.add(file.name)
                    self.files += 1
                    self.bytes += file.stat().st_size
                else:
                    file.unlink()
                    removed += 1
        return known - present, removed

    def path(self, sha256: str) -> Path:
        """Where a file is, or would be."""
        require_sha256(sha256)
        return self.directory / sha256[:2] / sha256

    def begin(self, sha256: str, size_bytes: int) -> Upload:
        """Reserve room and begin an upload. Raises InvalidRequest, Exhausted SANDBOX_AREA_FULL."""
        require_sha256(sha256)
        if size_bytes < 0 or size_bytes > self.max_file_bytes:
            raise InvalidRequest(
                "SANDBOX_FILE_TOO_LARGE",
                f"a sandbox file of {size_bytes} bytes is over the limit of {self.max_file_bytes}; "
                "use a storage element",
                size_bytes=size_bytes,
                limit_bytes=self.max_file_bytes,
            )
        if self.files + 1 > self.max_files or self.bytes + size_bytes > self.max_bytes:
            raise Exhausted(
                "SANDBOX_AREA_FULL",
                f"the sandbox area holds {self.files} files and {self.bytes} bytes of at most {self.max_files} and "
                f"{self.max_bytes}; fetch the output of ended jobs or try later",
                retry_after_s=30,
            )
        self.files += 1
        self.bytes += size_bytes
        return Upload(self, sha256, size_bytes, self._incoming / secrets.token_hex(16))

    def released(self, size_bytes: int) -> None:
        """A file or reservation of this size is gone."""
        self.files -= 1
        self.bytes -= size_bytes

    def remove(self, unused: list[tuple[str, int]]) -> None:
        """Unlink files that the store has forgotten."""
        for sha256, size_bytes in unused:
            try:
                self.path(sha256).unlink()
            except FileNotFoundError:
                pass
            self.released(size_bytes)

    def open_file(self, sha256: str) -> int:
        """A descriptor for reading. Raises NotFound SANDBOX_FILE_UNKNOWN."""
        try:
            return os.open(self.path(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("SANDBOX_FILE_UNKNOWN", f"no sandbox file with the SHA-256 {sha256} is here") from None

    def free_disk_bytes(self) -> int:
        """Free space of the file system, for unprivileged use."""
        status = os.statvfs(self.directory)
        return status.f_bavail * status.f_frsize


class Upload:
    """One file on its way in. `write` pieces, then `finish`; or `abandon`, which is harmless afterwards."""

    def __init__(self, area: SandboxArea, sha256: str, size_bytes: int, path: Path) -> None:
        self._area, self.sha256, self.size_bytes, self._path = area, sha256, size_bytes, path
        self._digest = hashlib.sha256()
        self._written = 0
        self._descriptor = -1
        self._open = True
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.abandon()
            raise _disk(error) from error

    def write(self, data: bytes) -> None:
        """Append. Raises InvalidRequest SIZE_MISMATCH beyond the announced size, Exhausted DISK_FULL."""
        self._written += len(data)
        if self._written > self.size_bytes:
            self.abandon()
            raise InvalidRequest("SIZE_MISMATCH", f"more than the announced {self.size_bytes} bytes were sent")
        self._digest.update(data)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self.abandon()
            raise _disk(error) from error

    def finish(self) -> None:
        """Verify, sync, and put in place. Raises InvalidRequest SIZE_MISMATCH, CHECKSUM_MISMATCH, Exhausted
        DISK_FULL."""
        try:
            if self._written != self.size_bytes:
                raise InvalidRequest(
                    "SIZE_MISMATCH",
                    f"{self.size_bytes} bytes were announced and {self._written} sent; send the file again",
                )
            found = self._digest.hexdigest()
            if found != self.sha256:
                raise InvalidRequest(
                    "CHECKSUM_MISMATCH",
                    f"the bytes sent have the SHA-256 {found}, not {self.sha256}; send the file again",
                )
            target = self._area.path(self.sha256)
            existed = target.exists()
            os.fsync(self._descriptor)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            failpoints.reached("gatekeeper.sandbox.written")
            os.rename(self._path, target)
            _sync_directory(target.parent)
            failpoints.reached("gatekeeper.sandbox.linked")
        except OSError as error:
            raise _disk(error) from error
        else:
            if not existed:
                self._open = False  # the reservation became the file's own
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give up, or tidy after `finish`. May be called at any time, any number of times."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._open:
            self._open = False
            self._area.released(self.size_bytes)
        self._path.unlink(missing_ok=True)


def read_pieces(descriptor: int, offset: int) -> bytes:
    """The next piece of a file; empty at its end. Raises DataCorrupted when the disk fails."""
    try:
        return os.pread(descriptor, PIECE_BYTES, offset)
    except OSError as error:
        raise DataCorrupted("SANDBOX_UNREADABLE", f"a sandbox file cannot be read ({os_error_text(error)})") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk(error: OSError) -> Exhausted:
    return Exhausted(
        "DISK_FULL", f"the sandbox area cannot be written ({error.strerror}); try again later", retry_after_s=30
    )
