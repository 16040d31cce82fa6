"""The RPCs of the VO server: decode, ask the organisation, encode."""

from __future__ import annotations

from dataclasses import replace

import grpc
from gridfabric.vo.v1 import vo_pb2 as pb
from gridfabric.vo.v1 import vo_pb2_grpc as pb_grpc

from agents.vo import machine
from agents.vo import store as rows
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
from agents.vo.organisation import Organisation, manager_fqan
from fabric.clock import to_us
from fabric.errors import GridError, InvalidRequest, Refused, from_security
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, any_of, any_service, authenticated
from security.errors import SecurityError
from security.names import DistinguishedName


class _Manager(Rule):
    """An operator of the grid, or a session with the role VO-Admin; the servicer asks the store too."""

    def __init__(self, vo: str) -> None:
        self._fqan = manager_fqan(vo)

    admits_unmapped = True

    def refusal(self, peer: Peer, site: str, method: str) -> GridError | None:
        if peer.is_administrator or (self._fqan in peer.fqans and not peer.is_limited):
            return None
        return Refused(
            "ADMINISTRATOR_REQUIRED",
            f"{peer.subject} may not call {method}: it is only for operators of the grid, and for managers of the VO "
            f"with a full proxy made by: grid proxy init --voms {self._fqan.split('/')[1]}:{self._fqan}",
            subject=peer.subject,
            method=method,
        )


def rules(vo: str) -> dict[str, Rule]:
    """Who may call what."""
    manager, anybody = _Manager(vo), any_of(authenticated, any_service)
    return {
        "AddMember": manager,
        "RemoveMember": manager,
        "ListMembers": anybody,
        "GetMember": authenticated,
        "RequestMembership": authenticated,
        "ApproveMember": manager,
        "SuspendMember": manager,
        "RestoreMember": manager,
        "RenewMember": manager,
        "AddGroup": manager,
        "RemoveGroup": manager,
        "AddRole": manager,
        "RemoveRole": manager,
        "ListGroups": anybody,
        "Grant": manager,
        "Withdraw": manager,
        "SetAttribute": manager,
        "GetAup": authenticated,
        "PublishAup": manager,
        "SignAup": authenticated,
        "IssueAttributes": authenticated,
    }


_Context = grpc.aio.ServicerContext


class VoServicer(pb_grpc.VirtualOrganisationServicer):
    """Every change asks first whether the manager still is one."""

    def __init__(self, organisation: Organisation) -> None:
        self._organisation = organisation
        self._vo = organisation.vo

    async def _manager(self, context: _Context) -> str:
        peer = current_peer(context)
        await self._organisation.require_manager(peer)
        return peer.subject

    # -- members -----------------------------------------------------------------------------------------------------

    async def AddMember(self, request: pb.AddMemberRequest, context: _Context) -> pb.AddMemberResponse:
        by = await self._manager(context)
        given = request.member
        now_us = self._organisation.now_us()
        member = checked_member(self._vo, given.subject, given.common_name, given.email, tuple(given.groups), now_us)
        await self._organisation.add(member, by)
        return pb.AddMemberResponse()

    async def RemoveMember(self, request: pb.RemoveMemberRequest, context: _Context) -> pb.RemoveMemberResponse:
        by = await self._manager(context)
        await self._organisation.remove(_subject(request.subject), by)
        return pb.RemoveMemberResponse()

    async def ListMembers(self, request: pb.ListMembersRequest, context: _Context) -> pb.ListMembersResponse:
        if len(request.page_token) > 4096:
            raise InvalidRequest("PAGE_TOKEN_INVALID", "the page token is not one of ours; begin with an empty one")
        size = self._organisation.config.page_size
        found = await self._organisation.store.read(lambda connection: rows.page(connection, request.page_token, size))
        trusted = self._is_manager(current_peer(context))
        return pb.ListMembersResponse(
            vo=self._vo,
            members=[to_wire(member if trusted else replace(member, reason="", attributes={})) for member in found],
            next_page_token=found[-1].subject if len(found) == size else "",
        )

    def _is_manager(self, peer: Peer) -> bool:
        return peer.is_administrator or manager_fqan(self._vo) in peer.fqans

    async def GetMember(self, request: pb.GetMemberRequest, context: _Context) -> pb.GetMemberResponse:
        peer = current_peer(context)
        subject = _subject(request.subject) if request.subject else peer.subject
        if subject != peer.subject:
            if not self._is_manager(peer):
                raise Refused(
                    "MANAGER_REQUIRED",
                    f"{peer.subject} may look at its own membership only; managers of {self._vo} at everybody's",
                    subject=peer.subject,
                )
            await self._organisation.require_manager(peer)
        member = await self._organisation.store.read(lambda connection: rows.get(connection, self._vo, subject))
        return self._shown(member)

    def _shown(self, member: Member) -> pb.GetMemberResponse:
        refusal = machine.objection(self._vo, member, self._organisation.aup, self._organisation.now_us())
        return pb.GetMemberResponse(
            vo=self._vo,
            member=to_wire(member),
            objection=refusal.sentence if refusal else "",
            objection_reason=refusal.reason if refusal else "",
        )

    # -- life --------------------------------------------------------------------------------------------------------

    async def RequestMembership(self, request: pb.RequestMembershipRequest, context: _Context) -> pb.GetMemberResponse:
        member = checked_member(
            self._vo,
            current_peer(context).subject,
            request.common_name,
            request.email,
            (),
            self._organisation.now_us(),
            state=MemberState.REQUESTED,
        )
        return self._shown(await self._organisation.request(member))

    async def _event(self, subject: str, event: machine.Event, context: _Context) -> pb.GetMemberResponse:
        by = await self._manager(context)
        return self._shown(await self._organisation.change(_subject(subject), event, by))

    async def ApproveMember(self, request: pb.ApproveMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request.subject, machine.Approved(request.expires_at_us), context)

    async def SuspendMember(self, request: pb.SuspendMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request.subject, machine.Suspended(request.reason), context)

    async def RestoreMember(self, request: pb.RestoreMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request.subject, machine.Restored(), context)

    async def RenewMember(self, request: pb.RenewMemberRequest, context: _Context) -> pb.GetMemberResponse:
        return await self._event(request.subject, machine.Renewed(request.expires_at_us), context)

    # -- groups, roles, attributes -----------------------------------------------------------------------------------

    async def AddGroup(self, request: pb.AddGroupRequest, context: _Context) -> pb.AddGroupResponse:
        by = await self._manager(context)
        group = self._group(request.group)
        await self._organisation.define(lambda c: rows.add_group(c, self._vo, group), "group.added", by, group)
        return pb.AddGroupResponse()

    async def RemoveGroup(self, request: pb.RemoveGroupRequest, context: _Context) -> pb.RemoveGroupResponse:
        by = await self._manager(context)
        group = self._group(request.group)
        await self._organisation.edit_all(lambda c: rows.remove_group(c, self._vo, group), "group.removed", by, group)
        return pb.RemoveGroupResponse()

    def _group(self, text: str) -> str:
        group, role = split_fqan(self._vo, text)
        if role:
            raise InvalidRequest("FQAN_INVALID", f"{text[:80]!r} has a role; name a group, as /{self._vo}/higgs")
        return group

    async def AddRole(self, request: pb.AddRoleRequest, context: _Context) -> pb.AddRoleResponse:
        by = await self._manager(context)
        role = checked_role(request.role)
        await self._organisation.define(lambda c: rows.add_role(c, role), "role.added", by, role)
        return pb.AddRoleResponse()

    async def RemoveRole(self, request: pb.RemoveRoleRequest, context: _Context) -> pb.RemoveRoleResponse:
        by = await self._manager(context)
        role = checked_role(request.role)
        await self._organisation.edit_all(lambda c: rows.remove_role(c, self._vo, role), "role.removed", by, role)
        return pb.RemoveRoleResponse()

    async def ListGroups(self, request: pb.ListGroupsRequest, context: _Context) -> pb.ListGroupsResponse:
        groups, roles = await self._organisation.store.read(
            lambda connection: (rows.group_names(connection, self._vo), rows.role_names(connection))
        )
        return pb.ListGroupsResponse(vo=self._vo, groups=groups, roles=roles)

    async def Grant(self, request: pb.GrantRequest, context: _Context) -> pb.GetMemberResponse:
        by = await self._manager(context)
        fqan = join_fqan(*split_fqan(self._vo, request.fqan))

        def grant(connection: rows.sa.Connection, member: Member) -> Member:
            rows.require_fqans(connection, self._vo, [fqan])
            if fqan in member.groups or fqan == f"/{self._vo}":
                return member
            if len(member.groups) >= MAX_GROUPS:
                raise InvalidRequest("MEMBER_INVALID", f"{member.subject} has {MAX_GROUPS} groups and roles already")
            return replace(member, groups=(*member.groups, fqan))

        return self._shown(await self._organisation.edit(_subject(request.subject), "granted", by, grant, fqan=fqan))

    async def Withdraw(self, request: pb.WithdrawRequest, context: _Context) -> pb.GetMemberResponse:
        by = await self._manager(context)
        fqan = join_fqan(*split_fqan(self._vo, request.fqan))
        if fqan == f"/{self._vo}":
            raise InvalidRequest(
                "FQAN_INVALID", f"{fqan} is membership itself; take it with: grid vo member remove, or suspend"
            )
        return self._shown(
            await self._organisation.edit(
                _subject(request.subject),
                "withdrawn",
                by,
                lambda _, member: rows.without_fqan(self._vo, member, fqan),
                fqan=fqan,
            )
        )

    async def SetAttribute(self, request: pb.SetAttributeRequest, context: _Context) -> pb.GetMemberResponse:
        by = await self._manager(context)
        name, value = checked_attribute(request.name, request.value)

        def put(_: rows.sa.Connection, member: Member) -> Member:
            kept = {known: text for known, text in member.attributes.items() if known != name}
            if value:
                kept[name] = value
            if len(kept) > MAX_ATTRIBUTES:
                raise InvalidRequest("ATTRIBUTE_INVALID", f"{member.subject} has {MAX_ATTRIBUTES} attributes already")
            return replace(member, attributes=kept)

        return self._shown(
            await self._organisation.edit(_subject(request.subject), "attribute_set", by, put, name=name)
        )

    # -- acceptable use policy ---------------------------------------------------------------------------------------

    async def GetAup(self, request: pb.GetAupRequest, context: _Context) -> pb.GetAupResponse:
        return self._aup(self._organisation.aup)

    async def PublishAup(self, request: pb.PublishAupRequest, context: _Context) -> pb.GetAupResponse:
        by = await self._manager(context)
        return self._aup(await self._organisation.publish_aup(request.text, request.grace_s, by))

    async def SignAup(self, request: pb.SignAupRequest, context: _Context) -> pb.GetMemberResponse:
        peer = current_peer(context)
        if peer.is_limited:
            raise Refused(
                "LIMITED_PROXY",
                f"{peer.subject} came with a limited proxy, which cannot sign an acceptable use policy; use a full one",
                subject=peer.subject,
            )
        event = machine.AupSigned(request.version)
        return self._shown(await self._organisation.change(peer.subject, event, peer.subject))

    def _aup(self, aup: Aup) -> pb.GetAupResponse:
        return pb.GetAupResponse(
            vo=self._vo,
            version=aup.version,
            text=aup.text,
            published_at_us=aup.published_at_us,
            required_at_us=aup.required_at_us,
        )

    # -- attributes --------------------------------------------------------------------------------------------------

    async def IssueAttributes(
        self, request: pb.IssueAttributesRequest, context: _Context
    ) -> pb.IssueAttributesResponse:
        if not 0 <= request.lifetime_s < 1e9:
            raise InvalidRequest("LIFETIME_INVALID", "the lifetime of attributes must be positive")
        wanted = Wanted(tuple(request.fqans), tuple(request.order), int(request.lifetime_s))
        issued = await self._organisation.issue_to_peer(current_peer(context), wanted)
        return pb.IssueAttributesResponse(
            attribute_certificate=issued.encoded,
            fqans=issued.fqans,
            not_after_us=to_us(issued.not_after),
            warnings=issued.warnings,
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
