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
        self._stopped: dict[str, int] = {}
        """Agents of each actor that were asked to stop."""

    def create(self, packs: list[Mapping[str, Any]]) -> Iterator[Answer]:
        """One detached actor per pack that is not there yet, with the settings of its agents; returns before they are
        up."""
        from fabric.actor import MAX_CONCURRENCY, AgentActor

        remote = self._ray.remote(AgentActor)
        for pack in packs:
            options = {
                "name": pack["actor"],
                "lifetime": "detached",
                "max_restarts": -1,
                "max_concurrency": MAX_CONCURRENCY,
                "num_cpus": 0,
                "label_selector": {"host": pack["host"]},
                "get_if_exists": True,
            }
            self._handles[pack["actor"]] = remote.options(**options).remote(*pack["settings"])
        return iter(())

    def nodes(self) -> Iterator[Answer]:
        """The hosts of this cluster."""
        for node in self._ray.nodes():
            yield {
                "host": node["Labels"].get("host", ""),
                "alive": node["Alive"],
                "address": node["NodeManagerAddress"],
            }

    def health(self, packs: list[Mapping[str, Any]], deadline_s: float) -> Iterator[Answer]:
        """The health of each agent, within the deadline for all."""
        deadline = time.monotonic() + deadline_s
        actors = self._actors()
        present = {answer["host"] for answer in self.nodes() if answer["alive"]}
        asked: dict[Any, Mapping[str, Any]] = {}
        for pack in packs:
            handle = self._handle(pack["actor"])
            if handle is None:
                yield from _answers(pack, "stopped", "there is no such agent", actors)
            elif pack["host"] not in present:
                yield from _answers(pack, "waiting", f"host {pack['host']} has not joined, or is lost", actors)
            else:
                asked[handle.health.remote()] = pack
        while asked:
            left = deadline - time.monotonic()
            done, _ = self._ray.wait(list(asked), timeout=max(0.0, left))
            for reference in done:
                yield from self._results(asked.pop(reference), reference, actors)
            if left <= 0 and not done:
                break
        for pack in asked.values():
            yield from _answers(pack, "silent", f"no answer in {deadline_s:g} s", actors)

    def watch(self, packs: list[Mapping[str, Any]], deadline_s: float) -> Iterator[Answer]:
        """Every change of health until all are green, or the time is over. Ends early after a failure for good, and
        when for a while nothing but degraded agents was waited for.
        """
        began = time.monotonic()
        settled_at: float | None = None
        last: dict[str, tuple[str, str]] = {}
        asked: dict[Any, Mapping[str, Any]] = {}

        def state_of(name: str) -> str:
            return last.get(name, ("", ""))[0]

        while (now := time.monotonic()) < began + deadline_s:
            waiting = [pack for pack in packs if any(state_of(name) != "green" for name in pack["agents"])]
            states = {state_of(name) for pack in waiting for name in pack["agents"]} - {"green"}
            if not waiting or "failed" in states:
                return
            settled_at = (settled_at or now) if states == {"degraded"} else None
            if settled_at is not None and now - settled_at > DEGRADED_PATIENCE_S:
                return
            for pack in waiting:
                if pack not in asked.values() and (handle := self._handle(pack["actor"])) is not None:
                    asked[handle.health.remote()] = pack
            done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_EVERY_S) if asked else ([], [])
            actors = self._actors() if done else {}
            for reference in done:
                for answer in self._results(asked.pop(reference), reference, actors):
                    if last.get(answer["agent"]) != (answer["state"], answer["detail"]):
                        last[answer["agent"]] = (answer["state"], answer["detail"])
                        yield answer
            if done:
                time.sleep(POLL_EVERY_S)
        actors = self._actors()
        for pack in packs:
            found = actors.get(pack["actor"])
            state = found["State"] if found else "unknown"
            for answer in _answers(pack, "silent", f"not started in {deadline_s:g} s (Ray says {state})", actors):
                if answer["agent"] not in last:
                    yield answer

    def stop(self, packs: list[Mapping[str, Any]], deadline_s: float) -> Iterator[Answer]:
        """Ask agents to stop. An actor whose agents were all asked is gone afterwards, with what has not stopped in
        time."""
        deadline = time.monotonic() + deadline_s
        asked: dict[Any, Mapping[str, Any]] = {}
        actors = self._actors()
        for pack in packs:
            self._stopped[pack["actor"]] = self._stopped.get(pack["actor"], 0) + len(pack["agents"])
            handle = self._handle(pack["actor"])
            alive = actors.get(pack["actor"], {"State": "ALIVE"})["State"] == "ALIVE"  # or waits for a host, or for Ray
            if handle is not None and alive:
                asked[handle.stop.remote(pack["agents"], deadline_s)] = pack
        while asked and (left := deadline - time.monotonic()) > 0:
            done, _ = self._ray.wait(list(asked), timeout=left)
            for reference in done:
                pack = asked.pop(reference)
                try:
                    stopped = self._ray.get(reference, timeout=0)
                except Exception as error:
                    yield from _answers(pack, "failed", _sentence(error), {})
                    continue
                for name in pack["agents"]:
                    yield {"agent": name, "state": "stopped"} if name in stopped else _late(name, deadline_s)
        for pack in asked.values():
            yield from (_late(name, deadline_s) for name in pack["agents"])
        for pack in packs:
            handle = self._handle(pack["actor"])
            if handle is not None and self._stopped[pack["actor"]] >= pack["size"]:
                del self._handles[pack["actor"]]
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

    def _results(
        self, pack: Mapping[str, Any], reference: Any, actors: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[Answer]:
        try:
            found = {health["name"]: health for health in self._ray.get(reference, timeout=0)}
        except Exception as error:
            kind = type(error).__name__
            gone = kind in ("ActorDiedError", "RayTaskError") or kind.startswith("RayTaskError")
            if kind == "ActorDiedError":
                self._handles.pop(pack["actor"], None)
            yield from _answers(pack, "failed" if gone else "starting", _sentence(error), actors)
            return
        for answer in _answers(pack, "", "", actors):
            health = found[answer["agent"]]
            state = "failed" if health["error"] is not None else health["state"]
            yield answer | {key: health[key] for key in ("detail", "numbers", "pid")} | {"state": state}


def _answers(
    pack: Mapping[str, Any], state: str, detail: str, actors: Mapping[str, Mapping[str, Any]]
) -> Iterator[Answer]:
    """The same about each agent of a pack."""
    answer: Answer = {"state": state, "detail": detail, "numbers": {}, "packed": pack["size"]}
    row = actors.get(pack["actor"])
    if row is not None:
        answer["pid"] = int(row.get("Pid") or 0)
        answer["restarts"] = int(row.get("NumRestarts") or 0)
        answer["address"] = (row.get("Address") or {}).get("IPAddress", "")
    for name in pack["agents"]:
        yield {"agent": name, **answer}


def _late(name: str, deadline_s: float) -> Answer:
    return {"agent": name, "state": "silent", "detail": f"did not stop in {deadline_s:g} s; killed"}


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
