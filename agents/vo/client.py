"""Calls to a VO server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gridfabric.vo.v1 import vo_pb2 as pb
from gridfabric.vo.v1 import vo_pb2_grpc as pb_grpc


class VoClient:
    """Over one channel. Every method raises GridError subclasses."""

    def __init__(self, channel: Any) -> None:
        self._stub = pb_grpc.VirtualOrganisationStub(channel)

    async def add_member(
        self, subject: str, common_name: str = "", email: str = "", groups: Sequence[str] = ()
    ) -> None:
        """VO managers. May be repeated; particulars are renewed."""
        member = pb.Member(subject=subject, common_name=common_name, email=email, groups=groups)
        await self._stub.AddMember(pb.AddMemberRequest(member=member))

    async def remove_member(self, subject: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.RemoveMember(pb.RemoveMemberRequest(subject=subject))

    async def list_members(self) -> list[pb.Member]:
        """All of them, page by page."""
        found: list[pb.Member] = []
        token = ""
        while True:
            answer = await self._stub.ListMembers(pb.ListMembersRequest(page_token=token))
            found.extend(answer.members)
            token = answer.next_page_token
            if not token:
                return found
