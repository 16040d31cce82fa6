"""Calls to a top information server: its history, once or as it grows. For the `grid` command and for programs.

`channel` is a secure channel to the server, in the name of the user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gridfabric.information.v1 import information_pb2 as pb
from gridfabric.information.v1 import information_pb2_grpc

from fabric.errors import Unavailable
from fabric.rpc.calls import each_within

ANSWER_S = 60.0
"""For a whole answer; the server gives up sooner."""
SILENCE_S = 20.0
"""A continuous query that is silent this long is lost: the server shows a sign of life every other second."""

Cell = str | int | float | None


@dataclass(frozen=True)
class Answer:
    """Tuples, with the names of their columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_truncated: bool
    """True if there are more than one answer may have."""


async def query(channel: Any, sql: str) -> Answer:
    """The answer to a SELECT over the history's tables.

    Raises InvalidRequest QUERY_INVALID or QUERY_DENIED, Exhausted, DeadlineExceeded, NotFound NO_HISTORY.
    """
    columns: tuple[str, ...] = ()
    rows: list[tuple[Cell, ...]] = []
    truncated = False
    stub = information_pb2_grpc.InformationStub(channel)
    async for message in stub.Query(pb.QueryRequest(sql=sql), timeout=ANSWER_S):
        columns = columns or tuple(message.columns)
        rows += map(_row, message.rows)
        truncated = truncated or message.truncated
    return Answer(columns, tuple(rows), truncated)


async def follow(channel: Any, sql: str) -> AsyncIterator[Answer]:
    """A continuous query (R-GMA's consumer): a SELECT in which each history table holds only what was kept since the
    last answer. First an answer without rows, as soon as the server listens; then one for each change that gives rows,
    without an end. Raises as `query`, and Unavailable when the server is lost.
    """
    stub = information_pb2_grpc.InformationStub(channel)
    call = stub.Query(pb.QueryRequest(sql=sql, continuous=True))
    columns: tuple[str, ...] = ()
    silent = f"the server was silent for {SILENCE_S:g} s; ask again"
    try:
        async for message in each_within(call, SILENCE_S, "QUERY_LOST", silent):
            is_first, columns = not columns, columns or tuple(message.columns)
            if is_first or message.rows or message.truncated:
                yield Answer(columns, tuple(map(_row, message.rows)), message.truncated)
        raise Unavailable("QUERY_LOST", "the server ended the continuous query; ask again")
    finally:
        call.cancel()


def _row(row: pb.Row) -> tuple[Cell, ...]:
    return tuple(_cell(value) for value in row.values)


def _cell(value: pb.Value) -> Cell:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)
