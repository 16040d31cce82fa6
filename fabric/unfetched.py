"""Revocation lists that this host cannot fetch, noted beside them: for every agent of the host and for `grid doctor`.

A list that is still good hides that no newer one comes, until it ends and everybody is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from security.errors import utc_text
from security.files import read_bounded, write_atomic

RECORD_NAME = ".gridfabric-unfetched"
MAX_RECORD_BYTES = 1 << 20
ALARM_AFTER = timedelta(minutes=5)
"""A server may be restarted."""
FORGET_AFTER = timedelta(hours=4)
"""An address that nobody has asked in vain for so long is not one of this directory's any more."""
NOTE_EVERY = timedelta(minutes=1)
"""A failure that goes on is written down again after this time."""


@dataclass(frozen=True)
class Unfetched:
    """One address and why it gives no list."""

    since: str
    """First failure in a row, as the next."""
    last: str
    """ISO 8601, UTC."""
    sentence: str


def load(directory: Path) -> dict[str, Unfetched]:
    """By address. Nothing where there is no record or it cannot be read."""
    try:
        raw: Any = json.loads(read_bounded(directory / RECORD_NAME, MAX_RECORD_BYTES))
        found = {
            str(url): Unfetched(*(str(one[key]) for key in ("since", "last", "sentence"))) for url, one in raw.items()
        }
        times = [datetime.fromisoformat(text) for one in found.values() for text in (one.since, one.last)]
        if any(time.tzinfo is None for time in times):
            return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def note(directory: Path, failed: Mapping[str, str], fetched: Collection[str], now: datetime) -> None:
    """Write down what was asked in vain (with the sentence) and forget what was not. Raises OSError."""
    known = load(directory)
    if not known and not failed:
        return
    new = {
        url: one
        for url, one in known.items()
        if url not in fetched and now - datetime.fromisoformat(one.last) < FORGET_AFTER
    }
    for url, sentence in failed.items():
        before = new.get(url)
        if before is None or now - datetime.fromisoformat(before.last) >= NOTE_EVERY:
            new[url] = Unfetched(before.since if before is not None else now.isoformat(), now.isoformat(), sentence)
    if new != known:
        text = json.dumps({url: asdict(one) for url, one in new.items()}, indent=1)
        write_atomic(directory / RECORD_NAME, text.encode(), 0o644)


def alarm(directory: Path, now: datetime) -> str:
    """One sentence about what has not come for a while; empty if there is nothing."""
    late = sorted(
        (datetime.fromisoformat(one.since), url, one.sentence)
        for url, one in load(directory).items()
        if now - datetime.fromisoformat(one.since) >= ALARM_AFTER
        and now - datetime.fromisoformat(one.last) < FORGET_AFTER
    )
    if not late:
        return ""
    since, url, sentence = late[0]
    more = f", nor {len(late) - 1} more" if len(late) > 1 else ""
    return (
        f"the revocation list {url}{more} cannot be fetched since {utc_text(since)} ({sentence}); the last good one "
        "counts until it ends: see that its server can be reached from here"
    )
