from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import until
from unit.ldap.ldap_trees import SCHEMA, grid_tree

from fabric.errors import Unavailable
from fabric.ldap import (
    Dn,
    Entry,
    LdapClient,
    LdapError,
    LdapLimits,
    LdapServer,
    Scope,
    make_entry,
    parse_dn,
    parse_filter,
)
from fabric.ldap import protocol as p
from fabric.ldap.ber import encode_element, encode_integer, encode_sequence
from fabric.ldap.filters import Filter
from fabric.ldap.protocol import ResultCode


@asynccontextmanager
async def serving(source: Any = None, **options: Any) -> AsyncIterator[tuple[LdapServer, LdapClient]]:
    server = LdapServer(source if source is not None else grid_tree(), schema=SCHEMA, **options)
    await server.start()
    client = await LdapClient.connect("127.0.0.1", server.port, timeout_s=5)
    try:
        yield server, client
    finally:
        await client.close()
        await server.close()


async def answer(client: LdapClient, operation: p.Operation, *controls: p.Control) -> tuple[list[p.Message], p.Result]:
    """Every message of the answer to one request, and its end."""
    message_id = client.send(operation, controls)
    messages: list[p.Message] = []
    while True:
        message = await client.receive()
        assert message.message_id == message_id
        if isinstance(message.operation, p.Result):
            messages.append(message)
            return messages, message.operation
        messages.append(message)


def search(
    base: str = "o=grid", scope: Scope = Scope.SUBTREE, text: str = "(objectClass=*)", **more: Any
) -> p.SearchRequest:
    return p.SearchRequest(base, scope, parse_filter(text), **more)


async def test_search_returns_parents_before_children() -> None:
    async with serving() as (_, client):
        entries = await client.search("o=grid")
        assert len(entries) == 2 + 2 * 4
        seen = {entries[0].dn}
        for entry in entries[1:]:
            assert entry.dn.parent in seen
            seen.add(entry.dn)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (("1.1",), set[str]()),
        (("gluecename",), {"GlueCEName"}),
        (("+",), {"producer"}),
        (("PRODUCER", "GlueCEName"), {"producer", "GlueCEName"}),
        (("nothing",), set[str]()),
        (("*", "+"), {"objectClass", "GlueCEUniqueID", "GlueCEName", "GlueCEStateFreeJobSlots",
                      "GlueCEAccessControlBaseRule", "producer"}),
        ((), {"objectClass", "GlueCEUniqueID", "GlueCEName", "GlueCEStateFreeJobSlots", "GlueCEAccessControlBaseRule"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("types_only", [False, True])
async def test_attribute_selection(attributes: tuple[str, ...], expected: set[str], types_only: bool) -> None:
    async with serving() as (_, client):
        request = search(
            text="(GlueCEUniqueID=ce1.site0:2119/jobmanager-fork)", attributes=attributes, types_only=types_only
        )
        messages, _ = await answer(client, request)
        entry = messages[0].operation
        assert isinstance(entry, p.SearchResultEntry)
        assert {name for name, _ in entry.attributes} == expected
        assert all(bool(values) != types_only for _, values in entry.attributes)


async def test_operational_attributes_can_be_searched() -> None:
    async with serving() as (_, client):
        assert len(await client.search("o=grid", "(producer=gatekeeper.SITE1)")) == 3


async def test_size_limit() -> None:
    async with serving() as (_, client):
        messages, result = await answer(client, search(size_limit=4))
        assert (len(messages), result.code) == (5, ResultCode.SIZE_LIMIT_EXCEEDED)
        _, result = await answer(client, search(size_limit=10))
        assert result.code == ResultCode.SUCCESS


async def test_the_servers_own_size_limit() -> None:
    async with serving(limits=LdapLimits(size_limit=3)) as (_, client):
        messages, result = await answer(client, search(size_limit=100))
        assert (len(messages), result.code) == (4, ResultCode.SIZE_LIMIT_EXCEEDED)


class Slow:
    """A source that never finds anything and never ends."""

    naming_contexts: Sequence[Dn] = (parse_dn("o=slow"),)

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Iterator[Entry | None]:
        while True:
            yield None


async def test_time_limit_and_others_are_served_meanwhile() -> None:
    async with serving(Slow(), limits=LdapLimits(time_limit_s=0.05)) as (server, client):
        other = await LdapClient.connect("127.0.0.1", server.port)
        message_id = client.send(search("o=slow"))
        _, result = await answer(other, search("", Scope.BASE))
        assert result.code == ResultCode.SUCCESS
        message = await client.receive()
        assert message.message_id == message_id
        assert isinstance(message.operation, p.Result)
        assert message.operation.code == ResultCode.TIME_LIMIT_EXCEEDED
        await other.close()


@pytest.mark.filterwarnings("error")
async def test_abandon_ends_a_search_without_an_answer() -> None:
    async with serving(Slow()) as (_, client):
        abandoned = client.send(search("o=slow"))
        client.send(p.AbandonRequest(abandoned))
        _, result = await answer(client, search("", Scope.BASE))
        assert result.code == ResultCode.SUCCESS


async def test_too_many_operations_at_once_are_busy() -> None:
    async with serving(Slow(), limits=LdapLimits(operations_per_connection=2)) as (_, client):
        client.send(search("o=slow"))
        client.send(search("o=slow"))
        _, result = await answer(client, search("o=slow"))
        assert result.code == ResultCode.BUSY


class Later:
    """A source that answers asynchronously, as a database would."""

    naming_contexts: Sequence[Dn] = (parse_dn("o=later"),)

    async def search(
        self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None
    ) -> AsyncIterator[Entry | None]:
        for number in range(5):
            await asyncio.sleep(0)
            yield make_entry(f"cn={number},o=later", {"cn": str(number)})


async def test_asynchronous_source_and_paging() -> None:
    async with serving(Later()) as (_, client):
        assert [entry.first("cn") for entry in await client.search("o=later", page_size=2)] == list("01234")
        messages, result = await answer(client, search("o=later", size_limit=2))
        assert (len(messages), result.code) == (3, ResultCode.SIZE_LIMIT_EXCEEDED)


class Broken:
    """A source with a defect."""

    naming_contexts: Sequence[Dn] = ()

    def search(self, base: Dn, scope: Scope, filter: Filter, limit: int | None = None) -> Iterator[Entry | None]:
        raise RuntimeError("secret detail")


async def test_a_defect_is_reported_and_not_shown() -> None:
    events: list[str] = []
    async with serving(Broken(), on_event=lambda name, fields: events.append(name)) as (_, client):
        _, result = await answer(client, search("o=x"))
        assert result.code == ResultCode.OTHER
        assert "secret" not in result.message
        assert events == ["ldap.defect"]


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
async def test_pages(size: int) -> None:
    async with serving() as (_, client):
        entries = await client.search("o=grid", page_size=size)
        assert [e.dn for e in entries] == [e.dn for e in await client.search("o=grid")]


async def test_paged_cookies_are_bounded_and_checked() -> None:
    async with serving(limits=LdapLimits(paged_searches=2)) as (_, client):
        cookies: list[bytes] = []
        for _ in range(3):
            messages, _ = await answer(client, search(), p.Control(p.OID_PAGED_RESULTS, True, p.encode_paged(2, b"")))
            cookies.append(p.decode_paged(messages[-1].controls[0].value)[1])

        async def go_on(cookie: bytes, request: p.SearchRequest, size: int = 2) -> p.Result:
            control = p.Control(p.OID_PAGED_RESULTS, True, p.encode_paged(size, cookie))
            return (await answer(client, request, control))[1]

        assert (await go_on(cookies[0], search())).code == ResultCode.UNWILLING_TO_PERFORM  # dropped
        assert (
            await go_on(cookies[1], search(base="mds-vo-name=local,o=grid"))
        ).code == ResultCode.UNWILLING_TO_PERFORM
        assert (await go_on(b"forged", search())).code == ResultCode.UNWILLING_TO_PERFORM
        assert (await go_on(cookies[2], search(), 0)).code == ResultCode.SUCCESS  # the client gives it up
        assert (await go_on(cookies[2], search())).code == ResultCode.UNWILLING_TO_PERFORM


async def test_size_limit_counts_over_all_pages() -> None:
    async with serving() as (_, client):
        request, cookie, total = search(size_limit=5), b"", 0
        while True:
            control = p.Control(p.OID_PAGED_RESULTS, True, p.encode_paged(2, cookie))
            messages, result = await answer(client, request, control)
            total += len(messages) - 1
            if result.code != ResultCode.SUCCESS:
                break
            cookie = p.decode_paged(messages[-1].controls[0].value)[1]
        assert (total, result.code) == (5, ResultCode.SIZE_LIMIT_EXCEEDED)


async def test_controls() -> None:
    async with serving() as (_, client):
        _, result = await answer(client, search(), p.Control("1.2.3", critical=True))
        assert result.code == ResultCode.UNAVAILABLE_CRITICAL_EXTENSION
        _, result = await answer(client, search(), p.Control("1.2.3", critical=False, value=b"x"))
        assert result.code == ResultCode.SUCCESS
        _, result = await answer(client, search(), p.Control(p.OID_PAGED_RESULTS, True, b"junk"))
        assert result.code == ResultCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (search("o=nowhere"), ResultCode.NO_SUCH_OBJECT),
        (search("not a name"), ResultCode.INVALID_DN_SYNTAX),
        (p.SearchRequest("o=grid", 9, parse_filter("(cn=x)")), ResultCode.PROTOCOL_ERROR),
        (p.BindRequest(""), ResultCode.SUCCESS),
        (p.BindRequest("", 2), ResultCode.PROTOCOL_ERROR),
        (p.BindRequest("cn=x"), ResultCode.UNWILLING_TO_PERFORM),
        (p.BindRequest("cn=x", 3, b"secret"), ResultCode.AUTH_METHOD_NOT_SUPPORTED),
        (p.BindRequest("", 3, b"", "GSSAPI"), ResultCode.AUTH_METHOD_NOT_SUPPORTED),
        (p.CompareRequest("o=grid", "O", "GRID"), ResultCode.COMPARE_TRUE),
        (p.CompareRequest("o=grid", "o", "other"), ResultCode.COMPARE_FALSE),
        (p.CompareRequest("o=grid", "description", "x"), ResultCode.NO_SUCH_ATTRIBUTE),
        (p.CompareRequest("o=nowhere", "o", "x"), ResultCode.NO_SUCH_OBJECT),
        (p.CompareRequest("junk", "o", "x"), ResultCode.INVALID_DN_SYNTAX),
        (p.CompareRequest("o=grid", "b a d", "x"), ResultCode.UNDEFINED_ATTRIBUTE_TYPE),
        (p.UpdateRequest(p.TAG_ADD_REQUEST, "o=x"), ResultCode.UNWILLING_TO_PERFORM),
        (p.UpdateRequest(p.TAG_DELETE_REQUEST, "o=x"), ResultCode.UNWILLING_TO_PERFORM),
        (p.UpdateRequest(p.TAG_MODIFY_REQUEST, "o=x"), ResultCode.UNWILLING_TO_PERFORM),
        (p.UpdateRequest(p.TAG_MODIFY_DN_REQUEST, "o=x"), ResultCode.UNWILLING_TO_PERFORM),
        (p.ExtendedRequest(p.OID_WHO_AM_I), ResultCode.SUCCESS),
        (p.ExtendedRequest("1.2.3"), ResultCode.PROTOCOL_ERROR),
        (p.ExtendedRequest(p.OID_START_TLS), ResultCode.UNAVAILABLE),
    ],
)
async def test_result_codes(request_: p.Operation, code: ResultCode) -> None:
    async with serving() as (_, client):
        _, result = await answer(client, request_)
        assert result.code == code


async def test_missing_base_has_its_matched_name() -> None:
    async with serving() as (_, client):
        _, result = await answer(client, search("cn=x,mds-vo-name=local,o=grid"))
        assert result.matched == "mds-vo-name=local,o=grid"


async def test_root_dse_and_subschema() -> None:
    async with serving(vendor_version="1.0") as (_, client):
        (root,) = await client.search("", scope=Scope.BASE, attributes=["+"])
        assert root.attributes["namingContexts"] == ("o=grid",)
        assert root.attributes["supportedLDAPVersion"] == ("3",)
        assert p.OID_PAGED_RESULTS in root.attributes["supportedControl"]
        (subschema,) = await client.search(
            root.first("subschemaSubentry"), scope=Scope.BASE, attributes=["attributeTypes"]
        )
        assert any("GlueCEUniqueID" in line for line in subschema.attributes["attributeTypes"])
        (plain,) = await client.search("", scope=Scope.BASE)
        assert set(plain.attributes) == {"objectClass"}


async def test_the_filter_is_too_deep_or_too_long() -> None:
    async with serving() as (_, client):
        node = parse_filter("(cn=x)")
        from fabric.ldap.filters import And, Not

        deep: Filter = node
        for _ in range(50):
            deep = Not(deep)
        for request in (p.SearchRequest("o=grid", 2, deep), p.SearchRequest("o=grid", 2, And((node,) * 2000))):
            _, result = await answer(client, request)
            assert result.code == ResultCode.ADMIN_LIMIT_EXCEEDED


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes, close the sending side, and read all there is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def notice(data: bytes) -> p.Result:
    message = p.decode_message(data)
    assert message.message_id == 0
    assert isinstance(message.operation, p.Result)
    assert message.operation.oid == p.OID_NOTICE_OF_DISCONNECTION
    return message.operation


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS hello on the plain port
        b"\x30\x84\x7f\xff\xff\xff",
        b"\x30\x80\x02\x01\x01\x00\x00",
        encode_sequence(encode_integer(1)),
        encode_sequence(encode_integer(-1), encode_element(0x42, b"")),
        encode_sequence(encode_integer(1), encode_element(0x63, b"junk")),
        encode_sequence(encode_integer(1), encode_element(0x7E, b"")),
        encode_sequence(encode_integer(0), p.encode_operation(search())),
        p.encode_message(p.Message(1, p.Result(p.TAG_SEARCH_DONE))),
    ],
)
async def test_nonsense_gets_a_notice_and_a_closed_connection(data: bytes) -> None:
    async with serving() as (server, client):
        assert notice(await raw(server.port, data)).code == ResultCode.PROTOCOL_ERROR
        assert len(await client.search("o=grid", scope=Scope.BASE)) == 1


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.integers(0, 60))
def test_garbage_and_mutations_never_hurt(garbage: bytes, position: int) -> None:
    async def run() -> None:
        defects: list[object] = []
        report = lambda name, fields: defects.append(fields) if name == "ldap.defect" else None  # noqa: E731
        async with serving(on_event=report) as (server, client):
            await raw(server.port, garbage)
            good = p.encode_message(
                p.Message(1, search(text="(&(cn=a*b)(!(x>=1))(y:dn:2.5.13.2:=z))", attributes=("a",)))
            )
            await raw(server.port, good[:position] + garbage[:3] + good[position + len(garbage[:3]) :])
            assert len(await client.search("o=grid", scope=Scope.BASE)) == 1
        assert not defects

    asyncio.run(run())


async def test_ten_thousand_garbage_bytes() -> None:
    async with serving() as (server, client):
        generator = random.Random(1)
        for _ in range(5):
            await raw(server.port, generator.randbytes(10_000))
        assert len(await client.search("o=grid", scope=Scope.BASE)) == 1


async def test_requests_in_one_piece_and_byte_by_byte() -> None:
    data = b"".join(p.encode_message(p.Message(n, search(scope=Scope.BASE))) for n in range(1, 101))
    async with serving() as (server, _):
        whole = await raw(server.port, data + p.encode_message(p.Message(101, p.UnbindRequest())))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        one = p.encode_message(p.Message(1, search(scope=Scope.BASE)))
        for octet in one:
            writer.write(bytes((octet,)))
            await asyncio.sleep(0)
        first = await reader.readexactly(len(whole) // 100)
        assert whole.startswith(first)
        writer.close()


async def test_connection_limits() -> None:
    async with serving(limits=LdapLimits(connections_per_address=2)) as (server, client):
        second = await LdapClient.connect("127.0.0.1", server.port)
        third = await LdapClient.connect("127.0.0.1", server.port)
        with pytest.raises(LdapError) as caught:
            await third.search("o=grid")
        assert caught.value.code == ResultCode.BUSY
        await second.close()
        await third.close()
        assert len(await client.search("o=grid", scope=Scope.BASE)) == 1
        assert server.stats.refused == 1


async def test_idle_and_half_sent_connections_are_closed() -> None:
    async with serving(limits=LdapLimits(idle_s=0.08, message_s=0.04)) as (server, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x30\x20\x02")
        assert notice(await asyncio.wait_for(reader.read(), 60)).code == ResultCode.PROTOCOL_ERROR
        writer.close()
        with pytest.raises(LdapError) as caught:
            await client.receive()
        assert caught.value.code == ResultCode.UNAVAILABLE


async def test_a_reader_that_does_not_read_is_cut_off_and_costs_little() -> None:
    events: list[str] = []
    limits = LdapLimits(write_s=0.1, write_buffer_bytes=64 * 1024)
    async with serving(grid_tree(1, 3000), limits=limits, on_event=lambda n, f: events.append(n)) as (server, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        transport: Any = writer.transport
        transport.pause_reading()
        for number in range(1, 40):
            writer.write(p.encode_message(p.Message(number, search())))
        async with asyncio.timeout(60):
            while "ldap.slow_reader" not in events:
                assert len(await client.search("o=grid", scope=Scope.BASE)) == 1
                await asyncio.sleep(0.01)
        assert server.stats.bytes_sent < 20 * 1024 * 1024
        writer.close()
        del reader


async def test_bytes_before_the_handshake_are_not_read_as_if_tls_had_protected_them() -> None:
    start = p.encode_message(p.Message(1, p.ExtendedRequest(p.OID_START_TLS)))
    behind = p.encode_message(p.Message(2, search()))
    async with serving(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as (server, _):
        assert notice(await raw(server.port, start + behind)).code == ResultCode.PROTOCOL_ERROR
        assert server.stats.searches == 0


@pytest.mark.parametrize("hello", [b"", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_fails_or_never_comes_takes_no_place_for_ever(hello: bytes) -> None:
    limits = LdapLimits(handshake_s=0.1, connections_per_address=4)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with serving(tls=context, ldaps_port=0, limits=limits) as (server, client):
        assert server.ldaps_port is not None
        for _ in range(2):
            doors = [await asyncio.open_connection("127.0.0.1", server.ldaps_port) for _ in range(3)]
            async with asyncio.timeout(60):
                for reader, writer in doors:
                    writer.write(hello)
                    with contextlib.suppress(ConnectionResetError):
                        await reader.read()
                    writer.close()
            await until(lambda: server.connections == 1, "only the client is left")
        assert server.stats.refused == 0
        assert len(await client.search("o=grid", scope=Scope.BASE)) == 1


async def test_hundreds_of_long_searches_do_not_stand_before_a_short_one() -> None:
    limits = LdapLimits(write_buffer_bytes=1 << 30)
    dumps = b"".join(p.encode_message(p.Message(number, search())) for number in range(1, 41))
    async with serving(grid_tree(1, 1000), limits=limits) as (server, client):
        greedy = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(12)]
        for _, writer in greedy:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(dumps)
        await until(lambda: server.stats.searches > 12, "they have begun")
        before = server.stats.entries_sent
        assert len(await client.search("o=grid", scope=Scope.BASE)) == 1
        assert server.stats.entries_sent - before < 50_000  # all that is asked for: 480 000
        for _, writer in greedy:
            writer.transport.abort()


async def test_closing_tells_the_clients() -> None:
    async with serving() as (server, client):
        await server.close()
        with pytest.raises(LdapError) as caught:
            await client.receive()
        assert caught.value.code == ResultCode.UNAVAILABLE
        assert server.connections == 0


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with serving() as (server, _):
        with pytest.raises(Unavailable, match="cannot listen on"):
            await LdapServer(grid_tree(), port=server.port).start()


async def test_passwords_only_over_tls() -> None:
    async def check(name: str, password: bytes) -> bool:
        return password == b"right"

    async with serving(bind=check) as (_, client):
        _, result = await answer(client, p.BindRequest("cn=x", 3, b"right"))
        assert result.code == ResultCode.CONFIDENTIALITY_REQUIRED
