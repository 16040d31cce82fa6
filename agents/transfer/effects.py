"""What the transfer agent does elsewhere, in the name of a user: catalogue, storage elements, delegations to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.transfer.config import TransferOptions
from agents.transfer.model import Job, element_of, host_and_port, is_foreign
from fabric.context import AgentContext
from fabric.errors import DeadlineExceeded, GridError, InvalidRequest, NotFound, Unauthenticated
from fabric.rpc.delegation import delegate, delegation_remaining_s
from security.credentials import Credential

Entry = catalog.Entry
SMALL_BYTES = storage.SMALL_BYTES
"""Files up to this size may go together."""
NO_PROXY = frozenset({"DELEGATION_MISSING", "DELEGATION_EXPIRED"})
"""Reasons why nothing can be done for an owner."""
MAX_DELEGATED = 10_000
"""Delegations to storage elements that are remembered."""


class NoProxy(Exception):
    """The owner's proxy is missing or has ended: nothing can be done until there is another one."""

    def __init__(self, error: GridError) -> None:
        super().__init__(error.sentence)
        self.error = error


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a turn of an owner's files needs. `entries`: by GUID, as the catalogue has them now."""

    owner: str
    credential: Credential
    entries: Mapping[str, Entry]


class Effects:
    """Calls with users' delegated proxies."""

    def __init__(self, context: AgentContext, options: TransferOptions) -> None:
        self._context, self._options = context, options
        self._delegated: dict[tuple[str, str], asyncio.Task[tuple[Credential, float]]] = {}
        """By owner and element: the proxy that was given on, and until when (monotonic) it is not looked at again."""
        self.not_renewed: Mapping[str, str] = {}
        """By owner: why the proxy was not renewed before it ended."""

    def has_proxy(self, owner: str) -> bool:
        """There is one that has not ended."""
        try:
            return bool(self.proxy(owner))
        except NoProxy:
            return False

    def proxy(self, owner: str) -> Credential:
        """The owner's. Raises NoProxy."""
        try:
            return self._context.delegations.get(owner)
        except NotFound as error:
            raise NoProxy(error) from error
        except Unauthenticated as error:
            why = self.not_renewed.get(owner)
            sentence = f"{error.sentence}; {why}" if why else error.sentence
            raise NoProxy(Unauthenticated(error.reason, sentence, **error.facts)) from error

    async def lookup(self, owner: str, names: Sequence[str]) -> tuple[list[Entry], list[str]]:
        """As `catalog.lookup`. Raises GridError, also for a missing proxy."""
        try:
            return await catalog.lookup(await self._catalogue(self.proxy(owner)), names)
        except NoProxy as error:
            raise error.error from None

    async def watch(self, owner: str, directory: str) -> AsyncIterator[tuple[list[str], bool]]:
        """As `catalog.watch`. Raises NoProxy, GridError."""
        async with aclosing(catalog.watch(await self._catalogue(self.proxy(owner)), directory)) as changes:
            async for change in changes:
                yield change

    async def below(self, owner: str, directory: str) -> AsyncIterator[list[Entry]]:
        """Every file in a directory and below with its replicas, some at a time. Raises NoProxy, GridError."""

        async def channel() -> Any:
            return await self._catalogue(self.proxy(owner))

        async with aclosing(catalog.walk(channel, directory)) as pages:
            async for _, entries in pages:
                names = [f"guid:{entry.guid}" for entry in entries if not entry.is_directory]
                found, _ = await catalog.lookup(await channel(), names) if names else ([], [])
                yield found

    async def prepare(self, owner: str, names: Sequence[str]) -> Prepared:
        """Look the files of a turn up. Raises NoProxy, GridError."""
        credential = self.proxy(owner)
        found, _ = await catalog.lookup(await self._catalogue(credential), names)
        return Prepared(owner, credential, {entry.guid: entry for entry in found})

    async def copy(
        self,
        prepared: Prepared,
        entry: Entry,
        source_surl: str,
        job: Job,
        put_id: str,
        max_bytes_per_s: int,
        progress: Callable[[int], None],
    ) -> str:
        """Have the destination fetch the file, or the source send it to a server of others; the copy's SURL. Raises
        GridError."""
        mover = element_of(source_surl) if is_foreign(job.destination) else job.destination
        async with self._moving(prepared, mover, source_surl) as (channel, bytes_came):

            def moved(size_bytes: int) -> None:
                progress(size_bytes)
                if size_bytes:
                    bytes_came()

            if is_foreign(job.destination):
                url = _url(job, entry.guid, put_id)
                copied = await storage.copy_to(
                    channel, source_surl, url, progress=moved, max_bytes_per_s=max_bytes_per_s
                )
            else:
                content = _content(entry)
                copied = await storage.copy(
                    channel, source_surl, job.vo, expected=_checksums(content), size_bytes=content.size_bytes,
                    put_id=put_id, name_hint=entry.lfn, progress=moved, max_bytes_per_s=max_bytes_per_s,
                    patience_s=0.0,
                )  # fmt: skip
        return copied.surl

    async def copy_together(
        self,
        prepared: Prepared,
        files: Sequence[tuple[Entry, str, str]],
        job: Job,
        max_bytes_per_s: int,
        tell: Callable[[Sequence[str | GridError]], None],
    ) -> list[str | GridError]:
        """Have the destination fetch small files (entry, source SURL, put id) of one source: the copy's SURL, or why
        there is none, for each. `tell` is called with the next of these when they are known."""
        wanted = [
            storage.SmallCopy(
                surl, _content(entry).size_bytes, _checksums(_content(entry)), put_id, name_hint=entry.lfn
            )
            for entry, surl, put_id in files
        ]
        found: list[str | GridError] = []
        try:
            async with self._moving(prepared, job.destination, wanted[0].source_surl) as (channel, bytes_came):

                def told(outcomes: Sequence[storage.Stored | GridError]) -> None:
                    if outcomes:
                        bytes_came()
                    new = [one if isinstance(one, GridError) else one.surl for one in outcomes]
                    found.extend(new)
                    tell(new)

                outcomes = await storage.copy_small(
                    channel, wanted, job.vo, tell=told, max_bytes_per_s=max_bytes_per_s, patience_s=0.0
                )
                return [one if isinstance(one, GridError) else one.surl for one in outcomes]
        except GridError as error:
            return [*found, *([error] * (len(files) - len(found)))]

    @asynccontextmanager
    async def _moving(
        self, prepared: Prepared, mover: str, source_surl: str
    ) -> AsyncGenerator[tuple[Any, Callable[[], None]]]:
        """A channel to the element that moves the bytes, which has a proxy of the owner, and what to call whenever some
        have come. Raises DeadlineExceeded(TRANSFER_STALLED) if that is not done for `stall_s`."""
        stall_s, clock = self._options.stall_s, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(stall_s) as deadline:
                channel = await self._delegated_to(prepared.owner, prepared.credential, mover)
                yield channel, lambda: deadline.reschedule(clock() + stall_s)
        except TimeoutError:
            raise DeadlineExceeded(
                "TRANSFER_STALLED",
                f"no byte of {source_surl} was moved by {mover} for {stall_s:g} s",
                side="source",
            ) from None
        except GridError as error:
            if error.reason in NO_PROXY:
                self._delegated.pop((prepared.owner, mover), None)
            raise

    async def register(self, prepared: Prepared, copies: Sequence[tuple[Entry, str]]) -> list[GridError | None]:
        """Tell the catalogue of copies (entry, SURL); what each was refused with."""
        new = [
            catalog.NewReplica(f"guid:{entry.guid}", surl, _content(entry).size_bytes, _content(entry).adler32)
            for entry, surl in copies
        ]
        try:
            return await catalog.add_replica_many(await self._catalogue(self._proxy_now(prepared)), new)
        except GridError as error:
            return [error] * len(new)

    async def take_back(self, job: Job, guid: str, put_id: str, source: str) -> None:
        """Remove what the destination may have of a put; at a server of others the `source` does. Raises GridError."""
        try:
            credential = self.proxy(job.owner)
        except NoProxy as error:
            raise error.error from None
        if is_foreign(job.destination):
            channel = await self._delegated_to(job.owner, credential, source)
            await storage.remove(channel, _url(job, guid, put_id))
            return
        host, port = host_and_port(job.destination)
        channel = await self._context.channels.get(host, port, credential=credential)
        await storage.take_back(channel, put_id, job.vo)

    def _proxy_now(self, prepared: Prepared) -> Credential:
        """A newer one, if the owner has delegated again meanwhile."""
        try:
            return self.proxy(prepared.owner)
        except NoProxy:
            return prepared.credential

    async def _catalogue(self, credential: Credential) -> Any:
        endpoint = self._context.settings.endpoint("catalog")
        return await self._context.channels.get(endpoint.host, endpoint.rpc, credential=credential)

    async def _delegated_to(self, owner: str, credential: Credential, element: str) -> Any:
        """A channel to a storage element that has a proxy of the owner. Many at once are one delegation."""
        host, port = host_and_port(element)
        channel = await self._context.channels.get(host, port, credential=credential)
        key = (owner, element)
        known = self._delegated.get(key)
        if known is not None and known.done():
            given = known.result() if not known.cancelled() and known.exception() is None else None
            if given is None or given[0] is not credential or given[1] < self._context.clock.monotonic():
                known = None
        if known is None:
            while len(self._delegated) >= MAX_DELEGATED:
                del self._delegated[next(iter(self._delegated))]
            known = self._delegated[key] = asyncio.create_task(self._delegate(channel, credential))
            known.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(known)
        return channel

    async def _delegate(self, channel: Any, credential: Credential) -> tuple[Credential, float]:
        ours_s = (credential.not_after - self._context.clock.now()).total_seconds()
        left_s = await delegation_remaining_s(channel)
        if left_s < ours_s / 2:
            await delegate(channel, credential)
            left_s = await delegation_remaining_s(channel)
        return credential, self._context.clock.monotonic() + left_s / 2


def _content(entry: Entry) -> catalog.Content:
    """Raises InvalidRequest(IS_DIRECTORY)."""
    if entry.content is None:
        raise InvalidRequest("IS_DIRECTORY", f"{entry.lfn} is a directory; name its files")
    return entry.content


def _checksums(content: catalog.Content) -> storage.Checksums:
    return storage.Checksums(content.adler32, content.sha256)


def _url(job: Job, guid: str, put_id: str) -> str:
    """Where a file goes at a server of others: a name that no other file has, the same at every attempt."""
    return f"{job.destination}/{guid}.{put_id}"
