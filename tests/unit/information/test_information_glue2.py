from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gatekeeper.model import Closure
from agents.gatekeeper.publish import downtime
from agents.information.machine import InformationMachine, site_dn
from agents.information.model import Publication, Published
from agents.user_interface.glue_rules import check
from fabric import glue2
from fabric.clock import ManualClock, to_us
from fabric.glue2_tree import RENEW_S, GlueDirectory
from fabric.glue13 import ce_entries, cluster_entries, se_entries, service_entries, site_entries
from fabric.glue_model import (
    UNKNOWN_TIME,
    AccessProtocol,
    ComputingElement,
    Service,
    Site,
    StorageArea,
    StorageElement,
    SubCluster,
)
from fabric.glue_reader import units
from fabric.glue_schema import GLUE_SCHEMA
from fabric.ldap import AliasedSource, Entry, NoSuchEntryError, Scope, parse_dn, parse_filter

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = "2026-01-01T00:00:00.5Z"
STAMP = glue2.Stamp(T0)
CE_ID = "ce.cern.ch:2119/jobmanager-fork-grid"


def records(free: int = 10, site: str = "CERN") -> list[Entry]:
    """The GLUE 1.3 entries of one site as its agents publish them."""
    element = ComputingElement(
        CE_ID, "ce.cern.ch", "ce.cern.ch", 2119, total_cpus=16, free_slots=free, running_jobs=16 - free, waiting_jobs=2,
        estimated_response_s=60, worst_response_s=120, max_wall_minutes=60, vos=("cms", "atlas"),
        close_storage=("se:8446",),
    )  # fmt: skip
    hosts = SubCluster(
        "ce.cern.ch", site, (CE_ID,), logical_cpus=16, physical_cpus=16, ram_mb=4096, operating_system="Debian",
        cpus_per_host=8, si00=2395, software=("PYTHIA-8.3", "ROOT"),
    )  # fmt: skip
    areas = tuple(StorageArea(vo, f"/{vo}", (vo,), 900 * 10**9, 100 * 10**9) for vo in ("cms", "atlas"))
    storage = StorageElement(
        "se:8446", site, "se", 8446, areas=areas, protocols=(AccessProtocol("grpc", "grpc://se:8446", 8446),),
        total_bytes=1000 * 10**9,
    )  # fmt: skip
    return [
        *site_entries(Site(site, email="grid@cern.ch", location="Geneva, Switzerland", latitude=46.2, longitude=6.1)),
        *cluster_entries(hosts),
        *ce_entries(element),
        *se_entries(storage),
        *service_entries(Service("gk", "org.gridfabric.gatekeeper", "grpcs://ce.cern.ch:2119", site, started=STARTED)),
        *service_entries(Service("st", "org.gridfabric.storage", "grpc://se:8446", site)),
        *service_entries(Service("ft", "org.gridfabric.transfer", "https://ft:1", site, data=(("channel:a-b", "1"),))),
        *service_entries(Service("rb", "org.gridfabric.broker", "https://rb:7772", site)),
    ]  # fmt: skip


class Level:
    """A site's machine with `o=glue` beside it."""

    def __init__(self, level: str = "site") -> None:
        self.clock = ManualClock(T0)
        self.machine = InformationMachine(level, "CERN", T0)
        self.directory = GlueDirectory(self.machine.tree, self.clock)
        self._sequence = 0

    def publish(self, entries: list[Entry], producer: str = "agent", *, snapshot: bool = True) -> None:
        if self._sequence == 0:
            self.machine.open_stream(producer, "CERN", 1, self.clock.now())
        self._sequence += 1
        publication = Publication(self._sequence, snapshot=snapshot, changed=tuple(map(Published.whole, entries)))
        assert self.machine.publish(producer, 1, publication, self.clock.now()).rejected == ()

    def find(self, text: str = "(objectClass=*)", base: str = "o=glue") -> list[Entry]:
        found = self.directory.search(parse_dn(base), Scope.SUBTREE, parse_filter(text))
        return [entry for entry in found if entry is not None]

    def one(self, text: str) -> Entry:
        (entry,) = self.find(text)
        return entry


@pytest.fixture
def level() -> Level:
    level = Level()
    level.publish(records())
    return level


def test_every_entity_keeps_the_schema_and_is_named_by_its_own_attribute(level: Level) -> None:
    for entry in level.find():
        assert GLUE_SCHEMA.violation(entry.attributes) is None, str(entry.dn)
        ((name, value),) = entry.dn.rdns[0]
        assert entry.first(name) == value


def test_foreign_keys_lead_to_entities(level: Level) -> None:
    names = {entry.dn.rdns[0][0][1] for entry in level.find()}
    for entry in level.find():
        for name, values in entry.attributes.items():
            if name.endswith("ForeignKey") and "UserDomain" not in name:
                assert set(values) <= names, f"{entry.dn}: {name}"


def test_what_a_service_says_of_itself_is_an_extension_of_it(level: Level) -> None:
    channel = level.one("(objectClass=GLUE2Extension)")
    assert channel.first("GLUE2ExtensionKey") == "channel:a-b" and channel.first("GLUE2ExtensionValue") == "1"
    assert channel.first("GLUE2ExtensionEntityForeignKey") == "ft"


def test_what_is_kept_for_groups_and_roles_is_not_for_all() -> None:
    level, fqans = Level(), ("/cms/Role=pilot", "/atlas/prod", "VOMS:", "//")
    element = ComputingElement(CE_ID, "ce.cern.ch", "ce.cern.ch", 2119, fqans=fqans)
    service = Service("gk", "org.gridfabric.gatekeeper", "grpcs://ce.cern.ch:2119", "CERN", fqans=fqans)
    level.publish([*cluster_entries(SubCluster("ce.cern.ch", "CERN", (CE_ID,))), *ce_entries(element)])
    level.publish([*service_entries(service)], snapshot=False)
    for kind in ("GLUE2MappingPolicy", "GLUE2AccessPolicy"):
        policy = level.one(f"(objectClass={kind})")
        assert policy.attributes["GLUE2PolicyRule"] == tuple(f"VOMS:{fqan}" for fqan in fqans)
        assert policy.attributes["GLUE2PolicyUserDomainForeignKey"][:2] == ("cms", "atlas")
        assert GLUE_SCHEMA.violation(policy.attributes) is None


def test_a_computing_service_says_what_the_ce_says(level: Level) -> None:
    share = level.one("(objectClass=GLUE2ComputingShare)")
    assert share.first("GLUE2ComputingShareFreeSlots") == "10"
    assert share.first("GLUE2ComputingShareUsedSlots") == "6"
    assert share.first("GLUE2ComputingShareTotalJobs") == "8"
    assert share.first("GLUE2ComputingShareMaxWallTime") == "3600"
    assert share.first("GLUE2ComputingShareEstimatedAverageWaitingTime") == "60"
    assert "GLUE2ComputingShareMaxRunningJobs" not in share.attributes  # no limit is no number
    assert share.first("GLUE2EntityOtherInfo") == f"GlueCEUniqueID={CE_ID}"
    policy = level.one(f"(GLUE2MappingPolicyShareForeignKey={share.first('GLUE2ShareID')})")
    assert policy.attributes["GLUE2PolicyRule"] == ("VO:cms", "VO:atlas")
    endpoint = level.one("(objectClass=GLUE2ComputingEndpoint)")
    assert endpoint.first("GLUE2EndpointURL") == "grpcs://ce.cern.ch:2119"
    assert endpoint.first("GLUE2EndpointStartTime") == "2026-01-01T00:00:00Z"
    manager = level.one("(objectClass=GLUE2ComputingManager)")
    assert manager.first("GLUE2ComputingManagerTotalSlots") == "16"
    assert manager.first("GLUE2ComputingManagerSlotsUsedByGridJobs") == "6"
    environment = level.one("(objectClass=GLUE2ExecutionEnvironment)")
    assert environment.first("GLUE2ExecutionEnvironmentTotalInstances") == "2"
    assert level.one("(objectClass=GLUE2Benchmark)").first("GLUE2BenchmarkValue") == "2395"
    software = {e.first("GLUE2ApplicationEnvironmentAppName") for e in level.find("(GLUE2ApplicationEnvironmentID=*)")}
    assert software == {"PYTHIA", "ROOT"}
    assert level.one("(objectClass=GLUE2ToStorageService)").first(
        "GLUE2ToStorageServiceStorageServiceForeignKey"
    ) == level.one("(objectClass=GLUE2StorageService)").first("GLUE2ServiceID")


def test_storage_that_is_shared_is_counted_once(level: Level) -> None:
    capacity = level.one("(objectClass=GLUE2StorageServiceCapacity)")
    assert capacity.first("GLUE2StorageServiceCapacityTotalSize") == "1000"
    assert capacity.first("GLUE2StorageServiceCapacityUsedSize") == "200"
    shares = level.find("(objectClass=GLUE2StorageShare)")
    assert [share.first("GLUE2StorageSharePath") for share in shares] == ["/cms", "/atlas"]
    assert {share.first("GLUE2StorageShareSharingID") for share in shares} == {"se:8446_StorageElement_DataStore"}


def test_the_services_of_elements_are_endpoints_and_no_services_of_their_own(level: Level) -> None:
    services = {entry.first("GLUE2ServiceID") for entry in level.find("(objectClass=GLUE2Service)")}
    assert services == {"ce.cern.ch_ComputingElement", "se:8446_StorageElement", "rb", "ft"}


def test_a_change_is_in_the_next_answer_and_only_its_service_is_made_anew(level: Level) -> None:
    before = {entry.dn.key: entry for entry in level.find()}
    level.publish([entry for entry in records(free=3) if "GlueCE" in entry.attributes["objectClass"]], snapshot=False)
    after = {entry.dn.key: entry for entry in level.find()}
    assert level.one("(objectClass=GLUE2ComputingShare)").first("GLUE2ComputingShareFreeSlots") == "3"
    again = [",".join(key) for key in after if after[key] is not before[key]]
    assert all("ce.cern.ch_computingelement" in name for name in again if "glue2serviceid" in name)


def test_a_downtime_is_said_of_the_endpoint_and_taken_back(level: Level) -> None:
    door = "(GLUE2EndpointURL=grpcs://ce.cern.ch:2119)"
    assert not level.one(door).first("GLUE2EndpointDowntimeStart")
    closure = Closure(reason="new disks", begins_at_us=to_us(T0), ends_at_us=to_us(T0 + timedelta(hours=2)))
    gatekeeper = Service("gk", "org.gridfabric.gatekeeper", "grpcs://ce.cern.ch:2119", "CERN", data=downtime(closure))
    level.publish([*records(), *service_entries(gatekeeper)])
    said = level.one(door)
    assert said.first("GLUE2EndpointDowntimeStart") == "2026-01-01T12:00:00Z"
    assert said.first("GLUE2EndpointDowntimeEnd") == "2026-01-01T14:00:00Z"
    assert said.first("GLUE2EndpointDowntimeInfo") == "new disks"
    assert [finding for finding in check(level.find(), T0) if "Downtime" in finding.sentence] == []
    level.publish(records())
    level.publish([], snapshot=False)
    assert not level.one(door).first("GLUE2EndpointDowntimeStart")


@pytest.mark.parametrize(
    ("closure", "keys"),
    [
        (Closure(), []),
        (Closure(draining=True, reason="no more"), []),
        (Closure(begins_at_us=1), ["downtime_start"]),
        (Closure(reason="x", begins_at_us=1, ends_at_us=2**63 - 1), ["downtime_start", "downtime_info"]),
    ],
)
def test_of_a_downtime_is_said_what_is_known(closure: Closure, keys: list[str]) -> None:
    assert [key for key, _ in downtime(closure)] == keys


def test_what_is_not_published_any_more_goes(level: Level) -> None:
    level.find()
    level.publish([entry for entry in records() if not str(entry.dn).startswith("GlueS")])
    level.publish([], snapshot=False)
    assert level.find("(objectClass=GLUE2StorageService)") == []
    assert level.find("(objectClass=GLUE2StorageShare)") == []
    assert level.find("(objectClass=GLUE2Location)") == []
    assert len(level.find("(objectClass=GLUE2ComputingShare)")) == 1


def test_a_lost_producer_is_published_as_lost_and_its_entities_expire(level: Level) -> None:
    level.find()
    level.clock.advance(9)
    level.machine.tick(level.clock.now())
    share = level.one("(objectClass=GLUE2ComputingShare)")
    assert share.first("GLUE2ComputingShareServingState") == "closed"
    assert level.one("(objectClass=GLUE2ComputingEndpoint)").first("GLUE2EndpointHealthState") == "unknown"
    assert share.first("GLUE2EntityCreationTime") == "2026-01-01T12:00:08Z"


def test_a_lost_site_stays_in_the_tree_with_its_state() -> None:
    top = Level("top")
    top.machine.open_stream("CERN", "CERN", 1, T0)
    top.machine.publish("CERN", 1, Publication(1, snapshot=True, changed=tuple(map(Published.whole, records()))), T0)
    assert "GridFabricState=current" in top.one("(objectClass=GLUE2AdminDomain)").attributes["GLUE2EntityOtherInfo"]
    for seconds in (9, 100):
        top.clock.advance(seconds)
        top.machine.tick(top.clock.now())
    domain = top.one("(objectClass=GLUE2AdminDomain)")
    assert "GridFabricState=unreachable" in domain.attributes["GLUE2EntityOtherInfo"]
    assert top.find("(objectClass=GLUE2Service)") == []
    assert top.one("(objectClass=GLUE2Location)").first("GLUE2LocationCountry") == "Switzerland"


def test_an_awaited_site_is_a_domain_without_services() -> None:
    clock = ManualClock(T0)
    machine = InformationMachine("top", "", T0, expected=["RAL"])
    directory = GlueDirectory(machine.tree, clock)
    (domain,) = [e for e in directory.search(parse_dn("o=glue"), Scope.SUBTREE, parse_filter("(GLUE2DomainID=*)")) if e]
    assert "GridFabricState=awaited" in domain.attributes["GLUE2EntityOtherInfo"]


def test_entities_are_confirmed_long_before_they_expire(level: Level) -> None:
    before = level.one("(objectClass=GLUE2ComputingShare)").first("GLUE2EntityCreationTime")
    level.clock.advance(RENEW_S - 1)
    level.publish([], snapshot=False)
    assert level.one("(objectClass=GLUE2ComputingShare)").first("GLUE2EntityCreationTime") == before
    level.clock.advance(1)
    level.publish([], snapshot=False)
    assert level.one("(objectClass=GLUE2ComputingShare)").first("GLUE2EntityCreationTime") == "2026-01-01T12:30:00Z"


def test_a_search_of_one_site_makes_only_that_site() -> None:
    top = Level("top")
    for site in ("CERN", "RAL"):
        top.machine.open_stream(site, site, 1, T0)
        top.machine.publish(
            site, 1, Publication(1, snapshot=True, changed=tuple(map(Published.whole, records(site=site)))), T0
        )
    found = top.find(base="GLUE2DomainID=RAL,GLUE2GroupID=grid,o=glue")
    top.clock.advance(1)
    made = {site: top.one(f"(GLUE2DomainID={site})").first("GLUE2EntityCreationTime") for site in ("CERN", "RAL")}
    assert made == {"CERN": "2026-01-01T12:00:01Z", "RAL": "2026-01-01T12:00:00Z"}
    assert len(found) * 2 + 2 == len(top.find())


def test_a_search_from_the_very_top_sees_both_trees(level: Level) -> None:
    found = [e for e in level.directory.search(parse_dn(""), Scope.SUBTREE, parse_filter("(objectClass=*)")) if e]
    suffixes = {entry.dn.key[-1] for entry in found}
    assert suffixes == {"o=grid", "o=glue"}
    assert [str(name) for name in level.directory.naming_contexts] == ["o=grid", "o=glue"]
    children = level.directory.search(parse_dn(""), Scope.ONE, parse_filter("(o=*)"))
    assert [str(entry.dn) for entry in children if entry] == ["o=grid", "o=glue"]


def test_a_site_answers_by_its_short_name_too(level: Level) -> None:
    short = parse_dn("GLUE2DomainID=CERN,o=glue")
    long = parse_dn("GLUE2DomainID=CERN,GLUE2GroupID=grid,o=glue")
    source = AliasedSource(level.directory, {short: long})
    found = source.search(short, Scope.SUBTREE, parse_filter("(objectClass=GLUE2ComputingShare)"))
    assert isinstance(found, Iterator)
    (share,) = [entry for entry in found if entry]
    assert share.dn.is_within(short)


def test_no_such_name(level: Level) -> None:
    with pytest.raises(NoSuchEntryError):
        level.find(base="GLUE2DomainID=nowhere,GLUE2GroupID=grid,o=glue")


def test_two_searches_at_once_make_the_tree_once_and_both_are_whole(level: Level) -> None:
    searches = [
        level.directory.search(parse_dn("o=glue"), Scope.SUBTREE, parse_filter("(objectClass=*)")) for _ in range(3)
    ]
    first = next(searches[0])
    assert first is None  # it gives way while it makes the tree
    assert next(searches[1]) is None
    searches[0].close()  # type: ignore[attr-defined]  # given up half way: the others go on
    found = [{entry.dn.key for entry in search if entry} for search in searches[1:]]
    assert found[0] == found[1]
    assert any("glue2shareid" in key[0] for key in found[0])


def test_an_agent_without_times_has_no_waiting_times() -> None:
    element = ComputingElement("c:1/q", "c", "c", 1, estimated_response_s=UNKNOWN_TIME)
    made = glue2.computing_entries("c", (), (element,), None, "X", STAMP)
    (share,) = [entry for entry in made if "GLUE2ComputingShare" in entry.attributes["objectClass"]]
    assert "GLUE2ComputingShareEstimatedAverageWaitingTime" not in share.attributes


# -- one model: what travels as GLUE 1.3 gives the same GLUE 2.0 as the record itself

NAMES = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=20)
COUNTS = st.integers(0, 10**6)
VOS = st.lists(st.sampled_from(["cms", "atlas", "dteam"]), unique=True).map(tuple)
ELEMENTS = st.builds(
    ComputingElement, unique_id=NAMES, cluster=st.just("c"), host=NAMES, port=st.integers(1, 65535), queue=NAMES,
    lrms=NAMES, total_cpus=COUNTS,
    status=st.sampled_from(["Production", "Draining", "Closed", "Unknown"]), free_slots=COUNTS,
    running_jobs=COUNTS, waiting_jobs=COUNTS, estimated_response_s=COUNTS, worst_response_s=COUNTS,
    max_wall_minutes=COUNTS, max_cpu_minutes=COUNTS, max_running_jobs=COUNTS, vos=VOS,
    default_storage=NAMES, close_storage=st.lists(NAMES, unique=True, max_size=2).map(tuple), contact=NAMES,
)  # fmt: skip
CLUSTERS = st.builds(
    SubCluster, cluster=st.just("c"), site=st.just("X"), logical_cpus=COUNTS, physical_cpus=COUNTS, ram_mb=COUNTS,
    virtual_mb=st.integers(1, 10**6), operating_system=NAMES, operating_system_version=NAMES, cpus_per_host=COUNTS,
    processor_model=NAMES, clock_mhz=COUNTS, si00=COUNTS, sf00=COUNTS, inbound_network=st.booleans(),
    software=st.lists(NAMES, unique=True, max_size=3).map(tuple),
)  # fmt: skip
SPACES = st.integers(0, 10**6).map(lambda size: size * 10**9)


def plain(entries: Iterator[Entry]) -> dict[str, Mapping[str, tuple[str, ...]]]:
    return {str(entry.dn): entry.attributes for entry in entries}


@settings(max_examples=15)
@given(CLUSTERS, ELEMENTS)
def test_computing_elements_survive_the_way(cluster: SubCluster, element: ComputingElement) -> None:
    (unit,) = units([*cluster_entries(cluster), *ce_entries(element)], 0)
    read = glue2.computing_entries("c", unit.clusters, unit.computing_elements, None, "X", STAMP)
    made = plain(glue2.computing_entries("c", [cluster], [element], None, "X", STAMP))
    assert plain(read) == made
    for attributes in made.values():
        assert GLUE_SCHEMA.violation(attributes) is None


@settings(max_examples=15)
@given(st.lists(st.builds(StorageArea, NAMES, NAMES, VOS, SPACES, SPACES), max_size=3), NAMES, SPACES)
def test_storage_elements_survive_the_way(areas: list[StorageArea], name: str, total: int) -> None:
    areas = list({area.local_id.lower(): area for area in areas}.values())
    record = StorageElement(name, "X", name, areas=tuple(areas), total_bytes=total)
    (unit,) = units(se_entries(record), 0)
    read = plain(glue2.storage_entries(unit.storage_elements[0], None, "X", STAMP))
    assert read == plain(glue2.storage_entries(record, None, "X", STAMP))
    for attributes in read.values():
        assert GLUE_SCHEMA.violation(attributes) is None


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_the_schema_lets_pass_stops_the_rendering(seed: int) -> None:
    """Producers are strangers: numbers of any size, attributes missing, records that do not belong together."""
    generator = random.Random(seed)
    level = Level()
    changed: list[Entry] = []
    for entry in records():
        attributes = dict(entry.attributes)
        for name in generator.sample(sorted(attributes), 2):
            attribute = GLUE_SCHEMA.lookup(name)
            assert attribute is not None
            if generator.random() < 0.5:
                del attributes[name]
            elif attribute.equality.name == "integerMatch":
                attributes[name] = (str(generator.choice([-1, 0, 10**30, -(10**30), 2146660842])),)
            else:
                attributes[name] = (
                    generator.choice(["x", ',=+;<>\\"', " ", "a" * 1000, "http://", "VO:", "=", "1e999"]),
                )
        changed.append(Entry(entry.dn, attributes))
    level.machine.open_stream("agent", "CERN", 1, T0)
    publication = Publication(1, snapshot=True, changed=tuple(map(Published.whole, changed)))
    level.machine.publish("agent", 1, publication, T0 + timedelta(seconds=1))
    assert level.find(base=str(site_dn("CERN"))) != []
    for entry in level.find():
        assert entry.dn.is_within(parse_dn("o=glue"))


def test_what_is_estimated_is_marked_and_what_is_measured_is_not(level: Level) -> None:
    (ce,) = (entry for entry in records() if "GlueCE" in entry.attributes["objectClass"])
    assert ce.attributes["GlueCECapability"] == (
        "Estimated=GlueCEStateEstimatedResponseTime,GlueCEStateWorstResponseTime",
    )
    share = level.one("(objectClass=GLUE2ComputingShare)")
    (mark,) = (value for value in share.attributes["GLUE2EntityOtherInfo"] if value.startswith("Estimated="))
    marked = mark.partition("=")[2].split(",")
    assert marked == [name for name in share.attributes if "Estimated" in name]
    unknown = ce_entries(ComputingElement("x", "x", "x", 1))[0]
    assert "GlueCECapability" not in unknown.attributes, "a place-holder is no estimate"
