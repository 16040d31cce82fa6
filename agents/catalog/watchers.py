"""Who is told of changes below a directory: GUIDs, put together while the watcher is busy."""

from __future__ import annotations

from fabric.bell import Bell
from fabric.errors import Exhausted

MAX_WATCHERS = 256
MAX_PENDING = 10_000
"""GUIDs that wait for one watcher; then it is told to look at everything."""


class Watcher:
    """One watch stream."""

    def __init__(self, path: str) -> None:
        self.path, self.bell = path, Bell()
        self._pending: dict[str, None] = {}
        self._missed = False

    def put(self, guid: str) -> None:
        """Something of this file has changed."""
        if len(self._pending) < MAX_PENDING:
            self._pending[guid] = None
        else:
            self._missed = True
        self.bell.ring()

    def take(self) -> tuple[list[str], bool]:
        """What has changed since the last take, and whether there was more."""
        taken, missed = list(self._pending), self._missed
        self._pending.clear()
        self._missed = False
        return taken, missed


class Watchers:
    """All watch streams of the catalogue."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    def add(self, path: str) -> Watcher:
        """Watch a directory. Raises Exhausted(TOO_MANY_WATCHERS)."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise Exhausted(
                "TOO_MANY_WATCHERS", f"{MAX_WATCHERS} watch the catalogue already; try again later", retry_after_s=30
            )
        watcher = Watcher(path)
        self._watchers.add(watcher)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """It is gone."""
        self._watchers.discard(watcher)

    def tell(self, path: str, guid: str) -> None:
        """A file has changed."""
        for watcher in self._watchers:
            if path.startswith(watcher.path + "/"):
                watcher.put(guid)
