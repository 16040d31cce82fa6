"""What WebDAV and HTTP say of files: paths, ranges, digests, statuses, property lists. Text and values, no socket."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote, unquote_to_bytes, urlsplit
from xml.sax.saxutils import escape

from agents.storage.http_stream import Headers, malformed
from agents.storage.model import Checksums, Entry, StoredFile, byte_range
from agents.storage.namespace import Path, check_path
from agents.storage.surl import is_file_id
from fabric.errors import CLASS_OF_STATUS, Defect, GridError, InvalidRequest, NotFound, from_details, to_details

MAX_TARGET = 8 * 1024
"""Characters of a request target."""
ERROR_HEADER = "Grid-Error"
"""google.rpc.Status with ErrorInfo, base64: the refusal for programs of the grid; the body is its sentence."""
SIZE_HEADER = "x-expected-entity-length"
"""Bytes of a chunked body, as macOS and others announce them: space is reserved before the first one."""

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    207: "Multi-Status", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 412: "Precondition Failed",
    415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
    504: "Gateway Timeout", 507: "Insufficient Storage",
}  # fmt: skip
_STATUS_OF_CLASS = {
    "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 403, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409, "RESOURCE_EXHAUSTED": 503, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 408,
    "DATA_LOSS": 500, "INTERNAL": 500,
}  # fmt: skip
_STATUS_OF_REASON = {
    "CHECKSUM_MISMATCH": 400, "DISK_FULL": 507, "QUOTA_EXCEEDED": 507, "RANGE_INVALID": 416, "LENGTH_REQUIRED": 411,
    "HTTP_HEAD_TOO_LARGE": 431, "METHOD_UNKNOWN": 405, "EXPECTATION_UNKNOWN": 417, "PRECONDITION_FAILED": 412,
    "DEPTH_INFINITE": 403, "BODY_NOT_UNDERSTOOD": 415,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body aside."""

    method: str
    target: str
    headers: Headers
    keep_alive: bool

    def get(self, name: str) -> str:
        """A header by its lower-case name; empty if it is not there."""
        return self.headers.get(name, "")


def parse_request(line: str, headers: Headers) -> Request:
    """Raises InvalidRequest(HTTP_MALFORMED)."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0") or not re.fullmatch("[A-Z]{1,20}", parts[0]):
        raise malformed(f"the request line {line[:80]!r}")
    target = parts[1]
    if target.startswith(("https://", "http://", "davs://")):
        target = target.partition("://")[2].partition("/")[2].join(("/", ""))
    if len(target) > MAX_TARGET or not (target.startswith("/") or (target == "*" and parts[0] == "OPTIONS")):
        raise malformed(f"the request target {target[:80]!r}")
    connection = headers.get("connection", "").lower()
    return Request(parts[0], target, headers, parts[2] == "HTTP/1.1" and "close" not in connection)


def body_length(headers: Headers) -> int | None:
    """Bytes of the body; None if it is chunked. Raises InvalidRequest(HTTP_MALFORMED) where it is not clear which."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise malformed("a body is either chunked or has a Content-Length")
        return None
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise malformed(f"the Content-Length {length[:40]!r}")
    return int(length or 0)


def announced_size(headers: Headers) -> int | None:
    """Bytes of a chunked body, if its sender says so."""
    length = headers.get(SIZE_HEADER, "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL's path names: a file by its id, as in its SURL, or a name below the directory of a VO."""

    vo: str
    path: Path

    @property
    def file_id(self) -> str | None:
        """The id, if the path is that of a SURL."""
        return self.path[0] if len(self.path) == 1 and is_file_id(self.path[0]) else None


def parse_target(target: str) -> Target:
    """Percent signs resolved once, after the path is cut at its slashes; empty names are left out, as the field's
    clients write `//`. Raises InvalidRequest(NAME_INVALID)."""
    raw = [part for part in target.partition("?")[0].partition("#")[0].split("/") if part]
    try:
        parts = tuple(unquote_to_bytes(part).decode("utf-8") for part in raw)
    except UnicodeDecodeError:
        raise InvalidRequest("NAME_INVALID", f"the path {target[:80]!r} is not UTF-8") from None
    check_path(parts)
    return Target(parts[0] if parts else "", parts[1:])


def parse_destination(value: str) -> Target:
    """Of the Destination header, which is a whole URL or a path. Raises InvalidRequest."""
    if not value:
        raise malformed("MOVE needs a Destination")
    try:
        return parse_target(urlsplit(value).path if "://" in value else value)
    except ValueError:
        raise malformed(f"the Destination {value[:80]!r}") from None


def href(target: Target, *, directory: bool) -> str:
    """The URL's path."""
    return "/" + "/".join(quote(part) for part in (target.vo, *target.path) if part) + ("/" if directory else "")


def parse_range(value: str, size_bytes: int) -> tuple[int, int] | None:
    """(offset, bytes) of a Range header with one range; None where it asks for several or is none of ours, and the
    whole file is the answer (RFC 9110, 14.2). Raises InvalidRequest(RANGE_INVALID)."""
    match = re.fullmatch(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", value.replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start = max(size_bytes - int(suffix), 0)
        return byte_range(size_bytes, start if int(suffix) else size_bytes + 1, 0)
    if last and int(last) < int(first):
        return None
    if int(first) >= size_bytes:
        raise InvalidRequest("RANGE_INVALID", f"byte {first} does not lie in a file of {size_bytes} bytes")
    return byte_range(size_bytes, int(first), int(last) - int(first) + 1 if last else 0)


def digest_text(wanted: str, checksums: Checksums) -> str:
    """The Digest header for a Want-Digest (RFC 3230): those of adler32 and sha-256 that are asked for."""
    asked = [re.split(r"[;\s]", part.strip())[0].lower() for part in wanted.split(",")]
    sha256 = base64.b64encode(bytes.fromhex(checksums.sha256)).decode()
    known = {"adler32": checksums.adler32, "sha-256": sha256}
    return ",".join(f"{name}={known[name]}" for name in dict.fromkeys(asked) if name in known)


BOTH_DIGESTS = "adler32,sha-256"


@dataclass(frozen=True, slots=True)
class Claimed:
    """What the sender says of a body; empty where it says nothing."""

    checksums: Checksums
    md5: bytes = b""


def parse_digests(headers: Mapping[str, str]) -> Claimed:
    """Of Digest and Content-MD5. Unknown algorithms are passed over. Raises InvalidRequest(CHECKSUM_INVALID)."""
    adler32 = sha256 = ""
    md5 = b""
    for part in filter(None, re.split(r"\s*,\s*", headers.get("digest", ""))):
        name, _, value = part.partition("=")
        if name.lower() == "adler32":
            if not re.fullmatch("[0-9A-Fa-f]{1,8}", value):
                raise _no_digest(part)
            adler32 = value.lower().zfill(8)
        elif name.lower() == "sha-256":
            sha256 = _decoded(value, 32, part).hex()
        elif name.lower() == "md5":
            md5 = _decoded(value, 16, part)
    if "content-md5" in headers:
        md5 = _decoded(headers["content-md5"], 16, "Content-MD5")
    return Claimed(Checksums(adler32, sha256), md5)


def _decoded(value: str, size: int, what: str) -> bytes:
    try:
        found = base64.b64decode(value, validate=True)
    except binascii.Error:
        found = b""
    if len(found) != size:
        raise _no_digest(what)
    return found


def _no_digest(what: str) -> InvalidRequest:
    return InvalidRequest(
        "CHECKSUM_INVALID", f"{what[:120]!r} is no digest: adler32 has 8 hexadecimal digits, md5 and sha-256 are base64"
    )


# -- answers -------------------------------------------------------------------------------------------------------


def response_head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an answer."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def status_of(error: GridError) -> int:
    """The HTTP status of a refusal."""
    return _STATUS_OF_REASON.get(error.reason) or _STATUS_OF_CLASS[type(error).status_name]


def refusal(error: GridError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        ERROR_HEADER: base64.b64encode(to_details(error)).decode(),
    }
    if error.retry_after_s is not None:
        headers["Retry-After"] = f"{max(1, round(error.retry_after_s))}"
    return status_of(error), headers, error.sentence.encode() + b"\n"


def error_of(status: int, headers: Headers, where: str) -> GridError:
    """What an answer of 400 or more says: exactly the error raised there, or the status of a server of others."""
    try:
        found = from_details(base64.b64decode(headers.get(ERROR_HEADER.lower(), ""), validate=True))
    except binascii.Error:
        found = None
    if found is not None:
        return found
    names = {403: "PERMISSION_DENIED", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 503: "UNAVAILABLE"}
    kind = CLASS_OF_STATUS.get(names.get(status, ""), InvalidRequest if status < 500 else Defect)
    return kind("PEER_FAILED", f"{where} answered with status {status}; its operators can say why")


def file_headers(file: StoredFile, wanted_digest: str) -> dict[str, str]:
    """Of an answer about a file."""
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{file.file_id}"',
        "Last-Modified": formatdate(file.created_at_us / 1e6, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if wanted_digest and (text := digest_text(wanted_digest, file.checksums)):
        headers["Digest"] = text
    return headers


MULTISTATUS_BEGIN = '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">\n'
MULTISTATUS_END = "</D:multistatus>\n"


def properties(place: str, name: str, created_at_us: int, file: StoredFile | None) -> str:
    """One `response` of a multistatus (RFC 4918, 14.24). `place` is the URL's path."""
    lines = [f"<D:displayname>{escape(name)}</D:displayname>"]
    if file is None:
        lines.append("<D:resourcetype><D:collection/></D:resourcetype>")
        lines.append("<D:getcontentlength>0</D:getcontentlength>")
    else:
        created_at_us = file.created_at_us
        lines.append("<D:resourcetype/>")
        lines.append(f"<D:getcontentlength>{file.size_bytes}</D:getcontentlength>")
        lines.append(f'<D:getetag>"{file.file_id}"</D:getetag>')
    lines.append(f"<D:getlastmodified>{formatdate(created_at_us / 1e6, usegmt=True)}</D:getlastmodified>")
    return (
        f"<D:response><D:href>{escape(place)}</D:href><D:propstat><D:prop>{''.join(lines)}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>\n"
    )


def listing(directory: Target, entries: Iterable[Entry]) -> str:
    """The `response`s of a directory's entries."""
    return "".join(
        properties(
            href(Target(directory.vo, (*directory.path, entry.name)), directory=entry.file is None),
            entry.name,
            entry.created_at_us,
            entry.file,
        )
        for entry in entries
    )


def not_a_file(target: Target) -> NotFound:
    """For a directory where a file is needed."""
    return NotFound(
        "IS_DIRECTORY", f"{href(target, directory=True)} is a directory and has no content; list it with PROPFIND"
    )
