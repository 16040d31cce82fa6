from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PutShareRequest(_message.Message):
    __slots__ = ("key_id", "x", "share", "threshold")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    key_id: bytes
    x: int
    share: bytes
    threshold: int
    def __init__(self, key_id: _Optional[bytes] = ..., x: _Optional[int] = ..., share: _Optional[bytes] = ..., threshold: _Optional[int] = ...) -> None: ...

class PutShareResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetShareRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: bytes
    def __init__(self, key_id: _Optional[bytes] = ...) -> None: ...

class GetShareResponse(_message.Message):
    __slots__ = ("x", "share", "threshold")
    X_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    x: int
    share: bytes
    threshold: int
    def __init__(self, x: _Optional[int] = ..., share: _Optional[bytes] = ..., threshold: _Optional[int] = ...) -> None: ...

class SetReadersRequest(_message.Message):
    __slots__ = ("key_id", "grant", "withdraw")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    key_id: bytes
    grant: _containers.RepeatedScalarFieldContainer[str]
    withdraw: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key_id: _Optional[bytes] = ..., grant: _Optional[_Iterable[str]] = ..., withdraw: _Optional[_Iterable[str]] = ...) -> None: ...

class SetReadersResponse(_message.Message):
    __slots__ = ("readers", "threshold")
    READERS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    readers: _containers.RepeatedScalarFieldContainer[str]
    threshold: int
    def __init__(self, readers: _Optional[_Iterable[str]] = ..., threshold: _Optional[int] = ...) -> None: ...

class RemoveShareRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: bytes
    def __init__(self, key_id: _Optional[bytes] = ...) -> None: ...

class RemoveShareResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
