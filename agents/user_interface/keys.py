"""Keys of encrypted files, in shares at the key stores of several sites, and files opened with them (docs/data.md)."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from agents.keystore import client as keystore
from agents.user_interface.connection import Grid
from agents.user_interface.endpoints import Endpoint
from fabric.errors import DataCorrupted, GridError, NotFound, Refused, Unavailable
from security import sealing, secret_sharing
from security.errors import SecurityError

T = TypeVar("T")

LEAST_SITES = 3
"""With fewer, two of them would be all there is between a thief and the key, or one lost one its end."""
ANSWER_S = 30.0
MAX_TRIES = 64
"""Ways of choosing shares that are tried if some of them are wrong."""


def stores_of(grid: Grid) -> list[Endpoint]:
    """One key store of each site, in order of site."""
    by_site = {endpoint.site: endpoint for endpoint in reversed(grid.services.all("keystore")) if endpoint.rpc}
    return [by_site[site] for site in sorted(by_site)]


async def ask_all(
    grid: Grid, stores: Sequence[Endpoint], ask: Callable[[Any, int], Awaitable[T]]
) -> list[T | GridError | SecurityError]:
    """What each says, or why it says nothing, in order."""

    async def one(number: int, store: Endpoint) -> T | GridError | SecurityError:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await ask(await grid.channel_to(store.host, store.rpc), number)
        except TimeoutError:
            return Unavailable("KEYSTORE_SILENT", f"key store {store.name} did not answer within {ANSWER_S:g} s")
        except (GridError, SecurityError) as error:
            return error

    return list(await asyncio.gather(*(one(number, store) for number, store in enumerate(stores))))


async def keep(grid: Grid, key_id: bytes, key: bytes) -> None:
    """Give every key store its share. Raises NotFound(KEYSTORES_MISSING), GridError; then no store keeps one, if it
    answers."""
    stores = stores_of(grid)
    if len(stores) < LEAST_SITES:
        raise NotFound(
            "KEYSTORES_MISSING",
            f"{len(stores)} sites of this grid have a key store and {LEAST_SITES} are needed, so that no single one "
            "can open a file; nothing was stored",
        )
    threshold = len(stores) // 2 + 1
    shares = secret_sharing.split(key, threshold, len(stores))

    async def put(channel: Any, number: int) -> None:
        await keystore.put_share(channel, key_id, shares[number], threshold)

    failures = [answer for answer in await ask_all(grid, stores, put) if answer is not None]
    if failures:
        await forget(grid, key_id)
        raise failures[0]


async def forget(grid: Grid, key_id: bytes) -> None:
    """Have every key store that answers forget its share."""
    await ask_all(grid, stores_of(grid), lambda channel, _: keystore.remove_share(channel, key_id))


async def _candidates(grid: Grid, key_id: bytes) -> list[bytes]:
    """The key, from whichever stores answer; several candidates if there are more shares than needed, since one of
    them may be wrong. Raises Refused(KEY_REFUSED), Unavailable(KEYSTORES_AWAY)."""
    answers = await ask_all(grid, stores_of(grid), lambda channel, _: keystore.get_share(channel, key_id))
    found = [answer for answer in answers if isinstance(answer, tuple)]
    failures = [answer for answer in answers if not isinstance(answer, tuple)]
    keys: dict[bytes, None] = {}
    for threshold in sorted({threshold for _, threshold in found if threshold >= 2}):
        shares = [share for share, wanted in found if wanted == threshold]
        for chosen in list(combinations(shares, threshold))[:MAX_TRIES] if len(shares) >= threshold else ():
            try:
                keys[secret_sharing.combine(chosen)] = None
            except ValueError:
                continue  # a store that lies about its share
    if keys:
        return list(keys)
    refusal = next((each for each in failures if isinstance(each, Refused | SecurityError)), None)
    if refusal is not None:
        raise refusal
    away = "; ".join(str(failure) for failure in failures) or "no key store is known"
    raise Unavailable(
        "KEYSTORES_AWAY", f"{len(found)} key stores gave their shares and more are needed to open this file ({away})"
    )


async def give(grid: Grid, fetched: Path, target: Path) -> None:
    """Give a fetched file its name, decrypted if it is encrypted. Raises Refused, Unavailable, DataCorrupted."""
    with open(fetched, "rb") as source:
        beginning = source.read(sealing.HEADER_BYTES)
    if not sealing.is_sealed(beginning):
        os.replace(fetched, target)
        return
    plain = fetched.with_name(f"{fetched.name}.open")
    failure: sealing.SealError | None = None
    try:
        for key in await _candidates(grid, sealing.key_id_of(beginning)):
            try:
                await asyncio.to_thread(in_files, fetched, plain, lambda a, b, key=key: sealing.unseal(key, a, b))
            except sealing.SealError as error:
                failure = error
                plain.unlink(missing_ok=True)
                continue
            os.replace(plain, target)
            return
    finally:
        plain.unlink(missing_ok=True)
    raise DataCorrupted("SEAL_BROKEN", f"{target.name} does not open: {failure}")


def in_files(source: Path, target: Path, work: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """`work` from one file to another, which is made for its owner alone. Raises OSError."""
    with open(source, "rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        work(reading, out)


def partial_of(target: Path) -> Path:
    """Where a file lies until it is whole and open."""
    return target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}.got")
