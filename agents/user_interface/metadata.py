"""`grid data meta`: attributes of files, and files by their attributes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from agents.catalog import client as catalog
from agents.user_interface import console, data
from agents.user_interface.connection import open_for_user
from agents.user_interface.exits import UsageProblem
from fabric.clock import from_us, to_us

_WRITTEN = re.compile(r"([A-Za-z][\w.-]*)(?::(text|int|real|time))?(<=|>=|!=|=|<|>)(.*)\Z", re.ASCII | re.DOTALL)


def parse(text: str) -> tuple[catalog.Attribute, catalog.Comparison]:
    """`NAME[:TYPE]=VALUE`, or with another comparison. Raises UsageProblem, InvalidRequest."""
    found = _WRITTEN.match(text)
    if found is None:
        raise UsageProblem(f"{text[:200]!r} is not NAME=VALUE; write kind=raw, run:int=42 or taken:time=2006-11-23")
    name, kind, value = found[1], catalog.AttributeKind(found[2] or "text"), found[4]
    try:
        return catalog.Attribute.of(name, kind, _value(kind, value)), catalog.Comparison(found[3])
    except (ValueError, OverflowError) as error:
        raise UsageProblem(f"{value[:100]!r} is not of type {kind}: {str(error)[:200]}") from error


def _value(kind: catalog.AttributeKind, text: str) -> str | int | float:
    if kind is catalog.AttributeKind.TEXT:
        return text
    if kind is catalog.AttributeKind.TIME:
        moment = datetime.fromisoformat(text)
        return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return int(text) if kind is catalog.AttributeKind.INT else float(text)


def _text(attribute: catalog.Attribute) -> str:
    if attribute.kind is catalog.AttributeKind.TIME:
        return from_us(int(attribute.value)).isoformat().replace("+00:00", "Z")
    return str(attribute.value)


async def set_command(
    name: str,
    written: Sequence[str],
    unset: Sequence[str],
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data meta set`, and `rm`."""
    given = [parse(one) for one in written]
    if any(comparison is not catalog.Comparison.EQUAL for _, comparison in given):
        raise UsageProblem("a value is set with =")
    async with open_for_user(environ) as grid:
        wanted = await data.without_surl(grid, data.check_name(name))
        found = await catalog.set_attributes(await grid.channel("catalog"), wanted, [one for one, _ in given], unset)
    _show(found, as_json=as_json)


async def get_command(name: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data meta get`."""
    async with open_for_user(environ) as grid:
        wanted = await data.without_surl(grid, data.check_name(name))
        found = await catalog.attributes_of(await grid.channel("catalog"), wanted)
    _show(found, as_json=as_json)


def _show(found: Sequence[catalog.Attribute], *, as_json: bool) -> None:
    if as_json:
        console.print_json({one.name: {"type": one.kind.value, "value": _text(one)} for one in found})
        return
    for one in found:
        print(f"{one.name}:{one.kind}={_text(one)}")


async def find_command(
    directory: str, written: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data meta find`."""
    name, conditions = data.check_lfn(directory), [catalog.Condition(*parse(one)) for one in written]
    found: list[str] = []
    async with open_for_user(environ) as grid:
        async for path in catalog.find_by_attributes(await grid.channel("catalog"), name, conditions):
            if as_json:
                found.append(f"lfn:{path}")
            else:
                print(f"lfn:{path}")
    if as_json:
        console.print_json(found)
