"""`grid data` on single files by any of their names: LFN, GUID, SURL, or the URL that a WebDAV client gave."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.endpoints import parse_address
from agents.user_interface.exits import UsageProblem, describe
from agents.user_interface.progress import moving
from fabric.errors import AlreadyExists, DataCorrupted, GridError, InvalidRequest, NotFound, Unavailable
from security.errors import SecurityError

AT_ELEMENT = ("srm:", "https:", "davs:")
NAMES = ("lfn:", "guid:")


def check_name(text: str) -> str:
    """A name of any kind, as the services want it. Raises UsageProblem."""
    return text if text.startswith(AT_ELEMENT) else data.check_name(text)


def _address(grid: Grid, text: str) -> tuple[str, int]:
    """Host and port of the gRPC door of the storage element that a SURL or a WebDAV URL names."""
    if text.startswith("srm:"):
        return data.door(text)
    host, port = parse_address(text.partition("://")[2].partition("/")[0], "the URL's address")
    for endpoint in grid.services.all("storage"):
        if (endpoint.host, endpoint.http) == (host, port):
            return endpoint.host, endpoint.rpc
    raise NotFound(
        "SE_UNKNOWN", f"no storage element of this grid has its door at {host}:{port}; name the file by its SURL"
    )


async def at_element(grid: Grid, text: str) -> tuple[Any, storage.FileInfo]:
    """A channel to the storage element and what it says about the file there. Raises NotFound, Refused, Unavailable."""
    channel = await grid.channel_to(*_address(grid, text))
    try:
        surl = str(storage.parse_surl(text))
    except InvalidRequest:
        return channel, await storage.stat(channel, path=urlsplit(text).path)
    return channel, await storage.stat(channel, surl)


async def _standing(grid: Grid, file: catalog.Entry, surl: str) -> tuple[str, str]:
    """What the storage element says about a replica of the catalogue: its state, and where its bytes are."""
    try:
        _, info = await at_element(grid, surl)
    except NotFound:
        return "lost", "LOST"
    except Unavailable as error:
        return f"unknown: {error.sentence}", "UNAVAILABLE"
    if info.checksums != data.checksums_of(file):
        return "another file", info.locality
    return _state_of(info), info.locality


def _state_of(info: storage.FileInfo) -> str:
    return {"": "intact", "FILE_LOST": "lost"}.get(info.damage, "damaged")


def _info_data(info: storage.FileInfo, lfn: str | None) -> dict[str, Any]:
    return {
        "surl": info.surl,
        "lfn": lfn,
        "size_bytes": info.size_bytes,
        "adler32": info.checksums.adler32,
        "sha256": info.checksums.sha256,
        "owner": info.owner,
        "created_at": console.time_us_text(info.created_at_us),
        "state": _state_of(info),
        "locality": info.locality,
        "pinned_until": console.time_us_text(info.pinned_until_us) or None,
    }


async def stat_command(name: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data stat`."""
    name = check_name(name)
    async with open_for_user(environ) as grid:
        if name.startswith(AT_ELEMENT):
            _, info = await at_element(grid, name)
            found, _ = await catalog.lookup(await grid.channel("catalog"), [info.surl])
            facts = _info_data(info, data.lfn_of(found[0]) if found else None)
            replicas: list[dict[str, str]] = []
        else:
            file = (await data.lookup(grid, [name]))[0]
            facts = data.file_data(file)
            replicas = facts.get("replicas", [])
            for replica in replicas:
                replica["state"], replica["locality"] = await _standing(grid, file, replica["surl"])
    if as_json:
        console.print_json(facts)
        return
    facts.pop("replicas", None)
    console.print_facts({key: "none" if value is None else value for key, value in facts.items()})
    if replicas:
        rows = [[replica["surl"], replica["state"], replica["locality"]] for replica in replicas]
        console.print_table(["REPLICA", "STATE", "LOCALITY"], rows)


async def checksum_command(names: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data checksum`: of local files computed, else as catalogue or storage element have them."""
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []
    remote = any(not _is_local(name) for name in names)
    if not remote:
        rows = [_row(name, storage.checksums_of_file(name)) for name in names]
    else:
        async with open_for_user(environ) as grid:
            for name in names:
                try:
                    rows.append(_row(name, await _checksums(grid, name)))
                except (GridError, SecurityError) as error:
                    failures.append(error)
                    rows.append({"name": name, "error": describe(error)})
    data.print_rows(rows, failures, lambda row: f"{row['adler32']}  {row['sha256']}  {row['name']}", as_json=as_json)


def _row(name: str, sums: storage.Checksums) -> dict[str, Any]:
    return {"name": name, "adler32": sums.adler32, "sha256": sums.sha256}


async def _checksums(grid: Grid, name: str) -> storage.Checksums:
    if _is_local(name):
        return storage.checksums_of_file(name)
    if name.startswith(AT_ELEMENT):
        return (await at_element(grid, name))[1].checksums
    return data.checksums_of((await data.lookup(grid, [name]))[0])


def _is_local(text: str) -> bool:
    return not text.startswith((*AT_ELEMENT, *NAMES))


async def copy_command(
    source: str, target: str, se: str | None, *, force: bool, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data cp`."""
    if _is_local(source) == _is_local(target):
        raise UsageProblem(
            "one of the two is a local file and the other one begins with lfn:, guid:, srm: or https:; between storage "
            "elements copy with: grid data replicate"
        )
    if not _is_local(source):
        if not source.startswith(AT_ELEMENT):
            await data.get_command(source, Path(target), se, force=force, as_json=as_json, environ=environ)
            return
        await _fetch(source, Path(target), force=force, as_json=as_json, environ=environ)
    elif target.startswith("lfn:"):
        await data.put_command(Path(source), target, se, as_json=as_json, environ=environ)
    elif target.startswith("srm:"):
        await _store(Path(source), target, as_json=as_json, environ=environ)
    else:
        raise UsageProblem(
            f"{target[:200]} is chosen by the grid; copy to lfn:/grid/<vo>/<name>, or to srm://<host>:<port>/<vo>/"
        )


async def _fetch(source: str, target: Path, *, force: bool, as_json: bool, environ: Mapping[str, str]) -> None:
    target = data.free_target(target, PurePosixPath(urlsplit(source).path).name, force=force)
    async with open_for_user(environ) as grid:
        channel, info = await at_element(grid, source)
        with moving(target.name, info.size_bytes) as progress:
            await storage.get_file(channel, info.surl, target, expected=info.checksums, progress=progress)
    if as_json:
        console.print_json({**_info_data(info, None), "path": str(target)})
    else:
        print(f"{target}  {console.bytes_text(info.size_bytes)}  from {info.surl}")


async def _store(source: Path, target: str, *, as_json: bool, environ: Mapping[str, str]) -> None:
    vo = urlsplit(target).path.strip("/")
    if not vo or "/" in vo:
        raise UsageProblem(
            f"a storage element chooses the names of its files itself; copy to srm://<host>:<port>/<vo>/, not {target}"
        )
    data.require_regular(source)
    async with open_for_user(environ) as grid:
        channel = await grid.channel_to(*data.door(target))
        with moving(source.name, source.stat().st_size) as progress:
            stored = await storage.put_file(channel, source, vo, name_hint=source.name[:200], progress=progress)
    if as_json:
        console.print_json(
            {"surl": stored.surl, "size_bytes": stored.size_bytes, **_row(str(source), stored.checksums)}
        )
    else:
        print(f"{stored.surl}  {console.bytes_text(stored.size_bytes)}")


async def register_command(name: str, lfn: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data register`: an LFN for a file that is on a storage element, or one more replica of an LFN."""
    lfn = data.check_lfn(lfn)
    if not name.startswith(AT_ELEMENT):
        raise UsageProblem(f"{name[:200]!r} names no file of a storage element; it begins with srm: or https:")
    async with open_for_user(environ) as grid:
        _, info = await at_element(grid, name)
        if info.damage:
            raise DataCorrupted(info.damage, f"{info.surl} is damaged or lost; put it again and register that one")
        names = await grid.channel("catalog")
        content = catalog.Content(info.size_bytes, info.checksums.adler32, info.checksums.sha256)
        found, _ = await catalog.lookup(names, [lfn])
        if not found:
            file = await catalog.register(names, lfn, catalog.new_guid(), content, surl=info.surl)
        elif found[0].content != content:
            raise AlreadyExists("LFN_EXISTS", f"{lfn} is already there and has other content; choose another name")
        else:
            await catalog.add_replica(names, lfn, info.surl, content.size_bytes, content.adler32)
            file = (await data.lookup(grid, [lfn]))[0]
    if as_json:
        console.print_json(data.file_data(file))
    else:
        print(f"{data.lfn_of(file)}  guid:{file.guid}  {info.surl}")


async def repair_command(
    names: Sequence[str], se: str | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data repair`: damaged replicas get the bytes of good ones, with the user's delegated proxy."""
    if bool(names) == (se is not None):
        raise UsageProblem("say which files, or --se for all damaged files of your VO at a storage element")
    names = [check_name(name) for name in names]
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []
    async with open_for_user(environ) as grid:
        if se is not None:
            element = await data.find_element(grid, se)
            channel = await grid.channel_to(element.host, element.port)
            names = [file.surl async for file in storage.list_files(channel, grid.vo, damaged=True)]
        for name in names:
            try:
                rows += [{"name": name, **row} for row in await _repair(grid, name)]
            except (GridError, SecurityError) as error:
                failures.append(error)
                rows.append({"name": name, "error": describe(error)})

    def text(row: dict[str, Any]) -> str:
        return f"{row['surl']}  repaired from {row['source']}" if row["source"] else f"{row['surl']}  intact"

    data.print_rows(rows, failures, text, as_json=as_json)


async def _repair(grid: Grid, name: str) -> list[dict[str, str]]:
    """One row for each replica looked at. A SURL is repaired whatever is known of it: who read it may know more."""
    if name.startswith(AT_ELEMENT):
        _, info = await at_element(grid, name)
        found, _ = await catalog.lookup(await grid.channel("catalog"), [info.surl])
        if not found:
            raise NotFound("NO_REPLICA", f"the catalogue does not know {info.surl}, and so no other replica of it")
        return [await _repair_one(grid, found[0], info.surl)]
    file = (await data.lookup(grid, [name]))[0]
    rows: list[dict[str, str]] = []
    for replica in file.replicas:
        state, _ = await _standing(grid, file, replica.surl)
        if state not in ("damaged", "lost"):
            rows.append({"surl": replica.surl, "state": state, "source": ""})
        else:
            rows.append(await _repair_one(grid, file, replica.surl))
    return rows


async def _repair_one(grid: Grid, file: catalog.Entry, surl: str) -> dict[str, str]:
    channel = await grid.channel_to(*data.door(surl))
    await grid.delegate(channel)
    failure: GridError | None = None
    for source in file.replicas:
        if data.door(source.surl) == data.door(surl):
            continue
        try:
            await storage.repair(channel, surl, source.surl)
            return {"surl": surl, "state": "intact", "source": source.surl}
        except (Unavailable, NotFound, DataCorrupted) as error:
            failure = error  # another replica may be intact
    raise failure or NotFound("NO_REPLICA", f"{data.lfn_of(file)} has no other replica to repair {surl} from")
