"""Section `information`: a tree of the size of EGEE in our server and in OpenLDAP's slapd, asked the same questions.

Ours is the top agent in a process of its own; 192 simulated sites publish to it over sessions of their own. slapd has
the database and indices of a BDII and gets changes by LDAP. The same client asks both. Rates depend on what else the
machine does: processor time per answer does not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from bench import helpers, many_sites, slapd
from bench.helpers import ORGANISATION, Trust
from bench.measure import Bench, Table, show
from fabric.ldap import Entry, LdapClient

SITES = 192
CHANGES = 5000
"""In a second: what the sites together try to change."""
CONNECT_S = 600.0
VALID_FOR_S = 60.0
REFRESH_S = 5.0


@dataclass(frozen=True)
class Server:
    """One of the two, while it runs."""

    name: str
    port: int
    pid: int

    def cpu_s(self) -> float:
        """So far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def rss(self) -> int:
        """Bytes in memory."""
        return psutil.Process(self.pid).memory_info().rss


def run(bench: Bench) -> None:
    """Ours, slapd beside it, then ever more sites."""
    sites = bench.size(SITES, 20)
    folder = bench.folder / "information"
    with (
        helpers.trust(folder) as trust,
        _top(trust, sites) as (server, rpc),
        helpers.conversation("bench.producers", _producers_order(trust, rpc)) as ask,
    ):
        entries = _load(bench, server, ask, sites)
        _changes(bench, server, ask)
        if missing := slapd.missing():
            bench.say(f"  no slapd beside it: {missing}")
            _questions(bench, [server], sites)
            return
        with slapd.running(folder / "slapd", entries) as other:
            bench.add("slapd_load", "slapd: slapadd -q of the same entries", "s", [other.load_s])
            _questions(bench, [server, Server("slapd", other.port, other.pid)], sites)


@contextlib.contextmanager
def _top(trust: Trust, sites: int) -> Iterator[tuple[Server, int]]:
    """A top level information agent in a process of its own."""
    credential = trust.folder / "top.pem"
    subject = f"{ORGANISATION}/OU=TOP/CN=top/top.TOP"
    trust.grid.host("localhost", "127.0.0.1", subject=subject).save(credential)
    settings = helpers.agent_settings(trust)
    ports = {name: helpers.free_port() for name in ("rpc", "ldap")}
    settings |= {
        "kind": "information", "name": "top.TOP", "site": "TOP", "credential": str(credential), "ports": ports,
        "options": {"level": "top"},
    }  # fmt: skip
    people = trust.folder / "sites"
    people.mkdir()
    for number in range(max(sites, 0)):
        name = many_sites.site_name(number)
        subject = f"{ORGANISATION}/OU={name}/CN=information/information.{name}"
        trust.grid.host("localhost", "127.0.0.1", subject=subject).save(people / f"{name}.pem")
    with helpers.agent_process(trust, settings) as pid:
        yield Server("here", ports["ldap"], pid), ports["rpc"]


def _producers_order(trust: Trust, port: int) -> dict[str, Any]:
    return {
        "port": port, "certificates": str(trust.grid.trust_directory), "credentials": str(trust.folder / "sites"),
        "refresh_s": REFRESH_S, "valid_for_s": VALID_FOR_S,
    }  # fmt: skip


Ask = Callable[[Mapping[str, Any], float], Any]


def _load(bench: Bench, server: Server, ask: Ask, sites: int) -> list[Entry]:
    """All sites connect and publish everything; returns the tree."""
    empty, used = server.rss(), server.cpu_s()
    took = ask({"do": "sites", "sites": sites}, CONNECT_S)
    used = server.cpu_s() - used
    entries = asyncio.run(_whole_tree(server.port))
    bench.add("load", f"{sites} sites connect and publish {len(entries)} entries", "s", [took["took_s"]],
              note=f"{used:.1f} s of processor time at the server")  # fmt: skip
    bench.add("memory_entry", "memory per entry", "kB", [(server.rss() - empty) / len(entries) / 1000])
    return entries


def _changes(bench: Bench, server: Server, ask: Ask) -> None:
    """As many as the server takes of those that are tried: who has to wait sends only the last state of each entry."""
    seconds = bench.size(10, 3)
    used = server.cpu_s()
    found = ask({"do": "change", "rate": CHANGES, "seconds": seconds}, CONNECT_S)
    used, entries = server.cpu_s() - used, max(1, found["entries"])
    note = f"{found['offered']:.0f} tried"
    bench.add("changes", "changed entries that travel to the top", "1/s", [entries / found["seconds"]], note=note)
    bench.add("change_cpu", "processor time of the top for each of them", "ms", [1000 * used / entries])
    bench.add("change_bytes", "bytes of each of them on the way, with its message", "B", [found["bytes"] / entries])


async def _whole_tree(port: int) -> list[Entry]:
    async with await LdapClient.connect("127.0.0.1", port, timeout_s=60) as client:
        return await client.search("o=grid", page_size=10_000)


def _questions(bench: Bench, servers: Sequence[Server], sites: int) -> None:
    everywhere = [queue for number in range(sites) for queue in many_sites.queue_ids(number)]
    attributes = many_sites.BROKER_ATTRIBUTES
    request = helpers.ldap_request
    questions = {
        "ces": ("CEs of a VO, 10 attributes", [request("o=grid", many_sites.CES_OF_A_VO, attributes)]),
        "dump": ("everything", [request("o=grid", "(objectClass=*)")]),
        "point": ("one CE by its name, 10 attributes",
                  [request("o=grid", f"(GlueCEUniqueID={one})", attributes) for one in everywhere]),
        "site": ("a site's CEs of a VO", [request(str(many_sites.site_base(n)), many_sites.CES_OF_A_VO, attributes)
                                          for n in range(sites)]),
    }  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for key, (title, requests) in questions.items():
        for clients in (1, 4):
            for server in servers:
                rows.append(_asked(bench, server, key, title, requests, clients))
    columns = ("question", "clients", "server", "1/s", "processor ms", "entries", "kB")
    bench.tables.append(Table("The same questions to both servers", columns, tuple(rows)))


def _asked(
    bench: Bench, server: Server, key: str, title: str, requests: Sequence[str], clients: int
) -> tuple[str, ...]:
    order = {"host": "127.0.0.1", "port": server.port, "requests": requests, "seconds": bench.size(3, 1)}
    rates: list[float] = []
    costs: list[float] = []
    found: dict[str, Any] = {}
    for _ in range(bench.trials):
        used = server.cpu_s()
        answers = helpers.together("ldap", [order] * clients)
        used = server.cpu_s() - used
        found = answers[0]
        rates.append(sum(one["rate"] for one in answers))
        costs.append(1000 * used / sum(one["count"] + 1 for one in answers))
    many = f"{clients} client{'s' if clients > 1 else ''}"
    rate = bench.add(f"{key}_{clients}_{server.name}", f"{server.name}: {title}, {many}", "1/s", rates)
    cost = sorted(costs)[len(costs) // 2]
    size = show(found["bytes"] / 1000)
    return (title, str(clients), server.name, show(rate.median), show(cost), str(found["entries"]), size)
