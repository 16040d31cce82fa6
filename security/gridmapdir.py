"""Pool accounts as Globus and LCMAPS keep them: a directory, one empty file per account, a hard link per lease.

The link's name is the lower-cased, %-encoded name of the person; link(2) and st_nlink make it safe between processes
and
between implementations (`gridmapdir.c` of gss_assist, LCMAPS poolaccount). A lease is renewed (mtime) at each use.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from security.errors import MappingError, Reason, os_error_text
from security.names import DistinguishedName

MAX_ENTRIES = 200_000
"""Accounts and leases in one directory."""
MAX_POOL = 100_000
"""Accounts of one pool."""
MAX_LINK_NAME = 255
"""NAME_MAX: a longer encoded name cannot be a file."""
MAX_ROUNDS = 20
"""Passes over the pool while others are seen to take and give back the same accounts at the same moment."""

_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,63}\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Lease:
    """An account held by a person. `subject` is lower case: the directory does not keep the spelling."""

    subject: str
    account: str
    used_at: datetime
    """When it was leased or last used."""


def encode_subject(subject: DistinguishedName) -> str:
    """The link's name: ASCII letters lower-cased, digits kept, every other byte as %xx."""
    encoded = str(subject).encode()
    return "".join(chr(b).lower() if chr(b).isascii() and chr(b).isalnum() else f"%{b:02x}" for b in encoded)


class GridMapDir:
    """The directory. Safe between threads, processes and with a Globus gatekeeper on the same directory.

    Two names that differ only in letter case share a lease (Globus does so too): a mapping by exact name comes first.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    @property
    def directory(self) -> Path:
        """Where accounts and leases are."""
        return self._directory

    def create_accounts(self, prefix: str, count: int, *, width: int = 3) -> tuple[str, ...]:
        """Make the files of a pool: prefix001 ... Existing ones, leased or not, stay as they are."""
        self._require_prefix(prefix)
        if not 1 <= count <= MAX_POOL:
            raise _invalid(f"a pool has between 1 and {MAX_POOL} accounts, not {count}", self._directory)
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        width = max(width, len(str(count)))
        names = tuple(f"{prefix}{number:0{width}d}" for number in range(1, count + 1))
        for name in names:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        return names

    def accounts(self, prefix: str) -> tuple[str, ...]:
        """The accounts of a pool: the prefix followed by digits only, in order."""
        self._require_prefix(prefix)
        found = [
            name
            for name in self._names()
            if name.startswith(prefix) and (rest := name[len(prefix) :]).isdigit() and rest.isascii()
        ]
        return tuple(sorted(found))

    def lease(self, subject: DistinguishedName, prefix: str, *, per_pool: bool = False) -> str:
        """The account of this person in this pool: the one held already, else a free one.

        With `per_pool` the same person may hold one account of each pool, under links `<name>:<pool>` as LCMAPS makes
        them for groups of a VO; a Globus gatekeeper on the same directory does not look at those.

        Raises MappingError POOL_EXHAUSTED when none is free, MAP_DIRECTORY_INVALID when the directory cannot be used
        or the person holds an account of another pool (as in Globus one person has one lease per directory).
        """
        self._require_prefix(prefix)
        link = self._link(subject, prefix if per_pool else "")
        try:
            held = self._account_of(link)
            if held is None:
                held = self._take(subject, link, prefix)
            else:
                os.utime(link)
        except OSError as error:
            raise _invalid(
                f"the pool directory {self._directory} cannot be used ({os_error_text(error)})", self._directory
            ) from error
        if not (held.startswith(prefix) and held[len(prefix) :].isdigit()):
            raise _invalid(
                f"{subject} holds the account {held}, which is not of the pool {prefix}; release it first",
                self._directory,
            )
        return held

    def account_of(self, subject: DistinguishedName, pool: str = "") -> str | None:
        """The account that this person holds, without taking or renewing one; with `pool` the one leased `per_pool`."""
        return self._account_of(self._link(subject, pool))

    def release(self, subject: DistinguishedName) -> bool:
        """Give the account back. True if there was a lease.

        The caller makes sure first that no process or file of the account is left for the next owner.
        """
        try:
            self._link(subject).unlink()
        except FileNotFoundError:
            return False
        return True

    def leases(self) -> tuple[Lease, ...]:
        """Every lease, by account."""
        accounts: dict[int, str] = {}
        links: list[tuple[int, str, float]] = []
        for name in self._names():
            try:
                status = os.stat(self._directory / name)
            except FileNotFoundError:
                continue
            if name.startswith("%"):
                links.append((status.st_ino, name, status.st_mtime))
            else:
                accounts[status.st_ino] = name
        found = [
            Lease(unquote(name), accounts[inode], datetime.fromtimestamp(used, UTC))
            for inode, name, used in links
            if inode in accounts
        ]
        return tuple(sorted(found, key=lambda lease: lease.account))

    def _link(self, subject: DistinguishedName, pool: str = "") -> Path:
        name = encode_subject(subject) + (f":{pool}" if pool else "")
        if len(name) > MAX_LINK_NAME or not name.startswith("%2f"):
            raise MappingError(
                Reason.MAP_DIRECTORY_INVALID,
                f"{subject} cannot hold a pool account: its encoded name is empty or longer than "
                f"{MAX_LINK_NAME} characters; "
                "map it to a fixed account",
                {"check": "pool account", "subject": str(subject)},
            )
        return self._directory / name

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                names: list[str] = []
                for entry in entries:
                    if len(names) >= MAX_ENTRIES:
                        raise OSError(f"more than {MAX_ENTRIES} files")
                    if entry.name[0] not in ".~" and "~" not in entry.name:
                        names.append(entry.name)
                return names
        except OSError as error:
            raise _invalid(
                f"the pool directory {self._directory} cannot be read ({os_error_text(error)})", self._directory
            ) from error

    def _account_of(self, link: Path) -> str | None:
        """The account file that is the same i-node as the link (Globus: gridmapdir_otherlink)."""
        try:
            status = os.stat(link)
        except FileNotFoundError:
            return None
        if status.st_nlink < 2:
            # The account's file was removed: the lease holds nothing.
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            return None
        names: list[str] = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if not entry.name.startswith(("%", ".")):
                    if entry.inode() == status.st_ino:
                        return entry.name
                    names.append(entry.name)
        for name in names:  # overlay file systems list other i-node numbers than stat gives
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._directory / name).st_ino == status.st_ino:
                    return name
        return None

    def _take(self, subject: DistinguishedName, link: Path, prefix: str) -> str:
        pool: tuple[str, ...] = ()
        for _ in range(MAX_ROUNDS):
            pool = self.accounts(prefix)
            contended = False
            for name in pool:
                account = self._directory / name
                try:
                    links = os.stat(account).st_nlink
                    if links != 1:
                        contended = contended or links > 2
                        continue
                    os.link(account, link)
                except FileExistsError:
                    # Another process made a lease for the same person meanwhile: that one counts.
                    held = self._account_of(link)
                    if held is not None:
                        return held
                    contended = True
                    continue
                except FileNotFoundError:
                    continue
                if os.stat(account).st_nlink > 2:
                    # Two people took the same account at once: step back and try the next one.
                    with contextlib.suppress(FileNotFoundError):
                        link.unlink()
                    contended = True
                    continue
                os.utime(link)
                return name
            if not contended:
                break
        raise MappingError(
            Reason.POOL_EXHAUSTED,
            f"all {len(pool)} accounts of the pool {prefix} are leased, none is left for {subject}; "
            "the site must add accounts or release unused ones",
            {"check": "pool account", "subject": str(subject), "pool": prefix, "accounts": str(len(pool))},
        )

    def _require_prefix(self, prefix: str) -> None:
        if not _ACCOUNT.match(prefix):
            raise _invalid(f"{prefix[:80]!r} is not a pool name", self._directory)


def _invalid(sentence: str, directory: Path) -> MappingError:
    return MappingError(Reason.MAP_DIRECTORY_INVALID, sentence, {"check": "pool account", "path": str(directory)})
