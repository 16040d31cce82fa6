"""The drills. Each plays an attack on a real grid, and its control: the same with an honest credential succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from gridfabric.security.v1 import security_pb2

from agents.broker.client import BrokerClient
from agents.user_interface import delegations
from agents.user_interface.drill.ground import LOOK_EVERY_S, REFUSED_WITHIN_S, Ground, Person
from fabric.errors import GridError, from_rpc_error
from security.authority import CertificateAuthority
from security.certificates import issuer_of
from security.credentials import Credential, generate_key
from security.proxies import create_proxy

BANNED = ("BANNED",)
FLOOD_CONNECTIONS = 300
FLOOD_BYTES = 10_000


@dataclass(frozen=True)
class Drill:
    """One drill."""

    name: str
    story: str
    play: Callable[[Ground], Awaitable[None]]


async def user_banned(ground: Ground) -> None:
    """A user with a running job and open sessions is banned everywhere, then pardoned."""
    mallory, honest = await ground.user("Mallory"), await ground.user("Honest")
    ground.begin()
    job = await mallory.run_forever()
    await ground.accepted_everywhere(mallory)
    async with ground.honest(honest):
        authority = await ground.authority()
        ban = await authority.ban("subject", mallory.subject, reason="drill")
        ground.mark("defender", "bans the user")
        await asyncio.gather(ground.refused_everywhere(mallory, BANNED), ground.gone(job))
        await authority.lift(ban.id)
    ground.mark("defender", "lifts the ban")
    await _served_again(ground, mallory)


async def site_banned(ground: Ground) -> None:
    """A user is banned at one site only: there refused, elsewhere served."""
    mallory = await ground.user("Mallory")
    ground.begin()
    everywhere = ground.endpoints(("gatekeeper", "storage"))
    site = everywhere[-1].site
    there = [endpoint for endpoint in everywhere if endpoint.site == site]
    elsewhere = [endpoint for endpoint in everywhere if endpoint.site != site]
    await ground.accepted_everywhere(mallory, everywhere)
    authority = await ground.authority()
    ban = await authority.ban("subject", mallory.subject, reason="drill", sites=[site])
    ground.mark("defender", f"bans the user at {site}")
    await ground.refused_everywhere(mallory, BANNED, there)
    await ground.accepted_everywhere(mallory, elsewhere)
    await authority.lift(ban.id)


async def user_revoked(ground: Ground) -> None:
    """A user's certificate is revoked while a job runs and sessions are open."""
    mallory, honest = await ground.user("Mallory"), await ground.user("Honest")
    ground.begin()
    job = await mallory.run_forever()
    await ground.accepted_everywhere(mallory)
    async with ground.honest(honest):
        await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
        ground.mark("defender", "revokes the certificate")
        reasons = ("CERTIFICATE_REVOKED",)
        await asyncio.gather(ground.refused_everywhere(mallory, reasons), ground.gone(job))


async def delegation_stolen(ground: Ground) -> None:
    """Somebody reads a delegated proxy from a gatekeeper's disk and uses it; its owner recalls everything delegated."""
    alice = await ground.user("Alice")
    ground.begin()
    job = await alice.run_forever()
    stolen = _delegated_to_a_gatekeeper(ground, alice.subject)
    thief = await ground.bearer(stolen, "Thief")
    ground.mark("attacker", "reads a delegated proxy from the disk of a gatekeeper")
    targets = ground.endpoints(("storage", "catalog"))
    await ground.accepted_everywhere(thief, targets)
    held, _ = await delegations.ledger(alice.grid, "")
    ground.expect(bool(held), "no service tells its owner what it holds")
    await delegations.recall_all(alice.grid, "")
    ground.mark("defender", "the owner recalls what was delegated")
    await asyncio.gather(ground.refused_everywhere(thief, BANNED, targets), ground.gone(job))
    await ground.accepted_everywhere(alice)


async def membership_suspended(ground: Ground) -> None:
    """The VO suspends a member, and takes that back."""
    mallory = await ground.user("Mallory")
    ground.begin()
    await ground.accepted_everywhere(mallory)
    vo = await ground.vo()
    await vo.suspend(mallory.subject, "drill")
    ground.mark("defender", "suspends the membership")
    await ground.refused_everywhere(mallory, ("NOT_MAPPED",))
    await vo.restore(mallory.subject)
    ground.mark("defender", "restores the membership")
    await _served_again(ground, mallory)


async def limited_proxy_submits(ground: Ground) -> None:
    """A limited proxy may read data and may not submit a job."""
    alice = await ground.user("Alice")
    ground.begin()
    now = datetime.now(UTC)
    limited = create_proxy(alice.certificate, lifetime=timedelta(hours=1), now=now, limited=True)
    below = create_proxy(limited, lifetime=timedelta(hours=1), now=now)
    for credential, name in ((limited, "limited proxy"), (below, "proxy below a limited one")):
        bearer = await ground.bearer(credential, name)
        await ground.accepted_everywhere(bearer, ground.endpoints(("storage",)))
        (broker,) = ground.endpoints(("broker",))
        try:
            client = BrokerClient(await bearer.grid.channel("broker"))
            await client.submit('Executable = "/bin/true";')
            ground.expect(False, f"the broker took a job from a {name}")
        except GridError as error:
            ground.expect(error.reason == "LIMITED_PROXY", f"refused with {error.reason}")
            ground.score.refused_ms[broker.name] = 0.0
            ground.mark("umpire", f"refuses: {error.sentence}", broker.name)


async def proxy_outlived(ground: Ground) -> None:
    """A proxy ends while its sessions are open."""
    alice = await ground.user("Alice")
    ground.begin()
    short = create_proxy(alice.certificate, lifetime=timedelta(seconds=4), now=datetime.now(UTC))
    bearer = await ground.bearer(short, "short proxy")
    await ground.accepted_everywhere(bearer)
    await asyncio.sleep(max(0.0, (short.not_after - datetime.now(UTC)).total_seconds()))
    ground.mark("umpire", "the proxy ends")
    await ground.refused_everywhere(bearer, ("PROXY_EXPIRED", "SESSION_EXPIRED", "CERTIFICATE_EXPIRED"))
    await ground.accepted_everywhere(alice)


async def chain_too_deep(ground: Ground) -> None:
    """A proxy of a proxy that allowed none, and a chain of twenty."""
    alice = await ground.user("Alice")
    ground.begin()
    now, hour = datetime.now(UTC), timedelta(hours=1)
    deep = alice.certificate
    for _ in range(20):
        deep = create_proxy(deep, lifetime=hour, now=now)
    await ground.refused_everywhere(
        await ground.bearer(deep, "twenty proxies"), ("CHAIN_TOO_LONG", "PROXY_PATH_LENGTH_EXCEEDED")
    )
    three = alice.certificate
    for _ in range(3):
        three = create_proxy(three, lifetime=hour, now=now)
    await ground.accepted_everywhere(await ground.bearer(three, "three proxies"))


async def rogue_authority(ground: Ground) -> None:
    """An authority of the same name issues a certificate with a real user's name."""
    alice = await ground.user("Alice")
    ground.begin()
    now = datetime.now(UTC)
    rogue = CertificateAuthority.create(
        ground.folder / f"rogue-{time.monotonic_ns()}",
        issuer_of(alice.certificate.certificate),
        lifetime=timedelta(days=10),
        now=now,
    )
    key = generate_key("rsa-2048")
    try:
        forged = Credential(
            rogue.issue_user(alice.certificate.subject, key.public_key(), lifetime=timedelta(days=1), now=now), key
        )
    finally:
        rogue.close()
    ground.mark("attacker", "an authority of the same name has signed a certificate of the user's name")
    twin = await ground.person(forged, "Twin")
    await ground.refused_everywhere(twin, ("UNKNOWN_CA", "BAD_SIGNATURE"))
    await ground.accepted_everywhere(alice)


async def token_replayed(ground: Ground) -> None:
    """A session token taken from one server is used at others, and at its own after a ban."""
    mallory = await ground.user("Mallory")
    ground.begin()
    first, *others = ground.endpoints(("storage", "gatekeeper"))
    opened, token = await (await mallory.grid.channel_to(first.host, first.rpc)).ready()
    ground.mark("attacker", f"has a session token of {first.name}")
    for endpoint in others:
        channel, _ = await (await mallory.grid.channel_to(endpoint.host, endpoint.rpc)).ready()
        refusal = await _call_with_token(channel.channel, token)
        ground.expect(refusal == "SESSION_UNKNOWN", f"{endpoint.name} answered a foreign token with {refusal or 'yes'}")
        ground.score.refused_ms[endpoint.name] = 0.0
    ground.expect(await _call_with_token(opened.channel, token) == "", f"{first.name} refused its own token")
    authority = await ground.authority()
    ban = await authority.ban("subject", mallory.subject, reason="drill")
    ground.mark("defender", "bans the user")
    await ground.refused_everywhere(mallory, BANNED, [first])
    ground.expect(await _call_with_token(opened.channel, token) == "BANNED", "the token of a banned user still works")
    await authority.lift(ban.id)


async def garbage_flood(ground: Ground) -> None:
    """Garbage and half-open connections on every port while honest users work."""
    honest = await ground.user("Honest")
    ground.begin()
    await ground.accepted_everywhere(honest)
    dice = random.Random(0)
    garbage = dice.randbytes(FLOOD_BYTES)
    ports = sorted({(e.host, port) for e in ground.endpoints() for port in (e.rpc, e.ldap, e.http) if port})

    async def attack(host: str, port: int) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(host, port)
                with contextlib.closing(writer):
                    writer.write(garbage[: dice.randrange(FLOOD_BYTES)])
                    await writer.drain()
                    await asyncio.sleep(dice.random())

    async with ground.honest(honest):
        ground.mark("attacker", f"{FLOOD_CONNECTIONS} connections with garbage to each of {len(ports)} ports")
        for _ in range(FLOOD_CONNECTIONS // 10):
            await asyncio.gather(*(attack(host, port) for host, port in ports for _ in range(10)))
        ground.mark("attacker", "is done")
    await ground.accepted_everywhere(honest)


DRILLS: tuple[Drill, ...] = tuple(
    Drill(play.__name__.replace("_", "-"), " ".join((play.__doc__ or "").split()), play)
    for play in (
        user_banned,
        site_banned,
        user_revoked,
        delegation_stolen,
        membership_suspended,
        limited_proxy_submits,
        proxy_outlived,
        chain_too_deep,
        rogue_authority,
        token_replayed,
        garbage_flood,
    )
)


async def _served_again(ground: Ground, person: Person) -> None:
    """Once more served everywhere, within a while."""
    deadline = time.monotonic() + REFUSED_WITHIN_S
    for endpoint in ground.endpoints():
        refusal = await person.attempt(endpoint)
        while refusal is not None and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_EVERY_S)
            refusal = await person.attempt(endpoint)
        ground.expect(refusal is None, f"{endpoint.name} still refuses {person.name}")
    ground.mark("umpire", f"{person.name} is served everywhere again")


def _delegated_to_a_gatekeeper(ground: Ground, subject: str) -> Credential:
    for path in Path(ground.state).glob("sites/*/gatekeeper.*/delegations/*.pem"):
        if os.access(path, os.R_OK):
            credential = Credential.load(path)
            if str(credential.identity) == subject:
                return credential
    raise RuntimeError(f"no gatekeeper on this machine holds a proxy of {subject}")


async def _call_with_token(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> str:
    """The reason of the refusal; empty if the call was served."""
    show = channel.unary_unary(
        "/gridfabric.security.v1.Delegation/List",
        request_serializer=security_pb2.DelegationListRequest.SerializeToString,
        response_deserializer=security_pb2.DelegationListResponse.FromString,
    )
    try:
        await show(security_pb2.DelegationListRequest(), metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, "it").reason
    return ""
