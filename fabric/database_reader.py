"""Tables at a PostgreSQL server, lent to a role that may read them and do nothing else: for SELECTs of strangers.

What a statement could undo (`SET ROLE`, settings) protects nothing. So it is a role of its own that logs in, and it is
looked at before: one that could do more is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy

from fabric.errors import InvalidRequest
from fabric.store import run

_RIGHTS = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")


class ForReading(NamedTuple):
    """Where and as whom the tables are read."""

    url: str
    """For libpq, with the role's name; without a password, see PGPASSFILE."""
    schema: str

    def environment(self) -> dict[str, str]:
        """What libpq may need of ours: where passwords and certificates are."""
        return {name: value for name, value in os.environ.items() if name.startswith("PG") or name == "HOME"}


def address(url: str, schema: str, role: str) -> ForReading:
    """Where `role` reads what a store has at `url`, which `PostgresqlDatabase` has found good."""
    return ForReading(sqlalchemy.make_url(url).set(username=role).render_as_string(), schema)


def lend(connection: sqlalchemy.Connection, schema: str, role: str, tables: Sequence[str]) -> None:
    """Let `role` read these tables. Raises InvalidRequest DATABASE_READER_UNSAFE if it is not there or may do more."""
    columns = ("oid", "rolcanlogin", *_RIGHTS)
    row = run(connection, f"SELECT {', '.join(columns)} FROM pg_roles WHERE rolname = ?", (role,)).mappings().first()
    if row is None or not row["rolcanlogin"]:
        raise _unsafe(role, "cannot log in at the database")
    if found := [name for name in _RIGHTS if row[name]]:
        raise _unsafe(role, f"has {found[0]}")
    if run(connection, "SELECT 1 FROM pg_auth_members WHERE member = ?", (row["oid"],)).first():
        raise _unsafe(role, "is a member of another role")
    run(connection, f'GRANT USAGE ON SCHEMA "{schema}" TO {_quoted(role)}')
    for table in tables:
        run(connection, f"GRANT SELECT ON {table} TO {_quoted(role)}")
    if other := run(connection, _MORE, (schema, list(tables), role, role, role)).scalar():
        raise _unsafe(role, f"has rights on {other}")


_MORE = """
    SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    AND CASE WHEN n.nspname = ? AND c.relname = ANY(?)
        THEN has_any_column_privilege(?, c.oid, 'INSERT, UPDATE') OR has_table_privilege(?, c.oid, 'DELETE, TRUNCATE')
        ELSE has_any_column_privilege(?, c.oid, 'SELECT, INSERT, UPDATE') END
    LIMIT 1
"""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unsafe(role: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        "DATABASE_READER_UNSAFE",
        f"the role {role!r}, as which queries of users run, {why}; it must be one that can log in and has no other "
        f"rights: CREATE ROLE {_quoted(role)} LOGIN",
        role=role,
    )
