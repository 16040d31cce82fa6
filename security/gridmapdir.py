"""Pool accounts as Globus and LCMAPS keep them: a directory, one empty file per account, a hard link per lease.

The link's name is the lower-cased, %-encoded name of the person; link(2) and st_nlink make it safe between processes
and
between implementations (`gridmapdir.c` of gss_assist, LCMAPS poolaccount). A lease is renewed (mtime) at each use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Generator
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

SETTLE_S, SETTLE_ROUNDS, LOCK_ROUNDS = 0.002, 100, 1000
"""How long, and how often, another process is waited for that took the same account at the same moment, or that takes
any."""

_GUARD = ".recycling-"
"""A further link of an account while it is looked at: hidden, so that it is no account and no lease."""
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,63}\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Lease:
    """An account held by a person. `subject` is lower case: the directory does not keep the spelling."""

    subject: str
    account: str
    used_at: datetime
    """When it was leased or last used."""
    pool: str = ""
    """Of a lease taken `per_pool`."""
    link: str = ""
    """The file name of the lease."""


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
            with self._alone():
                held = self._settled(subject, link)
                if held is not None:
                    try:
                        os.utime(link)
                    except FileNotFoundError:
                        held = None  # it was recycled at this moment
                if held is None:
                    held = self._take(subject, link, prefix)
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

    def recycle(self, lease: Lease, in_use: Callable[[str], str]) -> str:
        """Give an account back if nobody uses it. Returns why it was kept, empty when it is free now.

        `in_use` is asked for the account while nobody can take it: a further link makes it look leased until the answer
        is there. A lease that was renewed since `lease` was read is kept; so nobody loses an account under way, and no
        two people ever hold the same one. Where the lease cannot be put back (the person came meanwhile and has another
        account), or after a crash, that link stays and the account unused until `free_interrupted`.
        """
        link, account = self._directory / lease.link, self._directory / lease.account
        guard = self._directory / f"{_GUARD}{lease.account}"
        try:
            os.link(account, guard)
        except FileExistsError:
            return "somebody else is recycling it"
        except FileNotFoundError:
            return "its account file is gone"
        try:
            if not _same(link, guard):
                raise FileNotFoundError
            link.unlink()
        except FileNotFoundError:
            guard.unlink()
            return "the lease was given back by somebody else"
        why = "it was not looked at"
        try:
            # Renewing a lease sets the time of the account's i-node, and fails once the link is gone.
            why = "it was used again" if _used_at(guard) > lease.used_at else in_use(lease.account)
        finally:
            if not why:
                guard.unlink()
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(guard, link)
                    guard.unlink()
        return why

    def free_interrupted(self, in_use: Callable[[str], str]) -> tuple[str, ...]:
        """Accounts whose recycling was not finished and that nobody uses are free again; returns them.

        To be called while nobody recycles in this directory: at start, and between two rounds.
        """
        freed: list[str] = []
        for guard in sorted(self._directory.glob(f"{_GUARD}*")):
            account = guard.name[len(_GUARD) :]
            if guard.stat().st_nlink <= 2 and in_use(account):
                continue  # the account and this link: the lease is gone, and something is left
            guard.unlink()
            freed.append(account)
        return tuple(freed)

    def leases(self) -> tuple[Lease, ...]:
        """Every lease, by account."""
        accounts: dict[int, str] = {}
        links: list[tuple[int, str, int]] = []
        for name in self._names():
            try:
                status = os.stat(self._directory / name)
            except FileNotFoundError:
                continue
            if name.startswith("%"):
                links.append((status.st_ino, name, status.st_mtime_ns))
            else:
                accounts[status.st_ino] = name
        found = [
            Lease(unquote(name.partition(":")[0]), accounts[inode], _moment(used), name.partition(":")[2], name)
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

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """One lease at a time among our own processes: a link that is seen is one that stays. A Globus gatekeeper knows
        nothing of this lock; that two links at one account are not taken for a lease is for it."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for _ in range(LOCK_ROUNDS):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(SETTLE_S)
            else:
                raise _invalid(
                    f"the pool directory {self._directory} is held by another process; try again", self._directory
                )
            yield
        finally:
            os.close(descriptor)

    def _settled(self, subject: DistinguishedName, link: Path) -> str | None:
        """The account of a lease that stays. While another person's link is at the same account, whoever made one of
        the two is about to step back from it. Raises MappingError MAP_DIRECTORY_INVALID if nobody does: a crash."""
        held = None
        for _ in range(SETTLE_ROUNDS):
            held = self._account_of(link)
            if held is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                account = os.stat(self._directory / held)
                if account.st_nlink <= 2 or (self._directory / f"{_GUARD}{held}").exists():  # guarded: being recycled
                    return held
            time.sleep(SETTLE_S)
        raise _invalid(
            f"the account {held} of {subject} is leased to somebody else as well; try again, and if it stays so "
            "the site must remove both links",
            self._directory,
        )

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
                    held = self._settled(subject, link)
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


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).replace(
        microsecond=nanoseconds // 1_000 % 1_000_000
    )


def _used_at(path: Path) -> datetime:
    return _moment(os.stat(path).st_mtime_ns)


def _same(one: Path, other: Path) -> bool:
    """Whether two names are one file."""
    first, second = os.stat(one), os.stat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _invalid(sentence: str, directory: Path) -> MappingError:
    return MappingError(Reason.MAP_DIRECTORY_INVALID, sentence, {"check": "pool account", "path": str(directory)})
