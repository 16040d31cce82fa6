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
