"""The RPCs of the VO server: decode, ask the organisation, encode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
from gridfabric.vo.v1 import vo_pb2 as pb
from gridfabric.vo.v1 import vo_pb2_grpc as pb_grpc

from agents.vo import machine
from agents.vo import store as rows
from agents.vo.hosted import HostedVo
from agents.vo.issuing import Wanted
from agents.vo.model import (
    MAX_ATTRIBUTES,
    MAX_GROUPS,
    Aup,
    Member,
    MemberState,
    checked_attribute,
    checked_member,
    checked_role,
    join_fqan,
    split_fqan,
)
from agents.vo.organisation import Organisation, is_manager_fqan, manager_fqan
from fabric.clock import to_us
from fabric.errors import GridError, InvalidRequest, NotFound, Refused, from_security
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, any_of, any_service, authenticated
from fabric.vos import Vos
from security.errors import SecurityError
from security.names import DistinguishedName


class _Manager(Rule):
    """An operator of the grid, or a session with the role VO-Admin; the servicer asks of which VO, and the store."""

    admits_unmapped = True

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        if peer.is_administrator or (any(is_manager_fqan(fqan) for fqan in peer.fqans) and not peer.is_limited):
            return None
        return _managers_only(peer, method, peer.fqans[0].split("/")[1] if peer.fqans else peer.vo or "VO")


def _managers_only(peer: Peer, method: str, vo: str) -> Refused:
    return Refused(
        "ADMINISTRATOR_REQUIRED",
        f"{peer.subject} may not call {method}: it is only for operators of the grid, and for managers of the VO with "
        f"a full proxy made by: grid proxy init --voms {vo}:{manager_fqan(vo)}",
        subject=peer.subject,
        method=method,
    )


_MANAGER, _ANYBODY = _Manager(), any_of(authenticated, any_service)
RULES: dict[str, Rule] = {
    "AddMember": _MANAGER,
    "RemoveMember": _MANAGER,
    "ListMembers": _ANYBODY,
    "GetMember": authenticated,
    "RequestMembership": authenticated,
    "ApproveMember": _MANAGER,
    "SuspendMember": _MANAGER,
    "RestoreMember": _MANAGER,
    "RenewMember": _MANAGER,
    "AddGroup": _MANAGER,
    "RemoveGroup": _MANAGER,
    "AddRole": _MANAGER,
    "RemoveRole": _MANAGER,
    "ListGroups": _ANYBODY,
    "Grant": _MANAGER,
    "Withdraw": _MANAGER,
    "SetAttribute": _MANAGER,
    "GetAup": authenticated,
    "PublishAup": _MANAGER,
    "SignAup": authenticated,
    "IssueAttributes": authenticated,
}


_Context = grpc.aio.ServicerContext


class VoServicer(pb_grpc.VirtualOrganisationServicer):
    """Every change asks first whether the manager still is one."""

    def __init__(self, vo: str, hosted: Mapping[str, HostedVo], vos: Vos) -> None:
        """`vo` is meant where a request names none; `hosted` may change."""
        self._vo, self._hosted, self._vos = vo, hosted, vos

    def _of(self, request: Any) -> Organisation:
        """Raises NotFound VO_UNKNOWN, Refused VO_DISSOLVED."""
        vo = request.vo or self._vo
        if vo in self._hosted:
            return self._hosted[vo].organisation
        if (refusal := self._vos.refusal(vo)) is not None:
            raise from_security(refusal)
        known = ", ".join(self._hosted) or "none"
        raise NotFound("VO_UNKNOWN", f"this server does not speak for the VO {vo[:64]!r}, but for: {known}", vo=vo[:64])

    async def _managed(self, request: Any, context: _Context) -> tuple[Organisation, str]:
        """The VO and the name of its manager who asks. Raises Refused."""
        organisation, peer = self._of(request), current_peer(context)
        if not _is_manager(organisation.vo, peer):
            method = type(request).__name__.removesuffix("Request")
            raise _managers_only(peer, method, organisation.vo)
        await organisation.require_manager(peer)
        return organisation, peer.subject

    # -- members -----------------------------------------------------------------------------------------------------

    async def AddMember(self, request: pb.AddMemberRequest, context: _Context) -> pb.AddMemberResponse:
        organisation, by = await self._managed(request, context)
        given = request.member
        now_us = organisation.now_us()
        member = checked_member(
            organisation.vo, given.subject, given.common_name, given.email, tuple(given.groups), now_us
        )
        await organisation.add(member, by)
        return pb.AddMemberResponse()

    async def RemoveMember(self, request: pb.RemoveMemberRequest, context: _Context) -> pb.RemoveMemberResponse:
        organisation, by = await self._managed(request, context)
        await organisation.remove(_subject(request.subject), by)
        return pb.RemoveMemberResponse()

    async def ListMembers(self, request: pb.ListMembersRequest, context: _Context) -> pb.ListMembersResponse:
        organisation = self._of(request)
        if len(request.page_token) > 4096:
            raise InvalidRequest("PAGE_TOKEN_INVALID", "the page token is not one of ours; begin with an empty one")
        size = organisation.config.page_size
        found = await organisation.store.read(lambda connection: rows.page(connection, request.page_token, size))
        trusted = _is_manager(organisation.vo, current_peer(context))
        return pb.ListMembersResponse(
            vo=organisation.vo,
            members=[to_wire(member if trusted else replace(member, reason="", attributes={})) for member in found],
            next_page_token=found[-1].subject if len(found) == size else "",
        )

    async def GetMember(self, request: pb.GetMemberRequest, context: _Context) -> pb.GetMemberResponse:
        organisation = self._of(request)
        peer = current_peer(context)
        subject = _subject(request.subject) if request.subject else peer.subject
        if subject != peer.subject:
            if not _is_manager(organisation.vo, peer):
                raise Refused(
                    "MANAGER_REQUIRED",
                    f"{peer.subject} may look at its own membership only; managers of {organisation.vo} at everybody's",
                    subject=peer.subject,
                )
            await organisation.require_manager(peer)
        member = await organisation.store.read(lambda connection: rows.get(connection, organisation.vo, subject))
        return _shown(organisation, member)

    # -- life --------------------------------------------------------------------------------------------------------

    async def RequestMembership(self, request: pb.RequestMembershipRequest, context: _Context) -> pb.GetMemberResponse:
        organisation = self._of(request)
        member = checked_member(
            organisation.vo,
            current_peer(context).subject,
            request.common_name,
            request.email,
            (),
            organisation.now_us(),
            state=MemberState.REQUESTED,
        )
        return _shown(organisation, await organisation.request(member))

    async def _event(self, request: Any, event: machine.Event, context: _Context) -> pb.GetMemberResponse:
        organisation, by = await self._managed(request, context)
        return _shown(organisation, await organisation.change(_subject(request.subject), event, by))

    async def ApproveMember(self, request: pb.ApproveMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request, machine.Approved(request.expires_at_us), context)

    async def SuspendMember(self, request: pb.SuspendMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request, machine.Suspended(request.reason), context)

    async def RestoreMember(self, request: pb.RestoreMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request, machine.Restored(), context)

    async def RenewMember(self, request: pb.RenewMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request, machine.Renewed(request.expires_at_us), context)

    # -- groups, roles, attributes -----------------------------------------------------------------------------------

    async def AddGroup(self, request: pb.AddGroupRequest, context: _Context) -> pb.AddGroupResponse:
        organisation, by = await self._managed(request, context)
        group = _group(organisation.vo, request.group)
        await organisation.define(lambda c: rows.add_group(c, organisation.vo, group), "group.added", by, group)
        return pb.AddGroupResponse()

    async def RemoveGroup(self, request: pb.RemoveGroupRequest, context: _Context) -> pb.RemoveGroupResponse:
        organisation, by = await self._managed(request, context)
        group = _group(organisation.vo, request.group)
        await organisation.edit_all(lambda c: rows.remove_group(c, organisation.vo, group), "group.removed", by, group)
        return pb.RemoveGroupResponse()

    async def AddRole(self, request: pb.AddRoleRequest, context: _Context) -> pb.AddRoleResponse:
        organisation, by = await self._managed(request, context)
        role = checked_role(request.role)
        await organisation.define(lambda c: rows.add_role(c, role), "role.added", by, role)
        return pb.AddRoleResponse()

    async def RemoveRole(self, request: pb.RemoveRoleRequest, context: _Context) -> pb.RemoveRoleResponse:
        organisation, by = await self._managed(request, context)
        role = checked_role(request.role)
        await organisation.edit_all(lambda c: rows.remove_role(c, organisation.vo, role), "role.removed", by, role)
        return pb.RemoveRoleResponse()

    async def ListGroups(self, request: pb.ListGroupsRequest, context: _Context) -> pb.ListGroupsResponse:
        organisation = self._of(request)
        groups, roles = await organisation.store.read(
            lambda connection: (rows.group_names(connection, organisation.vo), rows.role_names(connection))
        )
        return pb.ListGroupsResponse(vo=organisation.vo, groups=groups, roles=roles)

    async def Grant(self, request: pb.GrantRequest, context: _Context) -> pb.GetMemberResponse:
        organisation, by = await self._managed(request, context)
        fqan = join_fqan(*split_fqan(organisation.vo, request.fqan))

        def grant(connection: rows.sa.Connection, member: Member) -> Member:
            rows.require_fqans(connection, organisation.vo, [fqan])
            if fqan in member.groups or fqan == f"/{organisation.vo}":
                return member
            if len(member.groups) >= MAX_GROUPS:
                raise InvalidRequest("MEMBER_INVALID", f"{member.subject} has {MAX_GROUPS} groups and roles already")
            return replace(member, groups=(*member.groups, fqan))

        return _shown(organisation, await organisation.edit(_subject(request.subject), "granted", by, grant, fqan=fqan))

    async def Withdraw(self, request: pb.WithdrawRequest, context: _Context) -> pb.GetMemberResponse:
        organisation, by = await self._managed(request, context)
        fqan = join_fqan(*split_fqan(organisation.vo, request.fqan))
        if fqan == f"/{organisation.vo}":
            raise InvalidRequest(
                "FQAN_INVALID", f"{fqan} is membership itself; take it with: grid vo member remove, or suspend"
            )
        return _shown(
            organisation,
            await organisation.edit(
                _subject(request.subject),
                "withdrawn",
                by,
                lambda _, member: rows.without_fqan(organisation.vo, member, fqan),
                fqan=fqan,
            ),
        )

    async def SetAttribute(self, request: pb.SetAttributeRequest, context: _Context) -> pb.GetMemberResponse:
        organisation, by = await self._managed(request, context)
        name, value = checked_attribute(request.name, request.value)

        def put(_: rows.sa.Connection, member: Member) -> Member:
            kept = {known: text for known, text in member.attributes.items() if known != name}
            if value:
                kept[name] = value
            if len(kept) > MAX_ATTRIBUTES:
                raise InvalidRequest("ATTRIBUTE_INVALID", f"{member.subject} has {MAX_ATTRIBUTES} attributes already")
            return replace(member, attributes=kept)

        return _shown(
            organisation, await organisation.edit(_subject(request.subject), "attribute_set", by, put, name=name)
        )

    # -- acceptable use policy ---------------------------------------------------------------------------------------

    async def GetAup(self, request: pb.GetAupRequest, context: _Context) -> pb.GetAupResponse:
        organisation = self._of(request)
        return _aup(organisation, organisation.aup)

    async def PublishAup(self, request: pb.PublishAupRequest, context: _Context) -> pb.GetAupResponse:
        organisation, by = await self._managed(request, context)
        return _aup(organisation, await organisation.publish_aup(request.text, request.grace_s, by))

    async def SignAup(self, request: pb.SignAupRequest, context: _Context) -> pb.GetMemberResponse:
        organisation = self._of(request)
        peer = current_peer(context)
        if peer.is_limited:
            raise Refused(
                "LIMITED_PROXY",
                f"{peer.subject} came with a limited proxy, which cannot sign an acceptable use policy; use a full one",
                subject=peer.subject,
            )
        event = machine.AupSigned(request.version)
        return _shown(organisation, await organisation.change(peer.subject, event, peer.subject))

    # -- attributes --------------------------------------------------------------------------------------------------

    async def IssueAttributes(
        self, request: pb.IssueAttributesRequest, context: _Context
    ) -> pb.IssueAttributesResponse:
        organisation = self._of(request)
        if not 0 <= request.lifetime_s < 1e9:
            raise InvalidRequest("LIFETIME_INVALID", "the lifetime of attributes must be positive")
        wanted = Wanted(tuple(request.fqans), tuple(request.order), int(request.lifetime_s), tuple(request.targets))
        issued = await organisation.issue_to_peer(current_peer(context), wanted)
        return pb.IssueAttributesResponse(
            attribute_certificate=issued.encoded,
            fqans=issued.fqans,
            not_after_us=to_us(issued.not_after),
            warnings=issued.warnings,
        )


def _is_manager(vo: str, peer: Peer) -> bool:
    return peer.is_administrator or (manager_fqan(vo) in peer.fqans and not peer.is_limited)


def _group(vo: str, text: str) -> str:
    group, role = split_fqan(vo, text)
    if role:
        raise InvalidRequest("FQAN_INVALID", f"{text[:80]!r} has a role; name a group, as /{vo}/higgs")
    return group


def _shown(organisation: Organisation, member: Member) -> pb.GetMemberResponse:
    refusal = machine.objection(organisation.vo, member, organisation.aup, organisation.now_us())
    return pb.GetMemberResponse(
        vo=organisation.vo,
        member=to_wire(member),
        objection=refusal.sentence if refusal else "",
        objection_reason=refusal.reason if refusal else "",
    )


def _aup(organisation: Organisation, aup: Aup) -> pb.GetAupResponse:
    return pb.GetAupResponse(
        vo=organisation.vo,
        version=aup.version,
        text=aup.text,
        published_at_us=aup.published_at_us,
        required_at_us=aup.required_at_us,
    )


def _subject(text: str) -> str:
    try:
        return str(DistinguishedName.parse(text))
    except SecurityError as error:
        raise from_security(error) from error


_STATES = {
    MemberState.REQUESTED: pb.MEMBER_STATE_REQUESTED,
    MemberState.APPROVED: pb.MEMBER_STATE_APPROVED,
    MemberState.SUSPENDED: pb.MEMBER_STATE_SUSPENDED,
    MemberState.EXPIRED: pb.MEMBER_STATE_EXPIRED,
}


def to_wire(member: Member) -> pb.Member:
    """A member as it travels."""
    return pb.Member(
        subject=member.subject,
        common_name=member.common_name,
        email=member.email,
        groups=member.groups,
        added_at_us=member.added_at_us,
        state=_STATES[member.state],
        aup_version=member.aup_version,
        aup_signed_at_us=member.aup_signed_at_us,
        expires_at_us=member.expires_at_us,
        reason=member.reason,
        attributes=dict(member.attributes),
    )
