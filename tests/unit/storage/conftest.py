"""A storage element without wire, in a directory of its own."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agents.storage.config import parse_config
from agents.storage.element import StorageElement
from agents.storage.model import Announced, Checksums, StoredFile
from agents.storage.store import MIGRATIONS, FileStore, metadata
from fabric.clock import ManualClock
from fabric.logs import null_logger
from fabric.store import Store


def sums(data: bytes) -> Checksums:
    """Checksums by the standard library, not by the code under test."""
    return Checksums(f"{zlib.adler32(data):08x}", hashlib.sha256(data).hexdigest())


async def stream(*parts: bytes | Checksums) -> AsyncIterator[bytes | Checksums]:
    """An upload as it arrives."""
    for part in parts:
        yield part


class Bench:
    """Makes elements on one directory, again and again, as restarts do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: list[tuple[StorageElement, Store]] = []

    async def start(self, **options: Any) -> StorageElement:
        """A started element."""
        store = Store(self.root / "files.db", metadata, MIGRATIONS)
        options.setdefault("reserve_bytes", 0)
        config = parse_config(options, self.root)
        self.store, self.clock = store, ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.files = FileStore(store, config.tape.vos if config.tape is not None else ())
        element = StorageElement(config, self.files, log=null_logger(), clock=self.clock)
        self._open.append((element, store))
        await element.start()
        return element

    async def stop(self) -> None:
        """Stop everything started here."""
        while self._open:
            element, store = self._open.pop()
            await element.stop()
            await element.close()
            await store.close()

    def bytes_of(self, file: StoredFile) -> Path:
        """Where a file's bytes are."""
        return Path(file.pool) / "data" / file.disk_id[:2] / file.disk_id[2:4] / file.disk_id

    def on_disk(self, pool: str = "pool") -> list[str]:
        """Every regular file of a pool, relative."""
        root = self.root / pool
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.stop()


def announced(data: bytes, put_id: str = "p1", vo: str = "cms", owner: str = "/O=EDG/CN=ann", **more: Any) -> Announced:
    """The header of an honest upload."""
    return Announced(vo=vo, size_bytes=len(data), put_id=put_id, owner=owner, **more)


@pytest.fixture
def upload() -> Callable[..., Any]:
    async def put(element: StorageElement, data: bytes, put_id: str = "p1", **more: Any) -> Any:
        step = 1000 if len(data) < 100_000 else 1 << 20
        pieces: Iterable[bytes] = [data[i : i + step] for i in range(0, len(data), step)]
        return await element.put(announced(data, put_id, **more), stream(*pieces, sums(data)))

    return put
