"""Epochs of brokers: whose events count."""

import pytest

from agents.bookkeeping import brokers, tables
from fabric.errors import Conflict, NotFound
from fabric.store import Store


@pytest.fixture
def write(tmp_path):
    opened = Store(tmp_path / "bookkeeping.db", tables.metadata)
    yield lambda act, *args: opened.write_sync(lambda connection: act(connection, *args))
    opened.close_sync()


def test_a_broker_that_nobody_has_taken_over_goes_on(write):
    write(brokers.require_epoch, "b1", 0)  # a grid with one broker
    assert write(brokers.begin, "b1", 0, "b2") == (1, "")
    assert write(brokers.begin, "b1", 1, "b2") == (1, "")
    write(brokers.require_epoch, "b1", 1)


def test_who_was_taken_over_is_fenced_until_it_begins_anew(write):
    write(brokers.begin, "b1", 0, "b2")
    assert write(brokers.end, "b1", "b2") == 1
    assert write(brokers.end, "b1", "b2") == 1  # the answer was lost
    with pytest.raises(Conflict, match="b2 has taken over the jobs of b1") as caught:
        write(brokers.require_epoch, "b1", 1)
    assert caught.value.reason == "BROKER_FENCED"
    assert write(brokers.begin, "b1", 1, "b2") == (2, "b2")
    assert write(brokers.begin, "b1", 1, "b2") == (2, "b2")  # until it has handed over
    assert write(brokers.begin, "b1", 2, "b2") == (2, "")
    write(brokers.require_epoch, "b1", 2)
    assert write(brokers.end, "b1", "b2") == 2


def test_of_two_that_take_over_one_wins(write):
    write(brokers.begin, "b1", 0, "b2")
    write(brokers.end, "b1", "b2")
    with pytest.raises(Conflict, match="b2 has taken over the jobs of b1 already") as caught:
        write(brokers.end, "b1", "b3")
    assert (caught.value.reason, caught.value.facts["taken_by"]) == ("BROKER_TAKEN", "b2")


def test_a_broker_whose_disk_is_new_leaves_what_it_had_to_its_successor(write):
    write(brokers.begin, "b1", 0, "b2")
    assert write(brokers.begin, "b1", 0, "b2") == (2, "b2")
    with pytest.raises(Conflict):
        write(brokers.require_epoch, "b1", 1)
    assert write(brokers.begin, "b1", 2, "b2") == (2, "")


def test_a_bookkeeping_whose_database_is_new_believes_what_brokers_kept(write):
    assert write(brokers.begin, "b1", 5, "b2") == (5, "")


def test_nobody_takes_over_from_a_broker_that_never_was(write):
    with pytest.raises(NotFound, match="no broker 'b9' has ever begun here"):
        write(brokers.end, "b9", "b2")


@pytest.fixture
def lapsed(write):
    """b1 wants a lease of 30 s and was heard of at 0; then whether b2 may take over at a time."""
    leases = brokers.Leases(0.0)
    write(brokers.begin, "b1", 0, "b2")
    write(brokers.set_lease, "b1", 30.0)
    return lambda now_s, leases=leases: write(brokers.require_lapsed, leases, "b1", "b2", now_s)


def test_a_lease_is_held_for_its_time_after_the_last_word_and_then_lapses(lapsed):
    for at_s in (10, 20, 29):
        with pytest.raises(Conflict, match="b1 was heard of; its lease lasts for") as caught:
            lapsed(at_s)
        assert (caught.value.reason, caught.value.retry_after_s) == ("LEASE_HELD", 30 - at_s)
    lapsed(31)


def test_every_lease_begins_anew_after_a_time_in_which_nobody_was_heard_of(lapsed):
    for at_s in (1000, 1010, 1020):  # bookkeeping was stopped, or its network was
        with pytest.raises(Conflict, match="lasts for"):
            lapsed(at_s)
    lapsed(1031)


def test_a_word_of_the_broker_lengthens_its_lease_and_no_one_elses(write, lapsed):
    leases = brokers.Leases(0.0)
    for at_s in (10, 20):
        leases.heard("b1", 30.0, at_s)
        leases.heard("b2", 30.0, at_s)
    leases.heard("b2", 30.0, 30)
    assert (leases.left_s("b1", 30.0, 31), leases.left_s("b2", 30.0, 31)) == (19, 29)


def test_who_has_no_lease_is_never_taken_over_from_by_itself(write):
    write(brokers.begin, "b1", 0, "b2")
    for lease_s in (0.0, 30.0, 0.0):
        write(brokers.set_lease, "b1", lease_s)
    for name in ("b1", "b9"):
        with pytest.raises(Conflict, match="only an operator") as caught:
            write(brokers.require_lapsed, brokers.Leases(0.0), name, "b2", 1e6)
        assert caught.value.reason == "LEASE_NONE"


def test_who_has_taken_over_may_ask_again_whatever_the_lease_says(write, lapsed):
    write(brokers.end, "b1", "b2")
    lapsed(1)
