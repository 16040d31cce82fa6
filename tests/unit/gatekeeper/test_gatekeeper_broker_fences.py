"""A broker whose jobs were taken over is not believed any more, for the user concerned."""

import pytest

from agents.gatekeeper import store as rows
from agents.gatekeeper.broker_fences import MAX_OF_OWNER, MAX_OVER, BrokerFences
from fabric.errors import Conflict, InvalidRequest
from fabric.store import Store

ALICE, BOB = "/CN=alice", "/CN=bob"


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "gatekeeper.db", rows.metadata, rows.MIGRATIONS)
    yield opened
    opened.close_sync()


async def test_an_epoch_that_is_over_is_refused_also_after_a_restart(store):
    fences = BrokerFences(store)
    await fences.check(ALICE, ("", 0), [])  # the only broker
    await fences.check(ALICE, ("b1", 1), [])
    await fences.check(ALICE, ("b2", 1), [("b1", 1)])
    again = BrokerFences(store)
    await again.load()
    for known in (fences, again):
        with pytest.raises(Conflict, match="another broker has taken over the jobs of /CN=alice from b1") as caught:
            await known.check(ALICE, ("b1", 1), [])
        assert caught.value.reason == "BROKER_FENCED"
        await known.check(ALICE, ("b1", 2), [])  # it has handed over, and begun anew
        await known.check(BOB, ("b1", 1), [])  # nobody speaks for another user


async def test_an_older_claim_takes_nothing_back(store):
    fences = BrokerFences(store)
    await fences.check(ALICE, ("b2", 1), [("b1", 3)])
    await fences.check(ALICE, ("b2", 1), [("b1", 1)])
    with pytest.raises(Conflict):
        await fences.check(ALICE, ("b1", 3), [])


async def test_who_says_of_himself_that_he_is_over_is_believed(store):
    with pytest.raises(Conflict):
        await BrokerFences(store).check(ALICE, ("b1", 1), [("b1", 1)])


async def test_a_user_cannot_fill_the_memory(store):
    fences = BrokerFences(store)
    with pytest.raises(InvalidRequest, match="at most 16 brokers"):
        await fences.check(ALICE, ("b", 1), [(f"x{n}", 1) for n in range(MAX_OVER + 1)])
    with pytest.raises(InvalidRequest):
        await fences.check(ALICE, ("b" * 257, 1), [])
    for n in range(MAX_OF_OWNER):
        await fences.check(ALICE, ("b", 1), [(f"x{n}", 1)])
    with pytest.raises(InvalidRequest, match="no more are kept"):
        await fences.check(ALICE, ("b", 1), [("one more", 1)])
    await fences.check(BOB, ("b", 1), [("one more", 1)])
