"""The grid-mapfile: which local accounts a name may use (Globus gss_assist `gridmap.c`).

One line each: `"/C=XX/O=Grid/CN=Jane Doe" jane,atlas001` or `"..." .atlas` (a pool). The first account is the default.
Unlike Globus, a malformed line is reported, never ignored in silence, and no line maps to root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from security.errors import MappingError, Reason, SecurityError, one_line, os_error_text
from security.files import numbered_lines, read_bounded, write_atomic
from security.names import DistinguishedName

MAX_MAP_BYTES = 64 * 1024 * 1024
"""A map of 200 000 people."""
MAX_GROUP_MAP_BYTES = 1024 * 1024
"""Rules about groups are written by hand."""
MAX_LINE_LENGTH = 8192
MAX_ACCOUNTS = 64
"""Accounts of one person."""
MAX_PROBLEMS = 1000
"""Problems kept; more say nothing new."""

_ACCOUNT = re.compile(r"\.?[a-z_][a-z0-9_.-]{0,63}\Z", re.IGNORECASE)
_PATTERN = re.compile(r"(?:/[A-Za-z0-9_.-]{1,100}){1,16}(?:/Role=[A-Za-z0-9_.-]{1,100}|/\*)?\Z")
_FORBIDDEN = frozenset({"root", "toor"})
_LINE = re.compile(r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]\S*))\s+(?P<accounts>\S.*)\Z')


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One person and their accounts, the default one first; `.prefix` means any account of that pool."""

    subject: DistinguishedName
    accounts: tuple[str, ...]
    line: int = 0
    """Where it stands in the file; 0 when made by a program."""


@dataclass(frozen=True)
class MapProblem:
    """A line that maps nobody."""

    line: int
    sentence: str


@dataclass(frozen=True)
class GridMapFile:
    """A parsed map. `lookup` compares names exactly."""

    entries: tuple[MapEntry, ...]
    problems: tuple[MapProblem, ...] = ()

    @staticmethod
    def parse(text: str) -> tuple[tuple[MapEntry, ...], tuple[MapProblem, ...]]:
        """Entries and problems of a map file. Never raises for a bad line: that line maps nobody, the others stand."""
        entries: list[MapEntry] = []
        problems: list[MapProblem] = []
        seen: dict[DistinguishedName, int] = {}
        for number, line in numbered_lines(text):
            try:
                entry = _parse_line(line, number)
                if entry.subject in seen:
                    raise _refused(f"{entry.subject} was already mapped in line {seen[entry.subject]}", number)
            except SecurityError as error:
                if len(problems) < MAX_PROBLEMS:
                    problems.append(MapProblem(number, error.sentence))
                continue
            seen[entry.subject] = number
            entries.append(entry)
        return tuple(entries), tuple(problems)

    @classmethod
    def loads(cls, text: str) -> GridMapFile:
        """As `parse`, as one value."""
        return cls(*cls.parse(text))

    @classmethod
    def load(cls, path: str | Path) -> GridMapFile:
        """Read a file. Raises MappingError MAP_FILE_INVALID when it cannot be read: nobody is mapped by a missing
        file."""
        try:
            return cls.loads(read_bounded(Path(path), MAX_MAP_BYTES).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise MappingError(
                Reason.MAP_FILE_INVALID,
                f"the map file {path} cannot be read ({os_error_text(error)}); nobody can be mapped until it can",
                {"check": "map file", "path": str(path)},
            ) from error

    def lookup(self, subject: DistinguishedName) -> MapEntry | None:
        """The entry of this name, or None."""
        return self._index.get(subject)

    def accounts_of(self, subject: DistinguishedName) -> tuple[str, ...]:
        """The accounts of this name, none for a stranger."""
        entry = self.lookup(subject)
        return entry.accounts if entry is not None else ()

    def subjects_of(self, account: str) -> tuple[DistinguishedName, ...]:
        """Everybody who may use this account."""
        return tuple(entry.subject for entry in self.entries if account in entry.accounts)

    @cached_property
    def _index(self) -> dict[DistinguishedName, MapEntry]:
        return {entry.subject: entry for entry in self.entries}

    def emit(self) -> str:
        """The file as text, as Globus reads it. Problems are not written."""
        return emit(self.entries)

    def write(self, path: str | Path) -> None:
        """Replace the file atomically (mode 0644). Raises OSError, or MappingError for an entry that may not be
        written."""
        write_atomic(Path(path), self.emit().encode(), 0o644)


def emit(entries: Sequence[MapEntry]) -> str:
    """Map file text for these entries. Raises MappingError MAP_FILE_INVALID for an account that may not be mapped."""
    lines: list[str] = []
    for entry in entries:
        name = str(entry.subject).replace('"', "\\x22")
        line = f'"{name}" {",".join(entry.accounts)}'
        if _parse_line(line, entry.line).subject != entry.subject:
            raise _refused(f"{entry.subject} cannot be written to a map file", entry.line)
        lines.append(line + "\n")
    return "".join(lines)


@dataclass(frozen=True)
class GroupRule:
    """One line of a group map: FQANs and the accounts for them, the default one first."""

    pattern: str
    """An FQAN, exact; with `/*` at its end whatever lies below that group, but not the group itself."""
    accounts: tuple[str, ...]
    line: int = 0

    def matches(self, fqan: str) -> bool:
        """Whether this rule is about an FQAN, written without `Role=NULL` and capability. Letter case counts."""
        if self.pattern.endswith("/*"):
            return fqan.startswith(self.pattern[:-1])
        return fqan == self.pattern


@dataclass(frozen=True)
class GroupMapFile:
    """Rules from groups and roles to accounts (LCMAPS groupmapfile), in order: the first that matches any of a
    person's FQANs wins, whatever comes first in the proxy.

    A file with one line that cannot be understood cannot be made: without that line, a later and wider rule would win.
    """

    rules: tuple[GroupRule, ...] = ()

    @classmethod
    def loads(cls, text: str) -> GroupMapFile:
        """Read the rules. Raises MappingError MAP_FILE_INVALID naming the line."""
        rules: list[GroupRule] = []
        for number, line in numbered_lines(text):
            found = _LINE.match(line) if len(line) <= MAX_LINE_LENGTH else None
            if found is None:
                raise _refused('expected "FQAN" account[,account...]', number)
            pattern = found["quoted"] if found["quoted"] is not None else found["bare"]
            pattern = pattern.partition("/Capability=")[0].removesuffix("/Role=NULL")
            if not _PATTERN.match(pattern):
                raise _refused(f"{one_line(pattern, 80)!r} is no FQAN; write /VO/GROUP, /VO/Role=ROLE or /VO/*", number)
            rules.append(GroupRule(pattern, _accounts(found["accounts"], number), number))
        return cls(tuple(rules))

    @classmethod
    def load(cls, path: str | Path) -> GroupMapFile:
        """Read a file. Raises MappingError MAP_FILE_INVALID also when it cannot be read."""
        try:
            return cls.loads(read_bounded(Path(path), MAX_GROUP_MAP_BYTES).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise MappingError(
                Reason.MAP_FILE_INVALID,
                f"the group map {path} cannot be read ({os_error_text(error)}); nobody can be mapped by groups until "
                "it can",
                {"check": "group map", "path": str(path)},
            ) from error

    def lookup(self, fqans: Sequence[str]) -> GroupRule | None:
        """The first rule for any of these FQANs, None if there is none."""
        return next((rule for rule in self.rules if any(rule.matches(fqan) for fqan in fqans)), None)


def _refused(sentence: str, number: int) -> MappingError:
    return MappingError(
        Reason.MAP_FILE_INVALID,
        f"map file line {number} is refused: {sentence}; correct that line",
        {"check": "map file", "line": str(number)},
    )


def _parse_line(line: str, number: int) -> MapEntry:
    if len(line) > MAX_LINE_LENGTH:
        raise _refused(f"it is longer than {MAX_LINE_LENGTH} characters", number)
    found = _LINE.match(line)
    if found is None:
        raise _refused('expected "NAME" account[,account...]', number)
    text = found["quoted"] if found["quoted"] is not None else found["bare"]
    try:
        # Globus lets a backslash protect a quote; \xHH stays for the name's own escapes.
        subject = DistinguishedName.parse(re.sub(r'\\(["\\])', r"\1", text) if "\\" in text else text)
    except SecurityError as error:
        raise _refused(error.sentence, number) from error
    return MapEntry(subject, _accounts(found["accounts"], number), number)


def _accounts(text: str, number: int) -> tuple[str, ...]:
    try:
        return _account_names(text)
    except ValueError as error:
        raise _refused(str(error), number) from error


@lru_cache(maxsize=1024)
def _account_names(text: str) -> tuple[str, ...]:
    """Raises ValueError. Remembered: most people of a VO have the same."""
    accounts: list[str] = []
    for account in re.split(r"[,\s]+", text.split("#", 1)[0].strip().strip(",")):
        if not _ACCOUNT.match(account):
            raise ValueError(f"{one_line(account, 80)!r} is not an account name")
        if account.lower().lstrip(".") in _FORBIDDEN:
            raise ValueError(f"nobody may be mapped to {account}")
        if account not in accounts:
            accounts.append(account)
    if len(accounts) > MAX_ACCOUNTS:
        raise ValueError(f"more than {MAX_ACCOUNTS} accounts")
    return tuple(accounts)
