"""How many copies at once a link gets, and how fast it may be. Pure.

The optimiser looks at a link every few seconds. Attempts that failed, or a storage element that said that it is busy:
fewer at once. All places taken and files waiting: one more, and at the next look it stays if that moved more, and is
taken back if not; then the link is left alone for some looks. What a look counts is bytes, and `FILE_BYTES` for each
file, because of small files most of the time goes into beginning and ending them.
"""

from __future__ import annotations

from dataclasses import dataclass

FILE_BYTES = 1 << 20
"""What a file counts besides its bytes."""
GAIN = 1.05
"""How much more one more copy has to move to be worth it."""
REST_LOOKS = 6
"""Looks without a change after a raise that was worth nothing."""
FIRST_LIMIT = 2


@dataclass(slots=True)
class Look:
    """What a link did since the last look."""

    moved_bytes: int = 0
    finished: int = 0
    failed: int = 0
    busy: int = 0
    """Refused because a storage element has too much to do."""
    waited: bool = False
    """All its places were taken while files waited."""


class Optimiser:
    """The number of copies at once of one link."""

    def __init__(self, max_limit: int) -> None:
        self._max = max_limit
        self.limit = min(FIRST_LIMIT, max_limit)
        self.why = f"begins with {self.limit} at once"
        self.bytes_per_s = 0.0
        self.files_per_s = 0.0
        self._before = 0.0
        """What was moved in a second before the last raise; 0: there was none since."""
        self._rest = 0

    def look(self, seen: Look, interval_s: float) -> None:
        """Decide anew. A look in which nothing happened changes nothing."""
        tried = seen.finished + seen.failed
        if not seen.moved_bytes and not tried and not seen.busy:
            return
        self.bytes_per_s, self.files_per_s = seen.moved_bytes / interval_s, seen.finished / interval_s
        work = (seen.moved_bytes + FILE_BYTES * seen.finished) / interval_s
        speed = f"{self.bytes_per_s / 1e6:.1f} MB/s, {self.files_per_s:.1f} files/s"
        if seen.failed * 5 > tried:
            self._lower(max(1, self.limit // 2), f"{seen.failed} of {tried} failed")
        elif seen.busy:
            self._lower(max(1, self.limit - 1), "a storage element is busy")
        elif self._before:
            gained, self._before = work >= self._before * GAIN, 0.0
            if not gained:
                self._lower(max(1, self.limit - 1), f"one more moved no more: {speed}")
            elif seen.waited and self.limit < self._max:
                self._raise(work, speed)
            else:
                self.why = f"{self.limit} at once: {speed}"
        elif self._rest:
            self._rest -= 1
        elif seen.waited and self.limit < self._max:
            self._raise(work, speed)

    def _raise(self, work: float, speed: str) -> None:
        self._before = work
        self.limit += 1
        self.why = f"raised to {self.limit} at once: files wait, and {self.limit - 1} moved {speed}"

    def _lower(self, limit: int, because: str) -> None:
        self.limit, self._before, self._rest = limit, 0.0, REST_LOOKS
        self.why = f"lowered to {limit} at once: {because}"


class TokenBucket:
    """A speed cap. A file may begin while the bucket is not in debt, and then takes all its bytes out of it; with a
    copy itself no faster than the cap, the link moves no more than it in any time longer than `burst_s`."""

    def __init__(self, bytes_per_s: float, burst_s: float = 1.0) -> None:
        self.bytes_per_s = bytes_per_s
        self._most = bytes_per_s * burst_s
        self._tokens = self._most
        self._at_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Seconds until a file may begin; 0: now."""
        if self._at_s is not None:
            self._tokens = min(self._most, self._tokens + (now_s - self._at_s) * self.bytes_per_s)
        self._at_s = now_s
        return 0.0 if self._tokens > 0 else (1 - self._tokens) / self.bytes_per_s

    def take(self, size_bytes: int) -> None:
        """A file begins. A negative size gives back."""
        self._tokens -= size_bytes
