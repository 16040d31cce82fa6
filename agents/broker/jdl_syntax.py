"""The syntax of JDL: tokens, expressions and records, each with its place in the text.

JDL is the ClassAd language (HTCondor manual, "ClassAd syntax"; gLite WMS JDL guide, EGEE-JRA1-TEC-590869).
``classad2`` evaluates expressions but names no place when it refuses one, so the text is first read here:
this parser accepts the same expressions, keeps lines and columns, and says what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from fabric.errors import InvalidRequest

MAX_JDL_BYTES = 1024 * 1024
"""Longer texts are refused before anything reads them."""
MAX_DEPTH = 64
"""Nested brackets and operators; deeper expressions are refused, so no parser recurses without bound."""
MAX_INTEGER = 2**63 - 1
"""Of a ClassAd."""
MAX_NAME_LENGTH = 128
"""Characters of an attribute name."""


class JdlError(InvalidRequest):
    """JDL that cannot be used: where, which attribute, why, and what to write instead."""

    def __init__(
        self, reason: str, sentence: str, *, line: int, column: int, attribute: str = "", file: str = ""
    ) -> None:
        place = f"{file} line {line}, column {column}".lstrip()
        text = f"JDL {place}: {attribute}: {sentence}" if attribute else f"JDL {place}: {sentence}"
        facts = {"line": str(line), "column": str(column), "attribute": attribute}
        super().__init__(reason, text, **facts, **({"file": file} if file else {}))
        self.line = line
        self.column = column
        self.attribute = attribute
        self.file = file
        """Of a node that is in a file of its own; empty: the text itself."""
        self.plain_sentence = sentence

    def within(self, file: str) -> JdlError:
        """The same, of a node's own file."""
        return JdlError(
            self.reason, self.plain_sentence, line=self.line, column=self.column, attribute=self.attribute, file=file
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.reason, self.plain_sentence, self.line, self.column, self.attribute, self.file)


def _rebuild(reason: str, sentence: str, line: int, column: int, attribute: str, file: str) -> JdlError:
    return JdlError(reason, sentence, line=line, column=column, attribute=attribute, file=file)


class TokenKind(Enum):
    """What a token is."""

    NAME = "a name"
    """An attribute, function or keyword."""
    STRING = "a string"
    """Between double quotes."""
    NUMBER = "a number"
    """Integer or real, with an optional unit letter."""
    MARK = "a mark"
    """An operator or bracket."""
    END = "the end of the text"
    """After the last token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text; ``line`` and ``column`` count from 1."""

    kind: TokenKind
    text: str
    line: int
    column: int

    def shown(self) -> str:
        return self.kind.value if self.kind is TokenKind.END else f"'{self.text[:40]}'"


class NodeKind(Enum):
    """What an expression is at its top."""

    RECORD = "a record"
    """``[ name = expression; ... ]``"""
    LIST = "a list"
    """``{ expression, ... }``"""
    REFERENCE = "a name"
    """A bare name, as in the lists of old JDL: ``Parameters = {alpha, beta}``."""
    OTHER = "an expression"
    """Everything else."""


@dataclass(frozen=True, slots=True)
class Node:
    """An expression: its tokens, and its parts when it is a record or a list."""

    kind: NodeKind
    tokens: tuple[Token, ...]
    items: tuple[Node, ...] = ()
    attributes: tuple[tuple[Token, Node], ...] = ()

    @property
    def line(self) -> int:
        return self.tokens[0].line

    @property
    def column(self) -> int:
        return self.tokens[0].column

    def text(self) -> str:
        """The expression with single spaces and without comments, as ClassAd text."""
        return join_tokens(self.tokens)


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|//[^\n]*|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<comment>/\*.*?\*/)
      | (?P<open_comment>/\*)
      | (?P<number>0[xX][0-9A-Fa-f]+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[BKMGTbkmgt]?(?![A-Za-z_0-9]))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<quoted>'(?:[^'\\\n]|\\[^\n])+')
      | (?P<mark>=\?=|=!=|>>>|<=|>=|==|!=|&&|\|\||<<|>>|\?:|[-+*/%!~<>=?:&|^.,;(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)

_NO_SPACE_BEFORE = frozenset({",", ";", ")", ".", "["})
_NO_SPACE_AFTER = frozenset({"(", ".", "!", "~"})


def join_tokens(tokens: tuple[Token, ...]) -> str:
    """Tokens as one line of ClassAd text."""
    parts: list[str] = []
    previous: Token | None = None
    for token in tokens:
        tight = previous is not None and (
            token.text in _NO_SPACE_BEFORE
            or (previous.text in _NO_SPACE_AFTER and previous.kind is TokenKind.MARK)
            or (token.text == "(" and previous.kind is TokenKind.NAME)
        )
        if previous is not None and not tight:
            parts.append(" ")
        parts.append(token.text)
        previous = token
    return "".join(parts)


def tokenise(text: str) -> list[Token]:
    """The tokens of a text, an END token last. Raises JdlError where no token can begin."""
    if len(text) > MAX_JDL_BYTES or len(text.encode("utf-8", "replace")) > MAX_JDL_BYTES:
        raise JdlError(
            "JDL_TOO_LARGE",
            f"the text is longer than {MAX_JDL_BYTES} bytes; use a parametric job or split the collection",
            line=1,
            column=1,
        )
    tokens: list[Token] = []
    line, line_start, position = 1, 0, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        column = position - line_start + 1
        if match is None:
            raise _no_token(text, position, line, column)
        kind = match.lastgroup
        found = match.group()
        if kind == "newline":
            line, line_start = line + 1, match.end()
        elif kind == "comment":
            breaks = found.count("\n")
            if breaks:
                line, line_start = line + breaks, position + found.rindex("\n") + 1
        elif kind == "open_comment":
            raise JdlError("JDL_SYNTAX", "a comment is opened and never closed; add */", line=line, column=column)
        elif kind != "space":
            tokens.append(Token(_KINDS[str(kind)], found, line, column))
        position = match.end()
    tokens.append(Token(TokenKind.END, "", line, position - line_start + 1))
    return tokens


_KINDS = {
    "name": TokenKind.NAME,
    "quoted": TokenKind.NAME,
    "string": TokenKind.STRING,
    "number": TokenKind.NUMBER,
    "mark": TokenKind.MARK,
}


def _no_token(text: str, position: int, line: int, column: int) -> JdlError:
    character = text[position]
    if character in "\"'":
        sentence = f"a string is opened and not closed on its line; add {character} at its end"
    elif character.isdigit():
        sentence = "a number runs into letters; put text into double quotes"
    elif character in "“”‘’":
        sentence = f"{character} is a typographic quote; write a plain double quote"
    else:
        sentence = f"the character {character!r} cannot stand here; put text into double quotes"
    return JdlError("JDL_SYNTAX", sentence, line=line, column=column)


_BINARY = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5,
    "==": 6, "!=": 6, "=?=": 6, "=!=": 6, "is": 6, "isnt": 6,
    "<": 7, "<=": 7, ">": 7, ">=": 7, "<<": 8, ">>": 8, ">>>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip
"""How strongly a binary operator binds."""
_UNARY = frozenset({"-", "+", "!", "~"})
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


class Parser:
    """Reads one JDL text. Use ``parse_jdl``."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._attribute = ""

    def document(self) -> Node:
        """The whole text: a record, with or without its brackets."""
        first = self._peek()
        if first.kind is TokenKind.END:
            raise self._error("the text is empty; give at least an Executable", first)
        if first.text == "[":
            node = self._record()
            if self._peek().text == ";":
                self._next()
        else:
            node = Node(NodeKind.RECORD, (first,), attributes=self._attributes(""))
        rest = self._peek()
        if rest.kind is not TokenKind.END:
            raise self._error(f"{rest.shown()} stands after the end of the description; remove it", rest)
        return node

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        if token.kind is not TokenKind.END:
            self._at += 1
        return token

    def _error(self, sentence: str, token: Token) -> JdlError:
        return JdlError("JDL_SYNTAX", sentence, line=token.line, column=token.column, attribute=self._attribute)

    def _record(self) -> Node:
        start = self._at
        self._deeper()
        self._next()
        attributes = self._attributes("]")
        self._next()
        self._depth -= 1
        return Node(NodeKind.RECORD, tuple(self._tokens[start : self._at]), attributes=attributes)

    def _attributes(self, closer: str) -> tuple[tuple[Token, Node], ...]:
        outer = self._attribute
        found: list[tuple[Token, Node]] = []
        while True:
            token = self._peek()
            if token.text == ";" and token.kind is TokenKind.MARK:
                self._next()
                continue
            if token.kind is TokenKind.END or (closer and token.text == closer):
                if closer and token.kind is TokenKind.END:
                    raise self._error(f"the record is not closed; add {closer}", token)
                self._attribute = outer
                return tuple(found)
            if token.kind is not TokenKind.NAME:
                raise self._error(f"an attribute name is expected, {token.shown()} found", token)
            name = token.text.strip("'")
            if len(name) > MAX_NAME_LENGTH:
                raise self._error(f"an attribute name is longer than {MAX_NAME_LENGTH} characters", token)
            self._next()
            self._attribute = name
            if self._peek().text != "=":
                raise self._error(f"'=' is expected after the name {name}, {self._peek().shown()} found", self._peek())
            self._next()
            found.append((Token(TokenKind.NAME, name, token.line, token.column), self._expression()))
            after = self._peek()
            if after.text == ";" or after.kind is TokenKind.END or (closer and after.text == closer):
                self._attribute = outer
                continue
            raise self._error(f"';' is expected at the end of {name}, {after.shown()} found", after)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"expressions are nested deeper than {MAX_DEPTH} levels; simplify", self._peek())

    def _expression(self) -> Node:
        start = self._at
        self._deeper()
        node = self._binary(1)
        while self._peek().text in ("?", "?:") and self._peek().kind is TokenKind.MARK:
            if self._next().text == "?":
                self._expression()
                if self._peek().text != ":":
                    raise self._error(f"':' of a condition is expected, {self._peek().shown()} found", self._peek())
                self._next()
            self._expression()
        self._depth -= 1
        return self._span(start, node)

    def _span(self, start: int, node: Node) -> Node:
        """``node`` if it is all of the expression that began at ``start``, else an expression around it."""
        if self._at - start == len(node.tokens):
            return node
        return Node(NodeKind.OTHER, tuple(self._tokens[start : self._at]))

    def _binary(self, least: int) -> Node:
        start = self._at
        node = self._unary()
        while True:
            token = self._peek()
            binds = _BINARY.get(token.text.lower(), 0) if token.kind in (TokenKind.MARK, TokenKind.NAME) else 0
            if binds < least or binds == 0:
                return self._span(start, node)
            self._next()
            self._binary(binds + 1)

    def _unary(self) -> Node:
        start = self._at
        count = 0
        while self._peek().text in _UNARY and self._peek().kind is TokenKind.MARK:
            self._next()
            count += 1
            if count > MAX_DEPTH:
                raise self._error("too many signs in a row", self._peek())
        node = self._postfix()
        return self._span(start, node)

    def _postfix(self) -> Node:
        start = self._at
        node = self._primary()
        while True:
            token = self._peek()
            if token.kind is not TokenKind.MARK:
                break
            if token.text == ".":
                self._next()
                name = self._next()
                if name.kind is not TokenKind.NAME:
                    raise self._error(f"a name is expected after '.', {name.shown()} found", name)
            elif token.text == "[":
                self._next()
                self._expression()
                self._close("[", token)
            else:
                break
        return self._span(start, node)

    def _primary(self) -> Node:
        start = self._at
        token = self._peek()
        if token.kind in (TokenKind.STRING, TokenKind.NUMBER):
            if token.kind is TokenKind.NUMBER:
                self._check_number(token)
            self._next()
            return Node(NodeKind.OTHER, (token,))
        if token.kind is TokenKind.NAME:
            self._next()
            if self._peek().text == "(":
                opener = self._next()
                self._items(")")
                self._close("(", opener)
                return Node(NodeKind.OTHER, tuple(self._tokens[start : self._at]))
            kind = NodeKind.OTHER if token.text.lower() in _CONSTANTS else NodeKind.REFERENCE
            return Node(kind, (token,))
        if token.text == "(":
            self._next()
            self._expression()
            self._close("(", token)
            return Node(NodeKind.OTHER, tuple(self._tokens[start : self._at]))
        if token.text == "{":
            self._next()
            items = self._items("}")
            self._close("{", token)
            return Node(NodeKind.LIST, tuple(self._tokens[start : self._at]), items=items)
        if token.text == "[":
            return self._record()
        if token.text == "." and token.kind is TokenKind.MARK:
            self._next()
            return self._primary()
        raise self._error(f"a value is expected, {token.shown()} found", token)

    def _check_number(self, token: Token) -> None:
        """classad2 takes an integer that is too large, or hexadecimal, for 0, and refuses units."""
        if token.text[-1].isalpha() or token.text[:2].lower() == "0x":
            raise self._error(f"{token.shown()} is not a plain decimal number; write all its digits", token)
        if token.text.isdigit() and (len(token.text) > 19 or int(token.text) > MAX_INTEGER):
            raise self._error(f"{token.shown()} is too large: integers go up to {MAX_INTEGER}", token)

    def _items(self, closer: str) -> tuple[Node, ...]:
        items: list[Node] = []
        while self._peek().text != closer:
            items.append(self._expression())
            if self._peek().text != ",":
                break
            comma = self._next()
            if self._peek().text == closer:
                raise self._error(f"a value is expected after the comma, '{closer}' found; remove the comma", comma)
        return tuple(items)

    def _close(self, opener: str, at: Token) -> None:
        token = self._next()
        closer = _CLOSERS[opener]
        if token.text != closer or token.kind is not TokenKind.MARK:
            where = f"'{opener}' of line {at.line}, column {at.column}"
            raise self._error(f"'{closer}' is expected to close {where}, {token.shown()} found", token)


_CONSTANTS = frozenset({"true", "false", "undefined", "error"})


def parse_jdl(text: str) -> Node:
    """The record of a JDL text, with or without its outer brackets. Raises JdlError."""
    return Parser(tokenise(text)).document()


def parse_expression(text: str) -> Node:
    """One expression, for instance Requirements. Raises JdlError."""
    parser = Parser(tokenise(text))
    node = parser._expression()  # pyright: ignore[reportPrivateUsage]
    rest = parser._peek()  # pyright: ignore[reportPrivateUsage]
    if rest.kind is not TokenKind.END:
        raise JdlError("JDL_SYNTAX", f"{rest.shown()} stands after the expression", line=rest.line, column=rest.column)
    return node


def references(node: Node) -> list[tuple[str, Token]]:
    """The attributes that an expression names, each with the scope before its dot: ``other``, ``self``, or empty."""
    found: list[tuple[str, Token]] = []
    scope, before = "", ""
    for token, after in pairwise((*node.tokens, Token(TokenKind.END, "", 0, 0))):
        if token.kind is TokenKind.NAME and after.text not in ("(", "="):
            found.append((scope if before == "." else "", token))
        if token.text != ".":
            scope = token.text.lower() if token.kind is TokenKind.NAME or token.text in _CLOSERS.values() else ""
        before = token.text
    return found


def definitions(node: Node) -> list[Token]:
    """The names that the records within an expression define."""
    return [token for token, after in pairwise(node.tokens) if token.kind is TokenKind.NAME and after.text == "="]


def conjuncts(expression: str) -> list[str]:
    """The terms of ``a && b && c``, brackets around the whole removed; one term if there is no ``&&`` at the top."""
    tokens = [token for token in tokenise(expression) if token.kind is not TokenKind.END]
    return [join_tokens(tuple(part)) for part in _split(tokens)]


def join_terms(terms: Sequence[str]) -> str:
    """All of these terms as one expression; empty for none."""
    return terms[0] if len(terms) == 1 else " && ".join(f"({term})" for term in terms)


def _split(tokens: list[Token]) -> list[list[Token]]:
    while len(tokens) > 2 and tokens[0].text == "(" and _closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind is TokenKind.MARK:
            if token.text in "([{":
                depth += 1
            elif token.text in ")]}":
                depth -= 1
            elif depth == 0 and token.text in ("||", "?", "?:"):
                return [tokens]
            elif depth == 0 and token.text == "&&":
                parts.append([])
                continue
        parts[-1].append(token)
    if len(parts) == 1:
        return parts
    return [piece for part in parts for piece in _split(part)]


def _closing(tokens: list[Token], start: int) -> int:
    depth = 0
    for index in range(start, len(tokens)):
        token = tokens[index]
        if token.kind is TokenKind.MARK:
            if token.text in "([{":
                depth += 1
            elif token.text in ")]}":
                depth -= 1
                if depth == 0:
                    return index
    return -1
