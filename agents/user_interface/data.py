"""`grid data`: files by logical name, through catalogue and storage elements."""

from __future__ import annotations

import asyncio
import os
import stat
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from agents.catalog import client as catalog
from agents.keystore.client import KeyStores
from agents.storage import client as storage
from agents.user_interface import console, information
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.endpoints import parse_address
from agents.user_interface.exits import Ended, UsageProblem, describe, exit_code
from agents.user_interface.patience import Patience
from agents.user_interface.progress import moving
from fabric.errors import AlreadyExists, Conflict, DataCorrupted, GridError, InvalidRequest, NotFound, Unavailable
from security import sealing
from security.errors import SecurityError

COPIES_AT_ONCE = 8
"""Replications side by side."""
REMOVALS_AT_ONCE = 8
NOT_THERE = frozenset({"NO_REPLICA", "LFN_UNKNOWN", "LFN_NOT_FOUND", "DIRECTORY_NOT_FOUND"})
"""Of a file of a tree: it has no replica at that element, or somebody else was faster."""


@dataclass(frozen=True)
class Element:
    """A storage element and its gRPC door."""

    name: str
    site: str
    host: str
    port: int
    free_bytes: int | None = None


def check_lfn(text: str) -> str:
    """An LFN as the catalogue wants it. Raises UsageProblem."""
    lfn = text if text.startswith("lfn:") else f"lfn:{text}" if text.startswith("/") else text
    if not lfn.startswith("lfn:/"):
        raise UsageProblem(f"{text[:200]!r} is not a logical file name; it looks like lfn:/grid/cms/file")
    return lfn


def check_name(text: str) -> str:
    """The name of a file in the catalogue: its GUID, the SURL of a replica, or an LFN as `check_lfn` has it. Raises
    UsageProblem."""
    return check_lfn(text) if catalog.kind_of(text) is catalog.NameKind.LFN else text


def require_vo(grid: Grid) -> None:
    """Raises UsageProblem where it is not known for which VO files are."""
    if not grid.vo:
        raise UsageProblem("for which VO? set GRIDFABRIC_VO")


def key_stores(grid: Grid) -> KeyStores:
    """Those of this grid, in the user's name."""
    return KeyStores(grid.services.all("keystore"), grid.channel_to)


async def sealed_with(grid: Grid, file: catalog.Entry) -> bytes | None:
    """Whose key opens an encrypted file; None if it is not encrypted, has no replica on disk that can be read, or there
    are no key stores."""
    if not key_stores(grid).known or content_of(file).size_bytes < sealing.HEADER_BYTES:
        return None
    for replica in file.replicas:
        try:
            channel = await grid.channel_to(*door(replica.surl))
            if (await storage.stat(channel, replica.surl)).locality == "NEARLINE":
                continue  # reading it would bring it to disk
            beginning = await storage.read_range(channel, replica.surl, 0, sealing.HEADER_BYTES)
        except (GridError, SecurityError):
            continue  # another one may be readable
        return sealing.key_id_of(beginning) if sealing.is_sealed(beginning) else None
    return None


async def elements(grid: Grid) -> list[Element]:
    """Every storage element that is known, from the endpoints or the information system."""
    known = [Element(e.name, e.site, e.host, e.rpc) for e in grid.services.all("storage") if e.rpc]
    if known:
        return known
    found = await information.storage_elements(grid.services.one("top", "ldap"))
    return [Element(se.name, se.site, se.host, se.port, se.free_bytes) for se in found if se.port]


async def find_element(grid: Grid, wanted: str | None) -> Element:
    """The storage element meant by a name or a site; without, GRIDFABRIC_SE or the first known. Raises NotFound."""
    known = await elements(grid)
    wanted = wanted or os.environ.get("GRIDFABRIC_SE") or None
    for element in known:
        if wanted is None or wanted.lower() in (
            element.name.lower(),
            element.site.lower(),
            f"{element.host}:{element.port}",
        ):
            return element
    names = ", ".join(f"{element.name} ({element.site})" for element in known[:20]) or "none"
    raise NotFound("SE_UNKNOWN", f"no storage element {wanted!r} is known; known are: {names}", wanted=wanted)


def door(surl: str) -> tuple[str, int]:
    """Host and port of the storage element that a SURL names."""
    return parse_address(surl.partition("://")[2].partition("/")[0], "the SURL's address")


def is_at(replica: catalog.Replica, element: Element) -> bool:
    """True if this replica is on that storage element. By address."""
    return door(replica.surl) == (element.host, element.port)


def checksums_of(file: catalog.Entry) -> storage.Checksums:
    """What the catalogue says. Raises InvalidRequest for a directory."""
    content = content_of(file)
    return storage.Checksums(content.adler32, content.sha256)


def lfn_of(entry: catalog.Entry) -> str:
    """The name as users write it."""
    return entry.lfn if entry.lfn.startswith("lfn:") else f"lfn:{entry.lfn}"


def content_of(entry: catalog.Entry) -> catalog.Content:
    """Size and checksums of a file. Raises InvalidRequest for a directory."""
    if entry.content is None:
        raise InvalidRequest(
            "IS_DIRECTORY", f"{lfn_of(entry)} is a directory; list it with: grid data ls", lfn=lfn_of(entry)
        )
    return entry.content


async def lookup(grid: Grid, names: Sequence[str]) -> list[catalog.Entry]:
    """Files with their replicas, in the order asked. Raises NotFound for a name that is not there."""
    found, unknown = await catalog.lookup(await grid.channel("catalog"), names)
    if unknown:
        raise NotFound("LFN_NOT_FOUND", f"the catalogue has no file {unknown[0]}", lfn=unknown[0])
    by_name = {lfn_of(entry): entry for entry in found}
    by_name |= {replica.surl: entry for entry in found for replica in entry.replicas}
    by_name |= {f"guid:{entry.guid}": entry for entry in found}
    return [by_name[catalog.one_spelling(name)] for name in names]


async def files_of(grid: Grid, names: Sequence[str]) -> list[str]:
    """The files of these names, and every one below those that are directories; unknown GUIDs and SURLs stay. Raises
    NotFound."""
    channel = await grid.channel("catalog")
    _, unknown = await catalog.lookup(channel, names)
    directories = dict.fromkeys(name for name in unknown if catalog.kind_of(name) is catalog.NameKind.LFN)
    files = [name for name in dict.fromkeys(names) if name not in directories]
    for directory in directories:
        async with aclosing(catalog.walk(lambda: grid.channel("catalog"), directory)) as pages:
            async for _, entries in pages:
                files += [lfn_of(entry) for entry in entries if not entry.is_directory]
    if not files:
        raise NotFound("NO_FILES", f"there are no files below {names[0]}")
    return files


async def put(grid: Grid, path: Path, lfn: str, element: Element) -> catalog.Entry:
    """Store a local file and register it. A file that cannot be registered does not stay behind. Raises GridError."""
    names = await grid.channel("catalog")
    found, _ = await catalog.lookup(names, [lfn])
    if found:
        raise AlreadyExists(
            "LFN_EXISTS", f"{lfn} is already there; choose another name, or remove it: grid data rm {lfn}", lfn=lfn
        )
    channel = await grid.channel_to(element.host, element.port)
    with moving(path.name, path.stat().st_size) as progress:
        stored = await storage.put_file(channel, path, grid.vo, name_hint=path.name[:200], progress=progress)
    content = catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)
    try:
        return await catalog.register(names, lfn, catalog.new_guid(), content, surl=stored.surl)
    except GridError as error:
        if not isinstance(error, Unavailable):  # else it may be registered: an orphan is better than a lost file
            await storage.remove(channel, stored.surl)
        raise


async def replicate(grid: Grid, file: catalog.Entry, target: Element) -> str | None:
    """A verified copy on `target`, registered; its SURL. None if there is one already. Raises GridError."""
    if any(is_at(replica, target) for replica in file.replicas):
        return None
    if not file.replicas:
        raise NotFound("NO_REPLICA", f"{lfn_of(file)} has no replica to copy from", lfn=lfn_of(file))
    channel = await grid.channel_to(target.host, target.port)
    failure: GridError | None = None
    for source in file.replicas:
        try:
            copied = await storage.copy(
                channel, source.surl, grid.vo, expected=checksums_of(file), put_id=_copy_id(file), name_hint=file.lfn
            )
            break
        except (Unavailable, NotFound, DataCorrupted) as error:
            failure = error  # another replica may be readable
    else:
        raise failure or NotFound("NO_REPLICA", f"{lfn_of(file)} has no replica that can be read", lfn=lfn_of(file))
    await catalog.add_replica(
        await grid.channel("catalog"), lfn_of(file), copied.surl, copied.size_bytes, copied.checksums.adler32
    )
    return copied.surl


def _copy_id(file: catalog.Entry) -> str:
    """The id of the put of a copy: a copy that was made and not registered is found again."""
    return f"copy-{file.guid}"


async def replicate_all(
    grid: Grid,
    files: Sequence[catalog.Entry],
    target: Element,
    on_copied: Callable[[catalog.Entry, str | None], None] = lambda file, surl: None,
) -> list[Exception]:
    """Replicate many files, some at a time and small ones many by one call; `on_copied(file, surl)` after each. Returns
    the failures."""
    await grid.delegate(await grid.channel_to(target.host, target.port))
    gate = asyncio.Semaphore(COPIES_AT_ONCE)
    failures: list[Exception] = []

    async def one(file: catalog.Entry) -> None:
        try:
            async with gate:
                surl = await replicate(grid, file, target)
        except (GridError, SecurityError) as error:
            failures.append(error)
        else:
            on_copied(file, surl)

    async def together(batch: Sequence[catalog.Entry]) -> None:
        async with gate:
            outcomes = await _replicate_small(grid, batch, target)
        for file, surl in zip(batch, outcomes, strict=True):
            if surl is None:
                await one(file)  # another replica may be readable, or it says why not
            else:
                on_copied(file, surl)

    batches, alone = _batches(files, target)
    async with asyncio.TaskGroup() as group:
        for batch in batches:
            group.create_task(together(batch))
        for file in alone:
            group.create_task(one(file))
    return failures


def _batches(
    files: Sequence[catalog.Entry], target: Element
) -> tuple[list[Sequence[catalog.Entry]], list[catalog.Entry]]:
    """Small files whose first replicas lie at one storage element, in batches of one call; and the others."""
    alone: list[catalog.Entry] = []
    sources: dict[tuple[str, int], list[catalog.Entry]] = {}
    for file in files:
        is_small = file.content is not None and file.content.size_bytes <= storage.SMALL_BYTES
        try:
            places = [door(replica.surl) for replica in file.replicas] if is_small else []
        except UsageProblem:
            places = []  # not a SURL of ours
        if places and (target.host, target.port) not in places:
            sources.setdefault(places[0], []).append(file)
        else:
            alone.append(file)
    size = storage.MAX_TOGETHER
    batches = [group[start : start + size] for group in sources.values() for start in range(0, len(group), size)]
    return batches, alone


async def _replicate_small(grid: Grid, files: Sequence[catalog.Entry], target: Element) -> list[str | None]:
    """The SURL of each copy that is verified and registered."""
    copies = [
        storage.SmallCopy(
            file.replicas[0].surl, content_of(file).size_bytes, checksums_of(file), _copy_id(file), file.lfn
        )
        for file in files
    ]
    surls: list[str | None] = [None] * len(files)
    try:
        copied = await storage.copy_small(await grid.channel_to(target.host, target.port), copies, grid.vo)
        new = {
            number: catalog.NewReplica(f"guid:{file.guid}", found.surl, found.size_bytes, found.checksums.adler32)
            for number, (file, found) in enumerate(zip(files, copied, strict=True))
            if isinstance(found, storage.Stored)
        }
        refused = await catalog.add_replica_many(await grid.channel("catalog"), list(new.values())) if new else []
    except (GridError, SecurityError):
        return surls
    for (number, replica), error in zip(new.items(), refused, strict=True):
        surls[number] = None if error is not None else replica.surl
    return surls


def file_data(file: catalog.Entry) -> dict[str, Any]:
    """An entry of the catalogue as plain data."""
    if file.content is None:
        return {"lfn": lfn_of(file), "directory": True}
    return {
        "lfn": lfn_of(file),
        "guid": file.guid,
        "size_bytes": file.content.size_bytes,
        "adler32": file.content.adler32,
        "sha256": file.content.sha256,
        "owner": file.owner,
        "created_at": console.time_us_text(file.created_at_us),
        "replicas": [{"surl": r.surl, "storage_element": r.storage_element} for r in file.replicas],
    }


def require_regular(path: Path) -> None:
    """Raises UsageProblem for what is no file to put, OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageProblem(f"{path} is not a regular file; copy what it holds into one first", path=path)


def free_target(target: Path, name: str, *, force: bool) -> Path:
    """Where a file goes: `name` in a directory. Raises AlreadyExists unless by `force`."""
    if target.is_dir():
        target = target / name
    if target.exists() and not force:
        raise AlreadyExists("FILE_EXISTS", f"{target} exists; use --force to replace it", path=target)
    return target


async def put_command(
    path: Path,
    lfn: str,
    se: str | None,
    *,
    store: Callable[[Grid, Path, str, Element], Awaitable[catalog.Entry]] = put,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data put`."""
    name = check_lfn(lfn)
    require_regular(path)
    async with open_for_user(environ) as grid:
        require_vo(grid)
        file = await store(grid, path, name, await find_element(grid, se))
    if as_json:
        console.print_json(file_data(file))
    else:
        print(f"{lfn_of(file)}  {console.bytes_text(content_of(file).size_bytes)}  {file.replicas[0].surl}")


async def get_command(
    lfn: str, path: Path | None, se: str | None, *, force: bool, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data get`: from the replica asked for, or the first that can be read."""
    name = check_name(lfn)
    async with open_for_user(environ) as grid:
        file = (await lookup(grid, [name]))[0]
        content = content_of(file)
        name = PurePosixPath(lfn_of(file)).name
        target = free_target(path or Path(name), name, force=force)
        replica = await fetch(grid, file, target, await find_element(grid, se) if se is not None else None)
    if as_json:
        console.print_json({**file_data(file), "path": str(target), "from": replica.surl})
    else:
        print(f"{target}  {console.bytes_text(content.size_bytes)}  from {replica.storage_element}")


async def fetch(grid: Grid, file: catalog.Entry, target: Path, element: Element | None) -> catalog.Replica:
    """Bring a file to `target`, verified and decrypted, from the replica at `element` or the first that can be read; if
    that is on tape, waits for it and says so. Raises GridError."""
    fetched = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}.got")
    try:
        replica = await _fetch_as_stored(grid, file, fetched, element)
        await key_stores(grid).open_file(fetched, lfn_of(file))
        os.replace(fetched, target)
    finally:
        fetched.unlink(missing_ok=True)
    return replica


async def _fetch_as_stored(grid: Grid, file: catalog.Entry, target: Path, element: Element | None) -> catalog.Replica:
    replicas = [replica for replica in file.replicas if element is None or is_at(replica, element)]
    patience = Patience()
    while True:
        failure: GridError | None = None
        for replica in replicas:
            try:
                channel = await grid.channel_to(*door(replica.surl))
                with moving(lfn_of(file), content_of(file).size_bytes) as progress:
                    await storage.get_file(
                        channel, replica.surl, target, expected=checksums_of(file), progress=progress
                    )
                return replica
            except (Unavailable, NotFound, DataCorrupted) as error:
                if failure is None or failure.reason != "FILE_STAGING":
                    failure = error
        if failure is None:
            where = f" at {element.name}" if element else ""
            raise NotFound("NO_REPLICA", f"{lfn_of(file)} has no replica{where}", lfn=lfn_of(file))
        if failure.reason != "FILE_STAGING":
            raise failure
        await patience.wait(failure.sentence, failure.retry_after_s or 1.0)


async def list_command(directory: str, *, long: bool, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data ls`."""
    name = check_lfn(directory)
    async with open_for_user(environ) as grid:
        channel = await grid.channel("catalog")
        try:
            files = [entry async for entry in catalog.list_directory(channel, name)]
        except Conflict as error:
            if error.reason != "NOT_A_DIRECTORY":
                raise
            files = await lookup(grid, [name])
        if long or as_json:
            files = await _with_replicas(channel, files)
    if as_json:
        console.print_json([file_data(file) for file in files])
        return
    if not long:
        for file in files:
            print(PurePosixPath(lfn_of(file)).name + ("/" if file.is_directory else ""))
        return
    rows = [
        [
            "d" if file.is_directory else "-",
            file.content.size_bytes if file.content else "",
            "" if file.is_directory else len(file.replicas),
            console.time_us_text(file.created_at_us),
            file.owner,
            PurePosixPath(lfn_of(file)).name + ("/" if file.is_directory else ""),
        ]
        for file in files
    ]
    console.print_table(["", "BYTES", "REPLICAS", "CREATED", "OWNER", "NAME"], rows)


async def _with_replicas(channel: Any, files: list[catalog.Entry]) -> list[catalog.Entry]:
    """A listing names files only; their replicas are looked up."""
    found, _ = await catalog.lookup(channel, [lfn_of(file) for file in files if not file.is_directory])
    complete = {file.lfn: file for file in found}
    return [complete.get(file.lfn, file) for file in files]


async def remove(grid: Grid, name: str, se: str | None) -> list[str]:
    """Remove the replica that is named, or the one at `se`, or every replica and then the name with its aliases; of an
    alias the alias alone. Returns the SURLs removed. Raises GridError."""
    names = await grid.channel("catalog")
    found, _ = await catalog.lookup(names, [name])
    kind = catalog.kind_of(name)
    if not found:
        if se is not None or kind is not catalog.NameKind.LFN:
            raise NotFound("LFN_UNKNOWN", f"the catalogue has no file {name}", lfn=name)
        await catalog.remove(names, name)  # an empty directory; the catalogue says so if it is not there
        return []
    file, lfn = found[0], lfn_of(found[0])
    if kind is catalog.NameKind.SURL:
        await _remove_replicas(grid, lfn, [name])
        return [name]
    if file.alias_of and se is None:
        await catalog.remove(names, lfn)
        return []
    element = await find_element(grid, se) if se is not None else None
    chosen = [r.surl for r in file.replicas if element is None or is_at(r, element)]
    if element is not None and not chosen:
        raise NotFound("NO_REPLICA", f"{lfn} has no replica at {element.name}", lfn=lfn)
    key_id = await sealed_with(grid, file) if element is None else None
    await _remove_replicas(grid, lfn, chosen)
    if element is None:
        await catalog.remove(names, lfn)
    if key_id is not None:  # last: a file whose key is gone is gone
        failures = await key_stores(grid).forget(key_id)
        if failures:
            console.warn(f"{lfn} is removed, and {len(failures)} shares of its key are not: {failures[0]}")
    return chosen


async def _remove_replicas(grid: Grid, lfn: str, surls: Sequence[str]) -> None:
    names = await grid.channel("catalog")
    for surl in surls[:1]:  # before any data is gone
        await catalog.remove_replica(names, lfn, surl, dry_run=True)
    for surl in surls:
        await _remove_data(grid, surl)
        await catalog.remove_replica(names, lfn, surl)


async def _remove_data(grid: Grid, surl: str) -> None:
    """At its storage element; at a server of others by an element of this grid."""
    if surl.startswith("srm:"):
        await storage.remove(await grid.channel_to(*door(surl)), surl)
        return
    mover = await find_element(grid, None)
    channel = await grid.channel_to(mover.host, mover.port)
    await grid.delegate(channel)
    try:
        await storage.remove(channel, surl)
    except InvalidRequest as error:
        if error.reason != "REMOVE_UNSUPPORTED":
            raise
        console.warn(error.sentence)


async def remove_command(
    lfns: Sequence[str],
    se: str | None,
    *,
    recursive: bool = False,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data rm`."""
    names = [check_name(lfn).rstrip("/") for lfn in lfns]
    if recursive:
        for name in map(check_lfn, names):
            if catalog.parse_lfn(name).is_vo_root:
                raise UsageProblem(f"{name} has all that a VO keeps; name directories below it")
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []

    async def one(name: str, *, missing_ok: bool = False) -> None:
        try:
            rows.append({"lfn": name, "removed": await remove(grid, name, se)})
        except (GridError, SecurityError) as error:
            if not (missing_ok and isinstance(error, NotFound) and error.reason in NOT_THERE):
                failed(name, error)

    def failed(name: str, error: Exception) -> None:
        failures.append(error)
        rows.append({"lfn": name, "error": describe(error)})

    async with open_for_user(environ) as grid:
        for name in names:
            try:
                directories = await _remove_files_below(grid, name, one) if recursive else []
            except (GridError, SecurityError) as error:
                failed(name, error)
                continue
            if not directories:
                await one(name)
            elif se is None and not failures:
                for directory in reversed(directories):
                    await one(directory, missing_ok=True)
    print_rows(rows, failures, lambda row: f"removed {row['lfn']}", as_json=as_json)


async def _remove_files_below(grid: Grid, name: str, remove_one: Callable[..., Awaitable[None]]) -> list[str]:
    """Some at a time. The directories, each before those in it; none if this is a file."""
    directories: list[str] = []
    gate = asyncio.Semaphore(REMOVALS_AT_ONCE)

    async def one(lfn: str) -> None:
        async with gate:
            await remove_one(lfn, missing_ok=True)

    try:
        async with aclosing(catalog.walk(lambda: grid.channel("catalog"), name)) as pages:
            async for here, entries in pages:
                directories += [here] if here not in directories[-1:] else []
                async with asyncio.TaskGroup() as group:
                    for entry in entries:
                        if not entry.is_directory:
                            group.create_task(one(lfn_of(entry)))
    except Conflict as error:
        if error.reason != "NOT_A_DIRECTORY":
            raise
    return directories


async def link_command(name: str, alias: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data ln`."""
    name, alias = check_name(name), check_lfn(alias)
    async with open_for_user(environ) as grid:
        guid = await catalog.add_alias(await grid.channel("catalog"), await without_surl(grid, name), alias)
    if as_json:
        console.print_json({"lfn": alias, "guid": guid})
    else:
        print(f"{alias}  guid:{guid}")


async def aliases_command(name: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data la`."""
    async with open_for_user(environ) as grid:
        wanted = await without_surl(grid, check_name(name))
        found = await catalog.names_of(await grid.channel("catalog"), wanted)
    if as_json:
        console.print_json([f"lfn:{path}" for path in found])
        return
    for path in found:
        print(f"lfn:{path}")


async def without_surl(grid: Grid, name: str) -> str:
    """A SURL as the GUID of its file, other names as they are. Raises NotFound."""
    if catalog.kind_of(name) is not catalog.NameKind.SURL:
        return name
    return f"guid:{(await lookup(grid, [name]))[0].guid}"


async def replicate_command(
    lfns: Sequence[str],
    to: str,
    *,
    recursive: bool = False,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data replicate`."""
    names = [check_name(lfn) for lfn in lfns]
    rows: list[dict[str, Any]] = []

    def copied(file: catalog.Entry, surl: str | None) -> None:
        rows.append({"lfn": lfn_of(file), "surl": surl, "copied": surl is not None})

    async with open_for_user(environ) as grid:
        target = await find_element(grid, to)
        files = await lookup(grid, await files_of(grid, names) if recursive else names)
        files = list({file.lfn: file for file in files}.values())  # of one file two names may be given
        failures = await replicate_all(grid, files, target, copied)
    rows += [{"lfn": "", "error": describe(error)} for error in failures]
    print_rows(
        rows,
        failures,
        lambda row: f"{row['lfn']}  {row['surl']}" if row["copied"] else f"{row['lfn']}  already at {target.name}",
        as_json=as_json,
    )


def print_rows(rows: list[dict[str, Any]], failures: Sequence[Exception], text: Any, *, as_json: bool) -> None:
    """What became of each file: `text(row)`, or the sentence of its `error`. Raises Ended if there were failures."""
    if as_json:
        console.print_json(rows)
    for row in rows:
        if "error" in row:
            console.warn(row["error"]["sentence"])
        elif not as_json:
            print(text(row))
    if failures:
        raise Ended(exit_code(failures[0]))


async def locate_command(lfns: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data locate`."""
    names = [check_name(lfn) for lfn in lfns]
    async with open_for_user(environ) as grid:
        files = await lookup(grid, names)
    if as_json:
        console.print_json([file_data(file) for file in files])
        return
    for file in files:
        content = content_of(file)
        print(f"{lfn_of(file)}  {content.size_bytes} bytes  adler32 {content.adler32}  guid:{file.guid}")
        for replica in file.replicas:
            print(f"  {replica.storage_element:<24} {replica.surl}")
