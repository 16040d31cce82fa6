from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Attribute(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("dn", "attributes", "producer", "produced_at_us", "valid_until_us", "partial")
    DN_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    PRODUCED_AT_US_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    dn: str
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    producer: str
    produced_at_us: int
    valid_until_us: int
    partial: bool
    def __init__(self, dn: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., producer: _Optional[str] = ..., produced_at_us: _Optional[int] = ..., valid_until_us: _Optional[int] = ..., partial: _Optional[bool] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("producer", "sequence", "snapshot", "changed", "removed_dns", "valid_for_ms", "withdraw", "status")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_DNS_FIELD_NUMBER: _ClassVar[int]
    VALID_FOR_MS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    producer: str
    sequence: int
    snapshot: bool
    changed: _containers.RepeatedCompositeFieldContainer[Entry]
    removed_dns: _containers.RepeatedScalarFieldContainer[str]
    valid_for_ms: int
    withdraw: bool
    status: ProducerStatus
    def __init__(self, producer: _Optional[str] = ..., sequence: _Optional[int] = ..., snapshot: _Optional[bool] = ..., changed: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., removed_dns: _Optional[_Iterable[str]] = ..., valid_for_ms: _Optional[int] = ..., withdraw: _Optional[bool] = ..., status: _Optional[_Union[ProducerStatus, _Mapping]] = ...) -> None: ...

class ProducerStatus(_message.Message):
    __slots__ = ("state", "since_us", "last_seen_us", "reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_US_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: str
    since_us: int
    last_seen_us: int
    reason: str
    def __init__(self, state: _Optional[str] = ..., since_us: _Optional[int] = ..., last_seen_us: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("acknowledged_sequence", "resend_snapshot", "resend_dns")
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESEND_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    RESEND_DNS_FIELD_NUMBER: _ClassVar[int]
    acknowledged_sequence: int
    resend_snapshot: bool
    resend_dns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, acknowledged_sequence: _Optional[int] = ..., resend_snapshot: _Optional[bool] = ..., resend_dns: _Optional[_Iterable[str]] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("object_classes",)
    OBJECT_CLASSES_FIELD_NUMBER: _ClassVar[int]
    object_classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, object_classes: _Optional[_Iterable[str]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("sequence", "snapshot", "changed", "removed_dns")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_DNS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    snapshot: bool
    changed: _containers.RepeatedCompositeFieldContainer[Entry]
    removed_dns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sequence: _Optional[int] = ..., snapshot: _Optional[bool] = ..., changed: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., removed_dns: _Optional[_Iterable[str]] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("sql", "continuous")
    SQL_FIELD_NUMBER: _ClassVar[int]
    CONTINUOUS_FIELD_NUMBER: _ClassVar[int]
    sql: str
    continuous: bool
    def __init__(self, sql: _Optional[str] = ..., continuous: _Optional[bool] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "real")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    real: float
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("columns", "rows", "truncated")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    truncated: bool
    def __init__(self, columns: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., truncated: _Optional[bool] = ...) -> None: ...
