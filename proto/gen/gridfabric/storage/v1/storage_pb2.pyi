from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Checksums(_message.Message):
    __slots__ = ("adler32", "sha256")
    ADLER32_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    adler32: str
    sha256: str
    def __init__(self, adler32: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class PutHeader(_message.Message):
    __slots__ = ("vo", "size_bytes", "name_hint", "put_id", "checksums", "reservation")
    VO_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_HINT_FIELD_NUMBER: _ClassVar[int]
    PUT_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    vo: str
    size_bytes: int
    name_hint: str
    put_id: str
    checksums: Checksums
    reservation: str
    def __init__(self, vo: _Optional[str] = ..., size_bytes: _Optional[int] = ..., name_hint: _Optional[str] = ..., put_id: _Optional[str] = ..., checksums: _Optional[_Union[Checksums, _Mapping]] = ..., reservation: _Optional[str] = ...) -> None: ...

class PutTrailer(_message.Message):
    __slots__ = ("checksums",)
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    checksums: Checksums
    def __init__(self, checksums: _Optional[_Union[Checksums, _Mapping]] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("header", "data", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: PutHeader
    data: bytes
    trailer: PutTrailer
    def __init__(self, header: _Optional[_Union[PutHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., trailer: _Optional[_Union[PutTrailer, _Mapping]] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("surl", "size_bytes", "checksums")
    SURL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    surl: str
    size_bytes: int
    checksums: Checksums
    def __init__(self, surl: _Optional[str] = ..., size_bytes: _Optional[int] = ..., checksums: _Optional[_Union[Checksums, _Mapping]] = ...) -> None: ...

class PrepareToPutResponse(_message.Message):
    __slots__ = ("turl",)
    TURL_FIELD_NUMBER: _ClassVar[int]
    turl: str
    def __init__(self, turl: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("surl", "offset", "length", "accept_turl", "repairs", "expected")
    SURL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TURL_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    surl: str
    offset: int
    length: int
    accept_turl: bool
    repairs: str
    expected: Checksums
    def __init__(self, surl: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., accept_turl: _Optional[bool] = ..., repairs: _Optional[str] = ..., expected: _Optional[_Union[Checksums, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("size_bytes", "checksums", "data", "turl")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TURL_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    checksums: Checksums
    data: bytes
    turl: str
    def __init__(self, size_bytes: _Optional[int] = ..., checksums: _Optional[_Union[Checksums, _Mapping]] = ..., data: _Optional[bytes] = ..., turl: _Optional[str] = ...) -> None: ...

class SmallFile(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PutHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PutHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutManyRequest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[SmallFile]
    def __init__(self, files: _Optional[_Iterable[_Union[SmallFile, _Mapping]]] = ...) -> None: ...

class PutVerdict(_message.Message):
    __slots__ = ("surl", "error")
    SURL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    surl: str
    error: bytes
    def __init__(self, surl: _Optional[str] = ..., error: _Optional[bytes] = ...) -> None: ...

class PutManyResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[PutVerdict]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[PutVerdict, _Mapping]]] = ...) -> None: ...

class GetManyRequest(_message.Message):
    __slots__ = ("surls",)
    SURLS_FIELD_NUMBER: _ClassVar[int]
    surls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, surls: _Optional[_Iterable[str]] = ...) -> None: ...

class GotFile(_message.Message):
    __slots__ = ("checksums", "data", "error")
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    checksums: Checksums
    data: bytes
    error: bytes
    def __init__(self, checksums: _Optional[_Union[Checksums, _Mapping]] = ..., data: _Optional[bytes] = ..., error: _Optional[bytes] = ...) -> None: ...

class GetManyResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[GotFile]
    def __init__(self, files: _Optional[_Iterable[_Union[GotFile, _Mapping]]] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("surl", "path")
    SURL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    surl: str
    path: str
    def __init__(self, surl: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("surl", "vo", "size_bytes", "checksums", "created_at_us", "owner", "name_hint", "damage", "damaged_at_us", "locality", "named")
    SURL_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NAME_HINT_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_AT_US_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    surl: str
    vo: str
    size_bytes: int
    checksums: Checksums
    created_at_us: int
    owner: str
    name_hint: str
    damage: str
    damaged_at_us: int
    locality: str
    named: bool
    def __init__(self, surl: _Optional[str] = ..., vo: _Optional[str] = ..., size_bytes: _Optional[int] = ..., checksums: _Optional[_Union[Checksums, _Mapping]] = ..., created_at_us: _Optional[int] = ..., owner: _Optional[str] = ..., name_hint: _Optional[str] = ..., damage: _Optional[str] = ..., damaged_at_us: _Optional[int] = ..., locality: _Optional[str] = ..., named: _Optional[bool] = ...) -> None: ...

class StatResponse(_message.Message):
    __slots__ = ("file", "pinned_until_us")
    FILE_FIELD_NUMBER: _ClassVar[int]
    PINNED_UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    file: FileInfo
    pinned_until_us: int
    def __init__(self, file: _Optional[_Union[FileInfo, _Mapping]] = ..., pinned_until_us: _Optional[int] = ...) -> None: ...

class BringOnlineRequest(_message.Message):
    __slots__ = ("surls", "pin_s", "holder")
    SURLS_FIELD_NUMBER: _ClassVar[int]
    PIN_S_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    surls: _containers.RepeatedScalarFieldContainer[str]
    pin_s: float
    holder: str
    def __init__(self, surls: _Optional[_Iterable[str]] = ..., pin_s: _Optional[float] = ..., holder: _Optional[str] = ...) -> None: ...

class Staging(_message.Message):
    __slots__ = ("surl", "locality", "retry_after_s", "ahead", "sentence")
    SURL_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    surl: str
    locality: str
    retry_after_s: int
    ahead: int
    sentence: str
    def __init__(self, surl: _Optional[str] = ..., locality: _Optional[str] = ..., retry_after_s: _Optional[int] = ..., ahead: _Optional[int] = ..., sentence: _Optional[str] = ...) -> None: ...

class BringOnlineResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[Staging]
    def __init__(self, files: _Optional[_Iterable[_Union[Staging, _Mapping]]] = ...) -> None: ...

class ReleaseFilesRequest(_message.Message):
    __slots__ = ("surls", "holder")
    SURLS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    surls: _containers.RepeatedScalarFieldContainer[str]
    holder: str
    def __init__(self, surls: _Optional[_Iterable[str]] = ..., holder: _Optional[str] = ...) -> None: ...

class ReleaseFilesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PathRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class PathResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDirectoryRequest(_message.Message):
    __slots__ = ("path", "after", "page_size")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    path: str
    after: str
    page_size: int
    def __init__(self, path: _Optional[str] = ..., after: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class NameEntry(_message.Message):
    __slots__ = ("name", "created_at_us", "file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    created_at_us: int
    file: FileInfo
    def __init__(self, name: _Optional[str] = ..., created_at_us: _Optional[int] = ..., file: _Optional[_Union[FileInfo, _Mapping]] = ...) -> None: ...

class ListDirectoryResponse(_message.Message):
    __slots__ = ("entries", "next")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[NameEntry]
    next: str
    def __init__(self, entries: _Optional[_Iterable[_Union[NameEntry, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("source", "target", "overwrite")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    overwrite: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., overwrite: _Optional[bool] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("surl", "put_id", "vo")
    SURL_FIELD_NUMBER: _ClassVar[int]
    PUT_ID_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    surl: str
    put_id: str
    vo: str
    def __init__(self, surl: _Optional[str] = ..., put_id: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("vo", "page_size", "page_token", "damaged")
    VO_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    vo: str
    page_size: int
    page_token: str
    damaged: bool
    def __init__(self, vo: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., damaged: _Optional[bool] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("files", "next_page_token")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    next_page_token: str
    def __init__(self, files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CopyFromRequest(_message.Message):
    __slots__ = ("source_surl", "expected", "put_id", "vo", "max_bytes_per_s", "name_hint", "size_bytes")
    SOURCE_SURL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    PUT_ID_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    NAME_HINT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    source_surl: str
    expected: Checksums
    put_id: str
    vo: str
    max_bytes_per_s: int
    name_hint: str
    size_bytes: int
    def __init__(self, source_surl: _Optional[str] = ..., expected: _Optional[_Union[Checksums, _Mapping]] = ..., put_id: _Optional[str] = ..., vo: _Optional[str] = ..., max_bytes_per_s: _Optional[int] = ..., name_hint: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CopyToRequest(_message.Message):
    __slots__ = ("surl", "url", "max_bytes_per_s")
    SURL_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    surl: str
    url: str
    max_bytes_per_s: int
    def __init__(self, surl: _Optional[str] = ..., url: _Optional[str] = ..., max_bytes_per_s: _Optional[int] = ...) -> None: ...

class CopyFromResponse(_message.Message):
    __slots__ = ("surl", "size_bytes", "checksums", "moved_bytes")
    SURL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    surl: str
    size_bytes: int
    checksums: Checksums
    moved_bytes: int
    def __init__(self, surl: _Optional[str] = ..., size_bytes: _Optional[int] = ..., checksums: _Optional[_Union[Checksums, _Mapping]] = ..., moved_bytes: _Optional[int] = ...) -> None: ...

class SmallCopy(_message.Message):
    __slots__ = ("source_surl", "expected", "put_id", "name_hint")
    SOURCE_SURL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    PUT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_HINT_FIELD_NUMBER: _ClassVar[int]
    source_surl: str
    expected: Checksums
    put_id: str
    name_hint: str
    def __init__(self, source_surl: _Optional[str] = ..., expected: _Optional[_Union[Checksums, _Mapping]] = ..., put_id: _Optional[str] = ..., name_hint: _Optional[str] = ...) -> None: ...

class CopyManyRequest(_message.Message):
    __slots__ = ("vo", "files", "max_bytes_per_s")
    VO_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    vo: str
    files: _containers.RepeatedCompositeFieldContainer[SmallCopy]
    max_bytes_per_s: int
    def __init__(self, vo: _Optional[str] = ..., files: _Optional[_Iterable[_Union[SmallCopy, _Mapping]]] = ..., max_bytes_per_s: _Optional[int] = ...) -> None: ...

class CopyManyResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[PutVerdict]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[PutVerdict, _Mapping]]] = ...) -> None: ...

class RepairRequest(_message.Message):
    __slots__ = ("surl", "source_surl")
    SURL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SURL_FIELD_NUMBER: _ClassVar[int]
    surl: str
    source_surl: str
    def __init__(self, surl: _Optional[str] = ..., source_surl: _Optional[str] = ...) -> None: ...

class RepairResponse(_message.Message):
    __slots__ = ("repaired",)
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    repaired: bool
    def __init__(self, repaired: _Optional[bool] = ...) -> None: ...

class ListPoolsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoolsResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolInfo]
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolInfo, _Mapping]]] = ...) -> None: ...

class PoolInfo(_message.Message):
    __slots__ = ("path", "state", "files", "used_bytes", "free_bytes", "total_bytes", "answers", "obstacle")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    path: str
    state: str
    files: int
    used_bytes: int
    free_bytes: int
    total_bytes: int
    answers: bool
    obstacle: str
    def __init__(self, path: _Optional[str] = ..., state: _Optional[str] = ..., files: _Optional[int] = ..., used_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., answers: _Optional[bool] = ..., obstacle: _Optional[str] = ...) -> None: ...

class PoolRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class PoolResponse(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: bool
    def __init__(self, now: _Optional[bool] = ...) -> None: ...

class ScrubResponse(_message.Message):
    __slots__ = ("began_at_us", "ended_at_us", "files", "size_bytes", "damaged", "examples")
    BEGAN_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    began_at_us: int
    ended_at_us: int
    files: int
    size_bytes: int
    damaged: int
    examples: _containers.RepeatedCompositeFieldContainer[FileInfo]
    def __init__(self, began_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., files: _Optional[int] = ..., size_bytes: _Optional[int] = ..., damaged: _Optional[int] = ..., examples: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ...) -> None: ...

class ReconcileRequest(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: bool
    def __init__(self, now: _Optional[bool] = ...) -> None: ...

class ReconcileResponse(_message.Message):
    __slots__ = ("began_at_us", "ended_at_us", "dark", "lost", "removed", "obstacle", "examples")
    BEGAN_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    DARK_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    OBSTACLE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    began_at_us: int
    ended_at_us: int
    dark: int
    lost: int
    removed: int
    obstacle: str
    examples: _containers.RepeatedCompositeFieldContainer[Stray]
    def __init__(self, began_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., dark: _Optional[int] = ..., lost: _Optional[int] = ..., removed: _Optional[int] = ..., obstacle: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[Stray, _Mapping]]] = ...) -> None: ...

class Stray(_message.Message):
    __slots__ = ("surl", "vo", "kind", "since_us")
    SURL_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    surl: str
    vo: str
    kind: str
    since_us: int
    def __init__(self, surl: _Optional[str] = ..., vo: _Optional[str] = ..., kind: _Optional[str] = ..., since_us: _Optional[int] = ...) -> None: ...

class ReserveSpaceRequest(_message.Message):
    __slots__ = ("id", "vo", "size_bytes", "lifetime_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    vo: str
    size_bytes: int
    lifetime_s: float
    def __init__(self, id: _Optional[str] = ..., vo: _Optional[str] = ..., size_bytes: _Optional[int] = ..., lifetime_s: _Optional[float] = ...) -> None: ...

class SpaceReservation(_message.Message):
    __slots__ = ("id", "size_bytes", "until_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    id: str
    size_bytes: int
    until_us: int
    def __init__(self, id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class ReleaseSpaceRequest(_message.Message):
    __slots__ = ("id", "vo")
    ID_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    id: str
    vo: str
    def __init__(self, id: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class ReleaseSpaceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VoSpace(_message.Message):
    __slots__ = ("vo", "quota_bytes", "used_bytes", "reserved_bytes", "files", "available_bytes")
    VO_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    vo: str
    quota_bytes: int
    used_bytes: int
    reserved_bytes: int
    files: int
    available_bytes: int
    def __init__(self, vo: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., files: _Optional[int] = ..., available_bytes: _Optional[int] = ...) -> None: ...

class SpaceResponse(_message.Message):
    __slots__ = ("total_bytes", "free_bytes", "vos")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOS_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    free_bytes: int
    vos: _containers.RepeatedCompositeFieldContainer[VoSpace]
    def __init__(self, total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., vos: _Optional[_Iterable[_Union[VoSpace, _Mapping]]] = ...) -> None: ...
