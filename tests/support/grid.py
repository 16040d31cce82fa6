"""A small lab for tests of agents: real agents, real TLS ports, real sessions, in the test's own event loop, without
Ray.

    async with LabGrid(tmp_path) as lab:
        await lab.start("bookkeeping", site="CERN")
        channel = await lab.channel("bookkeeping", credential=lab.user("alice"))
        await BookkeepingStub(channel).Query(...)

Ports are chosen when an agent is first named, so agents may be started in any order and again with the same settings.
Name agents that are started later with `plan` first, so that earlier ones find them in their endpoints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from clusters.ports import LOWEST
from fabric.agent import Builder, RunningAgent, running
from fabric.clock import Clock, SystemClock
from fabric.logs import Logger, null_logger
from fabric.rpc.channel import Channels, SecureChannel
from fabric.settings import Settings
from security import proxies, voms
from security.credentials import Credential
from security.mapfile import GridMapFile, MapEntry
from security.names import DistinguishedName
from security.testing import TestGrid
from security.trust import TrustStore

ORGANISATION = "/C=XX/O=TestGrid"
VO = "cms"


PORTS = itertools.cycle(
    random.sample(range(10_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4, LOWEST, 4), k=2_500)
)
"""Below those of whole grids and of the system's outgoing connections; those of one test process, one after another."""


def free_port() -> int:
    """A port that was free a moment ago, and that no test beside this one will take."""
    for port in itertools.islice(PORTS, 2_500):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("this test process has used all its ports")


class Offset(SystemClock):
    """A clock that a test moves."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


class LabGrid:
    """Agents of one test. Users made with `user` are members of the VO `cms` unless told otherwise."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock | None = None,
        vos: Iterable[str] = (VO,),
        fabric: Mapping[str, Any] | None = None,
        key_type: str = "ec-p256",
    ) -> None:
        """`fabric` is the settings section of that name for every agent. `key_type`: some old tools want RSA."""
        self.directory = directory
        self.clock: Clock = clock or SystemClock()
        self.vos = list(vos)
        self.grid = TestGrid(directory / "authority", now=self.clock.now().astimezone(UTC), key_type=key_type)
        self.certificates = self.grid.trust_directory
        self.map_file = directory / "grid-mapfile"
        self.ban_file = directory / "bans"
        self.ban_file.touch()
        self.agents: dict[str, RunningAgent] = {}
        self.log: Logger = null_logger()
        self._fabric = dict(fabric or {})
        self._planned: dict[str, dict[str, Any]] = {}
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}
        self._members: dict[DistinguishedName, str] = {}
        self._users: dict[str, Credential] = {}
        self._trust = TrustStore(self.certificates)
        self._channels: Channels | None = None
        self._write_map()

    async def __aenter__(self) -> LabGrid:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channels is not None:
            await self._channels.close()
        for name in reversed(list(self._stacks)):
            await self.stop(name)
        self.grid.close()

    # -- people ------------------------------------------------------------------------------------------------------

    def user(
        self,
        name: str = "alice",
        *,
        vo: str | None = VO,
        limited: bool = False,
        hours: float = 12,
        fqans: Sequence[str] = (),
    ) -> Credential:
        """A proxy of a user, who is a member of `vo` (None: of none). The same user certificate each time. `fqans` are
        of the VO server `vo.<vo>`; plan one before the agents that shall believe it."""
        credential = self.user_certificate(name)
        if vo is not None:
            self._members[credential.identity] = vo
            self._write_map()
        now, life, extensions = self.clock.now(), timedelta(hours=hours), []
        if fqans:
            own = fqans[0].split("/")[1]
            server = self.service("vo", f"vo.{own}")
            encoded = voms.create_attribute_certificate(
                server, credential.certificate, vo=own, uri="localhost:15000", fqans=fqans, lifetime=life, now=now
            )
            extensions.append(voms.proxy_extension([encoded]))
        return proxies.create_proxy(credential, lifetime=life, now=now, limited=limited, extensions=extensions)

    def user_certificate(self, name: str = "alice") -> Credential:
        """A user's long-lived certificate with its key."""
        if name not in self._users:
            self._users[name] = self.grid.user(f"{ORGANISATION}/OU=Users/CN={name}")
        return self._users[name]

    def operator(self, name: str = "root") -> Credential:
        """An administrator's certificate."""
        return self.grid.user(f"{ORGANISATION}/OU=Operators/CN={name}")

    def service(self, kind: str, name: str | None = None, site: str = "CERN") -> Credential:
        """The host credential that an agent of this kind has, for a test that plays it."""
        subject = f"{ORGANISATION}/OU={site}/CN={kind}/{name or f'{kind}.{site}'}"
        return self.grid.host("localhost", "127.0.0.1", subject=subject)

    def enrol(self, credential: Credential, vo: str = VO) -> None:
        """Make somebody with a certificate of any authority a member."""
        self._members[credential.identity] = vo
        self._write_map()

    def expel(self, name: str) -> None:
        """Take a user off the member list."""
        self._members.pop(self.user_certificate(name).identity, None)
        self._write_map()

    def ban(self, name: str) -> None:
        """Ban a user at every agent."""
        with self.ban_file.open("a", encoding="utf-8") as file:
            file.write(f'"{self.user_certificate(name).identity}"\n')

    def revoke(self, credential: Credential) -> None:
        """Revoke a certificate; the new list is in the certificates directory at once."""
        self.grid.revoke(credential)

    def refresh_trust(self) -> None:
        """The test's own channels look at the certificates directory now; agents do so by themselves."""
        self._trust.refresh()

    def _write_map(self) -> None:
        GridMapFile(tuple(MapEntry(subject, (f".{vo}",)) for subject, vo in self._members.items())).write(self.map_file)

    # -- agents ------------------------------------------------------------------------------------------------------

    def plan(self, kind: str, *, site: str = "CERN", name: str | None = None) -> str:
        """Choose ports and credential of an agent without starting it; returns its name."""
        name = name or f"{kind}.{site}"
        if name not in self._planned:
            state_dir = self.directory / "agents" / name
            state_dir.mkdir(mode=0o700, parents=True)
            credential = state_dir.parent / f"{name}.pem"
            folder = "information" if kind == "region" else kind
            self.service(folder, name, site).save(credential)
            own = {"myproxy": ("myproxy",), "information": ("ldaps",), "top": ("ldaps",)}
            ports = {protocol: free_port() for protocol in ("rpc", "ldap", "http", *own.get(kind, ()))}
            self._planned[name] = {
                "kind": kind, "site": site, "name": name, "ports": ports, "state_dir": str(state_dir),
                "credential": str(credential),
            }  # fmt: skip
        return name

    def settings(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        fabric: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The settings dict of a planned agent."""
        planned = self._planned[name]
        endpoints: dict[str, list[dict[str, Any]]] = {}
        for other in self._planned.values():
            endpoints.setdefault(other["kind"], []).append(
                {"name": other["name"], "site": other["site"], "host": "localhost", **other["ports"]}
            )
        shell: dict[str, Any] = {
            "map_updater": False, "trust_updater": False, "ban_updater": False,
            "vo_updater": False, "trust_poll_s": 0.05,
            "map_file": str(self.map_file), "ban_file": str(self.ban_file), "stop_grace_s": 2.0,
        }  # fmt: skip
        return {
            **planned,
            "grid": "test",
            "host": "lab",
            "listen": "127.0.0.1",
            "advertise": "localhost",
            "certificates": str(self.certificates),
            "organisation": ORGANISATION,
            "vos": self.vos,
            "endpoints": endpoints,
            "options": dict(options or {}),
            "fabric": {**shell, **self._fabric, **(fabric or {})},
        }

    async def start(
        self,
        kind: str,
        *,
        site: str = "CERN",
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
        fabric: Mapping[str, Any] | None = None,
        builder: Builder | None = None,
    ) -> RunningAgent:
        """Start an agent and wait until its port is open. `builder` replaces `agents.<kind>.agent.build`."""
        name = self.plan(kind, site=site, name=name)
        settings = Settings.from_dict(self.settings(name, options=options, fabric=fabric))
        stack = contextlib.AsyncExitStack()
        agent = await stack.enter_async_context(running(settings, clock=self.clock, builder=builder))
        self._stacks[name], self.agents[name] = stack, agent
        return agent

    async def stop(self, name: str) -> None:
        """Stop an agent; `start` with the same kind, site and name starts it again on the same ports and state."""
        stack = self._stacks.pop(name)
        del self.agents[name]
        await stack.aclose()

    # -- calls -------------------------------------------------------------------------------------------------------

    @property
    def channels(self) -> Channels:
        """The test's own channels, without a credential of their own."""
        if self._channels is None:
            self._channels = Channels(
                trust=self._trust, policy=self.grid.policy, clock=self.clock, log=self.log, credential=None
            )
        return self._channels

    async def channel(
        self, kind: str, *, site: str = "CERN", name: str | None = None, credential: Credential | None = None
    ) -> SecureChannel:
        """A channel to an agent in the name of `credential`; None: without a session."""
        name = name or f"{kind}.{site}"
        return await self.channels.get("localhost", self._planned[name]["ports"]["rpc"], credential)

    def port(self, name: str, protocol: str = "rpc") -> int:
        """A planned agent's port."""
        return int(self._planned[name]["ports"][protocol])

    def audit(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of an agent's audit log, of one event if given."""
        path = self.directory / "agents" / name / "audit.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        return [line for line in lines if event is None or line["event"] == event]


def days_from_now(days: float) -> datetime:
    """For certificates that end some time."""
    return datetime.now(UTC) + timedelta(days=days)
