"""What callers may do with files, whatever door they come by: who may, the element, the trail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from agents.storage.element import Pieces, StorageElement
from agents.storage.framing import Piece
from agents.storage.http_wire import Target, href
from agents.storage.model import LARGE_BYTES, Announced, Entry, StoredFile, require_intact
from agents.storage.namespace import parent_missing
from agents.storage.nearline import Locality, Nearline, locality_of
from agents.storage.partial import Continuable
from agents.storage.surl import Surl, is_vo_name, parse_surl
from fabric import access
from fabric.errors import Conflict, DeadlineExceeded, GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.logs import Logger
from fabric.rpc.peer import Peer
from fabric.vos import Vos
from security.errors import Reason

MAX_SURLS = 1000
"""Files in one request."""


class StorageManager:
    """One storage element at `host:port`, as its SURLs name it."""

    def __init__(
        self,
        element: StorageElement,
        *,
        host: str,
        port: int,
        log: Logger,
        vos: Vos,
        nearline: Nearline | None = None,
    ) -> None:
        self.element, self.host, self.port = element, host, port
        self.nearline = nearline
        self.door_port = 0
        """Of the HTTPS door; 0 while it is closed."""
        self._log, self._vos = log, vos

    def surl(self, file: StoredFile) -> str:
        """The SURL of a file here."""
        return str(Surl(self.host, self.port, file.vo, file.file_id))

    def turl(self, vo: str, size_bytes: int, file_id: str = "") -> str:
        """Where the HTTPS door has a file of this size, or takes a new one; empty if gRPC is as good."""
        if not self.door_port or size_bytes < LARGE_BYTES:
            return ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.door_port}/{vo}/{file_id}"

    # -- who may -----------------------------------------------------------------------------------------------------

    def may_read(self, peer: Peer, vo: str) -> None:
        """Members of the VO; operators what a VO that was dissolved has left. Raises Refused(OTHER_VO),
        InvalidRequest(VO_INVALID)."""
        if not is_vo_name(vo):
            raise InvalidRequest("VO_INVALID", f"{vo[:64]!r} cannot be the name of a VO; say for which VO the data is")
        refusal = self._vos.refusal(vo)
        if peer.is_administrator and refusal is not None and refusal.reason is Reason.VO_DISSOLVED:
            return
        if vo != peer.vo:
            raise Refused(
                "OTHER_VO",
                f"{peer.subject} is of VO {peer.vo or '(none)'} and may not use the space of VO {vo}; use your "
                "own VO's",
                subject=peer.subject,
                vo=vo,
            )

    def may_write(self, peer: Peer, vo: str) -> None:
        """Who may read, if the groups and roles are those of `write_access`. Raises Refused."""
        self.may_read(peer, vo)
        if not peer.is_administrator:
            access.require(self.element.config.write_access, peer, f"writing to the space of {vo}")

    def may_remove(self, peer: Peer, file: StoredFile) -> None:
        """Who may write; where the option `removal` says so the owner alone. Raises Refused(NOT_OWNER)."""
        self.may_write(peer, file.vo)
        if self.element.config.removal == "owner" and file.owner != peer.subject and not peer.is_administrator:
            raise Refused(
                "NOT_OWNER",
                f"{self.surl(file)} belongs to {file.owner}; only its owner may remove it here",
                owner=file.owner,
            )

    def mine(self, peer: Peer, surl: Surl) -> Surl:
        """A SURL of this storage element and of the caller's VO. Raises NotFound(SURL_ELSEWHERE), Refused."""
        self.may_read(peer, surl.vo)
        return self.here(surl)

    def here(self, surl: Surl) -> Surl:
        """A SURL of this storage element. Raises NotFound(SURL_ELSEWHERE)."""
        if (surl.host.lower(), surl.port) != (self.host.lower(), self.port):
            raise NotFound(
                "SURL_ELSEWHERE",
                f"{surl} is not of this storage element, which is {self.host}:{self.port}; ask the one it names",
                surl=surl,
            )
        return surl

    def note(self, peer: Peer, event: str, **facts: object) -> None:
        """What somebody did, in the trail."""
        self._log.audit(event, **peer.trail, **facts)

    # -- files -------------------------------------------------------------------------------------------------------

    async def put(
        self,
        peer: Peer,
        announced: Announced,
        pieces: Pieces | Continuable,
        *,
        door: str,
        source: str | None = None,
    ) -> StoredFile:
        """As `StorageElement.put`, for who may. `source`: where a third-party copy comes from."""
        self.may_write(peer, announced.vo)
        file = await self.element.put(announced, pieces)
        self._log.audit(
            "storage.put" if source is None else "storage.copied",
            **peer.trail,
            door=door,
            surl=self.surl(file),
            name=file.name_hint,
            vo=file.vo,
            size_bytes=file.size_bytes,
            source=source,
        )
        return file

    async def put_many(
        self, peer: Peer, vo: str, files: Sequence[tuple[Announced, Piece]], *, door: str, source: str | None = None
    ) -> list[StoredFile | GridError]:
        """As `StorageElement.put_many`, for files of one VO. `source`: the storage element that they come from."""
        self.may_write(peer, vo)
        outcomes = await self.element.put_many(peer.subject, files)
        kept = [file for file in outcomes if isinstance(file, StoredFile)]
        self._note_many("storage.put" if source is None else "storage.copied", peer, vo, kept, door, source=source)
        return outcomes

    async def get_many(self, peer: Peer, vo: str, files: Sequence[StoredFile], *, door: str) -> list[bytes | GridError]:
        """As `StorageElement.get_many`, for files of one VO."""
        self.may_read(peer, vo)
        with self.element.admission.transfer(peer.subject):
            outcomes = await self.element.get_many(files)
        read = [file for file, outcome in zip(files, outcomes, strict=True) if isinstance(outcome, bytes)]
        self._note_many("storage.get", peer, vo, read, door)
        return outcomes

    def _note_many(
        self, event: str, peer: Peer, vo: str, files: Sequence[StoredFile], door: str, source: str | None = None
    ) -> None:
        if files:
            surls = [self.surl(file) for file in files]
            self._log.audit_each(event, "surls", surls, **peer.trail, door=door, vo=vo, source=source)

    async def send(
        self,
        peer: Peer,
        file: StoredFile,
        offset: int,
        size_bytes: int,
        take: Callable[[Piece], Awaitable[int]],
        made: Callable[[memoryview], bytes] | None = None,
        *,
        begin: Callable[[], Awaitable[object]] | None = None,
        door: str,
        target: str | None = None,
    ) -> None:
        """Give a valid range of a file, piece by piece, to `take`, which says how much of it it took, after `begin`,
        which may wait. Raises as `require_online` and
        Exhausted(TOO_MANY_TRANSFERS) before `begin`; DeadlineExceeded(TRANSFER_STALLED); as `StorageElement.read`."""
        await self.require_online(peer, file)
        stall_s = self.element.config.stall_timeout_s
        with self.element.admission.transfer(peer.subject):
            messages = self.element.read(file, offset, size_bytes, made)
            try:
                if begin is not None:
                    await begin()
                async for rest in messages:
                    while rest:
                        async with asyncio.timeout(stall_s):
                            rest = rest[await take(rest) :]
            except TimeoutError:
                raise DeadlineExceeded(
                    "TRANSFER_STALLED",
                    f"{peer.subject} took no data for {stall_s:g} s; the download was ended, start it again",
                ) from None
            finally:
                await messages.aclose()
        self._log.audit(
            "storage.get",
            **peer.trail,
            door=door,
            surl=self.surl(file),
            name=file.name_hint,
            vo=file.vo,
            size_bytes=size_bytes,
            target=target,
        )

    async def require_online(self, peer: Peer, file: StoredFile) -> None:
        """Raises Unavailable(FILE_STAGING) for a file that is on tape only, which begins to come to disk for its
        reader; DataCorrupted(FILE_DAMAGED | FILE_LOST) for one whose bytes are nowhere."""
        if self.nearline is not None and self.nearline.keeps(file.vo):
            if file.pool and not file.damage:
                self.nearline.note_read(file)
                return
            (staging,) = await self.nearline.bring_online([file], peer.subject, file.vo, 0.0)
            if staging.retry_after_s:
                raise Unavailable(
                    "FILE_STAGING", staging.sentence, surl=self.surl(file), retry_after_s=staging.retry_after_s
                )
        require_intact(file)

    async def files_of(self, peer: Peer, surls: Sequence[str]) -> list[StoredFile]:
        """Of the caller's VO. Raises InvalidRequest(TOO_MANY_NAMES), NotFound, Refused."""
        if len(surls) > MAX_SURLS:
            raise InvalidRequest("TOO_MANY_NAMES", f"{len(surls)} files in one request; ask for at most {MAX_SURLS}")
        mine = [self.mine(peer, parse_surl(text)) for text in dict.fromkeys(surls)]
        return [await self.element.get(surl.file_id, surl.vo) for surl in mine]

    def require_tapes(self) -> Nearline:
        """Raises Conflict(NO_TAPES)."""
        if self.nearline is None:
            raise Conflict("NO_TAPES", "this storage element has no tapes; all its files are on disk")
        return self.nearline

    async def localities(self, files: Sequence[StoredFile]) -> dict[str, Locality]:
        """Where they are, by id."""
        if self.nearline is None:
            return {file.file_id: locality_of(file, None) for file in files}
        return await self.nearline.localities(files)

    async def repair(self, peer: Peer, file: StoredFile, pieces: Pieces, *, door: str, source: str) -> bool:
        """As `StorageElement.repair`, for who may write; a file that is intact is left alone."""
        self.may_write(peer, file.vo)
        with self.element.admission.transfer(peer.subject):
            repaired = await self.element.repair(file, pieces)
        self._log.audit(
            "storage.repaired", **peer.trail, door=door, surl=self.surl(file), vo=file.vo, source=source,
            repaired=repaired,
        )  # fmt: skip
        return repaired

    async def remove(self, peer: Peer, vo: str, file_id: str) -> bool:
        """Forget a file. False if it was gone. Raises Refused."""
        self.may_write(peer, vo)
        done = await self.element.remove(file_id, vo, lambda file: self.may_remove(peer, file))
        if done:
            surl = str(Surl(self.host, self.port, vo, file_id))
            self._log.audit("storage.removed", **peer.trail, surl=surl, vo=vo)
        return done

    async def abort(self, peer: Peer, vo: str, put_id: str) -> None:
        """End the caller's own put and forget what it made. Raises Refused."""
        self.may_write(peer, vo)
        file = await self.element.abort(peer.subject, put_id, vo)
        if file is not None:
            await self.remove(peer, vo, file.file_id)

    # -- names -------------------------------------------------------------------------------------------------------

    async def find(self, peer: Peer, target: Target) -> Entry:
        """What a path names: a file by its id, or what has this name. Raises NotFound, Refused."""
        self.may_read(peer, target.vo)
        if target.file_id is not None:
            file = await self.element.get(target.file_id, target.vo)
            return Entry(file.file_id, file.created_at_us, file)
        return await self.element.find(target.vo, target.path)

    async def find_to_replace(self, peer: Peer, target: Target) -> str:
        """Id of the file that has this name and may give it up to a new one; empty if the name is free. Raises
        Refused; InvalidRequest(IS_DIRECTORY)."""
        self.may_write(peer, target.vo)
        try:
            entry = await self.find(peer, target)
        except NotFound:
            return ""
        if entry.file is None:
            raise InvalidRequest(
                "IS_DIRECTORY", f"{href(target, directory=True)} is a directory; a file cannot take its place"
            )
        self.may_remove(peer, entry.file)
        return entry.file.file_id

    async def find_free(self, peer: Peer, target: Target, *, never: bool) -> str:
        """Id of the file that a new one under this name replaces; empty: of none. Raises as `find_to_replace` and
        `find_parent`; InvalidRequest(NAME_RESERVED), Conflict(PRECONDITION_FAILED) if there is one and it `never` is
        to be replaced."""
        name = href(target, directory=False)
        if not target.path or target.file_id is not None:
            raise InvalidRequest("NAME_RESERVED", f"{name} is no name for a file; choose /<vo>/<name>")
        replaces = await self.find_to_replace(peer, target)
        if replaces and never:
            raise Conflict("PRECONDITION_FAILED", f"{name} is there already, and is to stay")
        if not replaces:
            await self.find_parent(peer, target)
        return replaces

    async def find_parent(self, peer: Peer, target: Target) -> None:
        """Raises Conflict(PARENT_MISSING) if there is no directory for this name yet."""
        parent = Target(target.vo, target.path[:-1])
        self.may_read(peer, target.vo)
        try:
            found = await self.element.find(parent.vo, parent.path)
        except NotFound:
            found = None
        if found is None or found.file is not None:
            raise parent_missing(parent.vo, parent.path)

    async def make_directory(self, peer: Peer, target: Target) -> None:
        """Raises as `StorageElement.make_directory`, Refused."""
        self.may_write(peer, target.vo)
        await self.element.make_directory(target.vo, target.path)
        self._log.audit("storage.directory_made", **peer.trail, path=href(target, directory=True), vo=target.vo)

    async def remove_directory(self, peer: Peer, target: Target) -> None:
        """An empty one. Raises as `StorageElement.remove_directory`, Refused."""
        self.may_write(peer, target.vo)
        await self.element.remove_directory(target.vo, target.path)
        self._log.audit("storage.directory_removed", **peer.trail, path=href(target, directory=True), vo=target.vo)

    async def rename(self, peer: Peer, source: Target, target: Target, replaces: str) -> None:
        """Move a name within a VO. Moving a file is open to who may remove it. Raises as `StorageElement.rename`,
        Refused."""
        self.may_write(peer, source.vo)
        if source.vo != target.vo:
            raise Refused("OTHER_VO", f"a file of VO {source.vo} cannot become one of VO {target.vo}; copy it")
        entry = await self.find(peer, source)
        if entry.file is not None:
            self.may_remove(peer, entry.file)
        await self.element.rename(source.vo, source.path, target.path, replaces)
        self._log.audit(
            "storage.moved",
            **peer.trail,
            path=href(source, directory=False),
            target=href(target, directory=False),
            vo=source.vo,
        )
