"""The small closed tree of errors that cross a connection, and the one table from it to gRPC status codes.

Callers branch on the class and on `reason`, never on text. The sentence is made once, where the failure is known, and
is the same for the caller, for the server's audit log and after any number of hops: it says what failed, for which
subject, and what to do next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from security.errors import Reason, SecurityError, os_error_text

if TYPE_CHECKING:
    import grpc

DOMAIN = "gridfabric"
"""google.rpc.ErrorInfo.domain of every error made here."""
MAX_SENTENCE_BYTES = 1000
"""UTF-8 bytes of a sentence. It travels percent-encoded (three times as long at worst) in the `grpc-message` header."""
MAX_REASON_LENGTH = 63
"""As google.rpc.ErrorInfo.reason demands."""
MAX_FACT_BYTES = 512
"""UTF-8 bytes of one fact."""
MAX_DETAILS_BYTES = 4096
"""Bytes of the whole google.rpc.Status; grpc drops the connection's status silently when headers grow over 8-16 KiB."""
DETAILS_KEY = "grpc-status-details-bin"

_REASON = re.compile(r"[A-Z][A-Z0-9_]*\Z")


class GridError(Exception):
    """An expected failure that the caller can understand. Use a subclass: each fixes the gRPC status.

    `reason` is UPPER_SNAKE for programs, `sentence` one readable line for people, `facts` short texts for records.
    Facts are given as keywords; any value is turned into text. Picklable. Never put a secret into any of the three.
    """

    status_name: ClassVar[str] = "UNKNOWN"
    reason: str
    sentence: str
    facts: Mapping[str, str]

    def __init__(self, reason: str, sentence: str, /, **facts: object) -> None:
        self.reason = str(reason)
        if len(self.reason) > MAX_REASON_LENGTH or not _REASON.match(self.reason):
            raise ValueError(f"a reason is UPPER_SNAKE with at most {MAX_REASON_LENGTH} characters, not {reason!r}")
        self.sentence = _clip(sentence, MAX_SENTENCE_BYTES)
        kept = {name: _clip(str(value), MAX_FACT_BYTES) for name, value in facts.items() if value is not None}
        self.facts = MappingProxyType(kept)
        super().__init__(self.reason, self.sentence)

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason}: {self.sentence})"

    def __reduce__(self) -> tuple[Any, tuple[type[GridError], str, str, dict[str, str]]]:
        return (_rebuild, (type(self), self.reason, self.sentence, dict(self.facts)))

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which trying again makes sense, if the failing side said so."""
        try:
            return float(self.facts["retry_after_s"])
        except (KeyError, ValueError):
            return None


class InvalidRequest(GridError):
    """The request itself is wrong and will stay wrong."""

    status_name = "INVALID_ARGUMENT"


class Unauthenticated(GridError):
    """Nobody knows who is calling: no session, or its credential is not acceptable."""

    status_name = "UNAUTHENTICATED"


class Refused(GridError):
    """We know who is calling, and it may not do this."""

    status_name = "PERMISSION_DENIED"


class NotFound(GridError):
    """The thing named does not exist (or the caller may not know that it does)."""

    status_name = "NOT_FOUND"


class AlreadyExists(GridError):
    """The thing to be made is already there."""

    status_name = "ALREADY_EXISTS"


class Conflict(GridError):
    """The thing is in a state in which this cannot be done."""

    status_name = "FAILED_PRECONDITION"


class Exhausted(GridError):
    """A limit is reached; fact `retry_after_s` says when to try again."""

    status_name = "RESOURCE_EXHAUSTED"


class Unavailable(GridError):
    """A service cannot be reached or does not take work now; the same call may succeed later."""

    status_name = "UNAVAILABLE"


class DeadlineExceeded(GridError):
    """No answer in time; the call may or may not have had its effect."""

    status_name = "DEADLINE_EXCEEDED"


class DataCorrupted(GridError):
    """Stored or received data is damaged."""

    status_name = "DATA_LOSS"


class Defect(GridError):
    """A mistake of ours; fact `incident` finds the traceback in the server's log."""

    status_name = "INTERNAL"


_CLASSES: tuple[type[GridError], ...] = (
    InvalidRequest, Unauthenticated, Refused, NotFound, AlreadyExists, Conflict, Exhausted, Unavailable,
    DeadlineExceeded, DataCorrupted, Defect,
)  # fmt: skip
CLASS_OF_STATUS: Mapping[str, type[GridError]] = MappingProxyType({c.status_name: c for c in _CLASSES})
"""The one table between gRPC status names and classes; it is one to one."""

# Statuses that only grpc itself makes, and what they mean for us.
_FOREIGN_STATUS: Mapping[str, type[GridError]] = MappingProxyType(
    {
        "CANCELLED": Unavailable,  # the peer or a proxy gave the call up
        "ABORTED": Conflict,
        "OUT_OF_RANGE": InvalidRequest,
        "UNIMPLEMENTED": InvalidRequest,  # the peer has no such service
        "UNKNOWN": Defect,
    }
)

_REFUSED_REASONS = frozenset(
    {
        Reason.LIMITED_PROXY, Reason.NOT_MAPPED, Reason.BANNED, Reason.BAN_LIST_UNREADABLE, Reason.MAP_FILE_INVALID,
        Reason.MAP_DIRECTORY_INVALID, Reason.ACCOUNT_UNKNOWN, Reason.VO_DISSOLVED, Reason.VO_NOT_ACCEPTED,
        Reason.VO_LIST_UNREADABLE,
    }
)  # fmt: skip
_CLASS_OF_REASON: Mapping[Reason, type[GridError]] = MappingProxyType(
    dict.fromkeys(_REFUSED_REASONS, Refused)
    | {
        Reason.POOL_EXHAUSTED: Exhausted,
        Reason.DUPLICATE_SUBJECT: AlreadyExists,
        Reason.SERIAL_UNKNOWN: NotFound,
        Reason.REQUEST_MALFORMED: InvalidRequest,
        Reason.LIFETIME_INVALID: InvalidRequest,
        Reason.NAME_MALFORMED: InvalidRequest,
        Reason.AUTHORITY_INVALID: Unavailable,
        Reason.TRUST_DIRECTORY_INVALID: Unavailable,
    }
)


def port_in_use(host: str, port: int, error: OSError) -> Unavailable:
    """Of a server that cannot open its port."""
    return Unavailable("PORT_IN_USE", f"cannot listen on {host}:{port} ({os_error_text(error)}); choose another port")


def from_security(error: SecurityError, **more: object) -> GridError:
    """The same refusal as a GridError: reason, sentence and facts unchanged. Not in the table: Unauthenticated."""
    kind = _CLASS_OF_REASON.get(error.reason, Unauthenticated)
    return kind(error.reason.value, error.sentence, **{**error.facts, **{k: str(v) for k, v in more.items()}})


class Status(NamedTuple):
    """What a server hands to grpc to end a call."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_details(error: GridError) -> bytes:
    """google.rpc.Status with ErrorInfo, serialised. Facts that do not fit into 4 KiB are left out, last first."""
    import grpc
    from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

    code = grpc.StatusCode[type(error).status_name]
    facts = dict(error.facts)
    while True:
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
        status = status_pb2.Status(code=code.value[0], message=error.sentence)
        status.details.add().Pack(info)
        details = status.SerializeToString()
        if len(details) <= MAX_DETAILS_BYTES or not facts:
            return details
        del facts[next(reversed(facts))]


def to_status(error: GridError) -> Status:
    """The gRPC status of an error, with its details."""
    import grpc

    code = grpc.StatusCode[type(error).status_name]
    return Status(code, error.sentence, ((DETAILS_KEY, to_details(error)),))


def from_rpc_error(error: grpc.RpcError, peer: str) -> GridError:
    """What a call to `peer` ended with. With ErrorInfo: exactly the error raised there. Without: grpc's own,
    readable."""
    failure: Any = error
    code: Any = failure.code()
    status_name = code.name if code is not None else "UNKNOWN"
    typed = from_details(_trailing(failure) or b"", status_name)
    if typed is not None:
        return typed
    return _from_grpc(status_name, str(failure.details() or ""), peer)


def _trailing(failure: Any) -> bytes | None:
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return value if isinstance(value, bytes) else None
    return None


def from_details(details: bytes, status_name: str = "") -> GridError | None:
    """The error packed by `to_details`; None if there is none, it is not ours, or it does not parse. `status_name`:
    what the call ended with, where something besides the details says so."""
    if not details:
        return None
    from google.protobuf.message import DecodeError
    from google.rpc import code_pb2, error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(details)
        if not any(part.Unpack(info) for part in status.details):
            return None
        kind = CLASS_OF_STATUS.get(status_name or code_pb2.Code.Name(status.code))
    except (DecodeError, ValueError):
        return None
    if kind is None or info.domain != DOMAIN or not _REASON.match(info.reason) or len(info.reason) > MAX_REASON_LENGTH:
        return None
    return kind(info.reason, status.message, **dict(info.metadata))


def from_verdict(details: bytes) -> GridError | None:
    """What one part of a call with many was refused with; None if `details` are empty. What cannot be read is a
    Defect, never a success."""
    if not details:
        return None
    unreadable = Defect("VERDICT_UNREADABLE", "the service refused this and its reason cannot be read; ask its log")
    return from_details(details) or unreadable


def _from_grpc(status_name: str, message: str, peer: str) -> GridError:
    """A status made by grpc itself, or by a server that is not ours."""
    kind = CLASS_OF_STATUS.get(status_name) or _FOREIGN_STATUS.get(status_name, Defect)
    facts: dict[str, object] = {"peer": peer, "grpc_message": message}
    if status_name == "UNAVAILABLE":
        return Unavailable(
            "SERVER_UNREACHABLE", f"{peer} cannot be reached ({_brief(message)}); try again when it is up", **facts
        )
    if status_name == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(
            "DEADLINE_EXCEEDED", f"{peer} did not answer in time; the call may or may not have had its effect", **facts
        )
    if status_name == "RESOURCE_EXHAUSTED" and "larger than max" in message:
        return InvalidRequest(
            "MESSAGE_TOO_LARGE",
            f"a message to or from {peer} is over the size limit; send it in smaller parts",
            **facts,
        )
    if status_name == "UNIMPLEMENTED":
        return InvalidRequest("METHOD_UNKNOWN", f"{peer} does not offer this service ({_brief(message)})", **facts)
    if status_name == "CANCELLED":
        return Unavailable("CALL_CANCELLED", f"the call to {peer} was cancelled there; try again", **facts)
    return kind("PEER_FAILED", f"{peer} failed with {status_name} ({_brief(message)})", **facts)


def _brief(message: str) -> str:
    return _clip(message, 200) or "no reason given"


def as_record(error: GridError) -> dict[str, object]:
    """The error as plain data, for logs and `--json` output."""
    return {
        "error": type(error).__name__,
        "status": type(error).status_name,
        "reason": error.reason,
        "sentence": error.sentence,
        "facts": dict(error.facts),
    }


def as_json(error: GridError) -> str:
    """`as_record` as one line of JSON."""
    return json.dumps(as_record(error), ensure_ascii=False)


def _rebuild(kind: type[GridError], reason: str, sentence: str, facts: dict[str, str]) -> GridError:
    return kind(reason, sentence, **facts)


def _clip(text: str, limit: int) -> str:
    """One printable line of at most `limit` UTF-8 bytes."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    if len(text) * 4 <= limit:
        return text
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode("utf-8")
    return raw[: limit - 3].decode("utf-8", "ignore") + "..."
