from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class VoListing(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class CreateVoRequest(_message.Message):
    __slots__ = ("name", "server")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    server: str
    def __init__(self, name: _Optional[str] = ..., server: _Optional[str] = ...) -> None: ...

class SitesOfVoRequest(_message.Message):
    __slots__ = ("name", "sites")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    name: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class DissolveVoRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ServeVoRequest(_message.Message):
    __slots__ = ("name", "http_port")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    http_port: int
    def __init__(self, name: _Optional[str] = ..., http_port: _Optional[int] = ...) -> None: ...

class ListVosRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchVosRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
