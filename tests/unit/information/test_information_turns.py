"""Publications that give way: what is taken in steps is what would be taken whole, and everybody else has turns."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.information.machine import InformationMachine, MachineLimits, site_dn
from agents.information.model import Publication, Published
from agents.information.turns import SHORTEST_S, Turns
from fabric.errors import Exhausted
from fabric.ldap import Dn, Entry, make_entry, parse_dn

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [parse_dn(text) for text in ("GlueSEUniqueID=a", "GlueSALocalID=x,GlueSEUniqueID=a", "GlueSEUniqueID=b")]


def entry(dn: Dn, capability: int) -> Entry:
    (name, value), *_ = dn.rdns[0]
    return make_entry(dn, {"objectClass": ("GlueTop", "GlueSE"), name: value, "GlueSEName": str(capability)})


PUBLICATIONS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.sampled_from(NAMES), unique=True),
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3)), unique_by=lambda pair: pair[0].key),
    ),
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(PUBLICATIONS, st.integers(1, 3))
def test_parts_come_to_what_the_whole_comes_to(
    messages: list[tuple[bool, list[Dn], list[tuple[Dn, int]]]], size: int
) -> None:
    whole, parts = (InformationMachine("top", "TOP", NOW) for _ in range(2))
    for machine in (whole, parts):
        machine.open_stream("RAL", "RAL", 1, NOW)
    for number, (is_snapshot, removed, changed) in enumerate(messages, 1):
        publication = Publication(
            number, is_snapshot, tuple(Published.whole(entry(dn, value)) for dn, value in changed), tuple(removed)
        )
        outcome = whole.publish("RAL", 1, publication, NOW)
        outcomes = [parts.publish("RAL", 1, part, NOW) for part in publication.parts(size)]
        assert any(one.resend_snapshot for one in outcomes) == outcome.resend_snapshot
        assert sorted(one.dn for part in outcomes for one in part.rejected) == sorted(o.dn for o in outcome.rejected)
    found = [{str(e.dn): e for e in machine.producers["RAL"].entries.values()} for machine in (whole, parts)]
    assert found[0] == found[1]


def test_a_part_whose_beginning_was_not_taken_is_not_taken() -> None:
    machine = InformationMachine("top", "TOP", NOW)
    machine.open_stream("RAL", "RAL", 1, NOW)
    (_, rest) = Publication(1, True, tuple(Published.whole(entry(dn, 1)) for dn in NAMES[::2])).parts(1)
    assert rest.continued and machine.publish("RAL", 1, rest, NOW).resend_snapshot
    machine.publish("RAL", 1, Publication(5, True), NOW)
    assert machine.publish("RAL", 1, rest, NOW).resend_snapshot, "it is part of another message"
    assert not machine.producers["RAL"].entries


def test_a_snapshot_under_other_names_takes_the_room_of_what_it_replaces() -> None:
    machine = InformationMachine("top", "TOP", NOW, MachineLimits(max_entries=3))
    machine.open_stream("RAL", "RAL", 1, NOW)

    def named(*names: str) -> tuple[Published, ...]:
        return tuple(Published.whole(entry(parse_dn(f"GlueSEUniqueID={name}"), 0)) for name in names)

    machine.publish("RAL", 1, Publication(1, True, named("a", "b", "c")), NOW)
    machine.publish("RAL", 1, Publication(2), NOW)
    for part in Publication(3, True, named("c", "d", "e")).parts(1):
        machine.publish("RAL", 1, part, NOW)
    machine.publish("RAL", 1, Publication(4), NOW)
    below = machine.tree.children(site_dn("RAL"))
    assert {found.first("GlueSEUniqueID") for found in below} == {"c", "d", "e"}
    with pytest.raises(Exhausted, match="publishes 4 entries and 3 are allowed"):
        machine.publish("RAL", 1, Publication(5, changed=named("f")), NOW)


def busy(log: list[str], name: str, steps: int) -> Generator[None, None, str]:
    for number in range(steps):
        if number:
            yield
        log.append(name)
    return name


async def test_one_with_much_to_do_does_not_hold_up_the_others() -> None:
    turns, log = Turns(), list[str]()
    done = await asyncio.gather(turns.run(busy(log, "much", 50)), turns.run(busy(log, "little", 2)))
    assert done == ["much", "little"]
    assert log[:4] == ["much", "little", "much", "little"] and log.count("much") == 50


async def test_everything_else_has_its_turn_before_long_work_is_done() -> None:
    def long() -> Generator[None, None, int]:
        for _ in range(60):
            burn(SHORTEST_S)
            yield
        return looks

    looks, turns = 0, Turns()
    work = asyncio.ensure_future(turns.run(long()))
    while not work.done():
        await asyncio.sleep(0)
        looks += 1
    assert work.result() >= 10, "each turn of two milliseconds is followed by one of the others"


def burn(seconds: float) -> None:
    from time import thread_time

    until = thread_time() + seconds
    while thread_time() < until:
        pass


async def test_failures_reach_who_asked_and_nobody_else() -> None:
    def broken() -> Generator[None, None, None]:
        yield
        raise Exhausted("TOO_MUCH", "too much")

    turns, log = Turns(), list[str]()
    failed, fine = await asyncio.gather(turns.run(broken()), turns.run(busy(log, "fine", 3)), return_exceptions=True)
    assert isinstance(failed, Exhausted) and fine == "fine"


async def test_who_goes_away_leaves_its_last_steps_undone() -> None:
    turns, log = Turns(), list[str]()
    work = asyncio.ensure_future(turns.run(busy(log, "gone", 10_000_000)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.cancel()
    assert await turns.run(busy(log, "next", 1)) == "next"
    with pytest.raises(asyncio.CancelledError):
        await work
    assert 0 < log.count("gone") < 10_000_000
