"""What the shell gives an agent: settings, log, clock, credential, trust, channels, and where it keeps its state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fabric.bell import Bell
from fabric.clock import Clock
from fabric.errors import DataCorrupted, GridError, Unavailable
from fabric.logs import Logger
from fabric.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy

    from fabric.authorisation import Judge
    from fabric.database import Migration
    from fabric.http import HttpServer, Route
    from fabric.information_publisher import InformationPublisher
    from fabric.rpc.channel import Channels
    from fabric.rpc.delegation import DelegationStore
    from fabric.rpc.server import RpcServer
    from fabric.store import Store
    from fabric.voms_servers import VomsServers
    from fabric.vos import Vos
    from security.credentials import Credential
    from security.trust import TrustStore
    from security.validation import ValidationPolicy

MAX_TASKS = 10_000
"""Background tasks of one agent."""
STOP_STEP_S = 5.0
"""Longest wait for one task that was told to end."""


class Closable(Protocol):
    """Something the context closes at the end, last opened first."""

    async def close(self) -> None:
        """Release it."""
        ...


class AgentContext:
    """What the shell gives an agent. Valid until the agent has stopped."""

    def __init__(
        self,
        *,
        settings: Settings,
        log: Logger,
        clock: Clock,
        credential: Credential,
        trust: TrustStore,
        policy: ValidationPolicy,
        channels: Channels,
        judge: Judge,
        voms: VomsServers,
        vos: Vos,
    ) -> None:
        self.settings, self.log, self.clock = settings, log, clock
        self.credential, self.trust, self.policy = credential, trust, policy
        self.channels, self.judge, self.voms, self.vos = channels, judge, voms, vos
        self._tasks: set[asyncio.Task[Any]] = set()
        self._problems: dict[str, str] = {}
        self._closables: list[Closable] = []
        self._delegations: DelegationStore | None = None
        self._publisher: InformationPublisher | None = None
        self.set_aside: dict[str, Path] = {}
        """By store: the damaged file that was set aside at this start."""
        self.broken = asyncio.Event()
        """Set when the agent cannot go on as it is, and has to be started again."""
        self.broken_by: GridError | None = None
        self.rpc: RpcServer | None = None
        """The server, once the port is open."""
        self.news = Bell()
        """Rung by who has changed trust, map, bans or VOs on disk: it is looked at now, not at the next look."""
        self.changed = Bell()
        """Rung by who knows of other trust, members, bans or VOs: everybody is judged by them."""
        self.judged = Bell()
        """Rung when a change was seen: what is not a session (jobs under way) is to be judged again too."""

    @property
    def state_dir(self) -> Path:
        """This agent's own directory."""
        return self.settings.state_dir

    def use(self, credential: Credential) -> None:
        """Another credential of the same name from now on: shown by the server, proved by the channels."""
        self.credential = self.channels.credential = credential
        if self.rpc is not None:
            self.rpc.use(credential)

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a background task. If it raises, that is logged and the agent is degraded; it is not started again."""
        if len(self._tasks) >= MAX_TASKS:
            coro.close()
            raise Unavailable(
                "TOO_MANY_TASKS", f"{self.settings.name} runs {MAX_TASKS} background tasks; try again later"
            )
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.log.exception("task.crashed", error, task=task.get_name())
            self.problem(f"task {task.get_name()}", f"the background task {task.get_name()} ended: {error}")

    def problem(self, key: str, sentence: str) -> None:
        """Make the agent degraded, with this sentence, until `solved(key)`."""
        self._problems[key] = sentence

    def solved(self, key: str) -> None:
        """Take a problem back. Idempotent."""
        self._problems.pop(key, None)

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong, by key."""
        return dict(self._problems)

    def store(
        self,
        name: str,
        metadata: sqlalchemy.MetaData,
        migrations: Sequence[Migration] = (),
        database: str = "",
        *,
        rebuilt: bool = False,
    ) -> Store:
        """Open `<state_dir>/<name>.db`, or the schema `name` at a PostgreSQL server; closed by the shell.

        `rebuilt`: the agent makes what was in a damaged file anew. Such a file is set aside and an empty one opened
        (`set_aside`); damage that is met later ends the agent, to be started again. Raises as `Store` and
        `PostgresqlDatabase`.
        """
        from fabric.store import Store

        if database:
            from fabric.database_postgresql import PostgresqlDatabase

            store = Store(PostgresqlDatabase(database, name), metadata, migrations)
        elif rebuilt:
            store = self._rebuilt_store(name, self.state_dir / f"{name}.db", metadata, migrations)
        else:
            store = Store(self.state_dir / f"{name}.db", metadata, migrations)
        self._closables.append(store)
        return store

    def _rebuilt_store(
        self, name: str, path: Path, metadata: sqlalchemy.MetaData, migrations: Sequence[Migration]
    ) -> Store:
        from fabric.database_sqlite import give_up, is_given_up, set_aside
        from fabric.store import Store

        loop = asyncio.get_running_loop()

        def on_damage(error: GridError) -> None:
            give_up(path, error.sentence)
            loop.call_soon_threadsafe(self.break_off, error)

        why = "damage was met while it was used" if is_given_up(path) else ""
        if not why:
            try:
                return Store(path, metadata, migrations, on_damage)
            except DataCorrupted as error:
                if error.reason != "STORE_CORRUPT":
                    raise
                why = error.sentence
        kept = set_aside(path, why, self.clock.now())
        self.set_aside[name] = kept
        self.log.audit("store.set_aside", store=str(path), kept=str(kept), detail=why)
        return Store(path, metadata, migrations, on_damage)

    def break_off(self, error: GridError) -> None:
        """The agent cannot go on as it is: it ends with this error, and whoever runs it starts it again."""
        self.broken_by = self.broken_by or error
        self.broken.set()

    @property
    def delegations(self) -> DelegationStore:
        """Credentials delegated to this agent. Using it in `build` also offers the Delegation service."""
        if self._delegations is None:
            from fabric.rpc.delegation import DelegationStore

            self._delegations = DelegationStore(
                self.state_dir / "delegations", trust=self.trust, policy=self.policy, clock=self.clock, log=self.log
            )
        return self._delegations

    @property
    def has_delegations(self) -> bool:
        """True once `delegations` was used."""
        return self._delegations is not None

    @property
    def publisher(self) -> InformationPublisher:
        """Publishes this agent's entries to its site's information server; started at first use, withdrawn at stop."""
        if self._publisher is None:
            from fabric.information_publisher import InformationPublisher

            self._publisher = InformationPublisher(self)
            self._publisher.start()
        return self._publisher

    async def http(self, route: Route) -> HttpServer:
        """Open the agent's `http` port for GET requests answered by `route`; closed by the shell."""
        from fabric.http import HttpServer

        server = HttpServer(route, self.log)
        await server.start(self.settings.listen, self.settings.ports.get("http", 0))
        self._closables.append(server)
        return server

    def close_at_end(self, closable: Closable) -> None:
        """Have something closed after the agent stopped, last opened first."""
        self._closables.append(closable)

    async def shut(self) -> None:
        """Used by the shell: withdraw, cancel tasks, close what was opened."""
        if self._publisher is not None:
            with contextlib.suppress(GridError):
                await self._publisher.withdraw()
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_STEP_S)
            for task in late:
                self.log.error("task.did_not_end", task=task.get_name())
        await self.channels.close()
        for closable in reversed(self._closables):
            try:
                await closable.close()
            except Exception as error:
                self.log.exception("close.failed", error, what=type(closable).__name__)


def map_path(settings: Settings) -> Path:
    """Where this agent's map file is."""
    return Path(settings.fabric.map_file) if settings.fabric.map_file else settings.state_dir / "grid-mapfile"


def group_map_path(settings: Settings) -> Path:
    """Where the rules of the mapping `vo-groups` are."""
    named = settings.fabric.group_map
    return Path(named) if named else settings.state_dir / "groupmapfile"


def central_bans_path(settings: Settings) -> Path:
    """Where the copy of the grid's ban list is: agents of one host share it, as they share the authorities. The
    authority has its own, as nobody would tell it another one if that were damaged."""
    if settings.kind == "authority":
        return settings.state_dir / "central-bans"
    return settings.certificates / ".gridfabric-bans"
