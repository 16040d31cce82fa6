"""Which proxies a broker still has to send to its successor: no renewal is lost, whenever it comes."""

from __future__ import annotations

from itertools import product

from agents.broker.succession import ProxiesDue


def test_the_newest_proxy_arrives_in_every_interleaving_of_renewing_and_sending() -> None:
    """Steps of a renewal and of the sender, in every order of up to seven; then the sender gets its way."""
    for steps in product(("renewed", "begins", "arrives", "fails"), repeat=7):
        due, newest, under_way, arrived = ProxiesDue(), 1, 0, 0
        due.add(["alice"])

        def begin(due: ProxiesDue = due) -> bool:
            owners = due.first(1)
            for owner in owners:
                due.taken(owner)
            return bool(owners)

        for step in steps:
            if step == "renewed":
                newest += 1
                due.add(["alice"])
            elif step == "begins" and not under_way and begin():
                under_way = newest
            elif step == "arrives" and under_way:
                arrived, under_way = under_way, 0
            elif step == "fails" and under_way:
                due.add(["alice"])
                under_way = 0
        arrived = under_way or arrived
        while begin():
            arrived = newest
        assert arrived == newest, steps


def test_who_fails_goes_to_the_end() -> None:
    due = ProxiesDue()
    due.add(["alice", "bob", "carol"])
    assert due.first(2) == ["alice", "bob"]
    due.taken("alice")
    due.add(["alice"])
    assert due.first(2) == ["bob", "carol"]
