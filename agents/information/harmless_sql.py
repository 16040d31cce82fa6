"""What a query at PostgreSQL may be: there is nobody there, as SQLite's authorizer, to be asked for each function.

The role that a query runs as can read the tables of the history. PostgreSQL lets every role call most functions though,
among them some that write (`lo_create`), stop others (`pg_terminate_backend`) or show them (`pg_stat_activity`). So
a query is read here first, word by word; whatever is not understood is refused, for it could be read otherwise there
(nested comments, dollar quotes, escapes).
"""

from __future__ import annotations

import re

from fabric.errors import InvalidRequest

FUNCTIONS = {
    "abs", "avg", "btrim", "ceil", "coalesce", "concat", "count", "cume_dist", "date_part", "date_trunc", "dense_rank",
    "extract", "first_value", "floor", "greatest", "lag", "last_value", "lead", "least", "left", "length", "lower",
    "ltrim", "max", "min", "now", "nth_value", "ntile", "nullif", "percent_rank", "percentile_cont",
    "percentile_disc", "position", "rank", "replace", "right", "round", "row_number", "rtrim", "split_part",
    "starts_with", "stddev", "string_agg", "strpos", "substr", "substring", "sum", "to_char", "to_timestamp", "trim",
    "upper", "variance",
}  # fmt: skip
CALLS_NOTHING = {
    "all", "and", "any", "between", "by", "case", "cast", "distinct", "else", "except", "exists", "filter", "from",
    "having", "ilike", "in", "intersect", "is", "join", "lateral", "like", "limit", "materialized", "not", "numeric",
    "offset", "on", "or", "over", "select", "some", "then", "union", "using", "values", "varchar", "when", "where",
}  # fmt: skip
"""Words of SQL that may be before a bracket."""
FIRST = {"select", "with", "values"}

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f\v]+|--[^\r\n]*)|(?P<text>'(?:[^']|'')*')|"(?P<quoted>(?:[^"]|"")+)\""""
    r"""|(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?!['"\w$])|(?P<number>[0-9]+(?:\.[0-9]+)?)"""
    r"""|(?P<sign>/(?!\*)|[-(),.+*<>=!|%:;])"""
)
_COLUMNS_OF_A_QUERY = re.compile(r"\( (\w+ , )*\w+ \) as (not )?(materialized )?\( (select|with) ")
"""`WITH name (a, b) AS (SELECT`."""


def require_harmless(sql: str) -> None:
    """Raises InvalidRequest QUERY_DENIED."""
    words = _words(sql)
    if next((word for word in words if word != "("), "") not in FIRST:
        raise _denied("anything but SELECT")
    for index, word in enumerate(words):
        if word.removeprefix('"').startswith(("pg_", "information_schema")):
            raise _denied(f"reading {word}")
        if index and word == "(" and _is_call(words, index):
            raise _denied(f"the function {words[index - 1]}")


def _words(sql: str) -> list[str]:
    """Names in small letters, quoted ones after a quote; signs as they are; `'` for a text."""
    found: list[str] = []
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            raise _denied(f"{sql[at : at + 10]!r} (no comments, escapes or other special forms; a space before a text)")
        at = match.end()
        if match["quoted"] is not None:
            found.append('"' + match["quoted"].lower())
        elif match["space"] is None:
            found.append("'" if match["text"] is not None else match[0].lower())
    return found


def _is_call(words: list[str], bracket: int) -> bool:
    """Whether this bracket may be that of a function that is not allowed."""
    before = words[bracket - 1]
    if before.startswith('"'):
        return before[1:] not in FUNCTIONS
    if not (before[0].isalpha() or before[0] == "_") or before in FUNCTIONS or before in CALLS_NOTHING:
        return False
    if before == "as" or (bracket > 1 and words[bracket - 2] == "as"):
        return False
    return not _COLUMNS_OF_A_QUERY.match(" ".join(words[bracket : bracket + 200]) + " ")


def _denied(what: str) -> InvalidRequest:
    return InvalidRequest("QUERY_DENIED", f"a query may only read the tables of the history, and {what} is denied")
