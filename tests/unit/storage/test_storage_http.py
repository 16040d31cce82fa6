"""What the HTTPS door reads and writes, without a socket."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.storage import http_wire as http
from agents.storage.http_stream import MAX_HEADERS, HttpStream, chunk, last_chunk
from agents.storage.model import PIECE_BYTES, Checksums
from agents.storage.overlap import AHEAD_PIECES
from fabric.errors import Exhausted, GridError, InvalidRequest, NotFound
from fabric.tls_door import TlsClosed

DATA = bytes(range(256)) * 16
SUMS = Checksums(f"{zlib.adler32(DATA):08x}", hashlib.sha256(DATA).hexdigest())


class Wire:
    """The bytes of the other end, in the pieces that they arrive in."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = list(pieces)

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def receive_into(self, buffer: memoryview, at_least: int, threads: Any) -> int:
        came = 0
        while came < at_least and self._pieces:
            piece = self._pieces.pop(0)
            taken = piece[: len(buffer) - came]
            buffer[came : came + len(taken)] = taken
            came += len(taken)
            if piece[len(taken) :]:
                self._pieces.insert(0, piece[len(taken) :])
        return came


def arriving(data: bytes, step: int = 1 << 20) -> HttpStream:
    return HttpStream(Wire(data[i : i + step] for i in range(0, len(data), step)))  # type: ignore[arg-type]


def refused(error: pytest.ExceptionInfo[GridError]) -> str:
    return error.value.reason


async def chunked(stream: HttpStream) -> tuple[bytes, dict[str, str]]:
    body, trailers = b"", {}
    async for piece in stream.take_chunks():
        if isinstance(piece, memoryview):
            body += piece
        else:
            trailers = dict(piece)
    return body, trailers


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_two_messages_of_one_connection_in_any_pieces(step: int) -> None:
    stream = arriving(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\n\r\n", step)
    first = await stream.head()
    assert first is not None and first[0] == "PUT /a HTTP/1.1" and first[1]["content-length"] == "5"
    assert b"".join([bytes(piece) async for piece in stream.take(5)]) == b"hello"
    assert await stream.head() == ("GET /b HTTP/1.1", {})
    assert await stream.head() is None


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 50))
async def test_chunks_come_back_with_their_trailers(parts: list[bytes], step: int) -> None:
    wire = b"".join(map(chunk, parts)) + last_chunk({"Digest": "adler32=1"}) + b"next"
    stream = arriving(wire, step)
    assert await chunked(stream) == (b"".join(parts), {"digest": "adler32=1"})


@pytest.mark.parametrize("step", [60_000, PIECE_BYTES, 3 * PIECE_BYTES + 7])
async def test_a_piece_is_overwritten_only_when_an_overlap_has_let_go_of_it(step: int) -> None:
    size = (2 * AHEAD_PIECES + 5) * PIECE_BYTES + 5
    data = bytes(range(251)) * (size // 251 + 1)
    held: list[tuple[bytes, memoryview]] = []
    taken = bytearray()
    async for piece in arriving(data, step).take(size):
        assert 0 < len(piece) <= PIECE_BYTES
        taken += piece
        held = [*held, (bytes(piece[:9]), piece)][-2 * AHEAD_PIECES :]
        assert all(first == view[:9] for first, view in held)
    assert taken == data[:size]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", "HTTP_HEAD_TOO_LARGE"),
        (b"GET /" + b"a" * 40_000, "HTTP_HEAD_TOO_LARGE"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "HTTP_MALFORMED"),
        (b"GET / HTTP/1.1\r\nx : y\r\n\r\n", "HTTP_MALFORMED"),
        (b"GET / HTTP/1.1\r\n folded: y\r\n\r\n", "HTTP_MALFORMED"),
        (b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n", "HTTP_MALFORMED"),
        (b"GET / HTTP/1.1\r\nx: a\nb: c\r\n\r\n", "HTTP_MALFORMED"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\n", "HTTP_MALFORMED"),
    ],
)
async def test_heads_that_are_refused(head: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await arriving(head).head()
    assert refused(error) == reason


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"-1\r\n", b"1" * 16 + b"\r\n", b"\r\n", b"1\r\nab\r\n0\r\n\r\n", b"5" * 2000]
)
async def test_chunks_that_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as error:
        await chunked(arriving(body))
    assert refused(error) == "HTTP_MALFORMED"


@pytest.mark.parametrize("body", [b"5\r\nab", b"5\r\nabcde\r\n", b"5", b"0\r\nDigest: x\r\n", b""])
async def test_a_body_that_breaks_off_is_never_whole(body: bytes) -> None:
    with pytest.raises(TlsClosed):
        await chunked(arriving(body))
    with pytest.raises(TlsClosed):
        _ = [piece async for piece in arriving(b"1234").take(5)]


@pytest.mark.parametrize(
    "headers",
    [
        {"transfer-encoding": "chunked", "content-length": "3"},
        {"transfer-encoding": "gzip, chunked"},
        {"content-length": "-1"},
        {"content-length": "+1"},
        {"content-length": "1, 1"},
        {"content-length": "9" * 30},
    ],
)
def test_a_body_whose_end_is_not_clear_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        http.body_length(headers)


@pytest.mark.parametrize("line", ["GET /", "GET / HTTP/2", "get / HTTP/1.1", "GET x HTTP/1.1", "GET / a HTTP/1.1", ""])
def test_request_lines_that_are_refused(line: str) -> None:
    with pytest.raises(InvalidRequest):
        http.parse_request(line, {})


def test_targets_are_cut_first_and_decoded_once() -> None:
    assert http.parse_target("//cms//d/a%20b%2525?x=1") == http.Target("cms", ("d", "a b%25"))
    assert http.parse_target("/cms/" + "a" * 32).file_id == "a" * 32
    assert http.parse_target("/cms/d/" + "a" * 32).file_id is None
    assert http.parse_destination("https://host:1/cms/%C3%A4") == http.Target("cms", ("ä",))
    assert http.href(http.Target("cms", ("ä b", "%")), directory=True) == "/cms/%C3%A4%20b/%25/"


@pytest.mark.parametrize(
    "target",
    [
        "/cms/../etc/passwd", "/cms/%2e%2e/x", "/cms/a%2Fb", "/cms/a%5Cb", "/cms/%00", "/cms/%0a", "/cms/%7f",
        "/cms/%ff", "/cms/" + "x" * 256, "/cms/" + "%C3%A4" * 128, "/cms" + "/d" * 65, "/cms/%E2%80%AE",
    ],
)  # fmt: skip
def test_paths_that_no_file_may_have(target: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        http.parse_target(target)
    assert refused(error) == "NAME_INVALID"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("bytes=0-0", (0, 1)), ("bytes=2-", (2, 8)), ("bytes=-3", (7, 3)), ("bytes=-30", (0, 10)),
        ("bytes=5-99", (5, 5)),
        ("bytes=0-1,3-4", None), ("bytes=4-2", None), ("items=1-2", None), ("bytes=a-b", None),
    ],
)  # fmt: skip
def test_ranges(value: str, found: tuple[int, int] | None) -> None:
    assert http.parse_range(value, 10) == found


@pytest.mark.parametrize("value", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_ranges_outside_of_the_file(value: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        http.parse_range(value, 10)
    assert http.status_of(error.value) == 416


def test_digests_both_ways() -> None:
    text = http.digest_text("Adler32;q=1, SHA-256, md5", SUMS)
    assert http.parse_digests({"digest": text}) == http.Claimed(SUMS)
    md5 = hashlib.md5(DATA).digest()
    assert http.parse_digests({"content-md5": base64.b64encode(md5).decode()}).md5 == md5
    assert http.parse_digests({"digest": "crc32c=xx, adler32=1"}).checksums == Checksums("00000001", "")
    assert http.parse_digests({}) == http.Claimed(Checksums("", ""))


@pytest.mark.parametrize("value", ["adler32=123456789", "adler32=", "adler32=-1", "sha-256=AAAA", "md5=!", "sha-256="])
def test_digests_that_are_none(value: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        http.parse_digests({"digest": value})
    assert refused(error) == "CHECKSUM_INVALID"


def test_a_refusal_is_the_same_at_the_other_end() -> None:
    error = Exhausted("QUOTA_EXCEEDED", "no room for ä", retry_after_s=60, vo="cms")
    status, headers, body = http.refusal(error)
    assert (status, headers["Retry-After"], body.decode()) == (507, "60", "no room for ä\n")
    again = http.error_of(status, {name.lower(): value for name, value in headers.items()}, "there")
    assert (type(again), again.reason, again.sentence, again.facts) == (
        Exhausted,
        error.reason,
        error.sentence,
        error.facts,
    )
    assert isinstance(http.error_of(404, {"grid-error": "!"}, "there"), NotFound)


def test_names_of_a_listing_cannot_break_out_of_it() -> None:
    text = http.properties("/cms/%3Cb%3E", "<b>&", 0, None)
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text
