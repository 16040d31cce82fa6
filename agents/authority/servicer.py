"""The RPCs of the authority: decode, ask the register, encode."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from gridfabric.authority.v1 import authority_pb2 as pb
from gridfabric.authority.v1 import authority_pb2_grpc as pb_grpc

from agents.authority import store as rows
from agents.authority.authorities import Authorities
from agents.authority.config import AuthorityConfig
from agents.authority.register import AgentRequest, Register
from fabric.clock import Clock, to_us
from fabric.errors import Exhausted, InvalidRequest, Unauthenticated
from fabric.logs import Logger
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import administrator, anyone
from fabric.store import Store

RULES = {
    "Enrol": anyone,
    "IssueUser": administrator,
    "IssueHost": administrator,
    "Invite": administrator,
    "Revoke": administrator,
    "ListIssued": administrator,
}
MAX_LISTED = 10_000
"""Certificates in one answer: below the size limit of a message."""


class AuthorityServicer(pb_grpc.AuthorityServicer):
    """`publish` makes new lists of these authorities and returns the number of the last, on its way to every host."""

    def __init__(
        self,
        authorities: Authorities,
        register: Register,
        store: Store,
        config: AuthorityConfig,
        clock: Clock,
        log: Logger,
        publish: Callable[[Sequence[str]], Awaitable[int]],
    ) -> None:
        self._authorities = authorities
        self._register, self._store, self._config = register, store, config
        self._clock, self._log, self._publish = clock, log, publish
        self.issued = 0
        self.revoked = 0

    async def Invite(self, request: pb.InviteRequest, context: grpc.aio.ServicerContext) -> pb.InviteResponse:
        site = request.site
        if site not in self._config.sites:
            known = ", ".join(self._config.sites) or "none"
            raise InvalidRequest("SITE_UNKNOWN", f"site {site[:80]!r} is not in this grid; its sites are {known}")
        token = secrets.token_urlsafe(32)
        now_us = to_us(self._clock.now())
        expires_at_us = now_us + int(self._config.invitation_lifetime_s * 1e6)

        def add(connection: Any) -> None:
            if rows.open_count(connection, now_us) >= self._config.max_invitations:
                raise Exhausted(
                    "TOO_MANY_INVITATIONS", "too many invitations are open; wait until some expire", retry_after_s=60
                )
            rows.add(connection, token, site, expires_at_us)

        await self._store.write(add)
        self._log.audit("site.invited", site=site, by=current_peer(context).subject)
        return pb.InviteResponse(token=token, authority_pem=self._authorities.first.ca_pem())

    async def Enrol(self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext) -> pb.EnrolResponse:
        found = await self._store.read(lambda connection: rows.find(connection, request.token))
        if found is None or found.site != request.site or found.expires_at_us < to_us(self._clock.now()):
            raise _bad_token(request.site)
        agents = [AgentRequest(a.kind, a.name, tuple(a.hosts), a.request_pem) for a in request.agents]
        self._register.check_agents(request.site, agents)
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        if not await self._store.write(lambda connection: rows.spend(connection, request.token, request_hash)):
            raise _bad_token(request.site)
        certificates = list(found.certificates)
        if not certificates:
            certificates = await asyncio.to_thread(self._register.issue_agents, request.site, agents)
            await self._store.write(lambda connection: rows.keep_answer(connection, request.token, certificates))
            self.issued += len(certificates)
            self._log.audit("site.enrolled", site=request.site, agents=[f"{a.kind}/{a.name}" for a in agents][:50])
        return pb.EnrolResponse(certificate_pem=certificates)

    async def IssueUser(self, request: pb.IssueUserRequest, context: grpc.aio.ServicerContext) -> pb.IssueUserResponse:
        pem = await asyncio.to_thread(
            self._register.issue_user,
            request.common_name,
            request.request_pem,
            request.lifetime_s,
            renew=request.renew,
            authority=request.authority,
            robot=request.robot,
        )
        self.issued += 1
        self._log.audit(
            "user.issued",
            common_name=request.common_name,
            authority=request.authority or None,
            robot=request.robot or None,
            by=current_peer(context).subject,
        )
        return pb.IssueUserResponse(certificate_pem=pem)

    async def IssueHost(self, request: pb.IssueHostRequest, context: grpc.aio.ServicerContext) -> pb.IssueHostResponse:
        pem = await asyncio.to_thread(
            self._register.issue_host,
            list(request.hosts),
            request.service,
            request.request_pem,
            request.lifetime_s,
            renew=request.renew,
            authority=request.authority,
        )
        self.issued += 1
        self._log.audit(
            "host.issued",
            hosts=list(request.hosts),
            service=request.service or None,
            authority=request.authority or None,
            by=current_peer(context).subject,
        )
        return pb.IssueHostResponse(certificate_pem=pem)

    async def Revoke(self, request: pb.RevokeRequest, context: grpc.aio.ServicerContext) -> pb.RevokeResponse:
        register = self._register
        if request.proxy_pem:
            if request.serial or request.subject:
                raise InvalidRequest("REVOCATION_INVALID", "name a proxy, or a serial number, or a subject to revoke")
            serial, name = await asyncio.to_thread(register.revoke_proxy, request.proxy_pem, request.reason)
            serials, names = [serial], [name]
        else:
            serials, names = await asyncio.to_thread(register.revoke, request.serial, request.subject, request.reason)
        number = await self._publish(names)
        self.revoked += len(serials)
        self._log.audit(
            "certificate.revoked",
            serials=serials,
            subject=request.subject,
            reason=request.reason,
            crl_number=number,
            by=current_peer(context).subject,
        )
        return pb.RevokeResponse(serials=serials, crl_number=number)

    async def ListIssued(
        self, request: pb.ListIssuedRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListIssuedResponse:
        found = await asyncio.to_thread(self._register.issued, request.subject_prefix)
        if len(found) > MAX_LISTED:
            raise Exhausted(
                "TOO_MANY_CERTIFICATES",
                f"{len(found)} certificates match, more than {MAX_LISTED}; ask for a longer prefix",
            )
        return pb.ListIssuedResponse(
            issued=[
                pb.Issued(
                    serial=f"{row.serial:X}",
                    subject=str(row.subject),
                    not_after_us=to_us(row.not_after),
                    revoked_at_us=to_us(row.revoked_at) if row.revoked_at else 0,
                    reason=row.revocation_reason or "",
                    issuer=str(issuer),
                )
                for issuer, row in found
            ]
        )


def _bad_token(site: str) -> Unauthenticated:
    """One sentence for every reason, so that a stranger learns nothing about tokens."""
    return Unauthenticated(
        "INVITATION_INVALID",
        f"the invitation for site {site[:80]!r} is not valid here, expired or was used; "
        "ask for a new one: grid host invite SITE",
        site=site[:80],
    )
