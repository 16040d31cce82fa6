"""The launcher: a short-lived process between the starter and the payloads of one account and one set of limits.

A fork copies what its child touches of the starter's memory, which costs more than all else about a short payload. So
one fork serves several of them: it takes on their account and limits, starts each without a copy (posix_spawn), says
on a pipe how that went, and ends. The starter is their sub-reaper and inherits them. Standard library alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence

from agents.worker.payloads import become, failure, open_streams, reset_signals

LAUNCH_S = 60.0
"""A launcher that has said nothing for so long is killed: somebody has stopped it."""


class Launch:
    """A launcher that has not ended, and the orders of which it has not told yet."""

    def __init__(self, orders: Sequence[dict], become_mortal: Callable[[], None]) -> None:
        """Forks. `become_mortal`: from then on the child dies with its parent. Raises OSError."""
        self.orders = {order["key"]: order for order in orders}
        self.until = time.monotonic() + LAUNCH_S
        starter = os.getpid()
        self.pipe, report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.pipe)
            os.close(report)
            raise
        if not self.pid:
            try:
                _launch(orders, report, starter, become_mortal)
            finally:
                os._exit(0)
        os.close(report)

    def read(self) -> list[list] | None:
        """What it tells now: key, process id, start in microseconds, and instead of these two what went wrong. None:
        it is over."""
        try:
            told = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return []
        return [json.loads(line) for line in told.splitlines()] if told else None

    def close(self) -> None:
        """After its end."""
        os.close(self.pipe)


def kind_of(order: dict) -> tuple[object, ...]:
    """Orders of one kind can share a launcher."""
    names = ("uid", "gid", "open_files", "cpu_s", "file_bytes", "memory_bytes", "processes")
    return tuple(order.get(name) for name in names)


def _launch(orders: Sequence[dict], report: int, starter: int, become_mortal: Callable[[], None]) -> None:
    stage = "limits"
    try:
        reset_signals()
        for now in become(orders[0]):
            stage = now
        become_mortal()  # after the change of user, which would undo it
    except BaseException as error:
        _tell(report, [[order["key"], 0, 0, failure(stage, error)] for order in orders])
        return
    for order in orders:
        if os.getppid() != starter:
            return  # nobody would watch over them
        _tell(report, [_spawn(order)])


def _spawn(order: dict) -> list:
    stage, opened = "directory", []
    try:
        os.chdir(order["cwd"])
        stage = "standard streams"
        streams = open_streams(order, opened)
        stage = "executable"
        pid = os.posix_spawn(
            order["executable"],
            order["argv"],
            order["env"],
            file_actions=[(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(streams)],
            setsid=True,
        )
        return [order["key"], pid, time.time_ns() // 1000, None]
    except BaseException as error:
        return [order["key"], 0, 0, failure(stage, error)]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _tell(report: int, lines: Sequence[list]) -> None:
    for line in lines:
        os.write(report, json.dumps(line).encode() + b"\n")
