"""Calls to a VO server: ours by gRPC, anybody's by the HTTPS of VOMS."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from gridfabric.vo.v1 import vo_pb2 as pb
from gridfabric.vo.v1 import vo_pb2_grpc as pb_grpc

from agents.vo import voms_wire
from fabric.errors import InvalidRequest, Refused, Unauthenticated, Unavailable, from_security
from fabric.tls_door import TlsClosed, TlsStream, connect
from security.credentials import Credential
from security.errors import SecurityError, os_error_text
from security.names import DistinguishedName
from security.trust import TrustSnapshot
from security.validation import ValidationPolicy, validate_host_chain

VOMS_TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 256 * 1024


class VoClient:
    """Over one channel. Every method raises GridError subclasses."""

    def __init__(self, channel: Any, vo: str = "") -> None:
        """`vo`: which of the server's VOs; empty: that of the grid description."""
        self._stub, self._vo = pb_grpc.VirtualOrganisationStub(channel), vo

    async def add_member(
        self, subject: str, common_name: str = "", email: str = "", groups: Sequence[str] = ()
    ) -> None:
        """VO managers. May be repeated; particulars are renewed."""
        member = pb.Member(subject=subject, common_name=common_name, email=email, groups=groups)
        await self._stub.AddMember(pb.AddMemberRequest(vo=self._vo, member=member))

    async def remove_member(self, subject: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.RemoveMember(pb.RemoveMemberRequest(vo=self._vo, subject=subject))

    async def list_members(self) -> list[pb.Member]:
        """All of them, page by page."""
        found: list[pb.Member] = []
        token = ""
        while True:
            answer = await self._stub.ListMembers(pb.ListMembersRequest(vo=self._vo, page_token=token))
            found.extend(answer.members)
            token = answer.next_page_token
            if not token:
                return found

    # -- one member --------------------------------------------------------------------------------------------------

    async def get_member(self, subject: str = "") -> pb.GetMemberResponse:
        """A membership and whether it is in good standing; the caller's own without a subject."""
        return await self._stub.GetMember(pb.GetMemberRequest(vo=self._vo, subject=subject))

    async def request_membership(self, common_name: str = "", email: str = "") -> pb.GetMemberResponse:
        """The caller asks to become a member. May be repeated."""
        return await self._stub.RequestMembership(
            pb.RequestMembershipRequest(vo=self._vo, common_name=common_name, email=email)
        )

    async def approve(self, subject: str, expires_at_us: int = 0) -> pb.GetMemberResponse:
        """VO managers."""
        return await self._stub.ApproveMember(
            pb.ApproveMemberRequest(vo=self._vo, subject=subject, expires_at_us=expires_at_us)
        )

    async def suspend(self, subject: str, reason: str) -> pb.GetMemberResponse:
        """VO managers."""
        return await self._stub.SuspendMember(pb.SuspendMemberRequest(vo=self._vo, subject=subject, reason=reason))

    async def restore(self, subject: str) -> pb.GetMemberResponse:
        """VO managers."""
        return await self._stub.RestoreMember(pb.RestoreMemberRequest(vo=self._vo, subject=subject))

    async def renew(self, subject: str, expires_at_us: int = 0) -> pb.GetMemberResponse:
        """VO managers. 0: for good."""
        return await self._stub.RenewMember(
            pb.RenewMemberRequest(vo=self._vo, subject=subject, expires_at_us=expires_at_us)
        )

    # -- groups, roles, attributes -----------------------------------------------------------------------------------

    async def list_groups(self) -> pb.ListGroupsResponse:
        """Groups and roles that exist."""
        return await self._stub.ListGroups(pb.ListGroupsRequest(vo=self._vo))

    async def add_group(self, group: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.AddGroup(pb.AddGroupRequest(vo=self._vo, group=group))

    async def remove_group(self, group: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.RemoveGroup(pb.RemoveGroupRequest(vo=self._vo, group=group))

    async def add_role(self, role: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.AddRole(pb.AddRoleRequest(vo=self._vo, role=role))

    async def remove_role(self, role: str) -> None:
        """VO managers. May be repeated."""
        await self._stub.RemoveRole(pb.RemoveRoleRequest(vo=self._vo, role=role))

    async def grant(self, subject: str, fqan: str) -> pb.GetMemberResponse:
        """VO managers: a group or role for a member. May be repeated."""
        return await self._stub.Grant(pb.GrantRequest(vo=self._vo, subject=subject, fqan=fqan))

    async def withdraw(self, subject: str, fqan: str) -> pb.GetMemberResponse:
        """VO managers: take a group or role. May be repeated."""
        return await self._stub.Withdraw(pb.WithdrawRequest(vo=self._vo, subject=subject, fqan=fqan))

    async def set_attribute(self, subject: str, name: str, value: str) -> pb.GetMemberResponse:
        """VO managers: a generic attribute; an empty value removes it."""
        return await self._stub.SetAttribute(
            pb.SetAttributeRequest(vo=self._vo, subject=subject, name=name, value=value)
        )

    # -- acceptable use policy ---------------------------------------------------------------------------------------

    async def get_aup(self) -> pb.GetAupResponse:
        """The current version; version 0 if the VO has none."""
        return await self._stub.GetAup(pb.GetAupRequest(vo=self._vo))

    async def publish_aup(self, text: str, grace_s: float = 0.0) -> pb.GetAupResponse:
        """VO managers: a new version, to be signed by everybody before the grace ends. Not to be repeated."""
        return await self._stub.PublishAup(pb.PublishAupRequest(vo=self._vo, text=text, grace_s=grace_s))

    async def sign_aup(self, version: int) -> pb.GetMemberResponse:
        """The caller signs that version, which must be the current one."""
        return await self._stub.SignAup(pb.SignAupRequest(vo=self._vo, version=version))

    # -- attributes --------------------------------------------------------------------------------------------------

    async def issue_attributes(
        self,
        fqans: Sequence[str] = (),
        lifetime_s: float = 0.0,
        order: Sequence[str] = (),
        targets: Sequence[str] = (),
    ) -> pb.IssueAttributesResponse:
        """A VOMS attribute certificate for the caller's end-entity certificate. `targets`: only for these hosts."""
        return await self._stub.IssueAttributes(
            pb.IssueAttributesRequest(vo=self._vo, fqans=fqans, lifetime_s=lifetime_s, order=order, targets=targets)
        )


async def fetch_by_voms(
    host: str,
    port: int,
    subject: DistinguishedName,
    credential: Credential,
    fqans: Sequence[str],
    lifetime_s: int,
    trust: TrustSnapshot,
    policy: ValidationPolicy,
    now: datetime,
    targets: Sequence[str] = (),
) -> tuple[bytes, tuple[str, ...]]:
    """An attribute certificate (DER) of any VOMS server of version 2, and its warnings.

    `subject` is the server's name in the vomses file: another one is refused, also with the right host name. Raises
    Refused VOMS_REFUSED with the server's own words, Unauthenticated, Unavailable, InvalidRequest.
    """
    where = f"{host}:{port}"
    query = f"fqans={quote(','.join(fqans), safe='/,=')}&lifetime={lifetime_s}"
    if targets:
        query += f"&targets={quote(','.join(targets), safe=',')}"
    request = f"GET {voms_wire.PATH}?{query} HTTP/1.0\r\nHost: {where}\r\nAccept: */*\r\n\r\n"
    stream: TlsStream | None = None
    try:
        async with asyncio.timeout(VOMS_TIMEOUT_S):
            stream = await connect(credential, host, port)
            identity = validate_host_chain(stream.chain, host, trust, policy, now)
            if identity.subject != subject:
                raise Unauthenticated(
                    "HOST_NAME_MISMATCH",
                    f"the VOMS server {where} is {identity.subject} and not {subject} as the vomses file says; ask the "
                    "VO for a new vomses file",
                    subject=identity.subject,
                )
            await stream.write(request.encode("ascii"))
            data = b""
            while piece := await stream.read():
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise InvalidRequest("VOMS_ANSWER_INVALID", f"{where} sends more than {MAX_ANSWER_BYTES} bytes")
    except SecurityError as error:
        raise from_security(error, peer=where) from error
    except (OSError, TimeoutError) as error:
        words = str(error) if isinstance(error, TlsClosed) else os_error_text(error)
        words = "no answer in time" if isinstance(error, TimeoutError) else words
        raise Unavailable(
            "SERVER_UNREACHABLE", f"the VOMS server {where} cannot be reached ({words}); try again", peer=where
        ) from error
    finally:
        if stream is not None:
            stream.close()
    answer = voms_wire.parse_answer(data)
    if not answer.encoded or not data.startswith(b"HTTP/1.") or data[8:12] != b" 200":
        raise Refused(
            "VOMS_REFUSED", "; ".join(answer.errors) or f"{where} gave no attributes and no reason", peer=where
        )
    return answer.encoded, answer.warnings
