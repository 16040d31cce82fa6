"""Deltas that are lost, doubled, out of order, late; producers and servers that start anew: the tree comes right again.

Real publishers and the real servicer, joined by a line that does to the messages what a random number says.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from gridfabric.information.v1 import information_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import until

from agents.information import wire
from agents.information.feed import Feed
from agents.information.machine import InformationMachine, MachineLimits
from agents.information.model import Change, Publication, Published
from agents.information.service import InformationService
from agents.information.servicer import InformationServicer
from fabric import information
from fabric.clock import SystemClock
from fabric.errors import Unavailable
from fabric.information import Publisher, TreeCopy
from fabric.ldap import Entry, Scope, make_entry, parse_dn
from fabric.ldap.filters import ANY_ENTRY
from fabric.logs import null_logger
from fabric.settings import Endpoint

REGIONS = ["R1", "R2", "R3"]
"""Each publishes at the one before it, the first at the top."""
SITES = [f"S{number:02}" for number in range(16)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queue(name: str, free: object) -> Entry:
    return make_entry(
        f"GlueCEUniqueID={name}",
        {"objectClass": ("GlueTop", "GlueCE"), "GlueCEUniqueID": name, "GlueCEStateFreeJobSlots": str(free)}
        | ({"GlueCEName": "odd"} if isinstance(free, int) and free % 2 else {}),
    )


class Server:
    """A top server that can be replaced by a new one that knows nothing; or a region of `sites`."""

    def __init__(self, sites: Iterable[str] = (), region: str = "", below: Sequence[str] = ()) -> None:
        """`below`: the regions below; the first publishes here, for itself, for them and for the sites."""
        machine = InformationMachine(
            "region" if region else "top",
            "TOP",
            datetime.now(UTC),
            MachineLimits(grace_s=60),
            [*sites, *below],
            ways=dict.fromkeys([*sites, *below[1:]], below[0]) if below else {},
            regions=REGIONS,
            name=region or "TOP",
        )
        self.service = InformationService(machine, Feed(4), clock=SystemClock(), log=null_logger())

    def door(self, site: str, sender: str) -> InformationServicer:
        peer = SimpleNamespace(agent_kind="information", agent_site=site, agent_name=sender, subject=sender)
        return InformationServicer(
            self.service, heartbeat_s=1, clock=SystemClock(), log=null_logger(), peer_of=lambda _: peer  # type: ignore[arg-type, return-value]
        )  # fmt: skip

    def shown(self, site: str) -> dict[str, dict[str, tuple[str, ...]]]:
        producer = self.service.machine.producers.get(site)
        found = producer.entries.values() if producer is not None else ()
        return {str(entry.dn).split(",")[0]: dict(entry.attributes) for entry in found}


class Line:
    """Between the publisher of a site and the server of now."""

    def __init__(self, servers: list[Server], site: str, draw: random.Random, sender: str = "") -> None:
        self.servers, self.site, self.draw = servers, site, draw
        self.sender = sender or f"information.{site}"
        self.faults = True
        self.is_cut = False
        self.sent = {"whole": 0, "partial": 0}

    def Publish(self, messages: AsyncIterator[pb.PublishRequest]) -> Any:
        if self.is_cut:
            raise Unavailable("CUT", "the cable is cut")
        answers = self.servers[-1].door(self.site, self.sender).Publish(self._there(messages), None)
        return Call(self._back(answers))

    async def _there(self, messages: AsyncIterator[pb.PublishRequest]) -> AsyncIterator[pb.PublishRequest]:
        held: list[pb.PublishRequest] = []
        async for message in messages:
            for entry in message.changed:
                self.sent["partial" if entry.partial else "whole"] += 1
            fate = self.draw.random() if self.faults else 1.0
            if fate < 0.05:
                continue  # lost
            if fate < 0.10:
                held.append(message)  # overtaken by the next
                continue
            yield message
            if fate < 0.15:
                yield message  # doubled
            if fate < 0.17:
                return  # cut
            while held:
                yield held.pop()

    async def _back(self, answers: AsyncIterator[pb.PublishResponse]) -> AsyncIterator[pb.PublishResponse]:
        async for answer in answers:
            if not self.faults or self.draw.random() > 0.05:
                yield answer


class Call:
    """As grpc's: whoever waits for an answer is told of a cancellation."""

    def __init__(self, answers: AsyncIterator[pb.PublishResponse]) -> None:
        self._answers = answers
        self._waiting: asyncio.Future[pb.PublishResponse] | None = None
        self._is_cancelled = False

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> pb.PublishResponse:
        if self._is_cancelled:
            raise asyncio.CancelledError
        self._waiting = asyncio.ensure_future(anext(self._answers))
        return await self._waiting

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._waiting is not None:
            self._waiting.cancel()


def publisher_of(line: Line) -> Publisher:
    async def connect(_: Endpoint) -> Any:
        return line

    endpoint = Endpoint("top", "top", "localhost", rpc=1)
    return Publisher(
        line.site, [endpoint], connect, log=null_logger(), clock=SystemClock(), refresh_s=0.1, valid_for_s=1.0
    )


def agree(held: dict[str, Entry], shown: dict[str, dict[str, tuple[str, ...]]]) -> bool:
    """Of an entry that is refused the version before may be shown, or none."""
    odd = {name for name, entry in held.items() if entry.first("GlueCEStateFreeJobSlots") == "many"}
    right = {f"GlueCEUniqueID={name}": dict(entry.attributes) for name, entry in held.items() if name not in odd}
    return right == {name: found for name, found in shown.items() if name.partition("=")[2] not in odd}


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_the_line_does_the_tree_comes_right(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "GATHER_S", 0.02)  # more messages to lose
    draw = random.Random(seed)
    servers = [Server()]
    lines = {site: Line(servers, site, draw) for site in SITES}
    held: dict[str, dict[str, Entry]] = {site: {} for site in SITES}
    publishers = {site: publisher_of(line) for site, line in lines.items()}
    tasks = {site: asyncio.create_task(publisher.run()) for site, publisher in publishers.items()}
    try:
        for step in range(150):
            site = draw.choice(SITES)
            for _ in range(draw.randint(1, 20)):
                name = f"q{draw.randrange(30)}"
                if draw.random() < 0.2:
                    held[site].pop(name, None)
                else:
                    # now and then a value that the schema refuses: the entry is right again after its next change
                    held[site][name] = queue(name, "many" if draw.random() < 0.05 else draw.randrange(1000))
            publishers[site].replace(held[site].values())
            if step % 50 == 25:  # the producer starts anew
                tasks.pop(site).cancel()
                publishers[site] = publisher_of(lines[site])
                publishers[site].replace(held[site].values())
                tasks[site] = asyncio.create_task(publishers[site].run())
            if step == 75:  # the server starts anew
                servers.append(Server())
                for publisher in publishers.values():
                    publisher.break_streams()
            await asyncio.sleep(0.005)
        for line in lines.values():
            line.faults = False
        for publisher in publishers.values():  # a good line from now on, and time for a busy machine
            publisher.valid_for_s = 60
            publisher.break_streams()
        for site in SITES:
            await until(lambda: agree(held[site], servers[-1].shown(site)), lambda: f"{site}: {held[site]}")  # noqa: B023

    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


class Chain:
    """A top server, regions one below the other, and sites that publish at the lowest."""

    def __init__(self, depth: int, draw: random.Random) -> None:
        self.draw = draw
        self.sites = SITES[:4]
        self.names = REGIONS[:depth]
        self.levels: list[list[Server]] = [[Server(self.sites, below=self.names)]]
        self.lines: dict[tuple[str, str], Line] = {}
        self.publishers: dict[tuple[str, str], Publisher] = {}
        self.tasks: dict[str, list[asyncio.Task[None]]] = {name: [] for name in (*self.names, *self.sites, "time")}
        for number, name in enumerate(self.names):
            self.levels.append([])
            for producer in (*self.sites, *REGIONS[number:depth]):
                self.lines[name, producer] = Line(self.levels[number], producer, draw, sender=name)
            self.start(name)
        for site in self.sites:
            line = self.lines[site, site] = Line(self.levels[-1], site, draw)
            self._publish(site, publisher_of(line))
        self.tasks["time"].append(asyncio.create_task(self._tick()))

    @property
    def top(self) -> Server:
        return self.levels[0][-1]

    def start(self, name: str) -> None:
        """A region that knows nothing yet."""
        for task in self.tasks[name]:
            task.cancel()
        number = self.names.index(name)
        below = self.names[number + 1 :]
        server = Server(self.sites, name, below)
        self.levels[number + 1].append(server)
        for producer in server.service.machine.producers:
            relayed = publisher_of(self.lines[name, producer])
            self.tasks[name].append(asyncio.create_task(server.service.relay(producer, relayed, 60)))
            self.publishers[name, producer] = relayed
        self._publish(name, publisher_of(self.lines[name, name]))
        for (sender, _), publisher in self.publishers.items():
            if sender in (below[:1] or self.sites):
                publisher.break_streams()

    def cut(self, name: str, is_cut: bool) -> None:
        """The cable above a site or region."""
        for (sender, producer), line in self.lines.items():
            if sender == name:
                line.is_cut = is_cut
                self.publishers[sender, producer].break_streams()

    def status(self, name: str) -> tuple[str, str]:
        """At the top: the state and its reason."""
        dn = f"GridFabricRegionID={name},o=grid" if name in REGIONS else f"mds-vo-name={name},mds-vo-name=local,o=grid"
        entry = self.top.service.machine.tree.get(parse_dn(dn))
        assert entry is not None
        about = "GridFabricRegion" if name in REGIONS else "GridFabricSite"
        return entry.first(f"{about}State"), entry.first(f"{about}Reason")

    def _publish(self, name: str, publisher: Publisher) -> None:
        self.publishers[name, name] = publisher
        self.tasks[name].append(asyncio.create_task(publisher.run()))

    async def _tick(self) -> None:
        while True:
            for level in self.levels:
                level[-1].service.tick()
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        tasks = [task for some in self.tasks.values() for task in some]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("depth", [1, 3])
async def test_through_regions_of_any_depth_the_tree_comes_right(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "GATHER_S", 0.01)
    monkeypatch.setattr(information, "MAX_BACKOFF_S", 0.2)
    draw = random.Random(depth)
    chain = Chain(depth, draw)
    held: dict[str, dict[str, Entry]] = {site: {} for site in chain.sites}

    async def all_agree() -> None:
        for site in chain.sites:
            await until(lambda: agree(held[site], chain.top.shown(site)), lambda: f"{site}: {held[site]}")  # noqa: B023
            await until(lambda: chain.status(site) == ("current", ""), lambda: f"{site}: {chain.status(site)}")  # noqa: B023

    try:
        for step in range(60):
            site = draw.choice(chain.sites)
            name = f"q{draw.randrange(10)}"
            if draw.random() < 0.2:
                held[site].pop(name, None)
            else:
                held[site][name] = queue(name, draw.randrange(1000))
            chain.publishers[site, site].replace(held[site].values())
            if step == 30:
                chain.start(draw.choice(chain.names))
            await asyncio.sleep(0.005)
        for line in chain.lines.values():
            line.faults = False
        await all_agree()

        # A region that starts anew takes nothing away.
        seen = chain.top.service.feed.open(())
        chain.start(chain.names[0])
        held["S00"]["new"] = queue("new", 1)
        chain.publishers["S00", "S00"].replace(held["S00"].values())
        anew = chain.levels[1][-1].service.machine.producers.values()
        await until(lambda: all(one.status.state.value == "current" for one in anew), "the region hears all again")
        await all_agree()
        assert (await seen.next(0)).removed == ()

        # A site that is lost is said to be so by the region that does not hear it, and by nobody else.
        chain.cut("S01", True)
        lost = ("unreachable", f"S01 is not heard by {chain.names[-1]}")
        await until(
            lambda: chain.status("S01") == lost and chain.status("S00") == ("current", ""),
            lambda: f"{chain.status('S01')}, {chain.status('S00')}",
        )
        chain.cut("S01", False)
        await all_agree()

        # All sites of a region that is lost are, each with this reason; and they are back without loss.
        chain.cut("R1", True)
        lost = ("unreachable", "R1 is not heard by TOP")
        for name in (*chain.sites, *chain.names):
            await until(lambda: chain.status(name) == lost, lambda: f"{name}: {chain.status(name)}")  # noqa: B023
        held["S02"]["new"] = queue("new", 2)
        chain.publishers["S02", "S02"].replace(held["S02"].values())
        chain.cut("R1", False)
        await all_agree()
    finally:
        await chain.stop()


async def test_only_what_differs_travels_and_what_is_not_known_is_asked_for() -> None:
    server, draw = Server(), random.Random(0)
    line = Line([server], "S00", draw)
    line.faults = False
    publisher = publisher_of(line)
    publisher.replace([queue("a", 2), queue("b", 2)])
    task = asyncio.create_task(publisher.run())
    try:
        await until(lambda: len(server.shown("S00")) == 2, lambda: "both are there")
        assert line.sent == {"whole": 2, "partial": 0}
        publisher.put(queue("a", 3))  # one attribute more, one other
        await until(lambda: server.shown("S00")["GlueCEUniqueID=a"].get("GlueCEName") == ("odd",), lambda: "odd")
        publisher.put(queue("a", 4))  # one attribute less
        await until(lambda: "GlueCEName" not in server.shown("S00")["GlueCEUniqueID=a"], lambda: "even")
        assert line.sent == {"whole": 2, "partial": 2}
        publisher.put(queue("c", "many"))  # refused
        await until(lambda: publisher.connected == 1 and line.sent["whole"] == 3, lambda: "refused")
        publisher.put(queue("c", 5))  # of which the server has nothing
        await until(lambda: "GlueCEUniqueID=c" in server.shown("S00"), lambda: "the rest was sent")
        assert line.sent == {"whole": 4, "partial": 3}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_first_change_goes_alone_and_what_follows_is_gathered() -> None:
    server = Server()
    line = Line([server], "S00", random.Random(0))
    line.faults = False
    publisher = publisher_of(line)
    publisher.replace([queue("a", 0)])
    task = asyncio.create_task(publisher.run())
    try:
        await until(lambda: publisher.connected, "the snapshot is there")
        began = time.monotonic()
        for number in range(1, 101):
            publisher.put(queue("a", number))
            await asyncio.sleep(0.001)
        await until(lambda: publisher.connected, "all is there")
        later = line.sent["partial"] - 1
        assert server.shown("S00")["GlueCEUniqueID=a"]["GlueCEStateFreeJobSlots"] == ("100",)
        assert later * information.GATHER_S <= time.monotonic() - began + 0.1
        publisher.put(queue("a", 101))
        await publisher.withdraw(60)  # which waits for nothing
        await until(lambda: not server.shown("S00"), "it is withdrawn")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_follower_is_sent_what_differs() -> None:
    follower, copy = wire.Follower(), TreeCopy()

    def arrives(messages: Iterable[pb.SubscribeResponse]) -> list[pb.Entry]:
        sent: list[pb.Entry] = []
        for message in messages:
            copy.apply(pb.SubscribeResponse.FromString(message.SerializeToString()))
            sent += message.changed
        return sent

    assert [entry.partial for entry in arrives(follower.snapshot_messages(0, [queue("a", 1), queue("b", 1)]))] == [0, 0]
    (sent,) = arrives(follower.change_messages(1, Change((queue("a", 2),))))  # one attribute other, one gone
    assert sent.partial
    assert {one.name: list(one.values) for one in sent.attributes} == {
        "GlueCEStateFreeJobSlots": ["2"],
        "GlueCEName": [],
    }
    assert copy.get(queue("a", 2).dn) == queue("a", 2)
    arrives(follower.change_messages(2, Change(removed=(queue("a", 2).dn,))))
    (sent,) = arrives(follower.change_messages(3, Change((queue("a", 4),))))  # whole again
    assert not sent.partial
    assert copy.entries == {entry.dn.key: entry for entry in (queue("a", 4), queue("b", 1))}


def test_a_difference_to_what_is_not_known_makes_a_follower_ask_again() -> None:
    copy, part = TreeCopy(), pb.Entry(dn="GlueCEUniqueID=a", partial=True)
    with pytest.raises(Unavailable, match="GlueCEUniqueID=a"):
        copy.apply(pb.SubscribeResponse(changed=[part]))
    copy.apply(pb.SubscribeResponse(snapshot=True))
    with pytest.raises(Unavailable):
        copy.apply(pb.SubscribeResponse(changed=[part]))
    assert not copy.entries


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("change", "change", "snapshot", "remove", "withdraw", "time", "new stream")),
        st.sampled_from(("RAL", "CERN")),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_a_follower_has_what_ldap_shows_after_one_delta(events: list[tuple[str, str, int, bool]]) -> None:
    asyncio.run(_follow(events))


async def _follow(events: list[tuple[str, str, int, bool]]) -> None:
    machine = InformationMachine("top", "TOP", NOW, MachineLimits(grace_s=20), expected=["RAL"])
    service = InformationService(machine, Feed(1), clock=SystemClock(), log=null_logger())
    subscription, follower, copy = service.feed.open(()), wire.Follower(), TreeCopy()
    now, streams, sequences = NOW, {"RAL": 0, "CERN": 0}, {"RAL": 0, "CERN": 0}

    def ldap() -> dict[tuple[str, ...], Entry]:
        found = machine.tree.search(parse_dn(""), Scope.SUBTREE, ANY_ENTRY)
        return {entry.dn.key: entry for entry in found if entry is not None}

    for message in follower.snapshot_messages(0, ldap().values()):
        copy.apply(pb.SubscribeResponse.FromString(message.SerializeToString()))
    for number, (event, site, name, is_followed) in enumerate(events):
        sequences[site] += 1
        publication = Publication(sequences[site], valid_for_s=8)
        match event:
            case "new stream":
                streams[site] += 1
                sequences[site] = 0
                service.feed.publish(machine.open_stream(site, site, streams[site], now))
                continue
            case "time":
                now += timedelta(seconds=5 * name)
                service.feed.publish(machine.tick(now)[0])
            case "change" | "snapshot":
                publication = Publication(
                    sequences[site], event == "snapshot", (Published.whole(queue(f"q{name}", number)),), (), 8
                )
            case "remove":
                publication = Publication(
                    sequences[site], removed=(parse_dn(f"GlueCEUniqueID=q{name}"),), valid_for_s=8
                )
            case _:
                publication = Publication(sequences[site], withdraw=True)
        service.feed.publish(machine.publish(site, streams[site], publication, now).change)
        if is_followed:
            for message in follower.change_messages(0, await subscription.next(0)):
                copy.apply(pb.SubscribeResponse.FromString(message.SerializeToString()))
            assert copy.entries == ldap()
