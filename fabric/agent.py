"""The shell of every agent: settings in, one running service out, until it is told to stop.

`run_agent(settings)` is the whole life; `python -m fabric.agent settings.json` is the same in a process of its own, and
`fabric/actor.py` the same in a Ray actor. What an agent *is* comes from `agents/<kind>/agent.py: build(context) ->
Agent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import json
import math
import os
import random
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fabric.clock import Clock, SystemClock, utc_text
from fabric.context import AgentContext, central_bans_path, group_map_path, map_path
from fabric.errors import Conflict, GridError, InvalidRequest, Unavailable, from_security
from fabric.logs import Logger, open_logs
from fabric.settings import Settings
from security.errors import os_error_text
from security.trust import TrustStore

if TYPE_CHECKING:
    from fabric.host_credential import HostCredential
    from fabric.rpc.server import RpcServer, RpcService
    from security.credentials import Credential
    from security.names import DistinguishedName

JUDGE_ALL_S = 30.0
"""Sessions are judged again this often even if nothing changed: revocation lists and certificates end by themselves."""
SWEEP_S = 4.0
"""How late a session may be closed that ends sooner than all others and began since the last look."""
SHORTEST_SWEEP_S = 0.05
OTHERS_AFTER_S = 0.5
"""Whom a change of trust does not name are judged so much later: what it is about takes effect at all agents first."""
SHARED_AGE = 0.45
"""How old, in turns, a look at the disk by another agent of this process may be."""
_trust_looked_at: weakref.WeakKeyDictionary[TrustStore, float] = weakref.WeakKeyDictionary()


class AgentState(StrEnum):
    """How an agent is, in one word."""

    STARTING = "starting"
    """Recovering; the port is not open yet."""
    GREEN = "green"
    """Everything works."""
    DEGRADED = "degraded"
    """Works, with something an operator should look at; `detail` says what."""
    DRAINING = "draining"
    """Finishes what it has and takes nothing new."""
    STOPPED = "stopped"
    """Over."""


@dataclass(frozen=True)
class AgentHealth:
    """One look at an agent. `numbers` are gauges and counters by name."""

    state: AgentState
    detail: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


class Agent(ABC):
    """What `build` returns. `services` are registered before the port opens."""

    services: Sequence[RpcService] = ()

    def __init__(self, context: AgentContext) -> None:
        self.context = context

    async def start(self) -> None:  # noqa: B027 - may be left out
        """Recover from the store, start background tasks with `self.context.spawn`. The port opens when it returns.

        It must not wait for other agents: they may be waiting for this one.
        """

    async def started(self) -> None:  # noqa: B027
        """The port is open: the moment to publish oneself. May be left out."""

    async def stop(self) -> None:  # noqa: B027
        """Take no more work, flush, withdraw. The port is still open; `spawn`ed tasks are cancelled afterwards."""

    @abstractmethod
    def health(self) -> AgentHealth:
        """How it is now. Never waits."""


class RunningAgent:
    """An agent whose port is open. Made by `running`."""

    def __init__(self, context: AgentContext, agent: Agent, server: RpcServer, started_at: float) -> None:
        self.context, self.agent, self.server = context, agent, server
        self._started_at = started_at
        self.state = AgentState.GREEN

    @property
    def port(self) -> int:
        """The gRPC port."""
        return self.server.port

    def health(self) -> AgentHealth:
        """The agent's own health with the shell's: the worse one counts."""
        try:
            own = self.agent.health()
        except Exception as error:
            self.context.log.exception("health.defect", error)
            own = AgentHealth(AgentState.DEGRADED, "its health cannot be told (a defect; see its log)")
        numbers = dict(own.numbers) | {
            "sessions": float(len(self.server.sessions)),
            "uptime_s": self.context.clock.monotonic() - self._started_at,
        }
        if self.state is not AgentState.GREEN:
            return AgentHealth(self.state, own.detail, numbers)
        problems = self.context.problems
        if problems and own.state is AgentState.GREEN:
            return AgentHealth(AgentState.DEGRADED, "; ".join(problems.values()), numbers)
        detail = "; ".join([own.detail, *problems.values()]) if problems else own.detail
        return replace(own, detail=detail, numbers=numbers)


Builder = Callable[[AgentContext], Agent]


def load_builder(kind: str) -> Builder:
    """`agents.<kind>.agent.build`. Raises InvalidRequest AGENT_UNKNOWN."""
    try:
        module = importlib.import_module(f"agents.{kind}.agent")
        return cast("Builder", module.build)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InvalidRequest(
            "AGENT_UNKNOWN", f"there is no agent of the kind {kind!r} here ({error})", kind=kind
        ) from error


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock | None = None, builder: Builder | None = None
) -> AsyncGenerator[RunningAgent]:
    """Start an agent, give it while its port is open, stop it in the end.

    Raises GridError with one readable sentence when it cannot start; then nothing is left open. `builder` replaces
    `agents.<kind>.agent.build` in tests.
    """
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        _prepare_directory(settings, stack)
        log = open_logs(
            settings.state_dir,
            clock=clock,
            stderr=settings.fabric.log_stderr,
            fields={"grid": settings.grid, "site": settings.site, "agent": settings.name},
        )
        stack.callback(log.close)
        try:
            agent_stack = await stack.enter_async_context(
                _run(settings, clock, log, builder or load_builder(settings.kind))
            )
        except GridError as error:
            log.error("agent.cannot_start", reason=error.reason, sentence=error.sentence)
            raise
        except Exception as error:
            log.exception("agent.cannot_start", error)
            raise
        yield agent_stack


@contextlib.asynccontextmanager
async def _run(settings: Settings, clock: Clock, log: Logger, builder: Builder) -> AsyncGenerator[RunningAgent]:
    from fabric.host_credential import HostCredential
    from fabric.rpc.audit_trail import audit_service
    from fabric.rpc.delegation import delegation_service
    from fabric.rpc.server import RpcServer, ServerConfig

    started_at = clock.monotonic()
    log.info("agent.starting", kind=settings.kind, pid=os.getpid())
    context = _context(settings, clock, log)
    options = settings.fabric
    try:
        agent = builder(context)
        services = [*agent.services]
        if context.has_delegations:
            services.append(delegation_service(context.delegations, log))
        if log.audit_file is not None:
            services.append(audit_service(log.audit_file))
        server = RpcServer(
            ServerConfig(
                name=settings.name,
                site=settings.site,
                listen=settings.listen,
                port=settings.rpc_port,
                credential=context.credential,
                trust=context.trust,
                policy=context.policy,
                authoriser=context.judge,
                clock=clock,
                log=log,
                voms=context.voms,
                session_lifetime_s=options.session_lifetime_s,
                max_sessions=options.max_sessions,
                max_sessions_per_owner=options.max_sessions_per_owner,
                keepalive_s=2 * options.keepalive_s,
            ),
            services,
        )
        context.rpc = server
        credential = HostCredential(context)
        _start_updaters(context, credential)
        await agent.start()
        await server.start()
        shell = RunningAgent(context, agent, server, started_at)
        context.spawn(_look(context, credential), "look at the disk")
        context.spawn(_judge(context, server), "judge sessions")
        if context.has_delegations:
            context.spawn(_recall(context), "delegations of nobody any more")
    except BaseException:
        await context.shut()
        raise
    ready = settings.state_dir / "ready"
    try:
        await agent.started()
        ready.write_text(json.dumps({"pid": os.getpid(), "rpc": server.port, "at": utc_text(clock.now())}), "utf-8")
        log.info("agent.ready", port=server.port, start_s=round(clock.monotonic() - started_at, 3))
        yield shell
    finally:
        shell.state = AgentState.DRAINING
        ready.unlink(missing_ok=True)
        log.info("agent.stopping")
        await _stop(agent, server, context)
        shell.state = AgentState.STOPPED
        log.info("agent.stopped")


async def _stop(agent: Agent, server: RpcServer, context: AgentContext) -> None:
    grace_s = context.settings.fabric.stop_grace_s
    await server.set_serving(False)
    try:
        async with asyncio.timeout(grace_s):
            await agent.stop()
    except TimeoutError:
        context.log.error("agent.stop_too_slow", grace_s=grace_s)
    except Exception as error:
        context.log.exception("agent.stop_failed", error)
    await server.stop(min(grace_s, 1.0))
    await context.shut()


def _prepare_directory(settings: Settings, stack: contextlib.AsyncExitStack) -> None:
    """The agent's own directory, and the lock that keeps a second copy away. Raises Conflict, Unavailable."""
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            "STATE_DIR_UNAVAILABLE",
            f"the state directory {directory} of {settings.name} cannot be used ({os_error_text(error)})",
        ) from error
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(
            "AGENT_RUNNING", f"{settings.name} already runs on {directory}; stop that one first", path=directory
        ) from None


def _context(settings: Settings, clock: Clock, log: Logger) -> AgentContext:
    from fabric.authorisation import Judge
    from fabric.rpc.channel import Channels
    from fabric.rpc.server import default_policy
    from fabric.voms_servers import VomsServers
    from fabric.vos import Vos
    from security.certificates import issuer_of
    from security.credentials import Credential
    from security.errors import SecurityError
    from security.trust import TrustStore

    options = settings.fabric
    try:
        credential = Credential.load(settings.credential)
        authority = issuer_of(credential.certificate)
        trust = TrustStore.shared(settings.certificates)
        bans = Path(options.ban_file) if options.ban_file else settings.state_dir / "bans"
        if not options.ban_file and not bans.exists():
            bans.touch(0o644)
        vos = Vos.of(settings, log)
        judge = Judge(
            organisation=settings.organisation,
            authority=authority,
            map_file=map_path(settings),
            ban_file=bans,
            log=log,
            vos=vos,
            gridmapdir=Path(options.gridmapdir) if options.gridmapdir else None,
            group_map=group_map_path(settings) if options.mapping == "vo-groups" else None,
            central_bans=central_bans_path(settings),
            site=settings.site,
            clock=clock,
        )
        voms = VomsServers.of(settings, vos, authority)
    except SecurityError as error:
        raise from_security(error) from error
    policy = default_policy(options.crl_policy, options.expired_crl_policy)
    channels = Channels(
        trust=trust, policy=policy, clock=clock, log=log, credential=credential, keepalive_s=options.keepalive_s
    )
    return AgentContext(
        settings=settings,
        log=log,
        clock=clock,
        credential=credential,
        trust=trust,
        policy=policy,
        channels=channels,
        judge=judge,
        voms=voms,
        vos=vos,
    )


def _start_updaters(context: AgentContext, credential: HostCredential) -> None:
    from fabric.vos import vo_list_path

    settings = context.settings
    if settings.fabric.map_updater and settings.endpoints("vo"):
        from fabric.map_updater import MapFileUpdater

        maps = MapFileUpdater(context)
        context.judge.update_now = maps.update_now
        context.spawn(maps.run(), "map file updater")
    if settings.fabric.trust_updater and settings.endpoints("authority"):
        from fabric.trust_push import TrustFollower
        from fabric.trust_updater import TrustUpdater

        updater = TrustUpdater(context)
        context.spawn(updater.run(), "trust updater")
        context.spawn(TrustFollower(context, updater, credential).run(), "trust follower")
        context.spawn(credential.run(), "host credential")
    if settings.fabric.ban_updater and settings.endpoints("authority"):
        from fabric.ban_updater import BanUpdater

        context.spawn(BanUpdater(context, central_bans_path(settings)).run(), "ban updater")
    if settings.fabric.vo_updater and settings.endpoints("authority"):
        from fabric.vo_updater import VoUpdater

        context.spawn(VoUpdater(context, vo_list_path(settings)).run(), "VO updater")


async def _look(context: AgentContext, credential: HostCredential) -> None:
    """Once a second, or when the news are rung: trust, credential, map, bans and VOs as they are on disk."""
    poll_s, seen, is_called = context.settings.fabric.trust_poll_s, (-1, -1, -1), True
    while True:
        heard = context.news.rung
        await context.judge.look()
        if seen != _generations(context):  # what was read does not wait for what takes long
            context.changed.ring()
        max_age_s = 0.0 if is_called else SHARED_AGE * poll_s
        await _look_at_trust(context, max_age_s)
        alarms = context.trust.alarms(context.clock.now())
        if alarms:
            context.problem("revocation list", alarms[0].sentence)
        else:
            context.solved("revocation list")
        credential.refresh()
        context.voms.refresh(max_age_s)
        if seen != _generations(context):
            seen = _generations(context)
            context.changed.ring()
        await context.news.wait(poll_s, heard)
        is_called = context.news.rung != heard


async def _look_at_trust(context: AgentContext, max_age_s: float) -> None:
    """Unless another agent of this process, which has the same store, has just done so."""
    from security.errors import SecurityError

    now = context.clock.monotonic()
    if now - _trust_looked_at.get(context.trust, -math.inf) < max_age_s and "trust" not in context.problems:
        return
    _trust_looked_at[context.trust] = now
    try:
        await asyncio.to_thread(context.trust.refresh)  # a large list takes seconds
        context.solved("trust")
    except SecurityError as error:
        _trust_looked_at.pop(context.trust, None)
        context.problem("trust", error.sentence)


def _generations(context: AgentContext) -> tuple[int, int, int]:
    """What everybody is judged by, numbered."""
    return context.trust.snapshot().generation, context.voms.generation, context.judge.generation


async def _judge(context: AgentContext, server: RpcServer) -> None:
    """Everybody judged again when trust, bans, members or VOs have changed, and now and then; sessions whose time is
    over closed."""
    seen = (-1, -1, -1)
    judged_at = context.clock.monotonic() - random.uniform(0, JUDGE_ALL_S)  # not all agents in the same moment
    _look_at_the_trail(context)
    while True:
        heard = context.changed.rung
        now = _generations(context)
        # What has changed goes first.
        due = context.clock.monotonic() - judged_at >= JUDGE_ALL_S * (1 if now == seen else 2)
        if due:
            judged_at = context.clock.monotonic()
            _look_at_the_trail(context)
        chains = due or now[:2] != seen[:2]
        changed = chains or now != seen
        if changed:
            context.judged.ring()
        if seen[0] not in (-1, now[0]):
            server.security_context.judge_named()
            trust = context.trust.snapshot()  # or a newer one, and then all of that is looked at again
            if not due and now[1:] == seen[1:] and trust.only_newer_lists(seen[0], context.clock.now()):
                chains = changed = False
            else:
                await context.changed.wait(OTHERS_AFTER_S, heard)
        left_s = await server.watch(changed=changed, chains=chains)
        if now[0] != seen[0]:
            context.log.info("trust.changed", generation=now[0])
            await context.channels.trust_changed()
        seen = now
        await context.changed.wait(min(max(left_s, SHORTEST_SWEEP_S), SWEEP_S), heard)


async def _recall(context: AgentContext) -> None:
    """Erase what was delegated by people whom nobody will believe again: who are here by a VO that was dissolved, or by
    an authority that was removed. Authorities that were gone before this agent started are not looked for: its
    directory may not be complete yet."""
    from security.certificates import issuer_of
    from security.errors import Reason

    known: frozenset[DistinguishedName] = frozenset()
    vos_seen = -1
    while True:
        heard = context.judged.rung
        there = frozenset(authority.subject for authority in context.trust.snapshot().authorities)
        if issuer_of(context.credential.certificate) in there:  # without our own the directory is damaged
            removed, known = known - there, there
            if removed or context.vos.generation != vos_seen:
                vos_seen = context.vos.generation
                reasons = {Reason.VO_DISSOLVED.value, *([Reason.UNKNOWN_CA.value] if removed else [])}
                for owner, name, proxy, refusal in await asyncio.to_thread(_refused_delegations, context):
                    if refusal.reason in reasons:
                        await context.delegations.erase(owner, name, proxy, refusal)
        await context.judged.wait(JUDGE_ALL_S, heard)


def _refused_delegations(context: AgentContext) -> list[tuple[str, str, Credential, GridError]]:
    """Blocking: chains are verified."""
    from security.errors import SecurityError
    from security.validation import validate_client_chain

    trust, now = context.trust.snapshot(), context.clock.now()
    found: list[tuple[str, str, Credential, GridError]] = []
    for owner, name, proxy in context.delegations.all():
        try:
            identity = validate_client_chain(proxy.certificates, trust, context.policy, now)
            attributes = context.voms.attributes_of(identity, trust, context.policy, now)
            context.judge.judge(identity, unmapped=False, attributes=attributes)
        except SecurityError as error:
            found.append((owner, name, proxy, from_security(error)))
        except GridError as error:
            found.append((owner, name, proxy, error))
    return found


def _look_at_the_trail(context: AgentContext) -> None:
    trail = context.log.audit_file
    if trail is not None and (sentence := trail.shortfall):
        context.problem("audit log", sentence)
    else:
        context.solved("audit log")


async def run_agent(
    settings: Settings | Mapping[str, Any],
    *,
    stop: asyncio.Event | None = None,
    ready: Callable[[RunningAgent], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Run an agent until `stop` is set (or this task is cancelled). `ready` is called when its port is open.

    Raises GridError when it cannot start, or cannot go on (`AgentContext.broken`).
    """
    checked = settings if isinstance(settings, Settings) else Settings.from_dict(settings)
    async with running(checked, clock=clock) as agent:
        if ready is not None:
            ready(agent)
        ends = [asyncio.ensure_future(event.wait()) for event in (stop or asyncio.Event(), agent.context.broken)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if agent.context.broken_by is not None:
            raise agent.context.broken_by


async def _main(path: str) -> int:
    import logging
    import signal

    from fabric.logs import StandardLibraryHandler

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def ready(agent: RunningAgent) -> None:
        logging.getLogger().addHandler(StandardLibraryHandler(agent.context.log))
        sys.stdout.write(
            json.dumps({"ready": agent.context.settings.name, "rpc": agent.port, "pid": os.getpid()}) + "\n"
        )
        sys.stdout.flush()

    try:
        await run_agent(Settings.load(path), stop=stop, ready=ready)
    except GridError as error:
        sys.stderr.write(f"{error.sentence}\n")
        return 1
    except Exception as error:  # its traceback is in the agent's log
        sys.stderr.write(f"the agent cannot run because of a defect ({type(error).__name__}: {error})\n")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m fabric.agent settings.json`. Prints one JSON line when the port is open. SIGTERM stops it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        sys.stderr.write("usage: python -m fabric.agent SETTINGS.json\n")
        return 2
    return asyncio.run(_main(given[0]))


if __name__ == "__main__":
    # As the module that agents import, so that there is one Agent class and not two.
    from fabric.agent import main as run

    raise SystemExit(run())
