"""Calls to the authority, also from a machine that is not yet part of the grid."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from gridfabric.authority.v1 import authority_pb2 as pb
from gridfabric.authority.v1 import authority_pb2_grpc as pb_grpc
from gridfabric.authority.v1 import bans_pb2, bans_pb2_grpc, trust_pb2, trust_pb2_grpc, vos_pb2, vos_pb2_grpc

from fabric.clock import SystemClock, to_us
from fabric.errors import from_security
from fabric.logs import null_logger
from fabric.rpc.channel import Channels
from fabric.rpc.server import default_policy
from security.credentials import Credential
from security.errors import SecurityError
from security.trust import TrustStore
from security.vos import VoList


class AuthorityClient:
    """Over one channel. Every method raises GridError subclasses."""

    def __init__(self, channel: Any) -> None:
        self._stub = pb_grpc.AuthorityStub(channel)
        self._bans = bans_pb2_grpc.BansStub(channel)
        self._vos = vos_pb2_grpc.VosStub(channel)
        self._trust = trust_pb2_grpc.TrustStub(channel)

    async def invite(self, site: str) -> tuple[str, bytes]:
        """Operators: a token for one enrolment of that site, and the authority's certificate (PEM)."""
        answer = await self._stub.Invite(pb.InviteRequest(site=site))
        return answer.token, answer.authority_pem

    async def enrol(
        self, token: str, site: str, agents: Sequence[tuple[str, str, Sequence[str], bytes]]
    ) -> list[bytes]:
        """Certificates (PEM) for agents given as kind, name, hosts, request. The same call may be repeated."""
        rows = [
            pb.AgentRequest(kind=kind, name=name, hosts=hosts, request_pem=request)
            for kind, name, hosts, request in agents
        ]
        answer = await self._stub.Enrol(pb.EnrolRequest(token=token, site=site, agents=rows))
        return list(answer.certificate_pem)

    async def issue_user(
        self,
        common_name: str,
        request_pem: bytes,
        lifetime_s: int = 0,
        *,
        renew: bool = False,
        authority: str = "",
        robot: bool = False,
    ) -> bytes:
        """Operators: the certificate (PEM) of a person, or of a robot, from an authority by its name."""
        request = pb.IssueUserRequest(
            common_name=common_name, request_pem=request_pem, lifetime_s=lifetime_s, renew=renew, authority=authority,
            robot=robot,
        )  # fmt: skip
        return (await self._stub.IssueUser(request)).certificate_pem

    async def issue_host(
        self,
        hosts: Sequence[str],
        request_pem: bytes,
        lifetime_s: int = 0,
        *,
        service: str = "",
        renew: bool = False,
        authority: str = "",
    ) -> bytes:
        """Operators: the certificate (PEM) of a host, or of a service on it; agents of the grid enrol instead."""
        request = pb.IssueHostRequest(
            hosts=hosts, service=service, request_pem=request_pem, lifetime_s=lifetime_s, renew=renew,
            authority=authority,
        )  # fmt: skip
        return (await self._stub.IssueHost(request)).certificate_pem

    async def revoke(
        self, *, serial: str = "", subject: str = "", proxy: bytes = b"", reason: str = "unspecified"
    ) -> tuple[list[str], int]:
        """Operators: one serial, all of a subject, or one proxy (PEM chain, its owner stays good). The serials that are
        revoked now and the number of the list that says so."""
        request = pb.RevokeRequest(serial=serial, subject=subject, proxy_pem=proxy, reason=reason)
        answer = await self._stub.Revoke(request)
        return list(answer.serials), answer.crl_number

    async def list_issued(self, prefix: str = "") -> list[pb.Issued]:
        """Operators: the register."""
        return list((await self._stub.ListIssued(pb.ListIssuedRequest(subject_prefix=prefix))).issued)

    async def ban(
        self,
        kind: str,
        value: str,
        *,
        reason: str = "",
        until: datetime | None = None,
        sites: Sequence[str] = (),
        ban_id: str | None = None,
    ) -> bans_pb2.Ban:
        """Operators: ban somebody at these sites (none: everywhere). Again with the same id: succeeds."""
        asked = bans_pb2.Ban(
            id=ban_id or uuid.uuid4().hex[:12], kind=kind, value=value, reason=reason, sites=sites,
            until_us=to_us(until) if until else 0,
        )  # fmt: skip
        return (await self._bans.Add(bans_pb2.AddBanRequest(ban=asked))).ban

    async def lift(self, ban_id: str) -> bool:
        """Operators: end a ban. False if there was none with this id."""
        return (await self._bans.Lift(bans_pb2.LiftBanRequest(id=ban_id))).was_there

    async def bans(self) -> list[bans_pb2.Ban]:
        """Every ban in force."""
        return list((await self._bans.List(bans_pb2.ListBansRequest())).bans)

    # -- VOs ---------------------------------------------------------------------------------------------------------

    async def vos(self) -> VoList:
        """Anybody with a certificate: every VO, also those that were dissolved."""
        return VoList.parse((await self._vos.List(vos_pb2.ListVosRequest())).text)

    async def create_vo(self, name: str, server: str = "") -> VoList:
        """Operators: a VO at a VO server of the grid (its first). May be repeated. The list afterwards."""
        return VoList.parse((await self._vos.Create(vos_pb2.CreateVoRequest(name=name, server=server))).text)

    async def accept_vo(self, name: str, sites: Sequence[str]) -> VoList:
        """Operators: these sites let its members in. May be repeated. The list afterwards."""
        return VoList.parse((await self._vos.Accept(vos_pb2.SitesOfVoRequest(name=name, sites=sites))).text)

    async def refuse_vo(self, name: str, sites: Sequence[str]) -> VoList:
        """Operators: these sites do not let its members in. May be repeated. The list afterwards."""
        return VoList.parse((await self._vos.Refuse(vos_pb2.SitesOfVoRequest(name=name, sites=sites))).text)

    async def dissolve_vo(self, name: str, reason: str = "") -> VoList:
        """Operators: end it for ever. May be repeated. The list afterwards."""
        return VoList.parse((await self._vos.Dissolve(vos_pb2.DissolveVoRequest(name=name, reason=reason))).text)

    # -- authorities -------------------------------------------------------------------------------------------------

    async def authorities(self) -> list[trust_pb2.AuthorityFacts]:
        """Operators: everything that is trusted, the grid's first authority first."""
        return list((await self._trust.ListAuthorities(trust_pb2.ListAuthoritiesRequest())).authorities)

    async def create_authority(
        self, name: str, *, parent: str = "", namespace: Sequence[str] = (), lifetime_s: int = 0
    ) -> trust_pb2.AuthorityFacts:
        """Operators: a new authority of the grid, self-signed or below another one, trusted by every host at once."""
        request = trust_pb2.CreateAuthorityRequest(name=name, parent=parent, namespace=namespace, lifetime_s=lifetime_s)
        return (await self._trust.CreateAuthority(request)).authority

    async def add_authority(
        self, certificate: bytes, signing_policy: str, crl: bytes = b"", crl_url: Sequence[str] = ()
    ) -> trust_pb2.AuthorityFacts:
        """Operators: trust an authority from elsewhere (PEM or DER), with its revocation list and the addresses that
        every host fetches newer ones from; again, with a newer list or other addresses."""
        request = trust_pb2.AddAuthorityRequest(
            certificate=certificate, signing_policy=signing_policy, crl=crl, crl_url=crl_url
        )
        return (await self._trust.AddAuthority(request)).authority

    async def remove_authority(self, authority: str, *, dry_run: bool = False) -> list[trust_pb2.Losing]:
        """Operators: trust it no more, anywhere. By name, subject or hash. Returns whose certificates end with it."""
        request = trust_pb2.RemoveAuthorityRequest(authority=authority, dry_run=dry_run)
        return list((await self._trust.RemoveAuthority(request)).losing)

    async def roll_over(self, authority: str) -> trust_pb2.AuthorityFacts:
        """Operators: a new key beside the old one; agents renew their certificates by themselves."""
        return (await self._trust.RollOver(trust_pb2.RollOverRequest(authority=authority))).authority

    async def retire(self, authority: str, *, dry_run: bool = False, now: bool = False) -> list[trust_pb2.Losing]:
        """Operators: end the old key. Raises Conflict AUTHORITY_IN_USE while somebody has nothing else, and, if not
        `now`, OLD_KEY_IN_USE while jobs of people with newer certificates may stand on it. Returns whose certificates
        end with it, with `dry_run` before it does."""
        request = trust_pb2.RetireRequest(authority=authority, dry_run=dry_run, now=now)
        return list((await self._trust.Retire(request)).losing)

    async def renew(self, request_pem: bytes) -> bytes:
        """Agents and operators: a certificate (PEM) as the one of this session, for another key."""
        return (await self._trust.Renew(trust_pb2.RenewRequest(request_pem=request_pem))).certificate_pem


@asynccontextmanager
async def open_client(
    host: str, port: int, certificates: Path, credential: Credential | None = None
) -> AsyncIterator[AuthorityClient]:
    """A client outside of any agent. Without a credential only `enrol` is allowed. Raises GridError."""
    try:
        trust = TrustStore(certificates)
    except SecurityError as error:
        raise from_security(error) from error
    channels = Channels(
        trust=trust, policy=default_policy("require"), clock=SystemClock(), log=null_logger(), credential=credential
    )
    try:
        yield AuthorityClient(await channels.get(host, port))
    finally:
        await channels.close()
