"""The shell: start, stop, health, updaters, a process of its own, and the actor without Ray."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support.grid import LabGrid
from support.toy_agent import ToyAgent
from support.waiting import until

import fabric.actor
import fabric.agent
from fabric.actor import AgentActor
from fabric.agent import AgentHealth, AgentState, RunningAgent, main, running
from fabric.errors import Conflict, DataCorrupted, GridError, InvalidRequest, Refused, Unauthenticated, Unavailable
from fabric.http import Content, HttpServer, http_get
from fabric.ldap import EntryTree, LdapServer, make_entry
from fabric.logs import null_logger
from fabric.settings import Settings

NAME = "storage.CERN"
TOY_AGENT = """
from support.toy_agent import ToyAgent
build = ToyAgent
"""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as found:
        yield found


async def refusal(call: Any) -> GridError:
    with pytest.raises(GridError) as found:
        await call
    return found.value


async def refusal_or_none(call: Any) -> GridError | None:
    try:
        await call
    except GridError as error:
        return error
    return None


async def stat(lab: LabGrid, credential: Any) -> None:
    stub: Any = storage_pb2_grpc.StorageStub(await lab.channel("storage", credential=credential))
    await stub.Stat(storage_pb2.StatRequest())


# -- life ------------------------------------------------------------------------------------------------------------


class Recorder(ToyAgent):
    """Notes the order of its life and can be told to misbehave."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.events: list[str] = ["build"]

    async def start(self) -> None:
        assert not (self.context.state_dir / "ready").exists()
        self.events.append("start")

    async def started(self) -> None:
        assert self.context.rpc is not None and self.context.rpc.port
        self.events.append("started")

    async def stop(self) -> None:
        self.events.append("stop")


async def test_the_life_of_an_agent(lab: LabGrid) -> None:
    agent = await lab.start("storage", builder=Recorder)
    recorder = agent.agent
    assert isinstance(recorder, Recorder) and recorder.events == ["build", "start", "started"]
    ready = json.loads((agent.context.state_dir / "ready").read_text())
    assert ready["rpc"] == agent.port == lab.port(NAME) and ready["pid"] == os.getpid()
    health = agent.health()
    assert health.state is AgentState.GREEN and {"sessions", "uptime_s", "stats"} <= set(health.numbers)
    assert agent.context.state_dir.stat().st_mode & 0o777 == 0o700
    await lab.stop(NAME)
    assert recorder.events[-1] == "stop" and not (agent.context.state_dir / "ready").exists()
    assert agent.state is AgentState.STOPPED


async def test_a_task_that_crashes_degrades_and_is_logged(lab: LabGrid) -> None:
    agent = await lab.start("storage", builder=ToyAgent)

    async def crash() -> None:
        raise RuntimeError("out of ideas")

    agent.context.spawn(crash(), "thinker")
    await until(lambda: agent.health().state is AgentState.DEGRADED)
    assert "thinker" in agent.health().detail
    assert "out of ideas" in (agent.context.state_dir / "log.jsonl").read_text()


async def test_problems_come_and_go(lab: LabGrid) -> None:
    agent = await lab.start("storage", builder=ToyAgent)
    agent.context.problem("disk", "the disk is nearly full")
    assert agent.health().state is AgentState.DEGRADED
    agent.context.solved("disk")
    agent.context.solved("disk")
    assert agent.health().state is AgentState.GREEN


async def test_health_that_fails_is_degraded_health(lab: LabGrid) -> None:
    class Confused(ToyAgent):
        def health(self) -> AgentHealth:
            raise KeyError("?")

    agent = await lab.start("storage", builder=Confused)
    assert agent.health().state is AgentState.DEGRADED


async def test_a_stop_that_hangs_is_cut_short(lab: LabGrid) -> None:
    class Hanging(ToyAgent):
        async def stop(self) -> None:
            await asyncio.Event().wait()

    agent = await lab.start("storage", builder=Hanging, fabric={"stop_grace_s": 0.1})
    async with asyncio.timeout(60):
        await lab.stop(NAME)
    assert "agent.stop_too_slow" in (agent.context.state_dir / "log.jsonl").read_text()


async def test_an_agent_that_cannot_start_leaves_nothing_open(lab: LabGrid) -> None:
    class Failing(ToyAgent):
        async def start(self) -> None:
            raise Unavailable("NO_LUCK", "not today")

    for _ in range(2):
        with pytest.raises(Unavailable, match="not today"):
            await lab.start("storage", builder=Failing)
    await lab.start("storage", builder=ToyAgent)


async def test_a_second_copy_is_kept_away(lab: LabGrid) -> None:
    await lab.start("storage", builder=ToyAgent)
    settings = Settings.from_dict(lab.settings(NAME))
    with pytest.raises(Conflict) as found:
        async with running(settings, builder=ToyAgent):
            pass
    assert found.value.reason == "AGENT_RUNNING"


async def test_a_port_in_use_is_one_sentence(lab: LabGrid) -> None:
    lab.plan("storage")
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", lab.port(NAME))
    async with server:
        error = await refusal(lab.start("storage", builder=ToyAgent))
    assert error.reason == "PORT_IN_USE" and str(lab.port(NAME)) in error.sentence


async def test_missing_files_are_one_sentence(lab: LabGrid) -> None:
    name = lab.plan("storage")
    (lab.directory / "agents" / f"{name}.pem").unlink()
    error = await refusal(lab.start("storage", builder=ToyAgent))
    assert error.reason == "CREDENTIAL_NOT_FOUND"
    settings = {**lab.settings(name), "certificates": str(lab.directory / "nowhere"), "kind": "nosuch"}
    with pytest.raises(GridError):
        async with running(Settings.from_dict(settings)):
            pass


async def test_an_unknown_kind_is_one_sentence(lab: LabGrid) -> None:
    error = await refusal(lab.start("nosuchkind"))
    assert isinstance(error, InvalidRequest) and error.reason == "AGENT_UNKNOWN"


async def test_an_expired_revocation_list_degrades_and_refuses(lab: LabGrid) -> None:
    agent = await lab.start("storage", builder=ToyAgent)
    alice = lab.user("alice")
    await stat(lab, alice)
    lab.grid.expired_crl()
    await until(lambda: agent.health().state is AgentState.DEGRADED)
    assert "revocation list" in agent.health().detail
    error = await until(lambda: refusal_or_none(stat(lab, alice)), "those are judged whom the change does not name")
    assert isinstance(error, Unauthenticated) and error.reason == "CRL_EXPIRED"


# -- updaters --------------------------------------------------------------------------------------------------------


class Members:
    """A VO server as the map file sees it."""

    def __init__(self, port: int) -> None:
        self.tree = EntryTree(["o=cms"])
        self.tree.add(make_entry("o=cms", {"objectClass": ["organization"], "o": ["cms"]}))
        self.server = LdapServer(self.tree, port=port)

    def join(self, subject: str) -> None:
        number = len(self.tree)
        attributes = {"objectClass": ["gridMember"], "cn": [f"m{number}"], "subject": [subject]}
        self.tree.add(make_entry(f"cn=m{number},o=cms", attributes))


async def test_members_of_a_vo_are_let_in_as_soon_as_they_ask(lab: LabGrid) -> None:
    lab.plan("vo", name="vo.cms")
    members = Members(lab.port("vo.cms", "ldap"))
    await members.server.start()
    try:
        agent = await lab.start(
            "storage", builder=ToyAgent, fabric={"map_updater": True, "map_file": "", "map_refresh_s": 3600}
        )
        map_file = agent.context.state_dir / "grid-mapfile"
        await until(map_file.exists)
        alice = lab.user("alice")
        error = await refusal(stat(lab, alice))
        assert isinstance(error, Refused) and error.reason == "NOT_MAPPED"
        members.join("/C=XX/O=TestGrid/OU=Users/CN=alice")
        members.join("this is no name")
        async with asyncio.timeout(60):
            while True:  # not asked more than once a second, whoever knocks
                try:
                    await stat(lab, alice)
                    break
                except Refused:
                    await asyncio.sleep(0.05)
        assert map_file.read_text() == '"/C=XX/O=TestGrid/OU=Users/CN=alice" .cms\n'
    finally:
        await members.server.close()


async def test_a_vo_server_that_is_down_keeps_the_last_list(lab: LabGrid) -> None:
    lab.plan("vo", name="vo.cms")
    members = Members(lab.port("vo.cms", "ldap"))
    members.join("/C=XX/O=TestGrid/OU=Users/CN=alice")
    await members.server.start()
    options = {"map_updater": True, "map_file": "", "map_refresh_s": 0.05}
    agent = await lab.start("storage", builder=ToyAgent, fabric=options)
    await until((agent.context.state_dir / "grid-mapfile").exists)
    await members.server.close()
    await lab.stop(NAME)
    again = await lab.start("storage", builder=ToyAgent, fabric=options)
    await stat(lab, lab.user("alice", vo=None))
    assert again.context.judge.map_file.entries


async def test_a_revocation_list_is_fetched_and_ends_sessions(lab: LabGrid, tmp_path: Path) -> None:
    lists: dict[str, bytes] = {}
    server = HttpServer(
        lambda path: Content(lists[path], etag=str(len(lists[path]))) if path in lists else None, null_logger()
    )
    name = lab.plan("authority")
    await server.start("127.0.0.1", lab.port(name, "http"))
    try:
        agent = await lab.start("storage", builder=ToyAgent, fabric={"trust_updater": True, "crl_refresh_s": 0.05})
        alice = lab.user("alice")
        await stat(lab, alice)
        stem = next(iter(agent.context.trust.snapshot().authorities[0].stems))
        lists[f"/crl/{stem}.r0"] = b"garbage"
        await until(lambda: "crl.refused" in (agent.context.state_dir / "log.jsonl").read_text())
        await stat(lab, alice)
        lab.grid.ca.revoke(lab.user_certificate("alice").certificate.serial_number, "keyCompromise", lab.clock.now())
        lists[f"/crl/{stem}.r0"] = lab.grid.ca.build_crl(lab.clock.now(), timedelta(days=1))
        await until(lambda: len(agent.server.sessions) == 0)
        assert (await refusal(stat(lab, alice))).reason == "CERTIFICATE_REVOKED"
    finally:
        await server.close()


# -- http ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def web() -> AsyncIterator[HttpServer]:
    def route(path: str) -> Content | None:
        if path == "/boom":
            raise RuntimeError("secret")
        return {"/a b": Content(b"hello", etag="1"), "/large": Content(b"x" * 2_000_000)}.get(path)

    server = HttpServer(route, null_logger())
    await server.start("127.0.0.1", 0)
    yield server
    await server.close()


async def test_files_are_fetched(web: HttpServer) -> None:
    found = await http_get("127.0.0.1", web.port, "/a%20b?x=1")
    assert (found.body, found.etag) == (b"hello", "1")
    assert (await http_get("127.0.0.1", web.port, "/a%20b", etag="1")).body is None
    assert len((await http_get("127.0.0.1", web.port, "/large")).body or b"") == 2_000_000
    assert (await refusal(http_get("127.0.0.1", web.port, "/none"))).reason == "HTTP_NOT_FOUND"
    assert (await refusal(http_get("127.0.0.1", web.port, "/large", max_bytes=10))).reason == "HTTP_FAILED"
    assert (await refusal(http_get("127.0.0.1", web.port, "/boom"))).reason == "HTTP_FAILED"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /a HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /a\r\n\r\n", b"400"),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"GET /a HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"\x16\x03\x01" + b"\r\n\r\n", b"400"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n", b"404"),
    ],
)
async def test_bad_requests_get_a_status(web: HttpServer, request_bytes: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    writer.write(request_bytes)
    async with asyncio.timeout(60):
        answer = await reader.read(65536)
    writer.close()
    assert answer.split(b" ")[1] == status and b"secret" not in answer


async def test_garbage_on_the_http_port(web: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    writer.write(os.urandom(10_000))
    writer.write_eof()
    async with asyncio.timeout(60):
        await reader.read()
    writer.close()
    assert (await http_get("127.0.0.1", web.port, "/a%20b")).body == b"hello"


async def test_one_connection_serves_several_requests(web: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    for _ in range(3):
        writer.write(b"GET /a%20b HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in head and await reader.readexactly(5) == b"hello"
    writer.close()


# -- a process of its own --------------------------------------------------------------------------------------------


def settings_file(lab: LabGrid, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Settings of a toy agent whose `agents.toy.agent` is on the path of the process."""
    name = lab.plan("toy", name="toy.CERN")
    package = tmp_path / "code" / "agents" / "toy"
    package.mkdir(parents=True)
    (package / "agent.py").write_text(TOY_AGENT)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(lab.settings(name)))
    root = Path(__file__).parents[2]
    folders = [tmp_path / "code", root, root / "proto" / "gen", root / "tests"]
    return path, {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


async def test_an_agent_in_its_own_process_stops_on_sigterm(lab: LabGrid, tmp_path: Path) -> None:
    path, environment = settings_file(lab, tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fabric.agent", str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
            assert line, (await process.stderr.read()).decode()
            assert json.loads(line)["ready"] == "toy.CERN"
            channel = await lab.channel("toy", name="toy.CERN", credential=lab.user())
            await asyncio.sleep(0)
            stub: Any = storage_pb2_grpc.StorageStub(channel)
            await stub.Stat(storage_pb2.StatRequest())
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert await process.stderr.read() == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not (lab.directory / "agents" / "toy.CERN" / "ready").exists()


async def test_a_frozen_server_is_noticed_within_seconds(lab: LabGrid, tmp_path: Path) -> None:
    """What a cut link looks like: connections stay open and nothing comes."""
    path, environment = settings_file(lab, tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fabric.agent", str(path), stdout=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline()
        stub: Any = storage_pb2_grpc.StorageStub(await lab.channel("toy", name="toy.CERN", credential=lab.user()))
        stream = stub.Get(storage_pb2.GetRequest(surl="endless"))
        assert (await stream.read()).data == b"first"
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(60):
            error = await refusal(stream.read())
        assert isinstance(error, Unavailable) and "localhost" in error.sentence
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            while True:
                try:
                    await stub.Stat(storage_pb2.StatRequest())
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
    finally:
        process.kill()
        await process.wait()


def test_bad_settings_are_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"kind": "gatekeeper"}')
    assert main([str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and "'grid' is missing" in shown.err
    assert main([]) == 2


# -- the actor, without Ray ------------------------------------------------------------------------------------------


async def actor_is(actor: AgentActor, *states: str) -> list[dict[str, Any]]:
    """Its health once its agents are in these states."""
    async with asyncio.timeout(60):
        while True:
            health = await asyncio.to_thread(actor.health)
            if tuple(found["state"] for found in health) == states:
                return health
            await asyncio.sleep(0.01)


async def test_the_actor_runs_an_agent_in_its_thread(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.agent, "load_builder", lambda kind: ToyAgent)
    name = lab.plan("storage")
    actor = AgentActor(lab.settings(name))
    [health] = await actor_is(actor, "green")
    await stat(lab, lab.user())
    assert (health["name"], health["pid"], health["error"]) == (name, os.getpid(), None)
    json.dumps(health)
    assert await asyncio.to_thread(actor.stop, [name], 10) == [name]
    assert await asyncio.to_thread(actor.stop, [name], 10) == [name]
    await actor_is(actor, "stopped")


async def test_agents_of_a_pack_start_stop_and_fail_each_for_itself(
    lab: LabGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fabric.agent, "load_builder", lambda kind: ToyAgent)
    first, broken, last = lab.plan("storage"), lab.plan("storage", site="RAL"), lab.plan("storage", site="CNAF")
    no_port = lab.settings(broken) | {"ports": {"rpc": -1}}
    actor = AgentActor(lab.settings(first), no_port, lab.settings(last))
    health = await actor_is(actor, "green", "stopped", "green")
    assert broken in health[1]["detail"] and health[1]["error"]["reason"] == "SETTINGS_INVALID"
    assert await asyncio.to_thread(actor.stop, [first], 10) == [first]
    await actor_is(actor, "stopped", "stopped", "green")
    assert await asyncio.to_thread(actor.stop, [broken, last], 10) == [broken, last]
    await actor_is(actor, "stopped", "stopped", "stopped")


async def test_an_agent_that_breaks_ends_its_process(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def run_and_break(settings: dict[str, Any], *, stop: asyncio.Event, ready: Any) -> None:
        async with running(Settings.from_dict(settings)) as agent:
            ready(agent)
            raise RuntimeError("broken")

    monkeypatch.setattr(fabric.agent, "load_builder", lambda kind: ToyAgent)
    monkeypatch.setattr(fabric.actor, "run_agent", run_and_break)
    monkeypatch.setattr(fabric.actor, "_end_process", lambda: ended.append("ended"))
    actor = AgentActor(lab.settings(lab.plan("storage")))
    [health] = await actor_is(actor, "stopped")
    assert ended == ["ended"] and health["error"]["reason"] == "AGENT_CRASHED" and "broken" in health["detail"]


async def test_an_actor_waits_for_its_former_life_to_end(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.agent, "load_builder", lambda kind: ToyAgent)
    await lab.start("storage", builder=ToyAgent)
    actor = AgentActor(lab.settings(NAME))
    await actor_is(actor, "starting")
    await lab.stop(NAME)
    await actor_is(actor, "green")
    assert await asyncio.to_thread(actor.stop, [NAME], 10) == [NAME]


async def test_an_actor_that_cannot_start_says_why(lab: LabGrid) -> None:
    for settings in ({}, {"name": "x", "kind": 3}, lab.settings(lab.plan("nosuchkind"))):
        actor = AgentActor(settings)
        [health] = await actor_is(actor, "stopped")
        assert health["detail"] == health["error"]["sentence"]
        assert actor.stop([health["name"]], 5) == [health["name"]]


def test_importing_the_shell_imports_no_ray() -> None:
    code = "import sys, fabric.actor; raise SystemExit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


async def test_agents_of_one_loop_are_separate(lab: LabGrid) -> None:
    first = await lab.start("storage", builder=ToyAgent)
    second: RunningAgent = await lab.start("storage", site="RAL", builder=ToyAgent)
    assert first.port != second.port
    await stat(lab, lab.user())
    assert len(first.server.sessions) == 1 and len(second.server.sessions) == 0


async def test_an_agent_that_cannot_go_on_ends_with_the_reason(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.agent, "load_builder", lambda kind: ToyAgent)

    def damage(agent: RunningAgent) -> None:
        agent.context.break_off(DataCorrupted("STORE_CORRUPT", "the store is damaged"))

    with pytest.raises(DataCorrupted, match="the store is damaged"):
        await fabric.agent.run_agent(lab.settings(lab.plan("storage")), ready=damage)
