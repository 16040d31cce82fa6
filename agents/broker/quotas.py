"""How fast one user may submit: a bucket of tokens for each, bounded in number. Pure."""

from __future__ import annotations

from fabric.errors import Exhausted

BURST_S = 10.0
"""This many seconds' worth may come at once."""
MAX_BUCKETS = 10_000
"""Users remembered; who has not submitted for `BURST_S` has a full bucket and need not be."""


class SubmissionRate:
    """Submissions of each owner, `per_s` in the long run. Monotonic seconds."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s * BURST_S)
        self._buckets: dict[str, tuple[float, float]] = {}
        """Owner: tokens left, and when that was so."""

    def take(self, owner: str, now_s: float) -> None:
        """One submission. Raises Exhausted SUBMISSION_RATE with the time after which it may be repeated."""
        tokens, at_s = self._buckets.pop(owner, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._per_s)
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.pop(next(iter(self._buckets)))
        self._buckets[owner] = (tokens - 1 if tokens >= 1 else tokens, now_s)
        if tokens < 1:
            raise Exhausted(
                "SUBMISSION_RATE",
                f"{owner} submits more than {self._per_s:g} times a second; put many jobs into one submission "
                "(Parametric, Collection), or wait",
                retry_after_s=round((1 - tokens) / self._per_s, 3),
            )
