"""Clock, identifiers, nonces and the table of sessions."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.clock import ManualClock, SystemClock, from_us, to_us, utc_text
from fabric.errors import GridError, Refused, Unauthenticated
from fabric.ids import is_unique_id, unique_id
from fabric.rpc import sessions as module
from fabric.rpc.peer import ANONYMOUS, Peer, Standing, current_peer, require_identity
from fabric.rpc.sessions import Nonces, Session, SessionTable, streaming

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_on_the_wire_are_exact(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        to_us(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2026, 1, 1))
    assert utc_text(NOW) == "2026-06-01T12:00:00.000000Z"


def test_clocks() -> None:
    clock = ManualClock(NOW)
    clock.advance(2.5)
    assert clock.now() == NOW + timedelta(seconds=2.5) and clock.monotonic() == 2.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    assert SystemClock().now().tzinfo is UTC and SystemClock().monotonic() <= SystemClock().monotonic()


def test_unique_ids() -> None:
    made = {unique_id() for _ in range(1000)}
    assert len(made) == 1000 and all(is_unique_id(name) for name in made)
    assert not any(name.startswith("-") for name in made), "a command would take it for an option"
    assert unique_id(lambda size: b"\xfb" * size)[:2] == "A_"
    assert unique_id(lambda count: b"\0" * count) == "A" * 22
    for bad in ("", "A" * 21, "A" * 23, "A" * 21 + "/", "Ä" * 22):
        assert not is_unique_id(bad)


def refused(function: object, *arguments: object) -> str:
    with pytest.raises(GridError) as found:
        function(*arguments)  # type: ignore[operator]
    return found.value.reason


def test_a_nonce_is_good_once_for_a_minute_on_its_own_server() -> None:
    clock = ManualClock(NOW)
    nonces = Nonces(clock)
    nonce = nonces.issue()
    nonces.check(nonce)
    nonces.check(nonce)
    nonces.spend(nonce)
    assert refused(nonces.check, nonce) == refused(nonces.spend, nonce) == "NONCE_REPLAYED"
    assert refused(Nonces(clock).check, nonces.issue()) == "NONCE_UNKNOWN"
    old = nonces.issue()
    clock.advance(61)
    assert refused(nonces.check, old) == "NONCE_UNKNOWN"
    assert refused(nonces.check, nonce) == "NONCE_UNKNOWN"


@given(st.binary(max_size=64))
def test_no_other_bytes_are_a_nonce(data: bytes) -> None:
    assert refused(Nonces(ManualClock(NOW)).check, data) == "NONCE_UNKNOWN"


def test_one_flipped_bit_is_enough() -> None:
    nonces = Nonces(ManualClock(NOW))
    nonce = nonces.issue()
    for bit in range(256):
        changed = bytearray(nonce)
        changed[bit // 8] ^= 1 << bit % 8
        assert refused(nonces.check, bytes(changed)) == "NONCE_UNKNOWN"


def test_spent_nonces_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPENT_NONCES", 3)
    clock = ManualClock(NOW)
    nonces = Nonces(clock)
    for _ in range(3):
        nonces.spend(nonces.issue())
    assert refused(nonces.spend, nonces.issue()) == "SESSIONS_EXHAUSTED"
    clock.advance(62)
    nonces.spend(nonces.issue())


def peer(name: str) -> Peer:
    return Peer(f"/CN={name}", None, Standing(), name, False)


def table(clock: ManualClock, most: int = 4, each: int = 2) -> tuple[SessionTable, list[tuple[str, str]]]:
    closed: list[tuple[str, str]] = []
    made = SessionTable(
        clock,
        max_sessions=most,
        max_per_owner=each,
        closed=lambda session, reason: closed.append((session.peer.subject, reason.reason)),
    )
    return made, closed


def opened(sessions: SessionTable, name: str) -> Session:
    return sessions.open(peer(name), NOW + timedelta(hours=1))


def test_a_session_is_found_until_it_ends() -> None:
    clock = ManualClock(NOW)
    sessions, closed = table(clock)
    session = opened(sessions, "a")
    assert sessions.find(session.token) is session and session.token not in repr(session)
    assert refused(sessions.find, "other") == "SESSION_UNKNOWN"
    clock.advance(3600)
    assert refused(sessions.find, session.token) == "SESSION_EXPIRED"
    assert refused(sessions.find, session.token) == "SESSION_EXPIRED"
    assert len(sessions) == 0 and closed == [("/CN=a", "SESSION_EXPIRED")]


def test_a_closed_session_keeps_its_reason_and_memory_is_bounded() -> None:
    sessions, closed = table(ManualClock(NOW))
    first = opened(sessions, "a")
    reason = Refused("BANNED", "a is banned")
    sessions.close(first, reason)
    sessions.close(first, Unauthenticated("OTHER", "later"))
    with pytest.raises(Refused) as found:
        sessions.find(first.token)
    assert found.value is reason and closed == [("/CN=a", "BANNED")]
    for _ in range(10):
        sessions.close(opened(sessions, "a"), reason)
    assert refused(sessions.find, first.token) == "SESSION_UNKNOWN"


def test_the_owners_least_recently_used_goes_first() -> None:
    sessions, closed = table(ManualClock(NOW))
    first, second = opened(sessions, "a"), opened(sessions, "a")
    sessions.find(first.token)
    third = opened(sessions, "a")
    assert {s.token for s in sessions} == {first.token, third.token}
    assert refused(sessions.find, second.token) == "SESSION_EXPIRED" and len(closed) == 1


def test_when_all_is_full_the_owner_with_most_gives_way() -> None:
    sessions, _ = table(ManualClock(NOW))
    quiet = opened(sessions, "quiet")
    for name in ("greedy", "greedy", "b", "c"):
        opened(sessions, name)
    assert len(sessions) == 4 and sessions.find(quiet.token) is quiet
    assert sorted(s.peer.subject for s in sessions) == ["/CN=b", "/CN=c", "/CN=greedy", "/CN=quiet"]


async def test_closing_ends_streams_with_the_reason() -> None:
    sessions, _ = table(ManualClock(NOW))
    session = opened(sessions, "a")
    reason = Refused("BANNED", "a is banned")
    seen: list[object] = []

    async def stream() -> None:
        with streaming(session) as own:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(own.closed_because)

    tasks = [asyncio.create_task(stream()) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(session.streams) == 3
    sessions.close(session, reason)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == [reason] * 3 and not session.streams
    with pytest.raises(Refused), streaming(session):
        pass


async def test_a_session_in_use_by_a_stream_is_not_the_first_to_go() -> None:
    sessions, _ = table(ManualClock(NOW))
    busy = opened(sessions, "a")
    with streaming(busy):
        opened(sessions, "a")
        opened(sessions, "a")
        assert sessions.find(busy.token) is busy


async def test_streams_of_a_session_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS_PER_SESSION", 1)
    sessions, _ = table(ManualClock(NOW))
    session = opened(sessions, "a")
    with streaming(session), pytest.raises(GridError) as found, streaming(session):
        pass
    assert found.value.reason == "STREAMS_EXHAUSTED"


def test_nobody_is_anonymous_and_has_no_identity() -> None:
    assert current_peer() is ANONYMOUS and ANONYMOUS.account == "" and not ANONYMOUS.is_administrator
    assert refused(require_identity, ANONYMOUS) == "SESSION_MISSING"


def test_tokens_have_256_bits() -> None:
    sessions, _ = table(ManualClock(NOW))
    tokens = {opened(sessions, os.urandom(4).hex()).token for _ in range(100)}
    assert len(tokens) == 100 and all(len(token) == 43 for token in tokens)
