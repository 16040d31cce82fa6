"""Logs and audit as JSON lines: UTC with microseconds, an event name, and who and what it was about on every line.

`log.jsonl` tells operators what happened; `audit.jsonl` tells who was let in or refused, is never sampled, and holds
the same sentence that the peer got. Both rotate by size.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fabric.clock import Clock, SystemClock, utc_text
from fabric.ids import unique_id

if TYPE_CHECKING:
    from fabric.audit import AuditFile

MAX_LOG_BYTES = 16 * 1024 * 1024
"""One log file; a busy agent writes about 200 bytes per event."""
KEPT_LOGS = 3
MAX_VALUE_LENGTH = 4000
"""Characters of one logged value; tracebacks may take four times as many."""

MAX_ITEMS = 100
"""Of one logged list."""

_SECRET_KEYS = frozenset(
    {"session", "session_token", "token", "proof", "password", "passphrase", "key_pem", "private_key"}
)
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_SECRET_MARK = "PRIVATE KEY-----"

trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("trace_id", default="")
"""The trace that the running task belongs to: taken from the caller's metadata, or begun by `new_trace`."""


def current_trace() -> str:
    """The trace id of this task, empty outside of any."""
    return trace_id.get()


def new_trace() -> str:
    """Begin a trace in this task and return its id."""
    made = unique_id()
    trace_id.set(made)
    return made


class LogFile:
    """An append-only file of lines that rotates by size. Usable from any thread. One process per file."""

    def __init__(self, path: Path, max_bytes: int, kept: int = 0) -> None:
        self.path, self._max_bytes, self._kept = path, max_bytes, kept
        self._lock = threading.Lock()
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, line: bytes) -> bool:
        """Append a line (or several, each with its newline). A full disk loses it, or its end, and never the caller:
        False."""
        with self._lock:
            if self._descriptor < 0:
                return False
            try:
                if self._size + len(line) > self._max_bytes and self._size:
                    self._rotate()
            except OSError as error:
                _last_resort(f"{self.path}: {error}")
            try:
                done = os.write(self._descriptor, line)
            except OSError as error:
                _last_resort(f"{self.path}: {error}")
                return False
            self._size += done
            return done == len(line)

    def _make_room(self) -> None:
        """Give the full file another name."""
        for number in range(self._kept - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))

    def _rotate(self) -> None:
        self._make_room()
        full, self._descriptor = self._descriptor, self._open()  # if it cannot be opened the full one is still in use
        os.close(full)
        self._size = 0

    def close(self) -> None:
        """Close the file; later lines are dropped."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _last_resort(message: str) -> None:
    try:
        sys.stderr.write(f"gridfabric: cannot write a log: {message}\n")
    except (OSError, ValueError):
        pass


class Logger:
    """Writes events. `bind` makes a logger that adds fields to every line; all share the files."""

    def __init__(
        self,
        log_file: LogFile | None,
        audit_file: AuditFile | None,
        fields: Mapping[str, object],
        *,
        clock: Clock,
        stderr: bool = False,
    ) -> None:
        self._log_file, self.audit_file, self._clock, self._stderr = log_file, audit_file, clock, stderr
        self._fields = dict(fields)

    def bind(self, **fields: object) -> Logger:
        """A logger whose lines also carry these fields."""
        merged = {**self._fields, **fields}
        return Logger(self._log_file, self.audit_file, merged, clock=self._clock, stderr=self._stderr)

    def debug(self, event: str, **fields: object) -> None:
        """Detail for developers; written like the others."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Something happened as it should: one line per transition."""
        self._write("info", event, fields)

    def info_each(self, lines: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """As `info` for many events (their names and fields) of one moment, in one write."""
        at = utc_text(self._clock.now())
        self._emit(b"".join(encode(self._record("info", event, fields, at=at)) for event, fields in lines))

    def warning(self, event: str, **fields: object) -> None:
        """Something an operator should look at one day."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something an operator should look at now."""
        self._write("error", event, fields)

    def exception(self, event: str, error: BaseException, **fields: object) -> None:
        """A defect, with its traceback. The only place where tracebacks go."""
        text = "".join(traceback.format_exception(error))[-4 * MAX_VALUE_LENGTH :]
        line = {**fields, "error": f"{type(error).__name__}: {error}"}
        self._write("error", event, line, traceback=text)

    def audit(self, event: str, **fields: object) -> None:
        """A decision about somebody: written to the audit log and to the log, never sampled."""
        record = self._record("audit", event, fields)
        self._emit(encode(record) if self.audit_file is None else self.audit_file.append(record))

    def audit_each(self, event: str, name: str, values: Sequence[str], **fields: object) -> None:
        """As `audit` for a decision about many: as many entries as it takes to name all of them in the field `name`."""
        for start in range(0, max(1, len(values)), MAX_ITEMS):
            self.audit(event, **{**fields, name: values[start : start + MAX_ITEMS] or None})

    def close(self) -> None:
        """Close the files, for this logger and all bound from it."""
        for file in (self._log_file, self.audit_file):
            if file is not None:
                file.close()

    def _write(self, level: str, event: str, fields: Mapping[str, object], **unbounded: object) -> None:
        self._emit(encode(self._record(level, event, fields, unbounded)))

    def _emit(self, line: bytes) -> None:
        if self._log_file is not None:
            self._log_file.write(line)
        if self._stderr:
            try:
                sys.stderr.write(line.decode())
            except (OSError, ValueError):
                pass

    def _record(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object],
        unbounded: Mapping[str, object] | None = None,
        at: str = "",
    ) -> dict[str, object]:
        record: dict[str, object] = {
            "at": at or utc_text(self._clock.now()),
            "level": level,
            "event": event,
            **self._fields,
            "trace": trace_id.get(),
        }
        for name, value in fields.items():
            if value is not None:
                record[name if name not in record else f"{name}_"] = _safe(name, value)
        record.update(unbounded or {})
        return record


def encode(record: Mapping[str, object]) -> bytes:
    """One line of JSON with its newline."""
    return _encode(record).encode("utf-8", "backslashreplace") + b"\n"


def _safe(name: str, value: object) -> object:
    """A value fit for a line: bounded, and no secret even when somebody passes one."""
    if name in _SECRET_KEYS:
        return "[not logged]"
    if value is True or value is False or isinstance(value, (int, float)):
        return value
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        return {str(k): _safe(str(k), v) for k, v in list(entries.items())[:MAX_ITEMS]}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = list(cast("Iterable[Any]", value))
        return [_safe("", v) for v in items[:MAX_ITEMS]]
    text = value if isinstance(value, str) else str(value)
    if _SECRET_MARK in text:
        return "[not logged]"
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."


def open_logs(
    directory: Path, *, clock: Clock | None = None, stderr: bool = False, fields: Mapping[str, object] | None = None
) -> Logger:
    """The logger of one agent: `<directory>/log.jsonl` and `<directory>/audit.jsonl`, mode 0600. Raises OSError."""
    from fabric.audit import AuditFile

    clock = clock or SystemClock()
    return Logger(
        LogFile(directory / "log.jsonl", MAX_LOG_BYTES, KEPT_LOGS),
        AuditFile(directory / "audit.jsonl", clock=clock),
        fields or {},
        clock=clock,
        stderr=stderr,
    )


def null_logger() -> Logger:
    """A logger that keeps nothing, for programs without a state directory."""
    return Logger(None, None, {}, clock=SystemClock())


class StandardLibraryHandler(logging.Handler):
    """Carries warnings of libraries (grpc, asyncio, sqlalchemy) into our log."""

    def __init__(self, logger: Logger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """One line per record, as event `library.<name>`."""
        fields: dict[str, object] = {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            self._logger.exception(f"library.{record.name}", record.exc_info[1], **fields)
        else:
            self._logger.warning(f"library.{record.name}", **fields)
