"""What a storage element knows about a file: immutable values, no protobuf and no rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.clock import from_us, utc_text
from fabric.errors import Conflict, DataCorrupted, InvalidRequest

_ADLER32 = re.compile(r"[0-9a-f]{8}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

MAX_PUT_ID_LENGTH = 64
MAX_NAME_HINT_LENGTH = 1024
"""A hint is only shown in listings; longer ones are cut, not refused."""
PIECE_BYTES = 1 << 20
"""Size of one data message of a stream."""
SMALL_BYTES = 1 << 20
"""Files up to this size travel many in one call."""
MAX_TOGETHER = 256
"""Of one such call; fewer where their bytes are more than MAX_TOGETHER_BYTES."""
MAX_TOGETHER_BYTES = 3 << 20
LARGE_BYTES = 16 << 20
"""A file from this size on goes by the HTTPS door, where a byte costs less and a beginning more."""


@dataclass(frozen=True, slots=True)
class Checksums:
    """Both checksums of a whole file, lower-case hexadecimal. The grid's tools know adler32, an attacker forges it;
    sha256 is the one that proves. Of a sender that knows one or none (`curl -T`), the other is empty and not
    compared."""

    adler32: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Announced:
    """What a sender says before the first byte."""

    vo: str
    size_bytes: int
    put_id: str
    owner: str
    name_hint: str = ""
    checksums: Checksums | None = None
    """If the sender knows them already (a repeat, a copy), a wrong file is refused as early as possible."""
    path: tuple[str, ...] = ()
    """The file's name below the directory of its VO; empty for a file that has only its id."""
    replaces: str = ""
    """Id of the file that has this name now and gives it up when the new one is whole."""
    reservation: str = ""
    """The id of the space that it takes (`reservations.py`); empty: of what is free."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there, whole."""

    file_id: str
    vo: str
    size_bytes: int
    checksums: Checksums
    owner: str
    put_id: str
    name_hint: str
    pool: str
    """Empty for a file that has left the disk and is on tape."""
    created_at_us: int
    disk_id: str
    """Names its bytes in the pool: its own id at first, another one after they were moved or repaired; empty with no
    pool."""
    damage: str = ""
    """FILE_DAMAGED or FILE_LOST if the scrubber found it so; such a file is not read."""
    damaged_at_us: int = 0


@dataclass(frozen=True, slots=True)
class Stray:
    """A file that only one of the two has, since it was first seen so."""

    surl: str
    vo: str
    kind: str
    """`dark`: only the element has it; `lost`: only the catalogue lists it."""
    since_us: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The last round of comparing element and catalogue that ended; times 0 where there was none. `examples` are the
    first strays; `obstacle` why a round did not end, or why dark files are not removed."""

    began_at_us: int
    ended_at_us: int
    dark: int
    lost: int
    removed: int
    obstacle: str
    examples: tuple[Stray, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory: a file, or a directory if there is none."""

    name: str
    created_at_us: int
    file: StoredFile | None


def parse_checksums(adler32: str, sha256: str) -> Checksums:
    """Both are needed. Raises InvalidRequest(CHECKSUM_INVALID)."""
    sums = Checksums(adler32.lower(), sha256.lower())
    if not _ADLER32.match(sums.adler32) or not _SHA256.match(sums.sha256):
        raise InvalidRequest(
            "CHECKSUM_INVALID",
            f"adler32 {adler32[:80]!r} and sha256 {sha256[:80]!r} must be 8 and 64 hexadecimal digits; send both",
        )
    return sums


def require_equal(what: str, size_bytes: int, found: Checksums, expected: Checksums) -> None:
    """Raises DataCorrupted(CHECKSUM_MISMATCH) with both values."""
    wrong = [kind for kind in ("adler32", "sha256") if getattr(expected, kind) not in ("", getattr(found, kind))]
    if not wrong:
        return
    kind = wrong[0]
    raise DataCorrupted(
        "CHECKSUM_MISMATCH",
        f"{what} ({size_bytes} bytes) arrived with {kind} {getattr(found, kind)} where {getattr(expected, kind)} was "
        "expected; nothing was kept, send it again from an intact copy",
        found_adler32=found.adler32,
        expected_adler32=expected.adler32,
        found_sha256=found.sha256,
        expected_sha256=expected.sha256,
    )


def require_same(existing: StoredFile, announced: Announced, checksums: Checksums) -> None:
    """Raises Conflict(PUT_ID_REUSED) if this put made another file before."""
    same = (existing.vo, existing.size_bytes, existing.checksums) == (announced.vo, announced.size_bytes, checksums)
    if not same:
        raise Conflict(
            "PUT_ID_REUSED",
            f"put {announced.put_id!r} already made another file here ({existing.size_bytes} bytes, sha256 "
            f"{existing.checksums.sha256}); use a new id for a new file",
        )


def require_intact(file: StoredFile) -> None:
    """Raises DataCorrupted(FILE_DAMAGED | FILE_LOST) for a file that is known not to be what was put."""
    if not file.damage:
        return
    what = "is gone from its disk" if file.damage == "FILE_LOST" else "is damaged on its disk"
    raise DataCorrupted(
        file.damage,
        f"file {file.file_id} of VO {file.vo} {what} (found {utc_text(from_us(file.damaged_at_us))}); read another "
        "replica, and repair this one from it with: grid data repair",
    )


def require_small(file: StoredFile) -> StoredFile:
    """A file that may travel with others. Raises InvalidRequest(FILE_LARGE)."""
    if file.size_bytes > SMALL_BYTES:
        raise InvalidRequest(
            "FILE_LARGE", f"file {file.file_id} has {file.size_bytes} bytes; one of more than {SMALL_BYTES} goes alone"
        )
    return file


def byte_range(size_bytes: int, offset: int, length: int) -> tuple[int, int]:
    """(offset, bytes to send) of a read of a file of `size_bytes`; length 0 means to the end; a range that passes the
    end is cut there, as HTTP does. Raises InvalidRequest(RANGE_INVALID) for a negative number or a start behind the
    end."""
    if offset < 0 or length < 0 or offset > size_bytes:
        raise InvalidRequest(
            "RANGE_INVALID", f"offset {offset} and length {length} do not lie in a file of {size_bytes} bytes"
        )
    rest = size_bytes - offset
    return offset, min(length, rest) if length else rest


def require_checksums(announced: Announced) -> Checksums:
    """Those that a sender announced. Raises InvalidRequest(CHECKSUM_MISSING)."""
    if announced.checksums is None:
        raise checksums_missing()
    return announced.checksums


def checksums_missing() -> InvalidRequest:
    """A file came without them."""
    return InvalidRequest(
        "CHECKSUM_MISSING", "the upload ended without checksums, so nobody can say that it is whole; send both"
    )


def check_announcement(announced: Announced) -> None:
    """Raises InvalidRequest for a header that cannot be served."""
    if announced.size_bytes < 0:
        raise InvalidRequest("SIZE_INVALID", f"a file cannot have {announced.size_bytes} bytes; announce its size")
    if not announced.put_id or len(announced.put_id) > MAX_PUT_ID_LENGTH or not announced.put_id.isprintable():
        raise InvalidRequest(
            "PUT_ID_INVALID",
            f"a put needs an id of 1 to {MAX_PUT_ID_LENGTH} printable characters, chosen by the sender",
        )
