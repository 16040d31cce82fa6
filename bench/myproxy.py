"""Section `myproxy`: proxies from the credential store, by passphrase and by renewal, and a user's wait for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from agents.myproxy.client import MyProxyClient
from bench import helpers
from bench.helpers import ORGANISATION, Trust
from bench.measure import Bench
from fabric.clock import SystemClock
from security.credentials import Credential
from security.trust import TrustStore
from security.validation import ValidationPolicy

PASSPHRASE = b"open sesame"
AT_ONCE = 4


def run(bench: Bench) -> None:
    """Against a credential store in a process of its own, with its own cost of a passphrase."""
    with helpers.trust(bench.folder / "myproxy") as trust:
        subject = f"{ORGANISATION}/OU=BENCH/CN=myproxy/myproxy.BENCH"
        server = trust.grid.host("localhost", "127.0.0.1", subject=subject)
        with _store(trust, server) as settings:
            asyncio.run(_delegated(bench, trust, settings))
            _commands(bench, trust, settings, server)


@contextlib.contextmanager
def _store(trust: Trust, server: Credential) -> Iterator[Mapping[str, Any]]:
    credential = trust.folder / "myproxy.pem"
    server.save(credential)
    ports = {name: helpers.free_port() for name in ("rpc", "myproxy")}
    settings = helpers.agent_settings(trust)
    settings |= {"kind": "myproxy", "name": "myproxy.BENCH", "credential": str(credential), "ports": ports}
    with helpers.agent_process(trust, settings):
        yield settings


async def _delegated(bench: Bench, trust: Trust, settings: Mapping[str, Any]) -> None:
    store, owner = TrustStore(trust.grid.trust_directory), trust.proxy()

    def client(credential: Credential | None = None) -> MyProxyClient:
        port = settings["ports"]["myproxy"]
        return MyProxyClient("localhost", port, store, ValidationPolicy(), SystemClock(), credential)

    await client(owner).put("bench", PASSPHRASE)
    await client(owner).put(str(owner.identity))
    broker = trust.grid.host("localhost", subject=f"{ORGANISATION}/OU=BENCH/CN=broker/broker.BENCH")
    calls: tuple[tuple[str, str, Callable[[], Awaitable[object]]], ...] = (
        (
            "px_logon",
            "proxies from the credential store by passphrase (scrypt)",
            lambda: client().get("bench", PASSPHRASE),
        ),
        ("px_renewal", "proxies renewed", lambda: client(broker).get(str(owner.identity), proof=owner)),
    )
    for key, title, call in calls:
        rates: list[float] = []
        for _ in range(bench.trials):
            began, until_s = time.perf_counter(), bench.size(3, 1)

            async def loop(end: float, call: Callable[[], Awaitable[object]] = call) -> int:
                count = 0
                while time.perf_counter() < end:
                    await call()
                    count += 1
                return count

            counts = await asyncio.gather(*(loop(began + until_s) for _ in range(AT_ONCE)))
            rates.append(sum(counts) / (time.perf_counter() - began))
        note = "a new connection each; a passphrase costs one scrypt of 16 MiB"
        bench.add(key, f"{title}, {AT_ONCE} under way", "1/s", rates, note=note)
        waits: list[float] = []
        for _ in range(bench.size(15, 5)):
            began = time.perf_counter()
            await call()
            waits.append((time.perf_counter() - began) * 1000)
        bench.add(f"{key}_ms", f"{title}, one at a time", "ms", waits)


def _commands(bench: Bench, trust: Trust, settings: Mapping[str, Any], server: Credential) -> None:
    """What a user waits for, process start included."""
    if not shutil.which("myproxy-logon"):
        return
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("X509_", "MYPROXY_"))},
        "X509_CERT_DIR": str(settings["certificates"]),
        "X509_USER_PROXY": "/dev/null",
        "MYPROXY_SERVER": "localhost",
        "MYPROXY_SERVER_PORT": str(settings["ports"]["myproxy"]),
        "MYPROXY_SERVER_DN": str(server.subject),
    }
    command = ["myproxy-logon", "-S", "-l", "bench", "-o", str(trust.folder / "logon.pem")]
    values: list[float] = []
    for trial in range(bench.size(15, 3) + 1):
        began = time.perf_counter()
        subprocess.run(command, env=environment, input=PASSPHRASE + b"\n", check=True, capture_output=True, timeout=60)
        if trial:
            values.append((time.perf_counter() - began) * 1000)
    bench.add("px_command", "myproxy-logon (C client) against our credential store, whole command", "ms", values)
