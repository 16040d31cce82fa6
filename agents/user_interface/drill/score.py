"""What the umpire writes down during one drill."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mark:
    """One thing that happened, `at_ms` after the drill began."""

    at_ms: float
    who: str
    """attacker, defender, umpire, or the part that somebody plays."""
    what: str
    service: str = ""


@dataclass(frozen=True)
class Verdict:
    """What one service did to one person, as that person's own client saw it."""

    at_ms: float
    service: str
    person: str
    part: str
    outcome: str
    """served or refused."""
    expected: bool
    """Whether that was right."""
    after_ms: float | None = None
    """Of a refusal: since the defender acted, or how long it took where nobody has to act."""
    reason: str = ""
    sentence: str = ""
    """What the refused read."""


@dataclass
class Score:
    """A drill is passed when nothing is in `failures`."""

    began: float = field(default_factory=time.monotonic, repr=False)
    marks: list[Mark] = field(default_factory=list[Mark])
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    failures: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    """What this grid cannot play as it would be elsewhere."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    """What else was measured: name with its unit."""
    honest_calls: int = 0
    honest_failures: int = 0
    stopped_ms: float | None = None
    """Until the last process of the attacker was gone; None where there was none."""

    def now_ms(self) -> float:
        """Since the drill began."""
        return round((time.monotonic() - self.began) * 1000, 1)

    @property
    def slowest_refusal_ms(self) -> float | None:
        """Over all services."""
        return max((v.after_ms for v in self.verdicts if v.after_ms is not None), default=None)
