"""CA namespaces: the Globus EACL `.signing_policy` file, and the simple statements of `.namespaces` (EUGridPMA).

Wildcards as Globus has them since GT 2.4 (oldgaa_regex_matches_string): a pattern matches if it equals the name, or
if the
name begins with the pattern's text before its *last* `*`. Globus ignores what follows the star; here the whole
pattern must
match as well, so this never allows more than Globus. Letter case counts. `?` is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from security.errors import Reason, ValidationError
from security.names import DistinguishedName

MAX_POLICY_BYTES = 64 * 1024
MAX_SUBJECTS = 256
"""Patterns for one authority."""


@dataclass(frozen=True)
class PolicyEntry:
    """What one authority may sign: patterns over one-line names, spelled with `emailAddress` and `UID`."""

    authority: DistinguishedName
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class SigningPolicy:
    """The namespaces of the authorities named in one file."""

    entries: tuple[PolicyEntry, ...]

    def names_authority(self, authority: DistinguishedName) -> bool:
        """True if the file says anything about this authority."""
        return any(entry.authority == authority for entry in self.entries)

    def permits(self, authority: DistinguishedName, subject: DistinguishedName) -> bool:
        """True if this authority may sign this subject."""
        text = str(subject)
        return any(
            matches(pattern, text)
            for entry in self.entries
            if entry.authority == authority
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


_NAMESPACE_RULE = re.compile(
    r'TO\s+Issuer\s+"(?P<issuer>[^"]+)"\s+(?P<verb>PERMIT|DENY)\s+Subject\s+"(?P<subject>[^"]+)"', re.IGNORECASE
)


def parse_namespaces(text: str) -> SigningPolicy:
    """Read the simple form of a `.namespaces` file: `TO Issuer "..." PERMIT Subject "....*"`, one rule per statement.

    Only patterns ending in `.*` or without a wildcard are understood, DENY is not; anything else raises
    ValidationError SIGNING_POLICY_INVALID rather than guess.
    """
    if len(text) > MAX_POLICY_BYTES:
        raise _invalid(f"the file is larger than {MAX_POLICY_BYTES} bytes", 0)
    body = " ".join(line.split("#", 1)[0].rstrip("\\ \t") for line in text.splitlines())
    entries: list[PolicyEntry] = []
    end = 0
    for rule in _NAMESPACE_RULE.finditer(body):
        if body[end : rule.start()].strip():
            raise _invalid(f"text that is not a rule: {body[end : rule.start()].strip()[:60]!r}", 0)
        end = rule.end()
        pattern = rule["subject"]
        plain = pattern[:-2] if pattern.endswith(".*") else pattern
        if rule["verb"].upper() == "DENY" or re.search(r"[*?\[\](){}|^$\\]", plain):
            raise _invalid(f"rule too complicated: {pattern[:60]!r}", 0)
        subject = _normal_pattern(plain + ("*" if plain != pattern else ""))
        entries.append(PolicyEntry(_name(rule["issuer"], 0), (subject,)))
    if body[end:].strip() or not entries:
        raise _invalid("no rule, or text that is not a rule", 0)
    return SigningPolicy(tuple(entries))
