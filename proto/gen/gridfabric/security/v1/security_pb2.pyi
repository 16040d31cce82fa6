from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BeginRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginResponse(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class EstablishRequest(_message.Message):
    __slots__ = ("nonce", "chain_pem", "proof")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    chain_pem: bytes
    proof: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., chain_pem: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EstablishResponse(_message.Message):
    __slots__ = ("session", "expires_at_us", "subject", "account")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    session: str
    expires_at_us: int
    subject: str
    account: str
    def __init__(self, session: _Optional[str] = ..., expires_at_us: _Optional[int] = ..., subject: _Optional[str] = ..., account: _Optional[str] = ...) -> None: ...

class DelegationRequest(_message.Message):
    __slots__ = ("delegation_id",)
    DELEGATION_ID_FIELD_NUMBER: _ClassVar[int]
    delegation_id: str
    def __init__(self, delegation_id: _Optional[str] = ...) -> None: ...

class DelegationRequestResponse(_message.Message):
    __slots__ = ("request_pem",)
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    request_pem: bytes
    def __init__(self, request_pem: _Optional[bytes] = ...) -> None: ...

class DelegationPutRequest(_message.Message):
    __slots__ = ("delegation_id", "chain_pem")
    DELEGATION_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    delegation_id: str
    chain_pem: bytes
    def __init__(self, delegation_id: _Optional[str] = ..., chain_pem: _Optional[bytes] = ...) -> None: ...

class DelegationPutResponse(_message.Message):
    __slots__ = ("expires_at_us",)
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    expires_at_us: int
    def __init__(self, expires_at_us: _Optional[int] = ...) -> None: ...

class DelegationShowRequest(_message.Message):
    __slots__ = ("delegation_id",)
    DELEGATION_ID_FIELD_NUMBER: _ClassVar[int]
    delegation_id: str
    def __init__(self, delegation_id: _Optional[str] = ...) -> None: ...

class DelegationShowResponse(_message.Message):
    __slots__ = ("expires_at_us", "subject")
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    expires_at_us: int
    subject: str
    def __init__(self, expires_at_us: _Optional[int] = ..., subject: _Optional[str] = ...) -> None: ...

class DelegationDestroyRequest(_message.Message):
    __slots__ = ("delegation_id",)
    DELEGATION_ID_FIELD_NUMBER: _ClassVar[int]
    delegation_id: str
    def __init__(self, delegation_id: _Optional[str] = ...) -> None: ...

class DelegationDestroyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DelegationListRequest(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class Delegated(_message.Message):
    __slots__ = ("subject", "delegation_id", "serial", "issuer", "since_us", "expires_at_us", "job_ids", "jobs")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DELEGATION_ID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    delegation_id: str
    serial: str
    issuer: str
    since_us: int
    expires_at_us: int
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    jobs: int
    def __init__(self, subject: _Optional[str] = ..., delegation_id: _Optional[str] = ..., serial: _Optional[str] = ..., issuer: _Optional[str] = ..., since_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., job_ids: _Optional[_Iterable[str]] = ..., jobs: _Optional[int] = ...) -> None: ...

class DelegationListResponse(_message.Message):
    __slots__ = ("delegations",)
    DELEGATIONS_FIELD_NUMBER: _ClassVar[int]
    delegations: _containers.RepeatedCompositeFieldContainer[Delegated]
    def __init__(self, delegations: _Optional[_Iterable[_Union[Delegated, _Mapping]]] = ...) -> None: ...

class DelegationRecallRequest(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class DelegationRecallResponse(_message.Message):
    __slots__ = ("recalled",)
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    recalled: _containers.RepeatedCompositeFieldContainer[Delegated]
    def __init__(self, recalled: _Optional[_Iterable[_Union[Delegated, _Mapping]]] = ...) -> None: ...
