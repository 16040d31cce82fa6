"""Brute force: failures are counted by whom they hit and by whom they come from; each more waits twice as long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from agents.myproxy.config import MyProxyConfig
from fabric.errors import Exhausted

MAX_COUNTERS = 50_000
"""Of each kind; the one that failed longest ago goes first."""


class TooManyAtOnceError(Exception):
    """As many attempts are being judged now as could be wrong without a wait; ask again when one of them is over."""


@dataclass
class _Counter:
    failures: int = 0
    judging: int = 0
    """Attempts under way."""
    at: float = 0.0
    """Of the last failure, monotonic."""
    forgiven_at: float = 0.0
    """Until when failures have been forgiven."""


class _Counters:
    def __init__(self, free: int, config: MyProxyConfig, longest_s: float) -> None:
        self._free, self._longest_s = free, longest_s
        self._first_s = config.back_off_s
        self._forgive_s = config.forget_failures_s / free
        """For each failure: users who mistype now and then behind one address must not add up."""
        self._found: OrderedDict[str, _Counter] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        counter = self._found.get(key)
        if counter is None:
            return 0.0
        self._forgive(counter, now)
        if counter.failures < self._free:
            return 0.0
        doubled = self._first_s * 2.0 ** min(counter.failures - self._free, 40)
        return max(0.0, counter.at + min(doubled, self._longest_s) - now)

    def _forgive(self, counter: _Counter, now: float) -> None:
        many = int((now - counter.forgiven_at) / self._forgive_s)
        counter.failures = max(0, counter.failures - many)
        counter.forgiven_at += many * self._forgive_s

    def is_full(self, key: str) -> bool:
        counter = self._found.get(key)
        return counter is not None and 0 < counter.judging >= self._free - counter.failures

    def begin(self, key: str) -> None:
        self._found.setdefault(key, _Counter()).judging += 1
        while len(self._found) > MAX_COUNTERS:
            self._found.popitem(last=False)

    def end(self, key: str, failed_at: float | None = None) -> None:
        counter = self._found.setdefault(key, _Counter(judging=1))
        counter.judging -= 1
        if failed_at is not None:
            if not counter.failures:
                counter.forgiven_at = failed_at
            self._forgive(counter, failed_at)
            counter.failures, counter.at = counter.failures + 1, failed_at
            self._found.move_to_end(key)
        elif not counter.failures and not counter.judging:
            del self._found[key]

    def forget(self, key: str) -> None:
        counter = self._found.get(key)
        if counter is not None:
            counter.failures = 0

    def __len__(self) -> int:
        return len(self._found)


class Attempt:
    """One attempt at a secret under way. Exactly one of its methods is called."""

    def __init__(self, guard: Guard, user: str | None, peers: tuple[str, ...]) -> None:
        self._guard, self._user, self._peers = guard, user, peers

    def succeeded(self) -> None:
        """It was right. Failures of a peer stay: an attacker could have a credential of its own here."""
        if self._user is not None:
            self._guard.users.forget(self._user)
        self.withdrawn()

    def failed(self, now: float) -> None:
        """It was wrong, or the client left before it was told."""
        self._end(now)

    def withdrawn(self) -> None:
        """It was not judged."""
        self._end(None)

    def _end(self, failed_at: float | None) -> None:
        if self._user is not None:
            self._guard.users.end(self._user, failed_at)
        for name in self._peers:
            self._guard.peers.end(name, failed_at)


class Guard:
    """All counters, in memory and bounded; a restart forgets them. The caller gives the time (monotonic seconds)."""

    def __init__(self, config: MyProxyConfig) -> None:
        self.users = _Counters(config.failures_per_user, config, config.max_back_off_user_s)
        self.peers = _Counters(config.failures_per_peer, config, config.max_back_off_peer_s)

    def attempt(self, user: str, peers: Iterable[str], now: float, *, is_owner: bool = False) -> Attempt:
        """Before a secret is looked at; equal for known and unknown users. Attempts under way count as if they were
        wrong, so that many at once get no free guesses.

        `is_owner`: the client has proved to be the owner; failures of others at its name do not make it wait.
        Raises Exhausted TOO_MANY_FAILURES, and TooManyAtOnceError.
        """
        names = tuple(dict.fromkeys(peers))
        user_s = 0.0 if is_owner else self.users.wait_s(user, now)
        peer_s = max((self.peers.wait_s(name, now) for name in names), default=0.0)
        wait_s = max(user_s, peer_s)
        if wait_s > 0:
            whose = f"for the user name {user!r}" if user_s >= peer_s else "from you"
            raise Exhausted(
                "TOO_MANY_FAILURES",
                f"there were too many wrong attempts {whose}; try again in {max(1, round(wait_s))} s",
                retry_after_s=f"{wait_s:.3f}",
            )
        if (not is_owner and self.users.is_full(user)) or any(self.peers.is_full(name) for name in names):
            raise TooManyAtOnceError
        if not is_owner:
            self.users.begin(user)
        for name in names:
            self.peers.begin(name)
        return Attempt(self, None if is_owner else user, names)

    def __len__(self) -> int:
        return len(self.users) + len(self.peers)
