"""What the catalogue knows: immutable values, no protobuf and no rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agents.catalog.access import Caller
from agents.catalog.names import Lfn
from fabric.errors import InvalidRequest

MAX_SURL_LENGTH = 1024
MAX_REPLICAS = 1000
"""Of one file: more sites than any grid had; a loop that adds replicas stops here."""
MAX_ALIASES = 100
"""Of one file, beside its own name."""
MAX_LOOKUP = 1000
"""Names in one Lookup."""
DEFAULT_PAGE = 1000
MAX_PAGE = 2000
"""Entries of one page, if MAX_ANSWER_BYTES holds them."""
MAX_ANSWER_BYTES = 2 << 20
"""Of one answer: half of what one message may be. Names may have 4096 characters and files 1000 replicas."""

_ADLER32 = re.compile(r"[0-9a-f]{8}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SURL = re.compile(r"[a-z][a-z0-9+.-]{0,15}://[\x21-\x7e]+\Z")


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a file."""

    surl: str
    storage_element: str
    created_at_us: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What every replica of a file must be. Empty text: not known."""

    size_bytes: int
    adler32: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class NewFile:
    """A checked registration."""

    lfn: Lfn
    guid: str
    content: Content
    replica: Replica | None
    caller: Caller
    """Who becomes its owner."""
    make_parents: bool
    now_us: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the catalogue: a directory or a file with what is known of it."""

    lfn: str
    owner: str
    created_at_us: int
    guid: str = ""
    content: Content | None = None
    replicas: tuple[Replica, ...] = ()
    alias_of: str = ""
    """If `lfn` is an alias: the file's own name."""

    @property
    def is_directory(self) -> bool:
        """True if it holds names and no data."""
        return self.content is None


def check_content(size_bytes: int, adler32: str, sha256: str) -> Content:
    """Raises InvalidRequest(SIZE_INVALID | CHECKSUM_INVALID)."""
    if size_bytes < 0:
        raise InvalidRequest("SIZE_INVALID", f"a file cannot have {size_bytes} bytes; give its size")
    content = Content(size_bytes, adler32.lower(), sha256.lower())
    if not _ADLER32.match(content.adler32) or not _SHA256.match(content.sha256):
        raise InvalidRequest(
            "CHECKSUM_INVALID",
            f"adler32 {adler32[:80]!r} and sha256 {sha256[:80]!r} must be 8 and 64 hexadecimal digits; the "
            "storage element "
            "answers both",
        )
    return content


def check_replica(surl: str, storage_element: str, now_us: int) -> Replica:
    """Raises InvalidRequest(SURL_INVALID)."""
    if len(surl) > MAX_SURL_LENGTH or not _SURL.match(surl):
        raise InvalidRequest("SURL_INVALID", f"{surl[:200]!r} is not a SURL; write srm://<host>:<port>/<vo>/<id>")
    if len(storage_element) > 255 or not storage_element.isprintable():
        raise InvalidRequest("SURL_INVALID", "the storage element of a replica is a name of at most 255 characters")
    return Replica(surl, storage_element or surl.split("/")[2], now_us)
