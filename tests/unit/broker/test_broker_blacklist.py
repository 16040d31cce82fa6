"""CEs that fail jobs get none for a while, and come back; one user's failures are his own."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agents.broker import blacklist as b
from agents.broker.blacklist import EVERYBODY, Blacklist, Held
from agents.broker.policy import RULES, Blame

SITE = "SCRATCH_FAILED"


def failed(found: Blacklist, times: int, cause: str = SITE, owner: str = "a", now_s: float = 0.0) -> None:
    for _ in range(times):
        found.failed("ce", owner, cause, now_s)


def test_four_failures_list_a_ce_until_half_of_them_have_faded():
    found = Blacklist()
    failed(found, 3)
    assert not found.shunned("b", 0.0)
    listing = found.failed("ce", "a", SITE, 0.0)
    assert listing is not None
    assert (listing.owner, listing.left_s, listing.cause, listing.failures) == (EVERYBODY, b.HALF_LIFE_S, SITE, 4)
    assert found.shunned("b", b.HALF_LIFE_S - 1) == {"ce"}
    assert not found.shunned("b", b.HALF_LIFE_S + 1)
    assert found.probed(b.HALF_LIFE_S + 1) == {"ce"}
    assert "one at a time" in found.for_owner("b", b.HALF_LIFE_S + 1)["ce"].sentence


def test_a_probe_decides():
    found, now_s = Blacklist(), b.HALF_LIFE_S + 1
    failed(found, 4)
    listing = found.failed("ce", "a", SITE, now_s)
    assert listing is not None
    assert listing.left_s == 2 * b.HALF_LIFE_S
    now_s += listing.left_s + 1
    found.ended("ce", "b", now_s)
    assert not found.listings(now_s)
    failed(found, 3, now_s=now_s)
    assert not found.shunned("a", now_s)


def test_failures_far_apart_or_few_among_many_ends_list_nobody():
    found = Blacklist()
    for number in range(100):
        failed(found, 1, now_s=number * b.HALF_LIFE_S)
    assert not found.listings(100 * b.HALF_LIFE_S)
    found = Blacklist()
    for number in range(50):
        failed(found, 1, now_s=float(number))
        for _ in range(3):
            found.ended("ce", "a", float(number))
    assert not found.listings(50.0)


def test_what_concerns_one_user_is_held_against_the_ce_for_him_alone():
    found = Blacklist()
    failed(found, 9, "ACCESS_DENIED", "a")
    assert found.shunned("a", 1.0) == {"ce"}
    assert not found.shunned("b", 1.0)
    assert not found.probed(b.HALF_LIFE_S * 20)
    assert "of yours" in found.for_owner("a", 1.0)["ce"].sentence


def test_a_users_broken_jobs_and_a_node_that_dies_with_hundreds_list_nobody():
    found = Blacklist()
    failed(found, 1000, "EXEC_FAILED")
    failed(found, 1000, "INPUT_DATA_UNKNOWN")
    failed(found, 1000, "WORKER_LOST")
    assert not found.listings(0.0)
    for number in range(1, 4):
        failed(found, 5, "WORKER_LOST", now_s=number * b.TOGETHER_S)
    assert found.shunned("b", 31.0) == {"ce"}


def test_it_takes_a_bounded_place():
    found = Blacklist()
    for number in range(3 * b.MAX_RECORDS):
        found.failed(f"ce{number}", "a", f"CAUSE_{number}", 0.0)
    assert len(found._records) <= b.MAX_RECORDS


causes = st.sampled_from([cause for cause, rule in RULES.items() if rule.blame is not Blame.NOBODY] + ["ODD"])


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans(), causes, st.sampled_from("ab")), max_size=60))
def test_nothing_lasts_longer_than_an_hour_and_no_more(events):
    found, now_s = Blacklist(), 0.0
    for passed, ends, cause, owner in events:
        now_s += passed
        if ends:
            found.ended("ce", owner, now_s)
        else:
            found.failed("ce", owner, cause, now_s)
        for listing in found.listings(now_s):
            assert listing.left_s <= 12 * b.HALF_LIFE_S + 1e-6
            assert found.shunned(listing.owner, now_s) or listing.left_s <= 0
    later_s = now_s + 12 * b.HALF_LIFE_S + 1
    assert not found.shunned("a", later_s)
    assert not found.shunned("b", later_s)


def test_what_is_held_against_ces_goes_on_over_a_restart():
    before = Blacklist()
    failed(before, 4, now_s=1000.0)
    before.failed("ce", "a", "ACCESS_DENIED", 1000.0)
    before.failed("gone", "a", SITE, 1000.0)
    before.ended("gone", "a", 1000.0)
    before.ended("gone", "a", 1000.0)
    kept = {(item.ce, item.owner): item for item in before.changed(1010.0)}
    assert kept["gone", EVERYBODY].failed == 0
    assert not before.changed(1010.0)
    later = [item for item in kept.values() if item.failed]
    after = Blacklist(kept=[replace(item, age_s=item.age_s + 5) for item in later], now_s=3.0)  # 15 s after all this
    assert after.listings(3.0) == before.listings(1015.0)
    assert {owner: after.shunned(owner, 3.0) for owner in "ab"} == {
        owner: before.shunned(owner, 1015.0) for owner in "ab"
    }
    (listed,) = [item for item in later if item.listings]
    assert Blacklist(kept=[replace(listed, age_s=-1e9)]).listings(0.0)[0].left_s <= b.HALF_LIFE_S


def test_no_more_is_kept_than_fits():
    found = Blacklist()
    rows: dict[tuple[str, str], Held] = {}
    for number in range(b.MAX_RECORDS + 500):
        found.failed(f"ce{number}", "a", SITE, float(number))
        if number % 1000 == 0:
            keep(rows, found.changed(float(number)))
    keep(rows, found.changed(0.0))
    assert len(rows) <= b.MAX_RECORDS


def keep(rows: dict[tuple[str, str], Held], changed: list[Held]) -> None:
    for item in changed:
        rows[item.ce, item.owner] = item
        if not item.failed:
            del rows[item.ce, item.owner]
