"""CA namespaces: the Globus EACL `.signing_policy` file, and the statements of `.namespaces` (EUGridPMA namespaces
format 1.0, 2006).

Wildcards as Globus has them since GT 2.4 (oldgaa_regex_matches_string): a pattern matches if it equals the name, or
if the
name begins with the pattern's text before its *last* `*`. Globus ignores what follows the star; here the whole
pattern must
match as well, so this never allows more than Globus. Letter case counts. `?` is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from security.errors import Reason, ValidationError
from security.names import DistinguishedName

MAX_POLICY_BYTES = 64 * 1024
MAX_SUBJECTS = 256
"""Patterns for one authority."""


@dataclass(frozen=True)
class PolicyEntry:
    """What one authority may sign: patterns over one-line names, spelled with `emailAddress` and `UID`."""

    authority: DistinguishedName | None
    """None: SELF, the authority whose file this is."""
    subjects: tuple[str, ...]
    permit: bool = True
    """False: these names may not be signed, whatever else permits them."""
    expression: NamePattern | None = None
    """Set for a regular expression (`.namespaces`); `subjects` then has its text."""

    def is_about(self, authority: DistinguishedName, *, own: bool = False) -> bool:
        """True if this speaks about `authority`; `own`: the file is that authority's."""
        return own if self.authority is None else self.authority == authority

    def beginning(self, pattern: str) -> str:
        """The characters with which every name begins that one of `subjects` matches."""
        if self.expression is None:
            return pattern.rpartition("*")[0] if "*" in pattern else pattern
        found: list[str] = []
        for token in _TOKEN.finditer(pattern.removeprefix("^")):
            if token[1] is None and (token[0] in _SPECIAL or token[0] == "." or len(token[0]) > 1):
                break
            found.append(token[1] or token[0])
        return "".join(found)

    def matches(self, subject: str) -> bool:
        """True if this name is one of those meant."""
        if self.expression is not None:
            return self.expression.matches(subject)
        return any(matches(pattern, subject) for pattern in self.subjects)


@dataclass(frozen=True)
class SigningPolicy:
    """The namespaces of the authorities named in one file."""

    entries: tuple[PolicyEntry, ...]

    def names_authority(self, authority: DistinguishedName, *, own: bool = False) -> bool:
        """True if the file says anything about this authority; `own`: it is that authority's file (SELF)."""
        return any(entry.is_about(authority, own=own) for entry in self.entries)

    def named(self, authority: DistinguishedName) -> SigningPolicy:
        """The same with SELF replaced by the authority whose file it is."""
        return SigningPolicy(
            tuple(replace(entry, authority=authority) if entry.authority is None else entry for entry in self.entries)
        )

    def permits(self, authority: DistinguishedName, subject: DistinguishedName) -> bool:
        """True if this authority may sign this subject: a rule permits it and none denies it."""
        text = str(subject)
        about = [entry for entry in self.entries if entry.is_about(authority)]
        if any(not entry.permit and entry.matches(text) for entry in about):
            return False
        return any(entry.permit and entry.matches(text) for entry in about)

    def reaches(self, tree: DistinguishedName) -> bool:
        """True if a rule could permit a name that is `tree` or below it; in doubt, and in any letter case, it could."""
        top = f"{tree}/".lower()
        return any(
            (start := entry.beginning(pattern).lower()).startswith(top) or top.startswith(start)
            for entry in self.entries
            if entry.permit
            for pattern in entry.subjects
        )

    def texts(self, authority: DistinguishedName) -> tuple[str, ...]:
        """What this authority may sign, for people: each pattern, those it may not with `not` before it."""
        return tuple(
            pattern if entry.permit else f"not {pattern}"
            for entry in self.entries
            if entry.is_about(authority)
            for pattern in entry.subjects
        )


def matches(pattern: str, subject: str) -> bool:
    """The wildcard rule of this module."""
    if pattern == subject:
        return True
    prefix, star, rest = pattern.rpartition("*")
    # More than one star: Globus takes the earlier ones literally, so the prefix has to be there as it stands.
    return (
        bool(star) and subject.startswith(prefix) and len(subject) >= len(prefix) + len(rest) and subject.endswith(rest)
    )


_TYPE_SPELLINGS = (
    (re.compile(r"/(?:Email|E)=", re.IGNORECASE), "/emailAddress="),
    (re.compile(r"/USERID=", re.IGNORECASE), "/UID="),
    (re.compile(r"/(CN|C|O|OU|L|ST|DC|UID|emailAddress)=", re.IGNORECASE), None),
)


def _normal_pattern(pattern: str) -> str:
    """Attribute types in the spelling of `DistinguishedName`."""
    for expression, replacement in _TYPE_SPELLINGS:
        if replacement is not None:
            pattern = expression.sub(replacement, pattern)
        else:
            pattern = expression.sub(lambda m: "/" + _SPELLING[m.group(1).lower()] + "=", pattern)
    return pattern


_SPELLING = {name.lower(): name for name in ("CN", "C", "O", "OU", "L", "ST", "DC", "UID", "emailAddress")}


def _invalid(sentence: str, number: int) -> ValidationError:
    return ValidationError(
        Reason.SIGNING_POLICY_INVALID,
        f"signing policy line {number}: {sentence}; correct the file or install the authority again",
        {"check": "signing policy", "line": str(number)},
    )


_LINE = re.compile(r"\s*(?P<keyword>\S+)\s+(?P<authority>\S+)\s+(?P<value>.*\S)\s*\Z")
_SUBJECT = re.compile(r'"([^"]*)"|(\S+)')


def parse_signing_policy(text: str) -> SigningPolicy:
    """Read an EACL file: access_id_CA, pos_rights, cond_subjects lines. Raises ValidationError SIGNING_POLICY_INVALID.

    Rights other than `globus CA:sign` are not granted by anything here; `neg_rights` is refused, as nobody uses it and
    ignoring it would widen the policy.
    """
    if len(text) > MAX_POLICY_BYTES:
        raise _invalid(f"the file is larger than {MAX_POLICY_BYTES} bytes", 0)
    entries: list[PolicyEntry] = []
    authority: DistinguishedName | None = None
    may_sign = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        found = _LINE.match(stripped)
        if found is None:
            raise _invalid("expected a keyword, an authority and a value", number)
        keyword, value = found["keyword"], found["value"]
        if keyword.startswith("access_id_"):
            authority, may_sign = None, False
            if keyword == "access_id_CA":
                if found["authority"].lower() != "x509":
                    raise _invalid("only X509 authorities are known", number)
                authority = _name(_unquote(value), number)
        elif keyword == "pos_rights":
            may_sign = found["authority"] == "globus" and value == "CA:sign"
        elif keyword == "cond_subjects":
            if authority is not None and may_sign and found["authority"] == "globus":
                entries.append(PolicyEntry(authority, _subjects(_unquote(value), number)))
        elif keyword == "neg_rights":
            raise _invalid("neg_rights is not supported", number)
        elif not keyword.startswith("cond_"):
            raise _invalid(f"unknown keyword {keyword[:40]!r}", number)
    if not entries:
        raise _invalid("no authority is allowed to sign anything", 0)
    return SigningPolicy(tuple(entries))


def _unquote(value: str) -> str:
    """The text between single quotes, or the text as it stands when there are none."""
    if value.startswith("'"):
        end = value.find("'", 1)
        return value[1:end] if end > 0 else value[1:]
    return value


def _name(text: str, number: int) -> DistinguishedName:
    try:
        return DistinguishedName.parse(text.strip('"'))
    except Exception as error:
        raise _invalid(f"the authority's name cannot be read: {text[:100]!r}", number) from error


def _subjects(value: str, number: int) -> tuple[str, ...]:
    found = [quoted or bare for quoted, bare in _SUBJECT.findall(value)]
    if not found:
        raise _invalid("no subject pattern", number)
    if len(found) > MAX_SUBJECTS:
        raise _invalid(f"more than {MAX_SUBJECTS} subject patterns", number)
    return tuple(_normal_pattern(pattern) for pattern in found)


def emit_signing_policy(authority: DistinguishedName, subjects: Sequence[str]) -> str:
    """The EACL file for one authority, as Globus, VOMS and canl read it. Raises ValueError for quotes in a name."""
    for text in (authority.openssl_oneline(), *subjects):
        if "'" in text or '"' in text or "\n" in text:
            raise ValueError("a signing policy cannot hold quotation marks")
    patterns = " ".join(f'"{pattern}"' for pattern in subjects)
    return (
        f"access_id_CA   X509    '{authority.openssl_oneline()}'\n"
        "pos_rights     globus  CA:sign\n"
        f"cond_subjects  globus  '{patterns}'\n"
    )


def emit_namespaces(authority: DistinguishedName, subjects: Sequence[str]) -> str:
    """The same as `.namespaces`, for the patterns of a signing policy (a `*` at the end, or none).

    Raises ValueError for any other.
    """
    rules: list[str] = []
    for pattern in subjects:
        plain = pattern.removesuffix("*")
        if "*" in plain or any(quote in pattern for quote in "'\"\n\\"):
            raise ValueError("only a pattern with one star, at its end, can be written")
        expression = re.sub(r"([.^$+?()\[\]{}|])", r"\\\1", plain) + (".*" if plain != pattern else "")
        rules.append(f'TO Issuer "{authority.openssl_oneline()}" \\\n  PERMIT Subject "{expression}"\n')
    return "#NAMESPACES-VERSION: 1.0\n" + "".join(rules)


_NAMESPACE_RULE = re.compile(
    r'TO\s+Issuer\s+(?:"(?P<issuer>[^"]+)"|(?P<self>SELF))\s+(?P<verb>PERMIT|DENY)\s+'
    r'Subject\s+"(?P<subject>(?:[^"\\]|\\.)+)"',
    re.IGNORECASE,
)
_NAMESPACES_VERSION = re.compile(r"#NAMESPACES-VERSION:\s*(\S+)", re.IGNORECASE)
MAX_WILDCARDS = 16
"""`.*` in one pattern."""


@dataclass(frozen=True)
class NamePattern:
    """A regular expression of characters, `.`, `\\x`, `[...]`, `.*` and `.+`, matched against the whole name.

    The pieces between `.*` are found one after the other, leftmost first: time grows with length, never with more.
    """

    pieces: tuple[re.Pattern[str], ...]

    def matches(self, subject: str) -> bool:
        """True if the expression is the whole name."""
        first, *rest = self.pieces
        if not rest:
            return first.fullmatch(subject) is not None
        found = first.match(subject)
        if found is None:
            return False
        position = found.end()
        *middle, last = rest
        for piece in middle:
            found = piece.search(subject, position)
            if found is None:
                return False
            position = found.end()
        # The last piece has one length for all names: one element, one character.
        return any(
            last.fullmatch(subject, start) is not None
            for start in range(max(position, len(subject) - last.pattern.count("")), len(subject) + 1)
        )


_TOKEN = re.compile(r"\\(.)|\[\^?\]?[^\]\[\\]*\]|.", re.DOTALL)
_SPECIAL = frozenset("*+?(){}|^$[]\\")


def compile_pattern(text: str, *, ignore_case: bool) -> NamePattern:
    """Read the expression of a namespaces rule. Raises ValueError for one that is not understood (as `a*`, `(a|b)`)."""
    pieces: list[list[str]] = [[]]
    tokens = [found.group() for found in _TOKEN.finditer(text)]
    if tokens and tokens[0] == "^":
        del tokens[0]
    if tokens and tokens[-1] == "$":
        del tokens[-1]
    position = 0
    while position < len(tokens):
        token = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        if token == "." and following in ("*", "+"):
            if following == "+":
                pieces[-1].append(".")
            pieces.append([])
            position += 1
        elif len(token) > 1 or token not in _SPECIAL:
            if len(token) == 2 and token[0] == "\\" and token[1].isalnum():
                raise ValueError(f"{token} is not understood")
            pieces[-1].append(token if len(token) > 1 or token == "." else re.escape(token))
        else:
            raise ValueError(f"{token} is not understood")
        position += 1
    if len(pieces) > MAX_WILDCARDS + 1:
        raise ValueError(f"more than {MAX_WILDCARDS} wildcards")
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    try:
        return NamePattern(tuple(re.compile("".join(piece), flags) for piece in pieces))
    except re.error as error:
        raise ValueError(str(error)) from error


def parse_namespaces(text: str) -> SigningPolicy:
    """Read a `.namespaces` file: `TO Issuer "..."|SELF PERMIT|DENY Subject "..."`, one rule per statement.

    A denial is looked at without letter case, a permission with it: the narrower way of each. Anything that is not
    understood raises ValidationError SIGNING_POLICY_INVALID rather than guess.
    """
    if len(text) > MAX_POLICY_BYTES:
        raise _invalid(f"the file is larger than {MAX_POLICY_BYTES} bytes", 0)
    version = _NAMESPACES_VERSION.search(text)
    if version is not None and version[1] != "1.0":
        raise _invalid(f"version {version[1][:20]!r} of the namespaces format is not known", 0)
    body = " ".join(_without_comment(line).rstrip("\\ \t") for line in text.splitlines())
    entries: list[PolicyEntry] = []
    end = 0
    for rule in _NAMESPACE_RULE.finditer(body):
        if body[end : rule.start()].strip():
            raise _invalid(f"text that is not a rule: {body[end : rule.start()].strip()[:60]!r}", 0)
        end = rule.end()
        if len(entries) >= MAX_SUBJECTS:
            raise _invalid(f"more than {MAX_SUBJECTS} rules", 0)
        permit = rule["verb"].upper() == "PERMIT"
        pattern = _normal_pattern(rule["subject"])
        try:
            expression = compile_pattern(pattern, ignore_case=not permit)
        except ValueError as error:
            raise _invalid(f"the pattern {pattern[:60]!r} cannot be used: {error}", 0) from error
        authority = None if rule["self"] else _name(rule["issuer"], 0)
        entries.append(PolicyEntry(authority, (pattern,), permit, expression))
    if body[end:].strip() or not entries:
        raise _invalid("no rule, or text that is not a rule", 0)
    return SigningPolicy(tuple(entries))


def _without_comment(line: str) -> str:
    """The line up to a `#` that no backslash protects."""
    found = re.search(r"(?<!\\)#", line)
    return line[: found.start()] if found is not None else line
