from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("job_id", "lfns", "destination", "source", "priority")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LFNS_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    lfns: _containers.RepeatedScalarFieldContainer[str]
    destination: str
    source: str
    priority: int
    def __init__(self, job_id: _Optional[str] = ..., lfns: _Optional[_Iterable[str]] = ..., destination: _Optional[str] = ..., source: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class RefusedFile(_message.Message):
    __slots__ = ("name", "reason", "sentence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    sentence: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("accepted", "refused")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    refused: _containers.RepeatedCompositeFieldContainer[RefusedFile]
    def __init__(self, accepted: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[RefusedFile, _Mapping]]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("job_id", "page_size", "after")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    page_size: int
    after: int
    def __init__(self, job_id: _Optional[str] = ..., page_size: _Optional[int] = ..., after: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "owner", "vo", "destination", "priority", "submitted_at_us", "files", "size_bytes", "moved_bytes")
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    owner: str
    vo: str
    destination: str
    priority: int
    submitted_at_us: int
    files: _containers.ScalarMap[str, int]
    size_bytes: int
    moved_bytes: int
    def __init__(self, job_id: _Optional[str] = ..., owner: _Optional[str] = ..., vo: _Optional[str] = ..., destination: _Optional[str] = ..., priority: _Optional[int] = ..., submitted_at_us: _Optional[int] = ..., files: _Optional[_Mapping[str, int]] = ..., size_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("lfn", "guid", "size_bytes", "state", "attempt", "source", "surl", "reason", "sentence", "moved_bytes", "submitted_at_us", "ended_at_us")
    LFN_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SURL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    lfn: str
    guid: str
    size_bytes: int
    state: str
    attempt: int
    source: str
    surl: str
    reason: str
    sentence: str
    moved_bytes: int
    submitted_at_us: int
    ended_at_us: int
    def __init__(self, lfn: _Optional[str] = ..., guid: _Optional[str] = ..., size_bytes: _Optional[int] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., source: _Optional[str] = ..., surl: _Optional[str] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ..., moved_bytes: _Optional[int] = ..., submitted_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("job", "files", "next")
    JOB_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    job: Job
    files: _containers.RepeatedCompositeFieldContainer[File]
    next: int
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., next: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("canceled",)
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    canceled: int
    def __init__(self, canceled: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("since_us",)
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    def __init__(self, since_us: _Optional[int] = ...) -> None: ...

class ReportRow(_message.Message):
    __slots__ = ("source", "destination", "state", "reason", "files", "size_bytes", "attempts")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    source: str
    destination: str
    state: str
    reason: str
    files: int
    size_bytes: int
    attempts: int
    def __init__(self, source: _Optional[str] = ..., destination: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., files: _Optional[int] = ..., size_bytes: _Optional[int] = ..., attempts: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[ReportRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[ReportRow, _Mapping]]] = ...) -> None: ...

class ChannelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Channel(_message.Message):
    __slots__ = ("source", "destination", "active", "queued", "limit", "bytes_per_s", "files_per_s", "cap_bytes_per_s", "finished", "failed", "why")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    FILES_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAP_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    source: str
    destination: str
    active: int
    queued: int
    limit: int
    bytes_per_s: float
    files_per_s: float
    cap_bytes_per_s: int
    finished: int
    failed: int
    why: str
    def __init__(self, source: _Optional[str] = ..., destination: _Optional[str] = ..., active: _Optional[int] = ..., queued: _Optional[int] = ..., limit: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., files_per_s: _Optional[float] = ..., cap_bytes_per_s: _Optional[int] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class ChannelsResponse(_message.Message):
    __slots__ = ("channels",)
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedCompositeFieldContainer[Channel]
    def __init__(self, channels: _Optional[_Iterable[_Union[Channel, _Mapping]]] = ...) -> None: ...

class Subscription(_message.Message):
    __slots__ = ("id", "directory", "at", "copies", "owner", "vo", "created_at_us", "files", "queued", "lag_s", "cause")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LAG_S_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    id: str
    directory: str
    at: str
    copies: int
    owner: str
    vo: str
    created_at_us: int
    files: int
    queued: int
    lag_s: float
    cause: str
    def __init__(self, id: _Optional[str] = ..., directory: _Optional[str] = ..., at: _Optional[str] = ..., copies: _Optional[int] = ..., owner: _Optional[str] = ..., vo: _Optional[str] = ..., created_at_us: _Optional[int] = ..., files: _Optional[int] = ..., queued: _Optional[int] = ..., lag_s: _Optional[float] = ..., cause: _Optional[str] = ...) -> None: ...

class UnsubscribeRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class UnsubscribeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubscriptionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubscriptionsResponse(_message.Message):
    __slots__ = ("subscriptions",)
    SUBSCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    subscriptions: _containers.RepeatedCompositeFieldContainer[Subscription]
    def __init__(self, subscriptions: _Optional[_Iterable[_Union[Subscription, _Mapping]]] = ...) -> None: ...
