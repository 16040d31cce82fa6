"""`.BrokerInfo` as a ClassAd, read with the names that glite-brokerinfo looks for."""

from __future__ import annotations

import classad2

from agents.worker.broker_info import broker_info
from fabric.settings import Endpoint

NEAR = Endpoint("storage", "storage.CERN", "se.cern.ch", "CERN", rpc=8443, http=8444)
FAR = Endpoint("storage", "storage.FNAL", "se.fnal.gov", "FNAL", rpc=8443)
OTHER = Endpoint("storage", "storage.RAL", "se.ral.uk", "RAL", rpc=8443)


def test_what_glite_brokerinfo_asks_for() -> None:
    surls = [f"srm://{place.address}/cms/{'0' * 32}" for place in (NEAR, FAR)]
    text = broker_info(
        ce="ce.cern.ch:2119/jobmanager-fabric-long", close_storage=[NEAR], storage=[NEAR, FAR, OTHER],
        replicas={"lfn:/grid/cms/a": surls, 'lfn:/grid/cms/"b\\é': surls[1:]}, protocols=["https", "gsiftp"], vo="cms",
    )  # fmt: skip
    ad = classad2.parseOne(text.decode())
    place = ad["ComputingElement"]
    assert place["name"] == "ce.cern.ch:2119/jobmanager-fabric-long"
    assert [(one["name"], one["mount"]) for one in place["CloseStorageElements"]] == [("se.cern.ch:8443", "n.a")]
    assert {one["name"]: list(one["SFNs"]) for one in ad["InputFNs"]} == {
        "lfn:/grid/cms/a": surls,
        'lfn:/grid/cms/"b\\é': surls[1:],
    }
    assert [
        (one["name"], [(way["name"], way["port"]) for way in one["protocols"]]) for one in ad["StorageElements"]
    ] == [
        ("se.cern.ch:8443", [("gridfabric", 8443), ("https", 8444)]),
        ("se.fnal.gov:8443", [("gridfabric", 8443)]),
    ]
    assert list(ad["DataAccessProtocol"]) == ["https", "gsiftp"]
    assert ad["VirtualOrganisation"] == "cms"


def test_a_job_without_data_and_a_site_without_storage() -> None:
    ad = classad2.parseOne(
        broker_info(ce="ce", close_storage=[], storage=[], replicas={}, protocols=[], vo="cms").decode()
    )
    assert [list(ad[name]) for name in ("InputFNs", "StorageElements", "DataAccessProtocol")] == [[], [], []]
    assert list(ad["ComputingElement"]["CloseStorageElements"]) == []
