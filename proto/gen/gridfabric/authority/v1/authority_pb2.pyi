from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("token", "site", "agents")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    token: str
    site: str
    agents: _containers.RepeatedCompositeFieldContainer[AgentRequest]
    def __init__(self, token: _Optional[str] = ..., site: _Optional[str] = ..., agents: _Optional[_Iterable[_Union[AgentRequest, _Mapping]]] = ...) -> None: ...

class AgentRequest(_message.Message):
    __slots__ = ("kind", "name", "hosts", "request_pem")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    hosts: _containers.RepeatedScalarFieldContainer[str]
    request_pem: bytes
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., hosts: _Optional[_Iterable[str]] = ..., request_pem: _Optional[bytes] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("certificate_pem",)
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, certificate_pem: _Optional[_Iterable[bytes]] = ...) -> None: ...

class IssueUserRequest(_message.Message):
    __slots__ = ("common_name", "request_pem", "lifetime_s", "renew", "authority", "robot")
    COMMON_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    common_name: str
    request_pem: bytes
    lifetime_s: int
    renew: bool
    authority: str
    robot: bool
    def __init__(self, common_name: _Optional[str] = ..., request_pem: _Optional[bytes] = ..., lifetime_s: _Optional[int] = ..., renew: _Optional[bool] = ..., authority: _Optional[str] = ..., robot: _Optional[bool] = ...) -> None: ...

class IssueHostRequest(_message.Message):
    __slots__ = ("hosts", "service", "request_pem", "lifetime_s", "renew", "authority")
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    service: str
    request_pem: bytes
    lifetime_s: int
    renew: bool
    authority: str
    def __init__(self, hosts: _Optional[_Iterable[str]] = ..., service: _Optional[str] = ..., request_pem: _Optional[bytes] = ..., lifetime_s: _Optional[int] = ..., renew: _Optional[bool] = ..., authority: _Optional[str] = ...) -> None: ...

class IssueHostResponse(_message.Message):
    __slots__ = ("certificate_pem",)
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ...) -> None: ...

class IssueUserResponse(_message.Message):
    __slots__ = ("certificate_pem",)
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: str
    def __init__(self, site: _Optional[str] = ...) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("token", "authority_pem")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_PEM_FIELD_NUMBER: _ClassVar[int]
    token: str
    authority_pem: bytes
    def __init__(self, token: _Optional[str] = ..., authority_pem: _Optional[bytes] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("serial", "subject", "reason", "proxy_pem")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROXY_PEM_FIELD_NUMBER: _ClassVar[int]
    serial: str
    subject: str
    reason: str
    proxy_pem: bytes
    def __init__(self, serial: _Optional[str] = ..., subject: _Optional[str] = ..., reason: _Optional[str] = ..., proxy_pem: _Optional[bytes] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ("serials", "crl_number")
    SERIALS_FIELD_NUMBER: _ClassVar[int]
    CRL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    serials: _containers.RepeatedScalarFieldContainer[str]
    crl_number: int
    def __init__(self, serials: _Optional[_Iterable[str]] = ..., crl_number: _Optional[int] = ...) -> None: ...

class ListIssuedRequest(_message.Message):
    __slots__ = ("subject_prefix",)
    SUBJECT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    subject_prefix: str
    def __init__(self, subject_prefix: _Optional[str] = ...) -> None: ...

class ListIssuedResponse(_message.Message):
    __slots__ = ("issued",)
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    issued: _containers.RepeatedCompositeFieldContainer[Issued]
    def __init__(self, issued: _Optional[_Iterable[_Union[Issued, _Mapping]]] = ...) -> None: ...

class Issued(_message.Message):
    __slots__ = ("serial", "subject", "not_after_us", "revoked_at_us", "reason", "issuer")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_US_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    serial: str
    subject: str
    not_after_us: int
    revoked_at_us: int
    reason: str
    issuer: str
    def __init__(self, serial: _Optional[str] = ..., subject: _Optional[str] = ..., not_after_us: _Optional[int] = ..., revoked_at_us: _Optional[int] = ..., reason: _Optional[str] = ..., issuer: _Optional[str] = ...) -> None: ...
