"""MYPROXYv2 as bytes: requests, responses, certificate chains, and the answer to a challenge. No decision, no socket.

Reference: the document PROTOCOL of the MyProxy sources, and what its clients send. There is no framing: a text ends
with NUL (some clients leave that out), everything binary says its own length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography import x509

from fabric.errors import InvalidRequest
from security import certificates

VERSION = "MYPROXYv2"
MAX_REQUEST_BYTES = 16 * 1024
"""A request is below 1 kB."""
MAX_CSR_BYTES = 16 * 1024
MAX_CHAIN_BYTES = 64 * 1024
MAX_CHAIN_CERTIFICATES = 16
MAX_SIGNATURE_BYTES = 2048
MAX_PASSPHRASE_BYTES = 1024
MAX_NAME = 255
MAX_PATTERN = 1024
MAX_DESCRIPTION = 1024
End = Callable[[bytes], int | None]
"""Where a message ends in what was received so far; None while more is to come."""
CHALLENGE_METHOD = "X509_certificate_SHA256"
"""The older method signs SHA-1 and is not offered."""
CHALLENGE_METHOD_ID = 4

_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9._:@+-]{1,80}\Z")


class Command(IntEnum):
    """What a client wants."""

    GET = 0
    """Delegate a proxy to me."""
    PUT = 1
    """Take a proxy from me."""
    INFO = 2
    """List what I stored."""
    DESTROY = 3
    """Erase what I stored."""
    CHANGE_CRED_PASSPHRASE = 4
    """Another passphrase from now on."""
    STORE = 5
    """Take a private key from me."""
    RETRIEVE = 6
    """Send me a private key."""
    GET_TRUSTROOTS = 7
    """Send me the authorities' certificates."""


@dataclass(frozen=True)
class Request:
    """One request as it was sent. Passphrases are in no repr; nothing here is verified."""

    command: Command
    username: str
    lifetime_s: int = 0
    """0: the server's own."""
    name: str = ""
    """Of the credential; empty is the user's default one."""
    description: str = ""
    retrievers: str = ""
    trusted_retrievers: str = ""
    renewers: str = ""
    passphrase: bytes = b""
    new_passphrase: bytes = b""

    def __repr__(self) -> str:
        return f"Request({self.command.name}, {self.username!r}, {self.name!r})"


_TEXTS: Mapping[str, tuple[str, int]] = {
    "USERNAME": ("username", MAX_NAME),
    "CRED_NAME": ("name", 80),
    "CRED_DESC": ("description", MAX_DESCRIPTION),
    "RETRIEVER": ("retrievers", MAX_PATTERN),
    "RETRIEVER_TRUSTED": ("trusted_retrievers", MAX_PATTERN),
    "RENEWER": ("renewers", MAX_PATTERN),
}
_SECRETS = ("PASSPHRASE", "NEW_PHRASE")
_SINGLE = {"VERSION", "COMMAND", "LIFETIME", *_TEXTS, *_SECRETS}


def request_end(data: bytes) -> int | None:
    """Where the text of a request ends in what was received so far; None while more is to come.

    Raises InvalidRequest when it never will.
    """
    end = data.find(b"\0")
    if end < 0 and len(data) <= MAX_REQUEST_BYTES:
        # clients without the NUL send everything at once
        return len(data) if data.endswith(b"\n") and b"\nLIFETIME=" in data else None
    if end < 0 or end > MAX_REQUEST_BYTES:
        raise _malformed(f"it is longer than {MAX_REQUEST_BYTES} bytes")
    return end


def parse_request(text: bytes) -> Request:
    """Read a request without its NUL. Raises InvalidRequest; the sentence never quotes a passphrase."""
    fields: dict[str, bytes] = {}
    for line in text.split(b"\n"):
        key, equals, value = line.partition(b"=")
        name = key.decode("latin-1")
        if not equals or name not in _SINGLE:
            continue  # PROTOCOL A.8: lines that are not understood are ignored
        if name in fields:
            raise _malformed(f"{name} is there twice")
        fields[name] = value
    for name in ("VERSION", "COMMAND", "USERNAME"):
        if name not in fields:
            raise _malformed(f"{name} is missing")
    if fields["VERSION"] != VERSION.encode():
        raise InvalidRequest(
            "VERSION_UNKNOWN",
            f"this server speaks {VERSION}, not {_shown(fields['VERSION'])}; use a client of this protocol",
        )
    command = _number(fields, "COMMAND")
    if command not in set(Command):
        raise _malformed(f"COMMAND {command} is not known")
    values: dict[str, str] = {}
    for name, (attribute, limit) in _TEXTS.items():
        values[attribute] = _text(name, fields.get(name, b""), limit)
    if not values["username"] and command != Command.GET_TRUSTROOTS:
        raise _malformed("USERNAME is empty; give one with -l")
    if values["name"] and not _CREDENTIAL_NAME.match(values["name"]):
        raise _malformed("the name of a credential (-k) has 1 to 80 letters, digits or any of . _ : @ + -")
    secrets: dict[str, bytes] = {}
    for name in _SECRETS:
        secrets[name] = fields.get(name, b"")
        if len(secrets[name]) > MAX_PASSPHRASE_BYTES:
            raise _malformed(f"a passphrase has at most {MAX_PASSPHRASE_BYTES} bytes")
    return Request(
        Command(command),
        values["username"],
        lifetime_s=_number(fields, "LIFETIME") if "LIFETIME" in fields else 0,
        name=values["name"],
        description=values["description"],
        retrievers=values["retrievers"],
        trusted_retrievers=values["trusted_retrievers"],
        renewers=values["renewers"],
        passphrase=secrets["PASSPHRASE"],
        new_passphrase=secrets["NEW_PHRASE"],
    )


def _number(fields: Mapping[str, bytes], name: str) -> int:
    value = fields[name]
    if not re.fullmatch(rb"[0-9]{1,10}", value):
        raise _malformed(f"{name} is no number: {_shown(value)}")
    return int(value)


def _text(name: str, value: bytes, limit: int) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise _malformed(f"{name} is not UTF-8") from None
    if len(value) > limit:
        raise _malformed(f"{name} is longer than {limit} bytes")
    if not text.isprintable():
        raise _malformed(f"{name} has characters that cannot be printed")
    return text


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))


def _malformed(problem: str) -> InvalidRequest:
    return InvalidRequest("MYPROXY_REQUEST_INVALID", f"this request to the credential store cannot be read: {problem}")


# -- responses ---------------------------------------------------------------------------------------------------------


def _response(kind: int, lines: Iterable[str] = ()) -> bytes:
    return "\n".join((f"VERSION={VERSION}", f"RESPONSE={kind}", *lines, "")).encode() + b"\0"


def ok(lines: Iterable[str] = ()) -> bytes:
    """Yes."""
    return _response(0, lines)


_KEYWORDS = re.compile(r"(VERSION|RESPONSE|ERROR|AUTHORIZATION_DATA)=")


def error(sentence: str) -> bytes:
    """No. The clients look for keywords anywhere in the text, so none may be inside the sentence."""
    line = " ".join(sentence.split())
    return _response(1, [f"ERROR={_KEYWORDS.sub(lambda found: f'{found[1]} ', line)}"])


def challenge(nonce: str) -> bytes:
    """Prove that you hold a credential of the owner."""
    return _response(2, [f"AUTHORIZATION_DATA={CHALLENGE_METHOD}:{nonce}"])


@dataclass(frozen=True)
class Listed:
    """One credential in the answer to INFO. Times in seconds since 1970."""

    name: str
    description: str
    start: int
    end: int
    owner: str
    retrievers: str = ""
    trusted_retrievers: str = ""
    renewers: str = ""


def listing(found: Sequence[Listed]) -> bytes:
    """The answer to INFO. The one without a name comes first, or else the first has its name in a line of its own."""
    ordered = sorted(found, key=lambda one: one.name)
    lines: list[str] = []
    for number, one in enumerate(ordered):
        prefix = "CRED_" if number == 0 else f"CRED_{one.name}_"
        if number == 0 and one.name:
            lines.append(f"CRED_NAME={one.name}")
        if one.description:
            lines.append(f"{prefix}DESC={_KEYWORDS.sub(lambda match: f'{match[1]} ', one.description)}")
        lines += [f"{prefix}START_TIME={one.start}", f"{prefix}END_TIME={one.end}", f"{prefix}OWNER={one.owner}"]
        for key, value in (
            ("RETRIEVER", one.retrievers),
            ("RETRIEVER_TRUSTED", one.trusted_retrievers),
            ("RENEWER", one.renewers),
        ):
            if value:
                lines.append(f"{prefix}{key}={value}")
    if len(ordered) > 1:
        lines.append("ADDL_CREDS=" + ",".join(one.name for one in ordered[1:]))
    return ok(lines)


# -- binary parts ------------------------------------------------------------------------------------------------------


def der_end(data: bytes, start: int = 0) -> int | None:
    """Where the DER value that begins at `start` ends; None while its length is not there. Raises ValueError."""
    if len(data) < start + 2:
        return None
    if data[start] != 0x30:
        raise ValueError("not a DER sequence")
    first = data[start + 1]
    if first < 0x80:
        return start + 2 + first
    octets = first & 0x7F
    if not 1 <= octets <= 3:
        raise ValueError("a length that is not accepted")
    if len(data) < start + 2 + octets:
        return None
    return start + 2 + octets + int.from_bytes(data[start + 2 : start + 2 + octets], "big")


def csr_end(data: bytes) -> int | None:
    """Where a certificate request (DER) ends; None while more is to come. Raises InvalidRequest."""
    try:
        end = der_end(data)
    except ValueError as problem:
        raise InvalidRequest("REQUEST_MALFORMED", f"this is no certificate request ({problem})") from None
    if len(data) > MAX_CSR_BYTES or (end or 0) > MAX_CSR_BYTES:
        raise InvalidRequest("REQUEST_MALFORMED", f"the certificate request is longer than {MAX_CSR_BYTES} bytes")
    return end if end is not None and len(data) >= end else None


def chain_end(data: bytes, start: int = 0) -> int | None:
    """Where a chain (count, certificates) ends; None while more is to come. Raises InvalidRequest."""
    if len(data) > MAX_CHAIN_BYTES + start:
        raise _bad_chain(f"it is longer than {MAX_CHAIN_BYTES} bytes")
    if len(data) <= start:
        return None
    count = data[start]
    if not 1 <= count <= MAX_CHAIN_CERTIFICATES:
        raise _bad_chain(f"it has {count} certificates, not 1 to {MAX_CHAIN_CERTIFICATES}")
    at: int | None = start + 1
    for _ in range(count):
        try:
            at = der_end(data, at)
        except ValueError as problem:
            raise _bad_chain(str(problem)) from None
        if at is None or at > len(data):
            return _within(at, start)
    return at


def _within(at: int | None, start: int) -> None:
    if at is not None and at - start > MAX_CHAIN_BYTES:
        raise _bad_chain(f"it is longer than {MAX_CHAIN_BYTES} bytes")


def parse_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a whole chain message, leaf first. Raises InvalidRequest CHAIN_MALFORMED."""
    found: list[x509.Certificate] = []
    at = 1
    for _ in range(data[0]):
        end = der_end(data, at)
        try:
            found.append(x509.load_der_x509_certificate(data[at:end]))
        except certificates.UNREADABLE as problem:
            raise _bad_chain(f"certificate {len(found) + 1} cannot be read ({problem})") from None
        assert end is not None
        at = end
    return tuple(found)


def encode_chain(chain: Sequence[x509.Certificate]) -> bytes:
    """A chain message."""
    return bytes([len(chain)]) + b"".join(certificates.der(certificate) for certificate in chain)


def _bad_chain(problem: str) -> InvalidRequest:
    return InvalidRequest("CHAIN_MALFORMED", f"the chain sent to the credential store cannot be read: {problem}")


@dataclass(frozen=True)
class Proof:
    """The answer to a challenge: who signs, and the signature. Nothing is verified."""

    chain: tuple[x509.Certificate, ...]
    signature: bytes


def proof_end(data: bytes) -> int | None:
    """Where the answer to a challenge ends; None while more is to come. Raises InvalidRequest."""
    if data and data[0] != CHALLENGE_METHOD_ID:
        raise InvalidRequest(
            "RENEWAL_PROOF_MISSING",
            "this credential is renewed with a proof of the owner's proxy; give that proxy with -a",
        )
    if len(data) < 8:
        return None
    length = int.from_bytes(data[4:8], "big")
    if not 1 <= length <= MAX_SIGNATURE_BYTES:
        raise InvalidRequest("BAD_SIGNATURE", "the signature of the renewal proof has an impossible length")
    return chain_end(data, 8 + length)


def parse_proof(data: bytes) -> Proof:
    """A whole answer to a challenge. Raises InvalidRequest."""
    length = int.from_bytes(data[4:8], "big")
    return Proof(parse_chain(data[8 + length :]), data[8 : 8 + length])


def encode_proof(proof: Proof) -> bytes:
    """What a client sends: method, length and signature, chain."""
    head = bytes([CHALLENGE_METHOD_ID, 0, 0, 0]) + len(proof.signature).to_bytes(4, "big")
    return head + proof.signature + encode_chain(proof.chain)


# -- the client's side -------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """A request as the C clients write it."""
    lines: list[bytes] = [
        f"VERSION={VERSION}".encode(),
        f"COMMAND={int(request.command)}".encode(),
        f"USERNAME={request.username}".encode(),
        b"PASSPHRASE=" + request.passphrase,
    ]
    if request.new_passphrase:
        lines.append(b"NEW_PHRASE=" + request.new_passphrase)
    lines.append(f"LIFETIME={request.lifetime_s}".encode())
    for name, (attribute, _) in _TEXTS.items():
        value = getattr(request, attribute)
        if name != "USERNAME" and value:
            lines.append(f"{name}={value}".encode())
    return b"\n".join(lines) + b"\n\0"


@dataclass(frozen=True)
class Response:
    """What a server answered."""

    kind: int
    """0 yes, 1 no, 2 prove it."""
    error: str = ""
    nonce: str = ""
    """Of the challenge that we can answer; empty if there is none."""
    lines: Mapping[str, str] | None = None


def parse_response(text: bytes) -> Response:
    """Read a response without its NUL. Raises InvalidRequest MYPROXY_RESPONSE_INVALID."""
    values: dict[str, str] = {}
    errors: list[str] = []
    nonce = ""
    for line in text.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if key == "ERROR":
            errors.append(value)
        elif key == "AUTHORIZATION_DATA":
            method, _, data = value.partition(":")
            nonce = data if method == CHALLENGE_METHOD else nonce
        elif equals:
            values[key] = value
    if values.get("VERSION") != VERSION or values.get("RESPONSE") not in ("0", "1", "2"):
        raise InvalidRequest(
            "MYPROXY_RESPONSE_INVALID", "the credential store answered what is not the MyProxy protocol"
        )
    return Response(int(values["RESPONSE"]), " ".join(errors), nonce, values)
