"""The audit log as a chain: each entry holds its number and the hash of the line before it.

So a line that was removed, changed or put in shows where. The chain goes on over rotated files and restarts. What
nobody can see from the lines alone is that the last ones were cut off; while the agent runs it knows its own last entry
and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fabric.logs import LogFile, encode

FIRST_PREVIOUS = "0" * 64
MAX_PROBLEMS = 100
MAX_ENTRY_BYTES = 1024 * 1024
TORN = "audit.torn"
"""The event of an entry after `lost` ones that a crash or a full disk left incomplete or unwritten."""


@dataclass(frozen=True)
class Head:
    """The last entry: its number and the hash of its line. Number 0: there is none."""

    sequence: int = 0
    hash: str = FIRST_PREVIOUS


class AuditFile(LogFile):
    """A log file whose entries are chained. Usable from any thread. One process per file."""

    def __init__(self, path: Path, max_bytes: int, kept: int) -> None:
        self._chain = threading.Lock()
        self._head, torn = _find_head(path, kept)
        self._lost = int(torn)
        super().__init__(path, max_bytes, kept)

    @property
    def head(self) -> Head:
        """The last entry written."""
        return self._head

    def append(self, record: Mapping[str, object]) -> bytes:
        """Write one entry and return its line."""
        with self._chain:
            if self._lost:  # the disk may hold a part of a line
                note = {key: record[key] for key in ("at", "level", "grid", "site", "agent") if key in record}
                if self.write(b"\n") and self._chained({**note, "event": TORN, "lost": self._lost})[1]:
                    self._lost = 0
            line, written = self._chained(record)
            self._lost += not written
            return line

    def _chained(self, record: Mapping[str, object]) -> tuple[bytes, bool]:
        sequence = self._head.sequence + 1
        line = encode({**record, "seq": sequence, "prev": self._head.hash})
        written = self.write(line)
        if written:
            self._head = Head(sequence, _hash(line[:-1]))
        return line, written

    @contextmanager
    def reading(self) -> Generator[tuple[Head, list[int]]]:
        """The head and descriptors of the kept files, oldest first, as of one moment."""
        with self._chain:
            head = self._head
            descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in kept_files(self.path, self.kept)]
        try:
            yield head, descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


@dataclass
class Verdict:
    """What a look at a whole log found. `problems` are sentences; none: it is whole."""

    first: int = 0
    last: int = 0
    entries: int = 0
    oldest_at: str = ""
    problems: list[str] = field(default_factory=list[str])

    def problem(self, sentence: str) -> None:
        """Keep it, up to a bound."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def kept_files(path: Path, kept: int) -> list[Path]:
    """The log's files that exist, oldest first."""
    rotated = [path.with_name(f"{path.name}.{number}") for number in range(kept, 0, -1)]
    return [found for found in (*rotated, path) if found.exists()]


def verify(descriptors: Sequence[int], head: Head | None = None) -> Verdict:
    """Follow the chain through files, oldest first. `head`: what the last entry should be, if that is known."""
    verdict = Verdict()
    last: Head | None = None
    torn = ""
    seen_head = head is None or head.sequence == 0
    for number, line in enumerate(_lines(descriptors), 1):
        entry = _entry(line)
        if entry is None:
            torn = f"line {number} after entry {verdict.last} is not an entry of this log"
            continue
        sequence, previous = cast("int", entry["seq"]), cast("str", entry["prev"])
        if torn and entry.get("event") != TORN:
            verdict.problem(torn)
        torn = ""
        if last is None:
            verdict.first, verdict.oldest_at = sequence, str(entry.get("at", ""))
            if sequence == 1 and previous != FIRST_PREVIOUS:
                verdict.problem("entry 1 follows another entry, which is gone")
        elif sequence > last.sequence + 1:
            verdict.problem(f"{sequence - last.sequence - 1} entries after {last.sequence} are gone")
        elif sequence <= last.sequence:
            verdict.problem(f"an entry with number {sequence} was put in after entry {last.sequence}")
            continue
        elif previous != last.hash:
            verdict.problem(f"entry {last.sequence} was changed")
        last = Head(sequence, _hash(line))
        verdict.entries, verdict.last = verdict.entries + 1, sequence
        if head is not None and sequence == head.sequence:
            seen_head = True
            if last.hash != head.hash:
                verdict.problem(f"entry {sequence} was changed")
    if torn and head is not None:
        verdict.problem(torn)
    if not seen_head and head is not None:
        verdict.problem(f"the entries from {verdict.last + 1} to {head.sequence} were cut off")
    return verdict


def search(
    descriptors: Sequence[int], about: Sequence[str], *, since: str = "", until: str = "", limit: int = 10_000
) -> Iterator[str]:
    """Lines of entries in which a value is one of `about`, or begins with it and `/` or `:` (a proxy of a person, a
    port of an address). `since` and `until` are times as they stand in the entries."""
    needles = [json.dumps(value, ensure_ascii=False)[1:-1].encode() for value in about if value]
    found = 0
    for line in _lines(descriptors):
        if not any(needle in line for needle in needles):
            continue
        entry = _entry(line)
        if entry is None or not (since <= str(entry.get("at", "")) and (not until or str(entry.get("at", "")) < until)):
            continue
        if _mentions(entry, about):
            yield line.decode("utf-8", "replace")
            found += 1
            if found >= limit:
                return


def _mentions(value: object, about: Sequence[str]) -> bool:
    if isinstance(value, str):
        return any(value == wanted or value.startswith((f"{wanted}/", f"{wanted}:")) for wanted in about)
    if isinstance(value, dict):
        return any(_mentions(item, about) for item in cast("dict[str, object]", value).values())
    if isinstance(value, list):
        return any(_mentions(item, about) for item in cast("list[object]", value))
    return False


def _lines(descriptors: Sequence[int]) -> Iterator[bytes]:
    for descriptor in descriptors:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            while line := file.readline(MAX_ENTRY_BYTES):
                if line.strip():
                    yield line.rstrip(b"\n")


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    entry = cast("dict[str, Any]", found)
    return entry if isinstance(entry.get("seq"), int) and isinstance(entry.get("prev"), str) else None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _find_head(path: Path, kept: int) -> tuple[Head, bool]:
    """Where the chain ended, and whether an incomplete line follows. Raises OSError."""
    for file in reversed(kept_files(path, kept)):
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - 2 * MAX_ENTRY_BYTES))
            tail = opened.read()
        torn = bool(tail) and not tail.endswith(b"\n")
        for line in reversed(tail.split(b"\n")):
            entry = _entry(line)
            if entry is not None:
                return Head(entry["seq"], _hash(line)), torn
            torn = torn or bool(line.strip())
        if torn:
            return Head(), True
    return Head(), False
