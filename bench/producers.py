"""Simulated sites: as many real publishers, each with its own certificate, connection and session, in one process.

`python -m bench.producers` reads its order and then one question after another from standard input, and answers each
with a line of JSON. What the publishers do is what every site's information server does towards the top.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from gridfabric.information.v1 import information_pb2_grpc

from bench import many_sites
from bench.helpers import secure_channels
from fabric.clock import SystemClock
from fabric.information import Publisher
from fabric.ldap import Entry, LdapClient, Scope
from fabric.logs import null_logger
from fabric.settings import Endpoint
from security.credentials import Credential

PROBED = "GlueCEStateWaitingJobs"
TICK_S = 0.02
AT_ONCE = 16
"""Sites that connect at the same time."""
LOOK_S = 0.02
PROBES = 4
"""Changes followed to the top at a time, each by a client of its own."""
PROBE_LOOK_S = 0.02
"""Asked more often, the probes would be most of the searches."""
SEEN_WITHIN_S = 30.0
"""A change that is not answered at the top by then counts as so late."""


class CountedStub:
    """A stub whose messages are counted."""

    def __init__(self, stub: Any, producers: Producers) -> None:
        self._stub, self._producers = stub, producers

    def Publish(self, messages: AsyncIterator[Any]) -> Any:
        async def counted() -> AsyncIterator[Any]:
            async for message in messages:
                self._producers.messages += 1
                self._producers.bytes += message.ByteSize()
                self._producers.entries += len(message.changed)
                yield message

        return self._stub.Publish(counted())


class Producers:
    """Sites that publish to one server."""

    def __init__(self, order: Mapping[str, Any], stack: contextlib.AsyncExitStack) -> None:
        self._order, self._stack = order, stack
        self._endpoint = Endpoint("top", "top", "localhost", rpc=order["port"])
        self._publishers: list[Publisher] = []
        self._queues: list[tuple[int, Entry]] = []
        """Every GlueCE with the number of its site."""
        self._tasks: list[asyncio.Task[None]] = []
        self._probes = 0
        self.messages = self.bytes = self.entries = 0

    def counters(self) -> dict[str, float]:
        """So far; `waiting` changes have not been acknowledged."""
        late = sum(publisher.connected == 0 for publisher in self._publishers)
        return {"messages": self.messages, "bytes": self.bytes, "entries": self.entries, "late": late}

    async def sites(self, sites: int) -> None:
        """Publish as so many sites; answers when the server has acknowledged all of them."""
        limit = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._begin(number, limit) for number in range(len(self._publishers), sites)))

    async def _begin(self, number: int, limit: asyncio.Semaphore) -> None:
        credential = Credential.load(Path(self._order["credentials"]) / f"{many_sites.site_name(number)}.pem")
        channels = await self._stack.enter_async_context(secure_channels(self._order, credential))

        async def connect(endpoint: Endpoint) -> CountedStub:
            channel = await channels.get(endpoint.host, endpoint.rpc)
            return CountedStub(information_pb2_grpc.InformationStub(channel), self)

        publisher = Publisher(
            many_sites.site_name(number), [self._endpoint], connect, log=null_logger(), clock=SystemClock(),
            refresh_s=self._order["refresh_s"], valid_for_s=self._order["valid_for_s"],
        )  # fmt: skip
        entries = many_sites.site_entries(number)
        publisher.replace(entries)
        self._publishers.append(publisher)
        self._queues += [
            (len(self._publishers) - 1, entry) for entry in entries if many_sites.STATE in entry.attributes
        ]
        async with limit:
            self._tasks.append(asyncio.create_task(publisher.run()))
            while not publisher.connected:  # noqa: ASYNC110 - it has no bell
                await asyncio.sleep(LOOK_S)

    async def change(self, rate: float, seconds: float, ldap: int) -> dict[str, Any]:
        """Change queues in turn, `rate` in a second; what was sent meanwhile, how far it got, and how long single
        changes took to be answered at the top's LDAP port."""
        until = time.perf_counter() + seconds
        late: list[float] = []
        async with asyncio.TaskGroup() as group:
            for number in range(PROBES):
                group.create_task(self._probe(number, ldap, until, late))
            changed = await self._change(rate, seconds)
        return {**changed, "late_ms": late}

    async def _probe(self, number: int, ldap: int, until: float, late: list[float]) -> None:
        """One change after another of queues that no other probe touches, each until it is seen."""
        draw, own = random.Random(number), self._queues[number::PROBES]
        async with await LdapClient.connect("127.0.0.1", ldap, timeout_s=SEEN_WITHIN_S) as client:
            while time.perf_counter() < until:
                site, entry = draw.choice(own)
                self._probes += 1
                mine = str(10_000 + self._probes)
                began = time.perf_counter()
                self._publishers[site].put(Entry(entry.dn, {**entry.attributes, PROBED: (mine,)}))
                name = f"{entry.dn},{many_sites.site_base(site)}"
                while True:
                    (seen,) = await client.search(name, scope=Scope.BASE, attributes=(PROBED,))
                    passed = time.perf_counter() - began
                    if seen.first(PROBED) == mine or passed > SEEN_WITHIN_S:
                        break
                    await asyncio.sleep(PROBE_LOOK_S)
                late.append(1000 * passed)

    async def _change(self, rate: float, seconds: float) -> dict[str, float]:
        draw = random.Random(1)
        order = self._queues[:]
        draw.shuffle(order)
        before, began, done = self.counters(), time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            for _ in range(int(passed * rate) - done):
                number, entry = order[done % len(order)]
                publisher = self._publishers[number]
                now = publisher.entries[entry.dn.key][0].attributes
                publisher.put(Entry(entry.dn, {**now, many_sites.STATE: (str(draw.randrange(4096)),)}))
                done += 1
            await asyncio.sleep(TICK_S)
        took_s = time.perf_counter() - began
        return {"offered": done / took_s, "seconds": took_s} | {
            name: value - before[name] for name, value in self.counters().items()
        }


async def _main() -> None:
    loop = asyncio.get_running_loop()
    order = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    async with contextlib.AsyncExitStack() as stack:
        producers = Producers(order, stack)
        print("ready", flush=True)
        while question := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(question)
            began, used = time.perf_counter(), time.process_time()
            match asked["do"]:
                case "sites":
                    await producers.sites(asked["sites"])
                    found: dict[str, Any] = {}
                case "change":
                    found = await producers.change(asked["rate"], asked["seconds"], asked["ldap"])
                case _:
                    await asyncio.sleep(asked["seconds"])
                    found = {}
            took = {"took_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
            print(json.dumps({**producers.counters(), **took, **found}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
