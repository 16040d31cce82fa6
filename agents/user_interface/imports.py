"""`grid data import`: the names that another catalogue had, in bulk.

A line is a file. Every step may be repeated: who calls again after an end in the middle goes on, since what is there is
left alone.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from agents.catalog import client as catalog
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.exits import UsageProblem
from agents.user_interface.trees import Tally, work_off
from fabric.errors import GridError, InvalidRequest

COLUMNS = ("lfn", "guid", "size", "adler32", "sha256", "surls")
MAX_LINE_BYTES = 1 << 20
BATCH_BYTES = 1 << 20
"""Of the lines that go by one call; a message has room for four times as much."""
MAX_SIZE_BYTES = (1 << 63) - 1
_NO_GUID = uuid.UUID("7e0c9ad5-5f0b-5c58-8a1c-8b8f5c2f3f0e")
"""The name space of GUIDs made from LFNs: a line without one has the same GUID each time."""


@dataclass(frozen=True, slots=True)
class Line:
    """A file as one line of the dump says it."""

    number: int
    file: catalog.NewFile
    more_surls: tuple[str, ...]


async def import_command(path: Path, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data import`."""
    data.require_regular(path)
    tally = Tally()
    async with open_for_user(environ) as grid:
        data.require_vo(grid)
        with path.open("rb") as dump:
            try:
                await work_off(_batches(dump, tally), lambda batch: _import(grid, batch, tally))
            except GridError:
                console.warn(f"{tally.done} files are imported; the same command goes on from there")
                raise
    tally.report("imported", as_json=as_json)


async def _import(grid: Grid, batch: Sequence[Line], tally: Tally) -> None:
    """One call for the names with a replica each, one for each thousand of further replicas."""
    names = await grid.channel("catalog")
    refused = {
        line.number: error
        for line, error in zip(batch, await catalog.register_many(names, [line.file for line in batch]), strict=True)
        if error is not None
    }
    more = [(line, surl) for line in batch if line.number not in refused for surl in line.more_surls]
    for start in range(0, len(more), catalog.MAX_LOOKUP):
        part = more[start : start + catalog.MAX_LOOKUP]
        replicas = [
            catalog.NewReplica(line.file.lfn, surl, line.file.content.size_bytes, line.file.content.adler32)
            for line, surl in part
        ]
        for (line, _), error in zip(part, await catalog.add_replica_many(names, replicas), strict=True):
            if error is not None:
                refused.setdefault(line.number, error)
    for line in batch:
        if line.number in refused:
            tally.fail(f"line {line.number}", refused[line.number])
        else:
            tally.add(line.file.content.size_bytes)


async def _batches(dump: BinaryIO, tally: Tally) -> AsyncGenerator[list[Line]]:
    lines = _lines(dump)
    while batch := await asyncio.to_thread(_batch, lines):
        good: list[Line] = []
        for number, line in batch:
            if isinstance(line, Line):
                good.append(line)
            else:
                tally.fail(f"line {number}", line)
        if good:
            yield good


def _batch(lines: Iterator[tuple[int, Line | GridError, int]]) -> list[tuple[int, Line | GridError]]:
    """As many lines as one call may have; none at the end of the dump."""
    batch: list[tuple[int, Line | GridError]] = []
    size_bytes = 0
    for number, line, line_bytes in lines:
        batch.append((number, line))
        size_bytes += line_bytes
        if len(batch) == catalog.MAX_LOOKUP or size_bytes >= BATCH_BYTES:
            break
    return batch


def _lines(dump: BinaryIO) -> Iterator[tuple[int, Line | GridError, int]]:
    """Number, what it says or what is wrong with it, and length of each line that is not empty. JSON where the first
    one begins with a brace, else CSV whose first line names the columns. Raises UsageProblem."""
    columns: list[str] | None = None
    is_first = True
    for number, raw in _numbered(dump):
        if isinstance(raw, GridError):
            yield number, raw, 0
        elif is_first and not raw.lstrip().startswith(b"{"):
            columns = _columns(raw)
        else:
            try:
                yield number, _line(number, _fields(raw, columns)), len(raw)
            except (ValueError, RecursionError, csv.Error) as error:
                yield number, _wrong(str(error) or "it cannot be read"), 0
        is_first = False


def _numbered(dump: BinaryIO) -> Iterator[tuple[int, bytes | GridError]]:
    number = 0
    while raw := dump.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = dump.readline(MAX_LINE_BYTES)
            yield number, _wrong(f"it has more than {MAX_LINE_BYTES} bytes")
        elif raw.strip():
            yield number, raw


def _columns(raw: bytes) -> list[str]:
    try:
        (found,) = csv.reader([raw.decode("utf-8-sig").rstrip("\r\n")], strict=True)
    except (ValueError, csv.Error):
        found = []
    columns = [name.strip().lower() for name in found]
    if {"lfn", "size", "adler32", "sha256"} - set(columns) or len(columns) != len(set(columns)):
        raise UsageProblem(
            f"its first line is neither JSON nor the names of columns; write one object of {', '.join(COLUMNS)} on "
            f"each line, or begin with the line {','.join(COLUMNS)}"
        )
    return columns


def _fields(raw: bytes, columns: list[str] | None) -> dict[str, Any]:
    text = raw.decode("utf-8").strip()
    if columns is None:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        return found
    (values,) = csv.reader([text], strict=True)
    if len(values) != len(columns):
        raise ValueError(f"it has {len(values)} fields where the first line names {len(columns)}")
    row: dict[str, Any] = dict(zip(columns, values, strict=True))
    size = row["size"].strip()
    if not (size.isascii() and size.isdigit()):
        raise ValueError(f"size {size[:40]!r} is not a number of bytes")
    return {**row, "size": int(size), "surls": row.get("surls", "").split()}


def _line(number: int, fields: dict[str, Any]) -> Line:
    """Shape only: the catalogue judges names, checksums and SURLs. Raises ValueError."""
    texts: dict[str, str] = {}
    for name in ("lfn", "guid", "adler32", "sha256"):
        texts[name] = _text(name, fields.get(name) or "")
    size_bytes, surls = fields.get("size"), fields.get("surls") or []
    if type(size_bytes) is not int or not 0 <= size_bytes <= MAX_SIZE_BYTES:
        raise ValueError(f"size {str(size_bytes)[:40]} is not a number of bytes")
    if not isinstance(surls, list):
        raise ValueError("surls is not a list")
    known = [_text("a SURL", surl) for surl in dict.fromkeys(map(str, surls))]
    guid = texts["guid"] or str(uuid.uuid5(_NO_GUID, texts["lfn"].removeprefix("lfn:")))
    content = catalog.Content(size_bytes, texts["adler32"], texts["sha256"])
    return Line(number, catalog.NewFile(texts["lfn"], guid, content, known[0] if known else ""), tuple(known[1:]))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or (not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value)):
        raise ValueError(f"{name} is not a text")
    return value


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest("LINE_INVALID", f"{why[:300]}; correct this line and import the file again")
