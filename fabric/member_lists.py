"""When a member list shrinks so much that it is more likely a mistake than a decision, and who would lose access.

A VO server that lost its disk, was restored from an old copy or answers in part takes away the access of hundreds; so
a list that loses more than a share of its people is held until somebody has looked at their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from security.names import DistinguishedName

DEFAULT_SHARE = 0.2
DEFAULT_LEAST = 20
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Held:
    """A list that waits for a confirmation."""

    before: int
    after: int
    lost: tuple[DistinguishedName, ...]
    """Who would lose access."""
    digest: str
    """Names this loss: a confirmation of one is none for another."""

    @property
    def names(self) -> str:
        """The first of those who would lose access, for a sentence."""
        shown = ", ".join(map(str, self.lost[:NAMES_SHOWN]))
        more = len(self.lost) - NAMES_SHOWN
        return f"{shown} and {more} more" if more > 0 else shown


def hold(
    before: Sequence[DistinguishedName],
    after: Sequence[DistinguishedName],
    *,
    share: float = DEFAULT_SHARE,
    least: int = DEFAULT_LEAST,
) -> Held | None:
    """Why `after` should not simply replace `before`; None if it may.

    Held is a loss of at least `least` people that is more than `share` of those before. A share of 1 never holds.
    """
    remaining = set(after)
    lost = tuple(sorted((name for name in set(before) if name not in remaining), key=str))
    if len(lost) < max(least, 1) or len(lost) <= share * len(set(before)):
        return None
    digest = hashlib.sha256("\n".join(map(str, lost)).encode()).hexdigest()[:12]
    return Held(len(set(before)), len(remaining), lost, digest)
