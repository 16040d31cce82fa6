"""Sessions: what a server remembers about somebody who proved a chain, until it would not believe it any more.

Kept in memory only; a restarted server knows nobody and clients establish again by themselves. All methods run on the
server's event loop.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from fabric.clock import Clock
from fabric.errors import Exhausted, GridError, Unauthenticated
from fabric.rpc.peer import Peer

MAX_STREAMS_PER_SESSION = 1024
"""Open streams of one session; an agent needs a few for each peer."""
NONCE_LIFETIME_S = 60
"""From Begin to Establish."""
MAX_SPENT_NONCES = 65_536
"""Nonces remembered because somebody proved a key with them: 1 000 sessions a second for a minute."""
_TAG_BYTES = 12

RETRY_REASONS = frozenset({"SESSION_UNKNOWN", "SESSION_EXPIRED"})
"""Reasons after which establishing again makes sense. Anything else (revoked, banned) would be refused again."""


class OpenStream:
    """One streaming call of a session, so that it can be ended when the session is."""

    __slots__ = ("closed_because", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.closed_because: GridError | None = None


@dataclass(eq=False, slots=True)
class Session:
    """One established session. Invariant: it is in its table exactly while `closed_because` is None."""

    token: str = field(repr=False)
    peer: Peer
    expires_at: datetime
    closed_because: GridError | None = None
    streams: set[OpenStream] = field(default_factory=set[OpenStream], repr=False)


class Nonces:
    """Nonces that cost no memory until somebody proves a key with one: the server recognises its own by a keyed hash.

    So nobody without a credential can fill a table of open handshakes.
    """

    def __init__(self, clock: Clock, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._clock, self._random_bytes = clock, random_bytes
        self._key = random_bytes(32)
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def issue(self) -> bytes:
        """32 bytes that `check` accepts for NONCE_LIFETIME_S."""
        body = int(self._clock.monotonic() * 1000).to_bytes(8, "big") + self._random_bytes(32 - 8 - _TAG_BYTES)
        return body + self._tag(body)

    def check(self, nonce: bytes) -> None:
        """Raises Unauthenticated NONCE_UNKNOWN (not ours, or too old) or NONCE_REPLAYED."""
        body, tag = nonce[:-_TAG_BYTES], nonce[-_TAG_BYTES:]
        if len(nonce) != 32 or not hmac.compare_digest(tag, self._tag(body)):
            raise _unknown_nonce()
        age_s = self._clock.monotonic() - int.from_bytes(body[:8], "big") / 1000
        if not -1 <= age_s <= NONCE_LIFETIME_S:
            raise _unknown_nonce()
        if nonce in self._spent:
            raise Unauthenticated(
                "NONCE_REPLAYED", "this nonce was used before; call Begin for another and prove the key again"
            )

    def spend(self, nonce: bytes) -> None:
        """Take a checked nonce out of use. Raises NONCE_REPLAYED, Exhausted SESSIONS_EXHAUSTED."""
        self.check(nonce)
        now = self._clock.monotonic()
        while self._spent and (next(iter(self._spent.values())) < now - NONCE_LIFETIME_S - 1):
            self._spent.popitem(last=False)
        if len(self._spent) >= MAX_SPENT_NONCES:
            raise Exhausted(
                "SESSIONS_EXHAUSTED", "too many sessions are being established here; try again later", retry_after_s=5
            )
        self._spent[nonce] = now

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_TAG_BYTES]


def _unknown_nonce() -> Unauthenticated:
    return Unauthenticated(
        "NONCE_UNKNOWN",
        f"this nonce is not of this server or older than {NONCE_LIFETIME_S} s; call Begin and prove the key again",
    )


class SessionTable:
    """The sessions of one server, bounded in all and for each owner; the least recently used goes first."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_sessions: int,
        max_per_owner: int,
        random_bytes: Callable[[int], bytes] = os.urandom,
        closed: Callable[[Session, GridError], None] | None = None,
    ) -> None:
        """`closed` is told of every session that ends, for the audit log."""
        self._clock, self._random_bytes, self._closed = clock, random_bytes, closed
        self._max_sessions, self._max_per_owner = max_sessions, max_per_owner
        self._sessions: dict[str, Session] = {}
        self._owners: dict[str, OrderedDict[str, Session]] = {}
        self._tombs: OrderedDict[str, GridError] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def open(self, peer: Peer, expires_at: datetime) -> Session:
        """A new session; may close the least recently used of the same owner, or of the owner with the most."""
        owned = self._owners.get(peer.subject)
        if owned is not None and len(owned) >= self._max_per_owner:
            self._evict(owned)
        while len(self._sessions) >= self._max_sessions:
            self._evict(max(self._owners.values(), key=len))
        token = base64.urlsafe_b64encode(self._random_bytes(32)).rstrip(b"=").decode("ascii")
        session = Session(token, peer, expires_at)
        self._sessions[token] = session
        self._owners.setdefault(peer.subject, OrderedDict())[token] = session
        return session

    def _evict(self, owned: OrderedDict[str, Session]) -> None:
        # One with open streams is in use even if it made no new call; among equals the least recently used.
        victim = next((s for s in owned.values() if not s.streams), None) or next(iter(owned.values()))
        self.close(victim, _expired(f"the session of {victim.peer.subject} gave way to newer ones; establish it again"))

    def find(self, token: str) -> Session:
        """The open session of a token. Raises Unauthenticated SESSION_UNKNOWN, SESSION_EXPIRED, or why it was
        closed."""
        session = self._sessions.get(token)
        if session is None:
            raise self._tombs.get(token) or Unauthenticated(
                "SESSION_UNKNOWN", "this server does not know the session (it may have restarted); establish it again"
            )
        if session.expires_at <= self._clock.now():
            raise self.expire(session)
        self._owners[session.peer.subject].move_to_end(token)
        return session

    def expire(self, session: Session) -> GridError:
        """Close a session whose time is over; returns the reason."""
        reason = _expired(
            f"the session of {session.peer.subject} expired at {session.expires_at:%Y-%m-%dT%H:%M:%SZ}; "
            f"establish it again"
        )
        self.close(session, reason)
        return reason

    def sweep(self) -> float:
        """Close what has expired, so that its streams end too. Seconds until the next one does."""
        now = self._clock.now()
        for session in [s for s in self._sessions.values() if s.expires_at <= now]:
            self.expire(session)
        ends = (session.expires_at for session in self._sessions.values())
        return (min(ends) - now).total_seconds() if self._sessions else math.inf

    def close(self, session: Session, reason: GridError) -> None:
        """End a session and its streams; later calls with it get the same reason. Idempotent."""
        if session.closed_because is not None:
            return
        session.closed_because = reason
        del self._sessions[session.token]
        owned = self._owners[session.peer.subject]
        del owned[session.token]
        if not owned:
            del self._owners[session.peer.subject]
        self._tombs[session.token] = reason
        while len(self._tombs) > self._max_sessions:
            self._tombs.popitem(last=False)
        for stream in session.streams:
            stream.closed_because = reason
            stream.task.cancel()
        if self._closed is not None:
            self._closed(session, reason)

    def close_all(self, reason: GridError) -> None:
        """End every session, for a server that stops."""
        for session in self:
            self.close(session, reason)


@contextmanager
def streaming(session: Session | None) -> Generator[OpenStream]:
    """Registers the running task as a stream of the session while the block runs.

    Raises the reason if the session is closed already, Exhausted STREAMS_EXHAUSTED if it has too many.
    """
    task = asyncio.current_task()
    assert task is not None
    stream = OpenStream(task)
    if session is None:
        yield stream
        return
    if session.closed_because is not None:
        raise session.closed_because
    if len(session.streams) >= MAX_STREAMS_PER_SESSION:
        raise Exhausted(
            "STREAMS_EXHAUSTED",
            f"the session of {session.peer.subject} has {MAX_STREAMS_PER_SESSION} open streams; close some first",
            retry_after_s=5,
        )
    session.streams.add(stream)
    try:
        yield stream
    finally:
        session.streams.discard(stream)


def _expired(sentence: str) -> Unauthenticated:
    return Unauthenticated("SESSION_EXPIRED", sentence)
