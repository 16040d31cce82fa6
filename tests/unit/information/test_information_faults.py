"""Deltas that are lost, doubled, out of order, late; producers and servers that start anew: the tree comes right again.

Real publishers and the real servicer, joined by a line that does to the messages what a random number says.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
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

SITES = [f"S{number:02}" for number in range(16)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queue(name: str, free: object) -> Entry:
    return make_entry(
        f"GlueCEUniqueID={name}",
        {"objectClass": ("GlueTop", "GlueCE"), "GlueCEUniqueID": name, "GlueCEStateFreeJobSlots": str(free)}
        | ({"GlueCEName": "odd"} if isinstance(free, int) and free % 2 else {}),
    )


class Server:
    """A top server that can be replaced by a new one that knows nothing."""

    def __init__(self) -> None:
        machine = InformationMachine("top", "TOP", datetime.now(UTC), MachineLimits(grace_s=60))
        self.service = InformationService(machine, Feed(4), clock=SystemClock(), log=null_logger())

    def door(self, site: str) -> InformationServicer:
        peer = SimpleNamespace(
            agent_kind="information", agent_site=site, agent_name=f"information.{site}", subject=site
        )
        return InformationServicer(
            self.service, heartbeat_s=1, clock=SystemClock(), log=null_logger(), peer_of=lambda _: peer  # type: ignore[arg-type, return-value]
        )  # fmt: skip

    def shown(self, site: str) -> dict[str, dict[str, tuple[str, ...]]]:
        producer = self.service.machine.producers.get(site)
        found = producer.entries.values() if producer is not None else ()
        return {str(entry.dn).split(",")[0]: dict(entry.attributes) for entry in found}


class Line:
    """Between the publisher of a site and the server of now."""

    def __init__(self, servers: list[Server], site: str, draw: random.Random) -> None:
        self.servers, self.site, self.draw = servers, site, draw
        self.faults = True
        self.sent = {"whole": 0, "partial": 0}

    def Publish(self, messages: AsyncIterator[pb.PublishRequest]) -> Any:
        answers = self.servers[-1].door(self.site).Publish(self._there(messages), None)
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
