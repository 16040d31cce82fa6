"""Section `vo`: VOMS attribute certificates, made, verified, issued, and a user's whole wait for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.vo.client import VoClient
from bench import helpers
from bench.helpers import ORGANISATION, Trust
from bench.limits import TRIAL_S
from bench.measure import Bench, rate, repeat_for
from security import voms
from security.credentials import Credential, generate_key
from security.proxies import create_proxy
from security.validation import ValidationPolicy, validate_client_chain

GROUPS = ["/cms", "/cms/higgs", "/cms/Role=production"]
AT_ONCE = 8


def run(bench: Bench) -> None:
    """Against a VO server in a process of its own, which keeps its members on this disk."""
    with helpers.trust(bench.folder / "vo", "rsa-2048") as trust:
        server = _server_credential(trust)
        _library(bench, trust, server)
        with _vo_server(trust, server) as settings:
            asyncio.run(_issued(bench, trust, settings))
            _commands(bench, trust, settings, server)


def _server_credential(trust: Trust) -> Credential:
    key = generate_key("rsa-2048")
    lifetime, now = timedelta(days=30), datetime.now(UTC)
    subject = f"{ORGANISATION}/OU=BENCH/CN=vo/vo.cms"
    return Credential(
        trust.grid.ca.issue_host(("localhost",), key.public_key(), lifetime=lifetime, now=now, subject=subject), key
    )


def _library(bench: Bench, trust: Trust, server: Credential) -> None:
    now = datetime.now(UTC)

    def make() -> bytes:
        return voms.create_attribute_certificate(
            server, trust.user.certificate, vo="cms", uri="localhost:1", fqans=GROUPS, lifetime=timedelta(hours=1),
            now=now,
        )  # fmt: skip

    values = rate(repeat_for(TRIAL_S, make, 10), bench.short_trials)
    bench.add("ac_made", "attribute certificates made (RSA-2048), one thread", "1/s", values)
    extension = voms.proxy_extension([make()])
    proxy = create_proxy(trust.user, lifetime=timedelta(hours=1), now=now, extensions=[extension])
    snapshot, policy = trust.grid.trust, ValidationPolicy()
    identity = validate_client_chain(proxy.pem_chain(), snapshot, policy, now)
    servers = voms.VomsDirectory({"cms": ((server.subject, trust.grid.ca.subject),)})
    values = rate(
        repeat_for(TRIAL_S, lambda: voms.verify_attributes(identity, servers, snapshot, policy, now), 10),
        bench.short_trials,
    )
    note = "signature, signer's chain with revocation list and namespace, .lsc, holder, times"
    bench.add("ac_verified", "attribute certificates verified, one thread", "1/s", values, note=note)


@contextlib.contextmanager
def _vo_server(trust: Trust, server: Credential) -> Iterator[Mapping[str, Any]]:
    credential = trust.folder / "vo.pem"
    server.save(credential)
    settings = helpers.agent_settings(trust)
    ports = {name: helpers.free_port() for name in ("rpc", "ldap", "http")}
    settings |= {"kind": "vo", "name": "vo.cms", "credential": str(credential), "ports": ports}
    settings["options"] = {"groups": ["/cms/higgs"], "roles": ["production"]}
    with helpers.agent_process(trust, settings):
        yield settings


async def _issued(bench: Bench, trust: Trust, settings: Mapping[str, Any]) -> None:
    order = {"certificates": settings["certificates"]}
    operator = trust.grid.user(f"{ORGANISATION}/OU=Operators/CN=bench")
    port = settings["ports"]["rpc"]
    async with helpers.secure_channels(order, operator) as channels:
        client = VoClient(await channels.get("localhost", port))
        await client.add_member(str(trust.user.subject), groups=GROUPS[1:])
    async with helpers.secure_channels(order, trust.proxy()) as channels:
        client = VoClient(await channels.get("localhost", port))
        until_s = bench.size(3, 1)
        values: list[float] = []
        for _ in range(bench.trials):
            began = time.perf_counter()

            async def loop(end: float) -> int:
                count = 0
                while time.perf_counter() < end:
                    await client.issue_attributes(["/cms/Role=production"])
                    count += 1
                return count

            counts = await asyncio.gather(*(loop(began + until_s) for _ in range(AT_ONCE)))
            values.append(sum(counts) / (time.perf_counter() - began))
    title = f"attribute certificates issued over gRPC (store read, signed, audited), {AT_ONCE} under way"
    bench.add("ac_issued", title, "1/s", values, limit="ac_made")


def _commands(bench: Bench, trust: Trust, settings: Mapping[str, Any], server: Credential) -> None:
    """What a user waits for, process start included."""
    folder = trust.folder
    certificate, key = trust.grid.save_user(trust.user, folder / "user")
    lsc = folder / "vomsdir" / "cms" / "localhost.lsc"
    lsc.parent.mkdir(parents=True)
    lsc.write_text(voms.lsc_text([server.subject, trust.grid.ca.subject]), "utf-8")
    vomses = folder / "vomses"
    vomses.write_text(f'"cms" "localhost" "{settings["ports"]["http"]}" "{server.subject}" "cms"\n', "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path[:2]),
        "X509_CERT_DIR": str(settings["certificates"]),
        "X509_VOMS_DIR": str(lsc.parent.parent),
        "VOMS_USERCONF": str(vomses),
        "X509_USER_CERT": str(certificate),
        "X509_USER_KEY": str(key),
        "X509_USER_PROXY": str(folder / "proxy.pem"),
        "GRIDFABRIC_VO_SERVER": f"localhost:{settings['ports']['rpc']}",
        "GRIDFABRIC_VO": "cms",
    }
    ours = [sys.executable, "-m", "agents.user_interface.main", "proxy", "init"]
    _timed(bench, "proxy_grid", "grid proxy init, whole command", ours, environment)
    if shutil.which("grid-proxy-init"):
        _timed(bench, "proxy_globus", "grid-proxy-init (Globus), whole command", ["grid-proxy-init"], environment)
    _timed(bench, "ac_grid", "grid proxy init --voms, whole command", [*ours, "--voms", "cms"], environment)
    if shutil.which("voms-proxy-init"):
        theirs = ["voms-proxy-init", "-voms", "cms"]
        _timed(bench, "ac_voms", "voms-proxy-init (C client) against our server, whole command", theirs, environment)


def _timed(bench: Bench, key: str, title: str, command: list[str], environment: Mapping[str, str]) -> None:
    values: list[float] = []
    for trial in range(bench.size(9, 3) + 1):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        if trial:
            values.append((time.perf_counter() - began) * 1000)
    bench.add(key, title, "ms", values)
