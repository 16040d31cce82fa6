"""The client alone: what it does when the storage element goes silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agents.storage import client
from fabric.errors import DeadlineExceeded

SUMS = client.Checksums("00000001", "0" * 64)


async def silent() -> AsyncIterator[bytes]:
    """Gives one piece and then nothing more."""
    yield memoryview(b"abc")
    await asyncio.Event().wait()


async def test_a_silent_storage_element_ends_the_download_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_S", 0.01)
    opened = client.OpenFile(silent(), "srm://se.example.org:2/cms/f", 6, SUMS, 6)
    received = []
    with pytest.raises(DeadlineExceeded) as refused:
        async for piece in opened.pieces():
            received.append(bytes(piece))
    assert received == [b"abc"]
    assert refused.value.reason == "TRANSFER_STALLED"
    assert "sent nothing of srm://se.example.org:2/cms/f for 0.01 s" in refused.value.sentence
