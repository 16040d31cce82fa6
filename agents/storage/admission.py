"""How many transfers run at one time, in all and for one identity. Pure counters; the refusal says when to come
back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fabric.errors import Exhausted

RETRY_AFTER_S = 1


class Admission:
    """Counts transfers under way."""

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._by_user: Counter[str] = Counter()
        self.running = 0

    @contextmanager
    def transfer(self, identity: str) -> Iterator[None]:
        """Hold one place. Raises Exhausted(TOO_MANY_TRANSFERS) at once instead of waiting: the caller knows better."""
        if self.running >= self._limit:
            raise Exhausted(
                "TOO_MANY_TRANSFERS",
                f"this storage element already moves {self._limit} files; try again in {RETRY_AFTER_S} s",
                limit=self._limit,
                retry_after_s=RETRY_AFTER_S,
            )
        if self._by_user[identity] >= self._limit_per_user:
            raise Exhausted(
                "TOO_MANY_TRANSFERS",
                f"{identity} already moves {self._limit_per_user} files here; try again in {RETRY_AFTER_S} s",
                limit=self._limit_per_user,
                retry_after_s=RETRY_AFTER_S,
            )
        self.running += 1
        self._by_user[identity] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._by_user[identity] -= 1
            if not self._by_user[identity]:
                del self._by_user[identity]
