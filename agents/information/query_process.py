"""A process of its own for one query of somebody: started by path with `python -I -S`, so it imports nothing of ours.

Whatever the query does, it does here: it sees a read-only connection, the tables it was told of and harmless functions,
and it has a deadline, a bound on memory, and one on its answer. The server kills what is left of it.

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
from typing import Any

PIECE = 200
"""Rows of one line."""
FUNCTIONS = {
    "abs", "avg", "coalesce", "count", "cume_dist", "date", "datetime", "dense_rank", "first_value", "glob",
    "group_concat", "ifnull", "iif", "instr", "julianday", "lag", "last_value", "lead", "length", "like", "lower",
    "ltrim", "max", "min", "nth_value", "ntile", "nullif", "percent_rank", "rank", "replace", "round", "row_number",
    "rtrim", "strftime", "substr", "substring", "sum", "time", "total", "trim", "typeof", "unixepoch", "upper",
}  # fmt: skip
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
_DENIED = {sqlite3.SQLITE_FUNCTION: "the function {1}", sqlite3.SQLITE_READ: "reading {0}"}


def say(**message: Any) -> None:
    """One line to the server."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Query:
    """One connection with one query."""

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
        """Let each history table be what was kept since the last look."""
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
        """On to what is kept now."""
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

    def answer(self) -> None:
        """Look once; in a continuous query again for each line of the input, until it ends."""
        self.look()
        while self.order["continuous"] and sys.stdin.readline():
            self.move_windows()
            self.look(is_first=False)

    def look(self, *, is_first: bool = True) -> None:
        """Answer for what is kept now."""
        self.until = time.monotonic() + self.order["deadline_s"]
        self.connection.set_authorizer(self.allows)
        cursor = self.connection.execute(self.order["sql"])
        if cursor.description is None:
            raise ValueError("it is no SELECT")
        if is_first:
            say(columns=[column[0][:200] for column in cursor.description])
        room, bytes_left, truncated = self.order["max_rows"], self.order["max_bytes"], False
        while not truncated and (found := cursor.fetchmany(PIECE)):
            rows = [[value.hex() if isinstance(value, bytes) else value for value in row] for row in found]
            bytes_left -= sum(len(value) if isinstance(value, str) else 8 for row in rows for value in row)
            truncated = len(rows) > room or bytes_left < 0
            say(rows=rows[:room])
            room -= len(rows)
        cursor.close()
        self.connection.set_authorizer(None)
        say(end={"truncated": truncated})


def explained(error: Exception, query: Query | None, tables: list[str]) -> tuple[str, str]:
    """Reason and sentence for who asked."""
    text = str(error)
    if query is not None and query.denied:
        return "QUERY_DENIED", f"a query may read these tables only, and {query.denied} is denied: {', '.join(tables)}"
    if isinstance(error, MemoryError):
        return "QUERY_TOO_LARGE", "the query needs more memory than one may have; ask for less at a time"
    if "interrupted" in text:
        return (
            "QUERY_TOO_SLOW",
            "the query took too long; ask for fewer tuples, for instance with a condition on Id or At",
        )
    if text.startswith("no such table: "):
        return "QUERY_INVALID", f"there is no table {text[15:115]}; there are: {', '.join(tables)}"
    return "QUERY_INVALID", f"the query cannot be answered: {text[:300]}"


def main() -> None:
    """Read the order, answer, end."""
    order = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    query = None
    try:
        query = Query(order)
        query.answer()
    except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError) as error:
        reason, sentence = explained(error, query, order["tables"])
        say(error={"reason": reason, "sentence": sentence})


if __name__ == "__main__":
    main()
