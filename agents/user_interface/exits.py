"""The one table from what went wrong to the exit code of `grid`, and the sentence for what is not a GridError."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from typing import Any

from security.errors import os_error_text


class ExitCode(enum.IntEnum):
    """What a script can rely on. Documented in docs/commands.md."""

    OK = 0
    """Done."""
    FAILED = 1
    """Refused or failed, also for want of a usable credential; the sentence on stderr says why."""
    USAGE = 2
    """What was asked makes no sense: the command line, a variable, or the content of a file that they name."""
    NOT_FOUND = 3
    """The thing named does not exist: job, file, credential, folder of authorities, grid."""
    UNREACHABLE = 4
    """A service does not answer; the same command may succeed later."""
    TIMEOUT = 5
    """Not finished in the time given."""
    JOB_FAILED = 6
    """The job ended, but not well: aborted, cancelled, or with an exit code other than 0."""
    INTERRUPTED = 130
    """Ctrl-C."""


_CODE_OF_CLASS: Mapping[str, ExitCode] = {
    "NotFound": ExitCode.NOT_FOUND,
    "Unavailable": ExitCode.UNREACHABLE,
    "DeadlineExceeded": ExitCode.TIMEOUT,
    "UsageProblem": ExitCode.USAGE,
    "InvalidRequest": ExitCode.USAGE,
}
_CODE_OF_REASON: Mapping[str, ExitCode] = {
    "CREDENTIAL_NOT_FOUND": ExitCode.NOT_FOUND,
    "TRUST_DIRECTORY_INVALID": ExitCode.NOT_FOUND,
    "ENVIRONMENT_INVALID": ExitCode.USAGE,
}


class UsageProblem(Exception):
    """The command line or the environment does not make sense; found after parsing."""

    def __init__(self, sentence: str, reason: str = "USAGE", **facts: object) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.facts = {name: str(value) for name, value in facts.items()}


class Ended(Exception):
    """Everything was printed already; only the exit code is left to say."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def exit_code(error: BaseException) -> ExitCode:
    """The exit code for an error."""
    if isinstance(error, Ended):
        return error.code
    if (by_reason := _CODE_OF_REASON.get(str(getattr(error, "reason", "")))) is not None:
        return by_reason
    for kind in type(error).__mro__:
        if kind.__name__ in _CODE_OF_CLASS:
            return _CODE_OF_CLASS[kind.__name__]
    if isinstance(error, TimeoutError):
        return ExitCode.TIMEOUT
    if isinstance(error, FileNotFoundError):
        return ExitCode.NOT_FOUND
    if isinstance(error, IsADirectoryError):
        return ExitCode.USAGE
    return ExitCode.FAILED


_CURES: Mapping[int | None, str] = {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name",
    errno.EISDIR: "name a file",
    errno.EACCES: "see to its permissions, or name another",
    errno.EPERM: "see to its permissions, or name another",
    errno.EROFS: "name another place",
    errno.ENOSPC: "make room, or name another place",
}


def describe(error: BaseException) -> dict[str, Any]:
    """reason, sentence and facts of any error: typed ones as they are, the operating system's as one sentence."""
    sentence = getattr(error, "sentence", None)
    if sentence is not None:
        facts = {str(name): str(value) for name, value in dict(getattr(error, "facts", {})).items()}
        reason = getattr(error, "reason", "FAILED")
        return {"reason": str(getattr(reason, "value", reason)), "sentence": str(sentence), "facts": facts}
    if isinstance(error, OSError):
        where = f"{os.fspath(error.filename)!s}: " if error.filename else ""
        cure = f"; {_CURES[error.errno]}" if error.errno in _CURES else ""
        facts = {"path": os.fspath(error.filename)} if isinstance(error.filename, str) else {}
        return {"reason": "SYSTEM", "sentence": f"{where}{os_error_text(error)}{cure}", "facts": facts}
    if isinstance(error, TimeoutError):
        return {"reason": "TIMEOUT", "sentence": str(error) or "not finished in time", "facts": {}}
    text = " ".join(str(error).split())[:500]
    return {
        "reason": "DEFECT",
        "sentence": f"a defect in grid itself: {type(error).__name__}: {text or 'no message'}; "
        "set GRIDFABRIC_TRACEBACK=FILE to keep the details for a report",
        "facts": {},
    }
