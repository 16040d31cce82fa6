"""Agents inside a Ray actor. Ray gives them a process, a host and a restart, and nothing else.

`ray.remote(AgentActor)` is made by `clusters`; the constructor takes plain dicts and starts the agents by itself, so
that an actor restarted by Ray is its agents restarted. They share one event loop in a thread of its own; the methods
here only look at them or stop them. Import of this file does not import Ray.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from fabric.agent import AgentHealth, AgentState, RunningAgent, run_agent
from fabric.errors import Defect, GridError, as_record

MAX_CONCURRENCY = 4
"""For `ray.remote(...).options(max_concurrency=...)`: `health` answers while `stop` waits."""
HEALTH_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 30.0
START_RETRY_S = 20.0
"""How long a start waits for ports and the state directory to become free."""
START_PAUSE_S = 0.2


class _Life:
    """One agent of an actor, from its settings to its end. Lives on the actor's event loop."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = str(settings.get("name", "agent"))
        self.settings = settings
        self.stopping = asyncio.Event()
        self.ended = threading.Event()
        self.failure: GridError | None = None
        self._agent: RunningAgent | None = None

    async def live(self) -> None:
        """Until it is stopped. An agent that cannot start keeps the reason and leaves the others alone; one that
        breaks later ends the process, so that Ray starts all of this actor anew from their state."""
        try:
            await self._run()
        except GridError as error:
            self._fail(error)
        except Exception as error:  # every traceback stays in this process
            self._fail(
                Defect("AGENT_CRASHED", f"{self.name} cannot run because of a defect: {type(error).__name__}: {error}")
            )
        finally:
            self.ended.set()

    async def _run(self) -> None:
        """A restarted actor may meet the last moments of its former life: then it tries again for a while."""
        until = time.monotonic() + START_RETRY_S
        while True:
            try:
                return await run_agent(self.settings, stop=self.stopping, ready=self._is_ready)
            except GridError as error:
                if error.reason not in ("AGENT_RUNNING", "PORT_IN_USE") or time.monotonic() > until:
                    raise
            await asyncio.sleep(START_PAUSE_S)

    def _is_ready(self, agent: RunningAgent) -> None:
        self._agent = agent

    def _fail(self, error: GridError) -> None:
        self.failure = error
        if self._agent is not None and not self.stopping.is_set():
            _end_process()

    def health(self) -> AgentHealth:
        """How it is now."""
        if self.failure is not None:
            return AgentHealth(AgentState.STOPPED, self.failure.sentence)
        if self.ended.is_set():
            return AgentHealth(AgentState.STOPPED)
        return self._agent.health() if self._agent is not None else AgentHealth(AgentState.STARTING)


class AgentActor:
    """One agent or several. Constructor arguments are settings only: plain data, no secrets, no objects of ours.

    An agent that cannot start does not make the constructor fail (Ray would hide the sentence behind a traceback):
    `health` tells why.
    """

    def __init__(self, *settings: dict[str, Any]) -> None:
        self._lives = {life.name: life for life in map(_Life, settings)}
        self._loop = asyncio.new_event_loop()
        names = list(self._lives)
        _set_process_title(f"gridfabric {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
        threading.Thread(target=self._run, name=names[0], daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as group:
            for life in self._lives.values():
                group.create_task(life.live(), name=life.name)

    def health(self) -> list[dict[str, Any]]:
        """State, detail and numbers of each agent as plain data, with the process id. Never raises, waits 5 s at
        most."""
        found = self._look()
        return [
            {
                "name": life.name,
                "state": found[life.name].state.value,
                "detail": found[life.name].detail,
                "numbers": dict(found[life.name].numbers),
                "pid": os.getpid(),
                "error": as_record(life.failure) if life.failure is not None else None,
            }
            for life in self._lives.values()
        ]

    def _look(self) -> dict[str, AgentHealth]:
        answer: Future[dict[str, AgentHealth]] = Future()

        def look() -> None:
            answer.set_result({name: life.health() for name, life in self._lives.items()})

        try:
            self._loop.call_soon_threadsafe(look)
            return answer.result(HEALTH_TIMEOUT_S)
        except RuntimeError:  # the loop is closed: all have ended
            return {name: life.health() for name, life in self._lives.items()}
        except TimeoutError:
            return {
                name: AgentHealth(AgentState.DEGRADED, f"{name} does not answer: its event loop is blocked")
                for name in self._lives
            }

    def stop(self, names: Sequence[str], timeout_s: float = STOP_TIMEOUT_S) -> list[str]:
        """Stop these gracefully; the names of those that have ended within the time. May be called twice."""
        chosen = [self._lives[name] for name in names]
        deadline = time.monotonic() + timeout_s

        def tell() -> None:
            for life in chosen:
                life.stopping.set()

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # over already
        return [life.name for life in chosen if life.ended.wait(max(0.0, deadline - time.monotonic()))]


def _end_process() -> None:
    os._exit(1)


def _set_process_title(title: str) -> None:
    """So that `ps` and `top` name the agent. Only inside a Ray worker, where Ray is imported already."""
    ray_core: Any = sys.modules.get("ray._raylet")
    if ray_core is not None and hasattr(ray_core, "setproctitle"):
        ray_core.setproctitle(title)
