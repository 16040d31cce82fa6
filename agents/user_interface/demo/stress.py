"""`grid demo stress`: the CMS stress test of 2002, where files were refused though there was room.

n sites produce datasets; a storage element of several partitions collects them. Twice, at once and with the same files:
at one element each directory of the catalogue has its partition, planned before the production by hand, as physical
names that follow from logical names force it; at the other one every file goes where there is room. The plan expects
datasets of equal size, which they are not.
"""

from __future__ import annotations

import asyncio
import html
import json
import random
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from agents.user_interface import console, deployment, endpoints
from agents.user_interface.demo import report, run
from agents.user_interface.demo.report import Check
from agents.user_interface.exits import Ended, ExitCode
from agents.user_interface.progress import Bar
from agents.user_interface.signals import terminate_as_interrupt, undisturbed
from fabric.text import counted

DIRECTORY = "/grid/cms/stress"
DATASETS: Mapping[str, float] = {
    "jets": 1.8, "muons": 1.5, "electrons": 0.4, "taus": 0.5, "photons": 1.0, "bbbar": 0.9, "ttbar": 1.3,
    "minbias": 0.6,
}  # fmt: skip
"""What each has of the production, 1 being what the plan expects."""
PARTITIONS = 4
FILLED = 0.85
"""Part of the room at the collecting element that the whole production takes."""
PLANNED, FREE = "planned", "free"
RULES = {
    PLANNED: "old rule: the partition follows from the name",
    FREE: "our rule: where there is room",
}


@dataclass
class Partition:
    """A pool of a collecting element when all is over."""

    name: str
    files: int
    used_bytes: int
    free_bytes: int
    total_bytes: int


@dataclass
class Collection:
    """What one of the two elements has got."""

    rule: str
    copies: int = 0
    failed: int = 0
    failed_bytes: int = 0
    failed_by_dataset: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    example: str = ""
    """The sentence of one refusal."""
    partitions: list[Partition] = field(default_factory=list)

    @property
    def free_bytes(self) -> int:
        """In all partitions."""
        return sum(partition.free_bytes for partition in self.partitions)


@dataclass
class Found:
    """Everything that stress.json holds."""

    sites: int
    files: int
    produced: int = 0
    produced_bytes: int = 0
    collections: dict[str, Collection] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if every check was made and holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)


@dataclass(frozen=True)
class Plan:
    """The production, known before the grid is there: a function of its arguments alone."""

    sizes: Mapping[str, Sequence[int]]
    """Dataset -> sizes of its files."""
    partition_bytes: int

    @classmethod
    def make(cls, files: int, file_kib: int, seed: int) -> Plan:
        """About `files` files of `file_kib` KiB on average."""
        dice = random.Random(seed)
        sizes = {
            name: [dice.randint(file_kib << 9, 3 * file_kib << 9) for _ in range(max(1, round(files * part / 8)))]
            for name, part in DATASETS.items()
        }
        total = sum(map(sum, sizes.values()))
        return cls(sizes, int(total / FILLED / PARTITIONS))

    def partition_of(self, dataset: str) -> str:
        """By hand: two datasets for each, in order."""
        return f"partition-{1 + list(DATASETS).index(dataset) * PARTITIONS // len(DATASETS)}"


def stress_command(*, sites: int, files: int, file_kib: int, seed: int, out: Path, as_json: bool) -> None:
    """Run it; exit 0 only if every check holds. However it ends, the grid is stopped and its state removed."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan.make(files, file_kib, seed)
    found = Found(sites, sum(map(len, plan.sizes.values())))
    state = run.make_state_folder()
    try:
        with terminate_as_interrupt():
            try:
                console.say(f"CMS stress test: {counted(found.files, 'file')} from {counted(sites, 'site')}")
                deployment.start(_description(sites, plan), state)
                asyncio.run(_work(state, plan, found, random.Random(seed)))
            finally:
                with undisturbed():
                    console.say("stopping the grid")
                    deployment.stop(state)
                    deployment.remove(state)
    except KeyboardInterrupt:
        console.warn("interrupted; the grid is stopped and its state removed")
        raise Ended(ExitCode.INTERRUPTED) from None
    found.checks = checks_of(found)
    (out / "stress.json").write_text(json.dumps(_data(found), indent=2) + "\n", encoding="utf-8")
    (out / "stress.html").write_text(render_html(found), encoding="utf-8")
    if as_json:
        console.print_json(_data(found))
    else:
        _print(found)
        print(f"see {out}/stress.html")
    raise Ended(ExitCode.OK if found.ok else ExitCode.FAILED)


def _description(sites: int, plan: Plan) -> Any:
    """The grid: n sites with a storage element each, and the two that collect."""
    from agents.storage.client import STRESS_GRID
    from clusters import load

    pools = [f"partition-{number + 1}" for number in range(PARTITIONS)]
    planned = ", ".join(f'"{DIRECTORY}/{name}" = "{plan.partition_of(name)}"' for name in DATASETS)
    common = f"pools = {json.dumps(pools)}, pool_bytes = {plan.partition_bytes}"
    text = f"""
[grid]
name = "{STRESS_GRID}"
mode = "lab"
organisation = "/O=CMS"
pack = 24
[authority]
site = "CERN"
subject = "/O=CMS/CN=CMS Stress Test CA"
[[vo]]
name = "cms"
site = "CERN"
[[site]]
name = "CERN"
top = {{}}
information = {{}}
catalog = {{}}
[[site.agent]]
kind = "storage"
name = "storage.{PLANNED}"
options = {{ {common}, planned_partitions = {{ {planned} }} }}
[[site.agent]]
kind = "storage"
name = "storage.{FREE}"
options = {{ {common} }}
"""
    text += "".join(
        f'[[site]]\nname = "PROD{number + 1}"\ninformation = {{}}\nstorage = {{}}\n' for number in range(sites)
    )
    return load.loads(text, Path(f"{STRESS_GRID}.toml"))


async def _work(state: Path, plan: Plan, found: Found, dice: random.Random) -> None:
    from agents.user_interface import data
    from agents.user_interface.connection import administrator, open_grid
    from agents.user_interface.users import await_known

    services = endpoints.find({}, state)
    certificates, work = Path(services.certificates), state / "user"
    work.mkdir(mode=0o700)
    async with open_grid(services, administrator(state), certificates) as operator:
        proxy = await run.make_user(operator, work)
        async with open_grid(services, proxy, certificates) as grid:
            await await_known(grid)
            elements = {element.name: element for element in await data.elements(grid)}
            collectors = {rule: elements.pop(f"storage.{rule}") for rule in RULES}
            await _produce(grid, list(elements.values()), plan, work / "production", found, dice)
            files = await data.lookup(grid, await data.files_of(grid, [f"lfn:{DIRECTORY}"]))
            found.produced, found.produced_bytes = len(files), sum(data.content_of(file).size_bytes for file in files)
            with Bar("collection", len(RULES) * len(files)) as bar:
                await asyncio.gather(*(_collect(grid, files, collectors[rule], rule, found, bar) for rule in RULES))
            await _count(grid, operator, files, collectors, found)


async def _produce(
    grid: Any, elements: Sequence[Any], plan: Plan, folder: Path, found: Found, dice: random.Random
) -> None:
    """Every site writes its part of each dataset and puts it, all sites at once."""
    from agents.user_interface.trees import TreePut

    def write(number: int) -> None:
        for dataset, sizes in plan.sizes.items():
            target = folder / str(number) / dataset
            target.mkdir(parents=True)
            for index in range(number, len(sizes), len(elements)):
                (target / f"{dataset}-{index}.digi").write_bytes(dice.randbytes(sizes[index]))

    async def put(number: int) -> None:
        await asyncio.to_thread(write, number)
        tree = TreePut(grid, elements[number])
        await tree.run(folder / str(number), f"lfn:{DIRECTORY}")
        if tree.tally.first is not None:
            raise tree.tally.first
        found.produced += tree.tally.done
        bar.update(found.produced)

    with Bar("production", found.files) as bar:
        async with asyncio.TaskGroup() as group:
            for number in range(len(elements)):
                group.create_task(put(number))


async def _collect(grid: Any, files: Sequence[Any], target: Any, rule: str, found: Found, bar: Bar) -> None:
    from agents.user_interface import data
    from agents.user_interface.exits import describe

    collection = found.collections[rule] = Collection(RULES[rule])

    def copied(file: Any, surl: str | None) -> None:
        collection.copies += 1
        bar.update(sum(one.copies for one in found.collections.values()))

    failures = await data.replicate_all(grid, files, target, copied)
    collection.reasons = dict(Counter(describe(error)["reason"] for error in failures))
    collection.example = describe(failures[0])["sentence"] if failures else ""


async def _count(grid: Any, operator: Any, files: Sequence[Any], collectors: Mapping[str, Any], found: Found) -> None:
    """By the catalogue and by the elements, not by what the copies said."""
    from agents.storage import client as storage
    from agents.user_interface import data

    now = await data.lookup(grid, [data.lfn_of(file) for file in files])
    for rule, element in collectors.items():
        collection = found.collections[rule]
        missing = [file for file in now if not any(data.is_at(replica, element) for replica in file.replicas)]
        collection.copies, collection.failed = len(now) - len(missing), len(missing)
        collection.failed_bytes = sum(data.content_of(file).size_bytes for file in missing)
        collection.failed_by_dataset = dict(Counter(file.lfn.split("/")[-2] for file in missing))
        pools = await storage.pools(await operator.channel_to(element.host, element.port))
        collection.partitions = [
            Partition(Path(pool.path).name, pool.files, pool.used_bytes, pool.free_bytes, pool.total_bytes)
            for pool in pools
        ]


def checks_of(found: Found) -> list[Check]:
    """The conditions of success: what the scenario is to show is there."""
    old, ours = (found.collections.get(rule, Collection("")) for rule in (PLANNED, FREE))
    return [
        Check("every file is at the site that produced it, and in the catalogue", found.produced == found.files,
              f"{found.produced} of {found.files}"),
        Check("under the old rule copies fail though there is room for all of them",
              old.failed > 0 and set(old.reasons) == {"DISK_FULL"} and old.free_bytes >= old.failed_bytes,
              f"{old.failed} of {found.files} failed ({console.bytes_text(old.failed_bytes)}), "
              f"{console.bytes_text(old.free_bytes)} were free"),
        Check("under ours none fails", ours.copies == found.files and ours.failed == 0,
              f"{ours.failed} of {found.files} failed"),
        Check("no partition holds more than it may",
              all(pool.used_bytes <= pool.total_bytes for one in (old, ours) for pool in one.partitions),
              f"{len(old.partitions) + len(ours.partitions)} partitions"),
    ]  # fmt: skip


def _data(found: Found) -> dict[str, Any]:
    return {**asdict(found), "ok": found.ok}


COLUMNS = ("Partition", "Files", "Used", "Free", "Filled")


def _rows(collection: Collection) -> list[list[str]]:
    return [
        [
            pool.name, str(pool.files), console.bytes_text(pool.used_bytes), console.bytes_text(pool.free_bytes),
            f"{100 * pool.used_bytes / pool.total_bytes:.0f} %" if pool.total_bytes else "",
        ]
        for pool in collection.partitions
    ]  # fmt: skip


def _verdict(collection: Collection) -> str:
    if not collection.failed:
        return f"{collection.copies} copies, none failed"
    where = ", ".join(f"{name} {count}" for name, count in sorted(collection.failed_by_dataset.items()))
    return (
        f"{collection.copies} copies, {collection.failed} failed ({where}) while "
        f"{console.bytes_text(collection.free_bytes)} were free"
    )


def _print(found: Found) -> None:
    for collection in found.collections.values():
        print(f"\n{collection.rule}: {_verdict(collection)}")
        console.print_table(COLUMNS, _rows(collection))
        if collection.example:
            print(f"as it was told: {collection.example}")
    print()
    for check in found.checks:
        print(f"{'yes' if check.ok else 'NO '}  {check.name}: {check.detail}")


def render_html(found: Found) -> str:
    """The page: no link to anything outside."""
    template = string.Template((resources.files(__package__) / "stress.html").read_text(encoding="utf-8"))
    parts = [
        f"<h2>{html.escape(collection.rule)}</h2><section><p><strong>{html.escape(_verdict(collection))}</strong></p>"
        f"{_bars(collection)}{report.table(COLUMNS, _rows(collection))}"
        f"<p class=quiet>{html.escape(collection.example)}</p></section>"
        for collection in found.collections.values()
    ]
    return template.substitute(
        sites=found.sites,
        files=found.produced,
        size=console.bytes_text(found.produced_bytes),
        collections="".join(parts),
        checks=report.table(
            ("Check", "Holds", "Found"), [[c.name, "yes" if c.ok else "NO", c.detail] for c in found.checks]
        ),
    )


BAR_WIDTH, BAR_ROW = 600, 26


def _bars(collection: Collection) -> str:
    """How full each partition is, as SVG."""
    parts: list[str] = []
    for row, pool in enumerate(collection.partitions):
        y, used = row * BAR_ROW, BAR_WIDTH * pool.used_bytes / max(1, pool.total_bytes)
        parts.append(f'<rect x="100" y="{y}" width="{BAR_WIDTH}" height="{BAR_ROW - 8}" fill="#dde3ea"/>')
        parts.append(f'<rect x="100" y="{y}" width="{used:.1f}" height="{BAR_ROW - 8}" fill="#4477aa"/>')
        parts.append(f'<text x="0" y="{y + 13}">{html.escape(pool.name)}</text>')
    size = f"0 0 {BAR_WIDTH + 110} {len(collection.partitions) * BAR_ROW}"
    return f'<svg viewBox="{size}" role="img" aria-label="how full each partition is">{"".join(parts)}</svg>'
