"""Whether a node does jobs any good: black holes. Pure.

A node that fails every job within seconds draws a whole queue, since it is always free. It is stopped by rate: of the
last `jobs` ends within `window_s`, nine in ten failed fast, and no single owner can be to blame: either the node itself
was the reason, or the failures are of two owners at least. Then it takes nothing for `pause_s`; the first job after
that decides: well, and it is trusted again; failed fast, and the pause doubles, up to an hour.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agents.worker.model import Result

SHARE = 0.9
MAX_PAUSE_S = 3600.0
OF_THE_NODE = frozenset(
    {
        "ACCOUNT_UNUSABLE", "BATCH_LOST", "DISK_FULL", "SCRATCH_FAILED", "STARTER_LOST", "START_REFUSED",
        "WORKER_DEFECT",
    }
)  # fmt: skip
"""Failures that no payload can bring about."""
_NOT_A_FAILURE = frozenset({"CANCELLED", "FENCED", "GANG_ENDED", "WORKER_STOPPED"})


@dataclass(frozen=True)
class _End:
    at: float
    owner: str
    """Empty: the node's failure."""
    failed_fast: bool


class BlackHole:
    """Watches ends of jobs. Times are monotonic seconds."""

    def __init__(self, *, jobs: int, fast_s: float, window_s: float, pause_s: float) -> None:
        self.fast_s, self.window_s, self.first_pause_s = fast_s, window_s, pause_s
        self._ends: deque[_End] = deque(maxlen=jobs)
        self._pause_s = pause_s
        self._until = 0.0
        self._on_trial = False
        self.sentence = ""
        """Why the node takes no jobs; empty: it may."""

    def ended(self, owner: str, result: Result, now: float) -> None:
        """One more result. Cancellations say nothing about the node."""
        if result.reason in _NOT_A_FAILURE:
            return
        of_the_node = result.reason in OF_THE_NODE
        failed = result.failed or result.exit_code != 0
        end = _End(now, "" if of_the_node else owner, of_the_node or (failed and result.wall_s < self.fast_s))
        self._ends.append(end)
        if self.sentence:
            return  # what was here already when it was stopped
        if self._on_trial:
            self._on_trial = False
            if end.failed_fast:
                self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
                self._stop("the first job after a pause failed at once again", now)
            else:
                self._pause_s = self.first_pause_s
                self._ends.clear()
            return
        if len(self._ends) < (self._ends.maxlen or 0) or now - self._ends[0].at > self.window_s:
            return
        bad = [end for end in self._ends if end.failed_fast]
        owners = {end.owner for end in bad}
        if len(bad) >= SHARE * len(self._ends) and ("" in owners or len(owners) > 1):
            last = f", the last with {result.reason or f'exit code {result.exit_code}'}" if end.failed_fast else ""
            self._stop(f"{len(bad)} of the last {len(self._ends)} jobs failed within {self.fast_s:g} s{last}", now)

    def _stop(self, why: str, now: float) -> None:
        self._until = now + self._pause_s
        self.sentence = f"BLACK_HOLE: {why}; no jobs for {self._pause_s:g} s"

    def looked(self, now: float) -> None:
        """Time passed."""
        if self.sentence and now >= self._until:
            self.sentence, self._on_trial = "", True
