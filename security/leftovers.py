"""What somebody left under a local account of this host: the reason not to give that account to the next person.

A process of the last owner could read the next one's files and proxy; a file of the last owner becomes the next one's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_ENTRIES = 200_000
"""Directory entries looked at; more, and nothing is known."""
MAX_NAMED = 5
DEFAULT_ROOTS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where every account may write."""


@dataclass(frozen=True)
class Leftovers:
    """Processes and files of one account; some of them if there are many. `unknown` says why not everything was
    seen."""

    processes: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    unknown: str = ""

    def __bool__(self) -> bool:
        return bool(self.processes or self.files or self.unknown)

    @property
    def sentence(self) -> str:
        """For a log line: what is left; empty if nothing is."""
        parts: list[str] = []
        if self.processes:
            parts.append(f"processes {', '.join(map(str, self.processes[:MAX_NAMED]))}")
        if self.files:
            parts.append(f"files {', '.join(self.files[:MAX_NAMED])}")
        if self.unknown:
            parts.append(self.unknown)
        return " and ".join(parts)


def leftovers_of(uid: int, roots: Iterable[str | Path] = DEFAULT_ROOTS, *, proc: str | Path = "/proc") -> Leftovers:
    """What belongs to this uid on this host. Blocking. Fails closed: what cannot be looked through counts as something.

    Directories below a root are entered only if everybody may write there or they are of that uid: in others the
    account could not have made anything. A root that does not exist holds nothing.
    """
    try:
        processes = _processes(uid, Path(proc))
        files = _files(uid, roots)
    except OSError as error:
        return Leftovers(unknown=f"a place that cannot be looked through ({error.filename}: {error.strerror})")
    if files is None:
        return Leftovers(processes, unknown=f"more than {MAX_ENTRIES} files to look through")
    return Leftovers(processes, files)


def _processes(uid: int, proc: Path) -> tuple[int, ...]:
    found: list[int] = []
    with os.scandir(proc) as entries:
        for entry in entries:
            if not (entry.name.isdigit() and entry.name.isascii()):
                continue
            try:
                status = (proc / entry.name / "status").read_text("ascii", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            line = next((line for line in status.splitlines() if line.startswith("Uid:")), "")
            if str(uid) in line.split()[1:]:  # real, effective, saved, file system
                found.append(int(entry.name))
    return tuple(sorted(found))


def _files(uid: int, roots: Iterable[str | Path]) -> tuple[str, ...] | None:
    """Paths of that uid, the highest of each tree; None if there is too much to look through."""
    found: list[str] = []
    waiting = [Path(root) for root in roots]
    seen = 0
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MAX_ENTRIES:
                        return None
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if status.st_uid == uid:
                        found.append(entry.path)
                    elif stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IWOTH:
                        waiting.append(Path(entry.path))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return tuple(sorted(found))
