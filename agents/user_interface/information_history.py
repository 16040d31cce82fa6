"""`grid info query "select ..."`: the history of the information tree, once or as it grows."""

from __future__ import annotations

import json
import sys
from typing import Any

from agents.information import client
from agents.information.client import Answer, Cell
from agents.user_interface import connection, console
from fabric.errors import NotFound, Unavailable


def is_query(text: str) -> bool:
    """True for a SELECT; an LDAP filter begins with a parenthesis."""
    return text.split(maxsplit=1)[:1] != [] and text.split(maxsplit=1)[0].lower() in ("select", "with")


async def ask(sql: str) -> Answer:
    """The answer of the first top server that can be reached, for the user of this shell. Raises as `query_command`."""
    async with connection.open_for_user() as grid:
        return await client.query(await _top(grid), sql)


async def query_command(sql: str, *, follow: bool, as_json: bool) -> None:
    """Print the tuples. Raises InvalidRequest, Exhausted, DeadlineExceeded, Unavailable, CredentialError."""
    if not follow:
        _print(await ask(sql), as_json=as_json)
        return
    async with connection.open_for_user() as grid:
        await _follow(await _top(grid), sql, as_json=as_json)


async def _top(grid: connection.Grid) -> Any:
    """A channel to the first top server that answers."""
    tops = [top for top in grid.services.all("top") if top.rpc]
    if not tops:
        raise NotFound("ENDPOINT_UNKNOWN", 'no address of a top server is known; take it with: eval "$(grid env)"')
    for number, top in enumerate(tops, 1):
        try:
            return await grid.channel_to(top.host, top.rpc)
        except Unavailable as error:
            if number == len(tops):
                raise
            console.warn(f"{error.sentence}; asking {tops[number].name}")
    raise AssertionError


async def _follow(channel: Any, sql: str, *, as_json: bool) -> None:
    async for answer in client.follow(channel, sql):
        for row in answer.rows:
            if as_json:
                print(json.dumps(dict(zip(answer.columns, row, strict=True)), ensure_ascii=False))
            else:
                print("  ".join(map(_shown, row)))
        sys.stdout.flush()
        _say_truncated(answer)


def _print(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        console.print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
    else:
        console.print_table(answer.columns, [[_shown(value) for value in row] for row in answer.rows])
    _say_truncated(answer)


def _shown(value: Cell) -> str:
    """What sites publish may not move the cursor."""
    return "-" if value is None else "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _say_truncated(answer: Answer) -> None:
    if answer.is_truncated:
        console.warn(
            f"there is more than the {len(answer.rows)} tuples of one answer; ask for less, for instance by Id"
        )
