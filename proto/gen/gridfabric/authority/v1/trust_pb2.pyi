from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchTrustRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrustSet(_message.Message):
    __slots__ = ("number", "authorities")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    number: int
    authorities: _containers.RepeatedCompositeFieldContainer[TrustedAuthority]
    def __init__(self, number: _Optional[int] = ..., authorities: _Optional[_Iterable[_Union[TrustedAuthority, _Mapping]]] = ...) -> None: ...

class TrustedAuthority(_message.Message):
    __slots__ = ("certificate_pem", "signing_policy", "namespaces", "info", "is_old", "crl")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNING_POLICY_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    IS_OLD_FIELD_NUMBER: _ClassVar[int]
    CRL_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    signing_policy: str
    namespaces: str
    info: str
    is_old: bool
    crl: RevocationList
    def __init__(self, certificate_pem: _Optional[bytes] = ..., signing_policy: _Optional[str] = ..., namespaces: _Optional[str] = ..., info: _Optional[str] = ..., is_old: _Optional[bool] = ..., crl: _Optional[_Union[RevocationList, _Mapping]] = ...) -> None: ...

class RevocationList(_message.Message):
    __slots__ = ("number", "pem", "path")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PEM_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    number: int
    pem: bytes
    path: str
    def __init__(self, number: _Optional[int] = ..., pem: _Optional[bytes] = ..., path: _Optional[str] = ...) -> None: ...

class ListAuthoritiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAuthoritiesResponse(_message.Message):
    __slots__ = ("authorities",)
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    authorities: _containers.RepeatedCompositeFieldContainer[AuthorityFacts]
    def __init__(self, authorities: _Optional[_Iterable[_Union[AuthorityFacts, _Mapping]]] = ...) -> None: ...

class AuthorityFacts(_message.Message):
    __slots__ = ("name", "subject", "hash", "parent", "is_foreign", "keys", "namespace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    IS_FOREIGN_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    subject: str
    hash: str
    parent: str
    is_foreign: bool
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    namespace: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., subject: _Optional[str] = ..., hash: _Optional[str] = ..., parent: _Optional[str] = ..., is_foreign: _Optional[bool] = ..., keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., namespace: _Optional[_Iterable[str]] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("fingerprint", "not_after_us", "crl_number", "crl_next_update_us", "active")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    CRL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CRL_NEXT_UPDATE_US_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    not_after_us: int
    crl_number: int
    crl_next_update_us: int
    active: int
    def __init__(self, fingerprint: _Optional[str] = ..., not_after_us: _Optional[int] = ..., crl_number: _Optional[int] = ..., crl_next_update_us: _Optional[int] = ..., active: _Optional[int] = ...) -> None: ...

class AuthorityResponse(_message.Message):
    __slots__ = ("authority",)
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    authority: AuthorityFacts
    def __init__(self, authority: _Optional[_Union[AuthorityFacts, _Mapping]] = ...) -> None: ...

class CreateAuthorityRequest(_message.Message):
    __slots__ = ("name", "parent", "namespace", "lifetime_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    parent: str
    namespace: _containers.RepeatedScalarFieldContainer[str]
    lifetime_s: int
    def __init__(self, name: _Optional[str] = ..., parent: _Optional[str] = ..., namespace: _Optional[_Iterable[str]] = ..., lifetime_s: _Optional[int] = ...) -> None: ...

class AddAuthorityRequest(_message.Message):
    __slots__ = ("certificate", "signing_policy", "crl", "crl_url")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNING_POLICY_FIELD_NUMBER: _ClassVar[int]
    CRL_FIELD_NUMBER: _ClassVar[int]
    CRL_URL_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    signing_policy: str
    crl: bytes
    crl_url: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, certificate: _Optional[bytes] = ..., signing_policy: _Optional[str] = ..., crl: _Optional[bytes] = ..., crl_url: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveAuthorityRequest(_message.Message):
    __slots__ = ("authority", "dry_run")
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    authority: str
    dry_run: bool
    def __init__(self, authority: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class RollOverRequest(_message.Message):
    __slots__ = ("authority",)
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    authority: str
    def __init__(self, authority: _Optional[str] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("authority", "dry_run", "now")
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    authority: str
    dry_run: bool
    now: bool
    def __init__(self, authority: _Optional[str] = ..., dry_run: _Optional[bool] = ..., now: _Optional[bool] = ...) -> None: ...

class LosingResponse(_message.Message):
    __slots__ = ("losing",)
    LOSING_FIELD_NUMBER: _ClassVar[int]
    losing: _containers.RepeatedCompositeFieldContainer[Losing]
    def __init__(self, losing: _Optional[_Iterable[_Union[Losing, _Mapping]]] = ...) -> None: ...

class Losing(_message.Message):
    __slots__ = ("subject", "serial", "kind", "until_us", "renewed")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    subject: str
    serial: str
    kind: str
    until_us: int
    renewed: bool
    def __init__(self, subject: _Optional[str] = ..., serial: _Optional[str] = ..., kind: _Optional[str] = ..., until_us: _Optional[int] = ..., renewed: _Optional[bool] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("request_pem",)
    REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    request_pem: bytes
    def __init__(self, request_pem: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate_pem",)
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ...) -> None: ...
