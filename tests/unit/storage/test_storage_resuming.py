"""A copy whose source breaks goes on at the byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from agents.storage.copying import Resuming
from agents.storage.model import Checksums
from fabric.errors import DataCorrupted, GridError, NotFound, Unavailable

DATA = bytes(range(256)) * 4
SUMS = Checksums("00000001", "0" * 64)
CUT = DataCorrupted("STREAM_CUT", "it was cut")
AWAY = Unavailable("SERVER_UNREACHABLE", "it hung up")


class Opened:
    size_bytes = len(DATA)

    def __init__(self, offset: int, most: int, error: GridError | None, checksums: Checksums = SUMS) -> None:
        self._data, self._error, self.checksums = DATA[offset : offset + most], error, checksums

    async def pieces(self) -> AsyncGenerator[bytes]:
        for start in range(0, len(self._data), 100):
            yield self._data[start : start + 100]
        if self._error is not None:
            raise self._error


async def read(parts: Sequence[tuple[int, GridError | None]], checksums: Checksums = SUMS) -> tuple[bytes, list[int]]:
    """Of each opening: how many bytes come, and what breaks it then."""
    rest, offsets = iter(parts), list[int]()

    @asynccontextmanager
    async def opened_at(offset: int) -> AsyncIterator[Opened]:
        offsets.append(offset)
        most, error = next(rest)
        if error is not None and most < 0:
            raise error
        yield Opened(offset, most, error, checksums)

    first = Opened(0, *next(rest))
    pieces = Resuming(first, opened_at, (0.0, 0.0)).pieces()
    return b"".join([piece async for piece in pieces]), offsets


@pytest.mark.parametrize("error", [CUT, AWAY])
async def test_it_goes_on_at_the_byte_wherever_it_broke(error: GridError) -> None:
    for cut in range(len(DATA)):
        assert await read([(cut, error), (len(DATA), None)]) == (DATA, [cut])
    assert await read([(100, error)] * 10 + [(len(DATA), None)]) == (DATA, list(range(100, 1001, 100)))


async def test_openings_that_bring_nothing_are_counted_and_bytes_begin_the_count_anew() -> None:
    parts = [(5, CUT), (-1, AWAY), (5, CUT), (-1, AWAY), (len(DATA), None)]
    assert await read(parts) == (DATA, [5, 5, 10, 10])
    with pytest.raises(Unavailable):
        await read([(5, CUT), (-1, AWAY), (-1, AWAY), (len(DATA), None)])


async def test_what_would_happen_again_and_another_file_end_it() -> None:
    for error in (NotFound("FILE_NOT_FOUND", "gone"), DataCorrupted("FILE_DAMAGED", "rotten")):
        with pytest.raises(type(error)):
            await read([(5, error), (len(DATA), None)])
        with pytest.raises(type(error)):
            await read([(5, CUT), (-1, error), (len(DATA), None)])
    with pytest.raises(DataCorrupted, match="exchanged"):
        await read([(5, CUT), (len(DATA), None)], Checksums("00000002", "1" * 64))
    with pytest.raises(DataCorrupted, match="cut"):
        await read([(len(DATA), CUT), (len(DATA), None)])  # more came than the file has
