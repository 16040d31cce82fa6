"""What producers may send wrong, one row each: it is refused or bounded, and nobody else is harmed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from gridfabric.information.v1 import information_pb2 as pb

from agents.information import wire
from agents.information.machine import InformationMachine, MachineLimits, site_dn
from agents.information.model import ProducerState, ProducerStatus, Publication, Published
from fabric.clock import to_us
from fabric.errors import Exhausted, InvalidRequest
from fabric.glue_schema import GLUE_SCHEMA
from fabric.ldap import Dn, DnError, Entry, LdapClient, LdapServer, Scope, make_entry, parse_dn
from fabric.ldap.filters import ANY_ENTRY, Equality

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLASSES = ("GlueTop", "GlueCE")


def queue(name: str, **attributes: str) -> Entry:
    return make_entry(
        Dn(((("GlueCEUniqueID", name),),)), {"objectClass": CLASSES, "GlueCEUniqueID": name, **attributes}
    )


def top(**limits: int) -> InformationMachine:
    """With RAL, which has one good entry."""
    machine = InformationMachine("top", "TOP", NOW, MachineLimits(**limits))
    for site in ("RAL", "EVIL"):
        machine.open_stream(site, site, 1, NOW)
    machine.publish("RAL", 1, Publication(1, True, (Published.whole(queue("good")),)), NOW)
    return machine


def send(machine: InformationMachine, *entries: Entry, sequence: int = 1) -> tuple[str, ...]:
    """The reasons of refusals."""
    publication = Publication(sequence, sequence == 1, tuple(map(Published.whole, entries)))
    return tuple(one.reason for one in machine.publish("EVIL", 1, publication, NOW).rejected)


def names(machine: InformationMachine) -> set[str]:
    found = machine.tree.search(parse_dn("o=grid"), Scope.SUBTREE, Equality("objectClass", "GlueCE"))
    return {entry.first("GlueCEUniqueID") for entry in found if entry is not None}


SPECIAL = [
    'a,b=c+d;e<f>g"h\\i',
    "#hash",
    " blank before and after ",
    "two  blanks",
    "x" * 1000,
    ",".join("abc" for _ in range(100)),
    "(star*)",
]


@pytest.mark.parametrize("name", SPECIAL)
async def test_special_names_are_found_by_base_and_by_filter_as_they_are(name: str) -> None:
    entry = make_entry(
        Dn(((("GlueServiceUniqueID", name),),)),
        {"objectClass": ("GlueTop", "GlueService"), "GlueServiceUniqueID": name, "GlueServiceType": "x"},
    )
    machine = top()
    assert send(machine, entry) == ()
    server = LdapServer(machine.tree, schema=GLUE_SCHEMA)
    await server.start()
    try:
        async with await LdapClient.connect("127.0.0.1", server.port, timeout_s=20) as client:
            (by_filter,) = await client.search("o=grid", Equality("GlueServiceUniqueID", name))
            (by_base,) = await client.search(str(by_filter.dn), ANY_ENTRY, scope=Scope.BASE)
    finally:
        await server.close()
    assert by_filter == by_base
    assert by_base.attributes["GlueServiceUniqueID"] == (name,)
    assert by_base.dn.rdns[0] == (("GlueServiceUniqueID", name),)


@pytest.mark.parametrize(
    "text",
    ["no name", "o", "=x", "cn=a,,o=grid", "cn=a\\", 'cn="a"', "cn=<a>", "cn=a;b", "cn=\udcff", "a=b," * 70 + "o=grid"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(DnError):
        parse_dn(text)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (Entry(parse_dn("GlueCEUniqueID=x,mds-vo-name=RAL"), queue("x").attributes), "kept for information servers"),
        (Entry(parse_dn("GlueCEUniqueID=x,o=grid"), queue("x").attributes), "kept for information servers"),
        (Entry(parse_dn("GlueCEUniqueID=x,o=other"), queue("x").attributes), "kept for information servers"),
        (Entry(parse_dn("GlueCEUniqueID=x,dc=example"), queue("x").attributes), "parent is not published"),
        (queue("x", GlueCEStateFreeJobSlots="many"), "GlueCEStateFreeJobSlots"),
        (queue("x", GlueSEName="y"), "GlueSEName"),
        (queue("x", GlueCEName="y" * 100_000), "bytes"),
    ],
)
def test_other_places_and_wrong_values_are_refused_with_a_reason(entry: Entry, word: str) -> None:
    machine = top()
    (reason,) = send(machine, entry, queue("mine"))
    assert word in reason
    assert names(machine) == {"good", "mine"}


def test_the_same_name_at_two_sites_is_two_entries() -> None:
    machine = top()
    assert send(machine, queue("good", GlueCEName="another")) == ()
    found = machine.tree.search(parse_dn("o=grid"), Scope.SUBTREE, Equality("GlueCEUniqueID", "good"))
    assert sorted(entry.first("GlueCEName") for entry in found if entry is not None) == ["", "another"]


def test_a_million_entries_of_one_site_are_bounded_and_the_others_stay() -> None:
    machine = top(max_entries=3000)
    sent = 0
    with pytest.raises(Exhausted) as caught:
        for sequence in range(1, 1001):
            send(machine, *(queue(f"q{sent + number}") for number in range(1000)), sequence=sequence)
            sent += 1000
    assert caught.value.reason == "PUBLICATION_TOO_LARGE"
    assert "EVIL publishes 4000 entries and 3000 are allowed" in caught.value.sentence
    assert sent == 3000 and len(names(machine)) == 3001 and "good" in names(machine)


def test_a_time_in_the_future_is_now() -> None:
    machine = top()
    future = NOW + timedelta(days=400)
    machine.publish("EVIL", 1, Publication(1, True, (Published.whole(queue("x"), "ce", to_us(future)),)), NOW)
    found = machine.tree.search(parse_dn("o=grid"), Scope.SUBTREE, Equality("GlueCEUniqueID", "x"))
    (entry,) = [entry for entry in found if entry is not None]
    assert entry.operational["GridFabricProducedAt"] == ("20260101120000Z",)


@pytest.mark.parametrize("valid_for_s", [1e9, 1e300, -5.0])
def test_nobody_is_valid_for_ever(valid_for_s: float) -> None:
    machine = top()
    machine.publish("EVIL", 1, Publication(1, True, (Published.whole(queue("x")),), valid_for_s=valid_for_s), NOW)
    due = machine.next_due()
    assert due is not None and NOW < due <= NOW + timedelta(seconds=machine.limits.longest_valid_for_s)


def test_a_region_cannot_say_that_a_site_was_lost_tomorrow() -> None:
    machine = top()
    future = NOW + timedelta(days=400)
    lost = ProducerStatus(ProducerState.UNREACHABLE, future, future, "EVIL is not heard by region.X")
    machine.publish("EVIL", 1, Publication(1, True, status=lost), NOW)
    site = machine.tree.get(site_dn("EVIL"))
    assert site is not None
    assert site.first("GridFabricSiteSince") == site.first("GridFabricSiteLastSeen") == "20260101120000Z"
    assert site.first("GridFabricSiteReason") == "EVIL is not heard by region.X"
    machine.publish("EVIL", 1, Publication(2), NOW + timedelta(seconds=1))
    site = machine.tree.get(site_dn("EVIL"))
    assert site is not None
    assert site.first("GridFabricSiteState") == "current" and site.first("GridFabricSiteReason") == ""
    assert site.first("GridFabricSiteSince") == "20260101120001Z"


def test_a_region_publishes_no_entries_as_itself() -> None:
    machine = InformationMachine("top", "TOP", NOW, expected=["EVIL"], regions=["EVIL"])
    machine.open_stream("EVIL", "EVIL", 1, NOW)
    assert send(machine, queue("x")) == ("a region has no entries of its own",)
    assert names(machine) == set()


@pytest.mark.parametrize(
    "status",
    [
        pb.ProducerStatus(state="on fire"),
        pb.ProducerStatus(state="unreachable", since_us=2**62),
        pb.ProducerStatus(state="awaited", last_seen_us=-(2**62)),
    ],
)
def test_a_status_that_is_none_is_refused(status: pb.ProducerStatus) -> None:
    with pytest.raises(InvalidRequest, match="status of a producer cannot be read"):
        wire.status_from_wire(status)
    right = pb.ProducerStatus(state="unreachable", since_us=1, reason="y" * 10_000)
    assert len(wire.status_from_wire(right).reason) == wire.MAX_REASON_CHARACTERS
