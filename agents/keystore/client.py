"""Calls to a key store, in the name of the user; and to those of several sites together: keys in shares, files opened
with them (docs/data.md, Secure data). Everything may be repeated."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gridfabric.keystore.v1 import keystore_pb2 as pb
from gridfabric.keystore.v1 import keystore_pb2_grpc

from fabric.errors import DataCorrupted, GridError, NotFound, Refused, Unavailable
from fabric.settings import Endpoint
from security import sealing, secret_sharing
from security.errors import SecurityError
from security.secret_sharing import Share

__all__ = ["KeyStores", "get_share", "in_files", "put_share", "remove_share", "set_readers"]

T = TypeVar("T")

LEAST_SITES = 3
"""With fewer, two of them would be all there is between a thief and the key, or one lost one its end."""
ANSWER_S = 30.0
MAX_TRIES = 64
"""Ways of choosing shares that are tried if some of them are wrong."""


async def put_share(channel: Any, key_id: bytes, share: Share, threshold: int) -> None:
    """Have a share kept, for its owner alone. Raises AlreadyExists(KEY_EXISTS), Exhausted(KEYS_EXHAUSTED)."""
    await keystore_pb2_grpc.KeyStoreStub(channel).PutShare(
        pb.PutShareRequest(key_id=key_id, x=share.x, share=share.values, threshold=threshold)
    )


async def get_share(channel: Any, key_id: bytes) -> tuple[Share, int]:
    """(the share, how many are needed). Raises Refused(KEY_REFUSED)."""
    answer = await keystore_pb2_grpc.KeyStoreStub(channel).GetShare(pb.GetShareRequest(key_id=key_id))
    return Share(answer.x, answer.share), answer.threshold


async def set_readers(
    channel: Any, key_id: bytes, *, grant: Sequence[str] = (), withdraw: Sequence[str] = ()
) -> tuple[list[str], int]:
    """(who may read now besides the owner, how many shares are needed). Raises Refused(KEY_REFUSED),
    InvalidRequest(READER_INVALID), Exhausted(READERS_EXHAUSTED)."""
    request = pb.SetReadersRequest(key_id=key_id, grant=grant, withdraw=withdraw)
    answer = await keystore_pb2_grpc.KeyStoreStub(channel).SetReaders(request)
    return list(answer.readers), answer.threshold


async def remove_share(channel: Any, key_id: bytes) -> None:
    """Forget a share for good. Raises Refused(KEY_REFUSED) but for the owner."""
    await keystore_pb2_grpc.KeyStoreStub(channel).RemoveShare(pb.RemoveShareRequest(key_id=key_id))


class KeyStores:
    """One key store of each site, in order of site, as one user sees them."""

    def __init__(self, endpoints: Iterable[Endpoint], open_channel: Callable[[str, int], Awaitable[Any]]) -> None:
        """`open_channel(host, port)`: a secure channel in the name of the user."""
        by_site = {endpoint.site: endpoint for endpoint in reversed(tuple(endpoints)) if endpoint.rpc}
        self.known = [by_site[site] for site in sorted(by_site)]
        self._open_channel = open_channel

    async def ask_all(self, ask: Callable[[Any, int], Awaitable[T]]) -> list[T | GridError | SecurityError]:
        """What each says to `ask(channel, number)`, or why it says nothing, in order."""

        async def one(number: int, store: Endpoint) -> T | GridError | SecurityError:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await ask(await self._open_channel(store.host, store.rpc), number)
            except TimeoutError:
                return Unavailable("KEYSTORE_SILENT", f"key store {store.name} did not answer within {ANSWER_S:g} s")
            except (GridError, SecurityError) as error:
                return error

        return list(await asyncio.gather(*(one(number, store) for number, store in enumerate(self.known))))

    async def keep(self, key_id: bytes, key: bytes) -> None:
        """Give every key store its share. Raises NotFound(KEYSTORES_MISSING), GridError; then no store keeps one, if it
        answers."""
        sites = len(self.known)
        if sites < LEAST_SITES:
            raise NotFound(
                "KEYSTORES_MISSING",
                f"{sites} sites of this grid have a key store and {LEAST_SITES} are needed, so that no single one "
                "can open a file; nothing was stored",
            )
        threshold = sites // 2 + 1
        shares = secret_sharing.split(key, threshold, sites)

        async def put(channel: Any, number: int) -> None:
            await put_share(channel, key_id, shares[number], threshold)

        failures = [answer for answer in await self.ask_all(put) if answer is not None]
        if failures:
            await self.forget(key_id)
            raise failures[0]

    async def forget(self, key_id: bytes) -> list[GridError | SecurityError]:
        """Have every key store forget its share; why some did not."""
        answers = await self.ask_all(lambda channel, _: remove_share(channel, key_id))
        return [answer for answer in answers if answer is not None]

    async def _candidates(self, key_id: bytes) -> list[bytes]:
        """The key, from whichever stores answer; several candidates if there are more shares than needed, since one of
        them may be wrong. Raises Refused(KEY_REFUSED), Unavailable(KEYSTORES_AWAY)."""
        answers = await self.ask_all(lambda channel, _: get_share(channel, key_id))
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
            "KEYSTORES_AWAY",
            f"{len(found)} key stores gave their shares and more are needed to open this file ({away})",
        )

    async def open_file(self, path: Path, name: str, owner: tuple[int, int] | None = None) -> None:
        """Put the plain content in the place of a fetched file if that is encrypted: a new file, 0600, of `owner` (uid,
        gid) if given. `name` is for sentences. Raises Refused, Unavailable, DataCorrupted(SEAL_BROKEN), OSError."""
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source:
            beginning = source.read(sealing.HEADER_BYTES)
        if not sealing.is_sealed(beginning):
            return
        plain = path.with_name(f".{path.name[:200]}.{os.urandom(4).hex()}.open")
        failure: sealing.SealError | None = None
        try:
            for key in await self._candidates(sealing.key_id_of(beginning)):
                try:
                    await asyncio.to_thread(
                        in_files, path, plain, lambda a, b, key=key: sealing.unseal(key, a, b), owner
                    )
                except sealing.SealError as error:
                    failure = error
                    plain.unlink(missing_ok=True)
                    continue
                os.replace(plain, path)
                return
        finally:
            plain.unlink(missing_ok=True)
        raise DataCorrupted("SEAL_BROKEN", f"{name} does not open: {failure}")


def in_files(
    source: Path, target: Path, work: Callable[[BinaryIO, BinaryIO], None], owner: tuple[int, int] | None = None
) -> None:
    """`work` from one file to another, which is made for its owner alone. Raises OSError."""
    with open(source, "rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        if owner is not None:
            os.fchown(out.fileno(), *owner)
        work(reading, out)
