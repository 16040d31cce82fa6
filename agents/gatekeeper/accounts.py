"""Local accounts of grid users: leased from this gatekeeper's gridmapdir while they have jobs here."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.gatekeeper.config import GatekeeperOptions
from fabric.errors import GridError, Refused, from_security
from fabric.vos import Vos
from security.authorization import system_account
from security.errors import SecurityError
from security.gridmapdir import GridMapDir
from security.leftovers import leftovers_of
from security.names import DistinguishedName

ACCOUNTS = 50
"""In the pool of a VO, where the options name no pools."""
UIDS_PER_POOL = 1000
_POOL_ACCOUNT = re.compile(r"(?P<prefix>.*?)(?P<number>[0-9]+)\Z")


@dataclass(frozen=True)
class Account:
    """Where somebody's jobs run. `uid` -1: as the worker's own user."""

    name: str
    uid: int
    gid: int


class Accounts:
    """Leases and their numbers."""

    def __init__(self, directory: Path, options: GatekeeperOptions, log: Any, *, per_pool: bool = False) -> None:
        """`per_pool`: one person may hold an account of each pool, where groups and roles decide on the pool."""
        self.directory = GridMapDir(directory)
        self._options, self._log = options, log
        mode = options.account_mode
        self.mode = ("pool" if os.geteuid() == 0 else "caller") if mode == "auto" else mode
        """`pool` or `caller`."""
        self._uid_bases: dict[str, int] = {}
        """By pool."""
        self._made: set[str] = set()
        """Pools whose account files are there."""
        self._idle_since: dict[str, float] = {}
        self._kept: dict[str, str] = {}
        """Accounts that could not be recycled, and why."""
        self._per_pool = per_pool
        self._releasing = asyncio.Lock()
        self._soon = asyncio.Event()
        self.submitting: Counter[str] = Counter()
        """Subjects whose lease is taken and whose jobs are not kept yet."""

    def create(self, vos: Vos) -> None:
        """Make the account files of the VOs let in now, unless the options name the pools. May be repeated; blocking.
        Raises GridError MAP_DIRECTORY_INVALID."""
        options = self._options
        pools = [
            (pool.prefix or pool.vo, pool.count, pool.uid_base or options.uid_base + UIDS_PER_POOL * position)
            for position, pool in enumerate(options.pools)
        ] or [(vo.name, ACCOUNTS, options.uid_base + UIDS_PER_POOL * vo.number) for vo in vos.listed.vos]
        # also those of a VO that was dissolved: its last leases are still to be looked through
        self._uid_bases = {prefix.lower(): uid_base for prefix, _, uid_base in pools}
        try:
            for prefix, count, _ in pools:
                if prefix.lower() not in self._made and (options.pools or prefix in vos.served):
                    self.directory.create_accounts(prefix.lower(), count)
                    self._made.add(prefix.lower())
        except SecurityError as error:
            raise from_security(error) from error

    def map(self, subject: str, standing_account: str) -> Account:
        """The account for a user's jobs. `standing_account` is what the map file gives: a name, or `.pool`.

        Raises GridError POOL_EXHAUSTED, ACCOUNT_UNKNOWN, MAP_DIRECTORY_INVALID. Blocking.
        """
        name = standing_account
        prefix = name.removeprefix(".") if name.startswith(".") else self._prefix_of(name)
        if prefix:
            try:
                name = self.directory.lease(DistinguishedName.parse(subject), prefix, per_pool=self._per_pool)
            except SecurityError as error:
                raise from_security(error) from error
        if self.mode == "caller":
            return Account(name, -1, -1)
        return self._numbers(name, subject)

    def _prefix_of(self, name: str) -> str:
        """The pool of an account that a session leased already; empty for a fixed account."""
        found = _POOL_ACCOUNT.match(name)
        return found["prefix"] if found and found["prefix"] in self._uid_bases else ""

    def _numbers(self, name: str, subject: str) -> Account:
        known = system_account(name)
        if known is None:
            found = _POOL_ACCOUNT.match(name)
            base = self._uid_bases.get(found["prefix"]) if found else None
            if found is None or base is None:
                raise Refused(
                    "ACCOUNT_UNKNOWN", f"{subject} is mapped to {name}, which is no account of this host", account=name
                )
            known = (base + int(found["number"]), base + int(found["number"]))
        if 0 in known:
            raise Refused(
                "ACCOUNT_UNKNOWN", f"{subject} is mapped to {name}, which has root's rights: refused", account=name
            )
        return Account(name, *known)

    def look_soon(self) -> None:
        """Jobs went away: some lease may have no more use."""
        self._soon.set()

    async def run(self, owners: Callable[[], Awaitable[set[str]]], monotonic: Callable[[], float]) -> None:
        """For ever: release what has had no job for `lease_linger_s`."""
        linger_s = self._options.lease_linger_s
        while True:
            try:
                async with asyncio.timeout(max(0.1, linger_s / 2) if self._idle_since else 30):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                await self.release(owners, monotonic(), linger_s)
            except (GridError, SecurityError, OSError) as error:
                self._log.warning("leases.not_looked_at", detail=str(error))

    async def release(self, owners: Callable[[], Awaitable[set[str]]], now: float, linger_s: float) -> None:
        """Give back the leases of people without jobs who have been without for `linger_s`, and left nothing."""
        async with self._releasing:
            for account in await asyncio.to_thread(self.directory.free_interrupted, self.in_use):
                self._log.audit("lease.freed", account=account)
            await self._release(owners, now, linger_s)

    async def _release(self, owners: Callable[[], Awaitable[set[str]]], now: float, linger_s: float) -> None:
        before = datetime.now(UTC) - timedelta(seconds=1)
        submitting = {subject.lower() for subject in self.submitting}
        busy = {owner.lower() for owner in await owners()} | submitting
        for lease in await asyncio.to_thread(self.directory.leases):
            if lease.subject in busy:
                self._idle_since.pop(lease.subject, None)
                continue
            since = self._idle_since.setdefault(lease.subject, now)
            taken_meanwhile = lease.used_at >= before and linger_s > 0
            if taken_meanwhile or now - since < linger_s:
                continue
            try:
                why = await asyncio.to_thread(self.directory.recycle, lease, self.in_use)
            except (SecurityError, OSError) as error:
                why = str(error)
            if why:
                if self._kept.get(lease.account) != why:
                    self._log.warning("lease.kept", subject=lease.subject, account=lease.account, why=why)
                self._kept[lease.account] = why
                continue  # asked again at the next look
            self._kept.pop(lease.account, None)
            self._log.audit("lease.released", subject=lease.subject, account=lease.account)
            self._idle_since.pop(lease.subject, None)

    def in_use(self, account: str) -> str:
        """Why an account may not go to the next person yet: processes or files of the last one. Blocking."""
        if self.mode == "caller":
            return ""  # everything runs under our own account, and nobody is kept from anybody
        try:
            uid = self._numbers(account, "nobody").uid
        except GridError as error:
            return error.sentence
        return leftovers_of(uid).sentence

    def leases(self) -> int:
        """How many accounts are leased now. Blocking."""
        return len(self.directory.leases())
