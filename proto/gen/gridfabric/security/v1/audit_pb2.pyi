from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SearchAuditRequest(_message.Message):
    __slots__ = ("about", "since_us", "until_us", "limit")
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    about: _containers.RepeatedScalarFieldContainer[str]
    since_us: int
    until_us: int
    limit: int
    def __init__(self, about: _Optional[_Iterable[str]] = ..., since_us: _Optional[int] = ..., until_us: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class VerifyAuditRequest(_message.Message):
    __slots__ = ("witnessed", "witnessed_hash")
    WITNESSED_FIELD_NUMBER: _ClassVar[int]
    WITNESSED_HASH_FIELD_NUMBER: _ClassVar[int]
    witnessed: int
    witnessed_hash: str
    def __init__(self, witnessed: _Optional[int] = ..., witnessed_hash: _Optional[str] = ...) -> None: ...

class VerifyAuditResponse(_message.Message):
    __slots__ = ("first", "last", "entries", "problems", "oldest_at", "read_bytes", "total_bytes", "is_verdict", "last_hash")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AT_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_VERDICT_FIELD_NUMBER: _ClassVar[int]
    LAST_HASH_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    entries: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    oldest_at: str
    read_bytes: int
    total_bytes: int
    is_verdict: bool
    last_hash: str
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., entries: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., oldest_at: _Optional[str] = ..., read_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., is_verdict: _Optional[bool] = ..., last_hash: _Optional[str] = ...) -> None: ...
