"""The one program of ours that speaks to Ray: creates actors, asks their health, stops them.

A process of its own, so that whoever uses it imports no Ray, gets no threads or signal handlers of it, and can end it
when Ray hangs. Run as `python -m clusters.node.driver HOST:PORT`; orders are JSON lines on standard input, answers
JSON lines on standard output: any number of {"agent": ...} and then one {"done": true} or {"error": sentence}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

NAMESPACE = "gridfabric"
POLL_EVERY_S = 0.1
DEGRADED_PATIENCE_S = 10.0
"""How long a start waits for degraded agents to become green: most only wait for others."""

Answer = dict[str, Any]


class Driver:
    """Connected to one Ray cluster."""

    def __init__(self, address: str) -> None:
        import ray

        self._ray = ray
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error", configure_logging=False
        )
        self._handles: dict[str, Any] = {}

    def create(self, agents: list[Mapping[str, Any]]) -> Iterator[Answer]:
        """One detached actor per agent that is not there yet; returns before they are up."""
        from fabric.actor import MAX_CONCURRENCY, AgentActor

        remote = self._ray.remote(AgentActor)
        for agent in agents:
            options = {
                "name": agent["name"],
                "lifetime": "detached",
                "max_restarts": -1,
                "max_concurrency": MAX_CONCURRENCY,
                "num_cpus": 0,
                "label_selector": {"host": agent["host"]},
                "get_if_exists": True,
            }
            self._handles[agent["name"]] = remote.options(**options).remote(agent["settings"])
        return iter(())

    def nodes(self) -> Iterator[Answer]:
        """The hosts of this cluster."""
        for node in self._ray.nodes():
            yield {
                "host": node["Labels"].get("host", ""),
                "alive": node["Alive"],
                "address": node["NodeManagerAddress"],
            }

    def health(self, agents: dict[str, str], deadline_s: float) -> Iterator[Answer]:
        """The health of each agent (name to host), within the deadline for all."""
        deadline = time.monotonic() + deadline_s
        actors = self._actors()
        present = {answer["host"] for answer in self.nodes() if answer["alive"]}
        asked = {}
        for name, host in agents.items():
            handle = self._handle(name)
            if handle is None:
                yield _answer(name, "stopped", "there is no such agent", actors)
            elif host not in present:
                yield _answer(name, "waiting", f"host {host} has not joined, or is lost", actors)
            else:
                asked[handle.health.remote()] = name
        while asked:
            left = deadline - time.monotonic()
            done, _ = self._ray.wait(list(asked), timeout=max(0.0, left))
            for reference in done:
                yield self._result(asked.pop(reference), reference, actors)
            if left <= 0 and not done:
                break
        for name in asked.values():
            yield _answer(name, "silent", f"no answer in {deadline_s:g} s", actors)

    def watch(self, names: list[str], deadline_s: float) -> Iterator[Answer]:
        """Every change of health until all are green, or the time is over. Ends early after a failure for good, and
        when for a while nothing but degraded agents was waited for.
        """
        began = time.monotonic()
        settled_at: float | None = None
        last: dict[str, tuple[str, str]] = {}
        asked: dict[Any, str] = {}
        while (now := time.monotonic()) < began + deadline_s:
            waiting = [name for name in names if last.get(name, ("", ""))[0] != "green"]
            states = {last.get(name, ("", ""))[0] for name in waiting}
            if not waiting or "failed" in states:
                return
            settled_at = (settled_at or now) if states == {"degraded"} else None
            if settled_at is not None and now - settled_at > DEGRADED_PATIENCE_S:
                return
            for name in waiting:
                if name not in asked.values() and (handle := self._handle(name)) is not None:
                    asked[handle.health.remote()] = name
            done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_EVERY_S) if asked else ([], [])
            actors = self._actors() if done else {}
            for reference in done:
                answer = self._result(asked.pop(reference), reference, actors)
                if last.get(answer["agent"]) != (answer["state"], answer["detail"]):
                    last[answer["agent"]] = (answer["state"], answer["detail"])
                    yield answer
            if done:
                time.sleep(POLL_EVERY_S)
        actors = self._actors()
        for name in names:
            if name not in last:
                found = actors.get(name)
                state = found["State"] if found else "unknown"
                yield _answer(name, "silent", f"not started in {deadline_s:g} s (Ray says {state})", actors)

    def stop(self, names: list[str], deadline_s: float) -> Iterator[Answer]:
        """Ask agents to stop; what has not stopped in time is killed. Their actors are gone afterwards."""
        deadline = time.monotonic() + deadline_s
        asked, handles = {}, {}
        actors = self._actors()
        for name in names:
            handle = self._handle(name)
            if handle is None:
                continue
            handles[name] = handle
            if actors.get(name, {"State": "ALIVE"})["State"] == "ALIVE":  # others wait for a host, or for Ray
                asked[handle.stop.remote(deadline_s)] = name
        while asked and (left := deadline - time.monotonic()) > 0:
            done, _ = self._ray.wait(list(asked), timeout=left)
            for reference in done:
                name = asked.pop(reference)
                try:
                    self._ray.get(reference, timeout=0)
                    yield {"agent": name, "state": "stopped", "detail": ""}
                except Exception as error:
                    yield {"agent": name, "state": "failed", "detail": _sentence(error)}
        for name in asked.values():
            yield {"agent": name, "state": "silent", "detail": f"did not stop in {deadline_s:g} s; killed"}
        for name, handle in handles.items():
            self._handles.pop(name, None)
            with contextlib.suppress(Exception):
                self._ray.kill(handle, no_restart=True)

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            try:
                self._handles[name] = self._ray.get_actor(name)
            except ValueError:
                return None
        return self._handles[name]

    def _actors(self) -> dict[str, Mapping[str, Any]]:
        """Ray's own record of each actor: state, process, restarts."""
        from ray._private import state

        with contextlib.suppress(Exception):
            return {
                row["Name"]: row for row in state.actors().values() if row.get("State") != "DEAD" or row.get("Name")
            }
        return {}

    def _result(self, name: str, reference: Any, actors: Mapping[str, Mapping[str, Any]]) -> Answer:
        try:
            health = self._ray.get(reference, timeout=0)
        except Exception as error:
            kind = type(error).__name__
            gone = kind in ("ActorDiedError", "RayTaskError") or kind.startswith("RayTaskError")
            if kind == "ActorDiedError":
                self._handles.pop(name, None)
            return _answer(name, "failed" if gone else "starting", _sentence(error), actors)
        state = "failed" if health["error"] is not None else health["state"]
        answer = _answer(name, state, health["detail"], actors)
        return answer | {"numbers": health["numbers"], "pid": health["pid"]}


def _answer(name: str, state: str, detail: str, actors: Mapping[str, Mapping[str, Any]]) -> Answer:
    answer: Answer = {"agent": name, "state": state, "detail": detail, "numbers": {}}
    row = actors.get(name)
    if row is not None:
        answer["pid"] = int(row.get("Pid") or 0)
        answer["restarts"] = int(row.get("NumRestarts") or 0)
        answer["address"] = (row.get("Address") or {}).get("IPAddress", "")
    return answer


def _sentence(error: BaseException) -> str:
    """The last line that says something: Ray wraps the real error in tracebacks of both processes."""
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, Exception) else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


def main() -> int:
    """Connect, then answer until standard input ends."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print belongs to standard error

    def say(answer: Answer) -> None:
        output.write(json.dumps(answer, default=str) + "\n")
        output.flush()

    try:
        driver = Driver(sys.argv[1])
    except Exception as error:
        say({"error": _sentence(error)})
        return 1
    say({"done": True})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            for answer in getattr(driver, order.pop("do"))(**order):
                say(answer)
            say({"done": True})
        except Exception as error:
            say({"error": _sentence(error)})
    output.flush()
    os._exit(0)  # Ray's own farewell takes half a second and has nothing to do: the actors are detached


if __name__ == "__main__":
    sys.exit(main())
