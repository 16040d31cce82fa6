"""Logical file names: `/grid/<vo>/<directories>/<name>`, also written `lfn:/grid/...`.

One file has one spelling: Unicode is brought to composed form (NFC), empty, `.` and `..` components and every invisible
character are refused, so two names that look alike on a screen are alike. No physical path is ever made from a name.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from dataclasses import dataclass
from enum import Enum

from fabric.errors import InvalidRequest

ROOT = "/grid"
MAX_COMPONENT_LENGTH = 255
"""Characters between two slashes."""
MAX_PATH_LENGTH = 4096
"""Characters of the whole name."""

_SURL = re.compile(r"(?!lfn:)[A-Za-z][A-Za-z0-9+.-]{0,31}://")
_VO = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Lfn:
    """A checked name. `path` is its one spelling."""

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def vo(self) -> str:
        """The VO that the name belongs to; empty for /grid itself."""
        parts = self.path.split("/", 3)
        return parts[2] if len(parts) > 2 else ""

    @property
    def parent(self) -> str:
        """Path of its directory. Of /grid: empty."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.rpartition("/")[2]

    @property
    def is_vo_root(self) -> bool:
        """True for /grid and /grid/<vo>, which exist without being made and cannot be removed."""
        return self.path.count("/") <= 2


class NameKind(Enum):
    """What a file of the catalogue may be called by."""

    LFN = "lfn"
    """`lfn:/grid/...` or `/grid/...`; also whatever is none of the others, for `parse_lfn` to refuse."""
    GUID = "guid"
    """`guid:...`"""
    SURL = "surl"
    """A replica of it, by URL: `srm://...`, or at a server of others `https://...`, `gsiftp://...`."""


def kind_of(text: str) -> NameKind:
    """Which kind of name this is; whether it is a valid one is not checked."""
    if text[:5].lower() == "guid:":
        return NameKind.GUID
    return NameKind.SURL if _SURL.match(text) else NameKind.LFN


def one_spelling(text: str) -> str:
    """The spelling by which names may be compared: `lfn:/grid/...` composed and without a slash at its end, `guid:...`
    in small letters, a SURL as it is. Raises InvalidRequest(LFN_INVALID | GUID_INVALID)."""
    kind = kind_of(text)
    if kind is NameKind.SURL:
        return text
    return f"guid:{parse_guid(text)}" if kind is NameKind.GUID else f"lfn:{parse_lfn(text)}"


def parse_lfn(text: str) -> Lfn:
    """The name in `text`; one slash at its end is dropped. Raises InvalidRequest(LFN_INVALID) saying what is wrong."""
    path = text.removeprefix("lfn:")
    if len(path) > MAX_PATH_LENGTH:
        raise _invalid(text, f"it has {len(path)} characters and may have {MAX_PATH_LENGTH}")
    path = path if path.isascii() else unicodedata.normalize("NFC", path)
    if len(path) > MAX_PATH_LENGTH:
        raise _invalid(text, f"it has {len(path)} characters in composed form and may have {MAX_PATH_LENGTH}")
    if path != ROOT and not path.startswith(ROOT + "/"):
        raise _invalid(text, "it does not begin with /grid/<vo>/")
    if path.endswith("/"):
        path = path[:-1]
    for component in path.split("/")[1:]:
        if component in ("", ".", ".."):
            raise _invalid(text, f"component {component!r} is not allowed")
        if len(component) > MAX_COMPONENT_LENGTH:
            raise _invalid(text, f"a component has {len(component)} characters and may have {MAX_COMPONENT_LENGTH}")
    if not (path.isascii() and path.isprintable()):
        for character in path:
            if unicodedata.category(character) in _INVISIBLE:
                raise _invalid(text, f"character U+{ord(character):04X} is invisible")
    lfn = Lfn(path)
    if path != ROOT and not _VO.match(lfn.vo):
        raise _invalid(text, f"{lfn.vo[:64]!r} cannot be the name of a VO")
    return lfn


def parse_file_lfn(text: str) -> Lfn:
    """As `parse_lfn`, and it can name a file: below a VO's directory, no slash at its end."""
    lfn = parse_lfn(text)
    if lfn.is_vo_root:
        raise _invalid(text, "it names the directory of a VO, not a file")
    if text.endswith("/"):
        raise _invalid(text, "it ends with a slash, as only directories do")
    return lfn


def parse_guid(text: str) -> str:
    """The canonical form of a GUID, `guid:` before it allowed. Raises InvalidRequest(GUID_INVALID)."""
    guid = text[5:].lower() if text[:5].lower() == "guid:" else text.lower()
    if not _GUID.match(guid):
        raise InvalidRequest(
            "GUID_INVALID", f"{text[:100]!r} is not a GUID; it has 8-4-4-4-12 hexadecimal digits, as uuidgen makes them"
        )
    return guid


def new_guid() -> str:
    """A random GUID."""
    return str(uuid.uuid4())


def _invalid(text: str, why: str) -> InvalidRequest:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return InvalidRequest("LFN_INVALID", f"{shown!r} is not a logical file name: {why}; write /grid/<vo>/<path>")
