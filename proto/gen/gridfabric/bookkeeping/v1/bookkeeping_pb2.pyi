from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TYPE_UNSPECIFIED: _ClassVar[EventType]
    EVENT_TYPE_REGISTERED: _ClassVar[EventType]
    EVENT_TYPE_ENQUEUED: _ClassVar[EventType]
    EVENT_TYPE_MATCHED: _ClassVar[EventType]
    EVENT_TYPE_TRANSFERRED: _ClassVar[EventType]
    EVENT_TYPE_RUNNING: _ClassVar[EventType]
    EVENT_TYPE_DONE: _ClassVar[EventType]
    EVENT_TYPE_RESUBMISSION: _ClassVar[EventType]
    EVENT_TYPE_CANCEL_REQUESTED: _ClassVar[EventType]
    EVENT_TYPE_CANCELLED: _ClassVar[EventType]
    EVENT_TYPE_ABORTED: _ClassVar[EventType]
    EVENT_TYPE_CLEARED: _ClassVar[EventType]
    EVENT_TYPE_NOTE: _ClassVar[EventType]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_SUBMITTED: _ClassVar[JobState]
    JOB_STATE_WAITING: _ClassVar[JobState]
    JOB_STATE_READY: _ClassVar[JobState]
    JOB_STATE_SCHEDULED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_CLEARED: _ClassVar[JobState]
    JOB_STATE_ABORTED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
EVENT_TYPE_UNSPECIFIED: EventType
EVENT_TYPE_REGISTERED: EventType
EVENT_TYPE_ENQUEUED: EventType
EVENT_TYPE_MATCHED: EventType
EVENT_TYPE_TRANSFERRED: EventType
EVENT_TYPE_RUNNING: EventType
EVENT_TYPE_DONE: EventType
EVENT_TYPE_RESUBMISSION: EventType
EVENT_TYPE_CANCEL_REQUESTED: EventType
EVENT_TYPE_CANCELLED: EventType
EVENT_TYPE_ABORTED: EventType
EVENT_TYPE_CLEARED: EventType
EVENT_TYPE_NOTE: EventType
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_SUBMITTED: JobState
JOB_STATE_WAITING: JobState
JOB_STATE_READY: JobState
JOB_STATE_SCHEDULED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_CLEARED: JobState
JOB_STATE_ABORTED: JobState
JOB_STATE_CANCELLED: JobState

class Event(_message.Message):
    __slots__ = ("job_id", "source", "sequence", "at_us", "type", "attempt", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    source: str
    sequence: int
    at_us: int
    type: EventType
    attempt: int
    fields: _containers.ScalarMap[str, str]
    def __init__(self, job_id: _Optional[str] = ..., source: _Optional[str] = ..., sequence: _Optional[int] = ..., at_us: _Optional[int] = ..., type: _Optional[_Union[EventType, str]] = ..., attempt: _Optional[int] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("events", "epoch")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    epoch: int
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., epoch: _Optional[int] = ...) -> None: ...

class RecordResponse(_message.Message):
    __slots__ = ("recorded", "duplicates")
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    recorded: int
    duplicates: int
    def __init__(self, recorded: _Optional[int] = ..., duplicates: _Optional[int] = ...) -> None: ...

class JobSummary(_message.Message):
    __slots__ = ("job_id", "owner", "vo", "state", "ce", "worker", "attempt", "exit_code", "reason", "submitted_at_us", "changed_at_us", "parent", "name", "wall_s", "cpu_s", "children")
    class ChildrenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_US_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    owner: str
    vo: str
    state: JobState
    ce: str
    worker: str
    attempt: int
    exit_code: str
    reason: str
    submitted_at_us: int
    changed_at_us: int
    parent: str
    name: str
    wall_s: float
    cpu_s: float
    children: _containers.ScalarMap[str, int]
    def __init__(self, job_id: _Optional[str] = ..., owner: _Optional[str] = ..., vo: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., ce: _Optional[str] = ..., worker: _Optional[str] = ..., attempt: _Optional[int] = ..., exit_code: _Optional[str] = ..., reason: _Optional[str] = ..., submitted_at_us: _Optional[int] = ..., changed_at_us: _Optional[int] = ..., parent: _Optional[str] = ..., name: _Optional[str] = ..., wall_s: _Optional[float] = ..., cpu_s: _Optional[float] = ..., children: _Optional[_Mapping[str, int]] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("job", "events")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    job: JobSummary
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, job: _Optional[_Union[JobSummary, _Mapping]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("job_ids", "owner", "state", "ce", "since_us", "until_us", "page_size", "page_token", "include_parents", "vo")
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CE_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    owner: str
    state: JobState
    ce: str
    since_us: int
    until_us: int
    page_size: int
    page_token: str
    include_parents: bool
    vo: str
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., ce: _Optional[str] = ..., since_us: _Optional[int] = ..., until_us: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_parents: _Optional[bool] = ..., vo: _Optional[str] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobSummary]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobSummary]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobSummary, _Mapping]]] = ...) -> None: ...

class StatisticsRequest(_message.Message):
    __slots__ = ("since_us", "until_us", "by")
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    until_us: int
    by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, since_us: _Optional[int] = ..., until_us: _Optional[int] = ..., by: _Optional[_Iterable[str]] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("group", "jobs", "ended", "succeeded", "resubmitted", "started", "wait_mean_s", "wait_median_s", "wait_p90_s", "wait_max_s", "wall_s", "cpu_s")
    class GroupEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    RESUBMITTED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    WAIT_MEAN_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_MEDIAN_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_P90_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_MAX_S_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    group: _containers.ScalarMap[str, str]
    jobs: int
    ended: int
    succeeded: int
    resubmitted: int
    started: int
    wait_mean_s: float
    wait_median_s: float
    wait_p90_s: float
    wait_max_s: float
    wall_s: float
    cpu_s: float
    def __init__(self, group: _Optional[_Mapping[str, str]] = ..., jobs: _Optional[int] = ..., ended: _Optional[int] = ..., succeeded: _Optional[int] = ..., resubmitted: _Optional[int] = ..., started: _Optional[int] = ..., wait_mean_s: _Optional[float] = ..., wait_median_s: _Optional[float] = ..., wait_p90_s: _Optional[float] = ..., wait_max_s: _Optional[float] = ..., wall_s: _Optional[float] = ..., cpu_s: _Optional[float] = ...) -> None: ...

class StatisticsResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[Statistics]
    def __init__(self, groups: _Optional[_Iterable[_Union[Statistics, _Mapping]]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("since_us", "until_us", "by")
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    until_us: int
    by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, since_us: _Optional[int] = ..., until_us: _Optional[int] = ..., by: _Optional[_Iterable[str]] = ...) -> None: ...

class UsageSum(_message.Message):
    __slots__ = ("group", "runs", "succeeded", "wall_s", "cpu_s", "core_s")
    class GroupEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    CORE_S_FIELD_NUMBER: _ClassVar[int]
    group: _containers.ScalarMap[str, str]
    runs: int
    succeeded: int
    wall_s: float
    cpu_s: float
    core_s: float
    def __init__(self, group: _Optional[_Mapping[str, str]] = ..., runs: _Optional[int] = ..., succeeded: _Optional[int] = ..., wall_s: _Optional[float] = ..., cpu_s: _Optional[float] = ..., core_s: _Optional[float] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[UsageSum]
    def __init__(self, groups: _Optional[_Iterable[_Union[UsageSum, _Mapping]]] = ...) -> None: ...

class UsageRecordsRequest(_message.Message):
    __slots__ = ("since_us", "until_us", "page_token")
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    until_us: int
    page_token: str
    def __init__(self, since_us: _Optional[int] = ..., until_us: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class UsageRecord(_message.Message):
    __slots__ = ("job_id", "attempt", "owner", "vo", "fqan", "site", "ce", "worker", "account", "local_id", "outcome", "exit_code", "started_at_us", "ended_at_us", "wall_s", "user_s", "system_s", "memory_bytes", "processors")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    FQAN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    USER_S_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    owner: str
    vo: str
    fqan: str
    site: str
    ce: str
    worker: str
    account: str
    local_id: str
    outcome: str
    exit_code: str
    started_at_us: int
    ended_at_us: int
    wall_s: float
    user_s: float
    system_s: float
    memory_bytes: int
    processors: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., owner: _Optional[str] = ..., vo: _Optional[str] = ..., fqan: _Optional[str] = ..., site: _Optional[str] = ..., ce: _Optional[str] = ..., worker: _Optional[str] = ..., account: _Optional[str] = ..., local_id: _Optional[str] = ..., outcome: _Optional[str] = ..., exit_code: _Optional[str] = ..., started_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., wall_s: _Optional[float] = ..., user_s: _Optional[float] = ..., system_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., processors: _Optional[int] = ...) -> None: ...

class UsageRecordsResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[UsageRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[UsageRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReconcileRequest(_message.Message):
    __slots__ = ("since_us", "until_us")
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    until_us: int
    def __init__(self, since_us: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class ReconcileResponse(_message.Message):
    __slots__ = ("runs", "wall_s", "done_jobs", "done_wall_s", "missing", "doubled", "unregistered")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    DONE_JOBS_FIELD_NUMBER: _ClassVar[int]
    DONE_WALL_S_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    DOUBLED_FIELD_NUMBER: _ClassVar[int]
    UNREGISTERED_FIELD_NUMBER: _ClassVar[int]
    runs: int
    wall_s: float
    done_jobs: int
    done_wall_s: float
    missing: _containers.RepeatedScalarFieldContainer[str]
    doubled: _containers.RepeatedScalarFieldContainer[str]
    unregistered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runs: _Optional[int] = ..., wall_s: _Optional[float] = ..., done_jobs: _Optional[int] = ..., done_wall_s: _Optional[float] = ..., missing: _Optional[_Iterable[str]] = ..., doubled: _Optional[_Iterable[str]] = ..., unregistered: _Optional[_Iterable[str]] = ...) -> None: ...

class BeginEpochRequest(_message.Message):
    __slots__ = ("epoch", "successor", "lease_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    successor: str
    lease_s: float
    def __init__(self, epoch: _Optional[int] = ..., successor: _Optional[str] = ..., lease_s: _Optional[float] = ...) -> None: ...

class BeginEpochResponse(_message.Message):
    __slots__ = ("epoch", "taken_by")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    taken_by: str
    def __init__(self, epoch: _Optional[int] = ..., taken_by: _Optional[str] = ...) -> None: ...

class EndEpochRequest(_message.Message):
    __slots__ = ("broker", "lapsed")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    LAPSED_FIELD_NUMBER: _ClassVar[int]
    broker: str
    lapsed: bool
    def __init__(self, broker: _Optional[str] = ..., lapsed: _Optional[bool] = ...) -> None: ...

class EndEpochResponse(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class HoldLeaseRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class HoldLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
