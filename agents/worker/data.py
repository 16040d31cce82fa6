"""A job's input and output data, in its owner's name: storage elements and the catalogue, by their wire.

What a repeat needs to be harmless is made from the job: the GUID of an output file from (job, file), the put id from
(job, attempt, file). So an attempt that died after its upload leaves nothing that the next one stumbles over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gridfabric.catalog.v1 import catalog_pb2, catalog_pb2_grpc
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from zlib_ng import zlib_ng

from agents.worker.sandbox_cache import is_passing
from fabric.errors import AlreadyExists, DataCorrupted, GridError, InvalidRequest, NotFound
from fabric.settings import Endpoint, Settings
from security.credentials import Credential

T = TypeVar("T")
PIECE_BYTES = 1024 * 1024
TRANSFER_TIMEOUT_S = 3600.0
_NAMESPACE = uuid.UUID("6f1f8f3c-5a0e-5c57-9d5e-3f2c6d2a7b11")


@dataclass(frozen=True)
class Uploaded:
    """An output file that is at a storage element and in the catalogue."""

    lfn: str
    guid: str
    surl: str
    size_bytes: int


class DataMover:
    """Moves files for jobs. Each call keeps trying for `retry_s` while a service is away."""

    def __init__(self, settings: Settings, channels: Any, *, retry_s: float, log: Any) -> None:
        self._settings, self._channels, self._retry_s, self._log = settings, channels, retry_s, log

    # ---- where

    @property
    def close_storage(self) -> Endpoint | None:
        """The storage element of this site."""
        close = self._settings.endpoints("storage", site=self._settings.site)
        return close[0] if close else None

    def _find_storage(self, wanted: str) -> Endpoint:
        """A storage element by name, site, host or host:port; empty: the close one, else any."""
        everywhere = self._settings.endpoints("storage")
        close = self.close_storage
        if not wanted:
            if close is not None:
                return close
            if everywhere:
                return everywhere[0]
        for endpoint in everywhere:
            if wanted in (endpoint.name, endpoint.address, endpoint.site):
                return endpoint
        for endpoint in everywhere:
            if wanted == endpoint.host:
                return endpoint
        raise InvalidRequest(
            "STORAGE_UNKNOWN", f"no storage element {wanted or 'at all'} is known here; look at grid info ses"
        )

    async def _storage(self, host: str, port: int, credential: Credential) -> Any:
        return storage_pb2_grpc.StorageStub(await self._channels.get(host, port, credential=credential))

    async def _catalogue(self, credential: Credential) -> Any:
        endpoint = self._settings.endpoint("catalog")
        return catalog_pb2_grpc.CatalogueStub(
            await self._channels.get(endpoint.host, endpoint.rpc, credential=credential)
        )

    # ---- input

    async def bring(self, names: Sequence[str], folder: Path, credential: Credential, uid: int, gid: int) -> None:
        """Put these files (LFN or SURL) into the job's directory under their last name. Raises GridError."""
        surls = [name for name in names if name.startswith("srm://")]
        lfns = [name.removeprefix("lfn:") for name in names if not name.startswith("srm://")]
        files: list[tuple[str, list[str], storage_pb2.Checksums]] = [
            (surl, [surl], storage_pb2.Checksums()) for surl in surls
        ]
        if lfns:
            found = {file.lfn: file for file in await self._lookup(lfns, credential)}
            for lfn in lfns:
                file = found.get(lfn)
                if file is None or not file.replicas:
                    raise NotFound("INPUT_DATA_UNKNOWN", f"{lfn} is not in the catalogue or has no replica", lfn=lfn)
                replicas = sorted((replica.surl for replica in file.replicas), key=self._distance)
                files.append((lfn, replicas, storage_pb2.Checksums(adler32=file.adler32, sha256=file.sha256)))
        targets = [name.rstrip("/").rpartition("/")[2] for name, _, _ in files]
        if len(set(targets)) != len(targets):
            raise InvalidRequest("INPUT_DATA_CLASH", "two input data files have the same last name; rename one")
        for (name, replicas, expected), target in zip(files, targets, strict=True):
            if target in ("", ".", "..") or target.startswith("."):
                raise InvalidRequest("INPUT_DATA_NAME", f"{name} has no usable last name")
            await self._bring_one(name, replicas, expected, folder / target, credential, uid, gid)

    def _distance(self, surl: str) -> int:
        """0 for a replica at this site's storage element, then 1."""
        close = self.close_storage
        return 0 if close is not None and urlsplit(surl).netloc == close.address else 1

    async def _lookup(self, lfns: Sequence[str], credential: Credential) -> Any:
        stub = await self._catalogue(credential)
        answer = await self._retried(lambda: stub.Lookup(catalog_pb2.LookupRequest(lfns=lfns)))
        return answer.files

    async def _bring_one(
        self, name: str, replicas: list[str], expected: Any, target: Path, credential: Credential, uid: int, gid: int
    ) -> None:
        async def any_replica() -> None:
            failure: GridError | None = None
            for surl in replicas:
                try:
                    return await self._download(surl, expected, target, credential)
                except GridError as error:
                    failure = error if failure is None or not is_passing(failure) else failure
                    self._log.warning("data.replica_failed", surl=surl, lfn=name, sentence=error.sentence)
            assert failure is not None
            raise failure

        await self._retried(any_replica)
        if uid > 0:
            os.chown(target, uid, gid)

    async def _download(self, surl: str, expected: Any, target: Path, credential: Credential) -> None:
        where = urlsplit(surl)
        if where.hostname is None or where.port is None:
            raise InvalidRequest("SURL_INVALID", f"{surl} names no storage element")
        stub = await self._storage(where.hostname, where.port, credential)
        digest, adler, received = hashlib.sha256(), 1, 0
        announced = storage_pb2.GetResponse()
        with open(target, "wb", opener=lambda p, f: os.open(p, f | os.O_NOFOLLOW, 0o600)) as file:
            call = stub.Get(storage_pb2.GetRequest(surl=surl), timeout=TRANSFER_TIMEOUT_S)
            async for message in call:
                if message.HasField("checksums"):
                    announced = message
                if message.data:
                    received += len(message.data)
                    data = message.data

                    def take(data: bytes = data) -> None:
                        nonlocal adler
                        digest.update(data)
                        adler = zlib_ng.adler32(data, adler)
                        file.write(data)

                    await asyncio.to_thread(take)
        sums = {"adler32": f"{adler:08x}", "sha256": digest.hexdigest()}
        for told in (announced.checksums, expected):
            for kind, value in sums.items():
                due = getattr(told, kind)
                if due and due != value:
                    raise DataCorrupted(
                        "CHECKSUM_MISMATCH", f"{surl} arrived with {kind} {value} where {due} is due", surl=surl
                    )
        if received != announced.size_bytes:
            raise DataCorrupted(
                "SIZE_MISMATCH", f"{surl} arrived with {received} of {announced.size_bytes} bytes", surl=surl
            )

    # ---- output

    async def keep(
        self,
        descriptor: int,
        *,
        file: str,
        lfn: str,
        wanted: str,
        vo: str,
        job_id: str,
        attempt: int,
        credential: Credential,
    ) -> Uploaded:
        """Upload an open file and register it. Raises GridError."""
        endpoint = self._find_storage(wanted)
        guid = str(uuid.uuid5(_NAMESPACE, f"{job_id}\n{file}"))
        put_id = str(uuid.uuid5(_NAMESPACE, f"{job_id}\n{attempt}\n{file}"))
        lfn = lfn.removeprefix("lfn:")
        name = lfn or f"{job_id}/{file}"
        put = await self._retried(lambda: self._upload(endpoint, descriptor, vo, name, put_id, credential))
        if lfn:
            await self._register(lfn, guid, put, endpoint, credential)
        return Uploaded(lfn, guid, put.surl, put.size_bytes)

    async def _upload(
        self, endpoint: Endpoint, descriptor: int, vo: str, name: str, put_id: str, credential: Credential
    ) -> Any:
        stub = await self._storage(endpoint.host, endpoint.rpc, credential)
        size_bytes = os.fstat(descriptor).st_size

        async def messages() -> AsyncIterator[storage_pb2.PutRequest]:
            yield storage_pb2.PutRequest(
                header=storage_pb2.PutHeader(vo=vo, size_bytes=size_bytes, name_hint=name[-200:], put_id=put_id)
            )
            digest, adler, offset = hashlib.sha256(), 1, 0
            while offset < size_bytes:
                piece = await asyncio.to_thread(os.pread, descriptor, PIECE_BYTES, offset)
                if not piece:
                    raise InvalidRequest("FILE_CHANGED", f"{name} became shorter while it was sent")
                digest.update(piece)
                adler = zlib_ng.adler32(piece, adler)
                offset += len(piece)
                yield storage_pb2.PutRequest(data=piece)
            sums = storage_pb2.Checksums(adler32=f"{adler:08x}", sha256=digest.hexdigest())
            yield storage_pb2.PutRequest(trailer=storage_pb2.PutTrailer(checksums=sums))

        return await stub.Put(messages(), timeout=TRANSFER_TIMEOUT_S)

    async def _register(self, lfn: str, guid: str, put: Any, endpoint: Endpoint, credential: Credential) -> None:
        request = catalog_pb2.RegisterRequest(
            lfn=lfn,
            guid=guid,
            size_bytes=put.size_bytes,
            adler32=put.checksums.adler32,
            sha256=put.checksums.sha256,
            replica=catalog_pb2.Replica(surl=put.surl, storage_element=endpoint.address),
            make_parents=True,
        )
        stub = await self._catalogue(credential)
        try:
            await self._retried(lambda: stub.Register(request))
        except (AlreadyExists, DataCorrupted) as error:
            if error.facts.get("guid") == guid:
                # An earlier attempt of this very job registered its file: that one stands.
                self._log.info("data.registered_before", lfn=lfn, guid=guid)
            else:
                await self._discard(put.surl, credential)
                raise
        except GridError:
            await self._discard(put.surl, credential)
            raise

    async def _discard(self, surl: str, credential: Credential) -> None:
        """A file that no catalogue entry will name is removed again, if possible."""
        where = urlsplit(surl)
        with contextlib.suppress(GridError, ValueError):
            stub = await self._storage(where.hostname or "", where.port or 0, credential)
            await stub.Remove(storage_pb2.RemoveRequest(surl=surl), timeout=10)

    # ---- patience

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._retry_s, 0.2
        while True:
            try:
                return await attempt()
            except GridError as error:
                if not is_passing(error) or loop.time() + pause_s > until:
                    raise
                self._log.warning("data.retry", reason=error.reason, sentence=error.sentence)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 3.0)
