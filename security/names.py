"""Distinguished names in the two spellings of the grid: Globus/OpenSSL one-line (`/C=XX/O=Grid/CN=Jane`) and RFC 4514.

The one-line form is ambiguous in OpenSSL: a common name holding `/CN=x` prints like two names. Here a slash that
would be
read as a separator is written `\\x2f`, so a printed name parses back to the same name and no name can imitate another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography import x509

from security.errors import CredentialError, Reason

MAX_NAME_LENGTH = 4096
"""Characters of a printed name. RFC 5280 upper bounds would give far less; real grid names stay below 300."""
MAX_RDNS = 64
"""Relative names in one name; a proxy chain adds one for each level."""
MAX_VALUE_LENGTH = 1024
"""Characters of one attribute value (RFC 5280 ub-common-name is 64, ub-name 32768)."""

Attribute = tuple[str, str]
Rdn = tuple[Attribute, ...]
CanonicalName = tuple[frozenset[Attribute], ...]

_TYPE_OF_OID = {
    "2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
    "2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
    "2.5.4.17": "postalCode", "2.5.4.42": "GN", "2.5.4.43": "initials", "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym", "2.5.4.41": "name", "2.5.4.44": "generationQualifier",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress", "1.2.840.113549.1.9.2": "unstructuredName",
}  # fmt: skip
"""Short names as OpenSSL prints them (objects.txt)."""
_OID_OF_TYPE = {name: oid for oid, name in _TYPE_OF_OID.items()}
_CANONICAL_TYPE = {name.lower(): name for name in _OID_OF_TYPE} | {
    # Spellings found in map files: Globus wrote Email, LDAP E, GT2 USERID, Java S and SURNAME.
    "email": "emailAddress", "e": "emailAddress", "userid": "UID", "s": "ST", "surname": "SN", "givenname": "GN",
    "commonname": "CN", "streetaddress": "street", "stateorprovincename": "ST",
}  # fmt: skip
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,15})){1,20}\Z")
_HEX_ESCAPE = re.compile(r"(?:\\x[0-9A-Fa-f]{2})+|\\[/+\\]")
_TYPE_AHEAD = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,40}|[0-2](?:\.[0-9]{1,16}){1,20})=")
_PROTECTED = ("\\/", "\\+", "\\\\")
"""Pairs in which newer OpenSSL protects a character of a value (`CN=host\\/ce.example.org`)."""
_STOP = re.compile(r"\\[/+\\]|(?P<separator>[/+])")
"""Where a value may end, and protected pairs, which are none of that."""
_RFC4514_SPECIAL = frozenset(',+"\\<>;=')


def _malformed(sentence: str, text: str) -> CredentialError:
    return CredentialError(
        Reason.NAME_MALFORMED,
        f"{sentence}: {text[:200]!r}; write it as /C=XX/O=Grid/CN=Jane Doe or as RFC 4514",
        {"check": "distinguished name", "subject": text},
    )


def _canonical_type(name: str) -> str | None:
    known = _CANONICAL_TYPE.get(name.lower())
    if known is not None:
        return known
    if _OID.match(name):
        return _TYPE_OF_OID.get(name, name)
    return None


@dataclass(frozen=True)
class DistinguishedName:
    """An ordered sequence of relative names, most general first. Compared exactly, value by value.

    String encodings (PrintableString, UTF8String) do not matter, letter case does: that is how Globus compares.
    """

    rdns: tuple[Rdn, ...]

    @classmethod
    def from_x509(cls, name: x509.Name) -> DistinguishedName:
        """The name of a certificate. Raises CredentialError NAME_MALFORMED when it exceeds the bounds of this
        module."""
        rdns: list[Rdn] = []
        for rdn in name.rdns:
            attributes: list[Attribute] = []
            for attribute in rdn:
                oid = attribute.oid.dotted_string
                value = attribute.value
                text = value if isinstance(value, str) else value.decode("latin-1")
                attributes.append((_TYPE_OF_OID.get(oid, oid), text))
            rdns.append(tuple(attributes))
        return cls(_bounded(tuple(rdns), "certificate"))

    @classmethod
    def parse(cls, text: str) -> DistinguishedName:
        """Read either spelling; a leading slash decides. Raises CredentialError NAME_MALFORMED.

        One-line form: `\\xHH` escapes are UTF-8 bytes; a slash not followed by a known attribute type and `=` belongs
        to the value (`/CN=host/ce.example.org`). Email, E, USERID and letter case of types are normalised.
        """
        if len(text) > MAX_NAME_LENGTH:
            raise _malformed(f"the name is longer than {MAX_NAME_LENGTH} characters", text)
        if text.startswith("/"):
            return cls(_bounded(_parse_oneline(text), text))
        return cls(_bounded(_parse_rfc4514(text), text))

    def __str__(self) -> str:
        return self._oneline

    @cached_property
    def _oneline(self) -> str:
        out: list[str] = []
        for rdn in self.rdns:
            out.append("/" + "+".join(f"{kind}={_escape_oneline(value)}" for kind, value in rdn))
        return "".join(out)

    def openssl_oneline(self) -> str:
        """What X509_NAME_oneline prints: for giving to other tools, never for decisions.

        As OpenSSL 3.0.17 does; 3.0.19 writes a slash inside a value as `\\/`, which `parse` reads as well.
        """
        return "".join(f"/{kind}={_printable_bytes(value)}" for rdn in self.rdns for kind, value in rdn)

    def rfc4514(self) -> str:
        """The RFC 4514 string: most special first, comma separated."""
        return ",".join(
            "+".join(f"{kind}={_escape_rfc4514(value)}" for kind, value in rdn) for rdn in reversed(self.rdns)
        )

    def startswith(self, prefix: DistinguishedName) -> bool:
        """True if this name lies in the tree below `prefix`, or is `prefix`."""
        return self.rdns[: len(prefix.rdns)] == prefix.rdns

    @property
    def common_name(self) -> str:
        """The last common name, or an empty string."""
        for rdn in reversed(self.rdns):
            for kind, value in rdn:
                if kind == "CN":
                    return value
        return ""

    @property
    def parent(self) -> DistinguishedName:
        """The name without its last relative name."""
        return DistinguishedName(self.rdns[:-1])

    def child(self, kind: str, value: str) -> DistinguishedName:
        """This name with one more relative name."""
        canonical = _canonical_type(kind)
        if canonical is None:
            raise _malformed("unknown attribute type", f"{kind}={value}")
        return DistinguishedName(_bounded((*self.rdns, ((canonical, value),)), f"{self}/{kind}={value}"))

    def to_x509(self) -> x509.Name:
        """The name for a certificate: UTF8String, but PrintableString for a country and IA5String for DC and mail.

        Raises CredentialError NAME_MALFORMED for a value that X.509 cannot hold, such as a country of three letters.
        """
        try:
            return x509.Name(
                [
                    x509.RelativeDistinguishedName([_name_attribute(kind, value) for kind, value in rdn])
                    for rdn in self.rdns
                ]
            )
        except ValueError as error:
            raise _malformed(f"the name cannot be put into a certificate ({error})", str(self)) from error


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """True if two certificates mean the same name: letter case of ASCII, white space and string types do not count.

    RFC 5280 section 7.1 as OpenSSL does it. For chaining only: who somebody is, is compared exactly.
    """
    return one == other or canonical_name(one) == canonical_name(other)


def canonical_name(name: x509.Name) -> CanonicalName:
    """The name in the form that `same_name` compares."""
    return tuple(
        frozenset((attribute.oid.dotted_string, _canonical_value(attribute.value)) for attribute in rdn)
        for rdn in name.rdns
    )


_UPPER_CASE = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _canonical_value(value: str | bytes) -> str:
    text = value if isinstance(value, str) else "#" + value.hex()
    return " ".join(part for part in re.split(r"[ \t\n\v\f\r]+", text) if part).translate(_UPPER_CASE)


def _name_attribute(kind: str, value: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(x509.ObjectIdentifier(_OID_OF_TYPE.get(kind, kind)), value)


def _bounded(rdns: tuple[Rdn, ...], text: str) -> tuple[Rdn, ...]:
    if len(rdns) > MAX_RDNS:
        raise _malformed(f"the name has more than {MAX_RDNS} parts", text)
    total = 0
    for rdn in rdns:
        if not rdn:
            raise _malformed("the name has an empty part", text)
        for kind, value in rdn:
            if len(value) > MAX_VALUE_LENGTH:
                raise _malformed(f"a value of the name is longer than {MAX_VALUE_LENGTH} characters", text)
            if "\0" in value:
                raise _malformed("a value of the name holds a NUL character", text)
            if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                raise _malformed("a value of the name is not Unicode text", text)
            total += len(kind) + len(_escape_oneline(value)) + 2  # what is read can be printed and read again
    if total > MAX_NAME_LENGTH:
        raise _malformed(f"the name is longer than {MAX_NAME_LENGTH} characters", text)
    return rdns


def _printable_bytes(value: str) -> str:
    return "".join(chr(b) if 0x20 <= b <= 0x7E else f"\\x{b:02X}" for b in value.encode("utf-8", "surrogatepass"))


def _escape_oneline(value: str) -> str:
    if value.isascii() and value.isprintable() and "/" not in value and "+" not in value and "\\" not in value:
        return value
    out: list[str] = []
    for index, char in enumerate(value):
        if char == "\\":
            out.append("\\x5C")
        elif char in "/+" and _separates(value, index + 1):
            out.append(f"\\x{ord(char):02X}")
        else:
            out.append(_printable_bytes(char))
    return "".join(out)


def _separates(text: str, position: int) -> bool:
    """True if an attribute type known to us and `=` stand at `position`."""
    ahead = _TYPE_AHEAD.match(text, position)
    return ahead is not None and _canonical_type(ahead.group(1)) is not None


def _unescape_hex(text: str) -> str:
    if "\\" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        if match.group() in _PROTECTED:
            return match.group()[1]
        raw = bytes.fromhex(match.group().replace("\\x", ""))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    return _HEX_ESCAPE.sub(replace, text)


@lru_cache(maxsize=4096)
def _plain_part(text: str) -> Rdn | None:
    """What stands between two slashes, if it is a part by itself. Remembered: the names of a grid begin alike."""
    ahead = _TYPE_AHEAD.match(text)
    kind = _canonical_type(ahead.group(1)) if ahead is not None else None
    return None if ahead is None or kind is None else ((kind, text[ahead.end() :]),)


def _parse_oneline(text: str) -> tuple[Rdn, ...]:
    if "\\" not in text and "+" not in text:
        plain = [_plain_part(part) for part in text[1:].split("/")]
        whole = tuple(part for part in plain if part is not None)
        if len(whole) == len(plain):
            return whole
    rdns: list[list[Attribute]] = []
    position = 0
    while position < len(text):
        separator = text[position]
        ahead = _TYPE_AHEAD.match(text, position + 1)
        kind = _canonical_type(ahead.group(1)) if ahead is not None else None
        if ahead is None or kind is None:
            raise _malformed("a part of the name has no known attribute type", text[position:])
        stops = (stop for stop in _STOP.finditer(text, ahead.end()) if stop["separator"])
        end = next((stop.start() for stop in stops if _separates(text, stop.end())), len(text))
        attribute = (kind, _unescape_hex(text[ahead.end() : end]))
        if separator == "+" and rdns:
            rdns[-1].append(attribute)
        else:
            rdns.append([attribute])
        position = end
    return tuple(tuple(rdn) for rdn in rdns)


def _parse_rfc4514(text: str) -> tuple[Rdn, ...]:
    rdns: list[list[Attribute]] = []
    joined = False
    position = 0
    while position < len(text):
        while position < len(text) and text[position] == " ":
            position += 1
        ahead = _TYPE_AHEAD.match(text, position)
        kind = _canonical_type(ahead.group(1)) if ahead is not None else None
        if ahead is None or kind is None:
            raise _malformed("a part of the name has no known attribute type", text[position:])
        value, position = _rfc4514_value(text, ahead.end())
        if joined:
            rdns[-1].append((kind, value))
        else:
            rdns.append([(kind, value)])
        if position < len(text):
            joined = text[position] == "+"
            position += 1
            if position == len(text):
                raise _malformed("the name ends in a separator", text)
    if not rdns:
        raise _malformed("the name is empty", text)
    return tuple(tuple(rdn) for rdn in reversed(rdns))


def _rfc4514_value(text: str, position: int) -> tuple[str, int]:
    """The value at `position` and the position of the separator after it (RFC 4514 section 3; RFC 2253 quotes too)."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position < len(text) and text[position] == "#":
        raise _malformed("values in #hex form are not accepted", text)
    raw = bytearray()
    quoted = position < len(text) and text[position] == '"'
    closed = False
    keep = 0  # length up to the last character that is not trailing white space
    if quoted:
        position += 1
    while position < len(text):
        char = text[position]
        if closed:
            if char in ",;+":
                break
            if char != " ":
                raise _malformed("text after a quoted value", text)
        elif char == "\\":
            pair = text[position + 1 : position + 3]
            if len(pair) == 2 and re.fullmatch("[0-9A-Fa-f]{2}", pair):
                raw.append(int(pair, 16))
                position += 2
            elif pair:
                raw += pair[0].encode("utf-8", "surrogatepass")
                position += 1
            else:
                raise _malformed("the name ends in a backslash", text)
            keep = len(raw)
        elif quoted and char == '"':
            closed = True
            keep = len(raw)
        elif not quoted and char in ",;+":
            break
        elif not quoted and char in '"<>':
            raise _malformed(f"{char!r} must be escaped", text)
        else:
            raw += char.encode("utf-8", "surrogatepass")
            keep = len(raw) if quoted or char != " " else keep
        position += 1
    if quoted and not closed:
        raise _malformed("a quotation is not closed", text)
    value = bytes(raw[:keep])
    try:
        return value.decode("utf-8"), position
    except UnicodeDecodeError:
        return value.decode("latin-1"), position


def _escape_rfc4514(value: str) -> str:
    out: list[str] = []
    for index, char in enumerate(value):
        at_edge = index == 0 or index == len(value) - 1
        if char in _RFC4514_SPECIAL or (char == " " and at_edge) or (char == "#" and index == 0):
            out.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\{ord(char):02X}")
        else:
            out.append(char)
    return "".join(out)
