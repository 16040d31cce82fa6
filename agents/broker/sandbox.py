"""Input sandbox files on disk, by their sha256; a file is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from agents.broker.model import SandboxFile
from fabric import failpoints
from fabric.errors import Exhausted, InvalidRequest
from fabric.ids import unique_id

PIECE_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def checked_hash(text: str) -> str:
    """A sha256 in lower-case hexadecimal. Raises InvalidRequest SANDBOX_HASH_INVALID."""
    if not _SHA256.match(text):
        raise InvalidRequest(
            "SANDBOX_HASH_INVALID", f"{text[:80]!r} is no sha256; give 64 lower-case hexadecimal digits"
        )
    return text


class Upload:
    """A file on its way in. Call ``adopt`` or ``discard``. Blocking; for a thread."""

    def __init__(self, path: Path, final: Path, sha256: str, size_bytes: int) -> None:
        self._path = path
        self._final = final
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        self._received = 0
        self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        """Raises InvalidRequest SANDBOX_SIZE_MISMATCH when more comes than was announced."""
        self._received += len(data)
        if self._received > self._size_bytes:
            raise self._wrong_size()
        self._digest.update(data)
        self._file.write(data)

    def adopt(self) -> None:
        """Check it, sync it, give it its name. Raises InvalidRequest; the file is then gone."""
        try:
            if self._received != self._size_bytes:
                raise self._wrong_size()
            if self._digest.hexdigest() != self._sha256:
                raise InvalidRequest(
                    "SANDBOX_CHECKSUM",
                    f"the file announced as sha256 {self._sha256} arrived as {self._digest.hexdigest()}; send it again",
                )
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            failpoints.reached("broker.sandbox.written")
            os.replace(self._path, self._final)
            directory = os.open(self._final.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            failpoints.reached("broker.sandbox.linked")
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Forget what came. May be called again."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _wrong_size(self) -> InvalidRequest:
        return InvalidRequest(
            "SANDBOX_SIZE_MISMATCH",
            f"the file announced with {self._size_bytes} bytes came with {self._received} or more; give its real size",
        )


class SandboxStore:
    """Files below one directory, in 256 parts."""

    def __init__(self, directory: Path, max_file_bytes: int) -> None:
        self._directory = directory
        self._max_file_bytes = max_file_bytes
        self._incoming = directory / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        for left in self._incoming.iterdir():  # from an upload that a crash cut off
            left.unlink()

    def path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    def begin(self, sha256: str, size_bytes: int) -> Upload:
        """Raises Exhausted SANDBOX_TOO_LARGE, InvalidRequest."""
        checked_hash(sha256)
        if size_bytes < 0:
            raise InvalidRequest("SANDBOX_SIZE_MISMATCH", "a file cannot have less than 0 bytes")
        if size_bytes > self._max_file_bytes:
            raise file_too_large(sha256, size_bytes, self._max_file_bytes)
        final = self.path(sha256)
        final.parent.mkdir(exist_ok=True)
        return Upload(self._incoming / unique_id(), final, sha256, size_bytes)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def pieces(self, sha256: str) -> Iterator[bytes]:
        """The file's bytes in pieces of at most 1 MiB."""
        with self.path(sha256).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    async def messages(self, file: SandboxFile, request: Callable[..., Any]) -> AsyncIterator[Any]:
        """The file as the messages of a PutSandbox call, of a gatekeeper's or a broker's."""
        first: dict[str, Any] = {"sha256": file.sha256, "size_bytes": file.size_bytes}
        for piece in self.pieces(file.sha256):
            yield request(**first, data=piece)
            first = {}
        if first:
            yield request(**first)

    def hashes(self) -> Iterator[str]:
        """Everything that is here."""
        for part in self._directory.iterdir():
            if part.is_dir() and len(part.name) == 2:
                yield from (file.name for file in part.iterdir())


def file_too_large(name: str, size_bytes: int, limit: int) -> Exhausted:
    return Exhausted(
        "SANDBOX_TOO_LARGE",
        f"the input sandbox file {name} has {size_bytes} bytes, at most {limit} are taken; "
        "put large files on a storage element and name them in InputData",
        name=name,
        size_bytes=size_bytes,
        limit_bytes=limit,
    )
