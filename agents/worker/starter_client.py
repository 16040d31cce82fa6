"""The batch system `fork`: the agent's end of the starter. Starts one when there is none, finds it when there is, and
notices when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.worker import payloads, starter
from agents.worker.batch import Listing
from fabric import failpoints
from fabric.errors import Unavailable

START_TIMEOUT_S = 10.0
LISTING_TIMEOUT_S = 15.0


class StarterClient:
    """A connection to the starter of one state directory. Messages out are batched per turn of the event loop."""

    outlives_reboot = False
    places_ranks = False
    problem = ""

    def __init__(
        self,
        state_dir: Path,
        orphan_timeout_s: float,
        slots: int,
        *,
        on_message: Callable[[dict[str, Any]], None],
        log: Any,
    ) -> None:
        self._state_dir, self._orphan_timeout_s, self._log = state_dir, orphan_timeout_s, log
        self._on_message, self._slots = on_message, slots
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self._listing: asyncio.Future[dict[str, Any]] | None = None
        self.lost = asyncio.Event()
        """Set when the connection ended; connect again."""

    async def connect(self) -> Listing:
        """Connect, starting a starter if needed, and return its listing. Later messages go to `on_message`.

        Raises Unavailable STARTER_UNAVAILABLE.
        """
        self.close()
        for attempt in range(20):
            if not await self._open():
                await self._spawn()
                if not await self._open():
                    await asyncio.sleep(min(0.05 * (attempt + 1), 0.5))  # another one is just ending
                    continue
            self.lost.clear()
            self._listing = asyncio.get_running_loop().create_future()
            reading = asyncio.ensure_future(self._read())
            self.send({"op": "list", "slots": self._slots})
            try:
                said = await asyncio.wait_for(asyncio.shield(self._listing), LISTING_TIMEOUT_S)
                running = {key: (pid, at_us) for key, pid, at_us in said["running"]}
                return Listing(running, frozenset(said["waiting"]))
            except (TimeoutError, Unavailable):
                reading.cancel()
                self.close()
        raise Unavailable(
            "STARTER_UNAVAILABLE", f"the starter in {self._state_dir} cannot be started; see its starter.log"
        )

    async def _open(self) -> bool:
        # Through a descriptor: the path of a unix socket may have 107 bytes only, a state directory more.
        directory = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{directory}/starter.sock"
            self._reader, self._writer = await asyncio.open_unix_connection(path, limit=starter.MAX_LINE_BYTES)
        except OSError:
            return False
        finally:
            os.close(directory)
        return True

    async def _spawn(self) -> None:
        command = payloads.command("starter", str(self._state_dir), str(self._orphan_timeout_s))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **failpoints.inherited()},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            said = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        except TimeoutError:
            said = b""
        await process.wait()  # the starter proper is its child
        self._log.info("starter.spawned", said=said.decode().strip())

    async def _read(self) -> None:
        reader, writer, listing = self._reader, self._writer, self._listing
        assert reader is not None
        assert listing is not None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if message["event"] == "listing":
                    if not listing.done():
                        listing.set_result(message)
                else:
                    self._on_message(message)
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            self._log.warning("starter.connection", detail=str(error))
        finally:
            if not listing.done():
                listing.set_exception(Unavailable("STARTER_UNAVAILABLE", "the starter closed the connection"))
                listing.exception()
            if self._writer is writer:
                self.lost.set()

    def send(self, message: dict[str, Any]) -> bool:
        """Send one message; False if there is no connection (the next listing will tell what is missing)."""
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        return True

    async def capacity(self) -> int:
        """As many as it was told."""
        return self._slots

    def was_started(self, key: str) -> bool:
        """The starter makes the record before the fork."""
        return (self._state_dir / starter.record_of(key)).exists()

    def exit_of(self, key: str) -> dict[str, Any] | None:
        """The last line that is whole."""
        for line in reversed(self._record(key)):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    return record
        return None

    def _record(self, key: str) -> list[bytes]:
        """Its process, then how that ended."""
        try:
            return (self._state_dir / starter.record_of(key)).read_bytes().split(b"\n")
        except OSError:
            return []

    def kill_remains(self, keys: set[str]) -> int:
        """By session and by the mark in the environment."""
        sessions = {int(line) for key in keys for line in self._record(key)[:1] if line.isdigit()}
        return payloads.kill_leftovers(keys, sessions)

    def submit(self, orders: Sequence[dict[str, Any]]) -> None:
        """Start these."""
        for start in range(0, len(orders), 100):
            self.send({"op": "run", "jobs": orders[start : start + 100]})

    def cancel(self, keys: Sequence[str], reason: str, *, at_once: bool = False) -> None:
        """Stop these: SIGTERM and grace if not `at_once`, SIGKILL to all of the session."""
        self.send({"op": "kill", "keys": list(keys), "reason": reason, "at_once": at_once})

    def withdraw(self, keys: Sequence[str]) -> None:
        """Take back those of these that are not forked yet; it answers `gone` for them."""
        self.send({"op": "withdraw", "keys": list(keys)})

    def forget(self, keys: Sequence[str]) -> None:
        """Remove their records."""
        self.send({"op": "forget", "keys": list(keys)})

    def shutdown(self) -> None:
        """Kill everything and end."""
        self.send({"op": "shutdown"})

    def close(self) -> None:
        """Drop the connection; the starter goes on."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
