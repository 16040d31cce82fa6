"""Options of the bookkeeping agent."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BookkeepingOptions:
    """The agent's own section of the cluster file."""

    database: str = ""
    """A PostgreSQL server, as `postgresql://lb@db.example.org/gridfabric`; empty: a file of the agent's own."""
    max_watchers: int = field(default=256, metadata={"minimum": 1})
    """Watch streams at once; more are refused with a retry time."""
    max_watched_jobs: int = field(default=20_000, metadata={"minimum": 1})
    """Jobs in one Watch; also the bound of what waits for a slow reader."""
    watch_interval_s: float = field(default=0.05, metadata={"minimum": 0.0})
    """At most one message to a watcher in this time; changes in between are put together."""
    default_page_size: int = field(default=1000, metadata={"minimum": 1, "maximum": 5000})
    archive_after_days: float = field(default=0.0, metadata={"minimum": 0.0})
    """Jobs that ended so long ago are moved to files in the folder `archive`; 0: never."""
    archive_every_s: float = field(default=600.0, metadata={"minimum": 0.01})
    """How often it is looked for such jobs."""
