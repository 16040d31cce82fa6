"""`grid data put --encrypt`, `grid data grant`, `grid data withdraw` (docs/data.md, Secure data)."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.catalog import client as catalog
from agents.keystore import client as keystore
from agents.storage import client as storage
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.exits import UsageProblem
from fabric.errors import DataCorrupted, GridError, NotFound, Unavailable
from security import sealing


async def put(grid: Grid, path: Path, lfn: str, element: data.Element) -> catalog.Entry:
    """As `data.put`, encrypted; what is stored and registered is the encrypted file. Raises GridError."""
    key, key_id = sealing.new_key(), secrets.token_bytes(sealing.KEY_ID_BYTES)
    stores = data.key_stores(grid)
    await stores.keep(key_id, key)
    try:
        with tempfile.TemporaryDirectory(prefix="grid-seal-") as folder:
            sealed = Path(folder) / path.name
            await asyncio.to_thread(keystore.in_files, path, sealed, lambda a, b: sealing.seal(key, key_id, a, b))
            return await data.put(grid, sealed, lfn, element)
    except Unavailable:
        raise  # it may be registered
    except BaseException:
        await asyncio.shield(stores.forget(key_id))
        raise


async def readers_command(
    lfn: str,
    who: Sequence[str],
    *,
    grant: bool,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data grant` and `grid data withdraw`."""
    name = data.check_name(lfn)
    if not who:
        raise UsageProblem("say whom: a DN, or a group or role such as /cms/higgs")
    async with open_for_user(environ) as grid:
        key_id = await _key_id_of(grid, (await data.lookup(grid, [name]))[0])
        changes = {"grant": who} if grant else {"withdraw": who}
        stores = data.key_stores(grid)
        answers = await stores.ask_all(lambda channel, _: keystore.set_readers(channel, key_id, **changes))
    done = [answer for answer in answers if isinstance(answer, tuple)]
    failures = [answer for answer in answers if not isinstance(answer, tuple)]
    for failure in failures:
        console.warn(str(failure))
    needed = max((threshold for _, threshold in done), default=len(stores.known))
    # Enough shares for a new reader; or too few left over for one who shall read no more.
    if not done or (len(done) < needed if grant else len(failures) >= needed):
        raise failures[0] if failures else NotFound("KEYSTORES_MISSING", "this grid has no key stores")
    readers = sorted(set().union(*(readers for readers, _ in done)))
    if as_json:
        console.print_json({"lfn": name, "readers": readers, "key_stores": len(done), "silent": len(failures)})
    else:
        print(f"{name}  read by its owner" + "".join(f", {reader}" for reader in readers))


async def _key_id_of(grid: Grid, file: catalog.Entry) -> bytes:
    failure: GridError | None = None
    for replica in file.replicas:
        try:
            channel = await grid.channel_to(*data.door(replica.surl))
            return sealing.key_id_of(await storage.read_range(channel, replica.surl, 0, sealing.HEADER_BYTES))
        except sealing.SealError as error:
            raise UsageProblem(f"{data.lfn_of(file)}: {error}; put it with: grid data put --encrypt") from error
        except (Unavailable, NotFound, DataCorrupted) as error:
            failure = error
    raise failure or NotFound("NO_REPLICA", f"{data.lfn_of(file)} has no replica")
