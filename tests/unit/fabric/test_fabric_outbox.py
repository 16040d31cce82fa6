"""The outbox: at least once, in order, never without the change it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from fabric import outbox as module
from fabric.errors import Exhausted, InvalidRequest, NotFound, Unavailable
from fabric.outbox import Outbox, OutboxItem
from fabric.store import Store


class Receiver:
    """Takes messages as a service would: ignores what it has seen, and fails when told."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.seen: dict[int, bytes] = {}
        self.deliveries = 0
        self.lose_answer = False

    async def __call__(self, items: Sequence[OutboxItem]) -> None:
        self.deliveries += 1
        if any(item.payload == b"poison" for item in items):
            raise InvalidRequest("BAD_EVENT", "an event cannot be read")
        if self.failures:
            raise self.failures.pop(0)
        for item in items:
            self.seen[item.sequence] = item.payload
        if self.lose_answer:
            self.lose_answer = False
            raise Unavailable("LOST", "the answer was lost")

    @property
    def payloads(self) -> list[bytes]:
        return list(self.seen.values())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "a.db", sa.MetaData())
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.005)


async def send_all(outbox: Outbox, receiver: Receiver) -> None:
    task = asyncio.create_task(outbox.run(receiver))
    try:
        async with asyncio.timeout(60):
            await outbox.drained()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_messages_arrive_in_order_and_are_forgotten(store: Store) -> None:
    outbox, receiver = Outbox(store, "broker.CERN"), Receiver()
    for number in range(20):
        await store.write(lambda c, n=number: outbox.add(c, [f"{n}".encode(), b"x"]))
    assert outbox.waiting == 40
    await send_all(outbox, receiver)
    assert receiver.payloads[::2] == [f"{n}".encode() for n in range(20)]
    assert list(receiver.seen) == sorted(receiver.seen)
    assert outbox.waiting == 0 and outbox.delivered == 40


async def test_messages_added_while_it_runs_are_sent_at_once(store: Store) -> None:
    outbox, receiver = Outbox(store, "s"), Receiver()
    task = asyncio.create_task(outbox.run(receiver))
    async with asyncio.timeout(60):
        for number in range(50):
            await store.write(lambda c, n=number: outbox.add(c, [bytes([n])]))
            await outbox.drained()
            assert len(receiver.seen) == number + 1
    task.cancel()


async def test_no_change_no_message(store: Store) -> None:
    outbox, receiver = Outbox(store, "s"), Receiver()

    def fails(connection: sa.Connection) -> None:
        outbox.add(connection, [b"never"])
        raise NotFound("X", "x")

    results = await asyncio.gather(
        store.write(fails), store.write(lambda c: outbox.add(c, [b"yes"])), return_exceptions=True
    )
    assert isinstance(results[0], NotFound)
    await send_all(outbox, receiver)
    assert receiver.payloads == [b"yes"]


async def test_failures_are_tried_again_and_lost_answers_repeat_the_same_sequence(store: Store) -> None:
    outbox, receiver = Outbox(store, "s"), Receiver()
    receiver.failures = [Unavailable("DOWN", "down"), Exhausted("BUSY", "busy", retry_after_s=0.01)]
    receiver.lose_answer = True
    await store.write(lambda c: outbox.add(c, [b"a", b"b"]))
    await send_all(outbox, receiver)
    assert receiver.payloads == [b"a", b"b"] and receiver.deliveries == 4
    assert outbox.last_error is None


async def test_a_message_nobody_takes_is_put_aside_and_the_others_go(store: Store) -> None:
    outbox, receiver = Outbox(store, "s"), Receiver()
    await store.write(lambda c: outbox.add(c, [b"a", b"poison", b"b", b"poison", b"c"]))
    await send_all(outbox, receiver)
    assert receiver.payloads == [b"a", b"b", b"c"]
    aside = await store.read(lambda c: c.exec_driver_sql("SELECT payload FROM outbox_refused").scalars().all())
    assert list(aside) == [b"poison", b"poison"]


async def test_what_was_not_sent_is_sent_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path / "a.db", sa.MetaData())
    outbox = Outbox(first, "s")
    await first.write(lambda c: outbox.add(c, [b"a"]))
    await first.close()
    second = Store(tmp_path / "a.db", sa.MetaData())
    again, receiver = Outbox(second, "s"), Receiver()
    assert again.waiting == 1
    await second.write(lambda c: again.add(c, [b"b"]))
    await send_all(again, receiver)
    assert receiver.payloads == [b"a", b"b"]
    await second.close()


async def test_an_outbox_made_anew_begins_above_the_old_one(tmp_path: Path) -> None:
    """Else a receiver would take the messages of an agent that lost its disk for ones that it has seen."""
    receiver = Receiver()
    for name in ("first.db", "second.db"):
        store = Store(tmp_path / name, sa.MetaData())
        outbox = Outbox(store, "s")
        await store.write(lambda c, o=outbox: o.add(c, [b"x"] * 10))
        await send_all(outbox, receiver)
        await store.close()
    assert len(receiver.seen) == 20


async def test_it_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    outbox = Outbox(store, "s")
    await store.write(lambda c: outbox.add(c, [b"x"] * 5))
    with pytest.raises(Exhausted) as found:
        await store.write(lambda c: outbox.add(c, [b"x"]))
    assert found.value.reason == "OUTBOX_FULL"
    await send_all(outbox, Receiver())
    await store.write(lambda c: outbox.add(c, [b"x"]))


async def test_big_messages_travel_in_small_batches(store: Store) -> None:
    outbox, receiver = Outbox(store, "s"), Receiver()
    await store.write(lambda c: outbox.add(c, [b"x" * 600_000] * 5 + [b"y" * 3_000_000]))
    await send_all(outbox, receiver)
    assert receiver.deliveries == 6


async def test_two_outboxes_of_one_store(store: Store) -> None:
    one, two = Outbox(store, "s"), Outbox(store, "s", name="accounting")
    await store.write(lambda c: [one.add(c, [b"1"]), two.add(c, [b"2"])])
    for outbox, payload in ((one, b"1"), (two, b"2")):
        receiver = Receiver()
        await send_all(outbox, receiver)
        assert receiver.payloads == [payload]
    with pytest.raises(ValueError, match="identifier"):
        Outbox(store, "s", name="a; drop")
