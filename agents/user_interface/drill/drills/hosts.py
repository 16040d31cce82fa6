"""Hosts: a thief's, a revoked one, one in between, one with a wrong clock."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
from cryptography import x509

from agents.user_interface.connection import Grid
from agents.user_interface.drill.ground import SERVED_AGAIN_S, Ground
from agents.user_interface.drill.people import VICTIM, Person
from agents.user_interface.drill.relay import relays_from
from fabric.clock import SystemClock
from fabric.logs import null_logger
from fabric.rpc.channel import Channels
from fabric.settings import Endpoint
from security.credentials import Credential
from security.policy import ValidationPolicy
from security.proxies import create_proxy, new_request
from security.trust import TrustStore


async def proxy_stolen(ground: Ground) -> None:
    """A stolen proxy is used from another host: the trail shows the address, a ban of that network stops the thief
    there, a ban of the proxy's serial number everywhere; the owner goes on with a new proxy."""
    alice = await ground.victim()
    first, second = (
        f"127.{a}.{b}.9" for a, b in ((ground.dice.randrange(1, 200), ground.dice.randrange(200)), (250, 7))
    )
    ground.begin()
    await ground.serves(alice)
    thief = await ground.bearer(alice.proxy, f"thief at {first}", doors=await relays_from(ground, first))
    ground.attack(f"uses the stolen proxy from {first}")
    await ground.serves(thief)
    ground.defend("asks the trail who came with this name, and from where")
    trail = await ground.command("audit", "--dn", alice.subject)
    addresses = {entry.get("address") for entry in trail["entries"]} - {None}
    ground.expect(first in addresses, f"the trail names {', '.join(sorted(addresses)) or 'no address'}, not {first}")
    ground.defend(f"bans the network {first}/32")
    await ground.ban("network", f"{first}/32")
    await ground.refuses(thief, "BANNED")
    await ground.serves(alice)
    elsewhere = await ground.bearer(alice.proxy, f"thief at {second}", doors=await relays_from(ground, second))
    ground.attack(f"uses the proxy from {second}")
    await ground.serves(elsewhere)
    ground.defend("bans the serial number of the proxy")
    leaf = alice.proxy.certificate
    await ground.ban("certificate", f"{leaf.serial_number:X} {alice.certificate.subject}")
    await ground.refuses(elsewhere, "BANNED")
    await ground.serves(await ground.person(alice.certificate, f"{alice.name} with a new proxy", VICTIM))


async def host_revoked(ground: Ground) -> None:
    """A service's host certificate is revoked: clients and other services refuse it, everything else goes on; with a
    new certificate it is back."""
    alice = await ground.victim()
    victim = ground.dice.choice(ground.endpoints("storage"))
    others = [endpoint for endpoint in ground.endpoints() if endpoint != victim]
    path = ground.credential_file(victim)
    stolen = Credential.load(path)
    ground.begin()
    await ground.serves(alice)
    impostor = await ground.bearer(stolen, f"bearer of {victim.name}'s key")
    peers = ground.endpoints("catalog", "bookkeeping")
    await ground.serves(impostor, peers, act=impostor.enter)
    ground.defend("revokes the host certificate")
    await (await ground.authority()).revoke(subject=str(stolen.subject), reason="keyCompromise")
    await asyncio.gather(
        ground.refuses(alice, "CERTIFICATE_REVOKED", endpoints=[victim]),
        ground.refuses(impostor, "CERTIFICATE_REVOKED", endpoints=peers, act=impostor.enter),
    )
    await ground.serves(alice, others)
    ground.defend("the site gets a new host certificate, the service restarts")
    authority = await ground.authority()
    key, request = new_request()
    names = stolen.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    token, _ = await authority.invite(victim.site)
    (pem,) = await authority.enrol(token, victim.site, [(victim.kind, victim.name, hosts, request)])
    Credential(x509.load_pem_x509_certificate(pem), key).save(path)
    await ground.restart(victim)
    await ground.serves(alice, within_s=SERVED_AGAIN_S)


async def man_in_the_middle(ground: Ground) -> None:
    """Somebody between client and service has a valid certificate of another host, then one of another service of the
    same host: the client refuses the first, and a session relayed through the second is worth nothing."""
    alice = await ground.victim()
    real = ground.one("catalog")
    key, request = new_request()
    name = f"wn{ground.dice.randrange(100, 1000)}.elsewhere.example"
    other_host = x509.load_pem_x509_certificate(await (await ground.authority()).issue_host([name], request))
    neighbour = Credential.load(ground.credential_file(ground.one("storage")))
    ground.begin()
    await ground.serves(alice, [real])
    for credential, whose, reasons in (
        (Credential(other_host, key), "another host", ("HOST_NAME_MISMATCH",)),
        (neighbour, "another service of the same host", ("BAD_SIGNATURE",)),
    ):
        async with _middleman(credential, real) as port:
            ground.attack(f"stands in between with a valid certificate of {whose}")
            doors = {(real.host, real.rpc): port}
            deceived = await ground.bearer(alice.proxy, f"{alice.name} by way of {whose}", VICTIM, doors=doors)
            await ground.refuses(deceived, *reasons, endpoints=[real])
    await ground.serves(alice, [real])


@contextlib.asynccontextmanager
async def _middleman(credential: Credential, real: Endpoint) -> AsyncGenerator[int]:
    """A server with this credential that passes every call on to the real one and shows it its own face; its port."""
    leaf = await asyncio.to_thread(ssl.get_server_certificate, (real.host, real.rpc))
    pinned = grpc.ssl_channel_credentials(root_certificates=leaf.encode())

    class Relay(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            call = cast("Any", upstream).unary_unary(handler_call_details.method)

            async def forward(request: bytes, context: Any) -> bytes:
                try:
                    return await call(request, metadata=context.invocation_metadata(), timeout=10)
                except grpc.aio.AioRpcError as error:
                    context.set_trailing_metadata(error.trailing_metadata())
                    await context.abort(error.code(), error.details() or "")
                    raise

            return grpc.unary_unary_rpc_method_handler(forward)

    keys = grpc.ssl_server_credentials([(credential.dumps(), credential.pem_chain())])
    async with grpc.aio.secure_channel(f"{real.host}:{real.rpc}", pinned) as upstream:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Relay(),))
        port = server.add_secure_port("127.0.0.1:0", keys)
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)


class _WrongClock(SystemClock):
    """The clock of a host that goes wrong by a constant."""

    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        return super().now() + self._ahead


async def clock_skew(ground: Ground) -> None:
    """The clock of a user's host is some minutes ahead: that is excused; a quarter of an hour is refused and called
    clock skew, by the services and, where the clock is behind, by the user's own client."""
    ground.note("the wrong clock is a user's host's; the agents of a lab have one clock, that of this machine")
    alice = await ground.victim()
    ground.begin()
    for minutes in (8, 15):
        now = datetime.now(UTC) + timedelta(minutes=minutes)  # a proxy begins five minutes before it is made
        proxy = create_proxy(alice.certificate, lifetime=timedelta(hours=1), now=now)
        ahead = await ground.bearer(proxy, f"{alice.name}, {minutes} minutes ahead", VICTIM)
        ground.mark(VICTIM, f"makes a proxy on a host whose clock is {minutes} minutes ahead")
        if minutes < 10:
            await ground.serves(ahead)
        else:
            await ground.refuses(ahead, "NOT_YET_VALID")
    behind = await _with_clock(ground, alice, timedelta(hours=-2))
    ground.mark(VICTIM, "calls from a host whose clock is two hours behind")
    await ground.refuses(behind, "NOT_YET_VALID", "CRL_INVALID")
    sentences = [verdict.sentence for verdict in ground.score.verdicts if verdict.outcome == "refused"]
    ground.expect(all("clock" in sentence for sentence in sentences), "a refusal does not say that it is the clocks")
    await ground.serves(alice)


async def _with_clock(ground: Ground, person: Person, ahead: timedelta) -> Person:
    """The same person on a host whose clock is wrong."""
    clock = _WrongClock(ahead)
    trust = TrustStore(ground.certificates)
    channels = Channels(trust=trust, policy=ValidationPolicy(), clock=clock, log=null_logger(), credential=person.proxy)
    ground.afterwards(channels.close)
    return Person(
        ground, f"{person.name}, clock behind", VICTIM, person.certificate, person.proxy,
        Grid(ground.services, person.proxy, channels), {},
    )  # fmt: skip
