from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_ASSIGNED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_ASSIGNED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class SandboxFile(_message.Message):
    __slots__ = ("name", "sha256", "size_bytes", "executable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size_bytes: int
    executable: bool
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., executable: _Optional[bool] = ...) -> None: ...

class DataOutput(_message.Message):
    __slots__ = ("file", "lfn", "storage_element")
    FILE_FIELD_NUMBER: _ClassVar[int]
    LFN_FIELD_NUMBER: _ClassVar[int]
    STORAGE_ELEMENT_FIELD_NUMBER: _ClassVar[int]
    file: str
    lfn: str
    storage_element: str
    def __init__(self, file: _Optional[str] = ..., lfn: _Optional[str] = ..., storage_element: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("wall_s", "cpu_s", "memory_bytes", "disk_bytes")
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    wall_s: int
    cpu_s: int
    memory_bytes: int
    disk_bytes: int
    def __init__(self, wall_s: _Optional[int] = ..., cpu_s: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ...) -> None: ...

class JobDescription(_message.Message):
    __slots__ = ("executable", "arguments", "std_input", "std_output", "std_error", "environment", "input_sandbox", "output_sandbox", "input_data", "output_data", "limits", "vo", "prologue", "epilogue", "slots", "hosts", "slots_per_host", "perusal", "mpi", "data_access_protocols")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    STD_INPUT_FIELD_NUMBER: _ClassVar[int]
    STD_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    STD_ERROR_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    INPUT_SANDBOX_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SANDBOX_FIELD_NUMBER: _ClassVar[int]
    INPUT_DATA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DATA_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    PROLOGUE_FIELD_NUMBER: _ClassVar[int]
    EPILOGUE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_PER_HOST_FIELD_NUMBER: _ClassVar[int]
    PERUSAL_FIELD_NUMBER: _ClassVar[int]
    MPI_FIELD_NUMBER: _ClassVar[int]
    DATA_ACCESS_PROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    executable: str
    arguments: _containers.RepeatedScalarFieldContainer[str]
    std_input: str
    std_output: str
    std_error: str
    environment: _containers.ScalarMap[str, str]
    input_sandbox: _containers.RepeatedCompositeFieldContainer[SandboxFile]
    output_sandbox: _containers.RepeatedScalarFieldContainer[str]
    input_data: _containers.RepeatedScalarFieldContainer[str]
    output_data: _containers.RepeatedCompositeFieldContainer[DataOutput]
    limits: Limits
    vo: str
    prologue: Script
    epilogue: Script
    slots: int
    hosts: int
    slots_per_host: int
    perusal: Perusal
    mpi: bool
    data_access_protocols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, executable: _Optional[str] = ..., arguments: _Optional[_Iterable[str]] = ..., std_input: _Optional[str] = ..., std_output: _Optional[str] = ..., std_error: _Optional[str] = ..., environment: _Optional[_Mapping[str, str]] = ..., input_sandbox: _Optional[_Iterable[_Union[SandboxFile, _Mapping]]] = ..., output_sandbox: _Optional[_Iterable[str]] = ..., input_data: _Optional[_Iterable[str]] = ..., output_data: _Optional[_Iterable[_Union[DataOutput, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., vo: _Optional[str] = ..., prologue: _Optional[_Union[Script, _Mapping]] = ..., epilogue: _Optional[_Union[Script, _Mapping]] = ..., slots: _Optional[int] = ..., hosts: _Optional[int] = ..., slots_per_host: _Optional[int] = ..., perusal: _Optional[_Union[Perusal, _Mapping]] = ..., mpi: _Optional[bool] = ..., data_access_protocols: _Optional[_Iterable[str]] = ...) -> None: ...

class Script(_message.Message):
    __slots__ = ("executable", "arguments")
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    executable: str
    arguments: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, executable: _Optional[str] = ..., arguments: _Optional[_Iterable[str]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "attempt", "description", "queue")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    description: JobDescription
    queue: str
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., description: _Optional[_Union[JobDescription, _Mapping]] = ..., queue: _Optional[str] = ...) -> None: ...

class MissingSandboxRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class MissingSandboxResponse(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sha256: _Optional[_Iterable[str]] = ...) -> None: ...

class PutSandboxRequest(_message.Message):
    __slots__ = ("sha256", "size_bytes", "data")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size_bytes: int
    data: bytes
    def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutSandboxResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("jobs", "broker", "over")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    BROKER_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    broker: BrokerEpoch
    over: _containers.RepeatedCompositeFieldContainer[BrokerEpoch]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., broker: _Optional[_Union[BrokerEpoch, _Mapping]] = ..., over: _Optional[_Iterable[_Union[BrokerEpoch, _Mapping]]] = ...) -> None: ...

class BrokerEpoch(_message.Message):
    __slots__ = ("broker", "epoch")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    broker: str
    epoch: int
    def __init__(self, broker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class SubmitOutcome(_message.Message):
    __slots__ = ("job_id", "accepted", "reason", "sentence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    accepted: bool
    reason: str
    sentence: str
    def __init__(self, job_id: _Optional[str] = ..., accepted: _Optional[bool] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[SubmitOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[SubmitOutcome, _Mapping]]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("unknown",)
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class HoldResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("draining", "reason", "begins_at_us", "ends_at_us", "queue")
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BEGINS_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDS_AT_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    draining: bool
    reason: str
    begins_at_us: int
    ends_at_us: int
    queue: str
    def __init__(self, draining: _Optional[bool] = ..., reason: _Optional[str] = ..., begins_at_us: _Optional[int] = ..., ends_at_us: _Optional[int] = ..., queue: _Optional[str] = ...) -> None: ...

class CloseResponse(_message.Message):
    __slots__ = ("running", "waiting")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class TagsRequest(_message.Message):
    __slots__ = ("add", "remove")
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    add: _containers.RepeatedScalarFieldContainer[str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, add: _Optional[_Iterable[str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class TagsResponse(_message.Message):
    __slots__ = ("tags", "software_area")
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_AREA_FIELD_NUMBER: _ClassVar[int]
    tags: _containers.RepeatedScalarFieldContainer[str]
    software_area: str
    def __init__(self, tags: _Optional[_Iterable[str]] = ..., software_area: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("wall_s", "user_s", "system_s", "max_rss_bytes")
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    USER_S_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_S_FIELD_NUMBER: _ClassVar[int]
    MAX_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    wall_s: float
    user_s: float
    system_s: float
    max_rss_bytes: int
    def __init__(self, wall_s: _Optional[float] = ..., user_s: _Optional[float] = ..., system_s: _Optional[float] = ..., max_rss_bytes: _Optional[int] = ...) -> None: ...

class JobUpdate(_message.Message):
    __slots__ = ("sequence", "job_id", "attempt", "state", "at_us", "exit_code", "reason", "sentence", "worker", "usage", "started")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    job_id: str
    attempt: int
    state: JobState
    at_us: int
    exit_code: int
    reason: str
    sentence: str
    worker: str
    usage: Usage
    started: bool
    def __init__(self, sequence: _Optional[int] = ..., job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., at_us: _Optional[int] = ..., exit_code: _Optional[int] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ..., worker: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., started: _Optional[bool] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after_sequence",)
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    def __init__(self, after_sequence: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("updates", "caught_up")
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[JobUpdate]
    caught_up: bool
    def __init__(self, updates: _Optional[_Iterable[_Union[JobUpdate, _Mapping]]] = ..., caught_up: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobUpdate]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobUpdate, _Mapping]]] = ...) -> None: ...

class GetOutputRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetOutputResponse(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("job_id", "std_error", "name", "offset", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STD_ERROR_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    std_error: bool
    name: str
    offset: int
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., std_error: _Optional[bool] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("attempt", "state", "offset", "data", "ended", "lost")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    state: JobState
    offset: int
    data: bytes
    ended: bool
    lost: bool
    def __init__(self, attempt: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., ended: _Optional[bool] = ..., lost: _Optional[bool] = ...) -> None: ...

class PurgeRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class PurgeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("hello", "credit", "started", "finished", "proxy_wanted", "refused_job_ids", "refused", "ready", "unfit")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROXY_WANTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    credit: Credit
    started: _containers.RepeatedCompositeFieldContainer[Started]
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    proxy_wanted: ProxyWanted
    refused_job_ids: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedCompositeFieldContainer[HeldJob]
    ready: _containers.RepeatedCompositeFieldContainer[HeldJob]
    unfit: str
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., started: _Optional[_Iterable[_Union[Started, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[Finished, _Mapping]]] = ..., proxy_wanted: _Optional[_Union[ProxyWanted, _Mapping]] = ..., refused_job_ids: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ..., ready: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ..., unfit: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker", "slots", "held", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    slots: int
    held: _containers.RepeatedCompositeFieldContainer[HeldJob]
    facts: _containers.ScalarMap[str, str]
    def __init__(self, worker: _Optional[str] = ..., slots: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class HeldJob(_message.Message):
    __slots__ = ("job_id", "attempt", "run", "reason", "at_once")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    run: int
    reason: str
    at_once: bool
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., run: _Optional[int] = ..., reason: _Optional[str] = ..., at_once: _Optional[bool] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("slots", "seen", "busy")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    slots: int
    seen: int
    busy: int
    def __init__(self, slots: _Optional[int] = ..., seen: _Optional[int] = ..., busy: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("job_id", "attempt", "at_us", "pid", "run")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    at_us: int
    pid: int
    run: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., at_us: _Optional[int] = ..., pid: _Optional[int] = ..., run: _Optional[int] = ...) -> None: ...

class OutputFile(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("job_id", "attempt", "at_us", "exit_code", "reason", "sentence", "usage", "outputs", "failed", "started", "run")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    at_us: int
    exit_code: int
    reason: str
    sentence: str
    usage: Usage
    outputs: _containers.RepeatedCompositeFieldContainer[OutputFile]
    failed: bool
    started: bool
    run: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., at_us: _Optional[int] = ..., exit_code: _Optional[int] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[OutputFile, _Mapping]]] = ..., failed: _Optional[bool] = ..., started: _Optional[bool] = ..., run: _Optional[int] = ...) -> None: ...

class ProxyWanted(_message.Message):
    __slots__ = ("owner", "request_pem")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    owner: str
    request_pem: bytes
    def __init__(self, owner: _Optional[str] = ..., request_pem: _Optional[bytes] = ...) -> None: ...

class WorkerOrder(_message.Message):
    __slots__ = ("run", "cancel", "acknowledged", "proxy", "drain", "welcome", "peek", "go")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PEEK_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    run: _containers.RepeatedCompositeFieldContainer[RunJob]
    cancel: _containers.RepeatedCompositeFieldContainer[HeldJob]
    acknowledged: _containers.RepeatedCompositeFieldContainer[HeldJob]
    proxy: ProxyGranted
    drain: bool
    welcome: Welcome
    peek: _containers.RepeatedCompositeFieldContainer[Peek]
    go: _containers.RepeatedCompositeFieldContainer[HeldJob]
    def __init__(self, run: _Optional[_Iterable[_Union[RunJob, _Mapping]]] = ..., cancel: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ..., acknowledged: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ..., proxy: _Optional[_Union[ProxyGranted, _Mapping]] = ..., drain: _Optional[bool] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., peek: _Optional[_Iterable[_Union[Peek, _Mapping]]] = ..., go: _Optional[_Iterable[_Union[HeldJob, _Mapping]]] = ...) -> None: ...

class Perusal(_message.Message):
    __slots__ = ("interval_s", "files", "storage_element")
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_ELEMENT_FIELD_NUMBER: _ClassVar[int]
    interval_s: int
    files: _containers.RepeatedScalarFieldContainer[str]
    storage_element: str
    def __init__(self, interval_s: _Optional[int] = ..., files: _Optional[_Iterable[str]] = ..., storage_element: _Optional[str] = ...) -> None: ...

class Peek(_message.Message):
    __slots__ = ("id", "job_id", "attempt", "run", "name", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: int
    job_id: str
    attempt: int
    run: int
    name: str
    offset: int
    def __init__(self, id: _Optional[int] = ..., job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., run: _Optional[int] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class PeekedRequest(_message.Message):
    __slots__ = ("id", "data", "over")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    over: bool
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ..., over: _Optional[bool] = ...) -> None: ...

class PeekedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FirstPartFileRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "run", "name")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    run: int
    name: str
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., run: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class FirstPartFileResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("heartbeat_ms", "contact", "now_us")
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    CONTACT_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    heartbeat_ms: int
    contact: str
    now_us: int
    def __init__(self, heartbeat_ms: _Optional[int] = ..., contact: _Optional[str] = ..., now_us: _Optional[int] = ...) -> None: ...

class RunJob(_message.Message):
    __slots__ = ("job_id", "attempt", "description", "owner", "account", "uid", "gid", "delegation", "run", "queue", "first_rank", "gang", "open_mpi")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    DELEGATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    GANG_FIELD_NUMBER: _ClassVar[int]
    OPEN_MPI_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    description: JobDescription
    owner: str
    account: str
    uid: int
    gid: int
    delegation: str
    run: int
    queue: str
    first_rank: int
    gang: _containers.RepeatedCompositeFieldContainer[Part]
    open_mpi: bool
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., description: _Optional[_Union[JobDescription, _Mapping]] = ..., owner: _Optional[str] = ..., account: _Optional[str] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., delegation: _Optional[str] = ..., run: _Optional[int] = ..., queue: _Optional[str] = ..., first_rank: _Optional[int] = ..., gang: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., open_mpi: _Optional[bool] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("host", "ranks")
    HOST_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    host: str
    ranks: int
    def __init__(self, host: _Optional[str] = ..., ranks: _Optional[int] = ...) -> None: ...

class ProxyGranted(_message.Message):
    __slots__ = ("owner", "chain_pem", "reason", "sentence")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    owner: str
    chain_pem: bytes
    reason: str
    sentence: str
    def __init__(self, owner: _Optional[str] = ..., chain_pem: _Optional[bytes] = ..., reason: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class FetchSandboxRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class FetchSandboxResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class StoreOutputRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "name", "size_bytes", "sha256", "data", "run")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    name: str
    size_bytes: int
    sha256: str
    data: bytes
    run: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., data: _Optional[bytes] = ..., run: _Optional[int] = ...) -> None: ...

class StoreOutputResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
