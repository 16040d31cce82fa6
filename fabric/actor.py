"""An agent inside a Ray actor. Ray gives it a process, a host and a restart, and nothing else.

`ray.remote(AgentActor)` is made by `clusters`; the constructor takes one plain dict and starts the agent by itself,
so that an actor restarted by Ray is an agent restarted. The agent runs on its own event loop in its own thread; the
methods here only look at it or stop it. Import of this file does not import Ray.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

from fabric.agent import AgentHealth, AgentState, RunningAgent, run_agent
from fabric.errors import Defect, GridError, as_record

MAX_CONCURRENCY = 4
"""For `ray.remote(...).options(max_concurrency=...)`: `health` answers while `stop` or `ready` waits."""
HEALTH_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 30.0
START_RETRY_S = 20.0
"""How long a start waits for ports and the state directory to become free."""
START_PAUSE_S = 0.2


class AgentActor:
    """One agent. Constructor arguments are settings only: plain data, no secrets, no objects of ours.

    An agent that cannot start does not make the constructor fail (Ray would hide the sentence behind a traceback):
    `health` and `ready` tell why.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._name = str(settings.get("name", "agent"))
        self._ready: Future[int] = Future()
        self._ended = threading.Event()
        self._failure: GridError | None = None
        self._agent: RunningAgent | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        _set_process_title(f"gridfabric {self._name}")
        self._thread = threading.Thread(target=self._run, args=(settings,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, settings: dict[str, Any]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run_until_stopped(settings))
        except GridError as error:
            self._fail(error)
        except Exception as error:  # every traceback stays in this process
            self._fail(
                Defect("AGENT_CRASHED", f"{self._name} cannot run because of a defect: {type(error).__name__}: {error}")
            )
        finally:
            self._ended.set()
            self._loop.close()

    async def _run_until_stopped(self, settings: dict[str, Any]) -> None:
        """A restarted actor may meet the last moments of its former life: then it tries again for a while."""
        until = time.monotonic() + START_RETRY_S
        while True:
            try:
                return await run_agent(settings, stop=self._stop, ready=self._is_ready)
            except GridError as error:
                if error.reason not in ("AGENT_RUNNING", "PORT_IN_USE") or time.monotonic() > until:
                    raise
            await asyncio.sleep(START_PAUSE_S)

    def _is_ready(self, agent: RunningAgent) -> None:
        self._agent = agent
        self._ready.set_result(agent.port)

    def _fail(self, error: GridError) -> None:
        """Before it was ready: tell why. Afterwards: end the process, so that Ray starts the agent anew from its
        state."""
        self._failure = error
        if not self._ready.done():
            self._ready.set_exception(error)
        elif not self._stop.is_set():
            _end_process()

    def ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Waits until the port is open. `{"ready": bool, "port": int, "error": record or None}`; never raises."""
        try:
            return {"ready": True, "port": self._ready.result(timeout_s), "error": None}
        except GridError as error:
            return {"ready": False, "port": 0, "error": as_record(error)}
        except TimeoutError:
            return {"ready": False, "port": 0, "error": None}

    def health(self) -> dict[str, Any]:
        """State, detail and numbers as plain data, with the process id. Never raises, waits 5 s at most."""
        found = self._look()
        return {
            "name": self._name,
            "state": found.state.value,
            "detail": found.detail,
            "numbers": dict(found.numbers),
            "pid": os.getpid(),
            "error": as_record(self._failure) if self._failure is not None else None,
        }

    def _look(self) -> AgentHealth:
        if self._failure is not None:
            return AgentHealth(AgentState.STOPPED, self._failure.sentence)
        if self._ended.is_set():
            return AgentHealth(AgentState.STOPPED)
        if self._agent is None:
            return AgentHealth(AgentState.STARTING)
        answer: Future[AgentHealth] = Future()
        agent = self._agent

        def look() -> None:
            answer.set_result(agent.health())

        try:
            self._loop.call_soon_threadsafe(look)
            return answer.result(HEALTH_TIMEOUT_S)
        except RuntimeError:  # its loop is closed
            return AgentHealth(AgentState.STOPPED)
        except TimeoutError:
            return AgentHealth(AgentState.DEGRADED, f"{self._name} does not answer: its event loop is blocked")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop gracefully; True when the agent has ended within the time. May be called twice."""
        try:
            self._loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:
            pass  # over already
        return self._ended.wait(timeout_s)


def _end_process() -> None:
    os._exit(1)


def _set_process_title(title: str) -> None:
    """So that `ps` and `top` name the agent. Only inside a Ray worker, where Ray is imported already."""
    ray_core: Any = sys.modules.get("ray._raylet")
    if ray_core is not None and hasattr(ray_core, "setproctitle"):
        ray_core.setproctitle(title)
