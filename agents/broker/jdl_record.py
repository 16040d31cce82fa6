"""A record of a JDL and its values, each asked for by name and type: a wrong one raises with its place."""

from __future__ import annotations

import re

import classad2

from agents.broker.jdl_syntax import JdlError, Node, NodeKind, Token, definitions, references

MAX_REFERENCES = 16
"""Of attributes to attributes that refer to others: at most some hundred evaluations of one."""
MAX_TEXT_LENGTH = 32 * 1024
"""Characters of one string value."""
MAX_LIST_LENGTH = 10_000

_TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a real number",
    str: "a string",
    list: "a list",
    classad2.ClassAd: "a record",
}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|d)?\s*\Z", re.IGNORECASE)
_DURATION_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:(b|[kmgt])i?b?)?\s*\Z", re.IGNORECASE)
_SIZE_UNITS = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_NOT_INHERITED = frozenset(
    {
        "type", "jobtype", "nodes", "dependencies", "parameters", "parameterstart", "parameterstep", "nodename",
        "description", "file",
    }
)  # fmt: skip


class Record:
    """A record and its values, each asked by name and type; wrong ones raise with their place."""

    def __init__(self, node: Node, outer: Record | None = None) -> None:
        self.node = node
        self.root: Record = outer.root if outer is not None else self
        self.values: dict[str, Node] = {}
        self.written: dict[str, Token] = {}
        if outer is not None:
            for key, value in outer.values.items():
                if key not in _NOT_INHERITED:
                    self.values[key] = value
                    self.written[key] = outer.written[key]
        own: set[str] = set()
        for name, value in node.attributes:
            key = name.text.lower()
            if key in own:
                raise JdlError(
                    "JDL_SYNTAX", "given twice; keep one", line=name.line, column=name.column, attribute=name.text
                )
            own.add(key)
            self.values[key] = value
            self.written[key] = name
        self._limit_references()
        self._ad = classad2.ClassAd()
        for key, value in self.values.items():
            if key not in ("nodes", "dependencies", "requirements", "rank"):
                try:
                    self._ad[self.written[key].text] = classad2.ExprTree(value.text())
                except (classad2.ClassAdException, ValueError, UnicodeError):
                    raise self.error("JDL_SYNTAX", "this expression cannot be read; simplify it", key) from None
        if outer is not None:
            self._ad["root"] = self.root._ad

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, reason: str, sentence: str, key: str, node: Node | None = None) -> JdlError:
        place = node or self.values.get(key) or self.node
        name = self.written[key].text if key in self.written else key
        return JdlError(reason, sentence, line=place.line, column=place.column, attribute=name)

    def missing(self, name: str, sentence: str) -> JdlError:
        return JdlError("JDL_VALUE", sentence, line=self.node.line, column=self.node.column, attribute=name)

    def wrong_type(self, key: str, wanted: str, value: object, node: Node | None = None) -> JdlError:
        name = self.written[key].text
        return self.error("JDL_TYPE", f"{name} must be {wanted}, is {type_name(value)}", key, node)

    def value(self, key: str) -> object:
        """What an attribute evaluates to. classad2 gives *undefined* as a kind of integer: that is refused here."""
        value = self._ad.eval(self.written[key].text)
        if isinstance(value, classad2.Value):
            name = self.written[key].text
            raise self.error("JDL_TYPE", f"{name} must have a value of its own, is {type_name(value)}", key)
        return value

    def string(self, key: str, default: str = "") -> str:
        if key not in self:
            return default
        value = self.value(key)
        if not isinstance(value, str):
            raise self.wrong_type(key, "a string", value)
        return self._text(key, value)

    def _text(self, key: str, value: str) -> str:
        if len(value) > MAX_TEXT_LENGTH:
            raise self.error("JDL_TOO_LARGE", f"a string is longer than {MAX_TEXT_LENGTH} characters", key)
        if "\0" in value:
            raise self.error("JDL_VALUE", "a string holds a zero byte; remove it", key)
        return value

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        if key not in self:
            return default
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(key, "an integer", value)
        if not least <= value <= most:
            raise self.error("JDL_VALUE", f"{value} is not between {least} and {most}", key)
        return value

    def boolean(self, key: str) -> bool:
        """False if it is not given."""
        if key not in self:
            return False
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.wrong_type(key, "true or false", value)
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; one string alone is a list of one."""
        if key not in self:
            return ()
        value = self.value(key)
        if isinstance(value, str):
            return (self._text(key, value),)
        if not isinstance(value, list):
            raise self.wrong_type(key, "a string or a list of strings", value)
        flat: list[str] = []
        node = self.values[key]
        for index, item in enumerate(value):
            where = node.items[index] if index < len(node.items) else None
            self._flatten(key, item, where, flat)
        if len(flat) > MAX_LIST_LENGTH:
            raise self.error("JDL_TOO_LARGE", f"a list is longer than {MAX_LIST_LENGTH} elements", key)
        return tuple(flat)

    def _flatten(self, key: str, item: object, where: Node | None, flat: list[str]) -> None:
        if isinstance(item, classad2.ExprTree):
            item = item.eval(self._ad)
        if isinstance(item, list):
            for inner in item:
                self._flatten(key, inner, where, flat)
        elif isinstance(item, str):
            flat.append(self._text(key, item))
        else:
            name = self.written[key].text
            raise self.error(
                "JDL_TYPE", f"every element of {name} must be a string, this one is {type_name(item)}", key, where
            )

    def duration_s(self, key: str) -> int:
        """Minutes as a number (GLUE counts so), or text with a unit: ``"90 s"``, ``"2 h"``."""
        if key not in self:
            return 0
        value = self.value(key)
        seconds = -1.0
        if isinstance(value, str) and (match := _DURATION.match(value)):
            seconds = float(match[1]) * _DURATION_UNITS[(match[2] or "m").lower()]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = value * 60
        elif not isinstance(value, str):
            raise self.wrong_type(key, 'a number of minutes, or a string such as "90 s"', value)
        if not 0 < seconds < 10**9:
            raise self.error("JDL_VALUE", 'write minutes, or a string such as "90 s", "2 h"', key)
        return max(1, round(seconds))

    def size_bytes(self, key: str) -> int:
        """Mebibytes as a number, or text with a unit: ``"2 GB"``."""
        if key not in self:
            return 0
        value = self.value(key)
        size = -1.0
        if isinstance(value, str) and (match := _SIZE.match(value)):
            size = float(match[1]) * _SIZE_UNITS[(match[2] or "m").lower()]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            size = value * 1024**2
        elif not isinstance(value, str):
            raise self.wrong_type(key, 'a number of MB, or a string such as "2 GB"', value)
        if not 0 < size < 2**62:
            raise self.error("JDL_VALUE", 'write MB, or a string such as "2 GB"', key)
        return round(size)

    def expression(self, key: str, wanted: str, allowed: tuple[type, ...]) -> str:
        """The text of an expression over ``other``; one that is plainly of another type is refused."""
        if key not in self:
            return ""
        node = self.values[key]
        text = node.text()
        self._refuse_circle((key,), set())
        try:
            tree = classad2.ExprTree(text)
            value = tree.eval(self._ad)
        except (classad2.ClassAdException, ValueError, TypeError):
            raise self.error("JDL_SYNTAX", "this expression cannot be read; simplify it", key) from None
        if isinstance(value, classad2.Value) and value == classad2.Value.Undefined:
            return text
        if node.kind in (NodeKind.LIST, NodeKind.RECORD) or (
            not isinstance(value, classad2.Value) and not isinstance(value, allowed)
        ):
            raise self.wrong_type(key, wanted, value)
        if len(node.tokens) == 1 and not isinstance(value, allowed):
            raise self.wrong_type(key, wanted, value)
        return text

    def _refuse_circle(self, path: tuple[str, ...], done: set[str]) -> None:
        """An expression that leads back to itself has no value: classad2 calls it undefined, and no CE would suit."""
        for scope, token in references(self.values[path[-1]]):
            name = key_of(token)
            if scope not in ("", "self", "my") or name not in self.values or name in done:
                continue
            if name in path:
                raise JdlError(
                    "JDL_VALUE",
                    f"leads back to itself; write a value, or other.{token.text} for what the computing element says",
                    line=token.line,
                    column=token.column,
                    attribute=self.written[path[0]].text,
                )
            self._refuse_circle((*path, name), done)
        done.add(path[-1])

    def _limit_references(self) -> None:
        """Where attributes are made of attributes that are made of attributes, each step multiplies the work."""
        used = {
            key: [token for scope, token in references(node) if scope not in ("other", "target")]
            for key, node in self.values.items()
            if key not in ("nodes", "dependencies", "parameters")
        }
        made = {key for key, tokens in used.items() if any(key_of(token) in self.values for token in tokens)}
        made |= {key_of(token) for key in used for token in definitions(self.values[key])}
        steps = [(key, token) for key, tokens in used.items() for token in tokens if key_of(token) in made]
        if len(steps) > MAX_REFERENCES:
            key, token = steps[MAX_REFERENCES]
            raise JdlError(
                "JDL_TOO_LARGE",
                f"more than {MAX_REFERENCES} references to attributes that refer to others; write their values",
                line=token.line,
                column=token.column,
                attribute=self.written[key].text,
            )


def key_of(name: Token) -> str:
    return name.text.strip("'").lower()


def type_name(value: object) -> str:
    if isinstance(value, classad2.Value):
        return "undefined (a name that nothing defines?)" if value == classad2.Value.Undefined else "an error"
    for kind, name in _TYPE_NAMES.items():
        if isinstance(value, kind):
            return name
    return "an expression"
