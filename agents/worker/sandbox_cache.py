"""Input sandbox files by their sha256, fetched once from the gatekeeper and copied into each job that wants them.

Jobs get copies, never links: a payload may change its own files, and the next job must not see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fabric.errors import DataCorrupted, GridError, Unavailable

Fetch = Callable[[str], AsyncIterator[bytes]]
"""Gives the bytes of a file by its sha256; raises GridError."""


class SandboxCache:
    """The cache. Least recently used files go first when a bound is reached; a file in use may be unlinked (it is
    copied
    from an open path right after `get`, and a copy that fails for that is tried again)."""

    def __init__(self, directory: Path, *, max_bytes: int, max_files: int, fetch: Fetch) -> None:
        self._directory, self._max_bytes, self._max_files, self._fetch = directory, max_bytes, max_files, fetch
        self._files: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[str, asyncio.Task[Path]] = {}

    def open(self) -> None:
        """Take over what an earlier life left; files are verified when they came, and nobody else may write here."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in sorted(self._directory.iterdir(), key=lambda f: f.stat().st_atime):
            if len(file.name) == 64:
                self._files[file.name] = file.stat().st_size
                self._bytes += self._files[file.name]
            else:
                file.unlink()
        self._make_room(0)

    def cached(self, sha256: str) -> Path | None:
        """The path if it is here now."""
        if sha256 not in self._files:
            return None
        self._files.move_to_end(sha256)
        return self._directory / sha256

    async def get(self, sha256: str, size_bytes: int) -> Path:
        """The path, fetching the file if needed; several callers share one fetch. Raises GridError."""
        while True:
            path = self.cached(sha256)
            if path is not None:
                return path
            task = self._under_way.get(sha256)
            if task is None:
                task = asyncio.ensure_future(self._bring(sha256, size_bytes))
                self._under_way[sha256] = task
                task.add_done_callback(lambda _task: self._under_way.pop(sha256, None))
            return await asyncio.shield(task)

    async def _bring(self, sha256: str, size_bytes: int) -> Path:
        self._make_room(size_bytes)
        temporary = self._directory / f"in-{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        received = 0
        try:
            with open(temporary, "xb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                async for piece in self._fetch(sha256):
                    received += len(piece)
                    if received > size_bytes:
                        break
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
            if received != size_bytes or digest.hexdigest() != sha256:
                raise DataCorrupted(
                    "SANDBOX_CHECKSUM",
                    f"the input sandbox file {sha256} arrived with another content; it is fetched again",
                )
            path = self._directory / sha256
            temporary.rename(path)
        except OSError as error:
            raise Unavailable(
                "DISK_FULL", f"the input sandbox cannot be kept on this node ({error.strerror})"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._files[sha256] = size_bytes
        self._bytes += size_bytes
        return path

    def _make_room(self, size_bytes: int) -> None:
        while self._files and (self._bytes + size_bytes > self._max_bytes or len(self._files) >= self._max_files):
            sha256, size = self._files.popitem(last=False)
            self._bytes -= size
            with contextlib.suppress(OSError):
                (self._directory / sha256).unlink()


def is_passing(error: GridError) -> bool:
    """May the same call succeed soon? A service that restarts is not a reason to fail a job."""
    return type(error).__name__ in ("Unavailable", "DeadlineExceeded", "Exhausted") or error.reason in (
        "SANDBOX_CHECKSUM",
        "SESSION_UNKNOWN",
        "SESSION_EXPIRED",
    )
