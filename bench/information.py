"""Section `information`: ever larger trees in our server; one of the size of EGEE in OpenLDAP's slapd, too.

Ours is the top agent in a process of its own; simulated sites publish to it over sessions of their own, ever more of
them. At each size 5 000 changes a second are tried while a broker asks and single changes are followed to the top's
answer. At 192 sites slapd, with the database and indices of a BDII, is asked the same questions by the same client.
Rates depend on what else the machine does: processor time per answer does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agents.user_interface.information_export import ldif
from bench import helpers, many_sites, slapd
from bench.helpers import ORGANISATION, Trust
from bench.measure import Bench, Table, show
from fabric.ldap import Entry, LdapClient

SIZES = (5, 20, 192, 260, 350, 475, 640, 1000)
"""Closer together where the limit may be: the largest at which changes are still fresh is printed."""
QUICK_SIZES = (5, 20)
BESIDE_SLAPD = 192
"""Or the largest size below it."""
CHANGES = 5000
"""In a second: what the sites together try to change."""
FRESH_MS = 1000.0
"""99 of 100 changes are to be answered at the top by then."""
BROKERS_SEARCH = helpers.ldap_request("o=grid", many_sites.CES_OF_A_VO, many_sites.BROKER_ATTRIBUTES)
FULL_DUMP = helpers.ldap_request("o=grid", "(objectClass=*)")
BDII_COPIES_S = 120.0
"""How often a top BDII copies all that a site has."""
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


def run(bench: Bench, sizes: Sequence[int] = ()) -> None:
    """Ours with ever more sites, and slapd beside it at one size."""
    sizes = sorted(sizes or (QUICK_SIZES if bench.quick else SIZES))
    compared = max((size for size in sizes if size <= BESIDE_SLAPD), default=sizes[0])
    folder = bench.folder / "information"
    rows: list[Size] = []
    with (
        helpers.trust(folder) as trust,
        _top(trust, sizes[-1]) as (server, rpc),
        helpers.conversation("bench.producers", _producers_order(trust, rpc)) as ask,
    ):
        for sites in sizes:
            rows.append(_grow(bench, server, ask, sites, rows[-1] if rows else None))
            if sites == compared:
                _beside_slapd(bench, server, folder, sites)
                _while_it_changes(bench, server, ask)
    bench.tables.append(_sweep(rows))


def _beside_slapd(bench: Bench, server: Server, folder: Path, sites: int) -> None:
    if missing := slapd.missing():
        bench.say(f"  no slapd beside it: {missing}")
        _questions(bench, [server], sites)
        return
    with slapd.running(folder / "slapd", asyncio.run(_whole_tree(server.port))) as other:
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
    for number in range(sites):
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


@dataclass(frozen=True)
class Size:
    """What was found with so many sites."""

    sites: int
    entries: int
    rss: int
    load_cpu_ms: float
    """Processor time of the top for each site that came: its session and its whole tree."""
    memory_kb: float
    """For each entry that came."""
    changes: float
    """In a second, that travelled to the top; who has to wait sends only the last state of each entry."""
    change_cpu_ms: float
    """Of the top, for each of them; the broker's questions in it."""
    traffic_kb: float
    """Of a site in a minute of these changes."""
    copied_kb: float
    """What a BDII would copy of a site in a minute, whatever changed: all its entries every two minutes."""
    late_ms: Sequence[float]
    """From a change at a site to the top's answer with it."""
    asked: float
    """Answers to the broker's typical search in a second, meanwhile."""

    @property
    def p99_ms(self) -> float:
        """How late 99 of 100 changes are at most."""
        return _p99(self.late_ms)


def _grow(bench: Bench, server: Server, ask: Ask, sites: int, before: Size | None) -> Size:
    """More sites come, then everything at once: changes, a broker's questions, single changes followed."""
    known = (before.sites, before.entries, before.rss) if before is not None else (0, 0, server.rss())
    used = server.cpu_s()
    took = ask({"do": "sites", "sites": sites}, CONNECT_S)
    load_cpu_ms = 1000 * (server.cpu_s() - used) / (sites - known[0])
    entries, rss = asyncio.run(_count(server.port)), server.rss()
    memory_kb = (rss - known[2]) / (entries - known[1]) / 1000
    bench.add(f"load_{sites}", f"{sites} sites: those that are new connect and publish", "s", [took["took_s"]],
              note=f"{entries} entries in all")  # fmt: skip
    seconds = bench.size(20, 5)
    broker = {"host": "127.0.0.1", "port": server.port, "requests": [BROKERS_SEARCH], "seconds": seconds}
    used = server.cpu_s()
    with helpers.beside("ldap", broker) as answers:
        found = ask({"do": "change", "rate": CHANGES, "seconds": seconds, "ldap": server.port}, CONNECT_S)
        asked = answers()["rate"]
    used, changed = server.cpu_s() - used, max(1, found["entries"])
    size = Size(
        sites, entries, rss, load_cpu_ms, memory_kb, changed / found["seconds"], 1000 * used / changed,
        60 * found["bytes"] / found["seconds"] / sites / 1000, asyncio.run(_copied_kb(server.port, sites)),
        found["late_ms"], asked,
    )  # fmt: skip
    note = f"{found['offered']:.0f} tried"
    bench.add(f"changes_{sites}", f"{sites} sites: changed entries to the top", "1/s", [size.changes], note=note)
    bench.add(f"late_{sites}", f"{sites} sites: a change to its answer at the top meanwhile", "ms", size.late_ms)
    bench.add(f"late_p99_{sites}", f"{sites} sites: 99 of 100 of them", "ms", [size.p99_ms])
    bench.add(f"asked_{sites}", f"{sites} sites: CEs of a VO meanwhile, one client", "1/s", [size.asked])
    return size


def _while_it_changes(bench: Bench, server: Server, ask: Ask) -> None:
    """The two large questions, by one client and by four, while changes flow."""
    seconds = bench.size(10, 3)
    rows: list[tuple[str, ...]] = []
    for key, title, request in (
        ("ces", "CEs of a VO, 10 attributes", BROKERS_SEARCH),
        ("dump", "everything", FULL_DUMP),
    ):
        order = {"host": "127.0.0.1", "port": server.port, "requests": [request], "seconds": seconds}
        for clients in (1, 4):
            with contextlib.ExitStack() as stack:
                asking = [stack.enter_context(helpers.beside("ldap", order)) for _ in range(clients)]
                found = ask({"do": "change", "rate": CHANGES, "seconds": seconds, "ldap": server.port}, CONNECT_S)
                rate = sum(answers()["rate"] for answers in asking)
            name = f"here: {title}, {clients} client{'s' if clients > 1 else ''}, while {CHANGES} changes/s are tried"
            bench.add(f"{key}_{clients}_meanwhile", name, "1/s", [rate])
            changes = found["entries"] / found["seconds"]
            rows.append((title, str(clients), show(rate), show(changes), show(_p99(found["late_ms"]))))
    columns = ("question", "clients", "1/s", "changes/s", "change seen ms, 99 %")
    bench.tables.append(Table("Asked while changes flow", columns, tuple(rows)))


def _p99(late_ms: Sequence[float]) -> float:
    """How late 99 of 100 changes are at most."""
    return sorted(late_ms)[math.ceil(0.99 * len(late_ms)) - 1]


async def _copied_kb(port: int, sites: int) -> float:
    some = min(sites, 10)
    async with await LdapClient.connect("127.0.0.1", port, timeout_s=60) as client:
        found = [await client.search(str(many_sites.site_base(number))) for number in range(some)]
    return sum(len(ldif(entries)) for entries in found) / some * 60 / BDII_COPIES_S / 1000


async def _count(port: int) -> int:
    async with await LdapClient.connect("127.0.0.1", port, timeout_s=60) as client:
        return len(await client.search("o=grid", attributes=("1.1",), page_size=10_000))


def _sweep(rows: Sequence[Size]) -> Table:
    """Each size, and up to which changes are fresh."""
    good = [row.sites for row in rows if row.p99_ms <= FRESH_MS]
    columns = (
        "sites", "entries", "processor ms a new site", "kB an entry", "changes/s", "processor ms a change",
        "kB a site and minute", "copied by a BDII, kB", "change seen ms, median", "99 %", "searches/s",
    )  # fmt: skip
    found = tuple(
        (
            str(row.sites), str(row.entries), show(row.load_cpu_ms), show(row.memory_kb), show(row.changes),
            show(row.change_cpu_ms), show(row.traffic_kb), show(row.copied_kb),
            show(statistics.median(row.late_ms)), show(row.p99_ms), show(row.asked),
        )
        for row in rows
    )  # fmt: skip
    limit = f"fresh within {FRESH_MS:g} ms up to {max(good)} sites" if good else f"never fresh within {FRESH_MS:g} ms"
    return Table(
        f"Ever more sites while {CHANGES} changes a second are tried and a broker asks: {limit}", columns, found
    )


async def _whole_tree(port: int) -> list[Entry]:
    async with await LdapClient.connect("127.0.0.1", port, timeout_s=60) as client:
        return await client.search("o=grid", page_size=10_000)


def _questions(bench: Bench, servers: Sequence[Server], sites: int) -> None:
    everywhere = [queue for number in range(sites) for queue in many_sites.queue_ids(number)]
    attributes = many_sites.BROKER_ATTRIBUTES
    request = helpers.ldap_request
    questions = {
        "ces": ("CEs of a VO, 10 attributes", [BROKERS_SEARCH]),
        "dump": ("everything", [FULL_DUMP]),
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
    order = {"host": "127.0.0.1", "port": server.port, "requests": requests, "seconds": bench.size(2, 1)}
    rates: list[float] = []
    costs: list[float] = []
    found: dict[str, Any] = {}
    for _ in range(bench.size(3, 1)):  # a process for each client takes longer to start than its questions
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
