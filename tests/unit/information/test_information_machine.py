from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agents.information.machine import InformationMachine, MachineLimits, site_dn
from agents.information.model import Outcome, ProducerState, Publication, Published
from fabric.errors import Exhausted
from fabric.ldap import Entry, Scope, make_entry, parse_dn, parse_filter

T0 = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
CE = "GlueCEUniqueID=ce.cern.ch:2119/jobmanager-fork-grid"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def ce(free: int = 3, status: str = "Production") -> Entry:
    return make_entry(
        CE,
        {
            "objectClass": ("GlueTop", "GlueCE"),
            "GlueCEUniqueID": CE.partition("=")[2],
            "GlueCEStateFreeJobSlots": free,
            "GlueCEStateStatus": status,
        },
    )


def cluster(name: str = "ce.cern.ch") -> Entry:
    return make_entry(
        f"GlueClusterUniqueID={name}", {"objectClass": ("GlueTop", "GlueCluster"), "GlueClusterUniqueID": name}
    )


def subcluster(name: str = "ce.cern.ch") -> Entry:
    dn = f"GlueSubClusterUniqueID={name},GlueClusterUniqueID={name}"
    return make_entry(dn, {"objectClass": ("GlueTop", "GlueSubCluster"), "GlueSubClusterUniqueID": name})


def changed_ce(**attributes: str | tuple[str, ...]) -> Entry:
    """A CE of its own name with something wrong."""
    right = ce()
    return make_entry("GlueCEUniqueID=wrong", {**right.attributes, "GlueCEUniqueID": "wrong", **attributes})


def snapshot(sequence: int, *entries: Entry) -> Publication:
    return Publication(sequence, snapshot=True, changed=tuple(map(Published.whole, entries)))


def delta(sequence: int, *entries: Entry, removed: tuple[str, ...] = ()) -> Publication:
    return Publication(sequence, changed=tuple(map(Published.whole, entries)), removed=tuple(map(parse_dn, removed)))


def site_machine(**limits: float) -> InformationMachine:
    machine = InformationMachine("site", "CERN", T0, MachineLimits(grace_s=20, **limits))  # type: ignore[arg-type]
    machine.open_stream("gatekeeper.CERN", "CERN", 1, T0)
    return machine


def publish(machine: InformationMachine, publication: Publication, seconds: float = 0.0, stream: int = 1) -> Outcome:
    return machine.publish("gatekeeper.CERN", stream, publication, at(seconds))


def found(machine: InformationMachine, text: str) -> list[Entry]:
    return [e for e in machine.tree.search(parse_dn("o=grid"), Scope.SUBTREE, parse_filter(text)) if e is not None]


def names(entries: tuple[Entry, ...] | list[Entry]) -> set[str]:
    return {str(entry.dn).split(",")[0] for entry in entries}


def state_of(machine: InformationMachine) -> str:
    (entry,) = found(machine, "(GridFabricProducerID=gatekeeper.CERN)")
    return entry.first("GridFabricProducerState")


def test_a_snapshot_shows_under_the_site() -> None:
    machine = site_machine()
    outcome = publish(machine, snapshot(1, ce(), subcluster(), cluster()))
    assert outcome.acknowledged == 1
    assert outcome.became is ProducerState.CURRENT
    assert not outcome.rejected  # the parent came after the child in the message
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert str(entry.dn) == f"{CE},mds-vo-name=CERN,mds-vo-name=local,o=grid"
    assert state_of(machine) == "current"


def test_operational_attributes_say_who_when_and_until_when_and_move_with_signs_of_life() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert entry.operational["GridFabricProducer"] == ("gatekeeper.CERN",)
    assert entry.operational["GridFabricProducedAt"] == ("20260101120000Z",)
    assert entry.operational["GridFabricValidUntil"] == ("20260101120008Z",)
    version = machine.tree.version
    assert not publish(machine, delta(2), 5).change
    assert entry.operational["GridFabricValidUntil"] == ("20260101120013Z",)
    assert machine.tree.version == version
    assert len(found(machine, "(GridFabricProducer=gatekeeper.CERN)")) == 2  # the CE and the producer's state


def test_only_differences_are_changes() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce(), cluster()))
    change = publish(machine, delta(2, ce(free=2), cluster())).change
    assert names(change.changed) == {CE}
    assert not publish(machine, snapshot(3, ce(free=2), cluster())).change


def test_a_snapshot_removes_what_it_does_not_name_when_it_is_whole() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce(), cluster(), subcluster()))
    assert not publish(machine, snapshot(2, ce())).change
    assert not publish(machine, delta(3, subcluster())).change  # second message of the same snapshot
    change = publish(machine, delta(4)).change  # nothing in it: the snapshot is whole
    assert {str(dn).split(",")[0] for dn in change.removed} == {
        "GlueClusterUniqueID=ce.cern.ch",
        "GlueSubClusterUniqueID=ce.cern.ch",  # cannot be shown without its parent
    }
    assert names(found(machine, "(objectClass=GlueTop)")) == {CE}


@pytest.mark.parametrize("sequence", [1, 3, 9])
def test_a_gap_or_a_repetition_asks_for_a_snapshot(sequence: int) -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    outcome = publish(machine, delta(sequence, ce(free=0)))
    assert outcome.resend_snapshot
    assert not outcome.change


def test_a_new_stream_must_begin_with_a_snapshot_and_silences_the_old_one() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    machine.open_stream("gatekeeper.CERN", "CERN", 2, at(1))
    assert publish(machine, delta(2, ce(free=0)), 1, stream=2).resend_snapshot
    assert not publish(machine, delta(2, ce(free=0)), 1, stream=1).change
    assert publish(machine, snapshot(1, ce(free=1)), 1, stream=2).change


def test_expiry_grace_removal_and_return() -> None:
    machine = site_machine()
    assert machine.next_due() is None
    publish(machine, snapshot(1, ce()))
    assert machine.next_due() == at(8)
    assert machine.tick(at(7.9)) == (machine.tick(at(7.9))[0], [])
    change, moved = machine.tick(at(8))
    assert [producer.state for producer in moved] == [ProducerState.UNREACHABLE]
    assert names(change.changed) == {CE, "GridFabricProducerID=gatekeeper.CERN"}
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert entry.first("GlueCEStateStatus") == "Unknown"
    assert entry.operational["GridFabricState"] == ("unreachable",)
    (state,) = found(machine, "(GridFabricProducerID=gatekeeper.CERN)")
    assert state.first("GridFabricProducerSince") == "20260101120008Z"
    assert state.first("GridFabricProducerLastSeen") == "20260101120000Z"

    assert machine.next_due() == at(28)
    change, moved = machine.tick(at(28))
    assert [producer.state for producer in moved] == [ProducerState.GONE]
    assert machine.next_due() == at(8 + machine.limits.forget_s)
    assert [str(dn).split(",")[0] for dn in change.removed] == [CE]
    assert found(machine, "(objectClass=GlueCE)") == []
    assert state_of(machine) == "unreachable"

    assert publish(machine, delta(2), 100).resend_snapshot
    publish(machine, snapshot(3, ce()), 100)
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert entry.first("GlueCEStateStatus") == "Production"
    assert state_of(machine) == "current"


def test_a_producer_that_is_heard_within_the_grace_is_back_at_once() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    machine.tick(at(10))
    outcome = publish(machine, delta(2), 11)
    assert outcome.became is ProducerState.CURRENT
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert entry.first("GlueCEStateStatus") == "Production"
    assert CE in names(outcome.change.changed)


def test_withdrawal_removes_at_once_and_says_so() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    outcome = publish(machine, Publication(2, withdraw=True), 1)
    assert outcome.became is ProducerState.WITHDRAWN
    assert found(machine, "(objectClass=GlueCE)") == []
    assert state_of(machine) == "withdrawn"
    assert publish(machine, delta(3), 2).resend_snapshot
    publish(machine, snapshot(4, ce()), 2)
    assert state_of(machine) == "current"


def test_an_old_state_is_forgotten_in_the_end() -> None:
    machine = site_machine(forget_s=100)
    publish(machine, snapshot(1, ce()))
    publish(machine, Publication(2, withdraw=True), 1)
    machine.tick(at(102))
    assert found(machine, "(GridFabricProducerID=gatekeeper.CERN)") == []
    assert machine.producers == {}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (make_entry("", {"objectClass": "MDS"}), "site itself"),
        (make_entry("mds-vo-name=RAL", {"objectClass": "MDS"}), "kept for information servers"),
        (make_entry("cn=x,mds-vo-name=RAL", {"objectClass": "x"}), "kept for information servers"),
        (make_entry("GridFabricProducerID=x", {"objectClass": "x"}), "kept for information servers"),
        (make_entry("cn=x", {"cn": "x"}), "no objectClass"),
        (Entry(parse_dn("cn=missing").child("GlueClusterUniqueID", "x"), cluster("x").attributes), "parent"),
        (make_entry("cn=x", {"objectClass": "x"}), "object class x is not known"),
        (make_entry("cn=x", {"objectClass": ("GlueTop", "GlueKey")}), "no structural object class"),
        (make_entry("cn=x", {"objectClass": ("GlueCE", "GlueSite")}), "GlueCE and GlueSite exclude one another"),
        (make_entry("cn=x", {"objectClass": ("GlueTop", "GlueCluster")}), "glueclusteruniqueid is missing"),
        (changed_ce(GlueSEName="x"), "attribute GlueSEName is not allowed"),
        (changed_ce(GlueCEStateFreeJobSlots="many"), "attribute GlueCEStateFreeJobSlots has a value that is not"),
        (changed_ce(GlueCEInfoHostName="h\u00f6st"), "attribute GlueCEInfoHostName has a value that is not"),
        (changed_ce(GlueCEStateFreeJobSlots=("1", "2")), "attribute GlueCEStateFreeJobSlots has 2 values"),
        (changed_ce(gluecestatefreejobslots="1"), "under two names"),
        (Entry(parse_dn("GlueCEUniqueID=other"), ce().attributes), "not among its attributes"),
        (make_entry("cn=x", {"objectClass": "x", **{f"a{n}": "v" for n in range(300)}}), "attributes"),
        (make_entry("cn=x", {"objectClass": "x", "a": "v" * 70_000}), "bytes"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_and_the_others_are_kept(entry: Entry, word: str) -> None:
    machine = site_machine()
    outcome = publish(machine, snapshot(1, ce(), entry))
    assert len(outcome.rejected) == 1
    assert word in outcome.rejected[0].reason
    assert len(found(machine, "(objectClass=GlueCE)")) == 1


def test_a_name_belongs_to_whoever_published_it_first() -> None:
    machine = site_machine()
    publish(machine, snapshot(1, ce()))
    machine.open_stream("storage.CERN", "CERN", 2, T0)
    outcome = machine.publish("storage.CERN", 2, snapshot(1, ce(free=99)), T0)
    assert "gatekeeper.CERN" in outcome.rejected[0].reason
    machine.publish("storage.CERN", 2, delta(2, removed=(CE,)), T0)
    (entry,) = found(machine, "(objectClass=GlueCE)")
    assert entry.first("GlueCEStateFreeJobSlots") == "3"


def test_too_many_entries_or_producers_are_refused_whole() -> None:
    machine = site_machine(max_entries=2, max_producers=1)
    with pytest.raises(Exhausted) as caught:
        publish(machine, snapshot(1, ce(), cluster("a"), cluster("b")))
    assert caught.value.reason == "PUBLICATION_TOO_LARGE"
    assert found(machine, "(objectClass=GlueTop)") == []
    publish(machine, snapshot(1, ce(), cluster("a")))
    publish(machine, delta(2, ce(free=0), cluster("a")))  # the same names again are no more
    with pytest.raises(Exhausted):
        publish(machine, delta(3, cluster("b")))
    with pytest.raises(Exhausted) as caught:
        machine.open_stream("other.CERN", "CERN", 2, T0)
    assert caught.value.reason == "TOO_MANY_PRODUCERS"


def test_top_knows_awaited_sites_and_keeps_a_lost_one() -> None:
    machine = InformationMachine("top", "CERN", T0, MachineLimits(grace_s=20), expected=["CERN", "RAL"])
    assert {e.first("GridFabricSiteState") for e in found(machine, "(objectClass=GridFabricSite)")} == {"awaited"}
    machine.open_stream("RAL", "RAL", 1, T0)
    site = make_entry("GlueSiteUniqueID=RAL", {"objectClass": ("GlueTop", "GlueSite"), "GlueSiteUniqueID": "RAL"})
    machine.publish("RAL", 1, snapshot(1, ce(), site), T0)
    (ral,) = found(machine, "(mds-vo-name=RAL)")
    assert ral.dn == site_dn("RAL")
    assert ral.first("GridFabricSiteState") == "current"
    machine.tick(at(8))
    machine.tick(at(28))
    machine.tick(at(10**6))
    (ral,) = found(machine, "(mds-vo-name=RAL)")
    assert ral.first("GridFabricSiteState") == "unreachable"
    assert ral.first("GridFabricSiteLastSeen") == "20260101120000Z"
    assert found(machine, "(objectClass=GlueCE)") == []
    assert len(found(machine, "(objectClass=GlueSite)")) == 1
    machine.publish("RAL", 1, snapshot(2, ce(), site), at(10**6))
    assert len(found(machine, "(GlueCEStateStatus=Production)")) == 1
    (ral,) = found(machine, "(mds-vo-name=RAL)")
    assert ral.first("GridFabricSiteState") == "current"


def test_the_servers_own_entries_do_not_expire_and_can_change() -> None:
    machine = site_machine()
    machine.publish_own("information.CERN", [cluster("a"), cluster("b")], T0)
    machine.tick(at(10**6))
    assert len(found(machine, "(objectClass=GlueCluster)")) == 2
    change = machine.publish_own("information.CERN", [cluster("a")], at(1))
    assert len(change.removed) == 1
