"""What `grid audit` does, in the name of the grid's operator."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from gridfabric.security.v1 import audit_pb2 as pb
from gridfabric.security.v1 import audit_pb2_grpc

from agents.user_interface import console, endpoints
from agents.user_interface.connection import Grid, as_operator
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from fabric.clock import to_us
from fabric.errors import GridError, Unavailable
from fabric.rpc.calls import each_within
from fabric.settings import Endpoint
from security.files import read_bounded, write_if_changed

T = TypeVar("T")
SILENCE_S = 60.0
"""For an agent to say something while it searches or checks its log; it does so every second or two."""
DEADLINE_S = 3600.0
"""For it to come to an end: twenty times what a full log takes."""
_GIVEN_UP = f"nothing was heard for {SILENCE_S:g} s, or no end after {DEADLINE_S:g} s"
TELL_S = 5.0
WITNESS_FILE = "audit-seen.json"
MAX_WITNESS_BYTES = 4 * 1024 * 1024
AT_ONCE = 32
"""Agents asked at one moment."""
_HIDDEN = frozenset({"at", "level", "event", "grid", "site", "agent", "trace", "seq", "prev", "session_id"})


async def search(
    dns: Sequence[str],
    jobs: Sequence[str],
    files: Sequence[str],
    hosts: Sequence[str],
    since: str | None,
    limit: int,
    state: Path | None,
    *,
    as_json: bool,
) -> None:
    """`grid audit --job ...`."""
    about = [*dns, *jobs, *hosts, *(file.removeprefix("lfn:") for file in files)]
    if not about and not since:
        raise UsageProblem("name what to look for: --dn, --job, --file, --host, --since; see grid audit --help")
    since_us = int((time.time() - console.parse_duration(since)) * 1e6) if since else 0
    async with as_operator(state) as grid:
        request = pb.SearchAuditRequest(about=about, since_us=since_us, limit=limit)
        entries, missing = await _search_all(grid, request)
        if files:  # what was found names the replicas, and these appear where the data is
            surls = {entry["surl"] for entry in entries if isinstance(entry.get("surl"), str)} - set(about)
            if surls:
                request = pb.SearchAuditRequest(about=sorted(surls)[:100], since_us=since_us, limit=limit)
                more, missing = await _search_all(grid, request)
                entries += more
    unique = {(entry["agent"], entry["seq"]): entry for entry in entries}
    found = sorted(unique.values(), key=lambda entry: (entry["at"], entry["agent"], entry["seq"]))
    if as_json:
        console.print_json({"entries": found, "missing": missing})
    else:
        rows = [(entry["at"], entry["agent"], entry["event"], _rest(entry)) for entry in found]
        console.print_table(("time", "agent", "event", "what"), rows)
    console.end_with_missing(missing)


async def _search_all(grid: Grid, request: pb.SearchAuditRequest) -> tuple[list[dict[str, Any]], dict[str, str]]:
    async def ask(_: str, stub: Any) -> list[dict[str, Any]]:
        return [json.loads(entry.json) async for entry in _each(stub.Search(request)) if entry.json]

    answers, missing = await _ask_all(grid, ask)
    return [entry for entries in answers.values() for entry in entries], missing


async def of_event(grid: Grid, event: str, since_us: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every entry of this event since then, page by page; and the sentences of agents that gave none."""

    async def ask(_: str, stub: Any) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        after_us = since_us
        while True:
            request = pb.SearchAuditRequest(about=[event], since_us=after_us)
            page = [json.loads(entry.json) async for entry in _each(stub.Search(request)) if entry.json]
            before = len(found)
            found.update({entry["seq"]: entry for entry in page if entry["event"] == event})
            if len(found) == before:
                return list(found.values())
            after_us = max(to_us(datetime.fromisoformat(entry["at"])) for entry in page)

    answers, missing = await _ask_all(grid, ask)
    return [entry for entries in answers.values() for entry in entries], missing


async def verify(state: Path | None, *, as_json: bool) -> None:
    """`grid audit verify`: the last entries seen are kept in the state folder, by which a log shows that was cut or
    written anew since then."""
    witness = Witness(endpoints.state_folder(state, os.environ) / WITNESS_FILE)
    async with as_operator(state) as grid:
        progress = _Progress(witness)
        answers, missing = await _ask_all(grid, progress.verdict)
    witness.keep(answers)
    rows = [
        {
            "agent": name,
            "entries": answer.entries,
            "first": answer.first,
            "last": answer.last,
            "oldest_at": answer.oldest_at,
            "problems": list(answer.problems),
        }
        for name, answer in sorted(answers.items())
    ]
    problems = sum(len(row["problems"]) for row in rows)
    if as_json:
        console.print_json({"logs": rows, "missing": missing})
    else:
        shown = [
            (row["agent"], row["entries"], row["oldest_at"], "; ".join(row["problems"]) or "whole") for row in rows
        ]
        console.print_table(("agent", "entries", "since", "log"), shown)
    if problems:
        for name, sentence in missing.items():
            console.warn(f"{name} did not answer: {sentence}")
        raise Ended(ExitCode.FAILED)
    console.end_with_missing(missing)


class Witness:
    """The newest entry of every log, number and hash, as the operator saw it last: on another machine than the logs."""

    def __init__(self, path: Path) -> None:
        """Raises UsageProblem for a file that cannot be read."""
        self._path = path
        try:
            self._seen: dict[str, tuple[int, str]] = _heads(json.loads(read_bounded(path, MAX_WITNESS_BYTES)))
        except FileNotFoundError:
            self._seen = {}
        except (OSError, ValueError) as error:
            raise UsageProblem(
                f"{path}, which keeps what was seen of every audit log, cannot be read ({error}); put it back from a "
                "copy, or remove it to begin anew"
            ) from error

    def request(self, agent: str) -> pb.VerifyAuditRequest:
        """What to ask an agent."""
        number, digest = self._seen.get(agent, (0, ""))
        return pb.VerifyAuditRequest(witnessed=number, witnessed_hash=digest)

    def keep(self, answers: Mapping[str, pb.VerifyAuditResponse]) -> None:
        """Of logs that are whole. One that is not stays as it was seen: its problem is told until this file goes.
        Raises OSError."""
        whole = {name: one for name, one in answers.items() if one.last and not one.problems}
        self._seen |= {name: (one.last, one.last_hash) for name, one in whole.items()}
        write_if_changed(self._path, json.dumps(self._seen, indent=0, sort_keys=True).encode(), 0o600)


def _heads(found: object) -> dict[str, tuple[int, str]]:
    """Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("not a list of heads")
    heads: dict[str, tuple[int, str]] = {}
    for name, head in cast("dict[str, Any]", found).items():
        match head:
            case [int(number), str(digest)] if 0 < number < 1 << 62 and len(digest) == 64:
                heads[name] = number, digest
            case _:
                raise ValueError(f"{name[:80]!r} has no number and hash")
    return heads


class _Progress:
    """How far the checks of all logs are, for a person who waits."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._read: dict[int, tuple[int, int]] = {}
        self._told_at = time.monotonic()

    async def verdict(self, name: str, stub: Any) -> pb.VerifyAuditResponse:
        """What one agent says in the end."""
        async for answer in _each(stub.Verify(self._witness.request(name))):
            if answer.is_verdict:
                return answer
            self._read[id(stub)] = answer.read_bytes, answer.total_bytes
            self._tell()
        raise Unavailable("STREAM_ENDED", "it ended before its verdict; ask again")

    def _tell(self) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            read, total = (sum(one) >> 20 for one in zip(*self._read.values(), strict=True))
            console.warn(f"{read} of {total} MiB checked")


def _each(stream: Any) -> AsyncIterator[Any]:
    """Its messages. Raises Unavailable after too long a silence."""
    return each_within(stream, SILENCE_S, "AUDIT_SILENT", _GIVEN_UP)


async def _ask_all(grid: Grid, ask: Callable[[str, Any], Awaitable[T]]) -> tuple[dict[str, T], dict[str, str]]:
    """The answers of all agents, workers too, by their names; and the sentences of those that gave none, of a site of
    which nobody answered one."""
    answers: dict[str, T] = {}
    missing: dict[str, str] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(endpoint: Endpoint) -> None:
        try:
            async with gate, asyncio.timeout(DEADLINE_S):
                channel = await grid.channel_to(endpoint.host, endpoint.rpc)
                answers[endpoint.name] = await ask(endpoint.name, audit_pb2_grpc.AuditTrailStub(channel))
        except GridError as error:
            missing[endpoint.name] = error.sentence
        except TimeoutError:
            missing[endpoint.name] = _GIVEN_UP

    agents = [endpoint for endpoints in grid.services.services.values() for endpoint in endpoints if endpoint.rpc]
    await asyncio.gather(*(one(endpoint) for endpoint in agents))
    for site in {endpoint.site for endpoint in agents}:
        there = [endpoint.name for endpoint in agents if endpoint.site == site]
        if site and len(there) > 1 and all(name in missing for name in there):
            sentences = [missing.pop(name) for name in there]
            missing[f"site {site}"] = f"none of its {len(there)} agents; the first: {sentences[0]}"
    return answers, dict(sorted(missing.items()))


def _rest(entry: dict[str, Any]) -> str:
    sentence = entry.get("sentence")
    if isinstance(sentence, str):
        return sentence
    return " ".join(f"{name}={_short(value)}" for name, value in entry.items() if name not in _HIDDEN)


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"[{len(value)}]"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
