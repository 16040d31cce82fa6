"""The audit log as a chain: each entry holds its number and the hash of the line before it.

So a line that was removed, changed or put in shows where. The chain goes on over closed files and restarts. What
nobody can see from the lines alone is that the last ones were cut off; while the agent runs it knows its own last entry
and says so.

A full file is closed as `audit.jsonl.<number of its last entry>` and compressed. Closed files go when they are 90 days
old, or sooner where there are too many bytes of them; then `shortfall` says so. Before a file goes, an entry EXPIRED
says up to which number entries may be gone: a file that is gone without one was removed by somebody else.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from fabric.clock import Clock, SystemClock
from fabric.errors import DataCorrupted
from fabric.logs import LogFile, encode

KEPT_S = 90 * 86400.0
"""Closed files stay this long: what the grids of the LHC asked of their sites."""
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_CLOSED_BYTES = 1024 * 1024 * 1024
"""Of all closed files, compressed: some 20 million entries."""
CLOSE_S = 10.0
"""For a file that is being compressed when the log is closed; what is left is done at the next start."""
FIRST_PREVIOUS = "0" * 64
MAX_PROBLEMS = 100
MAX_ENTRY_BYTES = 1024 * 1024
LOOK_EVERY = 1024
"""Entries between two looks at whether somebody still waits: some milliseconds."""
SEARCHED_AT_ONCE = 200_000
"""Entries, about a second."""
TORN = "audit.torn"
"""The event of an entry after `lost` ones that a crash or a full disk left incomplete or unwritten."""
EXPIRED = "audit.expired"
"""The event of an entry before closed files are removed; their last entry has the number `through`."""


_LINK = re.compile(rb', "seq": ([0-9]{1,15}), "prev": "([0-9a-f]{64})"\}\Z')
_CLOSED = re.compile(r"\.[0-9]{12}(\.gz)?\Z")


@dataclass(frozen=True)
class Head:
    """The last entry: its number and the hash of its line. Number 0: there is none."""

    sequence: int = 0
    hash: str = FIRST_PREVIOUS


class AuditFile(LogFile):
    """A log file whose entries are chained. Usable from any thread. One process per file."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        max_closed_bytes: int = MAX_CLOSED_BYTES,
        clock: Clock | None = None,
    ) -> None:
        self._chain = threading.Lock()
        self._max_closed_bytes, self._clock = max_closed_bytes, clock or SystemClock()
        self._head, torn = _find_head(path)
        self._lost = int(torn)
        self._closed_one = False
        self._one_tidies = threading.Lock()
        super().__init__(path, max_bytes)
        self._tidy_later({})

    @property
    def head(self) -> Head:
        """The last entry written."""
        return self._head

    @property
    def shortfall(self) -> str:
        """A sentence where closed files have to go before their time; empty if there is room."""
        closed = closed_files(self.path)
        sizes = [size for size in map(_size, closed) if size is not None]
        if sum(sizes) + self._max_bytes <= self._max_closed_bytes:
            return ""
        age_s = self._clock.now().timestamp() - (_modified(closed[0]) or 0) if closed else 0
        if age_s >= KEPT_S:
            return ""
        return (
            f"the audit log {self.path} has room for {age_s / 86400:.1f} days of {KEPT_S / 86400:g} "
            f"({self._max_closed_bytes >> 20} MiB); copy its oldest closed files to another place before they go"
        )

    def append(self, record: Mapping[str, object]) -> bytes:
        """Write one entry and return its line."""
        with self._chain:
            if self._lost:  # the disk may hold a part of a line
                note = _same_place(record)
                if self.write(b"\n") and self._chained({**note, "event": TORN, "lost": self._lost})[1]:
                    self._lost = 0
            line, written = self._chained(record)
            self._lost += not written
            if self._closed_one:
                self._closed_one = False
                self._tidy_later(_same_place(record))
            return line

    def _chained(self, record: Mapping[str, object]) -> tuple[bytes, bool]:
        sequence = self._head.sequence + 1
        line = encode({**record, "seq": sequence, "prev": self._head.hash})
        written = self.write(line)
        if written:
            self._head = Head(sequence, _hash(line[:-1]))
        return line, written

    def _make_room(self) -> None:
        self.path.replace(self.path.with_name(f"{self.path.name}.{self._head.sequence:012d}"))
        self._closed_one = True

    def _tidy_later(self, place: Mapping[str, object]) -> None:
        self._tidying = threading.Thread(target=self._tidy, args=(place,), name="audit log", daemon=True)
        self._tidying.start()

    def _tidy(self, place: Mapping[str, object]) -> None:
        with self._one_tidies:
            for _, plain in _numbered(self.path):
                if plain.suffix != ".gz":
                    self._pack(plain)
            if place:
                self._expire(place)

    def _expire(self, place: Mapping[str, object]) -> None:
        """Remove closed files that are too old or too many, and say so first."""
        closed = closed_files(self.path)
        sizes = {file: _size(file) or 0 for file in closed}
        total, now = sum(sizes.values()), self._clock.now().timestamp()
        going: list[Path] = []
        for file in closed[:-1]:
            if now - (_modified(file) or now) < KEPT_S and total <= self._max_closed_bytes:
                break
            going.append(file)
            total -= sizes[file]
        if not going:
            return
        with self._chain:
            _, written = self._chained({**place, "event": EXPIRED, "through": _last_of(going[-1])})
        for file in going if written else ():
            with suppress(OSError):
                file.unlink()

    def _pack(self, plain: Path) -> None:
        """A crash leaves the plain file, or both: then the plain one goes."""
        packed, made = plain.with_name(f"{plain.name}.gz"), plain.with_name(f".{plain.name}.gz")
        with suppress(OSError):  # a full disk: it stays as it is
            if not packed.exists():
                modified_ns = plain.stat().st_mtime_ns
                descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with plain.open("rb") as source, os.fdopen(descriptor, "wb") as target:
                    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1) as packing:
                        shutil.copyfileobj(source, packing, 1024 * 1024)
                    target.flush()
                    os.fsync(target.fileno())
                os.utime(made, ns=(modified_ns, modified_ns))
                made.replace(packed)
            plain.unlink()

    def close(self) -> None:
        """Close the file; later lines are dropped."""
        self._tidying.join(CLOSE_S)
        super().close()

    @contextmanager
    def reading(self, since_s: float = 0.0) -> Generator[tuple[Head, list[int]]]:
        """The head and descriptors of the kept files, oldest first, as of one moment; without closed files that were
        last written before `since_s` (Unix time)."""
        descriptors: list[int] = []
        try:
            with self._chain:
                head = self._head
                closed = [file for file in closed_files(self.path) if (_modified(file) or since_s) >= since_s]
                descriptors += map(_open_either, (*closed, self.path))
            yield head, descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


@dataclass
class Look:
    """One look at a whole log, which may take minutes: read by whoever waits, on another thread."""

    total_bytes: int = 0
    read_bytes: int = 0
    """As they are on disk: closed files are compressed."""
    is_wanted: bool = True
    """Set to False to have it given up."""


@dataclass
class Verdict:
    """What a look at a whole log found. `problems` are sentences; none: it is whole."""

    first: int = 0
    last: int = 0
    last_hash: str = ""
    entries: int = 0
    oldest_at: str = ""
    problems: list[str] = field(default_factory=list[str])

    def problem(self, sentence: str) -> None:
        """Keep it, up to a bound."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(sentence)


def closed_files(path: Path) -> list[Path]:
    """The closed files of a log, oldest first; of one that is just being compressed only the compressed one."""
    return list(dict(_numbered(path)).values())


def _numbered(path: Path) -> list[tuple[int, Path]]:
    files = (file for file in path.parent.glob(f"{path.name}.*") if _CLOSED.search(file.name))
    return sorted((_last_of(file), file) for file in files)


def verify(
    descriptors: Sequence[int], head: Head | None = None, look: Look | None = None, witnessed: Head | None = None
) -> Verdict:
    """Follow the chain through files, oldest first. `head`: what the last entry should be, if that is known.
    `witnessed`: an entry that somebody else saw before. A look that is given up ends with what was found until then."""
    verdict, look = Verdict(), look or Look()
    look.total_bytes = sum(os.fstat(descriptor).st_size for descriptor in descriptors)
    last: Head | None = None
    torn = ""
    through = 0
    seen_head = head is None or head.sequence == 0
    for number, line in enumerate(_lines(descriptors, verdict), 1):
        if number % LOOK_EVERY == 0:
            look.read_bytes = sum(os.lseek(descriptor, 0, os.SEEK_CUR) for descriptor in descriptors)
            if not look.is_wanted:
                return verdict
        link = _LINK.search(line)
        if link is None:
            torn = f"line {number} after entry {verdict.last} is not an entry of this log"
            continue
        sequence, previous = int(link[1]), link[2].decode()
        if torn and (_entry(line) or {}).get("event") != TORN:
            verdict.problem(torn)
        torn = ""
        if last is None:
            verdict.first, verdict.oldest_at = sequence, str((_entry(line) or {}).get("at", ""))
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
        verdict.entries, verdict.last, verdict.last_hash = verdict.entries + 1, sequence, last.hash
        if witnessed is not None and sequence == witnessed.sequence and last.hash != witnessed.hash:
            verdict.problem(f"entry {sequence} is another than was seen before: the log was written anew")
        if EXPIRED.encode() in line and (entry := _entry(line)) is not None and entry.get("event") == EXPIRED:
            through = entry["through"] if isinstance(entry.get("through"), int) else 0
        if head is not None and sequence == head.sequence:
            seen_head = True
            if last.hash != head.hash:
                verdict.problem(f"entry {sequence} was changed")
    if torn and head is not None:
        verdict.problem(torn)
    if verdict.first > through + 1:
        verdict.problem(f"the entries from {through + 1} to {verdict.first - 1} are gone and had not expired")
    if witnessed is not None and witnessed.sequence > verdict.last:
        verdict.problem(f"the entries from {verdict.last + 1} to {witnessed.sequence} were seen before and are cut off")
    if not seen_head and head is not None:
        verdict.problem(f"the entries from {verdict.last + 1} to {head.sequence} were cut off")
    return verdict


def search(
    descriptors: Sequence[int], about: Sequence[str], *, since: str = "", until: str = "", limit: int = 10_000
) -> Iterator[str]:
    """Lines of entries in which a value is one of `about` (none: all entries), or begins with it and `/` or `:` (a
    proxy of a person, a port of an address). `since` and `until` are times as they stand in the entries. Now and then
    an empty line, so that a long search can be given up. Raises DataCorrupted AUDIT_UNREADABLE."""
    needles = [json.dumps(value, ensure_ascii=False)[1:-1].encode() for value in about if value]
    found = 0
    for number, line in enumerate(_lines(descriptors), 1):
        if number % SEARCHED_AT_ONCE == 0:
            yield ""
        if needles and not any(needle in line for needle in needles):
            continue
        entry = _entry(line)
        if entry is None or not (since <= str(entry.get("at", "")) and (not until or str(entry.get("at", "")) < until)):
            continue
        if not needles or _mentions(entry, about):
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


def _lines(descriptors: Sequence[int], verdict: Verdict | None = None) -> Iterator[bytes]:
    """What cannot be unpacked is a problem of the verdict; without one it raises DataCorrupted."""
    for descriptor in descriptors:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            try:
                unpacked = _unpacked(file)
                while line := unpacked.readline(MAX_ENTRY_BYTES):
                    if line.strip():
                        yield line.rstrip(b"\n")
            except (EOFError, OSError, zlib.error) as error:
                sentence = f"a closed file of this audit log is damaged ({str(error)[:100]}); see: grid audit verify"
                if verdict is None:
                    raise DataCorrupted("AUDIT_UNREADABLE", sentence) from error
                verdict.problem(f"a closed file is damaged after entry {verdict.last}")


def _unpacked(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb")) if packed else file


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


def _find_head(path: Path) -> tuple[Head, bool]:
    """Where the chain ended, and whether an incomplete line follows. Raises OSError."""
    for file in reversed(closed_files(path) + ([path] if path.exists() else [])):
        with file.open("rb") as opened:
            tail = _tail(_unpacked(opened))
        torn = bool(tail) and not tail.endswith(b"\n")
        for line in reversed(tail.split(b"\n")):
            entry = _entry(line)
            if entry is not None:
                return Head(entry["seq"], _hash(line)), torn
            torn = torn or bool(line.strip())
        if torn:
            return Head(), True
    return Head(), False


def _tail(file: BinaryIO) -> bytes:
    """The last entries; of a damaged file none."""
    if not isinstance(file, gzip.GzipFile):
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * MAX_ENTRY_BYTES))
        return file.read()
    tail = b""
    with suppress(EOFError, OSError, zlib.error):
        while piece := file.read(2 * MAX_ENTRY_BYTES):
            tail = (tail + piece)[-2 * MAX_ENTRY_BYTES :]
        return tail
    return b""


def _open_either(path: Path) -> int:
    """A closed file may be compressed and replaced at this moment."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path.with_name(f"{path.name}.gz"), os.O_RDONLY | os.O_CLOEXEC)


def _same_place(record: Mapping[str, object]) -> dict[str, object]:
    return {key: record[key] for key in ("at", "level", "grid", "site", "agent") if key in record}


def _last_of(closed: Path) -> int:
    return int(closed.name.removesuffix(".gz").rpartition(".")[2])


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


def _modified(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None
