"""The RPCs of the VO server. The LDAP tree changes after the store did, in the order of the commits."""

from __future__ import annotations

import asyncio

import grpc
from gridfabric.vo.v1 import vo_pb2 as pb
from gridfabric.vo.v1 import vo_pb2_grpc as pb_grpc

from agents.vo import store as rows
from agents.vo.config import VoConfig
from agents.vo.directory import MemberDirectory
from agents.vo.model import Member, checked_member
from fabric.clock import Clock, to_us
from fabric.errors import InvalidRequest, from_security
from fabric.logs import Logger
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import administrator, any_of, any_service, authenticated
from fabric.store import Store
from security.errors import SecurityError
from security.names import DistinguishedName

RULES = {
    "AddMember": administrator,
    "RemoveMember": administrator,
    "ListMembers": any_of(authenticated, any_service),
}


class VoServicer(pb_grpc.VirtualOrganisationServicer):
    """Members in, members out."""

    def __init__(self, store: Store, directory: MemberDirectory, config: VoConfig, clock: Clock, log: Logger) -> None:
        self._store, self._directory, self._config = store, directory, config
        self._clock, self._log = clock, log
        self._changing = asyncio.Lock()

    async def AddMember(self, request: pb.AddMemberRequest, context: grpc.aio.ServicerContext) -> pb.AddMemberResponse:
        given = request.member
        now_us = to_us(self._clock.now())
        member = checked_member(
            self._config.vo, given.subject, given.common_name, given.email, tuple(given.groups), now_us
        )
        async with self._changing:
            kept = await self._store.write(lambda connection: rows.put(connection, member, self._config.max_members))
            self._directory.put(kept)
        self._log.audit("member.added", vo=self._config.vo, subject=kept.subject, by=current_peer(context).subject)
        return pb.AddMemberResponse()

    async def RemoveMember(
        self, request: pb.RemoveMemberRequest, context: grpc.aio.ServicerContext
    ) -> pb.RemoveMemberResponse:
        try:
            subject = str(DistinguishedName.parse(request.subject))
        except SecurityError as error:
            raise from_security(error) from error
        async with self._changing:
            removed = await self._store.write(lambda connection: rows.remove(connection, subject))
            self._directory.remove(subject)
        if removed:
            self._log.audit("member.removed", vo=self._config.vo, subject=subject, by=current_peer(context).subject)
        return pb.RemoveMemberResponse()

    async def ListMembers(
        self, request: pb.ListMembersRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListMembersResponse:
        if len(request.page_token) > 4096:
            raise InvalidRequest("PAGE_TOKEN_INVALID", "the page token is not one of ours; begin with an empty one")
        size = self._config.page_size
        found = await self._store.read(lambda connection: rows.page(connection, request.page_token, size))
        return pb.ListMembersResponse(
            vo=self._config.vo,
            members=[to_wire(member) for member in found],
            next_page_token=found[-1].subject if len(found) == size else "",
        )


def to_wire(member: Member) -> pb.Member:
    """A member as it travels."""
    return pb.Member(
        subject=member.subject,
        common_name=member.common_name,
        email=member.email,
        groups=member.groups,
        added_at_us=member.added_at_us,
    )
