"""From a verified identity to a local account, in phases: ban, limited proxy, map, account (LCAS/LCMAPS, gPlazma)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from security.bans import BanList
from security.errors import AuthorizationError, MappingError, Reason
from security.gridmapdir import GridMapDir
from security.mapfile import GridMapFile, GroupMapFile
from security.validation import Identity

AccountLookup = Callable[[str], tuple[int, int] | None]
"""uid and gid of a local account, None if there is no such account. `system_account` asks the password database."""


@dataclass(frozen=True)
class LocalAccount:
    """Where somebody's work runs. `uid` and `gid` are None where no lookup was given (simulated accounts)."""

    name: str
    uid: int | None = None
    gid: int | None = None
    pool: str | None = None
    """The pool that it was leased from."""


def system_account(name: str) -> tuple[int, int] | None:
    """uid and gid from the password database of this host."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def authorize(
    identity: Identity,
    *,
    bans: BanList,
    map_file: GridMapFile,
    pool: GridMapDir | None = None,
    account_lookup: AccountLookup | None = None,
    requested_account: str | None = None,
    accept_limited: bool = False,
) -> LocalAccount:
    """The account of this identity, or a typed refusal: the first phase that refuses decides.

    `accept_limited`: true for services that move data, false for those that start jobs. `requested_account` must be one
    of the person's own (a pool's account only if it is leased to them). Raises AuthorizationError BANNED or
    LIMITED_PROXY, MappingError NOT_MAPPED, POOL_EXHAUSTED, MAP_DIRECTORY_INVALID or ACCOUNT_UNKNOWN. May be called
    again: a pool account stays the same.
    """
    # 1. ban
    bans.check(identity)
    # 2. what the proxy may do
    require_full(identity, accept_limited=accept_limited)
    # 3. map
    name, prefix = _map(identity, map_file, pool, requested_account)
    # 4. account
    if account_lookup is None:
        return LocalAccount(name, pool=prefix)
    found = account_lookup(name)
    facts = _facts(identity, "account") | {"account": name}
    if found is None:
        raise MappingError(
            Reason.ACCOUNT_UNKNOWN,
            f"{identity.subject} is mapped to {name}, which is no account of this host; the site must create it",
            facts,
        )
    uid, gid = found
    if uid == 0 or gid == 0:
        raise MappingError(
            Reason.ACCOUNT_UNKNOWN,
            f"{identity.subject} is mapped to {name}, an account with the rights of root, which is forbidden; "
            "the site must correct its map",
            facts,
        )
    return LocalAccount(name, uid, gid, prefix)


def require_full(identity: Identity, *, accept_limited: bool = False) -> None:
    """Raises AuthorizationError LIMITED_PROXY for a limited proxy, unless accepted."""
    if identity.is_limited and not accept_limited:
        raise AuthorizationError(
            Reason.LIMITED_PROXY,
            f"{identity.leaf_subject} is a limited proxy, which may move data but not do this; use a full proxy",
            _facts(identity, "limited proxy"),
        )


def _map(
    identity: Identity, map_file: GridMapFile, pool: GridMapDir | None, requested: str | None
) -> tuple[str, str | None]:
    facts = _facts(identity, "map file")
    accounts = map_file.accounts_of(identity.subject)
    if not accounts:
        raise MappingError(
            Reason.NOT_MAPPED,
            f"{identity.subject} is in no line of this site's map; ask the site, or join a virtual organisation "
            "it supports",
            facts,
        )
    if requested is not None and not requested.startswith(".") and requested in accounts:
        return requested, None
    if requested is not None:
        held = pool.account_of(identity.subject) if pool is not None else None
        if held != requested:
            raise MappingError(
                Reason.NOT_MAPPED,
                f"{identity.subject} may not use the account {requested[:80]}; it may use {', '.join(accounts)[:200]}",
                {**facts, "account": requested},
            )
    chosen = accounts[0]
    if requested is not None:
        # The held lease must be of one of the person's own pools.
        chosen = next((a for a in accounts if a.startswith(".") and _in_pool(requested, a[1:])), "")
        if not chosen:
            raise MappingError(
                Reason.NOT_MAPPED,
                f"{identity.subject} may not use the account {requested[:80]}; it may use {', '.join(accounts)[:200]}",
                {**facts, "account": requested},
            )
    if not chosen.startswith("."):
        return chosen, None
    if pool is None:
        raise MappingError(
            Reason.MAP_DIRECTORY_INVALID,
            f"{identity.subject} is mapped to the pool {chosen[1:]}, but this site has no pool account directory",
            facts,
        )
    return pool.lease(identity.subject, chosen[1:]), chosen[1:]


def _in_pool(account: str, prefix: str) -> bool:
    return account.startswith(prefix) and account[len(prefix) :].isdigit()


def _facts(identity: Identity, check: str) -> dict[str, str]:
    return {
        "check": check,
        "subject": str(identity.subject),
        "issuer": str(identity.issuer),
        "serial": f"{identity.serial:X}",
    }


def accounts_by_groups(identity: Identity, fqans: Sequence[str], group_map: GroupMapFile) -> tuple[str, ...]:
    """The accounts for somebody's verified groups and roles, the default one first. Raises MappingError NOT_MAPPED."""
    if not fqans:
        raise MappingError(
            Reason.NOT_MAPPED,
            f"{identity.subject} came without groups of a VO and this site maps by groups; make a proxy with them: "
            "grid proxy init --voms VO",
            _facts(identity, "group map"),
        )
    rule = group_map.lookup(fqans)
    if rule is None:
        raise MappingError(
            Reason.NOT_MAPPED,
            f"none of the groups and roles of {identity.subject} ({', '.join(fqans)[:300]}) has a rule at this site; "
            "ask the site, or make a proxy with another role",
            _facts(identity, "group map"),
        )
    return rule.accounts
