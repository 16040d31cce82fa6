"""A file's life: events in, transfer and pause out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.transfer.machine import (
    Canceled,
    Chosen,
    Cleaned,
    Copied,
    Failed,
    Moving,
    Present,
    Registered,
    Step,
    Transfer,
    Waits,
    step,
)
from agents.transfer.model import ENDED, TransferState
from agents.transfer.policy import NO_SPACE_S, Pauses, Side
from fabric.errors import (
    DataCorrupted,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Refused,
    Unavailable,
)

PAUSES = Pauses(first_s=10, max_s=60, max_attempts=3)
SURL = "srm://se:1/cms/" + "0" * 32
STATE = TransferState


def after(*events: Any, start: Transfer | None = None) -> Step:
    found = Step(start or Transfer(source="a:1"))
    for event in events:
        found = step(found.transfer, event, PAUSES)
    return found


def failed(error: GridError, side: Side = Side.DESTINATION, *sources: str) -> Failed:
    return Failed(side, error, sources or ("a:1",))


def test_the_usual_way() -> None:
    seen = [after(*(Chosen(), Moving(), Copied(SURL), Registered())[:count]).transfer for count in range(5)]
    assert [one.state for one in seen] == [
        STATE.SUBMITTED, STATE.READY, STATE.ACTIVE, STATE.ACTIVE, STATE.FINISHED,
    ]  # fmt: skip
    assert [one.touched for one in seen] == [False, True, True, True, False]
    assert seen[-1].surl == SURL and not seen[-1].reason


@pytest.mark.parametrize(
    ("error", "side", "state", "attempt", "pause_s"),
    [
        (Unavailable("SERVER_UNREACHABLE", "x"), Side.DESTINATION, STATE.SUBMITTED, 2, 10),
        (Unavailable("SERVER_UNREACHABLE", "x"), Side.CATALOGUE, STATE.SUBMITTED, 2, 10),
        (Exhausted("TOO_MANY_TRANSFERS", "x", retry_after_s=1), Side.DESTINATION, STATE.SUBMITTED, 1, 1),
        (Exhausted("TOO_MANY_TRANSFERS", "x"), Side.DESTINATION, STATE.SUBMITTED, 1, 2),
        (Exhausted("DISK_FULL", "x"), Side.DESTINATION, STATE.SUBMITTED, 2, NO_SPACE_S),
        (Exhausted("QUOTA_EXCEEDED", "x"), Side.DESTINATION, STATE.SUBMITTED, 2, NO_SPACE_S),
        (DataCorrupted("CHECKSUM_MISMATCH", "x"), Side.DESTINATION, STATE.SUBMITTED, 2, 10),
        (Refused("OTHER_VO", "x"), Side.DESTINATION, STATE.FAILED, 1, 10),
        (Refused("OTHER_VO", "x"), Side.SOURCE, STATE.FAILED, 1, 10),
        (Refused("NOT_MAPPED", "x"), Side.DESTINATION, STATE.SUBMITTED, 2, 10),
        (NotFound("LFN_NOT_FOUND", "x"), Side.CATALOGUE, STATE.FAILED, 1, 10),
        (NotFound("FILE_NOT_FOUND", "x"), Side.SOURCE, STATE.SUBMITTED, 2, 10),
        (Unavailable("FILE_STAGING", "x", retry_after_s=7), Side.SOURCE, STATE.SUBMITTED, 1, 7),
        (InvalidRequest("SOURCE_IS_HERE", "x"), Side.DESTINATION, STATE.FAILED, 1, 10),
    ],
)
def test_each_cause_has_its_consequence(
    error: GridError, side: Side, state: TransferState, attempt: int, pause_s: float
) -> None:
    transfer, found_s = after(Chosen(), failed(error, side))
    assert (transfer.state, transfer.attempt, transfer.reason) == (state, attempt, error.reason)
    assert transfer.touched  # what it may have left there is known
    if not transfer.ended:
        assert found_s == pause_s


def test_another_source_is_tried_at_once_and_then_the_pauses_grow() -> None:
    lost = NotFound("FILE_NOT_FOUND", "x")
    first = after(Chosen(), failed(lost, Side.SOURCE, "a:1", "b:1"))
    assert first.pause_s == 0 and first.transfer.avoid == ("a:1",)
    second = after(Chosen(), failed(lost, Side.SOURCE, "a:1", "b:1"), start=first.transfer._replace(source="b:1"))
    assert second.pause_s == 20 and second.transfer.avoid == ("b:1", "a:1")
    third = after(Chosen(), failed(lost, Side.SOURCE, "a:1", "b:1"), start=second.transfer)
    assert third.transfer.state is STATE.FAILED and "tried 3 times" in third.transfer.sentence


def test_what_is_on_tape_is_read_elsewhere_at_once_or_waited_for_without_an_attempt() -> None:
    staging = Unavailable("FILE_STAGING", "x", retry_after_s=30)
    first = after(Chosen(), failed(staging, Side.SOURCE, "a:1", "b:1"))
    assert (first.pause_s, first.transfer.attempt, first.transfer.avoid) == (0, 1, ("a:1",))
    found = first.transfer
    for _ in range(1000):
        found, pause_s = after(Chosen(), failed(staging, Side.SOURCE, "a:1"), start=found)
        assert (pause_s, found.attempt, found.state) == (30, 1, STATE.SUBMITTED)


def test_a_service_that_is_away_for_an_hour_costs_no_file() -> None:
    transfer, waited_s = Transfer(source="a:1"), 0.0
    while waited_s < 3600:
        transfer, pause_s = after(Chosen(), failed(Unavailable("SERVER_UNREACHABLE", "x")), start=transfer)
        assert 0 < pause_s <= 60
        waited_s += pause_s
    assert transfer.state is STATE.SUBMITTED


def test_a_whole_copy_is_registered_whatever_happens_and_removed_if_it_may_not_be() -> None:
    copied = after(Chosen(), Copied(SURL)).transfer
    for event in (Canceled("CANCELED", "x"), Waits("", ""), Chosen(), failed(Unavailable("X", "x"), Side.CATALOGUE)):
        assert after(event, start=copied).transfer[:5] == copied[:5]
    refused = after(failed(Refused("ACCESS_DENIED", "x"), Side.CATALOGUE), start=copied).transfer
    assert (refused.state, refused.surl, refused.touched) == (STATE.FAILED, "", True)


def test_cancelled_before_its_turn_it_has_left_nothing() -> None:
    assert not after(Canceled("CANCELED", "x")).transfer.touched
    canceled = after(Chosen(), Moving(), Canceled("CANCELED", "x")).transfer
    assert (canceled.state, canceled.touched) == (STATE.CANCELED, True)
    assert not after(Cleaned(), start=canceled).transfer.touched


def test_a_restart_or_a_missing_proxy_spends_no_attempt() -> None:
    transfer = after(Chosen(), Moving(), Waits("DELEGATION_EXPIRED", "x")).transfer
    assert (transfer.state, transfer.attempt, transfer.touched) == (STATE.SUBMITTED, 1, True)


EVENTS = st.one_of(
    st.sampled_from(
        [Chosen(), Moving(), Copied(SURL), Registered(), Present(SURL), Waits("W", "w"), Canceled("C", "c"), Cleaned()]
    ),
    st.builds(
        failed,
        st.sampled_from(
            [Unavailable("X", "x"), Refused("X", "x"), DataCorrupted("X", "x"), Exhausted("TOO_MANY_TRANSFERS", "x")]
        ),
        st.sampled_from(Side),
    ),
)


@given(st.lists(EVENTS, max_size=12))
def test_in_any_order_an_end_stays_and_nothing_is_left_unknown(events: list[Any]) -> None:
    transfer, chosen, cleaned = Transfer(source="a:1"), False, False
    for event in events:
        before = transfer
        transfer, pause_s = step(transfer, event, PAUSES)
        assert pause_s >= 0
        chosen = chosen or transfer.state is STATE.READY
        cleaned = cleaned or (isinstance(event, Cleaned) and before.ended)
        if before.ended:
            assert (transfer.state, transfer.surl) == (before.state, before.surl)
        if transfer.state in ENDED and chosen and not cleaned and transfer.state is not STATE.FINISHED:
            assert transfer.touched
