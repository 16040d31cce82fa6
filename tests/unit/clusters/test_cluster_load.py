from pathlib import Path

import pytest

from clusters import load
from clusters.model import KINDS
from clusters.paths import StatePaths
from clusters.plan import make_plan
from fabric.errors import InvalidRequest, NotFound

SMALL = """
[grid]
name = "small"
[[vo]]
name = "cms"
[[site]]
name = "A"
information = {}
gatekeeper = {}
worker = { slots = 3 }
"""

HOSTS = """
[grid]
name = "wide"
mode = "hosts"
[authority]
site = "A"
[[vo]]
name = "cms"
site = "A"
[[site]]
name = "A"
top = {}
information = {}
gatekeeper = {}
[[site.worker]]
host = "a2"
[[site.host]]
name = "a1"
address = "10.0.0.1"
[[site.host]]
name = "a2"
address = "10.0.0.2"
advertise = "a2.example.org"
[[site]]
name = "B"
information = {}
storage = { ports = { rpc = 9999 } }
[[site.host]]
name = "b1"
address = "10.0.0.3"
"""


def refusal(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        load.loads(text, Path("x.toml"))
    assert caught.value.reason == "DESCRIPTION_INVALID"
    return caught.value.sentence


def test_defaults_fill_a_small_description():
    grid = load.loads(SMALL)
    names = [agent.name for agent in grid.agents()]
    assert names == ["authority.A", "vo.cms", "information.A", "gatekeeper.A", "worker.A"]
    assert grid.mode == "lab" and {agent.host for agent in grid.agents()} == {"lab"}
    assert next(a for a in grid.agents() if a.kind == "worker").options == {"slots": 3}


def test_edg_2003_is_the_testbed():
    grid = load.load("edg-2003")
    assert [site.name for site in grid.sites] == ["CERN", "CNAF", "IN2P3", "RAL", "NIKHEF"]
    for site in grid.sites:
        assert {agent.kind for agent in site.agents} >= {"information", "gatekeeper", "worker", "storage"}
    at_cern = {agent.kind for agent in grid.sites[0].agents}
    assert at_cern >= {"broker", "bookkeeping", "catalog", "top", "authority", "vo"}
    assert [vo.name for vo in grid.vos] == ["cms"]


@pytest.mark.parametrize("preset", load.presets())
def test_every_preset_loads_by_name_and_by_path(preset):
    by_path = load.load(f"clusters/{preset}.toml")
    assert list(load.load(preset).agents()) == list(by_path.agents())


def test_presets_are_found_from_another_folder(tmp_path):
    assert load.find("edg-2003", tmp_path) == load.find("clusters/edg-2003.toml", tmp_path)
    with pytest.raises(NotFound, match="did you mean 'edg-2003'"):
        load.find("edg2003", tmp_path)
    with pytest.raises(NotFound):
        load.find("other/edg-2003.toml", tmp_path)


def test_a_file_goes_before_a_preset(tmp_path):
    (tmp_path / "lab").write_text(SMALL)
    assert load.load("lab", tmp_path).name == "small"


def test_hosts_mode_places_agents():
    grid = load.loads(HOSTS)
    where = {agent.name: agent.host for agent in grid.agents()}
    assert where["gatekeeper.A"] == "a1" and where["worker.A"] == "a2" and where["storage.B"] == "b1"
    assert grid.hosts()["a2"].advertise == "a2.example.org" and grid.hosts()["a1"].advertise == "10.0.0.1"


def test_count_names_agents_apart():
    grid = load.loads(SMALL.replace("worker = { slots = 3 }", "worker = { count = 3 }"))
    assert [a.name for a in grid.agents() if a.kind == "worker"] == ["worker.A", "worker2.A", "worker3.A"]


def test_a_range_in_a_name_is_so_many_equal_sites():
    grid = load.loads(SMALL.replace('name = "A"', 'name = "S{008..011}.example"'))
    assert [site.name for site in grid.sites] == [f"S{n:03}.example" for n in (8, 9, 10, 11)]
    assert grid.authority.site == "S008.example"
    at_last = [(agent.kind, agent.name, agent.options) for agent in grid.sites[-1].agents]
    assert ("worker", "worker.S011.example", {"slots": 3}) in at_last and len(at_last) == 3
    assert [site.name for site in load.loads(SMALL.replace('"A"', '"{8..10}"')).sites] == ["8", "9", "10"]


def test_the_long_form_is_the_short_form():
    long = SMALL.replace("worker = { slots = 3 }", '[[site.agent]]\nkind = "worker"\noptions = { slots = 3 }\n')
    assert list(load.loads(long).agents()) == list(load.loads(SMALL).agents())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "small"', 'name = "small"\ncolour = 1', ["grid.colour", "not known", "known keys"]),
        ("gatekeeper = {}", "gatekeper = {}", ["site.A.gatekeper", "did you mean 'gatekeeper'"]),
        ('[[vo]]\nname = "cms"', "", ["vo is missing", "[[vo]]"]),
        ('name = "small"', 'name = "a b"', ["grid.name", "not allowed"]),
        ('name = "small"', "name = 5", ["grid.name", "text in quotes"]),
        ('[[vo]]\nname = "cms"', '[[vo]]\nname = "cms"\nsite = "B"', ["vo.cms.site", "its sites are A"]),
        ('[[vo]]\nname = "cms"', '[[vo]]\nname = "cms"\n[[vo]]\nname = "cms"', ["vo.cms", "2 times"]),
        ("[[vo]]", '[authority]\nlifetime = 3650\n[[vo]]', ["authority.lifetime", "needs a unit", '"12h"']),
        ("[[vo]]", '[authority]\nlifetime = "10 parsec"\n[[vo]]', ["authority.lifetime", "not a duration", "365d"]),
        ("[[vo]]", '[authority]\nsubject = "/O=Other/CN=CA"\n[[vo]]', ["authority.subject", "/O=Grid"]),
        ('name = "small"', 'name = "small"\nmode = "cloud"', ["grid.mode", "lab, hosts"]),
        ('name = "small"', 'name = "small"\nmode = "hosts"', ["site.A.host", "is missing", "[[site.host]]"]),
        ('name = "small"', 'name = "small"\norganisation = "EDG"', ["grid.organisation", "/C=CH"]),
        ("gatekeeper = {}", "", ["worker", "no gatekeeper"]),
        ("information = {}", "", ["information", "is missing"]),
        ("worker = { slots = 3 }", "worker = { count = 0 }", ["worker.1.count", "from 1 to"]),
        ("worker = { slots = 3 }", 'worker = { ports = { web = 1 } }', ["ports.web", "not known"]),
        ("worker = { slots = 3 }", 'worker = { ports = { rpc = 70000 } }', ["ports.rpc", "port number"]),
        ('name = "small"', 'name = "small"\npack = 0', ["grid.pack", "from 1 to"]),
        ('name = "small"', 'name = "small"\npack = true', ["grid.pack", "whole number"]),
        ('name = "A"', 'name = "A{3..1}"', ["A{3..1}.name", "count up"]),
        ('name = "A"', 'name = "A{0..1000}"', ["count up", "1000 sites"]),
        ('name = "A"', 'name = "A{1..2}{1..2}"', ["site.A{1..2}{1..2}.name", "not allowed"]),
        ('name = "A"', 'name = "A{01..02}"\nstorage = { name = "se" }', ["agent.se", "2 times"]),
        ('name = "A"', 'name = "Users{1..1}"\ncolour = 1', ["site.Users1.colour", "not known"]),
        ('name = "A"', 'name = "Users"', ["site.Users.name", "organisational unit"]),
        ("worker = { slots = 3 }", 'worker = { name = "gatekeeper.A" }', ["agent.gatekeeper.A", "2 times"]),
        ("worker = { slots = 3 }", "broker = {}\nbookkeeping = {count = 2}", ["site.bookkeeping", "2 times"]),
        ("[grid]", "[grid", ["not TOML", "line 2"]),
    ],
)  # fmt: skip
def test_every_mistake_names_file_key_and_cure(old, new, words):
    assert old in SMALL
    sentence = refusal(SMALL.replace(old, new))
    assert sentence.startswith("x.toml: ")
    for word in words:
        assert word in sentence


def test_hosts_mistakes():
    assert "its hosts are a1, a2" in refusal(HOSTS.replace('host = "a2"', 'host = "b1"'))
    assert "IP address" in refusal(HOSTS.replace("10.0.0.3", "b1.example.org"))
    assert "by which name others reach b1" in refusal(HOSTS.replace("10.0.0.3", "0.0.0.0"))
    assert "host.a1 is there 2 times" in refusal(HOSTS.replace('"b1"', '"a1"'))


def test_unreadable_files(tmp_path):
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 21))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    for name in ("big.toml", "latin.toml"):
        with pytest.raises(InvalidRequest):
            load.load(name, tmp_path)


def test_every_kind_has_a_folder_and_ports():
    for kind in KINDS.values():
        assert kind.ports.get("rpc") and kind.folder.isidentifier()


def test_egee_2006_adds_up_to_the_talk_s_table():
    grid = load.load("egee-2006")
    regions: dict[str, dict[str, float]] = {}
    for site in grid.sites:
        by_kind = {agent.kind: agent.options for agent in site.agents}
        assert by_kind.keys() >= {"information", "gatekeeper", "worker", "storage"}
        declared = dict(text.split("=", 1) for text in by_kind["information"]["other_info"])
        row = regions.setdefault(declared["EGEE_ROC"], {"sites": 0, "cpu": 0, "dow": 0, "disk": 0})
        row["sites"] += 1
        row["cpu"] += by_kind["worker"]["slots"]
        row["dow"] += int(declared.get("EGEE_CPU_DOW", 0))
        row["disk"] += float(declared["EGEE_DISK_TB"].rstrip("*"))
    assert {name: tuple(map(round, row.values())) for name, row in regions.items()} == {
        "CERN": (1, 4400, 1800, 770),
        "UK/I": (23, 4306, 2010, 310),
        "Italy": (27, 2800, 2280, 373),
        "France": (10, 2316, 1252, 300),
        "De/CH": (13, 2895, 1852, 280),
        "Northern Europe": (16, 2379, 1860, 64),
        "SW Europe": (13, 956, 898, 16),
        "SE Europe": (26, 1101, 1189, 30),
        "Central Europe": (21, 1584, 1163, 70),
        "Russia": (15, 515, 445, 38),
        "Asia-Pacific": (19, 840, 751, 72),
        "North America": (8, 4069, 0, 229),
    }
    assert sum(agent.kind == "top" for agent in grid.agents()) == 2


def test_a_batch_system_of_the_gatekeepers_host_needs_no_worker_in_the_description() -> None:
    text = SMALL.replace("gatekeeper = {}", 'gatekeeper = { batch = "slurm" }').replace("worker = { slots = 3 }", "")
    workers = [agent for agent in load.loads(text).agents() if agent.kind == "worker"]
    assert [(agent.name, agent.host, agent.options) for agent in workers] == [("worker.A", "lab", {"batch": "slurm"})]
    named = text + 'worker = { partition = "grid" }\n'
    workers = [agent for agent in load.loads(named).agents() if agent.kind == "worker"]
    assert [agent.options for agent in workers] == [{"batch": "slurm", "partition": "grid"}]
    workers = [agent for agent in load.loads(SMALL).agents() if agent.kind == "worker"]
    assert [agent.options for agent in workers] == [{"slots": 3}]
    queues = 'batch = "slurm", queues = [{ name = "short", partition = "debug" }, { name = "long" }]'
    workers = [a for a in load.loads(text.replace('batch = "slurm"', queues)).agents() if a.kind == "worker"]
    assert [agent.options for agent in workers] == [{"batch": "slurm", "partitions": {"short": "debug"}}]


def test_a_grid_may_have_several_brokers():
    one = SMALL.replace("worker = { slots = 3 }", "broker = {count = 2}\nbookkeeping = {}\nworker = { slots = 3 }")
    names = [agent.name for agent in load.loads(one, Path("x.toml")).agents() if agent.kind == "broker"]
    assert len(set(names)) == 2


HEADER = SMALL.partition("[[site]]")[0]
REGIONS = """
[[site]]
name = "A"
top = {}
information = {}
region = { sites = ["B"], regions = ["inner"] }
[[site]]
name = "B"
information = {}
[[site]]
name = "C"
information = {}
region = { name = "inner", sites = ["C"] }
"""


def test_regions_say_who_publishes_where() -> None:
    grid = load.loads(HEADER + REGIONS)
    ports = {agent.name: dict.fromkeys(agent.about.ports, 1) for agent in grid.agents()}
    planned = {one.name: one.settings["options"] for one in make_plan(grid, ports, StatePaths(Path("/s")))}
    assert planned["top.A"]["below"] == {"region.A": ["B", "inner", "C"]}
    assert planned["region.A"] | {"below": {"inner": ["C"]}, "region": "", "sites": ["B"]} == planned["region.A"]
    assert planned["inner"] | {"below": {}, "region": "region.A", "level": "region"} == planned["inner"]
    assert [planned[f"information.{site}"]["region"] for site in "ABC"] == ["", "region.A", "inner"]


@pytest.mark.parametrize(
    ("was", "wrong", "says"),
    [
        ('sites = ["C"]', 'sites = ["C", "B"]', "region.sites names B, which publishes at region.A"),
        ('sites = ["C"]', 'sites = ["X"]', "region.sites names 'X', which is none of the sites"),
        ('regions = ["inner"]', 'regions = ["outer"]', "region.regions names 'outer'"),
        ('sites = ["C"]', 'sites = "C"', "must be a list of names"),
        ('sites = ["C"]', "sites = []", "region.sites is missing"),
        ('sites = ["C"]', 'regions = ["region.A"]', "is below itself"),
        ('name = "inner"', 'name = "C"', "cannot be the name of a site"),
    ],
)
def test_regions_that_lead_nowhere(was: str, wrong: str, says: str) -> None:
    assert was in REGIONS
    with pytest.raises(InvalidRequest, match=says):
        load.loads(HEADER + REGIONS.replace(was, wrong))
