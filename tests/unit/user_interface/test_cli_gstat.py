"""`grid gstat`: the talk's table derived again, contradictions found, answers held against it, maps and the page."""

from __future__ import annotations

import asyncio
import json
import struct
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.user_interface.exits import UsageProblem
from agents.user_interface.gstat import checks, coast, maps, model, page, probes, run
from agents.user_interface.gstat.model import Finding, Status
from clusters import load
from fabric import glue13, glue_model
from fabric.information_tree import LOCAL
from fabric.ldap import Dn, Entry, make_entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CE = glue_model.ComputingElement(
    "ce:2119/jobmanager-fabric-long", "ce", "ce", 2119, total_cpus=8, free_slots=8, close_storage=("se:8446",)
)
CLUSTER = glue_model.SubCluster("ce", "RAL", (CE.unique_id,), logical_cpus=8, physical_cpus=8)
SE = glue_model.StorageElement("se:8446", "RAL", areas=(glue_model.StorageArea("cms", "/cms", total_bytes=10**13),))
SITE = glue_model.Site("RAL", location="Didcot, United Kingdom", latitude=51.57, longitude=-1.31)


def published(
    site: glue_model.Site = SITE,
    ce: glue_model.ComputingElement | None = CE,
    cluster: glue_model.SubCluster = CLUSTER,
    se: glue_model.StorageElement | None = SE,
    state: str = "current",
) -> list[Entry]:
    """One site as the top server shows it."""
    base = LOCAL.child("mds-vo-name", site.name)
    relative = [
        *glue13.site_entries(site),
        *(glue13.cluster_entries(cluster) if ce else ()),
        *(glue13.ce_entries(ce) if ce else ()),
        *(glue13.se_entries(se) if se else ()),
    ]
    own = make_entry(base, {"objectClass": "GridFabricSite", "mds-vo-name": site.name, "GridFabricSiteState": state})
    return [own, *(Entry(Dn((*entry.dn.rdns, *base.rdns)), entry.attributes) for entry in relative)]


def findings(**changes: object) -> list[tuple[str, str]]:
    site = model.sites_of(published(**changes))["RAL"]  # type: ignore[arg-type]
    return [(finding.status.value, finding.sentence) for finding in checks.check(site, {"se:8446"}, NOW)]


@pytest.fixture(scope="module")
def egee() -> dict[str, model.Site]:
    entries: list[Entry] = []
    for site in load.load("egee-2006").sites:
        options = {agent.kind: agent.options for agent in site.agents}
        slots = options["worker"]["slots"]
        known = glue_model.Site(
            site.name, location=site.location, latitude=site.latitude, longitude=site.longitude,
            other_info=tuple(options["information"]["other_info"]),
        )  # fmt: skip
        ce = replace(CE, total_cpus=slots, free_slots=slots)
        entries += published(known, ce, replace(CLUSTER, site=site.name, logical_cpus=slots, physical_cpus=2))
    return model.sites_of(entries)


def test_the_talk_s_table_is_derived_again_and_its_wrong_total_flagged(egee):
    rows = model.regions(egee.values())
    total = model.row_of("all", list(egee.values()))
    table = {row.region: (row.countries, row.sites, row.cpus, row.promised_cpus, row.disk_tb) for row in rows}
    assert table == {
        "CERN": (0, 1, 4400, 1800, 770),
        "UK/I": (2, 23, 4306, 2010, 310),
        "Italy": (1, 27, 2800, 2280, 373),
        "France": (1, 10, 2316, 1252, 300),
        "De/CH": (2, 13, 2895, 1852, 280),
        "Northern Europe": (6, 16, 2379, 1860, 64),
        "SW Europe": (2, 13, 956, 898, 16),
        "SE Europe": (8, 26, 1101, 1189, 30),
        "Central Europe": (7, 21, 1584, 1163, 70),
        "Russia": (1, 15, 515, 445, 38),
        "Asia-Pacific": (8, 19, 840, 751, 72),
        "North America": (2, 8, 4069, None, 229),
    }
    assert [row.region for row in rows if row.disk_is_estimated] == ["CERN", "De/CH", "France", "SW Europe"]
    assert (total.countries, total.sites, total.cpus, total.promised_cpus, total.disk_tb) == (
        40,
        192,
        28161,
        15500,
        2552,
    )
    assert model.wrong_totals(egee.values(), rows, total) == [
        "CERN-PROD states a total cpu_dow of 20265, and the 12 regions add up to 15500, 4765 less"
    ]


def test_totals_that_are_none_are_said_and_break_nothing():
    odd = replace(SITE, other_info=("EGEE_TOTALS=cpu many, sites 1, moons 3, cpu -4, ,sites 2",))
    sites = list(model.sites_of(published(odd)).values())
    flags = model.wrong_totals(sites, model.regions(sites), model.row_of("all", sites))
    assert len(flags) == 4 and "'cpu many', which is no total" in flags[0] and "'moons 3'" in flags[1]
    assert "total sites of 2" in flags[3] and "1 less" in flags[3]


def test_a_site_in_order_has_nothing_to_say():
    assert findings() == []


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"ce": replace(CE, running_jobs=9, free_slots=0)}, "WARN", "runs 9 jobs on 8 slots"),
        ({"ce": replace(CE, free_slots=9)}, "WARN", "9 free slots of 8"),
        ({"ce": replace(CE, free_slots=5, running_jobs=4)}, "WARN", "5 free slots and 4 running jobs, of 8"),
        ({"ce": replace(CE, waiting_jobs=2)}, "NOTE", "lets 2 jobs wait beside 8 free slots"),
        ({"ce": replace(CE, running_jobs=glue_model.UNKNOWN_JOBS)}, "WARN", "does not know how many jobs"),
        ({"ce": replace(CE, free_slots=-1)}, "WARN", "below zero"),
        ({"ce": replace(CE, total_cpus=0, free_slots=0)}, "NOTE", "has no slots"),
        ({"ce": replace(CE, status="Unknown")}, "ERROR", "its gatekeeper is not heard"),
        ({"ce": replace(CE, status="Draining")}, "MAINT", "status Draining"),
        ({"ce": replace(CE, status="<b>")}, "WARN", "'<b>'"),
        ({"ce": replace(CE, close_storage=("gone:1",))}, "WARN", "gone:1 is called close, and is not published"),
        ({"ce": None}, "NOTE", "no computing element"),
        ({"se": None}, "NOTE", "no storage element"),
        ({"se": replace(SE, status="Unknown")}, "ERROR", "se:8446 has status Unknown"),
        ({"se": replace(SE, areas=(glue_model.StorageArea("a", "/", used_bytes=10**10, total_bytes=10**9),))},
         "WARN", "area a has 10 GB used and 0 GB free, of 1 GB"),
        ({"cluster": replace(CLUSTER, logical_cpus=4400, physical_cpus=2)}, "INFO", "4400 slots are light"),
        ({"site": replace(SITE, latitude=None)}, "NOTE", "does not say where"),
        ({"site": replace(SITE, latitude=151.0)}, "WARN", "no place on earth"),
        ({"state": "unreachable"}, "ERROR", "is not heard"),
        ({"state": "withdrawn"}, "MAINT", "said that it stops"),
        ({"state": "awaited"}, "NA", "was never heard"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_found(changes, status, words):
    assert [one for one in findings(**changes) if one[0] == status and words in one[1]], findings(**changes)


def test_a_lost_site_says_who_does_not_hear_it_and_a_lost_region_is_said_once():
    own, *others = published(state="unreachable")
    reason = {"GridFabricSiteReason": ("region.X is not heard by top.A",)}
    site = model.sites_of([Entry(own.dn, {**own.attributes, **reason}), *others])["RAL"]
    (lost, *_) = checks.check(site, {"se:8446"}, NOW)
    assert lost.sentence == "its information server is not heard: region.X is not heard by top.A"
    region = {"GridFabricRegionID": "region.X", "GridFabricRegionState": "unreachable", "GridFabricRegionSince": "Z"}
    assert run.divergence([make_entry("GridFabricRegionID=region.X,o=grid", region)]) == [
        "the region server region.X is not heard since Z"
    ]


def test_the_last_change_of_a_site_is_that_of_its_youngest_entry():
    entries = published()
    made = [
        Entry(entry.dn, {**entry.attributes, "GridFabricProducedAt": (f"2025123123595{number}Z",)})
        for number, entry in enumerate(entries[1:4])
    ]
    site = model.sites_of([entries[0], *made])["RAL"]
    assert site.changed_at == datetime(2025, 12, 31, 23, 59, 52, tzinfo=UTC)
    assert model.sites_of(entries)["RAL"].changed_at is None


def test_a_site_that_publishes_nothing_is_in_the_table():
    sites = model.sites_of(published()[:1])
    sites["RAL"].findings += checks.check(sites["RAL"], (), NOW)
    assert sites["RAL"].status is Status.WARN
    assert model.row_of("all", list(sites.values())).states == {"WARN": 1}


def test_entries_past_their_time_are_told():
    entries = published()
    late = Entry(entries[1].dn, {**entries[1].attributes, "GridFabricValidUntil": ("20251231235930Z",)})
    site = model.sites_of([entries[0], late, *entries[2:]])["RAL"]
    assert "1 entries were good until 30 s ago at most" in [f.sentence for f in checks.check(site, {"se:8446"}, NOW)]


def test_the_site_s_own_server_is_held_against_the_top():
    top = published()[1:]
    own = published(ce=replace(CE, free_slots=3, running_jobs=5))
    found = [finding.sentence for finding in probes.compare(top, own)]
    assert "GlueCEStateFreeJobSlots 8 at the top and 3 at the site" in found
    assert "GlueCEStateRunningJobs 0 at the top and 5 at the site" in found
    assert [f.status for f in probes.compare(top[:-1], published())] == [Status.WARN]
    assert "the top server shows 1 entries" in probes.compare(top, published()[:-1])[0].sentence
    assert probes.compare(top, published()) == []


async def test_a_service_that_is_published_and_takes_no_calls():
    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(bye, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await probes.knock([(("127.0.0.1", port), "se")]) == []
    server.close()
    await server.wait_closed()
    (found,) = await probes.knock([(("127.0.0.1", port), "se")])
    assert found.status is Status.ERROR and "se is published as OK, and 127.0.0.1" in found.sentence


@pytest.mark.parametrize("url", ["", "host:1", "ldap://", "ldap://host", "ldap://host:99999", "ldap://[::1", "x://h:y"])
def test_an_endpoint_that_is_none_has_no_address(url):
    assert probes.address_of(url) is None


HOSTILE = '<script>alert("x")</script>\x00&'


def test_maps_of_egee_can_be_read_and_hold_every_site(egee):
    features = json.loads(maps.geojson(egee.values()))["features"]
    assert len(features) == 192
    cern = next(feature for feature in features if feature["properties"]["name"] == "CERN-PROD")
    assert cern["geometry"]["coordinates"] == [6.05, 46.23] and cern["properties"]["cpus"] == 4400
    marks = ET.fromstring(maps.kml(egee.values())).iter("{http://www.opengis.net/kml/2.2}Placemark")
    assert len(list(marks)) == 192
    circles = list(ET.fromstring(maps.svg(egee.values())).iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) > 192  # Europe twice, and the legend


def test_the_png_has_the_pixels_of_land_sea_and_sites(egee):
    data = maps.png(egee.values())
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, position = {}, 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, content = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (checked,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert checked == zlib.crc32(kind + content)
        chunks[kind], position = content, position + 12 + length
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert (width, depth, colours) == (1000, 8, 3) and len(pixels) == height * (width + 1)
    palette = [chunks[b"PLTE"][i : i + 3].hex() for i in range(0, len(chunks[b"PLTE"]), 3)]

    def colour(longitude: float, latitude: float) -> str:
        scale = (1000 - 16) / 350
        x, y = 8 + (longitude + 170) * scale, 8 + (75 - latitude) * scale
        return palette[pixels[int(y) * 1001 + 1 + int(x)]]

    lonely = min(egee.values(), key=lambda site: site.latitude)  # where nobody's point is over another's
    assert colour(lonely.longitude, lonely.latitude) == maps.COLOURS[lonely.status][1:]
    assert colour(-31, 31) == colour(85, -31) == "eef3f8"  # the Atlantic, the Indian Ocean
    assert colour(22, -11) == colour(134, -24) == colour(-64, -14) == "dfe3d6"


def test_coasts_are_rings_on_the_globe():
    for ring in (*coast.LAND, *coast.SEAS):
        assert ring[0] == ring[-1] and len(ring) > 3
        assert all(-180 <= longitude <= 180 and -90 <= latitude <= 90 for longitude, latitude in ring)


def test_what_a_site_publishes_is_text_and_not_markup():
    site = model.sites_of(published(replace(SITE, location=HOSTILE)))["RAL"]
    site.findings.append(Finding(Status.WARN, HOSTILE))
    shown = page.page(
        NOW,
        [site],
        [model.row_of(HOSTILE, [site])],
        model.row_of("all", [site]),
        [HOSTILE],
        [("now", HOSTILE, HOSTILE)],
        HOSTILE,
    )
    assert "<script" not in shown
    for text in (maps.kml([site]), maps.svg([site])):
        assert "<script" not in text
        ET.fromstring(text)
    json.loads(maps.geojson([site]))


def test_sites_that_are_nowhere_are_on_no_map():
    nowhere = model.sites_of(published(replace(SITE, latitude=None)))
    beyond = model.sites_of(published(replace(SITE, longitude=1e9)))
    assert maps.placed([*nowhere.values(), *beyond.values()]) == []
    assert json.loads(maps.geojson(nowhere.values()))["features"] == []


async def test_a_map_of_no_known_kind_is_refused_before_anything_is_asked():
    with pytest.raises(UsageProblem, match=r"\.svg"):
        await run.command(("127.0.0.1", 1), None, Path("sites.gif"), as_json=False)
