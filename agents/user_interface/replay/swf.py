"""Logs of batch systems in the Standard Workload Format (Feitelson and others, version 2.2).

A line is a job: 18 numbers, of which these are used: 2 submit time (s), 4 run time (s), 5 processors, 12 user,
13 group; -1 where nothing is known. Lines that begin with a semicolon are comments. The file may be compressed by gzip.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import InvalidRequest

FIELDS = 18
MAX_LINE_BYTES = 4096
MAX_TRACE_BYTES = 1024**3
"""Uncompressed."""
MAX_JOBS = 1_000_000
"""Of one replay."""
MAX_TIME_S = 100 * 365 * 86400.0
_GZIP = b"\x1f\x8b"


class TraceError(InvalidRequest):
    """A log that cannot be read; says which line, and what is wrong."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        where = f"{path}, line {line}" if line else str(path)
        super().__init__("TRACE_INVALID", f"{where}: {problem}", path=str(path), line=line)


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a log."""

    submitted_s: float
    """Since the log's beginning."""
    run_s: float
    processors: int
    user: int
    group: int


@dataclass(frozen=True, slots=True)
class Trace:
    """The jobs that are replayed, by submit time, and how many lines told nothing that can be."""

    jobs: tuple[TraceJob, ...]
    left_out: int
    """Without a run time or submit time: cancelled before their start, or not recorded."""


def read(path: Path, limit: int = MAX_JOBS) -> Trace:
    """The first `limit` jobs of a log. Raises TraceError, OSError."""
    jobs: list[TraceJob] = []
    left_out = 0
    with path.open("rb") as file:
        is_gzip = file.peek(2)[:2] == _GZIP
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file)) if is_gzip else file
        for number, text in _lines(stream, path):
            job = _job(text, path, number)
            if job is None:
                left_out += 1
            elif len(jobs) == limit:
                break
            else:
                jobs.append(job)
    if not jobs:
        raise TraceError(path, 0, "no job with a submit and a run time is in it; is it in Standard Workload Format?")
    return Trace(tuple(sorted(jobs, key=lambda job: job.submitted_s)), left_out)


def _lines(stream: io.BufferedReader, path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are neither empty nor comments."""
    read_bytes = number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(path, number, f"the compressed file is damaged ({error}); fetch it again") from None
        if not line:
            return
        read_bytes += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise TraceError(path, number, f"the line is longer than {MAX_LINE_BYTES} bytes; is this a workload log?")
        if read_bytes > MAX_TRACE_BYTES:
            raise TraceError(path, number, f"the log is longer than {MAX_TRACE_BYTES} bytes; cut it, or give --limit")
        text = line.decode("latin-1").strip()
        if text and not text.startswith(";"):
            yield number, text


def _job(text: str, path: Path, number: int) -> TraceJob | None:
    words = text.split()
    if len(words) != FIELDS:
        raise TraceError(path, number, f"{FIELDS} numbers make a job, and {len(words)} words are here")
    values: list[float] = []
    for place, word in enumerate(words, 1):
        try:
            value = float(word)
        except ValueError:
            raise TraceError(path, number, f"field {place} is {word[:40]!r}, which is no number") from None
        if not math.isfinite(value) or not -1 <= value <= 1e15:
            raise TraceError(path, number, f"field {place} is {word[:40]}; numbers from -1 (not known) on are expected")
        values.append(value)
    submitted_s, run_s = values[1], values[3]
    if submitted_s > MAX_TIME_S or run_s > MAX_TIME_S:
        raise TraceError(path, number, f"a time is longer than a hundred years ({max(submitted_s, run_s):g} s)")
    if submitted_s < 0 or run_s < 0:
        return None
    return TraceJob(submitted_s, run_s, max(1, int(values[4])), int(values[11]), int(values[12]))
