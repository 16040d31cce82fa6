"""Metadata of files: attributes that users give them, each with a type, and the search for files by them.

An attribute belongs to the file and not to one of its names. Text is compared with text, numbers with numbers (int and
real alike), times with times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from agents.catalog.access import metadata
from agents.catalog.names import Lfn
from fabric.errors import Exhausted, InvalidRequest
from fabric.store import rows, run

MAX_ATTRIBUTES = 100
"""Of one file."""
MAX_CONDITIONS = 10
"""Of one search."""
MAX_TEXT_LENGTH = 512
"""Characters: an index of PostgreSQL holds no more than 2 704 bytes."""
MAX_INTEGER = 1 << 53
"""Numbers are compared as reals, which are exact so far."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")


class Kind(StrEnum):
    """The type of a value."""

    TEXT = "text"
    INT = "int"
    REAL = "real"
    TIME = "time"
    """In microseconds since 1970, UTC."""


class Comparison(StrEnum):
    """How a value is compared."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="


@dataclass(frozen=True, slots=True)
class Attribute:
    """A checked name with a value: a text, else a number."""

    name: str
    kind: Kind
    value: str | int | float

    @classmethod
    def of(cls, name: str, kind: Kind, value: str | float) -> Attribute:
        """Raises InvalidRequest ATTRIBUTE_INVALID."""
        if not _NAME.match(name):
            raise _invalid(name, "a name begins with a letter and has at most 64 letters, digits, dots, - and _")
        if isinstance(value, str):
            if len(value) > MAX_TEXT_LENGTH or not value.isprintable():
                raise _invalid(name, f"a text has at most {MAX_TEXT_LENGTH} characters, all of them visible")
        elif not math.isfinite(value) or (kind is not Kind.REAL and abs(value) > MAX_INTEGER):
            raise _invalid(name, f"a number is finite, and an int or time at most {MAX_INTEGER}")
        return cls(name, kind, value)


@dataclass(frozen=True, slots=True)
class Condition:
    """What an attribute has to be."""

    attribute: Attribute
    comparison: Comparison


table = sa.Table(
    "attributes",
    metadata,
    sa.Column("file_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.ForeignKey("files.id")),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")),
    sa.Column("number", sa.Double),
    sa.PrimaryKeyConstraint("file_id", "name"),
    sa.Index("ix_attributes_text", "name", "text"),
    sa.Index("ix_attributes_number", "name", "number"),
    sqlite_with_rowid=False,
)


def keep(connection: sa.Connection, file_id: int, given: Sequence[Attribute], unset: Sequence[str]) -> None:
    """Give a file attributes in place of those of the same names, and take others away. Again: succeeds. Raises
    Exhausted TOO_MANY_ATTRIBUTES."""
    for name in [*unset, *(one.name for one in given)]:
        run(connection, "DELETE FROM attributes WHERE file_id = ? AND name = ?", (file_id, name))
    for one in {one.name: one for one in given}.values():
        text, number = (one.value, None) if isinstance(one.value, str) else (None, float(one.value))
        run(
            connection,
            "INSERT INTO attributes (file_id, name, kind, text, number) VALUES (?,?,?,?,?)",
            (file_id, one.name, one.kind.value, text, number),
        )
    count = rows(connection, "SELECT COUNT(*) FROM attributes WHERE file_id = ?", (file_id,))[0][0]
    if count > MAX_ATTRIBUTES:
        raise Exhausted(
            "TOO_MANY_ATTRIBUTES", f"a file has at most {MAX_ATTRIBUTES} attributes, this would have {count}"
        )


def of_file(connection: sa.Connection, file_id: int) -> list[Attribute]:
    """In order of their names."""
    found = rows(
        connection, "SELECT name, kind, text, number FROM attributes WHERE file_id = ? ORDER BY name", (file_id,)
    )
    return [Attribute(name, Kind(kind), _value(Kind(kind), text, number)) for name, kind, text, number in found]


def forget(connection: sa.Connection, file_id: int) -> None:
    """The file is gone."""
    run(connection, "DELETE FROM attributes WHERE file_id = ?", (file_id,))


def find(
    connection: sa.Connection, directory: Lfn, conditions: Sequence[Condition], after: int, limit: int
) -> list[tuple[int, str]]:
    """Up to `limit` files below a directory that meet all conditions: number above `after` and own name, in order of
    their numbers. Costs as much as there are files that meet the first condition."""
    first, *others = conditions
    condition, values = _condition(first, "a")
    join = "CROSS JOIN" if connection.dialect.name == "sqlite" else "JOIN"  # in this order, by the index of the value
    sql = (
        f"SELECT a.file_id, d.path || '/' || e.name FROM attributes a {join} entries e ON e.file_id = a.file_id AND "
        f"e.linked_by IS NULL {join} directories d ON d.id = e.parent_id WHERE {condition} AND a.file_id + 0 > ? "
        "AND (d.path = ? OR (d.path > ? AND d.path < ?))"
    )
    values += [after, directory.path, f"{directory.path}/", f"{directory.path}0"]  # 0 comes after the slash
    for other in others:
        condition, more = _condition(other, "b")
        sql += f" AND EXISTS (SELECT 1 FROM attributes b WHERE b.file_id = a.file_id AND {condition})"
        values += more
    found = rows(connection, f"{sql} ORDER BY a.file_id + 0 LIMIT ?", (*values, limit))
    return [(int(number), path) for number, path in found]


def _condition(condition: Condition, alias: str) -> tuple[str, list[str | float]]:
    wanted = condition.attribute
    kinds = "'int', 'real'" if wanted.kind in (Kind.INT, Kind.REAL) else f"'{wanted.kind}'"
    column = "text" if wanted.kind is Kind.TEXT else "number"
    value = wanted.value if isinstance(wanted.value, str) else float(wanted.value)
    comparison = f"{alias}.{column} {condition.comparison} ?"
    return f"{alias}.name = ? AND {alias}.kind IN ({kinds}) AND {comparison}", [wanted.name, value]


def _value(kind: Kind, text: str | None, number: float | None) -> str | int | float:
    if number is None:
        return text or ""
    return number if kind is Kind.REAL else int(number)


def _invalid(name: str, why: str) -> InvalidRequest:
    return InvalidRequest("ATTRIBUTE_INVALID", f"{name[:80]!r} is no attribute of a file: {why}")
