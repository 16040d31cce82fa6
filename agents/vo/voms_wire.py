"""The two protocols of VOMS servers, as bytes: `GET /generate-ac` of version 2 and the XML request from before.

Source: what voms-clients 2.1 and 3.3 send and read. The C client writes lone line feeds, first a worthless `0`, and
takes only an answer that begins with `HTTP/1.1 200`; after anything else it connects again and speaks the old protocol,
whose answer has a sentence that it shows. Nothing here is parsed by an XML library: what we read is a handful of flat
elements, and entities and nesting are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote
from xml.sax.saxutils import escape, unescape

from agents.vo.issuing import EVERYTHING, Wanted
from fabric.errors import GridError, InvalidRequest, Unauthenticated

MAX_REQUEST_BYTES = 16 * 1024
"""64 groups of 100 characters and a head."""
PATH = "/generate-ac"

_ELEMENT = re.compile(
    r"<(command|order|targets|lifetime|base64|version)>([^<&]*(?:&(?:amp|lt|gt|quot|apos);[^<&]*)*)</\1>"
)
_PROLOGUE = re.compile(r"\s*(?:<\?xml[^<>]{0,100}\?>)?\s*<voms>(.*)</voms>\s*\Z", re.DOTALL)

ERR_NOT_MEMBER, ERR_WITH_DB, ERR_SUSPENDED, ERR_NO_COMMAND, ERR_UNEXPECTED = 1001, 1003, 1004, 1005, 1006
WARN_SHORT_VALIDITY = 2


@dataclass(frozen=True)
class Request:
    """What a client wants. `legacy`: it speaks the old protocol. `listing`: names only, no attribute certificate."""

    wanted: Wanted
    legacy: bool
    listing: bool = False


def is_complete(data: bytes) -> bool:
    """Whether a whole request has arrived. Raises InvalidRequest VOMS_REQUEST_INVALID for what will never be one."""
    data = _without_zero(data)
    if len(data) > MAX_REQUEST_BYTES:
        raise _invalid(f"it is longer than {MAX_REQUEST_BYTES} bytes")
    if not data:
        return False
    if data[:1] == b"<" or data[:1].isspace():
        return b"</voms>" in data
    if not b"GET /generate-ac?".startswith(data[:17]) and not re.match(rb"[A-Z]{1,10}( |\Z)", data):
        raise _invalid("it is neither HTTP nor a request of an old VOMS client")
    return b"\n\n" in data or b"\r\n\r\n" in data


def parse(data: bytes) -> Request:
    """The request. Raises InvalidRequest VOMS_REQUEST_INVALID, also with `legacy` unknown: answer it as HTTP."""
    data = _without_zero(data)
    if len(data) > MAX_REQUEST_BYTES:
        raise _invalid(f"it is longer than {MAX_REQUEST_BYTES} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise _invalid("it is not ASCII") from None
    return _parse_legacy(text) if text.lstrip().startswith("<") else _parse_http(text)


def speaks_legacy(data: bytes) -> bool:
    """Which answer a client can read."""
    return _without_zero(data).lstrip().startswith(b"<")


def _without_zero(data: bytes) -> bytes:
    """GSI clients send a `0` ("no delegation") before their first message."""
    return data[1:] if data[:1] == b"0" else data


def _parse_http(text: str) -> Request:
    line = text.split("\n", 1)[0].rstrip("\r")
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "GET" or not parts[2].startswith("HTTP/1."):
        raise _invalid("this door answers GET only")
    path, _, query = parts[1].partition("?")
    if path != PATH:
        raise _invalid(f"this door answers {PATH} only, not {path[:100]!r}")
    fqans: list[str] = []
    order: list[str] = []
    targets: list[str] = []
    lifetime = 0
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise _invalid(f"{pair[:80]!r} is no parameter")
        value = unquote(value.replace("+", " "))
        if name == "fqans":
            fqans += _listed(value)
        elif name == "order":
            order += [_from_command(item) for item in _listed(value)]
        elif name == "targets":
            targets += _listed(value)
        elif name == "lifetime":
            lifetime = _seconds(value)
    return Request(Wanted(tuple(fqans), tuple(order), lifetime, tuple(targets)), legacy=False)


def _parse_legacy(text: str) -> Request:
    body = _PROLOGUE.match(text)
    if body is None:
        raise _invalid("it is not an element <voms>")
    rest = _ELEMENT.sub("", body[1])
    if rest.replace("<lifetime/>", "").strip():
        raise _invalid("it has something else than flat elements")
    fqans: list[str] = []
    order: list[str] = []
    targets: list[str] = []
    lifetime, listing, commands = 0, False, 0
    for name, raw in _ELEMENT.findall(body[1]):
        value = unescape(raw, {"&quot;": '"', "&apos;": "'"}).strip()
        if name == "command":
            commands += 1
            listing = listing or value == "N"
            fqans += _commanded(value)
        elif name == "order":
            order += [_from_command(item) for item in _listed(value)]
        elif name == "targets":
            targets += _listed(value)
        elif name == "lifetime":
            lifetime = _seconds(value) if value else 0
    if not commands:
        raise _invalid("it has no command")
    return Request(Wanted(tuple(fqans), tuple(order), lifetime, tuple(targets)), legacy=True, listing=listing)


def _commanded(command: str) -> list[str]:
    """`A` and `N` everything, `G/group`, `B/group:role`, `Rrole`, or an FQAN."""
    if command in ("A", "N", "all"):
        return [EVERYTHING]
    if command.startswith("/"):
        return [_from_command(command)]
    letter, rest = command[:1], command[1:]
    if letter in ("G", "B") and rest.startswith("/"):
        return [_from_command(rest)]
    if letter == "R" and rest:
        return [f"/Role={rest}"]
    raise _invalid(f"the command {command[:80]!r} is not known")


def _from_command(text: str) -> str:
    """`/group:role` as an FQAN."""
    group, colon, role = text.partition(":")
    return f"{group}/Role={role}" if colon else group


def _listed(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def _seconds(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", value):
        raise _invalid(f"the lifetime {value[:40]!r} is no number of seconds")
    return max(int(value), 0)


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest("VOMS_REQUEST_INVALID", f"this request for VOMS attributes cannot be understood: {what}")


# Answers


def success(request: Request, encoded: bytes, fqans: Sequence[str], warnings: Iterable[str]) -> bytes:
    """The attribute certificate (or, for a listing, the names) in the client's protocol."""
    listing = "".join(f"{fqan}\n" for fqan in fqans).encode() if request.listing else b""
    part = f"<bitstr>{_base64(listing)}</bitstr>" if request.listing else f"<ac>{_base64(encoded)}</ac>"
    if request.legacy:
        items = "".join(_item(WARN_SHORT_VALIDITY, text) for text in warnings)
        return _legacy(f"{f'<error>{items}</error>' if items else ''}{part}")
    noted = "".join(f"<warning>{escape(text)}</warning>" for text in warnings)
    return _http(200, f"<voms>{part}{noted}</voms>")


_CODES = {
    "NOT_A_MEMBER": ("NoSuchUser", ERR_NOT_MEMBER),
    "MEMBER_REQUESTED": ("NoSuchUser", ERR_NOT_MEMBER),
    "MEMBER_SUSPENDED": ("SuspendedUser", ERR_SUSPENDED),
    "MEMBER_EXPIRED": ("SuspendedUser", ERR_SUSPENDED),
    "AUP_UNSIGNED": ("SuspendedUser", ERR_SUSPENDED),
    "BANNED": ("SuspendedUser", ERR_SUSPENDED),
    "FQAN_REFUSED": ("BadRequest", ERR_NOT_MEMBER),
    "VO_UNKNOWN": ("BadRequest", ERR_NOT_MEMBER),
}


def refusal(error: GridError, *, legacy: bool) -> bytes:
    """The sentence, in the client's protocol, with the nearest of VOMS's own codes."""
    code, number = _CODES.get(error.reason, ("", 0))
    status = 403
    if isinstance(error, InvalidRequest):
        status, code, number = 400, code or "BadRequest", number or ERR_NO_COMMAND
    elif code == "BadRequest":
        status = 400
    elif not code:
        code, number = "InternalError", ERR_UNEXPECTED
        status = 403 if isinstance(error, Unauthenticated) or type(error).__name__ == "Refused" else 500
    if legacy:
        # The client reads errors only beside an attribute certificate; the server of version 2 sends "A".
        return _legacy(f"<error>{_item(number, error.sentence)}</error><ac>{_base64(b'A')}</ac>")
    return _http(status, f"<voms><error><code>{code}</code><message>{escape(error.sentence)}</message></error></voms>")


def _item(number: int, message: str) -> str:
    return f"<item><number>{number}</number><message>{escape(message)}</message></item>"


def _legacy(body: str) -> bytes:
    return f'<?xml version="1.0" encoding="US-ASCII"?><vomsans><version>3</version>{body}</vomsans>'.encode(
        "ascii", "xmlcharrefreplace"
    )


_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 500: "Internal Server Error"}


def _http(status: int, xml: str) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?>{xml}'.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/xml; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def _base64(data: bytes) -> str:
    """In lines: by the line feed the C client tells base64 from an alphabet of its own."""
    return base64.encodebytes(data).decode("ascii")


# The client's side, for `grid proxy init` against foreign servers


@dataclass(frozen=True)
class Answer:
    """What a server said: an attribute certificate, or why not."""

    encoded: bytes
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def parse_answer(data: bytes) -> Answer:
    """An answer to GET /generate-ac. Raises InvalidRequest VOMS_ANSWER_INVALID."""
    text = data.decode("utf-8", "replace")
    found = re.search(r"<ac>([A-Za-z0-9+/=\s]*)</ac>", text)
    try:
        encoded = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "VOMS_ANSWER_INVALID", "the VOMS server's answer is not base64; ask its operator"
        ) from None
    errors = tuple(unescape(item) for item in re.findall(r"<message>([^<]*)</message>", text))
    warnings = tuple(unescape(item) for item in re.findall(r"<warning>([^<]*)</warning>", text))
    if not encoded and not errors:
        raise InvalidRequest(
            "VOMS_ANSWER_INVALID", "the VOMS server's answer has no attribute certificate and no error"
        )
    return Answer(encoded, errors, warnings)
