from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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

class SubmitRequest(_message.Message):
    __slots__ = ("submission_id", "jdl", "input_sandbox", "node_files")
    class NodeFilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBMISSION_ID_FIELD_NUMBER: _ClassVar[int]
    JDL_FIELD_NUMBER: _ClassVar[int]
    INPUT_SANDBOX_FIELD_NUMBER: _ClassVar[int]
    NODE_FILES_FIELD_NUMBER: _ClassVar[int]
    submission_id: str
    jdl: str
    input_sandbox: _containers.RepeatedCompositeFieldContainer[SandboxFile]
    node_files: _containers.ScalarMap[str, str]
    def __init__(self, submission_id: _Optional[str] = ..., jdl: _Optional[str] = ..., input_sandbox: _Optional[_Iterable[_Union[SandboxFile, _Mapping]]] = ..., node_files: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job_id", "children")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    children: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., children: _Optional[_Iterable[str]] = ...) -> None: ...

class ResubmitRequest(_message.Message):
    __slots__ = ("submission_id", "job_id")
    SUBMISSION_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    submission_id: str
    job_id: str
    def __init__(self, submission_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelOutcome(_message.Message):
    __slots__ = ("job_id", "outcome")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    outcome: str
    def __init__(self, job_id: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[CancelOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[CancelOutcome, _Mapping]]] = ...) -> None: ...

class ListMatchRequest(_message.Message):
    __slots__ = ("jdl", "node_files")
    class NodeFilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JDL_FIELD_NUMBER: _ClassVar[int]
    NODE_FILES_FIELD_NUMBER: _ClassVar[int]
    jdl: str
    node_files: _containers.ScalarMap[str, str]
    def __init__(self, jdl: _Optional[str] = ..., node_files: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Match(_message.Message):
    __slots__ = ("ce", "matches", "rank", "failing_term", "explanation", "site", "free_slots", "change")
    CE_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    FAILING_TERM_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    ce: str
    matches: bool
    rank: float
    failing_term: str
    explanation: str
    site: str
    free_slots: int
    change: str
    def __init__(self, ce: _Optional[str] = ..., matches: _Optional[bool] = ..., rank: _Optional[float] = ..., failing_term: _Optional[str] = ..., explanation: _Optional[str] = ..., site: _Optional[str] = ..., free_slots: _Optional[int] = ..., change: _Optional[str] = ...) -> None: ...

class ListMatchResponse(_message.Message):
    __slots__ = ("matches",)
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[Match]
    def __init__(self, matches: _Optional[_Iterable[_Union[Match, _Mapping]]] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class JobLocation(_message.Message):
    __slots__ = ("job_id", "ce", "gatekeeper", "state", "attempt", "waiting_for")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CE_FIELD_NUMBER: _ClassVar[int]
    GATEKEEPER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    ce: str
    gatekeeper: str
    state: str
    attempt: int
    waiting_for: str
    def __init__(self, job_id: _Optional[str] = ..., ce: _Optional[str] = ..., gatekeeper: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., waiting_for: _Optional[str] = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobLocation]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobLocation, _Mapping]]] = ...) -> None: ...

class ClearRequest(_message.Message):
    __slots__ = ("job_ids",)
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ClearResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KeepRequest(_message.Message):
    __slots__ = ("epoch", "over", "dropped", "data", "last")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    over: int
    dropped: _containers.RepeatedScalarFieldContainer[str]
    data: bytes
    last: bool
    def __init__(self, epoch: _Optional[int] = ..., over: _Optional[int] = ..., dropped: _Optional[_Iterable[str]] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class KeepResponse(_message.Message):
    __slots__ = ("over", "store")
    OVER_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    over: int
    store: str
    def __init__(self, over: _Optional[int] = ..., store: _Optional[str] = ...) -> None: ...

class TakeOverRequest(_message.Message):
    __slots__ = ("broker", "force")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    broker: str
    force: bool
    def __init__(self, broker: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class TakeOverResponse(_message.Message):
    __slots__ = ("submissions", "jobs")
    SUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    submissions: int
    jobs: int
    def __init__(self, submissions: _Optional[int] = ..., jobs: _Optional[int] = ...) -> None: ...
