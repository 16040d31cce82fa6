import itertools
import json
from pathlib import Path

import pytest
from unit.clusters.test_cluster_load import HOSTS, SMALL

from clusters import load, plan
from clusters.paths import StatePaths, default_state
from fabric.errors import Conflict
from fabric.settings import Settings

STATE = StatePaths(Path("/state"))


def planned(text: str, site: str | None = None):
    grid = load.loads(text)
    ports = (
        plan.well_known_ports(grid)
        if grid.mode == "hosts"
        else plan.lab_ports(grid, {}, itertools.count(20000).__next__)
    )
    return {agent.name: agent for agent in plan.make_plan(grid, ports, STATE, site)}


def test_settings_are_what_an_agent_reads():
    for agent in planned(SMALL).values():
        settings = Settings.from_dict(json.loads(json.dumps(dict(agent.settings))))
        assert settings.subject == agent.subject
        assert settings.listen == "127.0.0.1" and settings.advertise == "localhost"
        assert settings.state_dir == Path(f"/state/sites/A/{agent.name}")


def test_a_credential_store_is_placed_and_every_agent_knows_it():
    agents = planned(SMALL.replace("gatekeeper = {}", "gatekeeper = {}\nmyproxy = { max_credentials = 10 }"))
    settings = Settings.from_dict(json.loads(json.dumps(dict(agents["myproxy.A"].settings))))
    assert set(settings.ports) == {"rpc", "myproxy"} and settings.options == {"max_credentials": 10}
    for agent in agents.values():
        known = Settings.from_dict(json.loads(json.dumps(dict(agent.settings))))
        assert known.endpoint("myproxy").myproxy == settings.ports["myproxy"]
    text = HOSTS.replace("storage = {", "myproxy = {}\nstorage = {")
    assert planned(text)["myproxy.B"].settings["ports"] == {"rpc": 7511, "myproxy": 7512}


def test_lab_ports_stay_and_never_clash():
    grid = load.loads(SMALL)
    first = plan.lab_ports(grid, {}, itertools.count(20000).__next__)
    again = plan.lab_ports(grid, first, itertools.count(30000).__next__)
    assert again == first
    all_ports = [port for protocols in first.values() for port in protocols.values()]
    assert len(set(all_ports)) == len(all_ports)


def test_a_new_agent_gets_a_port_that_no_other_has():
    grid = load.loads(SMALL)
    first = plan.lab_ports(grid, {}, itertools.count(20000).__next__)
    bigger = load.loads(SMALL.replace("slots = 3", "count = 2"))
    again = plan.lab_ports(bigger, first, itertools.count(20000).__next__)
    assert {name: again[name] for name in first} == first
    assert again["worker2.A"]["rpc"] not in [p for protocols in first.values() for p in protocols.values()]


def test_well_known_ports_and_wishes():
    agents = planned(HOSTS)
    assert agents["gatekeeper.A"].settings["ports"] == {"rpc": 2119, "ldap": 2135}
    assert agents["top.A"].settings["ports"] == {"rpc": 2181, "ldap": 2180, "ldaps": 2182}
    assert agents["information.A"].settings["ports"] == {"rpc": 2171, "ldap": 2170, "ldaps": 2172}
    assert agents["authority.A"].settings["ports"] == {"rpc": 8443, "http": 8080}
    assert agents["storage.B"].settings["ports"] == {"rpc": 9999, "ldap": 2135, "http": 8447}


def test_two_of_a_kind_on_one_host_have_neighbouring_ports():
    agents = planned(HOSTS.replace('host = "a2"\n', 'host = "a2"\ncount = 2\n', 1))
    assert [agents[n].settings["ports"]["rpc"] for n in ("worker.A", "worker2.A")] == [2125, 2126]


def test_the_resource_levels_of_one_host_have_neighbouring_ports():
    agents = planned(HOSTS.replace("gatekeeper = {}", "gatekeeper = {}\nstorage = {}", 1))
    assert sorted(agents[n].settings["ports"]["ldap"] for n in ("gatekeeper.A", "storage.A")) == [2135, 2136]


def test_a_port_wanted_twice_is_refused_before_anything_starts():
    text = HOSTS.replace("storage = { ports = { rpc = 9999 } }", "storage = { ports = { rpc = 2171 } }")
    text = text.replace('name = "B"\ninformation = {}', 'name = "B"\ninformation = { ports = { rpc = 2171 } }')
    with pytest.raises(Conflict, match="both want port 2171"):
        planned(text)


def test_one_site_is_planned_with_the_endpoints_of_the_centre():
    agents = planned(HOSTS, "B")
    assert set(agents) == {"information.B", "storage.B"}
    endpoints = agents["storage.B"].settings["endpoints"]
    assert endpoints["information"] == [
        {"name": "information.B", "site": "B", "host": "10.0.0.3", "rpc": 2171, "ldap": 2170, "ldaps": 2172}
    ]
    assert endpoints["top"][0]["host"] == "10.0.0.1"
    assert endpoints["authority"][0]["http"] == 8080
    assert "gatekeeper" not in endpoints and "worker" not in endpoints


def test_central_agents_know_every_site_and_their_own_first():
    endpoints = planned(HOSTS)["top.A"].settings["endpoints"]
    assert [e["site"] for e in endpoints["information"]] == ["A", "B"]


def test_kinds_become_folders():
    agents = planned(HOSTS)
    assert agents["top.A"].settings["kind"] == "information" and agents["top.A"].settings["options"]["level"] == "top"
    assert agents["information.A"].settings["options"]["level"] == "site"


def test_the_authority_knows_what_each_site_may_enrol():
    sites = planned(HOSTS)["authority.A"].settings["options"]["sites"]
    assert sites["A"]["worker/worker.A"] == ["a2.example.org", "10.0.0.2"]
    assert set(sites["B"]) == {"information/information.B", "storage/storage.B"}


def test_site_particulars_reach_the_information_server():
    text = SMALL.replace('name = "A"', 'name = "A"\nlocation = "Geneva"\nlatitude = 46.2\nlongitude = 6.0')
    options = planned(text)["information.A"].settings["options"]
    assert (options["location"], options["latitude"], options["longitude"]) == ("Geneva", 46.2, 6.0)


def test_agents_start_in_the_order_of_their_kind():
    kinds = [agent.description.about.order for agent in planned(HOSTS).values()]
    assert kinds == sorted(kinds)


def test_default_state():
    assert default_state("lab", {}, 7) == Path("/var/tmp/gridfabric-7/lab")
    assert default_state("lab", {"GRIDFABRIC_STATE": "/x"}, 7) == Path("/x")


def packed(text: str, size: int, site: str | None = None) -> dict[str, tuple[str, ...]]:
    grid = load.loads(text.replace("[grid]", f"[grid]\npack = {size}"))
    names = [agent.name for agent in grid.agents() if site in (None, agent.site)]
    return {pack.actor: pack.agents for pack in plan.packs(grid, names)}


def test_agents_share_processes_site_by_site_and_central_ones_do_not():
    found = packed(SMALL.replace('"A"', '"{1..3}"').replace("information = {}", "information = {}\nstorage = {}"), 8)
    assert found == {
        "authority.1": ("authority.1",),
        "vo.cms": ("vo.cms",),
        "information.1": (
            *("information.1", "storage.1", "gatekeeper.1", "worker.1"),
            *("information.2", "storage.2", "gatekeeper.2", "worker.2"),
        ),
        "information.3": ("information.3", "storage.3", "gatekeeper.3", "worker.3"),
    }


def test_only_agents_of_one_host_share_a_process():
    everywhere = packed(HOSTS, 8)
    assert everywhere["information.A"] == ("information.A", "gatekeeper.A")
    assert everywhere["worker.A"] == ("worker.A",) and everywhere["information.B"] == ("information.B", "storage.B")
    at_a = packed(HOSTS, 8, "A")
    assert at_a == {actor: everywhere[actor] for actor in at_a}


def test_without_a_pack_each_agent_has_its_process():
    assert all(agents == (actor,) for actor, agents in packed(SMALL, 1).items())


def test_the_driver_is_told_of_some_agents_and_how_many_there_are():
    [pack] = [pack for pack in plan.packs(load.loads(SMALL), ["worker.A"])]
    assert pack.order(["worker.A", "other"]) == {"actor": "worker.A", "host": "lab", "agents": ["worker.A"], "size": 1}


def test_agents_of_packs_look_at_things_and_show_signs_of_life_less_often():
    alone, packed = planned(HOSTS), planned(HOSTS.replace("[grid]", "[grid]\npack = 4"))
    assert alone["storage.B"].settings["fabric"] == {}
    assert packed["storage.B"].settings["fabric"] == dict(plan.PACKED)
    assert packed["worker.A"].settings["options"]["disk_check_s"] == 10
    assert packed["information.B"].settings["options"]["valid_for_s"] == 60
    assert "valid_for_s" not in alone["information.B"].settings["options"]
