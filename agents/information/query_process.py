"""A process of its own for one query of somebody: started by path with `python -I`, so it imports nothing of ours.

Whatever the query does, it does here: it sees a read-only connection, the tables it was told of and harmless functions,
and it has a deadline, a bound on memory, and one on its answer. The server kills what is left of it. At PostgreSQL
the role that it connects as can read the tables and nothing else, and `harmless_sql.py` has read it before.

Line by line in JSON. In: the order, see `agents/information/queries.py`; then in a continuous query an empty line for
each time it shall look again. Out: {"columns": [...]}, {"rows": [[...], ...]} as often as needed and
{"end": {"truncated": bool}} after each look; or {"error": {"reason", "sentence"}}, which is the last.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple, Protocol

PIECE = 200
"""Rows of one line."""
FUNCTIONS = {
    "abs", "avg", "coalesce", "count", "cume_dist", "date", "datetime", "dense_rank", "first_value", "glob",
    "group_concat", "ifnull", "iif", "instr", "julianday", "lag", "last_value", "lead", "length", "like", "lower",
    "ltrim", "max", "min", "nth_value", "ntile", "nullif", "percent_rank", "rank", "replace", "round", "row_number",
    "rtrim", "strftime", "substr", "substring", "sum", "time", "total", "trim", "typeof", "unixepoch", "upper",
}  # fmt: skip
"""Of SQLite."""
LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 20_000),
    (sqlite3.SQLITE_LIMIT_COLUMN, 200),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100),
    (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20),
    (sqlite3.SQLITE_LIMIT_VDBE_OP, 100_000),
    (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 20),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
    (sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 0),
    (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
)
TOO_SLOW = (
    "QUERY_TOO_SLOW", "the query took too long; ask for fewer tuples, for instance with a condition on Id or At"
)  # fmt: skip
TOO_LARGE = "QUERY_TOO_LARGE", "the query needs more memory than one may have; ask for less at a time"
_DENIED = {sqlite3.SQLITE_FUNCTION: "the function {1}", sqlite3.SQLITE_READ: "reading {0}"}


def say(**message: Any) -> None:
    """One line to the server."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Rows(NamedTuple):
    """Rows that are still to be read."""

    rows: Iterator[Sequence[Any]]
    close: Callable[[], None]


class Query(Protocol):
    """One connection with one query."""

    def ask(self) -> tuple[list[str], Rows]:
        """Names of columns, and rows, of what is kept now."""
        ...

    def move_windows(self) -> None:
        """Let each history table be what was kept since the last look."""
        ...

    def explained(self, error: Exception) -> tuple[str, str]:
        """Reason and sentence for who asked."""
        ...


class SqliteQuery:
    """In a file."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.tables = {name.lower() for name in order["tables"]}
        self.histories = [name for name in order["tables"] if name.endswith("History")]
        self.denied = ""
        """The first thing that the query wanted and may not."""
        self.until = 0.0
        self.connection = sqlite3.connect(f"file:{order['path']}?mode=ro", uri=True, isolation_level=None)
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self.connection.execute("PRAGMA trusted_schema = OFF")
        self.connection.execute("PRAGMA cache_size = -8192")
        if order["continuous"]:
            self.open_windows()
        for limit, value in LIMITS:
            self.connection.setlimit(limit, value)
        self.connection.set_progress_handler(lambda: time.monotonic() > self.until, 10_000)

    def open_windows(self) -> None:
        """Views in place of the history tables, of no rows yet."""
        self.connection.execute("CREATE TEMP TABLE seen (name TEXT PRIMARY KEY, low INTEGER, high INTEGER)")
        for name in self.histories:
            self.connection.execute(
                f"INSERT INTO seen SELECT '{name}', COALESCE(MAX(Id), 0), COALESCE(MAX(Id), 0) FROM main.{name}"
            )
            self.connection.execute(
                f"CREATE TEMP VIEW {name} AS SELECT * FROM main.{name} WHERE "
                f"Id > (SELECT low FROM seen WHERE name = '{name}') AND "
                f"Id <= (SELECT high FROM seen WHERE name = '{name}')"
            )

    def move_windows(self) -> None:
        """Let each history table be what was kept since the last look."""
        self.connection.set_authorizer(None)
        for name in self.histories:
            self.connection.execute(
                "UPDATE seen SET low = high, "
                f"high = MAX(high, (SELECT COALESCE(MAX(Id), 0) FROM main.{name})) WHERE name = '{name}'"
            )

    def allows(self, action: int, first: str, second: str, database: str, inside: str) -> int:
        """What the query may do: read the tables, call the functions. SQLite asks while it prepares it."""
        readable = first is not None and (
            first.lower() in self.tables
            or (first == "seen" and (inside or "").lower() in self.tables)
            or not second  # rows are counted, of no column: a subquery's, for instance
        )
        if (
            action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
            or (action == sqlite3.SQLITE_FUNCTION and second.lower() in FUNCTIONS)
            or (action == sqlite3.SQLITE_READ and readable)
        ):
            return sqlite3.SQLITE_OK
        self.denied = self.denied or _DENIED.get(action, "anything but SELECT").format(first, second)
        return sqlite3.SQLITE_DENY

    def ask(self) -> tuple[list[str], Rows]:
        """Names of columns, and rows, of what is kept now."""
        self.until = time.monotonic() + self.order["deadline_s"]
        self.connection.set_authorizer(self.allows)
        cursor = self.connection.execute(self.order["sql"])
        if cursor.description is None:
            raise ValueError("it is no SELECT")
        return [column[0] for column in cursor.description], Rows(cursor, cursor.close)

    def explained(self, error: Exception) -> tuple[str, str]:
        """Reason and sentence for who asked."""
        text, tables = str(error), ", ".join(self.order["tables"])
        if self.denied:
            return "QUERY_DENIED", f"a query may read these tables only, and {self.denied} is denied: {tables}"
        if "interrupted" in text:
            return TOO_SLOW
        if text.startswith("no such table: "):
            return "QUERY_INVALID", f"there is no table {text[15:115]}; there are: {tables}"
        return "QUERY_INVALID", f"the query cannot be answered: {text[:300]}"


class PostgresqlQuery:
    """At a PostgreSQL server. Each look is one statement in a read-only transaction of a role that may only read."""

    def __init__(self, order: dict[str, Any]) -> None:
        import psycopg

        self.order = order
        self.histories = [name for name in order["tables"] if name.endswith("History")]
        self.columns = {name.lower(): name for name in order["columns"]}
        settings = {
            "search_path": order["schema"], "statement_timeout": int(order["deadline_s"] * 1000), "work_mem": "8MB",
            "max_parallel_workers_per_gather": 0, "jit": "off", "standard_conforming_strings": "on",
            "client_connection_check_interval": 1000, "lock_timeout": 1000,
        }  # fmt: skip
        self.connection = psycopg.connect(
            order["url"], autocommit=True, connect_timeout=int(order["deadline_s"]),
            application_name="gridfabric query",
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        )  # fmt: skip
        if order["continuous"]:
            self.open_windows()
        self.connection.autocommit = False
        self.connection.read_only = True

    def open_windows(self) -> None:
        """Views in place of the history tables, of no rows yet."""
        self.move_windows()
        self.move_windows()
        for name in self.histories:
            self.connection.execute(
                f"CREATE TEMP VIEW {name} AS SELECT * FROM {self.order['schema']}.{name} WHERE "
                f"Id > current_setting('seen.{name}_low')::bigint AND Id <= current_setting('seen.{name}')::bigint"
            )

    def move_windows(self) -> None:
        """Let each history table be what was kept since the last look."""
        for name in self.histories:
            self.connection.execute(
                f"SELECT set_config('seen.{name}_low', COALESCE(current_setting('seen.{name}', true), '0'), false), "
                f"set_config('seen.{name}', COALESCE(MAX(Id), 0)::text, false) FROM {self.order['schema']}.{name}"
            )

    def ask(self) -> tuple[list[str], Rows]:
        """Names of columns, and rows, of what is kept now."""
        self.until = time.monotonic() + self.order["deadline_s"]
        cursor = self.connection.cursor("query")  # of one SELECT that changes nothing: nothing else can be declared
        cursor.itersize = PIECE
        cursor.execute(self.order["sql"])
        columns = [self.columns.get(column.name, column.name) for column in cursor.description or ()]
        return columns, Rows(self._until_late(cursor), self.connection.commit)

    def _until_late(self, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """The server bounds the time of each piece; this, of all of them."""
        for row in rows:
            if time.monotonic() > self.until:
                raise TimeoutError
            yield row

    def explained(self, error: Exception) -> tuple[str, str]:
        """Reason and sentence for who asked. By SQLSTATE (manual, appendix A)."""
        state = getattr(error, "sqlstate", None) or ""
        text, tables = str(error).partition("\n")[0][:300], ", ".join(self.order["tables"])
        if state in ("42501", "25006"):
            return "QUERY_DENIED", f"a query may only read these tables, and this one is denied ({text}): {tables}"
        if state == "57014" or isinstance(error, TimeoutError):
            return TOO_SLOW
        if state[:2] in ("53", "54") or "out of memory" in text or "memory alloc" in text:
            return TOO_LARGE
        if state == "42P01":
            return "QUERY_INVALID", f"{text}; there are: {tables}"
        return "QUERY_INVALID", f"the query cannot be answered: {text}"


def answer(query: Query, order: dict[str, Any]) -> None:
    """Look once; in a continuous query again for each line of the input, until it ends."""
    look(query, order)
    while order["continuous"] and sys.stdin.readline():
        query.move_windows()
        look(query, order, is_first=False)


def look(query: Query, order: dict[str, Any], *, is_first: bool = True) -> None:
    """Say what is kept now."""
    columns, found = query.ask()
    if is_first:
        say(columns=[column[:200] for column in columns])
    room, bytes_left, truncated = order["max_rows"], order["max_bytes"], False
    while not truncated and (piece := [[plain(value) for value in row] for row in islice(found.rows, PIECE)]):
        bytes_left -= sum(len(value) if isinstance(value, str) else 8 for row in piece for value in row)
        truncated = len(piece) > room or bytes_left < 0
        say(rows=piece[:room])
        room -= len(piece)
    found.close()
    say(end={"truncated": truncated})


def plain(value: Any) -> str | int | float | None:
    """A value as JSON has it."""
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else float(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == int(value) and abs(value) < 2**63 else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def main() -> None:
    """Read the order, answer, end."""
    order = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    query: Query | None = None
    try:
        query = PostgresqlQuery(order) if "url" in order else SqliteQuery(order)
        answer(query, order)
    except MemoryError:
        refuse(*TOO_LARGE)
    except Exception as error:
        if query is None:
            refuse("STORE_UNAVAILABLE", "the history cannot be read now; ask again later")
        else:
            refuse(*query.explained(error))


def refuse(reason: str, sentence: str) -> None:
    """The last line."""
    say(error={"reason": reason, "sentence": sentence})


if __name__ == "__main__":
    main()
