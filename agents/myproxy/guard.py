"""Brute force: failures are counted by whom they hit and by whom they come from; each more waits twice as long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from agents.myproxy.config import MyProxyConfig
from fabric.errors import Exhausted

MAX_COUNTERS = 50_000
"""Of each kind; the one that failed longest ago goes first."""


@dataclass
class _Counter:
    failures: int
    at: float
    """Of the last failure, monotonic."""


class _Counters:
    def __init__(self, free: int, config: MyProxyConfig, longest_s: float) -> None:
        self._free, self._config, self._longest_s = free, config, longest_s
        self._found: OrderedDict[str, _Counter] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        counter = self._found.get(key)
        if counter is None or counter.failures < self._free:
            return 0.0
        if now - counter.at >= max(self._config.forget_failures_s, self._longest_s):
            del self._found[key]
            return 0.0
        doubled = self._config.back_off_s * 2.0 ** min(counter.failures - self._free, 40)
        return max(0.0, counter.at + min(doubled, self._longest_s) - now)

    def failed(self, key: str, now: float) -> None:
        counter = self._found.pop(key, None)
        if counter is not None and now - counter.at >= max(self._config.forget_failures_s, self._longest_s):
            counter = None
        self._found[key] = _Counter((counter.failures if counter else 0) + 1, now)
        while len(self._found) > MAX_COUNTERS:
            self._found.popitem(last=False)

    def undo(self, key: str) -> None:
        counter = self._found.get(key)
        if counter is not None:
            counter.failures -= 1
            if counter.failures <= 0:
                del self._found[key]

    def forget(self, key: str) -> None:
        self._found.pop(key, None)

    def __len__(self) -> int:
        return len(self._found)


class Attempt:
    """One attempt at a secret, already counted as a failure: so many at once get no free guesses."""

    def __init__(self, guard: Guard, user: str, peers: tuple[str, ...]) -> None:
        self._guard, self._user, self._peers = guard, user, peers

    def succeeded(self) -> None:
        """It was right. Failures of a peer stay: an attacker could have a credential of its own here."""
        self._guard.succeeded(self._user, self._peers)

    def withdrawn(self) -> None:
        """It was not judged at all."""
        self._guard.withdrawn(self._user, self._peers)


class Guard:
    """All counters, in memory and bounded; a restart forgets them. The caller gives the time (monotonic seconds)."""

    def __init__(self, config: MyProxyConfig) -> None:
        self._users = _Counters(config.failures_per_user, config, config.max_back_off_user_s)
        self._peers = _Counters(config.failures_per_peer, config, config.max_back_off_peer_s)

    def attempt(self, user: str, peers: Iterable[str], now: float, *, is_owner: bool = False) -> Attempt:
        """Before a secret is looked at. Raises Exhausted TOO_MANY_FAILURES, equal for known and unknown users.

        `is_owner`: the client has proved to be the owner; failures of others at its name do not make it wait.
        """
        names = tuple(peers)
        user_s = 0.0 if is_owner else self._users.wait_s(user, now)
        peer_s = max((self._peers.wait_s(name, now) for name in names), default=0.0)
        wait_s = max(user_s, peer_s)
        if wait_s > 0:
            whose = f"for the user name {user!r}" if user_s >= peer_s else "from you"
            raise Exhausted(
                "TOO_MANY_FAILURES",
                f"there were too many wrong attempts {whose}; try again in {max(1, round(wait_s))} s",
                retry_after_s=f"{wait_s:.3f}",
            )
        self._users.failed(user, now)
        for name in names:
            self._peers.failed(name, now)
        return Attempt(self, user, names)

    def succeeded(self, user: str, peers: tuple[str, ...]) -> None:
        """See `Attempt`."""
        self._users.forget(user)
        for name in peers:
            self._peers.undo(name)

    def withdrawn(self, user: str, peers: tuple[str, ...]) -> None:
        """See `Attempt`."""
        self._users.undo(user)
        for name in peers:
            self._peers.undo(name)

    def __len__(self) -> int:
        return len(self._users) + len(self._peers)
