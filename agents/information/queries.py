"""Queries of the history: each in a process of its own (`query_process.py`), few at a time, with an end."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gridfabric.information.v1 import information_pb2 as pb

from agents.information import query_process
from agents.information.harmless_sql import require_harmless
from agents.information.history import COLUMNS, NAMES, Recorder
from fabric.database_reader import ForReading
from fabric.errors import DeadlineExceeded, Exhausted, GridError, InvalidRequest, Unavailable

MAX_SQL = 10_000
"""Letters of a query."""
MAX_ROWS = 10_000
MAX_BYTES = 8 * 1024 * 1024
"""Of one answer."""
MEMORY_BYTES = 384 * 1024 * 1024
"""Address space of the process, with Python and the database's library in it."""
MAX_LINE_BYTES = query_process.PIECE * 2 * 1024 * 1024
DEADLINE_S = 10.0
"""For one look."""
LEEWAY_S = 10.0
"""For the process to start and to end by itself."""
MAX_QUERIES, MAX_QUERIES_OF_ONE = 4, 2
"""At a time: in all, and of one person."""
MAX_FOLLOWERS, MAX_FOLLOWERS_OF_ONE = 16, 4
"""Continuous queries, each an idle process of about 15 MiB."""
SIGN_OF_LIFE_S = 2.0

_ERRORS: dict[str, type[GridError]] = {
    "QUERY_TOO_SLOW": DeadlineExceeded,
    "QUERY_TOO_LARGE": Exhausted,
    "STORE_UNAVAILABLE": Unavailable,
}


class HistoryQueries:
    """Answers queries over the history: in the store file at a path, or at a PostgreSQL server."""

    def __init__(self, source: Path | ForReading, recorder: Recorder, *, deadline_s: float = DEADLINE_S) -> None:
        self._source = source
        self._recorder = recorder
        self._deadline_s = deadline_s
        self._running: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}

    async def answer(self, sql: str, subject: str, *, continuous: bool) -> AsyncIterator[pb.QueryResponse]:
        """The messages of one answer; of a continuous query without an end.

        Raises InvalidRequest QUERY_INVALID and QUERY_DENIED, Exhausted TOO_MANY_QUERIES and QUERY_TOO_LARGE,
        DeadlineExceeded QUERY_TOO_SLOW.
        """
        if not sql.strip() or len(sql) > MAX_SQL or "\0" in sql:
            raise InvalidRequest("QUERY_INVALID", f"a query is a SELECT of 1 to {MAX_SQL} letters")
        if isinstance(self._source, ForReading):
            require_harmless(sql)
        running = self._running[continuous]
        self._admit(running, subject, continuous)
        running[subject] += 1
        try:
            if continuous:
                async for message in self._follow(sql):
                    yield message
                return
            # Taken in whole, so that who reads slowly holds an answer and not one of the few processes.
            async with self._process(sql, continuous) as process:
                messages = [message async for message in self._look(process)]
        finally:
            running[subject] -= 1
            if not running[subject]:
                del running[subject]
        for message in messages:
            yield message

    def _admit(self, running: Counter[str], subject: str, continuous: bool) -> None:
        most, most_of_one = (MAX_FOLLOWERS, MAX_FOLLOWERS_OF_ONE) if continuous else (MAX_QUERIES, MAX_QUERIES_OF_ONE)
        if running[subject] >= most_of_one or running.total() >= most:
            whose, limit = ("of yours", most_of_one) if running[subject] >= most_of_one else ("of all users", most)
            kind = "continuous queries" if continuous else "queries"
            raise Exhausted(
                "TOO_MANY_QUERIES", f"{limit} {kind} {whose} are being answered here; ask again later", retry_after_s=1
            )

    async def _follow(self, sql: str) -> AsyncIterator[pb.QueryResponse]:
        async with self._process(sql, True) as process:
            seen = self._recorder.tuples
            while True:
                async for message in self._look(process):
                    yield message
                while not await self._recorder.more_than(seen, SIGN_OF_LIFE_S):
                    yield pb.QueryResponse()
                seen = self._recorder.tuples
                _stdin(process).write(b"\n")

    @asynccontextmanager
    async def _process(self, sql: str, continuous: bool) -> AsyncIterator[asyncio.subprocess.Process]:
        source: dict[str, Any]
        if isinstance(self._source, ForReading):
            source, flags, environment = self._source._asdict(), ("-I",), self._source.environment()
        else:  # without the folder of libraries: it starts in a tenth of the time
            source, flags, environment = {"path": str(self._source)}, ("-I", "-S"), {}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *flags, query_process.__file__,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=environment, cwd="/", limit=MAX_LINE_BYTES,
        )  # fmt: skip
        order = source | {
            "tables": NAMES, "columns": COLUMNS, "sql": sql, "deadline_s": self._deadline_s,
            "memory_bytes": MEMORY_BYTES, "max_rows": MAX_ROWS, "max_bytes": MAX_BYTES, "continuous": continuous,
        }  # fmt: skip
        try:
            _stdin(process).write(json.dumps(order).encode() + b"\n")
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _look(self, process: asyncio.subprocess.Process) -> AsyncIterator[pb.QueryResponse]:
        assert process.stdout is not None
        until = asyncio.get_running_loop().time() + self._deadline_s + LEEWAY_S
        while True:
            try:
                async with asyncio.timeout_at(until):
                    line = await process.stdout.readline()
                said: dict[str, Any] = json.loads(line)
            except TimeoutError:
                raise DeadlineExceeded(
                    "QUERY_TOO_SLOW", f"the query was not answered within {self._deadline_s:g} s; ask for fewer tuples"
                ) from None
            except ValueError:  # it was killed, for instance for want of memory, before it could say so
                raise Unavailable("QUERY_LOST", "the query's process ended before it had answered") from None
            if "error" in said:
                reason, sentence = said["error"]["reason"], said["error"]["sentence"]
                raise _ERRORS.get(reason, InvalidRequest)(reason, sentence)
            if "end" in said:
                if said["end"]["truncated"]:
                    yield pb.QueryResponse(truncated=True)
                return
            yield pb.QueryResponse(columns=said.get("columns", ()), rows=map(_row, said.get("rows", ())))


def _stdin(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert process.stdin is not None
    return process.stdin


def _row(values: list[Any]) -> pb.Row:
    return pb.Row(values=map(_value, values))


def _value(value: Any) -> pb.Value:
    if value is None:
        return pb.Value()
    if isinstance(value, str):
        return pb.Value(text=value)
    return pb.Value(integer=value) if isinstance(value, int) else pb.Value(real=value)
