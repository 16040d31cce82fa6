from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_STATE_REQUESTED: _ClassVar[MemberState]
    MEMBER_STATE_APPROVED: _ClassVar[MemberState]
    MEMBER_STATE_SUSPENDED: _ClassVar[MemberState]
    MEMBER_STATE_EXPIRED: _ClassVar[MemberState]
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_STATE_REQUESTED: MemberState
MEMBER_STATE_APPROVED: MemberState
MEMBER_STATE_SUSPENDED: MemberState
MEMBER_STATE_EXPIRED: MemberState

class Member(_message.Message):
    __slots__ = ("subject", "common_name", "email", "groups", "added_at_us", "state", "aup_version", "aup_signed_at_us", "expires_at_us", "reason", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    COMMON_NAME_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ADDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AUP_VERSION_FIELD_NUMBER: _ClassVar[int]
    AUP_SIGNED_AT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    subject: str
    common_name: str
    email: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    added_at_us: int
    state: MemberState
    aup_version: int
    aup_signed_at_us: int
    expires_at_us: int
    reason: str
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, subject: _Optional[str] = ..., common_name: _Optional[str] = ..., email: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., added_at_us: _Optional[int] = ..., state: _Optional[_Union[MemberState, str]] = ..., aup_version: _Optional[int] = ..., aup_signed_at_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., reason: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AddMemberRequest(_message.Message):
    __slots__ = ("member", "vo")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    member: Member
    vo: str
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., vo: _Optional[str] = ...) -> None: ...

class AddMemberResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveMemberRequest(_message.Message):
    __slots__ = ("subject", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RemoveMemberResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMembersRequest(_message.Message):
    __slots__ = ("page_token", "vo")
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    vo: str
    def __init__(self, page_token: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class ListMembersResponse(_message.Message):
    __slots__ = ("vo", "members", "next_page_token")
    VO_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vo: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    next_page_token: str
    def __init__(self, vo: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetMemberRequest(_message.Message):
    __slots__ = ("subject", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class GetMemberResponse(_message.Message):
    __slots__ = ("vo", "member", "objection", "objection_reason")
    VO_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    OBJECTION_FIELD_NUMBER: _ClassVar[int]
    OBJECTION_REASON_FIELD_NUMBER: _ClassVar[int]
    vo: str
    member: Member
    objection: str
    objection_reason: str
    def __init__(self, vo: _Optional[str] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., objection: _Optional[str] = ..., objection_reason: _Optional[str] = ...) -> None: ...

class RequestMembershipRequest(_message.Message):
    __slots__ = ("common_name", "email", "vo")
    COMMON_NAME_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    common_name: str
    email: str
    vo: str
    def __init__(self, common_name: _Optional[str] = ..., email: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class ApproveMemberRequest(_message.Message):
    __slots__ = ("subject", "expires_at_us", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    expires_at_us: int
    vo: str
    def __init__(self, subject: _Optional[str] = ..., expires_at_us: _Optional[int] = ..., vo: _Optional[str] = ...) -> None: ...

class SuspendMemberRequest(_message.Message):
    __slots__ = ("subject", "reason", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    reason: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., reason: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RestoreMemberRequest(_message.Message):
    __slots__ = ("subject", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RenewMemberRequest(_message.Message):
    __slots__ = ("subject", "expires_at_us", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    expires_at_us: int
    vo: str
    def __init__(self, subject: _Optional[str] = ..., expires_at_us: _Optional[int] = ..., vo: _Optional[str] = ...) -> None: ...

class AddGroupRequest(_message.Message):
    __slots__ = ("group", "vo")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    group: str
    vo: str
    def __init__(self, group: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class AddGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveGroupRequest(_message.Message):
    __slots__ = ("group", "vo")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    group: str
    vo: str
    def __init__(self, group: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RemoveGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddRoleRequest(_message.Message):
    __slots__ = ("role", "vo")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    role: str
    vo: str
    def __init__(self, role: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class AddRoleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveRoleRequest(_message.Message):
    __slots__ = ("role", "vo")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    role: str
    vo: str
    def __init__(self, role: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class RemoveRoleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGroupsRequest(_message.Message):
    __slots__ = ("vo",)
    VO_FIELD_NUMBER: _ClassVar[int]
    vo: str
    def __init__(self, vo: _Optional[str] = ...) -> None: ...

class ListGroupsResponse(_message.Message):
    __slots__ = ("vo", "groups", "roles")
    VO_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    vo: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    roles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vo: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., roles: _Optional[_Iterable[str]] = ...) -> None: ...

class GrantRequest(_message.Message):
    __slots__ = ("subject", "fqan", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FQAN_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    fqan: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., fqan: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("subject", "fqan", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FQAN_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    fqan: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., fqan: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class SetAttributeRequest(_message.Message):
    __slots__ = ("subject", "name", "value", "vo")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    name: str
    value: str
    vo: str
    def __init__(self, subject: _Optional[str] = ..., name: _Optional[str] = ..., value: _Optional[str] = ..., vo: _Optional[str] = ...) -> None: ...

class GetAupRequest(_message.Message):
    __slots__ = ("vo",)
    VO_FIELD_NUMBER: _ClassVar[int]
    vo: str
    def __init__(self, vo: _Optional[str] = ...) -> None: ...

class GetAupResponse(_message.Message):
    __slots__ = ("vo", "version", "text", "published_at_us", "required_at_us")
    VO_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_US_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    vo: str
    version: int
    text: str
    published_at_us: int
    required_at_us: int
    def __init__(self, vo: _Optional[str] = ..., version: _Optional[int] = ..., text: _Optional[str] = ..., published_at_us: _Optional[int] = ..., required_at_us: _Optional[int] = ...) -> None: ...

class PublishAupRequest(_message.Message):
    __slots__ = ("text", "grace_s", "vo")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    text: str
    grace_s: float
    vo: str
    def __init__(self, text: _Optional[str] = ..., grace_s: _Optional[float] = ..., vo: _Optional[str] = ...) -> None: ...

class SignAupRequest(_message.Message):
    __slots__ = ("version", "vo")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    version: int
    vo: str
    def __init__(self, version: _Optional[int] = ..., vo: _Optional[str] = ...) -> None: ...

class IssueAttributesRequest(_message.Message):
    __slots__ = ("fqans", "lifetime_s", "order", "targets", "vo")
    FQANS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    VO_FIELD_NUMBER: _ClassVar[int]
    fqans: _containers.RepeatedScalarFieldContainer[str]
    lifetime_s: float
    order: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedScalarFieldContainer[str]
    vo: str
    def __init__(self, fqans: _Optional[_Iterable[str]] = ..., lifetime_s: _Optional[float] = ..., order: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[str]] = ..., vo: _Optional[str] = ...) -> None: ...

class IssueAttributesResponse(_message.Message):
    __slots__ = ("attribute_certificate", "fqans", "not_after_us", "warnings")
    ATTRIBUTE_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    FQANS_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_US_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    attribute_certificate: bytes
    fqans: _containers.RepeatedScalarFieldContainer[str]
    not_after_us: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, attribute_certificate: _Optional[bytes] = ..., fqans: _Optional[_Iterable[str]] = ..., not_after_us: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
