"""Small processes on the other side of a measurement, so that it does not share an interpreter with what it measures.

`python -m bench.helpers ROLE` reads one JSON object from standard input. Servers print their port and end when their
input is closed; clients print "ready", wait for a line, and print their result as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from gridfabric.security.v1 import security_pb2, security_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc

from fabric.agent import Agent, AgentHealth, AgentState, running
from fabric.clock import SystemClock
from fabric.context import AgentContext
from fabric.ldap import protocol as ldap
from fabric.ldap.ber import frame_length
from fabric.ldap.filter_text import parse_filter
from fabric.ldap.tree import Scope
from fabric.logs import null_logger
from fabric.rpc import rules
from fabric.rpc.channel import Channels
from fabric.rpc.probe import fetch_server_chain
from fabric.rpc.server import RpcService
from fabric.settings import Settings
from security import certificates, proxies
from security.credentials import Credential, generate_key
from security.mapfile import GridMapFile, MapEntry
from security.session import prove
from security.testing import TestGrid
from security.trust import TrustStore
from security.validation import ValidationPolicy

ROOT = Path(__file__).resolve().parent.parent
SINK = "/bench/Sink"
PIECE = 1 << 20
READY_S = 120.0
"""For a helper to start."""
RESULT_S = 300.0
"""For a helper to finish."""
ORGANISATION = "/C=XX/O=Bench"
LDAP_ID = 2
LDAP_DONE = ldap.encode_message(ldap.Message(LDAP_ID, ldap.Result(ldap.TAG_SEARCH_DONE)))
"""The end of a search that went well, the same from every server."""


# -- starting them ----------------------------------------------------------------------------------------------------


def _start(role: str, order: Mapping[str, Any], module: str = "bench.helpers") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto/gen"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", module, role],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(dict(order)) + "\n")
    process.stdin.flush()
    return process


def _line(process: subprocess.Popen[str], deadline_s: float) -> str:
    """The next line of a helper. Raises RuntimeError when it ends or is late; then it is killed."""
    timer = threading.Timer(deadline_s, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise RuntimeError(f"{' '.join(map(str, process.args[1:]))} ended early")  # type: ignore[index]
    return line.strip()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    process.stdout.close()


@contextlib.contextmanager
def server(role: str, order: Mapping[str, Any]) -> Iterator[int]:
    """A server process; gives its port."""
    process = _start(role, order)
    try:
        yield int(_line(process, READY_S))
    finally:
        _end(process)


def once(role: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """What one client process found."""
    return together(role, [order])[0]


def together(role: str, orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What several client processes found that began at the same moment."""
    processes = [_start(role, order) for order in orders]
    try:
        for process in processes:
            _line(process, READY_S)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(_line(process, RESULT_S)) for process in processes]
    finally:
        for process in processes:
            _end(process)


@contextlib.contextmanager
def beside(role: str, order: Mapping[str, Any]) -> Iterator[Callable[[], dict[str, Any]]]:
    """A client process that works while the block runs; the function given waits for what it found."""
    process = _start(role, order)
    try:
        _line(process, READY_S)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        yield lambda: json.loads(_line(process, RESULT_S))
    finally:
        _end(process)


@contextlib.contextmanager
def conversation(module: str, order: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any], float], Any]]:
    """A process of its own module that answers one order after another within a deadline in seconds."""
    process = _start("", order, module)

    def ask(question: Mapping[str, Any], deadline_s: float) -> Any:
        assert process.stdin is not None
        process.stdin.write(json.dumps(dict(question)) + "\n")
        process.stdin.flush()
        return json.loads(_line(process, deadline_s))

    try:
        _line(process, READY_S)
        yield ask
    finally:
        _end(process)


# -- credentials for servers without a grid ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Trust:
    """An authority with one host and one user, in files."""

    folder: Path
    grid: TestGrid
    host: Path
    certificate: Path
    """Of the host alone."""
    user: Credential
    """RSA-2048, as `grid user add` makes it."""

    def host_files(self) -> dict[str, Any]:
        """The order of a TLS server."""
        return {"credential": str(self.host)}

    def proxy(self) -> Credential:
        """A proxy of the user, P-256."""
        return proxies.create_proxy(self.user, lifetime=timedelta(hours=2), now=datetime.now(UTC))


@contextlib.contextmanager
def trust(folder: Path, key_type: str = "ec-p256") -> Iterator[Trust]:
    """Made anew in `folder`, the authority with this type of key."""
    now = datetime.now(UTC)
    grid = TestGrid(folder, now=now, base=ORGANISATION, key_type=key_type)
    try:
        host = grid.host("localhost", "127.0.0.1", subject=f"{ORGANISATION}/OU=BENCH/CN=storage/storage.BENCH")
        path, leaf = folder / "host.pem", folder / "leaf.pem"
        host.save(path)
        leaf.write_bytes(certificates.pem([host.certificate]))
        key = generate_key("rsa-2048")
        lifetime = timedelta(days=30)
        user = Credential(grid.ca.issue_user("bench", key.public_key(), lifetime=lifetime, now=now), key)
        yield Trust(folder, grid, path, leaf, user)
    finally:
        grid.close()


def agent_settings(found: Trust) -> dict[str, Any]:
    """Settings of an agent that does nothing, for the role `agent`."""
    map_file = found.folder / "grid-mapfile"
    GridMapFile((MapEntry(found.user.identity, (".cms",)),)).write(map_file)
    bans = found.folder / "bans"
    bans.touch()
    state = found.folder / "agent"
    state.mkdir(mode=0o700)
    shell = {
        "map_updater": False,
        "trust_updater": False,
        "ban_updater": False,
        "map_file": str(map_file),
        "ban_file": str(bans),
    }
    return {
        "grid": "bench", "kind": "storage", "name": "storage.BENCH", "site": "BENCH", "host": "bench",
        "listen": "127.0.0.1", "advertise": "localhost", "ports": {"rpc": free_port()}, "state_dir": str(state),
        "certificates": str(found.grid.trust_directory), "credential": str(found.host),
        "organisation": ORGANISATION, "vos": ["cms"], "endpoints": {}, "options": {}, "fabric": shell,
    }  # fmt: skip


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def agent_process(found: Trust, settings: Mapping[str, Any]) -> Iterator[int]:
    """An agent in a process of its own, for as long as the block runs; its port is open at the beginning. Its id."""
    path = found.folder / f"{settings['kind']}.json"
    path.write_text(json.dumps(settings), "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "fabric.agent", str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        yield process.pid
    finally:
        process.terminate()
        process.wait(READY_S)


# -- servers ----------------------------------------------------------------------------------------------------------


def _serve(port: int) -> None:
    print(port, flush=True)


async def _until_closed() -> None:
    """Until whoever started this has gone."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def tls_sink(order: Mapping[str, Any]) -> None:
    """Takes bytes over TLS; answers one byte when the other side has said how many it sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(order["credential"])
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_sink_forever, args=(listener, context), daemon=True).start()
    _serve(listener.getsockname()[1])
    sys.stdin.read()


def _sink_forever(listener: socket.socket, context: ssl.SSLContext) -> None:
    buffer = bytearray(PIECE)
    while True:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secure:
            left = int.from_bytes(secure.recv(8), "big")
            while left > 0 and (count := secure.recv_into(buffer)):
                left -= count
            secure.sendall(b"!")


def send_tls(port: int, certificate: Path, size: int) -> None:
    """Send `size` bytes to a `tls-sink` and wait until all have arrived."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    piece = os.urandom(PIECE)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(size.to_bytes(8, "big"))
        for _ in range(size // PIECE):
            secure.sendall(piece)
        if secure.recv(1) != b"!":
            raise RuntimeError("the TLS stream was cut")


def greeter(order: Mapping[str, Any]) -> None:
    """Sends one byte to whoever shows a certificate of the authority in a TLS handshake, and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(order["credential"])
    context.load_verify_locations(order["authority"])
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def greet(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.sendall(b"!")

    def accept() -> None:
        with ThreadPoolExecutor(order["at_once"]) as pool:
            while True:
                pool.submit(greet, listener.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    _serve(listener.getsockname()[1])
    sys.stdin.read()


def echo(order: Mapping[str, Any]) -> None:
    """Gives back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        _serve(listening.sockets[0].getsockname()[1])
        await _until_closed()
        listening.close()

    asyncio.run(main())


class NoStorage(storage_pb2_grpc.StorageServicer):
    """Answers at once."""

    async def Stat(self, request: Any, context: Any) -> Any:
        return storage_pb2.StatResponse()


async def _swallow(requests: AsyncIterator[bytes], context: Any) -> bytes:
    async for _ in requests:
        pass
    return b""


def plain(order: Mapping[str, Any]) -> None:
    """grpc.aio over TLS as its manual shows it: no sessions, no rules."""

    async def main() -> None:
        pem = Path(order["credential"]).read_bytes()
        instance = grpc.aio.server()
        storage_pb2_grpc.add_StorageServicer_to_server(NoStorage(), instance)
        methods = {"Sink": grpc.stream_unary_rpc_method_handler(_swallow)}
        instance.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
        port = instance.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
        await instance.start()
        _serve(port)
        await _until_closed()
        await instance.stop(1)

    asyncio.run(main())


class IdleAgent(Agent):
    """A grid service behind everything that every grid service has: sessions, rules, map file, logs."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        methods = storage_pb2.DESCRIPTOR.services_by_name["Storage"].methods
        table = {method.name: rules.user for method in methods}
        self.services = [RpcService(NoStorage(), storage_pb2_grpc.add_StorageServicer_to_server, table)]

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN)


def agent(order: Mapping[str, Any]) -> None:
    """The real shell of an agent, around one that does nothing."""

    async def main() -> None:
        async with running(Settings.from_dict(order), builder=IdleAgent):
            _serve(order["ports"]["rpc"])
            await _until_closed()

    asyncio.run(main())


# -- clients ----------------------------------------------------------------------------------------------------------


async def _start_signal() -> None:
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


@contextlib.asynccontextmanager
async def plain_channel(port: int, certificate: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To a `plain` server."""
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        yield channel


@contextlib.asynccontextmanager
async def secure_channels(order: Mapping[str, Any], credential: Credential | None) -> AsyncIterator[Channels]:
    """The channels that every client of the grid uses."""
    channels = Channels(
        trust=TrustStore(order["certificates"]),
        policy=ValidationPolicy(),
        clock=SystemClock(),
        log=null_logger(),
        credential=credential,
    )
    try:
        yield channels
    finally:
        await channels.close()


async def pieces(size: int) -> AsyncIterator[bytes]:
    """`size` bytes for a stream."""
    piece = os.urandom(PIECE)
    for _ in range(size // PIECE):
        yield piece


async def _hammer(call: Callable[[], Any], seconds: float, at_once: int) -> dict[str, Any]:
    """Call again and again, `at_once` at a time; how many calls ended in a second."""
    until = time.perf_counter() + seconds

    async def loop() -> int:
        count = 0
        while time.perf_counter() < until:
            await call()
            count += 1
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(loop() for _ in range(at_once)))
    return {"rate": sum(counts) / (time.perf_counter() - began)}


async def _unary(order: Mapping[str, Any]) -> dict[str, Any]:
    request = storage_pb2.StatRequest(surl="srm://bench/file")
    async with contextlib.AsyncExitStack() as stack:
        if "proxy" in order:
            credential = Credential.load(Path(order["proxy"]))
            channels = await stack.enter_async_context(secure_channels(order, credential))
            channel: Any = await channels.get("localhost", order["port"])
        else:
            channel = await stack.enter_async_context(plain_channel(order["port"], Path(order["certificate"])))
        stub = storage_pb2_grpc.StorageStub(channel)
        await stub.Stat(request)
        await _start_signal()
        return await _hammer(lambda: stub.Stat(request), order["seconds"], order["at_once"])


def handshakes(order: Mapping[str, Any]) -> dict[str, Any]:
    """New TLS connections with a client certificate, nothing of an earlier one used again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(order["user"])
    context.load_verify_locations(order["authority"])

    def greeted() -> None:
        with (
            socket.create_connection(("127.0.0.1", order["port"]), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            if secure.recv(1) != b"!":
                raise RuntimeError("the TLS server did not greet")

    def until(end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            greeted()
            count += 1
        return count

    greeted()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    with ThreadPoolExecutor(order["at_once"]) as pool:
        counts = list(pool.map(until, [began + order["seconds"]] * order["at_once"]))
    return {"rate": sum(counts) / (time.perf_counter() - began)}


def unary(order: Mapping[str, Any]) -> dict[str, Any]:
    """Unary calls, with a session (`proxy`) or without."""
    return asyncio.run(_unary(order))


async def _sessions(order: Mapping[str, Any]) -> dict[str, Any]:
    credential = Credential.load(Path(order["proxy"]))
    chain = credential.pem_chain()
    async with secure_channels(order, None) as channels:
        leaf = (await fetch_server_chain("localhost", order["port"]))[0]
        stub = security_pb2_grpc.SecurityContextStub(await channels.get("localhost", order["port"]))

        async def establish() -> None:
            nonce = (await stub.Begin(security_pb2.BeginRequest())).nonce
            proof = prove(credential, nonce, leaf)
            await stub.Establish(security_pb2.EstablishRequest(nonce=nonce, chain_pem=chain, proof=proof))

        await establish()
        await _start_signal()
        return await _hammer(establish, order["seconds"], order["at_once"])


def sessions(order: Mapping[str, Any]) -> dict[str, Any]:
    """Begin, prove, Establish."""
    return asyncio.run(_sessions(order))


async def _connections(order: Mapping[str, Any]) -> dict[str, Any]:
    credential = Credential.load(Path(order["proxy"]))

    async def whole() -> None:
        async with secure_channels(order, credential) as channels:
            await (await channels.get("localhost", order["port"])).ready()

    await whole()
    await _start_signal()
    return await _hammer(whole, order["seconds"], order["at_once"])


def connections(order: Mapping[str, Any]) -> dict[str, Any]:
    """All that a new command does before its first call: read trust, look at the host, connect, establish."""
    return asyncio.run(_connections(order))


def ldap_request(base: str, text: str, attributes: Sequence[str] = ()) -> str:
    """A search for the role `ldap`."""
    search = ldap.SearchRequest(base, Scope.SUBTREE, parse_filter(text), tuple(attributes))
    return ldap.encode_message(ldap.Message(LDAP_ID, search)).hex()


def ldap_search(order: Mapping[str, Any]) -> dict[str, Any]:
    """Ready-made searches (with message id LDAP_ID, in hexadecimal) one after another over one connection. Answers are
    counted and not decoded, so that the server is measured; `entries` are those of the first."""
    requests = [bytes.fromhex(text) for text in order["requests"]]
    with socket.create_connection((order["host"], order["port"]), READY_S) as connection:
        view = memoryview(bytearray(1 << 20))
        entries = _entries_of_an_answer(connection, requests[0])
        print("ready", flush=True)
        sys.stdin.readline()
        began, count, size = time.perf_counter(), 0, 0
        until = began + order["seconds"]
        while time.perf_counter() < until:
            connection.sendall(requests[count * 7919 % len(requests)])
            tail = b""
            while tail != LDAP_DONE:
                if not (got := connection.recv_into(view)):
                    raise ConnectionError("the LDAP server closed the connection")
                size += got
                tail = (tail + bytes(view[max(0, got - len(LDAP_DONE)) : got]))[-len(LDAP_DONE) :]
            count += 1
        took_s = time.perf_counter() - began
        return {"rate": count / took_s, "count": count, "bytes": size / count, "entries": entries}


def _entries_of_an_answer(connection: socket.socket, request: bytes) -> int:
    connection.sendall(request)
    answer = bytearray()
    while not answer.endswith(LDAP_DONE):
        if not (data := connection.recv(1 << 20)):
            raise ConnectionError("the LDAP server closed the connection")
        answer += data
    count = position = 0
    while position < len(answer):
        length = frame_length(bytes(answer[position : position + 6]), 1 << 30)
        assert length is not None
        position += length
        count += 1
    return count - 1


def ldap_modify(order: Mapping[str, Any]) -> dict[str, Any]:
    """Ready-made modify requests after a bind, `window` of them under way. Raises RuntimeError if one is refused."""
    requests = [bytes.fromhex(text) for text in order["requests"]]
    good = ldap.encode_message(ldap.Message(LDAP_ID, ldap.Result(ldap.TAG_MODIFY_RESPONSE)))
    with socket.create_connection((order["host"], order["port"]), READY_S) as connection:
        bind = ldap.BindRequest(order["name"], credentials=order["password"].encode())
        connection.sendall(ldap.encode_message(ldap.Message(1, bind)))
        connection.recv(4096)
        print("ready", flush=True)
        sys.stdin.readline()
        began, sent, answered, rest = time.perf_counter(), 0, 0, b""
        until = began + order["seconds"]
        while sent < order["window"] or answered < sent:
            if time.perf_counter() < until and sent - answered < order["window"]:
                connection.sendall(requests[sent % len(requests)])
                sent += 1
                continue
            rest += connection.recv(65536)
            while len(rest) >= len(good):
                if not rest.startswith(good):
                    raise RuntimeError(f"the server refused a change: {rest[:80]!r}")
                rest = rest[len(good) :]
                answered += 1
        return {"rate": answered / (time.perf_counter() - began)}


def spawn(order: Mapping[str, Any]) -> dict[str, Any]:
    """posix_spawn of /bin/true, `at_once` at a time. One thread: a process this small could not do more."""
    print("ready", flush=True)
    sys.stdin.readline()
    began, used = time.perf_counter(), sum(os.times()[:4])
    left, under_way = order["count"], 0
    while left or under_way:
        while left and under_way < order["at_once"]:
            os.posix_spawn("/bin/true", ["/bin/true"], {})
            left, under_way = left - 1, under_way + 1
        os.wait()
        under_way -= 1
    cpu_ms = 1000 * (sum(os.times()[:4]) - used) / order["count"]
    return {"rate": order["count"] / (time.perf_counter() - began), "cpu_ms": cpu_ms}


def exits(order: Mapping[str, Any]) -> dict[str, Any]:
    """When each of these processes ended (the kernel says so at once), on the machine's monotonic clock; those that are
    left after `deadline_s` are not in the list."""
    left = select.epoll()
    waiting = {os.pidfd_open(pid) for pid in order["pids"]}
    for descriptor in waiting:
        left.register(descriptor, select.EPOLLIN)
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + order["deadline_s"]
    at: list[float] = []
    while waiting and (rest := until - time.monotonic()) > 0:
        for descriptor, _ in left.poll(rest):
            at.append(time.monotonic())
            left.unregister(descriptor)
            waiting.discard(descriptor)
    return {"at": at}


SERVERS = {"tls-sink": tls_sink, "greeter": greeter, "echo": echo, "plain": plain, "agent": agent}
CLIENTS = {
    "handshakes": handshakes,
    "unary": unary,
    "sessions": sessions,
    "connections": connections,
    "ldap": ldap_search,
    "ldap-modify": ldap_modify,
    "spawn": spawn,
    "exits": exits,
}


def main() -> None:
    """One helper, until it is done."""
    role = sys.argv[1]
    order = json.loads(sys.stdin.readline())
    if role in SERVERS:
        SERVERS[role](order)
    else:
        print(json.dumps(CLIENTS[role](order)), flush=True)


if __name__ == "__main__":
    main()
