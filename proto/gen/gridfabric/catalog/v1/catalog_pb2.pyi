from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Grant(_message.Message):
    __slots__ = ("who", "rights")
    WHO_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_FIELD_NUMBER: _ClassVar[int]
    who: str
    rights: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, who: _Optional[str] = ..., rights: _Optional[_Iterable[str]] = ...) -> None: ...

class Access(_message.Message):
    __slots__ = ("lfn", "owner", "carried_by", "grants")
    LFN_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CARRIED_BY_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    owner: str
    carried_by: str
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    def __init__(self, lfn: _Optional[str] = ..., owner: _Optional[str] = ..., carried_by: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ...) -> None: ...

class GetAccessRequest(_message.Message):
    __slots__ = ("lfn",)
    LFN_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    def __init__(self, lfn: _Optional[str] = ...) -> None: ...

class SetAccessRequest(_message.Message):
    __slots__ = ("lfn", "grants")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    def __init__(self, lfn: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("lfn", "guid", "size_bytes", "adler32", "sha256", "owner", "created_at_us", "replicas", "is_directory", "alias_of")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADLER32_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    IS_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ALIAS_OF_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    size_bytes: int
    adler32: str
    sha256: str
    owner: str
    created_at_us: int
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    is_directory: bool
    alias_of: str
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., adler32: _Optional[str] = ..., sha256: _Optional[str] = ..., owner: _Optional[str] = ..., created_at_us: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., is_directory: _Optional[bool] = ..., alias_of: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("surl", "storage_element", "created_at_us")
    SURL_FIELD_NUMBER: _ClassVar[int]
    STORAGE_ELEMENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    surl: str
    storage_element: str
    created_at_us: int
    def __init__(self, surl: _Optional[str] = ..., storage_element: _Optional[str] = ..., created_at_us: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("lfn", "guid", "size_bytes", "adler32", "sha256", "replica", "make_parents")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADLER32_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MAKE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    size_bytes: int
    adler32: str
    sha256: str
    replica: Replica
    make_parents: bool
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., adler32: _Optional[str] = ..., sha256: _Optional[str] = ..., replica: _Optional[_Union[Replica, _Mapping]] = ..., make_parents: _Optional[bool] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("file",)
    FILE_FIELD_NUMBER: _ClassVar[int]
    file: File
    def __init__(self, file: _Optional[_Union[File, _Mapping]] = ...) -> None: ...

class RegisterManyRequest(_message.Message):
    __slots__ = ("registrations",)
    REGISTRATIONS_FIELD_NUMBER: _ClassVar[int]
    registrations: _containers.RepeatedCompositeFieldContainer[RegisterRequest]
    def __init__(self, registrations: _Optional[_Iterable[_Union[RegisterRequest, _Mapping]]] = ...) -> None: ...

class RegisterManyResponse(_message.Message):
    __slots__ = ("errors",)
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, errors: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AddReplicaRequest(_message.Message):
    __slots__ = ("lfn", "guid", "replica", "size_bytes", "adler32")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADLER32_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    replica: Replica
    size_bytes: int
    adler32: str
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., replica: _Optional[_Union[Replica, _Mapping]] = ..., size_bytes: _Optional[int] = ..., adler32: _Optional[str] = ...) -> None: ...

class AddReplicaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddReplicaManyRequest(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[AddReplicaRequest]
    def __init__(self, replicas: _Optional[_Iterable[_Union[AddReplicaRequest, _Mapping]]] = ...) -> None: ...

class AddReplicaManyResponse(_message.Message):
    __slots__ = ("errors",)
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, errors: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RemoveReplicaRequest(_message.Message):
    __slots__ = ("lfn", "guid", "surl", "dry_run")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    SURL_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    surl: str
    dry_run: bool
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., surl: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class RemoveReplicaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("lfns", "guids", "surls")
    LFNS_FIELD_NUMBER: _ClassVar[int]
    GUIDS_FIELD_NUMBER: _ClassVar[int]
    SURLS_FIELD_NUMBER: _ClassVar[int]
    lfns: _containers.RepeatedScalarFieldContainer[str]
    guids: _containers.RepeatedScalarFieldContainer[str]
    surls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lfns: _Optional[_Iterable[str]] = ..., guids: _Optional[_Iterable[str]] = ..., surls: _Optional[_Iterable[str]] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("files", "unknown")
    FILES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[File]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class ListReplicasRequest(_message.Message):
    __slots__ = ("storage_element", "vo", "after", "page_size")
    STORAGE_ELEMENT_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    storage_element: str
    vo: str
    after: str
    page_size: int
    def __init__(self, storage_element: _Optional[str] = ..., vo: _Optional[str] = ..., after: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListReplicasResponse(_message.Message):
    __slots__ = ("surls", "more")
    SURLS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    surls: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    def __init__(self, surls: _Optional[_Iterable[str]] = ..., more: _Optional[bool] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("directory", "page_size", "page_token")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    directory: str
    page_size: int
    page_token: str
    def __init__(self, directory: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("files", "next_page_token")
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[File]
    next_page_token: str
    def __init__(self, files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("guids", "missed")
    GUIDS_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    guids: _containers.RepeatedScalarFieldContainer[str]
    missed: bool
    def __init__(self, guids: _Optional[_Iterable[str]] = ..., missed: _Optional[bool] = ...) -> None: ...

class MakeDirectoryRequest(_message.Message):
    __slots__ = ("directory", "make_parents")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    MAKE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    directory: str
    make_parents: bool
    def __init__(self, directory: _Optional[str] = ..., make_parents: _Optional[bool] = ...) -> None: ...

class MakeDirectoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddAliasRequest(_message.Message):
    __slots__ = ("lfn", "guid", "alias", "make_parents")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    MAKE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    alias: str
    make_parents: bool
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., alias: _Optional[str] = ..., make_parents: _Optional[bool] = ...) -> None: ...

class AddAliasResponse(_message.Message):
    __slots__ = ("guid",)
    GUID_FIELD_NUMBER: _ClassVar[int]
    guid: str
    def __init__(self, guid: _Optional[str] = ...) -> None: ...

class ListNamesRequest(_message.Message):
    __slots__ = ("lfn", "guid")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ...) -> None: ...

class ListNamesResponse(_message.Message):
    __slots__ = ("lfns",)
    LFNS_FIELD_NUMBER: _ClassVar[int]
    lfns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lfns: _Optional[_Iterable[str]] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "text", "int", "real", "time_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INT_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    int: int
    real: float
    time_us: int
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., int: _Optional[int] = ..., real: _Optional[float] = ..., time_us: _Optional[int] = ...) -> None: ...

class Attributes(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    def __init__(self, attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ...) -> None: ...

class SetAttributesRequest(_message.Message):
    __slots__ = ("lfn", "guid", "attributes", "unset")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    unset: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., unset: _Optional[_Iterable[str]] = ...) -> None: ...

class GetAttributesRequest(_message.Message):
    __slots__ = ("lfn", "guid")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("attribute", "comparison")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    attribute: Attribute
    comparison: str
    def __init__(self, attribute: _Optional[_Union[Attribute, _Mapping]] = ..., comparison: _Optional[str] = ...) -> None: ...

class FindByAttributesRequest(_message.Message):
    __slots__ = ("directory", "conditions", "page_size", "page_token")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    directory: str
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    page_size: int
    page_token: str
    def __init__(self, directory: _Optional[str] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class FindByAttributesResponse(_message.Message):
    __slots__ = ("lfns", "next_page_token")
    LFNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    lfns: _containers.RepeatedScalarFieldContainer[str]
    next_page_token: str
    def __init__(self, lfns: _Optional[_Iterable[str]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("lfn", "force")
    LFN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    force: bool
    def __init__(self, lfn: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
